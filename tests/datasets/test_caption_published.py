"""COCO, Flickr30k, NoCaps and FlickrStyle10K as their authors, Karpathy and ViECap's authors publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from caption_trees import captions_of, coco_rows, ids, load, nocaps_rows, report_of, write_images, write_json, write_text

from datasets import stored_rows

SPLIT = {"train": ["1000092795.jpg", "2199200615.jpg"], "val": ["10002456.jpg"], "test": ["1000268201.jpg"]}


def refused(root: Path, name: str, **settings: Any) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(root, name, **settings)
    return str(error.value)


# --- COCO ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Karpathy's file and the pictures of val and test, in the subset's folder."""
    content = coco_rows()
    write_json(tmp_path / "coco" / "dataset_coco.json", content)
    write_images(tmp_path / "coco" / "val2014", [row["filename"] for row in content["images"][2:]])
    return tmp_path


def test_coco_is_in_karpathys_splits_and_restval_trains(coco: Path) -> None:
    data = load(coco, "CocoCaption")
    assert [len(items) for items in (data.train_x, data.val, data.test)] == [2, 1, 1] and data.split_kind == "given"
    assert captions_of(data.train_x)[1] == ["Caption 1 of 522418.", "Caption 2 of 522418."]
    assert Path(data.train_x[0].impath).name == "dataset_coco.json"
    assert ids(data.test) == ["COCO_val2014_000000318219.jpg"]
    assert Path(data.test[0].impath) == coco / "coco" / "val2014" / "COCO_val2014_000000318219.jpg"


@pytest.mark.parametrize("images", ["val2014", "images", "images/val2014"])
def test_coco_pairs_of_picture_and_captions_are_the_same_set(coco: Path, images: str) -> None:
    whole = load(coco, "CocoCaption")
    folder = coco / "coco"
    (folder / "dataset_coco.json").unlink()
    (folder / images).parent.mkdir(exist_ok=True)
    (folder / "val2014").rename(folder / images)
    pairs_of: dict[str, dict[str, list[str]]] = {"train": {}, "val": {}, "test": {}}
    for row in coco_rows()["images"]:
        part = {"restval": "train"}.get(row["split"], row["split"])
        pairs_of[part][row["filename"]] = [sentence["raw"] for sentence in row["sentences"]]
    for part, content in pairs_of.items():
        write_json(folder / f"{part}_captions.json", content)
    pairs = load(coco, "CocoCaption")
    for one, other in ((whole.train_x, pairs.train_x), (whole.val, pairs.val), (whole.test, pairs.test)):
        assert [item.extras for item in one] == [item.extras for item in other]


def test_coco_without_pictures_names_them_and_trains_on_text_if_asked(coco: Path) -> None:
    for path in (coco / "coco" / "val2014").iterdir():
        path.unlink()
    assert "missing image: 2" in refused(coco, "CocoCaption")
    data = load(coco, "CocoCaption", MISSING="skip")
    assert len(data.train_x) == 2 and data.val is None and data.test == [] and data.split_kind == "text only"


