"""What the pre-training scripts of the miniature language models share: schedule, resumable loop, several texts per prefix.

Every batch is a function of (seed, step), so that a run which is stopped and started again gives the weights of one that was
not.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from clip_ext.files import replacing  # noqa: E402
from datasets.mini_scenes import read_handwriting  # noqa: E402
from datasets.mini_scenes_generator import WorldScene, background_of_split, training_scene, world_sprites  # noqa: E402

log = logging.getLogger("pretrain")


@dataclass(frozen=True)
class Pace:
    """How long a phase trains, and how often it speaks.

    Attributes:
        steps: Of the phase.
        warmup_steps: Over which the rates rise; then they fall to zero on a cosine.
        save_every: Steps between saved states.
        log_every: Steps between lines of the log.
    """

    steps: int
    warmup_steps: int
    save_every: int
    log_every: int = 50

    def factor(self, step: int) -> float:
        """Multiplier of the learning rates at a step, from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))


def build_adamw(rates: Mapping[nn.Module | nn.Parameter, float], weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW that decays matrices only.

    Args:
        rates: Module or single parameter -> its learning rate; a rate of 0 leaves it out.
        weight_decay: Of the matrices.
    """
    groups = []
    for part, rate in rates.items():
        if rate:
            parameters = [part] if isinstance(part, nn.Parameter) else list(part.parameters())
            groups.append({"params": [p for p in parameters if p.ndim == 2], "weight_decay": weight_decay, "base": rate})
            groups.append({"params": [p for p in parameters if p.ndim != 2], "weight_decay": 0.0, "base": rate})
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.98), eps=1e-6)


def identity(args: argparse.Namespace) -> str:
    """The arguments that decide the weights, as text."""
    found = {name: value for name, value in vars(args).items() if isinstance(value, (int, float, str))}
    return json.dumps(found | {"save_every": 0}, sort_keys=True)


def run_phase(
    name: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_at: Callable[[int], Tensor],
    pace: Pace,
    *,
    state_file: Path,
    arguments: str,
    report: Callable[[], Any],
) -> None:
    """Run or continue a phase; one whose state is complete is loaded and passed over.

    Args:
        name: For the log.
        model: Its whole state is kept.
        optimizer: Groups with their rate at `base`.
        loss_at: Step -> loss.
        pace: Length and frequencies.
        state_file: Where the state is kept.
        arguments: What `identity` returned; a state of other arguments is refused.
        report: What to log whenever a state is saved.
    Raises:
        SystemExit: If the state belongs to other arguments.
    """
    first = _resume(model, optimizer, state_file, arguments)
    started = time.perf_counter()
    for step in range(first, pace.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * pace.factor(step)
        loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        if (step + 1) % pace.log_every == 0:
            seconds = (time.perf_counter() - started) / (step + 1 - first)
            log.info("%s: step %d/%d loss %.4f, %.2f s per step", name, step + 1, pace.steps, loss.item(), seconds)
        if (step + 1) % pace.save_every == 0 or step + 1 == pace.steps:
            log.info("%s: step %d %s", name, step + 1, report())
            state = {"arguments": arguments, "step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            with replacing(state_file) as temporary:
                torch.save(state, temporary)


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, state_file: Path, arguments: str) -> int:
    state_file.parent.mkdir(parents=True, exist_ok=True)
    if not state_file.is_file():
        return 0
    state = torch.load(state_file, map_location="cpu", weights_only=True)
    if state["arguments"] != arguments:
        raise SystemExit(f"{state_file} belongs to other arguments: {state['arguments']}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def isolate_texts(n_prefix: int, n_texts: int, length: int) -> tuple[Tensor, Tensor]:
    """Return positions and attention mask of one prefix with several texts, each of which sees the prefix and itself.

    So all texts about a picture share one pass, which equals as many passes of their own.

    Args:
        n_prefix: Tokens of the prefix.
        n_texts: Texts behind it.
        length: Tokens of each, padding included.
    Returns:
        Positions (n_prefix + n_texts * length,) and a mask to be added to attention scores, (1, 1, n, n), fp32.
    """
    positions = torch.cat([torch.arange(n_prefix), (n_prefix + torch.arange(length)).repeat(n_texts)])
    block = torch.cat([torch.full((n_prefix,), -1), torch.arange(n_texts).repeat_interleave(length)])
    order = torch.arange(len(block))
    sees = ((block[None] == -1) | (block[:, None] == block[None])) & (order[:, None] >= order[None])
    return positions, torch.zeros(sees.shape).masked_fill_(~sees, torch.finfo(torch.float32).min)[None, None]


def draw_worlds(n_scenes: int, seed: int, split: str) -> list[WorldScene]:
    """Draw scenes on textures of one split, each from a seed of its own, with handwritten digits of the train split.

    Args:
        n_scenes: How many.
        seed: First of their consecutive seeds.
        split: Whose textures to show, `train` or `test`.
    """
    sprites, worlds = world_sprites(read_handwriting()["train"]), []
    for index in range(n_scenes):
        rng = np.random.default_rng(seed + index)
        worlds.append(training_scene(rng, sprite_source=sprites, background=background_of_split(rng, split), per_type=2))
    return worlds


def interpolate_table(table: Tensor, grid: int) -> Tensor:
    """Return the position table of class token and `grid` patches a side, (1 + grid * grid, width), from another grid's."""
    side = math.isqrt(len(table) - 1)
    patches = table[1:].unflatten(0, (side, side)).permute(2, 0, 1)[None]
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)[0].flatten(1).T
    return torch.cat([table[:1], patches])
