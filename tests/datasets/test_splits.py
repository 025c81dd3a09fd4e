"""Split files, stratified splits, and choices that are made once."""

import json
import logging
from pathlib import Path

import pytest
from yacs.config import CfgNode

from datasets.base import Item
from datasets.splits import read_split_json, split_stratified, stored_few_shots, stored_split, write_split_json

SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}


def make_items(folder: Path, counts: dict[str, int]) -> list[Item]:
    items = []
    for label, (classname, count) in enumerate(counts.items()):
        for number in range(count):
            path = folder / classname / f"{number:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            items.append(Item(str(path), label, classname=classname, extras={"n": number}))
    return items


def names(items: list[Item], folder: Path) -> list[str]:
    return [Path(item.impath).relative_to(folder).as_posix() for item in items]


def config(output: Path | str = "", **changes: object) -> CfgNode:
    return CfgNode({"OUTPUT_DIR": str(output), "SEED": changes.pop("SEED", 1), "DATASET": {"NUM_SHOTS": 2, **changes}})


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), "utf-8")
    return path


def test_split_json_keeps_order_labels_and_names(tmp_path: Path) -> None:
    make_items(tmp_path / "images", {"cat": 2, "dög": 1})
    rows = {
        "train": [["dög/000.jpg", 1, "Döberman"], ["cat/001.jpg", 0, "cat"]],
        "val": [],
        "test": [["cat/000.jpg", 0, "cat"]],
    }
    splits = read_split_json(write(tmp_path / "split.json", rows), tmp_path / "images")
    assert [(item.label, item.classname) for item in splits["train"]] == [(1, "Döberman"), (0, "cat")]
    assert names(splits["train"], tmp_path / "images") == ["dög/000.jpg", "cat/001.jpg"]
    write_split_json(tmp_path / "again.json", splits, tmp_path / "images")
    assert json.loads((tmp_path / "again.json").read_text("utf-8")) == rows


def test_absent_images_are_counted_and_five_are_shown(tmp_path: Path) -> None:
    make_items(tmp_path, {"cat": 1})
    rows = {"train": [["cat/000.jpg", 0, "cat"]] + [[f"cat/9{n}.jpg", 0, "cat"] for n in range(7)], "test": []}
    path = write(tmp_path / "split.json", rows)
    with pytest.raises(FileNotFoundError) as caught:
        read_split_json(path, tmp_path)
    message = str(caught.value)
    assert str(path) in message and "7 absent" in message and "2 more" in message
    assert f"train entry 2: {tmp_path / 'cat/90.jpg'}" in message
    assert message.count("entry") == 5


