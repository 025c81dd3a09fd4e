"""Every key below TRAINER.VIECAP changes something that can be seen: no dead keys.

A key is looked at where it acts first, since whole runs take longer: in the model that is built, in the text that is learned,
in captions, or in a short run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import build, make_cfg, node_of

from trainers.config_merge import flatten
from trainers.epoch_order import Position
from trainers.viecap import building, settings
from trainers.viecap.clip_source import ClipSource
from trainers.viecap.corpus import Corpus
from trainers.viecap.prepare import prepare_vocabulary
from trainers.viecap.storage.loading import build_captioner
from trainers.viecap.storage.weights import read_tensors

NAME = "ViECap"
SHARED_FILE = ("apple", "ice cream", "zebra")
SAMPLED = {".DECODE": "sample"}
FILED = {".NAME_OF_ENTITIES_TEXT": "file", ".PATH_OF_ENTITIES_TEXT": "<folder>/names.txt"}
FILTERED = {".NAME_OF_OBJECTS_VOCABS": "file", ".PATH_OF_OBJECTS_VOCABS": "<folder>/names.txt"}
BEST = {"TEST.FINAL_MODEL": "best_val", "TEST.NO_TEST": False}

Value = Any
Case = tuple[Value, dict[str, Any]]  # a value that has to act, and the settings that both sides share

MODEL: dict[str, Case] = {
    "LANGUAGE_MODEL": ("tiny_gpt2", {}),
    "LM_INIT": ("random", {}),
    "FROZEN_GPT": (True, {}),
    "CLIP_PROJECT_LENGTH": (3, {}),
    "CONTINUOUS_PROMPT_LENGTH": (4, {}),
    "NUM_LAYERS": (2, {}),
    "NUM_HEADS": (4, {}),
    "USING_HARD_PROMPT": (False, {}),
    "SOFT_PROMPT_FIRST": (False, {}),
    "ONLY_HARD_PROMPT": (True, {}),
    "MAX_NUM_OF_ENTITIES": (2, {}),
    "PROMPT_TEMPLATE_LENGTH": (9, {}),
    "STOP": ("eos", {}),
}
TEXT: dict[str, Case] = {
    "ENTITY_EXTRACTOR": ("vocabulary", FILTERED),
    "NAME_OF_OBJECTS_VOCABS": ("coco_entities", {}),
    "PATH_OF_OBJECTS_VOCABS": ("<folder>/others.txt", FILTERED),
    "RANDOM_MASK": (False, {}),
    "PROB_OF_RANDOM_MASK": (0.9, {}),
    "FEW_SHOT_RATIO": (0.5, {}),
    "DATA_LIMIT": (9, {}),
    "MAX_CAPTION_TOKENS": (4, {}),
    "STORE_DIR": ("<folder>/store", {}),
    "LOADER.PLACEMENT": ("host", {}),
    "LOADER.BUCKET_BATCHES": (1, {}),
    "LOADER.PAD_MULTIPLE": (16, {}),
}
CAPTIONS: dict[str, Case] = {
    "NAME_OF_ENTITIES_TEXT": ("coco_entities", {}),
    "PATH_OF_ENTITIES_TEXT": ("<folder>/others.txt", FILED),
    "SINGLE_WORD_ENTITIES": (True, FILED),
    "PROMPT_ENSEMBLE": (False, {}),
    "TOP_K": (1, {".THRESHOLD": 0.0}),
    "THRESHOLD": (0.99, {}),
    "TEMPERATURE": (1.0, {}),
    "NORMALIZE_PREFIX": (False, {}),
    "DECODE": ("beam", {}),
    "BEAM_WIDTH": (2, {".DECODE": "beam", ".NUM_RETURN": 2}),
    "MAX_NEW_TOKENS": (3, {}),
    "NUM_RETURN": (2, SAMPLED),
    "SAMPLE_TOP_P": (0.1, SAMPLED),
    "SAMPLE_TEMPERATURE": (5.0, SAMPLED),
}
RUN: dict[str, Case] = {
    "PREC": ("bf16", {}),
    "NOISE_VARIANCE": (0.1, {}),
    "NOISE_RESCALE": (False, {}),
    "USING_CLIP_FEATURES": (False, {}),
    "USING_IMAGE_FEATURES": (False, BEST),
    "WARMUP_STEPS": (2, {}),
    "ADAM_EPS": (1e-2, {}),
    "GRAD_ACCUM": (2, {}),
    "MAX_GRAD_NORM": (1e-3, {}),
    "LOG_PER_EPOCH": (1, {}),
    "SAVE_LATEST_PER_EPOCH": (0, {}),
    "SAVE_EVERY": (2, {"OPTIM.MAX_EPOCH": 2}),
    "PREFIX": ("mine", {}),
    "EVAL.VAL_EVERY": (2, {"TEST.NO_TEST": False}),
    "EVAL.VAL_LIMIT": (1, BEST),
    "EVAL.JAVA": (["meteor"], {"TEST.NO_TEST": False}),
}
Observe = Callable[[Path, Path, dict[str, Any]], Any]


def prepared(folder: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Put the folder's name where it belongs."""
    return {k: v.replace("<folder>", str(folder)) if isinstance(v, str) else v for k, v in overrides.items()}


def see_model(world: Path, folder: Path, overrides: dict[str, Any]) -> Any:
    """Sizes, prompts, groups and weights of the model."""
    node = make_cfg(world, folder / "run", NAME, overrides).TRAINER.VIECAP
    torch.manual_seed(0)
    system = building.build_system(node, 24, torch.device("cpu"))
    blocks = [] if system.model.mapping is None else [block.n_heads for block in system.model.mapping.blocks]
    return (
        building.describe_system(system, node, 24), system.model.layout, blocks, [group.name for group in system.groups],
        system.stop_ids, {name: value.sum().item() for name, value in system.model.named_parameters()},
    )  # fmt: skip


