"""The room's source: what it may import, and what it may not contain."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted((ROOT / "trainers" / "viecap").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("viecap_*.py"))
PICKLES = ("pickle.load", "pickle.loads", "Unpickler", "weights_only=False", "torch.load(")
ROOMS = {"bgobj_llava", "lafter", "multilayer_lafter", "hybrid_cascade_lafter", "zeroshot_clip", "gated_blip2"}


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_room_imports_no_data_sets_and_no_other_room(path: Path) -> None:
    found = imported(path)
    assert not {name for name in found if name.split(".")[0] == "datasets"}
    assert not {name for name in found if name.startswith("trainers.") and name.split(".")[1] in ROOMS}


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=lambda path: path.stem)
def test_pickles_are_read_by_the_converter_only_and_no_path_is_absolute(path: Path) -> None:
    text = path.read_text("utf-8")
    if path.stem not in ("viecap_convert", "reference_pickles"):
        assert [word for word in PICKLES if word in text] == []
    assert re.findall(r"[\"'](?:/[a-z]+/[\w/.-]+|[A-Z]:\\\\)", text) == []


@pytest.mark.parametrize(
    "module",
    ["trainer", "config", "checks", "prepare", "caption_store/store", "caption_store/loader", "storage/artifact", "words/entities"],
)
def test_nothing_heavy_is_imported_before_a_model_is_built(module: str) -> None:
    """`import trainers` has to work without transformers and textblob."""
    tree = ast.parse((ROOT / "trainers" / "viecap" / f"{module}.py").read_text("utf-8"))
    top = {name.split(".")[0] for node in tree.body for name in names_of(node)}
    assert not top & {"transformers", "textblob", "nltk", "pycocoevalcap"}


def names_of(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []
