"""`.pt` files of others: arguments and paths are read, programs are refused and do not run."""

import argparse
import logging
import os
import pathlib
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch

from trainers.gated_blip2.style import pickles
from trainers.gated_blip2.style.pickles import load_pickle_safely


class Program:
    """Calls something when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


class Named:
    """Pickled as if it were made by a class of this name."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pathlib.PosixPath, ("runs", "b3")


def test_arguments_with_paths_load_as_paths_that_touch_no_file(tmp_path: Path) -> None:
    arguments = argparse.Namespace(root=tmp_path / "data", lr=1e-3, nested=argparse.Namespace(init=None), seed=0)
    torch.save({"args": arguments, "where": [Path("a"), pathlib.PurePosixPath("b")], "x": torch.ones(2)}, tmp_path / "best.pt")
    loaded = load_pickle_safely(tmp_path / "best.pt")
    assert torch.equal(loaded["x"], torch.ones(2)) and loaded["args"].lr == 1e-3 and loaded["args"].nested.init is None
    assert type(loaded["args"].root) is PurePosixPath and str(loaded["args"].root) == str(tmp_path / "data")
    assert loaded["where"] == [PurePosixPath("a"), PurePosixPath("b")] and loaded["x"].device.type == "cpu"


@pytest.mark.parametrize("name", ["WindowsPath", "_local.PosixPath", "_local.WindowsPath", "PureWindowsPath"])
def test_paths_of_other_systems_and_pythons_load_too(name: str, tmp_path: Path) -> None:
    module, kind = ("pathlib." + name).rsplit(".", 1)
    _rewrite(tmp_path, f"c{module}\n{kind}\n".encode())
    assert load_pickle_safely(tmp_path / "best.pt") == {"root": PurePosixPath("runs/b3")}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("kind", ["open", "os.system", "eval", "write_text"])
def test_a_program_is_refused_and_does_nothing(kind: str, legacy: bool, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    call = {
        "open": (open, str(victim), "w"),
        "os.system": (os.system, f"touch {victim}"),
        "eval": (eval, f"open({str(victim)!r}, 'w')"),
        "write_text": (Path.write_text, victim, "x"),
    }[kind]
    path = tmp_path / "best.pt"
    torch.save({"x": torch.ones(1), "y": Program(*call)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"nothing of it has run.*scripts/convert_style_checkpoint.py --trust best.pt"):
        load_pickle_safely(path)
    assert not victim.exists()


def test_the_program_would_have_created_the_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    torch.save({"y": Program(open, str(victim), "w")}, tmp_path / "best.pt")
    torch.load(tmp_path / "best.pt", **{"weights_only": False})["y"].close()  # what a careless reader does
    assert victim.exists()


def test_every_class_that_may_not_be_made_is_listed(tmp_path: Path) -> None:
    torch.save({"x": torch.nn.Linear(1, 1), "y": Path("a")}, tmp_path / "best.pt")
    with pytest.raises(ValueError, match=r"asks for .*torch.nn.modules.linear.Linear") as caught:
        load_pickle_safely(tmp_path / "best.pt")
    assert "pathlib" not in str(caught.value)


def test_what_is_allowed_for_one_file_is_not_left_allowed(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save({"args": argparse.Namespace(root=Path("a"))}, tmp_path / "best.pt")
    load_pickle_safely(tmp_path / "best.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    with torch.serialization.safe_globals([(argparse.Namespace, "argparse.Namespace")]):
        load_pickle_safely(tmp_path / "best.pt")
        assert (argparse.Namespace, "argparse.Namespace") in torch.serialization.get_safe_globals()


def test_files_before_torch_1_6_load(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2), "root": Path("a")}, tmp_path / "best.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_pickle_safely(tmp_path / "best.pt")["x"], torch.ones(2))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x80\x02}q\x00"], ids=["empty", "text", "cut"])
def test_a_damaged_file_is_an_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(ValueError, match="best.pt cannot be read"):
        load_pickle_safely(tmp_path / "best.pt")


def test_a_cut_archive_is_an_error(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1000)}, tmp_path / "best.pt")
    content = (tmp_path / "best.pt").read_bytes()
    (tmp_path / "best.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="best.pt cannot be read"):
        load_pickle_safely(tmp_path / "best.pt")


def test_torchscript_is_refused_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "best.pt", "w") as archive:
        archive.writestr("best/code/__torch__.py", "")
    with pytest.raises(ValueError, match="best.pt is a TorchScript archive, a program"):
        load_pickle_safely(tmp_path / "best.pt")


@pytest.mark.parametrize(("version", "warns"), [("2.9.1+cu128", True), ("2.10.0", False), ("2.15.0", False), ("3.0", False)])
def test_old_torch_is_warned_of(version: str, warns: bool, tmp_path: Path, monkeypatch, caplog) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "best.pt")
    monkeypatch.setattr(pickles.torch, "__version__", version)
    with caplog.at_level(logging.WARNING):
        load_pickle_safely(tmp_path / "best.pt")
    assert ("known holes" in caplog.text) is warns


def _rewrite(folder: Path, instruction: bytes) -> None:
    """Save a path, and rename its class in the pickle."""
    torch.save({"root": Named()}, folder / "plain.pt")
    with zipfile.ZipFile(folder / "plain.pt") as plain, zipfile.ZipFile(folder / "best.pt", "w") as renamed:
        for name in plain.namelist():
            renamed.writestr(name, plain.read(name).replace(b"cpathlib\nPosixPath\n", instruction))
