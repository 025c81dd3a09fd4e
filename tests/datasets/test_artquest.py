"""ArtQuest: published names, lower case, styles in any spelling; and everything that can be wrong with a table of questions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from vqa_trees import facts, load, write_images, write_text

from datasets.artquest import QUESTION_TYPES

HEADER = "image,question,answer,question_type"
ASKED = {
    "artist": ("Who painted this?", "Jan VERMEER"),
    "school": ("Which school?", "Dutch"),
    "timeframe": ("When was it made?", "1651-1700"),
    "type": ("What kind of picture is it?", "genre"),
    "technique": ("How was it made?", "Oil on canvas"),
    "title": ("What is its title?", "The Milkmaid"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of three published tables: six questions about one picture to learn from, two and two to be asked."""
    folder = tmp_path / "artquest"
    write_images(folder / "Images", [f"{name}{number}.jpg" for name in "abc" for number in (1, 2)])
    rows = [f"a1.jpg,{question},{answer},{kind}" for kind, (question, answer) in ASKED.items()]
    write_text(folder / "artquest_train.csv", HEADER, *rows)
    for name, part in (("b", "val"), ("c", "test")):
        rows = [f"{name}{number}.jpg,Who painted this?,GOYA,artist" for number in (1, 2)]
        write_text(folder / f"artquest_{part}.csv", HEADER, *rows)
    return tmp_path


def read(root: Path, **settings: Any) -> Any:
    return load(root, "ArtQuest", **settings)


def refused(root: Path, **settings: Any) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read(root, **settings)
    return str(error.value)


def write_train(root: Path, *lines: str, encoding: str = "utf-8") -> None:
    write_text(root / "artquest" / "artquest_train.csv", *lines, encoding=encoding)


