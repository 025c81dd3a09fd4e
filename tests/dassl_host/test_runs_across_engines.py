"""A run that is killed and continued equals the uninterrupted one, on either engine and across them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("runs_in_pieces.py")
STOPS = {"whole": [-1], "pieces": [1, 2, 3, 4, 5, -1]}  # -1 = to the end

# Constant warm-up of one epoch, then a cosine over six, base 0.02.
GOLDEN_LRS = [1e-5, 0.02, 0.01866025, 0.015, 0.01, 0.005]


@pytest.fixture
def run_jobs(run_on, toy_root, tmp_path) -> Callable[..., list[dict[str, Any]]]:
    """Return `run(side, (folder, workers, stops), ...) -> records`, all jobs in one process."""

    def run(side: str, *jobs: tuple[str, int, list[int]]) -> list[dict[str, Any]]:
        listed = [{"output": str(tmp_path / name), "workers": workers, "stops": stops} for name, workers, stops in jobs]
        run_on(side, SCRIPT, toy_root, tmp_path / "result.pt", json.dumps(listed))
        return torch.load(tmp_path / "result.pt", weights_only=True)

    return run


def assert_equal_records(record: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in ("lrs", "losses", "best", "steps"):
        assert record[key] == expected[key], key
    assert record["weights"].keys() == expected["weights"].keys()
    for name, weight in record["weights"].items():
        assert torch.equal(weight, expected["weights"][name]), name


def test_run_killed_at_every_epoch_boundary_equals_uninterrupted_run(side, run_jobs, tmp_path):
    jobs = [(f"{name}{workers}", workers, stops) for workers in (0, 2) for name, stops in STOPS.items()]
    whole, pieces, whole_in_workers, pieces_in_workers = run_jobs(side, *jobs)
    assert_equal_records(pieces, whole)
    assert_equal_records(pieces_in_workers, whole_in_workers)
    assert [lr for _, lr in whole["lrs"]] == pytest.approx(GOLDEN_LRS, rel=1e-6)
    assert whole["steps"] == len(whole["losses"]) > 0
    files = list(tmp_path.glob("*/toy/*.pth.tar*"))
    assert len(files) == 4 * 7  # six epochs and the best
    for file in files:
        torch.load(file, weights_only=True)


@pytest.mark.parametrize("side", ["upstream"], indirect=True)
def test_checkpoint_of_one_engine_resumes_on_the_other(side, run_jobs):
    (from_bundled,) = run_jobs("bundled", ("a", 0, [3]))
    continued_on_upstream, from_upstream = run_jobs("upstream", ("a", 0, [-1]), ("b", 0, [3]))
    continued_on_bundled, whole = run_jobs("bundled", ("b", 0, [-1]), ("whole", 0, [-1]))
    for first, second in ((from_bundled, continued_on_upstream), (from_upstream, continued_on_bundled)):
        assert second["start"] == 3
        assert first["lrs"] + second["lrs"] == whole["lrs"]
        assert first["losses"] + second["losses"] == whole["losses"]
        assert second["best"] == whole["best"]
        assert second["steps"] == whole["steps"]
