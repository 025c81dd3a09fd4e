"""Disturbed detections: each kind at its rate, reproducible from the sample's generator, none when switched off."""

import numpy as np
import pytest

from trainers.bgobj_llava.augment import MaskAugment
from trainers.bgobj_llava.detection.detections import Detections
from trainers.bgobj_llava.geometry import MaskPolicy

SIZE = (120, 80)
OFF = MaskAugment(dilate_max=0, spurious_p=0.0, drop_p=0.0, p_full=0.0, bg_jitter=0.0)


def some(*, masks: bool = False) -> Detections:
    boxes = np.array([(0, 0, 10, 10), (5, 5, 30, 30), (50, 50, 52, 52)], dtype=np.float32)
    drawn = np.arange(3)[:, None, None] == np.zeros((3, 80, 120), dtype=int)
    return Detections(boxes, np.array([0.9, 0.5, 0.3], dtype=np.float32), ["a", "b", "c"], drawn if masks else None)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_switched_off_nothing_changes():
    found, policy, pixels = some(masks=True), MaskPolicy(dilate=3), np.full((28, 28, 3), 90, dtype=np.uint8)
    for seed in range(20):
        same = OFF.disturb(found, SIZE, rng(seed))
        np.testing.assert_array_equal(same.boxes, found.boxes)
        np.testing.assert_array_equal(same.masks, found.masks)
        assert same.labels == found.labels and OFF.grow(policy, rng(seed)) == policy and not OFF.is_full(rng(seed))
        assert OFF.jitter(pixels, np.ones(4, dtype=bool), rng(seed)) is pixels


def test_the_same_generator_gives_the_same_disturbance():
    augment = MaskAugment(spurious_p=0.5, drop_p=0.5)
    results = [augment.disturb(some(), SIZE, rng(seed)) for seed in (3, 3, 4, 5, 6)]
    np.testing.assert_array_equal(results[0].boxes, results[1].boxes)
    assert len({each.boxes.tobytes() for each in results}) > 2


def test_one_choice_never_moves_the_next():
    """Dropped or spurious boxes leave dilation, order and noise of the same sample as they are."""
    following = set()
    for spurious_p in (0.0, 1.0):
        for drop_p in (0.0, 1.0):
            generator = rng(3)
            MaskAugment(spurious_p=spurious_p, drop_p=drop_p).disturb(some(), SIZE, generator)
            following.add(generator.random())
    assert len(following) == 1


@pytest.mark.parametrize("masks", [False, True])
def test_boxes_are_missed_at_their_rate(masks):
    augment = MaskAugment(drop_p=0.3, spurious_p=0.0)
    left = [augment.disturb(some(masks=masks), SIZE, rng(seed)) for seed in range(500)]
    assert np.mean([len(each) for each in left]) == pytest.approx(3 * 0.7, abs=0.15)
    for each in left:
        positions = ["abc".index(label) for label in each.labels]
        np.testing.assert_array_equal(each.boxes, some().boxes[positions])
        np.testing.assert_array_equal(each.scores, some().scores[positions])
        assert (each.masks is None) == (not masks)
        if masks:
            np.testing.assert_array_equal(each.masks, some(masks=True).masks[positions])


@pytest.mark.parametrize("masks", [False, True])
def test_spurious_boxes_lie_in_the_image_at_their_rate(masks):
    augment = MaskAugment(drop_p=0.0, spurious_p=0.4)
    found = [augment.disturb(some(masks=masks), SIZE, rng(seed)) for seed in range(500)]
    more = [each for each in found if len(each) == 4]
    assert len(more) / 500 == pytest.approx(0.4, abs=0.07)
    boxes = np.stack([each.boxes[3] for each in more])
    assert (boxes >= 0).all() and (boxes <= [120, 80, 120, 80]).all()
    shares = (boxes[:, 2:] - boxes[:, :2]) / SIZE
    assert (shares > 0.09).all() and (shares < 0.51).all() and shares.std() > 0.05
    for each in more:
        assert len(each.labels) == len(each.scores) == 4 and each.boxes.dtype == each.scores.dtype == np.float32
        if masks:
            left, top, right, bottom = np.rint(each.boxes[3]).astype(int)
            assert each.masks.shape == (4, 80, 120) and each.masks[3].sum() == (right - left) * (bottom - top)


def test_dilation_is_random_up_to_its_maximum():
    grown = {MaskAugment(dilate_max=2).grow(MaskPolicy(dilate=4, rho=0.5), rng(seed)) for seed in range(50)}
    assert grown == {MaskPolicy(dilate=step, rho=0.5) for step in range(3)}


def test_stock_order_comes_at_its_rate():
    augment = MaskAugment(p_full=0.25)
    assert np.mean([augment.is_full(rng(seed)) for seed in range(800)]) == pytest.approx(0.25, abs=0.05)


def test_jitter_is_noise_of_its_size_on_background_patches_only():
    pixels = np.full((56, 56, 3), 128, dtype=np.uint8)
    background = np.zeros(16, dtype=bool)
    background[[0, 5, 15]] = True
    noisy = MaskAugment(bg_jitter=5.0).jitter(pixels, background, rng())
    changed = (noisy != pixels).any(axis=-1).reshape(4, 14, 4, 14).any(axis=(1, 3)).reshape(-1)
    np.testing.assert_array_equal(changed, background)
    assert (noisy[:14, :14].astype(float) - 128).std() == pytest.approx(5.0, rel=0.15)
    assert noisy.dtype == np.uint8 and (pixels == 128).all()
    white = np.full((56, 56, 3), 255, dtype=np.uint8)
    assert MaskAugment(bg_jitter=5.0).jitter(white, background, rng())[:14, :14].min() > 200  # clipped, not wrapped
