"""What identifies a run: the hash of its data, the code, the versions."""

import subprocess
from pathlib import Path

import pytest
from dassl.data.datasets import Datum

from trainers import run_facts
from trainers.run_facts import git_state, hash_data, installed_versions


def splits(folder: Path, **changes: object) -> dict[str, list[Datum]]:
    for name in ("a/1.png", "b/2.png", "b/3.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    label, classname, names = changes.get("label", 1), changes.get("classname", "b"), changes.get("names", "23")
    train = [Datum(str(folder / "a/1.png"), 0, classname="a")]
    train += [Datum(str(folder / f"b/{name}.png"), label, classname=classname) for name in names]
    return {"train_x": train, "test": train[:1]}


def test_hash_data_does_not_depend_on_place_or_order(tmp_path: Path) -> None:
    first = hash_data(splits(tmp_path / "here"))
    assert hash_data(splits(tmp_path / "moved" / "there")) == first
    assert hash_data(splits(tmp_path / "here", names="32")) == first


@pytest.mark.parametrize("change", [{"label": 2}, {"classname": "c"}, {"names": "2"}])
def test_hash_data_depends_on_label_class_and_items(tmp_path: Path, change: dict) -> None:
    assert hash_data(splits(tmp_path, **change)) != hash_data(splits(tmp_path))


def test_hash_data_depends_on_the_split(tmp_path: Path) -> None:
    given = splits(tmp_path)
    assert hash_data({"train_x": given["test"], "test": given["train_x"]}) != hash_data(given)
    assert hash_data({"train_x": [], "test": []}) != hash_data(given)


def test_hash_data_depends_on_extras_where_there_are_some(tmp_path: Path) -> None:
    given = splits(tmp_path)
    plain, item = hash_data(given), given["train_x"][0]
    item.extras = {}
    assert hash_data(given) == plain
    hashes = []
    for answer in ("red", "blue"):
        item.extras = {"question": "which colour?", "answers": answer}
        hashes.append(hash_data(given))
    assert len({plain, *hashes}) == 3


def test_git_state_is_the_commit_of_a_repository_and_none_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_facts, "CHECKOUT", tmp_path.resolve())
    assert git_state() == {"git_commit": None, "git_dirty": None}

    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "one")
    clean = git_state()
    assert len(str(clean["git_commit"])) == 40 and clean["git_dirty"] is False
    (tmp_path / "new.txt").touch()
    assert git_state() == {"git_commit": clean["git_commit"], "git_dirty": True}


def test_installed_versions_of_a_missing_package_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise run_facts.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(run_facts.metadata, "version", missing)
    assert installed_versions()["open_clip_torch"] is None
    assert installed_versions()["python"]
