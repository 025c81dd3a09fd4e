"""Questions and answers as token ids, and batches of them; nothing here needs transformers.

A row reads: queries of the Q-Former, start token, prompt, answer, newline. Prompt and answer are tokenised apart and joined, so
that training and generation see identical ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NODE = "TRAINER.GATEDBLIP2"
TEMPLATE_KEY = f"{NODE}.PROMPT.TEMPLATE"
PLACE = "{question}"
STOP = "\n"  # ends an answer, as in BLIP-2's own training
IGNORED = -100
SIDES = ("left", "right")
SHOWN = 60  # characters of a question that a message quotes


@dataclass(frozen=True)
class TextIds:
    """Token ids of one question.

    Attributes:
        prompt: Start token, template and question.
        answer: Answer and newline; empty if the answer is to be generated.
        question: The question's own ids among those of `prompt`, at most as many as questions may have.
        cut: Whether the question was longer.
    """

    prompt: list[int]
    answer: list[int]
    question: list[int]
    cut: bool


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Texts of a batch, padded; what stands behind the queries of the Q-Former.

    Attributes:
        ids: Token ids, (B, T), int64.
        mask: Real tokens, (B, T), bool.
        labels: Ids of answers and their newlines, -100 elsewhere, (B, T), int64.
        question_ids: Ids of the questions alone, padded on the right, (B, Q), int64.
        question_mask: Their real tokens, (B, Q), bool.
        n_answer_tokens: Labels that count.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    question_ids: Tensor
    question_mask: Tensor
    n_answer_tokens: int

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> TextBatch:
        """Return it on a device; itself if it is there."""
        tensors = (self.ids, self.mask, self.labels, self.question_ids, self.question_mask)
        return TextBatch(*(each.to(device, non_blocking=True) for each in tensors), self.n_answer_tokens)


def problems_with_template(template: str) -> list[str]:
    """Return the message for a template that does not hold the question exactly once."""
    count = template.count(PLACE)
    if count == 1:
        return []
    return [f"{TEMPLATE_KEY} is {template!r}, which holds {PLACE} {count} times; expected once"]


class PromptEncoder:
    """Turns questions and answers into token ids; the same for training, evaluation and prediction.

    Args:
        tokenizer: Of the language model.
        template: Words around the question, which stands at `{question}`; spaces before it are the question's.
        max_question_tokens: Longer questions are cut; answers never are.
        max_positions: Positions of the language model, those of the queries included.
        n_queries: Query tokens of the Q-Former, which come first.

    Raises:
        ValueError: If the template does not hold the question once, or the tokenizer has no start token or no newline.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str, *, max_question_tokens: int, max_positions: int, n_queries: int
    ) -> None:
        problems = problems_with_template(template)
        if tokenizer.bos_token_id is None:
            problems.append("the tokenizer has no start token")
        if problems:
            raise ValueError("; ".join(problems))
        self.template = template
        self.max_question_tokens, self.max_positions, self.n_queries = max_question_tokens, max_positions, n_queries
        self._tokenizer = tokenizer
        self.bos_id: int = tokenizer.bos_token_id
        self.stop_id = find_stop_id(tokenizer)
        self.pad_id: int = self.stop_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        before, after = template.split(PLACE)
        # Byte-pair tokenizers keep a space with the word behind it.
        self._head, self._tail = self._ids(before.rstrip()), self._ids(after)
        self._gap = before[len(before.rstrip()) :]

    @property
    def longest_prompt(self) -> int:
        """Positions that the longest possible prompt takes, queries included."""
        return self.n_queries + 1 + len(self._head) + self.max_question_tokens + len(self._tail)

    def encode(self, question: str, answer: str | None = None) -> TextIds:
        """Encode a question; line breaks and repeated spaces in it, and in the answer, become single spaces.

        Args:
            question: Any text with at least one token.
            answer: What is to be learned; None: what is to be generated.
        Raises:
            ValueError: If question or answer is empty, or the row is longer than the language model has positions.
        """
        question = " ".join(question.split())
        found = self._ids(self._gap + question) if question else []
        if not found:
            raise ValueError("the question is empty; expected some words")
        kept = found[: self.max_question_tokens]
        prompt = [self.bos_id, *self._head, *kept, *self._tail]
        row = TextIds(prompt, [] if answer is None else self._answer_ids(question, answer), kept, len(found) > len(kept))
        self._check_length(question, row)
        return row

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []

    def _answer_ids(self, question: str, answer: str) -> list[int]:
        words = answer.split()
        if not words:
            raise ValueError(f"the answer to {_quote(question)} is empty; expected some words")
        return [*self._ids(" " + " ".join(words)), self.stop_id]

    def _check_length(self, question: str, row: TextIds) -> None:
        length = self.n_queries + len(row.prompt) + len(row.answer)
        if length > self.max_positions:
            raise ValueError(
                f"the question {_quote(question)} takes {length} positions ({self.n_queries} queries, {len(row.prompt)} tokens "
                f"of prompt, {len(row.answer)} of answer); the language model has {self.max_positions}; shorten the answer, "
                f"{TEMPLATE_KEY} or {NODE}.PROMPT.MAX_QUESTION_TOKENS ({self.max_question_tokens})"
            )


def find_stop_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the newline, which ends an answer.

    Raises:
        ValueError: If the tokenizer has no token for it.
    """
    ids = tokenizer.encode(STOP, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ValueError(f"the tokenizer writes the newline, which ends answers, as {ids}; expected one token of its own")
    return ids[0]


def collate(rows: Sequence[TextIds], *, pad_id: int, side: str = "right") -> TextBatch:
    """Pad texts to one length.

    Args:
        rows: At least one.
        pad_id: Fills the gaps, which the mask hides.
        side: `right` (training), or `left`: between queries and text (generation).
    Raises:
        ValueError: If there are no rows, or the side is unknown.
    """
    if side not in SIDES or not rows:
        raise ValueError(f"cannot pad {len(rows)} row(s) on the {side!r} side; expected rows, and {' or '.join(SIDES)}")
    texts = [[*row.prompt, *row.answer] for row in rows]
    labels = [[IGNORED] * len(row.prompt) + row.answer for row in rows]
    questions = [row.question for row in rows]
    return TextBatch(
        ids=_pad(texts, pad_id, side),
        mask=_pad([[1] * len(text) for text in texts], 0, side).bool(),
        labels=_pad(labels, IGNORED, side),
        question_ids=_pad(questions, pad_id, "right"),
        question_mask=_pad([[1] * len(question) for question in questions], 0, "right").bool(),
        n_answer_tokens=sum(len(row.answer) for row in rows),
    )


def _pad(rows: Sequence[list[int]], fill: int, side: str) -> Tensor:
    width = max(len(row) for row in rows)
    gaps = [[fill] * (width - len(row)) for row in rows]
    pairs = zip(rows, gaps, strict=True)
    return torch.tensor([gap + row if side == "left" else row + gap for row, gap in pairs], dtype=torch.int64)


def _quote(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")
