"""Every key below TRAINER.GATEDBLIP2 changes something that can be seen, or is refused: no dead keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dassl.data.datasets import DATASET_REGISTRY
from tiny_questions import TinyQuestions
from tiny_world import build, make_cfg, node_of

from trainers import recomputing
from trainers.config_merge import flatten
from trainers.gated_blip2.answering import Answerer
from trainers.gated_blip2.model import GatedBlip2Model
from trainers.mid_epoch import MidEpoch

NAME = "GatedBLIP2"
RATES = {"OPTIM.MAX_EPOCH": 3, "TEST.NO_TEST": True}
BEST = {"TEST.FINAL_MODEL": "best_val"}
BEAMS = {".GEN.NUM_BEAMS": 3}
UNTESTED = {"TEST.NO_TEST": True}

# Key -> values, of which one has to act, and the settings that both runs share.
CHANGES: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "PRESET": (("qformer",), UNTESTED),
    "PREC": (("bf16",), UNTESTED),
    "QUANT": (("nf4",), UNTESTED),
    "GRAD_CKPT": ((True,), UNTESTED),
    "INTERPOLATE_POS": ((True,), {"INPUT.SIZE": (24, 24)} | UNTESTED),
    "PROMPT.TEMPLATE": (("what is the {question} ?",), UNTESTED),
    "PROMPT.MAX_QUESTION_TOKENS": ((2,), UNTESTED),
    "GATE.SITES": (("k",), UNTESTED),
    "GATE.GRANULARITY": (("head",), UNTESTED),
    "GATE.PHI": (("film",), UNTESTED),
    "GATE.HIDDEN": ((4,), UNTESTED),
    "GATE.LAYERS": (((3,),), UNTESTED),
    "GATE.INIT_STD": ((0.2,), UNTESTED),
    "GATE.BETA_V": ((False,), UNTESTED),
    "GATE.QUESTION": ((True,), UNTESTED),
    "STYLE.ARCH": (("efficientnet_b3",), {".STYLE.SOURCE": "zeros"} | UNTESTED),
    "STYLE.CHECKPOINT": (("tiny_style",), UNTESTED),
    "STYLE.CLASSES_FILE": (("<folder>/classes.json",), {}),
    "STYLE.FALLBACK": (("none",), UNTESTED),
    "STYLE.SOURCE": (("logits",), UNTESTED),
    "STYLE.DROPOUT": ((0.9,), UNTESTED),
    "ANSWER.TRAIN": (("sample",), {"DATASET.NAME": "TinyDisputed"} | UNTESTED),
    "GRAD_ACCUM": ((2,), UNTESTED),
    "MAX_GRAD_NORM": ((1e-4,), {"OPTIM.NAME": "sgd"} | UNTESTED),
    "SCHEDULER": (("constant",), RATES),
    "SCHEDULER_STEP": (("epoch",), RATES),
    "WARMUP_RATIO": ((0.6,), RATES),
    "CACHE.ENABLE": ((False,), UNTESTED),
    "CACHE.DIR": (("<folder>/elsewhere",), UNTESTED),
    "CACHE.SHARD_IMAGES": ((5,), UNTESTED),
    "SAVE_LATEST_PER_EPOCH": ((0,), UNTESTED),
    "CHECKPOINT.KEEP": (("all",), UNTESTED),
    "GEN.NUM_BEAMS": ((3,), {}),
    "GEN.MAX_NEW_TOKENS": ((1,), {}),
    "GEN.LENGTH_PENALTY": ((-20.0, 20.0), BEAMS),
    "EVAL.CONTROLS": ((("no_image",),), {}),
    "EVAL.VAL_LIMIT": ((1,), BEST),
}


class TinyDisputed(TinyQuestions):
    """Every question has two answers."""

    changes = {"answers": json.dumps(["red", "two three"])}


if TinyDisputed.__name__ not in DATASET_REGISTRY.registered_names():
    DATASET_REGISTRY.register(TinyDisputed)

Observe = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def observe(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Observe:
    """Return `observe(overrides)`: what a short run leaves; equal runs are made once."""
    known: dict[str, dict[str, Any]] = {}

    def run(overrides: dict[str, Any]) -> dict[str, Any]:
        words = repr(sorted(overrides.items()))
        if words not in known:
            folder = tmp_path_factory.mktemp(f"keys{len(known)}")
            (folder / "classes.json").write_text('["plain", "striped"]', "utf-8")
            settings = {"OPTIM.MAX_EPOCH": 1, "DATALOADER.TRAIN_X.BATCH_SIZE": 2} | overrides
            settings = {k: v.replace("<folder>", str(folder)) if isinstance(v, str) else v for k, v in settings.items()}
            known[words] = traces_of(tiny_world, folder, settings)
        return known[words]

    return run


def traces_of(world: Path, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Run, and return all that a user could notice; nothing here depends on time or place."""
    events: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        note(patch, recomputing, "checkpoint", lambda *args: events.append("recomputed"))
        note(patch, MidEpoch, "save", lambda *args: events.append("saved"))
        note(patch, Answerer, "answer", lambda self, asked, **kw: events.append((len(asked), kw)))
        note(patch, GatedBlip2Model, "generate", lambda self, tokens, style, text, options: events.append(options))
        try:
            trainer = build(make_cfg(world, folder / "run", NAME, settings))
            trainer.train()
        except ValueError as error:
            return {"error": str(error)}
    answers = folder / "run" / "predictions.jsonl"
    return {
        "events": events,
        "weights": {key: value.numpy().tobytes() for key, value in trainer.adapt.state_dict().items()},
        "losses": [row["losses"] for row in trainer.report.epochs],
        "results": trainer.further_results,
        "answers": [without_place(line) for line in answers.read_text("utf-8").splitlines()] if answers.exists() else [],
        "files": sorted(file_name(path, folder) for path in folder.rglob("*.*") if "tensorboard" not in str(path)),
    }


def note(patch: pytest.MonkeyPatch, owner: Any, name: str, look: Callable[..., None]) -> None:
    """Look at the arguments of every call of a function, which works on as before."""
    inner = getattr(owner, name)

    def call(*args: Any, **kw: Any) -> Any:
        look(*args, **{key: value for key, value in kw.items() if key == "control"})
        return inner(*args, **kw)

    patch.setattr(owner, name, call)


def without_place(line: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(line).items() if name != "impath"}


def file_name(path: Path, folder: Path) -> str:
    """A file's place; the folders and files of a cache have names that are hashes of all that is in them."""
    parts = path.relative_to(folder).parts
    return "/".join("cache" if part.startswith("gated_blip2_features") else part for part in parts)


def test_every_key_has_a_change_and_every_change_a_key() -> None:
    assert {key for key, _ in flatten(node_of(NAME))} == set(CHANGES)


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_changes_something_or_raises(key: str, observe: Observe) -> None:
    values, shared = CHANGES[key]
    before = observe(shared)
    found = [observe(shared | {f".{key}": value}) for value in values]
    assert any("error" not in run for run in (before, *found))
    assert any(after != before for after in found), f"{key} does nothing: {values} with {shared}"


def test_two_equal_runs_leave_the_same(observe: Observe) -> None:
    assert observe({}) == observe({"TRAIN.PRINT_FREQ": 3})
