"""Reads templates and class descriptions from JSON and matches them with class names.

Shipped files lie in `clip_ext/texts/{templates,descriptions}/*.json` and were written for this project. A user's own
file may be the full form ({"source", "licence", "classes": {class: [...]}}) or the bare {class: [sentence, ...]} that
LaFTer, CuPL and MPVR publish. A templates file is {"zeroshot", "templates", "descriptions": file stem or "",
"text_epochs"}, and for data sets that bear a class name twice {"known_twins": [name, ...]}.
"""

import json
import logging
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

logger = logging.getLogger(__name__)

TEXTS_DIR = Path(__file__).parent / "texts"
DEFAULT_ZEROSHOT_TEMPLATE = "a photo of a {}."
DEFAULT_TEXT_EPOCHS = 400
MIN_WORDS = 3

_BARE_NUMBERING = re.compile(r"[\s(\[]*\d+\s*[.):\]]*\s*")


@dataclass(frozen=True)
class DatasetTexts:
    """All texts of one data set.

    Attributes:
        zeroshot: The single template of the zero-shot baseline, with one `{}`.
        templates: Templates, each with `{}` for the class name.
        descriptions: Class name as written in the file -> sentences; empty if the data set has no descriptions.
        text_epochs: Length of the text phase that suits these texts, epochs.
        known_twins: Class names that the data set gives to more than one class (ImageNet has two); elsewhere a name that
            occurs twice is an error.
    """

    zeroshot: str
    templates: tuple[str, ...]
    descriptions: Mapping[str, Sequence[str]]
    text_epochs: int
    known_twins: tuple[str, ...] = ()


def available_texts() -> list[str]:
    """List the stems of the shipped template files."""
    return sorted(path.stem for path in (TEXTS_DIR / "templates").glob("*.json"))


def load_texts(name: str, *, templates: str = "", descriptions: str = "") -> DatasetTexts:
    """Read the texts of a data set.

    Args:
        name: Data set name or stem of a shipped file; case, `_`, `-` and spaces are ignored (`HandwrittenDigits` finds
            `handwritten_digits.json`).
        templates: Path of a templates file, in place of the shipped one.
        descriptions: Path of a descriptions file, in place of the one that the templates file names.
    Raises:
        ValueError: If no shipped file fits `name`, or a file has the wrong form (lists every problem).
        FileNotFoundError: If a given path does not exist.
    """
    source = Path(templates) if templates else _shipped_templates(name)
    data = _read_json(source, "TEXT.TEMPLATES")
    texts = _parse_templates(data, source)
    if descriptions:
        classes = load_descriptions(Path(descriptions))
    elif data.get("descriptions"):
        classes = load_descriptions(TEXTS_DIR / "descriptions" / f"{data['descriptions']}.json")
    else:
        classes = {}
    return replace(texts, descriptions=classes)


def load_descriptions(path: str | Path) -> dict[str, list[str]]:
    """Read a descriptions file, full or bare.

    Returns:
        Class name -> sentences, in the order of the file.
    Raises:
        ValueError: If there is no class, a value is not a list of texts, or two keys name the same class (lists every
            problem).
    """
    path = Path(path)
    data = _read_json(path, "TEXT.DESCRIPTIONS")
    full_form = isinstance(data.get("classes"), dict)
    classes = data["classes"] if full_form else data
    problems, seen = [] if classes else ["no class in it"], {}
    for key, sentences in classes.items():
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            problems.append(f"{key!r} is not a list of texts")
        first = seen.setdefault(normalise_name(key), key)
        if first != key:
            problems.append(f"{first!r} and {key!r} name the same class")
    if problems:
        raise ValueError(f"TEXT.DESCRIPTIONS {path}: " + "; ".join(problems))
    return {key: list(sentences) for key, sentences in classes.items()}


def normalise_name(name: str) -> str:
    """Return a class name for comparison: case, `_`, `-` and repeated spaces do not count."""
    return " ".join(re.sub(r"[_\-\s]+", " ", name).split()).casefold()


