"""Pre-train the miniature LLaVA ``tiny_llava`` on scenes of the miniature world, with stock LLaVA's token order.

    python scripts/pretrain_tiny_llava.py --output trainers/bgobj_llava/assets/tiny_llava

It plays the finished LLaVA of which ``BgObjLLaVA`` starts, so nothing of the split is known here: transformers' own modules,
whole pictures, tokens in raster order. The vision tower starts as the first blocks of ``tiny12``, its position table
interpolated to 96 pixels, and is trained along. Scenes are drawn from seeds that no data set uses, on textures of the
training split, with handwritten digits of its writers. All questions about a scene share one pass: each attends to the
picture and to itself, which equals asking them one by one. Every batch is a function of (seed, step): a run that is stopped
and started again gives the weights of one that was not.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pretraining import ROOT, Pace, build_adamw, draw_worlds, identity, interpolate_table, isolate_texts, run_phase
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from clip_ext.loader import LoadedClip, load_clip
from datasets.mini_scenes_generator import all_words
from trainers.bgobj_llava.model.prompt import PromptEncoder, PromptTemplate
from trainers.bgobj_llava.word_tokenizer import IMAGE, build_word_tokenizer

log = logging.getLogger("pretrain")
SCENE_SEED, HELD_OUT_SEED = 17_000_000, 19_000_000  # far from those of the data sets and of tiny12's pre-training
SIDE_PX = 96
EMBEDDING_ROWS_PER = 64  # rows are a multiple of it, as LLaVA-1.5's are; the rest is room for separators
DESCRIBE = "Describe the picture."


def convert_tower(clip: LoadedClip, depth: int) -> CLIPVisionModel:
    """Return the first `depth` blocks of an open_clip tower as transformers' CLIP tower for pictures of `SIDE_PX`."""
    info, source = clip.info, clip.model.visual
    config = CLIPVisionConfig(
        image_size=SIDE_PX,
        patch_size=info.patch_size,
        hidden_size=info.width,
        intermediate_size=source.transformer.resblocks[0].mlp.c_fc.out_features,
        num_hidden_layers=depth,
        num_attention_heads=info.heads,
        projection_dim=info.embed_dim,
        hidden_act="gelu",
    )
    tower = CLIPVisionModel(config)
    tower.load_state_dict(dict(convert_weights(source.state_dict(), depth, SIDE_PX // info.patch_size)), strict=False)
    return tower


def convert_weights(state: dict[str, Tensor], depth: int, grid: int) -> list[tuple[str, Tensor]]:
    """Rename open_clip's entries to transformers' names; the position table is interpolated to `grid` patches a side."""
    entries = [
        ("embeddings.class_embedding", state["class_embedding"]),
        ("embeddings.patch_embedding.weight", state["conv1.weight"]),
        ("embeddings.position_embedding.weight", interpolate_table(state["positional_embedding"], grid)),
    ]
    for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        entries += [(f"{theirs}.{part}", state[f"{ours}.{part}"]) for part in ("weight", "bias")]
    for number in range(depth):
        source, target = f"transformer.resblocks.{number}", f"encoder.layers.{number}"
        for part in ("weight", "bias"):
            joined = state[f"{source}.attn.in_proj_{part}"].chunk(3)
            entries += [(f"{target}.self_attn.{n}_proj.{part}", value) for n, value in zip("qkv", joined, strict=True)]
            entries += [
                (f"{target}.{theirs}.{part}", state[f"{source}.{ours}.{part}"])
                for ours, theirs in (
                    ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
                )
            ]  # fmt: skip
    return entries


def build_llava(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast, clip: LoadedClip) -> LlavaForConditionalGeneration:
    """Return the model to train: tiny12's first blocks, a random projector, a random Llama."""
    tower = convert_tower(clip, args.vision_blocks)
    rows = -(-(len(tokenizer) + 8) // EMBEDDING_ROWS_PER) * EMBEDDING_ROWS_PER
    text = LlamaConfig(
        vocab_size=rows, hidden_size=args.width, intermediate_size=round(args.width * 8 / 3 / 32) * 32,
        num_hidden_layers=args.llm_layers, num_attention_heads=args.width // 32, num_key_value_heads=args.width // 32,
        max_position_embeddings=2048, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=tower.config, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE_PX // tower.config.patch_size) ** 2, vision_feature_layer=-2,
        vision_feature_select_strategy="default", tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(args.seed)
    model = LlavaForConditionalGeneration(config)
    missing, unexpected = model.model.vision_tower.load_state_dict(tower.state_dict(), strict=False)
    if missing or unexpected:
        raise RuntimeError(f"the tower does not fit: missing {missing}, unexpected {unexpected}")
    return model


class Batches:
    """Batches of pictures with several questions each, as a function of the step.

    Args:
        n_scenes: Scenes drawn in advance.
        seed: First of their consecutive seeds.
        split: Whose textures to show, `train` or `test`.
        n_texts: Questions and captions per picture and step.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, clip: LoadedClip, n_scenes: int, seed: int, split: str, n_texts: int
    ) -> None:
        self.seed, self.n_texts = seed, n_texts
        worlds = draw_worlds(n_scenes, seed, split)
        self.images = torch.from_numpy(np.stack([world.scene.image for world in worlds])).permute(0, 3, 1, 2)
        self.mean, self.std = (torch.tensor(part).view(1, 3, 1, 1) for part in (clip.info.mean, clip.info.std))
        # Few different sentences make up the world, so that each is encoded once.
        asked = functools.lru_cache(None)(PromptEncoder(tokenizer, PromptTemplate()).encode)
        described = functools.lru_cache(None)(PromptEncoder(tokenizer, PromptTemplate(instruction="")).encode)
        self.prefix = described(((DESCRIBE, None),)).prefix
        self.types = [[q.question_type for q in world.questions] for world in worlds]
        self.texts = [[asked(((q.question, q.answer),)) for q in world.questions] for world in worlds]
        self.captions = [[described(((DESCRIBE, text),)) for text in world.scene.captions] for world in worlds]
        self.pad = tokenizer.pad_token_id

    def normalise(self, picks: np.ndarray) -> Tensor:
        """Pictures of these scenes, (B, 3, S, S)."""
        return (self.images[picks].float() / 255 - self.mean) / self.std

    def at(self, step: int, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (B, 3, S, S), texts (B, T, L) and their labels, -100 where nothing is to be learned."""
        rng = np.random.default_rng((self.seed, step))
        picks = rng.choice(len(self.texts), size=batch_size, replace=False)
        chosen = []
        for pick in picks:
            captions = self.captions[pick]
            row = [captions[rng.integers(len(captions))]]
            questions = self.texts[pick]
            order = rng.permutation(len(questions))
            row += [questions[order[k % len(order)]] for k in range(self.n_texts - 1)]
            chosen.append(row)
        return self.normalise(picks), *self._pad(chosen)

    def _pad(self, rows: list[list]) -> tuple[Tensor, Tensor]:
        length = max(len(text.rest) for row in rows for text in row)
        shape = (len(rows), len(rows[0]), length)
        ids, labels = torch.full(shape, self.pad), torch.full(shape, -100)
        for i, row in enumerate(rows):
            for k, text in enumerate(row):
                ids[i, k, : len(text.rest)], labels[i, k, : len(text.rest)] = text.rest, text.labels
        return ids, labels

    def held_out(self, first: int, size: int) -> tuple[Tensor, Tensor, Tensor, list[list[str]]]:
        """Pictures with their first `n_texts` questions each, and the questions' types."""
        picks = np.arange(first, first + size)
        rows = [[self.texts[p][k % len(self.texts[p])] for k in range(self.n_texts)] for p in picks]
        types = [[self.types[p][k] if k < len(self.types[p]) else "" for k in range(self.n_texts)] for p in picks]
        return self.normalise(picks), *self._pad(rows), types


def token_logits(model: LlavaForConditionalGeneration, images: Tensor, prefix: Tensor, ids: Tensor, where: Tensor) -> Tensor:
    """Logits that predict the chosen tokens, (n, V).

    Args:
        images: (B, 3, S, S).
        prefix: Token ids before the picture, (n0,).
        ids: Texts behind the picture, (B, T, L); each sees the picture and itself.
        where: Tokens to predict, (B, T, L) bool.
    """
    llava, (size, n_texts, length) = model.model, ids.shape
    features = torch.stack(list(llava.get_image_features(pixel_values=images).pooler_output))
    embed = llava.get_input_embeddings()
    start = embed(prefix).expand(size, -1, -1)
    x = torch.cat([start, features, embed(ids.flatten(1))], dim=1)
    n_prefix = start.shape[1] + features.shape[1]
    positions, mask = isolate_texts(n_prefix, n_texts, length)
    hidden = llava.language_model(
        inputs_embeds=x, attention_mask=mask.expand(size, -1, -1, -1), position_ids=positions[None].expand(size, -1), use_cache=False
    ).last_hidden_state[:, n_prefix:]
    before = where.flatten(1).roll(-1, dims=1)  # a text never starts with a token to predict
    return model.lm_head(hidden[before])


def compute_loss(model: LlavaForConditionalGeneration, prefix: Tensor, images: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the answer tokens."""
    where = labels != -100
    return F.cross_entropy(token_logits(model, images, prefix, ids, where), labels[where])


@torch.no_grad()
def evaluate(model: LlavaForConditionalGeneration, batches: Batches, n_scenes: int, *, blind: bool = False) -> dict[str, float]:
    """Share of answers whose every token is the likeliest, in percent, per question type and over all.

    Args:
        blind: Show black pictures instead: what the question alone gives away.
    """
    model.eval()
    right: dict[str, list[bool]] = {}
    for first in range(0, n_scenes, 50):
        images, ids, labels, types = batches.held_out(first, 50)
        where = labels != -100
        logits = token_logits(model, images * 0 if blind else images, batches.prefix, ids, where)
        hits = torch.ones(where.shape, dtype=torch.bool)
        hits[where] = logits.argmax(-1) == labels[where]
        for row, kinds in zip(hits.all(-1).tolist(), types, strict=True):
            for hit, kind in zip(row, kinds, strict=True):
                right.setdefault(kind, []).append(hit)
    right.pop("", None)
    model.train()
    everything = [hit for hits in right.values() for hit in hits]
    return {kind: round(100 * float(np.mean(hits)), 1) for kind, hits in [("all", everything), *sorted(right.items())]}


def train(model: LlavaForConditionalGeneration, batches: Batches, held_out: Batches, args: argparse.Namespace) -> None:
    """Run or continue the pre-training; the state is kept in ``args.work_dir``."""
    # The tower's rate is lower, as it knows pictures already.
    llava = model.model
    rates = {llava.vision_tower: args.lr * args.tower_lr}
    rates |= {part: args.lr for part in (llava.multi_modal_projector, llava.language_model, model.lm_head)}
    run_phase(
        "pictures", model.train(), build_adamw(rates, args.weight_decay),
        lambda step: compute_loss(model, batches.prefix, *batches.at(step, args.batch_size)),
        Pace(args.steps, args.warmup_steps, args.save_every), state_file=args.work_dir / "state.pt", arguments=identity(args),
        report=lambda: evaluate(model, held_out, 200),
    )  # fmt: skip


def save(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, clip: LoadedClip, folder: Path) -> None:
    """Write the folder that transformers reads: fp16 weights, tokenizer, image processor."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": SIDE_PX, "width": SIDE_PX}
    CLIPImageProcessor(
        size={"shortest_edge": SIDE_PX}, crop_size=size, image_mean=list(clip.info.mean), image_std=list(clip.info.std)
    ).save_pretrained(folder)
    log.info("%s: %.2f MB", folder, sum(file.stat().st_size for file in folder.iterdir()) / 1e6)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder to write, in transformers' layout")
    add("--work-dir", type=Path, default=ROOT / "output" / "pretrain_tiny_llava", help="resumable state")
    add("--seed", type=int, default=1)
    add("--steps", type=int, default=2600)
    add("--batch-size", type=int, default=32, help="pictures per step")
    add("--n-texts", type=int, default=6, help="questions and captions per picture")
    add("--n-scenes", type=int, default=20000, help="scenes drawn in advance")
    add("--vision-blocks", type=int, default=8)
    add("--llm-layers", type=int, default=3)
    add("--width", type=int, default=96, help="of the language model")
    add("--lr", type=float, default=1.5e-3)
    add("--tower-lr", type=float, default=0.3, help="times --lr, for the vision tower")
    add("--weight-decay", type=float, default=0.05)
    add("--warmup-steps", type=int, default=100)
    add("--save-every", type=int, default=250, help="steps between saved states")
    return parser.parse_args()


def main() -> None:
    """Train, report held-out accuracy with and without seeing the pictures, write the folder."""
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    clip = load_clip("tiny12")
    tokenizer = build_word_tokenizer([*all_words(), PromptTemplate().system, PromptTemplate().instruction, DESCRIBE])
    model = build_llava(args, tokenizer, clip)
    log.info("%s numbers to train, %d words", f"{sum(p.numel() for p in model.parameters()):,}", len(tokenizer))
    batches = Batches(tokenizer, clip, args.n_scenes, SCENE_SEED + args.seed, "train", args.n_texts)
    held_out = Batches(tokenizer, clip, 500, HELD_OUT_SEED, "test", args.n_texts)
    train(model, batches, held_out, args)
    log.info("held-out accuracy %s", evaluate(model, held_out, 500))
    log.info("the same without seeing the pictures %s", evaluate(model, held_out, 500, blind=True))
    save(model, tokenizer, clip, args.output)


if __name__ == "__main__":
    main()
