"""Generated answers: transformers' own search from embeddings, up to the newline, with what it thought of each token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from trainers.gated_blip2.prompts import NODE


@dataclass(frozen=True)
class GenerateOptions:
    """`GEN.*`.

    Attributes:
        num_beams: 1 = greedy.
        max_new_tokens: Of an answer, newline included.
        length_penalty: Exponent of the length that divides a beam's score.
    """

    num_beams: int = 1
    max_new_tokens: int = 20
    length_penalty: float = 1.0


@dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        ids: Generated tokens before the newline.
        text: The same in words, without spaces around.
        mean_log_prob: Mean log-probability of the generated tokens, newline included, nats.
        truncated: No newline came within `max_new_tokens`.
    """

    ids: tuple[int, ...]
    text: str
    mean_log_prob: float
    truncated: bool


@torch.no_grad()
def generate_answers(
    language_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    embeds: Tensor,
    mask: Tensor,
    options: GenerateOptions,
    *,
    stop_id: int,
) -> list[Generated]:
    """Continue embedded prompts.

    Args:
        language_model: In evaluation mode: layers that recompute keep no cache in training mode.
        tokenizer: Of it.
        embeds: Prompts that all end in the last column, (B, L, d).
        mask: Which columns are real, (B, L).
        options: Of the search.
        stop_id: Token that ends an answer.
    Raises:
        ValueError: If an answer could grow beyond the positions of the language model.
    """
    needed, positions = embeds.shape[1] + options.max_new_tokens, language_model.config.max_position_embeddings
    if needed > positions:
        raise ValueError(
            f"{NODE}.GEN.MAX_NEW_TOKENS is {options.max_new_tokens}, which with {embeds.shape[1]} positions of queries and "
            f"prompt makes {needed}; the language model has {positions}; lower it or {NODE}.PROMPT.MAX_QUESTION_TOKENS"
        )
    found = language_model.generate(
        inputs_embeds=embeds, attention_mask=mask, generation_config=_search(tokenizer, options, stop_id)
    )
    logs = _token_log_probs(found.sequences, found.logits, getattr(found, "beam_indices", None))
    pairs = zip(found.sequences.tolist(), logs.tolist(), strict=True)
    return [_finish(ids, log_probs, tokenizer, stop_id) for ids, log_probs in pairs]


def _search(tokenizer: PreTrainedTokenizerBase, options: GenerateOptions, stop_id: int) -> GenerationConfig:
    """Everything that decides, so that nothing comes from a file beside the weights."""
    return GenerationConfig(
        do_sample=False, num_beams=options.num_beams, max_new_tokens=options.max_new_tokens, eos_token_id=stop_id,
        length_penalty=options.length_penalty if options.num_beams > 1 else None,
        pad_token_id=stop_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip


def _token_log_probs(sequences: Tensor, logits: tuple[Tensor, ...], beams: Tensor | None) -> Tensor:
    """Return the log-probability of every generated token, (B, T); what it says of padding means nothing."""
    rows = torch.arange(len(sequences), device=sequences.device)
    found = []
    for step in range(sequences.shape[1]):
        # With beams the row that wrote the token changes; -1 stands behind the end.
        of_step = logits[step][rows if beams is None else beams[:, step].clamp(min=0)]
        found.append(of_step.float().log_softmax(dim=-1).gather(1, sequences[:, step, None]))
    return torch.cat(found, dim=1)


def _finish(ids: list[int], log_probs: list[float], tokenizer: PreTrainedTokenizerBase, stop_id: int) -> Generated:
    truncated = stop_id not in ids
    end = len(ids) if truncated else ids.index(stop_id)
    counted = log_probs[: end if truncated else end + 1]
    text = tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
    return Generated(tuple(ids[:end]), text, sum(counted) / len(counted), truncated)
