"""Questions about own images: every file form is read alike, and what is wrong with rows is reported together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from dassl.data.data_manager import build_data_loader
from vqa_trees import facts, load, make_cfg, own_questions, write_images, write_json, write_lines, write_text

from trainers.base import ExtrasWrapper

CONVERSATION = [
    {"from": "human", "value": "<image>\nWhat is it?\nAnswer the question using a single word or phrase."},
    {"from": "gpt", "value": "A clock"},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return own_questions(tmp_path)


def refused(root: Path, **settings: Any) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(root, **settings)
    return str(error.value)


def one_part(root: Path, **settings: Any) -> list[Any]:
    """The test items of a folder that has test questions only."""
    data = load(root, **settings)
    assert data.split_kind == "tests only"
    return data.test


# --- items --------------------------------------------------------------------------------------------------------------


def test_three_tables_are_discovered_and_labels_are_the_sorted_question_types_of_all_parts(root: Path) -> None:
    data = load(root)
    assert data.split_kind == "given"
    assert facts(data.train_x) == [(f"a{n}.png", "What is it?", [f"thing {n}"]) for n in range(4)]
    assert facts(data.test) == [("c0.png", "How many?", ["3"])]
    assert data.lab2cname == {0: "colour", 1: "count", 2: "object"} and data.num_classes == 3
    assert data.classnames == ["colour", "count", "object"]
    assert [(item.label, item.classname) for item in data.val] == [(1, "count"), (0, "colour")]
    assert all(data.lab2cname[item.label] == item.extras["question_type"] for item in (*data.train_x, *data.val, *data.test))


def test_every_item_has_the_extras_that_all_sets_of_questions_share(root: Path) -> None:
    data = load(root)
    names = {"question", "answers", "boxes", "question_id", "question_type", "style"}
    assert all(set(item.extras) == names for item in (*data.train_x, *data.val, *data.test))
    first = data.train_x[0].extras
    assert first["boxes"] == "" and first["style"] == "" and first["question_id"] == "train-1"
    assert len({item.extras["question_id"] for item in (*data.train_x, *data.val, *data.test)}) == 7


def test_unknown_boxes_and_no_boxes_are_told_apart(root: Path) -> None:
    rows = [
        {"image": f"c{n}.png", "question": "Q", "answer": "x", **boxes}
        for n, boxes in enumerate([{}, {"boxes": []}, {"boxes": [[1, 2, 3, 4.5]]}, {"boxes": "[[0, 0, 1, 1]]"}])
    ]
    (root / "test.csv").unlink()
    write_lines(root / "test.jsonl", rows)
    boxes = [item.extras["boxes"] for item in load(root).test]
    assert boxes[:2] == ["", "[]"]
    assert json.loads(boxes[2]) == [[1, 2, 3, 4.5]] and json.loads(boxes[3]) == [[0, 0, 1, 1]]


def test_rows_without_type_are_of_type_vqa(tmp_path: Path) -> None:
    write_images(tmp_path, ["x.png"])
    write_text(tmp_path / "test.csv", "image,question,answer", "x.png,Why?,so")
    (item,) = one_part(tmp_path)
    assert (item.label, item.classname, item.extras["question_type"]) == (0, "vqa", "vqa")


def test_items_of_one_and_of_several_turns_batch_together(root: Path) -> None:
    talk = [*CONVERSATION, {"from": "human", "value": "Which colour?"}, {"from": "gpt", "value": "red"}]
    write_json(root / "train.json", [
        {"id": 7, "image": "a0.png", "conversations": talk, "category": "object", "boxes": [[0, 0, 4, 4]], "style": "woodcut"},
        {"id": 8, "image": "a1.png", "conversations": CONVERSATION},
    ])  # fmt: skip
    (root / "train.csv").unlink()
    data = load(root)
    several, single = data.train_x
    assert json.loads(several.extras["turns"]) == [["What is it?", "A clock"], ["Which colour?", "red"]]
    assert (several.extras["question"], several.extras["answers"]) == ("What is it?", '["A clock"]')
    assert (several.extras["question_id"], several.extras["style"]) == ("7", "woodcut")
    assert json.loads(several.extras["boxes"]) == [[0, 0, 4, 4]]
    assert single.extras["turns"] == "" and single.extras["question"] == "What is it?"
    cfg = make_cfg("VQAJson", root)
    cfg.DATALOADER.NUM_WORKERS = 0
    options = {"tfm": lambda image: 0.0, "dataset_wrapper": ExtrasWrapper}
    assert next(iter(build_data_loader(cfg, data_source=data.train_x, batch_size=2, **options)))["turns"][1] == ""


def test_data_sets_without_conversations_have_no_turns(root: Path) -> None:
    assert not any("turns" in item.extras for item in load(root).train_x)


# --- forms --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", "\t", ";"])
def test_three_separators_are_found_by_the_header(tmp_path: Path, mark: str) -> None:
    write_images(tmp_path / "Images", ["x.png", "y.png"])
    rows = ["x.png", '"What, or; who?"', "a"], ["y.png", '"Two\nlines?"', '"[""b"", ""c""]"']
    write_text(tmp_path / "test.csv", *(mark.join(cells) for cells in (["image", "question", "answer"], *rows)))
    assert facts(one_part(tmp_path)) == [("x.png", "What, or; who?", ["a"]), ("y.png", "Two\nlines?", ["b", "c"])]


def test_byte_order_mark_and_line_ends_of_a_spreadsheet_do_not_matter(root: Path) -> None:
    lines = (root / "train.csv").read_text("utf-8")
    (root / "train.csv").write_bytes("\ufeff".encode() + lines.replace("\n", "\r\n").encode())
    assert len(load(root).train_x) == 4


def test_other_codec_needs_the_key_and_the_error_names_line_byte_and_key(root: Path) -> None:
    write_text(root / "train.csv", "image,question,answer", "a0.png,Who?,someone", "a1.png,Who?,Dürer", encoding="latin-1")
    message = refused(root)
    assert re.search(r"DATASET.VQA.TRAIN: .*train.csv, line 3: byte 0xfc is not utf-8-sig; .* DATASET.VQA.ENCODING", message)
    for name in ("val.csv", "test.csv"):
        (root / name).write_bytes((root / name).read_text("utf-8").encode("cp1252"))
    assert facts(load(root, VQA_ENCODING="cp1252").train_x)[1] == ("a1.png", "Who?", ["Dürer"])
    assert "DATASET.VQA.ENCODING is 'klingon'; expected a codec" in refused(root, VQA_ENCODING="klingon")


def test_columns_of_other_names_are_given_by_key(root: Path) -> None:
    write_text(root / "train.csv", "file,ask,reply,kind", "a0.png,Why?,so,cause")
    message = refused(root)
    assert "train.csv has no column for image, question, answer; found file, ask, reply, kind" in message
    write_text(root / "val.csv", "file,ask,reply,kind", "b0.png,Who?,me,person")
    write_text(root / "test.csv", "file,ask,kind", "c0.png,Who?,person")
    columns = ("image=file", "question=ask", "answer=reply", "question_type=kind")
    data = load(root, VQA_COLUMNS=columns)
    assert facts(data.train_x) == [("a0.png", "Why?", ["so"])] and data.classnames == ["cause", "person"]
    assert facts(data.test) == [("c0.png", "Who?", [])]
    assert "test.csv has no column for style=mood" in refused(root, VQA_COLUMNS=(*columns, "style=mood"))


@pytest.mark.parametrize("columns", [("image",), ("picture=file",), ("image=a", "image=b"), ("image=",)])
def test_columns_that_are_no_pairs_of_names_are_refused(root: Path, columns: tuple[str, ...]) -> None:
    assert re.search(r'DATASET.VQA.COLUMNS holds .*expected "ours=theirs"', refused(root, VQA_COLUMNS=columns))


def test_llava_evaluation_lines_lose_the_line_that_the_prompt_adds(tmp_path: Path) -> None:
    write_images(tmp_path / "pictures", ["x.png"])
    text = "Is there a dog?\nAnswer the question using a single word or phrase."
    rows = [{"question_id": 5, "image": "x.png", "text": text, "category": "default", "label": "yes"}]
    write_lines(tmp_path / "questions.jsonl", rows)
    (item,) = one_part(tmp_path, VQA_TEST="questions.jsonl", VQA_IMAGES="pictures")
    assert facts([item]) == [("x.png", "Is there a dog?", ["yes"])]
    assert (item.extras["question_id"], item.extras["question_type"]) == ("5", "default")


def test_flat_json_list_is_read_as_lines_are(tmp_path: Path) -> None:
    write_images(tmp_path, ["x.jpg", "y.jpg"])
    answers = [{"answer": "red", "answer_confidence": "yes"}, {"answer": "red"}, {"answer": "pink"}]
    other = {"image": "y.jpg", "question": "How many?", "answers": 2}
    write_json(tmp_path / "test.json", [{"image": "x.jpg", "question": "Which?", "answers": answers}, other])
    assert facts(one_part(tmp_path)) == [("x.jpg", "Which?", ["red", "red", "pink"]), ("y.jpg", "How many?", ["2"])]


@pytest.mark.parametrize("named", ["v2_OpenEnded_questions.json", "v2_OpenEnded_questions.json, v2_annotations.json"])
def test_vqav2_joins_questions_and_annotations(tmp_path: Path, named: str) -> None:
    write_images(tmp_path / "images", ["val2014/COCO_val2014_000000000042.jpg", "COCO_val2014_000000000043.jpg"])
    asked = [{"image_id": 43, "question": "Two?", "question_id": 431}, {"image_id": 42, "question": "One?", "question_id": 420}]
    cats = [{"answer": "cat"}] * 9 + [{"answer": "dog"}]
    noted = [
        {"question_id": 420, "question_type": "what is", "answer_type": "other", "answers": cats},
        {"question_id": 431, "question_type": "is it", "answer_type": "yes/no", "answers": [{"answer": "no"}] * 10},
    ]
    write_json(tmp_path / "v2_OpenEnded_questions.json", {"data_subtype": "val2014", "questions": asked})
    write_json(tmp_path / "v2_annotations.json", {"annotations": noted})
    items = one_part(tmp_path, VQA_TEST=named)
    assert facts(items) == [
        ("COCO_val2014_000000000043.jpg", "Two?", ["no"] * 10),
        ("COCO_val2014_000000000042.jpg", "One?", ["cat"] * 9 + ["dog"]),
    ]
    assert [item.classname for item in items] == ["yes/no", "other"]


def test_vqav2_questions_without_annotations_are_for_prediction(tmp_path: Path) -> None:
    write_images(tmp_path, ["COCO_test2015_000000000001.jpg"])
    asked = [{"image_id": 1, "question": "One?", "question_id": 10}]
    write_json(tmp_path / "questions.json", {"data_subtype": "test2015", "questions": asked})
    assert facts(one_part(tmp_path, VQA_TEST="questions.json")) == [("COCO_test2015_000000000001.jpg", "One?", [])]


def test_files_lie_where_the_keys_say(tmp_path: Path) -> None:
    own_questions(tmp_path / "deep" / "art")
    (tmp_path / "deep" / "art" / "train.csv").rename(tmp_path / "deep" / "art" / "art_train.csv")
    assert len(load(tmp_path, VQA_DIR="deep/art").train_x) == 4
    (tmp_path / "deep" / "art" / "train.tsv").write_text("image\tquestion\n", "utf-8")
    message = refused(tmp_path, VQA_DIR="deep/art")
    assert "several files for train: train.tsv, art_train.csv; name one as DATASET.VQA.TRAIN" in message
    assert len(load(tmp_path, VQA_DIR="deep/art", VQA_TRAIN="art_train.csv").train_x) == 4


# --- parts --------------------------------------------------------------------------------------------------------------


def test_without_test_file_val_is_tested_on_and_said_to_be_val(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "test.csv").unlink()
    data = load(root)
    assert data.split_kind == "val as test" and facts(data.test) == facts(data.val)
    assert "VALIDATION figure" in caplog.text


def test_hold_out_divides_train_by_image_and_keeps_val_for_last(root: Path) -> None:
    (root / "test.csv").unlink()
    lines = [f"a{number}.png,Question {n}?,yes" for n in range(3) for number in range(4)]
    write_text(root / "train.csv", "image,question,answer", *lines)
    data = load(root, VQA_MISSING_TEST="hold_out", VAL_PERCENT=0.25)
    assert data.split_kind == "hold_out" and [name for name, *_ in facts(data.test)] == ["b0.png", "b1.png"]
    assert (len(data.train_x), len(data.val)) == (9, 3)
    assert not {item.impath for item in data.train_x} & {item.impath for item in data.val}
    moved = root.rename(root.with_name("elsewhere"))
    assert facts(load(moved, VQA_MISSING_TEST="hold_out", VAL_PERCENT=0.25).val) == facts(data.val)
    others = {facts(load(moved, VQA_MISSING_TEST="hold_out", VAL_PERCENT=0.25, SPLIT_SEED=n).val)[0][0] for n in range(9)}
    assert len(others) > 1


def test_train_alone_can_be_divided_but_not_tested_on(root: Path) -> None:
    for name in ("val.csv", "test.csv"):
        (root / name).unlink()
    assert "no file for val or test" in refused(root)
    data = load(root, VQA_MISSING_TEST="hold_out")
    assert data.val is None and (len(data.train_x), len(data.test)) == (3, 1)


def test_answers_may_be_missing_from_a_whole_test_part_only(root: Path) -> None:
    write_text(root / "test.csv", "image,question", "c0.png,What?", "c1.png,Who?")
    assert facts(load(root).test) == [("c0.png", "What?", []), ("c1.png", "Who?", [])]
    write_text(root / "test.csv", "image,question,answer", "c0.png,What?,", "c1.png,Who?,me")
    assert "empty answer: 1 (test.csv, line 2)" in refused(root)
    write_text(root / "train.csv", "image,question", "a0.png,What?")
    assert "train.csv has no column for answer; found image, question" in refused(root)


# --- what is wrong ------------------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(root: Path) -> Path:
    """Eleven unusable rows beside four good ones."""
    (root / "images" / "torn.png").write_bytes((root / "images" / "a3.png").read_bytes()[:40])
    write_text(
        root / "train.csv", "image,question,answer,question_type,boxes",
        "a0.png,What?,good,object,", "a0.png,What?,good,object,", "a1.png,,empty,object,", "a1.png,What?, ,object,",
        "gone.png,What?,x,object,", "torn.png,What?,x,object,", "torn.png,Who?,x,object,", "b0.png,How many?,2,count,",
        "a2.png,too few", "a2.png,What?,x,object,\"[[1, 2, 1, 4]]\"", ",What?,x,object,", "a2.png,What?,\"[[1]]\",object,",
    )  # fmt: skip
    return root


REASONS = {
    "other number of cells than the header": "train.csv, line 10",
    "boxes that are no list of [x1, y1, x2, y2] with x1 < x2 and y1 < y2": "train.csv, line 11",
    "no image": "train.csv, line 12",
    "answers that are neither text nor a list of texts": "train.csv, line 13",
    "empty question": "train.csv, line 4",
    "empty answer": "train.csv, line 5",
    "missing image": "train.csv, line 6: gone.png",
    "same row twice": "train.csv, line 3 and train.csv, line 2",
    "image shared between splits": "train.csv, line 9: b0.png is in val too",
}


def test_everything_wrong_with_rows_is_one_error_with_counts_and_places(spoilt: Path) -> None:
    message = refused(spoilt)
    assert "11 problems in 15 rows" in message and "DATASET.VQA.MISSING skip leaves such rows out" in message
    for reason, place in REASONS.items():
        assert f"{reason}: 1 ({place})" in message
    assert re.search(r"corrupt image: 2 \(train.csv, line 7: torn.png, .*; train.csv, line 8: torn.png", message)


def test_skip_leaves_them_out_and_says_the_same(spoilt: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load(spoilt, VQA_MISSING="skip")
    assert facts(data.train_x) == [("a0.png", "What?", ["good"])]
    assert [name for name, *_ in facts(data.val)] == ["b0.png", "b1.png"]  # the earlier part gives way
    assert "11 problems in 15 rows" in caplog.text
    assert all(f"{reason}: 1 (" in caplog.text for reason in REASONS)


def test_only_the_first_ten_rows_are_listed(root: Path) -> None:
    write_text(root / "train.csv", "image,question,answer", *(f"gone{n}.png,Q?,x" for n in range(14)))
    message = refused(root)
    assert "missing image: 14 (" in message and "gone9.png; and 4 more)" in message and "gone10.png" not in message
    assert "no question is left for train" in refused(root, VQA_MISSING="skip")


BAD_TALKS = {
    "two images": [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "x"}],
    "image tag behind the first question": [
        *CONVERSATION[:0], {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"},
        {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "x"},
    ],
    "turns that do not alternate between human and gpt": CONVERSATION[::-1],
    "empty question or answer": [*CONVERSATION, {"from": "human", "value": "And?"}],
    "empty question": [{"from": "human", "value": "<image>\n"}, {"from": "gpt", "value": "x"}],
    "empty answer": [CONVERSATION[0], {"from": "gpt", "value": ""}],
    "no conversation": [],
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD_TALKS)
def test_conversations_that_cannot_be_learned_are_reported_by_reason(root: Path, reason: str) -> None:
    (root / "train.csv").unlink()
    good = {"id": 1, "image": "a0.png", "conversations": CONVERSATION}
    write_json(root / "train.json", [good, {"id": 2, "image": "a1.png", "conversations": BAD_TALKS[reason]}])
    assert f"1 problems in 5 rows\n  {reason}: 1 (train.json, entry 2)" in refused(root)
    assert len(load(root, VQA_MISSING="skip").train_x) == 1


def test_conversations_without_image_or_with_two_are_reported(root: Path) -> None:
    (root / "train.csv").unlink()
    rows = [{"conversations": CONVERSATION}, {"image": ["a0.png", "a1.png"], "conversations": CONVERSATION}, 5]
    write_json(root / "train.json", [*rows, {"image": ["a2.png"], "conversations": CONVERSATION}])
    message = refused(root)
    for number, reason in enumerate(("no image", "two images", "no JSON object"), 1):
        assert f"{reason}: 1 (train.json, entry {number})" in message
    assert facts(load(root, VQA_MISSING="skip").train_x) == [("a2.png", "What is it?", ["A clock"])]


def test_open_question_of_a_conversation_is_one_to_be_answered(tmp_path: Path) -> None:
    write_images(tmp_path, ["x.png"])
    talk = [{"from": "human", "value": "What is this?\n<image>"}]  # the tag may stand at the end
    write_json(tmp_path / "test.json", [{"image": "x.png", "conversations": talk}])
    assert facts(one_part(tmp_path)) == [("x.png", "What is this?", [])]


def test_faults_of_all_files_are_one_error(root: Path) -> None:
    write_text(root / "train.csv", "picture,question,answer", "a0.png,Q,x")
    write_text(root / "val.csv", 'image,question,answer', '"b0.png,Q,x')
    message = refused(root, VQA_TEST="nowhere.csv")
    assert "DATASET.VQA.TRAIN: " in message and "no column for image" in message
    assert re.search(r"DATASET.VQA.VAL: .*val.csv, line 2: ", message)
    assert re.search(r"DATASET.VQA.TEST: no file .*nowhere.csv", message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", b"", "train.csv is empty; expected a header"),
        ("train.csv", b"image,question,question,answer\na0.png,Q,R,S\n", "a column stands twice"),
        ("train.json", b"{", "train.json is no JSON"),
        ("train.json", b'{"rows": []}', "expected a list of objects, or VQAv2's object"),
        ("train.json", b"[1, 2]", "train.json holds no JSON object"),
        ("train.jsonl", b"nothing", "train.jsonl holds no JSON object"),
    ],
)
def test_file_of_no_known_form_is_refused(root: Path, name: str, content: bytes, message: str) -> None:
    (root / "train.csv").unlink()
    (root / name).write_bytes(content)
    assert message in refused(root)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"VQA_MISSING": "drop"}, "DATASET.VQA.MISSING is 'drop'; expected one of error, skip"),
        ({"VQA_MISSING_TEST": "train"}, "DATASET.VQA.MISSING_TEST is 'train'; expected one of val, hold_out"),
        ({"SKIP_BROKEN": True}, "DATASET.SKIP_BROKEN is True; expected False"),
        ({"NUM_SHOTS": 4}, "DATASET.NUM_SHOTS is 4; expected -1"),
        ({"SUBSAMPLE_CLASSES": "base"}, "DATASET.SUBSAMPLE_CLASSES is 'base'; expected 'all'"),
        ({"VQA_MISSING_TEST": "hold_out", "VAL_PERCENT": 0.0}, "DATASET.VAL_PERCENT is 0.0; expected a share in"),
        ({"VQA_DIR": "nowhere"}, "nowhere (DATASET.ROOT, DATASET.VQA.DIR)"),
        ({"VQA_IMAGES": "nowhere"}, "DATASET.VQA.IMAGES names no folder"),
    ],
)
def test_impossible_keys_are_refused_with_key_and_value(root: Path, settings: dict[str, Any], message: str) -> None:
    assert message in refused(root, **settings)


def test_keys_are_reported_together(root: Path) -> None:
    message = refused(root, VQA_MISSING="drop", SKIP_BROKEN=True, NUM_SHOTS=1)
    assert message.count("DATASET.") == 3


def test_folder_without_questions_says_what_was_looked_for(tmp_path: Path) -> None:
    message = refused(tmp_path)
    assert str(tmp_path) in message and "DATASET.VQA.TRAIN" in message
