"""MiniScenes: files made once, splits that share nothing, groups that keep their promise, and views of one world."""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scene_rules import answer_by_rule, objects_of
from yacs.config import CfgNode

from datasets import mini_scenes
from datasets.mini_scenes import HELD_OUT, MiniScenes, read_records
from datasets.mini_scenes_generator import (
    NUMERALS,
    OBJECT_NAMES,
    QUESTION_TYPES,
    STYLES,
    Background,
    draw_background,
    names_style,
)
from datasets.mini_scenes_generator.backgrounds import background_of_split
from datasets.mini_scenes_generator.files import WorldSize, render_world
from datasets.mini_scenes_generator.groups import ROLES, scene_group
from datasets.mini_scenes_generator.rle import decode_mask, encode_mask

TINY = WorldSize(train=60, val=12, test=24, groups=12)
PUBLISHED = dict(mini_scenes.SIZES)  # before the tests put a tiny world in their place
PARTS = ("train", "val", "test", "groups")


def config(root: Path | str, **changes: object) -> CfgNode:
    dataset = {"ROOT": str(root), "NUM_SHOTS": -1, "SUBSAMPLE_CLASSES": "all"}
    dataset |= {"MINI_SIZE": "small", "MINI_VIEW": "classes", "MINI_TEST": "test"}
    return CfgNode({"SEED": changes.pop("SEED", 1), "DATASET": {**dataset, **changes}})


@pytest.fixture(scope="module", autouse=True)
def tiny_world():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mini_scenes.SIZES, "small", TINY)
        yield


