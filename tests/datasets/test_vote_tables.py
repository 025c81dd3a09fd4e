"""Vote tables: header names in every published spelling, cells, and reasons to leave a row out."""

from pathlib import Path

import pytest

from datasets.vote_tables import emotion_name, read_vote_table, reason_to_exclude


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("Anger", "anger"),
        ("[prob. anger]", "anger"),
        (" 'Sad'", "sadness"),
        ('"Content"', "contentment"),
        ("CONTENTMENT", "contentment"),
        ("probability surprise", "surprise"),
        ("[valence]", "valence"),
    ],
)
def test_emotion_name_sees_through_decoration(word: str, name: str) -> None:
    assert emotion_name(word) == name


def table(folder: Path, text: str) -> Path:
    path = folder / "votes.csv"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "image,joy,fear\na.jpg,3,1\nb.jpg,0,2\n",
        "'file','Fear','valence','Joy',\n'a.jpg',1,9,3,\n\n'b.jpg',2,9,0,\n",
        ",FEAR,[prob. joy]\r\na.jpg,1,3\r\nb.jpg,2,0\r\n",
        "\ufeffjoy,fear,image_name\n3,1,a.jpg\n0,2,b.jpg",
    ],
)
def test_read_vote_table_goes_by_names(text: str, tmp_path: Path) -> None:
    assert read_vote_table(table(tmp_path, text), ("fear", "joy"), delimiter=",") == {"a.jpg": (1, 3), "b.jpg": (2, 0)}


def test_read_vote_table_takes_any_run_of_blanks(tmp_path: Path) -> None:
    path = table(tmp_path, "images-name  Fear\tJoy \na.jpg 1   3 \n")
    assert read_vote_table(path, ("joy", "fear"), delimiter=" ") == {"a.jpg": (3, 1)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no header"),
        ("a.jpg,1,3\n", "no header that names its columns: its first line is 'a.jpg, 1, 3'"),
        ("picture,fear,joy\na.jpg,1,3\n", "0 columns of image names; expected one, called images-name"),
        ("image,file,fear,joy\na.jpg,a,1,3\n", "2 columns of image names"),
        ("image,fear\na.jpg,1\n", "no column for joy"),
        ("image,fear,joy\n,1,3\n", "line 2: no image name"),
    ],
)
def test_read_vote_table_refuses(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_vote_table(table(tmp_path, text), ("fear", "joy"), delimiter=",")


@pytest.mark.parametrize(
    ("votes", "reason"),
    [
        ((1, 0), ""),
        ((0.0, 0.0), "no votes for any class"),
        ((3, -1), "a vote is negative"),
        ((float("nan"), 1), "a vote is no finite number"),
        ((float("inf"), 1), "a vote is no finite number"),
    ],
)
def test_reason_to_exclude(votes: tuple[float, ...], reason: str) -> None:
    assert reason_to_exclude(votes) == reason
