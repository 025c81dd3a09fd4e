"""Drive a CLIP vision tower's own blocks: stage prompts, layer taps, token subsets, masks, early stop.

Shallow prompts follow VPT (https://arxiv.org/abs/2203.12119) as used by LaFTer (https://arxiv.org/abs/2305.18287): learned
tokens after CLS, added after the pre-LN and without a position code. The tower itself is never changed.
"""

from dataclasses import dataclass, replace
from typing import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from clip_ext.towers import VisionTower
from clip_ext.vision_request import VisionRequest


@dataclass(frozen=True)
class TokenLayout:
    """Which rows of a token sequence are what: CLS first, then prompts, patches last."""

    n_cls: int
    n_prompts: int
    n_patches: int

    @property
    def cls(self) -> slice:
        return slice(0, self.n_cls)

    @property
    def prompts(self) -> slice:
        return slice(self.n_cls, self.n_cls + self.n_prompts)

    @property
    def patches(self) -> slice:
        return slice(self.n_cls + self.n_prompts, self.length)

    @property
    def length(self) -> int:
        return self.n_cls + self.n_prompts + self.n_patches


@dataclass(frozen=True)
class VisionOutput:
    """What a pass through the tower gives.

    Attributes:
        features: Image features in the joint space, (B, E), not normalised; None after an early stop, or if there is
            not exactly one CLS row.
        tokens: Output of the last block that ran, (B, L, D), before the post-LN.
        taps: Block number -> its CLS row or mean patch row, (B, D), before the post-LN.
        layout: The rows of `tokens`.
    """

    features: Tensor | None
    tokens: Tensor
    taps: dict[int, Tensor]
    layout: TokenLayout


class ExtendedVisionTransformer(nn.Module):
    """A CLIP vision tower with prompts, taps, masks and token subsets.

    Holds the tower by reference and owns no parameter. Blocks are numbered from 1.

    Args:
        tower: From `clip_ext.towers.build_tower`.
    """

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(
        self,
        images: Tensor,
        *,
        prompts: Mapping[int, Tensor] | None = None,
        prompt_mode: str = "replace",
        taps: Iterable[int] = (),
        token: str = "cls",
        attn_mask: Tensor | None = None,
        groups: Tensor | None = None,
        cls_copies: int = 1,
        keep: Mapping[int, Tensor] | None = None,
        stop_after: int | None = None,
        checkpoint: bool = False,
        cls_only_last: bool = False,
    ) -> VisionOutput:
        """Encode images.

        Args:
            images: Normalised RGB, (B, 3, H, H), H = tower.info.image_size_px.
            prompts: First block of a stage -> its prompt tokens, (P, D).
            prompt_mode: At a later stage, `replace` exchanges the prompt rows and `accumulate` adds the new ones before
                them; `deep` replaces them before every block and needs a prompt for each.
            taps: Blocks whose output to return.
            token: What a tap reads: the `cls` row or the mean of the `patch` rows.
            attn_mask: (L, L) or (B, L, L), bool (True: may attend) or additive, for the rows that enter block 1.
                Rows that `keep` drops later leave the mask too.
            groups: Group number of each patch, (B, N), int64; tokens attend only within their group.
            cls_copies: With `groups`: how many groups there are, each getting its own CLS, or 0 for no CLS at all.
            keep: Block -> rows that enter it, (M,) or (B, M), int64, row 0 being CLS. CLS rows may be repeated or left
                out; they come first.
            stop_after: Last block to run.
            checkpoint: Recompute each block in the backward pass instead of storing its activations.
            cls_only_last: Compute only the CLS row in the last block; `tokens` is then (B, 1, D).
        Raises:
            ValueError: If arguments are out of range or cannot be combined (lists all that is wrong).
        """
        request = VisionRequest(
            prompts=prompts or {},
            prompt_mode=prompt_mode,
            taps=frozenset(taps),
            token=token,
            attn_mask=attn_mask,
            groups=groups,
            cls_copies=cls_copies,
            keep=keep or {},
            stop_after=stop_after,
            checkpoint=checkpoint,
            cls_only_last=cls_only_last,
        )
        request.check(images, self.tower.info)
        return self._encode(images, request)

    def _encode(self, images: Tensor, request: VisionRequest) -> VisionOutput:
        depth = self.tower.info.depth
        x = self.tower.embed(images)
        layout = TokenLayout(n_cls=1, n_prompts=0, n_patches=x.shape[1] - 1)
        mask, native_mask, taps = request.attn_mask, None, {}
        if request.groups is not None:
            x, layout, mask = _split_by_group(x, request.groups, request.cls_copies)
        for number in range(1, (request.stop_after or depth) + 1):
            if number in request.keep:
                x, layout = _keep_rows(x, layout, request.keep[number])
                if mask is not None and number > 1:
                    mask = _keep_mask(mask, request.keep[number])
            if number in request.prompts:
                x, layout = _inject_prompt(x, layout, request.prompts[number], request.prompt_mode)
            if mask is not None and (number == 1 or number in request.keep or number in request.prompts):
                native_mask = self.tower.native_mask(_check_mask(mask, x, number), x.dtype)
            if request.cls_only_last and number == depth:
                x, layout = self._run(self.tower.run_block_cls, request, number, x), TokenLayout(1, 0, 0)
            else:
                x = self._run(self.tower.run_block, request, number, x, native_mask)
            if number in request.taps:
                taps[number] = _read_token(x, layout, request.token, number)
        has_features = request.stop_after is None and layout.n_cls == 1
        features = self.tower.project(self.tower.post(x[:, 0])) if has_features else None
        return VisionOutput(features, x, taps, layout)

    @staticmethod
    def _run(block: Callable[..., Tensor], request: VisionRequest, *arguments: object) -> Tensor:
        if not request.checkpoint:
            return block(*arguments)
        # A reentrant checkpoint gives no gradient to prompts and LayerNorms below a frozen input.
        return recompute(block, *arguments, use_reentrant=False)


