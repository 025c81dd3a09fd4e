"""Our trainers against the loop-style reference: loss traces of 20 steps, and the text phase."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from reference_dual import Dual, ring_q
from reference_lafter import MultiLayerReference, Reference, Settings, Start, fit_text_weight
from tiny_moods import MOODS, RING, VOTELESS, votes_of
from torch.testing import assert_close

from trainers.lafter_parts.class_texts import build_class_bank, load_class_texts

EPOCHS = 10  # of two batches each
HYBRID_STAGES = ((5, 6, 7), (8, 9), (10, 11, 12))
MULTILAYER_STAGES = ((1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11), (12,))
PLAIN_VIEW = {".AUGMENT": "none", "OPTIM.MAX_EPOCH": EPOCHS}


def record_run(trainer) -> tuple[Start, list[float], list[list[tuple[torch.Tensor, torch.Tensor]]], torch.Tensor]:
    """Train, and return the start values, the loss of every step, the batches by epoch, and all images in file order."""
    adapt = trainer.adapt
    start = Start(copy.deepcopy(trainer.clip.model.visual), torch.empty(0), torch.empty(0))
    if adapt.prompts is not None:
        start.prompts = adapt.prompts.detach().clone()
    else:
        start.stage_prompts = {int(block): p.detach().clone() for block, p in adapt.stage_prompts.items()}
    if adapt.logit_scale is not None:
        start.scale_log = adapt.logit_scale.log_scale.detach().clone()
    if hasattr(adapt, "nga"):
        start.rho, start.beta = adapt.nga.rho.detach().clone(), adapt.fusion.beta.detach().clone()
    trace, epochs, images = [], [], {}
    inner = trainer.forward_backward

    def record(batch: dict) -> dict[str, float]:
        if trainer.batch_idx == 0:
            epochs.append([])
        view = batch["img2"] if "img2" in batch else batch["img"]
        epochs[-1].append((view.clone(), batch["index"].clone()))
        images.update(zip(batch["index"].tolist(), view, strict=True))
        summary = inner(batch)
        trace.append(summary["loss"])
        return summary

    trainer.forward_backward = record
    trainer.train()
    start.text_weight = trainer.text_classifier.weight.detach().clone()
    return start, trace, epochs, torch.stack([images[index] for index in sorted(images)])


MULTILAYER = Settings(
    stages=MULTILAYER_STAGES, unit_features=True, consistency=0.1, pairs="adjacent", adapter_mult=5.0, warmup_epochs=1
)
MOODY = {"DATASET.NAME": "TinyMoods"}
MOOD_LABELS = tuple(number % 4 for number in range(8))
BY_LABEL = ring_q(RING, MOODS, 1.0, 0.1)
BY_IMAGE = tuple(BY_LABEL[n % 4] if n % 5 == VOTELESS else votes_of(n) for n in range(8))
CASES = {
    "frozen": ("LaFTer", {}, Settings()),
    "shared": ("LaFTer", {".TEACHER": "shared", ".AUGMENT": "two_crop"}, Settings(teacher="shared")),
    "self_aligned": (
        "LaFTer",
        {".TEACHER": "self", ".DIST_ALIGN": "uniform", ".CONF_THRESHOLD": 0.436},
        Settings(teacher="self", align=True, threshold=0.436),
    ),
    "hybrid": (
        "HybridCascadeLaFTer",
        {".WARMUP_EPOCHS": 3, ".CONF_THRESHOLD": 0.372},
        Settings(
            stages=HYBRID_STAGES, unit_features=True, threshold=0.372, consistency=0.1, adapter_mult=5.0, warmup_epochs=3
        ),
    ),
    "hybrid_self": (
        "HybridCascadeLaFTer",
        {".TEACHER": "self", ".DIST_ALIGN": "uniform"},
        Settings(
            teacher="self", align=True, stages=HYBRID_STAGES, unit_features=True, consistency=0.1, adapter_mult=5.0,
            warmup_epochs=1,
        ),
    ),
    "multilayer": ("MultiLayerLaFTer", {".WARMUP_EPOCHS": 3}, replace(MULTILAYER, warmup_epochs=3)),
    "multilayer_join": ("MultiLayerLaFTer", {".PROMPT_MODE": "accumulate"}, replace(MULTILAYER, prompt_mode="accumulate")),
    "multilayer_deep": ("MultiLayerLaFTer", {".PROMPT_MODE": "deep"}, replace(MULTILAYER, prompt_mode="deep")),
    "multilayer_progressive": (
        "MultiLayerLaFTer",
        {".PROGRESSIVE": True, ".TEACHER": "self", ".DIST_ALIGN": "uniform"},
        replace(MULTILAYER, unfreezing=(2, 3), teacher="self", align=True),
    ),
    "ema": (
        "LaFTer",
        {".TEACHER": "ema", ".AUGMENT": "two_crop", ".EMA_DECAY": 0.5, "OPTIM.LR": 2e-3},
        Settings(teacher="ema", ema_decay=0.5, lr=2e-3),
    ),
    "pseudo_dual": (
        "LaFTer",
        MOODY | {".DUAL.ENABLED": True, ".DUAL.STRATEGY": "strategy1", ".DUAL.TEMPERATURE": 2.0, ".CONF_THRESHOLD": 0.29},
        Settings(threshold=0.29, dual=Dual(temperature=2.0, by_label=BY_LABEL)),
    ),
    "supervised": ("LaFTer", MOODY | {".MODE": "supervised"}, Settings(labels=MOOD_LABELS)),
    "supervised_votes": (
        "HybridCascadeLaFTer",
        MOODY | {".MODE": "supervised", ".DUAL.ENABLED": True, ".DUAL.LAMBDA": 0.6, ".DUAL.LOSS": "kl"},
        Settings(
            labels=MOOD_LABELS, dual=Dual(lam=0.6, kind="kl", by_image=BY_IMAGE), stages=HYBRID_STAGES, unit_features=True,
            consistency=0.1, adapter_mult=5.0, warmup_epochs=1,
        ),
    ),
    "direct": (
        "MultiLayerLaFTer",
        MOODY | {".MODE": "direct", ".DUAL.STRATEGY": "strategy1", ".DUAL.TEMPERATURE": 4.0, ".DUAL.LOSS": "kl"},
        replace(MULTILAYER, labels=MOOD_LABELS, dual=Dual(temperature=4.0, kind="kl", by_label=BY_LABEL)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_loss_trace_of_20_steps_equals_the_reference(case: str, make_trainer, monkeypatch) -> None:
    name, overrides, settings = CASES[case]
    if case in ("shared", "ema"):
        # Both views plain, so that the replay sees what the teacher saw.
        monkeypatch.setattr("trainers.base.CLIPTrainer.strong_view", lambda self: self.clip.preprocess)
    trainer = make_trainer(name, PLAIN_VIEW | overrides)
    start, trace, epochs, everything = record_run(trainer)
    reference = MultiLayerReference if name == "MultiLayerLaFTer" else Reference
    expected = reference(start, settings).run(epochs, everything)
    assert len(trace) == 20
    assert_close(torch.tensor(trace), torch.tensor(expected), atol=1e-5, rtol=0)
    if settings.threshold:
        assert any(0 < row["counted"] < 1 for row in trainer.report.rows)  # the threshold does its work in this run
    assert trace[0] != pytest.approx(trace[-1], abs=1e-3)  # something was learned, so equality says something


def test_text_phase_equals_the_reference(make_trainer) -> None:
    trainer = make_trainer("LaFTer", {".TEXT.EPOCHS": 5, ".PHASE": "text_only"})
    first = trainer.text_classifier.weight.detach().clone()
    texts = load_class_texts(trainer.settings.TEXT, "TinyColours")
    bank = build_class_bank(trainer.clip, trainer.settings.TEXT, texts, trainer.classnames)
    expected = fit_text_weight(first, bank.features, bank.labels, bank.weights, epochs=5, lr=trainer.cfg.OPTIM.LR, seed=1)
    trainer.train()
    assert_close(trainer.text_classifier.weight, expected, atol=1e-6, rtol=0)
    assert not torch.equal(first, expected)
