"""What all benchmarks do the same way: finding the folder, choosing and storing a split, few shots, errors."""

import json
import logging
import random
import shutil
from pathlib import Path

import pytest
from benchmark_trees import read_config
from dassl.data.datasets import DatasetBase
from dassl.utils import set_random_seed

from datasets.download import TorchvisionSource
from datasets.split_dataset import SplitDataset
from datasets.splits import Row

CLASSES = ("ant", "bee", "cow")


class Toy(SplitDataset):
    """Not registered: only the reading counts."""

    dataset_dir = "toy"
    image_dirs = ("pictures", "nested/pictures")
    official_list = "lists/train.json"
    source = TorchvisionSource("ToyReader")

    def read_official(self) -> dict[str, list[Row]]:
        parts = {part: self.base / "lists" / f"{part}.json" for part in ("train", "val", "test")}
        return {part: [tuple(row) for row in json.loads(path.read_text())] for part, path in parts.items() if path.is_file()}


class Closed(Toy):
    """Without any source but the user."""

    official_list = ""
    source = None
    by_hand = "put the pictures into toy/pictures"


def make_images(folder: Path, per_class: int = 10, classes: tuple[str, ...] = CLASSES) -> list[str]:
    names = [f"{name}/{number:02d}.jpg" for name in classes for number in range(per_class)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return names


def make_rows(names: list[str]) -> list[list]:
    return [[name, CLASSES.index(name.split("/")[0]), name.split("/")[0]] for name in names]


def write_split(root: Path, name: str = "Toy", per_class: int = 10) -> dict[str, list[list]]:
    """A split in CoOp's form, shuffled as CoOp's are."""
    names = make_images(root / "toy" / "pictures", per_class)
    random.Random(5).shuffle(names)
    half, most = len(names) // 2, len(names) * 3 // 4
    split = {"train": make_rows(names[:half]), "val": make_rows(names[half:most]), "test": make_rows(names[most:])}
    (root / "toy" / f"split_zhou_{name}.json").write_text(json.dumps(split), "utf-8")
    return split


def listed(dataset: DatasetBase) -> dict[str, list[list]]:
    images = Path(dataset.images)
    return {
        part: [[Path(item.impath).relative_to(images).as_posix(), item.label, item.classname] for item in items]
        for part, items in (("train", dataset.train_x), ("val", dataset.val), ("test", dataset.test))
    }


def sizes(dataset: DatasetBase) -> list[int]:
    return [len(items) for items in (dataset.train_x, dataset.val, dataset.test)]


NOTICE = "not comparable with CoOp numbers"


def test_auto_reads_coops_split_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = write_split(tmp_path)
    dataset = Toy(read_config(tmp_path))
    assert listed(dataset) == split
    assert dataset.split_kind == "coop" and dataset.classnames == list(CLASSES)
    assert NOTICE not in caplog.text
    assert {path.name for path in (tmp_path / "toy").iterdir()} == {"pictures", "split_zhou_Toy.json"}


def test_auto_takes_the_official_split_next_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = make_images(tmp_path / "toy/nested/pictures")
    write_lists(tmp_path / "toy/nested/lists", {"train": names[::2], "val": names[1::4], "test": names[3::4]})
    dataset = Toy(read_config(tmp_path))
    assert dataset.split_kind == "official"
    assert listed(dataset) == {"train": make_rows(names[::2]), "val": make_rows(names[1::4]), "test": make_rows(names[3::4])}
    assert f"official split: {NOTICE}" in caplog.text


def write_lists(folder: Path, parts: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, names in parts.items():
        (folder / f"{part}.json").write_text(json.dumps(make_rows(names)))


def test_official_split_without_val_gives_a_seeded_fifth_of_train(tmp_path: Path) -> None:
    names = make_images(tmp_path / "toy/pictures", 20)
    write_lists(tmp_path / "toy/lists", {"train": [n for n in names if n < n[:4] + "15"], "test": names[15:20]})
    dataset = Toy(read_config(tmp_path))
    assert [sum(item.label == 0 for item in items) for items in (dataset.train_x, dataset.val, dataset.test)] == [12, 3, 5]
    again, other = Toy(read_config(tmp_path)), Toy(read_config(tmp_path, SPLIT_SEED=1))
    assert listed(again) == listed(dataset)
    assert listed(other)["val"] != listed(dataset)["val"]


def test_auto_makes_a_seeded_split_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_images(tmp_path / "toy/pictures")
    dataset = Toy(read_config(tmp_path))
    assert (dataset.split_kind, sizes(dataset)) == ("seeded", [15, 6, 9])
    assert f"seeded split: {NOTICE}" in caplog.text
    assert len({item.impath for item in dataset.train_x + dataset.val + dataset.test}) == 30


def test_seeded_split_is_stored_with_relative_paths_and_survives_a_move(tmp_path: Path) -> None:
    make_images(tmp_path / "a/toy/pictures")
    first = listed(Toy(read_config(tmp_path / "a")))
    (stored,) = (tmp_path / "a/toy").glob("split_seeded*.json")
    assert str(tmp_path) not in stored.read_text("utf-8")
    shutil.move(tmp_path / "a", tmp_path / "b")
    before = (tmp_path / "b/toy" / stored.name).read_bytes()
    assert listed(Toy(read_config(tmp_path / "b"))) == first
    assert (tmp_path / "b/toy" / stored.name).read_bytes() == before


def test_new_images_make_the_seeded_split_anew(tmp_path: Path) -> None:
    make_images(tmp_path / "toy/pictures")
    Toy(read_config(tmp_path))
    make_images(tmp_path / "toy/pictures", 20)
    assert sizes(Toy(read_config(tmp_path))) == [30, 12, 18]


def test_test_percent_changes_the_test_share_and_keeps_the_others_proportion(tmp_path: Path) -> None:
    make_images(tmp_path / "toy/pictures", 20)
    assert sizes(Toy(read_config(tmp_path, TEST_PERCENT=0.65))) == [15, 6, 39]
    assert sizes(Toy(read_config(tmp_path))) == [30, 12, 18]


def test_split_seed_acts(tmp_path: Path) -> None:
    make_images(tmp_path / "toy/pictures")
    assert listed(Toy(read_config(tmp_path)))["test"] != listed(Toy(read_config(tmp_path, SPLIT_SEED=1)))["test"]


def test_coop_without_its_file_is_an_error_with_the_path(tmp_path: Path) -> None:
    make_images(tmp_path / "toy/pictures")
    with pytest.raises(FileNotFoundError) as caught:
        Toy(read_config(tmp_path, SPLIT="coop"))
    assert "DATASET.SPLIT" in str(caught.value) and str(tmp_path / "toy/split_zhou_Toy.json") in str(caught.value)


def test_official_without_a_split_or_without_its_file_is_an_error(tmp_path: Path) -> None:
    make_images(tmp_path / "toy/pictures")
    with pytest.raises(ValueError, match="DATASET.SPLIT is 'official'.*Closed has no official split.*seeded"):
        Closed(read_config(tmp_path, SPLIT="official"))
    with pytest.raises(FileNotFoundError, match="DATASET.SPLIT is 'official'.*train.json is missing"):
        Toy(read_config(tmp_path, SPLIT="official"))


def test_wrong_settings_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        Toy(read_config(tmp_path, SPLIT="zhou", SPLIT_SEED=-1, TEST_PERCENT=1.0, SUBSAMPLE_CLASSES="old"))
    for part in ("SPLIT is 'zhou'; expected one of auto, coop", "SPLIT_SEED is -1", "TEST_PERCENT is 1.0", "SUBSAMPLE_CLASSES"):
        assert f"DATASET.{part}" in str(caught.value)


@pytest.mark.parametrize("root", ["", "nowhere", "empty"])
def test_missing_or_empty_root_names_key_absolute_path_and_folder(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        Closed(read_config(root))
    assert f"DATASET.ROOT is {root!r}" in str(caught.value)
    assert str(tmp_path / root / "toy/pictures") in str(caught.value)
    assert Closed.by_hand in str(caught.value)


def test_empty_root_never_means_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "toy/pictures")
    with pytest.raises(FileNotFoundError, match="DATASET.ROOT"):
        Toy(read_config(""))


def test_folder_without_images_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "toy/pictures/ant").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="DATASET.ROOT.*pictures holds no image of Toy"):
        Toy(read_config(tmp_path))


