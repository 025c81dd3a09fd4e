"""predict.py from the outside: every trainer's run, all kinds of input folders, both formats, and what goes wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from PIL import Image
from tiny_world import CLASSNAMES, IMAGE_SIZE_PX, test_logits, train_run

import predict
import trainers
from trainers import prediction_files, prediction_run
from trainers.prediction import ClassRows, distinct_names

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def trained(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Return `trained(name) -> (run folder, trainer)`; each is trained once."""
    runs: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in runs:
            folder = tmp_path_factory.mktemp("trained") / name
            runs[name] = folder, train_run(tiny_world, folder, name)
        return runs[name]

    return get


@pytest.fixture
def run(trained: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> Path:
    """A copy of a LaFTer run that a test may spoil."""
    return Path(shutil.copytree(trained("LaFTer")[0], tmp_path / "copied_run"))


@pytest.fixture
def photos(tiny_world: Path, tmp_path: Path) -> Path:
    """Folder with three pictures at different depths (one in grey, one with alpha), a text and hidden files."""
    folder = tmp_path / "photos"
    (folder / "Zürich ☃" / "deep").mkdir(parents=True)
    source = tiny_world / "colours" / "test"
    shutil.copy(source / "0.png", folder / "b.PNG")
    Image.open(source / "1.png").convert("L").save(folder / "Zürich ☃" / "ä, ü.bmp")
    Image.open(source / "2.png").convert("RGBA").save(folder / "Zürich ☃" / "deep" / "c.webp")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    (folder / ".hidden.png").write_bytes(b"no picture")
    (folder / ".cache").mkdir()
    shutil.copy(source / "0.png", folder / ".cache" / "d.png")
    return folder


def call(run: Path, inputs: Path | list[Path], output: Path, *words: str) -> int:
    """Run predict.py's main; return the exit code."""
    inputs = inputs if isinstance(inputs, list) else [inputs]
    with pytest.raises(SystemExit) as stop:
        predict.main(["--model-dir", str(run), "--input", *map(str, inputs), "--output", str(output), *words])
    return stop.value.code


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- what a row says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", trainers.__all__)
def test_rows_are_what_the_trained_model_says(name: str, trained, tiny_world: Path, tmp_path: Path, capsys) -> None:
    folder, trainer = trained(name)
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


def test_json_lines_hold_the_same_as_the_csv(trained, photos: Path, tmp_path: Path) -> None:
    folder, _ = trained("LaFTer")
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


def test_unsure_is_a_confidence_below_the_key(trained, photos: Path, tmp_path: Path, capsys) -> None:
    folder, _ = trained("LaFTer")
    call(folder, photos, tmp_path / "out.jsonl")
    confidences = sorted(row["confidence"] for row in read_jsonl(tmp_path / "out.jsonl"))
    middle = (confidences[0] + confidences[1]) / 2
    call(folder, photos, tmp_path / "out.jsonl", "TRAINER.LAFTER.UNSURE_BELOW", str(middle))
    assert [row["unsure"] for row in read_jsonl(tmp_path / "out.jsonl")].count(True) == 1
    assert "3 images, 1 unsure, 0 unreadable" in capsys.readouterr().out


def test_facts_of_the_run_stand_beside_the_rows(trained, photos: Path, tmp_path: Path) -> None:
    folder, _ = trained("HybridCascadeLaFTer")
    call(folder, photos, tmp_path / "out.csv")
    facts = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert (facts["run"], facts["trainer"], facts["checkpoint"]) == (str(folder), "HybridCascadeLaFTer", "model.pth.tar-1")
    assert facts["classes"] == list(CLASSNAMES)
    assert (facts["images"], facts["failed"]) == (3, 0)
    assert facts["stages"] == [[5, 6, 7], [8, 9], [10, 11, 12]]
    assert sum(facts["fusion"]) == pytest.approx(1)
    assert [sum(weights) for weights in facts["nga"]] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(("classes", "expected"), [
    (["Joy", "fear", "surprise"], {"Joy": "positive", "fear": "negative", "surprise": None}), (CLASSNAMES, None)
])  # fmt: skip
def test_emotions_have_a_polarity(classes: list[str], expected: dict | None, run: Path, photos: Path, tmp_path: Path) -> None:
    record = json.loads((run / "run.json").read_text("utf-8"))
    record["data"]["classes"] = list(classes)
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    call(run, photos, tmp_path / "out.jsonl")
    for row in read_jsonl(tmp_path / "out.jsonl"):
        assert ("polarity" in row) == (expected is not None)
        assert expected is None or row["polarity"] == expected[row["label"]]


def test_polarity_follows_the_label() -> None:
    class Shouting:
        device = torch.device("cpu")

        def model_inference(self, images: torch.Tensor) -> torch.Tensor:
            return 5 * torch.eye(3)

    rows = ClassRows(Shouting(), ["joy", "fear", "surprise"])({"img": torch.zeros(3)})
    assert [row["polarity"] for row in rows] == ["positive", "negative", None]


def test_temperature_of_training_and_a_learned_distribution_are_kept() -> None:
    from trainers.base import Scores

    class Warm:
        device = torch.device("cpu")

        def model_inference(self, images: torch.Tensor) -> torch.Tensor:
            return Scores.of(torch.tensor([[16.0, 8.0]]), temperature=16.0, distribution=torch.tensor([[0.4, 0.6]]))

    (row,) = ClassRows(Warm(), ["a", "b"])({"img": torch.zeros(1)})
    assert row["confidence"] == pytest.approx(torch.tensor([1.0, 0.5]).softmax(0)[0].item(), abs=1e-6)
    assert row["distribution"] == pytest.approx({"a": 0.4, "b": 0.6})
    (row,) = ClassRows(Warm(), ["a", "b"], temperature=4.0)({"img": torch.zeros(1)})
    assert row["confidence"] == pytest.approx(torch.tensor([4.0, 2.0]).softmax(0)[0].item(), abs=1e-6)
    assert row["calibrated"] is True


def test_equally_named_classes_keep_their_own_columns() -> None:
    assert distinct_names(["crane", "maillot", "crane"]) == ["crane #0", "maillot", "crane #2"]


# --- which images -------------------------------------------------------------------------------------------------------


def test_folder_is_searched_to_the_bottom_in_order(trained, photos: Path, tmp_path: Path, capsys) -> None:
    folder, _ = trained("LaFTer")
    assert call(folder, photos, tmp_path / "out.csv") == 0
    names = ["b.PNG", "Zürich ☃/ä, ü.bmp", "Zürich ☃/deep/c.webp"]
    assert [row["path"] for row in read_csv(tmp_path / "out.csv")] == [f"{photos.as_posix()}/{name}" for name in names]
    assert "3 images, " in (summary := capsys.readouterr().out)
    assert "1 other files passed over" in summary


def test_paths_stay_as_they_were_given_and_doubles_are_predicted_once(
    trained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = trained("LaFTer")
    monkeypatch.chdir(tmp_path)
    call(folder, [Path("photos/b.PNG"), Path("photos"), photos], Path("out.csv"))
    names = ["b.PNG", "Zürich ☃/ä, ü.bmp", "Zürich ☃/deep/c.webp"]
    assert [row["path"] for row in read_csv(Path("out.csv"))] == [f"photos/{name}" for name in names]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_get_a_row_with_the_reason(
    workers: int, trained, photos: Path, tiny_world: Path, tmp_path: Path, capsys
) -> None:
    folder, _ = trained("LaFTer")
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


def test_nothing_but_unreadable_images_is_a_table_of_errors(trained, tmp_path: Path) -> None:
    folder, _ = trained("LaFTer")
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
    checkpoints = [json.loads((tmp_path / f"{name}.json").read_text("utf-8"))["checkpoint"] for name in ("last", "best")]
    assert checkpoints == ["model.pth.tar-2", "model-best.pth.tar"]


def test_a_fresh_process_needs_neither_training_images_nor_texts(trained, photos: Path, tmp_path: Path) -> None:
    folder, _ = trained("HybridCascadeLaFTer")
    call(folder, photos, tmp_path / "here.csv")
    node = "TRAINER.HYBRIDCASCADELAFTER.TEXT"
    words = ["DATASET.ROOT", str(tmp_path / "gone"), f"{node}.TEMPLATES", "gone.json", f"{node}.CACHE_DIR", str(tmp_path / "empty")]
    # The data set TinyColours is unknown there, and the threads decide in which order sums are taken.
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, str(ROOT / "predict.py"), "--model-dir", str(folder), "--input", str(photos), "--offline"]
    done = subprocess.run(
        [*command, "--output", "there.csv", *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()
    assert done.stdout.count("\n") == 1


def test_the_data_sets_of_this_process_stay_registered(trained, photos: Path, tmp_path: Path) -> None:
    before = DATASET_REGISTRY.get("TinyColours")
    call(trained("LaFTer")[0], photos, tmp_path / "out.csv")
    assert DATASET_REGISTRY.get("TinyColours") is before


def test_unfinished_run_is_used_with_a_note(run: Path, photos: Path, tmp_path: Path, caplog) -> None:
    edit_record(run, status="failed")
    assert call(run, photos, tmp_path / "out.csv") == 0
    assert "has not finished (status failed)" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_run_in_half_precision_is_used_in_fp32_on_a_cpu(run: Path, photos: Path, tmp_path: Path, caplog) -> None:
    assert call(run, photos, tmp_path / "out.csv", "TRAINER.LAFTER.PREC", "amp") == 0
    assert "PREC amp needs a GPU; fp32 is used" in caplog.text


# --- other trainers -----------------------------------------------------------------------------------------------------


def test_a_trainer_may_speak_for_itself(run: Path, photos: Path, tmp_path: Path) -> None:
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

    assert call(run, photos, tmp_path / "out.csv", "TRAINER.NAME", "SpeakingLaFTer") == 0
    rows = read_csv(tmp_path / "out.csv")
    assert [(row["caption"], row["entities.1.name"]) for row in rows] == [(f"picture {number}", "ä") for number in range(3)]
    assert json.loads((tmp_path / "out.json").read_text("utf-8"))["beams"] == 5


# --- what goes wrong ----------------------------------------------------------------------------------------------------


def edit_record(run: Path, **fields: Any) -> None:
    record = json.loads((run / "run.json").read_text("utf-8"))
    (run / "run.json").write_text(json.dumps(record | fields), encoding="utf-8")


def fails(capsys, message: str, run: Path, inputs: Path, output: Path, *words: str) -> None:
    """Predicting ends with code 2, one message and nothing written."""
    before = output.read_bytes() if output.is_file() else None
    assert call(run, inputs, output, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert (output.read_bytes() if output.is_file() else None) == before


def test_missing_run_and_files_of_a_run(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out.csv"
    output.write_text("older", encoding="utf-8")
    fails(capsys, f"there is no run folder {tmp_path / 'none'}", tmp_path / "none", photos, output)
    fails(capsys, "it has no config.yaml", photos, photos, output)
    edit_record(run, data={})
    fails(capsys, "lists no classes", run, photos, output)
    (run / "run.json").unlink()
    fails(capsys, "it has no run.json", run, photos, output)


def test_missing_checkpoints(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    fails(capsys, "present: model.pth.tar-1 (give --load-epoch 1)", run, photos, tmp_path / "out.csv", "--load-epoch", "7")
    shutil.rmtree(run / "adapt")
    fails(capsys, "has no checkpoint yet: expected adapt/model.pth.tar-*", run, photos, tmp_path / "out.csv")


def test_epoch_of_a_trainer_without_weights(trained, photos: Path, tmp_path: Path, capsys) -> None:
    folder, _ = trained("ZeroshotCLIP")
    fails(capsys, "--load-epoch 1, but ZeroshotCLIP trains nothing", folder, photos, tmp_path / "out.csv", "--load-epoch", "1")


def test_other_classes_than_the_checkpoints(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    edit_record(run, data={"classes": ["red", "green"]})
    fails(capsys, "does not fit its configuration and the 2 classes of run.json (red, green)", run, photos, tmp_path / "out.csv")


def test_wrong_settings_are_reported_together(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    words = ["TRAINER.LAFTER.UNSURE_ABOVE", "1", "TRAINER.NAME", "Lafter"]
    fails(capsys, "2 problem(s) in the configuration", run, photos, tmp_path / "out.csv", *words)
    words = ["TRAINER.LAFTER.UNSURE_BELOW", "1.5"]
    fails(capsys, "UNSURE_BELOW is 1.5; expected a value in [0, 1]", run, photos, tmp_path / "out.csv", *words)


def test_clip_that_is_not_at_hand(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    words = ["MODEL.BACKBONE.NAME", str(tmp_path / "none.safetensors")]
    fails(capsys, "none.safetensors", run, photos, tmp_path / "out.csv", *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_device_that_is_not_there(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    fails(capsys, "--device cuda, but PyTorch finds no GPU", run, photos, tmp_path / "out.csv", "--device", "cuda")


def test_inputs_and_outputs_that_cannot_be(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    fails(capsys, "expected a name ending in .csv or .jsonl", run, photos, tmp_path / "out.xlsx")
    fails(capsys, f"there is no folder {tmp_path / 'none'}", run, photos, tmp_path / "none" / "out.csv")
    fails(capsys, "no such file or folder", run, tmp_path / "none.png", tmp_path / "out.csv")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    fails(capsys, "1 other file(s); expected names ending in .jpg", run, tmp_path / "texts", tmp_path / "out.csv")


@pytest.mark.parametrize(("words", "message"), [
    (["--top-k", "0"], "--top-k is 0"), (["TEST.SPLIT"], "KEY VALUE pairs expected"),
    (["TEST.SPLIT", "val", "--top-k", "2"], "--top-k stands among"), (["--question", "why"], "unrecognized|KEY VALUE"),
])  # fmt: skip
def test_malformed_command_line(words: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        predict.parse_args(["--model-dir", "a", "--input", "b", "--output", "c.csv", *words])
    assert stop.value.code == 2
    assert any(part in capsys.readouterr().err for part in message.split("|"))


def test_settings_right_behind_the_input_are_noticed(capsys) -> None:
    with pytest.raises(SystemExit):
        predict.parse_args("--model-dir a --output c.csv --input b OPTIM.LR 1".split())
    assert "--input swallowed the setting OPTIM.LR" in capsys.readouterr().err


def test_an_interrupted_prediction_leaves_the_older_file(tmp_path: Path) -> None:
    def rows() -> Any:
        yield {"path": "a", "label": "x", "error": ""}
        raise KeyboardInterrupt

    for name in ("out.csv", "out.jsonl"):
        (tmp_path / name).write_text("older", encoding="utf-8")
        with pytest.raises(KeyboardInterrupt):
            prediction_files.write_rows(tmp_path / name, rows())
    assert {file.name: file.read_text("utf-8") for file in tmp_path.iterdir()} == {"out.csv": "older", "out.jsonl": "older"}


def test_file_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    for suffix in ("csv", "jsonl"):
        prediction_files.write_rows(tmp_path / f"out.{suffix}", [{"path": name, "error": ""}])
        assert "caf\\udce9.png" in (tmp_path / f"out.{suffix}").read_text("utf-8")


def test_large_images_never_reach_a_cache(run: Path, photos: Path, tmp_path: Path) -> None:
    assert call(run, photos, tmp_path / "out.csv", "TRAINER.LAFTER.CACHE_IMAGES", "ram", "TRAINER.LAFTER.CACHE_MAX_GB", "1e-9") == 0


def test_the_stand_in_knows_the_classes_and_no_image(run: Path) -> None:
    loaded = prediction_run.read_run(run)
    trainer, _ = prediction_run.load_trainer(loaded)
    assert trainer.classnames == list(CLASSNAMES)
    assert trainer.clip.info.image_size_px == IMAGE_SIZE_PX
    assert [item.label for item in trainer.dm.dataset.test] == [-1]
