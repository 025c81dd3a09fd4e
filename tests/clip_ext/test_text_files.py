import json

import pytest

from clip_ext.text_files import (
    available_texts,
    clean_sentences,
    load_descriptions,
    load_texts,
    match_descriptions,
)

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_load_texts_finds_shipped_file_by_data_set_name():
    texts = load_texts("HandwrittenDigits")
    assert "handwritten_digits" in available_texts()
    assert list(texts.descriptions) == DIGITS
    assert len(texts.templates) >= 8


def test_load_texts_unknown_name_lists_what_there_is():
    with pytest.raises(ValueError, match="'Nowhere'.*handwritten_digits.*TEXT.TEMPLATES"):
        load_texts("Nowhere")


def test_load_texts_reads_own_files_in_place_of_shipped_ones(tmp_path):
    templates = write(tmp_path / "t.json", {"templates": ["my {}."], "descriptions": "handwritten_digits"})
    descriptions = write(tmp_path / "d.json", {"cat": ["a small furry animal"]})
    assert list(load_texts("any", templates=templates).descriptions) == DIGITS
    texts = load_texts("any", templates=templates, descriptions=descriptions)
    assert texts.templates == ("my {}.",)
    assert texts.descriptions == {"cat": ["a small furry animal"]}
    assert texts.zeroshot == "a photo of a {}."


def test_load_texts_wrong_templates_file_reports_every_problem(tmp_path):
    content = {"zeroshot": "no place", "templates": ["{} and {}"], "text_epochs": 0, "template": [], "known_twins": "x"}
    with pytest.raises(ValueError) as error:
        load_texts("any", templates=write(tmp_path / "t.json", content))
    for part in ("'no place'", "'{} and {}'", "'text_epochs' is 0", "unknown keys template", "'known_twins' is 'x'"):
        assert part in str(error.value)


def test_load_texts_missing_file_and_broken_json_name_the_key(tmp_path):
    with pytest.raises(FileNotFoundError, match="TEXT.TEMPLATES names .*none.json"):
        load_texts("any", templates=str(tmp_path / "none.json"))
    broken = tmp_path / "broken.json"
    broken.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="TEXT.DESCRIPTIONS .*broken.json is not valid JSON"):
        load_descriptions(broken)


def test_load_descriptions_full_and_bare_form_agree(tmp_path):
    classes = {"tree frog": ["a green animal"]}
    full = write(tmp_path / "full.json", {"source": "me", "licence": "mine", "classes": classes})
    assert load_descriptions(full) == load_descriptions(write(tmp_path / "bare.json", classes)) == classes


def test_load_descriptions_without_a_class_is_an_error(tmp_path):
    for content in ({}, {"source": "me", "licence": "mine", "classes": {}}):
        with pytest.raises(ValueError, match="TEXT.DESCRIPTIONS .*no class in it"):
            load_descriptions(write(tmp_path / "d.json", content))


def test_load_descriptions_wrong_values_and_double_names_are_reported_together(tmp_path):
    path = write(tmp_path / "d.json", {"a b": ["x"], "A_b": ["y"], "c": "not a list"})
    with pytest.raises(ValueError, match="'a b' and 'A_b' name the same class; 'c' is not a list"):
        load_descriptions(path)


def test_descriptions_with_non_ascii_text_are_read_as_utf8(tmp_path):
    path = tmp_path / "d.json"
    path.write_bytes('{"caf\u00e9": ["a small caf\u00e9 table"]}'.encode())
    assert load_descriptions(path) == {"caf\u00e9": ["a small caf\u00e9 table"]}


def test_match_descriptions_ignores_case_and_separators():
    found, unknown = match_descriptions(
        ["Tree_frog", "T-shirt"], {"tree  FROG": ["a"], "t shirt": ["b"], "other": ["c"]}
    )
    assert found == [["a"], ["b"]]
    assert unknown == ["other"]


def test_defect_22_junk_sentences_are_dropped_and_counted():
    kept, dropped = clean_sentences(
        [
            ["1.", " 12) ", "too short", "a zero is round", "A  zero is Round", "found under both classes"],
            ["a one is straight", "Found under both classes"],
        ]
    )
    assert kept == [["a zero is round"], ["a one is straight"]]
    assert dropped == {"short": 3, "repeated": 1, "shared": 2}
