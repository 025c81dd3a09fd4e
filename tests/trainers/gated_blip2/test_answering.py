"""Answers of GatedBLIP2 as rows: what they say, what cannot be asked, and what a run can be used with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from other_styles import write_style
from prediction_calls import call, edit_record, fails, read_jsonl
from tiny_blip2s import write_blip2
from tiny_questions import TinyQuestions

from trainers.prediction.answers import answer_questions
from trainers.prediction.questions import Asked

NAME, NODE = "GatedBLIP2", "TRAINER.GATEDBLIP2"
QUESTION = ("--question", "what colour is the picture ?")
LONG = "what is the colour of the picture ? " * 6


@pytest.fixture
def run(trained_run) -> Path:
    return trained_run(NAME)[0]


@pytest.fixture
def ask(make_trainer, tiny_world: Path) -> Callable[..., list[dict[str, Any]]]:
    """Return `ask(asked, settings)`: rows of an untrained model about pictures of the tiny world."""

    def get(asked: list[tuple[str, dict[str, str]]], settings: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TinyQuestions, "stands_in", True, raising=False)  # as in predict.py
            trainer = make_trainer(NAME, settings)
        trainer.set_model_mode("eval")
        paths = [str(tiny_world / "colours" / "test" / f"{number % 6}.png") for number in range(len(asked))]
        rows = list(answer_questions(trainer, [Asked(path, *each) for path, each in zip(paths, asked, strict=True)]))
        get.facts = trainer.prediction_facts()
        return rows

    return get


def test_rows_say_the_answer_and_the_style_that_was_seen(run: Path, photos: Path, tmp_path: Path) -> None:
    assert call(run, photos, tmp_path / "out.jsonl", *QUESTION) == 0
    row, *_ = read_jsonl(tmp_path / "out.jsonl")
    assert list(row) == [
        "impath", "question", "answer", "mean_log_prob", "style", "style_probability", "truncated", "error",
    ]  # fmt: skip
    assert row["mean_log_prob"] < 0
    assert 1 / 27 <= row["style_probability"] <= 1
    assert "_" in row["style"] or row["style"].isalpha()
    facts = json.loads((tmp_path / "out.jsonl.json").read_text("utf-8"))
    assert (facts["preset"], facts["style_source"], facts["questions_cut"], facts["notes"]) == ("gates_proj", "features", 0, [])
    assert facts["generation"] == {"num_beams": 1, "max_new_tokens": 3}
    assert "hits" not in facts


def test_answers_do_not_depend_on_their_batch(ask) -> None:
    asked = [("how many ?", {}), (LONG, {}), ("who painted it ?", {})]
    together, alone = ask(asked), ask(asked, {"DATALOADER.TEST.BATCH_SIZE": 1})
    assert [row["answer"] for row in together] == [row["answer"] for row in alone]
    for row, same in zip(together, alone, strict=True):
        assert row["mean_log_prob"] == pytest.approx(same["mean_log_prob"], abs=2e-5)
    assert len({row["mean_log_prob"] for row in together}) == 3


def test_cut_questions_are_counted(ask) -> None:
    ask([(LONG, {}), ("how many ?", {}), (LONG, {})], {"DATALOADER.TEST.BATCH_SIZE": 1})
    assert ask.facts["questions_cut"] == 2


def test_what_does_not_fit_into_the_language_model_fails_alone(ask) -> None:
    short, long = ask([("how many ?", {}), (LONG, {})], {".GEN.MAX_NEW_TOKENS": 100})
    assert short["error"] == ""
    assert set(long) == {"impath", "question", "error"}
    assert "the question and GEN.MAX_NEW_TOKENS take 142 positions; the language model has 128" in long["error"]


def test_given_styles_have_to_be_known(ask) -> None:
    asked = [("how many ?", {"style": style}) for style in ("Cubism", "Cubizm", "", "Baroque")]
    good, misspelt, missing, other = ask(asked, {".STYLE.SOURCE": "label"})
    assert good["error"] == other["error"] == ""
    assert "Cubism" in misspelt["error"]
    assert missing["error"] == "no style is given, which STYLE.SOURCE label needs; expected a table with a column style"
    assert [row["error"] for row in ask(asked)] == ["", "", "", ""]  # the encoder looks for itself


def test_answers_beside_a_failing_row_are_their_own(ask) -> None:
    asked = [("how many ?", {"style": style}) for style in ("Cubism", "Cubizm", "Baroque")]
    found, expected = (
        ask(asked, {".STYLE.SOURCE": "label", ".GATE.INIT_STD": 1.0, "DATALOADER.TEST.BATCH_SIZE": size}) for size in (3, 1)
    )
    likely = [row.get("mean_log_prob") for row in found]
    assert likely[1] is None and abs(likely[0] - likely[2]) > 1e-3
    for place in (0, 2):
        assert likely[place] == pytest.approx(expected[place]["mean_log_prob"], abs=2e-5)


def test_without_a_style_encoder_the_style_is_unknown(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    nothing = (f"{NODE}.STYLE.FALLBACK", "none", f"{NODE}.STYLE.CHECKPOINT", str(tmp_path / "gone.safetensors"))
    fails(capsys, "gone.safetensors", run, photos, tmp_path / "out.jsonl", *QUESTION, *nothing)
    words = (*QUESTION, *nothing, f"{NODE}.STYLE.SOURCE", "zeros")
    assert call(run, photos, tmp_path / "out.jsonl", *words) == 0
    assert call(run, photos, tmp_path / "true.jsonl", *QUESTION) == 0
    rows, true = read_jsonl(tmp_path / "out.jsonl"), read_jsonl(tmp_path / "true.jsonl")
    assert {(row["style"], row["style_probability"]) for row in rows} == {(None, None)}
    assert [row["mean_log_prob"] for row in rows] != [row["mean_log_prob"] for row in true]
    facts = json.loads((tmp_path / "out.jsonl.json").read_text("utf-8"))
    assert facts["notes"] == [f"{NODE}.STYLE.SOURCE: stored 'features', now 'zeros': the model learned otherwise"]


def test_another_base_style_file_or_gate_is_one_clear_error(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    words = (
        *QUESTION, "MODEL.BACKBONE.NAME", str(write_blip2(tmp_path / "other", seed=5)),
        f"{NODE}.STYLE.CHECKPOINT", write_style(tmp_path / "style"), f"{NODE}.GATE.PHI", "film",
    )  # fmt: skip
    assert call(run, photos, tmp_path / "out.jsonl", *words) == 2
    _, base, gate, style, *others = (line.strip() for line in capsys.readouterr().err.split("3 difference(s)")[1].splitlines())
    assert base.startswith("base model: the adapter belongs to ")
    assert gate == f"{NODE}.GATE.PHI: stored 'tanh', now 'film'"
    assert style.startswith("style.sha256: stored ")
    assert others == []


def test_an_untuned_model_answers_without_an_adapter(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    words = (*QUESTION, f"{NODE}.PRESET", "frozen")
    fails(capsys, "but GatedBLIP2 trains nothing", run / "adapter" / "last", photos, tmp_path / "out.jsonl", *words)
    bare = Path(shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("adapter")))
    fails(capsys, "has no adapter; present: none", bare, photos, tmp_path / "out.jsonl", *QUESTION)
    edit_record(bare, mode="eval")
    assert call(bare, photos, tmp_path / "out.jsonl", *words) == 0
    assert "nothing trained" in capsys.readouterr().out


def test_an_evaluation_takes_a_run_an_adapter_or_its_file(trained_run, make_trainer) -> None:
    folder, trained = trained_run(NAME)
    for name in ("", "adapter/last", "adapter/last/adapter.safetensors"):
        trainer = make_trainer(NAME, run="evaluated")
        trainer.load_model(str(folder / name))
        stored, now = trained.system.parameters, trainer.system.parameters
        assert all(bool((stored[key] == now[key]).all()) for key in stored)
