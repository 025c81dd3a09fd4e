"""Items, few-shot choice, class selection and checks."""

import copy
import json
import random
from pathlib import Path

import pytest
from dassl.data.datasets import DatasetBase, Datum

from datasets.base import Item, check_classes, choose_few_shots, ensure_files, subsample_classes


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    return str(path)


def items(image: str, labels: list[int]) -> list[Item]:
    return [Item(image, label, classname=f"class{label}", extras={"n": n}) for n, label in enumerate(labels)]


def test_item_is_a_datum_with_extras_that_survives_pickling(image: str) -> None:
    item = Item(image, 3, 1, "three", extras={"caption": "a three", "distribution": (0.25, 0.75), "weight": 2})
    assert isinstance(item, Datum)
    twin = copy.deepcopy(item)  # takes the same protocol as pickling for a spawned loader worker
    assert (twin.impath, twin.label, twin.domain, twin.classname) == (image, 3, 1, "three")
    assert twin.extras == {"caption": "a three", "distribution": (0.25, 0.75), "weight": 2}
    assert Item(image).extras == {}


def test_item_extras_are_keyword_only(image: str) -> None:
    with pytest.raises(TypeError):
        Item(image, 0, 0, "", {"a": 1})


@pytest.mark.parametrize("value", [[1, 2], None, ("a",), {"b": 1}])
def test_item_with_other_extra_is_an_error_naming_key_and_value(image: str, value: object) -> None:
    with pytest.raises(TypeError, match="extra 'votes'"):
        Item(image, extras={"votes": value})


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_choose_few_shots_equals_dassls_choice(image: str, seed: int, shots: int) -> None:
    order = random.Random(99)
    train = items(image, [order.choice([4, 0, 2, 2, 2]) for _ in range(60)])
    val = items(image, [order.choice([0, 4, 2]) for _ in range(13)])
    state = random.getstate()
    try:
        random.seed(seed)
        sets = DatasetBase(train_x=train, val=val, test=val)
        expected = [
            sets.generate_fewshot_dataset(train, num_shots=shots),
            sets.generate_fewshot_dataset(val, num_shots=min(shots, 4)),
        ]
    finally:
        random.setstate(state)
    chosen = choose_few_shots(train, val, shots=shots, seed=seed)
    assert [[id(item) for item in split] for split in chosen] == [[id(item) for item in split] for split in expected]
    assert random.getstate() == state


def test_choose_few_shots_without_a_seed_is_an_error_naming_the_flag(image: str) -> None:
    train = items(image, [0, 1])
    with pytest.raises(ValueError, match="--seed"):
        choose_few_shots(train, train, shots=1, seed=-1)
    assert choose_few_shots(train, train, shots=-1, seed=-1) == (train, train)


def test_subsample_classes_halves_and_renumbers(image: str) -> None:
    train = items(image, [6, 0, 3, 8, 5, 3])
    assert [item.label for item in subsample_classes("base", train)[0]] == [0, 1, 2, 1]
    new, test = subsample_classes("new", train, items(image, [0, 8]))
    assert [(item.label, item.classname, item.extras["n"]) for item in new] == [(0, "class6", 0), (1, "class8", 3)]
    assert [item.label for item in test] == [1]
    with pytest.raises(ValueError, match="DATASET.SUBSAMPLE_CLASSES is 'old'.*all, base, new"):
        subsample_classes("old", train)


def test_check_classes_names_what_is_missing(image: str) -> None:
    with pytest.raises(ValueError, match="Toy has one class only.*class1"):
        check_classes("Toy", items(image, [1, 1]), items(image, [1]))
    with pytest.raises(ValueError, match="Toy has no training image.*class2"):
        check_classes("Toy", items(image, [0, 1]), items(image, [0, 1, 2]))
    check_classes("Toy", items(image, [0, 1]), items(image, [0]))


def test_ensure_files_makes_them_again_for_another_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    for size in (1, 2, 2):
        names = ensure_files(folder, {"size": size}, lambda size=size: [("sub/a.bin", bytes(size))])
        assert names == ["sub/a.bin"]
        assert (folder / "sub/a.bin").stat().st_size == size
    assert json.loads((folder / "manifest.json").read_text())["recipe"] == {"size": 2}
