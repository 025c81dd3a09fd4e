"""The layer probe reads a run, judges every block, and suggests stages that the trainer takes."""

import json
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import layer_probe  # noqa: E402

from clip_ext.stages import resolve_stages  # noqa: E402


def test_agreement_is_with_the_last_block():
    assert layer_probe.agreement_with_last(torch.tensor([[0, 1, 2, 0], [1, 1, 2, 0], [1, 1, 2, 2]])) == [0.5, 0.75, 1.0]


def test_stages_leave_out_blocks_at_chance_and_cut_at_the_largest_jumps():
    agreement = [0.1, 0.1, 0.12, 0.3, 0.31, 0.32, 0.6, 0.61, 0.95, 1.0]
    assert layer_probe.recommend_stages(agreement, n_classes=10) == [[4, 5, 6], [7, 8], [9, 10]]


def test_stages_of_a_tower_that_knows_only_at_its_end():
    stages = layer_probe.recommend_stages([0.1] * 11 + [1.0], n_classes=10)
    assert stages == [[12]]
    assert resolve_stages("hybrid", 12, stages=stages) == ((12,),)


def test_probe_of_a_text_only_run(make_trainer):
    trained = make_trainer("LaFTer", {".PHASE": "text_only"})
    trained.train()
    folder = Path(trained.output_dir)
    (folder / "config.yaml").write_text(trained.cfg.dump(), encoding="utf-8")
    record = {"status": "finished", "data": {"classes": trained.classnames}}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    trainer = layer_probe.load_run(folder)
    seen = layer_probe.view_blocks(trainer, trainer.train_loader_x)
    depth = trainer.student.info.depth
    assert seen.labels.shape == (depth, 8) and seen.confidence.shape == (depth,)
    batch = next(iter(trainer.test_loader))
    last = layer_probe.view_blocks(trainer, [batch]).labels[-1]
    assert torch.equal(last, trained.model_inference(batch["img"]).argmax(dim=-1))  # PHASE text_only tests the same


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "layer_probe.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "FileNotFoundError" in done.stderr and "no config.yaml" in done.stderr
