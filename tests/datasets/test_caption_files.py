"""Own captions: every file form is read alike, parts are found, and what is wrong is reported together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from caption_trees import captions_of, entities_of, ids, load, report_of, write_images, write_json, write_lines, write_text
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DatasetBase
from torchvision.transforms import ToTensor
from vqa_trees import make_cfg

from trainers.base import ExtrasWrapper

LINES = ("A dog runs.", "Two cats sleep.", "A bird, a red one, sings.")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Text to train on, and two pictures with captions for val and test each."""
    write_text(tmp_path / "train.txt", *LINES)
    write_images(tmp_path / "images", ["a.png", "b.png", "c.png", "d.png"])
    write_json(tmp_path / "val.json", {"a.png": ["A one.", "A two."], "b.png": ["B one."]})
    write_text(tmp_path / "test.csv", "image,caption", "c.png,C one.", 'd.png,"D, one."', "c.png,C two.")
    return tmp_path


def refused(root: Path, **settings: Any) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(root, **settings)
    return str(error.value)


# --- items --------------------------------------------------------------------------------------------------------------


def test_text_trains_and_pictures_with_their_captions_are_val_and_test(root: Path) -> None:
    data = load(root)
    assert captions_of(data.train_x) == [[line] for line in LINES] and data.split_kind == "given"
    assert captions_of(data.val) == [["A one.", "A two."], ["B one."]] and ids(data.val) == ["a.png", "b.png"]
    assert captions_of(data.test) == [["C one.", "C two."], ["D, one."]] and ids(data.test) == ["c.png", "d.png"]
    assert [Path(item.impath) for item in data.test] == [root / "images" / "c.png", root / "images" / "d.png"]


def test_every_item_is_of_the_one_class_and_has_the_shared_extras(root: Path) -> None:
    data = load(root)
    items = [*data.train_x, *data.val, *data.test]
    assert {(item.label, item.classname) for item in items} == {(0, "caption")}
    assert (data.num_classes, data.classnames, data.lab2cname) == (1, ["caption"], {0: "caption"})
    assert all(set(item.extras) == {"captions", "entities", "image_id", "split_name", "style"} for item in items)
    assert [item.extras["split_name"] for item in items] == ["train"] * 3 + ["val"] * 2 + ["test"] * 2


def test_text_only_items_name_their_file_and_each_has_an_id(root: Path) -> None:
    train = load(root).train_x
    assert {Path(item.impath) for item in train} == {root / "train.txt"}
    assert ids(train) == ["train-1", "train-2", "train-3"]


def test_text_alone_is_enough_and_says_so(tmp_path: Path) -> None:
    write_text(tmp_path / "captions.txt", *LINES)
    data = load(tmp_path)
    assert len(data.train_x) == 3 and data.val is None and data.test == [] and data.split_kind == "text only"


def test_items_reach_a_loader_with_their_extras(root: Path) -> None:
    cfg = make_cfg("CaptionFiles", root)
    cfg.DATALOADER.NUM_WORKERS = 0
    data = load(root)
    loader = build_data_loader(
        cfg, data_source=data.test, batch_size=2, tfm=ToTensor(), is_train=False, dataset_wrapper=ExtrasWrapper
    )
    (batch,) = loader
    assert batch["captions"] == [json.dumps(["C one.", "C two."]), json.dumps(["D, one."])]
    assert batch["image_id"] == ["c.png", "d.png"] and batch["img"].shape == (2, 3, 6, 8)


def test_train_pictures_are_named_but_need_not_exist(root: Path) -> None:
    (root / "train.txt").unlink()
    write_lines(root / "train.jsonl", [{"image": "a.png", "caption": "Here."}, {"image": "gone.png", "caption": "Gone."}])
    data = load(root)
    assert [Path(item.impath).name for item in data.train_x] == ["a.png", "train.jsonl"]
    assert "train: 2 captions, 2 pictures, 1 of them not here, which text-only training does not need" in data.caption_report


def test_a_broken_train_picture_is_never_opened(root: Path) -> None:
    (root / "images" / "x.png").write_bytes(b"no picture")
    (root / "train.txt").unlink()
    write_lines(root / "train.jsonl", [{"image": "x.png", "caption": "Broken."}])
    assert len(load(root).train_x) == 1


# --- forms --------------------------------------------------------------------------------------------------------------

