"""METEOR 1.5 and SPICE by the official Java tools, which the package pycocoevalcap brings (extra `java`).

METEOR: Denkowski and Lavie, WMT 2014. SPICE: Anderson et al., ECCV 2016, arXiv 1607.08822. Neither is approximated: what a tool
needs and does not find is an error, and `find_problems` tells before anything is decoded. The jars are driven by their own
command lines, so nothing of pycocoevalcap is imported.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

PACKAGE = "pycocoevalcap"
INSTALL = 'pip install -e ".[java]"'
CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
DOWNLOAD = (
    f'python -c "from {PACKAGE}.spice.get_stanford_models import get_stanford_models as get; get()" (needs network), '
    "or put the two jars of stanford-corenlp-full-2015-12-09.zip there"
)
SPICE_JAVA = range(8, 14)  # its serialiser reflects on classes that later versions close
SPICE_HEAP_GB = 8
SEPARATOR = " ||| "

Texts = Sequence[str]
Groups = Sequence[Sequence[int]]


def find_problems(names: Sequence[str], key: str) -> list[str]:
    """Return one message, with its remedy, per thing that the named metrics lack on this machine.

    Args:
        names: Metrics, of `meteor` and `spice`.
        key: Config key or flag that named them, for the messages.
    """
    unknown = [name for name in names if name not in METRICS]
    problems = [f"{key} has {name!r}; expected {' or '.join(METRICS)}{_nearest(name)}" for name in unknown]
    known = [name for name in METRICS if name in names]
    if not known:
        return problems
    if _package() is None:
        problems.append(f"{key} {' '.join(known)} needs the package {PACKAGE} with its jars: {INSTALL}")
    else:
        for name in known:
            problems += [f"{key} {name} needs {path}, which is missing: {remedy}" for path, remedy in _missing_files(name)]
    return problems + _problems_with_java(known, key)


def score(name: str, references: Sequence[Texts], candidates: Texts, groups: Groups) -> list[float]:
    """Return one metric's score of each group of images, in [0, 1].

    Args:
        name: `meteor` or `spice`; what it needs is there (`find_problems`).
        references: The references of each image, tokens joined by blanks.
        candidates: The caption of each image, likewise.
        groups: Rows of the images that are scored together; an image may be in several groups.
    Raises:
        RuntimeError: If the tool ends without a result (quotes its last words).
    """
    return METRICS[name](references, candidates, groups)


def _score_meteor(references: Sequence[Texts], candidates: Texts, groups: Groups) -> list[float]:
    """Score through METEOR's dialogue: a line of statistics per caption, then the scores of a set of such lines."""
    command = [_find_java(), "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", "meteor-1.5.jar"]
    command += ["-", "-", "-stdio", "-l", "en", "-norm"]
    with tempfile.TemporaryFile() as words, _start(command, _folder("meteor"), words) as process:
        try:
            ask = _Dialogue(process, words)
            statistics = []
            for texts, candidate in zip(references, candidates, strict=True):
                ask.write(SEPARATOR.join(["SCORE", *map(_one_field, texts), _one_field(candidate)]))
                statistics.append(ask.read())
            scores = []
            for rows in groups:
                ask.write(SEPARATOR.join(["EVAL", *(statistics[row] for row in rows)]))
                answers = [ask.read() for _ in range(len(rows) + 1)]  # of each caption, then of the set
                scores.append(float(answers[-1]))
            return scores
        finally:
            process.kill()


def _start(command: list[str], folder: Path, words: IO[bytes]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, encoding="utf-8", bufsize=1
    )


class _Dialogue:
    """Lines to a tool and back.

    Args:
        process: The tool.
        words: File with its error output.
    """

    def __init__(self, process: subprocess.Popen[str], words: IO[bytes]) -> None:
        self._process, self._words = process, words

    def write(self, line: str) -> None:
        """Send one line."""
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure() from error

    def read(self) -> str:
        """Return the next line of the answer."""
        line = self._process.stdout.readline()
        if not line.strip():
            raise self._failure()
        return line.strip()

    def _failure(self) -> RuntimeError:
        self._process.kill()
        self._process.wait()
        self._words.seek(0)
        return RuntimeError(f"METEOR gave no result. Its last words: {_tail(self._words.read())}")