def test_absent_images_can_be_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_items(tmp_path, {"cat": 1})
    path = write(tmp_path / "split.json", {"train": [["cat/000.jpg", 0, "cat"], ["cat/001.jpg", 0, "cat"]]})
    with caplog.at_level(logging.WARNING, logger="datasets"):
        splits = read_split_json(path, tmp_path, skip_absent=True)
    assert names(splits["train"], tmp_path) == ["cat/000.jpg"] and splits["test"] == []
    assert "001.jpg" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "found list"),
        ({}, r"found \[\]"),
        ({"train": [], "tests": []}, "tests"),
        ({"train": {"a.jpg": 0}}, "expected lists named train, val, test"),
        ({"train": [["a.jpg", 0]]}, r"1 wrong entries.*train entry 1: \['a.jpg', 0\]"),
        ({"train": [["a.jpg", "0", "a"]]}, "train entry 1"),
        ({"train": [["a.jpg", -1, "a"]]}, "train entry 1"),
        ({"train": [["a.jpg", True, "a"]]}, "train entry 1"),
        ({"train": [["/a.jpg", 0, "a"]]}, "train entry 1"),
        ({"train": [["C:\\a.jpg", 0, "a"]]}, "train entry 1"),
        ({"train": [["a.jpg", 0, "a"]], "test": [["b.jpg", 0, "b"]]}, "label 0 is named 'a' and 'b'"),
    ],
)
def test_wrong_split_file_is_an_error_naming_it(content: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", content)
    with pytest.raises(ValueError, match=f"mine.json.*{message}"):
        read_split_json(path, tmp_path)


def test_broken_json_is_an_error_naming_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text("{", "utf-8")
    with pytest.raises(ValueError, match="mine.json is no JSON file"):
        read_split_json(path, tmp_path)


def test_stratified_split_has_the_shares_in_every_class_and_loses_nothing(tmp_path: Path) -> None:
    items = make_items(tmp_path, {"a": 10, "b": 20, "c": 1, "d": 2, "e": 3, "f": 7})
    parts = split_stratified(items, SHARES, seed=0)
    sizes = {label: [sum(item.label == label for item in part) for part in parts.values()] for label in range(6)}
    assert sizes == {0: [5, 2, 3], 1: [10, 4, 6], 2: [1, 0, 0], 3: [1, 0, 1], 4: [1, 1, 1], 5: [4, 1, 2]}
    assert sorted(item.impath for part in parts.values() for item in part) == sorted(item.impath for item in items)
    assert list(parts) == ["train", "val", "test"]


def test_stratified_split_depends_on_the_seed_but_not_on_order_or_place(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second place"
    counts = {"a": 9, "b": 12}
    items = make_items(first, counts)
    split = split_stratified(items, SHARES, seed=3)
    moved = split_stratified(reversed(make_items(second, counts)), SHARES, seed=3)
    assert [names(part, first) for part in split.values()] == [names(part, second) for part in moved.values()]
    assert names(split_stratified(items, SHARES, seed=4)["test"], first) != names(split["test"], first)


def test_first_part_is_never_empty(tmp_path: Path) -> None:
    parts = split_stratified(make_items(tmp_path, {"a": 1, "b": 2}), {"train": 0.2, "test": 0.8}, seed=0)
    assert [item.label for item in parts["train"]] == [0, 1]
    assert [item.label for item in parts["test"]] == [1]


@pytest.mark.parametrize("shares", [{"train": 0.5, "test": 0.6}, {"train": 1.2, "test": -0.2}])
def test_impossible_shares_are_an_error(shares: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        split_stratified(make_items(tmp_path, {"a": 3}), shares, seed=0)


class Maker:
    """Splits items, and counts how often."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        self.calls = 0

    def __call__(self) -> dict[str, list[Item]]:
        self.calls += 1
        return split_stratified(self.items, SHARES, seed=self.calls)


def stored(folder: Path, output: Path | str, maker: Maker, **recipe: int) -> dict[str, list[Item]]:
    return stored_split(folder, config(output), "split_seeded", maker.items, maker, recipe=recipe)


def test_stored_split_is_made_once_and_moves_with_the_data(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    maker = Maker(make_items(folder, {"a": 10, "b": 10}))
    first = stored(folder, "", maker)
    again = stored(folder, "", maker)
    assert maker.calls == 1 and again == first
    assert again["train"][0].extras == first["train"][0].extras != {}
    content = (folder / "split_seeded.json").read_text("utf-8")
    assert str(tmp_path) not in content and '"a/' in content
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    moved_maker = Maker(make_items(moved, {"a": 10, "b": 10}))
    parts = stored(moved, "", moved_maker)
    assert moved_maker.calls == 0
    assert names(parts["test"], moved) == names(first["test"], folder)


def test_stored_split_can_be_read_as_a_split_file(tmp_path: Path) -> None:
    maker = Maker(make_items(tmp_path, {"a": 10, "b": 10}))
    parts = stored(tmp_path, "", maker)
    splits = read_split_json(tmp_path / "split_seeded.json", tmp_path)
    assert [names(splits[part], tmp_path) for part in parts] == [names(parts[part], tmp_path) for part in parts]


@pytest.mark.parametrize("change", ["image", "label", "order", "recipe", "file"])
def test_stored_split_is_made_anew_when_an_input_changes(change: str, tmp_path: Path) -> None:
    items = make_items(tmp_path, {"a": 10, "b": 10})
    stored(tmp_path, "", Maker(items), seed=1)
    if change == "image":
        items = make_items(tmp_path, {"a": 11, "b": 10})
    elif change == "label":
        items = [Item(item.impath, 1 - item.label, classname=item.classname) for item in items]
    elif change == "order":
        items = items[::-1]
    elif change == "file":
        (tmp_path / "split_seeded.json").write_text('{"inputs": 3', "utf-8")
    maker = Maker(items)
    stored(tmp_path, "", maker, seed=2 if change == "recipe" else 1)
    assert maker.calls == 1
    stored(tmp_path, "", maker, seed=2 if change == "recipe" else 1)
    assert maker.calls == 1


def test_unwritable_data_folder_stores_in_the_run_folder(tmp_path: Path) -> None:
    folder, output = tmp_path / "data", tmp_path / "run"
    maker = Maker(make_items(folder, {"a": 10, "b": 10}))
    (folder / "split_seeded.json").mkdir()  # nothing can be written there, not even by root
    first = stored(folder, output, maker)
    assert stored(folder, output, maker) == first and maker.calls == 1
    assert '"a/' in (output / "split_seeded.json").read_text("utf-8")


def test_split_that_can_be_stored_nowhere_still_works(tmp_path: Path) -> None:
    maker = Maker(make_items(tmp_path, {"a": 10, "b": 10}))
    (tmp_path / "split_seeded.json").mkdir()
    assert len(stored(tmp_path, "", maker)["train"]) == 10


def test_few_shots_are_stored_per_split_kind_shots_and_seed(tmp_path: Path) -> None:
    items = make_items(tmp_path, {"a": 30, "b": 30})
    train, val = items[::2], items[1::2]
    chosen = stored_few_shots(tmp_path, config(), "coop", train, val)
    assert stored_few_shots(tmp_path, config(), "coop", train, val) == chosen
    assert [len(part) for part in chosen] == [4, 4]
    stored_few_shots(tmp_path, config(SEED=2), "coop", train, val)
    stored_few_shots(tmp_path, config(NUM_SHOTS=4), "coop", train, val)
    assert len(list(tmp_path.glob("few_shots_coop-*.json"))) == 3
    assert stored_few_shots(tmp_path, config(), "coop", items[::3], val) != chosen


def test_no_shots_means_whole_lists_and_no_file(tmp_path: Path) -> None:
    items = make_items(tmp_path, {"a": 3})
    assert stored_few_shots(tmp_path, config(NUM_SHOTS=-1, SEED=-1), "coop", items, items[:1]) == (items, items[:1])
    assert list(tmp_path.glob("*.json")) == []


def test_shots_without_a_seed_are_an_error_naming_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--seed"):
        stored_few_shots(tmp_path, config(SEED=-1), "coop", make_items(tmp_path, {"a": 3}), [])
