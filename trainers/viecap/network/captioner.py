"""From images to captions: entities by retrieval, both prompts, decoding. The trainer's test and prediction share this.

A batch says what single images say: nothing is padded, and sampled captions depend on an image's number, not on its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainers.viecap.network.decoding import DecodeOptions, decode_prompts
from trainers.viecap.network.mapping import soft_input

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainers.viecap.network.decoding import Decoded
    from trainers.viecap.network.model import PrefixCaptioner
    from trainers.viecap.words.prompts import PromptBuilder
    from trainers.viecap.words.retrieval import Found, Retriever

DIGITS = 6  # of a probability


@dataclass(frozen=True)
class ImageCaption:
    """What is said about one image.

    Attributes:
        caption: The best caption.
        captions: All of them, best first; distinct.
        score: Mean log-probability of the best one's tokens.
        entities: What retrieval found, by falling probability; empty without a hard prompt.
        mentioned: Names among them that the best caption says.
        truncated: Whether it ended at `MAX_NEW_TOKENS`.
    """

    caption: str
    captions: tuple[str, ...]
    score: float
    entities: tuple[Found, ...]
    mentioned: tuple[str, ...]
    truncated: bool

    def to_row(self) -> dict[str, Any]:
        """Return it in JSON's types; `captions` only if there are several."""
        several = {"captions": list(self.captions)} if len(self.captions) > 1 else {}
        entities = [
            {"name": found.name, "probability": round(found.probability, DIGITS), "used": found.used} for found in self.entities
        ]
        return {
            "caption": self.caption, **several, "score": round(self.score, DIGITS), "entities": entities,
            "mentioned": list(self.mentioned), "truncated": self.truncated,
        }  # fmt: skip


class Captioner:
    """Captions images, or their CLIP features.

    Args:
        model: In evaluation mode, on its device.
        tokenizer: Of its language model.
        options: How captions are generated, the tokens that end them included.
        normalise: Whether the soft prompt is made of vectors of length 1 (`NORMALIZE_PREFIX`).
        prompts: Makes the hard prompt; None without one.
        retriever: Finds its entities; None without one.
        encode_images: CLIP's image tower: normalised RGB, (B, 3, H, W), on the device -> features (B, E) as it returns them;
            None if only features are captioned.
        autocast: Returns the context in which the model runs.
    """

    def __init__(
        self,
        model: PrefixCaptioner,
        tokenizer: PreTrainedTokenizerBase,
        options: DecodeOptions,
        *,
        normalise: bool,
        prompts: PromptBuilder | None,
        retriever: Retriever | None,
        encode_images: Callable[[Tensor], Tensor] | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self._normalise, self._prompts, self._retriever = normalise, prompts, retriever
        self._encode_images, self._autocast = encode_images, autocast

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @torch.no_grad()
    def caption(self, inputs: Tensor, rows: Sequence[int] | None = None) -> list[ImageCaption]:
        """Return what is said about every row.

        Args:
            inputs: Normalised RGB images, (B, 3, H, W), or CLIP features as the image tower returns them, (B, E).
            rows: A number per image, of which sampled captions depend; default: 0 to B - 1.
        Raises:
            ValueError: If the model is in training mode, or images are given without an image tower.
        """
        features = self._features(inputs)
        entities, prompts = self.hard_prompts(features)
        vectors = None if self.model.mapping is None else soft_input(features, normalise=self._normalise)
        with self._autocast():
            decoded = decode_prompts(self.model, vectors, prompts, self.options, rows=rows, text_of=self._text_of)
        return [self._describe(*row) for row in zip(decoded, entities, strict=True)]

    def hard_prompts(self, features: Tensor) -> tuple[list[list[Found]], list[list[int]]]:
        """Return what retrieval finds for CLIP features (B, E), and the ids of the prompts made of it; empty without one."""
        entities = self._retriever.find(features) if self._retriever else [[] for _ in range(len(features))]
        return entities, [self._prompt_ids(found) for found in entities]

    def _features(self, inputs: Tensor) -> Tensor:
        """Return CLIP's image features, (B, E), fp32, on the device."""
        inputs = inputs.to(self.device)
        if inputs.ndim == 2:
            return inputs.float()
        if self._encode_images is None:
            raise ValueError("images cannot be captioned without CLIP's image tower; give features (B, E)")
        return self._encode_images(inputs).half().float()  # as precise as stored features, so that both say the same

    def _prompt_ids(self, entities: Sequence[Found]) -> list[int]:
        if self._prompts is None:
            return []
        return self._prompts.encode([found.name for found in entities if found.used])

    def _text_of(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _describe(self, captions: Sequence[Decoded], entities: Sequence[Found]) -> ImageCaption:
        best, texts = captions[0], tuple(self._text_of(each.ids) for each in captions)
        said = find_mentioned(texts[0], [found.name for found in entities])
        return ImageCaption(texts[0], texts, best.score, tuple(entities), said, best.truncated)


def find_mentioned(caption: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a caption says as whole words, in the singular or with s or es; upper and lower case are equal."""
    return tuple(name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?:e?s)?(?!\w)", caption, re.IGNORECASE))
