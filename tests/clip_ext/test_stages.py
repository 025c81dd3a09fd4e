"""Stage plans on 12, 24 and 32 blocks, explicit lists, legacy converters."""

import pytest

from clip_ext.stages import FAMILIES, from_legacy, list_schemes, resolve_stages, to_legacy


def spans(stages: tuple[tuple[int, ...], ...]) -> list[tuple[int, int]]:
    return [(stage[0], stage[-1]) for stage in stages]


@pytest.mark.parametrize(
    ("family", "scheme", "depth", "expected"),
    [
        ("multilayer", "auto", 12, [(1, 4), (5, 8), (9, 11), (12, 12)]),
        ("multilayer", "auto", 24, [(1, 8), (9, 16), (17, 22), (23, 24)]),
        ("multilayer", "auto", 32, [(1, 11), (12, 21), (22, 29), (30, 32)]),
        ("multilayer", "even", 24, [(1, 6), (7, 12), (13, 18), (19, 24)]),
        ("multilayer", "shallow_deep", 24, [(1, 4), (5, 10), (11, 18), (19, 24)]),
        ("multilayer", "shallow_deep", 12, [(1, 2), (3, 5), (6, 9), (10, 12)]),
        ("hybrid", "auto", 12, [(5, 7), (8, 9), (10, 12)]),
        ("hybrid", "auto", 6, [(3, 4), (5, 5), (6, 6)]),
        ("hybrid", "auto", 24, [(9, 14), (15, 18), (19, 24)]),
        ("hybrid", "auto", 32, [(12, 19), (20, 24), (25, 32)]),
        ("hybrid", "cascadeclip", 12, [(6, 8), (9, 11), (12, 12)]),
        ("hybrid", "cascadeclip", 24, [(11, 16), (17, 22), (23, 24)]),
        ("hybrid", "keep_last", 12, [(5, 7), (8, 9), (10, 11), (12, 12)]),
        ("hybrid", "keep_last", 24, [(9, 14), (15, 18), (19, 22), (23, 24)]),
    ],
)
def test_resolve_stages_gives_the_published_plan(family, scheme, depth, expected) -> None:
    assert spans(resolve_stages(family, depth, scheme=scheme)) == expected


@pytest.mark.parametrize("depth", [12, 13, 24, 32, 40])
@pytest.mark.parametrize("family", FAMILIES)
def test_resolve_stages_any_depth_is_contiguous_and_ends_with_the_last_block(family, depth) -> None:
    for scheme in list_schemes(family):
        blocks = [block for stage in resolve_stages(family, depth, scheme=scheme) for block in stage]
        assert blocks == list(range(blocks[0], depth + 1))
        assert family == "hybrid" or blocks[0] == 1


def test_resolve_stages_shallow_tower_asks_for_a_list() -> None:
    with pytest.raises(ValueError, match="3 blocks is too shallow.*give the stages as lists"):
        resolve_stages("multilayer", 3)


def test_resolve_stages_explicit_list_overrides_the_scheme() -> None:
    assert resolve_stages("hybrid", 6, scheme="keep_last", stages=[[2, 4], [6]]) == ((2, 4), (6,))
    assert resolve_stages("multilayer", 3, stages=[[1], [2, 3]]) == ((1,), (2, 3))
    assert resolve_stages("hybrid", 12, stages=[[12]]) == ((12,),)


@pytest.mark.parametrize(
    ("family", "stages", "message"),
    [
        ("hybrid", [[1], []], "stage 2 is empty"),
        ("hybrid", [[10, 13]], "block 13 is outside 1..12"),
        ("hybrid", [[0, 12]], "block 0 is outside 1..12"),
        ("hybrid", [["5", 12]], "block '5' is outside 1..12"),
        ("hybrid", [[5, 6], [6, 12]], "block 6 comes after block 6"),
        ("hybrid", [[12], [5]], "block 5 comes after block 12"),
        ("hybrid", [[5, 6], [8, 9]], "blocks 10..12 would be ignored"),
        ("multilayer", [[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]], "block 1 is in no stage"),
        ("multilayer", [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11, 12]], "block 6 is in no stage"),
    ],
)
def test_resolve_stages_invalid_list_names_the_block(family, stages, message) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_stages(family, 12, stages=stages)


def test_resolve_stages_twelve_block_list_on_a_deeper_tower_raises() -> None:
    with pytest.raises(ValueError, match="blocks 13..24 would be ignored"):
        resolve_stages("hybrid", 24, stages=resolve_stages("hybrid", 12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "cascade"}, r"family is 'cascade'; expected one of \('multilayer', 'hybrid'\)"),
        ({"family": "hybrid", "scheme": "even"}, r"scheme is 'even'; expected one of \['auto', 'cascadeclip'"),
    ],
)
def test_resolve_stages_unknown_name_lists_the_allowed(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_stages(depth=12, **arguments)


def test_legacy_converters_are_inverse() -> None:
    boundaries, indices = [[0, 1, 2], [3, 4], [5, 6, 7]], [4, 5, 6, 7, 8, 9, 10, 11]
    stages = [[5, 6, 7], [8, 9], [10, 11, 12]]
    assert from_legacy(boundaries, indices) == stages
    assert to_legacy(stages) == (boundaries, indices)
