"""A run folder around weights that were trained elsewhere, so that they predict and are tested like our own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from yacs.config import CfgNode

from dassl_host import ensure_dassl
from trainers.run_folder import RunFolder
from trainers.stored_tensors import find_differences
from trainers.viecap import settings
from trainers.viecap.clip_source import ClipSource
from trainers.viecap.network.language_model import describe_config, find_stop_ids, load_language_model
from trainers.viecap.network.model import PrefixCaptioner
from trainers.viecap.prepare import CACHE_DIR, prepare_vocabulary
from trainers.viecap.storage.artifact import ArtifactFacts, clip_facts, write_artifact
from trainers.viecap.storage.export import Exporter, ExportPlan
from trainers.viecap.storage.loading import build_model
from trainers.viecap.storage.reference_weights import State, read_sizes
from trainers.viecap.storage.vocabulary_file import Vocabulary
from trainers.viecap.storage.weights import own_tensors


def write_reference_run(
    folder: str | Path, state: State, cfg: CfgNode, epoch: int, *, cache_dir: str | Path = CACHE_DIR
) -> None:
    """Write a run folder: configuration, artefact, weights.

    Args:
        folder: To write; must not exist, or be empty.
        state: Weights under our names. Their shapes decide the prompts' lengths and the layers.
        cfg: Full config: CLIP, language model, prompts, vocabulary, decoding.
        epoch: Finished epochs.
        cache_dir: Of the vocabulary's vectors.
    Raises:
        ValueError: If the folder is in use, or weights and configuration are not of one model (lists the differences).
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is in use; expected a new folder")
    cfg = _fit(cfg, state, folder)
    node, clip = cfg.TRAINER.VIECAP, ClipSource(cfg.MODEL.BACKBONE.NAME, "cpu")
    with torch.random.fork_rng(devices=[]):  # its weights are replaced
        language_model, tokenizer = load_language_model(node.LANGUAGE_MODEL, init="random")
        model = build_model(language_model, clip.identity.embed_dim, node)
    _load(model, state, cfg)
    vocabulary = _embed(node, clip, cache_dir)
    facts = ArtifactFacts(
        settings.all_settings(node),
        {"name": node.LANGUAGE_MODEL, "config": describe_config(language_model)},
        *clip_facts(clip.loaded),
        stop_ids=sorted(find_stop_ids(tokenizer, node.STOP)),
    )
    record = RunFolder(cfg, "train")
    record.start([], ensure_dassl())
    record.describe_data(SimpleNamespace(train_x=[], train_u=[], val=[], test=[], classnames=["caption"]))
    write_artifact(folder, facts, save_tokenizer=tokenizer.save_pretrained, vocabulary=vocabulary, keeps_epochs=False)
    Exporter(folder, ExportPlan(epoch, node.PREFIX)).export(epoch, model)
    record.finish()


def _fit(cfg: CfgNode, state: State, folder: Path) -> CfgNode:
    """Return the config with what the weights decide."""
    cfg, sizes = cfg.clone(), read_sizes(state)
    cfg.defrost()
    node = cfg.TRAINER.VIECAP
    cfg.TRAINER.NAME, cfg.OUTPUT_DIR, cfg.RESUME = "ViECap", str(folder), ""
    node.CLIP_PROJECT_LENGTH, node.CONTINUOUS_PROMPT_LENGTH = sizes.project_length, sizes.prefix_length
    node.NUM_LAYERS = sizes.n_layers
    cfg.freeze()
    return cfg


@torch.no_grad()
def _load(model: PrefixCaptioner, state: State, cfg: CfgNode) -> None:
    """Copy the weights into the model, strictly; without a soft prompt there is no mapping network to fill."""
    needed = {name: tensor for name, tensor in state.items() if model.mapping is not None or not name.startswith("mapping.")}
    own = own_tensors(model)
    problems = find_differences(needed, own)
    if problems:
        clip, language_model = cfg.MODEL.BACKBONE.NAME, cfg.TRAINER.VIECAP.LANGUAGE_MODEL
        head = f"not of MODEL.BACKBONE.NAME {clip} and TRAINER.VIECAP.LANGUAGE_MODEL {language_model}:"
        raise ValueError("\n  ".join([head, *problems]))
    for name, parameter in own.items():
        parameter.copy_(needed[name])


def _embed(node: CfgNode, clip: ClipSource, cache_dir: str | Path) -> Vocabulary | None:
    if not node.USING_HARD_PROMPT:
        return None
    return prepare_vocabulary(
        node.NAME_OF_ENTITIES_TEXT, node.PATH_OF_ENTITIES_TEXT, clip=clip, ensemble=node.PROMPT_ENSEMBLE,
        single_word=node.SINGLE_WORD_ENTITIES, cache_dir=cache_dir,
    )  # fmt: skip
