"""predict.py with a run that answers questions: files with one question, tables, bad rows, and what a classifier refuses."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prediction_calls import call, edit_record, fails, read_csv, read_jsonl

from clip_ext.file_hashes import hash_file
from trainers.bgobj_llava.detection.boxes_file import BoxesWriter, Origin
from trainers.bgobj_llava.detection.detections import from_boxes
from trainers.bgobj_llava.detection.options import DetectorOptions
from trainers.prediction.questions import find_questions

ROOT = Path(__file__).resolve().parents[1]
NAME = "BgObjLLaVA"
QUESTION = "what colour is the circle?"
NO_OBJECTS = ("TRAINER.BGOBJLLAVA.DET.MISSING", "no_detection")
# Trainers that answer questions: settings for pictures about which nothing is known, and what their rows say beside the answer.
WORDS = {NAME: NO_OBJECTS, "GatedBLIP2": ()}
COLUMNS = {
    NAME: ("answer", "hit", "exact", "drift", "n_bg", "n_obj"),
    "GatedBLIP2": ("answer", "mean_log_prob", "style", "style_probability", "truncated"),
}


@dataclass(frozen=True)
class Speaker:
    """A trained run that answers questions; it must not be changed."""

    name: str
    run: Path

    @property
    def words(self) -> tuple[str, ...]:
        return WORDS[self.name]


@pytest.fixture(params=WORDS)
def speaker(request: pytest.FixtureRequest, trained_run) -> Speaker:
    return Speaker(request.param, trained_run(request.param)[0])


@pytest.fixture
def answering_run(trained_run) -> Path:
    return trained_run(NAME)[0]


def test_every_trainer_that_answers_questions_is_tried() -> None:
    from dassl.engine import TRAINER_REGISTRY

    names = TRAINER_REGISTRY.registered_names()
    assert {name for name in names if getattr(TRAINER_REGISTRY.get(name), "answers_questions", False)} == set(WORDS)


def write_table(path: Path, rows: list[Any]) -> Path:
    """Write JSON lines; a string is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def picture(world: Path, number: int = 0) -> str:
    return str(world / "colours" / "test" / f"{number}.png")


# --- what a row says ----------------------------------------------------------------------------------------------------


def ask_test_questions(trained_run, name: str, folder: Path) -> Path:
    """Write the questions of the test as a table; return it."""
    items = trained_run(name)[1].dm.dataset.test
    names = ("question", "boxes", "question_id")
    return write_table(
        folder / "asked.jsonl", [{"image": item.impath, **{each: item.extras[each] for each in names}} for item in items]
    )


def test_answers_are_those_of_the_test(speaker: Speaker, trained_run, tmp_path: Path, capsys) -> None:
    table = ask_test_questions(trained_run, speaker.name, tmp_path)
    capsys.readouterr()
    assert call(speaker.run, table, tmp_path / "out.jsonl") == 0
    rows, expected = read_jsonl(tmp_path / "out.jsonl"), read_jsonl(speaker.run / "predictions.jsonl")
    shared = [name for name in COLUMNS[speaker.name] if name in expected[0] and name not in ("hit", "exact", "drift", "style")]
    assert "answer" in shared
    for name in (*shared, "impath", "question_id"):
        assert [row[name] for row in rows] == [row[name] for row in expected], name
    assert {row["error"] for row in rows} == {""}
    assert list(rows[0]) == ["impath", "question_id", "question", *list(rows[0])[3:-1], "error"]
    assert set(COLUMNS[speaker.name]) <= set(rows[0])
    summary = capsys.readouterr().out
    assert summary.startswith(f"{tmp_path / 'out.jsonl'}: 6 questions, ")
    assert f"0 failed; {speaker.name}, adapter/last" in summary


