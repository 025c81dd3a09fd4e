"""LaFTer: a folder of unlabelled images and a list of class names become a tuned classifier.

Mirza et al., "LaFTer: Label-Free Tuning of Zero-shot Classifier using Language and Unlabeled Image Collections", NeurIPS 2023
(https://arxiv.org/abs/2305.18287). Phase A trains a linear classifier on sentences about the classes; phase B tunes prompts,
visual LayerNorms and that classifier on pseudo-labels. Beyond the paper: labels that are made once (`TEACHER frozen`) or by the
student before every epoch (`self`), alignment of their class shares, selection by confidence. `published.yaml` has the paper's
settings. With `MODE pseudo`, no label of the training or validation images is read; `supervised` and `direct` learn from the
data set's labels, and all modes can learn a distribution over the classes as well (`trainers/lafter_parts/dual_task.py`).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode

from clip_ext.heads import TextClassifier
from clip_ext.losses import distribution_loss, soft_targets
from clip_ext.text_bank import release_text_tower
from trainers.lafter_parts import lafter_checks, plots
from trainers.base import CLIPTrainer, ParameterGroup, Scores, Target, is_labelled
from trainers.lafter_parts.dual_task import DualTask, SyntheticDistributions
from trainers.lafter_parts.judges import Judges
from trainers.lafter_parts.report import EpochRecorder, RunReport
from trainers.lafter_parts.students import LaFTerStudent, Prediction
from trainers.lafter_parts.targets import Annotations, TrainingBatch, TrainingTarget
from trainers.lafter_parts.teachers import ONLINE, TrainingSet, build_teacher
from trainers.lafter_parts.text_phase import train_text_classifier
from trainers.views import View, build_train_views, resolve_views

logger = logging.getLogger(__name__)

BEST_MODEL = "model-best.pth.tar"  # Dassl's name for the chosen epoch


@TRAINER_REGISTRY.register()
class LaFTer(CLIPTrainer):
    """Label-free tuning; parent of the trainers that read more than the last block."""

    fixed_classes = True  # a row of the classifier per class: a model of other classes is refused

    def config_problems(self, cfg: CfgNode) -> list[str]:
        """See `TunedTrainer`."""
        return super().config_problems(cfg) + lafter_checks.find_problems(cfg, self.node_name())

    # Building

    @property
    def label_free(self) -> bool:
        """Whether labels of training and validation images must stay unread."""
        return self.settings.MODE == "pseudo"

    def train_views(self) -> View | list[View]:
        """Return the strong view, together with the weak one if the teacher labels batches or both are learned from."""
        online = self.settings.TEACHER in ONLINE
        self.views = resolve_views(self.settings.AUGMENT, label_free=self.label_free, online_teacher=online)
        return build_train_views(self.views, weak=self.clip.preprocess, strong=self.strong_view())

    def build_model(self) -> None:
        """Build the student around the backbone and register what trains."""
        self.cache_images()
        self._build_dual_task()
        self.student = self.build_student().to(self.device).eval()
        self.text_classifier = TextClassifier(self.num_classes, self.student.info.embed_dim)
        self.register_trainables(self.student.adapt, self.trainable_groups())
        self.judges = Judges(self.student, self.text_classifier, self.autocast)
        self._ema_state: list[Tensor] | None = None
        self._has_text_classifier = False
        self._best_proxy = self._test_max = (-1.0, 0)  # (figure, finished epochs)
        self.report = RunReport(self.output_dir, label_free=self.label_free)

    def _build_dual_task(self) -> None:
        """Decide whether a distribution is learned, and prepare the synthetic ones."""
        node = self.settings
        ring = getattr(self.dm.dataset, "emotion_ring", ())
        self.synthetic = SyntheticDistributions(node.DUAL, ring, self.classnames)
        if node.MODE == "direct" and not node.DUAL.ENABLED:
            logger.info("MODE direct switches the dual task on (DUAL.ENABLED is False)")
        enabled = node.DUAL.ENABLED or node.MODE == "direct"
        self.dual = DualTask(node.DUAL, self.synthetic, self.num_classes) if enabled else None

    def build_student(self) -> LaFTerStudent:
        """Return the model that is tuned."""
        return LaFTerStudent(self.clip.model.visual, self.num_classes, **self.student_options())

    def student_options(self) -> dict[str, Any]:
        """Return the arguments that every student of the family takes."""
        node = self.settings
        return {
            "prompt_tokens": node.PROMPT_TOKENS,
            "scale_init": node.SCALE_INIT if node.FEAT_NORM == "l2" else None,
            "checkpoint": node.GRAD_CKPT,
            "distribution_head": self.dual is not None and node.DUAL.HEADS == "dual",
        }

    def trainable_groups(self) -> list[ParameterGroup]:
        """Declare what trains, and how."""
        node, adapt, decay = self.settings, self.student.adapt, self.cfg.OPTIM.WEIGHT_DECAY
        norm_decay = decay if node.LN_DECAY else 0.0  # never on biases, as in the public implementation
        norms = [list(norm.parameters()) for norm in adapt.norms.values()]  # weight, bias
        groups = [
            ParameterGroup("prompts", [] if adapt.prompts is None else [adapt.prompts], 1.0, norm_decay),
            ParameterGroup("layer norms", [weight for weight, _ in norms], 1.0, norm_decay),
            ParameterGroup("layer norm biases", [bias for _, bias in norms], 1.0, 0.0),
            ParameterGroup("classifier", adapt.heads(), node.ADAPTER_LR_MULT, decay),
            ParameterGroup("scalars", adapt.scalars(), node.NGA_LR_MULT, 0.0),
        ]
        return [group for group in groups if group.parameters]

    # Phase A

    def before_train(self) -> None:
        """Resume, or train the text classifier; then set up the teacher."""
        super().before_train()
        if not self._has_text_classifier:
            self._start_classifier()
        release_text_tower(self.clip.model)
        self.report.resume(self.start_epoch)
        self.text_classifier.requires_grad_(False).to(self.device)
        if self.label_free:
            self._build_teacher()
        else:
            logger.info("MODE %s learns from the data set's labels; the keys of teacher and selection rest", self.settings.MODE)
        if self.settings.PHASE == "text_only":
            self.save_model(-1, self.output_dir)  # Dassl counts finished epochs: this is epoch 0
            self.max_epoch = self.start_epoch

    def data_problems(self) -> list[str]:
        """See `TunedTrainer`."""
        problems, items = super().data_problems(), self.dm.dataset.train_x
        unlabelled = [] if self.label_free else [item.impath for item in items if item.label < 0]
        if unlabelled:
            problems.append(
                f"{len(unlabelled)} training image(s) have no label, e.g. {unlabelled[0]}; MODE {self.settings.MODE} "
                "learns from labels, expected pseudo for unlabelled images"
            )
        if self.dual is not None:
            problems += self.dual.data_problems(items, label_free=self.label_free)
        return problems

    def _start_classifier(self) -> None:
        """Give the student its first classifier: trained on texts, or random in `MODE direct`."""
        if self.settings.MODE != "direct":
            train_text_classifier(self.text_classifier, self.clip, self.cfg, self.settings, self.classnames, self.device)
        self._has_text_classifier = True
        self.student.set_classifier(self.text_classifier.weight)

    def _build_teacher(self) -> None:
        node = self.settings
        if node.TEACHER == "ema":
            self.judges.start_ema(node.EMA_DECAY, self._ema_state)
        images = TrainingSet(self.cfg, self.train_loader_x.dataset, self.clip, self.device)
        self.teacher = build_teacher(
            node, self.judges, images, classifier=self.text_classifier.weight, precision=self.prec
        )

    # Phase B

    def before_epoch(self) -> None:
        """Refresh the labels and start the epoch's record."""
        super().before_epoch()
        if self.label_free:
            self.teacher.start_epoch(self.epoch)
        self.recorder = EpochRecorder()

    def parse_batch_train(self, batch: dict) -> TrainingBatch:
        """Take views and positions from a batch, and in the supervised modes what the data set says about it."""
        views = [batch[name].to(self.device) for name in ("img", "img2") if name in batch]  # weak, strong; or one alone
        if self.views != "none":
            views[-1] = self.finish_strong(views[-1])
        if self.label_free:
            return TrainingBatch(views[-1], views[0] if len(views) == 2 else None, batch["index"], None)
        return TrainingBatch(torch.cat(views), None, batch["index"], Annotations.of_batch(batch, self.device))

    def compute_losses(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """See `TunedTrainer`."""
        target, prediction = self._find_target(batch), self._predict(batch.images)
        # With two views per image the mean over all of them is the mean of the two losses.
        losses = self.student_losses(prediction, target.repeated(len(batch.images) // len(batch.index)))
        self.recorder.add(batch.index, prediction.logits[: len(batch.index)], target, losses)
        return losses

    def _find_target(self, batch: TrainingBatch) -> TrainingTarget:
        """Return the teacher's labels of a label-free batch, else the data set's."""
        given = batch.annotations
        if given is not None:
            return TrainingTarget.of_labels(given.labels, None if self.dual is None else self.dual.of_annotations(given))
        found = self.teacher.label(batch.index, batch.weak)
        labels, counted, confidence = (t.to(self.device) for t in (found.labels, found.counted, found.confidence))
        return TrainingTarget(labels, counted, confidence, None if self.dual is None else self.dual.of_labels(labels))

    def _predict(self, images: Tensor) -> Prediction:
        with self.autocast():
            return self.student(images)

    def after_update(self) -> None:
        """Let the averaged teacher follow."""
        if self.judges.ema is not None:
            self.judges.ema.update()

    def student_losses(self, prediction: Prediction, target: TrainingTarget) -> dict[str, Tensor]:
        """Return the weighted, named losses of a batch; images that do not count are masked out of the main loss."""
        return {"main": self.main_loss(prediction.logits, target, prediction.distribution_logits)}

    def main_loss(self, logits: Tensor, target: TrainingTarget, distribution_logits: Tensor | None = None) -> Tensor:
        """Return L_main, the mean over the images that count.

        Args:
            logits: (B, C), or (S, B, C) for S stages that share the target.
            target: Of the batch.
            distribution_logits: Of the distribution's own head (`DUAL.HEADS dual`), in the shape of `logits` or (B, C). None
                leaves the class term alone if there is such a head.
        """
        smoothing = self.settings.LABEL_SMOOTHING
        if self.dual is not None:
            return self.dual.loss(logits, distribution_logits, target, smoothing=smoothing)
        mixed = soft_targets(target.labels, self.num_classes, smoothing=smoothing)
        return distribution_loss(logits, mixed, mask=target.counted)

    def after_epoch(self) -> None:
        """Write the label-free report, keep the best epoch by proxy if asked, then Dassl's part: checkpoints."""
        finished = self.epoch + 1
        health = self.report.add_epoch(finished, self.recorder, self.student.stage_weights())
        if self.settings.SELECT == "proxy" and health.proxy_score > self._best_proxy[0]:
            self._best_proxy = (health.proxy_score, finished)
            self.save_model(self.epoch, self.output_dir, model_name=BEST_MODEL)
        if self.settings.REPORT_TEST_MAX and is_labelled(self.dm.dataset.test):
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

    def parse_batch_test(self, batch: dict) -> tuple[Tensor, Target]:
        """See `CLIPTrainer`; labelled images without votes get a synthetic distribution if the classes are on a ring."""
        images, target = super().parse_batch_test(batch)
        target.facts = self.synthetic.complete(target.facts, target.data)
        return images, target

    @torch.no_grad()
    def model_inference(self, images: Tensor) -> Scores:
        """Return logits, (B, C): of the student, or of the text classifier on plain features after `PHASE text_only`.

        The predicted distribution comes along, at the temperature of training.
        """
        if self.settings.PHASE == "text_only":
            with self.autocast():
                features = self.student.plain_features(images)
            logits = F.linear(features, self.student.text_classifier_weight())
            return Scores.of(logits, distribution=logits.softmax(dim=-1))
        found = self._predict(images)
        if self.dual is None:
            return Scores.of(found.logits, distribution=found.logits.softmax(dim=-1))
        distribution = self.dual.predict(found.logits, found.distribution_logits)
        return Scores.of(found.logits, distribution=distribution, temperature=self.dual.class_temperature)

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
            "ema": None if self.judges.ema is None else self.judges.ema.state(),
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """See `TunedTrainer`."""
        super().load_extra_state(state)
        with torch.no_grad():
            self.text_classifier.weight.copy_(state["text_classifier"])
        self._has_text_classifier = True
        self._best_proxy, self._test_max = tuple(state["best_proxy"]), tuple(state["test_max"])
        self._ema_state = state.get("ema")
