"""ViECap as a trainer: whole runs, what they leave, what is never opened, how the rate moves, what is refused."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY
from tiny_captions import TinyCaptions

from clip_ext.weights import compute_fingerprint
from trainers.viecap import prepare
from trainers.viecap.corpus import Corpus

NAME = "ViECap"
SHORT = {"OPTIM.MAX_EPOCH": 1, "TEST.NO_TEST": True}
BEST = {"TEST.FINAL_MODEL": "best_val"}


class TinyUntrained(TinyCaptions):
    """Captions to be compared with, none to learn from; as NoCaps, with one class all the same."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._train_x = []


if "TinyUntrained" not in DATASET_REGISTRY.registered_names():
    DATASET_REGISTRY.register(TinyUntrained)


def losses_of(trainer: Any) -> list[float]:
    """Train, and return the loss of every batch."""
    found, inner = [], trainer.compute_losses

    def compute(batch: Any) -> Any:
        losses = inner(batch)
        found.append(losses.losses["caption_loss"].item() / losses.weight)
        return losses

    trainer.compute_losses = compute
    trainer.train()
    return found


def start(trainer: Any) -> list[Any]:
    """Bring a trainer before its first batch; return the batches of the epoch."""
    trainer.before_train()
    trainer.before_epoch()
    trainer.set_model_mode("train")
    return list(trainer.train_loader_x)


# Whole runs -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def best_run(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float], str]:
    """Run folder, losses and log of two epochs that validate and test."""
    from tiny_world import build, make_cfg

    folder = tmp_path_factory.mktemp("viecap") / "run"
    handler, lines = logging.Handler(), []
    handler.emit = lambda record: lines.append(record.getMessage())
    loggers = logging.getLogger("trainers")
    loggers.addHandler(handler)
    level = loggers.level
    loggers.setLevel(logging.INFO)
    try:
        trainer = build(make_cfg(tiny_world, folder, NAME, BEST | {".SAVE_LATEST_PER_EPOCH": 1, ".LOG_PER_EPOCH": 2}))
        losses = losses_of(trainer)
    finally:
        loggers.removeHandler(handler)
        loggers.setLevel(level)
    return folder, losses, "\n".join(lines)


def test_a_run_leaves_the_files_that_prediction_and_resuming_need(best_run) -> None:
    folder, losses, _ = best_run
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert {path.name for path in (folder / "viecap").iterdir()} == {"checkpoint", "model.pth.tar-2"}  # the newest epoch only
    assert sorted(path.name for path in (folder / "weights").iterdir()) == [f"coco_prefix-00{n}.safetensors" for n in (0, 1)]
    assert (folder / "vocabulary.safetensors").is_file() and (folder / "tokenizer" / "tokenizer.json").is_file()
    record = json.loads((folder / "viecap.json").read_text("utf-8"))
    assert [entry["epoch"] for entry in record["epochs"]] == [1, 2] and record["last"] == 2
    scores = [entry["scores"]["CIDEr"] for entry in record["epochs"]]
    assert record["best"] == 1 + scores.index(max(scores))
    assert not (folder / "viecap" / "model-best.pth.tar").exists()  # the export is the best model


def test_a_run_says_what_it_does(best_run) -> None:
    _, losses, log = best_run
    assert "* CIDEr: " in log and "tiny captions: nothing to report" in log
    assert "soft-prompt" not in log and "Soft prompt of 3 tokens, hard prompt of at most 12 tokens" in log
    means = [line.split("mean loss ")[1].split(",")[0] for line in log.splitlines() if ": mean loss " in line]
    assert len(means) == 4 and min(losses) <= float(means[-1]) <= max(losses)
    assert "epoch 2, batch 4 of 4: mean loss" in log and "0 skipped updates" in log


def test_the_same_seed_gives_the_same_losses_and_another_one_others(best_run, make_trainer) -> None:
    settings = BEST | {".SAVE_LATEST_PER_EPOCH": 1, ".LOG_PER_EPOCH": 2}
    assert losses_of(make_trainer(NAME, settings, run="again")) == best_run[1]
    assert losses_of(make_trainer(NAME, settings | SHORT | {"SEED": 2}, run="other")) != best_run[1][:4]


