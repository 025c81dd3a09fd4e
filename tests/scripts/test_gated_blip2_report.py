"""scripts/gated_blip2_report.py prints every count at full size, without weights and without a network."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from scripts.gated_blip2_report import main  # noqa: E402


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The result and what was printed; a connection would be refused."""
    file = tmp_path_factory.mktemp("report") / "report.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the report asked the network"))
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *words: printed.append(" ".join(map(str, words))))
        main(["--json", str(file)])
    return json.loads(file.read_text("utf-8")), "\n".join(printed)


def lines_of(report: tuple[dict[str, Any], str]) -> list[str]:
    return [" ".join(line.split()) for line in report[1].splitlines()]


def test_sizes_of_the_backbone_are_printed(report) -> None:
    lines = lines_of(report)
    for line in (
        "language_model 2,651,596,800 2,651,678,720",
        "in all 3,744,679,936 3,744,761,856",
        "ln_vision 2,816 2,816",
        "vision_model with ln_vision 985,952,256",
        "qformer 105,137,664 105,137,664",
        "cross-attention of one layer 3,346,944",
        "cross-attention, 6 layers 20,081,664",
        "text branch, if built 56,687,616",
        "qformer with text branch 161,825,280",
        "language_projection 1,968,640 1,968,640",
        "query_tokens 24,576 24,576",
        "gates of original, 6 layers 4,021,392",
        "gates of original, one layer 670,232",
        "style encoder 10,696,232",
        "style encoder with classifier 10,739,268",
    ):
        assert line in lines


def test_what_presets_train_is_printed(report) -> None:
    expected = {
        "frozen": 0, "projection": 1_993_216, "gates": 7_881_728, "gates_proj": 9_874_944, "gates_xattn": 29_956_608,
        "qformer": 115_012_608, "original_live": 118_043_792, "original": 174_731_408,
    }  # fmt: skip
    assert {name: row["trainable"] for name, row in report[0]["presets"].items()} == expected
    lines = lines_of(report)
    assert "gates_proj 9,874,944 9,874,944 0 0.26 % 3,763,339,816" in lines
    assert "original 174,731,408 118,043,792 56,687,616 4.57 % 3,823,055,800" in lines
    assert "gates, one per head 900,824 -6,980,904" in lines and "gates, one per layer 799,250 -7,082,478" in lines
    assert "gates that read the question 9,192,448 +1,310,720" in lines
    assert "gates with a static style 7,883,264 +1,536" in lines


def test_original_is_itemised_to_the_reference_total(report) -> None:
    lines = lines_of(report)
    for line in (
        "prompt_mapper 5,708,288", "style_projection 1,180,416", "dead by design 56,687,616 72 tensors",
        "live 118,043,792", "as built 3,822,973,880", "as built 3,823,055,800", "key biases that are zero -54,912",
        "vocabulary padding 0", "vocabulary padding -81,920", "trainable 174,731,408 4.57 % of the reference total",
        "style classifier, outside 43,036",
    ):  # fmt: skip
        assert line in lines
    assert lines.count("reference total 3,822,918,968") == 2


def test_operations_are_printed(report) -> None:
    lines = lines_of(report)
    for line in ("vision 520.7", "style 3.65", "style 224 px 1.92", "language 254.7", "cached over live step 0.51x"):
        assert line in lines
    assert "cached step 548.0" in lines and "live step 1,072.4" in lines


@pytest.mark.parametrize(
    ("preset", "plan", "limit"),
    [
        ("original", "live", 1.0),
        ("original_live", "cached", 0.80),
        ("gates_proj", "cached", 0.60),
        ("gates_proj", "cached, int8", 0.40),
        ("gates_proj", "cached, nf4", 0.25),
        ("gates_proj", "cached, batch 8, GRAD_CKPT", 0.65),
    ],
)
def test_estimates_are_within_what_is_to_be_measured(report, preset, plan, limit) -> None:
    over_reference = report[0]["memory"][preset][plan]["total"] / 2**30 / 9.27
    assert 0.8 * limit < over_reference <= limit


def test_weights_alone_are_those_of_the_reference(report) -> None:
    assert report[0]["memory"]["original"]["live"]["weights"] / 2**30 == pytest.approx(7.466, abs=0.002)


def test_one_preset_can_be_asked_for(monkeypatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr("scripts.gated_blip2_report.show", lambda result, args: seen.append(result))
    monkeypatch.setattr("scripts.gated_blip2_report.measure", lambda args: {"preset": args.preset, "batch": args.batch})
    main(["--preset", "gates", "--batch", "4"])
    assert seen == [{"preset": "gates", "batch": 4}]


def test_wrong_words_end_it(capsys) -> None:
    for words, expected in ((["--preset", "all"], "invalid choice"), (["--style-arch", "tf_efficientnet_b3"], "STYLE.ARCH")):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2 and expected in capsys.readouterr().err
