"""From the pseudo-label keys to the teacher of a run, and its pass over the whole training set."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from yacs.config import CfgNode

from clip_ext.loader import LoadedClip
from trainers.base import ExtrasWrapper
from trainers.lafter_parts.judges import Judges
from trainers.lafter_parts.pseudo_teacher import (
    OnlineTeacher,
    PseudoLabels,
    PseudoTeacher,
    SelectionRule,
    WholeSetTeacher,
    cached_labels,
    label_key,
    predict_all,
    resolve_shares,
)

ONLINE = ("shared", "ema")  # label each batch from its weak view

Judge = Callable[[Tensor], Tensor]


class TrainingSet:
    """All training images on the weak view, in file order, for teachers that label them at once.

    Args:
        cfg: Full config; the test loader's keys say how to read.
        source: The training loader's data set.
        clip: Its preprocessing is the weak view.
        device: Where judges run.
    """

    def __init__(self, cfg: CfgNode, source: ExtrasWrapper, clip: LoadedClip, device: torch.device) -> None:
        self._cfg, self._source, self._clip, self._device = cfg, source, clip, device

    def __len__(self) -> int:
        return len(self._source.data_source)

    def label(self, judge: Judge, rule: SelectionRule) -> tuple[Tensor, Tensor]:
        """Return (labels, confidence), both (N,), on the CPU."""
        views = ExtrasWrapper(self._cfg, self._source.data_source, transform=self._clip.preprocess)
        views.read = self._source.read
        loader = DataLoader(
            views,
            batch_size=self._cfg.DATALOADER.TEST.BATCH_SIZE,
            num_workers=self._cfg.DATALOADER.NUM_WORKERS,
            # Its own generator: starting a loader draws a seed, and the global state must stay where it is.
            generator=torch.Generator().manual_seed(0),
        )
        # disable=None: a bar on terminals only.
        return rule.align(predict_all(tqdm(loader, desc="pseudo-labels", leave=False, disable=None), judge, self._device))

    def key(self, node: CfgNode, classifier: Tensor, rule: SelectionRule, precision: str) -> str:
        """Return the hash of all that determines the frozen judge's labels; see `label_key`."""
        info, paths = self._clip.info, [item.impath for item in self._source.data_source]
        side = node.CACHE_SIDE if node.CACHE_IMAGES == "ram" else None
        return label_key(
            weights=self._clip.fingerprint,
            modules=sorted({type(module).__name__ for module in self._clip.model.visual.modules()}),
            classifier=classifier,
            preprocessing=repr((info.image_size_px, info.mean, info.std, info.interpolation, side)),
            paths=paths,
            root=os.path.commonpath([os.path.dirname(path) for path in paths]),
            shares=rule.shares,
            precision=f"{precision} on {self._device.type}",
        )


def build_teacher(
    node: CfgNode, judges: Judges, images: TrainingSet, *, classifier: Tensor, precision: str
) -> PseudoTeacher:
    """Return the teacher that `TEACHER` names.

    Args:
        node: The trainer's node.
        judges: Of this run.
        images: Training set.
        classifier: A_pl, (C, E).
        precision: In which the tower runs.
    """
    rule = SelectionRule(
        resolve_shares(node.DIST_ALIGN, node.CLASS_SHARES, len(classifier)), node.CONF_THRESHOLD, node.KEEP_SHARE
    )
    if node.TEACHER in ONLINE:
        return OnlineTeacher(judges.shared if node.TEACHER == "shared" else judges.averaged, rule)

    def make(epoch: int) -> PseudoLabels:
        # Before the first epoch the student's prompts are still noise: the text classifier labels.
        if epoch and node.TEACHER == "self":
            return rule.select(*images.label(judges.student, rule))
        key = images.key(node, classifier, rule, precision)
        by_text = functools.partial(images.label, judges.frozen, rule)
        return rule.select(*cached_labels(node.TEXT.CACHE_DIR, key, len(images), by_text))

    return WholeSetTeacher(make, every_epoch=node.TEACHER == "self")
