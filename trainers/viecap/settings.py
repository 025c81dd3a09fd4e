"""From the config node to plain arguments: what each part of the room is built with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from yacs.config import CfgNode

from trainers.config_merge import flatten
from trainers.viecap.caption_store.epoch_plan import BatchShape
from trainers.viecap.storage.export import ExportPlan

if TYPE_CHECKING:
    from trainers.viecap.network.decoding import DecodeOptions


def soft_tokens(node: CfgNode) -> int:
    """Return the length of the soft prompt, 0 without one."""
    return 0 if node.ONLY_HARD_PROMPT else node.CONTINUOUS_PROMPT_LENGTH


def batch_shape(node: CfgNode, batch_size: int) -> BatchShape:
    """Return how captions become batches."""
    return BatchShape(
        batch_size, soft_tokens(node), pad_multiple=node.LOADER.PAD_MULTIPLE, bucket_batches=node.LOADER.BUCKET_BATCHES
    )


def decode_options(node: CfgNode, stop_ids: Collection[int], seed: int) -> DecodeOptions:
    """Return how the captions of a test are generated."""
    from trainers.viecap.network.decoding import DecodeOptions

    return DecodeOptions(
        mode=node.DECODE,
        beam_width=node.BEAM_WIDTH,
        max_new_tokens=node.MAX_NEW_TOKENS,
        num_return=node.NUM_RETURN,
        top_p=node.SAMPLE_TOP_P,
        temperature=node.SAMPLE_TEMPERATURE,
        stop_ids=frozenset(stop_ids),
        seed=max(seed, 0),
    )


def greedy(options: DecodeOptions) -> DecodeOptions:
    """Return how the captions of a validation are generated."""
    return replace(options, mode="greedy", num_return=1)


def export_plan(node: CfgNode, max_epoch: int) -> ExportPlan:
    """Return which epochs are exported."""
    return ExportPlan(max_epoch, prefix=node.PREFIX, every=node.SAVE_EVERY)


def all_settings(node: CfgNode) -> dict[str, Any]:
    """Return every key below the node, dotted -> value."""
    return dict(flatten(node))
