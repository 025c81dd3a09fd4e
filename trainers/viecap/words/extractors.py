"""Finds the nouns of a caption: lower-case, singular, unique, in text order.

Four ways: TextBlob's pattern tagger (default; all its data come with the package), NLTK as the paper's code used it (needs
downloaded corpora), the data set's own column, or the words of the filter vocabulary without any tagger.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Protocol

from trainers.viecap.words.vocabularies import read_shipped

__all__ = ["Extractor", "build_extractor"]

# Part of every extractor's version, and so of a store's key: raise it whenever a caption's nouns change.
CODE_VERSION = "2"

KEY = "TRAINER.VIECAP.ENTITY_EXTRACTOR"
_NOUN_TAGS = ("NN", "NNS")  # common nouns; names of persons and places are no objects
# NLTK's corpora: what the downloader calls them, and where they lie.
_NLTK_DATA = {
    "punkt_tab": "tokenizers/punkt_tab",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng",
    "wordnet": "corpora/wordnet",
}
# Singular forms that textblob's rules get wrong, of words that captions use.
_SINGULAR = {
    "bases": "base",
    "beavers": "beaver",
    "bookshelves": "bookshelf",
    "brownies": "brownie",
    "cactuses": "cactus",
    "canoes": "canoe",
    "clothes": "clothes",
    "curves": "curve",
    "drives": "drive",
    "hippies": "hippie",
    "hoodies": "hoodie",
    "hooves": "hoof",
    "magpies": "magpie",
    "neckties": "necktie",
    "octopuses": "octopus",
    "olives": "olive",
    "pies": "pie",
    "pixies": "pixie",
    "rookies": "rookie",
    "selfies": "selfie",
    "shelves": "shelf",
    "smoothies": "smoothie",
    "thieves": "thief",
    "ties": "tie",
    "tiptoes": "tiptoe",
    "toes": "toe",
    "valves": "valve",
    "walruses": "walrus",
}
_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")


class Extractor(Protocol):
    """Finds the nouns of captions.

    Attributes:
        version: Everything that could change a result: kind, code, libraries. Part of a store's key.
    """

    version: str

    def nouns(self, caption: str, given: Sequence[str] | None = None) -> list[str]:
        """Return the nouns of a caption: lower-case, singular, unique, in text order.

        Args:
            caption: A normalised caption.
            given: The caption's entities in the data column, for the extractor that reads them; the others ignore it.
        """
        ...


def build_extractor(name: str, *, vocabulary: Iterable[str] | None = None) -> Extractor:
    """Build the extractor that `ENTITY_EXTRACTOR` names.

    Args:
        name: `textblob`, `nltk`, `given` or `vocabulary`.
        vocabulary: For `vocabulary`: the names of the filter.
    Raises:
        ValueError: If the name is unknown, or `vocabulary` has none.
        ImportError: If the library is not installed.
        LookupError: If NLTK's corpora are absent; says how to get them and what works without.
    """
    builders: dict[str, Callable[[], Extractor]] = {
        "textblob": TextBlobExtractor,
        "nltk": NltkExtractor,
        "given": GivenExtractor,
        "vocabulary": lambda: VocabularyExtractor(vocabulary),
    }
    if name not in builders:
        raise ValueError(f"{KEY} is {name!r}; expected one of {', '.join(builders)}")
    return builders[name]()


class TextBlobExtractor:
    """TextBlob's `PatternTagger` and singular forms; needs no downloaded corpus."""

    def __init__(self) -> None:
        _require("textblob")
        from textblob.taggers import PatternTagger

        self._tagger = PatternTagger()
        self.version = f"textblob {version('textblob')}, code {CODE_VERSION}"

    def nouns(self, caption: str, given: Sequence[str] | None = None) -> list[str]:
        # The tagger takes a last word of one letter for an abbreviation and leaves the full stop at it.
        tagged = ((word.lower().rstrip("."), tag) for word, tag in self._tagger.tag(caption) if tag in _NOUN_TAGS)
        # Only plurals: the rules would also shorten "bus" and "glass".
        return _unique(singular(word) if tag == "NNS" else word for word, tag in tagged)


