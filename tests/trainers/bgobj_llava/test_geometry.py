"""Images on the canvas, boxes to pixels to patches, and the figures that justify one ring of dilation."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.bgobj_llava.geometry import (
    Canvas,
    MaskPolicy,
    check_boxes,
    dilate,
    object_pixels,
    open_image,
    raw_patches,
    split_boxes,
    split_raw,
)

ROOT = Path(__file__).resolve().parents[3]
CANVAS = Canvas(336, 14)
PLAIN = MaskPolicy(dilate=0, max_obj_frac=1.0)


def place(width: int = 336, height: int = 336, canvas: Canvas = CANVAS):
    return canvas.place(Image.new("RGB", (width, height)))


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("boxes", "plain", "dilated"),
    [
        ([(14, 14, 28, 28)], 1, 9),
        ([(13.9, 14, 28, 28.1)], 4, 12),
        ([(0, 0, 1, 1)], 1, 4),
        ([(100, 120, 220, 260)], 99, 143),
        ([(14, 14, 28, 28), (300, 300, 330, 330)], 10, 25),
    ],
)
def test_golden_boxes_of_the_model_frame(boxes, plain, dilated):
    counts = [split_boxes(boxes, place(), CANVAS, MaskPolicy(dilate=d)).objects.sum() for d in (0, 1)]
    assert counts == [plain, dilated]


def test_golden_rows_columns_and_shares():
    box = [(100, 120, 220, 260)]
    rows, columns = np.nonzero(split_boxes(box, place(), CANVAS, PLAIN).objects.reshape(24, 24))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 18, 7, 15)
    assert [raw_patches(box, place(), CANVAS, MaskPolicy(rho=rho)).sum() for rho in (0.0, 0.5, 1.0)] == [99, 88, 63]


@pytest.mark.parametrize(
    ("size", "box", "mapped", "plain", "dilated"),
    [
        ((400, 200), (100, 50, 200, 150), (84, 126, 168, 210), 36, 64),
        ((640, 480), (10, 10, 630, 470), (5.25, 47.25, 330.75, 288.75), 432, 480),
    ],
)
def test_golden_boxes_of_other_sizes(size, box, mapped, plain, dilated):
    placed = place(*size)
    np.testing.assert_allclose(placed.to_model([box]), [mapped])
    np.testing.assert_allclose(placed.to_original(placed.to_model([box])), [box])
    assert [split_boxes([box], placed, CANVAS, MaskPolicy(dilate=d)).objects.sum() for d in (0, 1)] == [plain, dilated]


def test_share_of_exactly_rho_is_object_in_spite_of_rounding():
    canvas = Canvas(70, 7)
    for covered in range(1, 8):
        raw = raw_patches([(0, 0, 7, covered)], place(70, 70, canvas), canvas, MaskPolicy(rho=covered * 7 / 49))
        assert raw.sum() == 1 and raw[0]


def test_an_edge_that_scaling_moved_past_its_integer_snaps_back():
    placed = place()
    assert object_pixels([(14 - 9e-4, 14, 28 + 9e-4, 28)], placed, PLAIN).sum() == 14 * 14
    assert object_pixels([(14 - 2e-3, 14, 28 + 2e-3, 28)], placed, PLAIN).sum() == 16 * 14


def test_padding_is_centred_in_the_fill_colour():
    placed = CANVAS.place(Image.new("RGB", (401, 200), (255, 0, 0)))
    assert (placed.offset, placed.size) == ((0, 100), (401, 200))
    assert placed.scale == (336 / 401, 336 / 401)
    assert placed.pixels.dtype == np.uint8 and placed.pixels.shape == (336, 336, 3)
    assert placed.pixels[0, 0].tolist() == placed.pixels[-1, -1].tolist() == [122, 116, 104]
    assert placed.pixels[168, 0].tolist() == [255, 0, 0]


def test_an_image_of_canvas_size_is_not_resampled():
    pixels = noise(336, 336)
    np.testing.assert_array_equal(CANVAS.place(Image.fromarray(pixels)).pixels, pixels)


def test_boxes_are_meant_in_the_upright_image(tmp_path):
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :10] = 255  # the left edge, which turning by 90 degrees to the right makes the top
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = open_image(tmp_path / "turned.png")
    assert image.size == (40, 60) and image.getpixel((20, 5)) == (255, 255, 255) and image.getpixel((20, 55)) == (0, 0, 0)
    with Image.open(tmp_path / "turned.png") as raw:
        np.testing.assert_array_equal(CANVAS.place(raw).pixels, CANVAS.place(image).pixels)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    Image.fromarray(noise(20, 10)).convert(mode).save(tmp_path / "image.png")
    assert CANVAS.place(open_image(tmp_path / "image.png")).pixels.shape == (336, 336, 3)


def test_undecodable_image_is_named(tmp_path):
    Image.fromarray(noise(40, 40)).save(tmp_path / "whole.png")
    for name, content in (
        ("text.jpg", b"no image"),
        ("cut.png", (tmp_path / "whole.png").read_bytes()[:900]),
        ("empty.png", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is no image that can be decoded"):
            open_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing.png"):
        open_image(tmp_path / "missing.png")


@pytest.mark.parametrize("size", [(400, 200), (200, 301), (336, 336), (50, 37)])
def test_crop_equals_hugging_face(size):
    processing = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = processing.CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, do_normalize=False, do_rescale=False
    )
    image = Image.fromarray(noise(*size))
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    placed = Canvas(336, 14, aspect="crop").place(image)
    np.testing.assert_array_equal(placed.pixels, expected.astype(np.uint8))


def test_boxes_follow_the_crop():
    placed = place(400, 200, Canvas(336, 14, aspect="crop"))
    np.testing.assert_allclose(placed.to_model([(100, 0, 300, 200)]), [(0, 0, 336, 336)], atol=1e-9)
    assert object_pixels([(0, 0, 50, 200)], placed, PLAIN).sum() == 0  # cut off
    assert object_pixels([(0, 0, 110, 200)], placed, PLAIN)[:, :17].all()
    assert object_pixels([(0, 0, 110, 200)], placed, PLAIN)[:, 17:].sum() == 0


@pytest.mark.parametrize("size", [(336, 336), (96, 96), (401, 203), (1000, 700), (30, 90)])
@pytest.mark.parametrize("aspect", ["pad", "crop"])
def test_a_mask_of_a_box_equals_the_box(size, aspect):
    placed, rng = place(*size, Canvas(336, 14, aspect=aspect)), np.random.default_rng(1)
    for _ in range(20):
        (left, right), (top, bottom) = (np.sort(rng.choice(length + 1, 2, replace=False)) for length in size)
        mask = np.zeros((1, size[1], size[0]), dtype=bool)
        mask[0, top:bottom, left:right] = True
        box = np.array([(left, top, right, bottom)], dtype=np.float32)
        np.testing.assert_array_equal(object_pixels(box, placed, PLAIN, masks=mask), object_pixels(box, placed, PLAIN))


@pytest.mark.parametrize("size", [(336, 336), (96, 96), (401, 203), (1000, 700)])
def test_patches_drawn_on_the_original_come_back_as_they_were(size):
    placed, rng = place(*size), np.random.default_rng(2)
    inside = np.ones((1, size[1], size[0]), dtype=bool)
    shown = CANVAS.cover(object_pixels([(0, 0, *size)], placed, PLAIN, masks=inside)).reshape(24, 24) == 1
    for _ in range(10):
        patches = (rng.random((24, 24)) < 0.3) & shown
        mask = placed.mask_to_original(patches.repeat(14, axis=0).repeat(14, axis=1))
        back = CANVAS.cover(placed.mask_to_model(mask)).reshape(24, 24) > 0
        np.testing.assert_array_equal(back, patches)


def test_dilation_equals_the_definition():
    mask = np.random.default_rng(3).random((9, 13)) < 0.05
    rows, columns = np.nonzero(mask)
    for times in range(4):
        grid = np.indices(mask.shape)
        near = np.maximum(abs(grid[0][..., None] - rows), abs(grid[1][..., None] - columns)) <= times
        np.testing.assert_array_equal(dilate(mask, times), near.any(axis=-1))
    np.testing.assert_array_equal(dilate(np.stack([mask, ~mask]), 2)[0], dilate(mask, 2))


def test_blocks_become_object_as_a_whole():
    raw = np.zeros(25, dtype=bool)
    raw[24] = True  # the last patch, in a block that the grid's edge cuts
    raw[6] = True
    split = split_raw(raw, MaskPolicy(block=2, dilate=0), 5)
    assert np.flatnonzero(split.objects).tolist() == [0, 1, 5, 6, 24]
    np.testing.assert_array_equal(split.raw, raw)
    assert split_raw(raw, MaskPolicy(block=3, dilate=0, max_obj_frac=1.0), 5).objects.sum() == 9 + 4


def test_more_than_the_limit_makes_all_patches_objects():
    raw = np.zeros(100, dtype=bool)
    raw[:50] = True
    assert split_raw(raw, MaskPolicy(dilate=0, max_obj_frac=0.5), 10).objects.sum() == 50
    raw[50] = True
    split = split_raw(raw, MaskPolicy(dilate=0, max_obj_frac=0.5, overlap_ring=2), 10)
    assert split.objects.all() and not split.ring.any() and not split.background.any() and split.detected


def test_ring_is_background_near_objects_and_leaves_them_alone():
    raw = np.zeros(81, dtype=bool)
    raw[40] = True
    plain, ringed = (split_raw(raw, MaskPolicy(overlap_ring=k), 9) for k in (0, 2))
    np.testing.assert_array_equal(plain.objects, ringed.objects)
    assert (plain.ring.sum(), ringed.ring.sum(), ringed.background.sum()) == (0, 49 - 9, 81 - 9)
    assert not (ringed.ring & ringed.objects).any()


@pytest.mark.parametrize(
    ("rule", "objects", "stock"), [("object_only", 576, False), ("bg_only", 0, False), ("baseline", 576, True)]
)
def test_no_detection_rules(rule, objects, stock):
    split = split_boxes([], place(), CANVAS, MaskPolicy(no_detection=rule, overlap_ring=2))
    assert (split.objects.sum(), split.background.sum(), split.stock_order) == (objects, 576 - objects, stock)
    assert not split.detected and not split.raw.any() and not split.ring.any()


def test_a_box_outside_the_picture_is_no_detection():
    assert not split_boxes([(400, 10, 420, 20)], place(), CANVAS, MaskPolicy()).detected


def test_single_takes_the_highest_score_and_among_equals_the_larger():
    boxes, policy = [(0, 0, 14, 14), (100, 100, 128, 114), (200, 200, 210, 210)], MaskPolicy(dilate=0, object_mode="single")
    first = split_boxes(boxes, place(), CANVAS, policy, scores=np.array([0.9, 0.8, 0.8]))
    assert np.flatnonzero(first.objects).tolist() == [0]
    tied = split_boxes(boxes, place(), CANVAS, policy, scores=np.array([0.8, 0.9, 0.9]))
    np.testing.assert_array_equal(tied.objects, split_boxes(boxes[1:2], place(), CANVAS, PLAIN).objects)
    np.testing.assert_array_equal(tied.objects, split_boxes(boxes, place(), CANVAS, policy).objects)
    masks = np.zeros((3, 336, 336), dtype=bool)
    masks[1, 0, 0] = masks[2, 300:, 300:] = True
    assert np.flatnonzero(split_boxes(boxes, place(), CANVAS, policy, masks=masks).objects).tolist() == [0]


@pytest.mark.parametrize(
    "box", [(10, 10, 10, 20), (10, 10, 5, 20), (10, 20, 20, 20), (0, 0, float("nan"), 5), (0, 0, float("inf"), 5)]
)
def test_impossible_boxes_are_refused_with_their_values(box):
    with pytest.raises(ValueError, match=r"a.jpg: 1 of 2 boxes have x2 <= x1.*expected x1, y1, x2, y2"):
        check_boxes([(0, 0, 1, 1), box], "a.jpg")
    with pytest.raises(ValueError, match="1 of 1 boxes"):
        split_boxes([box], place(), CANVAS, MaskPolicy())


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\); expected \(N, 4\)"):
        check_boxes([(0, 0, 1), (0, 0, 2)])
    with pytest.raises(ValueError, match=r"shape \(575,\); expected \(576,\)"):
        split_raw(np.zeros(575, dtype=bool), MaskPolicy(), 24)
    with pytest.raises(ValueError, match="1 scores for 2 boxes"):
        split_boxes([(0, 0, 1, 1), (2, 2, 3, 3)], place(), CANVAS, PLAIN, scores=np.ones(1))
    with pytest.raises(ValueError, match="masks are 100x50 px, their image 50x100"):
        split_boxes([(0, 0, 1, 1)], place(50, 100), CANVAS, PLAIN, masks=np.ones((1, 50, 100), dtype=bool))
    with pytest.raises(ValueError, match="336 px is no multiple of the patch side of 15 px"):
        Canvas(336, 15)
    with pytest.raises(ValueError, match="ASPECT is 'stretch'; expected one of pad, crop"):
        Canvas(336, 14, aspect="stretch")


def test_policy_lists_every_problem():
    assert MaskPolicy().problems() == []
    wrong = MaskPolicy(rho=1.5, dilate=5, block=0, overlap_ring=-1, max_obj_frac=0.0, object_mode="all", no_detection="stop")
    found = wrong.problems()
    assert len(found) == 7
    assert found[0] == "TRAINER.BGOBJLLAVA.MASK.RHO is 1.5; expected [0, 1]"
    assert found[-1] == "TRAINER.BGOBJLLAVA.MASK.NO_DETECTION is 'stop'; expected object_only, bg_only, baseline"


@pytest.mark.parametrize(("side", "extent"), [(336, 8), (480, 10), (672, 10), (1008, 10)])
def test_resizing_spreads_an_object_by_one_ring(side, extent):
    background = noise(side, side)
    changed, (start, end) = background.copy(), (side * 8 // 24, side * 16 // 24)
    changed[start:end, start:end] = 255 - changed[start:end, start:end]
    before, after = (CANVAS.place(Image.fromarray(pixels)) for pixels in (background, changed))
    differs = (CANVAS.cover((before.pixels != after.pixels).any(axis=-1)) > 0).reshape(24, 24)
    assert (differs.any(axis=0).sum(), differs.any(axis=1).sum()) == (extent, extent)
    if side in (336, 672):  # a corner of the ring may round to what it was at 1008
        assert differs.sum() == extent**2
    split = split_boxes([(start, start, end, end)], before, CANVAS, MaskPolicy())
    assert not (differs.reshape(-1) & split.background).any()  # one ring of dilation holds it all


def random_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    """Boxes of 8-35 % area and aspect .5-2 inside the canvas, (n, 4)."""
    area, aspect = rng.uniform(0.08, 0.35, n) * 336**2, rng.uniform(0.5, 2.0, n)
    sides = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)], axis=1)
    corner = rng.uniform(0, 1, (n, 2)) * (336 - sides)
    return np.concatenate([corner, corner + sides], axis=1)


def patches_of(boxes: np.ndarray) -> np.ndarray:
    placed = place()
    return np.stack([raw_patches(box[None], placed, CANVAS, PLAIN) for box in boxes]).reshape(-1, 24, 24)


def test_jitter_table():
    """Share of jittered boxes inside the stored mask at d = 0, 1, 2, and of equal masks at d = 1 (spec: within .03)."""
    table = {
        2: (0.80, 1.00, 1.00, 0.66),
        4: (0.63, 1.00, 1.00, 0.40),
        7: (0.44, 0.98, 1.00, 0.18),
        14: (0.26, 0.76, 0.97, 0.03),
    }
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 3000)
    stored = patches_of(boxes)
    grown = [dilate(stored, times) for times in range(3)]
    areas = [mask.mean() for mask in grown]
    np.testing.assert_allclose(areas, (0.25, 0.34, 0.42), atol=0.03)
    for sigma, expected in table.items():
        new = patches_of(boxes + rng.normal(0, sigma, boxes.shape))
        inside = [1 - (new & ~mask).any(axis=(1, 2)).mean() for mask in grown]
        equal = (dilate(new, 1) == grown[1]).all(axis=(1, 2)).mean()
        np.testing.assert_allclose([*inside, equal], expected, atol=0.03, err_msg=f"sigma {sigma}")


def test_geometry_needs_numpy_and_pillow_only():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import geometry;"
        "print([name for name in ('torch', 'transformers', 'torchvision', 'matplotlib', 'dassl') if name in sys.modules])"
    )
    folder = ROOT / "trainers" / "bgobj_llava"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
