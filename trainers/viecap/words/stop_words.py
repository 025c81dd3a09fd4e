"""Words that are never an entity."""

from __future__ import annotations

import string
from functools import lru_cache

__all__ = ["stop_words"]

# What captions say of the picture itself and of its parts.
_OF_PICTURES = ("photo", "image", "picture", "pic", "side", "part", "background")


@lru_cache(maxsize=1)
def stop_words() -> frozenset[str]:
    """Return scikit-learn's 318 English stop words, the 32 ASCII punctuation marks and seven words of pictures.

    Two of the seven, "side" and "part", are in scikit-learn's list too.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return ENGLISH_STOP_WORDS.union(string.punctuation, _OF_PICTURES)
