"""What a run leaves in its folder, and when a run may go on in a used one.

`config.yaml` is the full configuration, `run.json` says what ran on what, `results.json` holds {split: {metric: value}} of the
latest test of each split. Log and checkpoints are Dassl's.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from clip_ext.files import replacing
from dassl_host import Engine
from trainers.config_merge import flatten
from trainers.run_facts import device_name, git_state, hash_data, installed_versions, splits_of
from trainers.split_checks import tests_on_validation

# What a continued run may change: places, hardware, output and testing, but nothing that training depends on.
FREE_ON_RESUME = (
    "OUTPUT_DIR",
    "RESUME",
    "USE_CUDA",
    "VERBOSE",
    "DATASET.ROOT",
    "DATALOADER.NUM_WORKERS",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TRAINER.VIECAP.LOADER.PLACEMENT",
)

# Keys and nodes below a trainer's node of the same kind.
FREE_OF_TRAINERS = (
    "SAVE_LATEST_PER_EPOCH", "CACHE", "EVAL", "GEN", "VIS", "VIT_EVAL",
    "LOG_PER_EPOCH", "SAVE_EVERY", "STORE_DIR", "USING_IMAGE_FEATURES",
    "NAME_OF_ENTITIES_TEXT", "PATH_OF_ENTITIES_TEXT", "SINGLE_WORD_ENTITIES", "PROMPT_ENSEMBLE", "TOP_K", "THRESHOLD",
    "TEMPERATURE", "DECODE", "BEAM_WIDTH", "MAX_NEW_TOKENS", "NUM_RETURN", "SAMPLE_TOP_P", "SAMPLE_TEMPERATURE",
)  # fmt: skip


def check_resume(cfg: CfgNode, choice: str) -> None:
    """Decide, before anything is built, whether training may start in OUTPUT_DIR or continue there.

    Args:
        cfg: The final configuration; a folder in RESUME has to hold checkpoints.
        choice: `auto` (continue if OUTPUT_DIR has checkpoints), `must` or `never`.
    Raises:
        FileNotFoundError: If a run has to be continued and there is no `*/checkpoint` pointer.
        FileExistsError: If the folder must be fresh and has one.
        ValueError: If the stored configuration differs in a key that training depends on (key, stored and new value).
    """
    folder = Path(cfg.RESUME or cfg.OUTPUT_DIR)
    pointers = sorted(folder.glob("*/checkpoint"))
    if choice == "never":
        if cfg.RESUME:
            raise ValueError(f"--resume never contradicts RESUME {cfg.RESUME!r}")
        if pointers:
            raise FileExistsError(f"--resume never, but OUTPUT_DIR {folder} has checkpoints: {pointers[0]}")
    elif pointers:
        _check_same_config(cfg, folder / "config.yaml")
    elif cfg.RESUME or choice == "must":
        asked = f"RESUME is {cfg.RESUME!r}" if cfg.RESUME else "--resume must"
        raise FileNotFoundError(f"{asked}, but there is no */checkpoint file in {folder.absolute()}")


def check_classes(model_dir: str, trainer: Any) -> None:
    """Refuse a model of other classes for a trainer whose classifier is tied to them (`fixed_classes`).

    Args:
        model_dir: Run folder that the model was loaded from.
        trainer: Built on the data to be tested.
    Raises:
        ValueError: If run.json there lists other classes (names the first that differs).
    """
    record = Path(model_dir) / "run.json"
    if not getattr(trainer, "fixed_classes", False) or not record.is_file():
        return
    learned = json.loads(record.read_text("utf-8")).get("data", {}).get("classes")
    present = list(trainer.dm.dataset.classnames)
    if learned is not None and learned != present:
        first = next((pair for pair in zip(learned, present) if pair[0] != pair[1]), "their number")
        raise ValueError(
            f"--model-dir {model_dir} learned {len(learned)} classes, the data set has {len(present)}; first difference: {first}"
        )


def _check_same_config(cfg: CfgNode, stored_file: Path) -> None:
    if not stored_file.is_file():  # a run of another program; the engine still checks schedule and weights
        return
    stored = dict(flatten(yaml.safe_load(stored_file.read_text("utf-8"))))
    current = dict(flatten(yaml.safe_load(cfg.dump())))
    differing = [
        f"  {key}: stored {stored.get(key, 'absent')!r}, now {current.get(key, 'absent')!r}"
        for key in sorted(stored.keys() | current.keys())
        if not _is_free(key) and stored.get(key) != current.get(key)
    ]
    if differing:
        raise ValueError(
            f"cannot continue the run of {stored_file}, its configuration differs:\n" + "\n".join(differing) +
            "\nUse the stored values, or another --output-dir for a new run."
        )


def hash_settings(cfg: CfgNode) -> str:
    """Return the SHA-256 of the settings that a training depends on, those of its own trainer among them."""
    own = ("NAME", cfg.TRAINER.NAME.upper())
    kept = {
        key: value
        for key, value in flatten(yaml.safe_load(cfg.dump()))
        if not _is_free(key) and (not key.startswith("TRAINER.") or key.split(".")[1] in own)
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode("utf-8")).hexdigest()


def _is_free(key: str) -> bool:
    node, _, name, *_ = [*key.split("."), "", ""]
    return key in FREE_ON_RESUME or node == "TEST" or (node == "TRAINER" and name in FREE_OF_TRAINERS)


class RunFolder:
    """The folder OUTPUT_DIR of one run.

    Args:
        cfg: The final configuration.
        mode: `train`, `eval` or `build`. In the folder of a training run the other two write nothing but results.
    Raises:
        OSError: If the folder cannot be made or written (names OUTPUT_DIR and the path).
    """

    def __init__(self, cfg: CfgNode, mode: str) -> None:
        self.path = Path(cfg.OUTPUT_DIR)
        self._cfg = cfg
        self._record: dict[str, Any] = {"mode": mode}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise OSError(f"OUTPUT_DIR {self.path.absolute()} cannot be written: {error}") from error
        self._keeps_record = mode == "train" or self._stored_mode() != "train"

    def _stored_mode(self) -> str | None:
        file = self.path / "run.json"
        return json.loads(file.read_text("utf-8")).get("mode") if file.is_file() else None

    def start(self, argv: Sequence[str], engine: Engine) -> None:
        """Write config.yaml and the first run.json; a training that starts afresh forgets the results of an earlier one."""
        if not self._keeps_record:
            return
        continues = any(Path(self._cfg.RESUME or self.path).glob("*/checkpoint"))
        if self._record["mode"] == "train" and not continues:
            (self.path / "results.json").unlink(missing_ok=True)
        self._write("config.yaml", self._cfg.dump())
        self._update(
            status="running",
            argv=list(argv),
            **git_state(),
            engine={"side": engine.side, "version": engine.version},
            versions=installed_versions(),
            device=device_name(self._cfg),
            trainer=self._cfg.TRAINER.NAME,
            seed=self._cfg.SEED,
        )

    def describe_data(self, dataset: Any) -> None:
        """Add what the run learns from to run.json: name, split, sizes, classes, hash."""
        splits = splits_of(dataset)
        self._update(
            data={
                "name": self._cfg.DATASET.NAME,
                "split_kind": getattr(dataset, "split_kind", None),
                "sizes": {split: len(items) for split, items in splits.items()},
                "classes": list(dataset.classnames),
                "hash": hash_data(splits),
            }
        )

    def finish(self, error: BaseException | None = None) -> None:
        """Close the record: finished, or failed with the error's text and traceback."""
        if error is None:
            self._update(status="finished")
        else:
            lines = "".join(traceback.format_exception(error)).splitlines()
            self._update(status="failed", error=f"{type(error).__name__}: {error}", traceback=lines)

    def record_results(self, trainer: Any) -> None:
        """From now on, every test of `trainer` also goes into results.json, in full precision.

        Works for any trainer on either engine: the evaluator's dictionary is caught inside `trainer.test`, which itself returns
        its first number only. Figures that a trainer leaves in `further_results` while it is tested join them.
        `test_part` says `validation` where a data set without a test part is tested on its validation part.
        """
        evaluate, test = trainer.evaluator.evaluate, trainer.test
        caught: dict[str, float] = {}

        def evaluate_and_catch() -> dict[str, float]:
            results = evaluate()
            caught.update({metric: float(value) for metric, value in results.items()})
            return results

        def test_and_write(split: str | None = None) -> float | None:
            caught.clear()
            first = test(split)
            if caught:
                caught.update(getattr(trainer, "further_results", {}))
                name = split or self._cfg.TEST.SPLIT
                has_val = trainer.val_loader is not None
                name = "test" if name == "val" and not has_val else name
                stands_in = name == "test" and tests_on_validation(getattr(getattr(trainer, "dm", None), "dataset", None))
                facts = {"test_part": "validation"} if stands_in else {}
                self._write_results({name: dict(caught)} | facts)
            return first

        trainer.evaluator.evaluate, trainer.test = evaluate_and_catch, test_and_write

    def _write_results(self, results: dict[str, Any]) -> None:
        file = self.path / "results.json"
        stored = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        self._write(file.name, json.dumps({**stored, **results}, indent=2) + "\n")

    def _update(self, **fields: Any) -> None:
        self._record.update(fields)
        if self._keeps_record:
            self._write("run.json", json.dumps(self._record, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        with replacing(self.path / name) as temporary:
            temporary.write_text(text, "utf-8")
