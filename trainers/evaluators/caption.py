"""The evaluator `Captioning`: generated captions against those of people."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.evaluation import EVALUATOR_REGISTRY, EvaluatorBase
from yacs.config import CfgNode

from trainers.evaluators import java_metrics
from trainers.evaluators.caption_rows import DOMAINS, CaptionRow, score_rows, write_rows

logger = logging.getLogger(__name__)

FOLDER = "predictions"
SUFFIX = "generated_captions.json"
NOCAPS = "NoCaps"
TARGET_FIELDS = ("image_id", "captions", "domain")


def read_java_metrics(cfg: CfgNode) -> tuple[tuple[str, ...], str]:
    """Return the Java metrics that the trainer's key `EVAL.JAVA` asks for, and the key's full name.

    Trainers without that key ask for none.
    """
    name = cfg.TRAINER.NAME.upper()
    node = cfg.TRAINER.get(name, {}).get("EVAL")
    return tuple(node.get("JAVA", ())) if isinstance(node, CfgNode) else (), f"TRAINER.{name}.EVAL.JAVA"


def find_problems(cfg: CfgNode) -> list[str]:
    """Return one message per setting of the evaluator that cannot work here or would be without effect."""
    names, key = read_java_metrics(cfg)
    if names and cfg.TEST.EVALUATOR != Captioning.__name__:
        return [f"{key} is {names}, but TEST.EVALUATOR is {cfg.TEST.EVALUATOR!r}; expected {Captioning.__name__}"]
    return java_metrics.find_problems(names, key)


@EVALUATOR_REGISTRY.register()
class Captioning(EvaluatorBase):
    """CIDEr, BLEU-1 to BLEU-4 and ROUGE-L in percent, METEOR and SPICE if asked for; all of them per domain too.

    `CIDEr` comes first and selects models. Entries per domain (`near_domain/CIDEr`) exist where the rows are of several
    domains, as NoCaps' are; each domain has its own document frequencies, as if it were scored alone.

    Args:
        cfg: Full config; `EVAL.JAVA` of the trainer names metrics of the official Java tools.
        lab2cname: Not needed; captions come with the targets.
    Raises:
        ValueError: If a Java metric is asked for and something it needs is missing (lists it, with remedies).
    """

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs: Any) -> None:
        problems = find_problems(cfg)
        if problems:
            raise ValueError("\n".join(problems))
        super().__init__(cfg)
        self._java, _ = read_java_metrics(cfg)
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._rows: list[CaptionRow] = []
        self._split = ""

    def process(self, predictions: Sequence[str], targets: Mapping[str, Sequence[Any]]) -> None:
        """Add one batch.

        Args:
            predictions: One caption per picture.
            targets: As many `image_id`, `captions` (lists of reference captions) and `domain` ("" = none), and optionally
                `split`, the part of the data set that they are of.
        Raises:
            ValueError: If fields are missing, lengths differ or a picture has no reference caption (lists the problems).
        """
        if not isinstance(targets, Mapping) or not all(isinstance(text, str) for text in predictions):
            raise ValueError(
                "TEST.EVALUATOR Captioning reads captions (texts), not scores of classes; expected another TEST.EVALUATOR"
            )
        problems = _problems_with(predictions, targets)
        if problems:
            raise ValueError("Captioning: " + "; ".join(problems))
        self._split = next(iter(targets.get("split", ())), self._split)
        columns = (targets[name] for name in TARGET_FIELDS)
        for prediction, image, captions, domain in zip(predictions, *columns, strict=True):
            self._rows.append(CaptionRow(str(image), prediction, tuple(captions), domain))

    def evaluate(self) -> OrderedDict[str, float]:
        """Log the result block, write the caption files into OUTPUT_DIR and return all metrics in percent, CIDEr first.

        Raises:
            ValueError: If nothing was processed.
            RuntimeError: If a Java tool fails; the captions are written by then.
        """
        if not self._rows:
            raise ValueError("No picture was captioned; check TEST.SPLIT and DATASET.NAME")
        files = self._write()
        results = score_rows(self._rows, self._java)
        self._log(results, files)
        return results

    def _log(self, results: Mapping[str, float], files: Sequence[Path]) -> None:
        lines = ["=> result", f"* total: {len(self._rows):,}", *(f"* {name}: {value:.1f}%" for name, value in results.items())]
        if any("/" in name for name in results):
            lines.append("CIDEr of a domain has document frequencies of its own: that of all may be above every domain's")
        if self.cfg.DATASET.NAME == NOCAPS:
            lines.append("These are not figures of NoCaps' official server (EvalAI)")
        lines.append(f"Captions: {', '.join(map(str, files))}")
        logger.info("%s", "\n".join(lines))

    def _write(self) -> list[Path]:
        """Write one file, for NoCaps one of all rows and one per domain; those of a validation are marked as such."""
        folder = Path(self.cfg.OUTPUT_DIR) / FOLDER
        mark = "" if self._split in ("", "test") else f"{self._split}_"
        contents = {_file_prefix(self.cfg.DATASET.NAME): self._rows}
        if self.cfg.DATASET.NAME == NOCAPS:
            contents = {"overall": self._rows}
            for domain in DOMAINS:
                contents[domain.replace("_", "")] = [row for row in self._rows if row.domain == domain]
        paths = {folder / f"{mark}{prefix}_{SUFFIX}": rows for prefix, rows in contents.items() if rows}
        for path, rows in paths.items():
            write_rows(path, rows)
        return list(paths)


def _problems_with(predictions: Sequence[str], targets: Mapping[str, Sequence[Any]]) -> list[str]:
    problems = [f"the targets have no {name!r}" for name in TARGET_FIELDS if name not in targets]
    if problems:
        return problems
    lengths = {name: len(targets[name]) for name in TARGET_FIELDS if len(targets[name]) != len(predictions)}
    if lengths:
        return [f"{len(predictions)} captions came with {length} {name!r}" for name, length in lengths.items()]
    rows = list(zip(targets["image_id"], targets["captions"], strict=True))
    texts = [str(image) for image, captions in rows if isinstance(captions, str)]
    bare = [str(image) for image, captions in rows if not len(captions)]
    if texts:
        problems.append(f"'captions' of {', '.join(texts[:3])} are text; expected a list of references")
    if bare:
        problems.append(
            f"{len(bare)} picture(s) of DATASET.NAME have no reference caption ({', '.join(bare[:3])}): nothing to score by;"
            " predict.py captions pictures without references"
        )
    return problems


def _file_prefix(dataset: str) -> str:
    """Return a data set's name as the files have it: `coco` for CocoCaption, `mini_scenes` for MiniScenes."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", dataset).lower().removesuffix("_caption")
