"""Train on the toy colours with votes and the evaluator of label distributions, on either engine: `FILE IMAGES RUN`.

RUN gets the log of a run whose best epoch is chosen by the divergence, and `record.json` with what `test()` returned.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from toy_world import CLASSNAMES, NoisyToy, make_cfg, train_once

from trainers.evaluators import label_distribution
from trainers.facts import Scores, Target
from trainers.runs import log_to

TEMPERATURE = 4.0
SETTINGS = {"TEST.EVALUATOR": "LabelDistribution", "TEST.FINAL_MODEL": "best_val", "OPTIM.MAX_EPOCH": 3}


def votes(labels: Tensor) -> Tensor:
    """Three of five voters for the label, one for each other colour, (B, 3)."""
    return (torch.full((len(labels), len(CLASSNAMES)), 0.2)).scatter(1, labels[:, None], 0.6)


@TRAINER_REGISTRY.register()
class VotedToy(NoisyToy):
    """Gives its own distribution, and votes for every second test image."""

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Target]:
        images, labels = super().parse_batch_test(batch)
        return images, Target.of(labels, distribution=votes(labels), has_distribution=1 - batch["index"] % 2)

    def model_inference(self, images: Tensor) -> Scores:
        logits = self.model(images)
        return Scores.of(logits, distribution=(logits / TEMPERATURE).softmax(dim=-1))


def main(images: str, output: str) -> None:
    """Train, test once more, and write the record."""
    cfg = make_cfg(Path(images), Path(output), "VotedToy", {})
    label_distribution.add_config(cfg)
    cfg.merge_from_list([part for pair in SETTINGS.items() for part in pair] + ["TEST.LDL_PRIMARY", "kl"])
    with log_to(output):
        trainer = train_once(cfg)
        returned = trainer.test()
    record = {"returned": returned, "best": trainer.best_result, "results": trainer.evaluator.evaluate()}
    (Path(output) / "record.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(*sys.argv[1:])
