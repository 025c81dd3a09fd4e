"""The text-trained classifier of LaFTer and the scale of its logits.

LaFTer (Mirza et al., NeurIPS 2023): texts and images share CLIP's space, so a linear classifier trained on sentences
about the classes also classifies images. Noise on the text features stands in for the gap between the two modalities.
"""

import logging
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from clip_ext.text_bank import TextBank

logger = logging.getLogger(__name__)

MIN_LOGIT_SCALE, MAX_LOGIT_SCALE = 1.0, 100.0


class TextClassifier(nn.Module):
    """Linear classifier without bias, Kaiming-uniform, fp32.

    Args:
        n_classes: C, rows of the weight.
        embed_dim: E, size of CLIP's joint space.
    """

    def __init__(self, n_classes: int, embed_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_classes, embed_dim))
        # a = sqrt(5) is what nn.Linear uses: uniform in +-1/sqrt(E).
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (..., E) of any float dtype to unscaled logits (..., C)."""
        return F.linear(features.to(self.weight.dtype), self.weight)


class LogitScale(nn.Module):
    """Learnable positive factor on logits of unit features, kept in [1, 100].

    Args:
        init: First value, in [1, 100].
    Raises:
        ValueError: If `init` is outside that range.
    """

    def __init__(self, init: float = 10.0) -> None:
        super().__init__()
        if not MIN_LOGIT_SCALE <= init <= MAX_LOGIT_SCALE:
            raise ValueError(f"SCALE_INIT is {init}; expected a number in [{MIN_LOGIT_SCALE:g}, {MAX_LOGIT_SCALE:g}]")
        self.log_scale = nn.Parameter(torch.tensor(math.log(init), dtype=torch.float32))

    def forward(self) -> Tensor:
        """Return the factor, a scalar, fp32."""
        if not self.training:
            return self.log_scale.exp().clamp(MIN_LOGIT_SCALE, MAX_LOGIT_SCALE)
        # Projected in place: a clamped value would leave a parameter at or beyond the edge without gradient for good.
        with torch.no_grad():
            self.log_scale.clamp_(math.log(MIN_LOGIT_SCALE), math.log(MAX_LOGIT_SCALE))
        return self.log_scale.exp()


def fit_text_classifier(
    classifier: TextClassifier,
    bank: "TextBank",
    *,
    epochs: int,
    lr: float,
    weight_decay: float = 0.01,
    label_smoothing: float = 0.1,
    noise_std: float = 0.1,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> list[float]:
    """Train the classifier on the bank's texts, in place.

    Every epoch is one full-batch AdamW step on the unit features plus fresh normal noise. The noise is larger than the
    signal (norm about noise_std * sqrt(E), 2.26 for E = 512); that is intended, and the sum is not normalised again. It
    comes from a generator on `device`, so that no global random state moves.

    Args:
        classifier: Moved to `device` and trained; C and E must be those of the bank.
        bank: Text features, labels and sample weights.
        epochs: Steps, >= 1.
        lr: Constant learning rate.
        weight_decay: Of AdamW.
        label_smoothing: In [0, 1).
        noise_std: Per dimension, >= 0.
        seed: Of the noise.
        device: Where to train.
    Returns:
        The loss of each epoch, before its step.
    Raises:
        ValueError: If the classifier does not fit the bank.
    """
    expected = (bank.n_classes, bank.features.shape[1])
    if tuple(classifier.weight.shape) != expected:
        raise ValueError(f"the classifier's weight is {tuple(classifier.weight.shape)}; the text bank needs {expected}")
    classifier.to(device)
    features, labels, weights = (tensor.to(device) for tensor in (bank.features, bank.labels, bank.weights))
    generator = torch.Generator(device=device).manual_seed(seed)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=lr, weight_decay=weight_decay)

    losses: list[Tensor] = []
    for _ in range(epochs):
        noise = torch.randn(features.shape, generator=generator, device=device)
        logits = classifier(features + noise_std * noise)
        per_text = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
        loss = (weights * per_text).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    optimizer.zero_grad()
    # Read once at the end: a read per step would wait for the device each time.
    values = torch.stack(losses).tolist()
    logger.info("text classifier: %d texts, %d epochs, loss %.4f -> %.4f", len(labels), epochs, values[0], values[-1])
    return values
