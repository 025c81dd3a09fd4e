"""BgObjLLaVA as a trainer: whole runs, what they leave, what is built and what is not, resume, stored epochs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY
from tiny_questions import TinyQuestions
from tiny_world import test_logits as logits_of

NAME = "BgObjLLaVA"
LORA = {".TRAIN.SCOPE": "lora", ".LORA.R": 2}
NO_TEST = {"TEST.NO_TEST": True}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]


def weights_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.adapt.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_two_epochs_validate_test_and_leave_every_file(make_trainer, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        trainer = make_trainer(NAME, {"TEST.FINAL_MODEL": "best_val"})
        trainer.train()
    run = tmp_path / "run"
    assert "* accuracy: " in caplog.text and "Cache: 6 requests" in caplog.text
    for folder in ("epoch-1", "epoch-2", "best", "last"):
        names = {path.name for path in (run / "adapter" / folder).iterdir()}
        assert names == {"adapter.safetensors", "adapter.json", "tokenizer"}
    resumable = {path.name for path in (run / "bgobj_llava").iterdir()}
    assert {"model.pth.tar-1", "model.pth.tar-2", "model-best.pth.tar"} <= resumable
    assert not (run / "bgobj_llava" / "latest.pth.tar").exists()
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert [row["epoch"] for row in report["epochs"]] == [1, 2] and len(report["comparison"]) == 1
    assert report["drops"] == {"samples": 8, "dropped": {}} and report["cache"]["requests"] == 6
    assert "projector" in (run / "trainable_parameters.txt").read_text("utf-8")
    assert len(rows_of(run)) == 6 and {"n_bg", "n_obj", "hit", "seconds"} <= set(rows_of(run)[0])
    assert "Memory of an update: about 0.0" in caplog.text
    assert report["memory"]["gradients"] == 4 * sum(row["numbers"] for row in report["parameters"] if row["trainable"])
    assert report["memory"]["activations"] > 0


def test_same_seed_gives_the_same_losses_and_answers_with_and_without_workers(make_trainer, tmp_path: Path) -> None:
    reports = []
    for run, workers in (("one", 0), ("two", 2)):
        trainer = make_trainer(NAME, LORA | {"DATALOADER.NUM_WORKERS": workers}, run=run)
        trainer.train()
        answers = [(row["answer"], row["n_bg"], row["hit"]) for row in rows_of(tmp_path / run)]
        reports.append((trainer.report.epochs, answers))
    assert reports[0] == reports[1]
    other = make_trainer(NAME, LORA | {"SEED": 2} | NO_TEST, run="three")
    other.train()
    assert other.report.epochs != reports[0][0]


def test_test_batches_hold_what_the_evaluator_needs(make_trainer) -> None:
    trainer = make_trainer(NAME)
    batches = [trainer.parse_batch_test(batch) for batch in trainer.test_loader]
    targets = [target for _, rows in batches for target in rows]
    assert [target["question_id"] for target in targets] == [f"test-{number}" for number in range(6)]
    assert targets[1]["answers"] == ["two"] and targets[1]["question_type"] == "count" and "style" not in targets[1]
    assert sum(len(asked.questions) for asked, _ in batches) == 6


def test_validation_answers_belong_to_validation_questions(make_trainer, tmp_path: Path) -> None:
    make_trainer(NAME).test("val")
    assert [row["question_id"] for row in rows_of(tmp_path / "run")] == ["val-0", "val-1", "val-2"]


# --- what is built ------------------------------------------------------------------------------------------------------

EVERYTHING_ELSE = {
    ".FUSION.LAYERS": 2, ".SEP.STYLE": "single", ".POSITION": "raster", ".PROJECTOR": "separate", ".DET.BACKEND": "random",
    ".MASK.OVERLAP_RING": 1, ".CLS": "none", ".VIT_EVAL": "mask", ".VIS.EVERY": 1,
}  # fmt: skip


def test_without_a_split_nothing_else_is_built_and_answers_are_the_bases(make_trainer, tmp_path: Path) -> None:
    plain = make_trainer(NAME, {".SPLIT": "none"}, run="plain")
    full = make_trainer(NAME, {".SPLIT": "none"} | EVERYTHING_ELSE, run="full")
    for trainer in (plain, full):
        assert trainer.finder is None and trainer.model.fusion is None and trainer.model.separators is None
        assert [group.name for group in trainer.groups] == ["projector"]
        trainer.test()
    assert torch.equal(logits_of(plain), logits_of(full))
    answers = [[row["answer"] for row in rows_of(tmp_path / run)] for run in ("plain", "full")]
    assert answers[0] == answers[1]
    assert not (tmp_path / "full" / "panels").exists()
    assert all(row["n_bg"] == 0 and row["hit"] == "" and row["miss"] == "" for row in rows_of(tmp_path / "full"))


def test_without_a_split_training_works(make_trainer) -> None:
    trainer = make_trainer(NAME, {".SPLIT": "none"} | NO_TEST)
    before = weights_of(trainer)
    trainer.train()
    assert not any(torch.equal(before[name], value) for name, value in weights_of(trainer).items())


GROUPS = {
    "projector": ({}, {"projector": 1.0, "separators": 1.0}),
    "fusion": ({".TRAIN.SCOPE": "fusion_projector", ".FUSION.LAYERS": 1}, {"projector": 1.0, "separators": 1.0, "fusion": 0.2}),
    "fusion that does not train": ({".FUSION.LAYERS": 1}, {"projector": 1.0, "separators": 1.0}),
    "last": ({".TRAIN.SCOPE": "last_k", ".TRAIN.LAST_K": 1}, {"projector": 1.0, "separators": 1.0, "llm_last": 1.0}),
    "lora": (LORA, {"projector": 0.1, "separators": 1.0, "lora": 1.0}),
    "lora and fusion": (
        LORA | {".FUSION.LAYERS": 1}, {"projector": 0.1, "separators": 1.0, "fusion": 0.2, "lora": 1.0},
    ),
    "full": ({".TRAIN.SCOPE": "full"}, {"projector": 1.0, "separators": 1.0, "llm": 1.0}),
}  # fmt: skip


@pytest.mark.parametrize("case", GROUPS)
def test_scope_names_its_groups_and_their_rates(case: str, make_trainer) -> None:
    overrides, expected = GROUPS[case]
    trainer = make_trainer(NAME, overrides)
    assert {group.name: group.lr_mult for group in trainer.groups} == expected
    assert not any(p.requires_grad for p in trainer.model.llava.model.vision_tower.parameters())


@pytest.mark.parametrize("case", ["projector", "fusion", "last", "lora"])
def test_a_few_updates_change_the_groups_of_the_scope_only(case: str, make_trainer) -> None:
    shared = {".SCHEDULER": "constant", "OPTIM.MAX_EPOCH": 3, ".AUG.P_FULL": 0.0} | NO_TEST
    trainer = make_trainer(NAME, GROUPS[case][0] | shared)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(trainer.adapt.state_dict())
    assert (case == "lora") == any("lora_" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)


@pytest.mark.parametrize("case", ["lora and fusion", "full"])
def test_every_scope_runs_in_bf16_with_fp32_trainables(case: str, make_trainer) -> None:
    trainer = make_trainer(NAME, GROUPS[case][0] | {".PREC": "bf16", ".GRAD_CKPT": True})
    trainer.train()
    assert {p.dtype for p in trainer.adapt.parameters()} == {torch.float32}
    assert next(trainer.model.llava.model.vision_tower.parameters()).dtype == torch.bfloat16


def test_mode_reaches_the_model_but_not_the_vision_tower(make_trainer) -> None:
    trainer = make_trainer(NAME, LORA | {".LORA.DROPOUT": 0.5})
    dropouts = [module for name, module in trainer.model.named_modules() if name.endswith("lora_dropout.default")]
    trainer.set_model_mode("train")
    assert dropouts and all(module.training for module in dropouts)
    assert not trainer.model.llava.model.vision_tower.training
    trainer.set_model_mode("eval")
    assert not any(module.training for module in trainer.model.modules())


def test_building_says_what_was_built(make_trainer, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        make_trainer(NAME)
    for words in (
        "LlavaForConditionalGeneration", "4 x 4 patches of 14 px", "Loaded vision_tower: ", "in all  ", "sep_style='pairs'",
    ):  # fmt: skip
        assert words in caplog.text, words
    assert not (tmp_path / "run" / "trainable_parameters.txt").exists()


def test_random_weights_are_said_loudly(make_trainer, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        make_trainer(NAME, {"MODEL.BACKBONE.PRETRAINED": False})
    assert "RANDOM WEIGHTS" in caplog.text


# --- data ---------------------------------------------------------------------------------------------------------------


def registered(name: str, **changes: Any) -> str:
    """Register a variant of TinyQuestions; returns its name."""
    if name not in DATASET_REGISTRY.registered_names():
        DATASET_REGISTRY.register(type(name, (TinyQuestions,), {"changes": changes}))
    return name


def test_unusable_samples_beyond_the_limit_stop_the_run(make_trainer) -> None:
    name = registered("TinyUnanswered", answers="[]")
    with pytest.raises(ValueError, match=r"8 of 8 training samples .*empty answer: 8.*DATA.MAX_DROP 0.01"):
        make_trainer(NAME, {"DATASET.NAME": name})


def test_sequence_limit_counts_the_image(make_trainer) -> None:
    with pytest.raises(ValueError, match="longer than MAX_LEN 40 tokens: 8"):
        make_trainer(NAME, {".MAX_LEN": 40})


def test_data_set_without_questions_is_refused(make_trainer) -> None:
    with pytest.raises(ValueError, match="TinyColours: its items have no answers, boxes, question"):
        make_trainer(NAME, {"DATASET.NAME": "TinyColours"})


def test_images_without_boxes_are_an_error_or_counted(make_trainer, caplog) -> None:
    name = registered("TinyBoxless", boxes="")
    with pytest.raises(ValueError, match="the data set says nothing about objects"):
        make_trainer(NAME, {"DATASET.NAME": name}).test()
    with caplog.at_level(logging.INFO):
        make_trainer(NAME, {"DATASET.NAME": name, ".DET.MISSING": "no_detection"}, run="two").test()
    assert "No object was found for 6 of 6 questions" in caplog.text


def test_conversations_of_several_turns_train_on_every_answer(make_trainer) -> None:
    turns = [["what is it?", "circle"], ["how many?", "two"]]
    trainer = make_trainer(NAME, {"DATASET.NAME": registered("TinyTalks", turns=json.dumps(turns))} | NO_TEST)
    batch = trainer.parse_batch_train(next(iter(trainer.dm.train_loader_x)))
    assert {int((text.labels != -100).sum()) for text in batch.texts} == {4}  # circle </s> two </s>
    trainer.train()


def test_panels_are_drawn_for_every_nth_sample(make_trainer, tmp_path: Path) -> None:
    make_trainer(NAME, {".VIS.EVERY": 4, ".VIS.DIR": str(tmp_path / "seen")}).test()
    names = [f"00000{number}.{ending}" for number in (0, 4) for ending in ("json", "png")]
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == names
    facts = json.loads((tmp_path / "seen" / "000004.json").read_text("utf-8"))
    assert facts["question"] == "what colour is the circle?" and "answer" in facts


# --- stored models ------------------------------------------------------------------------------------------------------


def test_base_is_evaluated_without_a_model_and_says_so(make_trainer, caplog) -> None:
    trainer = make_trainer(NAME)
    before = weights_of(trainer)
    with caplog.at_level(logging.INFO):
        trainer.load_model("", epoch=None)
    assert "the base weights of" in caplog.text and equal(before, weights_of(trainer))
    assert not trainer.needs_checkpoint


def test_every_epoch_can_be_loaded_and_the_first_one_while_the_second_trains(make_trainer, tmp_path: Path) -> None:
    trainer, seen = make_trainer(NAME, NO_TEST), {}
    start = trainer.before_epoch

    def before_epoch() -> None:
        start()
        if trainer.epoch == 1:
            reader = make_trainer(NAME, run="reader")
            reader.load_model(str(tmp_path / "run"), epoch=1)
            seen.update(weights_of(reader))
            assert equal(seen, weights_of(trainer))

    trainer.before_epoch = before_epoch
    trainer.train()
    assert seen and not equal(seen, weights_of(trainer))
    reader = make_trainer(NAME, run="reader")
    reader.load_model(str(tmp_path / "run"))
    assert equal(weights_of(reader), weights_of(trainer)) and torch.equal(logits_of(reader), logits_of(trainer))
    assert reader.notes == ()


def test_model_of_other_shapes_is_refused_with_every_difference(make_trainer, tmp_path: Path) -> None:
    make_trainer(NAME, {"OPTIM.MAX_EPOCH": 1} | NO_TEST).train()
    other = make_trainer(NAME, {".SEP.STYLE": "single", ".PROJECTOR": "separate", ".POSITION": "raster"}, run="other")
    with pytest.raises(ValueError) as caught:
        other.load_model(str(tmp_path / "run"))
    assert "SEP.STYLE: stored 'pairs', now 'single'" in str(caught.value)
    assert "PROJECTOR: stored 'shared', now 'separate'" in str(caught.value) and "POSITION" not in str(caught.value)


@pytest.mark.parametrize(("keep", "folders", "resumable"), [
    ("all", {"epoch-1", "epoch-2", "best", "last"}, 2), ("best_last", {"best", "last"}, 1), ("best", {"best"}, 1),
    ("last", {"last"}, 1),
])  # fmt: skip
def test_kept_epochs_follow_the_key(keep: str, folders: set[str], resumable: int, make_trainer, tmp_path: Path) -> None:
    tested = "last_step" if keep == "last" else "best_val"
    make_trainer(NAME, {".CHECKPOINT.KEEP": keep, "TEST.FINAL_MODEL": tested, ".CACHE.MODE": "none"}).train()
    assert {path.name for path in (tmp_path / "run" / "adapter").iterdir() if not path.name.startswith(".")} == folders
    assert len(list((tmp_path / "run" / "bgobj_llava").glob("model.pth.tar-*"))) == resumable


class Killed(RuntimeError):
    """Stands for the end of a process."""


@pytest.mark.parametrize("batch", [2, 5], ids=["inside the first epoch", "inside the second"])
def test_killed_run_goes_on_as_if_nothing_had_happened(batch: int, make_trainer, tmp_path: Path) -> None:
    settings = LORA | {".LORA.DROPOUT": 0.3, "DATALOADER.TRAIN_X.BATCH_SIZE": 2, ".SAVE_LATEST_PER_EPOCH": 3} | NO_TEST
    whole = make_trainer(NAME, settings, run="whole")
    whole.train()
    parts = make_trainer(NAME, settings, run="parts")
    learn, batches = parts.compute_losses, []

    def compute_losses(found: Any) -> Any:
        batches.append(1)
        if len(batches) > batch:
            raise Killed
        return learn(found)

    parts.compute_losses = compute_losses
    with pytest.raises(Killed):
        parts.train()
    resumed = make_trainer(NAME, settings, run="parts")
    resumed.train()
    assert equal(weights_of(whole), weights_of(resumed))
    assert resumed.report.epochs == whole.report.epochs


# --- updates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["projector", "lora"])
def test_one_batch_of_eight_is_two_of_four_and_checkpointing_changes_nothing(scope: str, make_trainer) -> None:
    shared = {".TRAIN.SCOPE": scope, ".LORA.DROPOUT": 0.0, ".MAX_GRAD_NORM": 0.0, "OPTIM.NAME": "sgd", "OPTIM.MOMENTUM": 0.0}
    shared |= {".SCHEDULER": "constant", "OPTIM.MAX_EPOCH": 1} | NO_TEST
    found = []
    for number, more in enumerate([
        {"DATALOADER.TRAIN_X.BATCH_SIZE": 8},
        {"DATALOADER.TRAIN_X.BATCH_SIZE": 4, ".GRAD_ACCUM": 2},
        {"DATALOADER.TRAIN_X.BATCH_SIZE": 8, ".GRAD_CKPT": True},
    ]):  # fmt: skip
        trainer = make_trainer(NAME, shared | more, run=f"run{number}")
        trainer.train()
        found.append({name: p.grad.clone() for name, p in trainer.adapt.named_parameters()})
    assert any(grad.abs().max() > 1e-3 for grad in found[0].values())
    for other in found[1:]:
        assert max((found[0][name] - other[name]).abs().max().item() for name in other) < 1e-6


def test_detached_projector_and_silent_losses_stop_the_run(make_trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {"OPTIM.MAX_EPOCH": 11, "TRAIN.CHECKPOINT_FREQ": 0} | NO_TEST
    trainer = make_trainer(NAME, shared, run="one")
    project = trainer.model._project
    monkeypatch.setattr(trainer.model, "_project", lambda *args: [rows.detach() for rows in project(*args)])
    with pytest.raises(RuntimeError, match="does not reach in any of the first 20 updates: .*multi_modal_projector"):
        trainer.train()
    trainer = make_trainer(NAME, shared, run="two")
    learn = trainer.compute_losses

    def silent(batch: Any) -> Any:
        losses = learn(batch)
        return type(losses)({name: 0 * value for name, value in losses.losses.items()}, losses.weight)

    trainer.compute_losses = silent
    with pytest.raises(RuntimeError, match="0 in 20 updates in a row|gradient was 0 in all of the first 20"):
        trainer.train()


def test_no_background_is_cached_while_training(make_trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers.bgobj_llava.cache.background_cache import BackgroundCache

    asked: list[bool] = []
    look_up = BackgroundCache.look_up
    monkeypatch.setattr(BackgroundCache, "look_up", lambda *args: asked.append(trainer.model.training) or look_up(*args))
    trainer = make_trainer(NAME, {"TEST.FINAL_MODEL": "best_val"})
    trainer.train()
    assert asked == [False] * (2 * 3 + 6)  # two validations, one test


def test_each_test_starts_with_an_empty_cache(make_trainer, tmp_path: Path) -> None:
    trainer = make_trainer(NAME)
    trainer.test()
    first = [row["hit"] for row in rows_of(tmp_path / "run")]
    trainer.test()
    assert [row["hit"] for row in rows_of(tmp_path / "run")] == first
