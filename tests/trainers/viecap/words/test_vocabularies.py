"""Vocabularies: shipped ones, files in every form, and those derived from the captions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from trainers.viecap.words.vocabularies import OBJECTS, read_filter, read_shipped, read_vocabulary

NAMES = ["Zebra", " dog ", "fire hydrant", "DOG", "apple", ""]
CLEAN = ("apple", "dog", "fire hydrant", "zebra")
FORMS = {
    "lines.txt": "\n".join(NAMES),
    "windows.txt": "\ufeff" + "\r\n".join(NAMES),
    "list.json": json.dumps(NAMES),
    "keys.json": json.dumps(dict.fromkeys(NAMES, 3)),
    "object_count.json": json.dumps({"attribute_count": {"red": 5}, "object_count": dict.fromkeys(NAMES, 7)}),
    "shipped_form.json": json.dumps({"source": "s", "licence": "l", "names": NAMES}),
}


@pytest.mark.parametrize("file", FORMS)
def test_every_form_of_file_gives_the_same_names_whatever_its_order(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_bytes(FORMS[file].encode("utf-8"))
    assert read_vocabulary("file", path) == CLEAN
    assert read_vocabulary("vinvl_vgoi_entities", str(path), single_word=True) == ("apple", "dog", "zebra")


def test_shipped_vocabularies_need_no_path_but_one_is_read_if_given(tmp_path: Path) -> None:
    coco = read_vocabulary("coco_entities")
    assert len(coco) == len(set(coco)) == 80 and coco == tuple(sorted(coco))
    assert {"person", "hot dog", "tv", "potted plant", "hair drier"} < set(coco)
    assert read_vocabulary("mini_scenes") == read_shipped("mini_scenes") and "digit eight" in read_shipped("mini_scenes")
    own = tmp_path / "own.txt"
    own.write_text("car\n", encoding="utf-8")
    assert read_vocabulary("coco_entities", own) == ("car",)


def test_corpus_is_the_nouns_seen_twice_that_can_be_entities() -> None:
    nouns = ["dog", "park", "dog", "photo", "photo", "x", "x", "cat", "ball", "ball"]
    assert read_vocabulary("corpus", corpus_nouns=nouns) == ("ball", "dog")
    assert read_vocabulary("corpus", corpus_nouns=Counter(nouns)) == ("ball", "dog")
    assert read_filter("corpus", corpus_nouns=nouns) == {"ball", "dog"}


def test_filter_of_visual_genome_takes_single_words_only(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps(NAMES), encoding="utf-8")
    assert read_filter("visual_genome_entities", path) == {"apple", "dog", "zebra"}
    assert read_filter("file", path) == set(CLEAN)
    assert read_vocabulary("visual_genome_entities", path) == CLEAN
    assert read_filter("none") is None


@pytest.mark.parametrize(
    "name, path, problem",
    [
        ("coco_entitys", "", r"NAME_OF_ENTITIES_TEXT is 'coco_entitys'; expected one of .*did you mean coco_entities\?"),
        ("none", "", "NAME_OF_ENTITIES_TEXT is 'none'; expected one of coco_entities"),
        ("vinvl_vgoi_entities", "", "PATH_OF_ENTITIES_TEXT is '', but .*'vinvl_vgoi_entities', which is not shipped"),
        ("corpus", "", "'corpus', which is derived from training captions, but there are none"),
        ("file", "number.json", "PATH_OF_ENTITIES_TEXT .*number.json: holds a int; expected a JSON list"),
        ("file", "mixed.json", "1 entries are no text, first 3; expected names"),
        ("file", "broken.json", "broken.json: Expecting"),
        ("file", "empty.txt", "no entity name in .*empty.txt"),
        ("file", "latin.txt", "latin.txt: .*utf-8"),
        ("file", "table.csv", "table.csv is a CSV table; expected text with one name per line, or JSON"),
        ("file", "old.pickle", "old.pickle is a pickle, .* scripts/viecap_convert.py"),
    ],
)
def test_faults_name_the_key_the_value_and_what_is_expected(name: str, path: str, problem: str, tmp_path: Path) -> None:
    contents = {
        "number.json": b"3", "mixed.json": b'["dog", 3]', "broken.json": b"[", "empty.txt": b"\n \n", "latin.txt": b"caf\xe9",
        "table.csv": b"LabelName,DisplayName\n/m/01,Dog\n", "old.pickle": b"\x80",
    }  # fmt: skip
    if path:
        (tmp_path / path).write_bytes(contents[path])
    with pytest.raises(ValueError, match=problem):
        read_vocabulary(name, tmp_path / path if path else "")


def test_faults_of_the_filter_name_its_own_keys(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"TRAINER.VIECAP.PATH_OF_OBJECTS_VOCABS is ''"):
        read_filter("visual_genome_entities")
    with pytest.raises(ValueError, match=r"TRAINER.VIECAP.NAME_OF_OBJECTS_VOCABS is 'nothing'; .*none"):
        read_filter("nothing")
    with pytest.raises(ValueError, match=r"OBJECTS_VOCABS is 'corpus': no entity name in the training captions"):
        read_filter("corpus", corpus_nouns=["dog", "cat"])
    with pytest.raises(FileNotFoundError, match=r"PATH_OF_OBJECTS_VOCABS names .*absent.txt, which is no file"):
        read_vocabulary("file", tmp_path / "absent.txt", keys=OBJECTS)
