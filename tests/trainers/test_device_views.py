"""Strong views on the model's device: the loader's squares, and random changes that differ per image and repeat per seed."""

import importlib.util
import pickle

import pytest
import torch
from PIL import Image

from trainers import device_views
from trainers.views import RECIPES

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
needs_kornia = pytest.mark.skipif(importlib.util.find_spec("kornia") is None, reason="kornia (extra gpu) is not installed")


def squares(n: int = 6, side: int = 32) -> torch.Tensor:
    """N times the same picture, a bright rectangle left of the middle, (N, 3, side, side), uint8."""
    picture = torch.zeros(3, side, side, dtype=torch.uint8)
    picture[:, 8:24, 4:14] = 200
    return picture.expand(n, -1, -1, -1)


def view(recipe: str) -> device_views.DeviceView:
    return device_views.DeviceView(recipe, size_px=28, mean=MEAN, std=STD)


def test_loader_part_gives_squares_of_bytes_and_can_be_pickled():
    transform = pickle.loads(pickle.dumps(device_views.build_square_view(28)))  # as a worker process gets it
    square = transform(Image.new("RGB", (50, 20), (255, 0, 10)))
    assert square.shape == (3, 32, 32) and square.dtype == torch.uint8
    assert square[:, 0, 0].tolist() == [255, 0, 10]


@needs_kornia
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_gives_normalised_views_that_differ_within_a_batch_and_repeat_per_seed(recipe):
    strong = view(recipe)
    torch.manual_seed(3)
    first = strong(squares())
    torch.manual_seed(3)
    again = strong(squares())
    torch.manual_seed(4)
    other = strong(squares())
    assert first.shape == (6, 3, 28, 28) and first.dtype == torch.float32
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    pixels = first * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6 and pixels.max() > 0.3


@needs_kornia
@pytest.mark.parametrize(("recipe", "mirrors"), [("standard", True), ("glyphs", False), ("glyphs_mild", False)])
def test_glyphs_are_never_mirrored(recipe, mirrors):
    torch.manual_seed(0)
    strong = view(recipe)
    steps = [type(step).__name__ for step in strong.steps]
    assert ("RandomHorizontalFlip" in steps) is mirrors


def test_missing_kornia_is_a_problem_that_names_the_key(monkeypatch):
    monkeypatch.setattr(device_views.importlib.util, "find_spec", lambda _: None)
    (problem,) = device_views.problems_with_kornia("TRAINER.LAFTER.AUGMENT_DEVICE")
    assert "TRAINER.LAFTER.AUGMENT_DEVICE" in problem and "expected cpu" in problem


@needs_kornia
@pytest.mark.parametrize("augment", ["single_crop", "two_crop"])
def test_a_run_learns_from_views_made_on_the_device(make_trainer, augment):
    trainer = make_trainer("LaFTer", {".AUGMENT_DEVICE": "gpu", ".AUGMENT": augment, ".MODE": "supervised"})
    batch = next(iter(trainer.train_loader_x))
    squares = batch["img2" if augment == "two_crop" else "img"]
    assert squares.dtype == torch.uint8
    torch.manual_seed(0)
    parsed = trainer.parse_batch_train(batch)
    torch.manual_seed(0)
    size = trainer.clip.info.image_size_px
    expected = device_views.DeviceView("standard", size_px=size, mean=trainer.clip.info.mean, std=trainer.clip.info.std)(squares)
    assert torch.equal(parsed.images[-len(squares) :], expected)
    trainer.train()


@needs_kornia
def test_weak_views_alone_stay_the_loaders(make_trainer):
    trainer = make_trainer("LaFTer", {".AUGMENT_DEVICE": "gpu", ".AUGMENT": "none"})
    batch = next(iter(trainer.train_loader_x))
    assert torch.equal(trainer.parse_batch_train(batch).images, batch["img"]) and batch["img"].dtype == torch.float32


def test_a_run_without_kornia_is_refused(make_trainer, monkeypatch):
    monkeypatch.setattr(device_views.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="AUGMENT_DEVICE is 'gpu', which needs kornia"):
        make_trainer("LaFTer", {".AUGMENT_DEVICE": "gpu"})
