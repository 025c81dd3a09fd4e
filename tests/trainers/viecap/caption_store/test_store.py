"""The caption store: what is written reopens bit for bit, and nothing else is ever read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_gpt2s import tiny_tokenizer

from clip_ext.loader import ClipIdentity
from trainers.viecap.caption_store import store as store_module
from trainers.viecap.caption_store.store import CaptionRow, build_store, collect_nouns, open_store, read_nouns, write_nouns
from trainers.viecap.caption_store.store_files import MANIFEST, StoreDamaged, StoreDiffers, digest_of
from trainers.viecap.caption_store.store_key import automatic_folder, hash_captions, hash_tokenizer, noun_key, store_key

ROWS = [
    CaptionRow("A red circle and a blue square.", ["circle", "square"]),
    CaptionRow("Nothing is here!", []),
    CaptionRow("A square on a square.", ["square"]),
]
CLIP = ClipIdentity("a" * 64, "b" * 64, 6)
FEATURES = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)) * 9


def make_key(**changes: str) -> dict[str, str]:
    nouns = noun_key(hash_captions([row.caption for row in ROWS]), normaliser="1", extractor="given 1")
    return store_key(nouns, clip=CLIP, tokenizer="c" * 64) | changes


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "store"
    build_store(folder, ROWS, key=make_key(), tokenizer=tiny_tokenizer(), encode_texts=lambda texts: FEATURES[: len(texts)])
    return folder


@pytest.fixture
def store_folder(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(built, tmp_path / "store"))


def test_store_reopens_bit_for_bit_in_the_order_of_the_rows(built: Path) -> None:
    store = open_store(built, make_key())
    assert len(store) == 3 and store.features.dtype == torch.float16 and torch.equal(store.features, FEATURES.half())
    assert store.tokens.dtype == store.nouns.dtype == torch.int32
    assert store.token_offset.dtype == store.noun_offset.dtype == torch.int64
    for row, expected in enumerate(ROWS):
        start, end = store.token_offset[row : row + 2].tolist()
        assert tiny_tokenizer().decode(store.tokens[start:end]) == expected.caption
        assert store.noun_table.of(row) == expected.nouns
    assert store.noun_names == ("circle", "square") and store.noun_table.count() == {"circle": 1, "square": 2}
    assert store.noun_table.count(np.array([2, 1])) == {"square": 1}
    assert store.lengths.tolist() == [len(tiny_tokenizer()(row.caption)["input_ids"]) for row in ROWS]


def test_store_has_the_files_and_tensors_of_the_specification(built: Path) -> None:
    from safetensors import safe_open

    assert sorted(path.name for path in built.iterdir()) == ["captions.safetensors", "entities.json", MANIFEST]
    with safe_open(built / "captions.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["ent", "ent_offset", "feat", "tok", "tok_offset"]


def test_features_are_mapped_not_read(built: Path, tmp_path: Path) -> None:
    wide = torch.zeros(50, 4096, dtype=torch.float16)
    rows = [CaptionRow("A square.", [])] * 50
    build_store(tmp_path / "wide", rows, key=make_key(), tokenizer=tiny_tokenizer(), encode_texts=lambda texts: wide)
    store = open_store(tmp_path / "wide", make_key())
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no list of mapped files on this system")
    assert str(tmp_path / "wide" / "captions.safetensors") in maps.read_text("utf-8")
    assert store.features.shape == (50, 4096)


@pytest.mark.parametrize("field", sorted(make_key()))
def test_each_field_of_the_key_changed_alone_is_refused_and_named(built: Path, field: str) -> None:
    with pytest.raises(StoreDiffers, match=f"{field} is") as caught:
        open_store(built, make_key(**{field: "other"}))
    assert caught.value.fields == [field]
    assert digest_of(make_key(**{field: "other"})) != digest_of(make_key())


def test_all_differing_fields_are_named_together(built: Path) -> None:
    with pytest.raises(StoreDiffers, match="clip is aaaaaaaaaaaa.*extractor is 'given 1', expected 'nltk'"):
        open_store(built, make_key(clip="d" * 64, extractor="nltk"))


def test_key_follows_what_it_is_made_of() -> None:
    captions = [row.caption for row in ROWS]
    hashes = {
        hash_captions(captions),
        hash_captions(captions[::-1]),
        hash_captions(captions[:2]),
        hash_captions(["".join(captions)]),
        hash_captions(captions, [row.nouns for row in ROWS]),
        hash_captions(captions, [["circle", "square", "x"], [], ["square"]]),
    }
    assert len(hashes) == 6 and hash_captions(captions) == make_key()["captions"]
    assert store_key(noun_key("x", normaliser="1", extractor="e"), clip=None, tokenizer="t")["clip"] == ""


def test_tokenizer_hash_sees_another_word_and_no_use(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    before = hash_tokenizer(tiny_tokenizer())
    tiny_tokenizer().save_pretrained(tmp_path / "moved")
    other = AutoTokenizer.from_pretrained(tmp_path / "moved")
    assert hash_tokenizer(other) == before
    other(["a", "a square"], truncation=True, max_length=1)
    assert hash_tokenizer(other) == before
    other.add_tokens(["zebra"])
    assert hash_tokenizer(other) != before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["captions.safetensors", "entities.json", MANIFEST])
@pytest.mark.parametrize("spoil", [cut, flip, Path.unlink])
def test_damage_of_any_file_is_refused(store_folder: Path, name: str, spoil: Callable[[Path], None]) -> None:
    spoil(store_folder / name)
    with pytest.raises(StoreDamaged):
        open_store(store_folder, make_key())


def test_manifest_that_was_edited_is_refused(store_folder: Path) -> None:
    manifest = json.loads((store_folder / MANIFEST).read_text("utf-8"))
    manifest["key"]["clip"] = "d" * 64
    (store_folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(StoreDamaged, match="has changed"):
        open_store(store_folder, make_key(clip="d" * 64))


def test_half_built_store_is_never_read_and_an_older_one_stays(
    store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("trainers.viecap.caption_store.store_files.hash_file", fail)
    for folder in (store_folder, tmp_path / "new"):
        with pytest.raises(OSError, match="disk full"):
            build_store(folder, ROWS[:1], key=make_key(), tokenizer=tiny_tokenizer(), encode_texts=lambda texts: FEATURES[:1])
    monkeypatch.undo()
    assert len(open_store(store_folder, make_key())) == 3
    with pytest.raises(StoreDamaged, match="no readable manifest"):
        open_store(tmp_path / "new", make_key())


def test_store_of_another_kind_is_refused(tmp_path: Path) -> None:
    table = collect_nouns([row.nouns for row in ROWS])
    write_nouns(tmp_path / "nouns", make_key(), table)
    again = read_nouns(tmp_path / "nouns", make_key())
    assert [again.of(row) for row in range(3)] == [row.nouns for row in ROWS]
    with pytest.raises(StoreDamaged, match="holds nouns, expected captions"):
        open_store(tmp_path / "nouns", make_key())


def test_store_without_features_opens(tmp_path: Path) -> None:
    build_store(tmp_path / "store", ROWS, key=make_key(), tokenizer=tiny_tokenizer(), encode_texts=None)
    assert open_store(tmp_path / "store", make_key()).features is None


@pytest.mark.parametrize(
    ("rows", "features", "message"),
    [
        ([], FEATURES, "no captions"),
        ([CaptionRow("", [])], FEATURES[:1], "1 captions have no token"),
        (ROWS, FEATURES[:2], "expected 3 finite rows"),
        (ROWS, FEATURES * 1e6, "finite in fp16: False"),
    ],
)
def test_unusable_rows_are_refused(tmp_path: Path, rows: list[CaptionRow], features: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_store(tmp_path / "x", rows, key=make_key(), tokenizer=tiny_tokenizer(), encode_texts=lambda texts: features)
    assert not (tmp_path / "x").exists()


def test_tokenising_in_chunks_changes_nothing(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHUNK", 2)
    build_store(tmp_path / "store", ROWS, key=make_key(), tokenizer=tiny_tokenizer(), encode_texts=lambda texts: FEATURES)
    assert torch.equal(open_store(tmp_path / "store", make_key()).tokens, open_store(built, make_key()).tokens)


def test_automatic_folder_is_named_by_the_key(tmp_path: Path) -> None:
    folders = {automatic_folder(tmp_path, "captions", key) for key in (make_key(), make_key(code="2"), make_key())}
    assert len(folders) == 2 and {folder.parent for folder in folders} == {tmp_path}
