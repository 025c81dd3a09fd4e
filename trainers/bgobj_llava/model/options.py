"""Choices that make a model out of a LLaVA; their words are those of the config keys."""

from __future__ import annotations

from dataclasses import dataclass

NODE = "TRAINER.BGOBJLLAVA"
SPLITS = ("bgobj", "order_only", "isolate_only", "none")
EXECUTIONS = ("mask", "gather")
PROJECTORS = ("shared", "separate")
CLS_MODES = ("per_group", "none")
POSITIONS = ("sequential", "raster")
SEPARATOR_STYLES = ("pairs", "single", "none")
SEPARATOR_INITS = ("words", "random")
FUSION_INITS = ("copy_zero", "copy", "random")
MAX_FUSION_LAYERS = 4

_WORDS = {
    "split": ("SPLIT", SPLITS),
    "vit_train": ("VIT_TRAIN", EXECUTIONS),
    "vit_eval": ("VIT_EVAL", EXECUTIONS),
    "projector": ("PROJECTOR", PROJECTORS),
    "cls": ("CLS", CLS_MODES),
    "position": ("POSITION", POSITIONS),
    "sep_style": ("SEP.STYLE", SEPARATOR_STYLES),
    "sep_init": ("SEP.INIT", SEPARATOR_INITS),
    "fusion_init": ("FUSION.INIT", FUSION_INITS),
}


@dataclass(frozen=True)
class ModelOptions:
    """What is built around a LLaVA, and how it is run.

    Attributes:
        split: `bgobj`: groups encoded apart, background first; `order_only`: whole image encoded, background first;
            `isolate_only`: groups encoded apart, raster order; `none`: the LLaVA as it is, whatever the rest says.
        vit_train: `mask`: one pass over all patches with a block mask; `gather`: one pass per group over its own patches.
        vit_eval: Likewise, outside training.
        projector: One for both groups, or a copy for each.
        cls: Whether each group gets its own CLS row in the vision tower, or none.
        position: Rotary positions of the language model: new order, or each patch's place in the image.
        sep_style: Tokens around both groups, one token between them, or none.
        sep_init: Mean embedding of words, or noise.
        fusion_layers: Decoder layers before the language model, 0..4.
        fusion_init: `copy_zero`: the language model's first layers without effect at first; `copy`; `random`.
        grad_ckpt: Recompute decoder layers in the backward pass instead of storing their activations.
        seed: Of random separators and fusion layers.

    Raises:
        ValueError: Listing each value that is not allowed.
    """

    split: str = "bgobj"
    vit_train: str = "mask"
    vit_eval: str = "gather"
    projector: str = "shared"
    cls: str = "per_group"
    position: str = "sequential"
    sep_style: str = "pairs"
    sep_init: str = "words"
    fusion_layers: int = 0
    fusion_init: str = "copy_zero"
    grad_ckpt: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{NODE}.{key} is {getattr(self, name)!r}; expected one of {', '.join(words)}"
            for name, (key, words) in _WORDS.items()
            if getattr(self, name) not in words
        ]
        if not 0 <= self.fusion_layers <= MAX_FUSION_LAYERS:
            problems.append(f"{NODE}.FUSION.LAYERS is {self.fusion_layers}; expected 0..{MAX_FUSION_LAYERS}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def isolates(self) -> bool:
        """Whether background and object patches are encoded without seeing one another."""
        return self.split in ("bgobj", "isolate_only")

    @property
    def reorders(self) -> bool:
        """Whether the language model reads background tokens before object tokens."""
        return self.split in ("bgobj", "order_only")

    @property
    def separators(self) -> str:
        """Style of the separators that are really there: none without the new order."""
        return self.sep_style if self.reorders else "none"

    @property
    def n_fusion(self) -> int:
        """Fusion layers that are really there: none in a LLaVA left as it is."""
        return 0 if self.split == "none" else self.fusion_layers

    @property
    def n_projectors(self) -> int:
        return 2 if self.projector == "separate" and self.split != "none" else 1

    def find_attention_problems(self, language: str, vision: str) -> list[str]:
        """List what attention implementations cannot do: flash-attention takes neither gaps in positions nor a block mask.

        Args:
            language: Implementation of the language model.
            vision: Of the vision tower.
        """
        problems = []
        if language.startswith("flash") and self.reorders and self.position == "raster":
            problems.append(f"{NODE}.POSITION is 'raster' and {NODE}.ATTN is {language!r}; use 'sequential' or another ATTN")
        for key, value in (("VIT_TRAIN", self.vit_train), ("VIT_EVAL", self.vit_eval)):
            if vision.startswith("flash") and self.isolates and value == "mask":
                problems.append(f"{NODE}.{key} is 'mask' and the vision tower's attention is {vision!r}; use 'gather' or sdpa")
        return problems
