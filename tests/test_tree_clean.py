"""Nothing in the repository that does not belong there: litter, machine paths, unsafe loads, oversized files."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("clip_ext", "dassl_host", "datasets", "trainers")

BROAD = ("Exception", "BaseException")
MAX_PYTHON_LINES = 400
MAX_FUNCTION_LINES = 60  # without its docstring
MAX_FILE_BYTES = 8_000_000
MAX_BINARY_BYTES = 25_000_000  # of all binary files together

LITTER = re.compile(
    r"(\.py[cod]|\.bak|\.backup|\.orig|\.rej|\.swp|\.tmp|~|\.DS_Store|Thumbs\.db)$|(^|/)(__pycache__|\.ipynb_checkpoints)/"
)
EAST_ASIAN = re.compile("[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uff00-\uffef]")
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|root|Users|work|mnt|media)/\w|\b[A-Z]:\\\\?Users\b")
UNSAFE = re.compile(r"\bpickle\.loads?\(|weights_only\s*=\s*False|\byaml\.(?:load|unsafe_load)\(|\.cuda\(\)")


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = [REPOSITORY / name for name in listing.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(8192)


def texts() -> dict[str, str]:
    """Text of every tracked file that is not binary, by name; this file, which spells out what is forbidden, is left out."""
    files = [path for path in tracked_files() if path != Path(__file__).resolve() and not is_binary(path)]
    return {name_of(path): path.read_text("utf-8") for path in files}


def lines_with(pattern: re.Pattern[str], names: tuple[str, ...] = ("",)) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts().items()
        if name.startswith(names)
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def long_functions(source: str, limit: int = MAX_FUNCTION_LINES) -> list[str]:
    """Functions with more lines than `limit`, docstring not counted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = ast.get_docstring(node) is not None
            doc_lines = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
            lines = node.end_lineno - node.lineno + 1 - doc_lines
            if lines > limit:
                found.append(f"{node.name}: {lines} lines")
    return found


def swallowed_errors(source: str, *, strict: bool) -> list[str]:
    """Handlers that hide an error: of any exception without telling or raising it; if `strict`, of any kind, doing nothing."""
    found = []
    for handler in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler)):
        inside = [node for statement in handler.body for node in ast.walk(statement)]
        tells = any(isinstance(node, ast.Raise) or (isinstance(node, ast.Name) and node.id == handler.name) for node in inside)
        broad = handler.type is None or any(word in ast.unparse(handler.type).split() for word in BROAD)
        idle = all(isinstance(statement, (ast.Pass, ast.Continue)) for statement in handler.body)
        if (broad and not tells) or (strict and idle):
            found.append(f"line {handler.lineno}: except {'' if handler.type is None else ast.unparse(handler.type)}")
    return found


def unnamed_encodings(source: str) -> list[str]:
    """Text files that are opened in the encoding of whatever machine this is."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        words = ast.unparse(call)
        opens = isinstance(call.func, ast.Name) and call.func.id == "open"
        reads = isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text")
        binary = opens and re.search(r"['\"][rwax]?\+?b", words)
        if (opens or reads) and not binary and not re.search(r"utf|encoding=|os\.devnull", words):
            found.append(f"line {call.lineno}: {words[:80]}")
    return found


def test_defect_12_no_error_is_swallowed() -> None:
    sources = {name: text for name, text in texts().items() if name.endswith(".py")}
    strict = ("tests/", "scripts/", "benchmarks/", "train.py", "predict.py")
    found = {name: swallowed_errors(text, strict=name.startswith(strict)) for name, text in sources.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert lines_with(re.compile(r"\bsuppress\(|pytest\.raises\((?:Base)?Exception\b"), ("tests/", "scripts/")) == []
    masked = lines_with(re.compile(r"\|\|\s*(?:true|:)|set \+e|exit /b 0"))
    assert [line for line in masked if line.split(":")[0].endswith((".sh", ".bat"))] == []


def test_defect_30_every_text_file_has_a_named_encoding() -> None:
    sources = {name: text for name, text in texts().items() if name.endswith(".py") and not name.startswith("tests/")}
    assert {name: found for name, text in sources.items() if (found := unnamed_encodings(text))} == {}


def test_no_litter_is_tracked() -> None:
    assert [name for name in map(name_of, tracked_files()) if LITTER.search(name)] == []


def test_no_east_asian_text() -> None:
    assert lines_with(EAST_ASIAN) == []


def test_no_path_of_somebodys_machine() -> None:
    assert lines_with(MACHINE_PATH) == []


def test_packages_load_nothing_unsafely_and_name_no_device() -> None:
    assert lines_with(UNSAFE, PACKAGES) == []


def test_python_files_and_functions_stay_readable() -> None:
    sources = {name: text for name, text in texts().items() if name.endswith(".py")}
    assert {name: n for name, text in sources.items() if (n := len(text.splitlines())) > MAX_PYTHON_LINES} == {}
    packages = {name: text for name, text in sources.items() if name.startswith(PACKAGES)}
    assert {name: found for name, text in packages.items() if (found := long_functions(text))} == {}


def test_files_stay_small() -> None:
    sizes = {name_of(path): path.stat().st_size for path in tracked_files()}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_BYTES} == {}
    assert sum(path.stat().st_size for path in tracked_files() if is_binary(path)) < MAX_BINARY_BYTES


def test_modules_named_utils_exist_in_dassls_public_interface_only() -> None:
    names = [name for name in texts() if Path(name).name == "utils.py"]
    assert [name for name in names if not name.startswith("dassl_host/dassl/")] == []


@pytest.mark.parametrize(
    ("pattern", "bad", "good"),
    [
        (LITTER, "a/__pycache__/b.cpython-311.pyc", "a/b.py"),
        (LITTER, "notes.md~", "notes.md"),
        (EAST_ASIAN, "# \u6ce8\u91ca", "# naïve – ok"),
        (MACHINE_PATH, 'root = "/Users/me/data"', "see https://example.org/Users/page"),
        (MACHINE_PATH, "C:\\Users\\me", "output/Users/x"),
        (UNSAFE, "torch.load(f, weights_only = False)", "torch.load(f, weights_only=True)"),
        (UNSAFE, "model.cuda()", "torch.cuda.is_available()"),
    ],
)
def test_each_pattern_finds_what_it_is_for(pattern: re.Pattern[str], bad: str, good: str) -> None:
    assert pattern.search(bad) and not pattern.search(good)


def test_long_functions_counts_code_and_not_the_docstring() -> None:
    body = "\n    x = 1" * 5
    assert long_functions(f"def f():{body}", limit=5) == ["f: 6 lines"]
    assert long_functions(f'def f():\n    """a\n    b\n    """{body}', limit=6) == []


def test_hidden_errors_and_encodings_are_found() -> None:
    hidden = "try:\n    f()\nexcept {}:\n    {}"
    for kind, body, strict in (("", "pass", False), ("Exception", "x = 1", False), ("KeyError", "pass", True)):
        assert swallowed_errors(hidden.format(kind, body), strict=strict)
    for kind, body in (("Exception as e", "log(e)"), ("Exception", "raise"), ("KeyError", "x = 1")):
        assert swallowed_errors(hidden.format(kind, body), strict=True) == []
    assert unnamed_encodings("open(p)") and unnamed_encodings("p.write_text(x)") and unnamed_encodings("open(p, 'w')")
    assert unnamed_encodings("open(p, 'rb'); p.read_text('utf-8'); open(p, encoding='utf-8'); read_text(p)") == []
