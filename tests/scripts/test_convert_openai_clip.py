"""Conversion of TorchScript archives, the format of OpenAI's own files."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import open_clip
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from clip_ext import loader
from clip_ext.loader import build_clip, load_clip

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_openai_clip", ROOT / "scripts" / "convert_openai_clip.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Holder(nn.Module):
    """Any program: only the names and tensors of an archive matter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_archive(state: dict[str, torch.Tensor], path: Path) -> None:
    """Save a TorchScript archive with these tensors, nested by their dotted names as in OpenAI's files."""
    root = Holder()
    for name, tensor in state.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, Holder())
            module = getattr(module, parent)
        module.register_buffer(leaf, tensor)
    torch.jit.trace(root, torch.zeros(1)).save(str(path))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, loader.LoadedClip]:
    config = json.loads((Path(loader.__file__).parent / "model_configs" / "tiny12.json").read_text(encoding="utf-8"))
    clip = build_clip(config, name="tiny12")
    path = tmp_path_factory.mktemp("archive") / "ViT-T-8.pt"
    scalars = {"input_resolution": torch.tensor(48), "context_length": torch.tensor(32), "vocab_size": torch.tensor(4514)}
    write_archive(clip.model.state_dict() | scalars, path)
    return path, clip


def test_load_clip_of_an_archive_names_the_script(archive) -> None:
    with pytest.raises(ValueError, match="TorchScript archive.*scripts/convert_openai_clip.py ViT-T-8.pt ViT-T-8.safetensors"):
        load_clip(str(archive[0]))


def test_converted_archive_loads_with_the_same_weights(archive, script, tmp_path, capsys) -> None:
    path, clip = archive
    target = tmp_path / "converted.safetensors"
    script.main([str(path), str(target)])
    assert "vision_layers 12" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["converted.safetensors"]
    loaded = load_clip(str(target))
    pictures = torch.randn(1, 3, 48, 48)
    assert_close(loaded.model.encode_image(pictures), clip.model.encode_image(pictures), atol=1e-6, rtol=0)
    assert loaded.fingerprint == clip.fingerprint


def test_convert_refuses_other_files(script, tmp_path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.pt")
    with pytest.raises(SystemExit, match="not a TorchScript archive"):
        script.main([str(tmp_path / "plain.pt"), str(tmp_path / "out.safetensors")])
    write_archive({"visual.layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pt")
    with pytest.raises(SystemExit, match="is a ResNet.*needs a CLIP ViT with a CLS token"):
        script.main([str(tmp_path / "resnet.pt"), str(tmp_path / "out.safetensors")])
    with pytest.raises(SystemExit, match="no file at"):
        script.main([str(tmp_path / "absent.pt"), str(tmp_path / "out.safetensors")])
    with pytest.raises(SystemExit):
        script.main([str(tmp_path / "plain.pt"), str(tmp_path / "out.pt")])
    assert not (tmp_path / "out.safetensors").exists()
