"""predict.py with a run that captions images: rows, bad files, epochs, settings, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from prediction_calls import call, fails, read_csv, read_jsonl
from tiny_captioners import write_trained_run
from tiny_world import clip_config, write_clip

import predict
import train
from trainers.viecap.storage.loading import load_captioner

ROOT = Path(__file__).resolve().parents[1]
NODE = "TRAINER.VIECAP"
COLUMNS = ["impath", "caption", "score", "entities", "mentioned", "truncated", "error"]


@pytest.fixture(scope="module")
def run(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trained_run(tmp_path_factory.mktemp("captions") / "run", f"local-dir:{tiny_world / 'clip'}")


def captions_of(output: Path) -> list[str]:
    return [row["caption"] for row in read_jsonl(output)]


# What a row says --------------------------------------------------------------------------------------------------------------


def test_rows_are_what_the_captioner_says(run: Path, tiny_world: Path, tmp_path: Path, capsys) -> None:
    pictures = tiny_world / "colours" / "test"
    assert call(run, pictures, tmp_path / "out.jsonl") == 0
    rows = read_jsonl(tmp_path / "out.jsonl")
    loaded = load_captioner(run)
    files = sorted(pictures.glob("*.png"))
    images = torch.stack([loaded.preprocess(Image.open(file).convert("RGB")) for file in files])
    assert [row["impath"] for row in rows] == [file.as_posix() for file in files]
    for row, said in zip(rows, loaded.captioner.caption(images), strict=True):
        assert list(row) == COLUMNS
        assert row["caption"] == said.caption
        assert row["score"] == pytest.approx(said.score, abs=1e-4)
        assert [entry["name"] for entry in row["entities"]] == [found.name for found in said.entities]
        assert set(row["entities"][0]) == {"name", "probability", "used"}
    assert "6 images, " in (summary := capsys.readouterr().out)
    assert "0 unreadable; ViECap, weights/coco_prefix-000.safetensors, cpu" in summary


def test_predictions_are_those_of_the_test(trained_run, tiny_world: Path, tmp_path: Path) -> None:
    folder, _ = trained_run("ViECap")
    assert call(folder, tiny_world / "colours" / "test", tmp_path / "out.jsonl") == 0
    written = (folder / "predictions" / "tiny_captions_generated_captions.json").read_text("utf-8")
    tested = {row["image_name"]: row["prediction"] for row in json.loads(written)}
    assert len(tested) == 6
    assert {f"test-{Path(row['impath']).stem}": row["caption"] for row in read_jsonl(tmp_path / "out.jsonl")} == tested


def test_a_bad_file_has_an_error_and_stops_nothing(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    (photos / "cut.png").write_bytes((photos / "b.PNG").read_bytes()[:90])
    (photos / "text.jpg").write_text("no picture", encoding="utf-8")
    assert call(run, photos, tmp_path / "out.jsonl") == 1
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [Path(row["impath"]).name for row in rows] == ["b.PNG", "cut.png", "text.jpg", "ä, ü.bmp", "c.webp"]
    assert [bool(row["error"]) for row in rows] == [False, True, True, False, False]
    assert list(rows[1]) == ["impath", "error"]
    assert "UnidentifiedImageError" in rows[2]["error"]
    assert "2 unreadable, 1 other files passed over" in capsys.readouterr().out
    assert call(run, photos / "text.jpg", tmp_path / "none.jsonl") == 1
    assert len(read_jsonl(tmp_path / "none.jsonl")) == 1


def test_batches_and_one_by_one_say_the_same(run: Path, photos: Path, tmp_path: Path) -> None:
    for mode in ("greedy", "sample"):
        words = (f"{NODE}.DECODE", mode, "DATALOADER.TEST.BATCH_SIZE")
        for size in (1, 3):
            assert call(run, photos, tmp_path / f"{mode}{size}.jsonl", *words, str(size)) == 0
        assert captions_of(tmp_path / f"{mode}1.jsonl") == captions_of(tmp_path / f"{mode}3.jsonl")


def test_three_distinct_captions_and_csv(run: Path, photos: Path, tmp_path: Path) -> None:
    words = (f"{NODE}.DECODE", "beam", f"{NODE}.NUM_RETURN", "3")
    assert call(run, photos, tmp_path / "out.csv", *words) == 0
    for row in read_csv(tmp_path / "out.csv"):
        said = [row[f"captions.{number}"] for number in (1, 2, 3)]
        assert len(set(said)) == 3
        assert said[0] == row["caption"]
        assert row["entities.1.used"] in ("true", "false")


def test_facts_stand_beside_the_rows(run: Path, photos: Path, tmp_path: Path) -> None:
    call(run, photos, tmp_path / "out.jsonl", f"{NODE}.MAX_NEW_TOKENS", "2")
    facts = json.loads((tmp_path / "out.jsonl.json").read_text("utf-8"))
    assert (facts["trainer"], facts["checkpoint"], facts["epoch"]) == ("ViECap", "weights/coco_prefix-000.safetensors", 1)
    assert facts["decoding"]["max_new_tokens"] == 2
    assert facts["vocabulary"] == {"name": "coco_entities", "size": 80}
    assert (facts["images"], facts["failed"]) == (3, 0)
    assert facts["truncated"] == sum(row["truncated"] for row in read_jsonl(tmp_path / "out.jsonl")) > 0


def test_a_text_file_becomes_captions_of_a_folder(
    tiny_world: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sentences alone, in a file of one's own, are learned from, and the pictures of a folder described by it."""
    monkeypatch.chdir(tmp_path)  # caches lie below the working directory
    colours, things = ("red", "green", "blue", "old"), ("dog", "cat", "car", "house", "tree")
    sentences = [f"a {a} {b} beside the {c}" for a in colours for b in things for c in things for _ in range(2)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    run = tmp_path / "run"
    settings = {
        "MODEL.BACKBONE.NAME": f"local-dir:{tiny_world / 'clip'}", f"{NODE}.LANGUAGE_MODEL": "tiny_gpt2",
        f"{NODE}.NUM_LAYERS": 1, f"{NODE}.WARMUP_STEPS": 2, "OPTIM.MAX_EPOCH": 1,
        "USE_CUDA": False, f"{NODE}.MAX_NEW_TOKENS": 8,
    }  # fmt: skip
    configs = ROOT / "configs"
    train.main([
        "--trainer", "ViECap", "--config-file", str(configs / "trainers" / "viecap" / "text.yaml"),
        "--dataset-config-file", str(configs / "datasets" / "caption_files.yaml"), "--root", str(tmp_path / "mine"),
        "--output-dir", str(run), "--seed", "1",
        *(str(word) for pair in settings.items() for word in pair),
    ])  # fmt: skip
    assert json.loads((run / "run.json").read_text("utf-8"))["data"]["sizes"]["train_x"] == len(sentences) == 200
    (photos / "cut.png").write_bytes(b"no picture")
    assert call(run, photos, tmp_path / "out.jsonl", f"{NODE}.NUM_RETURN", "3") == 1
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [bool(row["error"]) for row in rows] == [False, True, False, False]
    for row in rows[:1] + rows[2:]:
        assert len(set(row["captions"])) == 3
        assert {found["name"] for found in row["entities"]} <= {*things, *colours}


# Which weights ----------------------------------------------------------------------------------------------------------------


def test_epochs_and_weights_files(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    last = run / "weights" / "coco_prefix-001.safetensors"
    call(run, photos, tmp_path / "epoch.jsonl", "--load-epoch", "2")
    call(last, photos, tmp_path / "file.jsonl")
    assert captions_of(tmp_path / "epoch.jsonl") == captions_of(tmp_path / "file.jsonl")
    assert "weights/coco_prefix-001.safetensors" in capsys.readouterr().out
    fails(capsys, "no weights of epoch 9; finished epochs with weights: 1 (coco_prefix-000.safetensors), 2", run, photos,
          tmp_path / "x.jsonl", "--load-epoch", "9")  # fmt: skip


def test_a_new_process_needs_nothing_but_the_run_and_the_clip(run: Path, photos: Path, tmp_path: Path) -> None:
    call(run, photos, tmp_path / "here.jsonl")
    code = (
        "import socket, sys\n"
        "def refuse(*args): raise OSError('no network here')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import predict; predict.main(sys.argv[1:])\n"
    )
    words = ["--model-dir", str(run), "--input", str(photos), "--output", str(tmp_path / "there.jsonl")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "empty"), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    assert not (tmp_path / "output").exists()


# What is refused -------------------------------------------------------------------------------------------------------------


def test_keys_and_clips_of_another_run(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    words = (f"{NODE}.NUM_LAYERS", "3", f"{NODE}.SOFT_PROMPT_FIRST", "False")
    fails(capsys, "2 difference(s) to the run", run, photos, tmp_path / "out.jsonl", *words)
    other = write_clip(tmp_path / "other", clip_config(), seed=9)
    fails(capsys, "the run learned with", run, photos, tmp_path / "out.jsonl", "MODEL.BACKBONE.NAME", other)


def test_settings_that_cannot_work(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    words = (f"{NODE}.DECODE", "beam", f"{NODE}.NUM_RETURN", "9")
    fails(capsys, "NUM_RETURN is 9; expected at most 3", run, photos, tmp_path / "out.jsonl", *words)
    fails(capsys, "there is no key TRAINER.VIECAP.TOPK", run, photos, tmp_path / "out.jsonl", f"{NODE}.TOPK", "9")


def test_questions_and_confidences(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    message = "--question: ViECap captions images and takes no question"
    fails(capsys, message, run, photos, tmp_path / "out.jsonl", "--question", "what is it?")
    with pytest.raises(SystemExit) as stop:
        predict.main(["--model-dir", str(run), "--calibrate"])
    assert stop.value.code == 2
    assert "ViECap captions images; it has no confidences" in capsys.readouterr().err


def test_a_classifiers_file_is_no_run(copied_run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    file = copied_run / "adapt" / "model.pth.tar-1"
    fails(capsys, "is a file; LaFTer is loaded from its run folder", file, photos, tmp_path / "out.jsonl")
