"""`SimpleTrainer` builds everything from a config; `TrainerX` and `TrainerXU` add the two training loops."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from dassl.data import DataManager
from dassl.engine.base import TrainerBase
from dassl.engine.progress import EpochProgress, progress_bar
from dassl.evaluation import build_evaluator
from dassl.modeling import build_backbone, build_head
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param, load_pretrained_weights, mkdir_if_missing

if TYPE_CHECKING:
    from yacs.config import CfgNode

__all__ = ["SimpleNet", "SimpleTrainer", "TrainerBase", "TrainerX", "TrainerXU"]


class SimpleNet(nn.Module):
    """A registered backbone, an optional registered head and a linear classifier.

    Args:
        cfg: Full config; only VERBOSE is read.
        model_cfg: Node with BACKBONE and HEAD, such as ``cfg.MODEL``.
        num_classes: Outputs of the classifier; 0 means no classifier.
        kwargs: Passed to the builders of backbone and head.
    """

    def __init__(self, cfg: CfgNode, model_cfg: CfgNode, num_classes: int, **kwargs: Any) -> None:
        super().__init__()
        backbone, head = model_cfg.BACKBONE, model_cfg.HEAD
        self.backbone = build_backbone(backbone.NAME, verbose=cfg.VERBOSE, pretrained=backbone.PRETRAINED, **kwargs)
        self._fdim = self.backbone.out_features
        self.head = None
        if head.NAME and head.HIDDEN_LAYERS:
            self.head = build_head(
                head.NAME,
                verbose=cfg.VERBOSE,
                in_features=self._fdim,
                hidden_layers=head.HIDDEN_LAYERS,
                activation=head.ACTIVATION,
                bn=head.BN,
                dropout=head.DROPOUT,
                **kwargs,
            )
            self._fdim = self.head.out_features
        self.classifier = nn.Linear(self._fdim, num_classes) if num_classes > 0 else None

    @property
    def fdim(self) -> int:
        """Width of the features before the classifier."""
        return self._fdim

    def forward(self, x: torch.Tensor, return_feature: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return logits (B, C), with the features (B, fdim) if asked for; features alone without a classifier."""
        features = self.backbone(x)
        if self.head is not None:
            features = self.head(features)
        if self.classifier is None:
            return features
        logits = self.classifier(features)
        return (logits, features) if return_feature else logits


class SimpleTrainer(TrainerBase):
    """A trainer of models built from a config: data, model, evaluator, checkpoints and evaluation.

    Attributes:
        dm, train_loader_x, train_loader_u, val_loader, test_loader: Data; the second and third loader may be None.
        num_classes, num_source_domains, lab2cname: What the data set says about itself.
        evaluator: Made from ``TEST.EVALUATOR``.
        best_result: Best validation result so far, percent.
        epoch, batch_idx: Where the loop is, from 0.

    Args:
        cfg: Full config.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.check_cfg(cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = float("-inf")

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a config this trainer cannot run; called first, when `self.cfg` is not set yet."""

    def build_data_loader(self) -> None:
        """Set the data attributes; an override sets the same ones (`dm` is optional)."""
        dm = DataManager(self.cfg)
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def build_model(self) -> None:
        """Build and register a `SimpleNet`; most trainers override this."""
        cfg = self.cfg
        print("Building model")
        self.model = SimpleNet(cfg, cfg.MODEL, self.num_classes)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        print(f"# params: {count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)

    def train(self) -> None:
        """Train from the start or from the last checkpoint to ``OPTIM.MAX_EPOCH``, then test."""
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        """Resume from ``RESUME`` or OUTPUT_DIR, open the writer, start the clock."""
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.cfg.OUTPUT_DIR)
        writer_dir = os.path.join(self.output_dir, "tensorboard")
        mkdir_if_missing(writer_dir)
        self.init_writer(writer_dir)
        self.time_start = time.time()

    def after_train(self) -> None:
        """Evaluate the chosen model unless ``TEST.NO_TEST``, report the elapsed time, close the writer."""
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        print(f"Elapsed: {datetime.timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()

    def after_epoch(self) -> None:
        """Keep the best model on val (FINAL_MODEL "best_val") and save when ``TRAIN.CHECKPOINT_FREQ`` or the end asks."""
        finished = self.epoch + 1
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST:
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name="model-best.pth.tar")
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        if finished == self.max_epoch or (frequency > 0 and finished % frequency == 0):
            self.save_model(self.epoch, self.output_dir)

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on a split and return the first metric.

        Args:
            split: "val" or "test"; None means ``TEST.SPLIT``. Without a val split, test is used, with a warning.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        split, loader = self._choose_test_loader(split or self.cfg.TEST.SPLIT)
        print(f"Evaluate on the *{split}* set")
        for batch in progress_bar(loader):
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input), label)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def _choose_test_loader(self, split: str) -> tuple[str, DataLoader]:
        if split == "val" and self.val_loader is not None:
            return "val", self.val_loader
        selecting = split == "val" and self.cfg.TEST.FINAL_MODEL == "best_val"
        if selecting and self.epoch == self.start_epoch:
            print("Warning: no val split: best_val selects on TEST")
        return "test", self.test_loader

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return the logits, (B, C), of a test batch."""
        return self.model(input)

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and labels on the device."""
        return batch["img"].to(self.device), batch["label"].to(self.device)


