"""The panels show the masks that are used, not others; counts and indices agree with them; rows are sorted as asked."""

import json

import numpy as np
import pytest
from PIL import Image

from trainers.bgobj_llava.detection.detections import Detections, from_boxes
from trainers.bgobj_llava.detection.instance_analysis import find_flips, loss_of, read_rows, sort_rows
from trainers.bgobj_llava.geometry import Canvas, MaskPolicy, object_pixels, split_boxes
from trainers.bgobj_llava.visualise import (
    CACHED_RGB,
    FRESH_RGB,
    OBJECT_RGB,
    CachedPart,
    describe_view,
    draw_panels,
    save_view,
    spread,
    sweep_image,
    sweep_panels,
    sweep_policies,
    tint,
    view_split,
)

CANVAS = Canvas(56, 14)
POLICY = MaskPolicy(dilate=0, overlap_ring=1, max_obj_frac=1.0)


def photo(width: int = 80, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def hit() -> CachedPart:
    background = np.zeros(16, dtype=bool)
    background[[0, 1, 15]] = True
    return CachedPart(background, ~background)


def tinted(before: np.ndarray, after: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where `after` is `before` blended half and half with the colour; elsewhere they must be equal."""
    blended = np.rint(before * 0.5 + np.asarray(colour) * 0.5)
    changed = (after != before).any(axis=-1)
    assert (after[changed] == blended[changed]).all()
    return changed | (before == blended).all(axis=-1)


def test_patch_panel_equals_the_mask_array():
    rng = np.random.default_rng(0)
    for _ in range(20):
        corner = rng.uniform(0, 40, 2)
        found = from_boxes([(*corner, *(corner + rng.uniform(1, 30, 2)))])
        view = view_split(photo(), found, CANVAS, MaskPolicy())
        expected = split_boxes(found.boxes, CANVAS.place(photo()), CANVAS, MaskPolicy()).objects
        panel = draw_panels(view)[4].pixels
        assert panel.dtype == bool and panel.shape == (4, 4)
        np.testing.assert_array_equal(panel.reshape(-1), expected)


def test_seven_panels_with_a_hit_and_five_without():
    found = from_boxes([(10, 5, 30, 25)])
    assert len(draw_panels(view_split(photo(), found, CANVAS, POLICY))) == 5
    panels = draw_panels(view_split(photo(), found, CANVAS, POLICY, hit()))
    assert len(panels) == 7
    placed, original = CANVAS.place(photo()), np.array(photo())
    np.testing.assert_array_equal(panels[0].pixels, original)
    on_original = np.zeros((40, 80), dtype=bool)
    on_original[5:25, 10:30] = True
    np.testing.assert_array_equal(tinted(original, panels[1].pixels, OBJECT_RGB), on_original)
    np.testing.assert_array_equal(panels[2].pixels, placed.pixels)
    on_model = object_pixels(found.boxes, placed, POLICY)
    np.testing.assert_array_equal(tinted(placed.pixels, panels[3].pixels, OBJECT_RGB), on_model)
    for panel, patches, colour in ((panels[5], hit().background, CACHED_RGB), (panels[6], hit().encoded, FRESH_RGB)):
        np.testing.assert_array_equal(tinted(placed.pixels, panel.pixels, colour), spread(patches, CANVAS))


def test_masks_and_single_mode_are_shown_as_they_count():
    masks = np.zeros((2, 40, 80), dtype=bool)
    masks[0, :3, :3] = masks[1, 20:, 40:] = True
    found = Detections(
        np.array([(0, 0, 3, 3), (40, 20, 80, 40)], np.float32), np.array([0.9, 0.5], np.float32), ["a", "b"], masks
    )
    both, best = (
        tinted(np.array(photo()), draw_panels(view_split(photo(), found, CANVAS, policy))[1].pixels, OBJECT_RGB)
        for policy in (MaskPolicy(), MaskPolicy(object_mode="single"))
    )
    np.testing.assert_array_equal(both, masks.any(axis=0))
    np.testing.assert_array_equal(best, masks[0])


def test_counts_and_indices_agree_with_the_masks():
    view = view_split(photo(), from_boxes([(10, 5, 30, 25)]), CANVAS, POLICY, hit())
    record = describe_view(view)
    assert record == json.loads(json.dumps(record))
    split = view.split
    masks = {"objects": split.objects, "raw": split.raw, "ring": split.ring, "background": ~split.objects}
    for name, mask in (masks | {"cached": hit().background, "encoded": hit().encoded}).items():
        assert record["indices"][name] == np.flatnonzero(mask).tolist()
        assert record["counts"][name] == mask.sum()
    assert (record["width"], record["height"], record["grid"], record["detected"]) == (80, 40, 4, True)
    assert record["boxes"] == [[10, 5, 30, 25]]


@pytest.mark.parametrize("boxes", [[(10, 5, 30, 25)], []])
def test_files_are_written_and_can_be_read(tmp_path, boxes):
    facts = {"impath": "a $b$.png", "question": "What costs $5 or $6?", "answer": "ä", "hit": "exact"}
    view = view_split(photo(), from_boxes(boxes), CANVAS, MaskPolicy(no_detection="baseline"), hit())
    picture, record = save_view(tmp_path / "new" / "folder", "0001", view, facts)
    with Image.open(picture) as image:
        assert image.format == "PNG" and min(image.size) > 300
    stored = json.loads(record.read_text("utf-8"))
    assert stored["answer"] == "ä" and stored["counts"]["objects"] == view.split.objects.sum()
    assert stored["stock_order"] == (not boxes)
    assert sorted(path.name for path in picture.parent.iterdir()) == ["0001.json", "0001.png"]


def test_sweep_dilates_then_widens_the_ring():
    policies = sweep_policies(MaskPolicy(dilate=2, overlap_ring=3, rho=0.5))
    assert [(policy.dilate, policy.overlap_ring) for policy in policies] == [(d, 0) for d in range(5)] + [
        (2, k) for k in range(1, 5)
    ]
    assert all(policy.rho == 0.5 for policy in policies)
    canvas = Canvas(336, 14)
    views = sweep_image(photo(336, 336), from_boxes([(150, 150, 160, 160)]), canvas, sweep_policies(MaskPolicy()))
    assert [view.split.objects.sum() for view in views] == [4, 16, 36, 64, 100, 16, 16, 16, 16]
    assert [view.split.ring.sum() for view in views] == [0] * 5 + [20, 48, 84, 128]
    panels = sweep_panels(views)
    assert panels[6].title == "dilate 1, ring 2: 16 + 48"
    changed = (panels[6].pixels != views[6].placed.pixels).any(axis=-1)
    assert (canvas.cover(changed) > 0).sum() == 16 + 48


def test_tint_leaves_the_rest_alone():
    pixels = np.array(photo(4, 2))
    mask = np.zeros((2, 4), dtype=bool)
    mask[0, 1] = True
    drawn = tint(pixels, mask, (255, 0, 0))
    np.testing.assert_array_equal(drawn[~mask], pixels[~mask])
    np.testing.assert_array_equal(drawn[0, 1], np.rint(pixels[0, 1] * 0.5 + np.array([127.5, 0, 0])))


def row(name: str, answer: str, accuracy: float, **fields) -> dict:
    return {"impath": f"{name}.png", "question": "q", "answer": answer, "scores": {"accuracy": accuracy}, **fields}


def test_rows_are_sorted_by_loss_area_and_flip():
    rows = [
        row("a", "x", 1.0, n_o=3),
        row("b", "y", 0.0, n_o=9),
        row("c", "z", 0.0, n_o=1, loss=7.5),
        row("d", "w", 1.0, n_o=5),
    ]
    before = [row("a", "x", 1.0), row("b", "Y", 1.0), row("c", "other", 0.0, loss=7.5), row("d", "bad", 0.0), row("e", "", 0.0)]
    assert [each["impath"][0] for each in sort_rows(rows, "loss")] == ["c", "b", "a", "d"]
    assert [each["impath"][0] for each in sort_rows(rows, "area")] == ["b", "d", "a", "c"]
    flips = sort_rows(rows, "flip", before)
    assert [(each["impath"][0], each["flip"], each["answer_before"]) for each in flips] == [
        ("b", "lost", "Y"), ("c", "other", "other"), ("d", "won", "bad")
    ]  # fmt: skip
    assert loss_of({"scores": {"accuracy": 0.25}}) == 0.75


def test_rows_that_cannot_be_sorted_are_named(tmp_path):
    with pytest.raises(ValueError, match="a.png: no n_o in this row"):
        sort_rows([row("a", "x", 1.0)], "area")
    with pytest.raises(ValueError, match="expected --against"):
        sort_rows([], "flip")
    with pytest.raises(ValueError, match="--sort is 'size'; expected one of loss, flip, area"):
        sort_rows([], "size")
    with pytest.raises(ValueError, match="share no image and question"):
        find_flips([row("a", "x", 1.0)], [row("b", "x", 1.0)])
    for line, message in (
        ("{", "line 2 is no JSON"),
        ('{"impath": "a.png"}', "line 2 has no impath and answer"),
        ("[1]", "line 2 has"),
    ):
        (tmp_path / "predictions.jsonl").write_text(json.dumps(row("a", "x", 1.0)) + "\n" + line + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_rows(tmp_path / "predictions.jsonl")
