import json

import pytest

from clip_ext.loader import build_clip
from clip_ext.text_files import (
    TEXTS_DIR,
    available_texts,
    clean_sentences,
    load_descriptions,
    load_texts,
    match_descriptions,
)

TEMPLATE_FILES = sorted((TEXTS_DIR / "templates").glob("*.json"))
DESCRIPTION_FILES = sorted((TEXTS_DIR / "descriptions").glob("*.json"))
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SMALL_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 33, "vocab_size": 4514, "width": 16, "heads": 1, "layers": 1},
}


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


@pytest.mark.parametrize("path", TEMPLATE_FILES, ids=lambda path: path.stem)
def test_shipped_templates_are_complete(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert set(content) - {"known_twins"} == {"zeroshot", "templates", "descriptions", "text_epochs"}
    assert len(set(content["templates"])) == len(content["templates"])
    if content["descriptions"]:
        assert TEXTS_DIR / "descriptions" / f"{content['descriptions']}.json" in DESCRIPTION_FILES


@pytest.mark.parametrize("path", DESCRIPTION_FILES, ids=lambda path: path.stem)
def test_shipped_descriptions_meet_the_rules(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert set(content) == {"source", "licence", "classes"}
    sentences = list(content["classes"].values())
    assert len(sentences[0]) >= 25
    assert len({len(of_class) for of_class in sentences}) == 1
    kept, dropped = clean_sentences(sentences)
    assert kept == sentences and not any(dropped.values())


@pytest.mark.parametrize("path", DESCRIPTION_FILES, ids=lambda path: path.stem)
def test_shipped_descriptions_fit_the_context(path):
    tiny = path.stem == "handwritten_digits"
    limit = 32 if tiny else 77
    config = SMALL_CLIP["text_cfg"] | {"context_length": limit + 1, "vocab_size": 4514 if tiny else 49408}
    tokenizer = build_clip(SMALL_CLIP | {"text_cfg": config}, name="small").tokenizer
    texts = [text for of_class in load_descriptions(path).values() for text in of_class]
    too_long = [text for text, row in zip(texts, tokenizer(texts), strict=True) if row[-1] != 0]
    assert too_long == []


def test_digit_descriptions_name_their_own_class_only():
    for digit, sentences in load_texts("handwritten_digits").descriptions.items():
        for sentence in sentences:
            assert set(sentence.split()) & set(DIGITS) == {digit}, sentence
