"""One trainer of a foreign checkout on one engine; `third_party.py` starts it in a process of its own.

`python third_party_run.py JOB RESULT`: JOB is a JSON file with checkout, module, trainer, config, options, epochs, weights,
images and output; RESULT gets {"engine", "losses", "accuracy", "logits"}. The checkout's code runs as it is; only its
download of CLIP weights is pointed to a local file.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

ROOT = Path(__file__).resolve().parents[1]
DATASET_NAME = "Caltech101"  # a name for which the checkouts have a prompt template
CLASSNAMES = ("face", "leopard", "airplane")
IMAGES_PER_CLASS = 4


class _AnyArgument:
    """Stands for the parsed command line, which some `extend_cfg` functions read."""

    def __getattr__(self, name: str) -> str:
        return ""


def load_extend_cfg(checkout: Path) -> Callable[[Any], None]:
    """Return the function `extend_cfg` of a checkout, without importing the rest of its file.

    Raises:
        FileNotFoundError: If no script of the checkout, nor one in its folder `utils`, defines it.
    """
    for script in (*sorted(checkout.glob("*.py")), *sorted(checkout.glob("utils/*.py"))):
        for node in ast.parse(script.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == "extend_cfg":
                namespace: dict[str, Any] = {"args": _AnyArgument(), "CN": CfgNode}
                exec(compile(ast.Module([node], []), str(script), "exec"), namespace)
                return namespace["extend_cfg"]
    raise FileNotFoundError(f"no script in {checkout} defines extend_cfg")


def repair_engine() -> None:
    """Apply our compat by file: in this process `trainers` is the checkout's package."""
    spec = importlib.util.spec_from_file_location("compat", ROOT / "trainers" / "compat.py")
    compat = importlib.util.module_from_spec(spec)
    sys.modules["compat"] = compat
    spec.loader.exec_module(compat)
    compat.apply()


def write_images(folder: Path, size_px: int) -> None:
    """Write a few noise images per class as <label>_<number>.png."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for label in range(len(CLASSNAMES)):
        for number in range(IMAGES_PER_CLASS):
            pixels = generator.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{label}_{number}.png")


def register_dataset() -> None:
    """Register the noise images under `DATASET_NAME`; train and test are the same files."""
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

    def read(self: DatasetBase, cfg: Any) -> None:
        paths = sorted(Path(cfg.DATASET.ROOT).glob("*.png"))
        items = [Datum(str(path), int(path.stem[0]), 0, CLASSNAMES[int(path.stem[0])]) for path in paths]
        DatasetBase.__init__(self, train_x=items, test=items)

    DATASET_REGISTRY.register(type(DATASET_NAME, (DatasetBase,), {"__init__": read}))


def build_cfg(job: dict[str, Any]) -> Any:
    """Merge the checkout's own YAML with the settings of a short CPU or GPU run."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    load_extend_cfg(Path(job["checkout"]))(cfg)
    cfg.merge_from_file(job["config"])
    settings = {
        "DATASET.NAME": DATASET_NAME,
        "DATASET.ROOT": job["images"],
        "OUTPUT_DIR": job["output"],
        "TRAINER.NAME": job["trainer"],
        "DATALOADER.NUM_WORKERS": 0,
        "OPTIM.MAX_EPOCH": job["epochs"],
        "TRAIN.PRINT_FREQ": 1,
        **job["options"],
    }
    cfg.merge_from_list([part for item in settings.items() for part in item])
    return cfg


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Build, train and test the trainer; return its losses and what it predicts."""
    sys.path[0] = job["checkout"]  # as if a script of the checkout were running
    from dassl_host import ensure_dassl

    engine = ensure_dassl()
    repair_engine()
    register_dataset()
    clip = importlib.import_module("clip.clip")
    clip._download = lambda *args, **kwargs: job["weights"]
    importlib.import_module(job["module"])
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed

    set_random_seed(1)
    trainer = build_trainer(build_cfg(job))
    losses = _record(trainer, "forward_backward", lambda summary: float(summary["loss"]))
    logits = _record(trainer, "model_inference", lambda output: output.float().flatten().tolist())
    if trainer.get_model_names():  # the zero-shot trainer registers nothing
        trainer.train()
    return {"engine": engine.side, "losses": losses, "accuracy": float(trainer.test()), "logits": logits}


def _record(trainer: Any, method: str, read: Callable[[Any], Any]) -> list[Any]:
    """Wrap a method so that what `read` takes from each result is collected."""
    original, collected = getattr(trainer, method), []

    def recording(*args: Any) -> Any:
        result = original(*args)
        collected.append(read(result))
        return result

    setattr(trainer, method, recording)
    return collected


if __name__ == "__main__":
    result = run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
