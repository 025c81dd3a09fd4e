"""Lists of entity names: shipped with the package, derived from the training captions, or read from a file.

One reader serves both places where names are needed: the filter of training nouns and the vocabulary of retrieval.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from clip_ext.text_files import TEXTS_DIR
from trainers.viecap.config import ENTITY_VOCABULARIES, NEED_A_PATH, OBJECT_VOCABULARIES
from trainers.viecap.words.stop_words import stop_words

__all__ = ["ENTITIES", "OBJECTS", "clean_names", "read_filter", "read_shipped", "read_vocabulary"]

# The two pairs of keys that name a vocabulary; NAME_OF_<...>, PATH_OF_<...>.
ENTITIES, OBJECTS = "ENTITIES_TEXT", "OBJECTS_VOCABS"

_SHIPPED = {"coco_entities": "coco", "mini_scenes": "mini_scenes"}
_TWICE = 2  # a noun seen once in the training captions is as likely a slip of the tagger as an object
_PICKLES = (".pickle", ".pkl", ".p", ".pt", ".pth")


def read_vocabulary(
    name: str,
    path: str | Path = "",
    *,
    corpus_nouns: Mapping[str, int] | Iterable[str] | None = None,
    single_word: bool = False,
    keys: str = ENTITIES,
) -> tuple[str, ...]:
    """Read a vocabulary, whatever its order on disk.

    Formats: text (one name per line), a JSON list, a JSON object with a list `names`, an object `object_count` (its keys
    count) or nothing but names as keys. Byte order marks and blank lines do not matter.

    Args:
        name: One of `ENTITY_VOCABULARIES`.
        path: File of a vocabulary that is neither shipped nor derived; given for a shipped one, it is read instead.
        corpus_nouns: For `corpus`: every noun of the training captions as often as it occurs, or noun -> count. Nouns seen
            twice or more are the vocabulary, except what no training entity can be: stop words and single characters.
        single_word: Leave out names of several words.
        keys: `ENTITIES` or `OBJECTS`: the configuration keys that errors name.
    Returns:
        Lower-case names, stripped, unique, sorted.
    Raises:
        ValueError: If the name is unknown, a path or nouns are missing, the file has another form, or no name is left.
        FileNotFoundError: If the file does not exist.
    """
    key, path_key = (f"TRAINER.VIECAP.{part}_OF_{keys}" for part in ("NAME", "PATH"))
    _check_name(name, key, keys)
    if name == "corpus":
        names = _names_of_corpus(corpus_nouns, key)
    elif path:
        names = _read_names(Path(path), path_key)
    elif name in NEED_A_PATH:
        raise ValueError(f"{path_key} is '', but {key} is {name!r}, which is not shipped; expected the path of its file")
    else:
        names = read_shipped(_SHIPPED[name])
    kept = clean_names(name for name in names if not single_word or len(name.split()) == 1)
    if not kept:
        source = path or "the training captions" if name == "corpus" else path or name
        raise ValueError(f"{key} is {name!r}: no entity name in {source}{' of a single word' if single_word else ''}")
    return kept


def read_filter(
    name: str, path: str | Path = "", *, corpus_nouns: Mapping[str, int] | Iterable[str] | None = None
) -> frozenset[str] | None:
    """Read the filter vocabulary of training nouns, NAME_OF_OBJECTS_VOCABS.

    Args:
        name: One of `OBJECT_VOCABULARIES` or `ENTITY_VOCABULARIES`.
        path: As in `read_vocabulary`.
        corpus_nouns: As in `read_vocabulary`.
    Returns:
        The names that pass; of Visual Genome those of a single word only, as in the paper. None for `none`: all pass.
    Raises:
        ValueError, FileNotFoundError: As `read_vocabulary`.
    """
    if name == "none":
        return None
    single_word = name == "visual_genome_entities"
    return frozenset(read_vocabulary(name, path, corpus_nouns=corpus_nouns, single_word=single_word, keys=OBJECTS))


def read_shipped(stem: str) -> tuple[str, ...]:
    """Return the names of `clip_ext/texts/vocabularies/<stem>.json`, clean and sorted."""
    return clean_names(_read_names(TEXTS_DIR / "vocabularies" / f"{stem}.json", "the shipped vocabulary"))


def clean_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names lower-cased, stripped, without blank ones, unique and sorted."""
    return tuple(sorted({name.strip().lower() for name in names} - {""}))


def _check_name(name: str, key: str, keys: str) -> None:
    allowed = ENTITY_VOCABULARIES if keys == ENTITIES else (*dict.fromkeys((*OBJECT_VOCABULARIES, *ENTITY_VOCABULARIES)),)
    if name == "none" or name not in allowed:
        near = get_close_matches(name, allowed, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{key} is {name!r}; expected one of {', '.join(allowed)}{hint}")


def _names_of_corpus(nouns: Mapping[str, int] | Iterable[str] | None, key: str) -> list[str]:
    if nouns is None:
        raise ValueError(f"{key} is 'corpus', which is derived from training captions, but there are none here")
    never = stop_words()
    return [noun for noun, count in Counter(nouns).items() if count >= _TWICE and len(noun) > 1 and noun not in never]


def _read_names(path: Path, path_key: str) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path_key} names {path}, which is no file")
    if path.suffix.lower() in _PICKLES:
        raise ValueError(f"{path_key} {path} is a pickle, which is not read here; scripts/viecap_convert.py makes JSON of it")
    if path.suffix.lower() == ".csv":
        raise ValueError(f"{path_key} {path} is a CSV table; expected text with one name per line, or JSON")
    try:
        text = path.read_text(encoding="utf-8-sig")
        return text.splitlines() if path.suffix.lower() != ".json" else _names_in(json.loads(text))
    except ValueError as error:  # also: not UTF-8, not JSON
        raise ValueError(f"{path_key} {path}: {error}") from error


def _names_in(content: Any) -> list[str]:
    if isinstance(content, dict) and isinstance(content.get("names"), list):
        content = content["names"]
    elif isinstance(content, dict) and isinstance(content.get("object_count"), dict):
        content = content["object_count"]
    if not isinstance(content, list | dict):
        raise ValueError(f"holds a {type(content).__name__}; expected a JSON list of names, or an object with names as keys")
    wrong = [name for name in content if not isinstance(name, str)]
    if wrong:
        raise ValueError(f"{len(wrong)} entries are no text, first {wrong[0]!r}; expected names")
    return list(content)
