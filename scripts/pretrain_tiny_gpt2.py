"""Pre-train the miniature language model ``tiny_gpt2`` on the sentences of the miniature world.

    python scripts/pretrain_tiny_gpt2.py --output trainers/viecap/assets/tiny_gpt2

It plays the finished GPT-2 of which ``ViECap`` starts: it knows the world's words and how they follow one another, and no
picture. Byte-level BPE and packed documents between end-of-text tokens, as GPT-2 was trained; a document is what can be said of
one scene, in random order. Scenes are drawn as facts, never painted. Every batch is a function of (seed, step): a run that is
stopped and started again gives the weights of one that was not.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pretraining import ROOT, Pace, identity, run_phase
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from datasets.mini_scenes_generator import COLOURS, OBJECT_NAMES, STYLES, caption_scene

log = logging.getLogger("pretrain")
END = "<|endoftext|>"
TEXT_SEED, HELD_OUT_SEED = 23_000_000, 29_000_000
SIDE_PX = 96
N_POSITIONS = 128
HELD_OUT_DOCUMENTS = 1000
PROMPT_WORDS = "There are something in image."  # what ViECap's prompts are made of besides object names


def draw_document(rng: np.random.Generator) -> list[str]:
    """Draw a scene of one to three objects and say everything that the caption grammar says of it, in random order."""
    colours = list(rng.permutation(list(COLOURS)))
    main, free = colours[0], colours[2:]  # objects never have one of the background's two colours
    objects = []
    for _ in range(int(rng.integers(1, 4))):
        corner = rng.integers(0, SIDE_PX // 2, size=2)
        box = (int(corner[0]), int(corner[1]), int(corner[0]) + SIDE_PX // 3, int(corner[1]) + SIDE_PX // 3)
        objects.append((str(rng.choice(OBJECT_NAMES)), str(rng.choice(free)), box))
    captions = caption_scene(objects, str(rng.choice(STYLES)), str(main), rng)
    return [captions[k][0].upper() + captions[k][1:] for k in rng.permutation(len(captions))]


def draw_documents(n: int, seed: int) -> list[str]:
    """Draw documents, each from a seed of its own."""
    return [" ".join(draw_document(np.random.default_rng(seed + index))) for index in range(n)]


def build_tokenizer(documents: Sequence[str], n_entries: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer (GPT-2's kind); it can write every text, and knows these documents' words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner = trainers.BpeTrainer(vocab_size=n_entries, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*documents, PROMPT_WORDS], learner)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END, clean_up_tokenization_spaces=False,
        model_max_length=N_POSITIONS,
    )  # fmt: skip


def build_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Build a GPT-2 with random weights."""
    torch.manual_seed(args.seed)
    end = tokenizer.eos_token_id
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_positions=N_POSITIONS, n_embd=args.width, n_layer=args.layers, n_head=args.heads,
        bos_token_id=end, eos_token_id=end,
    ))  # fmt: skip


class Blocks:
    """Blocks of packed documents as a function of the step.

    Args:
        tokenizer: Of the documents.
        documents: Joined by end-of-text tokens and cut into blocks of `N_POSITIONS`.
        seed: Of the order.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, documents: Sequence[str], seed: int) -> None:
        self.seed, self._end = seed, tokenizer.eos_token_id
        encoded = tokenizer(list(documents), add_special_tokens=False)["input_ids"]
        stream = torch.tensor([token for ids in encoded for token in (self._end, *ids)])
        self.stream, self.n_places = stream, len(stream) - N_POSITIONS

    def at(self, step: int, batch_size: int) -> Tensor:
        """Token ids (B, N_POSITIONS) from random places of the stream."""
        first = np.random.default_rng((self.seed, step)).integers(self.n_places, size=batch_size)
        return self.stream[torch.from_numpy(first)[:, None] + torch.arange(N_POSITIONS)]


@torch.no_grad()
def evaluate(model: GPT2LMHeadModel, blocks: Blocks) -> float:
    """Mean loss per token of held-out documents, nats."""
    model.eval()
    losses = [model(input_ids=ids, labels=ids).loss.item() for ids in (blocks.at(step, 32) for step in range(4))]
    model.train()
    return float(np.mean(losses))


def train(model: GPT2LMHeadModel, blocks: Blocks, held_out: Blocks, args: argparse.Namespace) -> None:
    """Run or continue the pre-training; the state is kept in ``args.work_dir``."""
    groups = [{"params": list(model.train().parameters()), "base": args.lr}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=args.weight_decay)

    def loss_at(step: int) -> Tensor:
        torch.manual_seed(args.seed * 1_000_003 + step)  # dropout, whatever step the run was resumed at
        ids = blocks.at(step, args.batch_size)
        return model(input_ids=ids, labels=ids).loss

    run_phase(
        "sentences", model, optimizer, loss_at, Pace(args.steps, args.warmup_steps, args.save_every),
        state_file=args.work_dir / "state.pt", arguments=identity(args), report=lambda: evaluate(model, held_out),
    )  # fmt: skip


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder that transformers reads, weights in fp16."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    log.info("%s: %.2f MB", folder, sum(file.stat().st_size for file in folder.iterdir()) / 1e6)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder to write, in transformers' layout")
    add("--work-dir", type=Path, default=ROOT / "output" / "pretrain_tiny_gpt2", help="resumable state")
    add("--seed", type=int, default=1)
    add("--steps", type=int, default=1500)
    add("--batch-size", type=int, default=32, help=f"blocks of {N_POSITIONS} tokens per step")
    add("--n-documents", type=int, default=40000, help="scenes drawn in advance")
    add("--n-entries", type=int, default=512, help="entries of the tokenizer")
    add("--layers", type=int, default=3)
    add("--width", type=int, default=128)
    add("--heads", type=int, default=4)
    add("--lr", type=float, default=3e-3)
    add("--weight-decay", type=float, default=0.01)
    add("--warmup-steps", type=int, default=100)
    add("--save-every", type=int, default=250, help="steps between saved states")
    return parser.parse_args()


def main() -> None:
    """Train, report the held-out loss, write the folder."""
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    documents = draw_documents(args.n_documents, TEXT_SEED + args.seed)
    tokenizer = build_tokenizer(documents, args.n_entries)
    model = build_model(args, tokenizer)
    blocks = Blocks(tokenizer, documents, args.seed)
    held_out = Blocks(tokenizer, draw_documents(HELD_OUT_DOCUMENTS, HELD_OUT_SEED), args.seed)
    log.info(
        "%s numbers to train, %d tokenizer entries, %s tokens",
        f"{sum(p.numel() for p in model.parameters()):,}", len(tokenizer), f"{len(blocks.stream):,}",
    )  # fmt: skip
    train(model, blocks, held_out, args)
    save(model, tokenizer, args.output)


if __name__ == "__main__":
    main()