def test_evaluation_scores_the_trained_model_and_opens_neither_corpus_nor_pictures(
    best_run, make_trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("evaluation opens the corpus or a picture")

    monkeypatch.setattr(Corpus, "open_store", refuse)
    monkeypatch.setattr("trainers.viecap.data.read_image", refuse)
    record = json.loads((best_run[0] / "viecap.json").read_text("utf-8"))
    trainer = make_trainer(NAME, run="elsewhere")
    trainer.load_model(str(best_run[0]), epoch=record["best"])
    validated = trainer.test(split="val")
    assert validated == next(entry for entry in record["epochs"] if entry["epoch"] == record["best"])["scores"]["CIDEr"]
    trainer.load_model(str(best_run[0]))
    assert trainer.test(split="val") == validated  # the best one, if no epoch is named
    assert not trainer.clip_source.is_loaded  # everything it needs is stored


def test_pictures_that_are_opened_give_the_captions_of_stored_features(best_run, make_trainer) -> None:
    rows = []
    for stored in (True, False):
        trainer = make_trainer(NAME, {".USING_IMAGE_FEATURES": stored, ".DECODE": "beam", ".BEAM_WIDTH": 2}, run=f"run{stored}")
        trainer.load_model(str(best_run[0]))
        trainer.test()
        files = list(Path(trainer.output_dir, "predictions").glob("*.json"))
        rows.append([row["prediction"] for row in json.loads(files[0].read_text("utf-8"))])
    assert rows[0] == rows[1] and len(rows[0]) == 6


def test_last_step_tests_the_last_epoch_and_notes_the_best(make_trainer, tmp_path: Path) -> None:
    tested = []
    trainer = make_trainer(NAME, {".EVAL.VAL_EVERY": 2, "OPTIM.MAX_EPOCH": 3, ".SAVE_EVERY": 2, ".PREFIX": "text"})
    inner = trainer.test
    trainer.test = lambda split=None: tested.append((trainer.epoch, split)) or inner(split)
    trainer.train()
    assert tested == [(1, "val"), (2, None)]
    record = json.loads((tmp_path / "run" / "viecap.json").read_text("utf-8"))
    assert [bool(entry["scores"]) for entry in record["epochs"]] == [False, True, False]
    assert [entry["file"] for entry in record["epochs"]] == [None, *(f"weights/text-00{n}.safetensors" for n in (1, 2))]
    assert (record["best"], record["last"]) == (2, 3)


def test_validation_is_greedy_and_stops_at_its_limit(make_trainer) -> None:
    trainer = make_trainer(NAME, {".EVAL.VAL_LIMIT": 2, ".DECODE": "beam"})
    trainer.before_train()
    seen = []
    inner = trainer.model_inference
    trainer.model_inference = lambda asked: seen.append((len(asked.rows), trainer._captioner.options.mode)) or inner(asked)
    trainer.test(split="val")
    trainer.test()
    assert seen == [(2, "greedy"), (5, "beam"), (1, "beam")]
    assert len(trainer.val_loader.dataset) == 3


# One step ---------------------------------------------------------------------------------------------------------------------


def test_losses_are_shown_at_print_steps_only_under_both_names(make_trainer) -> None:
    trainer = make_trainer(NAME, SHORT | {"TRAIN.PRINT_FREQ": 2})
    shown = []
    for number, batch in enumerate(start(trainer)):
        trainer.batch_idx = number
        shown.append(trainer.forward_backward(batch))
    assert [summary is None for summary in shown] == [True, False, True, False]
    assert set(shown[1]) == {"loss", "caption_loss"} and shown[1]["loss"] == shown[1]["caption_loss"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_waits_for_the_gpu_between_print_steps(make_trainer) -> None:
    settings = SHORT | {"USE_CUDA": True, "TRAIN.PRINT_FREQ": 50, ".LOG_PER_EPOCH": 0, ".SAVE_LATEST_PER_EPOCH": 0}
    trainer = make_trainer(NAME, settings | {"DATALOADER.TRAIN_X.BATCH_SIZE": 2, ".PREC": "bf16", "OPTIM.MAX_EPOCH": 9})
    trainer.num_batches = 100  # the last batch of an epoch is read
    batches = start(trainer) * 5
    for number, batch in enumerate(batches[:30]):
        trainer.batch_idx = number
        if number == 25:  # the guards of the first updates are over
            torch.cuda.set_sync_debug_mode("error")
        trainer.forward_backward(batch)
    torch.cuda.set_sync_debug_mode("default")


def test_twenty_steps_warm_up_and_decay_without_a_warning_of_the_reference(make_trainer) -> None:
    trainer = make_trainer(NAME, SHORT | {"OPTIM.MAX_EPOCH": 5, ".WARMUP_STEPS": 8, "OPTIM.LR": 0.8})
    rates, inner = [], trainer.model_update
    trainer.model_update = lambda names=None: rates.append(trainer.get_current_lr()) or inner(names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    assert rates == pytest.approx([0.1 * t for t in range(8)] + [0.8 * (20 - t) / 12 for t in range(8, 20)])
    words = ("pkg_resources", "AdamW", "GradScaler", "autocast", "lr_scheduler.step()")
    assert [str(each.message) for each in caught if any(word in str(each.message) for word in words)] == []


def test_optimizer_has_the_recipes_epsilon_no_decay_and_the_fused_kernel(make_trainer) -> None:
    trainer = make_trainer(NAME, {".ADAM_EPS": 1e-5, "OPTIM.WEIGHT_DECAY": 0.1})
    assert type(trainer.optim) is torch.optim.AdamW
    facts = [(group["name"], group["eps"], group["fused"], group["weight_decay"]) for group in trainer.optim.param_groups]
    assert facts == [("mapping_network", 1e-5, True, 0.0), ("language_model", 1e-5, True, 0.0)]


def test_a_frozen_language_model_stays_as_it_is_and_has_no_gradient(make_trainer) -> None:
    trainer = make_trainer(NAME, SHORT | {".FROZEN_GPT": True, "OPTIM.MAX_EPOCH": 5})
    before = compute_fingerprint(trainer.model.language_model.state_dict())
    mapping = compute_fingerprint(trainer.model.mapping.state_dict())
    modes = []
    inner = trainer.compute_losses
    trainer.compute_losses = lambda batch: modes.append(trainer.model.language_model.training) or inner(batch)
    trainer.train()
    assert len(modes) == 20 and not any(modes)
    assert compute_fingerprint(trainer.model.language_model.state_dict()) == before
    assert compute_fingerprint(trainer.model.mapping.state_dict()) != mapping
    assert all(p.grad is None and not p.requires_grad for p in trainer.model.language_model.parameters())
    assert [group["name"] for group in trainer.optim.param_groups] == ["mapping_network"]


def test_dropout_is_at_work_in_training_only(make_trainer) -> None:
    trainer = make_trainer(NAME, SHORT)
    batch = start(trainer)[0]
    losses = [trainer.compute_losses(batch).losses["caption_loss"].item() for _ in range(2)]
    trainer.set_model_mode("eval")
    evaluated = [trainer.compute_losses(batch).losses["caption_loss"].item() for _ in range(2)]
    assert losses[0] != losses[1] and evaluated[0] == evaluated[1]


# What is refused --------------------------------------------------------------------------------------------------------------


def test_a_warm_up_as_long_as_the_run_is_refused_with_both_numbers(make_trainer) -> None:
    trainer = make_trainer(NAME, SHORT | {".WARMUP_STEPS": 4})
    with pytest.raises(ValueError, match=r"WARMUP_STEPS is 4, but the run has 4 optimizer updates"):
        trainer.train()


def test_a_data_set_without_training_captions_evaluates_but_does_not_train(best_run, make_trainer) -> None:
    trainer = make_trainer(NAME, {"DATASET.NAME": "TinyUntrained"})
    trainer.load_model(str(best_run[0]))
    assert trainer.test() >= 0
    with pytest.raises(ValueError, match=r"DATASET.NAME TinyUntrained has no training captions.*CaptionFiles"):
        trainer.train()


@pytest.mark.parametrize("name", ["TinyColours", "TinyQuestions"])
def test_a_data_set_of_another_kind_is_refused_with_what_would_do(name: str, make_trainer) -> None:
    with pytest.raises(ValueError, match=rf"DATASET.NAME {name}: its items have no captions.*CaptionFiles"):
        make_trainer(NAME, {"DATASET.NAME": name})


def test_fewer_captions_than_a_batch_are_refused(make_trainer) -> None:
    trainer = make_trainer(NAME, SHORT | {".DATA_LIMIT": 3})
    with pytest.raises(ValueError, match="3 training captions, less than one batch: DATALOADER.TRAIN_X.BATCH_SIZE is 4"):
        trainer.train()


def test_best_val_without_a_val_split_is_refused(make_trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(NAME, BEST)
    trainer.dm.dataset._val = []
    with pytest.raises(ValueError, match="best_val.*no val split"):
        trainer.train()


def test_a_model_of_other_prompts_or_another_clip_is_refused_with_all_differences(
    best_run, make_trainer, tmp_path: Path
) -> None:
    from tiny_world import clip_config, write_clip

    other = write_clip(tmp_path / "clip", clip_config(), seed=5)
    trainer = make_trainer(NAME, {".SOFT_PROMPT_FIRST": False, ".MAX_NUM_OF_ENTITIES": 3, "MODEL.BACKBONE.NAME": other})
    with pytest.raises(ValueError) as caught:
        trainer.load_model(str(best_run[0]))
    for word in ("3 difference(s)", "SOFT_PROMPT_FIRST", "MAX_NUM_OF_ENTITIES", "MODEL.BACKBONE.NAME"):
        assert word in str(caught.value)


def test_evaluation_without_a_trained_run_is_refused(make_trainer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no ViECap run"):
        make_trainer(NAME).load_model(str(tmp_path))


def test_a_full_gpu_says_what_to_lower(make_trainer) -> None:
    trainer = make_trainer(NAME, SHORT)

    def fail(batch: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    trainer.compute_losses = fail
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.train()
    words = ("2.00 GiB", "PREC bf16", "USING_CLIP_FEATURES", "GRAD_ACCUM 2", "host")
    places = [str(caught.value).index(word) for word in words]
    assert places == sorted(places)


def test_a_test_without_pictures_is_left_out(make_trainer, caplog) -> None:
    trainer = make_trainer(NAME)
    trainer.test_loader = None
    with caplog.at_level(logging.INFO):
        assert trainer.test() is None
    assert "TinyCaptions has no pictures" in caplog.text and "predict.py --model-dir" in caplog.text


# Stores -----------------------------------------------------------------------------------------------------------------------


def test_a_named_store_is_kept_and_refused_for_other_captions(make_trainer, tmp_path: Path) -> None:
    folder = {".STORE_DIR": str(tmp_path / "store")}
    first = make_trainer(NAME, SHORT | folder, run="first")
    first.before_train()
    assert (tmp_path / "store" / "manifest.json").is_file()
    with pytest.raises(ValueError, match=r"TRAINER.VIECAP.STORE_DIR: .*captions is .*a new folder"):
        make_trainer(NAME, SHORT | folder | {".DATA_LIMIT": 8}, run="second").before_train()


def test_a_damaged_automatic_store_is_built_again(make_trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "CACHE_DIR", str(tmp_path / "cache"))
    make_trainer(NAME, SHORT, run="first").before_train()
    (store,) = (tmp_path / "cache").glob("viecap_captions-*")
    whole = (store / "captions.safetensors").read_bytes()
    (store / "captions.safetensors").write_bytes(whole[:-9])
    make_trainer(NAME, SHORT, run="second").before_train()
    assert (store / "captions.safetensors").read_bytes() == whole


def test_the_text_tower_in_every_step_gives_the_losses_of_the_store(make_trainer) -> None:
    stored = losses_of(make_trainer(NAME, SHORT, run="stored"))
    encoded = losses_of(make_trainer(NAME, SHORT | {".USING_CLIP_FEATURES": False}, run="encoded"))
    assert encoded == pytest.approx(stored, rel=1e-3)


def test_what_was_found_in_the_data_is_said_without_training(make_trainer, caplog) -> None:
    with caplog.at_level(logging.INFO):
        make_trainer(NAME, SHORT)
    assert caplog.text.count("tiny captions: nothing to report") == 1
