"""A small model as a run builds it, and its stored form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from trainers.bgobj_llava.config import add_config
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.prompt import PromptEncoder
from trainers.bgobj_llava.model.scopes import add_lora, prepare_trainables, trainable_parts
from trainers.bgobj_llava.settings import model_options
from trainers.bgobj_llava.storage.artifact import ArtifactFacts, describe_model, save_adapter
from trainers.bgobj_llava.storage.loading import load_llava
from trainers.bgobj_llava.storage.probe import Probe, compute_probe


@dataclass
class Built:
    """What a trainer holds of a model."""

    model: BgObjLlava
    encoder: PromptEncoder
    parameters: dict[str, nn.Parameter]
    facts: ArtifactFacts

    def probe(self) -> Probe:
        return compute_probe(self.model, self.encoder)

    def disturb(self, seed: int = 0) -> None:
        """Change every trainable parameter, as training would."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters.values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))

    def save(self, run: Path, epoch: int = 1, **options: Any) -> Path:
        """Store it; return the first folder."""
        folders = save_adapter(
            run, epoch, parameters=self.parameters, facts=self.facts, tokenizer=self.model.tokenizer, probe=self.probe(),
            scores={"accuracy": 50.0}, **options,
        )  # fmt: skip
        return folders[0]


def make_settings(**overrides: Any) -> CfgNode:
    """Return the trainer's node; `SEP__STYLE="none"` sets SEP.STYLE."""
    cfg = CfgNode({"TRAINER": CfgNode()})
    add_config(cfg)
    node = cfg.TRAINER.BGOBJLLAVA
    for name, value in overrides.items():
        node.merge_from_list([name.replace("__", "."), value])
    return node


def build(base: Path, **overrides: Any) -> Built:
    """Build a model on a LLaVA folder as the settings say."""
    settings, loaded = make_settings(**overrides), load_llava(str(base))
    model = BgObjLlava(loaded.model, loaded.tokenizer, model_options(settings, seed=1))
    if settings.TRAIN.SCOPE == "lora":
        add_lora(model, r=settings.LORA.R, alpha=settings.LORA.ALPHA, dropout=settings.LORA.DROPOUT)
    parts = trainable_parts(model, settings.TRAIN.SCOPE, last_k=settings.TRAIN.LAST_K)
    prepare_trainables(model, parts)
    encoder = PromptEncoder(model.tokenizer)
    parameters = {name: parameter for pairs in parts.values() for name, parameter in pairs}
    return Built(model, encoder, parameters, describe_model(model, encoder, loaded, settings))
