"""Loading and building CLIPs, offline."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

from clip_ext import loader
from clip_ext.loader import available_models, build_clip, identify_clip, load_clip
from clip_ext.weights import compute_fingerprint

ASSETS = Path(loader.__file__).parent


@pytest.fixture
def tiny_config() -> dict:
    return json.loads((ASSETS / "model_configs" / "tiny12.json").read_text(encoding="utf-8"))


@pytest.fixture
def saved_clip(make_config, make_clip, tmp_path):
    """A folder in open_clip's layout, with the CLIP that is in it."""
    clip = make_clip(depth=2)
    save_file(clip.model.state_dict(), tmp_path / "open_clip_model.safetensors")
    config = {"model_cfg": make_config(depth=2), "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "interpolation": "bilinear"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path, clip


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    """Let open_clip fetch random weights of a smaller ViT-B/32; returns what it was asked for."""
    requests = []
    model_cfg = open_clip.get_model_config("ViT-B-32-quickgelu")
    model_cfg["vision_cfg"] |= {"layers": 1, "width": 64}
    model_cfg["text_cfg"] |= {"layers": 1, "width": 64}

    def get_model_config(name: str) -> dict:
        requests.append(name)
        return json.loads(json.dumps(model_cfg))

    def download(pretrained: dict, cache_dir: str | None = None) -> str:
        requests.append((pretrained["hf_hub"], cache_dir))
        save_file(open_clip.CLIP(**model_cfg).state_dict(), tmp_path / "hub.safetensors")
        return str(tmp_path / "hub.safetensors")

    monkeypatch.setattr(open_clip, "get_model_config", get_model_config)
    monkeypatch.setattr(open_clip, "download_pretrained", download)
    return requests


def test_available_models_are_the_short_names() -> None:
    assert available_models() == ["tiny12", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"]


def test_build_clip_reads_its_sizes_from_the_config(make_config) -> None:
    clip = build_clip(make_config(width=48, depth=6, embed_dim=20), name="mine")
    info = clip.info
    assert (info.name, info.depth, info.width, info.heads, info.embed_dim) == ("mine", 6, 48, 3, 20)
    assert (info.image_size_px, info.patch_size, info.grid, info.context_length) == (32, 8, 4, 32)
    assert info.mean == open_clip.OPENAI_DATASET_MEAN and info.std == open_clip.OPENAI_DATASET_STD
    assert isinstance(clip.model, open_clip.CLIP) and not clip.model.training
    assert clip.model.encode_text(clip.tokenizer(["a seven"])).shape == (1, 20)


def test_build_clip_is_repeatable_and_leaves_the_global_random_state(make_config) -> None:
    state, config = torch.get_rng_state(), make_config(depth=1)
    first, again, other = (build_clip(config, name="mine", seed=seed).fingerprint for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)
    assert config == make_config(depth=1)


def test_preprocess_gives_a_normalised_image_of_the_models_size(make_clip) -> None:
    picture = make_clip(depth=1).preprocess(Image.new("L", (70, 50), color=255))
    expected = (1 - torch.tensor(open_clip.OPENAI_DATASET_MEAN)) / torch.tensor(open_clip.OPENAI_DATASET_STD)
    assert_close(picture, expected[:, None, None].expand(3, 32, 32), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"layers": [1, 1, 1, 1]}, "is a ResNet; this package needs a CLIP ViT with a CLS token"),
        ({"timm_model_name": "vit_tiny"}, "is a timm model"),
        ({"attentional_pool": True}, "is attention-pooled"),
        ({"pool_type": "avg"}, "pooled without CLS"),
    ],
)
def test_build_clip_refuses_towers_without_cls(make_config, overrides, message) -> None:
    config = make_config(depth=1)
    config["vision_cfg"] |= overrides
    with pytest.raises(ValueError, match=message):
        build_clip(config, name="mine")


def test_build_clip_unknown_vocabulary_asks_for_a_tokenizer(make_config) -> None:
    config = make_config(depth=1)
    config["text_cfg"]["vocab_size"] = 100
    with pytest.raises(ValueError, match="vocab_size is 100; pass tokenizer="):
        build_clip(config, name="mine")
    clip = build_clip(config, name="mine", tokenizer=lambda texts: torch.zeros(len(texts), 32, dtype=torch.long))
    assert clip.tokenizer(["a"]).shape == (1, 32)


