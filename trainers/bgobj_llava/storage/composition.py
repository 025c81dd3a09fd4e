"""A trained model outside of any run: base LLaVA, separators, projectors, fusion and LoRA put together from one folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from trainers import precision
from trainers.adapter_facts import LoadedAdapter
from trainers.adapters import find_adapter, read_adapter
from trainers.bgobj_llava.building import build_system
from trainers.bgobj_llava.config import add_config
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.prompt import PromptEncoder
from trainers.bgobj_llava.settings import model_options
from trainers.bgobj_llava.storage.artifact import describe_model, load_adapter
from trainers.bgobj_llava.storage.loading import LoadedLlava, load_llava
from trainers.bgobj_llava.storage.probe import compute_probe

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Composition:
    """A trained model and what it needs.

    Attributes:
        model: In evaluation mode.
        encoder: Of its prompt.
        settings: Config node it was trained with.
        loaded: The base LLaVA.
        parameters: Stable name -> trained parameter.
        adapter: What was read.
    """

    model: BgObjLlava
    encoder: PromptEncoder
    settings: CfgNode
    loaded: LoadedLlava
    parameters: Mapping[str, nn.Parameter]
    adapter: LoadedAdapter


def load_composition(
    folder: str | Path,
    *,
    epoch: int | None = None,
    base: str = "",
    revision: str = "",
    dtype: torch.dtype = torch.float32,
    attn: str = "",
    device: torch.device | str = "cpu",
) -> Composition:
    """Put a stored model together.

    Args:
        folder: An adapter folder, an exported composition, or a run.
        epoch: Of a run: finished epochs; None: the best on validation, else the last.
        base: Where the base LLaVA lies; "": where it lay in training. Its fingerprint decides.
        revision: Of a hub id.
        dtype: Of the frozen weights; trained ones stay fp32.
        attn: Attention of the language model; "": as in training.
        device: Where it goes.
    Raises:
        FileNotFoundError, OSError: If adapter or base are not there.
        ValueError: If they do not belong together: every difference in one message.
    """
    path = find_adapter(folder, epoch)
    record = read_adapter(path, needs_tokenizer=True).record
    settings = read_settings(record["settings"], path)
    loaded = load_llava(
        base or record["base"]["id"], revision=revision or settings.REVISION, dtype=dtype, attn=attn or settings.ATTN,
        device=device,
    )  # fmt: skip
    system = build_system(loaded, model_options(settings, seed=0), settings)
    model, encoder, parameters = system.model, system.encoder, system.parameters
    adapter = load_adapter(
        path,
        parameters=parameters,
        facts=describe_model(model, encoder, loaded, settings),
        probe=lambda: compute_probe(model, encoder, lambda: autocast_of(model)),
    )
    model.requires_grad_(False).eval()
    return Composition(model, encoder, settings, loaded, parameters, adapter)


def autocast_of(model: BgObjLlava) -> AbstractContextManager:
    """Return the context to run a model in: trained weights are fp32, so a half-precision base needs a common dtype."""
    return precision.autocast(model.device, model.dtype if model.dtype in HALF else None)


def read_settings(stored: Mapping[str, Any], path: Path) -> CfgNode:
    """Return the trainer's config node with stored values.

    Args:
        stored: Dotted keys below it -> values.
        path: Where they come from, for messages.
    Raises:
        ValueError: If this version does not know a key, or its type (names them).
    """
    cfg = CfgNode({"TRAINER": CfgNode()})
    add_config(cfg)
    node = cfg.TRAINER.BGOBJLLAVA
    problems = []
    for key, value in stored.items():
        try:
            node.merge_from_list([key, value])
        except (AssertionError, KeyError, ValueError) as error:
            problems.append(f"{key} is {value!r}: {error}")
    if problems:
        raise ValueError("\n  ".join([f"{path}: {len(problems)} setting(s) that this version does not know:", *problems]))
    return node
