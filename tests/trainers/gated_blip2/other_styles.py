"""Another style encoder than the tiny world's."""

from __future__ import annotations

from pathlib import Path

import torch

from clip_ext.style_names import wikiart_styles
from trainers.gated_blip2.style.files import StyleCard, write_style_file
from trainers.gated_blip2.style.networks import ARCHITECTURES, build_network


def write_style(folder: Path) -> str:
    """Write a random miniature encoder of WikiArt's styles; return what STYLE.CHECKPOINT calls it."""
    torch.manual_seed(5)
    network, view = build_network("efficientnet_tiny", 27), ARCHITECTURES["efficientnet_tiny"].view
    return str(write_style_file(folder, network, StyleCard("efficientnet_tiny", wikiart_styles().names, view)))
