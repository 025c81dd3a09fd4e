"""LLaVA-1.5's conversation as text and as token ids; answers are found by character offsets.

Prompt of https://arxiv.org/abs/2310.03744 (its short-answer instruction included).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

IGNORED = -100
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
INSTRUCTION = "Answer the question using a single word or phrase."

Turn = tuple[str, "str | None"]


class PromptError(ValueError):
    """A conversation that cannot be encoded; `reason` is short and countable."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class PromptTemplate:
    """The words around questions and answers; stored with a trained model.

    Attributes:
        system: First sentence of a conversation.
        instruction: Follows the first question; empty: nothing does.
        user: Name of who asks.
        assistant: Name of who answers.
        image: Text of the image token.
        end: Text that ends an answer.
    """

    system: str = SYSTEM
    instruction: str = INSTRUCTION
    user: str = "USER"
    assistant: str = "ASSISTANT"
    image: str = "<image>"
    end: str = "</s>"

    def write(self, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
        """Write a conversation about one image.

        Args:
            turns: Questions and answers; only the last answer may be None, which leaves the text open for it.

        Returns:
            The text, and for each answer the characters it spans, from its leading space to the end token.
        """
        text, spans = f"{self.system} ", []
        for number, (question, answer) in enumerate(turns):
            text += f"{self.user}: {self._first(question) if number == 0 else self._clean(question)} {self.assistant}:"
            if answer is not None:
                start = len(text)
                text += f" {answer.strip()}{self.end}"
                spans.append((start, len(text)))
        return text, spans

    def _first(self, question: str) -> str:
        instruction = f"\n{self.instruction}" if self.instruction else ""
        return f"{self.image}\n{self._clean(question)}{instruction}"

    def _clean(self, question: str) -> str:
        """Sources put the image token anywhere; here it always comes first."""
        return question.replace(self.image, "").strip()


@dataclass(frozen=True, eq=False)
class TextIds:
    """Token ids of a conversation, cut at its image.

    Attributes:
        prefix: What comes before the image, BOS included, (n0,), int64.
        rest: What follows it, (n2,), int64.
        labels: Ids of answers and their end tokens, -100 elsewhere, (n2,), int64.
        first_answer: Index in `rest` of the first answer token; n2 if there is none.
    """

    prefix: Tensor
    rest: Tensor
    labels: Tensor
    first_answer: int


class PromptEncoder:
    """Turns conversations into token ids; the same for training, evaluation and prediction.

    Args:
        tokenizer: A fast one (it must know character offsets) with the template's image and end tokens.
        template: The words around questions and answers.

    Raises:
        ValueError: If the tokenizer is slow or lacks a token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = template or PromptTemplate()
        self._image_id = find_token(tokenizer, self.template.image)
        find_token(tokenizer, self.template.end)
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} is a slow tokenizer without character offsets; use a fast one")
        self._reserved = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})

    def encode(self, turns: Sequence[Turn]) -> TextIds:
        """Encode a conversation about one image.

        Args:
            turns: (question, answer) pairs; an open question, answer None, comes last.

        Raises:
            PromptError: With reason `empty question`, `empty answer`, `reserved token`, `open turn` or `offset failure`.
        """
        self._check(turns)
        text, spans = self.template.write(turns)
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        ids = torch.tensor(encoded["input_ids"])
        labels = self._label(ids, encoded["offset_mapping"], spans)
        places = (ids == self._image_id).nonzero().flatten().tolist()
        if len(places) != 1:
            raise PromptError("offset failure", f"the text has {len(places)} image tokens; expected 1: {text!r}")
        cut = places[0]
        answered = (labels[cut + 1 :] != IGNORED).nonzero().flatten()
        self._check_prefix(turns, ids, spans)
        rest = ids[cut + 1 :]
        return TextIds(ids[:cut], rest, labels[cut + 1 :], int(answered[0]) if len(answered) else len(rest))

    def _check(self, turns: Sequence[Turn]) -> None:
        if not turns:
            raise PromptError("empty question", "a conversation has no turns; expected at least one")
        for number, (question, answer) in enumerate(turns):
            if not question.replace(self.template.image, "").strip():
                raise PromptError("empty question", f"question {number + 1} of {len(turns)} is empty")
            if answer is None and number < len(turns) - 1:
                raise PromptError("open turn", f"turn {number + 1} of {len(turns)} has no answer; only the last may be open")
            if answer is not None and not answer.strip():
                raise PromptError("empty answer", f"answer {number + 1} of {len(turns)} is empty")
            text = f"{question.replace(self.template.image, '')} {answer or ''}"
            found = [token for token in self._reserved if token in text]
            if found:
                raise PromptError("reserved token", f"{text!r} holds {', '.join(found)}, which the tokenizer reserves")

    def _label(self, ids: Tensor, offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Tensor:
        """Keep the ids within the spans; a token across the start of one would mix question and answer."""
        labels = torch.full_like(ids, IGNORED)
        starts, ends = torch.tensor(offsets).unbind(dim=1)
        real = ends > starts  # added tokens such as BOS have no characters
        for first, last in spans:
            inside = real & (starts >= first) & (ends <= last)
            across = real & ~inside & (starts < last) & (ends > first)
            if across.any() or not inside.any():
                pieces = self.tokenizer.convert_ids_to_tokens(ids[across].tolist())
                where = f"the answer at characters {first}..{last}"
                raise PromptError("offset failure", f"tokens {pieces} cross the limits of {where}")
            labels[inside] = ids[inside]
        return labels

    def _check_prefix(self, turns: Sequence[Turn], ids: Tensor, spans: Sequence[tuple[int, int]]) -> None:
        """Require that the question alone has the same ids as with its answer."""
        if not spans:
            return
        text, _ = self.template.write([(turns[0][0], None)])
        alone = torch.tensor(self.tokenizer(text)["input_ids"])
        if not torch.equal(ids[: len(alone)], alone):
            raise PromptError("offset failure", f"the ids of {text!r} change when the answer {turns[0][1]!r} follows")


def find_token(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Return the id of a token that must be there.

    Raises:
        ValueError: If it is not.
    """
    number = tokenizer.convert_tokens_to_ids(token)
    if number is None or tokenizer.convert_ids_to_tokens(number) != token:
        raise ValueError(f"the tokenizer ({type(tokenizer).__name__}, {len(tokenizer)} tokens) has no token {token!r}")
    return number
