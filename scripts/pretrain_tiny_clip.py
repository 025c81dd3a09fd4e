"""Pre-train the miniature CLIP ``tiny12`` on rendered pictures with captions.

    python scripts/pretrain_tiny_clip.py --output clip_ext/assets/tiny12.safetensors

Pictures are printed glyphs and scenes (``datasets/mini_scenes_generator``); handwriting is never shown. The loss is CLIP's
symmetric contrastive loss, except that a caption's positives are *all* pictures of the batch it is true of: captions are
built from facts, so that is known (``caption_truth``). Every batch is a function of (seed, step): a run that is stopped
and started again gives the weights of one that was not.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from clip_ext.files import replacing  # noqa: E402
from clip_ext.loader import LoadedClip, build_clip  # noqa: E402
from datasets.mini_scenes_generator import NUMERALS, generate_scene  # noqa: E402
from datasets.mini_scenes_generator.printed import (  # noqa: E402
    FACTS,
    UNSTATED,
    PrintedGlyphs,
    caption_glyph,
    caption_truth,
)

log = logging.getLogger("pretrain")
# Pre-training and every data set draw from seeds far apart, so that no scene is ever seen twice.
SCENE_SEED = 7_000_000
HELD_OUT_SEED = 9_000_000


class ScenePool:
    """Scenes drawn in advance, each with its captions.

    Args:
        n_scenes: Pool size.
        image_size_px: Side to which the 96-pixel scenes are reduced.
        seed: First of the ``n_scenes`` consecutive seeds.
    """

    def __init__(self, n_scenes: int, image_size_px: int, seed: int) -> None:
        scenes = [generate_scene(np.random.default_rng(seed + index)) for index in range(n_scenes)]
        images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
        chunks = [F.interpolate(chunk.float(), size=image_size_px, mode="area") for chunk in images.split(256)]
        self.images = torch.cat(chunks).round().to(torch.uint8)
        self.captions = [scene.captions for scene in scenes]

    def sample(self, n_images: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Draw pictures (B, 3, S, S) in [0, 1], facts (B, F) that only the scene's own captions match, captions."""
        picks = rng.choice(len(self.captions), size=n_images, replace=False)
        facts = torch.full((n_images, len(FACTS)), UNSTATED - 1)
        facts[:, FACTS.index("scene")] = torch.from_numpy(picks)
        captions = [self.captions[pick][rng.integers(len(self.captions[pick]))] for pick in picks]
        return self.images[picks].float() / 255, facts, captions


class Batches:
    """Batches of (normalised pictures, token ids, truth) as a function of the step."""

    def __init__(self, clip: LoadedClip, batch_size: int, scene_share: float, n_scenes: int, seed: int) -> None:
        self.clip, self.seed = clip, seed
        self.n_scenes = round(batch_size * scene_share)
        self.n_glyphs = batch_size - self.n_scenes
        self.glyphs = PrintedGlyphs(clip.info.image_size_px, seed=seed)
        self.scenes = ScenePool(n_scenes, clip.info.image_size_px, SCENE_SEED + seed)
        self.mean = torch.tensor(clip.info.mean).view(1, 3, 1, 1)
        self.std = torch.tensor(clip.info.std).view(1, 3, 1, 1)

    def at(self, step: int, difficulty: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures (B, 3, S, S), token ids (B, L), truth (B, B) bool; glyphs as varied as `difficulty`, 0 to 1."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rng = np.random.default_rng((self.seed, step))
        images, facts = self.glyphs.sample(self.n_glyphs, generator, difficulty)
        described = [caption_glyph(row, rng) for row in facts.numpy()]
        captions = [caption for caption, _ in described]
        stated = torch.from_numpy(np.stack([row for _, row in described]))
        if self.n_scenes:
            scene_images, scene_facts, scene_captions = self.scenes.sample(self.n_scenes, rng)
            scene_stated = torch.where(scene_facts == UNSTATED - 1, UNSTATED, scene_facts)
            images, facts = torch.cat([images, scene_images]), torch.cat([facts, scene_facts])
            stated, captions = torch.cat([stated, scene_stated]), captions + scene_captions
        tokens = self.clip.tokenizer(captions)
        # The text tower is causal: what stands behind the longest end token cannot change a feature.
        tokens = tokens[:, : int(tokens.argmax(-1).max()) + 1]
        return (images - self.mean) / self.std, tokens, caption_truth(facts, stated)


def encode_tokens(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Text features of a context cut to (T, n) tokens; differentiable; (T, E), not normalised."""
    n_tokens = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:n_tokens]
    x = model.transformer(x, attn_mask=model.attn_mask[:n_tokens, :n_tokens])
    x = model.ln_final(x)
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection


def contrastive_loss(
    image_features: torch.Tensor, text_features: torch.Tensor, logit_scale: torch.Tensor, truth: torch.Tensor
) -> torch.Tensor:
    """Symmetric cross-entropy against the normalised truth; equals CLIP's loss when truth is the identity."""
    logits = logit_scale * F.normalize(image_features.float(), dim=-1) @ F.normalize(text_features.float(), dim=-1).T
    target = truth.float()
    per_image = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    per_text = F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))
    return 0.5 * (per_image + per_text)


