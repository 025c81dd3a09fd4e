"""Losses as pure functions of tensors, computed in fp32 (fp64 inputs stay fp64).

Dual task (class + distribution): Yang, She, Sun, "Joint Image Emotion Classification and Distribution Learning via Deep
CNN", IJCAI 2017. Everything goes through log_softmax and xlogy, so zeros in targets and logit gaps of any size are
legal.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

PAIRINGS = ("all", "adjacent", "to_last")


def soft_targets(
    labels: Tensor, n_classes: int, *, smoothing: float = 0.0, distribution: Tensor | None = None, lam: float = 0.0
) -> Tensor:
    """Mix smoothed labels with a distribution: (1 - lam) * [(1 - eps) onehot(y) + eps / C] + lam * q.

    Args:
        labels: Class indices, (B,), long, in 0 .. C-1.
        n_classes: C.
        smoothing: eps, in [0, 1).
        distribution: q, (B, C), rows sum to 1; read only if lam > 0.
        lam: Weight of q, in [0, 1].
    Returns:
        Targets, (B, C), fp32, rows sum to 1.
    Raises:
        ValueError: If lam > 0 without a distribution.
    """
    targets = (1 - smoothing) * F.one_hot(labels, n_classes).float() + smoothing / n_classes
    if lam == 0:
        return targets
    if distribution is None:
        raise ValueError(f"DUAL.LAMBDA is {lam}, but the batch has no distribution")
    return (1 - lam) * targets + lam * distribution.float()


def distribution_loss(
    logits: Tensor, target: Tensor, *, temperature: float = 1.0, kind: str = "ce", mask: Tensor | None = None
) -> Tensor:
    """Compare softmax(logits / tau) with a target distribution.

    `ce` is tau^2 * cross-entropy, `kl` the same minus tau^2 * entropy of the target; both have the gradient tau *
    (softmax - target). With tau 1 and targets of `soft_targets` without distribution, `ce` equals `F.cross_entropy`
    with label smoothing.

    Args:
        logits: (B, C), or (S, B, C) for S stages that share the target.
        target: (B, C), rows sum to 1; zeros are legal.
        temperature: tau > 0.
        kind: `ce` or `kl`.
        mask: Samples that count, (B,), bool. None: all.
    Returns:
        Mean over the samples that count (and the stages), scalar, fp32. If none counts: 0 that still reaches the graph.
    Raises:
        ValueError: If `kind` is unknown.
    """
    if kind not in ("ce", "kl"):
        raise ValueError(f"DUAL.LOSS is {kind!r}; expected one of ce, kl")
    target = _full_precision(target)
    log_probs = F.log_softmax(_full_precision(logits) / temperature, dim=-1)
    per_sample = -(target * log_probs).sum(dim=-1)
    if kind == "kl":
        per_sample = per_sample + torch.special.xlogy(target, target).sum(dim=-1)
    per_sample = temperature**2 * per_sample
    if mask is None:
        return per_sample.mean()
    mask = mask.expand_as(per_sample)
    # where, not a product: a sample that does not count must not pass on an infinite loss as 0 * inf.
    return torch.where(mask, per_sample, 0.0).sum() / mask.sum().clamp_min(1)


def two_head_loss(
    logits: Tensor,
    distribution_logits: Tensor | None,
    target: Tensor,
    distribution: Tensor,
    *,
    lam: float,
    temperature: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Train a head per task: (1 - lam) * CE(target, softmax(f)) + lam * tau^2 * KL(q || softmax(g / tau)).

    Args:
        logits: f of the class head, (B, C) or (S, B, C).
        distribution_logits: g of the distribution's head, likewise. None: the first part alone.
        target: Class targets, (B, C), rows sum to 1.
        distribution: q, (B, C), rows sum to 1; zeros are legal.
        lam: Weight of the distribution, in [0, 1].
        temperature: tau > 0 of the distribution's head.
        mask: Samples that count, (B,), bool. None: all.
    Returns:
        Mean over the samples that count, scalar, fp32.
    """
    loss = (1 - lam) * distribution_loss(logits, target, mask=mask)
    if distribution_logits is None:
        return loss
    return loss + lam * distribution_loss(distribution_logits, distribution, temperature=temperature, kind="kl", mask=mask)


def consistency_loss(
    stage_logits: Tensor,
    *,
    pairs: str = "all",
    temperature: float = 1.0,
    detach: bool = True,
    symmetric: bool = False,
) -> Tensor:
    """Pull shallow stages towards deeper ones: tau^2 / |pairs| * sum KL(p_deep || p_shallow), mean over the batch.

    Args:
        stage_logits: (S, B, C), shallow to deep.
        pairs: `all`, `adjacent`, or `to_last` (every stage with the deepest).
        temperature: tau > 0.
        detach: Use the deeper stage as a target only. Undetached, "all stages uniform" is a minimum.
        symmetric: Also take KL(p_shallow || p_deep), as further pairs of the mean.
    Returns:
        Scalar, fp32; 0 if there is only one stage.
    Raises:
        ValueError: If `pairs` is unknown.
    """
    logits = _full_precision(stage_logits)
    targets, students = _stage_pairs(len(logits), pairs)
    if not targets:
        return logits.new_zeros(())
    if symmetric:
        targets, students = targets + students, students + targets
    log_probs = F.log_softmax(logits / temperature, dim=-1)
    log_target = log_probs[targets]
    if detach:
        log_target = log_target.detach()
    divergence = (log_target.exp() * (log_target - log_probs[students])).sum(dim=-1)
    return temperature**2 * divergence.mean()


def predict_distribution(logits: Tensor, temperature: float) -> Tensor:
    """Return softmax(logits / tau), (..., C), fp32; tau is that of training, else logits trained at 16 look one-hot."""
    return F.softmax(_full_precision(logits) / temperature, dim=-1)


def _stage_pairs(n_stages: int, pairs: str) -> tuple[list[int], list[int]]:
    """Return the deep and the shallow index of every pair."""
    if pairs not in PAIRINGS:
        raise ValueError(f"CONS_PAIRS is {pairs!r}; expected one of {', '.join(PAIRINGS)}")
    deep_of = {
        "all": lambda shallow: range(shallow + 1, n_stages),
        "adjacent": lambda shallow: [shallow + 1],
        "to_last": lambda shallow: [n_stages - 1],
    }[pairs]
    couples = [(deep, shallow) for shallow in range(n_stages - 1) for deep in deep_of(shallow)]
    return [deep for deep, _ in couples], [shallow for _, shallow in couples]


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
