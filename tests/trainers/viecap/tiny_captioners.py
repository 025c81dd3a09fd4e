"""Untrained ViECap runs on disk: a random GPT-2 behind the prompts, and everything that a training leaves for prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny_gpt2s import random_gpt2

from trainers.config import add_trainer_configs
from trainers.viecap import settings
from trainers.viecap.clip_source import ClipSource
from trainers.viecap.network.language_model import describe_config, find_stop_ids
from trainers.viecap.network.model import PrefixCaptioner
from trainers.viecap.storage.artifact import ArtifactFacts, clip_facts, find_artifact, write_artifact
from trainers.viecap.storage.export import Exporter, ExportPlan
from trainers.viecap.storage.loading import build_model, node_of
from trainers.viecap.storage.vocabulary_file import Vocabulary
from trainers.viecap.words.retrieval import embed_vocabulary
from trainers.viecap.words.vocabularies import read_shipped

KEYS = {
    "LANGUAGE_MODEL": "tiny_gpt2", "NUM_LAYERS": 1, "NUM_HEADS": 2, "CLIP_PROJECT_LENGTH": 2, "CONTINUOUS_PROMPT_LENGTH": 3,
    "NAME_OF_ENTITIES_TEXT": "coco_entities", "THRESHOLD": 0.12, "TEMPERATURE": 0.05, "MAX_NEW_TOKENS": 12, "DECODE": "greedy",
    "BEAM_WIDTH": 3,
}  # fmt: skip


def write_run(folder: Path, clip_name: str, *, epochs: int = 2, **keys: Any) -> Path:
    """Write the artefact of a run that trained nothing; its epochs have different random weights.

    Args:
        folder: Run folder.
        clip_name: `MODEL.BACKBONE.NAME`.
        epochs: Exported; the first one is the best.
        keys: Below `TRAINER.VIECAP`, `LOADER__PLACEMENT` for `LOADER.PLACEMENT`.
    """
    node = node_of(KEYS | {name.replace("__", "."): value for name, value in keys.items()})
    clip = ClipSource(clip_name, "cpu")
    language_model, tokenizer = random_gpt2()
    model, pixels = clip_facts(clip.loaded)
    facts = ArtifactFacts(
        settings=settings.all_settings(node), language_model={"name": "tiny_gpt2", "config": describe_config(language_model)},
        clip=model, preprocessing=pixels, stop_ids=tuple(find_stop_ids(tokenizer, node.STOP)),
    )  # fmt: skip
    names = read_shipped("coco")
    vocabulary = Vocabulary("coco_entities", names, embed_vocabulary(names, clip.loaded, ensemble=True), True)
    folder.mkdir(parents=True, exist_ok=True)
    write_artifact(
        folder, facts, save_tokenizer=tokenizer.save_pretrained, vocabulary=vocabulary if node.USING_HARD_PROMPT else None,
        keeps_epochs=False,
    )  # fmt: skip
    exporter = Exporter(folder, ExportPlan(epochs))
    for epoch in range(1, epochs + 1):
        exporter.export(epoch, random_captioner(node, model["embed_dim"], seed=epoch + 1), is_best=epoch == 1)
    return folder


def write_trained_run(folder: Path, clip_name: str, **keys: Any) -> Path:
    """Write a run folder as `train.py` leaves it, for `predict.py`; arguments as of `write_run`."""
    from dassl.config import get_cfg_default

    write_run(folder, clip_name, **keys)
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME, cfg.DATASET.NAME = "ViECap", clip_name, "MiniScenes"
    cfg.TRAINER.VIECAP = node_of(find_artifact(folder).settings)
    cfg.USE_CUDA, cfg.SEED, cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.TEST.BATCH_SIZE = False, 1, 0, 2
    (folder / "config.yaml").write_text(cfg.dump(), "utf-8")
    record = {"status": "finished", "mode": "train", "data": {"classes": ["caption"], "hash": "0" * 64}}
    (folder / "run.json").write_text(json.dumps(record), "utf-8")
    return folder


def random_captioner(node: Any, width: int, seed: int = 0) -> PrefixCaptioner:
    """Build a model with random weights, strong enough that images matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(random_gpt2(seed=seed)[0], width, node).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(4)
    return model
