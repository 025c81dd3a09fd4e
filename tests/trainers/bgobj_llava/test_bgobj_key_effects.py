"""Every key below TRAINER.BGOBJLLAVA changes something that can be seen, or is refused: no dead keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dassl.data.datasets import DATASET_REGISTRY
from PIL import Image
from tiny_questions import TinyQuestions
from tiny_world import build, make_cfg, node_of
from tiny_world import test_logits as logits_of

from clip_ext.file_hashes import hash_file
from trainers import recomputing
from trainers.bgobj_llava import building, checks
from trainers.bgobj_llava.detection import build as detectors
from trainers.bgobj_llava.detection.boxes_file import BoxesWriter, Origin
from trainers.bgobj_llava.detection.detections import Detections
from trainers.bgobj_llava.detection.options import DetectorOptions
from trainers.config_merge import flatten

NAME = "BgObjLLaVA"
LORA = {".TRAIN.SCOPE": "lora", ".LORA.R": 2}
FUSED = {".TRAIN.SCOPE": "fusion_projector", ".FUSION.LAYERS": 1}
GATHER = {".VIT_TRAIN": "gather"}
UNBOXED = {"DATASET.NAME": "TinyUnboxed"}
FILED = UNBOXED | {".DET.FILE": "<folder>/boxes.jsonl"}
CAMERA = {".DET.BACKEND": "bgsub", ".MASK.DILATE": 0}
BEST = {"TEST.FINAL_MODEL": "best_val"}
DISK = {".CACHE.DISK_GIB": 1.0, ".CACHE.DIR": "<folder>/disk"}
STILL = {"DATASET.NAME": "TinyStill"}  # one background, asked about again and again
RATES = {"OPTIM.MAX_EPOCH": 3}

# Key -> values, of which one has to act, and the settings that both runs share.
CHANGES: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "PREC": (("bf16",), {}),
    "ATTN": (("eager",), {}),
    "REVISION": (("elsewhere",), {}),
    "SPLIT": (("none",), {}),
    "VIT_TRAIN": (("gather",), {}),
    "VIT_EVAL": (("mask",), {".CACHE.MODE": "none"}),
    "PROJECTOR": (("separate",), {}),
    "CLS": (("none",), {}),
    "POSITION": (("raster",), {}),
    "IMAGE.ASPECT": (("crop",), {"DATASET.NAME": "TinyWide"}),
    "SEP.STYLE": (("none",), {}),
    "SEP.INIT": (("random",), {}),
    "FUSION.LAYERS": ((2,), FUSED),
    "FUSION.INIT": (("copy",), FUSED),
    "GRAD_CKPT": ((True,), {}),
    "MAX_LEN": ((30,), {}),
    "DET.BACKEND": (("random",), {}),
    "DET.FILE": (("<folder>/boxes.jsonl",), UNBOXED),
    "DET.WEIGHTS": (("<folder>/detector",), {".DET.BACKEND": "rtdetr"}),
    "DET.FRAME": (("model",), {".DET.BACKEND": "rtdetr", ".DET.WEIGHTS": "<folder>/detector"}),
    "DET.MISSING": (("no_detection",), UNBOXED),
    "DET.CONF": ((0.8,), FILED),
    "DET.IOU": ((0.3,), {".DET.BACKEND": "ultralytics", ".DET.WEIGHTS": "<folder>/yolo.pt"}),
    "DET.IMGSZ": ((320,), {".DET.BACKEND": "rtdetr", ".DET.WEIGHTS": "<folder>/detector"}),
    "DET.MAX": ((1,), FILED),
    "DET.CLASSES": ((["-dog"],), FILED),
    "DET.MIN_AREA": ((40.0,), FILED),
    "DET.BGSUB_TAU": ((80.0,), CAMERA),
    "DET.BGSUB_FRAMES": ((1,), CAMERA | {".DET.BGSUB_TAU": 60.0}),
    "DET.REFERENCE": (("<folder>/reference.png",), CAMERA),
    "MASK.RHO": ((1.0,), {".MASK.DILATE": 0}),
    "MASK.DILATE": ((0,), {}),
    "MASK.BLOCK": ((2,), {".MASK.DILATE": 0}),
    "MASK.OVERLAP_RING": ((1,), GATHER),
    "MASK.MAX_OBJ_FRAC": ((0.1,), {}),
    "MASK.OBJECT_MODE": (("single",), FILED),
    "MASK.NO_DETECTION": (("bg_only",), {".DET.BACKEND": "none"}),
    "TRAIN.SCOPE": (("full",), {}),
    "TRAIN.LAST_K": ((2,), {".TRAIN.SCOPE": "last_k", ".TRAIN.LAST_K": 1}),
    "LORA.R": ((3,), LORA),
    "LORA.ALPHA": ((4.0,), LORA),
    "LORA.DROPOUT": ((0.5,), LORA),
    "GRAD_ACCUM": ((2,), {}),
    "MAX_GRAD_NORM": ((1e-4,), {"OPTIM.NAME": "sgd"}),
    "SCHEDULER": (("constant",), RATES),
    "SCHEDULER_STEP": (("epoch",), RATES),
    "WARMUP_RATIO": ((0.6,), RATES),
    "AUG.DILATE_MAX": ((4,), {}),
    "AUG.SPURIOUS_P": ((1.0,), {}),
    "AUG.DROP_P": ((1.0,), {}),
    "AUG.P_FULL": ((1.0,), {}),
    "AUG.BG_JITTER": ((30.0,), {}),
    "DATA.MAX_DROP": ((1.0,), {"DATASET.NAME": "TinyHalfAnswered", ".DATA.MAX_DROP": 0.0}),
    "SAVE_LATEST_PER_EPOCH": ((0,), {"OPTIM.MAX_EPOCH": 1}),
    "CHECKPOINT.KEEP": (("last",), BEST),
    "CACHE.MODE": (("none",), {}),
    "CACHE.MATCH": (("identical", "approx"), STILL),
    "CACHE.TAU": ((200.0,), {".CACHE.MATCH": "approx"}),
    "CACHE.TOPK": ((1,), {".CACHE.MATCH": "approx", ".CACHE.TAU": 60.0, ".MASK.DILATE": 0}),
    "CACHE.ADMIT_AFTER": ((3,), STILL),
    "CACHE.AUDIT_EVERY": ((1,), STILL),
    "CACHE.DEVICE_GIB": ((1e-6,), {}),
    "CACHE.HOST_GIB": ((0.0,), {}),
    "CACHE.DISK_GIB": ((1e-6,), DISK),
    "CACHE.DIR": (("<folder>/elsewhere",), DISK),
    "CACHE.DISK_KV": (("never",), DISK),
    "GEN.MAX_NEW_TOKENS": ((1,), {}),
    "EVAL.OCR_TOKENS": ((True,), {"DATASET.NAME": "TinyRead"}),
    "VIS.EVERY": ((4,), {}),
    "VIS.DIR": (("<folder>/seen",), {".VIS.EVERY": 5}),
}
# Keys that act on a machine with a GPU only; `test_cache_tiers.py` tries host memory with tiers of its own.
GPU_ONLY = {"CACHE.HOST_GIB"}


class TinyHalfAnswered(TinyQuestions):
    """Every other training question has no answer."""

    def ask(self, path: Path, number: int, split: str) -> Any:
        item = super().ask(path, number, split)
        if split == "train" and number % 2:
            item.extras["answers"] = "[]"
        return item


class TinyStill(TinyQuestions):
    """All questions are about one picture; its object is said to grow."""

    def ask(self, path: Path, number: int, split: str) -> Any:
        item = super().ask(path.with_name("0.png"), number, split)
        item.extras["boxes"] = json.dumps([[2, 2, 7, 7 + number % 3]])
        return item


class TinyWide(TinyQuestions):
    """The lower half of every picture."""

    def ask(self, path: Path, number: int, split: str) -> Any:
        wide = path.parents[2] / "wide" / f"{split} {path.name}"
        wide.parent.mkdir(exist_ok=True)
        Image.open(path).crop((0, 16, 32, 32)).save(wide)
        item = super().ask(wide, number, split)
        item.extras["boxes"] = "[[3, 3, 9, 9]]"
        return item


def register(name: str, base: type = TinyQuestions, **changes: Any) -> None:
    if name not in DATASET_REGISTRY.registered_names():
        DATASET_REGISTRY.register(type(name, (base,), {"changes": changes}))


for made in (TinyHalfAnswered, TinyStill, TinyWide):
    register(made.__name__, made)
register("TinyUnboxed", boxes="")
register("TinyRead", ocr_tokens='["one", "red"]')


def write_files(world: Path, folder: Path) -> None:
    """Write what keys name: a side file with two boxes per image, a detector, and the picture of an empty scene."""
    with BoxesWriter(folder / "boxes.jsonl", Origin.of(DetectorOptions(backend="none"), "")) as writer:
        for number, path in enumerate(sorted(world.rglob("colours/*/*.png"))):
            boxes = np.array([[2, 2, 8, 8], [20, 20, 24 + number % 4, 26]], dtype=np.float32)
            found = Detections(boxes, np.array([0.9, 0.6], dtype=np.float32), ["dog", "cat"])
            writer.write(hash_file(path), path.name, (32, 32), found)
    (folder / "yolo.pt").write_bytes(b"weights")
    Image.new("RGB", (32, 32), (160, 60, 60)).save(folder / "reference.png")


Observe = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def observe(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Observe:
    """Return `observe(overrides)`: what a short run leaves; equal runs are made once."""
    known: dict[str, dict[str, Any]] = {}

    def run(overrides: dict[str, Any]) -> dict[str, Any]:
        words = repr(sorted(overrides.items()))
        if words not in known:
            folder = tmp_path_factory.mktemp(f"keys{len(known)}")
            write_files(tiny_world, folder)
            settings = {"OPTIM.MAX_EPOCH": 1, "DATALOADER.TRAIN_X.BATCH_SIZE": 2} | overrides
            settings = {k: v.replace("<folder>", str(folder)) if isinstance(v, str) else v for k, v in settings.items()}
            known[words] = traces_of(tiny_world, folder, settings)
        return known[words]

    return run


def traces_of(world: Path, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Run, and return all that a user could notice; nothing here depends on time or place."""
    recomputed, asked, saved = [], [], []
    with pytest.MonkeyPatch.context() as patch:
        watch_detectors(patch, asked)
        try:
            cfg = make_cfg(world, folder / "run", NAME, settings)
            load = building.load_llava
            patch.setattr(building, "load_llava", lambda *args, **kw: asked.append(kw["revision"]) or load(*args, **kw))
            inner = recomputing.checkpoint
            patch.setattr(recomputing, "checkpoint", lambda *args, **kw: recomputed.append(1) or inner(*args, **kw))
            trainer = build(cfg)
            save = trainer.mid_epoch.save
            patch.setattr(trainer.mid_epoch, "save", lambda: saved.append(trainer.batch_idx) or save())
            trainer.train()
        except (ValueError, ImportError, OSError) as error:
            return {"error": str(error).replace(str(folder), ""), "asked": asked}
    rows = [json.loads(line) for line in (folder / "run" / "predictions.jsonl").read_text("utf-8").splitlines()]
    timed = ("seconds", "ttft_s", "entry", "impath")
    return {
        "rows": [{key: value for key, value in row.items() if key not in timed} for row in rows],
        "cache": trainer.report.facts.get("cache"),
        "logits": logits_of(trainer).tolist(),
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*") if is_named(path)),
        "weights": {key: value.numpy().tobytes() for key, value in trainer.adapt.state_dict().items()},
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in trainer.optim.param_groups],
        "epochs": trainer.report.epochs,
        "drops": trainer.drops.to_dict(),
        "attention": trainer.model.llava.config.text_config._attn_implementation,
        "asked": asked,
        "saved": saved,
        "recomputed": bool(recomputed),
    }