@pytest.fixture(scope="module")
def root(tiny_world: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data root")
    MiniScenes(config(path))
    return path


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "mini_scenes" / "small"


@pytest.fixture(scope="module")
def records(folder: Path) -> dict[str, list]:
    return {part: read_records(folder, part) for part in PARTS}


def picture(folder: Path, record: dict) -> np.ndarray:
    return np.asarray(Image.open(folder / record["file"]))


def hashes(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# Files


def test_sizes_are_the_published_ones():
    assert PUBLISHED == {"full": WorldSize(6000, 600, 1200, 300, 96), "small": WorldSize(600, 100, 200, 50, 96)}


def test_two_generations_are_byte_identical(root: Path, tmp_path: Path) -> None:
    MiniScenes(config(tmp_path))
    assert hashes(tmp_path) == hashes(root)
    assert len(hashes(root)) == TINY.n_scenes + len(PARTS) + 1


def test_second_use_writes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("files were made again")

    monkeypatch.setattr(mini_scenes, "read_handwriting", fail)
    MiniScenes(config(root, MINI_VIEW="questions"))


@pytest.mark.parametrize("name", ["train/00003.png", "groups.jsonl"])
def test_truncated_file_is_noticed_and_rebuilt(name: str, root: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = hashes(root)
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with caplog.at_level(logging.INFO, logger="datasets"):
        MiniScenes(config(root))
    assert hashes(root) == before
    assert f"{name} is broken" in caplog.text


def test_other_code_or_other_sizes_make_the_files_anew(root: Path, folder: Path) -> None:
    recipe = json.loads((folder / "manifest.json").read_text("utf-8"))["recipe"]
    assert recipe == mini_scenes.recipe_of(TINY) and {"code", "digits", "train", "groups", "size_px"} <= set(recipe)
    others = (TINY, WorldSize(60, 12, 24, 11), WorldSize(60, 12, 24, 12, 48))
    assert len({json.dumps(mini_scenes.recipe_of(size)) for size in others}) == 3
    before, manifest = hashes(root), folder / "manifest.json"
    stale = manifest.read_text("utf-8").replace(recipe["code"], "0" * 16)
    manifest.write_text(stale, "utf-8")
    MiniScenes(config(root))
    assert hashes(root) == before


def test_unwritable_root_is_an_error_naming_key_and_path(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("in the way")
    with pytest.raises(OSError, match="DATASET.ROOT.*a file"):
        MiniScenes(config(blocked))


def bars() -> dict[str, dict[str, list[np.ndarray]]]:
    """Handwriting whose shape tells the split: ink as wide as high, half as wide, a quarter as wide."""
    widths = {"train": 48, "val": 24, "test": 12}
    return {split: {name: [np.full((48, width), 255, np.uint8)] for name in NUMERALS} for split, width in widths.items()}


def test_digits_come_from_the_split_of_their_scene() -> None:
    content = dict(render_world(WorldSize(train=12, val=12, test=12, groups=8), bars()))
    expected = {"train": 1.0, "val": 0.5, "test": 0.25, "groups": 0.25}
    for part, ratio in expected.items():
        things = [thing for line in content[f"{part}.jsonl"].splitlines() for thing in json.loads(line)["objects"]]
        boxes = [thing["box"] for thing in things if thing["name"].startswith("digit")]
        assert boxes and all(abs((x1 - x0) - ratio * (y1 - y0)) <= 1 for x0, y0, x1, y1 in boxes), part


def test_a_scene_does_not_depend_on_how_many_there_are() -> None:
    few, more = (dict(render_world(WorldSize(n, 1, 1, 1, size_px=48), bars())) for n in (2, 4))
    pictures = [name for name in few if name.endswith("png")]
    assert len(pictures) == 8 and all(few[name] == more[name] for name in pictures)
    assert more["train.jsonl"].startswith(few["train.jsonl"])


# Scenes


def test_splits_share_neither_pictures_nor_backgrounds(records: dict[str, list], folder: Path) -> None:
    pictures = [{picture(folder, record).tobytes() for record in records[part]} for part in ("train", "val", "test")]
    assert sum(map(len, pictures)) == len(set.union(*pictures)) == 60 + 12 + 24
    ids = [{record["background_id"].rsplit("-", 1)[0] for record in records[part]} for part in ("train", "val", "test")]
    assert not ids[0] & ids[1] and not ids[0] & ids[2] and not ids[1] & ids[2]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_split_has_every_style_variant_and_colour(split: str) -> None:
    rng = np.random.default_rng(0)
    drawn = [background_of_split(rng, split) for _ in range(600)]
    assert len({(background.style, background.variant) for background in drawn}) == 24
    assert len({background.main_colour for background in drawn}) == 11


def test_records_hold_what_trainers_read(records: dict[str, list], folder: Path) -> None:
    for part in PARTS:
        for record in records[part]:
            assert Image.open(folder / record["file"]).size == (96, 96)
            assert record["split"] == part and record["style"] in STYLES
            assert 1 <= len(record["objects"]) <= 3
            assert len(record["captions"]) >= 5
            sentences = [*record["captions"], record["background_sentence"], record["object_sentence"]]
            assert all(one["text"].endswith(".") and one["text"].count(".") == 1 for one in sentences)
            assert all(one["names_style"] == names_style(one["text"]) for one in sentences)


def test_masks_are_in_their_boxes_and_survive_the_round_trip(records: dict[str, list]) -> None:
    for record in records["test"]:
        for thing in record["objects"]:
            mask = decode_mask(thing["mask"])
            x0, y0, x1, y1 = thing["box"]
            assert mask.shape == (96, 96) and mask[y0:y1, x0:x1].sum() == mask.sum() > 0
            assert encode_mask(mask) == thing["mask"]


def test_entities_are_the_objects_of_the_caption_in_text_order(records: dict[str, list]) -> None:
    for record in records["train"]:
        names = {thing["name"] for thing in record["objects"]}
        for caption in record["captions"]:
            places = [caption["text"].index(entity) for entity in caption["entities"]]
            assert places == sorted(places) and caption["entities"] and set(caption["entities"]) <= names
        assert set(record["captions"][0]["entities"]) == names


def test_stored_answers_follow_from_stored_facts(records: dict[str, list]) -> None:
    types = set()
    for record in (record for part in PARTS for record in records[part]):
        for entry in record["questions"]:
            facts = {"style": record["style"], "main_colour": record["main_colour"]}
            expected = answer_by_rule(entry["question"], entry["question_type"], objects_of(record), **facts)
            assert entry["answer"] == expected, (record["scene_id"], entry)
            assert entry["names_style"] == (entry["question_type"] == "style")
            types.add(entry["question_type"])
    assert types == set(QUESTION_TYPES)
    ids = [entry["question_id"] for part in PARTS for record in records[part] for entry in record["questions"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("pixels", [[[1, 1], [0, 1]], [[0, 0], [0, 0]], [[1, 1], [1, 1]], [[0, 1, 0], [0, 0, 1]]])
def test_run_lengths_go_down_the_columns_from_zeros(pixels: list) -> None:
    mask = np.array(pixels, bool)
    code = encode_mask(mask)
    assert (code["counts"][0] == 0) == mask[0, 0] and sum(code["counts"]) == mask.size
    assert (decode_mask(code) == mask).all()


def test_run_lengths_of_another_size_are_refused() -> None:
    assert encode_mask(np.array([[0, 1], [0, 1]], bool)) == {"size": [2, 2], "counts": [2, 2]}
    with pytest.raises(ValueError, match="sum to 3; expected 2 x 2"):
        decode_mask({"size": [2, 2], "counts": [1, 2]})


# Groups


def outside(*scenes) -> np.ndarray:
    """Pixels outside all boxes of all scenes, (H, W) bool."""
    free = np.ones(scenes[0].image.shape[:2], bool)
    for x0, y0, x1, y1 in (thing.box for scene in scenes for thing in scene.objects):
        free[y0:y1, x0:x1] = False
    return free


@pytest.mark.parametrize(("size_px", "count"), [(96, 40), (336, 6)])
def test_groups_share_exactly_the_pixels_that_their_roles_promise(size_px: int, count: int) -> None:
    clocks = 0
    for seed in range(count):
        group = scene_group(np.random.default_rng(seed), size_px=size_px)
        assert tuple(group) == ROLES
        base, exchanged, moved, friend = group.values()
        for other in (exchanged, moved):
            assert other.background == base.background
            differs = (base.image != other.image).any(-1)
            assert differs.any() and not (differs & outside(base, other)).any()
        old, new = np.array(base.objects[0].box), np.array(exchanged.objects[0].box)
        assert (new[:2] >= old[:2]).all() and (new[2:] <= old[2:]).all()
        assert np.abs(np.array(moved.objects[0].box) - old).max() >= 0.35 * size_px
        if base.objects[0].name == "clock":
            clocks += 1
            assert exchanged.objects[0].time[0] == base.objects[0].time[0] % 12 + 1
    assert clocks


@pytest.mark.parametrize(("size_px", "count"), [(96, 40), (336, 6)])
def test_false_friends_differ_in_a_few_cells_that_a_cache_would_compare(size_px: int, count: int) -> None:
    for seed in range(count):
        group = scene_group(np.random.default_rng(seed), size_px=size_px)
        base, friend = group["base"], group["false_friend"]
        assert [thing.box for thing in base.objects] == [thing.box for thing in friend.objects]
        assert base.background.background_id != friend.background.background_id
        differs = (base.image != friend.image).any(-1)
        cells = differs.reshape(12, size_px // 12, 12, size_px // 12).any((1, 3))
        assert 1 <= cells.sum() <= 4 and (differs == np.kron(cells, np.ones((size_px // 12,) * 2, bool))).all()
        rows, columns = np.nonzero(differs)
        for x0, y0, x1, y1 in (thing.box for thing in base.objects):
            across = np.maximum(x0 - 1 - columns, columns - x1)
            down = np.maximum(y0 - 1 - rows, rows - y1)
            assert np.maximum(across, down).min() >= 0.2 * size_px - 1


def test_groups_repeat_and_take_the_given_background() -> None:
    background = background_of_split(np.random.default_rng(1), "train")
    first, second = (scene_group(np.random.default_rng(5), background=background) for _ in range(2))
    assert all((first[role].image == second[role].image).all() for role in ROLES)
    assert first["base"].background == background


def test_stored_groups_have_their_ids_and_roles(records: dict[str, list]) -> None:
    groups = records["groups"]
    assert [record["role"] for record in groups] == list(ROLES) * TINY.groups
    assert [int(record["group_id"]) for record in groups] == [number for number in range(TINY.groups) for _ in ROLES]
    for first in range(0, len(groups), len(ROLES)):
        base, exchanged, moved, friend = (record["background_id"] for record in groups[first : first + len(ROLES)])
        assert base == exchanged == moved != friend
    assert all(record["group_id"] == record["role"] == "" for record in records["test"])


def test_seeds_of_a_gradient_that_draw_the_same_pixels_share_an_id() -> None:
    drawn = [Background("gradient", "red", "blue", 1, seed) for seed in range(8)]
    by_id = {ground.background_id: draw_background(ground).tobytes() for ground in drawn}
    assert len(by_id) == len(set(by_id.values())) == 2
    assert all(by_id[ground.background_id] == draw_background(ground).tobytes() for ground in drawn)


# Views


def test_classes_are_the_largest_objects(root: Path, records: dict[str, list]) -> None:
    scenes = MiniScenes(config(root))
    assert [len(split) for split in (scenes.train_x, scenes.val, scenes.test)] == [60, 12, 24]
    assert scenes.classnames == sorted(OBJECT_NAMES) and scenes.num_classes == 47  # even if a small world lacks some
    for item, record in zip(scenes.test, records["test"], strict=True):
        areas = {thing["name"]: decode_mask(thing["mask"]).sum() for thing in record["objects"]}
        assert areas[item.classname] == max(areas.values())
        assert scenes.lab2cname[item.label] == item.classname and Path(item.impath).is_file()


def test_styles_are_labels_in_their_view(root: Path, records: dict[str, list]) -> None:
    scenes = MiniScenes(config(root, MINI_VIEW="styles"))
    assert scenes.classnames == sorted(STYLES)
    assert [item.classname for item in scenes.test] == [record["style"] for record in records["test"]]
    assert all(scenes.lab2cname[item.label] == item.classname for item in scenes.train_x)


def test_captions_view_has_one_item_per_scene(root: Path, records: dict[str, list]) -> None:
    scenes = MiniScenes(config(root, MINI_VIEW="captions"))
    assert len(scenes.train_x) == 60 and scenes.classnames == ["caption"]
    item, record = scenes.train_x[7], records["train"][7]
    assert json.loads(item.extras["captions"]) == [caption["text"] for caption in record["captions"]]
    assert json.loads(item.extras["entities"]) == [caption["entities"] for caption in record["captions"]]
    assert set(item.extras) == {"captions", "entities", "image_id", "split_name", "style"}


def test_captions_view_gives_every_scene_five_sentences_in_other_words(root: Path) -> None:
    for item in MiniScenes(config(root, MINI_VIEW="captions")).train_x:
        captions, entities = json.loads(item.extras["captions"]), json.loads(item.extras["entities"])
        assert len(set(captions)) >= 5 and len(entities) == len(captions)
        assert all(caption.count(".") == 1 and caption.endswith(".") for caption in captions)
        pairs = [(caption, name) for caption, names in zip(captions, entities, strict=True) for name in names]
        assert pairs and all(name in caption and name in OBJECT_NAMES for caption, name in pairs)


def test_domains_hold_objects_out_of_the_captions_that_are_learned(root: Path) -> None:
    whole = MiniScenes(config(root, MINI_VIEW="captions"))
    scenes = MiniScenes(config(root, MINI_VIEW="captions", MINI_TEST="domains"))
    named = {name for item in (*scenes.train_x, *scenes.val) for names in json.loads(item.extras["entities"]) for name in names}
    assert not named & HELD_OUT and 0 < len(scenes.train_x) < len(whole.train_x)
    for item, other in zip(scenes.test, whole.test, strict=True):
        holds = any(HELD_OUT & set(names) for names in json.loads(item.extras["entities"]))
        assert item.extras["split_name"] == ("out_domain" if holds else "in_domain")
        assert {**item.extras, "split_name": "test"} == other.extras
    assert {item.extras["split_name"] for item in scenes.test} == {"in_domain", "out_domain"}


def test_domains_are_of_captions_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MINI_TEST is 'domains', but DATASET.MINI_VIEW is 'classes'; expected captions"):
        MiniScenes(config(tmp_path, MINI_TEST="domains"))


def test_questions_view_has_one_item_per_question(root: Path, records: dict[str, list]) -> None:
    scenes = MiniScenes(config(root, MINI_VIEW="questions"))
    assert scenes.classnames == sorted(QUESTION_TYPES)
    asked = [(record, entry) for record in records["test"] for entry in record["questions"]]
    assert len(scenes.test) == len(asked)
    for item, (record, entry) in zip(scenes.test, asked, strict=True):
        assert item.extras["question"] == entry["question"] and item.extras["question_id"] == entry["question_id"]
        assert json.loads(item.extras["answers"]) == [entry["answer"]]
        assert json.loads(item.extras["boxes"]) == [thing["box"] for thing in record["objects"]]
        assert item.extras["question_type"] == item.classname == scenes.lab2cname[item.label]
        assert item.extras["style"] == record["style"] and item.extras["background_id"] == record["background_id"]


def test_groups_take_the_place_of_the_test_split(root: Path) -> None:
    scenes = MiniScenes(config(root, MINI_VIEW="questions", MINI_TEST="groups"))
    assert {item.extras["role"] for item in scenes.test} == set(ROLES)
    assert {item.extras["role"] for item in scenes.train_x} == {""}
    assert len(MiniScenes(config(root, MINI_TEST="groups")).test) == TINY.groups * len(ROLES)


def test_few_shots_and_half_of_the_classes_are_chosen_by_label(root: Path) -> None:
    scenes = MiniScenes(config(root, MINI_VIEW="questions", NUM_SHOTS=2, SUBSAMPLE_CLASSES="new"))
    assert scenes.classnames == ["object", "position", "style"]
    assert (len(scenes.train_x), len(scenes.val)) == (6, 6)
    assert {item.label for item in scenes.test} == {0, 1, 2}


def test_unknown_values_are_reported_together_with_the_allowed_ones(tmp_path: Path) -> None:
    wrong = config(tmp_path, MINI_SIZE="huge", MINI_VIEW="questoins", MINI_TEST="val", SUBSAMPLE_CLASSES="old")
    with pytest.raises(ValueError) as error:
        MiniScenes(wrong)
    for part in (
        "DATASET.MINI_SIZE is 'huge'; expected one of full, small",
        "DATASET.MINI_VIEW is 'questoins'; expected one of classes, styles, captions, questions",
        "DATASET.MINI_TEST is 'val'; expected one of test, groups",
        "DATASET.SUBSAMPLE_CLASSES is 'old'",
    ):
        assert part in str(error.value)
    assert list(tmp_path.iterdir()) == []
