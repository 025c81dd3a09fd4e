"""Every key below the node of a CLIP trainer changes something that can be seen, or is refused: no dead keys.

The language systems have tests of the same kind in their own folders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
from tiny_moods import TinyMoods
from tiny_world import TinyColours, build, is_language_system, make_cfg, test_logits
from yacs.config import CfgNode

import trainers
from trainers.prediction.rows import predict_images

CLIP_TRAINERS = [name for name in trainers.__all__ if not is_language_system(name)]
CLASSNAMES = ("dark_red", "bright_green", "blue")
MOODY = {"DATASET.NAME": TinyMoods.__name__, ".MODE": "supervised"}
DUAL = MOODY | {".DUAL.ENABLED": True}
SYNTHETIC = DUAL | {".DUAL.STRATEGY": "strategy1"}
NAMED = {"DATASET.NAME": "TinyUnderscores"}
DESCRIBED = NAMED | {".TEXT.MODE": "lafter", ".TEXT.DESCRIPTIONS": "<folder>/sentences.json"}
PATIENT = {"OPTIM.MAX_EPOCH": 4, ".PROGRESSIVE": True, ".PROGRESSIVE_WARMUP": 1, ".PROGRESSIVE_EPOCHS": 1}
RAMP = {"OPTIM.MAX_EPOCH": 3, ".SCHEDULER": "warmup_constant", ".WARMUP_EPOCHS": 1}

# Key -> values, of which one has to act, and the settings that both runs share.
CHANGES: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "PREC": (("bf16",), {}),
    "UNSURE_BELOW": ((0.0, 1.0), {}),
    "MODE": (("supervised",), {}),
    "PHASE": (("text_only",), {}),
    "SELECT": (("proxy",), {}),
    "REPORT_TEST_MAX": ((True,), {}),
    "TEACHER": (("self",), {"OPTIM.LR": 0.05, "OPTIM.MAX_EPOCH": 3}),
    "EMA_DECAY": ((0.5,), {".TEACHER": "ema"}),
    "DIST_ALIGN": (("uniform",), {}),
    "CLASS_SHARES": (([0.1, 0.1, 0.8],), {".DIST_ALIGN": "shares", ".CLASS_SHARES": [0.8, 0.1, 0.1]}),
    "CONF_THRESHOLD": ((0.9,), {}),
    "KEEP_SHARE": ((0.5,), {}),
    "LABEL_SMOOTHING": ((0.3,), {}),
    "FEAT_NORM": (("l2", "none"), {}),
    "SCALE_INIT": ((20.0,), {".FEAT_NORM": "l2"}),
    "CLASSIFIER_INIT": (("text_mean",), {}),
    "DUAL.ENABLED": ((True,), MOODY),
    "DUAL.LAMBDA": ((0.3,), DUAL),
    "DUAL.TEMPERATURE": ((2.0,), DUAL),
    "DUAL.LOSS": (("kl",), DUAL),  # the gradients are equal, the losses are not
    "DUAL.HEADS": (("dual",), DUAL),
    "DUAL.STRATEGY": (("strategy1",), DUAL),
    "DUAL.SIGMA": ((2.0,), SYNTHETIC),
    "DUAL.EPSILON": ((0.5,), SYNTHETIC),
    "DUAL.RING": ((["awe", "joy", "fear", "anger"],), SYNTHETIC),
    "DUAL.MISSING": (("onehot",), DUAL),
    "TEXT.MODE": (("cls_only",), {}),
    "TEXT.TEMPLATES": (("<folder>/templates.json",), {}),
    "TEXT.DESCRIPTIONS": (("<folder>/others.json",), DESCRIBED),
    "TEXT.CLEAN": ((False,), DESCRIBED),
    "TEXT.ON_MISSING": (("templates",), DESCRIBED | {".TEXT.DESCRIPTIONS": "<folder>/gaps.json"}),
    "TEXT.DESCRIPTOR_FORMAT": (("a {class} with {descriptor}.",), DESCRIBED),
    "TEXT.KEEP_UNDERSCORES": ((True,), NAMED),
    "TEXT.CACHE_DIR": (("<folder>/elsewhere",), {}),
    "TEXT.EPOCHS": ((3,), {}),
    "TEXT.NOISE_STD": ((0.5,), {}),
    "TEXT.BALANCE": ((False,), DESCRIBED),
    "PROMPT_TOKENS": ((5,), {}),
    "PROMPT_MODE": (("accumulate",), {}),
    "PROGRESSIVE": ((False,), PATIENT),
    "PROGRESSIVE_WARMUP": ((2,), PATIENT),
    "PROGRESSIVE_EPOCHS": ((2,), PATIENT),
    "STAGE_SCHEME": (("even", "cascadeclip"), {}),
    "STAGES": (([[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 12]],), {}),
    "READOUT": (("shared", "stage"), {}),
    "STAGE_CLASSIFIER": (("copy",), {}),
    "NGA_MODE": (("mean",), {}),
    "NGA_OFFSET": ((1,), {}),
    "NGA_SIGMA_INIT": ((2.0,), {}),
    "NGA_SIGMA_MIN": ((0.5,), {}),
    "FUSION": (("sum",), {}),
    "FUSION_INIT": (("uniform",), {}),
    "CONS_WEIGHT": ((0.5,), {}),
    "CONS_PAIRS": (("to_last",), {}),
    "CONS_DETACH": ((False,), {}),
    "DEEP_SUPERVISION": ((0.5,), {}),
    "SCHEDULER": (("warmup_cosine",), RAMP),
    "SCHEDULER_STEP": (("update",), RAMP),
    "WARMUP_EPOCHS": ((2,), RAMP),
    "ADAPTER_LR_MULT": ((2.0,), {}),
    "NGA_LR_MULT": ((0.5,), {".FEAT_NORM": "l2"}),
    "LN_DECAY": ((True,), {}),
    "GRAD_CKPT": ((True,), {}),
    "GRAD_ACCUM": ((2,), {}),
    "MAX_GRAD_NORM": ((1e-3,), {}),
    "AUGMENT": (("none",), {}),
    "AUGMENT_RECIPE": (("glyphs",), {}),
    "AUGMENT_DEVICE": (("gpu",), {}),
    "CACHE_IMAGES": (("ram",), {}),
    "CACHE_SIDE": ((16,), {".CACHE_IMAGES": "ram"}),
    "CACHE_MAX_GB": ((1e-9,), {".CACHE_IMAGES": "ram"}),
}


class TinyUnderscores(TinyColours):
    """`TinyColours` whose class names have underscores."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        for item in (*self.train_x, *self.val, *self.test):
            item._classname = CLASSNAMES[item.label]
        DatasetBase.__init__(self, train_x=self.train_x, val=self.val, test=self.test)


