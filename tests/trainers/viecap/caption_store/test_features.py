"""Vectors of captions and images: a batch gives what single ones give, and tables find them again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_world import clip_config

from clip_ext.loader import LoadedClip, build_clip
from trainers.viecap.caption_store import features
from trainers.viecap.caption_store.features import (
    FeatureTable,
    encode_images,
    encode_texts,
    hash_images,
    read_images,
    write_images,
)
from trainers.viecap.caption_store.store_files import StoreDamaged, StoreDiffers

TEXTS = ["A red square.", "Two blue circles beside a very small green triangle on a grey wall.", "One.", "A dog in a park."]


@pytest.fixture(scope="module")
def clip() -> LoadedClip:
    return build_clip(clip_config(depth=2), name="tiny")


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.new("L" if number == 1 else "RGB", (40 + 8 * number, 48), number * 40).save(path)
    return [str(path) for path in paths]


def test_batched_captions_equal_single_ones_and_are_not_normalised(clip: LoadedClip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CHUNK", 3)
    batched = encode_texts(clip, TEXTS, batch=2)
    with torch.no_grad():
        single = torch.cat([clip.model.encode_text(clip.tokenizer([text])) for text in TEXTS])
    assert batched.dtype == torch.float16 and batched.shape == (4, 24)
    torch.testing.assert_close(batched.float(), single, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(batched.float().norm(dim=-1), torch.ones(4), atol=0.01)


def test_batched_images_equal_single_ones(clip: LoadedClip, pictures: list[str]) -> None:
    batched = encode_images(clip, pictures, batch=2)
    with torch.no_grad():
        inputs = [clip.preprocess(Image.open(path).convert("RGB"))[None] for path in pictures]
        single = torch.cat([clip.model.encode_image(image) for image in inputs])
    assert batched.dtype == torch.float16
    torch.testing.assert_close(batched.float(), single, atol=1e-3, rtol=1e-3)
    assert encode_images(clip, []).shape == (0, 24)


def test_all_unreadable_images_are_named(clip: LoadedClip, pictures: list[str]) -> None:
    Path(pictures[1]).write_bytes(b"no picture")
    Path(pictures[4]).unlink()
    with pytest.raises(ValueError, match=r"2 of 5 images cannot be read: .*1\.png.*4\.png.*MISSING to skip"):
        encode_images(clip, pictures, batch=2)


def test_table_finds_vectors_by_name_after_it_was_stored(tmp_path: Path) -> None:
    table = FeatureTable(torch.arange(6).reshape(3, 2).half(), ["a.jpg", "b.jpg", "c.jpg"])
    write_images(tmp_path / "images", {"clip": "1"}, "val", table)
    assert (tmp_path / "images" / "images_val.safetensors").is_file()
    again = read_images(tmp_path / "images", {"clip": "1"}, "val")
    assert again.ids == table.ids and torch.equal(again.find(["c.jpg", "a.jpg"]), torch.tensor([[4.0, 5.0], [0.0, 1.0]]))
    with pytest.raises(KeyError, match="no stored features of x.jpg; the table holds 3 images"):
        again.find(["a.jpg", "x.jpg"])
    with pytest.raises(StoreDiffers, match="clip is '1', expected '2'"):
        read_images(tmp_path / "images", {"clip": "2"}, "val")
    with pytest.raises(StoreDamaged, match="expected images_test.json"):
        read_images(tmp_path / "images", {"clip": "1"}, "test")


def test_hash_of_images_follows_names_order_and_bytes(pictures: list[str]) -> None:
    names = [Path(path).name for path in pictures]
    first = hash_images(pictures, names)
    assert first == hash_images(pictures, names) != hash_images(pictures[::-1], names[::-1])
    assert first != hash_images(pictures, ["x", *names[1:]])
    Image.new("RGB", (9, 9)).save(pictures[0])
    assert hash_images(pictures, names) != first