def is_named(path: Path) -> bool:
    """Whether a file's name says something: those of the cache are hashes."""
    return "tensorboard" not in str(path) and "disk" not in path.parts


def watch_detectors(patch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    """Put a detector that finds nothing in the place of the learned ones, and note what it was built with."""
    inner, backend = checks.importlib.util.find_spec, detectors._build_backend

    def build_backend(options: DetectorOptions, *args: Any) -> Any:
        if options.backend == "bgsub":
            return backend(options, *args)
        asked.append((Path(options.weights).name, options.frame, options.imgsz, options.iou))
        return detectors.NoDetector()

    patch.setattr(detectors, "_build_backend", build_backend)
    patch.setattr(checks.importlib.util, "find_spec", lambda name: object() if name == "ultralytics" else inner(name))


def test_every_key_has_a_change_and_every_change_a_key() -> None:
    assert {key for key, _ in flatten(node_of(NAME))} == set(CHANGES)


@pytest.mark.parametrize("key", sorted(set(CHANGES) - GPU_ONLY))
def test_key_changes_something_or_is_refused(key: str, observe: Observe, tmp_path: Path) -> None:
    values, shared = CHANGES[key]
    before = observe(shared)
    found = [observe(shared | {f".{key}": value}) for value in values]
    assert any("error" not in run for run in (before, *found)), before
    assert any(after != before for after in found), f"{key} does nothing: {values} with {shared}"


def test_two_equal_runs_leave_the_same(observe: Observe) -> None:
    assert observe({}) == observe({"TRAIN.PRINT_FREQ": 3})
