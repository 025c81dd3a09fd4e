"""The command that encodes a run's pictures ahead of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_world import build, make_cfg

from scripts import build_feature_cache
from trainers.gated_blip2.cache.store import shard_files
from trainers.gated_blip2.features import FeatureReader

NAME = "GatedBLIP2"


@pytest.fixture
def flags(tiny_world: Path, tmp_path: Path) -> list[str]:
    """The settings of a run in the tiny world, as words of a command line."""
    cfg = make_cfg(tiny_world, tmp_path / "run", NAME)
    node = cfg.TRAINER.GATEDBLIP2
    settings: dict[str, Any] = {
        "DATASET.NAME": cfg.DATASET.NAME, "USE_CUDA": "False", "OUTPUT_DIR": str(tmp_path / "unused"), "OPTIM.NAME": "adamw",
        "TEST.EVALUATOR": "VQA", "DATALOADER.NUM_WORKERS": "0", "DATALOADER.TEST.BATCH_SIZE": "5",
        "DATALOADER.TRAIN_X.BATCH_SIZE": "4", "TRAINER.GATEDBLIP2.STYLE.ARCH": node.STYLE.ARCH,
        "TRAINER.GATEDBLIP2.STYLE.FALLBACK": node.STYLE.FALLBACK, "TRAINER.GATEDBLIP2.CACHE.DIR": node.CACHE.DIR,
        "TRAINER.GATEDBLIP2.CACHE.SHARD_IMAGES": "10",
    }  # fmt: skip
    words = [word for pair in settings.items() for word in pair]
    return ["--root", str(tiny_world), "--backbone", cfg.MODEL.BACKBONE.NAME, *words]


def test_the_run_finds_every_row(
    flags: list[str], tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_feature_cache.main(flags)
    (folder,) = (tmp_path / "cache").iterdir()
    assert capsys.readouterr().out == f"17 images, 0.00 GB in {folder}\n"
    assert len(shard_files(folder)) == 2  # of ten images and seven
    assert not (tmp_path / "unused").exists()
    trainer = build(make_cfg(tiny_world, tmp_path / "run", NAME))
    monkeypatch.setattr(FeatureReader, "encode", None)
    assert len(trainer.prepare_cache()) == 17


def test_it_can_be_run_again(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    build_feature_cache.main(flags)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    build_feature_cache.main(flags)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before
    assert len(set(capsys.readouterr().out.splitlines())) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["TRAINER.GATEDBLIP2.CACHE.ENABLE", "False"], "CACHE.ENABLE is False"),
        (["INPUT.TRANSFORMS", "('random_flip',)"], "INPUT.TRANSFORMS has random_flip"),
        (["DATASET.NAME", "Nothing"], "DATASET.NAME is 'Nothing'"),
    ],
)
def test_what_cannot_work_is_said(flags: list[str], words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        build_feature_cache.main([*flags, *words])
