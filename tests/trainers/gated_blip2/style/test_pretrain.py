"""Pre-training of style encoders: balance of classes, views, what trains, what is written, and what it starts from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import Datum
from dassl.engine import TRAINER_REGISTRY
from own_images import write_class_folders
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F
from yacs.config import CfgNode

from trainers.dataset_keys import add_dataset_keys
from trainers.gated_blip2.style import pretrain, start
from trainers.gated_blip2.style.encoder import load_style_encoder
from trainers.gated_blip2.style.networks import CLASSIFIER, build_network
from trainers.gated_blip2.style.view import StyleView

NODE = "TRAINER.STYLEENCODERTRAINER"
TINY = "efficientnet_tiny"


def make_cfg(root: Path, output: Path, **changes: Any) -> CfgNode:
    """A pre-training on class folders; a key with a dot is one of the whole tree."""
    cfg = get_cfg_default()
    add_dataset_keys(cfg.DATASET)
    pretrain.add_config(cfg)
    own = {"ARCH": TINY, "INIT": "random", "PREC": "fp32"}
    settings = {
        "DATASET.NAME": "CustomImages", "DATASET.ROOT": str(root),
        "OUTPUT_DIR": str(output), "USE_CUDA": False, "VERBOSE": False, "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 8, "INPUT.SIZE": (32, 32),
        "OPTIM.NAME": "adamw", "OPTIM.LR": 1e-3, "OPTIM.MAX_EPOCH": 1, "TEST.FINAL_MODEL": "best_val",
        **{f"{NODE}.{key}": value for key, value in own.items()},
    }  # fmt: skip
    settings |= {key if "." in key else f"{NODE}.{key}": value for key, value in changes.items()}
    cfg.merge_from_list([part for pair in settings.items() for part in pair])
    return cfg


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of a class, and half as many of another."""
    folder = write_class_folders(tmp_path_factory.mktemp("pictures"), 10, ["coarse", "fine"])
    for path in sorted((folder / "fine").iterdir())[::2]:
        path.unlink()
    return folder


def build(pictures: Path, output: Path, **changes: Any) -> pretrain.StyleEncoderTrainer:
    torch.manual_seed(1)
    return pretrain.StyleEncoderTrainer(make_cfg(pictures, output, **changes))


def batch_of(trainer: pretrain.StyleEncoderTrainer) -> tuple[torch.Tensor, torch.Tensor]:
    return trainer.parse_batch_train(next(iter(trainer.train_loader_x)))


# --- the loss ------------------------------------------------------------------------------------------------------------


def test_log_shares_are_those_of_the_items() -> None:
    items = [Datum(impath=__file__, label=label) for label in (0, 0, 0, 2)]
    expected = torch.tensor([3 / 5, 1 / 5, 1 / 5]).log()  # a class without any counts as if it had one
    assert torch.allclose(pretrain.log_shares(items, 3), expected, atol=1e-6)


def test_the_loss_is_the_smoothed_cross_entropy_of_adjusted_logits(pictures: Path, tmp_path: Path) -> None:
    trainer = build(pictures, tmp_path)
    trainer.network.eval()  # so that a second pass gives the same logits
    images, labels = batch_of(trainer)
    counts = [sum(item.label == label for item in trainer.dm.dataset.train_x) for label in (0, 1)]
    assert counts[0] > counts[1]
    with torch.no_grad():
        logits = trainer.network(images)
        (loss,) = trainer.compute_losses((images, labels)).values()
    adjusted = logits + torch.tensor([math.log(count / sum(counts)) for count in counts])
    log_p = adjusted.log_softmax(1)
    expected = -(0.9 * log_p[range(len(labels)), labels] + 0.1 * log_p.mean(1)).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert torch.equal(trainer.model_inference(images), logits)  # in use, nobody knows the shares


def test_without_balance_logits_stay_as_they_are(pictures: Path, tmp_path: Path) -> None:
    trainer = build(pictures, tmp_path, BALANCE="none", LABEL_SMOOTHING=0.0)
    trainer.network.eval()
    images, labels = batch_of(trainer)
    with torch.no_grad():
        (loss,) = trainer.compute_losses((images, labels)).values()
        assert loss.item() == pytest.approx(F.cross_entropy(trainer.network(images), labels).item(), abs=1e-6)


# --- what trains, on what ------------------------------------------------------------------------------------------------


def test_everything_trains_and_only_kernels_decay(pictures: Path, tmp_path: Path) -> None:
    trainer = build(pictures, tmp_path, **{"OPTIM.WEIGHT_DECAY": 0.07})
    by_decay = {group["weight_decay"]: group["params"] for group in trainer.optim.param_groups}
    assert set(by_decay) == {0.07, 0.0}
    assert all(p.ndim >= 2 for p in by_decay[0.07]) and all(p.ndim == 1 for p in by_decay[0.0])
    assert sum(map(len, by_decay.values())) == len(list(trainer.network.parameters()))
    assert all(p.requires_grad for p in trainer.network.parameters())


def test_the_view_keeps_its_proportion_at_another_size() -> None:
    view = StyleView(resize_px=345, crop_px=300)
    assert pretrain.scale_view(view, 300) == view
    assert pretrain.scale_view(view, 200) == StyleView(resize_px=230, crop_px=200)


