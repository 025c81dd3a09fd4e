"""Weight files: reading, identification, fingerprints."""

import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clip_ext import weights
from clip_ext.loader import available_models
from clip_ext.weights import compute_file_fingerprint, compute_fingerprint, identify_architecture, load_state_dict

OPENAI = ["ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu", "ViT-L-14-336-quickgelu"]


@pytest.fixture(scope="module")
def architectures() -> dict[str, dict]:
    assert len(available_models()) == len(OPENAI) + 1
    return {name: open_clip.get_model_config(name) for name in [*OPENAI, "tiny12"]}


def meta_state(model_cfg: dict) -> dict[str, torch.Tensor]:
    """State dict of the full-size model, without memory for its tensors."""
    with torch.device("meta"):
        return open_clip.CLIP(**model_cfg).state_dict()


def tiny_state(make_clip) -> dict[str, torch.Tensor]:
    return make_clip(depth=1).model.state_dict()


@pytest.mark.parametrize("name", [*OPENAI, "tiny12"])
def test_identify_architecture_reads_it_from_the_tensors(name, architectures) -> None:
    assert identify_architecture(meta_state(architectures[name]), architectures) == name


@pytest.mark.parametrize(
    ("name", "depth", "width", "patch_size", "grid", "positions", "embed_dim"),
    [
        ("ViT-B-32-quickgelu", 12, 768, 32, 7, 50, 512),
        ("ViT-B-16-quickgelu", 12, 768, 16, 14, 197, 512),
        ("ViT-L-14-quickgelu", 24, 1024, 14, 16, 257, 768),
    ],
)
def test_describe_state_dict_gives_the_published_sizes(
    architectures, name, depth, width, patch_size, grid, positions, embed_dim
) -> None:
    state = meta_state(architectures[name])
    assert state["visual.positional_embedding"].shape == (positions, width)
    sizes = weights.describe_state_dict(state)
    expected = {"vision_layers": depth, "vision_width": width, "patch_size": patch_size, "grid": grid}
    assert sizes.items() >= (expected | {"embed_dim": embed_dim, "context_length": 77}).items()


def test_identify_architecture_without_match_says_what_was_read_and_what_is_near(architectures) -> None:
    model_cfg = open_clip.get_model_config("ViT-B-16-quickgelu")
    model_cfg["vision_cfg"]["layers"] = 11
    with pytest.raises(ValueError, match="vision_layers 11.*Nearest: ViT-B-16-quickgelu, which has vision_layers 12"):
        identify_architecture(meta_state(model_cfg), architectures)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("visual.layer1.0.conv1.weight", "is a ResNet.*needs a CLIP ViT with a CLS token"),
        ("visual.trunk.blocks.0.attn.qkv.weight", "is a timm model.*needs a CLIP ViT with a CLS token"),
        ("visual.attn_pool.query", "is attention-pooled.*needs a CLIP ViT with a CLS token"),
        ("vision_model.embeddings.class_embedding", "missing tensors"),
    ],
)
def test_identify_architecture_refuses_other_towers(architectures, name, message) -> None:
    with pytest.raises(ValueError, match=message):
        identify_architecture({name: torch.zeros(1)}, architectures)


def test_identify_architecture_refuses_a_tower_without_cls(architectures, make_clip) -> None:
    state = {name: tensor for name, tensor in tiny_state(make_clip).items() if name != "visual.class_embedding"}
    with pytest.raises(ValueError, match="no visual.class_embedding.*needs a CLIP ViT with a CLS token"):
        identify_architecture(state, architectures)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_load_state_dict_reads_every_layout(make_clip, tmp_path, suffix, wrapped) -> None:
    state, path = tiny_state(make_clip), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file({f"module.{name}": tensor for name, tensor in state.items()} if wrapped else state, path)
    else:
        scalars = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(32)}
        torch.save({"epoch": 3, "state_dict": state} if wrapped else state | scalars, path)
    loaded = load_state_dict(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_load_state_dict_drops_an_equal_second_copy_of_the_blocks(make_clip, tmp_path) -> None:
    state = tiny_state(make_clip)
    second = {
        name.replace("visual.transformer.", "visual.multi_transformer."): tensor.clone()
        for name, tensor in state.items()
        if name.startswith("visual.transformer.")
    }
    save_file(state | second, tmp_path / "equal.safetensors")
    assert load_state_dict(tmp_path / "equal.safetensors").keys() == state.keys()
    next(iter(second.values()))[0] += 1
    save_file(state | second, tmp_path / "different.safetensors")
    with pytest.raises(ValueError, match="visual.multi_transformer.*differs"):
        load_state_dict(tmp_path / "different.safetensors")


class Surprise:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("surprise"),)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.safetensors", lambda path: path.write_bytes(b"broken"), "damaged or not a safetensors file"),
        ("a.pt", lambda path: path.write_bytes(b"broken"), "damaged or holds more than tensors"),
        ("a.pt", lambda path: path.write_bytes(pickle.dumps(Surprise(), protocol=2)), "damaged or holds more than tensors"),
        ("a.pt", lambda path: torch.save([torch.zeros(1)], path), "holds a list"),
        ("a.pt", lambda path: torch.save({"epoch": 3, "lr": 0.1}, path), r"no tensors: \['epoch', 'lr'\]"),
        ("a.pt", lambda path: torch.save({}, path), "empty"),
    ],
)
def test_load_state_dict_refuses_other_files(tmp_path, monkeypatch, name, write, message) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        load_state_dict(tmp_path / name)
    assert not (tmp_path / "surprise").exists()


def test_load_state_dict_missing_file(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        load_state_dict(tmp_path / "absent.safetensors")


def test_fingerprint_depends_on_names_shapes_dtypes_and_bytes_but_not_on_order() -> None:
    state = {"a": torch.arange(4.0), "b": torch.tensor(1.5)}
    reference = compute_fingerprint(state)
    assert len(reference) == 64
    assert compute_fingerprint(dict(reversed(state.items()))) == reference
    changed = [
        {"c": state["a"], "b": state["b"]},
        {"a": state["a"].reshape(2, 2), "b": state["b"]},
        {"a": state["a"].view(torch.int32), "b": state["b"]},
        {"a": state["a"] + torch.tensor([0, 0, 0, 1e-6]), "b": state["b"]},
    ]
    assert len({reference, *map(compute_fingerprint, changed)}) == 5


def test_file_fingerprint_is_computed_once_per_file_version(tmp_path, monkeypatch) -> None:
    path, computed = tmp_path / "a.safetensors", []
    monkeypatch.setattr(weights, "compute_fingerprint", lambda state: computed.append(1) or str(len(computed)))
    path.write_bytes(b"first")
    assert [compute_file_fingerprint(path, {}) for _ in range(2)] == ["1", "1"]
    path.write_bytes(b"second version")
    assert compute_file_fingerprint(path, {}) == "2"