def match_descriptions(
    classnames: Sequence[str], descriptions: Mapping[str, Sequence[str]]
) -> tuple[list[list[str]], list[str]]:
    """Sort descriptions by class.

    Returns:
        Sentences per class in the order of `classnames` (empty lists where the file has none), and the file's keys that
        no class bears.
    """
    by_name = {normalise_name(key): list(sentences) for key, sentences in descriptions.items()}
    wanted = [normalise_name(name) for name in classnames]
    known = set(wanted)
    unknown = [key for key in descriptions if normalise_name(key) not in known]
    return [by_name.get(name, []) for name in wanted], unknown


def clean_sentences(
    per_class: Sequence[Sequence[str]], owners: Sequence[Hashable] | None = None
) -> tuple[list[list[str]], dict[str, int]]:
    """Drop what teaches a classifier nothing or the wrong thing; published files hold up to 5.6 % of it.

    Args:
        per_class: Sentences of each class.
        owners: What the sentences of each class belong to, by default the class; two classes of one name may own the
            same sentences.
    Returns:
        The kept sentences per class, and how many were dropped for which reason: `short` (under three words, bare
        numbering included), `repeated` (inside one class), `shared` (found under two classes, dropped from both).
    """
    owners_of: dict[str, set[Hashable]] = {}
    for owner, sentences in zip(range(len(per_class)) if owners is None else owners, per_class, strict=True):
        for sentence in sentences:
            owners_of.setdefault(_comparable(sentence), set()).add(owner)

    dropped = {"short": 0, "repeated": 0, "shared": 0}
    kept: list[list[str]] = []
    for sentences in per_class:
        seen: set[str] = set()
        kept.append([])
        for sentence in sentences:
            text = _comparable(sentence)
            if _BARE_NUMBERING.fullmatch(sentence) or len(text.split()) < MIN_WORDS:
                dropped["short"] += 1
            elif len(owners_of[text]) > 1:
                dropped["shared"] += 1
            elif text in seen:
                dropped["repeated"] += 1
            else:
                seen.add(text)
                kept[-1].append(sentence.strip())
    return kept, dropped


def _comparable(sentence: str) -> str:
    return " ".join(sentence.split()).casefold()


def _shipped_templates(name: str) -> Path:
    wanted = normalise_name(name).replace(" ", "")
    for stem in available_texts():
        if normalise_name(stem).replace(" ", "") == wanted:
            return TEXTS_DIR / "templates" / f"{stem}.json"
    raise ValueError(
        f"no texts are shipped for data set {name!r} (there are: {', '.join(available_texts())}); "
        "set TEXT.TEMPLATES to a file of your own"
    )


def _parse_templates(data: dict, source: Path) -> DatasetTexts:
    zeroshot = data.get("zeroshot", DEFAULT_ZEROSHOT_TEMPLATE)
    templates = data.get("templates", [zeroshot])
    epochs = data.get("text_epochs", DEFAULT_TEXT_EPOCHS)
    twins = data.get("known_twins", [])
    problems = []
    if not isinstance(templates, list) or not templates:
        problems.append(f"'templates' is {templates!r}; expected a non-empty list of texts")
        templates = []
    for template in [zeroshot, *templates]:
        if not isinstance(template, str) or template.count("{}") != 1:
            problems.append(f"template {template!r} needs exactly one '{{}}' for the class name")
    if not isinstance(epochs, int) or epochs < 1:
        problems.append(f"'text_epochs' is {epochs!r}; expected a whole number >= 1")
    if not isinstance(twins, list) or not all(isinstance(name, str) for name in twins):
        problems.append(f"'known_twins' is {twins!r}; expected a list of class names")
        twins = []
    unknown = sorted(set(data) - {"zeroshot", "templates", "descriptions", "text_epochs", "known_twins"})
    if unknown:
        problems.append(f"unknown keys {', '.join(unknown)}")
    if problems:
        raise ValueError(f"TEXT.TEMPLATES {source}: " + "; ".join(problems))
    return DatasetTexts(zeroshot, tuple(templates), {}, epochs, tuple(twins))


def _read_json(path: Path, config_key: str) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{config_key} names {path}, which does not exist")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config_key} {path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{config_key} {path} holds a {type(data).__name__}; expected a JSON object")
    return data
