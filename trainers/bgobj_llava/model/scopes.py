"""Which parameters train: named groups per scope, LoRA inside the language model, by stable names."""

from __future__ import annotations

from torch import nn

from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.options import NODE
from trainers.parameter_groups import Trainables

SCOPES = ("projector", "fusion_projector", "last_k", "lora", "full")
GROUPS = ("projector", "separators", "fusion", "lora", "llm_last", "llm")
# A list of plain names would also hit the vision tower's q_proj, k_proj and v_proj.
LORA_TARGETS = r"(.*\.)?language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"

Parts = dict[str, "list[tuple[str, nn.Parameter]]"]


def add_lora(model: BgObjLlava, *, r: int, alpha: float, dropout: float) -> None:
    """Put LoRA layers (https://arxiv.org/abs/2106.09685) around the seven linear maps of each layer of the language model.

    Args:
        model: Gets them in place; all its parameters are frozen afterwards.
        r: Rank.
        alpha: Scale of the update: alpha / r.
        dropout: Probability, on the input of the update.

    Raises:
        ValueError: If the model has LoRA layers already.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if _named(model, "lora_"):
        raise ValueError("the language model has LoRA layers already")
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=LORA_TARGETS)
    inject_adapter_in_model(config, model.llava)
    model.requires_grad_(False)
    for _, parameter in _named(model, "lora_"):
        parameter.data = parameter.data.float()


def trainable_parts(model: BgObjLlava, scope: str, *, last_k: int = 3) -> Parts:
    """Name what trains.

    Args:
        model: With LoRA layers already, for scope `lora`.
        scope: One of `SCOPES`.
        last_k: Last layers of the language model that train with scope `last_k`.

    Returns:
        Group -> (name, parameter) pairs, without empty groups. Names are those of the model's state dict.

    Raises:
        ValueError: If the scope is unknown, or the model lacks what it trains.
    """
    n_layers = model.info.n_llm_layers
    if scope not in SCOPES:
        raise ValueError(f"{NODE}.TRAIN.SCOPE is {scope!r}; expected one of {', '.join(SCOPES)}")
    if scope == "last_k" and not 1 <= last_k <= n_layers:
        raise ValueError(f"{NODE}.TRAIN.LAST_K is {last_k}; expected 1..{n_layers}")
    parts = {
        "projector": _projectors(model),
        "separators": _named(model, "separators."),
        "fusion": [] if scope == "projector" else _named(model, "fusion."),
        "lora": _named(model, "lora_") if scope == "lora" else [],
        "llm_last": _last_layers(model, last_k) if scope == "last_k" else [],
        "llm": _language_model(model) if scope == "full" else [],
    }
    needed = {"fusion_projector": "fusion", "lora": "lora"}.get(scope)
    if needed and not parts[needed] and model.options.split != "none":
        remedy = {"fusion": f"set {NODE}.FUSION.LAYERS above 0", "lora": "add LoRA layers first"}[needed]
        raise ValueError(f"{NODE}.TRAIN.SCOPE is {scope!r}, and the model has no {needed} layers; {remedy}")
    return {name: pairs for name, pairs in parts.items() if pairs}


def prepare_trainables(model: BgObjLlava, parts: Parts) -> Trainables:
    """Freeze everything but `parts`, which are held in fp32 from now on whatever the model's dtype.

    Returns:
        A module of these parameters, for an optimizer and for checkpoints.
    """
    model.requires_grad_(False)
    for pairs in parts.values():
        for _, parameter in pairs:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return Trainables(parts)


def count_parameters(parts: Parts) -> dict[str, int]:
    """Return the number of parameters of each group."""
    return {name: sum(parameter.numel() for _, parameter in pairs) for name, pairs in parts.items()}


def _named(model: nn.Module, part: str) -> list[tuple[str, nn.Parameter]]:
    """Parameters whose name starts with `part`, or holds it after a dot."""
    return [(name, parameter) for name, parameter in model.named_parameters() if f".{part}" in f".{name}"]


def _projectors(model: BgObjLlava) -> list[tuple[str, nn.Parameter]]:
    if model.projector_bg is None:
        return _named(model, "multi_modal_projector.")
    return [*_named(model, "projector_bg."), *_named(model, "projector_obj.")]


def _language_model(model: BgObjLlava) -> list[tuple[str, nn.Parameter]]:
    """Embeddings, layers, norm and head; tied ones once."""
    return [pair for pair in _named(model, "llava.") if ".language_model." in pair[0] or ".lm_head." in pair[0]]


def _last_layers(model: BgObjLlava, last_k: int) -> list[tuple[str, nn.Parameter]]:
    first = model.info.n_llm_layers - last_k
    wanted = [f".language_model.layers.{number}." for number in range(first, model.info.n_llm_layers)]
    wanted.append(".language_model.norm.")
    return [(name, parameter) for name, parameter in model.named_parameters() if any(part in name for part in wanted)]