# --- items --------------------------------------------------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was warned of; an earlier run in this process may have asked for more to be logged."""
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_published_tables_give_six_types_in_lower_case(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = read(root)
    assert data.split_kind == "given" and data.classnames == sorted(QUESTION_TYPES)
    asked = [("a1.jpg", question.lower(), [answer.lower()]) for question, answer in ASKED.values()]
    assert facts(data.train_x) == asked
    assert facts(data.test) == [(f"c{number}.jpg", "who painted this?", ["goya"]) for number in (1, 2)]
    assert len(data.val) == 2 and {item.extras["style"] for item in (*data.train_x, *data.val, *data.test)} == {""}
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("folder", ["artquest", "ArtQuest", "."])
@pytest.mark.parametrize("prefix", ["", "artquest_"])
def test_files_may_lie_in_folders_and_under_names_of_several_kinds(root: Path, folder: str, prefix: str) -> None:
    for part in ("train", "val", "test"):
        (root / "artquest" / f"artquest_{part}.csv").rename(root / "artquest" / f"{prefix}{part}.csv")
    if folder == ".":
        root = root / "artquest"
    else:
        (root / "artquest").rename(root / folder)
    assert len(read(root).train_x) == 6


def test_folder_and_columns_of_other_names_are_given_by_keys(root: Path) -> None:
    write_train(root, "file,ask,reply,question_type", "a1.jpg,Who?,Me,artist")
    (root / "artquest").rename(root / "mine")
    for part in ("val", "test"):
        (root / "mine" / f"artquest_{part}.csv").unlink()
    write_text(root / "mine" / "val.csv", "file,ask,reply", "b1.jpg,Who?,You")
    columns = ("image=file", "question=ask", "answer=reply")
    data = read(root, VQA_DIR="mine", VQA_COLUMNS=columns)
    assert facts(data.train_x) == [("a1.jpg", "who?", ["me"])] and facts(data.val) == [("b1.jpg", "who?", ["you"])]


@pytest.mark.parametrize("place", ["artquest/images", "SemArt/Images"])
def test_pictures_may_lie_in_images_or_be_those_of_semart_beside_it(root: Path, place: str) -> None:
    (root / place).parent.mkdir(exist_ok=True)
    (root / "artquest" / "Images").rename(root / place)
    assert {Path(item.impath).parent for item in read(root).train_x} == {root / place}


def test_descriptions_are_never_read(root: Path) -> None:
    secret = "Painted by the leaking master."
    write_train(root, f"{HEADER},description,context,DESCRIPTION", f"a1.jpg,Who?,Me,artist,{secret},{secret},{secret}")
    (item,) = read(root).train_x
    assert set(item.extras) == {"question", "answers", "boxes", "question_id", "question_type", "style"}
    assert not any("leaking" in value for value in item.extras.values())


def test_question_types_are_told_apart_without_case_and_unusual_ones_are_named(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_train(root, HEADER, "a1.jpg,Who?,Me,Artist", "a2.jpg,How big?,Small,size", "a1.jpg,Why?,So,")
    assert read(root).classnames == ["artist", "size", "vqa"]
    assert warnings_of(caplog) == [f"ArtQuest: question types beside {', '.join(QUESTION_TYPES)}: size"]


# --- styles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "style"),
    [("Ukiyo_e", "Ukiyo_e"), ("ukiyo-e", "Ukiyo_e"), ("art nouveau modern", "Art_Nouveau"), ("late renaissance",
      "Mannerism_Late_Renaissance"), ("", "")],
)  # fmt: skip
def test_styles_get_the_spelling_of_wikiart(root: Path, written: str, style: str) -> None:
    write_train(root, f"{HEADER},style", f"a1.jpg,Who?,Me,artist,{written}")
    assert read(root).train_x[0].extras["style"] == style


def test_unknown_style_is_refused_with_the_nearest_one(root: Path) -> None:
    write_train(root, f"{HEADER},style", "a1.jpg,Who?,Me,artist,Cubizm", "a2.jpg,Who?,Me,artist,cubism")
    message = refused(root)
    assert "unknown style: 1 (artquest_train.csv, line 2: style 'Cubizm' is unknown; did you mean Cubism" in message
    assert [item.extras["style"] for item in read(root, VQA_MISSING="skip").train_x] == ["Cubism"]


# --- acceptance: forms, and what is wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", "\t", ";"])
def test_three_delimiters_are_read_alike(root: Path, mark: str) -> None:
    lines = (HEADER, 'a1.jpg,"Who, or what; why?",Me,artist')
    write_train(root, *(mark.join(cells) for cells in (HEADER.split(","), ["a1.jpg", '"Who, or what; why?"', "Me", "artist"])))
    found = facts(read(root).train_x)
    write_train(root, *lines)
    assert found == facts(read(root).train_x) == [("a1.jpg", "who, or what; why?", ["me"])]


def test_cp1252_needs_its_key(root: Path) -> None:
    write_train(root, HEADER, "a1.jpg,Who?,DÜRER \u2019s,artist", encoding="cp1252")
    message = refused(root)
    assert re.search(r"artquest_train.csv, line 2: byte 0xdc is not utf-8-sig; .*cp1252, as DATASET.VQA.ENCODING", message)
    assert facts(read(root, VQA_ENCODING="cp1252").train_x) == [("a1.jpg", "who?", ["dürer \u2019s"])]


def test_missing_column_is_named_with_what_was_found(root: Path) -> None:
    write_train(root, "image,answer,question_type", "a1.jpg,Me,artist")
    expected = "has no column for question; found image, answer, question_type. DATASET.VQA.COLUMNS gives other names"
    assert expected in refused(root)


FAULTS = {
    "a9.jpg,Who?,Me,artist": "missing image: 1 (artquest_train.csv, line 3: a9.jpg)",
    "a2.jpg,Who?,,artist": "empty answer: 1 (artquest_train.csv, line 3)",
    "a2.jpg, ,Me,artist": "empty question: 1 (artquest_train.csv, line 3)",
    "a1.jpg,WHO?,me,artist": "same row twice: 1 (artquest_train.csv, line 3 and artquest_train.csv, line 2)",
    "b1.jpg,Who?,Me,artist": "image shared between splits: 1 (artquest_train.csv, line 3: b1.jpg is in val too)",
    "a2.jpg,Who?": "other number of cells than the header: 1 (artquest_train.csv, line 3)",
}


@pytest.mark.parametrize("row", FAULTS)
def test_unusable_row_is_refused_with_its_place_and_left_out_if_asked(root: Path, row: str) -> None:
    write_train(root, HEADER, "a1.jpg,Who?,Me,artist", row)
    message = refused(root)
    assert f"1 problems in 6 rows\n  {FAULTS[row]}" in message and "DATASET.VQA.MISSING skip leaves such rows out" in message
    assert facts(read(root, VQA_MISSING="skip").train_x) == [("a1.jpg", "who?", ["me"])]


def test_all_faults_are_one_error(root: Path) -> None:
    write_train(root, f"{HEADER},style", "a1.jpg,Who?,Me,artist,", *(f"{row},oops" for row in FAULTS))
    (root / "artquest" / "Images" / "c2.jpg").write_bytes(b"no picture")
    message = refused(root)
    reasons = [line.strip().partition(":")[0] for line in message.splitlines()[1:-1]]
    assert sorted(reasons) == sorted(
        ["corrupt image", "empty answer", "empty question", "other number of cells than the header", "unknown style"]
    )
    assert "7 problems in 11 rows" in message and "unknown style: 3 (" in message


def test_images_shared_between_splits_are_counted_and_the_first_ten_listed(root: Path) -> None:
    rows = [f"b1.jpg,Question {number}?,Me,artist" for number in range(12)]
    write_train(root, HEADER, "a1.jpg,Who?,Me,artist", *rows)
    message = refused(root)
    assert "image shared between splits: 12 (artquest_train.csv, line 3: b1.jpg is in val too; " in message
    assert "line 12: b1.jpg is in val too; and 2 more)" in message and "line 13:" not in message
    assert len(read(root, VQA_MISSING="skip").train_x) == 1


def test_without_test_table_figures_are_those_of_validation(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "artquest" / "artquest_test.csv").unlink()
    data = read(root)
    assert data.split_kind == "val as test" and facts(data.test) == facts(data.val)
    assert "every test figure of this run is a VALIDATION figure" in caplog.text


def test_hold_out_selects_on_pictures_of_train_and_keeps_val_for_the_end(root: Path) -> None:
    (root / "artquest" / "artquest_test.csv").unlink()
    write_train(root, HEADER, *(f"a{1 + number % 2}.jpg,Question {number}?,Me,artist" for number in range(6)))
    data = read(root, VQA_MISSING_TEST="hold_out", VAL_PERCENT=0.5)
    assert data.split_kind == "hold_out" and [name for name, *_ in facts(data.test)] == ["b1.jpg", "b2.jpg"]
    learned, held = ({name for name, *_ in facts(items)} for items in (data.train_x, data.val))
    assert learned | held == {"a1.jpg", "a2.jpg"} and not learned & held


def test_example_of_the_documentation_is_read_as_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "CUSTOM_DATA.md").read_text("utf-8")
    table = page.partition("## Questions about art\n")[2].split("```\n")[3]
    assert table.startswith("image,question,answer,question_type,style\n")
    write_text(tmp_path / "val.csv", *table.splitlines())
    write_images(tmp_path / "images", ["milkmaid.jpg", "wave.jpg"])
    titles = ["the great wave", "the great wave off kanagawa"]
    items = read(tmp_path).test
    assert facts(items) == [
        ("milkmaid.jpg", "who painted this?", ["johannes vermeer"]), ("wave.jpg", "what is its title?", titles)
    ]  # fmt: skip
    assert [(item.classname, item.extras["style"]) for item in items] == [("artist", "Baroque"), ("title", "Ukiyo_e")]
