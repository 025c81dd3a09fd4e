"""BgObjLLaVA: LLaVA-1.5 whose background and object patches are encoded apart, tuned so that backgrounds can be cached.

LLaVA: https://arxiv.org/abs/2304.08485, LLaVA-1.5: https://arxiv.org/abs/2310.03744. The published weights keep their own
licence (Llama 2). Here the language model reads background, objects and text in this order, neither group having seen the other
in the vision tower; the projector, separators and, by scope, more learn to cope with that.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dassl.data import DataManager
from dassl.data.datasets import Datum
from dassl.engine import TRAINER_REGISTRY
from numpy.typing import NDArray
from torch import Tensor
from yacs.config import CfgNode

from trainers import precision
from trainers.accumulation import WeightedLosses
from trainers.bgobj_llava import checks, settings
from trainers.bgobj_llava.data import BgObjWrapper, Normalisation, SceneView, training_view
from trainers.bgobj_llava.detection.finders import Finder
from trainers.bgobj_llava.geometry import Canvas, PatchSplit
from trainers.bgobj_llava.panels import PanelWriter
from trainers.bgobj_llava.samples import drop_unusable, problems_with_items
from trainers.question_items import extras_of
from trainers.question_trainer import QuestionTrainer
from trainers.run_report import describe_parameters, format_parameters

if TYPE_CHECKING:
    from trainers.bgobj_llava.answering import AnswerSession, Questions
    from trainers.bgobj_llava.model.encode import SplitBatch
    from trainers.bgobj_llava.model.prompt import TextIds

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """What is learned from.

    Attributes:
        images: Normalised RGB, (B, 3, S, S), on the device.
        splits: Their object patches.
        texts: Their conversations.
    """

    images: Tensor
    splits: SplitBatch
    texts: list[TextIds]


@TRAINER_REGISTRY.register()
class BgObjLLaVA(QuestionTrainer):
    """Tunes a LLaVA to answer from split images, and tests it with a background cache; without a model it tests the base."""

    needs_checkpoint = False
    registered_name = "bgobj_llava"
    gradient_window = 20  # a batch may hold no background

    def config_problems(self, cfg: CfgNode) -> list[str]:
        """See `TunedTrainer`."""
        return super().config_problems(cfg) + checks.find_problems(cfg)

    # Data

    def build_data_loader(self) -> None:
        """Load the LLaVA, whose processor says how images become input, and build Dassl's loaders around it."""
        from trainers.bgobj_llava import building

        node = self.settings
        self.prec = precision.resolve_precision(node.PREC, self.device)
        self.loaded = building.load_base(self.cfg, self.prec, self.device)
        self.options = settings.model_options(node, self.cfg.SEED)
        view = self._build_view()
        dm = DataManager(
            self.cfg,
            custom_tfm_train=training_view(view, settings.mask_augment(node) if self.finder else None),
            custom_tfm_test=view,
            dataset_wrapper=BgObjWrapper,
        )
        self.panels = PanelWriter(node.VIS.EVERY, node.VIS.DIR or Path(self.output_dir, "panels"), view)
        self.take_loaders(dm)
        self._check_items()
        self.drops = drop_unusable(
            self.dm.dataset.train_x, building.length_rule(self.loaded, self.options), max_len=node.MAX_LEN
        )
        self.drops.log()
        self.drops.check(node.DATA.MAX_DROP, f"TRAINER.{self.node_name()}.DATA.MAX_DROP")

    def _build_view(self) -> SceneView:
        """Return how evaluation sees an item; with `SPLIT none` nothing looks for objects."""
        node, loaded = self.settings, self.loaded
        canvas = Canvas(loaded.side_px, loaded.patch_px, loaded.fill_rgb, node.IMAGE.ASPECT)
        self.finder = None
        if node.SPLIT != "none":
            self.finder = Finder(
                settings.detector_options(node), canvas, device=str(self.device), work_dir=self.cfg.OUTPUT_DIR
            )
        return SceneView(
            canvas, settings.mask_policy(node), Normalisation(loaded.mean, loaded.std), self.finder, keeps_pixels=True,
            ocr_tokens=node.EVAL.OCR_TOKENS,
        )  # fmt: skip

    def _check_items(self) -> None:
        ocr_tokens = self.settings.EVAL.OCR_TOKENS
        problems = problems_with_items(self.all_items, self.cfg.DATASET.NAME, ocr_tokens=ocr_tokens)
        if problems:
            raise ValueError("\n".join(problems))

    # Model

    def build_model(self) -> None:
        """Build the model, register what trains, and say what was built."""
        from trainers.bgobj_llava import building
        from trainers.bgobj_llava.storage.load_report import PARTS, part_of

        node = self.settings
        self.system = building.build_system(self.loaded, self.options, node)
        self.model = self.system.model
        groups = building.parameter_groups(self.system.parts, node.TRAIN.SCOPE, self.cfg.OPTIM.WEIGHT_DECAY)
        logger.info("%s\n%s", self.loaded.model, building.describe_shapes(self.model))
        self.register_trainables(self.system.trainables, groups)
        self.parameter_rows = describe_parameters(self.loaded.model, groups, parts=PARTS, part_of=part_of)
        logger.info("Parameters\n%s", format_parameters(self.parameter_rows))
        self.start_report()
        self._session: AnswerSession | None = None

    def set_model_mode(self, mode: str = "train", names: Any = None) -> None:
        """Switch the registered trainables, and with them the model that they belong to: LoRA's dropout is in there."""
        super().set_model_mode(mode, names)
        self.model.train(mode == "train")

    # Training

    def before_train(self) -> None:
        """Let a detector look at the training images, then Dassl's part; afterwards write what trains."""
        if self.finder is not None:
            self.finder.check(self.all_items)
            self.finder.prepare(self.dm.dataset.train_x)
        super().before_train()
        self.report.resume(self.start_epoch)
        self.report.add_facts(load=self.loaded.report.to_list(), base=self.loaded.base.id, drops=self.drops.to_dict())
        self.report.add_parameters(self.parameter_rows)
        self._estimate_memory()

    def _estimate_memory(self) -> None:
        """Say what an update needs, before the first one fails."""
        from trainers.bgobj_llava.memory import estimate_memory

        memory = estimate_memory(
            self.model, self.system.parts, optimizer=self.cfg.OPTIM.NAME, compute_dtype=precision.autocast_dtype(self.prec),
            n_rows=self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE * self.drops.longest,
        )  # fmt: skip
        logger.info("Memory of an update: %s", memory.describe())
        self.report.add_facts(memory=memory.to_dict())

    def parse_batch_train(self, batch: dict) -> TrainBatch:
        """Take images, masks and conversations from a batch."""
        from trainers.bgobj_llava.model.encode import SplitBatch

        splits = SplitBatch(*(batch[name] for name in ("obj_mask", "obj_ring", "stock_order")))
        texts = [self.system.encoder.encode([tuple(turn) for turn in json.loads(turns)]) for turns in batch["turns"]]
        return TrainBatch(batch["img"].to(self.device), splits, texts)

    def compute_losses(self, batch: TrainBatch) -> WeightedLosses:
        """See `TunedTrainer`; summed over answer tokens."""
        with self.autocast():
            loss = self.model.train_losses(batch.images, batch.splits, batch.texts)
        return self.answer_losses(loss)

    # Stored models

    def store_adapter(self, directory: str, epoch: int, *, scores: Mapping[str, float], keep: str, best: bool) -> list[Path]:
        """See `QuestionTrainer`."""
        from trainers.bgobj_llava.storage.artifact import save_adapter

        return save_adapter(
            directory, epoch, parameters=self.system.parameters, facts=self._facts(), tokenizer=self.model.tokenizer,
            probe=self._probe(), scores=scores, keep=keep, best=best,
        )  # fmt: skip

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load an adapter strictly; without a folder the base weights stay.

        Args:
            directory: Run folder, or an adapter folder; "" = none.
            epoch: Finished epochs; None: the best on validation, else the last.
        """
        if not directory:
            logger.info("No --model-dir: the base weights of %s are evaluated, nothing is tuned", self.loaded.base.id)
            return
        from trainers.bgobj_llava.storage.artifact import load_adapter

        found = load_adapter(directory, epoch, parameters=self.system.parameters, facts=self._facts(), probe=self._probe)
        self.note_loaded(found)

    def _facts(self) -> Any:
        from trainers.bgobj_llava.storage.artifact import describe_model

        return describe_model(self.model, self.system.encoder, self.loaded, self.settings)

    def _probe(self) -> Any:
        from trainers.bgobj_llava.storage.probe import compute_probe

        return compute_probe(self.model, self.system.encoder, self.autocast)

    # Test

    def test(self, split: str | None = None) -> float | None:
        """Evaluate as Dassl does, with a background cache of its own for each test."""
        data, chosen = self.dm.dataset, split or self.cfg.TEST.SPLIT
        self.tested_items = data.val if chosen == "val" and self.val_loader is not None else data.test
        if self.finder is not None:
            self.finder.check(self.tested_items)
        self.start_answers(self.tested_items)
        try:
            return super().test(split)
        finally:
            self.finish_answers()

    def start_answers(self, items: Sequence[Datum]) -> None:
        """Get ready for questions about items: detections where a detector has to look, and an empty cache.

        Args:
            items: All that will be asked about.
        """
        from trainers.bgobj_llava.answering import AnswerSession

        if self.finder is not None:
            self.finder.prepare(items)
        self.set_model_mode("eval")
        self._session = AnswerSession(self.system, self.settings, self.autocast)

    def finish_answers(self) -> None:
        """Say what the cache did, and free it."""
        self._session.close()
        if self.report.epochs and self._session.counters:  # of a training run
            self.report.add_facts(cache=self._session.counters)
            self.report.write()
        self._session = None

    def parse_batch_test(self, batch: dict) -> tuple[Questions, list[dict[str, Any]]]:
        """Return what is asked, and what the evaluator compares the answers with, read through `index`."""
        return self._questions(batch), self.targets_of(batch)

    def _questions(self, batch: dict) -> Questions:
        from trainers.bgobj_llava.answering import Questions

        masks = (batch[name].numpy() for name in ("obj_raw", "obj_mask", "obj_ring"))
        splits = [
            PatchSplit(raw, objects, ring, stock_order=stock, detected=bool(raw.any()))
            for raw, objects, ring, stock in zip(*masks, batch["stock_order"].tolist(), strict=True)
        ]
        columns = (batch["question"], batch["impath"], batch["index"].tolist())
        return Questions(batch["img"].to(self.device), batch["img_u8"], splits, *columns)

    def model_inference(self, input: Questions) -> list[dict[str, Any]]:
        """Return one row per question: `answer`, `truncated`, and what it took."""
        return self._session.answer(input, show=self._show)

    def _show(self, index: int, row: dict[str, Any], cached: NDArray | None) -> None:
        item = self.tested_items[index]
        self.panels.write(item, index, {"impath": item.impath, "question": extras_of(item)["question"], **row}, cached)

    # Prediction

    def prepare_prediction(self, items: Sequence[Datum]) -> None:
        """Get ready for questions about items; see `trainers/prediction/answers.py`."""
        self.start_answers(items)

    def finish_prediction(self) -> None:
        """Say what the cache did, and free it."""
        self.finish_answers()

    def predict_rows(self, batch: dict) -> list[dict[str, Any]]:
        """Return one row per question of a loader's batch; one that cannot be asked has an `error`."""
        return self._session.answer_or_explain(self._questions(batch))

    def prediction_facts(self) -> dict[str, Any]:
        """Return what holds for all answers alike."""
        node = self.settings
        return {"split": node.SPLIT, "cache": node.CACHE.MODE, "notes": list(self.notes)}
