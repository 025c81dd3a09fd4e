"""What the gates take for a picture's style: the encoder's word, the data's, or a control's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.gated_blip2.config import CHOICES
from trainers.gated_blip2.style.encoder import StyleEncoder, StyleOutput

KEY = "TRAINER.GATEDBLIP2.STYLE.SOURCE"
DROPOUT_KEY = "TRAINER.GATEDBLIP2.STYLE.DROPOUT"
OF_CLASSES = ("logits", "label")  # as wide as there are styles
OF_ENCODER = ("features", "logits", "shuffled")  # need its output
MIN_SHUFFLED = 2  # samples of a batch that can change places
STATIC_STD = 0.02  # of the learned constant at the start; not 0, where its normalisation has no direction


class StyleSource(nn.Module):
    """Chooses the style vector of each sample. The zero vector is the unknown style.

    `features`: the encoder's pooled features. `logits`: its scores of the styles. `label`: the style that the data names,
    one-hot (an oracle). `static`: one learned constant for all (the unconditioned control). `zeros`: always unknown.
    `shuffled`: features of another picture of the batch (control); outside training it changes nothing, because an evaluation
    shuffles the split.

    Args:
        kind: STYLE.SOURCE.
        width: Of the encoder's features.
        n_classes: Number of its styles; None if it knows none.
        dropout: Probability that a training sample's style is unknown, [0, 1).
        encoder: Where the encoder comes from, for messages.
    Attributes:
        width: Of the style vector.
        needs_encoder: Whether `forward` reads the encoder's output.
    Raises:
        ValueError: If the kind or the probability is not allowed, or the encoder knows no styles where they are needed.
    """

    def __init__(self, kind: str, *, width: int, n_classes: int | None, dropout: float = 0.0, encoder: str = "") -> None:
        super().__init__()
        problems = find_source_problems(kind, n_styles=n_classes, encoder=encoder)
        if not 0 <= dropout < 1:
            problems.append(f"{DROPOUT_KEY} is {dropout!r}; expected a probability in [0, 1)")
        if problems:
            raise ValueError("; ".join(problems))
        self.kind, self.dropout = kind, dropout
        self.width: int = n_classes if kind in OF_CLASSES else width
        self.needs_encoder = kind in OF_ENCODER
        if kind == "static":
            self.constant = nn.Parameter(STATIC_STD * torch.randn(width))

    def forward(
        self,
        output: StyleOutput | None,
        labels: Tensor,
        *,
        training: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return style vectors, (B, width), fp32.

        Args:
            output: The encoder's; None will do where `needs_encoder` is false.
            labels: The data's styles, (B,), int64; -1 = unknown.
            training: Whether styles are dropped, and shuffled within the batch.
            generator: Of the random choices, on the CPU; None = torch's own.
        Raises:
            ValueError: If a batch of one is to be shuffled, or a label is no style of the encoder.
        """
        style = self._choose(output, labels)
        if training and self.kind == "shuffled":
            style = style[derange(len(style), generator).to(style.device)]
        if training and self.dropout:
            known = torch.rand(len(style), generator=generator) >= self.dropout
            style = torch.where(known.to(style.device)[:, None], style, 0.0)
        return style

    def _choose(self, output: StyleOutput | None, labels: Tensor) -> Tensor:
        if self.kind == "label":
            return self._one_hot(labels)
        if self.kind == "static":
            return self.constant.float().expand(len(labels), -1)
        if self.kind == "zeros":
            return torch.zeros(len(labels), self.width, device=labels.device)
        assert output is not None
        chosen = output.logits if self.kind == "logits" else output.features
        assert chosen is not None and chosen.shape[1] == self.width
        return chosen.float()

    def _one_hot(self, labels: Tensor) -> Tensor:
        if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < self.width:
            raise ValueError(f"styles {sorted(set(labels.tolist()))}; expected -1 (unknown) to {self.width - 1}")
        return (labels[:, None] == torch.arange(self.width, device=labels.device)).float()


def derange(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Return a random order in which nothing keeps its place, (n,), int64.

    Raises:
        ValueError: If there are fewer than two to change places.
    """
    if n < MIN_SHUFFLED:
        raise ValueError(_describe_small_batch(n))
    cycle = torch.randperm(n, generator=generator)
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return order


def find_source_problems(
    kind: str,
    *,
    n_styles: int | None = 0,
    n_known: int | None = None,
    batch_size: int | None = None,
    encoder: str = "",
) -> list[str]:
    """Return what is wrong with STYLE.SOURCE, given what is known so far; for `check_cfg` and for the build.

    Args:
        kind: STYLE.SOURCE.
        n_styles: Number of the encoder's styles; None = it knows none; 0 = not looked at yet.
        n_known: Rows of the data that name a style; None = not looked at yet.
        batch_size: DATALOADER.TRAIN_X.BATCH_SIZE; None = not looked at.
        encoder: Where the encoder comes from, for messages (`describe_encoder`).
    """
    if kind not in CHOICES["STYLE.SOURCE"]:
        return [f"{KEY} is {kind!r}; expected one of {', '.join(CHOICES['STYLE.SOURCE'])}"]
    problems = []
    if kind in OF_CLASSES and n_styles is None:
        problems.append(
            f"{KEY} is {kind!r}, but {encoder or 'the encoder'} tells no styles apart; expected features, or a "
            "STYLE.CHECKPOINT of styles"
        )
    if kind == "label" and n_known == 0:
        problems.append(
            f"{KEY} is 'label', but no row of the data names its style; expected a column 'style' in the data "
            "(DATASET.VQA.COLUMNS renames one), or features, which need no names"
        )
    if kind == "shuffled" and batch_size is not None and batch_size < MIN_SHUFFLED:
        problems.append(_describe_small_batch(batch_size))
    return problems


def describe_encoder(encoder: StyleEncoder, checkpoint: str) -> str:
    """Return words for an encoder in messages: where it is from, and what its classes are."""
    classes = "no classifier" if encoder.n_classes is None else f"{encoder.n_classes} classes"
    return f"the encoder of {checkpoint or 'STYLE.FALLBACK'} ({classes}{', of ImageNet' if _is_imagenet(encoder) else ''})"


def _is_imagenet(encoder: StyleEncoder) -> bool:
    return encoder.n_classes is not None and not encoder.has_styles


def _describe_small_batch(size: int) -> str:
    return f"{KEY} is 'shuffled' in batches of {size}; expected DATALOADER.TRAIN_X.BATCH_SIZE {MIN_SHUFFLED} or more"