def test_tiny12_token_list_is_clips_first_4000_merges(tiny_config) -> None:
    tokenizer = build_clip(tiny_config, name="tiny12").tokenizer
    assert tokenizer.vocab_size == tiny_config["text_cfg"]["vocab_size"] == 4514
    tokens = tokenizer(["a photo of the digit three.", "word " * 50])
    assert tokens.shape == (2, 32) and tokens.max() == 4513
    assert tokens[1, -1] == 4513
    full = open_clip.SimpleTokenizer()
    assert list(tokenizer.bpe_ranks) == list(full.bpe_ranks)[:4000]


def test_load_local_dir_gives_the_same_model_and_its_preprocessing(saved_clip, images) -> None:
    folder, clip = saved_clip
    for name in (f"local-dir:{folder}", str(folder)):
        loaded = load_clip(name)
        assert torch.equal(loaded.model.encode_image(images), clip.model.encode_image(images))
        assert loaded.fingerprint == clip.fingerprint == compute_fingerprint(clip.model.state_dict())
        assert loaded.info.mean == (0.5, 0.5, 0.5) and loaded.info.interpolation == "bilinear"
        assert loaded.info.name == name


def test_identify_clip_knows_weights_and_activation_without_building(saved_clip, monkeypatch) -> None:
    folder, clip = saved_clip
    monkeypatch.setattr(loader, "_build_model", None)
    identity = identify_clip(f"local-dir:{folder}")
    assert (identity.fingerprint, identity.embed_dim) == (clip.fingerprint, clip.info.embed_dim)
    renamed = folder.rename(folder.with_name("renamed"))
    assert identify_clip(f"local-dir:{renamed}") == identity
    config = json.loads((renamed / "open_clip_config.json").read_text(encoding="utf-8"))
    config["model_cfg"]["quick_gelu"] = True
    (renamed / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert identify_clip(f"local-dir:{renamed}").fingerprint == identity.fingerprint
    assert identify_clip(f"local-dir:{renamed}").settings != identity.settings


def test_load_casts_every_tensor_once(saved_clip) -> None:
    folder, clip = saved_clip
    loaded = load_clip(f"local-dir:{folder}", dtype=torch.bfloat16)
    tensors = [*loaded.model.parameters(), *loaded.model.buffers()]
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert loaded.fingerprint == clip.fingerprint


def test_load_leaves_the_global_random_state(saved_clip) -> None:
    state = torch.get_rng_state()
    load_clip(f"local-dir:{saved_clip[0]}")
    assert torch.equal(torch.get_rng_state(), state)


def test_load_custom_text_model(saved_clip, images) -> None:
    folder, clip = saved_clip
    content = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    content["model_cfg"]["custom_text"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    model = load_clip(f"local-dir:{folder}").model
    assert isinstance(model, open_clip.CustomTextCLIP)
    tokens = clip.tokenizer(["a red seven"])
    assert torch.equal(model.encode_text(tokens), clip.model.encode_text(tokens))


def test_load_state_dict_file_is_identified_from_its_tensors(tiny_config, tmp_path, images) -> None:
    clip = build_clip(tiny_config, name="tiny12", seed=3)
    path = tmp_path / "my weights.safetensors"
    save_file({name: tensor.half() for name, tensor in clip.model.state_dict().items()}, path)
    loaded = load_clip(str(path))
    assert (loaded.info.depth, loaded.info.width, loaded.info.heads, loaded.info.patch_size) == (12, 96, 3, 8)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    pictures = torch.randn(2, 3, 48, 48)
    assert_close(loaded.model.encode_image(pictures), clip.model.encode_image(pictures), atol=1e-2, rtol=0)


def test_load_open_clip_architecture_with_a_file(tiny_config, tmp_path) -> None:
    save_file(build_clip(tiny_config, name="tiny12").model.state_dict(), tmp_path / "w.safetensors")
    assert load_clip(f"open_clip:tiny12:{tmp_path / 'w.safetensors'}").info.depth == 12
    with pytest.raises(ValueError, match=r"does not fit its architecture: 72 tensors missing \(.*\d+ tensors of another shape"):
        load_clip(f"open_clip:ViT-S-32-alt:{tmp_path / 'w.safetensors'}")


@pytest.mark.parametrize("name", ["ViT-B/32", "open_clip:ViT-B-32-quickgelu:openai"])
def test_load_openai_name_uses_quickgelu_and_openais_weights(name, fake_hub) -> None:
    clip = load_clip(name, cache_dir="somewhere")
    assert fake_hub == ["ViT-B-32-quickgelu", ("timm/vit_base_patch32_clip_224.openai/", "somewhere")]
    assert type(clip.model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert clip.info.name == name and clip.tokenizer(["a"]).shape == (1, 77)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("ViT-B/23", ValueError, r"unknown CLIP 'ViT-B/23' \(did you mean 'ViT-B/32'\?\).*'tiny12'"),
        ("open_clip:ViT-B-32:openai", ValueError, "quick_gelu=True.*use open_clip:ViT-B-32-quickgelu:openai"),
        ("open_clip:ViT-B-32-quickgelu:laion2b_e16", ValueError, "needs one of its weights, got 'laion2b_e16'"),
        ("open_clip:ViT-B-32", ValueError, r"needs one of its weights, got ''; expected one of \['openai'"),
        ("open_clip:ViT-Z", ValueError, "no architecture 'ViT-Z'; nearest"),
        ("open_clip:RN50:openai", ValueError, "a ResNet; this package needs a CLIP ViT with a CLS token"),
        ("open_clip:coca_ViT-B-32", ValueError, "attention-pooled; this package needs"),
        ("open_clip:ViT-B-16-SigLIP", ValueError, "a timm model; this package needs"),
        ("local-dir:absent", FileNotFoundError, "has no open_clip_config.json"),
        ("absent.safetensors", FileNotFoundError, "no weights file at absent.safetensors"),
    ],
)
def test_load_clip_wrong_names(name, error, message) -> None:
    with pytest.raises(error, match=message):
        load_clip(name)


def test_load_hub_model_gives_its_weights_and_preprocessing(saved_clip, monkeypatch) -> None:
    folder, clip = saved_clip
    asked = []

    def download(model_id: str, filename: str = "open_clip_model.safetensors", cache_dir: str | None = None) -> str:
        asked.append((model_id, cache_dir))
        return str(folder / filename)

    monkeypatch.setattr(loader, "download_pretrained_from_hf", download)
    loaded = load_clip("hf-hub:someone/clip", cache_dir="somewhere")
    assert set(asked) == {("someone/clip", "somewhere")}
    assert loaded.fingerprint == clip.fingerprint and loaded.info.mean == (0.5, 0.5, 0.5)


def test_load_local_dir_incomplete(saved_clip) -> None:
    folder, _ = saved_clip
    (folder / "open_clip_config.json").write_text('{"model_type": "clip"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"has no model_cfg; found \['model_type'\]"):
        load_clip(f"local-dir:{folder}")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights; expected one of open_clip_model.safetensors"):
        load_clip(f"local-dir:{folder}")


def test_load_without_network_names_the_way_out(monkeypatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise FileNotFoundError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    monkeypatch.setattr(loader, "download_pretrained_from_hf", fail)
    with pytest.raises(RuntimeError, match="could not fetch the weights 'openai'.*open_clip:ViT-B-32-quickgelu:<file>"):
        load_clip("ViT-B/32")
    with pytest.raises(RuntimeError, match="could not fetch hf-hub:someone/clip.*local-dir"):
        load_clip("hf-hub:someone/clip")


def test_load_tiny12_without_its_file_names_it(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(loader, "_TINY_WEIGHTS", tmp_path / "tiny12.safetensors")
    with pytest.raises(FileNotFoundError, match="tiny12.safetensors.*scripts/pretrain_tiny_clip.py"):
        load_clip("tiny12")


@pytest.mark.skipif(not (ASSETS / "assets" / "tiny12.safetensors").is_file(), reason="tiny12 has no weights yet")
def test_load_tiny12_equals_open_clips_own_model() -> None:
    clip = load_clip("tiny12")
    own = open_clip.create_model("tiny12", pretrained=str(ASSETS / "assets" / "tiny12.safetensors")).eval()
    pictures = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    tokens = clip.tokenizer(["a photo of the digit three", "a red seven on a striped background"])
    with torch.no_grad():
        assert_close(clip.model.encode_image(pictures), own.encode_image(pictures), atol=1e-5, rtol=0)
        assert_close(clip.model.encode_text(tokens), own.encode_text(tokens), atol=1e-5, rtol=0)
    assert clip.info.name == "tiny12" and clip.info.depth == 12
