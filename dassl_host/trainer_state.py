"""What a checkpoint holds, and how a run continues from it.

The bundled engine uses this module; on upstream Dassl a repair module may, so that both write the same files. A
trainer is anything with Dassl's attributes (`_models`, `_optims`, `_scheds`, `best_result`, `max_epoch`); it may
define `extra_state() -> dict` and `load_extra_state(dict)` for what else it must not lose (a loss scaler, averaged
weights). Only numbers, strings, lists, dicts and tensors are stored, so that `torch.load(weights_only=True)` reads
every file.
"""

from __future__ import annotations

import os
import random
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dassl_host.legacy_checkpoint import load_checkpoint

FORMAT = 1
POINTER = "checkpoint"  # the file that names the latest checkpoint of its folder
BEST_MODEL = "model-best.pth.tar"
EPOCH_MODEL = "model.pth.tar-"

# Entry of a scheduler's state -> the key it was built from.
_SCHEDULE_KEYS = {
    "base_lrs": "OPTIM.LR",
    "T_max": "OPTIM.MAX_EPOCH",
    "step_size": "OPTIM.STEPSIZE (<= 0: OPTIM.MAX_EPOCH)",
    "milestones": "OPTIM.STEPSIZE",
    "gamma": "OPTIM.GAMMA",
    "warmup_epoch": "OPTIM.WARMUP_EPOCH",
    "cons_lr": "OPTIM.WARMUP_CONS_LR",
    "min_lr": "OPTIM.WARMUP_MIN_LR",
}
_SCHEDULE_LENGTHS = ("T_max", "step_size", "milestones")


def checkpoint_state(trainer: Any, name: str, epoch: int, val_result: float | None = None) -> dict[str, Any]:
    """Return the content of the checkpoint of one registered model.

    Args:
        name: Name the model was registered under.
        epoch: The epoch just finished, from 0; the file counts finished epochs, so it stores `epoch + 1`.
        val_result: Validation result, percent, if it was measured.
    """
    optim, sched = trainer._optims[name], trainer._scheds[name]
    return {
        "state_dict": trainer._models[name].state_dict(),
        "epoch": epoch + 1,
        "optimizer": None if optim is None else optim.state_dict(),
        "scheduler": None if sched is None else sched.state_dict(),
        "val_result": None if val_result is None else float(val_result),
        "trainer_state": collect_trainer_state(trainer),
    }


def collect_trainer_state(trainer: Any) -> dict[str, Any]:
    """Return everything beside the models that continuing a run needs.

    Raises:
        TypeError: If `trainer.extra_state()` holds a value that could not be read back (names its place).
    """
    extra = trainer.extra_state() if hasattr(trainer, "extra_state") else {}
    _check_plain(extra, "extra_state()")
    return {
        "format": FORMAT,
        "best_result": float(getattr(trainer, "best_result", float("-inf"))),
        "max_epoch": int(trainer.max_epoch),
        "rng": collect_rng(),
        "extra": extra,
    }


def restore_trainer_state(trainer: Any, state: Mapping[str, Any] | None) -> None:
    """Give `trainer` back what `collect_trainer_state` took; None (a file of upstream's) changes nothing.

    The generators wait until `restore_rng`, since whatever runs between here and the first epoch may draw from them.

    Raises:
        ValueError: If the state has another format.
    """
    if state is None:
        return
    if state["format"] != FORMAT:
        raise ValueError(f"trainer_state has format {state['format']!r}; this version reads {FORMAT}")
    trainer.best_result = state["best_result"]
    trainer._resumed_rng = state["rng"]
    if hasattr(trainer, "load_extra_state"):
        trainer.load_extra_state(state["extra"])


