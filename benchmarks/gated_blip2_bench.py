"""A GatedBLIP2 with random weights, as the trainer builds it, and the work that `benchmarks.gated_blip2_memory` measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from trainers import precision
from trainers.config import add_trainer_configs
from trainers.gated_blip2 import building
from trainers.gated_blip2.cache.rows import Rows
from trainers.gated_blip2.features import FeatureReader
from trainers.gated_blip2.generation import GenerateOptions
from trainers.gated_blip2.memory import MemoryPlan, estimate_memory
from trainers.gated_blip2.presets import parameter_groups
from trainers.gated_blip2.prompts import IGNORED, TextBatch
from trainers.parameter_groups import build_group_optimizer

CONFIGS = {  # name -> (MODEL.BACKBONE.NAME, STYLE.ARCH)
    "full": ("blip2_opt_2_7b", "efficientnet_b3"),
    "tiny": ("tiny_blip2", "efficientnet_tiny"),
}
STATES = ("loaded", "forward", "generation", "training")
N_QUESTION, N_ANSWER = 4, 3  # of the text tokens: the question's own, and those with a loss
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Case:
    """What is built and done.

    Attributes:
        preset, prec, quant, grad_ckpt: As the keys of that name.
        cached: Features come from memory, and ViT and style encoder have left the device.
        batch: Samples of a training batch; generation is measured with one.
        n_text: Text tokens of a sample.
        goals: State -> GiB that it may take at most.
    """

    preset: str
    prec: str = "amp"
    quant: str = "none"
    cached: bool = False
    grad_ckpt: bool = False
    batch: int = 2
    n_text: int = 8
    goals: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The case in words."""
        words = [self.preset, self.prec, "cached" if self.cached else "live", f"batch {self.batch}"]
        words += [self.quant] if self.quant != "none" else []
        return ", ".join([*words, "GRAD_CKPT"] if self.grad_ckpt else words)

    def to_dict(self) -> dict[str, Any]:
        """Return it in JSON's types."""
        return asdict(self)


