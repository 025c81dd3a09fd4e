"""The evaluator `VQA`: short answers to questions about images against their references."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.evaluation import EVALUATOR_REGISTRY, EvaluatorBase
from yacs.config import CfgNode

from clip_ext.files import replacing
from trainers.evaluators import vqa_text
from trainers.evaluators.vqa_rows import Row, problems_with, score_rows

logger = logging.getLogger(__name__)

FILE_NAME = "predictions.jsonl"
STYLE = "style="  # of entries per style: accuracy/style=Baroque
PER_GROUP = ("accuracy", "vqa_accuracy", "token_f1", "bleu", "rouge_l")
PRIMARIES = (*PER_GROUP, "macro_accuracy", "anls", "relaxed", "yes_no_f1", "auto")
OFFICIAL = {"AQUA": "accuracy", "ArtQuest": "accuracy", "OCRVQA": "accuracy", "TextVQA": "vqa_accuracy"}  # by DATASET.NAME


def add_config(cfg: CfgNode) -> None:
    """Add the evaluator's keys to Dassl's node `TEST` in place."""
    cfg.TEST.VQA = node = CfgNode()
    node.PRIMARY = "accuracy"  # which entry comes first and selects models; auto = the data set's official metric


def find_problems(cfg: CfgNode) -> list[str]:
    """Return one message per setting of the evaluator that cannot work or would be without effect."""
    primary = cfg.TEST.VQA.PRIMARY
    if primary not in PRIMARIES:
        return [f"TEST.VQA.PRIMARY is {primary!r}; expected one of {', '.join(PRIMARIES)}"]
    if primary != "accuracy" and cfg.TEST.EVALUATOR != VQA.__name__:
        return [f"TEST.VQA.PRIMARY is {primary!r}, but TEST.EVALUATOR is {cfg.TEST.EVALUATOR!r}; expected VQA"]
    return []


@EVALUATOR_REGISTRY.register()
class VQA(EvaluatorBase):
    """Normalised exact match and its relatives, in percent, over all questions and per question type.

    `accuracy` is the exact match with any reference, `vqa_accuracy` the official one of VQAv2 and TextVQA, `token_f1` the best
    word overlap, `bleu` and `rouge_l` the means of the answers' BLEU and ROUGE-L (see `vqa_rows`), `macro_accuracy` the mean of
    the types' accuracies, `anls` and `relaxed` those of scene text and charts, `yes_no_f1` the F1 of "yes" over questions with
    a reference yes or no (absent if none says yes), `truncated` the share of answers that were cut. Entries per type
    (`accuracy/colour`) and per style (`accuracy/style=Baroque`) exist where there are several types, and several known styles;
    questions of unknown style are in none of the latter. Questions without references are answered and written, but not scored;
    if none has any, `truncated` is all there is.

    Args:
        cfg: Full config; `TEST.VQA.PRIMARY` names the entry that comes first. `auto` means the official metric of the data set,
            which for sets of the user's own is `vqa_accuracy` if a question has several references, else `accuracy`.
        lab2cname: Not needed; the question types come with the targets.
    Raises:
        ValueError: If a key of the evaluator has an impossible value.
    """

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs: Any) -> None:
        problems = find_problems(cfg)
        if problems:
            raise ValueError("\n".join(problems))
        super().__init__(cfg)
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._rows: list[Row] = []

    def process(self, outputs: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]) -> None:
        """Add one batch.

        Args:
            outputs: One mapping per question with `answer`, `truncated` (False if absent) and fields of the trainer's own.
            targets: As many, with `question`, `answers` (list of references, may be empty), `question_type` ("" = vqa),
                `impath`, and optionally `question_id` and `style`.
        Raises:
            ValueError: If the lists differ in length or fields are missing or contradict each other (lists them).
        """
        if not all(isinstance(row, Mapping) for row in (*outputs, *targets)):
            raise ValueError("TEST.EVALUATOR VQA reads answers (dicts), not scores of classes; expected another TEST.EVALUATOR")
        if len(outputs) != len(targets):
            raise ValueError(f"VQA got {len(outputs)} outputs for {len(targets)} targets")
        problems = [problem for pair in zip(outputs, targets, strict=True) for problem in problems_with(*pair)]
        if problems:
            raise ValueError("VQA: " + "; ".join(dict.fromkeys(problems)))
        self._rows += score_rows(outputs, targets)

    def evaluate(self) -> OrderedDict[str, float]:
        """Log the result block, write `predictions.jsonl` into OUTPUT_DIR and return all metrics, the primary one first.

        Raises:
            ValueError: If nothing was processed, or no question can be scored by `TEST.VQA.PRIMARY`.
        """
        if not self._rows:
            raise ValueError("No question was answered; check TEST.SPLIT and DATASET.NAME")
        self._write()
        scored = [row for row in self._rows if row.references]
        truncated = _percent([row.truncated for row in self._rows])
        if not scored:
            total = f"{len(self._rows):,}"
            logger.warning("=> result\n* total: %s\nNo question has a reference answer: nothing is scored", total)
            return OrderedDict(truncated=truncated)
        results = OrderedDict(_measure(scored), truncated=truncated)
        primary = self._primary(scored)
        self._log(scored, results, primary)
        if primary not in results:
            raise ValueError(f"TEST.VQA.PRIMARY is {primary!r}, but no reference says yes; expected accuracy")
        results.move_to_end(primary, last=False)
        return results

    def _primary(self, rows: Sequence[Row]) -> str:
        primary = self.cfg.TEST.VQA.PRIMARY
        if primary != "auto":
            return primary
        usual = "vqa_accuracy" if any(len(row.references) > 1 for row in rows) else "accuracy"
        return OFFICIAL.get(self.cfg.DATASET.NAME, usual)

    def _log(self, rows: Sequence[Row], results: Mapping[str, float], primary: str) -> None:
        """Log Dassl's block, which scripts read, then the other entries; of styles, which are many, the main ones."""
        others = [name for name in results if name != "accuracy" and _is_logged(name, primary)]
        left_out = len(self._rows) - len(rows)
        lines = [
            "=> result",
            f"* total: {len(rows):,}" + (f" ({left_out:,} more without reference answer)" if left_out else ""),
            f"* correct: {sum(row.scores['accuracy'] == 1 for row in rows):,}",
            f"* accuracy: {results['accuracy']:.1f}%",
            f"* error: {100 - results['accuracy']:.1f}%",
            *(f"* {name}: {results[name]:.1f}%" for name in others),
        ]
        logger.info("%s", "\n".join(lines))

    def _write(self) -> None:
        path = Path(self.cfg.OUTPUT_DIR) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            for row in self._rows:
                known = {"question_type": row.question_type, "truncated": row.truncated, "scores": dict(row.scores)}
                line = {**row.fields, **known}
                file.write(json.dumps(line, ensure_ascii=False, default=_to_plain) + "\n")


