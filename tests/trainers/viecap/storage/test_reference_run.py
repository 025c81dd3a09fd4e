"""Weights of the original become a run folder that captions, and names that are not the original's stop the conversion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_world import clip_config, write_clip
from yacs.config import CfgNode

import train
from clip_ext.loader import load_clip
from trainers.runs import build_cfg
from trainers.viecap.network.language_model import load_language_model
from trainers.viecap.network.mapping import MappingNetwork
from trainers.viecap.network.model import PrefixCaptioner, PromptLayout
from trainers.viecap.storage.loading import load_captioner
from trainers.viecap.storage.reference_run import write_reference_run
from trainers.viecap.storage.weights import own_tensors

SETTINGS = {
    "TRAINER.NAME": "ViECap", "USE_CUDA": "False", "TRAINER.VIECAP.LANGUAGE_MODEL": "tiny_gpt2",
    "TRAINER.VIECAP.NAME_OF_ENTITIES_TEXT": "mini_scenes", "TRAINER.VIECAP.NUM_HEADS": "4", "TRAINER.VIECAP.DECODE": "greedy",
    "TRAINER.VIECAP.MAX_NEW_TOKENS": "4",
}  # fmt: skip


@pytest.fixture(scope="module")
def clip_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip", clip_config(depth=2))


@pytest.fixture(scope="module")
def trained() -> PrefixCaptioner:
    """What somebody else trained: two blocks, three soft-prompt tokens."""
    language_model, _ = load_language_model("tiny_gpt2")
    torch.manual_seed(3)
    width = language_model.config.n_embd
    mapping = MappingNetwork(24, width, prefix_length=3, project_length=2, n_layers=2, n_heads=4)
    return PrefixCaptioner(language_model, mapping, PromptLayout(soft_tokens=3)).eval()


def make_cfg(clip_name: str, **changes: str) -> CfgNode:
    settings = (
        SETTINGS | {"MODEL.BACKBONE.NAME": clip_name} | {f"TRAINER.VIECAP.{key}": value for key, value in changes.items()}
    )
    return build_cfg(train.parse_args([word for pair in settings.items() for word in pair]))


def state_of(model: PrefixCaptioner) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in own_tensors(model).items()}


def test_a_converted_run_captions_with_the_very_weights(tmp_path: Path, clip_name: str, trained: PrefixCaptioner) -> None:
    run = tmp_path / "run"
    write_reference_run(run, state_of(trained), make_cfg(clip_name), 15, cache_dir=tmp_path / "cache")
    assert (run / "weights" / "coco_prefix-014.safetensors").is_file()
    loaded = load_captioner(run)
    assert all(torch.equal(a, b) for a, b in zip(loaded.captioner.model.parameters(), trained.parameters(), strict=True))
    assert (loaded.weights.epoch, loaded.vocabulary.name) == (15, "mini_scenes")
    rows = loaded.captioner.caption(torch.randn(2, 24, generator=torch.Generator().manual_seed(0)))
    assert len(rows) == 2 and all(row.caption for row in rows)
    from trainers.prediction.run import read_run

    assert read_run(run).cfg.TRAINER.VIECAP.NUM_LAYERS == 2 and load_clip(clip_name).fingerprint
    with pytest.raises(ValueError, match="in use"):
        write_reference_run(run, state_of(trained), make_cfg(clip_name), 15)


def test_another_clip_or_language_model_is_refused(tmp_path: Path, clip_name: str, trained: PrefixCaptioner) -> None:
    state = state_of(trained)
    state["mapping.project.weight"] = torch.zeros(2 * 128, 25)
    del state["language_model.transformer.ln_f.bias"]
    with pytest.raises(ValueError, match=r"(?s)not of MODEL.BACKBONE.NAME.*missing tensor: .*ln_f.*project.weight: stored"):
        write_reference_run(tmp_path / "run", state, make_cfg(clip_name), 1, cache_dir=tmp_path)
    assert not (tmp_path / "run" / "viecap.json").exists()


def test_without_a_soft_prompt_the_mapping_network_is_left_out(
    tmp_path: Path, clip_name: str, trained: PrefixCaptioner
) -> None:
    cfg = make_cfg(clip_name, ONLY_HARD_PROMPT="True")
    write_reference_run(tmp_path / "run", state_of(trained), cfg, 1, cache_dir=tmp_path / "cache")
    assert load_captioner(tmp_path / "run").captioner.model.mapping is None
