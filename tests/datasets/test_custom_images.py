"""CustomImages: forms, splits, pictures without labels, and what it refuses; and runs on a user's pictures."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from own_images import CLASSES, load, rows_of, sizes, write_class_folders, write_csv, write_jsonl, write_picture
from torch.nn import functional as F

import train
from trainers import runs
from trainers.run_facts import hash_data, splits_of

LABELLED = {"train_x": 18, "train_u": 0, "val": 3, "test": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight pictures in each of three class folders."""
    return write_class_folders(tmp_path / "pets")


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """24 pictures and a list of three names."""
    for number in range(24):
        write_picture(tmp_path / "loose" / f"{number:02d}.png", number)
    (tmp_path / "loose" / "classes.txt").write_text("# what may be seen\nred\n\ngreen\nblue\n", "utf-8")
    return tmp_path / "loose"


def paths(items: list[Any]) -> list[str]:
    return [item.impath for item in items]


# --- forms --------------------------------------------------------------------------------------------------------------


def test_class_folders_csv_jsonl_and_json_of_the_same_pictures_are_one_data_set(folder: Path) -> None:
    rows = rows_of(folder)
    write_csv(folder / "all.csv", rows)
    write_jsonl(folder / "all.jsonl", [{"image": row["path"], "label": CLASSES.index(row["label"])} for row in rows])
    names = folder / "names.text"
    names.write_text("\n".join(CLASSES), "utf-8")
    whole = {"train": [[row["path"], CLASSES.index(row["label"]), row["label"]] for row in rows]}
    (folder / "all.json").write_text(json.dumps(whole), "utf-8")

    found = [load(folder), load(folder / "all.csv"), load(folder / "all.json")]
    found.append(load(folder / "all.jsonl", CLASSNAMES=str(names)))
    assert [sizes(data) for data in found] == [LABELLED] * 4
    assert len({hash_data(splits_of(data)) for data in found}) == 1
    assert all(paths(data.train_x) == paths(found[0].train_x) for data in found)  # the order decides what a seed trains
    assert all(data.classnames == list(CLASSES) and data.split_kind == "seeded" for data in found)


def test_parts_as_folders_and_in_a_table_are_kept(tmp_path: Path) -> None:
    for part, each in (("train", 4), ("valid", 1), ("test", 2)):
        write_class_folders(tmp_path / "parts" / part, each)
    data = load(tmp_path / "parts")
    assert sizes(data) == {"train_x": 12, "train_u": 0, "val": 3, "test": 6}
    assert data.split_kind == "given"
    rows = [{**row, "split": row["path"].split("/")[0]} for row in rows_of(tmp_path / "parts")]
    table = load(write_csv(tmp_path / "parts.csv", rows), IMAGE_DIR=str(tmp_path / "parts"))
    assert hash_data(splits_of(table)) == hash_data(splits_of(data))


def test_missing_parts_come_from_train(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", 10)
    write_class_folders(tmp_path / "test", 2)
    data = load(tmp_path)
    assert sizes(data) == {"train_x": 27, "train_u": 0, "val": 3, "test": 6}
    assert data.split_kind == "given + seeded"
    assert all("/test/" in path for path in paths(data.test))
    pooled = load(tmp_path, SPLIT="seeded", TEST_PERCENT=0.5)
    assert sizes(pooled)["test"] == 18
    assert any("/train/" in path for path in paths(pooled.test))


def test_the_form_that_was_found_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / "cat" / ".hidden.png").write_text("x")
    with caplog.at_level(logging.INFO):
        load(folder)
    assert "is a folder of class folders" in caplog.text
    assert "3 classes (cat, dog, emu), split seeded: 18 train, 3 val, 3 test" in caplog.text
    assert "1 other files in class folders are ignored" in caplog.text


