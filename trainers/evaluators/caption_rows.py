"""Generated captions with their references: the files they are kept in, and all scores of a set of them."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_ext.files import replacing
from trainers.evaluators import java_metrics
from trainers.evaluators.caption_metrics import bleu, cider_d, rouge_l
from trainers.evaluators.ptb_tokenizer import tokenize

DOMAINS = ("in_domain", "near_domain", "out_domain")  # of NoCaps
WHOLE = "valid"  # `split` of the rows of other data sets
JAVA_TITLES = {"meteor": "METEOR", "spice": "SPICE"}
FIELDS = {"split": str, "image_name": str, "captions": list, "prediction": str}  # of a row in a file
SHOWN = 5  # problems of a file that are spelled out


@dataclass(frozen=True)
class CaptionRow:
    """One picture's caption.

    Attributes:
        image: Its id or file name.
        prediction: The caption that was generated.
        references: Captions by people; one or more.
        domain: What it is scored apart by, as NoCaps' `near_domain`; "" = nothing.
    """

    image: str
    prediction: str
    references: tuple[str, ...]
    domain: str = ""

    @property
    def split(self) -> str:
        """NoCaps' domain, `valid` for every other row."""
        return self.domain if self.domain in DOMAINS else WHOLE


def score_rows(rows: Sequence[CaptionRow], java: Sequence[str] = ()) -> OrderedDict[str, float]:
    """Return every metric in percent: CIDEr, BLEU-1 to -4, ROUGE-L, Java's; then per domain, if there are several.

    A domain's CIDEr has document frequencies of its own, so that of all rows may be above every domain's.

    Args:
        rows: At least one; each has a reference.
        java: Further metrics, of `meteor` and `spice`, that `java_metrics.find_problems` has nothing against.
    Returns:
        `CIDEr`, ..., `in_domain/CIDEr`, ... -> percent.
    Raises:
        ValueError: If there is no row or one lacks references.
        RuntimeError: If a Java tool fails.
    """
    references = [[tokenize(text) for text in row.references] for row in rows]
    candidates = [tokenize(row.prediction) for row in rows]
    groups = {"": range(len(rows)), **_group_by_domain(rows)}
    results: OrderedDict[str, float] = OrderedDict()
    optional = _score_java(java, references, candidates, list(groups.values()))
    for number, (domain, members) in enumerate(groups.items()):
        texts, captions = [references[row] for row in members], [candidates[row] for row in members]
        shares = {
            "CIDEr": cider_d(texts, captions)[0],
            **{f"BLEU-{n}": share for n, share in enumerate(bleu(texts, captions), 1)},
            "ROUGE-L": rouge_l(texts, captions)[0],
            **{title: of_groups[number] for title, of_groups in optional.items()},
        }
        results |= {f"{domain}/{name}" if domain else name: 100.0 * share for name, share in shares.items()}
    return results


def _score_java(
    names: Sequence[str], references: list[list[list[str]]], candidates: list[list[str]], groups: list[Sequence[int]]
) -> dict[str, list[float]]:
    """Return title -> share per group."""
    joined = [[" ".join(tokens) for tokens in texts] for texts in references]
    captions = [" ".join(tokens) for tokens in candidates]
    return {title: java_metrics.score(name, joined, captions, groups) for name, title in JAVA_TITLES.items() if name in names}


def _group_by_domain(rows: Sequence[CaptionRow]) -> dict[str, list[int]]:
    """Return the rows of each domain, NoCaps' in their order; nothing if all are of one."""
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.domain, []).append(number)
    if len(groups) < 2:
        return {}
    unnamed = groups.pop("", None)
    return dict(sorted(groups.items())) | ({"other": unnamed} if unnamed else {})


def write_rows(path: Path, rows: Iterable[CaptionRow]) -> None:
    """Write captions as a JSON list of `split`, `image_name`, `captions`, `prediction`, whole or not at all."""
    content = [
        {"split": row.split, "image_name": row.image, "captions": list(row.references), "prediction": row.prediction}
        for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_rows(path: Path) -> list[CaptionRow]:
    """Return the captions of a file that `write_rows`, or ViECap's original evaluation, wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file (names the first rows at fault).
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON text: {error}") from error
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path} holds no list of rows; expected rows of {', '.join(FIELDS)}")
    faults = [f"row {number}: {fault}" for number, row in enumerate(content) for fault in _faults_of(row)]
    if faults:
        more = f"\n  and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
        raise ValueError("\n  ".join([f"{path}: {len(faults):,} problem(s)", *faults[:SHOWN]]) + more)
    return [_read_row(row) for row in content]


def _faults_of(row: Any) -> list[str]:
    if not isinstance(row, Mapping):
        return [f"is {type(row).__name__}; expected an object with {', '.join(FIELDS)}"]
    faults = [f"has no {name!r}" for name in FIELDS if name not in row and name != "split"]
    faults += [
        f"{name!r} is {type(row[name]).__name__}; expected {kind.__name__}"
        for name, kind in FIELDS.items()
        if name in row and not isinstance(row[name], (int, kind) if name == "image_name" else kind)
    ]
    captions = row.get("captions")
    if isinstance(captions, list) and not all(isinstance(text, str) for text in captions):
        faults.append("'captions' has entries that are no text")
    elif captions == []:
        faults.append("'captions' is empty: a caption without references cannot be scored")
    return faults


def _read_row(row: Mapping[str, Any]) -> CaptionRow:
    split = row.get("split", WHOLE)
    return CaptionRow(str(row["image_name"]), row["prediction"], tuple(row["captions"]), "" if split == WHOLE else split)
