"""The options of one pass through a vision tower, and what can be wrong with them."""

from dataclasses import dataclass
from typing import Mapping

from torch import Tensor

from clip_ext.towers import TowerInfo

PROMPT_MODES = ("replace", "accumulate", "deep")
TAP_TOKENS = ("cls", "patch")


@dataclass(frozen=True)
class VisionRequest:
    """Options of `ExtendedVisionTransformer.forward`, which explains them."""

    prompts: Mapping[int, Tensor]
    prompt_mode: str
    taps: frozenset[int]
    token: str
    attn_mask: Tensor | None
    groups: Tensor | None
    cls_copies: int
    keep: Mapping[int, Tensor]
    stop_after: int | None
    checkpoint: bool
    cls_only_last: bool

    def check(self, images: Tensor, info: TowerInfo) -> None:
        """Raise one ValueError that lists everything wrong with these options for these images and this tower."""
        last = info.depth if self.stop_after is None else self.stop_after
        problems = [
            *self._find_bad_blocks(info.depth, last),
            *self._find_bad_images(images, info),
            *self._find_bad_prompts(images, info.width, last),
            *self._find_bad_groups(images, info.n_patches),
            *self._find_conflicts(),
        ]
        if problems:
            raise ValueError("; ".join(problems))

    def _find_bad_blocks(self, depth: int, last: int) -> list[str]:
        problems = []
        if not 1 <= last <= depth:
            problems.append(f"stop_after is {last}; expected a block in 1..{depth}")
        for name, blocks in (("prompts", self.prompts), ("taps", self.taps), ("keep", self.keep)):
            outside = sorted(block for block in blocks if not 1 <= block <= last)
            if outside:
                problems.append(f"{name} names blocks {outside}; the blocks that run are 1..{last}")
        if self.prompt_mode not in PROMPT_MODES:
            problems.append(f"prompt_mode is {self.prompt_mode!r}; expected one of {PROMPT_MODES}")
        if self.token not in TAP_TOKENS:
            problems.append(f"token is {self.token!r}; expected one of {TAP_TOKENS}")
        return problems

    def _find_bad_images(self, images: Tensor, info: TowerInfo) -> list[str]:
        expected = (3, info.image_size_px, info.image_size_px)
        if tuple(images.shape[1:]) == expected:
            return []
        return [f"images have shape {tuple(images.shape)}; expected (B, {', '.join(map(str, expected))})"]

    def _find_bad_prompts(self, images: Tensor, width: int, last: int) -> list[str]:
        problems = []
        for block, prompt in self.prompts.items():
            if prompt.ndim != 2 or prompt.shape[0] == 0 or prompt.shape[1] != width:
                problems.append(f"the prompt of block {block} has shape {tuple(prompt.shape)}; expected (P, {width})")
            if prompt.device != images.device:
                problems.append(f"the prompt of block {block} is on {prompt.device}, the images are on {images.device}")
        if self.prompt_mode == "deep" and sorted(self.prompts) != list(range(1, last + 1)):
            problems.append(f"prompt_mode 'deep' needs a prompt for each block 1..{last}; got {sorted(self.prompts)}")
        return problems

    def _find_bad_groups(self, images: Tensor, n_patches: int) -> list[str]:
        if self.groups is None:
            return [] if self.cls_copies == 1 else [f"cls_copies is {self.cls_copies}; without groups it must be 1"]
        expected = (len(images), n_patches)
        if tuple(self.groups.shape) != expected:
            return [f"groups has shape {tuple(self.groups.shape)}; expected one number per patch, {expected}"]
        lowest, highest = int(self.groups.min()), int(self.groups.max())
        if self.cls_copies < 0 or (self.cls_copies and not 0 <= lowest <= highest < self.cls_copies):
            return [f"groups has numbers {lowest}..{highest} and cls_copies is {self.cls_copies}; expected one CLS "
                    f"for each of the groups 0..cls_copies-1, or cls_copies 0"]
        return []

    def _find_conflicts(self) -> list[str]:
        conflicts = {
            "attn_mask and groups": self.attn_mask is not None and self.groups is not None,
            "prompts and groups": self.prompts and self.groups is not None,
            "keep and groups": self.keep and self.groups is not None,
            "prompts and keep": self.prompts and self.keep,
            "cls_only_last and stop_after": self.cls_only_last and self.stop_after is not None,
            "cls_only_last and masks, groups or keep": self.cls_only_last
            and (self.attn_mask is not None or self.groups is not None or self.keep),
            "cls_only_last and patch taps": self.cls_only_last and self.taps and self.token == "patch",
        }
        return [f"{names} cannot be combined" for names, found in conflicts.items() if found]
