"""Which nouns of a caption become its training entities: filter, person merge, random mask.

ViECap (Fei et al., ICCV 2023, arXiv 2307.16525) masks before it merges, so "person" from k nouns survives with 1 - p^k.
Nothing here passes through a set whose order could show: the reference's seeds were irreproducible because of that.
`entity_table.py` does the same for a whole corpus at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from trainers.viecap.words.stop_words import stop_words
from trainers.viecap.words.vocabularies import read_shipped

__all__ = ["PERSON", "NounMap", "effective_entities", "mask_and_merge"]

PERSON = "person"


class NounMap:
    """From a noun to the entity that it counts as, or to none.

    A noun of the shipped list of people is "person". Any other stays itself if it is longer than one character, no stop
    word, and in the filter vocabulary.
    """

    def __init__(self, vocabulary: frozenset[str] | None) -> None:
        """Keep the filter.

        Args:
            vocabulary: Names that pass, lower-case (see `vocabularies.read_filter`); None: every name passes.
        """
        self.vocabulary = vocabulary

    @cached_property
    def people(self) -> frozenset[str]:
        return frozenset(read_shipped("people"))

    def map(self, noun: str) -> str | None:
        """Return the entity of a lower-case, singular noun, or None if it is dropped."""
        if noun in self.people:
            return PERSON
        if len(noun) <= 1 or noun in stop_words():
            return None
        return noun if self.vocabulary is None or noun in self.vocabulary else None


def effective_entities(nouns: Sequence[str], noun_map: NounMap, max_entities: int) -> list[str]:
    """Return the entities of a caption's first nouns, in text order; duplicates (several people) stay.

    Args:
        nouns: As the extractor gives them.
        noun_map: The filter.
        max_entities: How many nouns are looked at, before the filter; 1 or more.
    """
    mapped = (noun_map.map(noun) for noun in nouns[:max_entities])
    return [name for name in mapped if name is not None]


def mask_and_merge(names: Sequence[str], keep: Sequence[bool]) -> list[str]:
    """Drop the masked occurrences, then merge duplicates into their first survivor.

    Args:
        names: From `effective_entities`.
        keep: Per occurrence, whether it stays; of the same length.
    """
    return list(dict.fromkeys(name for name, stays in zip(names, keep, strict=True) if stays))
