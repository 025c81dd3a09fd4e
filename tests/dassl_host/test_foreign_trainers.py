"""Trainers in the style of CLIP repositories run unmodified on the bundled engine, with the weights upstream gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("foreign_trainers.py")
NAMES = ["TextPrompt", "ConditionalPrompt", "TwoModules", "BuildOnly"]


@pytest.fixture
def train_all(run_on, toy_root, tmp_path):
    """Return `train(side) -> {name: record}`."""

    def train(side: str) -> dict[str, dict[str, Any]]:
        run_on(side, SCRIPT, toy_root, tmp_path / side, tmp_path / f"{side}.pt")
        return torch.load(tmp_path / f"{side}.pt", weights_only=True)

    return train


def test_all_four_train_on_the_bundled_engine(train_all, tmp_path):
    records = train_all("bundled")
    assert list(records) == NAMES
    assert all(record["trained"] > 0 and 0 <= record["accuracy"] <= 100 for record in records.values())
    files = sorted(path.relative_to(tmp_path / "bundled").as_posix() for path in tmp_path.glob("bundled/**/*.pth.tar*"))
    assert files == [
        "ConditionalPrompt/prompt_learner/model.pth.tar-2",
        "TextPrompt/prompt_learner/model-best.pth.tar",
        "TextPrompt/prompt_learner/model.pth.tar-2",
        "TwoModules/adapter/model.pth.tar-2",
        "TwoModules/classifier/model.pth.tar-2",
    ]


@pytest.mark.parametrize("side", ["upstream"], indirect=True)
def test_both_engines_train_to_equal_weights(side, train_all):
    bundled, upstream = train_all("bundled"), train_all(side)
    for name in NAMES:
        assert bundled[name]["accuracy"] == upstream[name]["accuracy"]
        assert bundled[name]["weights"].keys() == upstream[name]["weights"].keys()
        for key, weight in bundled[name]["weights"].items():
            assert torch.allclose(weight, upstream[name]["weights"][key], atol=1e-6, rtol=0), f"{name} {key}"