def test_training_crops_have_the_views_size_and_differ() -> None:
    picture = Image.effect_noise((50, 40), 60).convert("RGB")
    change = pretrain.build_train_view(StyleView(resize_px=32, crop_px=32))
    torch.manual_seed(1)
    first, second = change(picture), change(picture)
    assert first.shape == (3, 32, 32) and not torch.equal(first, second)
    assert first.std(0).mean() > 0.1 or second.std(0).mean() > 0.1  # of normalised channels, of a grey picture


def test_it_is_not_registered() -> None:
    assert "StyleEncoderTrainer" not in TRAINER_REGISTRY.registered_names()


# --- what is refused -----------------------------------------------------------------------------------------------------


def test_all_problems_with_the_config_are_reported_together(pictures: Path, tmp_path: Path) -> None:
    wrong = {"INPUT.SIZE": (16, 16), "BALANCE": "sample", "INIT": "imagenet", "LABEL_SMOOTHING": 1.0, "SCHEDULER_STEP": "day"}
    with pytest.raises(ValueError, match=r"5 problem\(s\)") as caught:
        build(pictures, tmp_path, **wrong)
    expected = ("(--image-size) is (16, 16)", "BALANCE is 'sample'", "(--init) is 'imagenet'", "SMOOTHING is 1.0", "is 'day'")
    for words in expected:
        assert words in str(caught.value)


def test_an_unknown_architecture_and_an_absent_file_are_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{NODE}.ARCH is 'vgg'; expected one of efficientnet_b3, efficientnet_tiny"):
        build(pictures, tmp_path, ARCH="vgg")
    with pytest.raises(ValueError, match=r"INIT \(--init\) is 'gone.pt'; expected imagenet, random, or a file"):
        build(pictures, tmp_path, INIT="gone.pt")


def test_a_class_without_a_picture_to_learn_from_is_refused(pictures: Path, tmp_path: Path) -> None:
    trainer = build(pictures, tmp_path)
    trainer.dm.dataset.train_x[:] = [item for item in trainer.dm.dataset.train_x if item.label == 0]
    with pytest.raises(ValueError, match=r"1 class\(es\) without a picture to learn from: fine"):
        trainer.check_data()


def test_pictures_without_a_label_are_refused(pictures: Path, tmp_path: Path) -> None:
    trainer = build(pictures, tmp_path)
    first = trainer.dm.dataset.train_x[0]
    trainer.dm.dataset.train_x[0] = Datum(impath=first.impath, label=-1)
    with pytest.raises(ValueError, match=r"1 picture\(s\) to learn from have no label"):
        trainer.check_data()


@pytest.mark.parametrize(("key", "value"), [("TEST.FINAL_MODEL", "last_step"), ("TEST.NO_TEST", True)])
def test_only_what_validation_picked_is_written(pictures: Path, tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ValueError, match="validation picks what is tested and written"):
        build(pictures, tmp_path, **{key: value})


# --- what is written -----------------------------------------------------------------------------------------------------


def test_the_written_encoder_is_the_tested_one(pictures: Path, tmp_path: Path) -> None:
    trainer = build(pictures, tmp_path / "run")
    trainer.train()
    folder = tmp_path / "encoder"
    trainer.export(folder, {"val_accuracy": 50.0})
    encoder = load_style_encoder(TINY, str(folder))
    assert encoder.class_names == ("coarse", "fine") and encoder.view == trainer.view
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    trainer.set_model_mode("eval")
    assert torch.equal(encoder(images).logits, trainer.model_inference(images))

    stored = load_file(folder / "style_encoder.safetensors")
    kinds = {tensor.dtype for name, tensor in stored.items() if tensor.ndim >= 2}
    assert kinds == {torch.float16}
    assert stored["features.0.1.running_var"].dtype == torch.float32  # variances have a wide range
    assert trainer.network.features[0][0].weight.dtype == torch.float32  # the network itself stays as it was


# --- what it starts from -------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    """Weights of a tiny network of three classes, as torch stores them."""
    torch.manual_seed(5)
    torch.save(build_network(TINY, 3).state_dict(), tmp_path / "three.pt")
    return tmp_path / "three.pt"


def test_a_file_with_as_many_classes_is_taken_whole(encoder_file: Path) -> None:
    stored, found = torch.load(encoder_file, weights_only=True), start.build_start(TINY, str(encoder_file), 3).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in stored.items())


def test_a_file_with_other_classes_gives_the_trunk(encoder_file: Path) -> None:
    stored, found = torch.load(encoder_file, weights_only=True), start.build_start(TINY, str(encoder_file), 5).state_dict()
    assert found[f"{CLASSIFIER}.weight"].shape[0] == 5
    assert all(torch.equal(found[name], tensor) for name, tensor in stored.items() if name.startswith("features."))


def test_a_file_of_another_network_is_refused(encoder_file: Path) -> None:
    content = torch.load(encoder_file, weights_only=True)
    content.pop("features.0.0.weight")
    torch.save(content, encoder_file)
    with pytest.raises(ValueError, match="three.pt', which does not fit.*: missing tensor: features.0.0.weight"):
        start.build_start(TINY, str(encoder_file), 3)


def test_imagenet_gives_the_trunk_of_b3(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(6)
    stored = build_network("efficientnet_b3", 1000).state_dict()
    monkeypatch.setattr(start, "fetch_imagenet", lambda key: stored)
    found = start.build_start("efficientnet_b3", "imagenet", 28).state_dict()
    assert found[f"{CLASSIFIER}.weight"].shape == (28, 1536)
    assert torch.equal(found["features.8.0.weight"], stored["features.8.0.weight"])