def test_other_files_beside_unlabelled_pictures_are_counted(unlabelled: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.mp4", "b.csv", ".hidden"):
        (unlabelled / name).write_bytes(b"")
    with caplog.at_level(logging.INFO):
        assert len(load(unlabelled).train_x) == 24
    assert f"{unlabelled}: 2 other files are ignored" in caplog.text


def test_unlabelled_pictures_have_label_minus_one_in_all_parts(unlabelled: Path) -> None:
    data = load(unlabelled)
    assert sizes(data) == {"train_x": 24, "train_u": 24, "val": 0, "test": 24}
    assert {item.label for item in (*data.train_x, *data.train_u, *data.test)} == {-1}
    assert (data.num_classes, data.classnames) == (3, ["red", "green", "blue"])
    assert data.lab2cname == {0: "red", 1: "green", 2: "blue"}
    with pytest.raises((IndexError, RuntimeError)):
        F.cross_entropy(torch.zeros(1, data.num_classes), torch.tensor([data.train_x[0].label]))


def test_unlabelled_train_pictures_may_be_tested_on_labelled_ones(folder: Path) -> None:
    rows = [{**row, "split": "test" if row["path"].endswith("0.png") else "train"} for row in rows_of(folder)]
    blank = [row if row["split"] == "test" else {**row, "label": ""} for row in rows]
    data = load(write_csv(folder / "some.csv", blank))
    assert sizes(data) == {"train_x": 21, "train_u": 0, "val": 0, "test": 3}
    assert {item.label for item in data.train_x} == {-1}
    assert data.classnames == list(CLASSES)


# --- splits -------------------------------------------------------------------------------------------------------------


def test_split_depends_on_its_seed_and_not_on_the_place_or_random_state(folder: Path, tmp_path: Path) -> None:
    first = load(folder)
    state = random.getstate()
    moved = shutil.copytree(folder, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("*.json"))
    again = load(moved)
    assert random.getstate() == state
    assert hash_data(splits_of(first)) == hash_data(splits_of(again))
    other = load(folder, SPLIT_SEED=1)
    assert sizes(other) == LABELLED
    assert paths(other.test) != paths(first.test)


def test_split_takes_its_shares_from_every_class(folder: Path) -> None:
    data = load(folder, TEST_PERCENT=0.25, VAL_PERCENT=0.5)
    assert Counter(item.label for item in data.test) == {0: 2, 1: 2, 2: 2}
    assert Counter(item.label for item in data.val) == {0: 3, 1: 3, 2: 3}
    assert load(folder, VAL_PERCENT=0.0).val is None


def test_few_shots_and_half_of_the_classes(folder: Path) -> None:
    from dassl.data.datasets import build_dataset
    from own_images import make_cfg

    cfg = make_cfg(folder, NUM_SHOTS=2, SUBSAMPLE_CLASSES="base")
    cfg.SEED = 1
    data = build_dataset(cfg)
    assert sizes(data) == {"train_x": 4, "train_u": 0, "val": 2, "test": 2}
    assert data.classnames == ["cat", "dog"]


def test_votes_of_known_emotions_come_with_their_ring(tmp_path: Path) -> None:
    names = ("joy", "anger", "disgust", "fear", "sadness", "surprise")
    write_class_folders(tmp_path / "faces", 3, names)
    assert load(tmp_path / "faces").emotion_ring == ("anger", "disgust", "fear", "sadness", "surprise", "joy")
    assert load(write_class_folders(tmp_path / "pets")).emotion_ring == ()


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_broken_and_missing_pictures_stop_or_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_of(folder)
    write_csv(folder / "all.csv", [*rows, {"path": "cat/gone.png", "label": "cat"}])
    (folder / "dog" / "00.png").write_bytes(b"")
    whole = (folder / "emu" / "00.png").read_bytes()
    (folder / "emu" / "00.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="3 of 25 pictures cannot be read") as error:
        load(folder / "all.csv")
    assert "cat/gone.png (all.csv, line 26, no such file)" in str(error.value)
    assert "empty file" in str(error.value) and "DATASET.SKIP_BROKEN" in str(error.value)
    with caplog.at_level(logging.WARNING):
        data = load(folder / "all.csv", SKIP_BROKEN=True)
    assert sum(sizes(data).values()) == 22
    assert "Left out: 3 of 25" in caplog.text


def test_only_the_first_five_broken_pictures_are_named(folder: Path) -> None:
    for path in (folder / "cat").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="(?s)8 of 24 pictures.*and 3 more") as error:
        load(folder)
    assert str(error.value).count("cat/") == 5


def test_absent_pictures_of_a_split_file_are_named_with_their_entries(folder: Path) -> None:
    rows = [[f"cat/{number:02d}.png", 0, "cat"] for number in range(6, 14)] + [["dog/00.png", 1, "dog"]]
    (folder / "split.json").write_text(json.dumps({"train": rows, "test": rows[:1]}), "utf-8")
    with pytest.raises(ValueError, match="(?s)6 of 10 pictures cannot be read.*and 1 more") as error:
        load(folder / "split.json")
    assert f"{folder / 'cat' / '08.png'} (split.json, train entry 3, no such file)" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"SPLIT": "coop"}, "DATASET.SPLIT is 'coop'.*auto or seeded"),
        ({"TEST_PERCENT": 1.0}, "DATASET.TEST_PERCENT is 1.0"),
        ({"VAL_PERCENT": -0.1}, "DATASET.VAL_PERCENT is -0.1"),
        ({"TIES": "last"}, "DATASET.TIES is 'last'"),
        ({"DOWNLOAD": True}, "DATASET.DOWNLOAD is True"),
        ({"CLASSNAMES": "nowhere.txt"}, "DATASET.CLASSNAMES names no file.*nowhere.txt"),
        ({"ROOT": ""}, "DATASET.ROOT is empty.*--data"),
        ({"ROOT": "nowhere"}, "DATASET.ROOT.*nowhere; expected a folder"),
        ({"ROOT": __file__}, "expected a folder, or a file that ends in .csv, .jsonl, .json"),
    ],
)
def test_wrong_setting_is_named(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(folder, **settings)


def test_choices_by_label_need_labels(unlabelled: Path) -> None:
    with pytest.raises(ValueError, match="DATASET.NUM_SHOTS is 2.*no labels"):
        load(unlabelled, NUM_SHOTS=2)
    (unlabelled / "t.csv").write_text("path,label,split\n00.png,,train\n01.png,red,test\n02.png,,train\n", "utf-8")
    with pytest.raises(ValueError, match="DATASET.NUM_SHOTS is 2.*no labels"):
        load(unlabelled / "t.csv", NUM_SHOTS=2)
    with pytest.raises(ValueError, match="DATASET.SUBSAMPLE_CLASSES is 'new'.*no labels"):
        load(unlabelled, SUBSAMPLE_CLASSES="new")


def test_what_cannot_be_learned_or_measured_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one class only, cat"):
        load(write_class_folders(tmp_path / "one", 4, ["cat"]))
    rows = [{**row, "split": "test" if row["label"] == "emu" else "train"} for row in rows_of(folder)]
    with pytest.raises(ValueError, match="1 classes have no train picture: emu"):
        load(write_csv(folder / "no_emu.csv", rows))
    half = [{**row, "label": "" if row["label"] == "cat" else row["label"]} for row in rows]
    half = [{**row, "split": "test"} if row["path"] == "cat/00.png" else row for row in half]
    with pytest.raises(ValueError, match="1 of 9 test pictures have no label.*cat/00.png"):
        load(write_csv(folder / "half.csv", half), CLASSNAMES=str(_names(tmp_path)))
    nothing = [{**row, "split": "test"} for row in rows_of(folder)]
    with pytest.raises(ValueError, match="no picture is left for train"):
        load(write_csv(folder / "no_train.csv", nothing))


def _names(tmp_path: Path) -> Path:
    file = tmp_path / "names.txt"
    file.write_text("\n".join(CLASSES), "utf-8")
    return file


def test_split_file_and_list_of_names_must_agree(folder: Path, tmp_path: Path) -> None:
    file = folder / "split.json"
    file.write_text(json.dumps({"train": [["cat/00.png", 0, "cat"], ["dog/00.png", 2, "dog"]]}), "utf-8")
    with pytest.raises(ValueError, match="labels 1 have no picture"):
        load(file)
    with pytest.raises(ValueError, match="2 is 'dog', not 'emu'"):
        load(file, CLASSNAMES=str(_names(tmp_path)))


# --- runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LaFTer", "HybridCascadeLaFTer", "MultiLayerLaFTer"])
def test_run_without_labels_trains_and_skips_the_test(
    name: str, unlabelled: Path, make_trainer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"DATASET.NAME": "CustomImages", "DATASET.ROOT": str(unlabelled), ".REPORT_TEST_MAX": True, ".SELECT": "proxy"}
    trainer = make_trainer(name, settings)
    with caplog.at_level(logging.INFO):
        trainer.train()
    assert f"predict.py --model-dir {trainer.cfg.OUTPUT_DIR} --input {unlabelled}" in caplog.text
    assert "test-selected" not in caplog.text
    assert trainer.test() is None
    assert not (Path(trainer.cfg.OUTPUT_DIR) / "confusion_matrix.png").exists()


def test_zero_shot_without_labels_skips_the_test(unlabelled: Path, make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer("ZeroshotCLIP", {"DATASET.NAME": "CustomImages", "DATASET.ROOT": str(unlabelled)})
    assert trainer.test() is None
    assert trainer.test(split="val") is None


def test_best_val_needs_labels(unlabelled: Path, make_trainer: Callable[..., Any]) -> None:
    settings = {"DATASET.NAME": "CustomImages", "DATASET.ROOT": str(unlabelled), ".MODE": "supervised"}
    settings["TEST.FINAL_MODEL"] = "best_val"
    with pytest.raises(ValueError, match="no val split with labels"):
        make_trainer("LaFTer", settings).train()


def test_data_flag_trains_on_a_folder_and_records_it(
    unlabelled: Path, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "collect_env_info", lambda: "machine")
    words = f"--trainer LaFTer --data {unlabelled} --backbone local-dir:{tiny_world / 'clip'} --seed 1".split()
    pairs = "USE_CUDA False DATALOADER.NUM_WORKERS 0 OPTIM.MAX_EPOCH 1 TRAINER.LAFTER.PROMPT_TOKENS 3".split()
    pairs += ["TRAINER.LAFTER.TEXT.CACHE_DIR", str(tmp_path / "cache"), "TRAINER.LAFTER.TEXT.EPOCHS", "20"]
    train.main([*words, "--output-dir", str(tmp_path / "run"), *pairs])
    record = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert record["status"] == "finished"
    assert record["data"]["classes"] == ["red", "green", "blue"]
    assert (record["data"]["name"], record["data"]["split_kind"]) == ("CustomImages", "none")
    assert not (tmp_path / "run" / "results.json").exists()


def test_data_and_root_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parse_args(["--data", "a", "--root", "b"])
    assert "--data and --root" in capsys.readouterr().err
