"""Order, separators and rotary positions of what the language model reads.

Segments: S0 = text before the image and the background; S1 = the objects; S2 = text after the image. Patches stand in raster
order within their group. An empty group has no separators. A patch that is encoded in both groups (the ring around objects)
stands in both, at one raster position; where the sequence keeps the stock order, its background copy does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainers.bgobj_llava.model.options import ModelOptions
from trainers.bgobj_llava.model.prompt import TextIds

TEXT, BACKGROUND, OBJECT, SEPARATOR = range(4)
BG_START, BG_END, OBJ_START, OBJ_END, BG_OBJ = "bg_start", "bg_end", "obj_start", "obj_end", "bg_obj"
SEPARATORS = {"pairs": (BG_START, BG_END, OBJ_START, OBJ_END), "single": (BG_OBJ,), "none": ()}
GROUPS = frozenset({"bg", "obj"})


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokens of one image, ready for the language model.

    Attributes:
        bg: Of the background patches, (n_b, d).
        obj: Of the object patches, (n_o, d).
        bg_index: Their raster numbers, ascending, (n_b,), int64.
        obj_index: Likewise, (n_o,), int64.
        stock_order: Whether this image keeps raster order and gets no separators.
    """

    bg: Tensor
    obj: Tensor
    bg_index: Tensor
    obj_index: Tensor
    stock_order: bool = False


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive rows of a sequence.

    Attributes:
        embeds: (L, d).
        positions: Rotary positions, (L,), int64.
        types: 0 text, 1 background, 2 object, 3 separator, (L,), int64.
        ids: Token ids, the image token's for patches, (L,), int64.
        bypass: First row that goes around the fusion layers: answers, and what follows them.
    """

    embeds: Tensor
    positions: Tensor
    types: Tensor
    ids: Tensor
    bypass: int

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def join(segments: Sequence[Segment]) -> Segment:
        """Return the segments one after another; the first bypassed row bypasses all that follow."""
        bypass, length = None, 0
        for segment in segments:
            if bypass is None and segment.bypass < len(segment):
                bypass = length + segment.bypass
            length += len(segment)
        columns = ("embeds", "positions", "types", "ids")
        joined = {name: torch.cat([getattr(segment, name) for segment in segments]) for name in columns}
        return Segment(**joined, bypass=length if bypass is None else bypass)


@dataclass(frozen=True, eq=False)
class Segments:
    """A whole sequence: text and background, objects (maybe no rows), text."""

    s0: Segment
    s1: Segment
    s2: Segment

    def __iter__(self) -> Iterator[Segment]:
        return iter((self.s0, self.s1, self.s2))

    def __len__(self) -> int:
        return sum(len(segment) for segment in self)

    @property
    def suffix(self) -> Segment:
        """What follows a cached S0: S1 and S2."""
        return Segment.join([self.s1, self.s2])

    @property
    def whole(self) -> Segment:
        return Segment.join(list(self))

    @property
    def next_position(self) -> int:
        """Rotary position of the token after the last."""
        return int(self.s2.positions[-1]) + 1


def longest_length(text: TextIds, n_patches: int, options: ModelOptions, n_ring: int = 0) -> int:
    """Return how many rows a sequence can have, whatever the split of its image is."""
    n_separators = len(SEPARATORS[options.separators])
    return len(text.prefix) + n_patches + n_ring + n_separators + len(text.rest)


class SequenceRules:
    """Puts text, tokens and separators in order.

    With raster positions, patch r has p0 + r (one more with `pairs`), p0 being the length of the text before it; the slots of
    separators after the patches, and the text's after those, are the same whichever groups are there.

    Args:
        options: Split, positions and style of separators.
        n_patches: Patches of an image, P.
        image_id: Token id that stands for a patch.
        separator_ids: Name of each separator -> its token id.
    """

    def __init__(self, options: ModelOptions, *, n_patches: int, image_id: int, separator_ids: Mapping[str, int]) -> None:
        self._options = options
        self._n_patches = n_patches
        self._image_id = image_id
        self._separator_ids = dict(separator_ids)

    def arrange(
        self, encoded: Encoded, text: TextIds, embeds: tuple[Tensor, Tensor], separators: Tensor | None, visible: frozenset[str]
    ) -> Segments:
        """Build the segments of one image and its conversation.

        Args:
            encoded: Tokens of the image.
            text: Its conversation.
            embeds: Of `text.prefix`, (n0, d), and of `text.rest`, (n2, d).
            separators: Their embeddings in the order of `SEPARATORS[style]`, (k, d); None without separators.
            visible: Groups whose tokens are shown.
        """
        stock = encoded.stock_order or not self._options.reorders
        style = "none" if stock else self._options.separators
        p0 = len(text.prefix)
        first_patch = p0 + (1 if style == "pairs" else 0)
        bg = self._patches(encoded.bg, encoded.bg_index, BACKGROUND, first_patch)
        obj = self._patches(encoded.obj, encoded.obj_index, OBJECT, first_patch)
        bg = bg if "bg" in visible else _take(bg, slice(0))
        obj = obj if "obj" in visible else _take(obj, slice(0))
        before, objects = ([], [_merge(bg, obj)]) if stock else self._separate(bg, obj, style, separators, p0)
        s0 = Segment.join([_rows(text.prefix, embeds[0], 0, TEXT), *before])
        s1 = Segment.join(objects)
        first_text = p0 + self._n_patches + len(SEPARATORS[style])
        s2 = replace(_rows(text.rest, embeds[1], first_text, TEXT), bypass=text.first_answer)
        if self._options.position == "raster":
            return Segments(s0, s1, s2)
        return Segments(_renumber(s0, 0), _renumber(s1, len(s0)), _renumber(s2, len(s0) + len(s1)))

    def _patches(self, tokens: Tensor, index: Tensor, kind: int, first: int) -> Segment:
        positions = index.to(tokens.device) + first
        return Segment(
            tokens, positions, torch.full_like(positions, kind), torch.full_like(positions, self._image_id), len(positions)
        )

    def _separate(
        self, bg: Segment, obj: Segment, style: str, separators: Tensor | None, p0: int
    ) -> tuple[list[Segment], list[Segment]]:
        """Put separators around or between the groups that are there: (end of S0, S1)."""
        after = p0 + self._n_patches

        def mark(name: str, slot: int) -> Segment:
            place = SEPARATORS[style].index(name)
            ids = torch.tensor([self._separator_ids[name]])
            return _rows(ids, separators[place : place + 1], slot, SEPARATOR)

        if style == "pairs":
            before = [mark(BG_START, p0), bg, mark(BG_END, after + 1)] if len(bg) else []
            return before, [mark(OBJ_START, after + 2), obj, mark(OBJ_END, after + 3)] if len(obj) else [obj]
        if style == "single" and len(bg) and len(obj):
            return [bg, mark(BG_OBJ, after)], [obj]
        return [bg], [obj]


def _rows(ids: Tensor, embeds: Tensor, start: int, kind: int) -> Segment:
    positions = torch.arange(start, start + len(ids), device=embeds.device)
    return Segment(embeds, positions, torch.full_like(positions, kind), ids.to(embeds.device), len(ids))


def _renumber(segment: Segment, start: int) -> Segment:
    positions = torch.arange(start, start + len(segment), device=segment.positions.device)
    return replace(segment, positions=positions)


def _take(segment: Segment, rows: slice | Tensor) -> Segment:
    ids = segment.ids[rows]
    return Segment(segment.embeds[rows], segment.positions[rows], segment.types[rows], ids, len(ids))


def _merge(bg: Segment, obj: Segment) -> Segment:
    """Both groups in raster order; of a patch in both, the background's copy."""
    only_obj = ~torch.isin(obj.positions, bg.positions)
    both = Segment.join([bg, _take(obj, only_obj)])
    return _take(both, both.positions.argsort())
