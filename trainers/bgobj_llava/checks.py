"""What cannot work in BgObjLLaVA's settings, all found at once before anything is built."""

from __future__ import annotations

import importlib.util

import torch
from yacs.config import CfgNode

from trainers.adapters import KEEP, problems_with_keep
from trainers.bgobj_llava.config import CHOICES, RANGES
from trainers.bgobj_llava.settings import detector_options, mask_policy
from trainers.config import problems_with_choices
from trainers.schedules import problems_with_schedule

NAME = "TRAINER.BGOBJLLAVA"
EVALUATOR = "VQA"
LIBRARIES = ("transformers", "peft")


def find_problems(cfg: CfgNode) -> list[str]:
    """Return one message per value or combination of keys that cannot work.

    With `SPLIT none` the keys of detector, masks, fusion and cache are inert, and so are their contradictions.

    Args:
        cfg: The full config.
    """
    node = cfg.TRAINER.BGOBJLLAVA
    problems = problems_with_choices(node, NAME, CHOICES, RANGES)
    problems += [*_library_problems(), *_run_problems(cfg, node), *problems_with_schedule(node, NAME)]
    if node.CHECKPOINT.KEEP in KEEP:
        problems += problems_with_keep(node.CHECKPOINT.KEEP, f"{NAME}.CHECKPOINT.KEEP", cfg.TEST.FINAL_MODEL)
    if node.SPLIT != "none":
        problems += [*_attention_problems(node), *_cache_problems(node), *_detector_problems(node)]
        if node.TRAIN.SCOPE == "fusion_projector" and node.FUSION.LAYERS == 0:
            problems.append(f"{NAME}.TRAIN.SCOPE is 'fusion_projector', but {NAME}.FUSION.LAYERS is 0; expected 1-4")
    return problems


def _library_problems() -> list[str]:
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    return [f"BgObjLLaVA needs {' and '.join(missing)}: pip install -e .[vlm]"] if missing else []


def _run_problems(cfg: CfgNode, node: CfgNode) -> list[str]:
    problems = []
    if not cfg.MODEL.BACKBONE.NAME:
        problems.append("MODEL.BACKBONE.NAME (--backbone) is empty; expected tiny_llava, a folder or a hub id of a LLaVA")
    if cfg.TEST.EVALUATOR != EVALUATOR:
        problems.append(f"TEST.EVALUATOR is {cfg.TEST.EVALUATOR!r}, but BgObjLLaVA answers questions; expected {EVALUATOR}")
    if node.ATTN == "flash_attention_2" and not (cfg.USE_CUDA and torch.cuda.is_available()):
        problems.append(f"{NAME}.ATTN is 'flash_attention_2', which needs a GPU; expected sdpa or eager")
    return problems


def _attention_problems(node: CfgNode) -> list[str]:
    flash, reorders = node.ATTN == "flash_attention_2", node.SPLIT in ("bgobj", "order_only")
    problems = []
    if flash and reorders and node.POSITION == "raster":
        problems.append(f"{NAME}.POSITION is 'raster', which flash attention takes for several packed sequences; "
                        f"expected sequential, or {NAME}.ATTN sdpa")  # fmt: skip
    if node.SPLIT == "order_only":  # nothing is isolated, by whatever execution
        return problems
    masked = [key for key in ("VIT_TRAIN", "VIT_EVAL") if node[key] == "mask"]
    if flash:
        problems += [
            f"{NAME}.{key} is 'mask', but flash attention takes no group mask; expected gather, or {NAME}.ATTN sdpa"
            for key in masked
        ]
    if node.MASK.OVERLAP_RING:
        problems += [
            f"{NAME}.{key} is 'mask', which encodes each patch once, but {NAME}.MASK.OVERLAP_RING is "
            f"{node.MASK.OVERLAP_RING}; expected gather, or a ring of 0"
            for key in masked
        ]
    return problems


def _cache_problems(node: CfgNode) -> list[str]:
    problems, cache = [], node.CACHE
    if cache.MODE == "kv" and node.SPLIT != "bgobj":
        problems.append(f"{NAME}.CACHE.MODE is 'kv', but with {NAME}.SPLIT {node.SPLIT} the background is no prefix; "
                        "expected none")  # fmt: skip
    if cache.MODE == "tokens" and node.SPLIT == "order_only":
        problems.append(f"{NAME}.CACHE.MODE is 'tokens', but with {NAME}.SPLIT order_only background tokens have seen objects; "
                        "expected none")  # fmt: skip
    if cache.MODE != "none" and cache.DISK_GIB > 0 and not cache.DIR:
        problems.append(f"{NAME}.CACHE.DISK_GIB is {cache.DISK_GIB}, but {NAME}.CACHE.DIR is empty; expected a folder")
    if cache.MODE != "none" and cache.DIR and not cache.DISK_GIB:
        problems.append(f"{NAME}.CACHE.DIR is {cache.DIR!r}, but {NAME}.CACHE.DISK_GIB is 0, which keeps nothing there; "
                        "expected a budget in GiB")  # fmt: skip
    return problems


def _detector_problems(node: CfgNode) -> list[str]:
    problems = [*detector_options(node).problems(f"{NAME}.DET"), *mask_policy(node).problems(f"{NAME}.MASK")]
    if node.DET.BACKEND == "ultralytics" and importlib.util.find_spec("ultralytics") is None:
        problems.append(f"{NAME}.DET.BACKEND is 'ultralytics', which is not installed: pip install -e .[yolo] (AGPL-3.0)")
    return problems
