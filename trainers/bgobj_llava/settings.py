"""From the config node to plain arguments: what each part of the room is built with."""

from __future__ import annotations

import torch
from yacs.config import CfgNode

from trainers.bgobj_llava.augment import MaskAugment
from trainers.bgobj_llava.cache.options import CacheOptions
from trainers.bgobj_llava.detection.options import DetectorOptions
from trainers.bgobj_llava.geometry import MaskPolicy
from trainers.bgobj_llava.model.options import ModelOptions

# Element type of the frozen weights, by resolved precision; trainables are fp32 in all of them.
WEIGHT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "amp": torch.float32, "fp16": torch.float16}

# Times OPTIM.LR. New layers that start without effect, and a projector beside LoRA, move slowly.
FUSION_LR_MULT = 0.2
LORA_PROJECTOR_LR_MULT = 0.1


def model_options(node: CfgNode, seed: int) -> ModelOptions:
    """Return what is built around a LLaVA, and how it is run."""
    return ModelOptions(
        split=node.SPLIT,
        vit_train=node.VIT_TRAIN,
        vit_eval=node.VIT_EVAL,
        projector=node.PROJECTOR,
        cls=node.CLS,
        position=node.POSITION,
        sep_style=node.SEP.STYLE,
        sep_init=node.SEP.INIT,
        fusion_layers=node.FUSION.LAYERS,
        fusion_init=node.FUSION.INIT,
        grad_ckpt=node.GRAD_CKPT,
        seed=max(seed, 0),
    )


def mask_policy(node: CfgNode) -> MaskPolicy:
    """Return how boxes become patches."""
    mask = node.MASK
    return MaskPolicy(
        rho=mask.RHO,
        dilate=mask.DILATE,
        block=mask.BLOCK,
        overlap_ring=mask.OVERLAP_RING,
        max_obj_frac=mask.MAX_OBJ_FRAC,
        object_mode=mask.OBJECT_MODE,
        no_detection=mask.NO_DETECTION,
    )


def detector_options(node: CfgNode) -> DetectorOptions:
    """Return where boxes come from, and which of them count."""
    det = node.DET
    return DetectorOptions(
        backend=det.BACKEND,
        file=det.FILE,
        weights=det.WEIGHTS,
        frame=det.FRAME,
        missing=det.MISSING,
        conf=det.CONF,
        iou=det.IOU,
        imgsz=det.IMGSZ,
        max_boxes=det.MAX,
        classes=tuple(det.CLASSES),
        min_area=det.MIN_AREA,
        bgsub_tau=det.BGSUB_TAU,
        bgsub_frames=det.BGSUB_FRAMES,
        reference=det.REFERENCE,
    )


def mask_augment(node: CfgNode) -> MaskAugment:
    """Return how training disturbs detections."""
    aug = node.AUG
    return MaskAugment(
        dilate_max=aug.DILATE_MAX,
        spurious_p=aug.SPURIOUS_P,
        drop_p=aug.DROP_P,
        p_full=aug.P_FULL,
        bg_jitter=aug.BG_JITTER,
    )


def cache_options(node: CfgNode) -> CacheOptions | None:
    """Return what is cached and where, or None if nothing is."""
    cache = node.CACHE
    if node.SPLIT == "none" or cache.MODE == "none":
        return None
    return CacheOptions(
        mode=cache.MODE,
        match=cache.MATCH,
        tau=cache.TAU,
        topk=cache.TOPK,
        admit_after=cache.ADMIT_AFTER,
        audit_every=cache.AUDIT_EVERY,
        device_gib=cache.DEVICE_GIB,
        host_gib=cache.HOST_GIB,
        disk_gib=cache.DISK_GIB,
        folder=cache.DIR,
        disk_kv=cache.DISK_KV,
    )


def lr_multiplier(group: str, scope: str) -> float:
    """Return the factor of `OPTIM.LR` for a group of parameters.

    Args:
        group: Its name.
        scope: `TRAIN.SCOPE`.
    """
    if group == "fusion":
        return FUSION_LR_MULT
    return LORA_PROJECTOR_LR_MULT if (group, scope) == ("projector", "lora") else 1.0
