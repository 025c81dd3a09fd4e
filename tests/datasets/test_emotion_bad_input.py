"""Files and keys that are wrong: one clear error or notice each, never a silent guess."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from emotion_config import build
from fake_trees import (
    WRITERS,
    write_abstract,
    write_artphoto,
    write_emoset,
    write_emotion6,
    write_flickr_ldl,
    write_image,
    write_mat_split,
)


def edit_line(path: Path, number: int, text: str | None) -> None:
    """Replace a line (from 0), or remove it."""
    lines = path.read_text("utf-8").splitlines()
    lines[number : number + 1] = [] if text is None else [text]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def size_of(dataset: Any) -> int:
    return len(dataset.train_x) + len(dataset.val) + len(dataset.test)


@pytest.mark.parametrize("name", [*WRITERS, "Emoset"])
def test_missing_data_names_key_absolute_path_and_what_belongs_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        build(name, tmp_path)
    folder = {"Emotion6": "emotion6", "EmoSet": "EmoSet-118K", "Emoset": "EmoSet-118K"}.get(name, name)
    assert "DATASET.ROOT" in str(error.value) and str(tmp_path / folder) in str(error.value)
    assert ".jpg" in str(error.value) and "docs/DATASETS.md" in str(error.value)


def test_missing_root_is_said_with_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="DATASET.ROOT is 'nowhere'") as error:
        build("FI", Path("nowhere"))
    assert str(tmp_path / "nowhere" / "FI") in str(error.value)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("Emotion6", "ground_truth.txt"),
        ("Emotion6", "images"),
        ("EmoSet", "image"),
        ("EmoSet", "val.json"),
        ("FI", "emotion_dataset"),
        ("Flickr_LDL", "ground_truth.txt"),
        ("Flickr_LDL", "images"),
        ("Abstract", "ABSTRACT_groundTruth.csv"),
    ],
)
def test_missing_file_is_named(name: str, entry: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    (folder,) = tmp_path.iterdir()
    os.rename(folder / entry, tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=f"has no .*{entry}") as error:
        build(name, tmp_path)
    assert str(folder) in str(error.value)


def test_vote_columns_that_are_mixed_up_are_one_error(tmp_path: Path) -> None:
    table = write_flickr_ldl(tmp_path) / "Flickr_LDL" / "ground_truth.txt"
    edit_line(table, 0, "images-name Amusement Awe Awe Excitement Anger Sad Fear Sadness")
    with pytest.raises(ValueError) as error:
        build("Flickr_LDL", tmp_path)
    for part in ("no column for contentment, disgust", "several columns for awe, sadness", str(table)):
        assert part in str(error.value)


def test_votes_without_a_header_are_refused_and_not_guessed(tmp_path: Path) -> None:
    edit_line(write_flickr_ldl(tmp_path) / "Flickr_LDL" / "ground_truth.txt", 0, None)
    with pytest.raises(ValueError, match="no header that names its columns.*never guessed by position"):
        build("Flickr_LDL", tmp_path)


def test_rows_without_mass_are_excluded_counted_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = write_flickr_ldl(tmp_path) / "Flickr_LDL" / "ground_truth.txt"
    edit_line(table, 1, "1.jpg 1 nan 0 0 0 0 0 1")
    edit_line(table, 2, "2.jpg 0 0 0 0 0 0 0 0")
    edit_line(table, 3, "3.jpg 9 -1 3 0 0 0 0 0")
    edit_line(table, 4, "4.jpg 0 0 0 0 0 0 0 0")
    dataset = build("Flickr_LDL", tmp_path)
    assert size_of(dataset) == 76
    assert "1 images excluded (a vote is no finite number): images/1.jpg" in caplog.text
    assert "2 images excluded (no votes for any class): images/2.jpg, images/4.jpg" in caplog.text
    assert "1 images excluded (a vote is negative): images/3.jpg" in caplog.text
    assert len(dataset.excluded) == 4


def test_all_neutral_images_of_emotion6_are_excluded_unless_neutral_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = write_emotion6(tmp_path) / "emotion6" / "ground_truth.txt"
    edit_line(table, 1, "\t".join(["anger/1.jpg", "1", "1", *"0000001"]))
    assert size_of(build("Emotion6", tmp_path)) == 59
    assert "1 images excluded (no votes for any class): images/anger/1.jpg" in caplog.text
    assert size_of(build("Emotion6", tmp_path, WITH_NEUTRAL=True)) == 60


def test_votes_that_do_not_sum_to_the_voters_are_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = write_flickr_ldl(tmp_path) / "Flickr_LDL" / "ground_truth.txt"
    edit_line(table, 1, "1.jpg 0 9 0 0 0 0 0 0")
    edit_line(table, 2, "2.jpg 0 0 10.5 0.5 0 0 0 0")
    assert size_of(build("Flickr_LDL", tmp_path)) == 80
    assert "2 of 80 rows do not hold 11 whole votes: 1.jpg: 0, 9, 0" in caplog.text


def test_wrong_rows_are_reported_together(tmp_path: Path) -> None:
    table = write_flickr_ldl(tmp_path) / "Flickr_LDL" / "ground_truth.txt"
    edit_line(table, 1, "1.jpg 1 2 3")
    edit_line(table, 2, "2.jpg 1 2 many 0 0 0 0 0")
    edit_line(table, 3, "4.jpg 1 2 3 0 0 0 0 5")
    with pytest.raises(ValueError, match="3 wrong rows: line 2 .*line 3 .*line 5: a second row of '4.jpg'"):
        build("Flickr_LDL", tmp_path)


def test_unknown_emotion_folder_is_an_error(tmp_path: Path) -> None:
    write_emotion6(tmp_path)
    write_image(tmp_path / "emotion6" / "images" / "boredom" / "1.jpg", 1000)
    with pytest.raises(ValueError, match="folders of no class: boredom; expected anger, disgust"):
        build("Emotion6", tmp_path)


def test_file_name_without_emotion_is_an_error(tmp_path: Path) -> None:
    write_artphoto(tmp_path)
    write_image(tmp_path / "ArtPhoto" / "happy_0001.jpg", 1000)
    with pytest.raises(ValueError, match="1 files whose name starts with no emotion: happy_0001.jpg; expected <emotion>_"):
        build("ArtPhoto", tmp_path)


def test_row_without_image_is_an_error_that_can_be_waived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (write_flickr_ldl(tmp_path) / "Flickr_LDL" / "images" / "7.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 absent image.s.: 7.jpg. DATASET.SKIP_BROKEN True drops them"):
        build("Flickr_LDL", tmp_path)
    assert size_of(build("Flickr_LDL", tmp_path, SKIP_BROKEN=True)) == 79
    assert "Dropped: " in caplog.text and "7.jpg" in caplog.text


def test_unreadable_image_is_dropped_where_that_is_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (write_artphoto(tmp_path) / "ArtPhoto" / "awe_0001.jpg").write_bytes(b"no picture")
    dataset = build("ArtPhoto", tmp_path, SKIP_BROKEN=True)
    assert size_of(dataset) == 79 and dataset.excluded == {"awe_0001.jpg": "unreadable"}
    assert "1 images excluded (unreadable): awe_0001.jpg" in caplog.text


def test_image_without_row_is_left_out_where_only_votes_label_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_line(write_abstract(tmp_path) / "Abstract" / "ABSTRACT_groundTruth.csv", 1, None)
    assert size_of(build("Abstract", tmp_path, TIES="first")) == 79
    assert "1 of 80 images have no row" in caplog.text
    assert "1 images excluded (no votes): abstract_0000.jpg" in caplog.text


def test_image_without_row_keeps_its_folders_label_in_emotion6(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_line(write_emotion6(tmp_path) / "emotion6" / "ground_truth.txt", 1, None)
    dataset = build("Emotion6", tmp_path)
    items = {item.impath: item for part in (dataset.train_x, dataset.val, dataset.test) for item in part}
    item = items[str(dataset.folder / "images" / "anger" / "1.jpg")]
    assert item.classname == "anger"
    assert item.extras == {"distribution": (0.0,) * 6, "has_distribution": 0}
    assert "1 of 60 images have no row" in caplog.text


def test_class_without_training_image_is_an_error(tmp_path: Path) -> None:
    write_artphoto(tmp_path)
    for path in (tmp_path / "ArtPhoto").glob("sad_*"):
        path.unlink()
    with pytest.raises(ValueError, match="no training image of 1 classes: sadness"):
        build("ArtPhoto", tmp_path)


def test_image_in_two_parts_is_an_error(tmp_path: Path) -> None:
    folder = write_emotion6(tmp_path, official=True) / "emotion6" / "training_testing_split"
    with (folder / "testing.txt").open("a", encoding="utf-8") as file:
        file.write("anger/1.jpg\n")
    with pytest.raises(ValueError, match="1 image.s. in two parts of .*: images/anger/1.jpg in train and test"):
        build("Emotion6", tmp_path)


def test_index_that_names_absent_images_or_leaves_some_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = write_emotion6(tmp_path, official=True) / "emotion6" / "training_testing_split" / "training.txt"
    edit_line(index, 0, None)
    dataset = build("Emotion6", tmp_path)
    assert size_of(dataset) == 59 and "1 images are in no part of" in caplog.text
    edit_line(index, 0, "anger/999.jpg")
    with pytest.raises(FileNotFoundError, match="1 absent image.s.: images/anger/999.jpg"):
        build("Emotion6", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON file"),
        ("{}", "holds a dict; expected a list of rows"),
        ('[["amusement", "amusement_00004"], 3]', "2 rows without one element that starts with 'image/': row 1: .*row 2: 3"),
    ],
)
def test_wrong_emoset_part_is_an_error(content: str, message: str, tmp_path: Path) -> None:
    (write_emoset(tmp_path) / "EmoSet-118K" / "train.json").write_text(content, "utf-8")
    with pytest.raises(ValueError, match=f"train.json.* {message}"):
        build("EmoSet", tmp_path)


def test_wrong_entries_of_emotion6_json_are_reported_together(tmp_path: Path) -> None:
    file = write_emotion6(tmp_path, form="json") / "emotion6" / "Emotion6.json"
    content = json.loads(file.read_text("utf-8"))
    content["images/anger/1.jpg"]["true_emotion"] = "boredom"
    content["images/anger/2.jpg"]["emotions"].pop("joy")
    content["images/anger/3.jpg"] = 5
    file.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError) as error:
        build("Emotion6", tmp_path)
    for part in ("3 wrong entries", "true_emotion is 'boredom'", "2.jpg: no number for joy", "3.jpg: 5; expected"):
        assert part in str(error.value)


def test_split_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    folder = write_flickr_ldl(tmp_path) / "Flickr_LDL"
    (folder / "config.mat").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="config.mat is no split file"):
        build("Flickr_LDL", tmp_path)
    assert build("Flickr_LDL", tmp_path, SPLIT="seeded").split_kind == "seeded"
    (folder / "config.mat").unlink()
    write_mat_split(folder, {"train": [[1, 2]], "test": [[2, 3]]}, hdf5=False)
    with pytest.raises(ValueError, match="1 images are in train_ind and in test_ind"):
        build("Flickr_LDL", tmp_path)


def test_split_file_without_h5py_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")
    folder = write_flickr_ldl(tmp_path) / "Flickr_LDL"
    write_mat_split(folder, {"train": [range(1, 65)], "test": [range(65, 81)]}, hdf5=True)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py.*DATASET.SPLIT seeded"):
        build("Flickr_LDL", tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("FI", {"SPLIT": "coop"}, "DATASET.SPLIT is 'coop'; expected one of auto, official, seeded"),
        ("FI", {"SPLIT": "official"}, "authors published no split"),
        ("FI", {"LABEL_SOURCE": "votes"}, "LABEL_SOURCE is 'votes', but it has none"),
        ("FI", {"FOLD": 0}, "DATASET.FOLD is 0, but its protocol has no folds"),
        ("ArtPhoto", {"FOLD": 5}, "DATASET.FOLD is 5; expected -1 .* or 0 to 4"),
        ("ArtPhoto", {"WITH_NEUTRAL": True}, "nobody voted on neutral"),
        ("Abstract", {"TIES": "both"}, "DATASET.TIES is 'both'; expected one of auto, first, drop"),
        ("Emotion6", {"LABEL_SOURCE": "file"}, "LABEL_SOURCE is 'file'; expected one of folder, votes"),
        ("Emotion6", {"SUBSAMPLE_CLASSES": "base"}, "SUBSAMPLE_CLASSES is 'base'; expected one of all"),
        ("Emotion6", {"TEST_PERCENT": 1.0}, "TEST_PERCENT is 1.0; expected a share in"),
    ],
)
def test_key_that_cannot_be_followed_is_an_error(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, WRITERS[name](tmp_path), **changes)


def test_keys_are_checked_together_and_before_the_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        build("FI", tmp_path, SPLIT="coop", FOLD=9, SPLIT_SEED=-1)
    assert str(error.value).count("DATASET.") == 3
