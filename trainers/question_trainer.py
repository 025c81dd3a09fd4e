"""`QuestionTrainer`: what trainers that answer questions about images share.

Loaders that are taken over from Dassl, references read through `index`, losses per answer token in the report, adapters beside
Dassl's checkpoints, and a resumed run that is the same one: same base model, same data.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dassl.data import DataManager
from dassl.data.datasets import Datum

from trainers import adapters
from trainers.accumulation import WeightedLosses
from trainers.adapter_facts import LoadedAdapter
from trainers.question_items import references_of, target_of
from trainers.run_facts import hash_data, splits_of
from trainers.run_identity import check_identity
from trainers.run_report import RunReport
from trainers.tuned import TunedTrainer

logger = logging.getLogger(__name__)

BEST_MODEL = "model-best.pth.tar"  # Dassl's name
LOSS = "answers"


class QuestionTrainer(TunedTrainer):
    """Base of trainers whose items are questions, and whose losses are summed over answer tokens.

    Attributes:
        loaded: The base model as it was read; has `base`, an `adapters.BaseModel`.
        report: `report.json` of the run; set by `build_model`.
        stores_best_state: Whether the best epoch gets a checkpoint of Dassl's beside its adapter.
    """

    resumes_mid_epoch = True
    zero_window = 20
    answers_questions = True
    stores_best_state = True

    loaded: Any
    report: RunReport

    # Data

    def take_loaders(self, dm: DataManager) -> None:
        """Take over Dassl's loaders and what they know of the data set."""
        self.dm = dm
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.lab2cname = dm.num_classes, dm.lab2cname
        self.num_source_domains = dm.num_source_domains
        self.tested_items: Sequence[Datum] = dm.dataset.test

    @property
    def all_items(self) -> list[Datum]:
        """Items of all splits."""
        data = self.dm.dataset
        return [*data.train_x, *(data.val or []), *data.test]

    def has_target(self, item: Datum) -> bool:
        """Whether an item has a reference answer."""
        return bool(references_of(item))

    def targets_of(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return what the evaluator compares the answers of a test batch with, read through `index`."""
        return [target_of(self.tested_items[index]) for index in batch["index"].tolist()]

    # Training

    def start_report(self) -> None:
        """Open the run's report; call it in `build_model`."""
        self.report = RunReport(self.output_dir)
        self._epoch_loss = [0.0, 0]  # sum over answer tokens, their number
        self.notes: tuple[str, ...] = ()  # of a loaded adapter: what it learned from otherwise

    def before_epoch(self) -> None:
        """Start the epoch's sums, unless the epoch goes on where an interrupted run was."""
        super().before_epoch()
        if not self.mid_epoch.position().batches_done:
            self._epoch_loss = [0.0, 0]

    def answer_losses(self, loss: Any) -> WeightedLosses:
        """Count the loss of a batch and return it for an update.

        Args:
            loss: `total` (sum over answer tokens) and `n_tokens`.
        """
        self._epoch_loss[0] += loss.total.item()
        self._epoch_loss[1] += loss.n_tokens
        return WeightedLosses({LOSS: loss.total}, loss.n_tokens)

    def epoch_figures(self) -> dict[str, Any]:
        """Return what the report says of an epoch beside its loss, in JSON's types; nothing here."""
        return {}

    def after_epoch(self) -> None:
        """Report the epoch, then Dassl's part: validation and checkpoints."""
        total, n_tokens = self._epoch_loss
        self.report.add_epoch(self.epoch + 1, {LOSS: total / max(n_tokens, 1)}, **self.epoch_figures())
        super().after_epoch()

    # State

    @cached_property
    def data_hash(self) -> str:
        """Hash of the questions of all splits; see `run_facts.hash_data`."""
        return hash_data(splits_of(self.dm.dataset))

    def identity(self) -> dict[str, Any]:
        """Return what a resumed run may not have otherwise, beside its settings: name -> plain value; children add theirs."""
        return {"base model (MODEL.BACKBONE.NAME)": self.loaded.base.fingerprint, "data (DATASET.*)": self.data_hash}

    def resume_model_if_exist(self, directory: str) -> int:
        """See `TunedTrainer`; what a killed run left of an adapter is cleared away."""
        adapters.clear_leftovers(self.output_dir)
        return super().resume_model_if_exist(directory)

    def extra_state(self) -> dict[str, Any]:
        """See `TunedTrainer`."""
        return super().extra_state() | {"epoch_loss": list(self._epoch_loss), "identity": self.identity()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """See `TunedTrainer`.

        Raises:
            ValueError: If the run was on another base model or other data (all differences).
        """
        check_identity(state["identity"], self.identity())
        super().load_extra_state(state)
        self._epoch_loss = list(state["epoch_loss"])

    # Stored models

    def note_loaded(self, found: LoadedAdapter) -> None:
        """Say which adapter was loaded, and keep what it learned from otherwise.

        Args:
            found: What `load_adapter` of the room returned.
        """
        logger.info("Loaded %s (epoch %s)", found.path, found.epoch)
        self.notes = found.notes
        if self.notes and not self.report.exists():  # an evaluation in a folder of its own
            self.report.add_facts(loaded=str(found.path), notes=list(self.notes))
            self.report.write()

    @abstractmethod
    def store_adapter(self, directory: str, epoch: int, *, scores: Mapping[str, float], keep: str, best: bool) -> list[Path]:
        """Write the adapter of an epoch wherever `keep` wants it; returns the folders.

        Args:
            directory: Run folder.
            epoch: Finished epochs.
            scores: On validation, percent, if it was measured.
            keep: `CHECKPOINT.KEEP`.
            best: Whether the epoch is the best one so far; its ordinary adapter is stored by a call of its own.
        """

    def save_model(self, epoch: int, directory: str, *args: Any, **kwargs: Any) -> None:
        """Write the adapter, and Dassl's checkpoint beside it; see `CHECKPOINT.KEEP`.

        The checkpoint comes last: a run that is killed between the two learns the epoch again and stores the same adapter.
        """
        best = kwargs.get("model_name", "") == BEST_MODEL
        keep, result = self.settings.CHECKPOINT.KEEP, kwargs.get("val_result")
        scores = {} if result is None else {"val": result}
        for folder in self.store_adapter(directory, epoch + 1, scores=scores, keep=keep, best=best):
            logger.info("Adapter saved to %s", folder)
        if self.stores_best_state or not best:
            super().save_model(epoch, directory, *args, **kwargs)
        if not best:
            adapters.prune_epochs(Path(directory, self.registered_name), keep, f"model.pth.tar-{epoch + 1}")
