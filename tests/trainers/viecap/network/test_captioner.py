"""Captions of images: what a row says, batches as single images, all prompts, and the artefact in another process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_captioners import KEYS, random_captioner, write_run
from tiny_gpt2s import random_gpt2
from tiny_world import clip_config, write_clip

from trainers.viecap.network.captioner import Captioner, find_mentioned
from trainers.viecap.network.decoding import DecodeOptions
from trainers.viecap.storage.loading import load_captioner, node_of
from trainers.viecap.words.prompts import PromptBuilder
from trainers.viecap.words.retrieval import Found


@pytest.fixture(scope="module")
def clip_name(tiny_world: Path) -> str:
    return f"local-dir:{tiny_world / 'clip'}"


@pytest.fixture(scope="module")
def run(clip_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("viecap") / "run", clip_name)


@pytest.fixture(scope="module")
def images(tiny_world: Path, run: Path) -> torch.Tensor:
    preprocess = load_captioner(run).clip.loaded.preprocess
    files = sorted((tiny_world / "colours" / "test").glob("*.png"))
    return torch.stack([preprocess(Image.open(file).convert("RGB")) for file in files])


class FixedRetriever:
    """Finds what it is told to."""

    def __init__(self, *names: tuple[str, ...]) -> None:
        self.names = names

    def find(self, features: torch.Tensor) -> list[list[Found]]:
        return [[Found(name, 0.5 / (place + 1), place < 2) for place, name in enumerate(names)] for names in self.names]


def make(retriever: FixedRetriever | None, **keys: object) -> Captioner:
    node = node_of(KEYS | keys)
    tokenizer = random_gpt2()[1]
    prompts = PromptBuilder(tokenizer, 10, 5) if retriever else None
    options = DecodeOptions("greedy", max_new_tokens=6, stop_ids=frozenset([1]))
    return Captioner(random_captioner(node, 8), tokenizer, options, normalise=True, prompts=prompts, retriever=retriever)


# What is said ---------------------------------------------------------------------------------------------------------------


def test_entities_below_the_threshold_stay_out_of_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    captioner = make(FixedRetriever(("dog", "cat", "bird"), ()))
    monkeypatch.setattr(captioner._prompts, "encode", lambda names: seen.append(names) or [3, 4])
    rows = captioner.caption(torch.randn(2, 8))
    assert seen == [["dog", "cat"], []]
    assert [found.name for found in rows[0].entities] == ["dog", "cat", "bird"]
    assert rows[1].entities == ()
    assert rows[0].to_row()["entities"][2] == {"name": "bird", "probability": 0.166667, "used": False}
    assert list(rows[0].to_row()) == ["caption", "score", "entities", "mentioned", "truncated"]


def test_a_batch_of_different_prompts_says_what_single_images_say() -> None:
    names = (("dog", "traffic light"), (), ("person",), ("dog", "zebra"), ())
    features = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    together = make(FixedRetriever(*names)).caption(features)
    alone = [make(FixedRetriever(names[row])).caption(features[row : row + 1])[0] for row in range(5)]
    assert [row.caption for row in together] == [row.caption for row in alone]
    assert [row.score for row in together] == pytest.approx([row.score for row in alone], abs=1e-5)
    assert len({row.caption for row in together}) > 1


@pytest.mark.parametrize(
    "keys",
    [{"USING_HARD_PROMPT": False}, {"SOFT_PROMPT_FIRST": False}, {"ONLY_HARD_PROMPT": True}, {"NORMALIZE_PREFIX": False}],
)
def test_every_order_of_prompts_is_captioned(keys: dict) -> None:
    hard = keys.get("USING_HARD_PROMPT", True)
    captioner = make(FixedRetriever(("dog",), ("cat",)) if hard else None, **keys)
    rows = captioner.caption(torch.randn(2, 8))
    assert len(rows) == 2
    assert all(isinstance(row.caption, str) and row.score < 0 for row in rows)


def test_the_length_of_features_does_not_matter_and_images_need_a_tower() -> None:
    captioner, features = make(FixedRetriever(("dog",))), torch.randn(1, 8)
    assert captioner.caption(features)[0].caption == captioner.caption(features * 7)[0].caption
    with pytest.raises(ValueError, match="image tower"):
        captioner.caption(torch.randn(1, 3, 4, 4))
    captioner.model.train()
    with pytest.raises(ValueError, match="eval"):
        captioner.caption(features)


def test_names_are_mentioned_as_whole_words() -> None:
    names = ("dog", "cat", "bus", "traffic light", "person", "car")
    assert find_mentioned("Two Dogs, buses and traffic lights; scary carts.", names) == ("dog", "bus", "traffic light")
    assert find_mentioned("", names) == ()


# From the artefact ------------------------------------------------------------------------------------------------------------


def test_a_loaded_captioner_is_the_one_that_was_stored(run: Path, images: torch.Tensor) -> None:
    best, last = load_captioner(run), load_captioner(run, epoch=2)
    assert (best.weights.epoch, last.weights.epoch) == (1, 2)
    stored = random_captioner(node_of(best.artifact.settings), 24, seed=2)
    for name, parameter in best.captioner.model.named_parameters():
        assert torch.equal(parameter, stored.get_parameter(name)), name
    captions = [[row.caption for row in each.captioner.caption(images)] for each in (best, last)]
    assert captions[0] != captions[1]
    assert captions[0] == [row.caption for row in load_captioner(best.weights.path).captioner.caption(images)]


def test_stored_features_say_what_images_say(run: Path, images: torch.Tensor) -> None:
    loaded = load_captioner(run)
    features = loaded.clip.encode_images(images).half()
    assert loaded.captioner.caption(features) == loaded.captioner.caption(images)


def test_loading_leaves_the_random_state(run: Path) -> None:
    before = torch.get_rng_state()
    load_captioner(run)
    assert torch.equal(before, torch.get_rng_state())


def test_three_distinct_captions(run: Path, images: torch.Tensor) -> None:
    node = node_of(load_captioner(run).artifact.settings)
    node.DECODE, node.NUM_RETURN = "beam", 3
    for row in load_captioner(run, node=node).captioner.caption(images):
        assert len(set(row.captions)) == 3
        assert row.caption == row.captions[0]
        assert row.to_row()["captions"] == list(row.captions)


def test_another_clip_is_refused(run: Path, tmp_path: Path) -> None:
    other = write_clip(tmp_path / "other", clip_config(), seed=5)
    with pytest.raises(ValueError, match="MODEL.BACKBONE.NAME is .*the run learned with"):
        load_captioner(run, clip_name=other)
    wider = write_clip(tmp_path / "wider", clip_config(embed_dim=16), seed=5)
    with pytest.raises(ValueError, match="width 16"):
        load_captioner(run, clip_name=wider)


def test_keys_that_contradict_the_run_are_listed(run: Path) -> None:
    node = node_of(load_captioner(run).artifact.settings)
    node.NUM_LAYERS, node.STOP, node.TOP_K = 3, "eos", 1
    with pytest.raises(ValueError) as caught:
        load_captioner(run, node=node)
    assert "2 difference(s) to the run" in str(caught.value)
    assert "NUM_LAYERS: the run has 1, now 3" in str(caught.value)


def test_another_vocabulary_is_embedded(run: Path, images: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("Zebra\nred wagon\n", encoding="utf-8")
    node = node_of(load_captioner(run).artifact.settings)
    node.NAME_OF_ENTITIES_TEXT, node.PATH_OF_ENTITIES_TEXT = "file", str(tmp_path / "names.txt")
    loaded = load_captioner(run, node=node, cache_dir=tmp_path / "cache")
    assert loaded.vocabulary.names == ("red wagon", "zebra")
    assert {found.name for row in loaded.captioner.caption(images) for found in row.entities} == {"red wagon", "zebra"}
    node.NAME_OF_ENTITIES_TEXT, node.PATH_OF_ENTITIES_TEXT = "corpus", ""
    with pytest.raises(ValueError, match="derived from the captions of a training"):
        load_captioner(run, node=node)


def test_one_template_for_the_runs_own_names(run: Path, tmp_path: Path) -> None:
    stored = load_captioner(run)
    node = node_of(stored.artifact.settings)
    node.PROMPT_ENSEMBLE = False
    plain = load_captioner(run, node=node, cache_dir=tmp_path / "cache").vocabulary
    assert plain.names == stored.vocabulary.names
    assert not torch.allclose(plain.embeddings, stored.vocabulary.embeddings)


def test_a_run_without_a_hard_prompt_has_no_vocabulary(clip_name: str, images: torch.Tensor, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "soft", clip_name, epochs=1, USING_HARD_PROMPT=False)
    loaded = load_captioner(folder)
    assert loaded.vocabulary is None
    assert not (folder / "vocabulary.safetensors").exists()
    assert [row.entities for row in loaded.captioner.caption(images[:1])] == [()]
