"""CSV and JSONL files of own images: columns, labels, votes, extras, and one clear error for each way to get them wrong."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
from dassl.data.data_manager import build_data_loader
from own_images import load, make_cfg, write_csv, write_jsonl, write_picture

from datasets.image_files import read_classnames
from datasets.image_tables import read_table
from trainers.base import ExtrasWrapper

ROWS = [
    {"path": "a.png", "label": "cat", "cat": 3, "dog": 1, "emu": 0},
    {"path": "b.png", "label": "dog", "cat": 0, "dog": 0.5, "emu": 0.5},
    {"path": "c.png", "label": "emu", "cat": 1, "dog": 1, "emu": 8},
]
NAMES = ("cat", "dog", "emu")


def read(file: Path, names: tuple[str, ...] | None = None, **options: Any) -> list[Any]:
    return list(read_table(file, file.parent, names, **options).rows)


def facts(rows: list[Any]) -> list[tuple[Any, ...]]:
    return [(row.path.name, row.label, row.split, dict(row.extras)) for row in rows]


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "votes.csv", ROWS)


# --- votes --------------------------------------------------------------------------------------------------------------


def test_votes_become_distributions(csv_file: Path) -> None:
    rows = read(csv_file)
    assert [row.extras["distribution"] for row in rows] == [(0.75, 0.25, 0.0), (0.0, 0.5, 0.5), (0.1, 0.1, 0.8)]
    assert [row.extras["has_distribution"] for row in rows] == [1, 1, 1]
    assert [row.label for row in rows] == [0, 1, 2]


def test_columns_and_rows_in_another_order_give_the_same(csv_file: Path, tmp_path: Path) -> None:
    other = write_csv(tmp_path / "other.csv", ROWS[::-1], ["emu", "path", "cat", "label", "dog"])
    assert facts(read(other)) == facts(read(csv_file))
    lines = write_jsonl(tmp_path / "votes.jsonl", [dict(sorted(row.items(), reverse=True)) for row in ROWS])
    assert facts(read(lines)) == facts(read(csv_file))


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        ({"emu": "joy"}, "2 of 3 classes have a column of votes; there is none named emu"),
        ({"emu": "Emu"}, r"none named emu \(found 'Emu'\)"),
        ({"cat": "CAT", "dog": "DOG", "emu": "EMU"}, r"0 of 3 .*cat \(found 'CAT'\), dog \(found 'DOG'\)"),
        ({"emu": "cat"}, "columns that stand twice: cat"),
    ],
)
def test_mixed_up_vote_columns_are_one_error(csv_file: Path, renamed: dict[str, str], message: str) -> None:
    header, rest = csv_file.read_text("utf-8").split("\n", 1)
    columns = header.split(",")
    header = ",".join([*columns[:2], *(renamed.get(column, column) for column in columns[2:])])
    csv_file.write_text(f"{header}\n{rest}", "utf-8")
    with pytest.raises(ValueError, match=message):
        read(csv_file)


def test_rows_that_are_no_distribution_are_left_out_counted_and_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = [{"cat": "nan"}, {"cat": -1}, {"cat": 0, "dog": 0, "emu": 0}, {"dog": "inf"}, {"emu": ""}, {"cat": "NaN"}]
    rows = [*ROWS, *({**ROWS[0], "path": f"w{n}.png", **cells} for n, cells in enumerate(wrong))]
    for write in (write_csv, write_jsonl):
        file = write(tmp_path / f"wrong.{write.__name__[6:]}", rows)
        with caplog.at_level(logging.WARNING):
            assert len(read(file)) == 3
        (notice,) = [record.getMessage() for record in caplog.records]
        first = 5 if write is write_csv else 4  # the header has a line
        assert "6 of 9 rows are left out" in notice
        for fault, lines in (("no finite number", [0, 3, 4, 5]), ("negative", [1]), ("no votes for any class", [2])):
            assert f"{fault}: line {', '.join(str(first + n) for n in lines)}" in notice
        caplog.clear()


def test_real_nan_in_jsonl_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(read(write_jsonl(tmp_path / "v.jsonl", [*ROWS, {**ROWS[0], "path": "d.png", "dog": math.nan}]))) == 3
    assert "1 of 4 rows" in caplog.text


def test_vote_that_is_no_number_is_an_error_with_line_column_and_value(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "v.csv", [*ROWS, {**ROWS[0], "path": "d.png", "dog": "many"}])
    with pytest.raises(ValueError, match="v.csv.*(?s:.)*line 5: column dog is 'many'; expected a number"):
        read(file)


def test_row_without_votes_keeps_its_label(tmp_path: Path) -> None:
    rows = read(write_csv(tmp_path / "v.csv", [*ROWS, {"path": "d.png", "label": "emu", "cat": "", "dog": "", "emu": ""}]))
    assert rows[3].label == 2
    assert dict(rows[3].extras) == {"distribution": (0.0, 0.0, 0.0), "has_distribution": 0}


def test_label_of_votes_is_the_first_of_the_highest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = [{name: cell for name, cell in row.items() if name != "label"} for row in ROWS]
    file = write_csv(tmp_path / "v.csv", bare)
    with caplog.at_level(logging.INFO):
        assert [row.label for row in read(file, NAMES)] == [0, 1, 2]
    assert "1 rows whose label comes from tied votes are given the first" in caplog.text
    assert [row.path.name for row in read(file, NAMES, ties="drop")] == ["a.png", "c.png"]
    with pytest.raises(ValueError, match="no column 'label'.*only of known classes.*classes.txt.*DATASET.CLASSNAMES"):
        read(file)


def test_labels_that_disagree_with_the_votes_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    swapped = [{**row, "cat": row["emu"], "emu": row["cat"]} for row in ROWS]
    with caplog.at_level(logging.INFO):
        read(write_csv(tmp_path / "v.csv", swapped))
    assert "the label has the most votes in 1 of 3 rows" in caplog.text
    assert "are columns mixed up?" in caplog.text


def test_votes_and_extras_reach_the_batch(tmp_path: Path) -> None:
    parts = ("train", "train", "train", "test")
    rows = [{**row, "split": part, "height": 1.5, "note": "n"} for row, part in zip([*ROWS, ROWS[0]], parts, strict=True)]
    rows[3] = {**rows[3], "path": "d.png"}
    for number, row in enumerate(rows):
        write_picture(tmp_path / row["path"], number)
    data = load(write_csv(tmp_path / "v.csv", rows), VAL_PERCENT=0.0)
    cfg = make_cfg(tmp_path)
    cfg.DATALOADER.NUM_WORKERS = 0
    loader = build_data_loader(
        cfg, data_source=data.train_x, batch_size=3, tfm=lambda image: 0, dataset_wrapper=ExtrasWrapper, is_train=False
    )
    (batch,) = loader
    assert batch["distribution"].shape == (3, 3) and str(batch["distribution"].dtype) == "torch.float32"
    assert batch["has_distribution"].tolist() == [1, 1, 1]
    assert (batch["height"].tolist(), batch["note"]) == ([1.5] * 3, ["n"] * 3)


# --- labels, parts, paths -----------------------------------------------------------------------------------------------


def test_names_and_numbers_mean_the_listed_classes(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "l.csv", [{"image": f"{n}.png", "label": cell} for n, cell in enumerate(("emu", "0", "", 2))])
    assert [row.label for row in read(file, ("emu", "cat", "dog"))] == [0, 0, -1, 2]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_numbers_alone_need_a_list_of_names(tmp_path: Path, suffix: str) -> None:
    write = write_csv if suffix == "csv" else write_jsonl
    file = write(tmp_path / f"l.{suffix}", [{"path": "a.png", "label": 0}, {"path": "b.png", "label": 1}])
    with pytest.raises(ValueError, match=r"all labels are numbers \(0, 1\).*classes.txt.*DATASET.CLASSNAMES"):
        read(file)


def test_wrong_cells_of_all_lines_are_reported_together(tmp_path: Path) -> None:
    rows = [
        {"path": "a.png", "label": "cat", "split": "Train"},
        {"path": "b.png", "label": "cow", "split": "train"},
        {"path": "c.png", "label": "9", "split": "dev"},
        {"path": "", "label": "cat", "split": "test"},
        {"path": "./a.png", "label": "dog", "split": "test"},
    ]
    with pytest.raises(ValueError) as error:
        read(write_csv(tmp_path / "l.csv", rows), NAMES)
    message = str(error.value)
    assert "l.csv: 5 wrong cell(s)" in message
    assert "line 3: label is 'cow'; expected cat, dog, emu, or 0 to 2" in message
    assert "line 4: split is 'dev'; expected train, val, valid, test" in message
    assert "line 5: path is blank" in message
    assert "line 6: ./a.png stands in line 2 already" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("file,label\na,b\n", "expected one column named path or image, found file, label"),
        ("path,image,label\na,b,c\n", "expected one column named path or image"),
        ("path,kind\na,b\n", "has no column 'label', found path, kind"),
        ("path;label\na;b\n", "separated by ';'; expected ','"),
        ("path,label\na.png,cat,1\n", "the header has 2 cells, but line 2 has 3"),
        ('path,label\n"a.png,cat\n', "line 2: unexpected end of data"),
        ("path,label\na.png,\n", "no row has a label"),
    ],
)
def test_wrong_csv_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=f"t.csv.*{message}"):
        read(file)


@pytest.mark.parametrize(("line", "message"), [("{", "line 2 is no JSON"), ("[1]", "line 2 is '.1.'; expected a JSON object")])
def test_wrong_jsonl_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(f'{{"path": "a.png", "label": "cat"}}\n{line}\n', "utf-8")
    with pytest.raises(ValueError, match=f"t.jsonl, {message}"):
        read(file)


def test_byte_order_mark_crlf_quotes_and_blank_lines_are_read(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes('\ufeffpath,label,note\r\n\r\n"a, b.png", cat ,"two\r\nlines"\r\nc.png,d\u00f6g,x\r\n'.encode())
    rows = read(file)
    assert [(row.path.name, row.label, row.origin) for row in rows] == [
        ("a, b.png", 0, "t.csv, line 3"),
        ("c.png", 1, "t.csv, line 5"),
    ]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_refused_and_not_guessed(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes("path,label\na.png,cat\nb.png,d\u00f6g\n".encode(encoding))
    with pytest.raises(ValueError, match=r"t.csv, line \d: byte 0x.. is no UTF-8; save the file as UTF-8"):
        read(file)


# --- extras -------------------------------------------------------------------------------------------------------------


def test_other_columns_become_extras_of_one_type(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = {"path": "a.png", "label": "cat", "n": 1, "x": 2, "pair": [1, 2], "ragged": [1], "text": "t", "index": 7}
    row = {**row, "some": None}
    other = {**row, "path": "b.png", "n": 2, "x": 2.5, "pair": [3, 4.5], "ragged": [1, 2], "text": 5, "some": "s"}
    with caplog.at_level(logging.INFO):
        first, second = read(write_jsonl(tmp_path / "t.jsonl", [row, other]))
    assert dict(first.extras) == {"n": 1, "x": 2.0, "pair": (1.0, 2.0), "ragged": "[1]", "text": "t", "some": ""}
    assert dict(second.extras) == {"n": 2, "x": 2.5, "pair": (3.0, 4.5), "ragged": "[1, 2]", "text": "5", "some": "s"}
    assert [type(first.extras[name]) for name in ("n", "x")] == [int, float]
    assert "columns left out, since batches use their names: 'index'" in caplog.text


def test_csv_numbers_become_numbers_but_codes_stay_text(tmp_path: Path) -> None:
    rows = [{"path": f"{n}.png", "label": "cat", "age": n, "zip": "01234", "share": f"{n}.5"} for n in range(2)]
    assert dict(read(write_csv(tmp_path / "t.csv", rows))[1].extras) == {"age": 1, "zip": "01234", "share": 1.5}


# --- class names --------------------------------------------------------------------------------------------------------


def test_class_names_are_one_per_line(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes("\ufeff# pets\r\nhot dog\r\n\r\n  emu  \r\nC#\r\n".encode())
    assert read_classnames(file) == ("hot dog", "emu", "C#")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# nothing\n", "holds no class name"),
        ("cat\n# x\ndog\ncat\n", "lines 1 and 4"),
        ("hot_dog\nHot dog\n", "lines 1 and 2"),
    ],
)
def test_wrong_class_names_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "classes.txt"
    file.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=f"classes.txt.*{message}"):
        read_classnames(file)


