"""An evaluator of ours under the stock `test()` of either engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("voted_colours.py")
ACCURACY_LINE = re.compile(r"\* accuracy: ([\.\deE+-]+)%")  # what readers of CoOp's logs look for


@pytest.fixture
def run_voted(run_on, toy_root, tmp_path):
    """Return `run(side) -> (record, log, label_distribution.json)`."""

    def run(side: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
        folder = tmp_path / side
        run_on(side, SCRIPT, toy_root, folder)
        texts = [(folder / name).read_text("utf-8") for name in ("record.json", "log.txt", "label_distribution.json")]
        return json.loads(texts[0]), texts[1], json.loads(texts[2])

    return run


def test_stock_test_feeds_it_selects_by_it_and_logs_accuracy_last(side, run_voted):
    record, log, stored = run_voted(side)
    results = record["results"]
    assert next(iter(results)) == "negative_kl" and record["returned"] == results["negative_kl"] == -results["kl"] < 0
    assert record["best"] < 0  # best_val compared the divergence, not the accuracy
    assert stored["targets"] == {"voted": 3, "synthetic": 3, "absent": 0}
    assert stored["metrics"]["accuracy"] == results["accuracy"]
    assert float(ACCURACY_LINE.findall(log)[-1]) == pytest.approx(results["accuracy"], abs=0.05)
    block = log[log.rindex("=> result") :]
    names = [line.removeprefix("* ").split(":")[0] for line in block.splitlines()]
    assert names[:6] == ["=> result", "total", "correct", "accuracy", "error", "macro_f1"] and names[6].startswith("=> label")


@pytest.mark.parametrize("side", ["upstream"], indirect=True)
def test_both_engines_give_the_same_metrics(side, run_voted):
    bundled, upstream = run_voted("bundled")[0], run_voted(side)[0]
    assert upstream["results"] == pytest.approx(bundled["results"])
