"""GatedBLIP2 as a trainer: whole runs, what they leave, presets, controls, updates, stored epochs."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY
from PIL import Image
from tiny_questions import TinyQuestions

from trainers.gated_blip2 import controls
from trainers.gated_blip2.building import GatedSystem
from trainers.gated_blip2.config import CONTROLS
from trainers.gated_blip2.model import GatedBlip2Model
from trainers.gated_blip2.presets import PRESETS

NAME = "GatedBLIP2"
NO_TEST = {"TEST.NO_TEST": True}
LIVE = {".CACHE.ENABLE": False}
TRAINED = [name for name in PRESETS if name != "frozen"]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]


def weights_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.adapt.state_dict().items()}


def frozen_hashes(trainer: Any) -> dict[str, str]:
    """SHA-256 of every weight and buffer of the model and the style encoder that does not train."""
    modules = {"model": trainer.model, "style": trainer.towers.style_encoder}
    trained = {id(parameter) for parameter in trainer.adapt.parameters()}
    return {
        f"{owner}.{name}": hashlib.sha256(tensor.detach().float().numpy().tobytes()).hexdigest()
        for owner, module in modules.items()
        if module is not None
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if id(tensor) not in trained
    }


def test_two_epochs_validate_test_and_leave_every_file(make_trainer, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        trainer = make_trainer(NAME, {"TEST.FINAL_MODEL": "best_val", ".EVAL.CONTROLS": CONTROLS})
        trainer.train()
    run = tmp_path / "run"
    assert "* accuracy: " in caplog.text and "* control/majority/accuracy: " in caplog.text
    for folder in ("best", "last"):
        assert {path.name for path in (run / "adapter" / folder).iterdir()} == {"adapter.safetensors", "adapter.json"}
    assert {path.name for path in (run / "gated_blip2").iterdir()} == {"checkpoint", "model.pth.tar-2"}
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert [row["epoch"] for row in report["epochs"]] == [1, 2] and len(report["comparison"]) == 1
    assert {f"control/{name}/accuracy" for name in CONTROLS} | {"style_gap"} <= set(report["controls"])
    assert report["counts"]["preset"] == "gates_proj" and report["memory"]["total"] > 0
    assert report["epochs"][0]["cache_hits"] == 8 and {row["layer"] for row in report["epochs"][0]["gates"]} == {1, 3}
    assert "gate_heads" in (run / "trainable_parameters.txt").read_text("utf-8")
    assert len(rows_of(run)) == 6 and {"mean_log_prob", "seen_style", "style_probability"} <= set(rows_of(run)[0])


def test_same_seed_gives_the_same_losses_and_answers_with_and_without_workers(make_trainer, tmp_path: Path) -> None:
    reports = []
    for run, workers in (("one", 0), ("two", 2)):
        trainer = make_trainer(NAME, {"DATALOADER.NUM_WORKERS": workers, ".EVAL.CONTROLS": ()}, run=run)
        trainer.train()
        losses = [row["losses"] for row in trainer.report.epochs]
        reports.append((losses, [(row["answer"], row["mean_log_prob"]) for row in rows_of(tmp_path / run)]))
    assert reports[0] == reports[1]


def test_validation_asks_a_spread_of_its_limit_and_a_test_of_it_everything(make_trainer, tmp_path: Path) -> None:
    trainer = make_trainer(NAME, {".EVAL.VAL_LIMIT": 2})
    trainer.test("val")
    assert [row["question_id"] for row in rows_of(tmp_path / "run")] == ["val-0", "val-1"] and not trainer.further_results
    once = {"TEST.SPLIT": "val", "TEST.FINAL_MODEL": "best_val", "OPTIM.MAX_EPOCH": 1, "DATALOADER.TEST.BATCH_SIZE": 2}
    whole = make_trainer(NAME, {".EVAL.VAL_LIMIT": 2} | once, run="whole")
    whole.train()  # with a validation before the test
    assert [row["question_id"] for row in rows_of(tmp_path / "whole")] == ["val-0", "val-1", "val-2"]
    assert "style_gap" in whole.further_results


# --- presets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", TRAINED)
def test_twenty_updates_reach_all_that_trains_and_nothing_else(preset: str, make_trainer) -> None:
    many = {"OPTIM.MAX_EPOCH": 5, "DATALOADER.TRAIN_X.BATCH_SIZE": 2, ".GATE.INIT_STD": 0.0}
    trainer = make_trainer(NAME, {".PRESET": preset} | many | NO_TEST | LIVE)
    before, frozen = weights_of(trainer), frozen_hashes(trainer)
    trainer.train()  # the guards stop a run with a parameter whose gradient is 0 in all of 20 updates
    assert not any(torch.equal(before[name], value) for name, value in weights_of(trainer).items())
    assert frozen_hashes(trainer) == frozen
    groups = {group.name.removesuffix("_no_decay") for group in trainer.groups}
    assert groups == set(trainer.system.parts) <= set(PRESETS[preset].trains)


def test_frozen_preset_answers_and_does_not_train(make_trainer, tmp_path: Path, caplog) -> None:
    trainer = make_trainer(NAME, {".PRESET": "frozen"})
    assert not trainer.needs_checkpoint and trainer.get_model_names() == []
    with caplog.at_level(logging.INFO):
        trainer.load_model("")
    assert "Nothing is tuned" in caplog.text
    assert trainer.test() is not None and len(rows_of(tmp_path / "run")) == 6
    with pytest.raises(ValueError, match="PRESET is 'frozen', which trains nothing"):
        trainer.train()
    with pytest.raises(ValueError, match="--model-dir is 'elsewhere'; expected none"):
        trainer.load_model("elsewhere")


def test_other_presets_need_an_adapter(make_trainer) -> None:
    trainer = make_trainer(NAME)
    assert trainer.needs_checkpoint
    with pytest.raises(ValueError, match="PRESET is 'gates_proj', but there is no --model-dir"):
        trainer.load_model("")


@pytest.mark.parametrize("source", ["features", "logits", "label", "static", "zeros", "shuffled"])
def test_every_source_of_style_trains_for_twenty_updates(source: str, make_trainer) -> None:
    DATASET_REGISTRY.register(TinyPainted, force=True)
    many = {"OPTIM.MAX_EPOCH": 5, "DATALOADER.TRAIN_X.BATCH_SIZE": 2, "DATASET.NAME": "TinyPainted"}
    trainer = make_trainer(NAME, {".STYLE.SOURCE": source} | many | NO_TEST)
    trainer.train()
    assert trainer.report.epochs[-1]["losses"]["answers"] > 0
    assert bool(trainer.exempt_from_guard()) is (source == "zeros")


class TinyPainted(TinyQuestions):
    """Questions about pictures whose style is known."""

    def ask(self, path: Path, number: int, split: str) -> Any:
        item = super().ask(path, number, split)
        item.extras["style"] = ("Baroque", "Cubism", "Rococo")[number % 3]
        return item


def test_permuted_styles_are_those_of_other_styles_and_the_true_ones_are_the_control(make_trainer) -> None:
    DATASET_REGISTRY.register(TinyPainted, force=True)
    trainer = make_trainer(NAME, {"DATASET.NAME": "TinyPainted", ".STYLE.SOURCE": "shuffled"})
    seen = []
    answer = trainer._questions
    trainer._questions = lambda batch: seen.append(batch["style"].tolist()) or answer(batch)
    trainer.test()
    true = [trainer.towers.views.style_of(item) for item in trainer.dm.dataset.test]
    asked = [style for batch in seen for style in batch]
    assert all(mine != theirs for mine, theirs in zip(asked[:6], true, strict=True)) and asked[6:] == true


def test_styles_of_the_data_have_to_be_the_encoders(make_trainer) -> None:
    class TinyDada(TinyQuestions):
        changes = {"style": "Dada"}

    DATASET_REGISTRY.register(TinyDada, force=True)
    with pytest.raises(ValueError, match="'Dada' is unknown"):
        make_trainer(NAME, {"DATASET.NAME": "TinyDada", ".STYLE.SOURCE": "label"})


def test_each_control_takes_away_what_it_is_called_after(make_trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else: before and after it, pictures, styles and gates are those of the test."""
    seen, measured = {}, []
    generate, measure = GatedBlip2Model.generate, controls.measure

    def watch(model: Any, tokens: Any, style: Any, *rest: Any) -> Any:
        seen.setdefault(asked[-1], []).append((tokens, style, model.context.is_off))
        return generate(model, tokens, style, *rest)

    def note(names: Any, said: Any, answer: Any, **facts: Any) -> Any:
        measured.append((len(said), facts))
        return measure(names, said, lambda name: asked.append(name) or answer(name), **facts)

    monkeypatch.setattr(GatedBlip2Model, "generate", watch)
    monkeypatch.setattr(controls, "measure", note)
    for source in ("features", "shuffled"):
        asked = ["test"]
        seen.clear()
        trainer = make_trainer(NAME, {".EVAL.CONTROLS": CONTROLS, ".STYLE.SOURCE": source, ".STYLE.DROPOUT": 0.9})
        trainer.test()
        data, (n_said, facts) = trainer.dm.dataset, measured[-1]
        assert n_said == 6 == len(facts["tested"]) and facts["train"] is data.train_x and facts["has_gates"]
        assert facts["is_permuted"] is (source == "shuffled") and len(measured) == (1 if source == "features" else 2)
        parts = {name: [torch.cat(column) for column in list(zip(*rows, strict=True))[:2]] for name, rows in seen.items()}
        tokens, style = parts["test"]
        assert style.ne(0).any(dim=1).all() and tokens.ne(0).any()
        others = parts["shuffled_style"][1]
        assert not style.eq(others).all(dim=1).any()
        assert torch.equal(style.sum(dim=1).sort().values, others.sum(dim=1).sort().values)
        changed = {"no_style": (tokens, style * 0), "no_image": (tokens * 0, style), "ungated": (tokens, style)}
        changed |= {"shuffled_style": (tokens, others)}
        for name, (expected, expected_style) in changed.items():
            assert torch.equal(parts[name][0], expected) and torch.equal(parts[name][1], expected_style), name
            assert {off for *_, off in seen[name]} == {name == "ungated"}, name


