"""Rows that the loaders yield, whose style an item gets, and what is wrong with items."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from PIL import Image

from clip_ext.style_names import StyleNames
from trainers.gated_blip2.data import (
    PictureViews,
    VQAWrapper,
    find_long_questions,
    permute_styles,
    problems_with_styles,
    problems_with_texts,
    spread,
)

STYLES = StyleNames(["Baroque", "Cubism"])


def item(number: int = 0, *, answers: list[str] | None = None, style: str = "", folder: Path = Path()) -> Any:
    extras = {"question": f"what is {number}?", "answers": json.dumps(["red"] if answers is None else answers), "style": style}
    return SimpleNamespace(extras=extras, impath=str(folder / f"{number}.png"), label=0, domain=0)


def brightness(image: Image.Image) -> torch.Tensor:
    return torch.tensor(np.asarray(image).mean(), dtype=torch.float32)


def wrapper(items: list[Any], *, is_train: bool = False, **views: Any) -> VQAWrapper:
    shown = PictureViews(brightness, **({"style": lambda image: 2 * brightness(image), "names": STYLES} | views))
    return VQAWrapper(get_cfg_default(), items, transform=shown, is_train=is_train)


@pytest.fixture
def painted(tmp_path: Path) -> list[Any]:
    """Three pictures of brightness 10, 20 and 30, two of them with a style."""
    for number in range(3):
        Image.new("RGB", (4, 6), (10 * number + 10,) * 3).save(tmp_path / f"{number}.png")
    return [item(number, style=style, folder=tmp_path) for number, style in enumerate(["cubism", "", "Baroque"])]


def test_row_holds_both_views_and_what_is_asked(painted: list[Any]) -> None:
    row = wrapper(painted)[2]
    assert (row["img"].item(), row["img2"].item()) == (30, 60)
    assert row["question"] == "what is 2?" and row["answer"] == "red" and row["style"] == 0 and row["index"] == 2
    assert set(row) == {"img", "img2", "label", "domain", "impath", "index", "question", "answer", "style"}


def test_without_a_style_encoder_there_is_one_view(painted: list[Any]) -> None:
    row = wrapper(painted, style=None, names=None)[0]
    assert "img2" not in row and row["style"] == -1


def test_style_is_the_data_sets_or_unknown(painted: list[Any]) -> None:
    rows = wrapper([*painted, item(0, style="Dadaism", folder=Path(painted[0].impath).parent)])
    assert [rows[number]["style"] for number in range(4)] == [1, -1, 0, -1]


def test_cached_row_replaces_the_views_and_opens_nothing() -> None:
    rows = wrapper([item(number, folder=Path("nowhere")) for number in range(3)])
    rows.rows = [7, 8, 7]
    assert [(rows[number]["row"], rows[number]["style_row"]) for number in range(3)] == [(7, 7), (8, 8), (7, 7)]
    assert "img" not in rows[0] and "img2" not in rows[0]


def test_style_of_another_item_comes_with_its_view_row_and_label(painted: list[Any]) -> None:
    rows = wrapper(painted)
    rows.style_from = [2, 0, 1]
    assert (rows[0]["img"].item(), rows[0]["img2"].item(), rows[0]["style"]) == (10, 60, 0)
    assert (rows[1]["img2"].item(), rows[1]["style"]) == (20, 1)
    rows.rows = [5, 6, 7]
    assert (rows[0]["row"], rows[0]["style_row"], rows[0]["style"]) == (5, 7, 0)


def test_first_answer_is_learned_or_a_random_one(painted: list[Any]) -> None:
    several = [item(0, answers=["a", " ", "b", "c"], folder=Path(painted[0].impath).parent)]
    assert wrapper(several)[0]["answer"] == "a"
    drawing = wrapper(several, is_train=True, samples_answers=True)
    drawn = []
    for seed in range(30):
        drawing.rng = np.random.default_rng(seed)
        drawn.append(drawing[0]["answer"])
    assert set(drawn) == {"a", "b", "c"}
    drawing.rng = np.random.default_rng(3)
    assert drawing[0]["answer"] == drawn[3]
    assert {wrapper(several, samples_answers=True)[0]["answer"] for _ in range(5)} == {"a"}  # in evaluation
    assert wrapper([item(0, answers=[], folder=Path(painted[0].impath).parent)])[0]["answer"] == ""


def test_permutation_gives_another_style_wherever_there_is_one() -> None:
    styles = ["a"] * 40 + ["b"] * 30 + ["c"] * 30
    items = [item(number, style=style) for number, style in enumerate(styles)]
    given = permute_styles(items, seed=1)
    assert sorted(given) == list(range(100))
    assert all(styles[donor] != styles[place] for place, donor in enumerate(given))
    assert given == permute_styles(items, seed=1) != permute_styles(items, seed=2)


def test_permutation_with_one_style_for_most_moves_what_it_can() -> None:
    styles = ["a"] * 8 + ["b"] * 2
    given = permute_styles([item(number, style=style) for number, style in enumerate(styles)], seed=0)
    assert sum(styles[donor] != styles[place] for place, donor in enumerate(given)) == 4


def test_permutation_without_styles_gives_another_picture() -> None:
    items = [item(number // 2) for number in range(10)]  # two questions per picture
    given = permute_styles(items, seed=0)
    assert all(items[donor].impath != items[place].impath for place, donor in enumerate(given))
    assert permute_styles(items[:1], seed=0) == [0]


ALL = range(10)


@pytest.mark.parametrize(("limit", "kept"), [(-1, ALL), (10, ALL), (99, ALL), (5, range(0, 10, 2)), (3, (0, 3, 6))])
def test_validation_is_spread_over_the_split(limit: int, kept: Any) -> None:
    items = [item(number) for number in range(10)]
    assert spread(items, limit) == [items[number] for number in kept]


def test_empty_questions_and_missing_answers_are_reported_with_counts() -> None:
    blank = [item(number, answers=[" "]) for number in range(12)]
    silent = item(3)
    silent.extras["question"] = " "
    problems = problems_with_texts({"train": blank, "test": [silent, item(4, answers=[])]})
    assert problems[0] == "1 item(s) have an empty question\n  3.png (test)"
    assert problems[1].startswith("12 training question(s) have no answer\n  0.png: what is 0?\n")
    assert problems[1].count("\n") == 11 and problems[1].endswith("\n  ...")
    assert problems_with_texts({"train": [item()], "test": [item(answers=[])]}) == []


def test_unknown_styles_are_listed_once() -> None:
    items = [item(style=style) for style in ("Baroque", "", "Dadaism", "dadaism", "Dadaism")]
    (problem,) = problems_with_styles(items, STYLES)
    assert problem.startswith("2 style(s) of the data set are unknown") and problem.count("\n") == 2
    assert "'Dadaism' is unknown" in problem and "'dadaism' is unknown" in problem
    assert problems_with_styles(items[:2], STYLES) == []


def test_rows_beyond_the_language_model_are_named_and_cut_questions_counted() -> None:
    class Ids:
        def __init__(self, cut: bool) -> None:
            self.cut = cut

    def encode(question: str, answer: str) -> Ids:
        if answer == "too long":
            raise ValueError("takes 99 positions")
        return Ids("1" in question)

    problems, n_cut = find_long_questions([item(0), item(1, answers=["a", "b"]), item(2, answers=["a", "too long"])], encode)
    assert problems == ["1 training question(s) cannot be encoded\n  2.png: takes 99 positions"] and n_cut == 1
    problems, n_cut = find_long_questions([item(1, answers=["a", "too long"])], encode)  # cut, and too long nevertheless
    assert problems == ["1 training question(s) cannot be encoded\n  1.png: takes 99 positions"] and n_cut == 0