CELLS = [
    {"image": "a.png", "caption": "One.", "entities": ["dog", "park"], "style": "humor"},
    {"image": "a.png", "caption": "Two, more.", "entities": [], "style": "humor"},
    {"image": "b.png", "caption": "Three.", "entities": ["cat"], "style": "humor"},
]


def _table(mark: str) -> list[str]:
    rows = [[row["image"], f'"{row["caption"]}"', f'"{",".join(row["entities"])}"', row["style"]] for row in CELLS]
    return [mark.join(row) for row in [["image", "caption", "entities", "style"], *rows]]


@pytest.mark.parametrize("form", ["csv", "tsv", "semicolons", "jsonl", "json", "grouped"])
def test_tables_and_objects_are_read_alike(root: Path, form: str) -> None:
    (root / "test.csv").unlink()
    if form in ("csv", "tsv", "semicolons"):
        marks = {"csv": ("csv", ","), "tsv": ("tsv", "\t"), "semicolons": ("csv", ";")}
        write_text(root / f"test.{marks[form][0]}", *_table(marks[form][1]))
    elif form == "jsonl":
        write_lines(root / "test.jsonl", CELLS)
    elif form == "json":
        write_json(root / "test.json", CELLS)
    else:
        both = {"image": "a.png", "captions": ["One.", "Two, more."], "entities": [["dog", "park"], []], "style": "humor"}
        write_lines(root / "test.jsonl", [both, {**CELLS[2], "captions": ["Three."], "caption": "Three."}])
    test = load(root).test
    assert captions_of(test) == [["One.", "Two, more."], ["Three."]]
    assert [item.extras["style"] for item in test] == ["humor", "humor"]
    assert entities_of(test) == [[["dog", "park"], []], [["cat"]]]


def test_json_lists_of_captions_train(root: Path) -> None:
    (root / "train.txt").unlink()
    write_json(root / "train.json", list(LINES))
    assert captions_of(load(root).train_x) == [[line] for line in LINES]


def test_coco_annotations_are_read(root: Path) -> None:
    (root / "test.csv").unlink()
    images = [{"id": 7, "file_name": "c.png"}, {"id": 8, "file_name": "d.png"}]
    notes = [{"image_id": 8, "caption": "D."}, {"image_id": 7, "caption": "C."}, {"image_id": 8, "caption": "D two."}]
    write_json(root / "test.json", {"images": images, "annotations": notes})
    assert captions_of(load(root).test) == [["C."], ["D.", "D two."]]
    write_json(root / "test.json", {"images": images, "annotations": [*notes, {"image_id": 9, "caption": "E."}]})
    assert "captions of a picture that is not listed: 1 (test.json, image_id 9)" in refused(root)


def test_a_folder_of_pictures_is_there_to_be_captioned(root: Path) -> None:
    (root / "test.csv").unlink()
    write_images(root / "new", ["y.png", "x.png"])
    data = load(root, TEST="new")
    assert ids(data.test) == ["x.png", "y.png"] and captions_of(data.test) == [[], []]


def test_pictures_alone_are_all_of_test(tmp_path: Path) -> None:
    write_images(tmp_path, ["b.png", "a.png"])
    data = load(tmp_path)
    assert ids(data.test) == ["a.png", "b.png"] and data.train_x == [] and data.split_kind == "tests only"


def test_one_file_with_a_split_column_holds_all_parts(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    rows = ["image,caption,split", "a.png,Val.,valid", ",Text.,", "b.png,Test.,test", ",More.,train"]
    write_text(tmp_path / "captions.csv", *rows)
    data = load(tmp_path)
    assert captions_of(data.train_x) == [["Text."], ["More."]]
    assert captions_of(data.val) == [["Val."]] and captions_of(data.test) == [["Test."]]
    (tmp_path / "captions.csv").rename(tmp_path / "mine.csv")
    assert len(load(tmp_path, TRAIN="mine.csv").test) == 1


def test_rows_of_a_part_with_another_file_are_not_read_and_counted(root: Path) -> None:
    (root / "train.txt").unlink()
    write_text(root / "train.csv", "caption,split", "Text.,train", "Hidden.,test")
    data = load(root)
    assert captions_of(data.train_x) == [["Text."]] and len(data.test) == 2
    assert "train.csv: 1 rows of test not read, it has another file" in data.caption_report


def test_rows_with_an_unknown_split_are_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "captions.csv", "caption,split", "Text.,train", "Text.,dev")
    assert "unknown split: 1 (captions.csv, line 3: dev)" in refused(tmp_path)
    assert len(load(tmp_path, MISSING="skip").train_x) == 1