def _inject_prompt(x: Tensor, layout: TokenLayout, prompt: Tensor, mode: str) -> tuple[Tensor, TokenLayout]:
    """[CLS; old prompts; patches] -> [CLS; prompt; patches], or with the old prompts kept if they accumulate."""
    n_old = layout.n_prompts if mode == "accumulate" else 0
    rest = x[:, layout.n_cls + layout.n_prompts - n_old :]
    rows = prompt.to(x.dtype).expand(x.shape[0], -1, -1)
    return torch.cat([x[:, layout.cls], rows, rest], dim=1), replace(layout, n_prompts=n_old + len(prompt))


def _split_by_group(x: Tensor, groups: Tensor, n_copies: int) -> tuple[Tensor, TokenLayout, Tensor]:
    """Give each group its CLS; the mask, (B, L, L), is True inside a group."""
    n_images, n_patches = groups.shape
    x = torch.cat([x[:, :1].expand(-1, n_copies, -1), x[:, 1:]], dim=1)
    of_cls = torch.arange(n_copies, device=groups.device).expand(n_images, -1)
    of_rows = torch.cat([of_cls, groups], dim=1)  # (B, L)
    return x, TokenLayout(n_copies, 0, n_patches), of_rows[:, :, None] == of_rows[:, None, :]


def _keep_rows(x: Tensor, layout: TokenLayout, index: Tensor) -> tuple[Tensor, TokenLayout]:
    is_cls = index < layout.n_cls
    n_cls = int(is_cls.reshape(-1, index.shape[-1])[0].sum())
    if not torch.equal(is_cls, (torch.arange(index.shape[-1], device=index.device) < n_cls).expand_as(is_cls)):
        raise ValueError("keep: CLS rows must come first, and be equally many for all images")
    kept = x[:, index] if index.ndim == 1 else torch.take_along_dim(x, index[..., None], dim=1)
    return kept, TokenLayout(n_cls, 0, index.shape[-1] - n_cls)


def _keep_mask(mask: Tensor, index: Tensor) -> Tensor:
    if index.ndim == 1:
        return mask[..., index, :][..., index]
    mask = mask.expand(len(index), -1, -1)
    return torch.take_along_dim(torch.take_along_dim(mask, index[:, :, None], dim=1), index[:, None, :], dim=2)


def _check_mask(mask: Tensor, x: Tensor, number: int) -> Tensor:
    n_images, length = x.shape[:2]
    if tuple(mask.shape) not in ((length, length), (n_images, length, length)):
        raise ValueError(f"attn_mask has shape {tuple(mask.shape)}; block {number} needs ({length}, {length}) or "
                         f"({n_images}, {length}, {length})")
    return mask


def _read_token(x: Tensor, layout: TokenLayout, token: str, number: int) -> Tensor:
    if token == "patch":
        return x[:, layout.patches].mean(dim=1)
    if layout.n_cls != 1:
        raise ValueError(f"tap at block {number}: there are {layout.n_cls} CLS rows; expected 1, or token 'patch'")
    # A view would keep all tokens alive.
    return x[:, 0].clone()
