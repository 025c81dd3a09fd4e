"""Caption rows: all scores of a set, the files they are kept in, and the published figures of released captions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from trainers.evaluators import caption_rows, java_metrics
from trainers.evaluators.caption_metrics import bleu, cider_d, rouge_l
from trainers.evaluators.caption_rows import CaptionRow, read_rows, score_rows, write_rows

ROWS = [
    CaptionRow("1", "A dog runs on grass.", ("A dog runs on the grass.", "A brown dog is running on grass!"), "near_domain"),
    CaptionRow("2", "two people on bikes", ("Two people ride bikes", "two cyclists on a street"), "in_domain"),
    CaptionRow("3", "a red bus on the road", ("A red bus on the road.",), "near_domain"),
    CaptionRow("4", "", ("Something (red).",), "in_domain"),
]
NAMES = ["CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]


def without_domains(rows: list[CaptionRow] = ROWS) -> list[CaptionRow]:
    return [CaptionRow(row.image, row.prediction, row.references) for row in rows]


# --- scores ----------------------------------------------------------------------------------------------------------------


def test_scores_are_percent_of_the_tokens_metrics_cider_first() -> None:
    references = [
        ["a dog runs on the grass".split(), "a brown dog is running on grass".split()],
        ["two people ride bikes".split(), "two cyclists on a street".split()],
        ["a red bus on the road".split()],
        ["something -lrb- red -rrb-".split()],
    ]
    candidates = ["a dog runs on grass".split(), "two people on bikes".split(), "a red bus on the road".split(), []]
    shares = [cider_d(references, candidates)[0], *bleu(references, candidates), rouge_l(references, candidates)[0]]
    results = score_rows(without_domains())
    assert list(results) == NAMES
    assert list(results.values()) == pytest.approx([100 * share for share in shares])
    assert all(type(value) is float for value in results.values())


def test_each_domain_is_scored_as_if_it_were_alone() -> None:
    results = score_rows(ROWS)
    assert list(results) == [*NAMES, *(f"in_domain/{name}" for name in NAMES), *(f"near_domain/{name}" for name in NAMES)]
    for domain in ("in_domain", "near_domain"):
        alone = score_rows([row for row in ROWS if row.domain == domain])
        assert {name: results[f"{domain}/{name}"] for name in NAMES} == pytest.approx(dict(alone))
    assert {name: results[name] for name in NAMES} == pytest.approx(dict(score_rows(without_domains())))


def test_cider_of_all_may_be_above_every_domain() -> None:
    """Words that tell the domains apart say nothing within one."""
    rows = [
        CaptionRow(f"{domain}{number}", f"{domain} {domain}s here {number}", (f"{domain} {domain}s here now",), domain)
        for domain in ("cat", "dog")
        for number in range(3)
    ]
    results = score_rows(rows)
    assert results["CIDEr"] > max(results["cat/CIDEr"], results["dog/CIDEr"]) == 0


def test_one_domain_needs_no_figures_of_its_own_and_rows_without_one_are_other() -> None:
    assert list(score_rows(ROWS[::2])) == NAMES
    mixed = score_rows([*ROWS[::2], *without_domains(ROWS[1:2])])
    assert {name.partition("/")[0] for name in mixed if "/" in name} == {"near_domain", "other"}


def test_java_metrics_get_tokens_and_groups_and_come_after_rouge(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def play(name: str, references: list, candidates: list, groups: list) -> list[float]:
        asked.append((name, references, candidates, [list(rows) for rows in groups]))
        return [0.5, 0.25, 0.125]

    monkeypatch.setattr(java_metrics, "score", play)
    results = score_rows(ROWS, ("spice", "meteor"))
    assert list(results)[:8] == [*NAMES, "METEOR", "SPICE"]
    assert (results["METEOR"], results["in_domain/SPICE"], results["near_domain/METEOR"]) == (50.0, 25.0, 12.5)
    assert [call[0] for call in asked] == ["meteor", "spice"]
    _, references, candidates, groups = asked[0]
    assert candidates[3] == "" and references[3] == ["something -lrb- red -rrb-"]
    assert groups == [[0, 1, 2, 3], [1, 3], [0, 2]]
    assert set(caption_rows.JAVA_TITLES) == set(java_metrics.METRICS)


# --- files -----------------------------------------------------------------------------------------------------------------


def test_rows_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "é_generated_captions.json"
    rows = [*ROWS, CaptionRow("5.jpg", "Ünï ☃", ("x",), "test")]
    write_rows(path, rows)
    back = read_rows(path)
    assert back[:4] == ROWS and back[4] == CaptionRow("5.jpg", "Ünï ☃", ("x",)), "`valid` stands for every other domain"
    written = json.loads(path.read_text("utf-8"))
    assert [list(row) for row in written] == [["split", "image_name", "captions", "prediction"]] * 5
    assert [row["split"] for row in written] == ["near_domain", "in_domain", "near_domain", "in_domain", "valid"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_file_of_the_original_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"image_name": 7, "captions": ["a"], "prediction": "b", "more": 1}]), "utf-8")
    assert read_rows(path) == [CaptionRow("7", "b", ("a",))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON text"), ("[]", "holds no list of rows"), ('{"a": 1}', "holds no list of rows"),
        ("[3]", "row 0: is int; expected an object"),
        ('[{"image_name": "a", "captions": ["b"]}]', "row 0: has no 'prediction'"),
        ('[{"image_name": "a", "captions": "b", "prediction": "c"}]', "row 0: 'captions' is str; expected list"),
        ('[{"image_name": "a", "captions": [1], "prediction": "c"}]', "row 0: 'captions' has entries that are no text"),
        ('[{"image_name": "a", "captions": [], "prediction": "c"}]', "row 0: 'captions' is empty"),
        ('[{"image_name": "a", "captions": ["b"], "prediction": ["c"]}]', "row 0: 'prediction' is list; expected str"),
    ],
)  # fmt: skip
def test_file_that_is_none_is_refused_with_the_row(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        read_rows(path)


def test_many_faults_are_counted_and_a_few_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{}] * 10), "utf-8")
    with pytest.raises(ValueError, match=r"30 problem\(s\)(.|\n)*row 1: has no 'captions'\n  and 25 more"):
        read_rows(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_rows(tmp_path / "none.json")


# --- released captions -----------------------------------------------------------------------------------------------------

# File below VIECAP_DATA/released -> CIDEr that its authors' Java chain gives, and tolerance, points.
RELEASED = {
    "train_coco/coco": (92.88, 0.01),
    "train_coco/flickr30k": (38.44, 0.01),
    "train_flickr30k/coco": (54.22, 0.01),
    "train_flickr30k/flickr30k": (47.91, 0.01),
    "train_coco/overall": (66.20, 0.01),
    # Published with one decimal; the tokenizer is within .007 of the Java chain.
    "train_coco/indomain": (61.1, 0.057),
    "train_coco/neardomain": (64.3, 0.057),
    "train_coco/outdomain": (65.0, 0.057),
}


def released(name: str) -> Path:
    folder = os.environ.get("VIECAP_DATA", "")
    path = Path(folder) / "released" / f"{name}_generated_captions.json"
    if not folder or not path.is_file():
        pytest.skip(f"VIECAP_DATA is {folder!r}; expected a folder with released/, the authors' generated captions")
    return path


@pytest.mark.data
@pytest.mark.parametrize("name", RELEASED)
def test_released_captions_have_their_published_cider(name: str) -> None:
    expected, tolerance = RELEASED[name]
    assert score_rows(without_domains(read_rows(released(name))))["CIDEr"] == pytest.approx(expected, abs=tolerance)


@pytest.mark.data
def test_released_coco_captions_have_their_published_bleu_and_rouge() -> None:
    results = score_rows(read_rows(released("train_coco/coco")))
    assert results["BLEU-4"] == pytest.approx(27.21, abs=0.01)
    assert results["ROUGE-L"] == pytest.approx(51.32, abs=0.01)


@pytest.mark.data
def test_released_coco_captions_have_their_published_meteor() -> None:
    problems = java_metrics.find_problems(("meteor",), "this test's")
    if problems:
        pytest.skip("; ".join(problems))
    assert score_rows(read_rows(released("train_coco/coco")), ("meteor",))["METEOR"] == pytest.approx(24.81, abs=0.01)


@pytest.mark.data
def test_domains_within_the_released_nocaps_captions_equal_their_own_files() -> None:
    results = score_rows(read_rows(released("train_coco/overall")))
    for domain in ("in_domain", "near_domain", "out_domain"):
        alone = score_rows(read_rows(released(f"train_coco/{domain.replace('_', '')}")))
        assert results[f"{domain}/CIDEr"] == pytest.approx(alone["CIDEr"])