class NltkExtractor:
    """NLTK's tokenizer, tagger and WordNet lemmas, as in the paper's code."""

    def __init__(self) -> None:
        _require("nltk")
        _check_nltk_data()
        from nltk.stem import WordNetLemmatizer

        self._lemmatizer = WordNetLemmatizer()
        self.version = f"nltk {version('nltk')}, code {CODE_VERSION}"

    def nouns(self, caption: str, given: Sequence[str] | None = None) -> list[str]:
        from nltk import pos_tag, word_tokenize

        words = (word.lower() for word, tag in pos_tag(word_tokenize(caption)) if tag in _NOUN_TAGS)
        return _unique(self._lemmatizer.lemmatize(word) for word in words)


class GivenExtractor:
    """The entities that the data set lists for each caption."""

    version = f"given, code {CODE_VERSION}"

    def nouns(self, caption: str, given: Sequence[str] | None = None) -> list[str]:
        if given is None:
            raise ValueError(
                f"{KEY} is 'given', but this caption comes without entities: {caption!r}. Add the column `entities` to the "
                "data, or choose textblob"
            )
        return _unique(" ".join(name.lower().split()) for name in given)


class VocabularyExtractor:
    """Every name of a vocabulary that the caption contains, in singular or plural; the longest name at each place."""

    def __init__(self, vocabulary: Iterable[str] | None) -> None:
        if vocabulary is None:
            raise ValueError(f"{KEY} is 'vocabulary', which needs a vocabulary: NAME_OF_OBJECTS_VOCABS may not be 'none'")
        names = {*vocabulary, *read_shipped("people")}  # people count whether or not the vocabulary has them
        # By words, as the caption is split: "t-shirt" is one word, "fire hydrant" two.
        self._by_words = {tuple(_WORD.findall(name)): name for name in sorted(names)}
        self._longest = max(map(len, self._by_words))
        _require("textblob")
        self.version = f"vocabulary, textblob {version('textblob')}, code {CODE_VERSION}"

    def nouns(self, caption: str, given: Sequence[str] | None = None) -> list[str]:
        words, found, at = _WORD.findall(caption.lower()), [], 0
        while at < len(words):
            length, name = self._match(words, at)
            if name:
                found.append(name)
            at += length
        return _unique(found)

    def _match(self, words: list[str], at: int) -> tuple[int, str]:
        """Return how many words from `at` on are a name, and the name; 1 and "" if none is."""
        for length in range(min(self._longest, len(words) - at), 0, -1):
            *front, last = words[at : at + length]
            for form in dict.fromkeys((last, singular(last))):
                name = self._by_words.get((*front, form))
                if name:
                    return length, name
        return 1, ""


@lru_cache(maxsize=100_000)
def singular(word: str) -> str:
    """Return the singular of a lower-case plural noun."""
    from textblob.en.inflect import singularize

    return singularize(word, custom=_SINGULAR)


def _unique(names: Iterable[str]) -> list[str]:
    """Keep the first of each name, without those that hold no letter or digit (stray punctuation)."""
    return [name for name in dict.fromkeys(names) if _WORD.search(name)]


def _require(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ImportError(f"{KEY} needs {package}, which is not installed: pip install -e .[vlm], or choose given")


def _check_nltk_data() -> None:
    import nltk

    def is_absent(place: str) -> bool:
        for form in (place, f"{place}.zip"):  # WordNet may stay packed
            try:
                nltk.data.find(form)
                return False
            except LookupError:
                continue
        return True

    absent = [name for name, place in _NLTK_DATA.items() if is_absent(place)]
    if absent:
        raise LookupError(
            f"{KEY} is 'nltk', but its data are not on this machine: {', '.join(absent)}. Download them with\n"
            f"  python -m nltk.downloader {' '.join(absent)}\n"
            f"or choose the tagger that needs none: {KEY} textblob"
        )
