"""LaFTer: a folder of unlabelled images and a list of class names become a tuned classifier.

Mirza et al., "LaFTer: Label-Free Tuning of Zero-shot Classifier using Language and Unlabeled Image Collections", NeurIPS 2023
(https://arxiv.org/abs/2305.18287). Phase A trains a linear classifier on sentences about the classes; phase B tunes prompts,
visual LayerNorms and that classifier on pseudo-labels. Beyond the paper: labels that are made once (`TEACHER frozen`) or by the
student before every epoch (`self`), alignment of their class shares, selection by confidence. `published.yaml` has the paper's
settings. No label of the training or validation images is read.
"""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass
from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm
from yacs.config import CfgNode

from clip_ext.heads import TextClassifier, fit_text_classifier
from clip_ext.losses import distribution_loss, soft_targets
from clip_ext.text_bank import class_prototypes, release_text_tower
from trainers import lafter_checks, plots
from trainers.base import CLIPTrainer, ExtrasWrapper, ParameterGroup
from trainers.class_texts import build_class_bank, load_class_texts
from trainers.pseudo_teacher import (
    OnlineTeacher,
    PseudoLabels,
    PseudoTeacher,
    SelectionRule,
    WholeSetTeacher,
    cached_labels,
    label_key,
    predict_all,
    resolve_shares,
)
from trainers.report import EpochRecorder, RunReport
from trainers.students import LaFTerStudent, Prediction
from trainers.targets import TrainingTarget
from trainers.views import View, build_train_views, resolve_views

logger = logging.getLogger(__name__)

BEST_MODEL = "model-best.pth.tar"  # Dassl's name for the chosen epoch


@dataclass(frozen=True)
class UnlabelledBatch:
    """A training batch without its labels.

    Attributes:
        images: Views that the student learns from, (B, 3, H, W).
        weak: Views for an online teacher, (B, 3, H, W); None otherwise.
        index: Positions in the training set, (B,), on the CPU.
    """

    images: Tensor
    weak: Tensor | None
    index: Tensor


