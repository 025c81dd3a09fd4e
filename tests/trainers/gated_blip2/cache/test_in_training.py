"""A run that reads the cache learns what a run learns that opens every picture, and needs neither pictures nor towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_world import build, make_cfg

from trainers.gated_blip2.cache.store import open_cache, shard_files

NAME = "GatedBLIP2"
# Rows do not depend on places in a batch if every picture is alone in it.
ALONE = {
    "DATALOADER.TRAIN_X.BATCH_SIZE": 1, "DATALOADER.TEST.BATCH_SIZE": 1, "OPTIM.MAX_EPOCH": 1, "TEST.NO_TEST": True,
    ".GRAD_ACCUM": 2,
}  # fmt: skip
ORIGINAL = {".PRESET": "original_live", ".GATE.INIT_STD": 0.01}


def train(world: Path, folder: Path, settings: dict[str, Any]) -> tuple[Any, list[float]]:
    """Train and return the trainer and its losses."""
    trainer = build(make_cfg(world, folder, NAME, ALONE | settings))
    losses, inner = [], trainer.compute_losses

    def compute(batch: Any) -> Any:
        found = inner(batch)
        losses.append(found.losses["answers"].item())
        return found

    trainer.compute_losses = compute
    trainer.train()
    return trainer, losses


def test_opening_pictures_goes_through_pillow(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test below forbids is what a run without rows does."""
    opened, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest: opened.append(path) or real(path, *rest))
    build(make_cfg(tiny_world, tmp_path / "run", NAME)).prepare_cache()
    assert len(set(opened)) == 17


@pytest.mark.parametrize("settings", [{}, ORIGINAL, {".STYLE.SOURCE": "logits"}], ids=["default", "original", "logits"])
def test_cached_and_live_runs_are_equal_bit_by_bit(settings: dict[str, Any], tiny_world: Path, tmp_path: Path) -> None:
    cached, losses = train(tiny_world, tmp_path / "cached", settings)
    live, expected = train(tiny_world, tmp_path / "live", settings | {".CACHE.ENABLE": False})
    assert cached.features.n_read > 0 and live.features.n_read == 0
    assert losses == expected and len(set(losses)) > 1
    learned = live.system.parameters
    assert all(torch.equal(each, learned[name]) for name, each in cached.system.parameters.items())
    assert cached.report.epochs[0]["losses"] == live.report.epochs[0]["losses"]


def test_a_cached_run_opens_no_picture_and_has_no_towers(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = build(make_cfg(tiny_world, tmp_path / "ahead", NAME)).prepare_cache()
    assert len(ahead) == 17 and shard_files(ahead.folder)

    def forbid(*arguments: object, **options: object) -> None:
        raise AssertionError(f"called with {arguments}")

    monkeypatch.setattr(Image, "open", forbid)
    trainer = build(make_cfg(tiny_world, tmp_path / "run", NAME, {"OPTIM.MAX_EPOCH": 1}))
    monkeypatch.setattr(trainer.model, "encode_images", forbid)
    trainer.train()
    tower, style = trainer.model.blip2.vision_model, trainer.towers.style_encoder
    frozen = [*tower.embeddings.parameters(), *tower.encoder.parameters(), *style.parameters(), *style.buffers()]
    assert {each.device.type for each in frozen} == {"meta"}
    assert {each.device.type for each in tower.post_layernorm.parameters()} == {"cpu"}
    assert (tmp_path / "run" / "adapter" / "last" / "adapter.safetensors").is_file()
    with pytest.raises(RuntimeError, match="CACHE.ENABLE False"):
        trainer.features.encode(torch.zeros(1, 3, 16, 16), None)


def test_live_runs_keep_their_towers(tiny_world: Path, tmp_path: Path) -> None:
    trainer, _ = train(tiny_world, tmp_path / "run", {".CACHE.ENABLE": False})
    assert trainer.prepare_cache() is None
    assert {each.device.type for each in trainer.model.parameters()} == {"cpu"}


def test_presets_that_train_the_post_ln_have_a_cache_of_their_own(tiny_world: Path, tmp_path: Path) -> None:
    caches = [build(make_cfg(tiny_world, tmp_path / name, NAME, {".PRESET": name})).prepare_cache()
              for name in ("gates_proj", "gates", "original_live")]  # fmt: skip
    assert caches[0].folder == caches[1].folder != caches[2].folder
    assert open_cache(caches[2].folder, caches[2].key).key.fields["post_ln"] is False


def test_evaluation_alone_reads_the_cache(tiny_world: Path, tmp_path: Path) -> None:
    frozen = {".PRESET": "frozen", ".EVAL.CONTROLS": ()}
    trainer = build(make_cfg(tiny_world, tmp_path / "run", NAME, frozen))
    trainer.load_model("")
    result = trainer.test()
    assert trainer.features.n_read == 6
    live = build(make_cfg(tiny_world, tmp_path / "live", NAME, {**frozen, ".CACHE.ENABLE": False}))
    live.load_model("")
    assert live.test() == result
