"""Operations of transformer blocks against what the operators count."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from trainers.transformer_cost import Stack


def test_blocks_cost_what_their_operators_count() -> None:
    n_blocks, rows, past, width = 3, 5, 7, 8
    maps = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for _ in range(n_blocks):
            x = torch.randn(1, 1, rows, width)
            earlier = torch.randn(1, 1, past, width)
            q, k, v = (map_(x) for map_ in maps[:3])
            keys, values = torch.cat([earlier, k], dim=2), torch.cat([earlier, v], dim=2)
            maps[3](F.softmax(q @ keys.transpose(-1, -2), dim=-1) @ values)
    stack = Stack(n_blocks, weights=4 * width**2, q_width=width, kv_width=width)
    assert stack.flops(rows, past) == counter.get_total_flops()
    assert stack.flops(rows) < stack.flops(rows, past)


def test_a_token_keeps_keys_and_values_in_every_block() -> None:
    assert Stack(4, weights=0, q_width=16, kv_width=8).bytes_per_token(2) == 4 * 2 * 8 * 2
