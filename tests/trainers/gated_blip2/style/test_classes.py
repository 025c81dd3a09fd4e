"""Which styles an encoder's classes are: by their number, by the JSON beside the weights, or by a list."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from clip_ext.style_names import StyleNames, wikiart_styles
from trainers.gated_blip2.data import problems_with_styles
from trainers.gated_blip2.style.classes import label_styles, name_classes, read_classes_file

WIKIART = wikiart_styles().names


@pytest.mark.parametrize(
    ("n_classes", "names"),
    [(27, WIKIART), (28, (*WIKIART, "non_art")), (1000, None), (None, None)],
    ids=["27", "28", "1000", "none"],
)
def test_the_number_of_classes_says_what_they_are(n_classes: int | None, names: tuple[str, ...] | None) -> None:
    assert name_classes(n_classes, source="best.pt") == names


def test_other_numbers_need_names_and_the_error_says_where_to_give_them() -> None:
    with pytest.raises(ValueError, match="best.pt has 6 classes.*STYLE.CLASSES_FILE, a JSON list of 6 names"):
        name_classes(6, source="best.pt")
    assert name_classes(2, listed=["plain", "dotted"], source="best.pt") == ("plain", "dotted")
    assert name_classes(2, stored=["plain", "dotted"], source="best.pt") == ("plain", "dotted")


def test_the_list_wins_over_the_json_and_the_number() -> None:
    mine = tuple(reversed(WIKIART))
    assert name_classes(27, listed=mine, stored=WIKIART, source="best.pt") == mine


@pytest.mark.parametrize(("n_classes", "found"), [(3, "3 classes"), (None, "no classifier")])
def test_names_for_another_number_of_classes_are_refused(n_classes: int | None, found: str) -> None:
    with pytest.raises(ValueError, match=f"CLASSES_FILE names 2 classes, but best.pt has {found}"):
        name_classes(n_classes, listed=["plain", "dotted"], source="best.pt")
    with pytest.raises(ValueError, match=f"the JSON beside best.pt names 2 classes, but best.pt has {found}"):
        name_classes(n_classes, stored=["plain", "dotted"], source="best.pt")


def test_classes_file_is_a_json_list_of_different_names(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text('["Ölbild", "plain"]', encoding="utf-8")
    assert read_classes_file(path) == ("Ölbild", "plain")
    with pytest.raises(FileNotFoundError, match="STYLE.CLASSES_FILE is .*absent.json': there is no such file"):
        read_classes_file(tmp_path / "absent.json")
    for content, message in (
        ("no JSON", "is not valid JSON"), ('{"a": 1}', "expected a JSON list"), ("[]", "expected a JSON list"),
        ('["a", 1]', "expected a JSON list"), ('["a-b", "A_B"]', "'a-b' and 'A_B' name the same style"),
    ):  # fmt: skip
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=f"STYLE.CLASSES_FILE .*{message}"):
            read_classes_file(path)


def test_label_styles_lists_each_unknown_text_once(tmp_path: Path) -> None:
    labels, problems = label_styles(["Rococo", "", "Rokoko", "ukiyo-e", "Rokoko"], StyleNames(WIKIART))
    assert labels == [WIKIART.index("Rococo"), -1, -1, WIKIART.index("Ukiyo_e"), -1]
    assert problems == ["style 'Rokoko' is unknown; did you mean Rococo?"]
    assert label_styles(["Rococo", "anything"], None) == ([-1, -1], [])
    assert json.dumps(labels)  # plain numbers, for batches and reports


def test_data_that_are_to_be_learned_from_must_name_styles_that_the_encoder_knows() -> None:
    def check(*styles: str, names: StyleNames | None) -> list[str]:
        return problems_with_styles([SimpleNamespace(extras={"style": style} if style else {}) for style in styles], names)

    names = StyleNames(WIKIART)
    assert check("Rococo", "", names=names) == []
    unknown = check("Rokoko", "Rococo", names=names)
    assert len(unknown) == 1 and "1 style(s)" in unknown[0] and "did you mean Rococo?" in unknown[0]
    assert "no row of the data names its style" in check("", "", names=names)[0]
    assert "tells no styles apart" in check("Rococo", names=None)[0]
