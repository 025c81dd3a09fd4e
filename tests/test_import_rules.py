"""Who may import whom (the arrows of the design), who may print, and how long the entry point is. Read from the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
OURS = {"benchmarks", "clip_ext", "dassl", "dassl_host", "datasets", "predict", "scripts", "tests", "train", "trainers"}

# Package -> which of ours it may import, besides itself. Entry points (train.py, scripts, benchmarks, tests) may import all.
ALLOWED = {
    "clip_ext": set(),
    "dassl_host": {"dassl"},
    "datasets": {"clip_ext", "dassl", "dassl_host"},
    "trainers": {"clip_ext", "dassl", "dassl_host"},
}
CLIPS = {"clip", "open_clip", "transformers"}
PRINTING = ("dassl_host", "scripts", "benchmarks")  # the engine's log lines are printed; command lines talk to a person


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """Yield (path, syntax tree) of every Python file below the folders."""
    for folder in folders:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            yield path.relative_to(REPOSITORY).as_posix(), ast.parse(path.read_text("utf-8"))


def imported_modules(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield (dotted module, line) of every import, also those inside functions, and of `importlib.import_module("...")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", node.lineno
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            yield from ((arg.value, node.lineno) for arg in node.args if isinstance(arg, ast.Constant))


def forbidden_imports(package: str, tree: ast.Module) -> list[str]:
    tops = [(module.split(".")[0], line) for module, line in imported_modules(tree)]
    return [f"line {line}: {top}" for top, line in tops if top in OURS - ALLOWED[package] - {package}]


def prints(tree: ast.Module) -> list[int]:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def private_names(tree: ast.Module) -> list[str]:
    """Private names that are taken from another module of ours or of a CLIP, by import or by attribute."""
    taken, modules = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS | CLIPS:
            taken += [f"line {node.lineno}: {node.module}.{a.name}" for a in node.names if is_private(a.name)]
            modules |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name for alias in node.names if alias.name.split(".")[0] in OURS | CLIPS}
    return taken + [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_private(node.attr) and ast.unparse(node.value) in modules
    ]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def registered_classes(tree: ast.Module) -> list[ast.ClassDef]:
    return [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any("TRAINER_REGISTRY" in ast.unparse(d) for d in node.decorator_list)
    ]


def foreign_trainers(tree: ast.Module, trainer_modules: set[str]) -> list[str]:
    """Names imported from another trainer's module that are no parent of a class here."""
    parents = {ast.unparse(base) for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module in trainer_modules]
    return [f"{node.module}.{alias.name}" for node in imports for alias in node.names if alias.name not in parents]


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_package_imports_along_the_arrows_only(package: str) -> None:
    wrong = {path: found for path, tree in sources(package) if (found := forbidden_imports(package, tree))}
    assert wrong == {}


def test_the_bundled_engine_is_importable_as_dassl_only() -> None:
    wrong = {
        path: [line for module, line in imported_modules(tree) if module.startswith("dassl_host.dassl")]
        for path, tree in sources("dassl_host", "trainers", "datasets", "clip_ext")
    }
    assert {path: lines for path, lines in wrong.items() if lines} == {}


def test_a_trainer_imports_another_only_as_its_parent() -> None:
    trees = {path: tree for path, tree in sources("trainers") if registered_classes(tree)}
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): tree for path, tree in trees.items()}
    assert modules
    wrong = {name: found for name, tree in modules.items() if (found := foreign_trainers(tree, set(modules) - {name}))}
    assert wrong == {}


def test_defect_14_no_private_name_of_another_module_is_used() -> None:
    entry = [(name, ast.parse((REPOSITORY / name).read_text("utf-8"))) for name in ("train.py", "predict.py")]
    found = {path: private_names(tree) for path, tree in [*sources("scripts", "benchmarks", *ALLOWED), *entry]}
    wrong = {path: names for path, names in found.items() if names}
    wrong.pop("trainers/compat.py", None)  # upstream's warm-up schedules have no other handle to repair them by
    assert wrong == {}


def test_packages_log_and_only_engine_and_command_lines_print() -> None:
    folders = [folder for folder in ALLOWED if folder not in PRINTING]
    entry = [("train.py", ast.parse((REPOSITORY / "train.py").read_text("utf-8")))]
    wrong = {path: lines for path, tree in [*sources(*folders), *entry] if (lines := prints(tree))}
    assert wrong == {}


def test_train_stays_under_120_lines() -> None:
    assert len((REPOSITORY / "train.py").read_text("utf-8").splitlines()) < 120


@pytest.mark.parametrize(
    "line",
    ["import datasets.base", "from datasets import base", "def f():\n    from dassl.engine import TrainerX",
     "import importlib\nimportlib.import_module('trainers.lafter')", "import numpy, train"],
)  # fmt: skip
def test_the_rule_sees_a_forbidden_import_in_any_form(line: str) -> None:
    assert forbidden_imports("clip_ext", ast.parse(line))
    assert forbidden_imports("clip_ext", ast.parse("import torch, clip_ext.stages")) == []


@pytest.mark.parametrize(
    "line",
    ["from clip.clip import _MODELS", "import clip_ext.loader\nclip_ext.loader._X", "from clip_ext import loader\nloader._X"],
)
def test_the_rule_sees_a_private_name(line: str) -> None:
    assert private_names(ast.parse(line))
    assert private_names(ast.parse("import torch\nfrom clip_ext.loader import available_models\ntorch._C, self._x")) == []


def test_the_rules_see_a_print_and_a_borrowed_trainer() -> None:
    assert prints(ast.parse("def f():\n    print(1)")) == [2]
    borrowed = "from trainers.lafter import LaFTer, helper\nclass Mine(LaFTer): pass"
    assert foreign_trainers(ast.parse(borrowed), {"trainers.lafter"}) == ["trainers.lafter.helper"]


# Modules beside a command line that find the engine when they are imported.
FINDERS = {path.stem for path in (REPOSITORY / "scripts").glob("*.py") if "\nensure_dassl()" in path.read_text("utf-8")}


def engine_comes_first(tree: ast.Module) -> bool:
    """Whether something of ours that finds the engine runs before the first `dassl` of a file's top level."""
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
        tops = {name.split(".")[0] for name in names}
        if "dassl" in tops:
            return False
        if tops & {"datasets", "trainers", *FINDERS} or ast.unparse(node).startswith("ensure_dassl("):
            return True
    return True


@pytest.mark.parametrize("path, tree", [pytest.param(*pair, id=pair[0]) for pair in sources("scripts", "benchmarks")])
def test_command_lines_find_the_engine_before_they_import_it(path: str, tree: ast.Module) -> None:
    assert engine_comes_first(tree)


def test_an_import_that_was_sorted_to_the_front_is_found() -> None:
    assert not engine_comes_first(ast.parse("import torch\nfrom dassl.engine import build_trainer\nimport datasets"))
    assert engine_comes_first(ast.parse("import ahead_of_run\nfrom dassl.engine import build_trainer"))
    assert not engine_comes_first(ast.parse("import row_runs\nfrom dassl.engine import build_trainer"))
    assert engine_comes_first(ast.parse("import torch\nimport datasets\nfrom dassl.engine import build_trainer"))
