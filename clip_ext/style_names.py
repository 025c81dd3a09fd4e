"""Names of artistic styles: WikiArt's, in the order of its classes, and how a style is found by a text that names it.

The names and their other spellings lie in `texts/vocabularies/wikiart_styles.json`.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from clip_ext.text_files import TEXTS_DIR

NON_ART = "non_art"  # the class after WikiArt's 27: photographs and the like


@dataclass(frozen=True)
class StyleVocabulary:
    """Names of styles and their other spellings.

    Attributes:
        names: In the order of the classes.
        aliases: Name -> other spellings of it.
    """

    names: tuple[str, ...]
    aliases: Mapping[str, tuple[str, ...]]


@cache
def wikiart_styles() -> StyleVocabulary:
    """Return WikiArt's 27 styles."""
    data = json.loads((TEXTS_DIR / "vocabularies" / "wikiart_styles.json").read_text(encoding="utf-8"))
    return StyleVocabulary(tuple(data["names"]), {name: tuple(others) for name, others in data["aliases"].items()})


def normalise_style(text: str) -> str:
    """Return a style's name for comparison: case, accents and punctuation do not count."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return " ".join(re.sub(r"[\W_]+", " ", plain).split()).casefold()


class StyleNames:
    """Finds a class by a text that names it.

    Args:
        class_names: In the order of the classes. Those that are WikiArt's are known by its aliases as well.
    Raises:
        ValueError: If two classes have the same name, or one has none (lists every problem).
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.names = tuple(class_names)
        self._index: dict[str, int] = {}
        problems = []
        for number, name in enumerate(self.names):
            first = self._index.setdefault(normalise_style(name), number)
            if first != number:
                problems.append(f"{self.names[first]!r} and {name!r} name the same style")
        if "" in self._index:
            problems.append(f"{self.names[self._index['']]!r} is no name")
        if problems:
            raise ValueError("names of styles: " + "; ".join(problems))
        for name, others in wikiart_styles().aliases.items():
            number = self._index.get(normalise_style(name))
            if number is not None:
                for other in others:
                    self._index.setdefault(normalise_style(other), number)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, text: str) -> int:
        """Return the class that a text names; -1 for an empty text, the unknown style.

        Raises:
            ValueError: If no class bears that name (offers the nearest).
        """
        wanted = normalise_style(text)
        if not wanted and not text.strip():
            return -1
        if wanted not in self._index:
            raise ValueError(f"style {text!r} is unknown; {self._offer(wanted)}")
        return self._index[wanted]

    def _offer(self, wanted: str) -> str:
        near = difflib.get_close_matches(wanted, self._index, n=3, cutoff=0.6)
        offered = list(dict.fromkeys(self.names[self._index[name]] for name in near))
        if offered:
            return f"did you mean {' or '.join(offered)}?"
        return f"expected one of {', '.join(self.names)}, or nothing for an unknown style"
