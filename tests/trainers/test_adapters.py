"""Adapter folders: what is kept, what comes back, and what is refused."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from trainers import adapters
from trainers.adapters import BaseModel, find_adapter, read_adapter, save_best, save_epoch, write_adapter

BASE = BaseModel("some/base", "f" * 64)
TENSORS = {"projector.weight": torch.arange(6.0).reshape(2, 3), "table": torch.ones(2, dtype=torch.bfloat16)}


def write_tokenizer(folder: Path) -> None:
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def save(run: Path, epoch: int, keep: str = "all", *, best: bool = False) -> list[Path]:
    tensors = {**TENSORS, "epoch": torch.tensor([float(epoch)])}
    store = save_best if best else save_epoch
    return store(run, epoch, tensors, {"scores": {"accuracy": 50.0}}, BASE, keep=keep, save_tokenizer=write_tokenizer)


def stored(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "adapter").iterdir()) if (run / "adapter").is_dir() else []


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("all", ["best", "epoch-1", "epoch-2", "epoch-3", "last"]),
        ("best_last", ["best", "last"]),
        ("best", ["best"]),
        ("last", ["last"]),
    ],
)
def test_keep_decides_which_folders_there_are(keep: str, expected: list[str], tmp_path: Path) -> None:
    for epoch, is_best in ((1, False), (2, True), (3, False)):
        if is_best:
            save(tmp_path, epoch, keep, best=True)
        save(tmp_path, epoch, keep)
    assert stored(tmp_path) == expected
    epochs = {name: read_adapter(tmp_path / "adapter" / name, needs_tokenizer=True).record["epoch"] for name in expected}
    assert epochs == {name: {"best": 2, "last": 3}.get(name) or int(name[-1]) for name in expected}


def test_content_comes_back_bit_by_bit(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)[0]
    adapter = read_adapter(folder, needs_tokenizer=True)
    for name, tensor in TENSORS.items():
        assert adapter.tensors[name].dtype == tensor.dtype
        assert torch.equal(adapter.tensors[name], tensor)
    assert (adapter.base, adapter.record["scores"], adapter.tokenizer) == (BASE, {"accuracy": 50.0}, folder / "tokenizer")
    assert torch.__version__.startswith(adapter.record["versions"]["torch"])


def test_nothing_depends_on_the_folders_name(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)[0].rename(tmp_path / "Zürich ☃")
    assert find_adapter(folder) == folder
    assert read_adapter(folder, needs_tokenizer=True).record["epoch"] == 4


def test_folders_of_an_epoch_share_their_files(tmp_path: Path) -> None:
    epoch, last = save(tmp_path, 1)
    assert os.path.samefile(epoch / "adapter.safetensors", last / "adapter.safetensors")
    save(tmp_path, 2)
    assert read_adapter(epoch, needs_tokenizer=True).tensors["epoch"].item() == 1


def test_folders_are_copied_where_links_are_impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    epoch, last = save(tmp_path, 1)
    assert not os.path.samefile(epoch / "adapter.safetensors", last / "adapter.safetensors")
    assert read_adapter(last, needs_tokenizer=True).tensors["epoch"].item() == 1


def test_which_adapter_is_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no adapter; present: none"):
        find_adapter(tmp_path)
    save(tmp_path, 1)
    assert find_adapter(tmp_path).name == "last"
    save(tmp_path, 2, best=True)
    save(tmp_path, 3)
    assert find_adapter(tmp_path).name == "best"
    assert find_adapter(tmp_path, 3).name == "epoch-3"
    assert find_adapter(tmp_path, 2).name == "best"  # whose record says so
    with pytest.raises(FileNotFoundError, match="has no adapter of epoch 7; present: best, epoch-1, epoch-3, last"):
        find_adapter(tmp_path, 7)


def test_a_failure_while_writing_leaves_the_older_one(tmp_path: Path) -> None:
    folder = tmp_path / "adapter" / "last"
    write_adapter(folder, TENSORS, {"epoch": 1}, BASE)

    def fail(path: Path) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="cannot write .*last: disk full"):
        write_adapter(folder, TENSORS, {"epoch": 2}, BASE, save_tokenizer=fail)
    assert stored(tmp_path) == ["last"]
    assert read_adapter(folder, needs_tokenizer=False).record["epoch"] == 1


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "not finite: table"), (float("inf"), "not finite: table")])
def test_broken_weights_are_not_stored(value: float, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_adapter(tmp_path / "x", {**TENSORS, "table": torch.tensor([value])}, {}, BASE)
    with pytest.raises(ValueError, match="nothing to store"):
        write_adapter(tmp_path / "x", {}, {}, BASE)
    assert list(tmp_path.iterdir()) == []


def test_adapters_are_read_while_a_run_writes_more(tmp_path: Path) -> None:
    save(tmp_path, 1)
    stop = threading.Event()

    def write() -> None:
        epoch = 2
        while not stop.is_set():
            save(tmp_path, epoch)
            epoch += 1
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for _ in range(200):
                assert read_adapter(tmp_path / "adapter" / "epoch-1", needs_tokenizer=True).tensors["epoch"].item() == 1
                last = read_adapter(tmp_path / "adapter" / "last", needs_tokenizer=True)
                assert last.tensors["epoch"].item() == last.record["epoch"]
        finally:
            stop.set()
        writing.result()
    assert last.record["epoch"] > 2


def test_an_adapter_that_moves_aside_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path, 1, "last")[0]
    is_intact = adapters._is_intact

    def move_then_check(path: Path, digest: str) -> bool:
        if folder.exists():
            folder.rename(folder.with_name(".last.old"))  # the first half of a replacement
        return is_intact(path, digest)

    monkeypatch.setattr(adapters, "_is_intact", move_then_check)
    assert read_adapter(folder, needs_tokenizer=True).tensors["epoch"].item() == 1


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter.json", "tokenizer"])
def test_an_incomplete_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 1, "last")[0]
    (folder / name).rename(tmp_path / "taken")
    with pytest.raises(FileNotFoundError, match=f"no complete adapter: it has no {name}"):
        read_adapter(folder, needs_tokenizer=True)


def test_a_system_without_tokenizer(tmp_path: Path) -> None:
    write_adapter(tmp_path / "x", TENSORS, {}, BASE)
    assert read_adapter(tmp_path / "x", needs_tokenizer=False).tokenizer is None


@pytest.mark.parametrize("name", ["adapter.safetensors", "tokenizer/tokenizer.json"])
def test_a_flipped_byte_is_found(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 1, "last")[0]
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged, changed or missing since it was written: {name}"):
        read_adapter(folder, needs_tokenizer=True)


def test_records_that_say_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, "last")[0]
    record = json.loads((folder / "adapter.json").read_text("utf-8"))
    for content, message in (
        ("{", "not readable"),
        ("{}", "not readable: KeyError 'format'"),
        (json.dumps(record | {"format": 99}), "has format 99; this version reads 1"),
    ):
        (folder / "adapter.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_adapter(folder, needs_tokenizer=True)


def test_another_base_model(tmp_path: Path) -> None:
    adapter = read_adapter(save(tmp_path, 1)[0], needs_tokenizer=True)
    assert adapters.problems_with_base(adapter, BaseModel("another name", BASE.fingerprint)) == []
    message, = adapters.problems_with_base(adapter, BaseModel("some/base", "0" * 64))
    assert "belongs to some/base (ffffffffffff), MODEL.BACKBONE.NAME is some/base (000000000000)" in message


def test_every_difference_of_the_tensors_is_named(tmp_path: Path) -> None:
    write_adapter(tmp_path / "x", {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}, {}, BASE)
    adapter = read_adapter(tmp_path / "x", needs_tokenizer=False)
    problems = adapters.problems_with_tensors(adapter, {"b": torch.ones(4), "c": torch.ones(1), "d": torch.ones(1)})
    assert problems == ["missing tensor: d", "unexpected tensor: a", "shape of b: stored (3,), expected (4,)"]
    layers = {f"layers.{number}.weight": torch.ones(1) for number in range(12)}
    problems = adapters.problems_with_tensors(adapter, {**adapter.tensors, **layers, "head.weight": torch.ones(1)})
    assert problems == ["missing tensor: head.weight", "missing tensors (12): layers.*.weight"]


def test_tensors_go_into_the_parameters(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    write_adapter(tmp_path / "x", {"weight": torch.full((2, 3), 7.0), "bias": torch.ones(2)}, {}, BASE)
    adapters.copy_tensors(read_adapter(tmp_path / "x", needs_tokenizer=False), dict(layer.named_parameters()))
    assert torch.equal(layer.weight, torch.full((2, 3), 7.0))
    assert layer.weight.requires_grad


# --- the policy and the engine's files ----------------------------------------------------------------------------------


def test_problems_with_keep() -> None:
    assert adapters.problems_with_keep("some", "T.KEEP", "last_step") == [
        "T.KEEP is 'some'; expected one of all, best_last, best, last"
    ]
    assert len(adapters.problems_with_keep("best", "T.KEEP", "last_step")) == 1
    assert len(adapters.problems_with_keep("last", "T.KEEP", "best_val")) == 1
    assert adapters.problems_with_keep("best", "T.KEEP", "best_val") == []
    assert adapters.problems_with_keep("last", "T.KEEP", "last_step") == []
    assert adapters.problems_with_keep("best_last", "T.KEEP", "last_step") == []


@pytest.mark.parametrize(("keep", "left"), [("all", 3), ("best_last", 1), ("last", 1)])
def test_older_resume_files_go_when_the_newest_is_there(keep: str, left: int, tmp_path: Path) -> None:
    names = ["model.pth.tar-9", "model.pth.tar-10", "model.pth.tar-11"]
    for name in [*names, "model-best.pth.tar", "latest.pth.tar"]:
        (tmp_path / name).touch()
    adapters.prune_epochs(tmp_path, keep, "model.pth.tar-12")
    assert len(list(tmp_path.glob("model.pth.tar-*"))) == 3  # the newest is not there yet
    adapters.prune_epochs(tmp_path, keep, "model.pth.tar-11")
    assert len(list(tmp_path.glob("model.pth.tar-*"))) == left
    assert all((tmp_path / name).is_file() for name in ("model-best.pth.tar", "latest.pth.tar", "model.pth.tar-11"))


def test_leftovers_of_a_killed_run_are_cleared(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "adapter" / ".last.123.part").mkdir()
    (tmp_path / "adapter" / ".last.123.part" / "adapter.safetensors").write_bytes(b"half a file")
    adapters.clear_leftovers(tmp_path)
    adapters.clear_leftovers(tmp_path / "no run")
    assert stored(tmp_path) == ["epoch-1", "last"]
