"""Phase A of the LaFTer family: a linear classifier is trained on sentences about the classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from yacs.config import CfgNode

from clip_ext.heads import TextClassifier, fit_text_classifier
from clip_ext.loader import LoadedClip
from clip_ext.text_bank import class_prototypes
from trainers.lafter_parts.class_texts import build_class_bank, load_class_texts


def train_text_classifier(
    classifier: TextClassifier, clip: LoadedClip, cfg: CfgNode, node: CfgNode, classnames: Sequence[str], device: torch.device
) -> None:
    """Train the classifier in place on the texts that `TEXT` names, and freeze it.

    Args:
        classifier: C x E.
        clip: With its text tower.
        cfg: Full config: data set, lr, seed.
        node: The trainer's node.
        classnames: In label order.
        device: Where to train; the classifier ends there.
    """
    texts = load_class_texts(node.TEXT, cfg.DATASET.NAME)
    bank = build_class_bank(clip, node.TEXT, texts, classnames)
    if node.CLASSIFIER_INIT == "text_mean":
        with torch.no_grad():
            classifier.weight.copy_(class_prototypes(bank))
    fit_text_classifier(
        classifier,
        bank,
        epochs=node.TEXT.EPOCHS or texts.text_epochs,
        lr=cfg.OPTIM.LR,
        noise_std=node.TEXT.NOISE_STD,
        seed=max(cfg.SEED, 0),
        device=device,
    )
    classifier.requires_grad_(False)
