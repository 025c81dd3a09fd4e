"""Preparation: every part computes once what a training would, and reads it the second time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from caption_trees import write_images, write_json, write_text
from tiny_world import clip_config, write_clip

from clip_ext import loader
from scripts import viecap_prepare
from trainers.viecap import prepare

LINES = ("A dog runs in a park.", "Two cats sleep on a sofa.", "A dog and a cat.", "THE DOG BARKS", " ", "a sofa")


@pytest.fixture(scope="module")
def clip_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip", clip_config(depth=2))


@pytest.fixture
def flags(clip_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Own captions with two val and two test pictures; the cache lies beside them."""
    root = tmp_path / "own"
    root.mkdir()
    write_text(root / "train.txt", *LINES)
    write_images(root / "images", ["a.png", "b.png", "c.png", "d.png"])
    write_json(root / "val.json", {"a.png": ["A one."], "b.png": ["B one."]})
    write_json(root / "test.json", {"c.png": ["C one."], "d.png": ["D one."]})
    monkeypatch.setattr(prepare, "CACHE_DIR", tmp_path / "cache")
    settings = {
        "DATASET.NAME": "CaptionFiles", "USE_CUDA": "False", "TEST.EVALUATOR": "Captioning", "OPTIM.NAME": "adamw",
        "DATALOADER.NUM_WORKERS": "0", "TRAINER.VIECAP.LANGUAGE_MODEL": "tiny_gpt2",
        "TRAINER.VIECAP.ENTITY_EXTRACTOR": "vocabulary", "TRAINER.VIECAP.NAME_OF_OBJECTS_VOCABS": "coco_entities",
        "TRAINER.VIECAP.NAME_OF_ENTITIES_TEXT": "corpus", "TRAINER.VIECAP.EVAL.VAL_LIMIT": "1",
    }  # fmt: skip
    return ["--root", str(root), "--backbone", clip_name, *(word for pair in settings.items() for word in pair)]


def run(part: str, flags: list[str], capsys: pytest.CaptureFixture) -> list[str]:
    viecap_prepare.main([part, *flags])
    return capsys.readouterr().out.splitlines()


def kinds(cache: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in cache.iterdir())


def test_all_parts_are_computed_once_and_then_read(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = run("all", flags, capsys)
    assert lines[0] == "entities: 5 captions with 5 nouns, 2 different ones"
    assert lines[1].startswith("texts: 5 captions") and lines[1].endswith("vectors of width 24")
    assert lines[2:] == ["images: 1 val, 2 test images", "vocabulary: corpus, 2 names"]
    cache = tmp_path / "cache"
    names = ["captions", "images_test", "images_val", "nouns", "vocabulary"]
    assert kinds(cache) == [f"viecap_{name}" for name in names]
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    monkeypatch.setattr(loader, "_build_model", None)  # no CLIP is needed any more
    assert run("all", flags, capsys) == lines
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_entities_alone_need_no_clip(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_build_model", None)
    run("entities", flags, capsys)
    assert kinds(tmp_path / "cache") == ["viecap_nouns"]


def test_texts_go_to_a_named_store_and_one_of_other_captions_is_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    named = [*flags, "TRAINER.VIECAP.STORE_DIR", str(tmp_path / "mine")]
    run("texts", named, capsys)
    assert (tmp_path / "mine" / "captions.safetensors").is_file()
    with (tmp_path / "own" / "train.txt").open("a", encoding="utf-8") as file:
        file.write("One more dog.\n")
    with pytest.raises(SystemExit, match="STORE_DIR.*captions is"):
        run("texts", named, capsys)


def test_stored_vectors_are_the_towers_own_of_the_normalised_captions(
    flags: list[str], clip_name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from safetensors.torch import load_file

    run("texts", flags, capsys)
    (folder,) = (tmp_path / "cache").glob("viecap_captions-*")
    stored = load_file(folder / "captions.safetensors")["feat"].float()
    clip = loader.load_clip(clip_name)
    with torch.no_grad():
        alone = [clip.model.encode_text(clip.tokenizer([text]))[0] for text in (LINES[0], "The dog barks.", "A sofa.")]
    torch.testing.assert_close(stored[[0, 3, 4]], torch.stack(alone), atol=1e-3, rtol=1e-3)


def test_a_data_set_to_test_on_has_images_and_vocabulary_alone(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("train.txt", "val.json"):
        (tmp_path / "own" / name).unlink()
    evaluated = [*flags, "TRAINER.VIECAP.NAME_OF_ENTITIES_TEXT", "coco_entities", "TRAINER.VIECAP.PROMPT_ENSEMBLE", "False"]
    assert run("all", evaluated, capsys) == ["images: 0 val, 2 test images", "vocabulary: coco_entities, 80 names"]
    with pytest.raises(SystemExit, match="has no training captions"):
        run("texts", evaluated, capsys)


def test_all_problems_of_the_settings_are_said_before_anything_is_read(flags: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="(?s)2 problem.*TOP_K.*THRESHOLD"):
        run("all", [*flags, "TRAINER.VIECAP.TOP_K", "0", "TRAINER.VIECAP.THRESHOLD", "2.0"], capsys)
