"""Random LLaVAs of any shape, and pictures of one background with changing objects, for `benchmarks.bgobj_llava`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerBase

import trainers
from trainers.bgobj_llava.data import Normalisation
from trainers.bgobj_llava.geometry import PatchSplit
from trainers.bgobj_llava.model.info import ModelInfo
from trainers.bgobj_llava.model.prompt import PromptTemplate
from trainers.bgobj_llava.word_tokenizer import IMAGE, build_word_tokenizer

SEVEN_B = Path(trainers.__file__).parent / "bgobj_llava" / "assets" / "llava_1_5_7b.json"
WORDS = "what is left of the red thing near door window tree car cup dog lamp"  # of the questions
NAMES = ("background", "end of background", "object", "end of object")  # of the separators


def read_config() -> LlavaConfig:
    """Return the configuration of LLaVA-1.5-7B."""
    return LlavaConfig(**json.loads(SEVEN_B.read_text("utf-8")))


def scale_config(*, side_px: int, vision: tuple[int, int], llm: tuple[int, int]) -> LlavaConfig:
    """Return a smaller one with the same proportions.

    Args:
        side_px: Side of the image.
        vision: Blocks and width of the tower.
        llm: Layers and width of the language model.
    """
    config = read_config()
    for part, (depth, width) in ((config.vision_config, vision), (config.text_config, llm)):
        part.intermediate_size = part.intermediate_size * width // part.hidden_size
        part.num_attention_heads = max(part.num_attention_heads * width // part.hidden_size, 1)
        part.num_hidden_layers, part.hidden_size = depth, width
    config.text_config.num_key_value_heads = config.text_config.num_attention_heads
    config.text_config.head_dim = llm[1] // config.text_config.num_attention_heads
    config.vision_config.image_size = side_px
    config.image_seq_length = (side_px // config.vision_config.patch_size) ** 2
    return config


def build_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer that knows the prompt and the questions."""
    template = PromptTemplate()
    text, _ = template.write([(WORDS, None)])
    return build_word_tokenizer([text.replace(template.image, ""), *NAMES])


def build_llava(
    config: LlavaConfig, tokenizer: PreTrainedTokenizerBase, *, dtype: torch.dtype, device: str
) -> LlavaForConditionalGeneration:
    """Build a LLaVA with random weights that never ends an answer, so that all answers are equally long."""
    config.image_token_index = config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    model.lm_head.weight.data[tokenizer.eos_token_id] = 0
    return model.requires_grad_(False).eval()


@dataclass(frozen=True, eq=False)
class Camera:
    """Pictures of one background.

    Attributes:
        info: Sizes of the model.
        n_obj: Object patches, around the centre.
        seed: Of the background.
    """

    info: ModelInfo
    n_obj: int
    seed: int

    @property
    def split(self) -> PatchSplit:
        """Of all pictures."""
        rows, columns = np.divmod(np.arange(self.info.n_patches), self.info.grid)
        centre = (self.info.grid - 1) / 2
        nearest = np.argsort(np.maximum(abs(rows - centre), abs(columns - centre)), kind="stable")[: self.n_obj]
        objects = np.zeros(self.info.n_patches, dtype=bool)
        objects[nearest] = True
        return PatchSplit(objects, objects, np.zeros_like(objects))

    def picture(self, number: int) -> NDArray[np.uint8]:
        """Return picture `number`, (S, S, 3): the background, and objects of its own."""
        grid, patch = self.info.grid, self.info.patch_px
        mask = self.split.objects.reshape(grid, grid).repeat(patch, axis=0).repeat(patch, axis=1)
        return np.where(mask[..., None], self._noise(number + 1), self._noise(0))

    def _noise(self, number: int) -> NDArray[np.uint8]:
        side = self.info.side_px
        return np.random.default_rng((self.seed, number)).integers(0, 256, (side, side, 3), dtype=np.uint8)


def normalise(pixels: NDArray[np.uint8], like: Tensor) -> Tensor:
    """Return pixels as input of the tower, (3, S, S), in the type and on the device of `like`."""
    processor = CLIPImageProcessor()
    image = Normalisation(tuple(processor.image_mean), tuple(processor.image_std))(pixels)
    return image.to(like.device, like.dtype)


def write_question(number: int, n_words: int = 10) -> str:
    """Return a question of so many words."""
    words = WORDS.split()
    return " ".join(words[(number + place) % len(words)] for place in range(n_words)) + "?"
