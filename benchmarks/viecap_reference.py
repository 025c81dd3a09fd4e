"""ViECap beside a checkout of FeiElysia/ViECap: loss, reading of prepared captions, training steps, and both searches.

    python -m benchmarks.viecap_reference --checkout DIR [--run RUN] [--threads 2]

The checkout is imported where it lies; stand-ins play the packages it names without need (OpenAI's clip, pandas).
Both sides get the same random weights, captions and vectors. The searches describe vectors of the miniature world's captions by
a trained RUN of configs/trainers/viecap/tiny.yaml. Times are wall seconds, medians of interleaved steps.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pickle
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from datasets.mini_scenes_generator import OBJECT_NAMES
from scripts.pretrain_tiny_gpt2 import draw_documents
from trainers.epoch_order import Position
from trainers.viecap.words.entities import NounMap
from trainers.viecap.words.entity_table import EntityTable
from trainers.viecap.caption_store.epoch_plan import BatchShape
from trainers.viecap.network.language_model import load_tokenizer
from trainers.viecap.caption_store.loader import CaptionLoader
from trainers.viecap.storage.loading import load_captioner
from trainers.viecap.network.mapping import MappingNetwork, soft_input
from trainers.viecap.network.model import PrefixCaptioner, PromptLayout
from trainers.viecap.words.prompts import PromptBuilder
from trainers.viecap.storage.reference_weights import rename_reference
from trainers.viecap.words.stop_words import stop_words
from trainers.viecap.caption_store.store import CaptionRow, build_store, open_store
from trainers.viecap.caption_store.training_text import HardPrompts, TrainingText
from trainers.viecap.storage.weights import own_tensors

SEED, D_CLIP, SOFT, MASK, NOISE = 77_000_000, 512, 10, 0.4, 0.016
NAMES = [name for name in OBJECT_NAMES if " " not in name]
KEY = {"captions": "benchmark"}
SMALL = {"n_embd": 64, "n_layer": 2, "n_head": 4}

Row = tuple[list[str], str, Tensor]


def make_rows(count: int, *, most: int = 10) -> list[Row]:
    """Return `count` captions of the miniature world with at most `most` entities and a random vector each."""
    texts: list[str] = []
    while len(texts) < count:
        for document in draw_documents(1000, SEED + len(texts)):
            texts += [f"{text.rstrip('.')}." for text in document.split(". ")]
    vectors = torch.randn(count, D_CLIP, generator=torch.Generator().manual_seed(0)).half()
    words = [text.lower().rstrip(".").replace(",", "").split() for text in texts[:count]]
    entities = [[name for name in NAMES if name in said][:most] for said in words]
    own = [vector.clone() for vector in vectors]  # a view would be pickled with all vectors
    return list(zip(entities, texts[:count], own, strict=True))


class Public:
    """The checkout's data set, model and loss.

    Args:
        checkout: Its folder.
        tokenizer: Of both sides.
        work: Folder for its pickles.
    """

    def __init__(self, checkout: Path, tokenizer: Any, work: Path) -> None:
        for name in ("clip", "pandas"):
            sys.modules.setdefault(name, types.ModuleType(name))
        sys.path.insert(0, str(checkout.resolve()))
        self.data, self.net, self.tools, self.search = (
            importlib.import_module(name) for name in ("CaptionsDataset", "ClipCap", "utils", "search")
        )
        self.tokenizer, self.work = tokenizer, work
        self.data.AutoTokenizer = types.SimpleNamespace(from_pretrained=lambda name: tokenizer)
        with (work / "objects.pickle").open("wb") as file:
            pickle.dump({"objects": {"joint": set(NAMES)}}, file)

    def settings(self, *, disturbed: bool) -> argparse.Namespace:
        """Return the arguments that its classes read."""
        return argparse.Namespace(
            random_mask=disturbed, prob_of_random_mask=MASK, max_num_of_entities=10, prompt_template_length=5,
            continuous_prompt_length=SOFT, using_hard_prompt=True, only_hard_prompt=False, few_shot_ratio=1.0,
            name_of_objects_vocabs="visual_genome_entities", path_of_objects_vocabs=str(self.work / "objects.pickle"),
        )  # fmt: skip

    def read(self, rows: list[Row], *, disturbed: bool) -> tuple[Any, float]:
        """Return its data set of these rows, and the seconds that opening it takes."""
        path = self.work / "captions.pickle"
        with path.open("wb") as file:
            pickle.dump([list(row) for row in rows], file)
        start = time.perf_counter()
        found = self.data.CaptionsDataset("gpt2", 10, True, str(path), False, self.settings(disturbed=disturbed))
        return found, time.perf_counter() - start

    def build(self, config: GPT2Config) -> torch.nn.Module:
        """Return its model with random weights."""
        torch.manual_seed(3)
        self.net.GPT2LMHeadModel = types.SimpleNamespace(from_pretrained=lambda name: GPT2LMHeadModel(config))
        return self.net.ClipCaptionModel(SOFT, 10, D_CLIP, 8, 8, "gpt2", True, False)

    def loss(self, model: torch.nn.Module, batch: Any, *, variance: float) -> tuple[Tensor, int]:
        """Return the summed loss of one of its batches and the caption tokens in it."""
        vectors, ids, labels, masks, lengths = batch
        vectors = F.normalize(vectors.float(), dim=-1)
        logits = model(self.tools.noise_injection(vectors, variance=variance, device="cpu"), ids, lengths, masks).logits
        labels = labels.masked_fill(labels == self.tokenizer.eos_token_id, 0)
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0, reduction="sum")
        return total, int((labels != 0).sum())


def write_rows(rows: list[Row], tokenizer: Any, folder: Path) -> None:
    """Write our store of these rows."""
    vectors = torch.stack([row[2] for row in rows])
    captions = [CaptionRow(text, nouns) for nouns, text, _ in rows]
    build_store(folder, captions, key=KEY, tokenizer=tokenizer, encode_texts=lambda texts: vectors)


def open_rows(folder: Path, tokenizer: Any, batch: int, *, mask: float) -> CaptionLoader:
    """Open our store and return its loader."""
    store, prompts = open_store(folder, KEY), PromptBuilder(tokenizer, 10, 5)
    table = EntityTable(store.noun_names, NounMap(frozenset(NAMES)), prompts)
    text = TrainingText(store, None, HardPrompts(table, 10, mask, prompts.budget))
    return CaptionLoader(
        text, store.features, BatchShape(batch, SOFT), position=lambda: Position(30, 0, 0), device=torch.device("cpu"),
        placement="auto", encode_rows=None,
    )  # fmt: skip


def twin_of(public: torch.nn.Module, config: GPT2Config) -> PrefixCaptioner:
    """Return our model with the weights of theirs."""
    mapping = MappingNetwork(D_CLIP, config.n_embd, prefix_length=SOFT, project_length=10, n_layers=8, n_heads=8)
    model = PrefixCaptioner(GPT2LMHeadModel(config), mapping, PromptLayout(soft_tokens=SOFT))
    state = rename_reference(public.state_dict())
    with torch.no_grad():
        for name, tensor in own_tensors(model).items():
            tensor.copy_(state[name])
    return model


def our_loss(model: PrefixCaptioner, batch: Any, *, variance: float) -> tuple[Tensor, int]:
    """Return the summed loss of one of our batches and the caption tokens in it."""
    noise = torch.Generator().manual_seed(batch.noise_seed) if variance else None
    vectors = soft_input(batch.features, variance=variance, normalise=True, rescale=True, generator=noise)
    found = model.loss(vectors, batch.ids, batch.n_hard, batch.n_caption)
    return found.total, found.n_tokens


def compare_loss(public: Public, work: Path) -> dict[str, float]:
    """Mean loss per token over 400 captions of one entity or none: no mask, noise or dropout."""
    rows, config = make_rows(400, most=1), GPT2Config(**SMALL)
    data, _ = public.read(rows, disturbed=False)
    write_rows(rows, public.tokenizer, work / "loss")
    theirs = public.build(config).eval()
    ours = twin_of(theirs, config).eval()
    with torch.no_grad():
        batches = DataLoader(data, batch_size=20, collate_fn=public.data.collate)
        parts = [public.loss(theirs, batch, variance=0.0) for batch in batches]
        mine = [our_loss(ours, batch, variance=0.0) for batch in open_rows(work / "loss", public.tokenizer, 20, mask=0.0)]
    means = [sum(float(total) for total, _ in side) / sum(count for _, count in side) for side in (parts, mine)]
    return {"public": means[0], "ours": means[1], "relative difference": abs(means[0] - means[1]) / means[0]}


def compare_start(public: Public, work: Path, count: int) -> dict[str, float]:
    """Seconds to open `count` prepared captions; scikit-learn, imported once for its stop words, apart."""
    rows = make_rows(count)
    _, theirs = public.read(rows, disturbed=True)
    write_rows(rows, public.tokenizer, work / "start")
    start = time.perf_counter()
    stop_words()
    words, start = time.perf_counter() - start, time.perf_counter()
    open_rows(work / "start", public.tokenizer, 80, mask=MASK)
    ours = time.perf_counter() - start
    return {"public": theirs, "ours": ours, "ours over public": ours / theirs, "stop words, once": words}


def compare_steps(public: Public, work: Path, *, batch: int, rounds: int) -> dict[str, float]:
    """Seconds per training step of GPT-2 small, the data's part included; the first step of each side does not count."""
    rows, config = make_rows(2000), GPT2Config()
    data, _ = public.read(rows, disturbed=True)
    write_rows(rows, public.tokenizer, work / "steps")
    theirs = public.build(config).train()
    ours = twin_of(theirs, config).train()
    loader = DataLoader(data, batch_size=batch, shuffle=True, drop_last=True, collate_fn=public.data.collate)
    sides = {
        "public": stepper(theirs, iter(loader), lambda each: public.loss(theirs, each, variance=NOISE)),
        "ours": stepper(
            ours, iter(open_rows(work / "steps", public.tokenizer, batch, mask=MASK)),
            lambda each: our_loss(ours, each, variance=NOISE),
        ),
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, step in sides.items():
            times[name].append(step())
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    return medians | {"public over ours": medians["public"] / medians["ours"]}


def stepper(model: torch.nn.Module, batches: Iterator, loss_of: Callable[[Any], tuple[Tensor, int]]) -> Callable[[], float]:
    """Return what learns from the next batch and says how many seconds that took."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, eps=1e-6, weight_decay=0.0)

    def step() -> float:
        start = time.perf_counter()
        total, count = loss_of(next(batches))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


@torch.no_grad()
def compare_search(public: Public, run: Path, mode: str, count: int = 60) -> dict[str, float]:
    """Caption the vectors of captions, one by one as they do and in batches as we do; counts equal captions."""
    loaded = load_captioner(run)
    captioner, model = loaded.captioner, loaded.captioner.model
    captioner.options = replace(captioner.options, mode=mode)
    texts = [row[1] for row in make_rows(count)]
    features = loaded.clip.loaded.model.encode_text(loaded.clip.loaded.tokenizer(texts)).half().float()
    captioner.caption(features[:4])
    start = time.perf_counter()
    ours = [found.caption for found in captioner.caption(features)]
    middle = time.perf_counter()
    vectors, theirs = soft_input(features, normalise=True), []
    for place, ids in enumerate(captioner.hard_prompts(features)[1]):
        prompt = torch.cat([model.mapping(vectors[place : place + 1]), model.embed(torch.tensor([ids]))], dim=1)
        words = {"embeddings": prompt, "tokenizer": captioner.tokenizer, "model": model.language_model}
        words |= {"max_len": captioner.options.max_new_tokens}
        found = public.search.beam_search(**words)[0] if mode == "beam" else public.search.greedy_search(**words)
        theirs.append(found.strip())
    end = time.perf_counter()
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    return {"public": end - middle, "ours": middle - start, "public over ours": (end - middle) / (middle - start),
            "equal captions": equal, "captions": count}  # fmt: skip


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkout", type=Path, required=True, help="clone of FeiElysia/ViECap")
    add("--run", type=Path, help="trained run for the searches; they are left out without one")
    add("--captions", type=int, default=50_000, help="of the start")
    add("--batch", type=int, default=16, help="of a training step")
    add("--rounds", type=int, default=4, help="training steps; 0 = none")
    add("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Compare and show one line of JSON each."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    np.random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        public = Public(args.checkout, load_tokenizer("tiny_gpt2"), work)
        print("start", json.dumps(compare_start(public, work, args.captions)), flush=True)
        print("loss", json.dumps(compare_loss(public, work)), flush=True)
        for mode in ("beam", "greedy") if args.run else ():
            print(mode, json.dumps(compare_search(public, args.run, mode)), flush=True)
        if args.rounds:
            print("steps", json.dumps(compare_steps(public, work, batch=args.batch, rounds=args.rounds)), flush=True)


if __name__ == "__main__":
    main()
