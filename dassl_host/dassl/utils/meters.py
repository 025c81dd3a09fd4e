"""Running averages for the training log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

__all__ = ["AverageMeter", "MetricMeter"]

_EMA_KEEP = 0.9


class AverageMeter:
    """Current value and average of one number.

    Args:
        ema: If True, `avg` is the exponential moving average 0.9 * avg + 0.1 * val, starting at 0.
    """

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self.val = 0.0
        self.avg = 0.0
        self.sum = 0.0
        self.count = 0

    def update(self, val: float | torch.Tensor, n: int = 1) -> None:
        """Add the value `val`, counted `n` times in the plain average."""
        self.val = val.item() if isinstance(val, torch.Tensor) else val
        self.sum += self.val * n
        self.count += n
        if self.ema:
            self.avg = _EMA_KEEP * self.avg + (1 - _EMA_KEEP) * self.val
        else:
            self.avg = self.sum / self.count


class MetricMeter:
    """Average meters by name; `str(meter)` gives `name value (average)` with four decimals each."""

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: dict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, float | torch.Tensor] | None) -> None:
        """Add one value per name; None adds nothing.

        Raises:
            TypeError: If `input_dict` is neither a dict nor None.
        """
        if input_dict is None:
            return
        if not isinstance(input_dict, Mapping):
            raise TypeError(f"MetricMeter.update() got {type(input_dict).__name__}; expected a dict of numbers or None")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        return self.delimiter.join(f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items())
