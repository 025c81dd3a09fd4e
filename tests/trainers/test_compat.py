"""The repairs of upstream Dassl; a process of its own per engine, upstream skipped where it is absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TORCH_VERSION = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])

# compat is loaded by its path: the package around it would have applied it, and imports every trainer.
LOAD_COMPAT = """
import importlib.util, json, logging, sys
import dassl_host
dassl_host.ensure_dassl()
spec = importlib.util.spec_from_file_location("compat", sys.argv[1])
sys.modules["compat"] = compat = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compat)
"""

REPAIR_UPSTREAM = """
import contextlib, io, os, tempfile
import torch
import dassl.engine.trainer, dassl.utils, dassl.utils.torchtools
from dassl.config import get_cfg_default
from dassl.data.transforms import build_transform
from dassl.engine import TrainerBase

lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
compat.log.addHandler(handler)
compat.log.setLevel(logging.INFO)

report = {"before": {repair.name: repair.needed() for repair in compat.REPAIRS}}
report["applied"] = compat.apply()
report["after"] = [repair.name for repair in compat.REPAIRS if repair.needed()]
report["lines"] = list(lines)
report["again"] = compat.apply() + lines[len(report["lines"]):]

modules = dassl.utils.torchtools, dassl.utils, dassl.engine.trainer
report["readers"] = [module.load_checkpoint.__module__ for module in modules]

trainer = TrainerBase()
trainer.max_epoch = 1
trainer.register_model("part", torch.nn.Linear(1, 1))
folder = tempfile.mkdtemp()
trainer.save_model(0, folder)
report["saved"] = sorted(torch.load(os.path.join(folder, "part", "model.pth.tar-1"), weights_only=True)["trainer_state"])
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    trainer.load_model(folder, epoch=1)
report["loaded"] = printed.getvalue()

console = sys.stdout
tee = dassl.utils.Logger(os.path.join(folder, "log.txt"))
report["console"] = [tee.encoding == console.encoding, tee.fileno() == console.fileno(), tee.isatty() == console.isatty()]
tee.write("both\\n")
tee.close()
report["console"].append(not console.closed)

report["refused"] = []
for name in "randaugment", "imagenet_policy", "cifar10_policy", "svhn_policy":
    cfg = get_cfg_default()
    cfg.INPUT.TRANSFORMS = (name, "normalize")
    try:
        build_transform(cfg, is_train=True)
    except ValueError as error:
        report["refused"].append(name in str(error) and "DASSL_HOST=bundled" in str(error))
cfg.INPUT.TRANSFORMS = ("randaugment2", "randaugment_fixmatch", "normalize")
build_transform(cfg, is_train=True)
print(json.dumps(report))
"""

LEAVE_BUNDLED = """
import dassl.engine, dassl.optim.lr_scheduler, dassl.utils
before = {name: dict(vars(module)) for name, module in sys.modules.items() if name.startswith("dassl.")}
classes = dassl.engine.TrainerBase, dassl.utils.Logger, dassl.optim.lr_scheduler.ConstantWarmupScheduler
members = [dict(vars(cls)) for cls in classes]
result = compat.apply()
assert members == [dict(vars(cls)) for cls in classes]
assert all(before[name] == dict(vars(sys.modules[name])) for name in before)
print(json.dumps(result))
"""


def run(side: str, code: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT)] + ([os.environ["DASSL_UPSTREAM"]] if os.environ.get("DASSL_UPSTREAM") else [])
    env = {**os.environ, "DASSL_HOST": side, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD_COMPAT + code, str(ROOT / "trainers" / "compat.py")]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What repairing upstream did, told by one process."""
    done = run("upstream", REPAIR_UPSTREAM)
    if "no upstream dassl can be found" in done.stderr:
        pytest.skip("no upstream Dassl: install it or set DASSL_UPSTREAM to a checkout")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(TORCH_VERSION < (2, 7), reason="torch < 2.7 still takes the argument of R1")
def test_apply_makes_every_repair_once(report):
    names = ["R1", "R2", "R3", "R4", "R5", "R6", "transforms"]
    assert report["before"] == dict.fromkeys(names, True)
    assert report["applied"] == names
    assert report["after"] == [] and report["again"] == []
    assert [line.split(":")[0] for line in report["lines"]] == [f"Dassl 0.6.3 repaired ({name})" for name in names]


def test_checkpoints_are_read_by_the_shared_reader_everywhere(report):
    assert report["readers"] == ["dassl_host.legacy_checkpoint"] * 3


def test_checkpoints_hold_trainer_state_and_load_without_val_result(report):
    assert report["saved"] == ["best_result", "extra", "format", "max_epoch", "rng"]
    assert "to part (epoch=1, val_result=n/a)" in report["loaded"]


def test_logger_has_the_consoles_attributes_and_leaves_it_open(report):
    assert report["console"] == [True] * 4


def test_transforms_that_crash_with_current_numpy_are_refused(report):
    assert report["refused"] == [True] * 4


def test_bundled_engine_is_left_alone():
    done = run("bundled", LEAVE_BUNDLED)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