def _is_logged(name: str, primary: str) -> bool:
    metric, _, group = name.partition("/")
    return not group.startswith(STYLE) or metric in ("accuracy", primary)


def _measure(rows: Sequence[Row]) -> dict[str, float]:
    """Return every metric of rows with references, percent, `accuracy` first."""
    types, styles = _group(rows, lambda row: row.question_type), _group(rows, lambda row: row.style)
    accuracies = [_mean(members, "accuracy") for members in types.values()]
    results = {name: _mean(rows, name) for name in PER_GROUP}
    results["macro_accuracy"] = sum(accuracies) / len(accuracies)
    results |= {name: _mean(rows, name) for name in rows[0].scores if name not in PER_GROUP}
    yes_no = _yes_no_f1(rows)
    if yes_no is not None:
        results["yes_no_f1"] = yes_no
    for prefix, groups in (("", types), (STYLE, styles)):
        if len(groups) > 1:
            results |= {f"{name}/{prefix}{kind}": _mean(groups[kind], name) for name in PER_GROUP for kind in groups}
    return results


def _group(rows: Sequence[Row], name_of: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Return the rows by name, sorted by it; those without a name are in no group."""
    groups: dict[str, list[Row]] = {name: [] for name in sorted({name_of(row) for row in rows} - {""})}
    for row in rows:
        if name_of(row):
            groups[name_of(row)].append(row)
    return groups


def _mean(rows: Sequence[Row], name: str) -> float:
    return _percent([row.scores[name] for row in rows])


def _percent(shares: Sequence[float]) -> float:
    return 100.0 * sum(shares) / len(shares)


def _yes_no_f1(rows: Sequence[Row]) -> float | None:
    """Return the F1 of "yes", percent; None if no reference says yes. An answer that is neither is no "yes"."""
    pairs = [(vqa_text.yes_or_no(row.answer), _truth(row.references)) for row in rows]
    pairs = [(said, truth) for said, truth in pairs if truth]
    hits = sum(said == truth == "yes" for said, truth in pairs)
    said_yes, true_yes = sum(said == "yes" for said, _ in pairs), sum(truth == "yes" for _, truth in pairs)
    return 200.0 * hits / (said_yes + true_yes) if true_yes else None


def _truth(references: Sequence[str]) -> str:
    """Return `yes` or `no` if more than half of the references are that word, else ""."""
    normalised = [vqa_text.normalise_answer(reference) for reference in references]
    return next((word for word in ("yes", "no") if 2 * normalised.count(word) > len(normalised)), "")


def _to_plain(value: Any) -> Any:
    """Return tensors and arrays as numbers or lists, and anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