def collect_rng() -> dict[str, Any]:
    """Return the states of the random generators of Python, numpy, torch and every CUDA device in use."""
    _, keys, position, has_gauss, cached_gaussian = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [keys.tolist(), int(position), int(has_gauss), float(cached_gaussian)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_rng(trainer: Any) -> None:
    """Set the generators to the saved states once; call it right before the first `before_epoch` of a run."""
    rng = take_rng(trainer)
    if rng is not None:
        set_rng(rng)


def take_rng(trainer: Any) -> dict[str, Any] | None:
    """Return the saved states that wait for `restore_rng`, which then finds none; None if nothing was resumed."""
    return trainer.__dict__.pop("_resumed_rng", None)


def set_rng(rng: Mapping[str, Any]) -> None:
    """Set the generators to what `collect_rng` returned."""
    version, words, cached_gaussian = rng["python"]
    random.setstate((version, tuple(words), cached_gaussian))
    keys, *rest = rng["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(rng["torch"])
    for device, cuda_state in enumerate(rng["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, device)


def resume_trainer(trainer: Any, directory: str) -> int:
    """Continue from the latest checkpoint of every registered model under `directory`.

    All checks come before the first change.

    Returns:
        The number of finished epochs, 0 if there is no checkpoint.
    Raises:
        FileNotFoundError: If `cfg.RESUME` names a folder without checkpoints, or a model's folder lacks its pointer.
        ValueError: If the models are at different epochs, or a saved schedule is not the configured one.
    """
    names = list(trainer._models)
    if not names or not all(os.path.exists(os.path.join(directory, name)) for name in names):
        if getattr(getattr(trainer, "cfg", None), "RESUME", ""):
            wanted = ", ".join(names) or "any model"
            raise FileNotFoundError(f"RESUME is {directory!r}, but it has no checkpoints of {wanted}")
        print("No checkpoint found, train from scratch")
        return 0
    print(f"Found checkpoint at {directory} (will resume training)")
    checkpoints = {name: load_latest(os.path.join(directory, name)) for name in names}
    _check_resumable(trainer, checkpoints)
    for name, checkpoint in checkpoints.items():
        restore_model(checkpoint, trainer._models[name], trainer._optims[name], trainer._scheds[name])
    restore_trainer_state(trainer, checkpoints[names[0]].get("trainer_state"))
    return checkpoints[names[0]]["epoch"]


def load_latest(folder: str) -> dict[str, Any]:
    """Return the checkpoint that the pointer file in `folder` names.

    Raises:
        FileNotFoundError: If the pointer or the file it names is missing.
    """
    pointer = os.path.join(folder, POINTER)
    if not os.path.isfile(pointer):
        raise FileNotFoundError(f"{folder} has no pointer file `{POINTER}`; present: {_present(folder)}")
    with open(pointer, encoding="utf-8") as file:
        return load_checkpoint(os.path.join(folder, file.readline().strip()))


def restore_model(
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> None:
    """Load weights, and the states of the optimizer and the scheduler where both sides have one."""
    model.load_state_dict(checkpoint["state_dict"])
    if optimizer is not None and checkpoint.get("optimizer") is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
    if scheduler is not None and checkpoint.get("scheduler") is not None:
        scheduler.load_state_dict(checkpoint["scheduler"])


def schedule_differences(
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    checkpoint: Mapping[str, Any],
    max_epoch: int | None = None,
) -> list[str]:
    """Compare the configured schedule with the one a checkpoint was written under.

    Args:
        max_epoch: The configured OPTIM.MAX_EPOCH, compared for schedules whose own state does not tell their length.
    Returns:
        One line per difference: key, saved value, configured value.
    """
    if scheduler is None or checkpoint.get("scheduler") is None:
        return []
    saved, configured = _schedule_values(checkpoint["scheduler"]), _schedule_values(scheduler.state_dict())
    if max_epoch is not None and not any(name in saved or name in configured for name in _SCHEDULE_LENGTHS):
        saved["T_max"] = (checkpoint.get("trainer_state") or {}).get("max_epoch", max_epoch)
        configured["T_max"] = max_epoch
    return [
        f"{key}: saved {saved.get(name, 'nothing')}, configured {configured.get(name, 'nothing')}"
        for name, key in _SCHEDULE_KEYS.items()
        if saved.get(name) != configured.get(name)
    ]


def load_models(trainer: Any, directory: str, epoch: int | None = None) -> None:
    """Load the weights of every registered model, of the best epoch or of the given one.

    Args:
        directory: Run folder; "" loads nothing, since a zero-shot trainer has nothing to load.
        epoch: Number of finished epochs, as in the file name.
    Raises:
        FileNotFoundError: If a file is missing (names the files that are there).
    """
    if not directory:
        print("Note that load_model() is skipped as no pretrained model is given (ignore this if it's done on purpose)")
        return
    file_name = BEST_MODEL if epoch is None else f"{EPOCH_MODEL}{epoch}"
    paths = {name: os.path.join(directory, name, file_name) for name in trainer._models}
    for path in paths.values():
        if not os.path.exists(path):
            raise FileNotFoundError(f"No model at {path}; present: {_present(os.path.dirname(path))}")
    for name, path in paths.items():
        checkpoint = load_checkpoint(path)
        val_result = checkpoint.get("val_result")
        shown = "n/a" if val_result is None else f"{val_result:.1f}"
        print(f"Load {path} to {name} (epoch={checkpoint['epoch']}, val_result={shown})")
        trainer._models[name].load_state_dict(checkpoint["state_dict"])


def _check_resumable(trainer: Any, checkpoints: Mapping[str, Mapping[str, Any]]) -> None:
    epochs = {name: checkpoint["epoch"] for name, checkpoint in checkpoints.items()}
    if len(set(epochs.values())) > 1:
        listed = ", ".join(f"{name} at {epoch}" for name, epoch in epochs.items())
        raise ValueError(f"cannot resume: the registered models are at different epochs ({listed})")
    problems = [
        f"  {line} (model {name})"
        for name, checkpoint in checkpoints.items()
        for line in schedule_differences(trainer._scheds[name], checkpoint, getattr(trainer, "max_epoch", None))
    ]
    if problems:
        raise ValueError("\n".join(["cannot resume: the saved schedule is not the configured one", *problems]))


def _schedule_values(state: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a scheduler's state, its successor's included, to the comparable entries."""
    merged = {**(state.get("successor") or {}), **state}
    return {name: _comparable(merged[name]) for name in _SCHEDULE_KEYS if name in merged}


def _comparable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return sorted(value)
    return list(value) if isinstance(value, (list, tuple)) else value


def _present(folder: str) -> str:
    """List the model files of a folder and, for those of single epochs, the flag that selects them."""
    names = sorted(name for name in os.listdir(folder) if ".pth.tar" in name) if os.path.isdir(folder) else []
    epochs = sorted(int(name[len(EPOCH_MODEL) :]) for name in names if name[len(EPOCH_MODEL) :].isdecimal())
    hint = f" (give --load-epoch {' or '.join(map(str, epochs))})" if epochs else ""
    return (", ".join(names) or "no model file") + hint


def _check_plain(value: Any, place: str) -> None:
    # Exact types: a numpy float is a Python float by inheritance, yet cannot be read back.
    if type(value) in (dict, OrderedDict, Counter):
        for key, item in value.items():
            _check_plain(item, f"{place}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{place}[{index}]")
    elif type(value) not in (type(None), bool, int, float, str) and not isinstance(value, torch.Tensor):
        raise TypeError(f"{place} is a {type(value).__name__}; expected numbers, strings, lists, dicts or tensors")
