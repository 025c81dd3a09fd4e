"""METEOR and SPICE through their Java tools: what is missing is told first, then the dialogue (a script plays the tools)."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainers.evaluators import java_metrics
from trainers.evaluators.java_metrics import find_problems, score

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the player of Java is a script with a first line for Unix")

FILES = (
    "meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz", "spice/spice-1.0.jar",
    "spice/lib/stanford-corenlp-3.6.0.jar", "spice/lib/stanford-corenlp-3.6.0-models.jar",
)  # fmt: skip
# Plays `java`: METEOR's score is here the share of the caption's words that any reference has, SPICE's of the first reference.
# The first lines start Python through a shell: a path with a space cannot stand behind #!.
JAVA = r"""#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import json, os, sys
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps([os.getcwd(), *arguments]) + "\n")
if arguments == ["-version"]:
    sys.exit('openjdk version "{version}" 2025-04-15')
if {broken}:
    sys.exit("Error: Unable to access jarfile")
if "meteor-1.5.jar" in arguments:
    for line in sys.stdin:
        kind, *fields = line.rstrip("\n").split(" ||| ")
        if kind == "SCORE":
            *references, words = fields
            words, known = words.split(), {{word for text in references for word in text.split()}}
            print(float(sum(word in known for word in words)), float(len(words)), flush=True)
        else:
            pairs = [[float(value) for value in field.split()] for field in fields]
            for hits, total in [*pairs, [sum(column) for column in zip(*pairs)]]:
                print(hits / total if total else 0.0, flush=True)
else:
    asked, answered = arguments[arguments.index("spice-1.0.jar") + 1], arguments[arguments.index("-out") + 1]
    rows = [
        {{"image_id": row["image_id"], "scores": {{"All": {{"f": float(row["test"] == row["refs"][0])}}}}}}
        for row in json.load(open(asked, encoding="utf-8"))
    ]
    json.dump(rows[::-1], open(answered, "w"))
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return `machine(version="11.0.2", files=FILES, broken=False) -> log of calls`: a package and a player of Java."""

    def prepare(version: str = "11.0.2", files: tuple[str, ...] = FILES, *, broken: bool = False) -> Path:
        for name in ("pycocoevalcap/__init__.py", *(f"pycocoevalcap/{file}" for file in files)):
            path = tmp_path / "site" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        log, java = tmp_path / "calls.jsonl", tmp_path / "jre" / "bin" / "java"
        java.parent.mkdir(parents=True)
        java.write_text(JAVA.format(python=sys.executable, log=str(log), version=version, broken=broken), "utf-8")
        java.chmod(0o755)
        monkeypatch.syspath_prepend(tmp_path / "site")
        monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jre"))
        monkeypatch.setattr(java_metrics, "_memory_gb", lambda: 16.0)
        monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
        importlib.invalidate_caches()
        return log

    return prepare


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the package and without Java."""
    monkeypatch.setattr(java_metrics, "_package", lambda: None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(java_metrics, "_memory_gb", lambda: 4.0)


# --- what is missing -------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_of_a_machine_that_need_not_have_it(bare: None) -> None:
    assert find_problems((), "KEY") == []


def test_everything_missing_is_told_at_once_with_its_remedy(bare: None) -> None:
    package, java, memory = find_problems(("meteor", "spice"), "KEY")
    assert package.startswith("KEY meteor spice needs the package pycocoevalcap") and '".[java]"' in package
    assert java.startswith("KEY meteor spice needs Java") and "version 8 or later (spice: 8 to 13)" in java
    assert memory == "KEY spice needs 8 GB of memory; this machine has 4.0 GB: leave spice out"


def test_unknown_metric_is_told_with_the_nearest_and_the_allowed_ones(bare: None) -> None:
    assert find_problems(("Meteo",), "KEY") == ["KEY has 'Meteo'; expected meteor or spice (did you mean 'meteor'?)"]


def test_complete_machine_has_no_problems(machine: Callable[..., Path]) -> None:
    machine()
    assert find_problems(("meteor", "spice"), "KEY") == []
    assert "pycocoevalcap" not in sys.modules, "looked at, not imported"


@pytest.mark.parametrize(("version", "fits"), [("1.8.0_292", True), ("13.0.1", True), ("14", False), ("17.0.15", False)])
def test_spice_needs_java_8_to_13_and_meteor_any(machine: Callable[..., Path], version: str, fits: bool) -> None:
    machine(version)
    assert find_problems(("meteor",), "KEY") == []
    problems = find_problems(("spice",), "KEY")
    assert problems == [] if fits else f"is version {version.split('.')[0]}: install" in problems[0]


@pytest.mark.parametrize("file", FILES)
def test_every_missing_file_is_named_with_its_remedy(machine: Callable[..., Path], file: str) -> None:
    machine(files=tuple(name for name in FILES if name != file))
    (problem,) = find_problems(("meteor", "spice"), "KEY")
    assert file in Path(problem.split(", ")[0]).as_posix() and file.split("/")[0] in problem
    assert ("get_stanford_models" if "corenlp" in file else "--force-reinstall pycocoevalcap") in problem


def test_java_of_java_home_comes_before_that_of_path(machine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    machine("17.0.15")
    first = Path(os.environ["JAVA_HOME"]) / "bin"
    monkeypatch.setenv("PATH", str(first) + os.pathsep + os.environ["PATH"])
    assert str(first / "java") in find_problems(("spice",), "KEY")[0]
    monkeypatch.setenv("JAVA_HOME", str(first / "nothing"))
    assert str(first / "java") in find_problems(("spice",), "KEY")[0], "a JAVA_HOME without Java is passed over"


# --- dialogue --------------------------------------------------------------------------------------------------------------

REFERENCES = [["a dog", "the red dog runs"], ["two people"], ["é ☃"]]
CANDIDATES = ["a red cat", "two people", ""]
GROUPS = [range(3), [0], [1, 2], [0, 0]]


def test_meteor_scores_each_group_from_statistics_that_are_asked_for_once(machine: Callable[..., Path]) -> None:
    log = machine()
    assert score("meteor", REFERENCES, CANDIDATES, GROUPS) == pytest.approx([4 / 5, 2 / 3, 1.0, 2 / 3])
    (call,) = map(json.loads, log.read_text("utf-8").splitlines())
    assert Path(call[0]).parts[-2:] == ("pycocoevalcap", "meteor"), "where the jar finds its data"
    assert call[-8:] == ["-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]


def test_captions_cannot_break_the_dialogue(machine: Callable[..., Path]) -> None:
    machine()
    assert score("meteor", [["a ||| b\nc"]], ["c ||| d"], [[0]]) == pytest.approx([1 / 2])


def test_spice_is_the_mean_of_its_images_whatever_the_order_of_its_answer(machine: Callable[..., Path]) -> None:
    log = machine()
    assert score("spice", REFERENCES, ["no", "no", "é ☃"], GROUPS) == pytest.approx([1 / 3, 0.0, 1 / 2, 0.0])
    (call,) = map(json.loads, log.read_text("utf-8").splitlines())
    assert Path(call[0]).parts[-2:] == ("pycocoevalcap", "spice") and "-Xmx8G" in call
    assert not Path(call[call.index("-out") + 1]).exists(), "nothing is left behind"


@pytest.mark.parametrize("name", ["meteor", "spice"])
def test_tool_that_ends_without_a_result_is_quoted(machine: Callable[..., Path], name: str) -> None:
    machine(broken=True)
    with pytest.raises(RuntimeError, match=rf"{name.upper()} gave no result.*Unable to access jarfile"):
        score(name, REFERENCES, CANDIDATES, GROUPS)
