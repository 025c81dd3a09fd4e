"""What is prepared once: found again by its key, built again where it is damaged, refused where it was named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_gpt2s import tiny_tokenizer
from tiny_world import clip_config, write_clip

from clip_ext import loader
from trainers.viecap.caption_store.store import CaptionStore
from trainers.viecap.caption_store.store_files import StoreDamaged, StoreDiffers
from trainers.viecap.caption_store.training_captions import TrainingCaptions
from trainers.viecap.clip_source import ClipSource
from trainers.viecap.prepare import NamedExtractor, prepare_store

OTHER = TrainingCaptions(("A dog.", "A cat on a sofa."), (("dog",), ("cat",)))
CAPTIONS = TrainingCaptions(("A dog.", "A cat on a sofa."), (("dog",), ("cat", "sofa")))


@pytest.fixture(scope="module")
def clip_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip", clip_config(depth=2))


def prepare(
    cache: Path, clip_name: str, *, captions: TrainingCaptions = CAPTIONS, store_dir: str | Path = ""
) -> CaptionStore:
    return prepare_store(
        captions, named=NamedExtractor("given"), tokenizer=tiny_tokenizer(), clip=ClipSource(clip_name, "cpu"),
        store_dir=store_dir, cache_dir=cache,
    )  # fmt: skip


def spoil(folder: Path) -> None:
    file = folder / "captions.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def test_automatic_store_is_built_once_and_again_if_it_is_damaged(
    tmp_path: Path, clip_name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    built = prepare(tmp_path, clip_name)
    assert [built.noun_table.of(row) for row in range(2)] == [["dog"], ["cat", "sofa"]]
    (folder,) = tmp_path.glob("viecap_captions-*")
    expected = built.features.clone()
    spoil(folder)
    assert torch.equal(prepare(tmp_path, clip_name).features, expected)
    assert "other bytes" in caplog.text and "built again" in caplog.text
    monkeypatch.setattr(loader, "_build_model", None)
    assert torch.equal(prepare(tmp_path, clip_name).features, expected)


def test_other_entities_are_another_automatic_store(tmp_path: Path, clip_name: str) -> None:
    stores = [prepare(tmp_path, clip_name, captions=captions) for captions in (CAPTIONS, OTHER)]
    assert [store.noun_table.of(1) for store in stores] == [["cat", "sofa"], ["cat"]]
    assert len(list(tmp_path.glob("viecap_captions-*"))) == 2


def test_named_store_is_refused_if_it_differs_or_is_damaged_and_is_left_as_it_was(tmp_path: Path, clip_name: str) -> None:
    named = tmp_path / "mine"
    prepare(tmp_path, clip_name, store_dir=named)
    before = (named / "captions.safetensors").read_bytes()
    with pytest.raises(StoreDiffers, match="STORE_DIR.*captions is") as caught:
        prepare(tmp_path, clip_name, store_dir=named, captions=OTHER)
    assert caught.value.fields == ["captions"] and (named / "captions.safetensors").read_bytes() == before
    spoil(named)
    with pytest.raises(StoreDamaged, match="STORE_DIR.*other bytes"):
        prepare(tmp_path, clip_name, store_dir=named)
