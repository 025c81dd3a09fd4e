"""The language model: by name, by a stored configuration, and the ids that end a caption.

The GPT-2 family is tested. Any other causal language model of transformers works if it takes `inputs_embeds` and its scores are
its output embedding applied to its last hidden states; both are tried out once when it is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trainers.model_folders import find_model_folder, find_weight_files

__all__ = [
    "build_language_model", "describe_config", "find_stop_ids", "hidden_states", "load_language_model", "load_tokenizer",
    "longest_sequence", "width_of",
]  # fmt: skip

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parents[1] / "assets"
SHIPPED = {"tiny_gpt2": ASSETS / "tiny_gpt2"}
OWNERLESS_IDS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
NAME_KEY = "TRAINER.VIECAP.LANGUAGE_MODEL"
PROBE_IDS = 3
PROBE_TOLERANCE = 1e-4  # of the largest score
ATTENTION = "sdpa"


def load_language_model(
    name: str, *, init: str = "pretrained", revision: str = ""
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model in fp32 and evaluation mode, and its tokenizer.

    Args:
        name: `tiny_gpt2`, local folder, or hub id.
        init: `pretrained`, or `random`: weights from the configuration only.
        revision: Branch, tag or commit of a hub id; "" = the newest.
    Raises:
        FileNotFoundError: If the folder, or a file in it, is missing.
        OSError: If the hub has no such model, or cannot be asked.
        ValueError: If `init` is unknown, the weights are pickles, or this package cannot drive the model.
    """
    if init not in ("pretrained", "random"):
        raise ValueError(f"TRAINER.VIECAP.LM_INIT is {init!r}; expected pretrained or random")
    folder = _find_folder(name, revision)
    problems = _problems_with_folder(folder, needs_weights=init == "pretrained")
    if problems:
        raise FileNotFoundError("\n  ".join([f"{NAME_KEY} is {name!r}: {len(problems)} problem(s) in {folder}:", *problems]))
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if init == "random":
        logger.warning("RANDOM WEIGHTS: TRAINER.VIECAP.LM_INIT is random; %s gives shapes and tokenizer only", name)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=ATTENTION)
    else:
        model = _read(folder, config)
    _check(model.eval())
    model.generation_config = GenerationConfig()  # how captions are generated is our config's, not the folder's
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_tokenizer(name: str, *, revision: str = "") -> PreTrainedTokenizerBase:
    """Load the tokenizer of a language model alone; arguments and errors as of `load_language_model`."""
    return AutoTokenizer.from_pretrained(_find_folder(name, revision), local_files_only=True)


def _find_folder(name: str, revision: str) -> Path:
    return find_model_folder(name, revision, key=NAME_KEY, shipped=SHIPPED, ids=OWNERLESS_IDS, example="openai-community/gpt2")


def _problems_with_folder(folder: Path, *, needs_weights: bool) -> list[str]:
    problems = []
    if not (folder / "config.json").is_file():
        problems.append("it has no config.json")
    if needs_weights and not find_weight_files(folder):
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f"its weights are pickles ({', '.join(pickles[:3])}), which are not read" if pickles else "it has no weights"
        problems.append(f"{found}; expected model.safetensors, or TRAINER.VIECAP.LM_INIT random")
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        problems.append("it has no tokenizer: expected tokenizer.json, tokenizer.model, or vocab.json with merges.txt")
    return problems


