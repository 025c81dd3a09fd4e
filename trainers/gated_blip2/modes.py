"""Training and evaluation mode of a model of which a part trains."""

from __future__ import annotations

from torch import nn

from trainers.gated_blip2.weights import TEXT_BRANCH

DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "layerdrop")  # attributes of transformers' modules


def settle_mode(module: nn.Module, name: str = "") -> None:
    """Put all modules into evaluation mode of which nothing trains; the others stay in the mode they are in.

    The Q-Former's text branch never runs and so does not count as frozen beside layers that train.

    Args:
        module: In the mode of those that train.
        name: Its name in the whole model.
    """
    trains = {
        parameter.requires_grad
        for own, parameter in module.named_parameters(prefix=name)
        if not TEXT_BRANCH.match(own)
    }  # fmt: skip
    if trains == {True}:
        return
    if not trains or trains == {False}:
        module.eval()
        return
    module.training = False
    for child, part in module.named_children():
        settle_mode(part, f"{name}.{child}" if name else child)


def silence_dropouts(model: nn.Module) -> None:
    """Set every dropout to 0, so that training mode computes what evaluation mode does."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), (int, float)):
                setattr(module, name, 0.0)
