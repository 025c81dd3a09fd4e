"""The hard prompt, "There are person, dog in image.", as text and as token ids.

Training joins the ids of single entities, which is much faster than tokenising half a million sentences per epoch; inference
tokenises whole sentences. Both give the same ids: names for which a tokenizer does not allow that are found out and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["NOTHING", "PromptBuilder", "prompt_sentence"]

NOTHING = "something"  # stands in the prompt of a caption or an image without an entity

_NODE = "TRAINER.VIECAP"
_FIRST, _LAST = "There are", " in image."


def prompt_sentence(names: Sequence[str]) -> str:
    """Return the hard prompt of these entities, in their order; of none, "There are something in image."."""
    return f"{_FIRST} {', '.join(names) if names else NOTHING}{_LAST}"


class PromptBuilder:
    """Makes hard prompts of at most `budget` tokens for one tokenizer. Trailing entities go until a prompt fits.

    Attributes:
        budget: Most tokens of a prompt: 2 * max_entities - 1 + template_length.
        first_ids: Of "There are".
        comma_ids: Between two entities.
        last_ids: Of " in image.".
        nothing_ids: Of " something".
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_entities: int, template_length: int) -> None:
        """Take the template apart.

        Args:
            tokenizer: The language model's.
            max_entities: `MAX_NUM_OF_ENTITIES`, 1 or more.
            template_length: `PROMPT_TEMPLATE_LENGTH`, tokens, at least the template's own (5 for GPT-2).
        Raises:
            ValueError: If the template needs more tokens than it is allowed, or the tokenizer does not keep its words apart.
        """
        self._tokenizer = tokenizer
        self.budget = 2 * max_entities - 1 + template_length
        self._pieces: dict[str, tuple[int, ...]] = {}  # () for a name that cannot be joined
        self.first_ids, self.nothing_ids, self.comma_ids, self.last_ids = self._take_apart()
        self._check_lengths(template_length)

    def sentence(self, names: Sequence[str]) -> str:
        """Return the prompt's text, whatever its length in tokens."""
        return prompt_sentence(names)

    def encode(self, names: Sequence[str]) -> list[int]:
        """Tokenise the whole sentence, without trailing entities if it is longer than the budget."""
        for count in range(len(names), 0, -1):
            (ids,) = self._tokenise([prompt_sentence(names[:count])])
            if len(ids) <= self.budget:
                return ids
        return self._tokenise([prompt_sentence(())])[0]

    def join(self, names: Sequence[str]) -> list[int]:
        """Join the ids of single entities: what `encode` gives, without tokenising.

        Args:
            names: All of them joinable.
        Raises:
            ValueError: If one is not.
        """
        between: list[int] = []
        used = len(self.first_ids) + len(self.last_ids)
        for place, name in enumerate(names):
            piece = [*(self.comma_ids if place else ()), *self.entity_ids(name)]
            used += len(piece)
            if used > self.budget:
                break
            between += piece
        return [*self.first_ids, *(between or self.nothing_ids), *self.last_ids]

    def entity_ids(self, name: str) -> list[int]:
        """Return the ids that an entity adds to a prompt, the blank before it included.

        Raises:
            ValueError: If its ids depend on what stands beside it.
        """
        if not self.is_joinable(name):
            raise ValueError(f"the prompt's ids of entity {name!r} depend on its neighbours; it can only be tokenised in place")
        return list(self._pieces[name])

    def is_joinable(self, name: str) -> bool:
        """Return whether an entity's ids are the same alone, before and after a comma. Letters and blanks always are."""
        self.prepare([name])
        return bool(self._pieces[name])

    def prepare(self, names: Sequence[str]) -> None:
        """Find the ids of many entities at once, which is faster than one by one."""
        new = [name for name in dict.fromkeys(names) if name not in self._pieces]
        if new:
            self._pieces.update(zip(new, self._find_pieces(new), strict=True))

    def _find_pieces(self, names: Sequence[str]) -> list[tuple[int, ...]]:
        """Take names out of sentences that hold them twice, so that all neighbours a name can have are seen."""
        around = len(self.first_ids) + len(self.comma_ids) + len(self.last_ids)
        pieces = []
        for ids in self._tokenise([prompt_sentence([name, name]) for name in names]):
            piece = ids[len(self.first_ids) :][: (len(ids) - around) // 2]
            is_apart = bool(piece) and ids == [*self.first_ids, *piece, *self.comma_ids, *piece, *self.last_ids]
            pieces.append(tuple(piece) if is_apart else ())
        return pieces

    def _take_apart(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Return the ids of "There are", " something", "," and " in image." as they stand in sentences."""
        first, opened, whole, twice = self._tokenise([
            _FIRST, f"{_FIRST} {NOTHING}", prompt_sentence(()), prompt_sentence((NOTHING, NOTHING)),
        ])  # fmt: skip
        nothing, last = opened[len(first) :], whole[len(opened) :]
        comma = twice[len(opened) : len(twice) - len(nothing) - len(last)]
        parts_fit = all((nothing, last, comma)) and whole == [*first, *nothing, *last]
        if not parts_fit or twice != [*first, *nothing, *comma, *nothing, *last]:
            raise ValueError(
                f"{_NODE}.USING_HARD_PROMPT: this tokenizer ({type(self._tokenizer).__name__}) does not keep the words of "
                f"{prompt_sentence(())!r} apart ({whole}); expected one like GPT-2's, or USING_HARD_PROMPT False"
            )
        return first, nothing, comma, last

    def _check_lengths(self, template_length: int) -> None:
        own = len(self.first_ids) + len(self.last_ids)
        if own > template_length:
            raise ValueError(
                f"{_NODE}.PROMPT_TEMPLATE_LENGTH is {template_length}; expected {own} or more, the template's tokens here"
            )
        if own + len(self.nothing_ids) > self.budget:
            raise ValueError(
                f"{_NODE}.MAX_NUM_OF_ENTITIES and PROMPT_TEMPLATE_LENGTH allow {self.budget} tokens; {prompt_sentence(())!r} "
                f"needs {own + len(self.nothing_ids)}. Raise one of them"
            )

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        return [list(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]
