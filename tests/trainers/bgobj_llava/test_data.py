"""Loader rows of BgObjLLaVA: fixed shapes, masks from boxes, augmentation by the sample's own generator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_questions import Question
from torch.utils.data import default_collate

from trainers.bgobj_llava.augment import MaskAugment
from trainers.bgobj_llava.data import BgObjWrapper, Normalisation, SceneView, training_view
from trainers.bgobj_llava.detection.detections import Detections, from_boxes
from trainers.bgobj_llava.detection.finders import Finder
from trainers.bgobj_llava.detection.options import DetectorOptions
from trainers.bgobj_llava.geometry import Canvas, MaskPolicy

CANVAS = Canvas(56, 7)  # 8 x 8 patches
QUIET = MaskAugment(dilate_max=0, spurious_p=0.0, drop_p=0.0, p_full=0.0, bg_jitter=0.0)
BOX = [7, 7, 14, 21]  # two patches of a 56 px image


def make_item(folder: Path, boxes: list | None = None, size: tuple[int, int] = (56, 56), **extras: Any) -> Question:
    """Write a picture of noise and return a question about it."""
    path = folder / "picture.png"
    pixels = np.random.default_rng(0).integers(60, 200, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    said = {"question": "what colour is it?", "answers": '["red", "blue", "blue"]'}
    said |= {"boxes": "" if boxes is None else json.dumps(boxes)}
    return Question(said | extras, impath=str(path), label=1)


def make_view(**changes: Any) -> SceneView:
    finder = Finder(DetectorOptions(missing="no_detection"), CANVAS)
    normalise = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    view = SceneView(CANVAS, MaskPolicy(dilate=0), normalise, finder, keeps_pixels=True)
    return replace(view, **changes)


def read_row(view: SceneView, item: Question, rng: int | None = None) -> dict[str, Any]:
    wrapper = BgObjWrapper.__new__(BgObjWrapper)
    wrapper.data_source, wrapper.transform = [item], view
    wrapper.rng = None if rng is None else np.random.default_rng(rng)
    return wrapper[0]


def test_row_has_the_documented_fields_and_collates(tmp_path: Path) -> None:
    row = read_row(make_view(), make_item(tmp_path, [BOX]))
    batch = default_collate([row, row])
    assert batch["img"].shape == (2, 3, 56, 56) and batch["img"].dtype == torch.float32
    assert batch["img_u8"].shape == (2, 56, 56, 3) and batch["img_u8"].dtype == torch.uint8
    for name in ("obj_mask", "obj_raw", "obj_ring"):
        assert batch[name].shape == (2, 64) and batch[name].dtype == torch.bool
    assert batch["stock_order"].tolist() == [False, False]
    assert (batch["label"].tolist(), batch["index"].tolist()) == ([1, 1], [0, 0])
    assert set(row) == {
        "img", "img_u8", "obj_mask", "obj_raw", "obj_ring", "stock_order", "turns", "question", "answer", "label", "domain",
        "impath", "index",
    }  # fmt: skip


def test_pixels_are_the_input_before_normalisation(tmp_path: Path) -> None:
    row = read_row(make_view(), make_item(tmp_path, [BOX]))
    expected = (row["img_u8"].permute(2, 0, 1).float() / 255 - 0.5) / 0.25
    assert torch.allclose(row["img"], expected, atol=1e-6)


def test_boxes_become_patches_in_raster_order(tmp_path: Path) -> None:
    row = read_row(make_view(), make_item(tmp_path, [BOX]))
    assert row["obj_mask"].nonzero().flatten().tolist() == [9, 17]
    wider = read_row(make_view(policy=MaskPolicy(dilate=1)), make_item(tmp_path, [BOX]))
    assert int(wider["obj_mask"].sum()) == 12 and torch.equal(wider["obj_raw"], row["obj_mask"])
    ringed = read_row(make_view(policy=MaskPolicy(dilate=0, overlap_ring=1)), make_item(tmp_path, [BOX]))
    assert int(ringed["obj_ring"].sum()) == 10


@pytest.mark.parametrize(("mode", "patches"), [("single", [63]), ("multi", [9, 63])])
def test_masks_and_scores_of_a_detector_count(mode: str, patches: list[int], tmp_path: Path) -> None:
    masks = np.zeros((2, 56, 56), dtype=bool)
    masks[0, 8, 8] = masks[1, 55, 55] = True  # one pixel of each box
    boxes = np.array([[0, 0, 40, 40], [42, 42, 56, 56]], dtype=np.float32)
    found = Detections(boxes, np.array([0.4, 0.9], dtype=np.float32), ["a", "b"], masks)
    view = make_view(find=lambda item, placed, index: found, policy=MaskPolicy(dilate=0, object_mode=mode))
    assert read_row(view, make_item(tmp_path))["obj_mask"].nonzero().flatten().tolist() == patches
    trained = read_row(training_view(view, QUIET), make_item(tmp_path), rng=0)
    assert trained["obj_mask"].nonzero().flatten().tolist() == patches


def test_most_frequent_reference_is_learned_and_several_turns_are_kept(tmp_path: Path) -> None:
    row = read_row(make_view(), make_item(tmp_path, [BOX]))
    assert row["answer"] == "blue" and json.loads(row["turns"]) == [["what colour is it?", "blue"]]
    turns = [["what is it?", "a circle"], ["where?", "left"]]
    row = read_row(make_view(), make_item(tmp_path, [BOX], turns=json.dumps(turns)))
    assert json.loads(row["turns"]) == turns and row["answer"] == "left"


def test_ocr_tokens_join_the_question_in_evaluation_only(tmp_path: Path) -> None:
    item = make_item(tmp_path, [BOX], ocr_tokens='["STOP", "now"]')
    view = make_view(ocr_tokens=True)
    assert read_row(view, item)["question"] == "what colour is it?\nReference OCR token: STOP, now"
    assert read_row(make_view(), item)["question"] == "what colour is it?"
    assert read_row(training_view(view, QUIET), item, rng=0)["question"] == "what colour is it?"


def test_without_a_split_nothing_is_looked_for(tmp_path: Path) -> None:
    row = read_row(make_view(find=None), make_item(tmp_path, None))
    assert row["stock_order"] is True and not row["obj_raw"].any()


@pytest.mark.parametrize(
    ("rule", "objects", "stock"), [("object_only", 64, False), ("bg_only", 0, False), ("baseline", 64, True)]
)
def test_image_without_objects_follows_the_rule(rule: str, objects: int, stock: bool, tmp_path: Path) -> None:
    row = read_row(make_view(policy=MaskPolicy(no_detection=rule)), make_item(tmp_path, []))
    assert (int(row["obj_mask"].sum()), row["stock_order"]) == (objects, stock)
    assert not row["obj_raw"].any()


def test_errors_name_the_file(tmp_path: Path) -> None:
    item = make_item(tmp_path, [[5, 5, 5, 9]])
    with pytest.raises(ValueError, match="picture.png.*x2 <= x1"):
        read_row(make_view(), item)
    Path(item.impath).write_bytes(b"no picture")
    with pytest.raises(ValueError, match="picture.png is no image"):
        read_row(make_view(), item)


def test_training_rows_depend_on_the_generator_of_the_sample_only(tmp_path: Path) -> None:
    view = training_view(make_view(), MaskAugment(bg_jitter=3.0))
    item = make_item(tmp_path, [BOX, [30, 30, 44, 44]])
    first, again, other = (read_row(view, item, rng) for rng in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in ("img", "obj_mask", "obj_raw"))
    assert not torch.equal(first["img"], other["img"])
    assert "img_u8" not in first


def test_quiet_augmentation_changes_nothing(tmp_path: Path) -> None:
    item = make_item(tmp_path, [BOX])
    plain, trained = read_row(make_view(), item), read_row(training_view(make_view(), QUIET), item, rng=0)
    assert all(torch.equal(plain[name], trained[name]) for name in ("img", "obj_mask", "obj_ring"))


def masks(tmp_path: Path, boxes: list, augment: MaskAugment, draws: int = 40) -> list[dict[str, Any]]:
    view = training_view(make_view(), augment)
    item = make_item(tmp_path, boxes)
    return [read_row(view, item, seed) for seed in range(draws)]


def test_each_augmentation_acts_at_its_rate(tmp_path: Path) -> None:
    grown = {int(row["obj_mask"].sum()) for row in masks(tmp_path, [BOX], replace(QUIET, dilate_max=2))}
    assert grown == {2, 12, 20}  # the border cuts the last one
    dropped = [row["obj_raw"].any().item() for row in masks(tmp_path, [BOX], replace(QUIET, drop_p=0.5))]
    assert 8 <= sum(dropped) <= 32
    spurious = [int(row["obj_raw"].sum()) > 2 for row in masks(tmp_path, [BOX], replace(QUIET, spurious_p=1.0))]
    assert sum(spurious) >= 38
    full = [row["stock_order"] for row in masks(tmp_path, [BOX], replace(QUIET, p_full=0.5))]
    assert 8 <= sum(full) <= 32


def test_jitter_touches_background_pixels_only(tmp_path: Path) -> None:
    plain = read_row(make_view(), make_item(tmp_path, [BOX]))
    (noisy,) = masks(tmp_path, [BOX], replace(QUIET, bg_jitter=4.0), draws=1)
    changed = (noisy["img"] != plain["img"]).any(dim=0)  # (S, S)
    objects = plain["obj_mask"].view(8, 8).repeat_interleave(7, 0).repeat_interleave(7, 1)
    assert not changed[objects].any() and changed[~objects].float().mean() > 0.9
    assert ((noisy["img"] - plain["img"]) * 0.25 * 255).std() == pytest.approx(4.0, rel=0.1)


def test_augmentation_keeps_masks_beside_their_boxes() -> None:
    found = from_boxes([BOX, [20, 20, 30, 30]])
    found = replace(found, masks=np.ones((2, 56, 56), dtype=bool), labels=["a", "b"])
    rng = np.random.default_rng(0)
    disturbed = replace(QUIET, drop_p=0.5, spurious_p=1.0).disturb(found, (56, 56), rng)
    assert len(disturbed.boxes) == len(disturbed.scores) == len(disturbed.labels) == len(disturbed.masks)
    assert disturbed.labels[-1] == "spurious" and 0 < disturbed.masks[-1].mean() < 0.5
