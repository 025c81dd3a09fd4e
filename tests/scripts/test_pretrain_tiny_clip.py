"""The pre-training resumes to the weights of an uninterrupted run and counts every true caption as a positive."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from scripts import pretrain_tiny_clip as pretrain

ROOT = Path(__file__).resolve().parents[2]


def run(output: Path, work: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "pretrain_tiny_clip.py"), "--output", str(output), "--work-dir", str(work)]
    sizes = ("--batch-size", "8", "--n-scenes", "8", "--steps", "3", "--warmup-steps", "1", "--save-every", "2")
    return subprocess.run([*command, *sizes, *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    done = run(folder / "weights.safetensors", folder / "work")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_resumed_run_equals_a_straight_one(straight, tmp_path):
    state = torch.load(straight / "work" / "state.pt", weights_only=True)
    assert state["step"] == 3
    code = (
        "from scripts import pretrain_tiny_clip as p\nmeasure, calls = p.evaluate, []\n"
        "def stop(*given):\n    calls.append(1)\n    if len(calls) == 2:\n        raise SystemExit(7)\n"
        "    return measure(*given)\n"
        "p.evaluate = stop\np.main()"
    )  # the second evaluation stands after the last step and before its state is saved
    words = ["--output", str(tmp_path / "w.safetensors"), "--work-dir", str(tmp_path / "work"), "--batch-size", "8"]
    words += ["--n-scenes", "8", "--steps", "3", "--warmup-steps", "1", "--save-every", "2"]
    assert subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True).returncode == 7
    assert run(tmp_path / "w.safetensors", tmp_path / "work").returncode == 0
    first, second = load_file(straight / "weights.safetensors"), load_file(tmp_path / "w.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert {value.dtype for name, value in first.items()} == {torch.float16}


def test_a_state_of_other_arguments_is_refused(straight):
    done = run(straight / "other.safetensors", straight / "work", "--seed", "5")
    assert done.returncode != 0 and "belongs to other arguments" in done.stderr


def test_contrastive_loss_equals_clips_when_every_caption_is_true_of_one_picture():
    images, texts = torch.randn(5, 7), torch.randn(5, 7)
    logits = 10 * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    labels = torch.arange(5)
    expected = 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))
    loss = pretrain.contrastive_loss(images, texts, torch.tensor(10.0), torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(loss, expected)


def test_contrastive_loss_shares_its_target_among_all_true_captions():
    feature = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    alone = pretrain.contrastive_loss(feature, feature, torch.tensor(20.0), torch.eye(2, dtype=torch.bool))
    both = pretrain.contrastive_loss(feature, feature, torch.tensor(20.0), torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(alone, both)
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert pretrain.contrastive_loss(apart, apart, torch.tensor(20.0), torch.ones(2, 2, dtype=torch.bool)) > 5