@torch.no_grad()
def evaluate(clip: LoadedClip, batches: Batches) -> dict[str, float]:
    """Measure on pictures drawn from other seeds than the training's, in percent.

    Returns:
        ``retrieval``: share of captions whose best of 512 pictures they are true of; ``digits``: accuracy of
        printed digits against ten prompts.
    """
    model = clip.model.eval()
    images, tokens, truth = batches.at(HELD_OUT_SEED)
    image_features = F.normalize(model.encode_image(images), dim=-1)
    text_features = F.normalize(encode_tokens(model, tokens), dim=-1)
    best = (text_features @ image_features.T).argmax(1)
    hits = truth.T[torch.arange(len(best)), best].float().mean()
    images, facts = batches.glyphs.sample(1024, torch.Generator().manual_seed(HELD_OUT_SEED + 1))
    rows = facts[:, 0] < len(NUMERALS)
    features = model.encode_image((images[rows] - batches.mean) / batches.std)
    prompts = F.normalize(encode_tokens(model, clip.tokenizer([f"a photo of the digit {n}." for n in NUMERALS])), dim=-1)
    digits = ((features @ prompts.T).argmax(1) == facts[rows, 0]).float().mean()
    model.train()
    return {"retrieval": 100 * hits.item(), "digits": 100 * digits.item()}


def build_optimizer(model: torch.nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only, as CLIP does."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6)


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < args.warmup_steps:
        return args.lr * (step + 1) / args.warmup_steps
    done = (step - args.warmup_steps) / max(1, args.steps - args.warmup_steps)
    return args.lr * 0.5 * (1 + math.cos(math.pi * done))


def train(clip: LoadedClip, batches: Batches, args: argparse.Namespace) -> None:
    """Run or continue the pre-training; the state is kept in ``args.work_dir``."""
    model = clip.model.train()
    optimizer = build_optimizer(model, args.lr, args.weight_decay)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    state_file, first = args.work_dir / "state.pt", 0
    if state_file.is_file():
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        if state["arguments"] != identity(args):
            raise SystemExit(f"{state_file} belongs to other arguments: {state['arguments']}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    visual = torch.compile(model.visual) if args.compile else model.visual
    started = time.perf_counter()
    for step in range(first, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        images, tokens, truth = batches.at(step, min(1.0, step / args.ramp_steps))
        loss = contrastive_loss(visual(images), encode_tokens(model, tokens), model.logit_scale.exp(), truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if (step + 1) % 50 == 0:
            pace = (time.perf_counter() - started) / (step + 1 - first)
            log.info("step %d/%d loss %.4f, %.2f s per step", step + 1, args.steps, loss.item(), pace)
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            log.info("step %d held-out %s", step + 1, evaluate(clip, batches))
            state = {"arguments": identity(args), "step": step + 1}
            state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            with replacing(state_file) as temporary:
                torch.save(state, temporary)


def identity(args: argparse.Namespace) -> str:
    """The arguments that decide the weights, as text."""
    names = ("seed", "steps", "batch_size", "lr", "weight_decay", "warmup_steps", "ramp_steps", "scene_share", "n_scenes")
    return json.dumps({name: getattr(args, name) for name in names})


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="fp16 safetensors file to write")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "output" / "pretrain_tiny12", help="resumable state")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--ramp-steps", type=int, default=1800, help="steps until glyphs have all their variety")
    parser.add_argument("--scene-share", type=float, default=0.125, help="part of each batch that shows scenes")
    parser.add_argument("--n-scenes", type=int, default=8000, help="scenes drawn in advance")
    parser.add_argument("--save-every", type=int, default=300, help="steps between saved states")
    parser.add_argument("--compile", action="store_true", help="torch.compile the image tower (1.5x on two CPU cores)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    config = json.loads((ROOT / "clip_ext" / "model_configs" / "tiny12.json").read_text(encoding="utf-8"))
    clip = build_clip(config, name="tiny12", seed=args.seed)
    clip.model.requires_grad_(True)
    batches = Batches(clip, args.batch_size, args.scene_share, args.n_scenes, args.seed)
    train(clip, batches, args)
    weights = {name: value.half().contiguous() for name, value in clip.model.state_dict().items()}
    with replacing(args.output) as temporary:
        save_file(weights, temporary)
    log.info("%s: %.2f MB", args.output, args.output.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