if "TinyUnderscores" not in DATASET_REGISTRY.registered_names():
    DATASET_REGISTRY.register(TinyUnderscores)


def keys_of(name: str) -> list[str]:
    """Keys of a trainer's node, dotted."""
    cfg = make_cfg(Path(), Path("run"), name)

    def leaves(node: CfgNode, prefix: str = "") -> list[str]:
        found = []
        for key, value in node.items():
            found += leaves(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
        return found

    return leaves(cfg.TRAINER[name.upper()])


def cases() -> list[tuple[str, str]]:
    """Every key on the trainer that has the most, and on another one too where that reads it by code of its own."""
    of_lafter = set(keys_of("LaFTer"))
    stage_keys = [key for key in keys_of("HybridCascadeLaFTer") if key not in of_lafter]
    return [
        # The stage trainers read these for groups and prompts of their own as well.
        *(("LaFTer", key) for key in ("LN_DECAY", "NGA_LR_MULT", "PROMPT_TOKENS")),
        *(("MultiLayerLaFTer", key) for key in keys_of("MultiLayerLaFTer")),
        *(("HybridCascadeLaFTer", key) for key in stage_keys),
        *(("ZeroshotCLIP", key) for key in keys_of("ZeroshotCLIP")),
    ]


def write_texts(folder: Path) -> None:
    """Write the files that text keys name: sentences with one that is dropped, unequal counts, and a gap."""
    templates = {"zeroshot": "a {}.", "templates": ["one {}."], "text_epochs": 20}
    sentences = {"dark red": ["a deep red thing", "red", "a red thing at night"], "bright green": ["a leaf in spring"]}
    contents = {
        "templates": templates,
        "sentences": {"classes": sentences | {"blue": ["a clear sky at noon"]}},
        "others": {"classes": sentences | {"blue": ["the sea in summer"]}},
        "gaps": {"classes": sentences},
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


Observe = Callable[[str, dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def observe(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Observe:
    """Return `observe(trainer, overrides)`: what a short run with a cold cache leaves; equal runs are made once."""
    numbers, known = count(), {}

    def run(name: str, overrides: dict[str, Any]) -> dict[str, Any]:
        words = repr((name, sorted(overrides.items())))
        if words not in known:
            folder = tmp_path_factory.mktemp(f"keys{next(numbers)}")
            write_texts(folder)
            settings = {"OPTIM.MAX_EPOCH": 1, "TEST.NO_TEST": True}
            settings |= {} if name == "ZeroshotCLIP" else {".WARMUP_EPOCHS": 0}
            settings |= {k: v.replace("<folder>", str(folder)) if isinstance(v, str) else v for k, v in overrides.items()}
            known[words] = traces_of(tiny_world, folder, name, settings)
        return known[words]

    return run


def traces_of(world: Path, folder: Path, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run, and return all that a user could notice; nothing here depends on time or place."""
    recomputed = []
    with pytest.MonkeyPatch.context() as patch:
        inner = torch.utils.checkpoint.checkpoint
        patch.setattr("clip_ext.vision.recompute", lambda *args, **kw: recomputed.append(1) or inner(*args, **kw))
        try:
            trainer = build(make_cfg(world, folder / "run", name, settings))
            trainer.train()
        except ValueError as error:
            return {"error": str(error)}
    paths = [item.impath for item in trainer.dm.dataset.test]
    found = {
        "rows": list(predict_images(trainer, paths, trainer.classnames)),
        "logits": test_logits(trainer).tolist(),
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*") if "tensorboard" not in str(path)),
    }
    if name == "ZeroshotCLIP":
        return found
    return found | {
        "weights": {key: value.numpy().tobytes() for key, value in trainer.adapt.state_dict().items()},
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in trainer.optim.param_groups],
        "report": trainer.report.rows,
        "state": [repr(trainer.extra_state()["test_max"]), *(t.tolist() for t in trainer.extra_state()["ema"] or [])],
        "reader": type(trainer.train_loader_x.dataset.read).__name__,
        "recomputed": bool(recomputed),
    }


def context_of(name: str, key: str) -> dict[str, Any]:
    """Settings that both runs share, as far as the trainer has them."""
    keys = set(keys_of(name))
    return {k: v for k, v in CHANGES[key][1].items() if not k.startswith(".") or k[1:] in keys}


def test_every_key_has_a_change_and_every_change_a_key() -> None:
    assert {key for name in CLIP_TRAINERS for key in keys_of(name)} == {key for _, key in cases()} == set(CHANGES)


@pytest.mark.parametrize(("name", "key"), cases())
def test_defect_26_a_key_changes_something_or_raises(name: str, key: str, observe: Observe, tmp_path: Path) -> None:
    shared = context_of(name, key)
    before = observe(name, shared)
    found = [observe(name, shared | {f".{key}": value}) for value in CHANGES[key][0]]
    assert any("error" not in run for run in (before, *found))
    # A value that another trainer knows is refused here; it says nothing while a further one runs.
    compared = [after for after in found if "error" not in after] or found
    assert any(after != before for after in compared), f"{key} does nothing: {CHANGES[key][0]} with {shared}"


@pytest.mark.parametrize("name", CLIP_TRAINERS)
def test_two_equal_runs_leave_the_same(name: str, observe: Observe) -> None:
    assert observe(name, {}) == observe(name, {"TRAIN.PRINT_FREQ": 3})
