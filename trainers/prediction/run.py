"""A trained run as something to use: its configuration, classes and weights, without the data it learned from.

The trainer is built as in training, but in the place of its data set stands one that knows the class names only. So neither the
training images nor, for the trainers that keep their text classifier in the checkpoint, any text is needed.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, build_trainer
from yacs.config import CfgNode

from trainers.adapters import RECORD, TENSORS, find_adapter
from trainers.config import add_trainer_configs
from trainers.config_merge import Setting, merge_settings, read_yaml
from trainers.prediction.questions import UNKNOWN, QuestionItem

logger = logging.getLogger(__name__)

BEST_MODEL = "model-best.pth.tar"
EPOCH_MODEL = re.compile(r"model\.pth\.tar-(\d+)")


@dataclass(frozen=True)
class TrainedRun:
    """What a run folder says about the run.

    Attributes:
        path: The folder.
        cfg: Its configuration, made fit for prediction, frozen.
        classes: Class names in label order.
        data_hash: Of the data it learned from, as in run.json.
        trained: Whether it was a training; otherwise there may be nothing to load.
        weights: What was named in the run's place and is to be loaded: a captioner's weights file, or an adapter folder; None
            if the run was named.
    """

    path: Path
    cfg: CfgNode
    classes: tuple[str, ...]
    data_hash: str | None
    trained: bool = True
    weights: Path | None = None

    @property
    def answers_questions(self) -> bool:
        """Whether its trainer answers questions about images; others classify them."""
        return getattr(TRAINER_REGISTRY.get(self.cfg.TRAINER.NAME), "answers_questions", False)

    @property
    def captions_images(self) -> bool:
        """Whether its trainer captions images; see `trainers/prediction/captions.py`."""
        return hasattr(TRAINER_REGISTRY.get(self.cfg.TRAINER.NAME), "load_captioner")


def read_run(
    folder: str | Path, settings: Sequence[Setting] = (), *, device: str = "auto", full_precision: bool = False
) -> TrainedRun:
    """Read config.yaml and run.json of a run.

    Args:
        folder: Run folder; an adapter folder of it, or a file in that; or a weights file of a captioner.
        settings: Override the stored configuration.
        device: `auto` (as configured, if there is a GPU), `cpu` or `cuda`.
        full_precision: Use fp32 whatever the run's `PREC` is.
    Raises:
        FileNotFoundError: If the folder or one of the files is missing.
        ValueError: If a file cannot be used: all problems of the configuration at once, or no class list.
    """
    path, weights = _find_run(folder)
    record = _read_record(path)
    if record.get("status") != "finished":
        logger.warning("Note: the run of %s has not finished (status %s)", path, record.get("status"))
    data = record.get("data") or {}
    if not data.get("classes"):
        raise ValueError(f"{path / 'run.json'} lists no classes: the run ended before its data were read")
    cfg = _read_cfg(path, settings)
    _fit_for_prediction(cfg, path, device)
    _fit_precision(cfg, full_precision=full_precision)
    cfg.freeze()
    run = TrainedRun(path, cfg, tuple(data["classes"]), data.get("hash"), record.get("mode", "train") == "train", weights)
    if weights is not None and not (run.answers_questions if weights.is_dir() else run.captions_images):
        kind = "folder of an adapter" if weights.is_dir() else "file"
        raise ValueError(f"{weights} is a {kind}; {cfg.TRAINER.NAME} is loaded from its run folder, {path}")
    return run


def _find_run(place: str | Path) -> tuple[Path, Path | None]:
    """Return the run folder that was named or that something below it was, and what was named then."""
    path = Path(place)
    adapter = path.parent if path.name in (TENSORS, RECORD) and path.is_file() else path
    if (adapter / RECORD).is_file():
        adapter = adapter.absolute()
        return adapter.parent.parent, adapter
    return (path.parent.parent, path) if path.is_file() else (path, None)


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise FileNotFoundError(f"there is no run folder {path} (looked in {Path.cwd()})")
    for name in ("config.yaml", "run.json"):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} is no run folder: it has no {name}; give the --output-dir of a training")
    try:
        return json.loads((path / "run.json").read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path / 'run.json'} is not readable: {error}") from error


def _read_cfg(path: Path, settings: Sequence[Setting]) -> CfgNode:
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    stored, problems = read_yaml(str(path / "config.yaml"))
    problems += merge_settings(cfg, [*stored, *settings])
    known = TRAINER_REGISTRY.registered_names()
    if cfg.TRAINER.NAME not in known:
        names = ", ".join(sorted(known))
        problems.append(f"TRAINER.NAME is {cfg.TRAINER.NAME!r}; expected one of {names} (or --import its file)")
    if problems:
        raise ValueError(f"{len(problems)} problem(s) in the configuration:\n  " + "\n  ".join(problems))
    return cfg


def _fit_for_prediction(cfg: CfgNode, path: Path, device: str) -> None:
    """Switch off what belongs to training, and choose the device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but PyTorch finds no GPU; expected cpu or auto")
    if device != "auto":
        cfg.USE_CUDA = device == "cuda"
    cfg.OUTPUT_DIR, cfg.RESUME, cfg.VERBOSE = str(path), "", False
    cfg.DATALOADER.TRAIN_X.SAMPLER = "SequentialSampler"
    node = _trainer_node(cfg)
    if "CACHE_IMAGES" in node:
        node.CACHE_IMAGES = "none"
    if "ENABLE" in node.get("CACHE", {}):
        node.CACHE.ENABLE = False  # of features: what is asked about is seen once
    if "AUGMENT_DEVICE" in node:
        node.AUGMENT_DEVICE = "cpu"  # there are no strong views to make, so kornia need not be installed


