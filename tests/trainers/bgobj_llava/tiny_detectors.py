"""Random detectors of a few kB, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import DFineConfig, DFineForObjectDetection, RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor
from transformers.models.hgnet_v2 import HGNetV2Config
from transformers.models.rt_detr import RTDetrResNetConfig

NAMES = ("cat", "dog", "car")


def save_detector(folder: Path, backend: str) -> Path:
    """Write a random `rtdetr` or `dfine` with three classes and its processor; return the folder."""
    torch.manual_seed(0)
    common = dict(
        encoder_hidden_dim=32, encoder_ffn_dim=32, encoder_attention_heads=2, d_model=32, decoder_ffn_dim=32,
        decoder_layers=2, decoder_attention_heads=2, num_queries=10, num_denoising=0,
        encoder_in_channels=[16, 24, 32], decoder_in_channels=[32, 32, 32], initializer_bias_prior_prob=0.5,
        id2label=dict(enumerate(NAMES)), label2id={name: number for number, name in enumerate(NAMES)},
    )  # fmt: skip
    if backend == "rtdetr":
        backbone = RTDetrResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[2, 3, 4]
        )
        model = RTDetrForObjectDetection(RTDetrConfig(backbone_config=backbone, **common))
    else:
        backbone = HGNetV2Config(
            stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 16, 24], stage_mid_channels=[8, 8, 8, 8],
            stage_out_channels=[8, 16, 24, 32], stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[1, 1, 1, 1],
            hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], embedding_size=8, out_indices=[2, 3, 4],
        )  # fmt: skip
        model = DFineForObjectDetection(DFineConfig(backbone_config=backbone, **common))
    model.save_pretrained(folder)
    RTDetrImageProcessor().save_pretrained(folder)
    return folder
