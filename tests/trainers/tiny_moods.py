"""The tiny world's images as an emotion data set: four classes on a ring, votes for most images, none for some."""

from __future__ import annotations

import torch
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from tiny_world import TinyColours
from yacs.config import CfgNode

MOODS = ("awe", "joy", "fear", "anger")
RING = ("awe", "joy", "anger", "fear")  # another order than the labels'
VOTELESS = 3  # images whose number is VOTELESS modulo 5 have no votes


def votes_of(number: int) -> tuple[float, ...]:
    """Return votes that tell the image's number, with a zero among them."""
    counts = torch.tensor([1.0, 2.0 + number, 3.0, 0.0]).roll(number % 4)
    return tuple((counts / counts.sum()).tolist())


class Mood(Datum):
    """A datum with votes."""

    def __init__(self, extras: dict, **facts) -> None:
        super().__init__(**facts)
        self.extras = extras


class TinyMoods(TinyColours):
    """`TinyColours` with other labels; `label_shift` moves labels and votes of train and val."""

    emotion_ring = RING

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        train, val, test = ((self.train_x, self.label_shift), (self.val, self.label_shift), (self.test, 0))
        DatasetBase.__init__(self, train_x=self.label_train(_moods(*train)), val=_moods(*val), test=_moods(*test))

    @staticmethod
    def label_train(items: list[Mood]) -> list[Mood]:
        """Let a child change the training images."""
        return items


class TinyUnlabelled(TinyMoods):
    """Moods of which one training image has no label."""

    @staticmethod
    def label_train(items: list[Mood]) -> list[Mood]:
        """See `TinyMoods`."""
        return [Mood(items[0].extras, impath=items[0].impath, label=-1, classname=""), *items[1:]]


def _moods(items: list[Datum], shift: int) -> list[Mood]:
    moods = []
    for number, item in enumerate(items):
        label, has = (number + shift) % len(MOODS), int(number % 5 != VOTELESS)
        votes = votes_of(number + shift) if has else (0.0,) * len(MOODS)
        extras = {"distribution": votes, "has_distribution": has}
        moods.append(Mood(extras, impath=item.impath, label=label, classname=MOODS[label]))
    return moods


for kind in (TinyMoods, TinyUnlabelled):
    if kind.__name__ not in DATASET_REGISTRY.registered_names():
        DATASET_REGISTRY.register(kind)