def test_deviations_from_the_published_sizes_are_reported(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(coco, "CocoCaption")
    assert "train has 2 pictures and 4 captions; published are any number and 566,747" in data.caption_report
    assert "test has 1 pictures and 2 captions; published are 5,000 and 25,010" in data.caption_report
    monkeypatch.setattr(type(data), "published_sizes", {"train": (None, 4), "val": (1, 2), "test": (1, 2)})
    assert "published" not in report_of(load(coco, "CocoCaption"))


def test_coco_test_file_of_another_name_goes_with_the_usual_train_part(coco: Path) -> None:
    name = coco_rows()["images"][2]["filename"]
    write_json(coco / "coco" / "few.json", {name: ["Only this."]})
    data = load(coco, "CocoCaption", TEST="few.json")
    assert captions_of(data.test) == [["Only this."]] and len(data.train_x) == 2
    assert "dataset_coco.json: 1 rows of test not read, it has another file" in data.caption_report


# --- Flickr30k ----------------------------------------------------------------------------------------------------------


def flickr_rows() -> list[tuple[str, int, str]]:
    names = [name for part in SPLIT.values() for name in part]
    return [(name, number, f"Caption {number} of {name[:-4]} .") for name in names for number in range(5)]


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    """The pictures of val and test, and a split file."""
    write_images(tmp_path / "flickr30k" / "flickr30k-images", [*SPLIT["val"], *SPLIT["test"]])
    write_json(tmp_path / "flickr30k" / "split.json", SPLIT)
    return tmp_path


def write_results(root: Path, *, malformed: bool = False) -> None:
    lines = [f"{name}| {number}| {caption}" for name, number, caption in flickr_rows()]
    if malformed:
        lines[9] = "2199200615.jpg| 4   A dog runs across the grass ."
    write_text(root / "flickr30k" / "results.csv", "image_name| comment_number| comment", *lines)


def write_tokens(root: Path) -> None:
    lines = [f"{name}#{number}\t{caption}" for name, number, caption in flickr_rows()]
    write_text(root / "flickr30k" / "results_20130124.token", *lines)


def write_karpathy(root: Path) -> None:
    rows = [
        {"filename": name, "split": part, "sentences": [{"raw": c} for n, _, c in flickr_rows() if n == name]}
        for part, names in SPLIT.items()
        for name in names
    ]
    write_json(root / "flickr30k" / "dataset_flickr30k.json", {"images": rows, "dataset": "flickr30k"})


def write_pairs(root: Path) -> None:
    for part, names in SPLIT.items():
        pairs = {name: [caption for other, _, caption in flickr_rows() if other == name] for name in names}
        write_json(root / "flickr30k" / f"{part}_captions.json", pairs)


@pytest.mark.parametrize("write", [write_results, write_tokens, write_karpathy, write_pairs])
def test_flickr30k_is_the_same_set_in_all_four_forms(flickr: Path, write: Any) -> None:
    write(flickr)
    data = load(flickr, "Flickr30kCaption")
    assert ids(data.train_x) == SPLIT["train"] and ids(data.val) == SPLIT["val"] and ids(data.test) == SPLIT["test"]
    assert captions_of(data.test) == [[f"Caption {n} of 1000268201 ." for n in range(5)]]
    assert "malformed" not in report_of(data)


def test_the_malformed_row_of_results_csv_is_repaired_and_counted(flickr: Path) -> None:
    write_results(flickr, malformed=True)
    data = load(flickr, "Flickr30kCaption")
    assert captions_of(data.train_x)[1][4] == "A dog runs across the grass ."
    assert "malformed rows repaired: 1 (results.csv, line 11)" in data.caption_report


def test_rows_of_the_lists_that_cannot_be_repaired_are_faults(flickr: Path) -> None:
    write_results(flickr)
    with (flickr / "flickr30k" / "results.csv").open("a") as file:
        file.write("10002456.jpg\n10002456.jpg| A dog without number\n")
    message = refused(flickr, "Flickr30kCaption")
    assert "no picture | number | caption: 2 (results.csv, line 22; results.csv, line 23)" in message
    (flickr / "flickr30k" / "results.csv").unlink()
    write_text(flickr / "flickr30k" / "results_20130124.token", "10002456.jpg#0\tFine .", "10002456.jpg A dog .")
    assert "separated by a tab: 1 (results_20130124.token, line 2)" in refused(flickr, "Flickr30kCaption")


@pytest.mark.parametrize("form", ["parts", "pictures", "karpathy"])
def test_lists_take_any_form_of_split_file(flickr: Path, form: str) -> None:
    write_results(flickr)
    (flickr / "flickr30k" / "split.json").unlink()
    content: Any = {part: [name[:-4] for name in names] for part, names in SPLIT.items()}
    if form == "pictures":
        content = {name: part for part, names in SPLIT.items() for name in names}
    if form == "karpathy":
        content = {"images": [{"filename": n, "split": p, "sentences": []} for p, names in SPLIT.items() for n in names]}
    write_json(flickr / "flickr30k" / "mine.json", content)
    data = load(flickr, "Flickr30kCaption", TRAIN="results.csv,mine.json")
    assert ids(data.train_x) == SPLIT["train"] and ids(data.test) == SPLIT["test"]


def test_lists_without_a_split_file_say_what_to_write(flickr: Path) -> None:
    write_tokens(flickr)
    (flickr / "flickr30k" / "split.json").unlink()
    message = refused(flickr, "Flickr30kCaption")
    assert "names no splits" in message and "DATASET.CAPTION.TRAIN 'results_20130124.token,split.json'" in message
    write_json(flickr / "flickr30k" / "split.json", {"train": "all"})
    assert "picture -> part" in refused(flickr, "Flickr30kCaption") or "unknown split" in refused(flickr, "Flickr30kCaption")


def test_pictures_in_no_split_are_left_out_and_counted(flickr: Path) -> None:
    write_results(flickr)
    write_json(flickr / "flickr30k" / "split.json", {**SPLIT, "train": SPLIT["train"][:1]})
    data = load(flickr, "Flickr30kCaption")
    assert len(data.train_x) == 1
    assert "results.csv: 5 captions of pictures in no split left out" in data.caption_report


# --- NoCaps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["corpus", "official"])
@pytest.mark.parametrize("by_domain", [True, False])
def test_nocaps_is_for_evaluation_and_its_split_name_is_the_domain(tmp_path: Path, form: str, by_domain: bool) -> None:
    rows = nocaps_rows()
    folder = tmp_path / "nocaps"
    names = [f"{row['split']}/{row['image_id']}" if by_domain else f"images/{row['image_id']}" for row in rows]
    write_images(folder, names)
    if form == "corpus":
        write_json(folder / "nocaps_corpus.json", rows)
    else:
        images = [
            {"id": n, "file_name": row["image_id"], "domain": row["split"].replace("_", "-")} for n, row in enumerate(rows)
        ]
        notes = [{"id": 0, "image_id": n, "caption": caption} for n, row in enumerate(rows) for caption in row["caption"]]
        write_json(folder / "nocaps_val_4500_captions.json", {"images": images, "annotations": notes})
    data = load(tmp_path, "NoCaps")
    assert data.train_x == [] and data.val is None and data.split_kind == "tests only"
    assert (data.num_classes, data.classnames) == (1, ["caption"])
    assert [item.extras["split_name"] for item in data.test] == ["in_domain", "near_domain", "out_domain"]
    assert captions_of(data.test) == [row["caption"] for row in rows] and ids(data.test) == ["0.jpg", "1.jpg", "2.jpg"]
    assert "near_domain has 1 pictures; published are 2,670" in data.caption_report


def test_nocaps_takes_no_training_captions_and_no_other_domain(tmp_path: Path) -> None:
    write_images(tmp_path / "nocaps" / "images", [row["image_id"] for row in nocaps_rows()])
    write_json(tmp_path / "nocaps" / "nocaps_corpus.json", [*nocaps_rows(), {**nocaps_rows()[0], "split": "train"}])
    assert "unknown split: 1 (nocaps_corpus.json, entry 4: train)" in refused(tmp_path, "NoCaps")
    assert "for evaluation alone" in refused(tmp_path, "NoCaps", TRAIN="nocaps_corpus.json")
    assert len(load(tmp_path, "NoCaps", MISSING="skip", TEST="nocaps_corpus.json").test) == 3


# --- FlickrStyle10K -----------------------------------------------------------------------------------------------------


def picture_names(count: int = 28) -> list[str]:
    return [f"{1000 + n}_{n:010x}.jpg" for n in range(count)]


@pytest.fixture
def style(tmp_path: Path) -> Path:
    """Both styles with names and all pictures, as the authors name them or as Flickr30k does."""
    folder = tmp_path / "FlickrStyle_v0.9"
    names = picture_names()
    for style_name, file in (("humor", "funny_train.txt"), ("romantic", "romantic_train.txt")):
        (folder / style_name).mkdir(parents=True)
        write_text(folder / style_name / file, *(f"A {style_name} caption {n} ." for n in range(len(names))))
        write_json(folder / style_name / "train.json", names)
    write_images(folder / "images", [f"{name.split('_')[0]}.jpg" if n % 2 else name for n, name in enumerate(names)])
    return tmp_path


def test_flickr_style_is_split_by_picture_by_a_seed_and_labelled_unofficial(style: Path) -> None:
    data = load(style, "FlickrStyle10K")
    parts = [set(ids(items)) for items in (data.train_x, data.val, data.test)]
    assert [len(part) for part in parts] == [22, 2, 4] and len(set.union(*parts)) == 28
    assert data.split_kind == "seeded 0, unofficial"
    assert len(captions_of(data.test)[0]) == 2 and {item.extras["style"] for item in data.test} == {""}
    stored = json.loads((style / "FlickrStyle_v0.9" / "split_unofficial-seed_0.json").read_text("utf-8"))
    assert stored["inputs"]["recipe"]["official"] is False and set(stored["test"]) == parts[2]


def test_flickr_style_split_is_the_same_again_and_another_by_seed_and_share(style: Path) -> None:
    first = load(style, "FlickrStyle10K")
    assert ids(load(style, "FlickrStyle10K").test) == ids(first.test)
    assert ids(load(style, "FlickrStyle10K", dataset_SPLIT_SEED=1).test) != ids(first.test)
    half = load(style, "FlickrStyle10K", dataset_TEST_PERCENT=0.5, dataset_VAL_PERCENT=0.0)
    assert len(half.test) == 14 and half.val is None
    assert "DATASET.VAL_PERCENT is 1.0" in refused(style, "FlickrStyle10K", dataset_VAL_PERCENT=1.0)


def test_flickr_style_stored_split_is_read_not_drawn_again(style: Path) -> None:
    load(style, "FlickrStyle10K")
    file = style / "FlickrStyle_v0.9" / "split_unofficial-seed_0.json"
    stored = json.loads(file.read_text("utf-8"))
    stored["test"], stored["train"] = stored["train"], stored["test"]
    write_json(file, stored)
    assert len(load(style, "FlickrStyle10K").test) == 22


def test_one_style_is_chosen_on_the_same_split(style: Path) -> None:
    both, humor = load(style, "FlickrStyle10K"), load(style, "FlickrStyle10K", STYLE="humor")
    assert ids(humor.test) == ids(both.test)
    assert {item.extras["style"] for item in (*humor.train_x, *humor.test)} == {"humor"}
    assert all(caption.startswith("A humor") for captions in captions_of(humor.train_x) for caption in captions)


def test_without_names_every_style_caption_trains(style: Path) -> None:
    for names in (style / "FlickrStyle_v0.9").glob("*/train.json"):
        names.unlink()
    data = load(style, "FlickrStyle10K")
    assert len(data.train_x) == 56 and data.test == [] and data.split_kind == "text only"
    assert "56 captions without picture names (train.json): they all train" in data.caption_report
    assert "humor has 28 captions; published are 7,000" in data.caption_report


def test_style_captions_are_latin_1_where_they_are_no_utf_8(style: Path) -> None:
    file = style / "FlickrStyle_v0.9" / "humor" / "funny_train.txt"
    lines = file.read_text("utf-8").splitlines()
    write_text(file, "A café .", *lines[1:], encoding="latin-1")
    write_text(file.parents[1] / "romantic" / "romantic_train.txt", "A café – closed .", *lines[1:])
    data = load(style, "FlickrStyle10K")
    texts = {text for items in (data.train_x, data.val, data.test) for found in captions_of(items) for text in found}
    assert {"A café .", "A café – closed ."} <= texts
    assert "is not utf-8" in refused(style, "FlickrStyle10K", ENCODING="utf-8")


def test_names_that_do_not_fit_the_lines_are_refused(style: Path) -> None:
    write_json(style / "FlickrStyle_v0.9" / "humor" / "train.json", picture_names(27))
    assert "holds 27 names; expected 28, one per line of funny_train.txt" in refused(style, "FlickrStyle10K")
    assert "DATASET.CAPTION.TEST: expected nothing" in refused(style, "FlickrStyle10K", TEST="x.txt")
    message = refused(style / "FlickrStyle_v0.9", "FlickrStyle10K", DIR="images")
    assert "neither humor/funny_train.txt nor romantic/romantic_train.txt" in message


def test_split_of_read_only_data_is_stored_in_the_run_folder(
    style: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_beside_the_data(path: Path, content: Any) -> None:
        if "FlickrStyle" in str(path):
            raise PermissionError(path)
        write(path, content)

    write = stored_rows.write_json
    monkeypatch.setattr(stored_rows, "write_json", fail_beside_the_data)
    load(style, "FlickrStyle10K", output_dir=tmp_path / "run")
    assert (tmp_path / "run" / "split_unofficial-seed_0.json").is_file()
