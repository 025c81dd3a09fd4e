"""Which styles the classes of an encoder are: by their number, or by a list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from clip_ext.style_names import NON_ART, StyleNames, wikiart_styles

IMAGENET_CLASSES = 1000
KEY = "TRAINER.GATEDBLIP2.STYLE.CLASSES_FILE"


def read_classes_file(path: str | Path) -> tuple[str, ...]:
    """Return the class names of a JSON list, in its order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON list of names, or two of them mean the same.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{KEY} is {str(path)!r}: there is no such file (looked in {Path.cwd()})")
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{KEY} {path} is not valid JSON: {error}") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{KEY} {path} holds {names!r:.80}; expected a JSON list of class names, one per class")
    try:
        return StyleNames(names).names
    except ValueError as error:
        raise ValueError(f"{KEY} {path}: {error}") from error


def name_classes(
    n_classes: int | None, *, listed: Sequence[str] | None = None, stored: Sequence[str] | None = None, source: str
) -> tuple[str, ...] | None:
    """Return the styles of an encoder's classes; None where its classes are no styles, or it has none.

    27 classes are WikiArt's styles, 28 the same and `non_art`, 1000 ImageNet's; any other number has to be listed.

    Args:
        n_classes: Rows of the classifier; None = no classifier.
        listed: The names of STYLE.CLASSES_FILE, which win.
        stored: The names in the JSON beside the weights.
        source: The weights, for messages.
    Raises:
        ValueError: If names are needed and there are none, or their number is another one.
    """
    names, origin = (listed, KEY) if listed is not None else (stored, f"the JSON beside {source}")
    if names is not None:
        if len(names) != (n_classes or 0):
            found = "no classifier" if n_classes is None else f"{n_classes} classes"
            raise ValueError(f"{origin} names {len(names)} classes, but {source} has {found}")
        return tuple(names)
    wikiart = wikiart_styles().names
    known = {None: None, IMAGENET_CLASSES: None, len(wikiart): wikiart, len(wikiart) + 1: (*wikiart, NON_ART)}
    if n_classes not in known:
        raise ValueError(
            f"{source} has {n_classes} classes of unknown names (27 = WikiArt's styles, 28 = the same and {NON_ART}, "
            f"{IMAGENET_CLASSES} = ImageNet); name them by {KEY}, a JSON list of {n_classes} names"
        )
    return known[n_classes]


def label_styles(texts: Sequence[str], names: StyleNames | None) -> tuple[list[int], list[str]]:
    """Return the class that each row's text names, and a message for each different text that names none.

    Args:
        texts: The data's styles; "" = unknown.
        names: The encoder's styles; None = it knows none, and every row's style is unknown.
    """
    if names is None:
        return [-1] * len(texts), []
    problems, found = [], {}
    for text in dict.fromkeys(texts):
        try:
            found[text] = names.index(text)
        except ValueError as error:
            problems.append(str(error))
            found[text] = -1
    return [found[text] for text in texts], problems
