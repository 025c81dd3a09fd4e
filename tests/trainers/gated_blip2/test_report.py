"""The report of an epoch: what it holds, and that making it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_blip2s import write_blip2

from trainers.gated_blip2.gates import GateOptions
from trainers.gated_blip2.loading import LoadedBlip2, load_blip2
from trainers.gated_blip2.model import GatedBlip2Model
from trainers.gated_blip2.presets import PRESETS, build_conditioner, parameter_groups, trainable_parts
from trainers.gated_blip2.prompts import PromptEncoder, TextBatch, collate
from trainers.gated_blip2.report import GateReport, Probe
from trainers.parameter_groups import ParameterGroup

STYLE_WIDTH = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip2(tmp_path_factory.mktemp("blip2"))


def build(folder: Path, *, init_std: float = 0.0) -> tuple[LoadedBlip2, GatedBlip2Model, list[ParameterGroup]]:
    loaded, preset = load_blip2(str(folder)), PRESETS["gates_proj"]
    torch.manual_seed(0)
    conditioner = build_conditioner(preset, loaded.model, STYLE_WIDTH, GateOptions(hidden=8, init_std=init_std))
    model = GatedBlip2Model(loaded, conditioner=conditioner)
    parts = trainable_parts(preset, loaded.model, conditioner)
    for _, parameter in (pair for pairs in parts.values() for pair in pairs):
        parameter.requires_grad_(True)
    return loaded, model, parameter_groups(parts, 0.01)


def inputs(loaded: LoadedBlip2) -> tuple[torch.Tensor, torch.Tensor, TextBatch]:
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, loaded.n_tokens, 32, generator=draw)
    encoder = PromptEncoder(
        loaded.tokenizer, "question : {question} short answer :", max_question_tokens=8,
        max_positions=loaded.max_positions, n_queries=loaded.n_queries,
    )  # fmt: skip
    rows = [encoder.encode("what colour is the thing ?", "red"), encoder.encode("how many ?", "two or three")]
    text = collate(rows, pad_id=encoder.pad_id, side="right")
    return tokens, torch.randn(2, STYLE_WIDTH, generator=draw), text


def test_an_epoch_is_reported_and_written_as_scalars(folder: Path) -> None:
    loaded, model, groups = build(folder)
    tokens, style, text = inputs(loaded)
    scalars: dict[str, tuple[float, int]] = {}
    report = GateReport(
        groups, lambda tag, value, step: scalars.update({tag: (value, step)}), context=model.context,
        probe=Probe(model, tokens, text, lambda: style),
    )  # fmt: skip
    report.before_epoch()
    model.train()
    for _ in range(2):
        model.loss(tokens, style, text).total.backward()
        report.after_batch(2)
    report.before_clipping()
    found = report.after_epoch(4, cache_hits=7)
    assert json.loads(json.dumps(found)) == found
    assert (found["samples"], found["updates"], found["samples_per_update"], found["cache_hits"]) == (4, 1, 4.0, 7)
    assert found["samples_per_second"] == pytest.approx(4 / found["seconds"])
    assert found["kl_ungated"] == 0.0
    assert [(row["layer"], row["part"], row["mean"]) for row in found["gates"]] == [
        (layer, part, base) for layer in (1, 3) for part, base in (("key", 1.0), ("value", 1.0), ("shift", 0.0))
    ]
    norms = found["gradient_norms"]
    assert set(norms) == {group.name for group in groups}
    assert norms["gate_heads"]["mean"] > 0 == norms["gate_trunk"]["mean"]
    projection = [p.grad.norm() for g in groups if g.name == "language_projection" for p in g.parameters]
    assert norms["language_projection"]["mean"] == pytest.approx(torch.stack(projection).norm().item(), rel=1e-6)
    assert scalars["report/gates/layer3/value/saturated"] == (0.0, 4)
    assert scalars["report/gradient_norm/gate_heads"] == (norms["gate_heads"]["mean"], 4)
    tags = {"kl_ungated", "samples_per_second", "cache_hits", "gates/layer1/shift/std"}
    assert {f"report/{tag}" for tag in tags} < set(scalars)
    assert not any("shift/saturated" in tag or "peak" in tag for tag in scalars)
    report.before_epoch()
    empty = report.after_epoch(5)
    assert empty["samples"] == 0 and "gates" not in empty and empty["gradient_norms"] == {}


def test_the_probe_is_the_divergence_at_answer_tokens(folder: Path) -> None:
    loaded, model, _ = build(folder, init_std=0.5)
    tokens, style, text = inputs(loaded)
    model.train()
    found = Probe(model, tokens, text, lambda: style).measure()
    assert model.training and not model.context.is_off
    with torch.no_grad():
        gated = model.eval().logits(tokens, style, text).log_softmax(-1)
        with model.ungated():
            ungated = model.logits(tokens, style, text).log_softmax(-1)
    of_texts = [each[:, model.n_queries - 1 : -1] for each in (gated, ungated)]  # scores of each text column
    gated, ungated = (each[text.labels != -100] for each in of_texts)
    expected = (gated.exp() * (gated - ungated)).sum(-1).mean()
    assert len(gated) == text.n_answer_tokens == 6
    assert found == pytest.approx(expected.item(), rel=1e-4) and found > 0


def test_reporting_changes_no_number_of_training(folder: Path) -> None:
    def losses(watched: bool) -> list[float]:
        loaded, model, groups = build(folder)
        tokens, style, text = inputs(loaded)
        parameters = [parameter for group in groups for parameter in group.parameters]
        optimizer = torch.optim.AdamW(parameters, lr=0.05)
        report = GateReport(
            groups if watched else [], lambda *_: None, context=model.context if watched else None,
            probe=Probe(model, tokens, text, lambda: style) if watched else None,
        )  # fmt: skip
        found = []
        for epoch in range(3):
            model.train()
            report.before_epoch()
            optimizer.zero_grad()
            loss = model.loss(tokens, style + 0.1 * torch.randn(style.shape), text).total
            loss.backward()
            report.before_clipping()
            optimizer.step()
            kl = report.after_epoch(epoch).get("kl_ungated")
            assert not watched or kl > 0
            found.append(loss.item())
        return found

    plain = losses(False)
    assert losses(True) == plain and len(set(plain)) == 3


def test_without_gates_there_are_gradients_only() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    report = GateReport([ParameterGroup("query_tokens", [weight], 0.1, 0.0)], lambda *_: None)
    report.before_clipping()
    found = report.after_epoch(0)
    assert found["gradient_norms"]["query_tokens"]["mean"] == pytest.approx(3**0.5)
    assert not {"gates", "kl_ungated", "cache_hits", "peak_allocated_bytes"} & set(found)
