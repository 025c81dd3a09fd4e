"""Whether a run that is to be continued, or a trained model, is the one that is configured."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from yacs.config import CfgNode

from clip_ext.loader import ClipIdentity
from trainers.viecap.clip_source import ClipSource
from trainers.viecap.settings import all_settings
from trainers.viecap.storage.artifact import MODEL_KEYS, NODE, Artifact, find_setting_differences

if TYPE_CHECKING:
    from trainers.viecap.building import System
    from trainers.viecap.caption_store.store import CaptionStore


def describe(cfg: CfgNode, clip: ClipIdentity, system: System, store: CaptionStore | None) -> dict[str, Any]:
    """Return what a continued run may not change: what is learned, from what, in which order.

    Args:
        cfg: Full config.
        clip: Whose vectors are learned from.
        system: Model and tokenizer.
        store: Of the captions; None before it is opened.
    """
    node = all_settings(cfg.TRAINER.VIECAP)
    return {
        "caption store": _hash(store.manifest["key"]) if store is not None else "",
        "CLIP": f"{clip.fingerprint} {clip.settings}",
        "language model": _hash(system.language_model) + system.frozen,
        "SEED": cfg.SEED,
        "DATALOADER.TRAIN_X.BATCH_SIZE": cfg.DATALOADER.TRAIN_X.BATCH_SIZE,
        "OPTIM.MAX_EPOCH": cfg.OPTIM.MAX_EPOCH,
        **{f"{NODE}.{key}": node[key] for key in MODEL_KEYS},
    }


def check_artifact(artifact: Artifact, node: CfgNode, clip: ClipSource) -> None:
    """Raise ValueError if a trained model is not the one that is configured (lists every difference)."""
    problems = find_setting_differences(artifact.settings, all_settings(node))
    learned = artifact.record["clip"]
    if clip.identity.fingerprint != learned["fingerprint"]:
        problems.append(
            f"MODEL.BACKBONE.NAME is {clip.name!r} ({clip.identity.fingerprint[:12]}, width {clip.identity.embed_dim}); "
            f"the run learned with {learned['name']!r} ({learned['fingerprint'][:12]}, width {learned['embed_dim']})"
        )
    if problems:
        raise ValueError("\n  ".join([f"{artifact.path}: {len(problems)} difference(s) to the run:", *problems]))


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode("utf-8")).hexdigest()
