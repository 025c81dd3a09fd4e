"""ZeroshotCLIP: class texts against image features, nothing trained. The baseline of every other CLIP trainer.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021 (https://arxiv.org/abs/2103.00020).
A class weight is the normalised mean of its normalised text features.
"""

from __future__ import annotations

import logging

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from clip_ext.loader import LoadedClip, load_clip
from clip_ext.text_bank import class_prototypes, release_text_tower
from trainers import precision
from trainers.base import CLIPTrainer
from trainers.lafter_parts.class_texts import build_class_bank, load_class_texts

logger = logging.getLogger(__name__)

LOGIT_SCALE = 100.0  # of the published CLIP models


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(CLIPTrainer):
    """Tests a frozen CLIP with class texts; `train()` is the test alone."""

    needs_checkpoint = False

    def load_backbone(self) -> LoadedClip:
        """Load the CLIP; `PREC fp16` means half weights here, since nothing trains."""
        dtype = torch.float16 if self.settings.PREC == "fp16" else torch.float32
        return load_clip(self.cfg.MODEL.BACKBONE.NAME, device=self.device, dtype=dtype)

    def build_model(self) -> None:
        """Encode the class texts once; the text tower is released afterwards."""
        self.prec = precision.resolve_precision(self.settings.PREC, self.device)
        texts = load_class_texts(self.settings.TEXT, self.cfg.DATASET.NAME)
        bank = build_class_bank(self.clip, self.settings.TEXT, texts, self.classnames)
        self.class_weights = class_prototypes(bank).to(self.device)  # (C, E), fp32
        release_text_tower(self.clip.model)

    def train(self) -> None:
        """Run the test; there is nothing to train."""
        self.test()

    @torch.no_grad()
    def model_inference(self, images: Tensor) -> Tensor:
        """Return 100 * cosine to the class texts, (B, C), fp32, for images (B, 3, H, W)."""
        with self.autocast() if self.prec != "fp16" else precision.full_precision(self.device):
            tokens = self.clip.model.encode_image(images.to(self.image_dtype))
        return LOGIT_SCALE * F.normalize(tokens.float(), dim=-1) @ self.class_weights.t()

    @property
    def image_dtype(self) -> torch.dtype:
        """Element type that the image tower takes."""
        return next(self.clip.model.visual.parameters()).dtype
