"""From a config node to a model that can train and write. Imported when something is built: it needs transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from yacs.config import CfgNode

from clip_ext.weights import compute_fingerprint
from trainers.parameter_groups import ParameterGroup, Trainables
from trainers.viecap.network.language_model import describe_config, find_stop_ids, load_language_model, width_of
from trainers.viecap.network.mapping import noise_variance_for
from trainers.viecap.network.model import PrefixCaptioner
from trainers.viecap.settings import soft_tokens
from trainers.viecap.storage.loading import build_model
from trainers.viecap.words.prompts import PromptBuilder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GROUPS = {"mapping_network": "mapping.", "language_model": "language_model."}
MB = 1e6
BYTES = 4  # of an fp32 number


@dataclass(frozen=True, eq=False)
class System:
    """A model with all that belongs to it.

    Attributes:
        model: Language model and mapping network.
        tokenizer: Of the language model.
        stop_ids: Tokens that end a caption.
        prompts: Makes hard prompts; None without one.
        trainables: What trains, as a module.
        groups: The same, as it is declared.
        language_model: Name and configuration, for the artefact.
        frozen: Fingerprint of a frozen language model; "" if it trains.
    """

    model: PrefixCaptioner
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]
    prompts: PromptBuilder | None
    trainables: Trainables
    groups: Sequence[ParameterGroup]
    language_model: dict[str, Any]
    frozen: str

    @property
    def eos_id(self) -> int | None:
        """End token of the tokenizer."""
        return self.tokenizer.eos_token_id


def build_system(node: CfgNode, d_clip: int, device: torch.device) -> System:
    """Build language model, mapping network and prompts, and mark what trains.

    Args:
        node: `TRAINER.VIECAP`.
        d_clip: Width E of the CLIP vectors.
        device: Where the model goes.
    """
    language_model, tokenizer = load_language_model(node.LANGUAGE_MODEL, init=node.LM_INIT)
    model = build_model(language_model, d_clip, node, frozen=node.FROZEN_GPT).to(device)
    prompts = None
    if node.USING_HARD_PROMPT:
        prompts = PromptBuilder(tokenizer, node.MAX_NUM_OF_ENTITIES, node.PROMPT_TEMPLATE_LENGTH)
    parts = {name: _trained(model, prefix) for name, prefix in GROUPS.items()}
    parts = {name: pairs for name, pairs in parts.items() if pairs}
    groups = [ParameterGroup(name, [p for _, p in pairs], lr_mult=1.0, weight_decay=0.0) for name, pairs in parts.items()]
    facts = {"name": node.LANGUAGE_MODEL, "config": describe_config(language_model)}
    frozen = compute_fingerprint(language_model.state_dict()) if node.FROZEN_GPT else ""
    stop_ids = find_stop_ids(tokenizer, node.STOP)
    return System(model, tokenizer, stop_ids, prompts, Trainables(parts), groups, facts, frozen)


def _trained(model: nn.Module, prefix: str) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if name.startswith(prefix) and p.requires_grad]


def describe_system(system: System, node: CfgNode, d_clip: int) -> str:
    """Return sizes, prompts, noise and memory in a few lines."""
    model = system.model
    counts = {name: sum(p.numel() for n, p in model.named_parameters() if n.startswith(part)) for name, part in GROUPS.items()}
    total, n_tensors = sum(counts.values()), sum(1 for _ in model.parameters())
    n_trained = sum(p.numel() for group in system.groups for p in group.parameters)
    variance = noise_variance_for(d_clip, node.NOISE_VARIANCE, rescale=node.NOISE_RESCALE)
    budget = f"hard prompt of at most {system.prompts.budget} tokens" if system.prompts else "no hard prompt"
    stops = ", ".join(f"{number} {system.tokenizer.decode([number])!r}" for number in sorted(system.stop_ids))
    return (
        f"CLIP vectors of width {d_clip}; language model {node.LANGUAGE_MODEL} of width {width_of(model.language_model)}, "
        f"{model.vocabulary_size:,} tokens, {model.max_positions or 'any number of'} positions\n"
        f"Mapping network {counts['mapping_network']:,} numbers, language model {counts['language_model']:,}, together "
        f"{total:,} in {n_tensors} tensors\n"
        f"Soft prompt of {soft_tokens(node)} tokens, {budget}; a caption ends at {stops}\n"
        f"Noise on training vectors: variance {variance:g} per dimension\n"
        f"Memory: weights {total * BYTES / MB:,.1f} MB, gradients and moments {3 * n_trained * BYTES / MB:,.1f} MB, besides "
        "what a batch needs"
    )
