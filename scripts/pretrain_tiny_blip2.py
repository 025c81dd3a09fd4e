"""Pre-train the miniature BLIP-2 ``tiny_blip2`` on scenes of the miniature world, without ever asking for their style.

    python scripts/pretrain_tiny_blip2.py --output trainers/gated_blip2/assets/tiny_blip2

It plays the finished BLIP-2 of which ``GatedBLIP2`` starts, in three phases. *Reading*: its OPT learns to answer and describe
from the facts about a scene, style included, given as sums of word embeddings in as many places as there will be queries.
*Naming*: its vision tower, which starts as the first blocks of ``tiny12``, learns what each patch shows, object, colour and
hour. *Seeing*: tower, Q-Former, queries and projection learn to write facts down from pictures, with questions and captions of
which none asks for or names the style; the OPT goes on learning, from pictures and from facts. So the language model can say
what it has no way of seeing. Scenes are drawn from seeds that no data set uses, on textures of the training split, with
handwritten digits of its writers.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pretraining import ROOT, Pace, build_adamw, draw_worlds, identity, interpolate_table, isolate_texts, run_phase
from pretraining_facts import NO_WORD, PROMPT, SIDE_PX, Batches, fact_words
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from clip_ext.loader import LoadedClip, load_clip
from datasets.mini_scenes_generator import COLOURS, OBJECT_NAMES, all_words
from trainers.bgobj_llava.word_tokenizer import IMAGE, build_word_tokenizer

log = logging.getLogger("pretrain")
Blip2Model = Blip2ForConditionalGeneration
SCENE_SEED, HELD_OUT_SEED = 23_000_000, 29_000_000  # far from those of the data sets
CLOSEST_PX, ZOOM_SHARE = 36, 0.6  # smallest part of a scene that is named, and share of the steps in which parts are
BACKGROUND_WEIGHT = 0.2  # of patches without an object, which are most


class PatchNames(nn.Module):
    """What a tower's patches are asked while it learns to name things; it is not kept.

    Args:
        width: Of the tower.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in (len(OBJECT_NAMES) + 1, len(COLOURS), 12))

    def forward(self, tower: nn.Module, pictures: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
        """Return the loss, and the share of right answers per part, in percent; of names without the background's.

        Args:
            tower: Vision tower of BLIP-2.
            pictures: (B, 3, S, S).
            labels: (B, 3, patches).
        """
        patches = tower(pictures).last_hidden_state[:, 1:]
        weights = torch.ones(len(OBJECT_NAMES) + 1)
        weights[0] = BACKGROUND_WEIGHT
        loss, right = torch.zeros(()), []
        for part, head in enumerate(self.heads):
            wanted, scores = labels[:, part].flatten() - int(part == 2), head(patches).flatten(0, 1)
            counted = wanted > 0 if part == 0 else wanted >= 0
            if counted.any():
                loss = loss + F.cross_entropy(scores, wanted, weight=weights if part == 0 else None, ignore_index=-1)
                right.append(round(100 * (scores.argmax(-1) == wanted)[counted].float().mean().item(), 1))
        return loss, right


def build_blip2(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast, clip: LoadedClip) -> Blip2Model:
    """Return the model to train: tiny12's first blocks, a random Q-Former, a random OPT."""
    width, heads, newline = clip.info.width, clip.info.heads, tokenizer.convert_tokens_to_ids("\n")
    rows = -(-len(tokenizer) // 32) * 32
    vision = Blip2VisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=args.vision_blocks, num_attention_heads=heads,
        image_size=SIDE_PX, patch_size=clip.info.patch_size, hidden_act="gelu",
    )  # fmt: skip
    qformer = Blip2QFormerConfig(
        vocab_size=len(tokenizer), hidden_size=args.qformer_width, num_hidden_layers=args.qformer_layers, num_attention_heads=4,
        intermediate_size=4 * args.qformer_width, encoder_hidden_size=width, cross_attention_frequency=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=64,
    )  # fmt: skip
    text = OPTConfig(
        vocab_size=rows, hidden_size=args.width, word_embed_proj_dim=args.width, ffn_dim=4 * args.width,
        num_hidden_layers=args.llm_layers, num_attention_heads=4, max_position_embeddings=256, dropout=0.0,
        attention_dropout=0.0, bos_token_id=tokenizer.bos_token_id, eos_token_id=newline, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=args.queries,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )  # fmt: skip
    torch.manual_seed(args.seed)
    model = Blip2Model(config)
    nn.init.normal_(model.query_tokens, std=0.5)
    load_tower(model, clip)
    return model


@torch.no_grad()
def load_tower(model: Blip2Model, clip: LoadedClip) -> None:
    """Copy tiny12's first blocks into the vision tower; its LayerNorm before them becomes a part of the embeddings.

    BLIP-2's tower has none there. What a LayerNorm takes away and multiplies by on average is folded into patch weights and
    position table, which training then adjusts.
    """
    source, tower = clip.model.visual, model.vision_model
    state, width = source.state_dict(), clip.info.width
    centre = torch.eye(width) - 1 / width
    scale = state["ln_pre.weight"] / typical_spread(clip)
    fold = scale[:, None] * centre
    table = interpolate_table(state["positional_embedding"], SIDE_PX // clip.info.patch_size)
    tower.embeddings.patch_embedding.weight.copy_((fold @ state["conv1.weight"].flatten(1)).view_as(state["conv1.weight"]))
    tower.embeddings.patch_embedding.bias.copy_(state["ln_pre.bias"])
    tower.embeddings.class_embedding.copy_(fold @ state["class_embedding"] + state["ln_pre.bias"])
    tower.embeddings.position_embedding.copy_((table @ fold.T)[None])
    for number, layer in enumerate(tower.encoder.layers):
        block = source.transformer.resblocks[number]
        layer.self_attn.qkv.weight.copy_(block.attn.in_proj_weight)
        layer.self_attn.qkv.bias.copy_(block.attn.in_proj_bias)
        for ours, theirs in (
            (layer.self_attn.projection, block.attn.out_proj), (layer.layer_norm1, block.ln_1), (layer.layer_norm2, block.ln_2),
            (layer.mlp.fc1, block.mlp.c_fc), (layer.mlp.fc2, block.mlp.c_proj),
        ):  # fmt: skip
            ours.load_state_dict(theirs.state_dict())


@torch.no_grad()
def typical_spread(clip: LoadedClip) -> float:
    """Mean standard deviation over channels of what tiny12's first LayerNorm sees, on pictures of noise in large cells."""
    visual, side = clip.model.visual, clip.info.image_size_px
    cells = torch.randn((64, 3, side // 4, side // 4), generator=torch.Generator().manual_seed(0))
    patches = visual.conv1(F.interpolate(cells, size=(side, side))).flatten(2).transpose(1, 2)
    return (patches + visual.positional_embedding[1:]).std(-1).mean().item()


def see(model: Blip2Model, pictures: Tensor) -> Tensor:
    """What the queries write down of pictures (B, 3, S, S): (B, queries, width of the OPT)."""
    tokens = model.vision_model(pictures).last_hidden_state
    queries = model.query_tokens.expand(len(pictures), -1, -1)
    return model.language_projection(model.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state)


def read_facts(model: Blip2Model, facts: Tensor) -> Tensor:
    """Sums of the embeddings of words (B, places, words), (B, places, width of the OPT)."""
    there = (facts != NO_WORD)[..., None]
    return (model.get_input_embeddings()(facts.clamp(min=0)) * there).sum(2)


def token_logits(model: Blip2Model, prefix: Tensor, ids: Tensor, where: Tensor) -> Tensor:
    """Logits that predict the chosen tokens, (n, V).

    Args:
        prefix: What the texts are about, (B, P, width of the OPT).
        ids: Texts, (B, T, L); each sees the prefix and itself.
        where: Tokens to predict, (B, T, L) bool.
    """
    size, n_texts, length = ids.shape
    positions, mask = isolate_texts(prefix.shape[1], n_texts, length)
    x = torch.cat([prefix, model.get_input_embeddings()(ids.flatten(1))], dim=1)
    language = model.language_model
    hidden = language.model(
        inputs_embeds=x, attention_mask=mask.expand(size, -1, -1, -1), position_ids=positions[None].expand(size, -1),
        use_cache=False,
    ).last_hidden_state[:, prefix.shape[1] :]  # fmt: skip
    before = where.flatten(1).roll(-1, dims=1)  # a text never starts with a token to predict
    return language.lm_head(hidden[before])


def text_loss(model: Blip2Model, prefix: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' and captions' tokens."""
    where = labels != -100
    return F.cross_entropy(token_logits(model, prefix, ids, where), labels[where])


@torch.no_grad()
def evaluate(model: Blip2Model, batches: Batches, n_scenes: int, *, source: str = "pictures") -> dict[str, float]:
    """Share of answers whose every token is the likeliest, in percent, per question type and over all but style.

    Args:
        source: What is shown: `pictures`, `facts`, or `nothing`, black pictures: what the question alone gives away.
    """
    model.eval()
    right: dict[str, list[bool]] = {}
    rng = np.random.default_rng(0)
    for first in range(0, n_scenes, 50):
        picks, ids, labels, types = batches.held_out(first, 50)
        if source == "facts":
            prefix = read_facts(model, batches.written(picks, rng))
        else:
            prefix = see(model, batches.pictures(picks) * (source == "pictures"))
        where = labels != -100
        hits = torch.ones(where.shape, dtype=torch.bool)
        hits[where] = token_logits(model, prefix, ids, where).argmax(-1) == labels[where]
        for row, kinds in zip(hits.all(-1).tolist(), types, strict=True):
            for hit, kind in zip(row, kinds, strict=True):
                right.setdefault(kind, []).append(hit)
    right.pop("", None)
    model.train()
    asked = [hit for kind, hits in right.items() for hit in hits if kind != "style"]
    return {kind: round(100 * float(np.mean(hits)), 1) for kind, hits in [("all but style", asked), *sorted(right.items())]}


class Lessons:
    """The loss of each phase as a function of the step, and what is reported on the way.

    Args:
        model: To be trained.
        batches: Scenes to learn from.
        held_out: Scenes to report on.
        args: The command line.
    """

    def __init__(self, model: Blip2Model, batches: Batches, held_out: Batches, args: argparse.Namespace) -> None:
        self.model, self.batches, self.held_out, self.args = model, batches, held_out, args
        self.names = PatchNames(model.config.vision_config.hidden_size)
        self._whole_px = batches.large.shape[-1]

    def reading(self, step: int, batch_size: int) -> Tensor:
        """Loss of texts about facts."""
        picks, ids, labels, rng = self.batches.at(step, batch_size, styles=True, stream=0)
        return text_loss(self.model, read_facts(self.model, self.batches.written(picks, rng)), ids, labels)

    def naming(self, step: int) -> Tensor:
        """Loss of what patches show: large objects first, with which the tower learns to name more in as many steps."""
        rng, count = np.random.default_rng((self.batches.seed, step, 2)), 2 * self.args.batch_size
        picks = rng.choice(len(self.batches.large), size=count, replace=False)
        share = step / (ZOOM_SHARE * self.args.naming_steps)
        most = CLOSEST_PX + (self._whole_px - CLOSEST_PX) * min(share, 1.0)
        sides = rng.integers(CLOSEST_PX, int(most) + 1, size=count) if share < 1 else np.full(count, self._whole_px)
        return self.names(self.model.vision_model, *self.batches.closer(picks, sides, rng))[0]

    @torch.no_grad()
    def named(self) -> list[float]:
        """Shares of held-out patches whose object, colour and hour are named, in percent."""
        rng, count = np.random.default_rng(0), min(200, len(self.held_out.large))
        parts = self.held_out.closer(np.arange(count), np.full(count, self._whole_px), rng)
        return self.names(self.model.vision_model, *parts)[1]

    def seeing(self, step: int) -> Tensor:
        """Loss of texts about pictures, and of some about facts."""
        args = self.args
        picks, ids, labels, _ = self.batches.at(step, args.batch_size, styles=False, stream=1)
        loss = text_loss(self.model, see(self.model, self.batches.pictures(picks)), ids, labels)
        return loss + args.reading_share * self.reading(args.reading_steps + step, max(1, args.batch_size // 4))


def train(model: Blip2Model, batches: Batches, held_out: Batches, args: argparse.Namespace) -> None:
    """Run or continue the phases; their states are kept in ``args.work_dir``."""
    lessons, arguments = Lessons(model.train(), batches, held_out, args), identity(args)
    seeing = {
        model.vision_model: args.lr * args.tower_lr, model.qformer: args.lr, model.query_tokens: args.lr,
        model.language_projection: args.lr, model.language_model: args.lr * args.language_lr,
    }  # fmt: skip
    naming = {model.vision_model: args.lr, lessons.names: args.lr}
    phases = (
        ("reading", model, {model.language_model: args.lr}, lambda step: lessons.reading(step, args.batch_size),
         args.reading_steps, lambda: evaluate(model, held_out, 200, source="facts")),
        ("naming", nn.ModuleList([model.vision_model, lessons.names]), naming, lessons.naming,
         args.naming_steps, lessons.named),
        ("seeing", model, seeing, lessons.seeing, args.steps, lambda: evaluate(model, held_out, 200)),
    )  # fmt: skip
    for name, part, rates, loss_at, steps, report in phases:
        run_phase(
            name, part, build_adamw(rates, args.weight_decay), loss_at, Pace(steps, args.warmup_steps, args.save_every),
            state_file=args.work_dir / f"{name}.pt", arguments=arguments, report=report,
        )  # fmt: skip


def save(model: Blip2Model, tokenizer: PreTrainedTokenizerFast, clip: LoadedClip, folder: Path) -> None:
    """Write the folder that transformers reads: fp16 weights, tokenizer, image processor."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessor(
        size={"height": SIDE_PX, "width": SIDE_PX}, image_mean=list(clip.info.mean), image_std=list(clip.info.std)
    ).save_pretrained(folder)
    log.info("%s: %.2f MB", folder, sum(file.stat().st_size for file in folder.iterdir()) / 1e6)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder to write, in transformers' layout")
    add("--work-dir", type=Path, default=ROOT / "output" / "pretrain_tiny_blip2", help="resumable state")
    add("--seed", type=int, default=1)
    add("--reading-steps", type=int, default=1000, help="steps of the language model alone")
    add("--naming-steps", type=int, default=1800, help="steps of the vision tower alone, of twice as many scenes")
    add("--steps", type=int, default=2400, help="steps with pictures and texts")
    add("--batch-size", type=int, default=32, help="scenes per step")
    add("--n-texts", type=int, default=6, help="questions and captions per scene")
    add("--n-scenes", type=int, default=16000, help="scenes drawn in advance")
    add("--vision-blocks", type=int, default=4)
    add("--qformer-layers", type=int, default=4)
    add("--qformer-width", type=int, default=96)
    add("--queries", type=int, default=8)
    add("--llm-layers", type=int, default=4)
    add("--width", type=int, default=128, help="of the language model")
    add("--lr", type=float, default=1.5e-3)
    add("--tower-lr", type=float, default=0.4, help="times --lr, for the vision tower")
    add("--language-lr", type=float, default=0.3, help="times --lr, for the language model while it learns from pictures")
    add("--reading-share", type=float, default=0.3, help="weight of the facts' loss beside the pictures'")
    add("--weight-decay", type=float, default=0.05)
    add("--warmup-steps", type=int, default=100)
    add("--save-every", type=int, default=250, help="steps between saved states")
    return parser.parse_args(arguments)


def main() -> None:
    """Train, report held-out accuracy with and without seeing the pictures, write the folder."""
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    clip = load_clip("tiny12")
    tokenizer = build_word_tokenizer([*all_words(), *fact_words(), PROMPT.format(question="?"), "\n"])
    model = build_blip2(args, tokenizer, clip)
    log.info("%s numbers to train, %d words", f"{sum(p.numel() for p in model.parameters()):,}", len(tokenizer))
    parts = ((args.n_scenes, SCENE_SEED + args.seed, "train"), (400, HELD_OUT_SEED, "test"))
    batches, held_out = (
        Batches(tokenizer, clip, draw_worlds(count, seed, split), seed, n_texts=args.n_texts, n_queries=args.queries)
        for count, seed, split in parts
    )
    log.info("scenes drawn")
    train(model, batches, held_out, args)
    for source in ("pictures", "facts", "nothing"):
        log.info("held-out accuracy, %s: %s", source, evaluate(model, held_out, 400, source=source))
    save(model, tokenizer, clip, args.output)


if __name__ == "__main__":
    main()
