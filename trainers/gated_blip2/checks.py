"""What cannot work in GatedBLIP2's settings, all found at once before anything is built."""

from __future__ import annotations

import importlib.util

import torch
from yacs.config import CfgNode

from trainers.adapters import KEEP, problems_with_keep
from trainers.config import problems_with_choices
from trainers.gated_blip2 import settings
from trainers.gated_blip2.cache.key import problems_with_augmentation
from trainers.gated_blip2.config import CHOICES, CONTROLS, RANGES
from trainers.gated_blip2.presets import PRESETS
from trainers.gated_blip2.prompts import problems_with_template
from trainers.gated_blip2.style.encoder import find_checkpoint_problems
from trainers.gated_blip2.style.source import find_source_problems
from trainers.schedules import problems_with_schedule

NAME = "TRAINER.GATEDBLIP2"
EVALUATOR = "VQA"
LIBRARIES = ("transformers",)


def find_problems(cfg: CfgNode) -> list[str]:
    """Return one message per value or combination of keys that cannot work.

    Keys of gates and style are inert in the presets without gates, and so are their contradictions.

    Args:
        cfg: The full config.
    """
    node = cfg.TRAINER.GATEDBLIP2
    problems = problems_with_choices(node, NAME, CHOICES, RANGES)
    problems += [*_library_problems(), *_run_problems(cfg), *problems_with_schedule(node, NAME)]
    problems += [*_memory_problems(cfg, node), *_output_problems(node), *problems_with_template(node.PROMPT.TEMPLATE)]
    if node.CHECKPOINT.KEEP in KEEP:
        problems += problems_with_keep(node.CHECKPOINT.KEEP, f"{NAME}.CHECKPOINT.KEEP", cfg.TEST.FINAL_MODEL)
    problems += problems_with_augmentation(cfg.INPUT.TRANSFORMS)
    if node.PRESET in PRESETS and settings.has_gates(node):
        problems += [*_gate_problems(node), *_style_problems(cfg, node)]
    return problems


def _library_problems() -> list[str]:
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    return [f"GatedBLIP2 needs {' and '.join(missing)}: pip install -e .[vlm]"] if missing else []


def _run_problems(cfg: CfgNode) -> list[str]:
    problems = []
    if not cfg.MODEL.BACKBONE.NAME:
        problems.append("MODEL.BACKBONE.NAME (--backbone) is empty; expected tiny_blip2, a folder or hub id of a BLIP-2 (OPT)")
    if cfg.TEST.EVALUATOR != EVALUATOR:
        problems.append(f"TEST.EVALUATOR is {cfg.TEST.EVALUATOR!r}, but GatedBLIP2 answers questions; expected {EVALUATOR}")
    sides = set(cfg.INPUT.SIZE)
    if len(sides) != 1 or min(sides) < 1:
        problems.append(f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}; expected a square, a multiple of the model's patch")
    return problems


def _memory_problems(cfg: CfgNode, node: CfgNode) -> list[str]:
    problems = []
    if node.QUANT == "none" or node.QUANT not in CHOICES["QUANT"]:
        return problems
    if not (cfg.USE_CUDA and torch.cuda.is_available()):
        problems.append(f"{NAME}.QUANT is {node.QUANT!r}, which needs a GPU; expected none")
    if importlib.util.find_spec("bitsandbytes") is None:
        problems.append(f"{NAME}.QUANT is {node.QUANT!r}, but bitsandbytes is not installed: pip install -e .[quant]")
    return problems


def _output_problems(node: CfgNode) -> list[str]:
    problems, named = [], tuple(node.EVAL.CONTROLS)
    unknown = [name for name in named if name not in CONTROLS]
    if unknown or len(set(named)) != len(named):
        problems.append(f"{NAME}.EVAL.CONTROLS is {named}; expected different ones of {', '.join(CONTROLS)}")
    if node.GEN.NUM_BEAMS == 1 and node.GEN.LENGTH_PENALTY != 1:
        problems.append(
            f"{NAME}.GEN.LENGTH_PENALTY is {node.GEN.LENGTH_PENALTY:g}, which compares beams, but {NAME}.GEN.NUM_BEAMS is 1; "
            "expected 1.0, or more beams"
        )
    return problems


def _gate_problems(node: CfgNode) -> list[str]:
    problems, layers = [], tuple(node.GATE.LAYERS)
    if any(type(layer) is not int or layer < 1 for layer in layers) or len(set(layers)) != len(layers):
        problems.append(f"{NAME}.GATE.LAYERS is {layers}; expected different layers of the Q-Former from 1, or () for all")
    if node.GATE.SITES == "none" and PRESETS[node.PRESET].conditioner == "gates":
        problems.append(
            f"{NAME}.GATE.SITES is 'none', but {NAME}.PRESET {node.PRESET} trains gates; expected k, v or kv, or the preset "
            "projection"
        )
    return problems


def _style_problems(cfg: CfgNode, node: CfgNode) -> list[str]:
    """What needs no file to be read; unknown words are reported already."""
    style, problems = node.STYLE, []
    known = all(style[key] in CHOICES[f"STYLE.{key}"] for key in ("ARCH", "FALLBACK"))
    if known and settings.needs_style_encoder(node):
        problems += find_checkpoint_problems(
            style.ARCH, style.CHECKPOINT, classes_file=style.CLASSES_FILE, fallback=style.FALLBACK
        )
    if style.SOURCE in CHOICES["STYLE.SOURCE"]:
        problems += find_source_problems(style.SOURCE, batch_size=cfg.DATALOADER.TRAIN_X.BATCH_SIZE)
    return problems
