"""Encoders without a checkpoint: allowed when asked for, and never quiet."""

import logging
from pathlib import Path

import pytest
import torch
import torchvision
from timm_networks import randomise

from clip_ext.style_names import wikiart_styles
from trainers.gated_blip2.style.encoder import load_style_encoder
from trainers.gated_blip2.style.fallback import hash_state
from trainers.gated_blip2.style.networks import build_network

TINY = "efficientnet_tiny"


def test_random_weights_are_loud_and_the_same_in_every_run(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        first = load_style_encoder(TINY, "absent.pt", fallback="random")
    assert "'absent.pt' is not there" in caplog.text and "RANDOM" in caplog.text and "smoke tests only" in caplog.text
    torch.manual_seed(9)
    second = load_style_encoder(TINY, "", fallback="random")
    assert first.class_names == wikiart_styles().names and first.sha256 == second.sha256
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_random_weights_take_the_names_of_a_classes_file(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["plain", "dotted"]', encoding="utf-8")
    encoder = load_style_encoder(TINY, "", fallback="random", classes_file=str(tmp_path / "classes.json"))
    assert encoder.class_names == ("plain", "dotted") and encoder(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 2)


def test_a_checkpoint_that_is_there_wins_over_the_fallback(tmp_path: Path, caplog) -> None:
    network = randomise(build_network(TINY, 27))
    torch.save(network.state_dict(), tmp_path / "best.pt")
    with caplog.at_level(logging.WARNING):
        encoder = load_style_encoder(TINY, str(tmp_path / "best.pt"), fallback="random")
    assert torch.equal(encoder.features[0][0].weight, network.features[0][0].weight) and "RANDOM" not in caplog.text


def test_imagenet_weights_know_no_styles_and_load_safely(monkeypatch, caplog) -> None:
    stored, asked = build_network("efficientnet_b3", 1000).state_dict(), {}

    def fetch(url: str, **options: object) -> dict:
        asked.update(options, url=url)
        return stored

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fetch)
    with caplog.at_level(logging.WARNING):
        encoder = load_style_encoder("efficientnet_b3", "", fallback="imagenet")
    assert asked["weights_only"] is True and asked["check_hash"] is True and "efficientnet_b3" in asked["url"]
    assert not encoder.has_styles and encoder.n_classes == 1000
    assert torch.equal(encoder.features[8][0].weight, stored["features.8.0.weight"])
    assert "ImageNet weights, which know objects and no styles" in caplog.text


def test_imagenet_without_a_network_says_what_to_do(monkeypatch) -> None:
    def fetch(*args: object, **options: object) -> dict:
        raise OSError("no route")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fetch)
    with pytest.raises(OSError, match="FALLBACK is 'imagenet'.*no route.*random"):
        load_style_encoder("efficientnet_b3", "", fallback="imagenet")


def test_imagenet_is_refused_for_the_miniature_and_with_names(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["plain"]', encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        load_style_encoder(TINY, "", fallback="imagenet", classes_file=str(tmp_path / "classes.json"))
    assert "STYLE.ARCH efficientnet_b3 only, not 'efficientnet_tiny'" in str(caught.value)
    assert "empty TRAINER.GATEDBLIP2.STYLE.CLASSES_FILE" in str(caught.value)


def test_hash_state_sees_every_tensor() -> None:
    network = randomise(build_network(TINY, 2))
    before = hash_state(network)
    assert hash_state(network) == before
    for name, tensor in network.state_dict().items():
        kept = tensor.clone()
        tensor.add_(1)
        assert hash_state(network) != before, name
        tensor.copy_(kept)
    assert hash_state(network) == before