def test_a_new_process_needs_no_training_data(trained_run, tmp_path: Path) -> None:
    run = trained_run("GatedBLIP2")[0]
    table, output = ask_test_questions(trained_run, "GatedBLIP2", tmp_path), tmp_path / "out.jsonl"
    words = ["--model-dir", str(run), "--input", str(table), "--output", str(output), "--offline"]
    settings = ["DATASET.ROOT", str(tmp_path / "nowhere"), "TRAINER.GATEDBLIP2.CACHE.DIR", str(tmp_path / "cache")]
    subprocess.run([sys.executable, str(ROOT / "predict.py"), *words, *settings], check=True, capture_output=True, cwd=tmp_path)
    expected = read_jsonl(run / "predictions.jsonl")
    for name in ("answer", "mean_log_prob", "truncated"):
        assert [row[name] for row in read_jsonl(output)] == [row[name] for row in expected]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asked.jsonl", "out.jsonl", "out.jsonl.json"]


def test_one_question_for_a_folder(speaker: Speaker, photos: Path, tmp_path: Path, capsys) -> None:
    (photos / "cut.png").write_bytes((photos / "b.PNG").read_bytes()[:90])
    code = call(speaker.run, photos, tmp_path / "out.jsonl", "--question", QUESTION, *speaker.words)
    assert code == 1
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [Path(row["impath"]).name for row in rows] == ["b.PNG", "cut.png", "ä, ü.bmp", "c.webp"]
    assert {row["question"] for row in rows} == {QUESTION}
    failed, = (row for row in rows if row["error"])
    assert set(failed) == {"impath", "question", "error"}
    assert "cut.png" in failed["impath"]
    assert all(isinstance(row["answer"], str) for row in rows if not row["error"])
    assert list(rows[0])[:2] == ["impath", "question"]
    assert list(rows[0])[-1] == "error"
    assert "4 questions, " in (summary := capsys.readouterr().out)
    assert "1 failed, 1 other files passed over" in summary


def test_a_known_background_is_used_again(answering_run: Path, tiny_world: Path, tmp_path: Path, capsys) -> None:
    boxes = [[4, 4, 15, 20]]
    texts = (QUESTION, "how many objects are there?")
    asked = [{"image": picture(tiny_world), "question": text, "boxes": boxes} for text in texts]
    table = write_table(tmp_path / "asked.jsonl", asked)
    assert call(answering_run, table, tmp_path / "out.jsonl") == 0
    first, second = read_jsonl(tmp_path / "out.jsonl")
    assert (first["hit"], second["hit"]) == ("", "kv")
    assert second["exact"] is True
    assert second["n_bg"] > 0
    assert "2 questions, 1 with a known background" in capsys.readouterr().out
    words = ("TRAINER.BGOBJLLAVA.CACHE.MODE", "none")
    assert call(answering_run, table, tmp_path / "cold.jsonl", *words) == 0
    cold = read_jsonl(tmp_path / "cold.jsonl")
    assert [row["answer"] for row in cold] == [first["answer"], second["answer"]]
    assert {row["hit"] for row in cold} == {""}


