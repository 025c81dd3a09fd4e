"""The pre-training resumes to the weights of an uninterrupted run and counts every true caption as a positive."""

import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from scripts import pretrain_tiny_clip as pretrain

SIZES = ("--batch-size", "8", "--n-scenes", "8", "--steps", "3", "--warmup-steps", "1", "--save-every", "2")


@pytest.fixture
def run(monkeypatch):
    """Return `run(folder, *words, stop_after)`: the script's main; its n-th evaluation ends the program."""

    def start(folder, *words: str, stop_after: int = 99) -> None:
        calls = []

        def measure(*_) -> dict:
            calls.append(1)
            if len(calls) > stop_after:
                raise KeyboardInterrupt
            return {}

        monkeypatch.setattr(pretrain, "evaluate", measure)
        command = ["pretrain", "--output", str(folder / "weights.safetensors"), "--work-dir", str(folder / "work")]
        monkeypatch.setattr(sys, "argv", [*command, *SIZES, *words])
        pretrain.main()

    return start


def test_a_run_killed_after_a_saved_state_ends_with_the_weights_of_a_straight_one(run, tmp_path):
    run(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):  # before the state of the last step is saved
        run(tmp_path / "killed", stop_after=1)
    assert torch.load(tmp_path / "killed" / "work" / "state.pt", weights_only=True)["step"] == 2
    run(tmp_path / "killed")
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("straight", "killed"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert {value.dtype for value in first.values()} == {torch.float16}
    with pytest.raises(SystemExit, match="belongs to other arguments"):
        run(tmp_path / "straight", "--seed", "5")


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
