"""timm's efficientnet_b3 under torchvision's names: every tensor in its place, and the same numbers out."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm_networks import TimmB3, randomise
from torch import Tensor

from trainers.gated_blip2.style.encoder import load_style_encoder
from trainers.gated_blip2.style.networks import build_network
from trainers.gated_blip2.style.timm_layout import find_tf_name, is_timm_layout, rename_timm, timm_names

STEM = {"conv_stem.weight": torch.zeros(40, 3, 3, 3)}


@pytest.fixture(scope="module")
def timm() -> TimmB3:
    return randomise(TimmB3(28))


@pytest.fixture(scope="module")
def stored(timm: TimmB3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file, which sorts by name and so has lost the order."""
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file(timm.state_dict(), path)
    return path


def test_names_are_timms_in_timms_order(timm: TimmB3) -> None:
    with torch.device("meta"):
        network = build_network("efficientnet_b3", 28)
    names = timm_names(network)
    assert list(names) == list(timm.state_dict())
    assert list(names.values()) == list(network.state_dict())
    assert len(names) == 574 and sum(not name.startswith("classifier") for name in names) == 572
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert all(tensor.shape == shapes[names[name]] for name, tensor in timm.state_dict().items())


def test_outputs_are_bitwise_timms(timm: TimmB3, stored: Path) -> None:
    encoder = load_style_encoder("efficientnet_b3", str(stored))
    images = torch.randn(2, 3, 75, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = timm(images)
        features = torch.nn.functional.silu(timm.bn2(timm.conv_head(_trunk(timm, images)))).mean((2, 3))
    output = encoder(images)
    assert expected.std() > 1e-2  # not all alike, so that equal means something
    assert torch.equal(output.logits, expected) and torch.equal(output.features, features)
    assert encoder.class_names[27] == "non_art"


def test_a_missing_and_a_strange_tensor_are_listed(timm: TimmB3, tmp_path: Path) -> None:
    state = dict(timm.state_dict()) | {"blocks.9.0.conv_pw.weight": torch.zeros(1)}
    del state["blocks.2.1.se.conv_reduce.bias"]
    torch.save(state, tmp_path / "best.pt")
    with pytest.raises(ValueError, match="missing tensor: features.3.1.block.2.fc1.bias; unexpected tensor: blocks.9.0"):
        load_style_encoder("efficientnet_b3", str(tmp_path / "best.pt"))


def test_the_layout_is_known_for_b3_only(tmp_path: Path) -> None:
    torch.save(STEM, tmp_path / "best.pt")
    with pytest.raises(ValueError, match="timm's layout, which is known for efficientnet_b3 only.*'efficientnet_tiny'"):
        load_style_encoder("efficientnet_tiny", str(tmp_path / "best.pt"))


def test_torchvisions_own_tensors_are_not_renamed() -> None:
    with torch.device("meta"):
        network = build_network("efficientnet_b3", None)
    assert not is_timm_layout(network.state_dict()) and is_timm_layout(STEM)
    assert rename_timm(network.state_dict(), network).keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    "content",
    [{"arch": "tf_efficientnet_b3", "state_dict": STEM}, {"args": Namespace(a="timm/tf_efficientnet_b3.ns"), "model": STEM},
     {"config": {"model": {"names": ["tf_efficientnet_b3"]}}, "state_dict": STEM}],
)  # fmt: skip
def test_tf_networks_are_refused_by_the_name_in_the_file(content: Mapping[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(ValueError, match="timm's '.*tf_efficientnet_b3.*another padding.*give weights of"):
        load_style_encoder("efficientnet_b3", str(tmp_path / "best.pt"))


@pytest.mark.parametrize("name", ["tf_efficientnet_b3.pt", "tf_efficientnet_b3.aa_in1k/best.pt", "best.pt + config.json"])
def test_tf_networks_are_refused_by_the_name_of_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name.removesuffix(" + config.json")
    path.parent.mkdir(exist_ok=True)
    torch.save(STEM, path)
    if "config" in name:
        (tmp_path / "config.json").write_text('{"architecture": "tf_efficientnet_b3"}', encoding="utf-8")
    with pytest.raises(ValueError, match="tf_efficientnet_b3.*another padding"):
        load_style_encoder("efficientnet_b3", str(path))


def test_find_tf_name_reads_texts_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("no JSON", encoding="utf-8")
    content: dict[str, Any] = {"tf_efficientnet_b3": 1, "arch": "efficientnet_b3", "epoch": 3, "none": None}
    content["itself"] = content
    assert find_tf_name(content, tmp_path / "best.pt") is None
    assert find_tf_name(content | {"names": ("x", "tf_efficientnetv2_s")}, tmp_path / "best.pt") == "tf_efficientnetv2_s"


def _trunk(network: TimmB3, images: Tensor) -> Tensor:
    return network.blocks(torch.nn.functional.silu(network.bn1(network.conv_stem(images))))