def see_text(world: Path, folder: Path, overrides: dict[str, Any]) -> Any:
    """The batches of the first epoch, and where their store and tensors lie."""
    from tiny_captions import TinyCaptions

    cfg = make_cfg(world, folder / "run", NAME, overrides)
    node = cfg.TRAINER.VIECAP
    corpus = Corpus(TinyCaptions(cfg).train_x, node, seed=1, batch_size=4, clip=ClipSource(cfg.MODEL.BACKBONE.NAME, "cpu"))
    system = building.build_system(node, 24, torch.device("cpu"))
    text = corpus.build_text(corpus.open_store(system.tokenizer), system.prompts, None)
    store = corpus.open_store(system.tokenizer)
    loader = corpus.build_loader(store, text, position=lambda: Position(1, 0, 0), device=torch.device("cpu"))
    batches = [(batch.ids.tolist(), batch.n_hard.tolist(), batch.index.tolist()) for batch in loader]
    return batches, loader.is_resident, (folder / "store").exists(), store.noun_names


def see_captions(world: Path, folder: Path, overrides: dict[str, Any]) -> Any:
    """What a random captioner says about random vectors."""
    cfg = make_cfg(world, folder / "run", NAME, overrides)
    node, clip = cfg.TRAINER.VIECAP, ClipSource(cfg.MODEL.BACKBONE.NAME, "cpu")
    torch.manual_seed(0)
    system = building.build_system(node, 24, torch.device("cpu"))
    for parameter in system.model.parameters():  # so that prompts matter
        parameter.data.mul_(2 if parameter.ndim > 1 else 1)
    vocabulary = prepare_vocabulary(
        node.NAME_OF_ENTITIES_TEXT, node.PATH_OF_ENTITIES_TEXT, clip=clip, ensemble=node.PROMPT_ENSEMBLE,
        single_word=node.SINGLE_WORD_ENTITIES, cache_dir=folder.parent / "cache",
    )  # fmt: skip
    captioner = build_captioner(
        system.model.eval(), system.tokenizer, node, options=settings.decode_options(node, system.stop_ids, seed=1),
        vocabulary=vocabulary,
    )  # fmt: skip
    features = 9 * torch.randn(4, 24, generator=torch.Generator().manual_seed(3))
    return [row.to_row() for row in captioner.caption(features)]


def see_run(world: Path, folder: Path, overrides: dict[str, Any]) -> Any:
    """Weights, files, rates, lines and state after a short run; the message of one that is refused."""
    short = {"OPTIM.MAX_EPOCH": 1, "TEST.NO_TEST": True}
    lines, saved = [], []
    try:
        trainer = build(make_cfg(world, folder / "run", NAME, short | overrides))
        trainer._log_progress = lambda: lines.append(trainer.batch_idx)
        inner = trainer.mid_epoch.save
        trainer.mid_epoch.save = lambda: saved.append(trainer.batch_idx) or inner()
        trainer.train()
    except ValueError as error:
        return str(error)
    run = folder / "run"
    weights = {path.name: read_tensors(path)[1]["sha256"] for path in sorted((run / "weights").iterdir())}
    record = json.loads((run / "viecap.json").read_text("utf-8"))
    groups = [{name: value for name, value in group.items() if name != "params"} for group in trainer.optim.param_groups]
    stored = trainer.store.features is None, trainer.test_loader.dataset.features is None
    predicted = [path.read_text("utf-8") for path in sorted(run.glob("predictions/*.json"))]
    scored = [entry["scores"] for entry in record["epochs"]]
    return weights, groups, lines, saved, scored, stored, predicted, trainer.sched.last_epoch


PLACES: dict[str, tuple[Observe, dict[str, Case]]] = {
    "model": (see_model, MODEL), "text": (see_text, TEXT), "captions": (see_captions, CAPTIONS), "run": (see_run, RUN),
}  # fmt: skip


@pytest.fixture(scope="module")
def observe(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, dict[str, Any]], Any]:
    """Return `observe(place, overrides)`; what is equal is looked at once."""
    known: dict[str, Any] = {}

    def see(place: str, overrides: dict[str, Any]) -> Any:
        words = repr((place, sorted(overrides.items())))
        if words not in known:
            folder = tmp_path_factory.mktemp("key")
            (folder / "names.txt").write_text("\n".join(("circle", "square", "red wall")), encoding="utf-8")
            (folder / "others.txt").write_text("\n".join(SHARED_FILE), encoding="utf-8")
            known[words] = PLACES[place][0](tiny_world, folder, prepared(folder, overrides))
        return known[words]

    return see


def test_every_key_has_a_change_and_every_change_a_key() -> None:
    changed = [key for _, cases in PLACES.values() for key in cases]
    assert sorted(changed) == sorted(key for key, _ in flatten(node_of(NAME)))


@pytest.mark.parametrize(("place", "key"), [(place, key) for place, (_, cases) in PLACES.items() for key in cases])
def test_a_key_changes_something(place: str, key: str, observe) -> None:
    value, shared = PLACES[place][1][key]
    assert observe(place, shared | {f".{key}": value}) != observe(place, shared), f"{key} does nothing"


def test_what_is_equal_looks_equal(observe) -> None:
    """Otherwise every key would seem to act."""
    for place in PLACES:
        assert observe(place, {}) == observe(place, {"TRAIN.PRINT_FREQ": 10})