def test_without_test_part_val_is_tested_on(root: Path) -> None:
    (root / "test.csv").unlink()
    data = load(root)
    assert data.split_kind == "val as test" and ids(data.test) == ids(data.val)


# --- keys ---------------------------------------------------------------------------------------------------------------


def test_dir_images_files_and_columns_can_have_other_names(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "v1"
    write_images(tmp_path / "photos", ["1.png"])
    write_images(folder, ["marker.png"])
    write_text(folder / "learn.csv", "sentence,file", "Learn.,1.png")
    write_text(folder / "check.csv", "sentence,file", "Check.,1.png")
    settings = {"DIR": "mine/v1", "TRAIN": "learn.csv", "TEST": "check.csv", "COLUMNS": ("caption=sentence", "image=file")}
    data = load(tmp_path, IMAGES="../../photos", **settings)
    assert captions_of(data.train_x) == [["Learn."]] and captions_of(data.test) == [["Check."]]
    assert "DATASET.CAPTION.IMAGES names no folder" in refused(tmp_path, IMAGES="nowhere", **settings)
    assert "missing image: 1" in refused(tmp_path, **settings)


def test_missing_columns_are_named(root: Path) -> None:
    write_text(root / "test.csv", "image,sentence", "a.png,A.")
    assert "has no column for caption; found image, sentence. DATASET.CAPTION.COLUMNS gives other names" in refused(root)
    assert "has no column for caption=words" in refused(root, COLUMNS=("caption=words",))
    assert "DATASET.CAPTION.COLUMNS holds 'label=x'" in refused(root, COLUMNS=("label=x",))


def test_text_of_another_encoding_is_refused_until_it_is_named(root: Path) -> None:
    write_text(root / "train.txt", "A dog.", "A café.", encoding="latin-1")
    message = refused(root)
    assert "train.txt, line 2: byte 0xe9 is not utf-8-sig" in message and "DATASET.CAPTION.ENCODING" in message
    (root / "val.json").unlink()
    assert captions_of(load(root, ENCODING="latin-1").train_x) == [["A dog."], ["A café."]]
    assert "DATASET.CAPTION.ENCODING is 'nonsense'; expected a codec" in refused(root, ENCODING="nonsense")


def test_byte_order_mark_and_windows_line_ends_are_no_text(root: Path) -> None:
    (root / "train.txt").write_bytes("\ufeffA dog.\r\nA cat.\r\n".encode())
    assert captions_of(load(root).train_x) == [["A dog."], ["A cat."]]


def test_style_chooses_rows(root: Path) -> None:
    (root / "train.txt").unlink()
    rows = [{"caption": f"{style}.", "style": style} for style in ("plain", "grim", "plain")]
    write_lines(root / "train.jsonl", rows)
    assert len(load(root).train_x) == 3
    data = load(root, TEST="", STYLE="grim", VAL="")
    assert captions_of(data.train_x) == [["grim."]]
    assert "DATASET.CAPTION.STYLE is 'merry'; expected one of grim, plain" in refused(root, STYLE="merry")


def test_impossible_keys_are_refused_together(root: Path) -> None:
    message = refused(root, MISSING="maybe", dataset_NUM_SHOTS=4, dataset_SPLIT="coop")
    for part in ("DATASET.CAPTION.MISSING is 'maybe'; expected one of error, skip", "DATASET.NUM_SHOTS is 4", "DATASET.SPLIT"):
        assert part in message


def test_absent_folder_and_absent_files_name_the_keys(tmp_path: Path) -> None:
    assert "DATASET.CAPTION.DIR" in refused(tmp_path, DIR="gone")
    assert "DATASET.CAPTION.TRAIN, VAL and TEST name files" in refused(tmp_path)
    message = refused(tmp_path, TRAIN="gone.txt", TEST="none.csv")
    assert "DATASET.CAPTION.TRAIN: no file" in message and "DATASET.CAPTION.TEST: no file" in message


def test_several_files_of_a_part_are_refused(root: Path) -> None:
    write_text(root / "train.csv", "caption", "Text.")
    assert "several files for train: train.txt, train.csv; name one as DATASET.CAPTION.TRAIN" in refused(root)


# --- faults and report --------------------------------------------------------------------------------------------------


def test_missing_and_corrupt_pictures_are_one_error_or_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "images" / "a.png").unlink()
    (root / "images" / "d.png").write_bytes((root / "images" / "d.png").read_bytes()[:40])
    message = refused(root)
    assert "2 problems" in message and "missing image: 1 (val.json, a.png: a.png)" in message
    assert "corrupt image: 1 (test.csv, line 3: d.png" in message and "DATASET.CAPTION.MISSING skip" in message
    data = load(root, MISSING="skip")
    assert ids(data.val) == ["b.png"] and ids(data.test) == ["c.png"]
    assert "left out, missing image: 1 (val.json, a.png: a.png)" in data.caption_report
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("Left out: 2 problems") and "corrupt image: 1" in warning


