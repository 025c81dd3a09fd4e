"""Who follows into training mode: what trains, and nothing else."""

from __future__ import annotations

import pytest
import torch
from gated_models import gated_model
from tiny_blip2s import random_blip2
from torch import nn

from trainers.gated_blip2.modes import settle_mode, silence_dropouts


def in_training(preset: str, **options: object) -> set[str]:
    """Modules that have parameters or drop out, in training mode, of a BLIP-2 whose preset trains."""
    blip2 = gated_model(preset, thaw=True, **options).train().blip2
    return {
        name
        for name, module in blip2.named_modules()
        if module.training and (isinstance(module, nn.Dropout) or list(module.parameters(recurse=False)))
    }


def test_frozen_towers_stay_in_evaluation_mode() -> None:
    assert in_training("gates_proj") == {"language_projection"}
    assert in_training("gates") == set()


def test_only_trained_blocks_drop_out() -> None:
    found = in_training("gates_xattn") - {"language_projection"}
    assert all(name.startswith("qformer.encoder.layer.") and ".crossattention." in name for name in found)
    assert "qformer.encoder.layer.2.crossattention.output.dropout" in found


def test_whole_qformer_drops_out_where_it_trains() -> None:
    found = in_training("qformer")
    assert "qformer.dropout" in found and "qformer.encoder.layer.1.output_query.dropout" in found
    assert not any(name.startswith(("vision_model", "language_model")) for name in found)


def test_a_dead_text_branch_changes_no_mode() -> None:
    live, whole = in_training("original_live"), in_training("original")
    branch = {name for name in whole if ".intermediate." in name or ".output." in name and "attention" not in name}
    assert live == whole - branch and "vision_model.post_layernorm" in live and "qformer.dropout" in live


def test_evaluation_mode_is_evaluation_mode_for_all() -> None:
    model = gated_model("qformer", thaw=True).train()
    assert model.conditioner.training
    assert not any(module.training for module in model.eval().modules())


def test_settling_leaves_a_module_that_trains_as_it_is() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    settle_mode(module)
    assert module.training and module[1].training
    module.requires_grad_(False)
    settle_mode(module)
    assert not module.training and not module[1].training


def test_silent_dropouts_compute_the_same_in_both_modes() -> None:
    model = random_blip2().language_model
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
    model.model.decoder.layerdrop = 0.5
    ids = torch.arange(6)[None]
    expected = model.eval()(ids).logits
    assert not torch.equal(model.train()(ids).logits, expected)
    silence_dropouts(model)
    assert torch.equal(model.train()(ids).logits, expected)


@pytest.mark.parametrize("module", [nn.Dropout(0.3), nn.Sequential(nn.Dropout(0.3))])
def test_dropout_modules_are_silenced_too(module: nn.Module) -> None:
    silence_dropouts(module)
    assert torch.equal(module(torch.ones(64)), torch.ones(64))
