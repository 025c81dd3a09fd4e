"""What a request costs and what a cached background saves, by arithmetic.

Counted are matrix multiplications and attention, 2 operations per multiply-add. Attention counts every row against every row
that the layer holds, as kernels without a causal shortcut do. Not counted: patch embedding (0.2% of a tower of CLIP L/14), LoRA
(1% of a language model at rank 32), norms, activation functions, rotary positions, softmax, look-ups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from transformers import LlamaConfig, LlavaConfig

from trainers.bgobj_llava.model.info import feature_block
from trainers.bgobj_llava.model.options import ModelOptions
from trainers.transformer_cost import Stack

WAYS = ("stock", "cold", "tokens", "kv")


@dataclass(frozen=True)
class Cost:
    """Floating-point operations up to the first answer token, by phase."""

    vision: float = 0.0
    projector: float = 0.0
    fusion: float = 0.0
    prefill: float = 0.0
    head: float = 0.0

    @property
    def total(self) -> float:
        return self.vision + self.projector + self.fusion + self.prefill + self.head


@dataclass(frozen=True)
class Request:
    """Lengths of a request.

    Attributes:
        n_bg: Background patches.
        n_obj: Patches that are encoded as objects.
        n_prefix: Text tokens before the image.
        n_question: Text tokens after it.
    """

    n_bg: int
    n_obj: int
    n_prefix: int
    n_question: int


class CostModel:
    """Costs of one LLaVA, read from its configuration.

    Args:
        config: Of the LLaVA.
        options: What is built around it; a model left as it is costs what `stock` does.
    """

    def __init__(self, config: LlavaConfig, options: ModelOptions | None = None) -> None:
        vision, text = config.vision_config, config.text_config
        self.options = options or ModelOptions()
        self.n_patches = (vision.image_size // vision.patch_size) ** 2
        self.d_model = text.hidden_size
        self.tower = Stack(
            feature_block(config), 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size,
            vision.hidden_size, vision.hidden_size,
        )  # fmt: skip
        self.llm = _decoder(text)
        self.fusion = replace(self.llm, n_blocks=self.options.n_fusion)
        self._projector_weights = vision.hidden_size * text.hidden_size + text.hidden_size**2
        self._head_weights = text.hidden_size * text.vocab_size
        self._own_cls = 1 if self.options.cls == "per_group" else 0

    # -- parts ----------------------------------------------------------------------------------------------------------

    def vision(self, n_patches: int, n_cls: int = 1) -> float:
        """Return what the blocks of the tower cost for patches that see one another; nothing without patches."""
        return self.tower.flops(n_patches + n_cls) if n_patches else 0.0

    def projector(self, n_patches: int) -> float:
        return 2.0 * n_patches * self._projector_weights

    def head(self, rows: int = 1) -> float:
        """Return what scores of the vocabulary cost."""
        return 2.0 * rows * self._head_weights

    def token_bytes(self, n_patches: int, itemsize: int) -> int:
        """Return the size of projected tokens."""
        return n_patches * self.d_model * itemsize

    def prefix_bytes(self, rows: int, itemsize: int) -> int:
        """Return the size of keys and values of rows, those of the fusion layers included."""
        return rows * (self.llm.bytes_per_token(itemsize) + self.fusion.bytes_per_token(itemsize))

    # -- requests -------------------------------------------------------------------------------------------------------

    def segment_lengths(self, request: Request) -> tuple[int, int]:
        """Return the rows up to the background, which are cached, and those of objects and question."""
        before, after = self._separators(request)
        return request.n_prefix + before + request.n_bg, after + request.n_obj + request.n_question

    def stock(self, n_prefix: int, n_question: int) -> Cost:
        """Return what the LLaVA costs as it is."""
        rows = n_prefix + self.n_patches + n_question
        return Cost(
            self.vision(self.n_patches), self.projector(self.n_patches), 0.0, self.llm.flops(rows), self.head()
        )  # fmt: skip

    def request(self, way: str, request: Request, *, one_pass: bool = False) -> Cost:
        """Return what a request costs.

        Args:
            way: `stock`; `cold`: nothing is cached; `tokens`: those of the background are; `kv`: and its keys and values.
            request: Its lengths.
            one_pass: Count the prefill of `cold` and `tokens` as one segment instead of two, which are a little cheaper:
                the rows of the first are not compared with those of the second.
        Raises:
            ValueError: If the way is unknown.
        """
        if way not in WAYS:
            raise ValueError(f"the way is {way!r}; expected one of {', '.join(WAYS)}")
        if way == "stock" or self.options.split == "none":
            return self.stock(request.n_prefix, request.n_question)
        first, second = self.segment_lengths(request)
        reads = [(first + second, 0)] if one_pass else [(first, 0), (second, first)]
        if way == "kv":
            reads = [(second, first)]
        own_bg = request.n_bg if way == "cold" else 0
        return Cost(
            self._tower_passes(own_bg, request.n_obj),
            self.projector(own_bg + request.n_obj),
            sum(self.fusion.flops(*read) for read in reads),
            sum(self.llm.flops(*read) for read in reads),
            self.head(),
        )

    def saved(self, n_bg: int, level: str, n_prefix: int) -> float:
        """Return what a hit saves: the background's tokens, and with `kv` the prefill up to its end.

        Args:
            n_bg: Its patches.
            level: `tokens` or `kv`.
            n_prefix: Text tokens before the image.
        """
        # A cold request without objects is the background's share of any other, as two segments add up.
        request = Request(n_bg, 1, n_prefix, 0)
        return self.request("cold", request).total - self.request(level, request).total

    def saved_by(self, n_prefix: int) -> Callable[[int, str], float]:
        """Return (background patches, level) -> operations saved, as the cache asks for it."""
        return lambda n_bg, level: self.saved(n_bg, level, n_prefix)

    def _tower_passes(self, n_bg: int, n_obj: int) -> float:
        """Vision cost; a tower whose groups see one another runs once, over all patches."""
        if not self.options.isolates:
            return self.vision(self.n_patches)
        return self.vision(n_bg, self._own_cls) + self.vision(n_obj, self._own_cls)

    def _separators(self, request: Request) -> tuple[int, int]:
        style = self.options.separators
        if style == "pairs":
            return 2 * bool(request.n_bg), 2 * bool(request.n_obj)
        return int(style == "single" and request.n_bg > 0 and request.n_obj > 0), 0


def split_patches(n_patches: int, object_share: float) -> tuple[int, int]:
    """Return (objects, background) in patches for a share of the image in [0, 1]."""
    n_obj = round(n_patches * object_share)
    return n_obj, n_patches - n_obj


def _decoder(text: LlamaConfig) -> Stack:
    """Llama's layers: queries, keys, values, output, and three matrices around the gate."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    q_width, kv_width = head * text.num_attention_heads, head * text.num_key_value_heads
    weights = 2 * text.hidden_size * (q_width + kv_width) + 3 * text.hidden_size * text.intermediate_size
    return Stack(text.num_hidden_layers, weights, q_width, kv_width)
