"""What is said of a model before it trains, and the watch over a run; from the trainer's parts to the modules that measure."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate
from yacs.config import CfgNode

from trainers import precision
from trainers.gated_blip2.building import GatedSystem
from trainers.gated_blip2.counts import PARTS, count_model, part_of
from trainers.gated_blip2.features import FeatureReader
from trainers.gated_blip2.memory import MemoryPlan, estimate_memory
from trainers.gated_blip2.prompts import collate
from trainers.gated_blip2.report import Probe
from trainers.parameter_groups import ParameterGroup
from trainers.run_report import ParameterRow, describe_parameters, format_parameters

logger = logging.getLogger(__name__)

PROBE_ROWS = 8


def describe_system(system: GatedSystem, cfg: CfgNode, groups: list[ParameterGroup], prec: str) -> dict[str, Any]:
    """Count and estimate, say what came out, and return it for the report.

    Args:
        system: As built.
        cfg: Full config.
        groups: What trains.
        prec: Resolved precision.
    Returns:
        `counts` and `memory`, in JSON's types.
    """
    towers = system.towers
    counts = count_model(
        system.preset, towers.loaded.model, system.model.conditioner, style_source=system.style_source,
        style_encoder=towers.style_encoder,
    )  # fmt: skip
    logger.info("Preset %s\n%s", system.preset.name, counts.describe())
    logger.info("Parameters\n%s", format_parameters(parameter_rows(system, groups)))
    gates: list[nn.Module] = [each for each in (system.model.conditioner, system.style_source) if each is not None]
    memory = estimate_memory(
        towers.loaded.model, system.parts, _plan(system, cfg, prec), gates=gates, style_encoder=towers.style_encoder
    )
    logger.info("Memory of an update with the longest texts: %s", memory.describe())
    return {"counts": counts.to_dict(), "memory": memory.to_dict()}


def parameter_rows(system: GatedSystem, groups: list[ParameterGroup]) -> list[ParameterRow]:
    """Return the table of what trains and what is frozen."""
    return describe_parameters(system.towers.loaded.model, groups, parts=PARTS, part_of=part_of)


def _plan(system: GatedSystem, cfg: CfgNode, prec: str) -> MemoryPlan:
    """Return what an update does at most: the longest prompt, and an answer as long as generated ones can be."""
    node, encoder, loaded = cfg.TRAINER.GATEDBLIP2, system.encoder, system.towers.loaded
    n_answer = node.GEN.MAX_NEW_TOKENS
    return MemoryPlan(
        optimizer=cfg.OPTIM.NAME, compute_dtype=precision.autocast_dtype(prec), batch_size=cfg.DATALOADER.TRAIN_X.BATCH_SIZE,
        n_text=encoder.longest_prompt - encoder.n_queries + n_answer, n_answer=n_answer, n_tokens=loaded.n_tokens,
        cached=node.CACHE.ENABLE, grad_ckpt=node.GRAD_CKPT,
    )  # fmt: skip


def build_probe(system: GatedSystem, features: FeatureReader, loader: DataLoader, device: torch.device) -> Probe | None:
    """Return the first answered questions of a loader as the batch by which gates are judged; None without gates or answers.

    Args:
        system: As built.
        features: That read the loader's pictures.
        loader: Of a validation, or any other.
        device: Of the model.
    """
    rows = (loader.dataset[number] for number in range(min(PROBE_ROWS, len(loader.dataset))))
    answered = [row for row in rows if row["answer"]]
    if system.style_source is None or not answered:
        return None
    batch = default_collate(answered)
    texts = [system.encoder.encode(*pair) for pair in zip(batch["question"], batch["answer"], strict=True)]
    found, labels = features.of(batch), batch["style"].to(device)
    text = collate(texts, pad_id=system.encoder.pad_id, side="right")
    return Probe(system.model, found.tokens, text, lambda: system.style_of(found, labels))
