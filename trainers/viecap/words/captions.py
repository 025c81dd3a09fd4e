"""The caption normaliser: every caption is one trimmed sentence that begins with a capital and ends in punctuation."""

from __future__ import annotations

import string

__all__ = ["NORMALISER_VERSION", "normalise_caption"]

# Part of a store's key: raise it whenever `normalise_caption` gives another text for any caption.
NORMALISER_VERSION = "1"


def normalise_caption(text: str) -> str:
    """Return the caption as it is trained on.

    In this order: stripped; lower-cased if it is all upper case; first character capitalised; "." appended unless the last
    character is ASCII punctuation. Applying it twice changes nothing.

    Args:
        text: One caption; blank text stays empty, for the caller to drop.
    """
    caption = text.strip()
    if not caption:
        return ""
    if caption.isupper():
        caption = caption.lower()
    caption = caption[0].upper() + caption[1:]
    return caption if caption[-1] in string.punctuation else f"{caption}."
