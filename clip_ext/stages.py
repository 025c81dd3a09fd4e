"""Stage plans: which transformer blocks form which stage, for any depth. Blocks are numbered from 1."""

from itertools import pairwise
from typing import Sequence

Stages = tuple[tuple[int, ...], ...]

FAMILIES = ("multilayer", "hybrid")

# Edges of a plan on 12 blocks: stage s holds the blocks after edge s up to and including edge s + 1.
_PLANS = {
    "multilayer": {
        "auto": (0, 4, 8, 11, 12),
        "even": (0, 3, 6, 9, 12),
        "shallow_deep": (0, 2, 5, 9, 12),
    },
    "hybrid": {
        "auto": (4, 7, 9, 12),
        "cascadeclip": (5, 8, 11, 12),
        "keep_last": (4, 7, 9, 11, 12),
    },
}
_PLAN_DEPTH = 12


def list_schemes(family: str) -> list[str]:
    """Scheme names of a family, the default first."""
    return list(_PLANS[family])


def resolve_stages(
    family: str, depth: int, *, scheme: str = "auto", stages: Sequence[Sequence[int]] = ()
) -> Stages:
    """Give the blocks of each stage, shallow to deep.

    Args:
        family: `multilayer` (its stages cover all blocks) or `hybrid` (may skip early blocks).
        depth: Blocks of the tower.
        scheme: A name of `list_schemes(family)`; made for 12 blocks and scaled to `depth`.
        stages: Explicit block lists; if not empty, they override the scheme.
    Returns:
        Block numbers per stage, ascending.
    Raises:
        ValueError: If a name is unknown, the tower is too shallow for the scheme, or an explicit list is not strictly
            increasing, disjoint, within 1..depth and complete (names the block).
    """
    if family not in _PLANS:
        raise ValueError(f"stage family is {family!r}; expected one of {FAMILIES}")
    if stages:
        explicit = tuple(tuple(stage) for stage in stages)
        _check_stages(family, depth, explicit)
        return explicit
    if scheme not in _PLANS[family]:
        raise ValueError(f"stage scheme is {scheme!r}; expected one of {list_schemes(family)}")
    edges = [_scale_edge(edge, depth) for edge in _PLANS[family][scheme]]
    if any(end <= start for start, end in pairwise(edges)):
        raise ValueError(f"a tower of {depth} blocks is too shallow for the stage scheme {scheme!r}, made for "
                         f"{_PLAN_DEPTH}; give the stages as lists of blocks")
    return tuple(tuple(range(start + 1, end + 1)) for start, end in pairwise(edges))


def _scale_edge(edge: int, depth: int) -> int:
    """Round edge * depth / 12 to the nearest block, halves up, in whole numbers."""
    return (2 * edge * depth + _PLAN_DEPTH) // (2 * _PLAN_DEPTH)


def _check_stages(family: str, depth: int, stages: Stages) -> None:
    blocks = [block for stage in stages for block in stage]
    problems = []
    if not all(stages):
        problems.append(f"stage {[bool(stage) for stage in stages].index(False) + 1} is empty")
    problems += [f"block {block!r} is outside 1..{depth}" for block in blocks
                 if isinstance(block, bool) or not isinstance(block, int) or not 1 <= block <= depth]
    if not problems:
        problems += [f"block {after} comes after block {before}; blocks must increase"
                     for before, after in pairwise(blocks) if after <= before]
    if not problems and family == "multilayer":
        problems += [f"block {block} is in no stage; the stages must cover 1..{depth}"
                     for block in range(1, depth + 1) if block not in blocks]
    if not problems and blocks[-1] != depth:
        problems.append(f"the last stage ends with block {blocks[-1]}, but the tower has {depth}: blocks "
                        f"{blocks[-1] + 1}..{depth} would be ignored")
    if problems:
        raise ValueError(f"stages {[list(stage) for stage in stages]} do not fit: {'; '.join(problems)}")


def from_legacy(stage_boundaries: Sequence[Sequence[int]], extraction_indices: Sequence[int]) -> list[list[int]]:
    """Translate positions in a list of 0-based extraction layers to 1-based blocks.

    `from_legacy([[0, 1, 2], [3, 4], [5, 6, 7]], [4, 5, 6, 7, 8, 9, 10, 11])` is `[[5, 6, 7], [8, 9], [10, 11, 12]]`.
    """
    return [[extraction_indices[position] + 1 for position in stage] for stage in stage_boundaries]


def to_legacy(stages: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[int]]:
    """Inverse of `from_legacy`: stage boundaries and extraction indices, both 0-based."""
    indices = [block - 1 for stage in stages for block in stage]
    position = {index: place for place, index in enumerate(indices)}
    return [[position[block - 1] for block in stage] for stage in stages], indices