def test_test_rows_without_a_picture_cannot_be_captioned(root: Path) -> None:
    write_text(root / "test.csv", "image,caption", "c.png,C.", ",Nobody.")
    assert "no image to caption: 1 (test.csv, line 3)" in refused(root)


def test_rows_that_cannot_be_understood_are_faults(root: Path) -> None:
    rows = [{"caption": ["x", 3]}, {"caption": "Fine."}, {"caption": "Two.", "entities": [["a"], ["b"]]}, [1]]
    (root / "train.txt").unlink()
    write_lines(root / "train.jsonl", rows)  # type: ignore[arg-type]
    message = refused(root)
    for line in (
        "captions that are neither text nor a list of texts: 1 (train.jsonl, line 1)",
        "entities that are no list of names per caption: 1 (train.jsonl, line 3)",
        "no JSON object: 1 (train.jsonl, line 4)",
    ):
        assert line in message
    assert captions_of(load(root, MISSING="skip").train_x) == [["Fine."]]


def test_empty_captions_are_dropped_with_their_entities_and_counted(root: Path) -> None:
    write_text(root / "train.txt", "A dog.", "  ", "", "A cat.")
    rows = [{"image": "c.png", "captions": ["C.", " "], "entities": [["c"], ["none"]]}, {"image": "d.png", "captions": [""]}]
    (root / "test.csv").unlink()
    write_lines(root / "test.jsonl", rows)
    data = load(root)
    assert captions_of(data.train_x) == [["A dog."], ["A cat."]] and captions_of(data.test) == [["C."]]
    assert entities_of(data.test) == [[["c"]]]
    assert "empty captions dropped: 4 (train.txt, line 2; train.txt, line 3; test.jsonl" in report_of(data)


def test_duplicates_and_shared_pictures_are_reported_and_kept(root: Path) -> None:
    (root / "train.txt").unlink()
    rows = ["image,caption", ",Same.", ",Same.", ",Same.", "c.png,Other."]
    write_text(root / "train.csv", *rows)
    write_json(root / "val.json", {"a.png": ["A."], "c.png": ["C."]})
    data = load(root)
    assert len(data.train_x) == 4
    assert "train: 2 captions repeat another one (kept), most often 'Same.', 3 times" in data.caption_report
    for pair in ("train and val", "train and test", "val and test"):
        assert f"pictures shared by {pair}: 1 (c.png)" in data.caption_report


def test_a_clean_set_reports_its_sizes_and_nothing_else(root: Path) -> None:
    expected = ["train: 3 captions, 0 pictures", "val: 3 captions, 2 pictures", "test: 3 captions, 2 pictures"]
    assert load(root).caption_report == expected


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_captions_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.txt").write_text(content, "utf-8")
    assert "holds no caption" in refused(tmp_path)


def test_a_table_in_a_text_file_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "captions.txt", "image,caption", "1.jpg,A child climbs.")
    assert "rename the file to .csv" in refused(tmp_path)


@pytest.mark.parametrize("content", [{"images": [1]}, [], 7, {}])
def test_json_of_another_form_is_refused(tmp_path: Path, content: Any) -> None:
    write_json(tmp_path / "train.json", content)
    assert "train.json" in refused(tmp_path)


# --- Dassl --------------------------------------------------------------------------------------------------------------


def test_classes_are_counted_without_training_captions_as_upstream_dassl_would_count(tmp_path: Path) -> None:
    """Upstream takes the maximum of the labels of `train_x`, which fails for none; ours has to answer without looking."""
    write_images(tmp_path, ["a.png"])
    data = load(tmp_path)
    with pytest.raises(ValueError):
        DatasetBase.get_num_classes([])
    assert data.train_x == [] and (data.num_classes, data.lab2cname) == (1, {0: "caption"})
    assert type(data).get_num_classes([]) == 1 and type(data).get_lab2cname([]) == ({0: "caption"}, ["caption"])