@TRAINER_REGISTRY.register()
class LaFTer(CLIPTrainer):
    """Label-free tuning; parent of the trainers that read more than the last block."""

    def config_problems(self, cfg: CfgNode) -> list[str]:
        """See `TunedTrainer`."""
        return super().config_problems(cfg) + lafter_checks.find_problems(cfg, self.node_name())

    # Building

    def train_views(self) -> View | list[View]:
        """Return the strong view, together with the weak one if the teacher labels batches."""
        self.views = resolve_views(self.settings.AUGMENT, online_teacher=self.settings.TEACHER == "shared")
        return build_train_views(self.views, weak=self.clip.preprocess, strong=self.strong_view())

    def build_model(self) -> None:
        """Build the student around the backbone and register what trains."""
        self.cache_images()
        self.student = self.build_student().to(self.device).eval()
        self.text_classifier = TextClassifier(self.num_classes, self.student.info.embed_dim)
        self.register_trainables(self.student.adapt, self.trainable_groups())
        # The frozen teacher sees through these even after a resume has put tuned values into the tower.
        trained = {id(p) for p in self.student.adapt.norms.parameters()}
        self._first_norms = {name: p.detach().clone() for name, p in self.student.driver.named_parameters() if id(p) in trained}
        self._has_text_classifier = False
        self._best_proxy = self._test_max = (-1.0, 0)  # (figure, finished epochs)
        self.report = RunReport(self.output_dir)

    def build_student(self) -> LaFTerStudent:
        """Return the model that is tuned."""
        return LaFTerStudent(self.clip.model.visual, self.num_classes, **self.student_options())

    def student_options(self) -> dict[str, Any]:
        """Return the keyword arguments of the student that the config decides."""
        node = self.settings
        return {
            "prompt_tokens": node.PROMPT_TOKENS,
            "scale_init": node.SCALE_INIT if node.FEAT_NORM == "l2" else None,
            "checkpoint": node.GRAD_CKPT,
        }

    def trainable_groups(self) -> list[ParameterGroup]:
        """Declare what trains, and how."""
        node, adapt, decay = self.settings, self.student.adapt, self.cfg.OPTIM.WEIGHT_DECAY
        norm_decay = decay if node.LN_DECAY else 0.0
        groups = [
            ParameterGroup("prompts", [] if adapt.prompts is None else [adapt.prompts], 1.0, norm_decay),
            ParameterGroup("layer norms", list(adapt.norms.parameters()), 1.0, norm_decay),
            ParameterGroup("classifier", list(adapt.classifier.parameters()), node.ADAPTER_LR_MULT, decay),
            ParameterGroup("scalars", adapt.scalars(), node.NGA_LR_MULT, 0.0),
        ]
        return [group for group in groups if group.parameters]

    # Phase A

    def before_train(self) -> None:
        """Resume, or train the text classifier; then set up the teacher."""
        super().before_train()
        if not self._has_text_classifier:
            self._train_text_classifier()
        release_text_tower(self.clip.model)
        self.report.resume(self.start_epoch)
        self.teacher = self._build_teacher()
        if self.settings.PHASE == "text_only":
            self.save_model(-1, self.output_dir)  # Dassl counts finished epochs: this is epoch 0
            self.max_epoch = self.start_epoch

    def _train_text_classifier(self) -> None:
        node = self.settings
        texts = load_class_texts(node.TEXT, self.cfg.DATASET.NAME)
        bank = build_class_bank(self.clip, node.TEXT, texts, self.classnames)
        if node.CLASSIFIER_INIT == "text_mean":
            with torch.no_grad():
                self.text_classifier.weight.copy_(class_prototypes(bank))
        fit_text_classifier(
            self.text_classifier,
            bank,
            epochs=node.TEXT.EPOCHS or texts.text_epochs,
            lr=self.cfg.OPTIM.LR,
            noise_std=node.TEXT.NOISE_STD,
            seed=max(self.cfg.SEED, 0),
            device=self.device,
        )
        self.text_classifier.requires_grad_(False)
        self._has_text_classifier = True
        self.student.set_classifier(self.text_classifier.weight)

    # Teacher

    def _build_teacher(self) -> PseudoTeacher:
        node = self.settings
        self.text_classifier.to(self.device)
        shares = resolve_shares(node.DIST_ALIGN, node.CLASS_SHARES, self.num_classes)
        rule = SelectionRule(shares, node.CONF_THRESHOLD, node.KEEP_SHARE)
        if node.TEACHER == "shared":
            return OnlineTeacher(self._shared_probs, rule)
        make = self._frozen_labels if node.TEACHER == "frozen" else self._self_labels
        return WholeSetTeacher(functools.partial(make, rule), every_epoch=node.TEACHER == "self")

    @torch.no_grad()
    def _shared_probs(self, weak: Tensor) -> Tensor:
        """Return A_pl's probabilities through the current LayerNorms, without prompts, (B, C)."""
        with self.autocast():
            features = self.student.plain_features(weak)
        return self.text_classifier(features).softmax(dim=-1)

    @torch.no_grad()
    def _frozen_probs(self, weak: Tensor) -> Tensor:
        """Return A_pl's probabilities through the LayerNorms that the CLIP came with, (B, C)."""
        with self.autocast():
            features = functional_call(self.student.driver, self._first_norms, (weak,), {"cls_only_last": True}).features
        return self.text_classifier(F.normalize(features.float(), dim=-1)).softmax(dim=-1)

    @torch.no_grad()
    def _student_probs(self, weak: Tensor) -> Tensor:
        """Return the student's own probabilities, (B, C)."""
        return self._predict(weak).logits.softmax(dim=-1)

    def _frozen_labels(self, rule: SelectionRule) -> PseudoLabels:
        node, info = self.settings, self.clip.info
        paths = [item.impath for item in self.dm.dataset.train_x]
        side = node.CACHE_SIDE if node.CACHE_IMAGES == "ram" else None
        key = label_key(
            weights=self.clip.fingerprint,
            modules=sorted({type(module).__name__ for module in self.clip.model.visual.modules()}),
            classifier=self.text_classifier.weight,
            preprocessing=repr((info.image_size_px, info.mean, info.std, info.interpolation, side)),
            paths=paths,
            root=os.path.commonpath([os.path.dirname(path) for path in paths]),
            shares=rule.shares,
            precision=f"{self.prec} on {self.device.type}",
        )
        make = functools.partial(self._label_training_set, self._frozen_probs, rule)
        return rule.select(*cached_labels(node.TEXT.CACHE_DIR, key, len(paths), make))

    def _self_labels(self, rule: SelectionRule) -> PseudoLabels:
        """Label with the student; before the first epoch, when its prompts are still noise, with the text classifier."""
        return self._student_labels(rule) if self.epoch else self._frozen_labels(rule)

    def _student_labels(self, rule: SelectionRule) -> PseudoLabels:
        self.set_model_mode("eval")
        return rule.select(*self._label_training_set(self._student_probs, rule))

    def _label_training_set(self, predict: Any, rule: SelectionRule) -> tuple[Tensor, Tensor]:
        """Return (labels, confidence) of the training set in file order, both (N,), on the CPU."""
        source = self.train_loader_x.dataset
        views = ExtrasWrapper(self.cfg, source.data_source, transform=self.clip.preprocess)
        views.read = source.read
        loader = DataLoader(
            views,
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
            # Its own generator: starting a loader draws a seed, and the global state must stay where it is.
            generator=torch.Generator().manual_seed(0),
        )
        # disable=None: a bar on terminals only.
        return rule.align(predict_all(tqdm(loader, desc="pseudo-labels", leave=False, disable=None), predict, self.device))

    # Phase B

    def before_epoch(self) -> None:
        """Refresh the labels and start the epoch's record."""
        super().before_epoch()
        self.teacher.start_epoch()
        self.recorder = EpochRecorder()

    def parse_batch_train(self, batch: dict) -> UnlabelledBatch:
        """Take views and positions from a batch; its labels stay unread."""
        two = self.views == "two_crop"
        images = batch["img2" if two else "img"].to(self.device)
        return UnlabelledBatch(images, batch["img"].to(self.device) if two else None, batch["index"])

    def compute_losses(self, batch: UnlabelledBatch) -> dict[str, Tensor]:
        """See `TunedTrainer`."""
        found = self.teacher.label(batch.index, batch.weak)
        teacher = PseudoLabels(*(t.to(self.device) for t in (found.labels, found.confidence, found.counted)))
        prediction = self._predict(batch.images)
        target = TrainingTarget(teacher.labels, teacher.counted, teacher.confidence)
        losses = self.student_losses(prediction, target)
        self.recorder.add(batch.index, prediction.logits, teacher, losses)
        return losses

    def _predict(self, images: Tensor) -> Prediction:
        with self.autocast():
            return self.student(images)

    def student_losses(self, prediction: Prediction, target: TrainingTarget) -> dict[str, Tensor]:
        """Return the weighted, named losses of a batch; images that do not count are masked out of the main loss."""
        return {"main": self.main_loss(prediction.logits, target, prediction.distribution_logits)}

    def main_loss(self, logits: Tensor, target: TrainingTarget, distribution_logits: Tensor | None = None) -> Tensor:
        """Return L_main, the mean over the images that count.

        Args:
            logits: (B, C), or (S, B, C) for S stages that share the target.
            target: Of the batch.
            distribution_logits: Of the distribution's own head, in the shape of `logits` or (B, C); None without such a head.
        """
        mixed = soft_targets(target.labels, self.num_classes, smoothing=self.settings.LABEL_SMOOTHING)
        return distribution_loss(logits, mixed, mask=target.counted)

    def after_epoch(self) -> None:
        """Write the label-free report, keep the best epoch by proxy if asked, then Dassl's part: checkpoints."""
        finished = self.epoch + 1
        health = self.report.add_epoch(finished, self.recorder, self.student.stage_weights())
        if self.settings.SELECT == "proxy" and health.proxy_score > self._best_proxy[0]:
            self._best_proxy = (health.proxy_score, finished)
            self.save_model(self.epoch, self.output_dir, model_name=BEST_MODEL)
        if self.settings.REPORT_TEST_MAX:
            self._test_max = max(self._test_max, (self._measure_test_accuracy(), finished))
        super().after_epoch()

    @torch.no_grad()
    def _measure_test_accuracy(self) -> float:
        """Return the test accuracy in percent; drives no choice and moves no random state."""
        self.set_model_mode("eval")
        correct = total = 0
        with torch.random.fork_rng(devices=[]):
            for batch in self.test_loader:
                images, labels = self.parse_batch_test(batch)
                correct += (self.model_inference(images).argmax(dim=-1) == labels).sum().item()
                total += len(labels)
        return 100.0 * correct / total

    # Test

    @torch.no_grad()
    def model_inference(self, images: Tensor) -> Tensor:
        """Return logits, (B, C): of the student, or of the text classifier on plain features after `PHASE text_only`."""
        if self.settings.PHASE == "text_only":
            with self.autocast():
                features = self.student.plain_features(images)
            return F.linear(features, self.student.text_classifier_weight())
        return self._predict(images).logits

    def prediction_facts(self) -> dict[str, list]:
        """Return what predict.py writes beside its rows: the weights inside and between stages; empty without stages."""
        return self.student.stage_weights()

    def after_train(self) -> None:
        """Test the chosen weights and draw the run."""
        if self._best_proxy[1]:
            logger.info("SELECT proxy: the weights after epoch %d are tested", self._best_proxy[1])
            self.load_model(self.output_dir)
        with plots.count_confusions(self.evaluator, self.num_classes) as confusions:
            super().after_train()
        if self._test_max[1]:
            logger.info("max over epochs (test-selected, published protocol): %.1f%% after epoch %d", *self._test_max)
        plots.draw_run(self.output_dir, self.report.rows, confusions, self.classnames)

    # State

    def extra_state(self) -> dict[str, Any]:
        """See `TunedTrainer`; the text classifier is kept, so that a resumed run does not train it again."""
        return super().extra_state() | {
            "text_classifier": self.text_classifier.weight.detach().cpu().clone(),
            "best_proxy": list(self._best_proxy),
            "test_max": list(self._test_max),
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """See `TunedTrainer`."""
        super().load_extra_state(state)
        with torch.no_grad():
            self.text_classifier.weight.copy_(state["text_classifier"])
        self.text_classifier.requires_grad_(False)
        self._has_text_classifier = True
        self._best_proxy, self._test_max = tuple(state["best_proxy"]), tuple(state["test_max"])
