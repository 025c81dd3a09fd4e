"""What every trainer shares: `CLIPTrainer` (backbone and views), and the names of `trainers/tuned.py`.

The loop, the scheduler's clock, the checkpoints and the evaluation are Dassl's. A trainer declares its trainable groups and
turns a batch into named losses; nothing else steps an optimizer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from dassl.data import DataManager
from dassl.data.data_manager import DatasetWrapper
from dassl.utils import read_image
from torch import Tensor
from yacs.config import CfgNode

from clip_ext.loader import LoadedClip, available_models, load_clip
from trainers.accumulation import WeightedLosses
from trainers.device_views import DeviceView, build_square_view, problems_with_kornia
from trainers.facts import FactTensor, Scores, Target
from trainers.image_cache import ImageCache
from trainers.parameter_groups import ParameterGroup
from trainers.tuned import TunedTrainer, is_labelled
from trainers.views import RECIPES, View, build_strong_view

logger = logging.getLogger(__name__)

__all__ = [
    "CLIPTrainer",
    "ExtrasWrapper",
    "FactTensor",
    "ParameterGroup",
    "Scores",
    "Target",
    "TunedTrainer",
    "WeightedLosses",
    "is_labelled",
]


class ExtrasWrapper(DatasetWrapper):
    """Dassl's data set wrapper that also copies an item's `extras` into the batch and may read from an image cache.

    `extras` is the only thing that our data sets and trainers agree on: numbers and strings as they are, tuples of numbers as
    float32 tensors. `read` (path -> RGB image) may be replaced before the first batch. `rng` is set for each sample that a
    trainer which resumes inside an epoch learns from (`trainers/epoch_order.py`); None elsewhere.
    """

    read: Callable[[str], Any] = staticmethod(read_image)
    rng: np.random.Generator | None = None

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data_source[index]
        row = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": index}
        image = self.read(item.impath)
        views = self.transform if isinstance(self.transform, (list, tuple)) else [self.transform]
        for number, view in enumerate(views, start=1):
            row["img" if number == 1 else f"img{number}"] = view(image)
        for name, value in getattr(item, "extras", {}).items():
            row[name] = torch.tensor(value, dtype=torch.float32) if isinstance(value, (tuple, list)) else value
        return row


class CLIPTrainer(TunedTrainer):
    """Trainer with a frozen CLIP: its preprocessing makes the views, its towers are never registered or copied."""

    def config_problems(self, cfg: CfgNode) -> list[str]:
        """See `TunedTrainer`."""
        problems = super().config_problems(cfg)
        node = cfg.TRAINER[self.node_name()]
        if not cfg.MODEL.BACKBONE.NAME:
            names = ", ".join(available_models())
            problems.append(
                f"MODEL.BACKBONE.NAME (--backbone) is empty; expected a CLIP: {names}, or a path as in clip_ext/loader.py"
            )
        if node.get("AUGMENT_DEVICE") == "gpu":
            problems += problems_with_kornia(f"TRAINER.{self.node_name()}.AUGMENT_DEVICE")
        if "AUGMENT_RECIPE" in node and node.AUGMENT_RECIPE not in RECIPES:
            problems.append(
                f"TRAINER.{self.node_name()}.AUGMENT_RECIPE is {node.AUGMENT_RECIPE!r}; expected one of {', '.join(RECIPES)}"
            )
        return problems

    def load_backbone(self) -> LoadedClip:
        """Load the CLIP that `MODEL.BACKBONE.NAME` names, in fp32, frozen, on the trainer's device."""
        return load_clip(self.cfg.MODEL.BACKBONE.NAME, device=self.device)

    def train_views(self) -> View | list[View]:
        """Return the transform(s) of the training loader; the weak view unless a child says otherwise."""
        return self.clip.preprocess

    def build_data_loader(self) -> None:
        """Load the backbone and build Dassl's loaders around its preprocessing."""
        self.clip = self.load_backbone()
        self.clip.model.requires_grad_(False).eval()
        if torch.cuda.device_count() > 1:
            logger.info("Several GPUs found; the first one is used")
        # Dassl's own wrapper arguments stay as they are, so upstream's DataManager works as well as the bundled one.
        self.dm = DataManager(
            self.cfg, custom_tfm_train=self.train_views(), custom_tfm_test=self.clip.preprocess, dataset_wrapper=ExtrasWrapper
        )
        self.train_loader_x, self.train_loader_u = self.dm.train_loader_x, self.dm.train_loader_u
        self.val_loader, self.test_loader = self.dm.val_loader, self.dm.test_loader
        self.num_classes, self.lab2cname = self.dm.num_classes, self.dm.lab2cname
        self.num_source_domains = self.dm.num_source_domains

    def strong_view(self) -> View:
        """Return the loader's part of the strong view that `AUGMENT_RECIPE` names, for this backbone."""
        info, node = self.clip.info, self.settings
        look = {"size_px": info.image_size_px, "mean": info.mean, "std": info.std}
        if node.AUGMENT_DEVICE == "gpu":
            self._device_view = DeviceView(node.AUGMENT_RECIPE, **look).to(self.device)
            return build_square_view(info.image_size_px)
        return build_strong_view(node.AUGMENT_RECIPE, **look)

    def finish_strong(self, images: Tensor) -> Tensor:
        """Return strong views, (B, 3, H, W), on the device, from what the loader made of them."""
        images = images.to(self.device)
        return self._device_view(images) if self.settings.AUGMENT_DEVICE == "gpu" else images

    def cache_images(self) -> None:
        """Put a shared cache in front of the training images if `CACHE_IMAGES` asks for it."""
        if self.settings.CACHE_IMAGES == "none":
            return
        paths = [item.impath for item in self.dm.dataset.train_x]
        cache = ImageCache(paths, side_px=self.settings.CACHE_SIDE, max_gb=self.settings.CACHE_MAX_GB)
        self.train_loader_x.dataset.read = cache

    @property
    def classnames(self) -> list[str]:
        """Class names in the order of the labels."""
        return [self.lab2cname[label] for label in range(self.num_classes)]

    def parse_batch_test(self, batch: dict) -> tuple[Tensor, Target]:
        """Return (weak view (B, 3, H, W), labels with the facts that `Target` names) on the device."""
        facts = {"index": batch["index"], "impath": batch["impath"]}
        facts |= {name: batch[name].to(self.device) for name in ("distribution", "has_distribution") if name in batch}
        return batch["img"].to(self.device), Target.of(batch["label"].to(self.device), **facts)
