"""Every benchmark on a small tree in its published layout; the authors' splits as torchvision reads them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torchvision.datasets as torchvision_datasets
from benchmark_trees import (
    LAYOUTS,
    WORDNET,
    caltech101,
    describable_textures,
    fgvc_aircraft,
    food101,
    imagenet,
    oxford_flowers,
    oxford_pets,
    pictures,
    read_config,
    stanford_cars,
)
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from PIL import Image

import datasets  # noqa: F401  (registers the data sets)
from datasets.split_dataset import SplitDataset

COOPS = {
    "Caltech101", "DescribableTextures", "EuroSAT", "FGVCAircraft", "Food101", "ImageNet", "ImageNetA", "ImageNetR",
    "ImageNetSketch", "ImageNetV2", "OxfordFlowers", "OxfordPets", "StanfordCars", "SUN397", "UCF101",
}  # fmt: skip
DASSLS = {
    "CIFAR10", "CIFAR100", "CIFAR10C", "CIFAR100C", "CIFARSTL", "Camelyon17", "Digit5", "DigitSingle", "DigitsDG",
    "DomainNet", "FMoW", "IWildCam", "Office31", "OfficeHome", "OfficeHomeDG", "PACS", "STL10", "SVHN", "VLCS", "VisDA17",
    "miniDomainNet",
}  # fmt: skip


def build(name: str, root: Path, **changes: object) -> SplitDataset:
    return build_dataset(read_config(root, NAME=name, **changes))


def sizes(dataset: SplitDataset) -> tuple[int, int, int]:
    return len(dataset.train_x), len(dataset.val), len(dataset.test)


SEEDED_NAMES = {
    "Caltech101": ["face", "leopard", "motorbike", "accordion", "airplane"],
    "DescribableTextures": ["banded", "chequered", "zigzagged"],
    "EuroSAT": ["Annual Crop Land", "Forest", "Highway or Road", "Sea or Lake"],
    "FGVCAircraft": ["A320", "707-320", "DHC-8-100", "Cessna 172"],
    "Food101": ["apple_pie", "baby_back_ribs"],
    "OxfordPets": ["abyssinian", "american_bulldog", "bengal", "great_pyrenees"],
    "StanfordCars": ["2000 AM General Hummer SUV", "2012 Acura RL Sedan"],
    "SUN397": ["abbey", "outdoor apartment_building", "zoo"],
    "UCF101": ["Apply_Eye_Makeup", "Yo_Yo"],
}


def test_coops_names_are_registered_and_dassls_are_not() -> None:
    classes = {name: DATASET_REGISTRY.get(name) for name in DATASET_REGISTRY.registered_names()}
    registered = {name for name, found in classes.items() if found.__module__.startswith("datasets.")}
    assert COOPS | {"CIFAR10_local", "CIFAR100_local"} <= registered
    assert registered & DASSLS == set()


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"FGVCAircraft"}))  # that one has no split file
def test_coops_split_file_decides_paths_labels_and_names(name: str, tmp_path: Path) -> None:
    images = LAYOUTS[name](tmp_path)
    found = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.jpg") if path.name[0] != ".")
    rows = [[path, 1 - number % 2, f"named {1 - number % 2}"] for number, path in enumerate(found)]
    split = {"train": rows[4:], "val": rows[2:4], "test": rows[:2]}
    (tmp_path / DATASET_REGISTRY.get(name).dataset_dir / f"split_zhou_{name}.json").write_text(json.dumps(split))
    dataset = build(name, tmp_path)
    assert dataset.split_kind == "coop" and dataset.classnames == ["named 0", "named 1"]
    for items, part in ((dataset.train_x, "train"), (dataset.val, "val"), (dataset.test, "test")):
        assert [[Path(item.impath).relative_to(images).as_posix(), item.label, item.classname] for item in items] == split[part]


@pytest.mark.parametrize("name", SEEDED_NAMES)
def test_seeded_split_of_the_published_layout_has_clean_class_names(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    dataset = build(name, tmp_path, SPLIT="seeded")
    assert (dataset.split_kind, dataset.classnames) == ("seeded", SEEDED_NAMES[name])
    train, val, test = sizes(dataset)
    assert abs(train / (train + val + test) - 0.5) < 0.07 and val and test
    for item in dataset.train_x + dataset.val + dataset.test:
        assert Image.open(item.impath).size == (8, 8)


def test_seeded_cars_have_the_labels_of_the_annotations(tmp_path: Path) -> None:
    stanford_cars(tmp_path)
    dataset = build("StanfordCars", tmp_path)
    items = dataset.train_x + dataset.val + dataset.test
    assert len(items) == 20
    assert all(item.label == (int(Path(item.impath).stem) - 1) % 2 for item in items)


def test_flower_names_come_from_coops_file_or_else_from_torchvision(tmp_path: Path) -> None:
    oxford_flowers(tmp_path)
    names = {"3": "iris", "1": "pink primrose", "2": "rose"}
    if hasattr(torchvision_datasets.Flowers102, "classes"):
        assert build("OxfordFlowers", tmp_path).classnames == list(torchvision_datasets.Flowers102.classes[:3])
    (tmp_path / "oxford_flowers/cat_to_name.json").write_text(json.dumps(names))
    dataset = build("OxfordFlowers", tmp_path)
    assert dataset.classnames == ["pink primrose", "rose", "iris"]
    assert all(item.label == ([2, 1, 3] * 10)[int(item.impath[-9:-4]) - 1] - 1 for item in dataset.test)


def rows_of(paths: list, labels: list[int]) -> list[tuple[Path, int]]:
    return [(Path(path).resolve(), label) for path, label in zip(paths, labels, strict=True)]


def ours(items: list) -> list[tuple[Path, int]]:
    return [(Path(item.impath).resolve(), item.label) for item in items]


def test_official_textures_equal_torchvisions(tmp_path: Path) -> None:
    describable_textures(tmp_path, "dtd/dtd/images")  # where torchvision puts them
    dataset = build("DescribableTextures", tmp_path)
    assert dataset.split_kind == "official"
    for items, part in ((dataset.train_x, "train"), (dataset.val, "val"), (dataset.test, "test")):
        theirs = torchvision_datasets.DTD(tmp_path, split=part, partition=1)
        assert ours(items) == rows_of(theirs._image_files, theirs._labels)
    assert dataset.classnames == theirs.classes


def test_official_food_equals_torchvisions(tmp_path: Path) -> None:
    food101(tmp_path)
    dataset = build("Food101", tmp_path, SPLIT="official")
    theirs = {part: torchvision_datasets.Food101(tmp_path, split=part) for part in ("train", "test")}
    assert ours(dataset.test) == rows_of(theirs["test"]._image_files, theirs["test"]._labels)
    train = sorted(rows_of(theirs["train"]._image_files, theirs["train"]._labels))
    assert sorted(ours(dataset.train_x + dataset.val)) == train
    assert dataset.classnames == theirs["train"].classes
    assert sizes(dataset) == (10, 2, 4)


def test_official_pets_equal_torchvisions(tmp_path: Path) -> None:
    oxford_pets(tmp_path, "oxford_pets/oxford-iiit-pet/images")
    dataset = build("OxfordPets", tmp_path)
    theirs = torchvision_datasets.OxfordIIITPet(tmp_path / "oxford_pets", split="test")
    assert ours(dataset.test) == rows_of(theirs._images, theirs._labels)
    assert dataset.classnames == [name.lower().replace(" ", "_") for name in theirs.classes]
    assert sizes(dataset) == (20, 4, 16)


def test_official_flowers_equal_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oxford_flowers(tmp_path, "oxford_flowers/flowers-102/jpg")
    (tmp_path / "oxford_flowers/cat_to_name.json").write_text(json.dumps({"1": "a", "2": "b", "3": "c"}))
    dataset = build("OxfordFlowers", tmp_path)
    assert dataset.split_kind == "official"
    monkeypatch.setattr(torchvision_datasets.Flowers102, "_check_integrity", lambda self: True)  # of the real files
    for items, part in ((dataset.train_x, "train"), (dataset.val, "val"), (dataset.test, "test")):
        theirs = torchvision_datasets.Flowers102(tmp_path / "oxford_flowers", split=part)
        assert ours(items) == rows_of(theirs._image_files, theirs._labels)


@pytest.mark.parametrize("images", ["fgvc_aircraft/images", "fgvc_aircraft/fgvc-aircraft-2013b/data/images"])
def test_aircraft_split_is_coops_and_the_authors_in_one(images: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fgvc_aircraft(tmp_path, images)
    dataset = build("FGVCAircraft", tmp_path)
    assert (dataset.split_kind, sizes(dataset)) == ("coop", (12, 8, 16))
    official = build("FGVCAircraft", tmp_path, SPLIT="official")
    assert official.split_kind == "official" and ours(official.train_x) == ours(dataset.train_x)
    assert "not comparable" not in caplog.text
    if "2013b" in images:
        for items, part in ((dataset.train_x, "train"), (dataset.val, "val"), (dataset.test, "test")):
            theirs = torchvision_datasets.FGVCAircraft(tmp_path / "fgvc_aircraft", split=part)
            assert ours(items) == rows_of(theirs._image_files, theirs._labels)
        assert dataset.classnames == theirs.classes


@pytest.mark.parametrize("name", ["Caltech101", "EuroSAT", "StanfordCars", "SUN397", "UCF101"])
def test_sets_without_an_official_split_say_so(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    with pytest.raises(ValueError, match=f"DATASET.SPLIT is 'official'.*{name} has no official split"):
        build(name, tmp_path, SPLIT="official")


def test_caltech_is_read_from_torchvisions_folder_as_well(tmp_path: Path) -> None:
    caltech101(tmp_path, "caltech-101/caltech101/101_ObjectCategories")
    assert build("Caltech101", tmp_path).num_classes == 5


def test_cars_cannot_be_fetched_and_the_error_says_what_goes_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ValueError, match="cannot fetch StanfordCars.*cars_train.*cars_test.*devkit.*split_zhou_StanfordCars"):
        build("StanfordCars", tmp_path, DOWNLOAD=True)


@pytest.mark.parametrize("name", sorted(COOPS | {"CIFAR10_local", "CIFAR100_local"}))
def test_every_benchmark_names_key_path_and_folder_when_there_is_nothing(name: str, tmp_path: Path) -> None:
    benchmark = DATASET_REGISTRY.get(name)
    with pytest.raises(FileNotFoundError) as caught:
        build(name, tmp_path)
    expected = tmp_path / benchmark.dataset_dir / benchmark.image_dirs[0]
    assert f"DATASET.ROOT is {str(tmp_path)!r}: {name}" in str(caught.value) and str(expected) in str(caught.value)


@pytest.mark.parametrize(
    "benchmark", [c for c in map(DATASET_REGISTRY.get, sorted(COOPS | {"CIFAR10_local"})) if c.source], ids=lambda c: c.__name__
)
def test_every_source_is_a_reader_of_torchvision(benchmark: type[SplitDataset]) -> None:
    assert issubclass(getattr(torchvision_datasets, benchmark.source.reader), torchvision_datasets.VisionDataset)


def test_imagenet_has_no_val_and_tests_on_the_published_val(tmp_path: Path) -> None:
    imagenet(tmp_path, "imagenet", ["images/train", "images/val"], list(WORDNET))
    dataset = build("ImageNet", tmp_path)
    assert (dataset.split_kind, sizes(dataset)) == ("coop", (40, 0, 40))
    assert dataset.classnames == list(WORDNET.values())
    assert all("/val/" in item.impath for item in dataset.test) and all("/train/" in item.impath for item in dataset.train_x)


def test_imagenet_few_shots_draw_from_train_only(tmp_path: Path) -> None:
    imagenet(tmp_path, "imagenet", ["images/train", "images/val"], list(WORDNET))
    whole = build("ImageNet", tmp_path)
    dataset = build("ImageNet", tmp_path, NUM_SHOTS=2, SUBSAMPLE_CLASSES="base")
    assert sizes(dataset) == (4, 0, 20) and dataset.num_classes == 2
    assert {item.impath for item in dataset.train_x} <= {item.impath for item in whole.train_x}


def test_imagenet_folder_without_a_name_is_an_error(tmp_path: Path) -> None:
    imagenet(tmp_path, "imagenet", ["images/train", "images/val"], ["n01", "n09"])
    with pytest.raises(ValueError, match=r"classnames.txt lacks 1 class folder\(s\).*n09"):
        build("ImageNet", tmp_path)


EVALUATION = {
    "ImageNetSketch": ("imagenet-sketch", "images"),
    "ImageNetA": ("imagenet-adversarial", "imagenet-a"),
    "ImageNetR": ("imagenet-rendition", "imagenet-r"),
    "ImageNetV2": ("imagenetv2", "imagenetv2-matched-frequency-format-val"),
}


@pytest.fixture(params=EVALUATION)
def evaluation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder, images = EVALUATION[request.param]
    imagenet(tmp_path, folder, [images], ["3", "0", "1", "2"] if request.param == "ImageNetV2" else ["n03", "n01", "n05"])
    (tmp_path / folder / images / "README.txt").touch()
    yield request.param, tmp_path


def test_evaluation_sets_are_all_test(evaluation: tuple[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    name, root = evaluation
    dataset = build(name, root, NUM_SHOTS=2)
    expected = list(WORDNET.values()) if name == "ImageNetV2" else ["tench", "crane", "crane"]
    assert (dataset.split_kind, dataset.classnames) == ("coop", expected)
    assert sizes(dataset) == (10 * len(expected), 0, 10 * len(expected))
    assert "not comparable" not in caplog.text


def test_evaluation_sets_get_a_train_part_by_a_seeded_split(evaluation: tuple[str, Path]) -> None:
    name, root = evaluation
    dataset = build(name, root, SPLIT="seeded")
    train, test = ({item.impath for item in items} for items in (dataset.train_x, dataset.test))
    assert len(train) == 8 * dataset.num_classes and len(test) == 2 * dataset.num_classes and not train & test


def test_evaluation_set_is_tested_but_not_learned_from(tmp_path: Path, make_trainer: Callable) -> None:
    imagenet(tmp_path, "imagenet-adversarial", ["imagenet-a"], ["n01", "n02"])
    settings = {"DATASET.NAME": "ImageNetA", "DATASET.ROOT": str(tmp_path)}
    assert 0 <= make_trainer("ZeroshotCLIP", settings).test() <= 100
    with pytest.raises(ValueError, match="both train and test"):
        make_trainer("LaFTer", settings).train()


def test_class_names_of_imagenet_serve_the_sets_beside_it(tmp_path: Path) -> None:
    imagenet(tmp_path, "imagenet-rendition", ["imagenet-r"], ["n01", "n02"])
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet-rendition/classnames.txt").rename(tmp_path / "imagenet/classnames.txt")
    assert build("ImageNetR", tmp_path).classnames == ["tench", "great white shark"]
    (tmp_path / "imagenet/classnames.txt").unlink()
    with pytest.raises(FileNotFoundError, match="classnames.txt"):
        build("ImageNetR", tmp_path)


@pytest.mark.parametrize(("name", "folder"), [("CIFAR10_local", "cifar10"), ("CIFAR100_local", "cifar100")])
def test_cifar_folders(name: str, folder: str, tmp_path: Path) -> None:
    for part in ("train", "test"):
        pictures(tmp_path / folder / part, ["airplane", "aquarium_fish"])
    dataset = build(name, tmp_path)
    assert (dataset.split_kind, sizes(dataset)) == ("official", (16, 4, 20))
    assert dataset.classnames == ["airplane", "aquarium_fish"]
    assert all("/test/" in item.impath for item in dataset.test)
    seeded = build(name, tmp_path, SPLIT="seeded")
    assert sizes(seeded) == (20, 8, 12)


class FakeCifar:
    """Stands in for torchvision's reader."""

    classes = ["cat", "dog"]

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        self.pictures = [(Image.new("RGB", (32, 32), (n, 0, 9)), n % 2) for n in range(20 if train else 10)]

    def __iter__(self) -> Iterator:
        return iter(self.pictures)


def test_cifar_is_fetched_and_unpacked_into_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(torchvision_datasets, "CIFAR10", FakeCifar)
    dataset = build("CIFAR10_local", tmp_path, DOWNLOAD=True)
    assert sizes(dataset) == (16, 4, 10)
    third = tmp_path / "cifar10/train/dog/00003.png"
    assert Image.open(third).getpixel((0, 0)) == (3, 0, 9)
    assert sorted(path.name for path in (tmp_path / "cifar10").iterdir())[-2:] == ["test", "train"]
