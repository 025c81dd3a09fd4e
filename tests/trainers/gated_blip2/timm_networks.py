"""timm's `efficientnet_b3`, rebuilt from its documented module names: what its files hold, and what it computes."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

# channels, blocks, kernel, stride, expansion of each stage: B0 of the paper at width 1.2 and depth 1.4
B3_STAGES = (
    (24, 2, 3, 1, 1), (32, 3, 3, 2, 6), (48, 3, 5, 2, 6), (96, 5, 3, 2, 6), (136, 5, 5, 1, 6), (232, 6, 5, 2, 6),
    (384, 2, 3, 1, 6),
)  # fmt: skip
B3_STEM, B3_HEAD = 40, 1536


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = nn.functional.silu(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.conv_expand(gate))


class DepthwiseSeparable(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.skips = stride == 1 and inputs == outputs
        self.conv_dw = nn.Conv2d(inputs, inputs, kernel, stride, kernel // 2, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.se = SqueezeExcite(inputs, inputs // 4)
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.silu(self.bn1(self.conv_dw(x)))
        y = self.bn2(self.conv_pw(self.se(y)))
        return y + x if self.skips else y


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.skips = stride == 1 and inputs == outputs
        self.conv_pw = nn.Conv2d(inputs, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv_dw = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.se = SqueezeExcite(wide, inputs // 4)
        self.conv_pwl = nn.Conv2d(wide, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.silu(self.bn1(self.conv_pw(x)))
        y = nn.functional.silu(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(self.se(y)))
        return y + x if self.skips else y


class TimmB3(nn.Module):
    """Without its classifier if `n_classes` is 0, as in timm."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, B3_STEM, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(B3_STEM)
        stages, inputs = [], B3_STEM
        for outputs, n_blocks, kernel, stride, expansion in B3_STAGES:
            blocks = []
            for number in range(n_blocks):
                step = stride if number == 0 else 1
                if expansion == 1:
                    blocks.append(DepthwiseSeparable(inputs, outputs, kernel, step))
                else:
                    blocks.append(InvertedResidual(inputs, outputs, kernel, step, expansion))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(inputs, B3_HEAD, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(B3_HEAD)
        self.classifier = nn.Linear(B3_HEAD, n_classes) if n_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(nn.functional.silu(self.bn1(self.conv_stem(x))))
        return self.classifier(nn.functional.silu(self.bn2(self.conv_head(x))).mean((2, 3)))


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Make every parameter and every statistic of the BatchNorms random, so that no two tensors can be mistaken; evaluation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in OrderedDict(network.state_dict()).items():
            if not tensor.is_floating_point():
                tensor.fill_(7)
            elif tensor.ndim > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
            else:
                offset = 1.0 if name.endswith(("bn1.weight", "bn2.weight", "bn3.weight", "running_var", ".1.weight")) else 0.0
                tensor.copy_(offset + 0.1 * torch.rand(tensor.shape, generator=generator))
    return network.eval()
