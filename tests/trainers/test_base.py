"""What every trainer inherits: batches, guards, checks of groups and splits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dassl.data.datasets import Datum
from torch import nn
from torch.utils.data import default_collate

from trainers.base import ExtrasWrapper, ParameterGroup, Target
from trainers.parameter_groups import check_cover


class Annotated(Datum):
    """A datum with extras, as our data sets make them."""

    extras = {"distribution": (0.25, 0.75), "has_distribution": 1, "caption": "gr\u00fcn"}


@pytest.fixture
def image_path(tiny_world: Path) -> str:
    return str(tiny_world / "colours" / "train" / "0.png")


def test_extras_reach_the_batch_by_name(make_trainer, image_path: str) -> None:
    trainer = make_trainer("ZeroshotCLIP")
    items = [Annotated(impath=image_path, label=1), Annotated(impath=image_path, label=2)]
    rows = ExtrasWrapper(trainer.cfg, items, transform=trainer.clip.preprocess)
    batch = default_collate([rows[0], rows[1]])
    assert torch.equal(batch["distribution"], torch.tensor([[0.25, 0.75]] * 2)) and batch["distribution"].dtype == torch.float32
    assert batch["has_distribution"].tolist() == [1, 1] and batch["caption"] == ["gr\u00fcn"] * 2
    assert batch["label"].tolist() == [1, 2] and batch["index"].tolist() == [0, 1]


def test_items_without_extras_are_plain_rows(make_trainer, image_path: str) -> None:
    trainer = make_trainer("ZeroshotCLIP")
    rows = ExtrasWrapper(trainer.cfg, [Datum(impath=image_path, label=0)], transform=trainer.clip.preprocess)
    assert set(rows[0]) == {"label", "domain", "impath", "index", "img"}


def test_target_is_a_label_tensor_with_facts() -> None:
    target = Target.of(torch.tensor([0, 2]), index=torch.tensor([7, 8]))
    assert torch.tensor([0, 1]).eq(target).tolist() == [True, False]
    assert target.data.cpu().numpy().tolist() == [0, 2]
    assert target.facts["index"].tolist() == [7, 8]


def test_test_batch_carries_paths_and_positions(make_trainer) -> None:
    trainer = make_trainer("LaFTer")
    images, target = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    assert images.shape == (5, 3, 32, 32) and target.tolist() == [0, 1, 2, 0, 1]
    assert target.facts["index"].tolist() == [0, 1, 2, 3, 4]
    assert [Path(path).stem for path in target.facts["impath"]] == ["0", "1", "2", "3", "4"]


def test_infinite_loss_stops_the_run_and_names_parts_and_images(make_trainer) -> None:
    trainer = make_trainer("HybridCascadeLaFTer")
    trainer.before_train()
    trainer.before_epoch()
    with torch.no_grad():
        trainer.adapt.classifier.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"Loss is infinite or NaN! Parts: main nan, consistency nan") as caught:
        trainer.forward_backward(next(iter(trainer.train_loader_x)))
    assert str(caught.value).count(".png") == 4


def test_declared_parameter_without_gradient_is_an_error(make_trainer, monkeypatch) -> None:
    trainer = make_trainer("LaFTer")
    trainer.before_train()
    trainer.before_epoch()
    monkeypatch.setattr(type(trainer.student), "prompts", property(lambda self: None))
    with pytest.raises(RuntimeError, match="declared trainable, but the loss does not reach: prompts"):
        trainer.forward_backward(next(iter(trainer.train_loader_x)))


def test_groups_have_to_cover_the_module_exactly() -> None:
    module = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    everything = list(module.parameters())
    check_cover(module, [ParameterGroup("all", everything, 1.0, 0.0)])
    for wrong in (everything[:3], [*everything, everything[0]], [*everything, nn.Parameter(torch.zeros(1))]):
        with pytest.raises(ValueError, match="the trainable groups and the module differ"):
            check_cover(module, [ParameterGroup("all", wrong, 1.0, 0.0)])


def test_clipping_bounds_the_gradient_of_an_update(make_trainer) -> None:
    trainer = make_trainer("LaFTer", {".MAX_GRAD_NORM": 1e-3})
    trainer.before_train()
    trainer.before_epoch()
    trainer.forward_backward(next(iter(trainer.train_loader_x)))
    norm = torch.stack([p.grad.norm() for p in trainer.adapt.parameters()]).norm()
    assert norm <= 1e-3 * (1 + 1e-4)


@pytest.mark.parametrize("split", ["train_x", "val"])
def test_labelled_test_image_in_another_split_is_refused(split: str, make_trainer) -> None:
    trainer = make_trainer("LaFTer")
    getattr(trainer.dm.dataset, split).append(trainer.dm.dataset.test[0])
    with pytest.raises(ValueError, match=rf"1 labelled image\(s\) are in both {split[:5].rstrip('_')} and test"):
        trainer.train()


def test_unlabelled_images_may_be_both_learned_from_and_predicted(make_trainer) -> None:
    trainer = make_trainer("LaFTer")
    image = Datum(impath=trainer.dm.dataset.test[0].impath, label=-1)
    trainer.dm.dataset.train_x.append(image)
    assert trainer.data_problems() == []


def test_trainables_are_announced(make_trainer, caplog) -> None:
    with caplog.at_level("INFO"):
        make_trainer("LaFTer")
    assert "Trainable: prompts, 96 numbers, lr x 1, weight decay 0" in caplog.messages
    assert any(message.startswith("Trainable in all: ") for message in caplog.messages)


def test_an_empty_backbone_is_refused_by_key(make_trainer) -> None:
    with pytest.raises(ValueError, match="MODEL.BACKBONE.NAME .* is empty; expected a CLIP: .*tiny12"):
        make_trainer("LaFTer", {"MODEL.BACKBONE.NAME": ""})
