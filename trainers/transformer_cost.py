"""Operations of transformer blocks by arithmetic: matrix products and attention, 2 per multiply-add.

Attention counts every row against every row that the layer holds, as kernels without a causal shortcut do. Not counted: norms,
activation functions, positions, softmax, look-ups.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """Equal transformer blocks.

    Attributes:
        n_blocks: How many.
        weights: Of the matrices of one block.
        q_width: Width of all heads' queries.
        kv_width: Width of all heads' keys; of their values alike.
    """

    n_blocks: int
    weights: int
    q_width: int
    kv_width: int

    def flops(self, rows: int, past: int = 0) -> float:
        """Return what `rows` rows cost that come after `past` ones: matrices, and queries with keys and weights with values."""
        return self.n_blocks * (2.0 * rows * self.weights + 4.0 * rows * (past + rows) * self.q_width)

    def bytes_per_token(self, itemsize: int) -> int:
        """Return the size of one token's keys and values in all blocks."""
        return self.n_blocks * 2 * self.kv_width * itemsize