def test_absent_images_of_a_split_are_an_error_or_dropped(tmp_path: Path) -> None:
    write_split(tmp_path)
    for number in range(7):
        (tmp_path / f"toy/pictures/ant/{number:02d}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="split_zhou_Toy.json names 7 absent") as caught:
        Toy(read_config(tmp_path))
    assert str(caught.value).count("entry") == 5


def test_skip_broken_drops_absent_and_unreadable_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from PIL import Image

    write_split(tmp_path)
    for number in range(8):
        for name in CLASSES:
            Image.new("RGB", (8, 8)).save(tmp_path / f"toy/pictures/{name}/{number:02d}.jpg")
    (tmp_path / "toy/pictures/ant/09.jpg").unlink()
    dataset = Toy(read_config(tmp_path, SKIP_BROKEN=True))
    assert sum(sizes(dataset)) == 24
    assert "ant/09.jpg" in caplog.text and "unreadable" in caplog.text and "cow/09.jpg" in caplog.text


def test_one_class_only_is_an_error(tmp_path: Path) -> None:
    make_images(tmp_path / "toy/pictures", classes=("ant",))
    with pytest.raises(ValueError, match="Toy has one class only.*ant"):
        Toy(read_config(tmp_path))


def test_class_without_training_image_is_an_error(tmp_path: Path) -> None:
    split = write_split(tmp_path)
    split["train"] = [row for row in split["train"] if row[2] != "bee"]
    (tmp_path / "toy/split_zhou_Toy.json").write_text(json.dumps(split), "utf-8")
    with pytest.raises(ValueError, match="Toy has no training image.*bee"):
        Toy(read_config(tmp_path))


def coops_choice(split: dict[str, list[list]], shots: int, seed: int) -> list[list[list]]:
    """The published procedure: seed the global generator, then draw from train, then from val."""
    state = random.getstate()
    try:
        random.seed(seed)
        chosen = []
        for part, count in (("train", shots), ("val", min(shots, 4))):
            groups: dict[int, list[list]] = {}
            for row in split[part]:
                groups.setdefault(row[1], []).append(row)
            drawn = [random.sample(rows, count) if len(rows) >= count else rows for rows in groups.values()]
            chosen.append([row for rows in drawn for row in rows])
        return chosen
    finally:
        random.setstate(state)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_few_shots_equal_coops_choice_also_from_the_store(shots: int, seed: int, tmp_path: Path) -> None:
    split = write_split(tmp_path, per_class=30)
    for _ in range(2):
        dataset = Toy(read_config(tmp_path, NUM_SHOTS=shots, seed=seed))
        found = listed(dataset)
        assert [found["train"], found["val"]] == coops_choice(split, shots, seed)
        assert found["test"] == split["test"]


def test_few_shots_equal_those_of_the_engine_after_its_seeding(tmp_path: Path) -> None:
    write_split(tmp_path, per_class=30)
    whole = Toy(read_config(tmp_path))
    state = random.getstate()
    try:
        set_random_seed(2)
        train = whole.generate_fewshot_dataset(whole.train_x, num_shots=8)
        val = whole.generate_fewshot_dataset(whole.val, num_shots=4)
    finally:
        random.setstate(state)
    chosen = Toy(read_config(tmp_path, NUM_SHOTS=8, seed=2))
    assert [item.impath for item in chosen.train_x] == [item.impath for item in train]
    assert [item.impath for item in chosen.val] == [item.impath for item in val]


def test_few_shots_follow_moved_data(tmp_path: Path) -> None:
    write_split(tmp_path / "a", per_class=30)
    first = listed(Toy(read_config(tmp_path / "a", NUM_SHOTS=4)))
    shutil.move(tmp_path / "a", tmp_path / "b")
    stored = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "b/toy").glob("few_shots*.json")}
    assert listed(Toy(read_config(tmp_path / "b", NUM_SHOTS=4))) == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "b/toy").glob("few_shots*.json")} == stored != {}


