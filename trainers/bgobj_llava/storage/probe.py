"""The probe of a stored model: logits after one fixed picture, split and question, recomputed when it is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainers.bgobj_llava.model.encode import SplitBatch
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.prompt import PromptEncoder, TextIds

QUESTION = "what is in the picture?"
STORED_LOGITS = 64  # evenly spread over the vocabulary
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}  # of the largest logit; other kernels round otherwise


@dataclass(frozen=True)
class Probe:
    """Logits of the token after a fixed input.

    Attributes:
        input: SHA-256 of picture, split, token ids and the options that order them, hexadecimal.
        dtype, device: What computed them.
        logits: Of `STORED_LOGITS` vocabulary entries, evenly spread.
        scale: Largest absolute logit of all.
    """

    input: str
    dtype: str
    device: str
    logits: list[float]
    scale: float


@torch.no_grad()
def compute_probe(
    model: BgObjLlava, encoder: PromptEncoder, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> Probe:
    """Compute the probe of a model as it is now.

    Args:
        model: Its mode is put back afterwards.
        encoder: Of the prompt.
        autocast: Context in which the model runs.
    """
    images, objects, text = probe_input(model, encoder)
    options = model.options
    digest = hashlib.sha256(_picture(model.info.side_px).numpy().tobytes() + objects.numpy().tobytes())
    ids = [*text.prefix.tolist(), *text.rest.tolist()]
    digest.update(repr((options.split, options.position, options.cls, sorted(model.visible), ids)).encode())
    mode = model.training
    model.eval()
    try:
        with autocast():
            rows, = model(images, SplitBatch.of(objects[None]), [text])
    finally:
        model.train(mode)
    logits = rows[-1].float().cpu()
    chosen = torch.linspace(0, len(logits) - 1, min(STORED_LOGITS, len(logits))).long()
    dtype, device = str(rows.dtype).removeprefix("torch."), model.device.type
    return Probe(digest.hexdigest(), dtype, device, logits[chosen].tolist(), logits.abs().max().item())


def probe_input(model: BgObjLlava, encoder: PromptEncoder) -> tuple[Tensor, Tensor, TextIds]:
    """Return the fixed input: image (1, 3, S, S) in the model's dtype, object patches (P,), and the question."""
    pixels = _picture(model.info.side_px).float().permute(2, 0, 1)[None] / 127.5 - 1
    return pixels.to(model.device, model.dtype), _object_patches(model.info.grid), encoder.encode([(QUESTION, None)])


def _picture(side_px: int) -> Tensor:
    """Return a picture of stripes, (S, S, 3), uint8, the same on every machine."""
    row, column = torch.arange(side_px)[:, None], torch.arange(side_px)[None]
    channels = [(row * 7 + column * 3) % 256, (row * 2 + column * 11) % 256, (row * column) % 256]
    return torch.stack([channel.expand(side_px, side_px) for channel in channels], dim=-1).to(torch.uint8)


def _object_patches(grid: int) -> Tensor:
    """Return a mask, (P,), bool, of the middle patches: about a quarter."""
    middle = torch.zeros(grid, grid, dtype=torch.bool)
    middle[grid // 4 : -(grid // 4) or None, grid // 4 : -(grid // 4) or None] = True
    return middle.flatten()


def check_probe(stored: Probe, now: Probe, path: Path) -> list[str]:
    """Compare a stored probe with the loaded model's.

    Returns:
        A note if the two cannot be compared, because the model is given another input; else nothing.
    Raises:
        ValueError: If the logits differ by more than the coarser of both dtypes explains.
    """
    if stored.input != now.input:
        return ["the stored probe was not compared: the model's input is made in another way now"]
    tolerance = max(TOLERANCE.get(each.dtype, 0.05) for each in (stored, now)) * max(stored.scale, 1.0)
    differences = [old - new for old, new in zip(stored.logits, now.logits, strict=True)]
    difference = torch.tensor(differences, dtype=torch.float64).abs().max().item()  # not a number if any of them is none
    if not difference <= tolerance:
        raise ValueError(
            f"{path}: the loaded model does not say what the stored one said: logits differ by {difference:.3g}, "
            f"expected at most {tolerance:.3g} ({stored.dtype} on {stored.device}, now {now.dtype} on {now.device})"
        )
    return []