def test_csv_in_and_out(speaker: Speaker, tiny_world: Path, tmp_path: Path) -> None:
    with open(tmp_path / "asked.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["image", "question", "boxes"])
        writer.writeheader()
        writer.writerow({"image": "none.png", "question": QUESTION, "boxes": ""})
        writer.writerow({"image": picture(tiny_world), "question": "", "boxes": "[[4, 4, 15, 20]]"})
    assert call(speaker.run, tmp_path / "asked.csv", tmp_path / "out.csv", "--question", "where is it?") == 1
    missing, row = read_csv(tmp_path / "out.csv")
    assert missing["error"].startswith("asked.csv, line 2: no such image: ")
    assert (row["question"], row["error"]) == ("where is it?", "")
    assert {"exact": "true", "truncated": "true"}.items() & row.items()


def test_facts_stand_beside_the_rows(answering_run: Path, photos: Path, tmp_path: Path) -> None:
    words = ("TRAINER.BGOBJLLAVA.POSITION", "raster")
    call(answering_run, photos, tmp_path / "out.jsonl", "--question", QUESTION, *NO_OBJECTS, *words)
    facts = json.loads((tmp_path / "out.jsonl.json").read_text("utf-8"))
    assert (facts["trainer"], facts["checkpoint"]) == (NAME, "adapter/last")
    assert (facts["questions"], facts["failed"]) == (3, 0)
    assert any("POSITION: stored 'sequential', now 'raster'" in note for note in facts["notes"])


def test_an_epoch_of_the_run(speaker: Speaker, photos: Path, tmp_path: Path, capsys) -> None:
    words = ("--question", QUESTION)
    assert call(speaker.run, photos, tmp_path / "out.jsonl", *words, "--load-epoch", "1", *speaker.words) == 0
    stored = "epoch-1" if (speaker.run / "adapter" / "epoch-1").is_dir() else "last"
    assert f"adapter/{stored}" in capsys.readouterr().out
    words += ("--load-epoch", "7")
    fails(capsys, "has no adapter of epoch 7; present: ", speaker.run, photos, tmp_path / "x.jsonl", *words)


@pytest.mark.parametrize("name", ["adapter/last", "adapter/last/adapter.safetensors", "adapter/last/adapter.json"])
def test_an_adapter_of_the_run_may_be_named(name: str, speaker: Speaker, photos: Path, tmp_path: Path, capsys) -> None:
    words = ("--question", QUESTION, *speaker.words)
    assert call(speaker.run / name, photos / "b.PNG", tmp_path / "out.jsonl", *words) == 0
    assert "adapter/last" in capsys.readouterr().out
    alone = shutil.copytree(speaker.run / "adapter" / "last", tmp_path / "x" / "y" / "alone")
    fails(capsys, f"{tmp_path / 'x'} is no run folder", alone, photos, tmp_path / "x.jsonl", *words)


# --- bad rows -----------------------------------------------------------------------------------------------------------


def test_bad_rows_do_not_stop_the_others(answering_run: Path, tiny_world: Path, tmp_path: Path, capsys) -> None:
    good = {"image": picture(tiny_world), "question": QUESTION, "boxes": [[4, 4, 15, 20]]}
    rows = [
        "{not json", good, {"question": QUESTION}, {"image": good["image"]}, {"image": "gone.png", "question": QUESTION}, 7,
        {**good, "question": "what is <image> and </s>?"}, {**good, "boxes": [[9, 9, 3, 3]]}, {**good, "boxes": ""}, good,
    ]  # fmt: skip
    assert call(answering_run, write_table(tmp_path / "asked.jsonl", rows), tmp_path / "out.jsonl") == 1
    errors = [row["error"] for row in read_jsonl(tmp_path / "out.jsonl")]
    expected = [
        "line 1: no JSON", "", "line 3: no image or impath", "line 4: no question", "line 5: no such image",
        "line 6: int; expected", "reserve", "box", "DET.MISSING", "",
    ]  # fmt: skip
    assert len(errors) == len(rows)
    for error, part in zip(errors, expected, strict=True):
        assert part in error
        assert bool(part) == bool(error)
    assert "10 questions, 1 with a known background, 8 failed" in capsys.readouterr().out


def test_nothing_but_bad_rows(speaker: Speaker, tmp_path: Path) -> None:
    table = write_table(tmp_path / "asked.jsonl", [{"question": "why?"}])
    assert call(speaker.run, table, tmp_path / "out.csv") == 1
    (row,) = read_csv(tmp_path / "out.csv")
    assert list(row) == ["impath", "question", "error"]


# --- objects of new images ----------------------------------------------------------------------------------------------


def test_boxes_of_a_side_file(answering_run: Path, tiny_world: Path, tmp_path: Path) -> None:
    known, unknown = Path(picture(tiny_world)), Path(picture(tiny_world, 1))
    with BoxesWriter(tmp_path / "boxes.jsonl", Origin.of(DetectorOptions(), "")) as writer:
        writer.write(hash_file(known), known.name, (32, 32), from_boxes([[4, 4, 9, 9]]))
    words = ("--question", QUESTION, "TRAINER.BGOBJLLAVA.DET.FILE", str(tmp_path / "boxes.jsonl"))
    assert call(answering_run, [known, unknown], tmp_path / "out.jsonl", *words) == 1
    found, missing = read_jsonl(tmp_path / "out.jsonl")
    assert 0 < found["n_obj"] < found["n_obj"] + found["n_bg"]
    assert "DET.FILE" in missing["error"]


def test_a_detector_looks_at_new_images(answering_run: Path, tiny_world: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(2):
        shutil.copy(picture(tiny_world, number), tmp_path / "photos")
    (tmp_path / "photos" / "text.png").write_text("no picture", encoding="utf-8")
    node = "TRAINER.BGOBJLLAVA.DET"
    words = (f"{node}.BACKEND", "bgsub", f"{node}.REFERENCE", picture(tiny_world), f"{node}.BGSUB_TAU", "1.0")
    words += ("TRAINER.BGOBJLLAVA.MASK.NO_DETECTION", "bg_only")
    assert call(answering_run, tmp_path / "photos", tmp_path / "out.jsonl", "--question", QUESTION, *words) == 1
    same, other, broken = read_jsonl(tmp_path / "out.jsonl")
    assert (same["n_obj"], same["error"]) == (0, "")  # the reference itself
    assert other["n_obj"] > 0
    assert "text.png" in broken["error"]


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_images_without_a_question(speaker: Speaker, photos: Path, tmp_path: Path, capsys) -> None:
    fails(capsys, "--question is missing", speaker.run, photos, tmp_path / "out.jsonl")
    fails(capsys, "--question is missing", speaker.run, photos, tmp_path / "out.jsonl", "--question", " ")


def test_a_classifier_takes_no_question(trained_run, photos: Path, tmp_path: Path, capsys) -> None:
    folder, _ = trained_run("LaFTer")
    message = "--question: LaFTer classifies images and takes no question"
    fails(capsys, message, folder, photos, tmp_path / "out.csv", "--question", QUESTION)


def test_answers_are_not_calibrated(speaker: Speaker, capsys) -> None:
    import predict

    with pytest.raises(SystemExit) as stop:
        predict.main(["--model-dir", str(speaker.run), "--calibrate"])
    assert stop.value.code == 2
    assert f"{speaker.name} answers questions; it has no confidences" in capsys.readouterr().err


def test_tables_that_ask_nothing(answering_run: Path, tmp_path: Path, capsys) -> None:
    empty = write_table(tmp_path / "empty.jsonl", [])
    fails(capsys, "no question in it", answering_run, empty, tmp_path / "out.jsonl")
    (tmp_path / "table.csv").write_text("file,question\na.png,why\n", encoding="utf-8")
    message = "has columns file, question; expected image or impath"
    fails(capsys, message, answering_run, tmp_path / "table.csv", tmp_path / "out.csv")
    fails(capsys, "no such file: ", answering_run, tmp_path / "none.jsonl", tmp_path / "out.jsonl")


def test_an_adapter_of_another_base(trained_run, photos: Path, tmp_path: Path, capsys) -> None:
    from llava_folders import write_llava

    other = write_llava(tmp_path / "other", vision=(3, 32), llm=(2, 48), seed=5)
    words = ("--question", QUESTION, "MODEL.BACKBONE.NAME", str(other))
    fails(capsys, "base model: the adapter belongs to", trained_run(NAME)[0], photos, tmp_path / "out.jsonl", *words)


def test_a_run_that_trained_nothing_answers_with_its_base(answering_run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    run = Path(shutil.copytree(answering_run, tmp_path / "run"))
    shutil.rmtree(run / "adapter")
    words = ("--question", QUESTION, *NO_OBJECTS)
    fails(capsys, "has no adapter; present: none", run, photos, tmp_path / "out.jsonl", *words)
    edit_record(run, mode="eval")
    assert call(run, photos, tmp_path / "out.jsonl", *words) == 0
    assert "nothing trained" in capsys.readouterr().out


# --- reading what is asked ----------------------------------------------------------------------------------------------


def test_inputs_are_asked_in_order(tiny_world: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(picture(tiny_world), images / "a.png")
    table = write_table(images / "asked.jsonl", [{"impath": "a.png", "text": "how many?", "question_id": 7}])
    found = find_questions([str(images), str(table)], "why?")
    assert [(each.impath, each.question) for each in found.asked] == [
        (f"{images.as_posix()}/a.png", "why?"),
        (f"{images.as_posix()}/a.png", "how many?"),
    ]
    assert found.asked[1].extras == {"question_id": "7"}
    assert found.asked[0].item().extras["boxes"] == ""  # nobody said anything about objects
    assert [Path(path).name for path in found.others] == ["asked.jsonl"]