class TrainerX(SimpleTrainer):
    """Train on labelled batches; a subclass defines `forward_backward(batch) -> dict of named losses or None`."""

    def run_epoch(self) -> None:
        """Run one pass over `train_loader_x`."""
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        progress = EpochProgress(self, self.num_batches)
        for self.batch_idx, batch in enumerate(self.train_loader_x):
            progress.data_ready()
            progress.step(self.forward_backward(batch))

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return images, labels and domains on the device."""
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Train on pairs of labelled and unlabelled batches; a subclass defines `forward_backward(batch_x, batch_u)`."""

    def run_epoch(self) -> None:
        """Run as many pairs as ``TRAIN.COUNT_ITER`` says; the loader that ends first starts over.

        Raises:
            ValueError: If the data set has no unlabelled part, or ``TRAIN.COUNT_ITER`` is unknown.
        """
        self.set_model_mode("train")
        self.num_batches = self._count_batches()
        batches_x, batches_u = _RestartingLoader(self.train_loader_x), _RestartingLoader(self.train_loader_u)
        progress = EpochProgress(self, self.num_batches)
        for self.batch_idx in range(self.num_batches):
            batch_x, batch_u = next(batches_x), next(batches_u)
            progress.data_ready()
            progress.step(self.forward_backward(batch_x, batch_u))

    def _count_batches(self) -> int:
        if self.train_loader_u is None:
            raise ValueError(
                f"{type(self).__name__} needs unlabelled images, but DATASET.NAME {self.cfg.DATASET.NAME!r} has no train_u"
            )
        len_x, len_u = len(self.train_loader_x), len(self.train_loader_u)
        counts = {"train_x": len_x, "train_u": len_u, "smaller_one": min(len_x, len_u)}
        choice = self.cfg.TRAIN.COUNT_ITER
        if choice not in counts:
            raise ValueError(f"TRAIN.COUNT_ITER is {choice!r}; expected one of {', '.join(counts)}")
        return counts[choice]

    def parse_batch_train(
        self, batch_x: dict[str, Any], batch_u: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return labelled images, their labels and unlabelled images on the device."""
        return batch_x["img"].to(self.device), batch_x["label"].to(self.device), batch_u["img"].to(self.device)


class _RestartingLoader:
    """Iterate over a loader without end.

    The first iterator is made at once: loaders draw from the global generator then, so the order of creation is part
    of a seeded run.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.iterator: Iterator[dict[str, Any]] = iter(loader)

    def __next__(self) -> dict[str, Any]:
        try:
            return next(self.iterator)
        except StopIteration:
            self.iterator = iter(self.loader)
            return next(self.iterator)
