"""Answers: what a trained language system says to questions about images, as one plain dict per question.

A trainer that does so sets `answers_questions = True` and defines `predict_rows(batch) -> list[dict]`; a question that it
cannot answer has a dict with `error` alone. It may define `prepare_prediction(items)`, called once with all items before they
are read, and `finish_prediction()`, called after the last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from trainers.prediction.questions import Asked
from trainers.prediction.rows import load_rows
from trainers.prediction.run import TrainedRun


def answer_questions(trainer: Any, asked: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    """Yield one row per question, in their order: `impath`, `question`, what the trainer says, `error` ("" unless it failed).

    Args:
        trainer: Loaded, in evaluation mode; its test loader's view, batch size and workers are used.
        asked: Those that cannot be asked get their row too.
    """
    items = [each.item() for each in asked if not each.error]
    if hasattr(trainer, "prepare_prediction"):
        trainer.prepare_prediction(items)
    with_id = any(each.extras.get("question_id") for each in asked)
    said = _answer_items(trainer, items) if items else iter(())
    try:
        for each in tqdm(asked, desc="predict", leave=False, disable=None):
            row = {"error": each.error} if each.error else next(said)
            row.setdefault("error", "")
            yield each.row(with_id=with_id) | {name: row[name] for name in sorted(row, key=lambda name: name == "error")}
    finally:
        if hasattr(trainer, "finish_prediction"):
            trainer.finish_prediction()


def _answer_items(trainer: Any, items: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for batch, unreadable in load_rows(trainer, items):
        rows = {image.index: {"error": image.reason} for image in unreadable}
        if batch is not None:
            rows |= dict(zip(batch["index"].tolist(), trainer.predict_rows(batch), strict=True))
        yield from (rows[index] for index in sorted(rows))


@dataclass
class AnswerTally:
    """Counts of the rows that were written.

    Attributes:
        hits: Rows whose background was known; None if the trainer keeps none.
    """

    questions: int = 0
    hits: int | None = None
    failed: int = 0

    def count(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Pass rows on and count them."""
        for row in rows:
            self.questions += 1
            if "hit" in row:
                self.hits = (self.hits or 0) + bool(row["hit"])
            self.failed += bool(row["error"])
            yield row

    def __str__(self) -> str:
        known = "" if self.hits is None else f"{self.hits} with a known background, "
        return f"{self.questions} questions, {known}{self.failed} failed"


def describe_answers(trainer: Any, run: TrainedRun, checkpoint: str | None) -> dict[str, Any]:
    """Return what holds for all rows alike, the trainer's own `prediction_facts()` included."""
    return {
        "run": str(run.path),
        "trainer": run.cfg.TRAINER.NAME,
        "backbone": run.cfg.MODEL.BACKBONE.NAME,
        "checkpoint": checkpoint,
        "data_hash": run.data_hash,
        **getattr(trainer, "prediction_facts", dict)(),
    }
