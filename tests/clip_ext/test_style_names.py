"""Names of styles: WikiArt's list, other spellings, and what is unknown."""

import json
import re

import pytest

from clip_ext.style_names import NON_ART, StyleNames, normalise_style, wikiart_styles
from clip_ext.text_files import TEXTS_DIR

IN_ORDER = """
Abstract_Expressionism Action_painting Analytical_Cubism Art_Nouveau Baroque Color_Field_Painting Contemporary_Realism Cubism
Early_Renaissance Expressionism Fauvism High_Renaissance Impressionism Mannerism_Late_Renaissance Minimalism
Naive_Art_Primitivism New_Realism Northern_Renaissance Pointillism Pop_Art Post_Impressionism Realism Rococo Romanticism
Symbolism Synthetic_Cubism Ukiyo_e
""".split()


def test_wikiart_has_27_styles_in_its_order() -> None:
    assert list(wikiart_styles().names) == IN_ORDER
    data = json.loads((TEXTS_DIR / "vocabularies" / "wikiart_styles.json").read_text("utf-8"))
    assert set(data) == {"source", "licence", "names", "aliases"}


def test_every_alias_means_one_style_and_none_hides_a_name() -> None:
    vocabulary = wikiart_styles()
    spellings = [normalise_style(other) for others in vocabulary.aliases.values() for other in others]
    assert set(vocabulary.aliases) <= set(vocabulary.names)
    assert len(set(spellings)) == len(spellings)
    assert not set(spellings) & {normalise_style(name) for name in vocabulary.names}


@pytest.mark.parametrize(
    ("text", "name"),
    [("art_nouveau_modern", "Art_Nouveau"), ("Art Nouveau (Modern)", "Art_Nouveau"), ("ukiyo-e", "Ukiyo_e"),
     ("Naïve Art (Primitivism)", "Naive_Art_Primitivism"), (" mannerism ", "Mannerism_Late_Renaissance"),
     ("POST-IMPRESSIONISM", "Post_Impressionism"), ("non-art", "non_art"), ("Colour Field", "Color_Field_Painting")],
)  # fmt: skip
def test_index_knows_other_spellings(text: str, name: str) -> None:
    styles = StyleNames([*IN_ORDER, NON_ART])
    assert styles.names[styles.index(text)] == name


@pytest.mark.parametrize("text", ["", "  \t"])
def test_index_of_an_empty_text_is_the_unknown_style(text: str) -> None:
    assert StyleNames(IN_ORDER).index(text) == -1


def test_index_of_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match=re.escape("style 'Barok' is unknown; did you mean Baroque?")):
        StyleNames(IN_ORDER).index("Barok")
    with pytest.raises(ValueError, match=r"'\?\?' is unknown; expected one of dotted, plain, or nothing"):
        StyleNames(["dotted", "plain"]).index("??")


def test_aliases_of_styles_that_are_no_class_are_unknown() -> None:
    names = StyleNames(["Rococo", "plain"])
    assert names.index("rococo") == 0 and len(names) == 2
    with pytest.raises(ValueError, match="'mannerism' is unknown"):
        names.index("mannerism")


def test_an_alias_that_is_a_class_of_its_own_is_that_class() -> None:
    assert StyleNames(["Ukiyo_e", "ukiyoe"]).index("UKIYOE") == 1


def test_names_that_mean_the_same_or_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="'Pop_Art' and 'pop-art' name the same style; '--' is no name"):
        StyleNames(["Pop_Art", "pop-art", "--"])
