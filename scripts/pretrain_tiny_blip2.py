"""Pre-train the miniature BLIP-2 ``tiny_blip2`` on scenes of the miniature world, without ever asking for their style.

    python scripts/pretrain_tiny_blip2.py --output trainers/gated_blip2/assets/tiny_blip2

It plays the finished BLIP-2 of which ``GatedBLIP2`` starts. First its OPT learns to read: the facts about a scene, style
included, as sums of word embeddings in as many places as there will be queries; and to answer and describe from them. Then
vision tower, Q-Former, queries and projection learn to write such facts down from pictures, with questions and captions of
which none asks for or names the style; the OPT goes on learning, from pictures and from facts. So the language model can say
what it has no way of seeing. The vision tower starts as the first blocks of ``tiny12``. Scenes are drawn from seeds that no
data set uses, on textures of the training split, with handwritten digits of its writers.
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
from PIL import Image
from pretraining import ROOT, Pace, build_adamw, draw_worlds, identity, interpolate_table, isolate_texts, run_phase
from torch import Tensor
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
from datasets.mini_scenes_generator import WorldScene, all_words, names_style
from trainers.bgobj_llava.word_tokenizer import IMAGE, build_word_tokenizer

log = logging.getLogger("pretrain")
Blip2Model = Blip2ForConditionalGeneration
SCENE_SEED, HELD_OUT_SEED = 23_000_000, 29_000_000  # far from those of the data sets
PROMPT = "Question: {question} Short answer:"
SIDE_PX, N_PLACES = 64, 12
NO_WORD = -1
FACTS_PER_QUERY = 6


def place_words(box: tuple[int, int, int, int], size_px: int) -> list[str]:
    """Words for the centre of a box: one of `N_PLACES` columns and rows."""
    x, y = (box[0] + box[2]) / 2 / size_px, (box[1] + box[3]) / 2 / size_px
    return [f"{axis}{min(int(value * N_PLACES), N_PLACES - 1)}" for axis, value in (("x", x), ("y", y))]


def scene_facts(world: WorldScene) -> list[list[str]]:
    """Words about a scene, in groups that belong together; the last group is the background's."""
    scene, size_px = world.scene, world.scene.image.shape[0]
    facts = []
    for thing in scene.objects:
        hour = [f"hour{thing.time[0]}"] if thing.time else []
        facts.append([thing.colour, *thing.name.split(), *place_words(thing.box, size_px), *hour])
    return [*facts, ["background", scene.background.main_colour, scene.background.style]]


def fact_words() -> list[str]:
    """Words of the facts that no sentence has."""
    places = [f"{axis}{number}" for axis in "xy" for number in range(N_PLACES)]
    return ["background", *places, *(f"hour{hour}" for hour in range(1, 13))]


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
    torch.nn.init.normal_(model.query_tokens, std=0.5)
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


def spread_facts(groups: list[list[int]], n_places: int, rng: np.random.Generator) -> list[list[int]]:
    """Return the words at each place: a group, or half the time each of an object's two halves, has one of its own."""
    found: list[list[int]] = [[] for _ in range(n_places)]
    places = rng.permutation(n_places)
    for number, words in enumerate(groups):
        is_object = number + 1 < len(groups)
        split = 2 if is_object and rng.random() < 0.5 else len(words)
        found[places[2 * number % n_places]] += words[:split]
        found[places[(2 * number + 1) % n_places]] += words[split:]
    return found


