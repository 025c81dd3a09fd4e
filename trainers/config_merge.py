"""Merging settings into a yacs tree, with every mistake found before anything runs.

yacs stops at the first problem, takes no int for a float, and lets a key that stands twice in a file overwrite itself. Here all
settings are checked first and reported together.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from yacs.config import CfgNode

# Words that Dassl's own keys may hold. A wrong one would show late (schedule) or, for COUNT_ITER, with most trainers never.
DASSL_CHOICES = {
    "INPUT.INTERPOLATION": ("bilinear", "bicubic", "nearest"),
    "OPTIM.NAME": ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"),
    "OPTIM.LR_SCHEDULER": ("single_step", "multi_step", "cosine"),
    "OPTIM.WARMUP_TYPE": ("linear", "constant"),
    "TRAIN.COUNT_ITER": ("train_x", "train_u", "smaller_one"),
}


@dataclass(frozen=True)
class Setting:
    """One value for one dotted key, and where it was written."""

    key: str
    value: object
    source: str


def read_yaml(path: str) -> tuple[list[Setting], list[str]]:
    """Read a YAML file as settings.

    Args:
        path: A file whose top level is a mapping (or empty).
    Returns:
        The settings in file order, and one message per problem of the file itself: no mapping, broken syntax, or a key that
        stands twice in one mapping (both line numbers).
    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no configuration file {path} (looked in {Path.cwd()})")
    problems: list[str] = []
    loader = yaml.SafeLoader(Path(path).read_text("utf-8"))
    try:
        root = loader.get_single_node()
        if root is None:
            return [], []
        if not isinstance(root, yaml.MappingNode):
            return [], [f"{path}: expected a mapping of keys, got {root.value!r}"]
        return list(_walk(loader, root, "", path, problems)), problems
    except yaml.YAMLError as error:
        return [], [f"{path}: not readable as YAML: {' '.join(str(error).split())}"]
    finally:
        loader.dispose()


def _walk(
    loader: yaml.SafeLoader, mapping: yaml.MappingNode, prefix: str, path: str, problems: list[str]
) -> Iterator[Setting]:
    """Yield the leaves of a mapping; note keys that stand twice (before YAML's `<<` merges, which may override)."""
    lines: dict[str, int] = {}
    for key_node, _ in mapping.value:
        key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
        if key in lines:
            problems.append(f"{path}: {key} stands twice, in line {lines[key]} and in line {line}")
        lines.setdefault(key, line)
    loader.flatten_mapping(mapping)
    for key_node, value_node in mapping.value:
        key = f"{prefix}{key_node.value}"
        if isinstance(value_node, yaml.MappingNode):
            yield from _walk(loader, value_node, f"{key}.", path, problems)
        else:
            source = f"{path}, line {key_node.start_mark.line + 1}"
            yield Setting(key, loader.construct_object(value_node, deep=True), source)


def merge_settings(cfg: CfgNode, settings: Iterable[Setting]) -> list[str]:
    """Write settings into `cfg` in the given order, so that later ones win.

    Accepted beyond equal types: an int for a float, a list for a tuple and the reverse, true/false in any case for a bool, and
    text that Python would read as the right type (`1e-4`, `(224, 224)`).

    Returns:
        One message per setting that cannot be written (source, key, value, expected type or nearest key), then one per key of
        Dassl that holds a word it does not know. `cfg` is only fit for use if there is none.
    """
    problems: list[str] = []
    for setting in settings:
        try:
            _write(cfg, setting)
        except (KeyError, TypeError) as error:
            problems.append(f"{setting.source}: {error.args[0]}")
    leaves = dict(flatten(cfg))
    for key, allowed in DASSL_CHOICES.items():
        if leaves[key] not in allowed:
            problems.append(f"{key} is {leaves[key]!r}; expected one of {', '.join(allowed)}")
    return problems


def _write(cfg: CfgNode, setting: Setting) -> None:
    *parents, leaf = setting.key.split(".")
    node = cfg
    for parent in parents:
        node = node.get(parent) if isinstance(node, CfgNode) else None
    if isinstance(node, CfgNode) and leaf not in node and node.is_new_allowed():
        node[leaf] = decode(setting.value)
    elif not isinstance(node, CfgNode) or leaf not in node:
        nearest = _nearest(setting.key, [key for key, _ in flatten(cfg)])
        raise KeyError(f"there is no key {setting.key} (given {setting.value!r}){nearest}")
    elif isinstance(node[leaf], CfgNode):
        raise TypeError(f"{setting.key} is {setting.value!r}; it holds further keys, not a value")
    else:
        node[leaf] = _coerce(setting.key, setting.value, node[leaf])


def _nearest(key: str, known: list[str]) -> str:
    """A hint: the known key of the same last word, or else of the most similar spelling."""
    word = key.rsplit(".", 1)[-1]
    same_word = [candidate for candidate in known if candidate.rsplit(".", 1)[-1] == word]
    matches = difflib.get_close_matches(key, same_word or known, n=1, cutoff=0.0 if same_word else 0.6)
    return f"; nearest is {matches[0]}" if matches else ""


def _coerce(key: str, value: object, default: object) -> object:
    """Return `value` in the type of `default`, or raise a TypeError that names key, value and type."""
    if isinstance(value, str):
        if isinstance(default, bool) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        decoded = decode(value)
        value = value if isinstance(default, str) and not isinstance(decoded, str) else decoded
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        return type(default)(value)
    raise TypeError(f"{key} is {value!r}; expected {type(default).__name__}, such as {default!r}")


def decode(value: object) -> object:
    """Read text as a Python literal; text that is none stays text."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted key, value) of every leaf of a nested dict or config node."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
