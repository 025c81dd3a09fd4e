"""build_transform: steps, their order, their log lines, picklability."""

import pickle
import warnings

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.data.transforms import INTERPOLATION_MODES, build_transform, transforms
from PIL import Image


@pytest.fixture
def cfg():
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (16, 16)
    cfg.INPUT.GB_K = 5
    cfg.INPUT.TRANSFORMS = ("random_flip", "normalize")
    return cfg


@pytest.fixture
def image() -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 20, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def step_names(transform) -> list[str]:
    return [type(step).__name__ for step in transform.transforms]


def test_train_steps_come_in_the_documented_order(cfg):
    transform = build_transform(cfg, is_train=True, choices=transforms.AVAI_CHOICES)
    assert step_names(transform) == [
        "Random2DTranslation", "RandomCrop", "RandomResizedCrop", "RandomHorizontalFlip", "AutoAugment", "AutoAugment",
        "AutoAugment", "RandAugment", "RandomMagnitudeAugment", "RandomMagnitudeAugment", "ColorJitter",
        "RandomGrayscale", "RandomApply", "ToTensor", "Cutout", "Normalize", "GaussianNoise", "InstanceNormalization",
    ]  # fmt: skip


def test_train_without_a_crop_starts_with_resize(cfg):
    assert step_names(build_transform(cfg)) == ["Resize", "RandomHorizontalFlip", "ToTensor", "Normalize"]


def test_test_steps_resize_the_smaller_edge_to_the_larger_size(cfg, image):
    cfg.INPUT.SIZE = (12, 16)
    transform = build_transform(cfg, is_train=False)
    assert step_names(transform) == ["Resize", "CenterCrop", "ToTensor", "Normalize"]
    assert transform.transforms[0].size == 16
    assert transform(image).shape == (3, 12, 16)


def test_log_lines(cfg, capsys):
    build_transform(cfg)
    build_transform(cfg, is_train=False)
    assert capsys.readouterr().out.splitlines() == [
        "Building transform_train",
        "+ resize to 16x16",
        "+ random flip",
        "+ to torch tensor of range [0, 1]",
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
        "Building transform_test",
        "+ resize the smaller edge to 16",
        "+ 16x16 center crop",
        "+ to torch tensor of range [0, 1]",
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
    ]


@pytest.mark.parametrize("choice", transforms.AVAI_CHOICES)
def test_every_choice_runs_and_survives_pickling(cfg, image, choice):
    for is_train in (True, False):
        transform = build_transform(cfg, is_train=is_train, choices=[choice, "normalize"])
        output = pickle.loads(pickle.dumps(transform))(image)
        assert output.shape == (3, 16, 16)
        assert output.isfinite().all()


@pytest.mark.parametrize("choice", ["imagenet_policy", "randaugment", "randaugment_fixmatch", "randaugment2"])
def test_automatic_policies_say_that_draws_differ_from_upstream(cfg, capsys, choice):
    build_transform(cfg, choices=[choice, "normalize"])
    assert "draws differ from upstream Dassl's" in capsys.readouterr().out


def test_unknown_choice_names_it_and_the_allowed_ones(cfg):
    with pytest.raises(AssertionError, match="INPUT.TRANSFORMS has 'flip'.*random_flip"):
        build_transform(cfg, choices=["flip"])


def test_missing_normalize_warns_once(cfg):
    cfg.INPUT.TRANSFORMS = ("random_flip",)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        build_transform(cfg)
        build_transform(cfg, is_train=False)
    assert [str(warning.message) for warning in caught] == ["INPUT.TRANSFORMS has no 'normalize': images stay in [0, 1]"]


def test_no_transform_returns_none(cfg, capsys):
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None
    assert capsys.readouterr().out == "Note: no transform is applied!\n"


def test_interpolation_reaches_the_resize(cfg):
    cfg.INPUT.INTERPOLATION = "bicubic"
    for is_train in (True, False):
        assert build_transform(cfg, is_train=is_train).transforms[0].interpolation == INTERPOLATION_MODES["bicubic"]


def test_instance_normalization_standardises_each_channel():
    output = transforms.InstanceNormalization()(torch.rand(3, 9, 7) * 5 + 2)
    assert torch.allclose(output.mean(dim=(1, 2)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(output.flatten(1).std(dim=1), torch.ones(3), atol=1e-5)


def test_cutout_zeroes_at_most_its_square_in_all_channels():
    output = transforms.Cutout(n_holes=1, length=4)(torch.ones(3, 16, 16))
    holes = (output == 0).sum(dim=(1, 2))
    assert 4 <= holes[0] <= 16
    assert (holes == holes[0]).all()


def test_gaussian_noise_keeps_the_image_with_probability_zero():
    image = torch.rand(3, 4, 4)
    assert torch.equal(transforms.GaussianNoise(p=0)(image), image)
    assert not torch.equal(transforms.GaussianNoise(p=1)(image), image)


@pytest.mark.parametrize("p", [0, 1])
def test_random_translation_has_the_target_size(image, p):
    assert transforms.Random2DTranslation(height=10, width=14, p=p)(image).size == (14, 10)


def test_random_magnitude_augment_with_probability_zero_is_the_identity(image):
    assert transforms.RandomMagnitudeAugment(n=3, p=0)(image) is image