class Batches:
    """Batches of scenes, as pictures or as facts, with several texts each; a function of the step.

    Args:
        worlds: Scenes, drawn in advance.
        seed: Of the draws among them.
        n_texts: Questions and captions per scene and step.
        n_queries: Places for facts.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, clip: LoadedClip, worlds: list[WorldScene], seed: int, *,
        n_texts: int, n_queries: int,
    ) -> None:  # fmt: skip
        self.seed, self.n_texts, self.n_queries, self.pad = seed, n_texts, n_queries, tokenizer.pad_token_id
        small = [Image.fromarray(world.scene.image).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC) for world in worlds]
        self.images = torch.from_numpy(np.stack([np.asarray(image) for image in small])).permute(0, 3, 1, 2)
        self.mean, self.std = (torch.tensor(part).view(1, 3, 1, 1) for part in (clip.info.mean, clip.info.std))
        plain = functools.partial(tokenizer, add_special_tokens=False)
        start = [tokenizer.bos_token_id]

        # Few different sentences make up the world, so that each is encoded once.
        @functools.lru_cache(None)
        def asked(question: str, answer: str) -> tuple[list[int], int]:
            prompt = start + plain(PROMPT.format(question=question)).input_ids
            return prompt + plain(f"{answer}\n").input_ids, len(prompt)

        @functools.lru_cache(None)
        def told(caption: str) -> tuple[list[int], int]:
            return start + plain(f"{caption}\n").input_ids, len(start)

        self.types = [[q.question_type for q in world.questions] for world in worlds]
        self.questions = [[asked(q.question, q.answer) for q in world.questions] for world in worlds]
        self.styled = [[q.names_style for q in world.questions] for world in worlds]
        self.captions = [[told(text) for text in world.scene.captions] for world in worlds]
        self.plain_captions = [[told(text) for text in w.scene.captions if not names_style(text)] for w in worlds]
        self.facts = [[[tokenizer.convert_tokens_to_ids(word) for word in group] for group in scene_facts(w)] for w in worlds]

    def pictures(self, picks: np.ndarray) -> Tensor:
        """Pictures of these scenes, normalised, (B, 3, S, S)."""
        return (self.images[picks].float() / 255 - self.mean) / self.std

    def written(self, picks: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Facts of these scenes in random places, as words to be added up, (B, places, words); `NO_WORD` fills up."""
        ids = torch.full((len(picks), self.n_queries, FACTS_PER_QUERY), NO_WORD)
        for row, pick in enumerate(picks):
            for place, words in enumerate(spread_facts(self.facts[pick], self.n_queries, rng)):
                ids[row, place, : len(words)] = torch.tensor(words[:FACTS_PER_QUERY])
        return ids

    def at(
        self, step: int, batch_size: int, *, styles: bool, stream: int
    ) -> tuple[np.ndarray, Tensor, Tensor, np.random.Generator]:
        """Scenes, texts (B, T, L), and labels, -100 where nothing is to be learned; and the generator for what follows.

        Args:
            styles: Whether texts may ask for or name the style.
            stream: Tells the streams of one step apart.
        """
        rng = np.random.default_rng((self.seed, step, stream))
        picks = rng.choice(len(self.questions), size=batch_size, replace=False)
        chosen = []
        for pick in picks:
            captions = self.captions[pick] if styles else self.plain_captions[pick]
            row = [captions[rng.integers(len(captions))]]
            questions = [q for q, styled in zip(self.questions[pick], self.styled[pick], strict=True) if styles or not styled]
            order = rng.permutation(len(questions))
            row += [questions[order[k % len(order)]] for k in range(self.n_texts - 1)]
            chosen.append(row)
        return picks, *self._pad(chosen), rng

    def _pad(self, rows: list[list[tuple[list[int], int]]]) -> tuple[Tensor, Tensor]:
        length = max(len(ids) for row in rows for ids, _ in row)
        shape = (len(rows), len(rows[0]), length)
        padded, labels = torch.full(shape, self.pad), torch.full(shape, -100)
        for i, row in enumerate(rows):
            for k, (ids, n_prompt) in enumerate(row):
                padded[i, k, : len(ids)] = torch.tensor(ids)
                labels[i, k, n_prompt : len(ids)] = torch.tensor(ids[n_prompt:])
        return padded, labels

    def held_out(self, first: int, size: int) -> tuple[np.ndarray, Tensor, Tensor, list[list[str]]]:
        """Scenes with all their questions, styles included, and the questions' types; "" fills up."""
        picks = np.arange(first, first + size)
        most = max(len(self.questions[p]) for p in picks)
        rows = [[self.questions[p][k % len(self.questions[p])] for k in range(most)] for p in picks]
        types = [[self.types[p][k] if k < len(self.types[p]) else "" for k in range(most)] for p in picks]
        return picks, *self._pad(rows), types


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


def train(model: Blip2Model, batches: Batches, held_out: Batches, args: argparse.Namespace) -> None:
    """Run or continue both phases; their states are kept in ``args.work_dir``."""

    def reading_loss(step: int, batch_size: int) -> Tensor:
        picks, ids, labels, rng = batches.at(step, batch_size, styles=True, stream=0)
        return text_loss(model, read_facts(model, batches.written(picks, rng)), ids, labels)

    def seeing_loss(step: int) -> Tensor:
        picks, ids, labels, _ = batches.at(step, args.batch_size, styles=False, stream=1)
        loss = text_loss(model, see(model, batches.pictures(picks)), ids, labels)
        return loss + args.reading_share * reading_loss(args.reading_steps + step, args.batch_size // 4)

    common = {"arguments": identity(args)}
    language = build_adamw({model.language_model: args.lr}, args.weight_decay)
    run_phase(
        "reading", model.train(), language, lambda step: reading_loss(step, args.batch_size),
        Pace(args.reading_steps, args.warmup_steps, args.save_every), state_file=args.work_dir / "reading.pt",
        report=lambda: evaluate(model, held_out, 200, source="facts"), **common,
    )  # fmt: skip
    rates = {
        model.vision_model: args.lr * args.tower_lr, model.qformer: args.lr, model.query_tokens: args.lr,
        model.language_projection: args.lr, model.language_model: args.lr * args.language_lr,
    }  # fmt: skip
    run_phase(
        "seeing", model, build_adamw(rates, args.weight_decay), seeing_loss,
        Pace(args.steps, args.warmup_steps, args.save_every), state_file=args.work_dir / "seeing.pt",
        report=lambda: evaluate(model, held_out, 200), **common,
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
    add("--steps", type=int, default=2600, help="steps with pictures")
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
