"""Adapters and the model they belong to: nothing changes unless everything fits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.adapter_facts import LoadedAdapter, all_keys, as_stored, list_differences, load_strictly, store_adapter
from trainers.adapters import BaseModel

BASE = BaseModel("some/base", "f" * 64)


def store(run: Path, value: float, *, best: bool = False, epoch: int = 1) -> list[Path]:
    record = {"system": "Toy", "size": [1, 2]}
    return store_adapter(run, epoch, {"weight": torch.full((2,), value)}, record, BASE, keep="best_last", best=best)


def load(run: Path, weight: torch.Tensor, **options: Any) -> LoadedAdapter:
    settings = {"system": "Toy", "needs_tokenizer": False, "find_problems": lambda _: [], "find_notes": lambda _: []}
    return load_strictly(run, None, parameters={"weight": weight}, **(settings | options))


def test_the_best_is_stored_beside_the_last_and_found_first(tmp_path: Path) -> None:
    assert [folder.name for folder in store(tmp_path, 1.0, best=True)] == ["best"]
    assert [folder.name for folder in store(tmp_path, 2.0, epoch=2)] == ["last"]
    weight = torch.zeros(2)
    found = load(tmp_path, weight)
    assert (found.path.name, found.epoch, found.record["size"]) == ("best", 1, [1, 2])
    assert weight.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["", "adapter.safetensors", "adapter.json"])
def test_a_folder_or_a_file_in_it_names_an_adapter(name: str, tmp_path: Path) -> None:
    store(tmp_path, 1.0, best=True)
    (last,) = store(tmp_path, 2.0, epoch=2)
    assert load(last / name, torch.zeros(2)).epoch == 2
    with pytest.raises(FileNotFoundError, match="has no adapter of epoch 1"):
        load_strictly(
            last / name, 1, system="Toy", parameters={}, needs_tokenizer=False, find_problems=list, find_notes=list
        )


def test_all_problems_are_told_and_nothing_is_changed(tmp_path: Path) -> None:
    store(tmp_path, 1.0)
    weight = torch.zeros(2)
    with pytest.raises(ValueError, match="2 difference.s. to the model as configured:\n  first\n  second"):
        load(tmp_path, weight, find_problems=lambda _: ["first", "second"])
    assert weight.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="belongs to 'Toy'; expected 'Other'"):
        load(tmp_path, weight, system="Other")
    with pytest.raises(FileNotFoundError, match="it has no tokenizer"):
        load(tmp_path, weight, needs_tokenizer=True)


def test_notes_are_made_of_the_loaded_model_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store(tmp_path, 1.0)
    weight = torch.zeros(2)
    with caplog.at_level(logging.INFO, "trainers"):
        found = load(tmp_path, weight, find_notes=lambda _: [f"first number {weight[0]:g}"])
    assert found.notes == ("first number 1",)
    assert "Note: first number 1" in caplog.text


def test_differences_do_not_mind_how_json_stores() -> None:
    stored, now = {"layers": [1, 3], "side": 224, "old": 1}, {"layers": (1, 3), "side": 364, "new": 2}
    assert as_stored(((1, 2), 3)) == [[1, 2], 3]
    assert all_keys(stored, now) == ["layers", "new", "old", "side"]
    assert list_differences("x.", stored, now, all_keys(stored, now)) == [
        "x.new: stored None, now 2", "x.old: stored 1, now None", "x.side: stored 224, now 364",
    ]  # fmt: skip
    assert list_differences("x.", stored, now, ["layers"]) == []
