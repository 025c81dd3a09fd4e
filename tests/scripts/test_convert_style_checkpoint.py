"""Conversion of style checkpoints to safetensors: what is safe, what needs trust, and that only trust runs a pickle."""

import importlib.util
import zipfile
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainers.gated_blip2.style.encoder import load_style_encoder
from trainers.gated_blip2.style.networks import build_network

ROOT = Path(__file__).resolve().parents[2]


class Program:
    """Creates a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.victim), "w")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_style_checkpoint", ROOT / "scripts" / "convert_style_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return build_network("efficientnet_tiny", 27).eval()


def test_a_safe_checkpoint_is_converted_without_trust(script, network, tmp_path, capsys) -> None:
    source, target = tmp_path / "best.pt", tmp_path / "best.safetensors"
    content = {"args": Namespace(root=Path("a")), "ema": {"module.bias": torch.ones(1)}, "model": network.state_dict()}
    torch.save(content, source)
    script.main([str(source), str(target)])
    assert f"wrote {target}: {len(network.state_dict())} tensors, sha256 " in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == {"best.pt", "best.safetensors"}
    encoder = load_style_encoder("efficientnet_tiny", str(target))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(encoder(images).logits, network(images))


def test_a_program_needs_trust_and_runs_only_then(script, network, tmp_path) -> None:
    source, target, victim = tmp_path / "best.pt", tmp_path / "best.safetensors", tmp_path / "victim"
    torch.save({"model": network.state_dict(), "extra": Program(victim)}, source)
    with pytest.raises(SystemExit, match="open.*nothing of it has run.*--trust best.pt best.safetensors"):
        script.main([str(source), str(target)])
    assert not victim.exists() and not target.exists()
    script.main(["--trust", str(source), str(target)])
    assert victim.exists()
    assert load_file(target).keys() == network.state_dict().keys()


def test_trust_takes_a_whole_model_alone_or_in_a_container(script, network, tmp_path) -> None:
    for name, content in (("alone.pt", network), ("inside.pt", {"epoch": 3, "model": network})):
        target = tmp_path / "out.safetensors"
        torch.save(content, tmp_path / name)
        with pytest.raises(SystemExit, match="asks for .*torchvision.models.efficientnet.EfficientNet"):
            script.main([str(tmp_path / name), str(target)])
        script.main([str(tmp_path / name), str(target), "--trust"])
        stored = load_file(target)
        assert all(torch.equal(stored[key], tensor) for key, tensor in network.state_dict().items())
        target.unlink()


def test_trust_does_not_lose_the_name_that_gives_a_tf_network_away(script, tmp_path) -> None:
    torch.save({"arch": "tf_efficientnet_b3", "state_dict": {"conv_stem.weight": torch.ones(1)}}, tmp_path / "best.pt")
    with pytest.raises(SystemExit, match="'tf_efficientnet_b3'"):
        script.main([str(tmp_path / "best.pt"), str(tmp_path / "out.safetensors"), "--trust"])
    assert not (tmp_path / "out.safetensors").exists()


def test_convert_refuses_other_files(script, tmp_path) -> None:
    out = str(tmp_path / "out.safetensors")
    with pytest.raises(SystemExit, match="no file at"):
        script.main([str(tmp_path / "absent.pt"), out])
    (tmp_path / "text.pt").write_text("no checkpoint", encoding="utf-8")
    for trust in ([], ["--trust"]):
        with pytest.raises(SystemExit, match="text.pt cannot be read"):
            script.main([str(tmp_path / "text.pt"), out, *trust])
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(SystemExit, match="holds no weights: .* no tensors: epoch .int.; expected name -> tensor"):
        script.main([str(tmp_path / "empty.pt"), out])
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        archive.writestr("program/code/__torch__.py", "")
    for trust in ([], ["--trust"]):
        with pytest.raises(SystemExit, match="TorchScript"):
            script.main([str(tmp_path / "program.pt"), out, *trust])
    with pytest.raises(SystemExit):
        script.main([str(tmp_path / "empty.pt"), str(tmp_path / "out.pt")])
    assert not (tmp_path / "out.safetensors").exists() and not (tmp_path / "out.pt").exists()
