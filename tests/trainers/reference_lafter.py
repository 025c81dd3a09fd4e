"""LaFTer, its Hybrid and its MultiLayer written a second time, from the formulas: plain loops that share no code of ours.

A run is replayed on the batches that a trainer saw: same start, own forward pass, own teacher, own losses, own schedule.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from reference_dual import Dual, dual_loss, known_labels
from torch import Tensor, nn


@dataclass
class Settings:
    """What the replayed run was configured with."""

    teacher: str = "frozen"  # frozen | shared | ema | self
    ema_decay: float = 0.999
    labels: tuple[int, ...] = ()  # of the data set, for the supervised modes
    dual: Dual | None = None
    stages: tuple[tuple[int, ...], ...] = ()  # empty: LaFTer
    unit_features: bool = False
    smoothing: float = 0.1
    threshold: float = 0.0
    align: bool = False
    consistency: float = 0.0
    pairs: str = "all"  # all | adjacent
    prompt_mode: str = "replace"  # replace | accumulate | deep
    unfreezing: tuple[int, int] | None = None  # W, G of MultiLayer; None: everything trains from the start
    lr: float = 1e-3
    weight_decay: float = 0.01
    adapter_mult: float = 1.0
    scalar_mult: float = 0.1
    warmup_epochs: int = 0
    sigma_min: float = 0.25


@dataclass
class Start:
    """Values before the first step."""

    visual: nn.Module
    prompts: Tensor
    text_weight: Tensor  # A_pl
    scale_log: Tensor | None = None
    rho: Tensor | None = None
    beta: Tensor | None = None
    stage_prompts: dict[int, Tensor] = field(default_factory=dict)  # MultiLayer: by the block they enter at


def attention(block: nn.Module, x: Tensor) -> Tensor:
    """Multi-head self-attention of one open_clip block on (B, L, D), head by head."""
    attn = block.attn
    q, k, v = (x @ attn.in_proj_weight.t() + attn.in_proj_bias).chunk(3, dim=-1)
    size = x.shape[-1] // attn.num_heads
    heads = []
    for head in range(attn.num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        heads.append(scores.softmax(dim=-1) @ v[..., part])
    return torch.cat(heads, dim=-1) @ attn.out_proj.weight.t() + attn.out_proj.bias


def cls_of_every_block(
    visual: nn.Module, images: Tensor, prompts: dict[int, Tensor], *, accumulate: bool = False
) -> list[Tensor]:
    """Return the CLS token after each block, (B, D) each.

    The prompts of a block enter after CLS before it; older ones make room, or move back if they accumulate.
    """
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.expand(len(images), 1, -1)
    x = visual.ln_pre(torch.cat([cls, patches], dim=1) + visual.positional_embedding)
    tokens = []
    for number, block in enumerate(visual.transformer.resblocks, start=1):
        if number in prompts:
            rest = x[:, 1:] if accumulate else x[:, -patches.shape[1] :]
            x = torch.cat([x[:, :1], prompts[number].expand(len(images), -1, -1), rest], dim=1)
        x = x + attention(block, block.ln_1(x))
        hidden = block.ln_2(x) @ block.mlp.c_fc.weight.t() + block.mlp.c_fc.bias
        x = x + nn.functional.gelu(hidden) @ block.mlp.c_proj.weight.t() + block.mlp.c_proj.bias
        tokens.append(x[:, 0])
    return tokens


def feature(visual: nn.Module, token: Tensor) -> Tensor:
    """Post-LN and projection of a CLS token."""
    return visual.ln_post(token) @ visual.proj


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, counted: Tensor, smoothing: float) -> Tensor:
    """Mean over the images that count; one image at a time."""
    total, n_classes = logits.sum() * 0, logits.shape[1]
    for row, label, counts in zip(logits, labels.tolist(), counted.tolist(), strict=True):
        if counts:
            log_probs = row - row.exp().sum().log()
            total = total - (1 - smoothing) * log_probs[label] - smoothing / n_classes * log_probs.sum()
    return total / max(int(counted.sum()), 1)


def consistency(stage_logits: list[Tensor], pairs: str = "all") -> Tensor:
    """Mean over the pairs of KL(deep || shallow); the deeper stage gives no gradient."""
    terms = []
    for shallow in range(len(stage_logits)):
        for deep in range(shallow + 1, len(stage_logits)):
            if pairs == "adjacent" and deep > shallow + 1:
                continue
            target = stage_logits[deep].detach().softmax(dim=-1)
            divergence = target * (target.log() - stage_logits[shallow].softmax(dim=-1).log())
            terms.append(divergence.sum(dim=-1).mean())
    return sum(terms) / len(terms)


def sinkhorn(probs: Tensor, rounds: int = 10) -> Tensor:
    """Columns to equal shares, rows to 1, ten times."""
    probs = probs.double()
    for _ in range(rounds):
        for column in range(probs.shape[1]):
            probs[:, column] *= len(probs) / probs.shape[1] / probs[:, column].sum()
        for row in range(len(probs)):
            probs[row] /= probs[row].sum()
    return probs


class Reference:
    """The replayed run."""

    def __init__(self, start: Start, settings: Settings) -> None:
        self.s = settings
        self.visual = copy.deepcopy(start.visual).requires_grad_(False)
        self.first_visual = copy.deepcopy(self.visual)
        self.text_weight = start.text_weight.clone()
        self.weight = start.text_weight.clone().requires_grad_()
        self.norms = [p for m in self.visual.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()]
        self.scale_log = None if start.scale_log is None else start.scale_log.clone().requires_grad_()
        self.rho = None if start.rho is None else start.rho.clone().requires_grad_()
        self.beta = None if start.beta is None else start.beta.clone().requires_grad_()
        for p in self.norms:
            p.requires_grad_(True)
        scalars = [p for p in (self.scale_log, self.rho, self.beta) if p is not None]
        groups: list[dict[str, Any]] = [
            {"params": [*self.own_undecayed(start), *self.norms], "mult": 1.0, "weight_decay": 0.0},
            {"params": [self.weight], "mult": settings.adapter_mult, "weight_decay": settings.weight_decay},
        ]
        if scalars:
            groups.append({"params": scalars, "mult": settings.scalar_mult, "weight_decay": 0.0})
        groups += self.own_groups()
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr)

    def own_undecayed(self, start: Start) -> list[Tensor]:
        """Parameters beside the LayerNorms that train with OPTIM.LR and without weight decay."""
        self.prompts = start.prompts.clone().requires_grad_()
        return [self.prompts]

    def own_groups(self) -> list[dict[str, Any]]:
        return []

    def start_epoch(self, epoch: int) -> None:
        """Choose what trains."""

    def logits(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return fused logits and the logits of every stage."""
        tokens = cls_of_every_block(self.visual, images, {1: self.prompts})
        scale = 1.0 if self.scale_log is None else self.scale_log.exp()
        if not self.s.stages:
            last = feature(self.visual, tokens[-1])
            fused = scale * (unit(last) if self.s.unit_features else last) @ self.weight.t()
            return fused, [fused]
        per_stage = []
        for number, blocks in enumerate(self.s.stages):
            sigma = torch.nn.functional.softplus(self.rho[number]) + self.s.sigma_min
            weights = [torch.exp(-((blocks[-1] - block) ** 2) / (2 * sigma**2)) for block in blocks]
            total = sum(w * feature(self.visual, tokens[b - 1]) for w, b in zip(weights, blocks, strict=True))
            z = total / sum(weights)
            per_stage.append(scale * (unit(z) if self.s.unit_features else z) @ self.weight.t())
        alpha = self.beta.softmax(dim=0)
        return sum(a * logits for a, logits in zip(alpha, per_stage, strict=True)), per_stage

    @torch.no_grad()
    def teacher_probs(self, images: Tensor, epoch: int) -> Tensor:
        if self.s.teacher == "self" and epoch > 0:
            return self.logits(images)[0].softmax(dim=-1)
        visual = self.visual if self.s.teacher == "shared" else self.first_visual  # ema: moves the first one
        last = feature(visual, cls_of_every_block(visual, images, {})[-1])
        return (unit(last) @ self.text_weight.t()).softmax(dim=-1)

    @torch.no_grad()
    def average(self) -> None:
        """Move the teacher's own tower and classifier towards the student's."""
        pairs = list(zip(self.first_visual.parameters(), self.visual.parameters(), strict=True))
        for mean, value in [*pairs, (self.text_weight, self.weight)]:
            mean.copy_(self.s.ema_decay * mean + (1 - self.s.ema_decay) * value)

    def label(self, images: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Return labels and which of them count, for a whole set or a batch."""
        if self.s.labels:
            return known_labels(self.s.labels)
        probs = self.teacher_probs(images, epoch)
        if self.s.align:
            probs = sinkhorn(probs)
        confidence, labels = probs.max(dim=1)
        return labels, confidence.float() >= self.s.threshold

    def run(self, epochs: list[list[tuple[Tensor, Tensor]]], everything: Tensor) -> list[float]:
        """Return the loss of every step.

        Args:
            epochs: Batches of each epoch: (images, positions in the training set).
            everything: All training images in file order.
        """
        trace: list[float] = []
        for number, batches in enumerate(epochs):
            self.start_epoch(number)
            if self.s.teacher == "self" or number == 0:
                labels, counted = self.label(everything, number)
            warming = number < self.s.warmup_epochs
            factor = 0.1 + 0.9 * number / self.s.warmup_epochs if warming else 1.0
            for group in self.optimizer.param_groups:
                group["lr"] = self.s.lr * group["mult"] * factor
            for images, index in batches:
                online = self.s.teacher in ("shared", "ema")
                found = self.label(images, number) if online else (labels[index], counted[index])
                fused, per_stage = self.logits(images)
                if self.s.dual is None:
                    loss = smoothed_cross_entropy(fused, *found, self.s.smoothing)
                else:
                    loss = dual_loss(fused, *found, index, self.s.smoothing, self.s.dual)
                if self.s.consistency:
                    loss = loss + self.s.consistency * consistency(per_stage, self.s.pairs)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                if self.s.teacher == "ema":
                    self.average()
                trace.append(loss.item())
        return trace


class MultiLayerReference(Reference):
    """The replayed run with prompts, LayerNorm and projection per stage; stages may open one after the other."""

    def own_undecayed(self, start: Start) -> list[Tensor]:
        final = self.visual.ln_post
        self.norms = [p for p in self.norms if all(p is not q for q in final.parameters())]
        self.stage_prompts = {block: prompt.clone().requires_grad_() for block, prompt in start.stage_prompts.items()}
        parts = (final.weight, final.bias, self.visual.proj)
        self.readouts = [[part.detach().clone().requires_grad_() for part in parts] for _ in self.s.stages]
        return [*self.stage_prompts.values(), *(p for scale, shift, _ in self.readouts for p in (scale, shift))]

    def own_groups(self) -> list[dict[str, Any]]:
        projections = [projection for _, _, projection in self.readouts]
        return [{"params": projections, "mult": 1.0, "weight_decay": self.s.weight_decay}]

    def start_epoch(self, epoch: int) -> None:
        if self.s.unfreezing is None:
            return
        deepest = len(self.s.stages) - 1
        warmup, gradual = self.s.unfreezing
        everything = epoch >= warmup + gradual
        first = deepest if epoch < warmup else max(0, deepest - 1 - (epoch - warmup))
        for p in [*self.norms, *self.stage_prompts.values(), *(p for readout in self.readouts for p in readout)]:
            p.requires_grad_(everything)
        for p in (self.scale_log, self.rho, self.beta):
            p.requires_grad_(everything)
        for number in range(first, deepest + 1):
            for block in self.s.stages[number]:
                own = self.visual.transformer.resblocks[block - 1]
                prompts = [self.stage_prompts[block]] if block in self.stage_prompts else []
                for p in [*own.ln_1.parameters(), *own.ln_2.parameters(), *prompts]:
                    p.requires_grad_(True)
            for p in self.readouts[number]:
                p.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)

    def logits(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        accumulate = self.s.prompt_mode == "accumulate"
        tokens = cls_of_every_block(self.visual, images, self.stage_prompts, accumulate=accumulate)
        widths = iter(self.rho)
        per_stage = []
        for blocks, (scale, shift, projection) in zip(self.s.stages, self.readouts, strict=True):
            mean = tokens[blocks[0] - 1]
            if len(blocks) > 1:
                sigma = torch.nn.functional.softplus(next(widths)) + self.s.sigma_min
                weights = [torch.exp(-((blocks[-1] - block) ** 2) / (2 * sigma**2)) for block in blocks]
                mean = sum(w * tokens[b - 1] for w, b in zip(weights, blocks, strict=True)) / sum(weights)
            centred = mean - mean.mean(dim=-1, keepdim=True)
            normed = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
            z = (normed * scale + shift) @ projection
            per_stage.append(self.scale_log.exp() * unit(z) @ self.weight.t())
        alpha = self.beta.softmax(dim=0)
        return sum(a * logits for a, logits in zip(alpha, per_stage, strict=True)), per_stage


def fit_text_weight(
    weight: Tensor, features: Tensor, labels: Tensor, balance: Tensor, *, epochs: int, lr: float, seed: int
) -> Tensor:
    """Phase A in a loop: one AdamW step per epoch on noisy unit features, smoothing and noise 0.1."""
    weight = weight.clone().requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        noisy = features + 0.1 * torch.randn(features.shape, generator=generator)
        loss = 0.0
        for row, label, factor in zip(noisy, labels, balance, strict=True):
            loss = loss + factor * nn.functional.cross_entropy(row @ weight.t(), label, label_smoothing=0.1)
        optimizer.zero_grad()
        (loss / len(labels)).backward()
        optimizer.step()
    return weight.detach()
