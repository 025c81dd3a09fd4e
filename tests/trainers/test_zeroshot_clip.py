"""ZeroshotCLIP: cosine to class means of the texts, nothing else."""

from __future__ import annotations

import torch
from tiny_world import test_logits
from torch.nn import functional as F

from clip_ext.loader import load_clip


def test_logits_are_100_times_the_cosine_to_the_mean_text(make_trainer) -> None:
    trainer = make_trainer("ZeroshotCLIP")
    clip = load_clip(trainer.cfg.MODEL.BACKBONE.NAME)
    images = torch.cat([batch["img"] for batch in trainer.test_loader])
    means = []
    with torch.no_grad():
        for name in ("red", "green", "blue"):
            texts = [f"a photo of a {name} thing.", f"a {name} picture."]
            means.append(F.normalize(clip.model.encode_text(clip.tokenizer(texts)), dim=-1).mean(dim=0))
        expected = 100 * F.normalize(clip.model.encode_image(images), dim=-1) @ F.normalize(torch.stack(means), dim=-1).t()
    torch.testing.assert_close(test_logits(trainer), expected, atol=1e-4, rtol=0)


def test_single_mode_takes_the_zeroshot_template_alone(make_trainer) -> None:
    found = [test_logits(make_trainer("ZeroshotCLIP", {".TEXT.MODE": mode}, run=mode)) for mode in ("single", "templates_only")]
    assert not torch.allclose(*found)


def test_train_is_the_test_and_writes_no_checkpoint(make_trainer, tmp_path, capsys) -> None:
    trainer = make_trainer("ZeroshotCLIP")
    trainer.train()
    assert "* accuracy:" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.pth.tar*"))
    assert not type(trainer).needs_checkpoint


def test_text_tower_is_released(make_trainer) -> None:
    assert not hasattr(make_trainer("ZeroshotCLIP").clip.model, "token_embedding")
