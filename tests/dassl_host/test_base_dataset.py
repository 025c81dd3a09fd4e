"""Datum, DatasetBase and the registry of data sets."""

import random
import tarfile
import zipfile

import pytest
from dassl.data.datasets import DatasetBase, Datum, base_dataset, build_dataset


@pytest.fixture
def items(tmp_path) -> list[Datum]:
    path = tmp_path / "image.png"
    path.touch()
    layout = [(2, 0, "owl"), (0, 1, "cat"), (2, 1, "owl"), (0, 0, "cat"), (2, 0, "owl")]
    return [Datum(str(path), label, domain, name) for label, domain, name in layout]


def test_datum_exposes_its_four_attributes(tmp_path):
    path = tmp_path / "x.png"
    path.touch()
    datum = Datum(str(path), 3, 1, "cat")
    assert (datum.impath, datum.label, datum.domain, datum.classname) == (str(path), 3, 1, "cat")
    assert sorted(vars(datum)) == ["_classname", "_domain", "_impath", "_label"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("impath", ["missing/cat.png", 7])
def test_datum_without_a_file_names_the_path(impath):
    with pytest.raises(AssertionError, match=str(impath)):
        Datum(impath)


def test_dataset_counts_labels_without_images(items):
    dataset = DatasetBase(train_x=items, test=items[:1])
    assert dataset.num_classes == 3
    assert dataset.lab2cname == {0: "cat", 2: "owl"}
    assert dataset.classnames == ["cat", "owl"]
    assert (dataset.train_u, dataset.val, dataset.test) == (None, None, items[:1])


def test_splits_keep_the_order_of_first_appearance(items):
    dataset = DatasetBase(train_x=items)
    by_label = dataset.split_dataset_by_label(items)
    assert list(by_label) == [2, 0]
    assert by_label[2] == [items[0], items[2], items[4]]
    assert list(dataset.split_dataset_by_domain(items)) == [0, 1]


def test_fewshot_draws_from_global_random_in_class_order(items, capsys):
    dataset = DatasetBase(train_x=items)
    random.seed(3)
    chosen = dataset.generate_fewshot_dataset(items, num_shots=2)
    assert capsys.readouterr().out == "Creating a 2-shot dataset\n"
    generator = random.Random(3)
    owls, cats = [items[0], items[2], items[4]], [items[1], items[3]]
    assert chosen == generator.sample(owls, 2) + generator.sample(cats, 2)


def test_fewshot_takes_small_classes_whole_or_repeats(items):
    dataset = DatasetBase(train_x=items)
    assert len(dataset.generate_fewshot_dataset(items, num_shots=3)) == 5
    assert len(dataset.generate_fewshot_dataset(items, num_shots=3, repeat=True)) == 6


def test_fewshot_without_shots_returns_the_sources(items):
    dataset = DatasetBase(train_x=items)
    assert dataset.generate_fewshot_dataset(items) is items
    assert dataset.generate_fewshot_dataset(items, items[:1]) == (items, items[:1])
    assert [len(part) for part in dataset.generate_fewshot_dataset(items, items[:1], num_shots=1)] == [2, 1]


def test_input_domains_are_checked(items):
    dataset = DatasetBase(train_x=items)
    dataset.domains = ["photo", "sketch"]
    dataset.check_input_domains(["photo"], ["sketch"])
    with pytest.raises(ValueError, match="'clay'.*photo"):
        dataset.check_input_domains(["photo"], ["clay"])
    with pytest.raises(AssertionError, match="SOURCE_DOMAINS"):
        dataset.check_input_domains([], ["photo"])


def test_build_dataset_announces_and_suggests(make_toy_cfg, capsys):
    assert build_dataset(make_toy_cfg()).num_classes == 3
    assert capsys.readouterr().out == "Loading dataset: ToyColours\n"
    with pytest.raises(ValueError, match="ToyColours"):
        build_dataset(make_toy_cfg(**{"DATASET.NAME": "ToyColors"}))


def test_unpack_reads_three_formats_and_refuses_others(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.txt", "from_zip.txt")
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(tmp_path / "a.txt", f"from_{name}.txt")
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        base_dataset._unpack(str(tmp_path / name), str(tmp_path))
    assert all((tmp_path / f"from_{name}.txt").exists() for name in ("zip", "a.tar", "a.tar.gz"))
    with pytest.raises(ValueError, match="a.rar"):
        base_dataset._unpack(str(tmp_path / "a.rar"), str(tmp_path))
