"""Weak and strong views: shapes, randomness, pickling, and which of them a run's loader emits."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from PIL import Image
from torchvision import transforms

from trainers.views import RECIPES, RandomBlur, build_strong_view, resolve_views

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


@pytest.fixture
def image() -> Image.Image:
    pixels = torch.randint(0, 256, (40, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("recipe", RECIPES)
def test_strong_view_is_random_normalised_and_of_the_asked_size(recipe: str, image: Image.Image) -> None:
    view = build_strong_view(recipe, size_px=48, mean=MEAN, std=STD)
    torch.manual_seed(0)
    first, second = view(image), view(image)
    assert first.shape == (3, 48, 48) and first.dtype == torch.float32
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(view(image), first)


@pytest.mark.parametrize("recipe", RECIPES)
def test_strong_view_is_picklable(recipe: str, image: Image.Image) -> None:
    view = build_strong_view(recipe, size_px=32, mean=MEAN, std=STD)
    torch.manual_seed(0)
    expected = view(image)
    torch.manual_seed(0)
    assert torch.equal(ForkingPickler.loads(ForkingPickler.dumps(view))(image), expected)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith("glyphs")])
def test_recipes_for_characters_never_mirror(recipe: str) -> None:
    steps = build_strong_view(recipe, size_px=32, mean=MEAN, std=STD).transforms
    assert not any(isinstance(step, transforms.RandomHorizontalFlip) for step in steps)


def test_published_recipe_always_blurs_and_crops_bilinear() -> None:
    steps = build_strong_view("published", size_px=32, mean=MEAN, std=STD).transforms
    (blur,) = [step for step in steps if isinstance(step, RandomBlur)]
    (crop,) = [step for step in steps if isinstance(step, transforms.RandomResizedCrop)]
    assert blur.p == 1.0 and blur.sigma == (0.1, 2.0)
    assert crop.interpolation is transforms.InterpolationMode.BILINEAR and crop.scale == (0.2, 1.0)


@pytest.mark.parametrize(("p", "changes"), [(0.0, False), (1.0, True)])
def test_blur_happens_with_its_probability(p: float, changes: bool, image: Image.Image) -> None:
    assert (RandomBlur(p, (1.0, 2.0))(image).tobytes() != image.tobytes()) == changes


@pytest.mark.parametrize(
    ("augment", "label_free", "online", "views"),
    [
        ("auto", True, True, "two_crop"),
        ("auto", True, False, "single_crop"),
        ("two_crop", True, False, "single_crop"),  # a whole-set teacher needs no weak view
        ("single_crop", True, False, "single_crop"),
        ("none", True, False, "none"),
        ("auto", False, False, "single_crop"),
        ("auto", False, True, "single_crop"),  # a supervised run has no teacher, whatever TEACHER says
        ("two_crop", False, False, "two_crop"),
        ("none", False, False, "none"),
    ],
)
def test_views_follow_the_mode_and_the_teacher(augment: str, label_free: bool, online: bool, views: str) -> None:
    assert resolve_views(augment, label_free=label_free, online_teacher=online) == views


@pytest.mark.parametrize(("teacher", "keys"), [("shared", {"img", "img2"}), ("frozen", {"img"}), ("self", {"img"})])
def test_loader_emits_the_views_that_the_teacher_needs(teacher: str, keys: set, make_trainer) -> None:
    trainer = make_trainer("LaFTer", {".TEACHER": teacher})
    row = trainer.train_loader_x.dataset[0]
    assert {key for key in row if key.startswith("img")} == keys
    weak = trainer.clip.preprocess(Image.open(row["impath"]))
    assert torch.equal(row["img"], weak) == (teacher == "shared")
    trainer.train()