class Bench:
    """A model on a device, with random pictures and texts.

    Args:
        case: What to build.
        config: A name of `CONFIGS`.
        device: `cuda` or `cpu`.
    """

    def __init__(self, case: Case, config: str, device: str) -> None:
        self.case, self.device = case, torch.device(device)
        self.cfg = _write_cfg(case, *CONFIGS[config])
        self.prec = precision.resolve_precision(case.prec, self.device)
        towers = building.load_towers(self.cfg, self.prec, self.device)
        self.system = building.build_system(towers, self.cfg.TRAINER.GATEDBLIP2, self.prec, self.device)
        self.model, self.towers = self.system.model, towers
        self.features = FeatureReader(self.model, towers.style_encoder, towers.views, self.device)
        self._draw = torch.Generator().manual_seed(0)
        self._optimizer: torch.optim.Optimizer | None = None
        self._scaler = torch.amp.GradScaler(self.device.type) if self.prec in ("amp", "fp16") else None
        self.skipped = 0

    # -- inputs ---------------------------------------------------------------------------------------------------------

    def pictures(self, n: int) -> tuple[Tensor, Tensor | None]:
        """Return random pictures as both encoders see them, on the CPU."""
        style, side = self.towers.style_encoder, self.towers.loaded.view.side_px
        images = torch.randn(n, 3, side, side, generator=self._draw)
        if style is None:
            return images, None
        return images, torch.randn(n, 3, style.view.crop_px, style.view.crop_px, generator=self._draw)

    def rows(self, n: int) -> Rows:
        """Return random features on the CPU, as a cache gives them."""
        loaded, style = self.towers.loaded, self.towers.style_encoder
        width = loaded.model.config.vision_config.hidden_size
        tokens = torch.randn(n, loaded.n_tokens, width, generator=self._draw).to(loaded.dtype)
        features = None if style is None else torch.randn(n, style.width, generator=self._draw)
        logits = None
        if style is not None and style.class_names is not None:
            logits = torch.randn(n, len(style.class_names), generator=self._draw)
        return Rows(tokens, features, logits)

    def text(self, n: int, *, answered: bool = True) -> TextBatch:
        """Return random texts of equal length; the last tokens are the answer, or are left away."""
        words = self.towers.loaded.model.config.text_config.vocab_size
        length = self.case.n_text if answered else self.case.n_text - N_ANSWER
        ids = torch.randint(4, words - 1, (n, length), generator=self._draw)
        is_answer = torch.arange(length) >= length - N_ANSWER if answered else torch.zeros(length, dtype=torch.bool)
        labels = torch.where(is_answer, ids, IGNORED)
        question = ids[:, :N_QUESTION]
        return TextBatch(ids, ids >= 0, labels, question, question >= 0, int((labels != IGNORED).sum()))

    def encode(self, n: int) -> Rows:
        """Return features of `n` pictures on the device: copied from memory, or computed."""
        return self.rows(n).to(self.device) if self.case.cached else self.features.encode(*self.pictures(n))

    # -- work -----------------------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Send ViT and style encoder away, as training from a full cache does."""
        self.features.release()

    @torch.no_grad()
    def forward(self) -> None:
        """Score a batch."""
        rows, text = self.encode(self.case.batch), self.text(self.case.batch)
        self.model.eval()
        self.model.loss(rows.tokens, self._style(rows, training=False), text)

    @torch.no_grad()
    def generate(self, n: int = 1, pictures: tuple[Tensor, Tensor | None] | None = None) -> None:
        """Answer `n` questions, greedily; about given pictures, or about random features."""
        rows = self.encode(n) if pictures is None else self.features.encode(*pictures)
        self.model.eval()
        options = GenerateOptions(max_new_tokens=self.cfg.TRAINER.GATEDBLIP2.GEN.MAX_NEW_TOKENS)
        self.model.generate(rows.tokens, self._style(rows, training=False), self.text(n, answered=False), options)

    def update(self, rows: Rows | None = None, text: TextBatch | None = None) -> Tensor:
        """Train on one batch: forward, backward, clipping, step; returns the loss per answer token."""
        optimizer = self.optimizer
        self.model.train()
        rows = self.encode(self.case.batch) if rows is None else rows
        text = self.text(self.case.batch) if text is None else text
        optimizer.zero_grad()
        found = self.model.loss(rows.tokens, self._style(rows, training=True), text)
        loss = found.total / found.n_tokens
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()
        if self._scaler is None:
            self._clip()
            optimizer.step()
            return loss.detach()
        self._scaler.unscale_(optimizer)
        self._clip()
        before = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        self.skipped += self._scaler.get_scale() < before
        return loss.detach()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Dassl's, over the preset's groups; built when it is first asked for."""
        if self._optimizer is None:
            groups = parameter_groups(self.system.parts, self.cfg.OPTIM.WEIGHT_DECAY)
            self._optimizer = build_group_optimizer(self.system.trainables, groups, self.cfg.OPTIM)
        return self._optimizer

    def gate_gradient(self) -> float:
        """Return the norm of the latest gradient of all gate heads, as it was clipped."""
        found = [each.grad for _, each in self.system.parts.get("gate_heads", []) if each.grad is not None]
        return torch.stack([each.norm() for each in found]).norm().item() if found else 0.0

    def estimate(self) -> dict[str, int]:
        """Return what was estimated for an update, bytes by purpose."""
        system, loaded, case = self.system, self.towers.loaded, self.case
        plan = MemoryPlan(
            self.cfg.OPTIM.NAME, precision.autocast_dtype(self.prec), case.batch, case.n_text, N_ANSWER, loaded.n_tokens,
            case.cached, case.grad_ckpt,
        )  # fmt: skip
        gates = [each for each in (self.model.conditioner, system.style_source) if each is not None]
        return estimate_memory(
            loaded.model, system.parts, plan, gates=gates, style_encoder=self.towers.style_encoder
        ).to_dict()

    def _style(self, rows: Rows, *, training: bool) -> Tensor | None:
        labels = torch.full((len(rows.tokens),), -1, device=self.device)
        return self.system.style_of(rows, labels, training=training, generator=self._draw)

    def _clip(self) -> None:
        torch.nn.utils.clip_grad_norm_(list(self.system.trainables.parameters()), MAX_GRAD_NORM)


@contextmanager
def watch_memory(device: torch.device) -> Iterator[dict[str, int]]:
    """Fill the dict that it yields with the peaks of what is done inside, in bytes; on a CPU it stays empty."""
    found: dict[str, int] = {}
    if device.type != "cuda":
        yield found
        return
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield found
    torch.cuda.synchronize(device)
    found["allocated"] = torch.cuda.max_memory_allocated(device)
    found["reserved"] = torch.cuda.max_memory_reserved(device)


def _write_cfg(case: Case, backbone: str, style_arch: str) -> CfgNode:
    from dassl.config import get_cfg_default  # found by `trainers`

    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED = backbone, False
    cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.WEIGHT_DECAY = "adamw", 1e-4, 0.01
    node = cfg.TRAINER.GATEDBLIP2
    node.PRESET, node.PREC, node.QUANT, node.GRAD_CKPT = case.preset, case.prec, case.quant, case.grad_ckpt
    node.STYLE.ARCH, node.STYLE.FALLBACK = style_arch, "random"
    return cfg
