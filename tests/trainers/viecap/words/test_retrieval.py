"""Which names of a vocabulary an image is said to show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clip_ext.loader import ClipIdentity, LoadedClip, build_clip
from trainers.viecap.words import retrieval
from trainers.viecap.words.retrieval import Found, Retriever, cached_embeddings, embed_vocabulary, entity_texts

NAMES = ("apple", "fire hydrant", "orange", "zebra")
TEMPLATES = (
    "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.",
    "art of the {}.", "a photo of the small {}.",
)  # fmt: skip


@pytest.fixture(scope="module")
def clip() -> LoadedClip:
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8}
    text = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 2}
    return build_clip({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, name="small")


def with_cosines(*cosines: float) -> tuple[Tensor, Tensor]:
    """An image feature and names whose cosines with it are given."""
    across = torch.tensor([(1 - cosine**2) ** 0.5 for cosine in cosines])
    return torch.tensor([[1.0, 0.0]]), torch.stack([torch.tensor(cosines), across], dim=1)


@pytest.mark.parametrize("threshold, used", [(0.2, 2), (0.4, 1), (0.7, 0)])
def test_probabilities_and_used_names_are_the_documented_ones(threshold: float, used: int) -> None:
    image, embeddings = with_cosines(0.28, 0.30, 0.20, 0.29)
    (found,) = Retriever(embeddings, "cabd", top_k=4, threshold=threshold).find(image * 17)  # any length of the feature
    assert [entity.name for entity in found] == ["a", "d", "c", "b"]
    assert [round(entity.probability, 4) for entity in found] == [0.6652, 0.2447, 0.0900, 0.0000]
    assert [entity.used for entity in found] == [True] * used + [False] * (4 - used)


def test_the_softmax_runs_over_the_whole_vocabulary_and_top_k_limits_the_list() -> None:
    image, embeddings = with_cosines(0.30, 0.29, 0.28, 0.20)
    (found,) = Retriever(embeddings, "abcd", top_k=1, threshold=0.0).find(image)
    assert found == [Found("a", pytest.approx(0.6652, abs=1e-4), True)]
    (found,) = Retriever(embeddings, "abcd", top_k=9, threshold=0.0, temperature=0.1).find(image)
    expected = (torch.tensor([0.30, 0.29, 0.28, 0.20]) / 0.1).softmax(0)
    assert [entity.probability for entity in found] == pytest.approx(expected.tolist(), abs=1e-6)


def test_names_of_equal_probability_keep_the_vocabulary_s_order() -> None:
    image, embeddings = with_cosines(0.1, 0.3, 0.3, 0.3)
    (found,) = Retriever(embeddings, "zcba", top_k=4, threshold=0.0).find(image)
    assert [entity.name for entity in found] == ["c", "b", "a", "z"]


def test_a_batch_finds_what_single_images_find_in_half_precision_surroundings_too() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(200, 16, generator=generator), dim=-1)
    images = torch.randn(9, 16, generator=generator)
    retriever = Retriever(embeddings, [f"name {k}" for k in range(200)], threshold=0.05)
    singles = [retriever.find(image[None])[0] for image in images]
    for batch in (retriever.find(images), _under_autocast(retriever, images)):
        for found, single in zip(batch, singles, strict=True):
            assert [(entity.name, entity.used) for entity in found] == [(entity.name, entity.used) for entity in single]
            assert [entity.probability for entity in found] == pytest.approx([e.probability for e in single], abs=1e-5)


def _under_autocast(retriever: Retriever, images: Tensor) -> list[list[Found]]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return retriever.find(images)


def test_settings_out_of_range_are_reported_together() -> None:
    with pytest.raises(ValueError) as caught:
        Retriever(torch.eye(3), "ab", top_k=0, threshold=1.2, temperature=0.0)
    message = str(caught.value)
    assert "2 names come with 3 embeddings" in message and "TRAINER.VIECAP.TOP_K is 0; expected 1 or more" in message
    assert "THRESHOLD is 1.2" in message and "TEMPERATURE is 0.0" in message


def test_features_of_another_clip_are_refused() -> None:
    with pytest.raises(ValueError, match=r"width 3, the vocabulary's 4: they come from different CLIPs"):
        Retriever(torch.eye(4), "abcd").find(torch.ones(1, 3))


def test_texts_of_an_entity_are_the_seven_templates_or_one_with_its_article() -> None:
    assert entity_texts("fire hydrant", ensemble=True) == [text.replace("{}", "fire hydrant") for text in TEMPLATES]
    assert [entity_texts(name, ensemble=False) for name in NAMES] == [
        ["A photo of an apple."], ["A photo of a fire hydrant."], ["A photo of an orange."], ["A photo of a zebra."],
    ]  # fmt: skip


@pytest.mark.parametrize("ensemble", [True, False])
def test_embeddings_are_the_normalised_mean_of_normalised_text_features(
    clip: LoadedClip, ensemble: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "_CHUNK", 3)  # two chunks
    embeddings = embed_vocabulary(NAMES, clip, ensemble=ensemble, batch=5)
    assert embeddings.shape == (4, 16) and embeddings.dtype == torch.float32
    for name, embedding in zip(NAMES, embeddings, strict=True):
        singles = [text.replace("{}", name) for text in TEMPLATES] if ensemble else entity_texts(name, ensemble=False)
        with torch.no_grad():
            each = [clip.model.encode_text(clip.tokenizer([text]))[0] for text in singles]
        mean = torch.stack([vector / vector.norm() for vector in each]).mean(0)
        torch.testing.assert_close(embedding, mean / mean.norm(), atol=1e-6, rtol=0)


def test_cached_embeddings_need_no_clip_until_anything_changes(clip: LoadedClip, tmp_path: Path) -> None:
    loads: Iterator[LoadedClip] = iter([clip] * 3)
    identity = ClipIdentity(clip.fingerprint, "settings", 16)

    def get(names: tuple[str, ...] = NAMES, clip: ClipIdentity = identity, ensemble: bool = True) -> Tensor:
        return cached_embeddings(names, clip, lambda: next(loads), ensemble=ensemble, cache_dir=tmp_path)

    first = get()
    assert torch.equal(get(), first) and len(list(loads)) == 2
    others = {"names": NAMES[:3]}, {"ensemble": False}, {"clip": ClipIdentity("f", "settings", 16)}, {
        "clip": ClipIdentity(clip.fingerprint, "others", 16)
    }
    for changes in others:
        loads = iter([clip])
        get(**changes)
        assert next(loads, None) is None, changes


def test_a_damaged_cache_file_is_computed_again(clip: LoadedClip, tmp_path: Path) -> None:
    identity = ClipIdentity(clip.fingerprint, "settings", 16)
    first = cached_embeddings(NAMES, identity, lambda: clip, ensemble=False, cache_dir=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    assert torch.equal(cached_embeddings(NAMES, identity, lambda: clip, ensemble=False, cache_dir=tmp_path), first)
