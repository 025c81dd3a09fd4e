import pytest
import torch
from torch.nn import functional as F

from clip_ext.loader import build_clip
from clip_ext.text_encoding import encode_texts, encode_tokens, find_truncated, release_text_tower

TEXTS = [
    "one",
    "a photo of the handwritten digit three in white ink",
    "a zero",
    "a pale seven on a dark background, blurred and small, from a scanned form",
]


def small_clip(**text_options):
    text = {"context_length": 24, "vocab_size": 4514, "width": 32, "heads": 2, "layers": 3} | text_options
    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    return build_clip({"embed_dim": 20, "vision_cfg": vision, "text_cfg": text}, name="small")


@pytest.fixture(scope="module")
def clip():
    return small_clip()


def encode_full(clip, texts):
    with torch.no_grad():
        return F.normalize(clip.model.encode_text(clip.tokenizer(texts)), dim=-1)


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_encode_texts_equals_open_clip_in_order(clip, batch):
    features = encode_texts(clip, TEXTS, batch=batch)
    assert features.shape == (4, 20) and features.dtype == torch.float32 and not features.requires_grad
    assert torch.allclose(features, encode_full(clip, TEXTS), atol=1e-6)


def test_encode_texts_without_normalising_are_the_towers_own(clip):
    with torch.no_grad():
        expected = clip.model.encode_text(clip.tokenizer(TEXTS))
    assert torch.allclose(encode_texts(clip, TEXTS, batch=2, normalise=False), expected, atol=1e-5)
    assert not torch.allclose(expected.norm(dim=-1), torch.ones(4), atol=0.01)


def test_encode_texts_equals_open_clip_at_clip_size():
    clip = small_clip(context_length=77, vocab_size=49408, width=64, layers=4)
    assert torch.allclose(encode_texts(clip, TEXTS), encode_full(clip, TEXTS), atol=1e-6)


def test_encode_texts_runs_only_as_far_as_the_longest_text(clip):
    lengths = []
    handle = clip.model.transformer.resblocks[0].register_forward_hook(
        lambda block, args, out: lengths.append(out.shape[1])
    )
    encode_texts(clip, ["a red one", "a one"])
    handle.remove()
    assert lengths == [5]  # start, a, red, one, end


@pytest.mark.parametrize(
    "options",
    [{"pool_type": "eos", "eos_id": 4513}, {"proj_bias": True}, {"no_causal_mask": True}, {"proj_type": "none"}],
    ids=lambda options: next(iter(options)),
)
def test_encode_texts_with_other_text_towers_equals_open_clip(options):
    clip = small_clip(**options)
    assert torch.allclose(encode_texts(clip, TEXTS), encode_full(clip, TEXTS), atol=1e-6)


def test_encode_texts_with_custom_text_tower_equals_open_clip():
    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 24, "vocab_size": 4514, "width": 32, "heads": 2, "layers": 2}
    clip = build_clip({"embed_dim": 20, "vision_cfg": vision, "text_cfg": text, "custom_text": True}, name="custom")
    assert torch.allclose(encode_texts(clip, TEXTS), encode_full(clip, TEXTS), atol=1e-6)
    release_text_tower(clip.model)
    with pytest.raises(RuntimeError, match="released"):
        encode_texts(clip, TEXTS)


def test_encode_texts_of_half_precision_tower_are_unit_fp32():
    clip = small_clip()
    clip.model.to(torch.bfloat16)
    features = encode_texts(clip, TEXTS)
    assert features.dtype == torch.float32
    assert torch.allclose(features.norm(dim=-1), torch.ones(4), atol=1e-6)


@pytest.mark.parametrize("texts, batch", [([], 1), (TEXTS, 0)])
def test_encode_without_texts_or_batch_raises(clip, texts, batch):
    tokens = clip.tokenizer(texts) if texts else torch.zeros(0, 24, dtype=torch.long)
    with pytest.raises(ValueError, match=f"got {len(texts)} texts and batch {batch}"):
        encode_tokens(clip.model, tokens, batch=batch)


def test_release_text_tower_frees_its_weights_and_keeps_the_image_tower():
    clip = small_clip()
    release_text_tower(clip.model)
    assert all(name.startswith("visual.") or name == "logit_scale" for name, _ in clip.model.named_parameters())
    assert clip.model.encode_image(torch.zeros(1, 3, 16, 16)).shape == (1, 20)
    with pytest.raises(RuntimeError, match="released"):
        encode_texts(clip, TEXTS)


def test_defect_24_over_long_texts_are_found_and_a_full_context_is_not(clip):
    fits, too_long = " ".join(["one"] * 22), " ".join(["one"] * 23)
    texts = [too_long, "a zero", fits, too_long]
    assert find_truncated(clip, texts, clip.tokenizer(texts)) == [0, 3]
