"""Every command of README and docs parses, and every path they name exists."""

import re
import shlex
from pathlib import Path

import pytest

import train

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """Lines of the page's shell blocks, continuation lines joined, comments dropped."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text("utf-8"), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in (line.split(" # ")[0].strip() for line in lines) if line]


def all_commands():
    return [pytest.param(page, line, id=f"{page.name}:{line[:60]}") for page in PAGES for line in commands(page)]


def test_the_readme_has_its_two_commands_and_stays_short():
    text = (ROOT / "README.md").read_text("utf-8")
    assert commands(ROOT / "README.md")[:2] == ["bash scripts/quickstart.sh", "bash scripts/test.sh"]
    assert len(text.splitlines()) <= 200


@pytest.mark.parametrize("page, line", all_commands())
def test_a_documented_command_names_files_that_exist_and_flags_that_parse(page, line):
    words = shlex.split(line)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    program = next(word for word in words if word not in ("python", "bash", "-m"))
    if program.endswith((".py", ".sh")):
        assert (ROOT / program).is_file()
    elif program.startswith(("benchmarks.", "scripts.")):
        assert (ROOT / f"{program.replace('.', '/')}.py").is_file()
    if program == "train.py":
        arguments = [re.sub(r"^[A-Z]+$", "7", word) if before == "--load-epoch" else word
                     for before, word in zip(words[1:], words[2:], strict=False)]  # fmt: skip
        args = train.parse_args(arguments)
        for path in (args.config_file, args.dataset_config_file):
            assert path is None or (ROOT / path).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_linked_path_exists(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text("utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target
