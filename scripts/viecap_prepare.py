"""Compute what ViECap needs once, before a training or a test: entities, text vectors, image vectors, vocabulary.

    python scripts/viecap_prepare.py all --config-file configs/trainers/viecap/coco.yaml \\
        --dataset-config-file configs/datasets/coco_caption.yaml --root DATA
    python scripts/viecap_prepare.py texts --config-file F --dataset-config-file F --root DATA \\
        TRAINER.VIECAP.STORE_DIR stores/coco

entities: nouns of the training captions; texts: the caption store, entities included; images: vectors of the val images that a
training validates on, and of all test images; vocabulary: vectors of the names that images are compared with. What is there
already, below output/cache or in TRAINER.VIECAP.STORE_DIR, is read and checked. A training does by itself what is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from functools import cached_property

import torch
from ahead_of_run import add_run_flags, build_run_cfg, run_command
from dassl.data.datasets import build_dataset
from yacs.config import CfgNode

from trainers.viecap import checks, prepare
from trainers.viecap.clip_source import ClipSource
from trainers.viecap.corpus import Corpus
from trainers.viecap.data import distinct_images
from trainers.viecap.caption_store.training_captions import problems_with_items


class Preparation:
    """What is computed for one configuration.

    Args:
        cfg: Full config.
    """

    def __init__(self, cfg: CfgNode) -> None:
        with contextlib.redirect_stdout(sys.stderr):  # the engine's lines; ours are the results
            self.data = build_dataset(cfg)
        self.cfg, self.node = cfg, cfg.TRAINER.VIECAP
        problems = problems_with_items([*self.data.train_x, *(self.data.val or []), *(self.data.test or [])], cfg.DATASET.NAME)
        if problems:
            raise ValueError("\n".join(problems))
        device = "cuda" if cfg.USE_CUDA and torch.cuda.is_available() else "cpu"
        self.clip = ClipSource(cfg.MODEL.BACKBONE.NAME, device)

    @property
    def parts(self) -> list[str]:
        """What there is to compute: nothing of captions for a data set that is only tested on."""
        return [part for part in PARTS if self.data.train_x or part in ("images", "vocabulary")]

    @cached_property
    def corpus(self) -> Corpus:
        """Captions of the training split.

        Raises:
            ValueError: If there are none.
        """
        batch_size = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        corpus = Corpus(self.data.train_x, self.node, seed=self.cfg.SEED, batch_size=batch_size, clip=self.clip)
        if not len(corpus.captions):
            raise ValueError(f"DATASET.NAME {self.cfg.DATASET.NAME} has no training captions; expected a data set with "
                             "them, e.g. CaptionFiles, or images or vocabulary alone")  # fmt: skip
        return corpus

    def entities(self) -> str:
        """Extract the nouns of all captions."""
        table = self.corpus.find_nouns()
        return f"{len(self.corpus.captions)} captions with {len(table.nouns)} nouns, {len(table.names)} different ones"

    def texts(self) -> str:
        """Build the caption store."""
        from trainers.viecap.network.language_model import load_tokenizer

        store = self.corpus.open_store(load_tokenizer(self.node.LANGUAGE_MODEL))
        width = "no vectors" if store.features is None else f"vectors of width {store.features.shape[1]}"
        return f"{len(store)} captions, {len(store.tokens)} tokens, {width}"

    def images(self) -> str:
        """Encode the images of val, as far as a training validates on them, and of test."""
        limit, val = self.node.EVAL.VAL_LIMIT, self.data.val or []
        counts = []
        for split, items in (("val", val[:limit] if limit >= 0 else val), ("test", self.data.test or [])):
            files = distinct_images(items)
            if files:
                loading = self.cfg.DATALOADER
                prepare.prepare_images(
                    list(files.values()), list(files), split, clip=self.clip, cache_dir=prepare.CACHE_DIR,
                    batch=loading.TEST.BATCH_SIZE, workers=loading.NUM_WORKERS,
                )  # fmt: skip
            counts.append(f"{len(files)} {split}")
        return f"{', '.join(counts)} images"

    def vocabulary(self) -> str:
        """Encode the names that images are compared with."""
        node = self.node
        if not node.USING_HARD_PROMPT:
            return "none: TRAINER.VIECAP.USING_HARD_PROMPT is False"
        name = node.NAME_OF_ENTITIES_TEXT
        nouns = self.corpus.find_nouns().count(self.corpus.rows) if name == "corpus" else None
        vocabulary = prepare.prepare_vocabulary(
            name, node.PATH_OF_ENTITIES_TEXT, clip=self.clip, ensemble=node.PROMPT_ENSEMBLE, corpus_nouns=nouns,
            single_word=node.SINGLE_WORD_ENTITIES, cache_dir=prepare.CACHE_DIR,
        )  # fmt: skip
        return f"{name}, {len(vocabulary.names)} names"


PARTS: dict[str, Callable[[Preparation], str]] = {
    "entities": Preparation.entities,
    "texts": Preparation.texts,
    "images": Preparation.images,
    "vocabulary": Preparation.vocabulary,
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "all"], help="what to compute")
    add_run_flags(parser)
    return parser.parse_intermixed_args(arguments)


def build_cfg(args: argparse.Namespace) -> CfgNode:
    """Return the configuration that train.py would have.

    Raises:
        ValueError: If it cannot work (lists every problem).
    """
    cfg = build_run_cfg(args, "ViECap")
    problems = checks.find_problems(cfg)
    if problems:
        raise ValueError("\n  ".join([f"{len(problems)} problem(s) in the configuration:", *problems]))
    return cfg


def main(arguments: list[str] | None = None) -> None:
    """Run one command line."""
    args = parse_args(arguments)

    def compute() -> None:
        preparation = Preparation(build_cfg(args))
        for part in preparation.parts if args.part == "all" else (args.part,):
            print(f"{part}: {PARTS[part](preparation)}")

    run_command(compute)


if __name__ == "__main__":
    main()