def test_cached_rows_stay_right_while_the_cache_grows(make_trainer, tmp_path: Path) -> None:
    """New files may come before older ones, which moves the rows of all loaders."""
    for order in (("val", "test"), ("test", "val")):
        settings = {".EVAL.CONTROLS": (), ".CACHE.DIR": str(tmp_path / order[0])}
        trainer = make_trainer(NAME, settings, run=f"{order[0]} first")
        for split in order:
            trainer.test(split)
        for loader in (trainer.validation_loader, trainer.test_loader):
            assert loader.dataset.rows == trainer.features.rows_of(loader.dataset.data_source)


# --- updates ------------------------------------------------------------------------------------------------------------


def test_one_batch_of_eight_is_two_of_four_and_eight_of_one(make_trainer) -> None:
    class TinyUneven(TinyQuestions):
        """Answers of one to three words: a mean of means would be another gradient."""

        def ask(self, path: Path, number: int, split: str) -> Any:
            item = super().ask(path, number, split)
            item.extras["answers"] = json.dumps([("red", "one two three", "blue")[number % 3]])
            return item

    DATASET_REGISTRY.register(TinyUneven, force=True)
    shared = {
        "DATASET.NAME": "TinyUneven", "OPTIM.NAME": "sgd", "OPTIM.MOMENTUM": 0.0, "OPTIM.MAX_EPOCH": 1,
        ".STYLE.DROPOUT": 0.0, ".MAX_GRAD_NORM": 0.0,
    }  # fmt: skip
    found, losses = [], []
    for size in (8, 4, 1):
        settings = {"DATALOADER.TRAIN_X.BATCH_SIZE": size, ".GRAD_ACCUM": 8 // size, ".CACHE.ENABLE": size == 8}
        trainer = make_trainer(NAME, shared | settings | NO_TEST, run=f"run{size}")
        trainer.train()
        found.append({name: parameter.grad.clone() for name, parameter in trainer.adapt.named_parameters()})
        losses.append(trainer.report.epochs[0]["losses"]["answers"])
    assert any(grad.abs().max() > 1e-3 for grad in found[0].values())
    for other in found[1:]:
        assert max((found[0][name] - other[name]).abs().max().item() for name in other) < 1e-5
    assert losses == pytest.approx(losses[:1] * 3, abs=1e-5)


def test_every_batch_draws_its_own_styles_to_forget(make_trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    draws, style_of = [], GatedSystem.style_of

    def watch(system: GatedSystem, *arguments: Any, **options: Any) -> Any:
        if options.get("training"):
            draws.append(options["generator"].initial_seed())
        return style_of(system, *arguments, **options)

    monkeypatch.setattr(GatedSystem, "style_of", watch)
    make_trainer(NAME, {"OPTIM.MAX_EPOCH": 2, "DATALOADER.TRAIN_X.BATCH_SIZE": 2} | NO_TEST).train()
    assert len(set(draws)) == len(draws) == 8


def test_only_what_trains_is_in_training_mode_and_decays(make_trainer) -> None:
    trainer = make_trainer(NAME, {".PRESET": "original_live", "OPTIM.WEIGHT_DECAY": 0.3, "OPTIM.LR": 0.02})
    mapper, tower = trainer.model.conditioner.prompt_mapper, trainer.model.blip2.vision_model.encoder
    trainer.set_model_mode("train")
    assert mapper.training and not tower.training and not trainer.towers.style_encoder.training
    trainer.set_model_mode("eval")
    assert not mapper.training
    rates = {group["name"]: (group["weight_decay"], group["initial_lr"]) for group in trainer.optim.param_groups}
    assert rates["prompt_mapper"] == (0.3, 0.02) and rates["qformer"] == (0.3, pytest.approx(0.002))
    assert rates["qformer_no_decay"] == (0.0, pytest.approx(0.002))
    assert trainer.identity()["PRESET"] == "original_live"


@pytest.mark.parametrize("accumulated", [1, 2, 3, 8])
def test_cosine_ends_with_the_last_update_and_a_short_window_is_flushed(accumulated: int, make_trainer) -> None:
    settings = {"DATALOADER.TRAIN_X.BATCH_SIZE": 1, ".GRAD_ACCUM": accumulated, "OPTIM.MAX_EPOCH": 2}
    trainer = make_trainer(NAME, settings | NO_TEST)
    rates, inner = [], trainer.after_update
    trainer.after_update = lambda: rates.append(trainer.optim.param_groups[0]["lr"]) or inner()
    trainer.train()
    assert len(rates) == 2 * -(-8 // accumulated)
    assert trainer.optim.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12) and rates[-1] > 0


def test_bf16_on_the_cpu_passes_without_a_warning_of_torch(make_trainer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.filterwarnings("error", category=DeprecationWarning, module="torch")
        trainer = make_trainer(NAME, {".PREC": "bf16", ".PRESET": "qformer", "OPTIM.MAX_EPOCH": 1} | NO_TEST)
        trainer.train()
    assert {parameter.dtype for parameter in trainer.adapt.parameters()} == {torch.float32}


# --- sizes and data -----------------------------------------------------------------------------------------------------


def test_large_files_train_at_the_models_size(tiny_world: Path, make_trainer) -> None:
    class TinyLarge(TinyQuestions):
        """Pictures of 384 x 384 px."""

        def ask(self, path: Path, number: int, split: str) -> Any:
            large = path.parents[2] / "large" / f"{split} {path.name}"
            large.parent.mkdir(exist_ok=True)
            Image.open(path).resize((384, 384)).save(large)
            return super().ask(large, number, split)

    DATASET_REGISTRY.register(TinyLarge, force=True)
    trainer = make_trainer(NAME, {"DATASET.NAME": "TinyLarge", "OPTIM.MAX_EPOCH": 1} | NO_TEST | LIVE)
    assert next(iter(trainer.test_loader))["img"].shape[1:] == (3, 16, 16)
    trainer.train()


def test_another_size_has_to_fit_and_to_be_asked_for(make_trainer) -> None:
    with pytest.raises(ValueError, match="INPUT.SIZE is 20 px.*16 or 24"):
        make_trainer(NAME, {"INPUT.SIZE": (20, 20)})
    with pytest.raises(ValueError, match="INTERPOLATE_POS True"):
        make_trainer(NAME, {"INPUT.SIZE": (24, 24)})
    trainer = make_trainer(NAME, {"INPUT.SIZE": (24, 24), ".INTERPOLATE_POS": True, "OPTIM.MAX_EPOCH": 1} | NO_TEST)
    trainer.train()
    assert trainer.loaded.n_tokens == 10


def test_data_set_without_questions_is_refused(make_trainer) -> None:
    with pytest.raises(ValueError, match="TinyColours: its items have no answers, question; GatedBLIP2 answers questions"):
        make_trainer(NAME, {"DATASET.NAME": "TinyColours"})


def test_long_questions_are_cut_and_counted(make_trainer, caplog) -> None:
    with caplog.at_level(logging.INFO):
        trainer = make_trainer(NAME, {".PROMPT.MAX_QUESTION_TOKENS": 3, "OPTIM.MAX_EPOCH": 1} | NO_TEST)
        trainer.train()
    assert "which are cut: 8" in caplog.text and trainer.report.facts["questions_cut"] == 8


# --- stored models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "folders", "resumable"), [
    ("all", {"epoch-1", "epoch-2", "best", "last"}, 2), ("best_last", {"best", "last"}, 1), ("best", {"best"}, 1),
    ("last", {"last"}, 1),
])  # fmt: skip
def test_kept_epochs_follow_the_key(keep: str, folders: set[str], resumable: int, make_trainer, tmp_path: Path) -> None:
    tested = "last_step" if keep == "last" else "best_val"
    make_trainer(NAME, {".CHECKPOINT.KEEP": keep, "TEST.FINAL_MODEL": tested, ".EVAL.CONTROLS": ()}).train()
    assert {path.name for path in (tmp_path / "run" / "adapter").iterdir() if not path.name.startswith(".")} == folders
    assert len(list((tmp_path / "run" / "gated_blip2").glob("model.pth.tar-*"))) == resumable


def test_building_says_what_was_built(make_trainer, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        make_trainer(NAME)
    for words in ("reference total", "Parameters\npart", "Memory of an update", "Trainable: gate_heads"):
        assert words in caplog.text, words
    assert not (tmp_path / "run" / "trainable_parameters.txt").exists()
