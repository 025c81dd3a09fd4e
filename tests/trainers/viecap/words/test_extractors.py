"""Which nouns each extractor finds, and what it says when something is missing."""

from __future__ import annotations

import importlib.util
import socket

import pytest
from caption_data import coco_captions, data_file

from trainers.viecap.words.entities import NounMap, effective_entities
from trainers.viecap.words.extractors import build_extractor
from trainers.viecap.words.vocabularies import read_filter

CHECK = "A baby giraffe standing against a wall in a zoo like environment."
FOUND = ["baby", "giraffe", "wall", "zoo", "environment"]
KEY = "TRAINER.VIECAP.ENTITY_EXTRACTOR"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list:
    """Record any attempt to open a socket, and refuse it."""
    attempts: list = []

    def refuse(*where: object, **_: object) -> None:
        attempts.append(where)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


@pytest.fixture
def no_corpora(monkeypatch: pytest.MonkeyPatch) -> None:
    """NLTK finds no data, whatever this machine has."""
    nltk = pytest.importorskip("nltk", reason="comes with the extra `vlm`")
    monkeypatch.setattr(nltk.data, "path", [])


def test_textblob_finds_the_nouns_of_the_check_sentence_without_network_and_corpora(no_network: list, no_corpora: None) -> None:
    assert build_extractor("textblob").nouns(CHECK) == FOUND and no_network == []


@pytest.mark.parametrize(
    "caption, nouns",
    [
        ("Two men riding bikes near buses, a bus and a glass.", ["man", "bike", "bus", "glass"]),
        ("A cat; a dog: a cat.", ["cat", "dog"]),
        ("Men with ties eat pies on shelves near horses' hooves.", ["man", "tie", "pie", "shelf", "horse", "hoof"]),
        ("A woman's dog, \"Rex\", in Paris.", ["woman", "dog"]),  # names are no objects
        ("DOGS!", ["dog"]),
        ("A red circle and a letter q.", ["circle", "letter", "q"]),
        ("Big and red.", []),
        ("...", []),
        ("", []),
    ],
)
def test_textblob_gives_lower_case_singular_nouns_once_in_text_order(caption: str, nouns: list[str]) -> None:
    assert build_extractor("textblob").nouns(caption) == nouns


def test_nltk_without_its_data_names_both_remedies(no_corpora: None, no_network: list) -> None:
    with pytest.raises(LookupError) as caught:
        build_extractor("nltk")
    message = str(caught.value)
    assert f"{KEY} is 'nltk'" in message and f"{KEY} textblob" in message
    assert "python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet" in message
    assert no_network == []


def test_given_takes_the_data_set_s_names_as_they_are_but_lower_case_and_once() -> None:
    extractor = build_extractor("given")
    assert extractor.nouns("whatever", ["Digit  Eight", " dog ", "Dog", "", "--"]) == ["digit eight", "dog"]
    assert extractor.nouns("nothing here", []) == []
    with pytest.raises(ValueError, match=f"{KEY} is 'given', .* 'A dog.'. Add the column `entities`"):
        extractor.nouns("A dog.")


def test_vocabulary_finds_its_longest_names_in_singular_and_plural() -> None:
    extractor = build_extractor("vocabulary", vocabulary=["fire", "fire hydrant", "dog", "t-shirt", "traffic light", "bus"])
    caption = "Two Dogs, a bus and women at fire hydrants under traffic lights in a T-shirt, by a fire; dogs."
    assert extractor.nouns(caption) == ["dog", "bus", "women", "fire hydrant", "traffic light", "t-shirt", "fire"]
    with pytest.raises(ValueError, match="NAME_OF_OBJECTS_VOCABS may not be 'none'"):
        build_extractor("vocabulary")


def test_versions_name_the_extractor_and_its_library() -> None:
    from importlib.metadata import version

    assert build_extractor("textblob").version.startswith(f"textblob {version('textblob')}, code ")
    versions = {build_extractor(name, vocabulary=["dog"]).version for name in ("textblob", "given", "vocabulary")}
    assert len(versions) == 3


def test_unknown_names_and_missing_libraries_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"{KEY} is 'spacy'; expected one of textblob, nltk, given, vocabulary"):
        build_extractor("spacy")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs textblob, which is not installed: pip install -e .\[vlm\]"):
        build_extractor("textblob")


@pytest.mark.data
def test_nltk_finds_the_nouns_of_the_check_sentence() -> None:
    try:
        extractor = build_extractor("nltk")
    except LookupError as error:
        pytest.skip(str(error))
    assert extractor.nouns(CHECK) == FOUND


@pytest.mark.data
def test_textblob_agrees_with_nltk_on_coco() -> None:
    noun_map = NounMap(read_filter("visual_genome_entities", data_file("visual_genome_entities.json")))
    captions = coco_captions(4000)
    try:
        extractors = build_extractor("textblob"), build_extractor("nltk")
    except LookupError as error:
        pytest.skip(str(error))
    ours, theirs = (
        {(row, name) for row, text in enumerate(captions) for name in effective_entities(one.nouns(text), noun_map, 10)}
        for one in extractors
    )
    assert len(ours & theirs) >= 0.92 * len(ours)  # precision
    assert len(ours & theirs) >= 0.89 * len(theirs)  # recall
