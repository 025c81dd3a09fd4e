"""predict.py from the outside: every trainer's run, all kinds of input folders, both formats, the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dassl.engine import TRAINER_REGISTRY
from PIL import Image
from prediction_calls import call, read_csv, read_jsonl
from tiny_world import CLASSNAMES, test_logits, train_run

import predict
import trainers

ROOT = Path(__file__).resolve().parents[1]
LANGUAGE = ("answers_questions", "load_captioner")  # of trainers whose rows are no classes
CLASSIFIERS = [name for name in trainers.__all__ if not any(hasattr(TRAINER_REGISTRY.get(name), mark) for mark in LANGUAGE)]


# --- what a row says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_rows_are_what_the_trained_model_says(name: str, trained_run, tiny_world: Path, tmp_path: Path, capsys) -> None:
    folder, trainer = trained_run(name)
    expected = test_logits(trainer).as_subclass(torch.Tensor).softmax(dim=-1)
    capsys.readouterr()  # the training's lines
    assert call(folder, tiny_world / "colours" / "test", tmp_path / "out.csv") == 0
    rows = read_csv(tmp_path / "out.csv")
    assert [Path(row["path"]).name for row in rows] == [f"{number}.png" for number in range(6)]
    probs = torch.tensor([[float(row[f"distribution.{classname}"]) for classname in CLASSNAMES] for row in rows])
    assert (probs - expected).abs().max() < 1e-6
    assert [row["label"] for row in rows] == [CLASSNAMES[label] for label in expected.argmax(dim=1)]
    assert [float(row["confidence"]) for row in rows] == pytest.approx(expected.amax(dim=1).tolist(), abs=1e-6)
    assert {row["error"] for row in rows} == {""}
    summary = capsys.readouterr().out
    assert summary.count("\n") == 1
    assert summary.startswith(f"{tmp_path / 'out.csv'}: 6 images, ")
    assert name in summary


def test_json_lines_hold_the_same_as_the_csv(trained_run, photos: Path, tmp_path: Path) -> None:
    folder, _ = trained_run("LaFTer")
    call(folder, photos, tmp_path / "out.csv", "--top-k", "2")
    call(folder, photos, tmp_path / "out.jsonl", "--top-k", "2")
    flat, nested = read_csv(tmp_path / "out.csv"), read_jsonl(tmp_path / "out.jsonl")
    for cells, row in zip(flat, nested, strict=True):
        assert list(row) == ["path", "label", "confidence", "calibrated", "unsure", "top", "distribution", "error"]
        assert [entry["label"] for entry in row["top"]] == [cells["top.1.label"], cells["top.2.label"]]
        assert row["top"][0] == {"label": row["label"], "confidence": row["confidence"]}
        assert row["top"][0]["confidence"] >= row["top"][1]["confidence"]
        assert row["distribution"] == {name: float(cells[f"distribution.{name}"]) for name in CLASSNAMES}
        assert sum(row["distribution"].values()) == pytest.approx(1, abs=1e-5)
        assert cells["unsure"] == str(row["unsure"]).lower()
    assert "top.3.label" not in flat[0]


def test_unsure_is_a_confidence_below_the_key(trained_run, photos: Path, tmp_path: Path, capsys) -> None:
    folder, _ = trained_run("LaFTer")
    call(folder, photos, tmp_path / "out.jsonl")
    confidences = sorted(row["confidence"] for row in read_jsonl(tmp_path / "out.jsonl"))
    middle = (confidences[0] + confidences[1]) / 2
    call(folder, photos, tmp_path / "out.jsonl", "TRAINER.LAFTER.UNSURE_BELOW", str(middle))
    assert [row["unsure"] for row in read_jsonl(tmp_path / "out.jsonl")].count(True) == 1
    assert "3 images, 1 unsure, 0 unreadable" in capsys.readouterr().out


def test_facts_of_the_run_stand_beside_the_rows(trained_run, photos: Path, tmp_path: Path) -> None:
    folder, _ = trained_run("HybridCascadeLaFTer")
    call(folder, photos, tmp_path / "out.csv")
    facts = json.loads((tmp_path / "out.csv.json").read_text("utf-8"))
    assert (facts["run"], facts["trainer"], facts["checkpoint"]) == (str(folder), "HybridCascadeLaFTer", "model.pth.tar-1")
    assert facts["classes"] == list(CLASSNAMES)
    assert (facts["images"], facts["failed"]) == (3, 0)
    assert facts["stages"] == [[5, 6, 7], [8, 9], [10, 11, 12]]
    assert sum(facts["fusion"]) == pytest.approx(1)
    assert [sum(weights) for weights in facts["nga"]] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(("classes", "expected"), [
    (["Joy", "fear", "surprise"], {"Joy": "positive", "fear": "negative", "surprise": None}), (CLASSNAMES, None)
])  # fmt: skip
def test_emotions_have_a_polarity(
    classes: list[str], expected: dict | None, copied_run: Path, photos: Path, tmp_path: Path
) -> None:
    record = json.loads((copied_run / "run.json").read_text("utf-8"))
    record["data"]["classes"] = list(classes)
    (copied_run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    call(copied_run, photos, tmp_path / "out.jsonl")
    for row in read_jsonl(tmp_path / "out.jsonl"):
        assert ("polarity" in row) == (expected is not None)
        assert expected is None or row["polarity"] == expected[row["label"]]


# --- which images -------------------------------------------------------------------------------------------------------


def test_folder_is_searched_to_the_bottom_in_order(trained_run, photos: Path, tmp_path: Path, capsys) -> None:
    folder, _ = trained_run("LaFTer")
    assert call(folder, photos, tmp_path / "out.csv") == 0
    names = ["b.PNG", "Zürich ☃/ä, ü.bmp", "Zürich ☃/deep/c.webp"]
    assert [row["path"] for row in read_csv(tmp_path / "out.csv")] == [f"{photos.as_posix()}/{name}" for name in names]
    assert "3 images, " in (summary := capsys.readouterr().out)
    assert "1 other files passed over" in summary


def test_paths_stay_as_they_were_given_and_doubles_are_predicted_once(
    trained_run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = trained_run("LaFTer")
    monkeypatch.chdir(tmp_path)
    call(folder, [Path("photos/b.PNG"), Path("photos"), photos], Path("out.csv"))
    names = ["b.PNG", "Zürich ☃/ä, ü.bmp", "Zürich ☃/deep/c.webp"]
    assert [row["path"] for row in read_csv(Path("out.csv"))] == [f"photos/{name}" for name in names]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_get_a_row_with_the_reason(
    workers: int, trained_run, photos: Path, tiny_world: Path, tmp_path: Path, capsys
) -> None:
    folder, _ = trained_run("LaFTer")
    whole = (tiny_world / "colours" / "test" / "0.png").read_bytes()
    (photos / "a_text.png").write_text("no picture", encoding="utf-8")
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").touch()
    words = ["DATALOADER.TEST.BATCH_SIZE", "2", "DATALOADER.NUM_WORKERS", str(workers)]
    assert call(folder, photos, tmp_path / "out.csv", *words) == 1
    rows = read_csv(tmp_path / "out.csv")
    assert [Path(row["path"]).name for row in rows] == ["a_text.png", "b.PNG", "cut.png", "empty.jpg", "ä, ü.bmp", "c.webp"]
    failed = {Path(row["path"]).name: row["error"] for row in rows if row["error"]}
    assert set(failed) == {"a_text.png", "cut.png", "empty.jpg"}
    assert "cannot identify image file" in failed["a_text.png"]
    assert all(row["label"] in CLASSNAMES for row in rows if not row["error"])
    assert all(row["label"] == row["confidence"] == "" for row in rows if row["error"])
    assert "6 images, " in (summary := capsys.readouterr().out)
    assert "3 unreadable" in summary


def test_nothing_but_unreadable_images_is_a_table_of_errors(trained_run, tmp_path: Path) -> None:
    folder, _ = trained_run("LaFTer")
    (tmp_path / "named_anything.dat").write_bytes(b"no picture")
    for name in ("out.csv", "out.jsonl"):
        assert call(folder, tmp_path / "named_anything.dat", tmp_path / name) == 1
    (cells,), (row,) = read_csv(tmp_path / "out.csv"), read_jsonl(tmp_path / "out.jsonl")
    assert cells == row == {"path": (tmp_path / "named_anything.dat").as_posix(), "error": row["error"]}
    assert row["error"]


# --- which weights ------------------------------------------------------------------------------------------------------


def test_best_on_validation_goes_before_the_last_epoch(tiny_world: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two_epochs"
    train_run(tiny_world, folder, "LaFTer", {"OPTIM.MAX_EPOCH": 2, "OPTIM.LR": 0.05})
    call(folder, photos, tmp_path / "last.jsonl")
    call(folder, photos, tmp_path / "first.jsonl", "--load-epoch", "1")
    shutil.copy(folder / "adapt" / "model.pth.tar-1", folder / "adapt" / "model-best.pth.tar")
    call(folder, photos, tmp_path / "best.jsonl")
    last, first, best = (read_jsonl(tmp_path / f"{name}.jsonl") for name in ("last", "first", "best"))
    assert best == first != last
    checkpoints = [json.loads((tmp_path / f"{name}.jsonl.json").read_text("utf-8"))["checkpoint"] for name in ("last", "best")]
    assert checkpoints == ["model.pth.tar-2", "model-best.pth.tar"]


def test_a_fresh_process_needs_neither_training_images_nor_texts(trained_run, photos: Path, tmp_path: Path) -> None:
    folder, _ = trained_run("HybridCascadeLaFTer")
    call(folder, photos, tmp_path / "here.csv")
    node = "TRAINER.HYBRIDCASCADELAFTER.TEXT"
    words = ["DATASET.ROOT", str(tmp_path / "gone"), f"{node}.TEMPLATES", "gone.json"]
    words += [f"{node}.CACHE_DIR", str(tmp_path / "empty")]
    # The data set TinyColours is unknown there, and the threads decide in which order sums are taken.
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, str(ROOT / "predict.py"), "--model-dir", str(folder), "--input", str(photos), "--offline"]
    done = subprocess.run(
        [*command, "--output", "there ☃.csv", *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there ☃.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()
    assert done.stdout.startswith("there \\u2603.csv: 3 images, ")
    assert done.stdout.count("\n") == 1


# --- distributions ------------------------------------------------------------------------------------------------------

DUAL = {
    ".MODE": "supervised",
    ".DUAL.ENABLED": True,
    ".DUAL.STRATEGY": "strategy1",
    ".DUAL.RING": list(CLASSNAMES),
    ".DUAL.TEMPERATURE": 4.0,
}


@pytest.mark.parametrize(("heads", "temperature"), [("single", 4.0), ("dual", 1.0)])
def test_distribution_has_the_temperature_of_training(
    heads: str, temperature: float, tiny_world: Path, photos: Path, tmp_path: Path
) -> None:
    trainer = train_run(tiny_world, tmp_path / "run", "LaFTer", DUAL | {".DUAL.HEADS": heads})
    call(tmp_path / "run", photos, tmp_path / "out.jsonl")
    rows = read_jsonl(tmp_path / "out.jsonl")
    images = torch.stack([trainer.clip.preprocess(Image.open(row["path"]).convert("RGB")) for row in rows])
    trainer.set_model_mode("eval")
    scores = trainer.model_inference(images)
    logits = scores.as_subclass(torch.Tensor)
    probs = (logits / temperature).softmax(dim=-1)
    for row, label, prob, distribution in zip(rows, logits.argmax(dim=-1), probs, scores.facts["distribution"], strict=True):
        assert row["label"] == CLASSNAMES[label]
        assert row["confidence"] == pytest.approx(prob[label].item(), abs=1e-5)
        assert list(row["distribution"].values()) == pytest.approx(distribution.tolist(), abs=1e-5)
    if heads == "dual":
        assert (scores.facts["distribution"] - probs).abs().max() > 1e-4


# --- other trainers -----------------------------------------------------------------------------------------------------


def test_a_trainer_may_speak_for_itself(copied_run: Path, photos: Path, tmp_path: Path) -> None:
    from trainers.lafter import LaFTer

    @TRAINER_REGISTRY.register()
    class SpeakingLaFTer(LaFTer):
        @classmethod
        def node_name(cls) -> str:
            return "LAFTER"

        def predict_rows(self, batch: dict) -> list[dict]:
            return [{"caption": f"picture {index}", "entities": [{"name": "ä"}]} for index in batch["index"].tolist()]

        def prediction_facts(self) -> dict:
            return {"beams": 5}

    assert call(copied_run, photos, tmp_path / "out.csv", "TRAINER.NAME", "SpeakingLaFTer") == 0
    rows = read_csv(tmp_path / "out.csv")
    assert [(row["caption"], row["entities.1.name"]) for row in rows] == [(f"picture {number}", "ä") for number in range(3)]
    assert json.loads((tmp_path / "out.csv.json").read_text("utf-8"))["beams"] == 5


# --- the command line ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "message"), [
    (["--top-k", "0"], "--top-k is 0"), (["TEST.SPLIT"], "KEY VALUE pairs expected"),
    (["TEST.SPLIT", "val", "--top-k", "2"], "--top-k stands among"), (["--style", "x"], "unrecognized|KEY VALUE"),
    (["--calibrate"], "expected --input and --output, or --calibrate without them"),
])  # fmt: skip
def test_malformed_command_line(words: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        predict.parse_args(["--model-dir", "a", "--input", "b", "--output", "c.csv", *words])
    assert stop.value.code == 2
    assert any(part in capsys.readouterr().err for part in message.split("|"))


@pytest.mark.parametrize("words", [[], ["--input", "a"], ["--output", "a.csv"]])
def test_input_and_output_belong_together(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        predict.parse_args(["--model-dir", "a", *words])
    assert stop.value.code == 2
    assert "expected --input and --output" in capsys.readouterr().err


def test_settings_right_behind_the_input_are_noticed(capsys) -> None:
    with pytest.raises(SystemExit):
        predict.parse_args("--model-dir a --output c.csv --input b OPTIM.LR 1".split())
    assert "--input swallowed the setting OPTIM.LR" in capsys.readouterr().err