def _score_spice(references: Sequence[Texts], candidates: Texts, groups: Groups) -> list[float]:
    """Score through SPICE's files; a group's score is the mean F1 over its images."""
    rows = [
        {"image_id": row, "test": candidate, "refs": list(texts)}
        for row, (texts, candidate) in enumerate(zip(references, candidates, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "captions.json", Path(folder) / "scores.json"
        asked.write_text(json.dumps(rows), encoding="utf-8")
        command = [_find_java(), f"-Xmx{SPICE_HEAP_GB}G", "-jar", "spice-1.0.jar", str(asked)]
        command += ["-out", str(answered), "-subset", "-silent"]
        done = subprocess.run(command, cwd=_folder("spice"), capture_output=True)
        if done.returncode or not answered.is_file():
            raise RuntimeError(f"SPICE gave no result (exit {done.returncode}). Its last words: {_tail(done.stderr)}")
        found = {entry["image_id"]: entry["scores"]["All"]["f"] for entry in json.loads(answered.read_text("utf-8"))}
    return [sum(float(found[row]) for row in members) / len(members) for members in groups]


METRICS: dict[str, Callable[[Sequence[Texts], Texts, Groups], list[float]]] = {"meteor": _score_meteor, "spice": _score_spice}
FILES = {
    "meteor": (("meteor-1.5.jar", "data/paraphrase-en.gz"), ()),
    "spice": (("spice-1.0.jar",), tuple(f"lib/{name}" for name in CORENLP)),
}  # metric -> (files of the package, files that are downloaded), below the package's folder of that name


def _missing_files(name: str) -> list[tuple[Path, str]]:
    """Return (missing file, what to do) of a metric."""
    packed, downloaded = FILES[name]
    remedies = {file: f"pip install --force-reinstall {PACKAGE}" for file in packed} | dict.fromkeys(downloaded, DOWNLOAD)
    return [(path, remedy) for file, remedy in remedies.items() if not (path := _folder(name) / file).is_file()]


def _problems_with_java(names: Sequence[str], key: str) -> list[str]:
    problems = []
    java = _find_java()
    if not java:
        problems.append(
            f"{key} {' '.join(names)} needs Java, and there is no `java` in JAVA_HOME or PATH: install a Java runtime,"
            f" version 8 or later (spice: {SPICE_JAVA[0]} to {SPICE_JAVA[-1]})"
        )
    elif "spice" in names and (version := _read_version(java)) not in SPICE_JAVA:
        problems.append(
            f"{key} spice needs Java {SPICE_JAVA[0]} to {SPICE_JAVA[-1]}, and {java} is version {version or 'unknown'}:"
            " install such a version and let JAVA_HOME name its folder, or leave spice out"
        )
    memory = _memory_gb()
    if "spice" in names and memory is not None and memory < SPICE_HEAP_GB:
        problems.append(f"{key} spice needs {SPICE_HEAP_GB} GB of memory; this machine has {memory:.1f} GB: leave spice out")
    return problems


def _package() -> Path | None:
    """Return the folder of pycocoevalcap, without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def _folder(name: str) -> Path:
    package = _package()
    assert package is not None, "find_problems comes first"
    return package / name


def _find_java() -> str:
    """Return the path of the Java launcher: JAVA_HOME's, else the first in PATH; "" if there is none."""
    home = os.environ.get("JAVA_HOME", "")
    return (shutil.which("java", path=str(Path(home) / "bin")) if home else None) or shutil.which("java") or ""


def _read_version(java: str) -> int | None:
    """Return the major version of a Java launcher: 8 for `1.8.0_292`, 17 for `17.0.15`; None if it does not say."""
    said = subprocess.run([java, "-version"], capture_output=True, text=True)
    match = re.search(r'version "(?:1\.)?(\d+)', said.stderr + said.stdout)
    return int(match[1]) if match else None


def _memory_gb() -> float | None:
    """Return the machine's memory, GB; None where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(str(name).lower(), METRICS, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _one_field(text: str) -> str:
    """Return a text that cannot end a field or a line of METEOR's dialogue."""
    return " ".join(text.replace("|||", " ").split())


def _tail(words: bytes) -> str:
    return words.decode("utf-8", errors="replace").strip()[-500:] or "none"