def test_few_shots_without_a_seed_name_the_flag(tmp_path: Path) -> None:
    write_split(tmp_path)
    with pytest.raises(ValueError, match="--seed"):
        Toy(read_config(tmp_path, NUM_SHOTS=1, seed=-1))


def test_101_classes_become_51_base_and_50_new(tmp_path: Path) -> None:
    classes = tuple(f"c{number:03d}" for number in range(101))
    make_images(tmp_path / "toy/pictures", 4, classes)
    base = Toy(read_config(tmp_path, SUBSAMPLE_CLASSES="base"))
    new = Toy(read_config(tmp_path, SUBSAMPLE_CLASSES="new"))
    assert (base.num_classes, new.num_classes) == (51, 50)
    assert base.classnames + new.classnames == list(classes)
    assert {item.label for item in new.test} == set(range(50))


def test_download_is_refused_offline_and_only_tried_when_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="DATASET.DOWNLOAD is True, but --offline"):
        Toy(read_config(tmp_path, DOWNLOAD=True))
    write_split(tmp_path)
    assert Toy(read_config(tmp_path, DOWNLOAD=True)).split_kind == "coop"


def test_download_that_torchvision_cannot_do_says_what_goes_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ValueError, match="DATASET.DOWNLOAD.*cannot fetch Closed: put the pictures into toy/pictures"):
        Closed(read_config(tmp_path, DOWNLOAD=True))


class FakeReader:
    """Stands in for a class of torchvision.datasets; nothing is fetched."""

    fails = False

    def __init__(self, root: str, download: bool) -> None:
        assert download
        if self.fails:
            raise RuntimeError("File not found or corrupted.")
        make_images(Path(root) / "nested/pictures")


def test_download_puts_the_images_where_they_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(torchvision.datasets, "ToyReader", FakeReader, raising=False)
    assert sizes(Toy(read_config(tmp_path / "new root", DOWNLOAD=True))) == [15, 6, 9]
    monkeypatch.setattr(FakeReader, "fails", True)
    with pytest.raises(OSError, match="DATASET.DOWNLOAD: torchvision's ToyReader could not fetch.*corrupted"):
        Toy(read_config(tmp_path / "other", DOWNLOAD=True))


def test_unwritable_data_folder_stores_in_the_run_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_images(tmp_path / "toy/pictures")
    (tmp_path / "toy/split_seeded-seed_0.json").mkdir()
    with caplog.at_level(logging.INFO, logger="datasets"):
        first = listed(Toy(read_config(tmp_path, tmp_path / "run")))
    assert (tmp_path / "run/split_seeded-seed_0.json").is_file()
    assert listed(Toy(read_config(tmp_path, tmp_path / "run"))) == first
