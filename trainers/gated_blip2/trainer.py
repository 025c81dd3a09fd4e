"""GatedBLIP2: a BLIP-2 whose Q-Former looks at a picture through its style, tuned to answer questions about art.

BLIP-2: https://arxiv.org/abs/2301.12597; Salesforce/blip2-opt-2.7b is MIT, its OPT has a licence of its own. A frozen style
encoder yields a style vector; small gates made from it scale and shift the keys and values of the Q-Former's cross-attention.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dassl.data import DataManager
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from trainers import precision
from trainers.accumulation import WeightedLosses
from trainers.gated_blip2 import checks, controls
from trainers.gated_blip2.data import (
    NEEDED,
    VQAWrapper,
    find_long_questions,
    permute_styles,
    problems_with_styles,
    problems_with_texts,
    spread,
)
from trainers.gated_blip2.presets import parameter_groups
from trainers.gated_blip2.prompts import TextBatch, collate
from trainers.question_items import extras_of, problems_with_questions
from trainers.question_trainer import QuestionTrainer

if TYPE_CHECKING:
    from trainers.gated_blip2.answering import Answerer, Questions
    from trainers.gated_blip2.cache.rows import Rows
    from trainers.gated_blip2.cache.store import FeatureCache

logger = logging.getLogger(__name__)

FROZEN = "frozen"
STYLE_DRAWS = 4  # first word of the seed of a batch's random choices about style; see trainers/epoch_order.py


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """What is learned from.

    Attributes:
        rows: Features of the pictures, on the device.
        labels: Styles of the data, (B,), -1 = unknown, on the device.
        text: Prompts and answers, on the CPU.
    """

    rows: Rows
    labels: Tensor
    text: TextBatch


@TRAINER_REGISTRY.register()
class GatedBLIP2(QuestionTrainer):
    """Tunes gates, and by preset more, around a frozen BLIP-2; tests what style is worth to its answers."""

    registered_name = "gated_blip2"
    stores_best_state = False

    @property
    def needs_checkpoint(self) -> bool:
        """Whether an evaluation needs an adapter: every preset does that trains something."""
        return self.settings.PRESET != FROZEN

    def config_problems(self, cfg: CfgNode) -> list[str]:
        """See `TunedTrainer`."""
        return super().config_problems(cfg) + checks.find_problems(cfg)

    # Data

    def build_data_loader(self) -> None:
        """Load the frozen models, which say how pictures become input, and build Dassl's loaders around them."""
        from trainers.gated_blip2 import building

        cfg, node = self.cfg, self.settings
        self.prec = precision.resolve_precision(node.PREC, self.device)
        self.towers = building.load_towers(cfg, self.prec, self.device)
        self.loaded, views = self.towers.loaded, self.towers.views
        dm = DataManager(cfg, custom_tfm_train=views, custom_tfm_test=views, dataset_wrapper=VQAWrapper)
        self.take_loaders(dm)
        self._check_items()
        self.validation_loader = self._limit(self.val_loader)

    def _check_items(self) -> None:
        data, problems = self.dm.dataset, []
        problems += problems_with_questions(self.all_items, self.cfg.DATASET.NAME, needed=NEEDED, trainer="GatedBLIP2")
        if not problems:
            problems += problems_with_texts({"train": data.train_x, "val": data.val or [], "test": data.test})
        learns_labels = self.settings.STYLE.SOURCE == "label" and checks.settings.has_gates(self.settings)
        if not problems and learns_labels and not getattr(data, "stands_in", False):
            problems += problems_with_styles(self.all_items, self.towers.views.names)
        if problems:
            raise ValueError("\n".join(problems))

    def _limit(self, loader: DataLoader | None) -> DataLoader | None:
        """Return the loader of a validation, of at most `EVAL.VAL_LIMIT` questions."""
        limit, test = self.settings.EVAL.VAL_LIMIT, self.cfg.DATALOADER.TEST
        if loader is None or limit < 0 or len(loader.dataset) <= limit:
            return loader
        return build_data_loader(
            self.cfg, sampler_type=test.SAMPLER, data_source=spread(loader.dataset.data_source, limit),
            batch_size=test.BATCH_SIZE, tfm=self.towers.views, is_train=False, dataset_wrapper=VQAWrapper,
        )  # fmt: skip

    def data_problems(self) -> list[str]:
        """See `TunedTrainer`."""
        problems, node = super().data_problems(), self.settings
        if node.PRESET == FROZEN:
            problems.append(f"{checks.NAME}.PRESET is 'frozen', which trains nothing; expected another one, or --eval-only")
        long, self.n_cut = find_long_questions(self.dm.dataset.train_x, self.system.encoder.encode)
        if self.n_cut:
            limit = node.PROMPT.MAX_QUESTION_TOKENS
            logger.info("Questions longer than PROMPT.MAX_QUESTION_TOKENS %d, which are cut: %s", limit, f"{self.n_cut:,}")
        return problems + long

    # Model

    def build_model(self) -> None:
        """Build the model, register what trains, and say what was built."""
        from trainers.gated_blip2 import building, run_reports
        from trainers.gated_blip2.features import FeatureReader

        node = self.settings
        self.start_report()
        self.system = building.build_system(self.towers, node, self.prec, self.device)
        self.model = self.system.model
        groups = parameter_groups(self.system.parts, self.cfg.OPTIM.WEIGHT_DECAY)
        if groups:
            self.register_trainables(self.system.trainables, groups)
        self.report.add_facts(**run_reports.describe_system(self.system, self.cfg, groups, self.prec))
        self.features = FeatureReader(self.model, self.towers.style_encoder, self.towers.views, self.device)
        self._ready: list[DataLoader] = []  # loaders whose pictures are in the cache
        self._answerer: Answerer | None = None
        self.further_results: dict[str, float] = {}

    def exempt_from_guard(self) -> Sequence[str]:
        """See `SteppingTrainer`: weights behind a style that is always unknown are multiplied by 0."""
        if self.settings.STYLE.SOURCE != "zeros":
            return ()
        return ("conditioner.norm.weight", "conditioner.style_projection.weight")

    def set_model_mode(self, mode: str = "train", names: Any = None) -> None:
        """Switch the registered trainables, and with them the model that they belong to; what is frozen stays as it is."""
        super().set_model_mode(mode, names)
        self.model.train(mode == "train")

    # Features

    def fill_cache(self, *loaders: Any) -> None:
        """Let loaders yield rows of the feature cache, once it has all their pictures; without a cache they open these."""
        from trainers.gated_blip2 import building

        node = self.settings
        new = [loader for loader in loaders if loader is not None and loader not in self._ready]
        if not new or not node.CACHE.ENABLE:
            return
        self._ready += new
        items = [item for loader in self._ready for item in loader.dataset.data_source]
        self.features.fill(
            items, *building.cache_of(self.towers, node), shard_images=node.CACHE.SHARD_IMAGES,
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE, threads=self.cfg.DATALOADER.NUM_WORKERS,
        )  # fmt: skip
        for loader in self._ready:  # a cache that has grown numbers its rows anew
            loader.dataset.rows = self.features.rows_of(loader.dataset.data_source)

    def prepare_cache(self) -> FeatureCache | None:
        """Encode the pictures of all splits, those that are not in the cache, and return it; None without one."""
        self.fill_cache(self.train_loader_x, self.validation_loader, self.val_loader, self.test_loader)
        return self.features.cache

    # Training

    def before_train(self) -> None:
        """Check the data and resume, as Dassl does, then encode every picture; afterwards write what trains."""
        super().before_train()
        if self.prepare_cache() is not None:
            self.features.release()
        from trainers.gated_blip2 import run_reports
        from trainers.gated_blip2.report import GateReport

        self.report.resume(self.start_epoch)
        self.report.add_facts(base=self.loaded.base.id, preset=self.settings.PRESET, questions_cut=self.n_cut)
        self.report.add_parameters(run_reports.parameter_rows(self.system, self.groups))
        probe = run_reports.build_probe(self.system, self.features, self.validation_loader or self.test_loader, self.device)
        self.watch = GateReport(
            self.groups, self.write_scalar, device=self.device, context=self.model.context, probe=probe
        )

    def before_epoch(self) -> None:
        """See `QuestionTrainer`."""
        super().before_epoch()
        self.watch.before_epoch()
        self._n_read = self.features.n_read

    def before_clipping(self) -> None:
        """See `SteppingTrainer`."""
        self.watch.before_clipping()

    def epoch_figures(self) -> dict[str, Any]:
        """See `QuestionTrainer`: gates, gradients, speed, memory, and how far answers have moved."""
        hits = self.features.n_read - self._n_read if self.settings.CACHE.ENABLE else None
        return self.watch.after_epoch(self.epoch, cache_hits=hits)

    def parse_batch_train(self, batch: dict) -> TrainBatch:
        """Take features, styles and texts from a batch."""
        encoder = self.system.encoder
        texts = [encoder.encode(*pair) for pair in zip(batch["question"], batch["answer"], strict=True)]
        text = collate(texts, pad_id=encoder.pad_id, side="right")
        return TrainBatch(self.features.of(batch), batch["style"].to(self.device), text)

    def compute_losses(self, batch: TrainBatch) -> WeightedLosses:
        """See `TunedTrainer`; summed over answer tokens."""
        words = np.random.SeedSequence([STYLE_DRAWS, self.mid_epoch.seed, self.epoch, self.batch_idx])
        draws = torch.Generator().manual_seed(int(words.generate_state(1)[0]))
        style = self.system.style_of(batch.rows, batch.labels, training=True, generator=draws)
        self.watch.after_batch(len(batch.text))
        return self.answer_losses(self.model.loss(batch.rows.tokens, style, batch.text))

    # Stored models

    def identity(self) -> dict[str, Any]:
        """See `QuestionTrainer`."""
        style = self.towers.style_encoder
        own = {"PRESET": self.settings.PRESET, "style encoder (STYLE.CHECKPOINT)": None if style is None else style.sha256}
        return super().identity() | own

    def _facts(self) -> Any:
        from trainers.gated_blip2.artifact import describe_model

        return describe_model(self.cfg, self.loaded, self.towers.style_encoder)

    def store_adapter(self, directory: str, epoch: int, *, scores: Mapping[str, float], keep: str, best: bool) -> list[Path]:
        """See `QuestionTrainer`."""
        from trainers.gated_blip2.artifact import save_adapter

        return save_adapter(
            directory, epoch, parameters=self.system.parameters, facts=self._facts(), scores=scores, keep=keep, best=best
        )

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load an adapter strictly.

        Args:
            directory: Run folder, or an adapter folder; "" for the preset `frozen`, and only for it.
            epoch: Finished epochs; None: the best on validation, else the last.
        Raises:
            ValueError: If the preset and `directory` contradict each other, or the adapter is of another model.
        """
        preset = self.settings.PRESET
        if bool(directory) == (preset == FROZEN):
            found = f"--model-dir is {directory!r}" if directory else "there is no --model-dir"
            expected = "none, nothing is loaded" if preset == FROZEN else "a run or an adapter, or the preset frozen"
            raise ValueError(f"{checks.NAME}.PRESET is {preset!r}, but {found}; expected {expected}")
        if preset == FROZEN:
            logger.info("Nothing is tuned: %s answers as it is", self.loaded.base.id)
            return
        from trainers.gated_blip2.artifact import load_adapter

        found = load_adapter(directory, epoch, parameters=self.system.parameters, facts=self._facts())
        self.note_loaded(found)

    # Test

    def test(self, split: str | None = None) -> float | None:
        """Evaluate as Dassl does; a validation (`split="val"`) stops at `EVAL.VAL_LIMIT`, another test has its controls."""
        uses_val = (split or self.cfg.TEST.SPLIT) == "val" and self.val_loader is not None
        validates = uses_val and split == "val"
        loader = (self.validation_loader if validates else self.val_loader) if uses_val else self.test_loader
        self.fill_cache(loader)
        self._start_answers(loader)
        full, self.val_loader = self.val_loader, loader if uses_val else self.val_loader
        try:
            result = super().test(split)
            if result is not None and split != "val":
                self._run_controls(loader)
        finally:
            self.val_loader, self._answerer = full, None
        return result

    def _start_answers(self, loader: DataLoader) -> None:
        from trainers.gated_blip2.answering import Answerer

        rows = loader.dataset
        self.tested_items: Sequence[Datum] = rows.data_source
        rows.style_from = self._permutation(rows.data_source) if self.settings.STYLE.SOURCE == "shuffled" else None
        self._answerer, self._said, self.further_results = Answerer(self.system, self.settings), [], {}

    def _permutation(self, items: Sequence[Datum]) -> list[int]:
        return permute_styles(items, self.cfg.SEED)

    def _questions(self, batch: dict) -> Questions:
        from trainers.gated_blip2.answering import Questions

        return Questions(self.features.of(batch), batch["style"].to(self.device), batch["question"])

    def parse_batch_test(self, batch: dict) -> tuple[Questions, list[dict[str, Any]]]:
        """Return what is asked, and what the evaluator compares the answers with, read through `index`."""
        return self._questions(batch), self.targets_of(batch)

    def model_inference(self, input: Questions) -> list[dict[str, Any]]:
        """Return one row per question; see `Answerer.answer`."""
        rows = self._answerer.answer(input)
        self._said += controls.answers_of(rows)
        return rows

    def _run_controls(self, loader: DataLoader) -> None:
        """Measure what `EVAL.CONTROLS` asks for, log it, and leave it for the results and the report."""
        self.further_results = controls.measure(
            self.settings.EVAL.CONTROLS, self._said, lambda name: self._answer_otherwise(loader, name),
            train=self.dm.dataset.train_x, tested=self.tested_items, has_gates=self.system.style_source is not None,
            is_permuted=self.settings.STYLE.SOURCE == "shuffled",
        )  # fmt: skip
        for name, value in self.further_results.items():
            self.write_scalar(f"test/{name}", value, self.epoch)
        if self.further_results and self.report.epochs:  # of a training run
            self.report.add_facts(controls=self.further_results)
            self.report.write()

    @torch.no_grad()
    def _answer_otherwise(self, loader: DataLoader, control: str) -> list[str]:
        """Answer all questions of a loader under a control; `shuffled_style` swaps true and permuted styles."""
        rows, answers = loader.dataset, []
        before = rows.style_from
        if control == controls.SHUFFLED:
            rows.style_from = self._permutation(rows.data_source) if before is None else None
        try:
            for batch in loader:
                answers += controls.answers_of(self._answerer.answer(self._questions(batch), control=control))
        finally:
            rows.style_from = before
        return answers

    # Prediction

    def prepare_prediction(self, items: Sequence[Datum]) -> None:
        """Get ready for questions about items; see `trainers/prediction/answers.py`."""
        from trainers.gated_blip2.answering import Answerer

        self.set_model_mode("eval")
        self.tested_items = items
        self._answerer = Answerer(self.system, self.settings)

    def predict_rows(self, batch: dict) -> list[dict[str, Any]]:
        """Return one row per question of a loader's batch; one that cannot be asked has an `error`."""
        from trainers.gated_blip2.answering import predicted_row

        named = [extras_of(self.tested_items[index]).get("style", "") for index in batch["index"].tolist()]
        return [predicted_row(row) for row in self._answerer.answer_or_explain(self._questions(batch), named)]

    def prediction_facts(self) -> dict[str, Any]:
        """Return what holds for all answers alike."""
        node = self.settings
        generation = {"num_beams": node.GEN.NUM_BEAMS, "max_new_tokens": node.GEN.MAX_NEW_TOKENS}
        facts = {"preset": node.PRESET, "style_source": node.STYLE.SOURCE, "generation": generation}
        return facts | {"questions_cut": self._answerer.n_cut, "notes": list(self.notes)}