def _fit_precision(cfg: CfgNode, *, full_precision: bool) -> None:
    node = _trainer_node(cfg)
    prec = node.get("PREC")
    if prec in ("amp", "fp16") and not (cfg.USE_CUDA and torch.cuda.is_available()):
        logger.warning("Note: the run's PREC %s needs a GPU; fp32 is used on the CPU", prec)
        node.PREC = "fp32"
    if prec is not None and full_precision:
        node.PREC = "fp32"


def _trainer_node(cfg: CfgNode) -> CfgNode:
    """Return the config node of the run's trainer; an empty one for a trainer without keys."""
    return cfg.TRAINER.get(cfg.TRAINER.NAME.upper(), CfgNode())


class RunClasses(DatasetBase):
    """Class names without images; a subclass made for a run is what its trainer finds."""

    stands_in = True  # its items say nothing about the data
    names: tuple[str, ...] = ()
    placeholder = ""  # an existing file: loaders insist on an item, which is never read
    asks = False  # whether items are questions

    def __init__(self, cfg: CfgNode) -> None:
        said = {"question": "yes?", "answers": '["yes"]', "boxes": "[]"}
        items = [QuestionItem(self.placeholder, UNKNOWN | said) if self.asks else Datum(impath=self.placeholder, label=-1)]
        super().__init__(train_x=items, test=items)

    @property
    def classnames(self) -> list[str]:
        return list(self.names)

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def lab2cname(self) -> dict[int, str]:
        return dict(enumerate(self.names))


@contextmanager
def _classes_in_place_of_data(run: TrainedRun) -> Iterator[None]:
    """Let the run's data set name mean `RunClasses`; trainers also find their texts by that name, so it has to stay."""
    name = run.cfg.DATASET.NAME
    original = DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY.registered_names() else None
    facts = {"names": run.classes, "placeholder": str(run.path / "config.yaml"), "asks": run.answers_questions}
    DATASET_REGISTRY.register(type(name, (RunClasses,), facts), force=True)
    try:
        yield
    finally:
        if original is not None:
            DATASET_REGISTRY.register(original, force=True)


def load_trainer(run: TrainedRun, epoch: int | None = None, *, with_data: bool = False) -> tuple[Any, str | None]:
    """Build the run's trainer and load its weights.

    Args:
        run: From `read_run`.
        epoch: Finished epochs of the checkpoint to load; None: the best on validation, else the last one.
        with_data: Build it around the run's own data set, which has to be there and registered.
    Returns:
        The trainer in evaluation mode, and the name of the checkpoint file; None for a trainer without weights of its own.
    Raises:
        FileNotFoundError: If the run has no such checkpoint (lists those it has).
        OSError: If the backbone is not at hand.
        ValueError: If the checkpoint does not fit the configuration and the classes.
    """
    try:
        with nullcontext() if with_data else _classes_in_place_of_data(run):
            trainer = build_trainer(run.cfg)
    except RuntimeError as error:  # weights of the backbone that cannot be fetched, or no memory for them
        raise OSError(f"cannot build {run.cfg.TRAINER.NAME} on {run.cfg.MODEL.BACKBONE.NAME}: {error}") from error
    trainer.set_model_mode("eval")
    names = trainer.get_model_names()
    if not names:
        if epoch is not None or run.weights is not None:
            asked = f"--load-epoch {epoch}" if run.weights is None else f"--model-dir {run.weights}"
            raise ValueError(f"{asked}, but {run.cfg.TRAINER.NAME} trains nothing and has no checkpoint")
        return trainer, None
    if run.answers_questions:
        return trainer, _load_adapter(run, trainer, epoch)
    best = all((run.path / name / BEST_MODEL).is_file() for name in names)
    if epoch is None and not best:
        epoch = _last_epoch(run.path, names)
    try:
        trainer.load_model(str(run.path), epoch=epoch)
    except RuntimeError as error:  # torch's words for parameters that are missing, left over or of another shape
        raise ValueError(
            f"the checkpoint in {run.path} does not fit its configuration and the {len(run.classes)} classes of run.json "
            f"({', '.join(run.classes[:5])}{', ...' if len(run.classes) > 5 else ''}): {error}"
        ) from error
    return trainer, BEST_MODEL if epoch is None else f"model.pth.tar-{epoch}"


def _load_adapter(run: TrainedRun, trainer: Any, epoch: int | None) -> str | None:
    """Load what a language system stored; returns its place below the run, None for a run that trained nothing."""
    if not run.trained and epoch is None and not getattr(trainer, "needs_checkpoint", True):
        logger.warning("Note: the run of %s trained nothing; %s answers as it is", run.path, run.cfg.MODEL.BACKBONE.NAME)
        return None
    place = run.weights or run.path
    folder = find_adapter(place, epoch)
    trainer.load_model(str(place), epoch=epoch)
    return folder.relative_to(run.path).as_posix()


def _last_epoch(path: Path, names: Sequence[str]) -> int:
    """Return the highest epoch that every registered model has a checkpoint of."""
    epochs = [
        {int(match[1]) for file in (path / name).glob("*") if (match := EPOCH_MODEL.fullmatch(file.name))} for name in names
    ]
    shared = set.intersection(*epochs)
    if not shared:
        expected = ", ".join(f"{name}/model.pth.tar-*" for name in names)
        raise FileNotFoundError(f"{path} has no checkpoint yet: expected {expected}")
    return max(shared)