def _read(folder: Path, config: Any) -> PreTrainedModel:
    """Load weights; a tensor that no file holds is an error, for it would be random."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation=ATTENTION, use_safetensors=True,
        output_loading_info=True, local_files_only=True,
    )  # fmt: skip
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{NAME_KEY}: the weights in {folder} lack {len(missing)} tensor(s) of {type(model).__name__}: "
            f"{', '.join(missing[:3])}; expected all of them, or TRAINER.VIECAP.LM_INIT random"
        )
    return model


def build_language_model(config: Mapping[str, Any]) -> PreTrainedModel:
    """Build a language model with random fp32 weights from what `describe_config` returned, in evaluation mode.

    A trained artefact carries this configuration, so that no folder and no hub is needed beside its weights.
    """
    parsed = AutoConfig.for_model(**config)
    model = AutoModelForCausalLM.from_config(parsed, dtype=torch.float32, attn_implementation=ATTENTION).eval()
    model.generation_config = GenerationConfig()
    return model


def describe_config(model: PreTrainedModel) -> dict[str, Any]:
    """Return a model's configuration, from which `build_language_model` builds it; it does not say where it was loaded."""
    places = ("_name_or_path", "transformers_version")
    return {name: value for name, value in model.config.to_dict().items() if name not in places}


def width_of(model: PreTrainedModel) -> int:
    """Return d, the width of the input embedding."""
    return model.get_input_embeddings().embedding_dim


def longest_sequence(model: PreTrainedModel) -> int | None:
    """Return how many positions the model has; None if its configuration does not say."""
    return getattr(model.config, "max_position_embeddings", None)


def hidden_states(model: PreTrainedModel, embeds: Tensor, cache: Any = None) -> Tensor:
    """Return the last hidden states, (B, L, d), to which the output embedding applies.

    Args:
        model: Causal language model.
        embeds: Input vectors, (B, L, d).
        cache: Transformers' cache of what came before, which grows; None: nothing came before, nothing is kept.
    """
    past = NothingBefore() if cache is None else cache
    return model.base_model(inputs_embeds=embeds, past_key_values=past, use_cache=cache is not None).last_hidden_state


class NothingBefore(DynamicCache):
    """A cache that keeps nothing and hands back what it is given.

    Without any cache transformers looks into the positions for sequences packed behind one another, and the host waits for
    the device.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return keys and values as they are."""
        return key_states, value_states


@torch.no_grad()
def _check(model: PreTrainedModel) -> None:
    """Refuse a model whose scores are not its output embedding on its last hidden states.

    Raises:
        ValueError: If it is such a model, or takes no `inputs_embeds`.
    """
    ids = torch.arange(PROBE_IDS)[None]
    problem = ""
    try:
        expected = model(input_ids=ids, use_cache=False).logits
        found = model.get_output_embeddings()(hidden_states(model, model.get_input_embeddings()(ids)))
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        problem = f"it does not take inputs_embeds ({error})"
    else:
        if not torch.allclose(found, expected, rtol=0, atol=PROBE_TOLERANCE * expected.abs().max().item()):
            problem = "its scores are not its output embedding on its last hidden states"
    if problem:
        raise ValueError(
            f"{NAME_KEY} is a {type(model).__name__}, which cannot be conditioned here: {problem}; expected a causal "
            "language model of the GPT-2 kind"
        )


def find_stop_ids(tokenizer: PreTrainedTokenizerBase, stop: str) -> frozenset[int]:
    """Return the ids that end a caption.

    Args:
        tokenizer: Of the language model.
        stop: `period`: the last token of "." and of " ."; GPT-2: 13, 764. `eos`: the end token.
    Raises:
        ValueError: If the tokenizer has no such token, or `stop` is unknown.
    """
    if stop not in ("period", "eos"):
        raise ValueError(f"TRAINER.VIECAP.STOP is {stop!r}; expected period or eos")
    if stop == "eos":
        if tokenizer.eos_token_id is None:
            raise ValueError("TRAINER.VIECAP.STOP is 'eos': the tokenizer has no end token; expected period")
        return frozenset({tokenizer.eos_token_id})
    found = {tokenizer.encode(text, add_special_tokens=False)[-1] for text in (".", " .")}
    texts = sorted(tokenizer.decode([token]) for token in found)
    if any(text.strip() != "." for text in texts):
        raise ValueError(f"TRAINER.VIECAP.STOP is 'period', for which the tokenizer has no token ({texts}); expected eos")
    return frozenset(found)
