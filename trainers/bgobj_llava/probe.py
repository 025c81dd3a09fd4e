"""The probe of a stored model: logits of one fixed input, recomputed after loading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}  # of the largest logit


@dataclass(frozen=True)
class Probe:
    """Logits of the next token after a fixed picture, split and question.

    Attributes:
        input: SHA-256 of picture, split and token ids, hexadecimal.
        dtype, device: The model's.
        ids: Vocabulary entries whose logits are stored.
        logits: Of these entries.
        scale: Largest absolute logit of all.
    """

    input: str
    dtype: str
    device: str
    ids: list[int]
    logits: list[float]
    scale: float


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
    difference = max(abs(old - new) for old, new in zip(stored.logits, now.logits, strict=True))
    if not difference <= tolerance:
        raise ValueError(
            f"{path}: the loaded model does not say what the stored one said: logits differ by {difference:.3g}, "
            f"expected at most {tolerance:.3g} ({stored.dtype} on {stored.device}, now {now.dtype} on {now.device})"
        )
    return []
