"""Every published layout: counts, class order, labels, distributions, splits that are disjoint, stored and found again."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from emotion_config import build, names_of
from fake_trees import (
    EKMAN,
    MIKELS,
    WRITERS,
    abstract_votes,
    emotion6_votes,
    ldl_votes,
    write_artphoto,
    write_emoset,
    write_emotion6,
    write_fi,
    write_flickr_ldl,
    write_mat_split,
    write_twitter_ldl,
)

from clip_ext.label_ring import EMOTION6_RING, MIKELS_RING

SIZES = {  # train, val, test of the fake trees by DATASET.SPLIT auto
    "Emotion6": (36, 6, 18),
    "EmoSet": (128, 8, 24),
    "FI": (128, 8, 24),
    "Flickr_LDL": (56, 8, 16),
    "Twitter_LDL": (56, 8, 16),
    "Abstract": (52, 8, 12),  # 72 of 80: eight are tied
    "ArtPhoto": (56, 8, 16),
}
PUBLISHED = {
    "Emotion6": 1980,
    "EmoSet": 118_102,
    "FI": 23_308,
    "Flickr_LDL": 11_150,
    "Twitter_LDL": 10_045,
    "Abstract": 280,
    "ArtPhoto": 806,
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One fake tree per data set; not to be changed."""
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}


def parts(dataset: Any) -> list[list[Any]]:
    return [dataset.train_x, dataset.val, dataset.test]


def by_name(dataset: Any) -> dict[str, Any]:
    return {name: item for part in parts(dataset) for name, item in zip(names_of(part, dataset.folder), part, strict=True)}


def contents(dataset: Any) -> list[dict[str, tuple]]:
    """What a run sees, without the machine's paths."""
    facts = [[(item.label, item.extras["distribution"]) for item in part] for part in parts(dataset)]
    return [dict(zip(names_of(part, dataset.folder), facts[n], strict=True)) for n, part in enumerate(parts(dataset))]


@pytest.mark.parametrize("name", WRITERS)
def test_layout_gives_classes_sizes_and_disjoint_parts(name: str, roots: dict[str, Path]) -> None:
    dataset = build(name, roots[name])
    expected = EKMAN if name == "Emotion6" else MIKELS
    assert dataset.classnames == list(expected)
    assert (dataset.num_classes, dataset.lab2cname) == (len(expected), dict(enumerate(expected)))
    assert dataset.emotion_ring == (EMOTION6_RING if name == "Emotion6" else MIKELS_RING)
    assert tuple(len(part) for part in parts(dataset)) == SIZES[name]
    names = [set(names_of(part, dataset.folder)) for part in parts(dataset)]
    assert len(set.union(*names)) == sum(SIZES[name])
    assert all(item.classname == expected[item.label] for part in parts(dataset) for item in part)
    assert {item.label for item in dataset.train_x} == set(range(len(expected)))
    assert dataset.split_kind == ("official" if name == "EmoSet" else "seeded")


@pytest.mark.parametrize("name", WRITERS)
def test_every_item_carries_a_distribution_of_the_classes(name: str, roots: dict[str, Path]) -> None:
    dataset = build(name, roots[name])
    for item in (item for part in parts(dataset) for item in part):
        distribution, known = item.extras["distribution"], item.extras["has_distribution"]
        assert len(distribution) == dataset.num_classes and min(distribution) >= 0
        assert known == dataset.has_votes and isinstance(known, int)
        assert sum(distribution) == pytest.approx(float(known), abs=1e-5)


