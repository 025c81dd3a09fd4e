"""Wrong and contradicting options of the vision driver."""

import pytest
import torch

from clip_ext.towers import build_tower
from clip_ext.vision import ExtendedVisionTransformer

PROMPT = torch.zeros(2, 32)
GROUPS = torch.arange(16).expand(3, -1) % 2


@pytest.fixture(scope="module")
def vision(make_clip) -> ExtendedVisionTransformer:
    return ExtendedVisionTransformer(build_tower(make_clip(depth=3).model.visual))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_after": 4}, "stop_after is 4; expected a block in 1..3"),
        ({"stop_after": 0}, "stop_after is 0; expected a block in 1..3"),
        ({"taps": (0,)}, r"taps names blocks \[0\]; the blocks that run are 1..3"),
        ({"taps": (3,), "stop_after": 2}, r"taps names blocks \[3\]; the blocks that run are 1..2"),
        ({"prompts": {4: PROMPT}}, r"prompts names blocks \[4\]"),
        ({"keep": {0: torch.arange(17)}}, r"keep names blocks \[0\]"),
        ({"prompt_mode": "append"}, r"prompt_mode is 'append'; expected one of \('replace', 'accumulate', 'deep'\)"),
        ({"token": "mean"}, r"token is 'mean'; expected one of \('cls', 'patch'\)"),
        ({"prompts": {1: torch.zeros(2, 31)}}, r"prompt of block 1 has shape \(2, 31\); expected \(P, 32\)"),
        ({"prompts": {1: torch.zeros(0, 32)}}, r"shape \(0, 32\)"),
        ({"prompts": {1: torch.zeros(3, 2, 32)}}, r"shape \(3, 2, 32\)"),
        ({"prompts": {1: PROMPT.to("meta")}}, "prompt of block 1 is on meta, the images are on cpu"),
        ({"prompts": {1: PROMPT, 3: PROMPT}, "prompt_mode": "deep"}, r"for each block 1..3; got \[1, 3\]"),
        ({"groups": GROUPS[:, :9], "cls_copies": 2}, r"groups has shape \(3, 9\).*\(3, 16\)"),
        ({"groups": GROUPS}, "numbers 0..1 and cls_copies is 1"),
        ({"groups": GROUPS - 1, "cls_copies": 2}, "numbers -1..0 and cls_copies is 2"),
        ({"cls_copies": 2}, "cls_copies is 2; without groups it must be 1"),
        ({"groups": GROUPS, "cls_copies": 2, "attn_mask": torch.zeros(18, 18)}, "attn_mask and groups"),
        ({"groups": GROUPS, "cls_copies": 2, "prompts": {1: PROMPT}}, "prompts and groups"),
        ({"groups": GROUPS, "cls_copies": 2, "keep": {1: torch.arange(17)}}, "keep and groups"),
        ({"prompts": {1: PROMPT}, "keep": {1: torch.arange(17)}}, "prompts and keep"),
        ({"cls_only_last": True, "stop_after": 2}, "cls_only_last and stop_after"),
        ({"cls_only_last": True, "attn_mask": torch.zeros(17, 17)}, "cls_only_last and masks"),
        ({"cls_only_last": True, "taps": (1,), "token": "patch"}, "cls_only_last and patch taps"),
        ({"attn_mask": torch.zeros(16, 16)}, r"attn_mask has shape \(16, 16\); block 1 needs \(17, 17\) or \(3, 17, 17\)"),
        ({"attn_mask": torch.zeros(17, 17), "prompts": {2: PROMPT}}, r"shape \(17, 17\); block 2 needs \(19, 19\)"),
        ({"keep": {1: torch.tensor([3, 0])}}, "CLS rows must come first"),
        ({"keep": {1: torch.tensor([[0, 1], [0, 1], [1, 2]])}}, "equally many for all images"),
        ({"groups": GROUPS, "cls_copies": 2, "taps": (2,)}, "tap at block 2: there are 2 CLS rows"),
    ],
)
def test_forward_refuses_what_it_cannot_do(vision, images, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        vision(images, **options)


@pytest.mark.parametrize("shape", [(3, 3, 40, 40), (3, 1, 32, 32), (3, 32, 32)])
def test_forward_refuses_images_of_another_size(vision, shape) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\)"):
        vision(torch.zeros(shape))


def test_forward_reports_all_problems_at_once(vision, images) -> None:
    with pytest.raises(ValueError) as caught:
        vision(images, taps=(9,), token="mean", prompts={1: torch.zeros(2, 5)}, cls_copies=3, keep={1: torch.arange(17)})
    message = str(caught.value)
    for part in ("taps names", "token is", "prompt of block 1", "cls_copies is 3", "prompts and keep"):
        assert part in message
