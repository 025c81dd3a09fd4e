"""Weights of the original ViECap under our names, and the sizes that their shapes tell.

The names are those of the files its authors published (github.com/FeiElysia/ViECap); `scripts/viecap_convert.py` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.stored_tensors import find_differences
from trainers.viecap.network.mapping import MappingNetwork
from trainers.viecap.network.model import PrefixCaptioner, PromptLayout
from trainers.viecap.storage.weights import own_tensors

State = dict[str, Tensor]

# Masks that older versions of transformers stored beside each of GPT-2's attentions.
BUFFERS = re.compile(r"gpt\.transformer\.h\.\d+\.attn\.(bias|masked_bias)")
HEAD, EMBEDDING = "gpt.lm_head.weight", "gpt.transformer.wte.weight"

_RENAMED = (
    (r"gpt\.", "language_model."),
    (r"mapping_network\.linear\.", "mapping.project."),
    (r"mapping_network\.prefix_const", "mapping.constants"),
    (r"mapping_network\.transformer\.layers\.(\d+)\.", r"mapping.blocks.\1."),
)
_RENAMED_IN_BLOCKS = {
    "norm1": "norm_attention",
    "attn.to_queries": "queries",
    "attn.to_keys_values": "keys_values",
    "attn.project": "output",
    "norm2": "norm_mlp",
    "mlp.fc1": "widen",
    "mlp.fc2": "narrow",
}
_IN_BLOCK = re.compile(r"(mapping\.blocks\.\d+\.)(.+)(\.\w+)")
_MLP_RATIO = 4  # of GPT-2


@dataclass(frozen=True)
class ModelSizes:
    """What shapes tell about a model.

    Attributes:
        d_clip: Width E of the CLIP vector.
        d_model: Width d of the language model.
        prefix_length: Tokens of the soft prompt.
        project_length: Tokens that the CLIP vector is projected to.
        n_layers: Blocks of the mapping network.
        lm_layers: Blocks of the language model.
        vocabulary: Its tokens.
        positions: Its longest sequence.
    """

    d_clip: int
    d_model: int
    prefix_length: int
    project_length: int
    n_layers: int
    lm_layers: int
    vocabulary: int
    positions: int


def rename_reference(state: Mapping[str, Tensor]) -> State:
    """Return the original's weights under our names, without masks and without the head, which is the embedding.

    Raises:
        ValueError: If the head is not the embedding, or the tensors are not those of a ViECap with GPT-2 (names them).
    """
    if HEAD in state and not torch.equal(state[HEAD], state.get(EMBEDDING, torch.empty(0))):
        raise ValueError(f"{HEAD} differs from {EMBEDDING}: the head is not tied, which no ViECap with GPT-2 is")
    kept = {name: tensor for name, tensor in state.items() if name != HEAD and not BUFFERS.fullmatch(name)}
    renamed = {_rename(name): tensor for name, tensor in kept.items()}
    problems = find_differences(renamed, own_tensors(build_meta(read_sizes(renamed))))
    if problems:
        raise ValueError("\n  ".join([f"{len(problems)} difference(s) to a ViECap with GPT-2:", *problems]))
    return renamed


def read_sizes(state: Mapping[str, Tensor]) -> ModelSizes:
    """Return the sizes of a model from its tensors, under our names.

    Raises:
        ValueError: If tensors that tell them are missing (names them).
    """
    names = {
        "constants": "mapping.constants",
        "project": "mapping.project.weight",
        "words": "language_model.transformer.wte.weight",
        "places": "language_model.transformer.wpe.weight",
    }
    missing = [name for name in names.values() if name not in state or state[name].ndim != 2]
    if missing:
        raise ValueError(
            f"no weights of a ViECap with GPT-2: {', '.join(missing)} missing; found {', '.join(sorted(state)[:3])}"
        )
    shape = {kind: state[name].shape for kind, name in names.items()}
    prefix_length, d_model = shape["constants"]
    return ModelSizes(
        d_clip=shape["project"][1],
        d_model=d_model,
        prefix_length=prefix_length,
        project_length=max(shape["project"][0] // max(d_model, 1), 1),
        n_layers=_count(state, r"mapping\.blocks\.(\d+)\."),
        lm_layers=_count(state, r"language_model\.transformer\.h\.(\d+)\."),
        vocabulary=shape["words"][0],
        positions=shape["places"][0],
    )


def build_meta(sizes: ModelSizes) -> PrefixCaptioner:
    """Return a model of these sizes without memory: names and shapes only. Heads do not show in them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=sizes.vocabulary, n_positions=sizes.positions, n_embd=sizes.d_model, n_layer=sizes.lm_layers, n_head=1,
        n_inner=_MLP_RATIO * sizes.d_model,
    )  # fmt: skip
    with torch.device("meta"):
        mapping = MappingNetwork(
            sizes.d_clip, sizes.d_model, prefix_length=sizes.prefix_length, project_length=sizes.project_length,
            n_layers=sizes.n_layers, n_heads=1,
        )  # fmt: skip
        return PrefixCaptioner(GPT2LMHeadModel(config), mapping, PromptLayout(soft_tokens=sizes.prefix_length))


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(rf"^{pattern}", replacement, name)
    inside = _IN_BLOCK.fullmatch(name)
    if inside and inside[2] in _RENAMED_IN_BLOCKS:
        name = f"{inside[1]}{_RENAMED_IN_BLOCKS[inside[2]]}{inside[3]}"
    return name


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in state if (found := re.match(pattern, name))})