@pytest.mark.parametrize("name", WRITERS)
def test_size_other_than_published_is_a_notice(name: str, roots: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    build(name, roots[name])
    found = {"EmoSet": 160, "FI": 160, "Emotion6": 60}.get(name, 80)
    assert f"{name}: {found} images found, {PUBLISHED[name]} published" in caplog.text


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "EmoSet"])
def test_second_run_reads_the_stored_split(name: str, roots: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    first = build(name, roots[name], SPLIT_SEED=3)
    caplog.set_level(logging.INFO)
    caplog.clear()
    assert contents(build(name, roots[name], SPLIT_SEED=3)) == contents(first)
    assert "split_seeded-seed_3.json: reused" in caplog.text
    stored = json.loads((first.folder / "split_seeded-seed_3.json").read_text("utf-8"))
    assert [row[0] for row in stored["test"]] == names_of(first.test, first.folder)
    assert contents(build(name, roots[name], SPLIT_SEED=4)) != contents(first)


def test_stored_split_moves_with_the_data_and_is_no_hindrance_elsewhere(tmp_path: Path) -> None:
    root = write_artphoto(tmp_path / "first")
    first = build("ArtPhoto", root)
    shutil.move(root, tmp_path / "second")
    second = build("ArtPhoto", tmp_path / "second")
    assert contents(second) == contents(first)
    (second.folder / "split_seeded-seed_0.json").unlink()
    assert contents(build("ArtPhoto", tmp_path / "second")) == contents(first)


@pytest.mark.parametrize(
    ("name", "columns"), [("Emotion6", 9), ("Flickr_LDL", 8), ("Twitter_LDL", 8), ("Abstract", 8)]
)
def test_permuted_header_columns_give_the_same_result(name: str, columns: int, roots: dict[str, Path], tmp_path: Path) -> None:
    order = [(position * (5 if columns == 8 else 4) + 2) % columns for position in range(columns)]
    assert sorted(order) == list(range(columns)) and order != sorted(order)
    permuted = WRITERS[name](tmp_path, order=order)
    assert contents(build(name, permuted)) == contents(build(name, roots[name]))


def test_emotion6_label_is_the_folder_and_not_the_votes_maximum(roots: dict[str, Path]) -> None:
    items = by_name(build("Emotion6", roots["Emotion6"]))
    assert items["images/joy/2.jpg"].classname == "joy"
    votes = emotion6_votes("joy", 2)
    kept = sum(votes[name] for name in EKMAN)
    assert items["images/joy/2.jpg"].extras["distribution"] == pytest.approx([votes[name] / kept for name in EKMAN])
    by_votes = by_name(build("Emotion6", roots["Emotion6"], LABEL_SOURCE="votes"))
    assert (by_votes["images/joy/2.jpg"].classname, by_votes["images/joy/1.jpg"].classname) == ("sadness", "joy")


def test_emotion6_with_neutral_has_seven_classes_and_no_image_of_it(roots: dict[str, Path]) -> None:
    dataset = build("Emotion6", roots["Emotion6"], WITH_NEUTRAL=True)
    assert dataset.classnames == [*EKMAN, "neutral"] and dataset.num_classes == 7
    items = by_name(dataset)
    votes = emotion6_votes("fear", 3)
    total = sum(votes.values())
    expected = [votes[name] / total for name in (*EKMAN, "neutral")]
    assert items["images/fear/3.jpg"].extras["distribution"] == pytest.approx(expected)
    assert 6 not in {item.label for item in items.values()}


def test_emotion6_with_neutral_labels_by_votes_where_asked(tmp_path: Path) -> None:
    root = write_emotion6(tmp_path)
    table = root / "emotion6" / "ground_truth.txt"
    lines = table.read_text("utf-8").splitlines()
    lines[1] = "\t".join(["anger/1.jpg", "1", "1", "0.1", "0", "0", "0", "0", "0", "0.9"])
    table.write_text("\n".join(lines), "utf-8")
    dataset = build("Emotion6", root, WITH_NEUTRAL=True, LABEL_SOURCE="votes")
    assert by_name(dataset)["images/anger/1.jpg"].classname == "neutral"


def test_emotion6_json_reads_like_the_table(roots: dict[str, Path], tmp_path: Path) -> None:
    assert contents(build("Emotion6", write_emotion6(tmp_path, form="json"))) == contents(build("Emotion6", roots["Emotion6"]))


def test_emotion6_official_split_is_taken_where_its_index_is(tmp_path: Path) -> None:
    root = write_emotion6(tmp_path, official=True)
    dataset = build("Emotion6", root)
    assert dataset.split_kind == "official"
    numbers = [{int(Path(item.impath).stem) % 10 for item in part} for part in parts(dataset)]
    assert numbers[2] == {7, 8, 9} and not (numbers[0] | numbers[1]) & numbers[2]
    assert [len(part) for part in parts(dataset)] == [36, 6, 18]
    assert (dataset.folder / "split_official_val-seed_0.json").is_file()
    assert contents(build("Emotion6", root, SPLIT="official")) == contents(dataset)
    assert build("Emotion6", root, SPLIT="seeded").split_kind == "seeded"


def test_official_split_that_is_not_there_is_an_error_naming_its_files(roots: dict[str, Path]) -> None:
    with pytest.raises(FileNotFoundError, match="'official'.*lacks training_testing_split/training.txt"):
        build("Emotion6", roots["Emotion6"], SPLIT="official")


@pytest.mark.parametrize("cells", [3, 4])
def test_emoset_takes_the_given_parts_from_rows_of_three_and_four(cells: int, tmp_path: Path) -> None:
    dataset = build("EmoSet", write_emoset(tmp_path, cells=cells))
    numbers = [{int(Path(item.impath).stem.rpartition("_")[2]) % 20 for item in part} for part in parts(dataset)]
    assert numbers == [set(range(4, 20)), {0}, {1, 2, 3}]
    assert dataset.split_kind == "official"
    assert not list(dataset.folder.glob("split_*"))


def test_emoset_has_an_alias_and_can_be_split_anew(roots: dict[str, Path]) -> None:
    assert contents(build("Emoset", roots["EmoSet"])) == contents(build("EmoSet", roots["EmoSet"]))
    seeded = build("EmoSet", roots["EmoSet"], SPLIT="seeded")
    assert seeded.split_kind == "seeded"
    assert [len(part) for part in parts(seeded)] == [128, 8, 24]


def test_fi_reports_files_with_equal_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = build("FI", write_fi(tmp_path, placeholders=3))
    assert "FI: 3 files hold only 1 different pictures" in caplog.text
    assert "emotion_dataset/amusement/amusement_0000.jpg" in caplog.text
    assert sum(len(part) for part in parts(dataset)) == 160


@pytest.mark.parametrize(
    ("name", "write", "voters"), [("Flickr_LDL", write_flickr_ldl, 11), ("Twitter_LDL", write_twitter_ldl, 8)]
)
def test_ldl_votes_become_distributions_and_labels(
    name: str, write: Any, voters: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = by_name(build(name, write(tmp_path, trailing=True)))
    assert len(items) == 80
    for number in (1, 17, 80):
        item, votes = items[f"images/{number}.jpg"], ldl_votes(number, voters)
        assert item.extras["distribution"] == pytest.approx([votes[emotion] / voters for emotion in MIKELS])
        assert item.classname == MIKELS[number % 8]
    assert "whole votes" not in caplog.text


@pytest.mark.parametrize("hdf5", [True, False])
def test_ldl_takes_split_one_of_the_mat_file(hdf5: bool, tmp_path: Path) -> None:
    if hdf5:
        pytest.importorskip("h5py")
    root = write_flickr_ldl(tmp_path)
    first, second = set(range(1, 65)), set(range(17, 81))
    everything = set(range(1, 81))
    splits = {"train": [first, second], "test": [everything - first, everything - second]}
    write_mat_split(root / "Flickr_LDL", splits, hdf5=hdf5)
    dataset = build("Flickr_LDL", root)
    assert dataset.split_kind == "official"
    assert {int(Path(item.impath).stem) for item in dataset.test} == everything - first
    assert (len(dataset.train_x) + len(dataset.val), len(dataset.val)) == (64, 8)


def test_abstract_drops_ties_unless_told_otherwise(roots: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    dataset = build("Abstract", roots["Abstract"])
    assert len(by_name(dataset)) == 72 and "8 images excluded (tied votes): abstract_0009.jpg" in caplog.text
    assert set(dataset.excluded) == {f"abstract_{number:04d}.jpg" for number in range(9, 80, 10)}
    items = by_name(build("Abstract", roots["Abstract"], TIES="first"))
    assert len(items) == 80
    assert items["abstract_0009.jpg"].classname == "awe"  # class 1, before class 4
    votes = abstract_votes(10)
    assert items["abstract_0010.jpg"].extras["distribution"] == pytest.approx([votes[name] / 13 for name in MIKELS])


def test_artphoto_reads_the_emotion_off_the_file_name(roots: dict[str, Path]) -> None:
    items = by_name(build("ArtPhoto", roots["ArtPhoto"]))
    assert (items["sad_0003.jpg"].classname, items["awe_0003.jpg"].classname) == ("sadness", "awe")


@pytest.mark.parametrize("name", ["Abstract", "ArtPhoto"])
def test_folds_cover_every_image_once(name: str, roots: dict[str, Path]) -> None:
    folds = [build(name, roots[name], FOLD=fold) for fold in range(5)]
    tests = [names_of(dataset.test, dataset.folder) for dataset in folds]
    everything = set(by_name(folds[0]))
    assert sorted(sum(tests, [])) == sorted(everything)
    for fold, dataset in enumerate(folds):
        assert dataset.split_kind == f"fold_{fold}"
        assert set(by_name(dataset)) == everything
        assert len(dataset.val) == pytest.approx(0.1 * (len(everything) - len(dataset.test)), abs=4)
    assert contents(build(name, roots[name], FOLD=2)) == contents(folds[2])


def test_folder_names_match_in_any_case(tmp_path: Path, roots: dict[str, Path]) -> None:
    root = write_emotion6(tmp_path)
    expected = contents(build("Emotion6", roots["Emotion6"]))
    (root / "emotion6" / "images" / "joy").rename(root / "emotion6" / "images" / "Joy")
    (root / "emotion6").rename(root / "Emotion6")
    found = contents(build("Emotion6", root))
    assert [sorted(label for label, _ in part.values()) for part in found] == [
        sorted(label for label, _ in part.values()) for part in expected
    ]
    assert {name.lower() for part in found for name in part} == {name for part in expected for name in part}


def test_test_percent_sets_the_share_of_a_seeded_split(roots: dict[str, Path]) -> None:
    dataset = build("ArtPhoto", roots["ArtPhoto"], TEST_PERCENT=0.3)
    assert [len(part) for part in parts(dataset)] == [48, 8, 24]
    with pytest.raises(ValueError, match="TEST_PERCENT is 0.5, but ArtPhoto uses its fold_1 split"):
        build("ArtPhoto", roots["ArtPhoto"], TEST_PERCENT=0.5, FOLD=1)
    with pytest.raises(ValueError, match="TEST_PERCENT is 0.5, but EmoSet uses its official split"):
        build("EmoSet", roots["EmoSet"], TEST_PERCENT=0.5)


def test_few_shots_leave_the_test_part_alone(roots: dict[str, Path]) -> None:
    dataset = build("ArtPhoto", roots["ArtPhoto"], NUM_SHOTS=2)
    assert [len(part) for part in parts(dataset)] == [16, 8, 16]
