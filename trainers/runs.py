"""From a parsed command line to a finished run: configuration, run folder, log, banners, trainer.

`train.py` is the caller; `build_cfg` and `run` take its parsed arguments, so other programs can start runs as well.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from dassl.config import clean_cfg, get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.evaluation import EVALUATOR_REGISTRY
from dassl.utils import collect_env_info, set_random_seed, setup_logger
from yacs.config import CfgNode

from dassl_host import Engine, ensure_dassl
from trainers import legacy_keys
from trainers.config import add_trainer_configs
from trainers.config_merge import Setting, merge_settings, read_yaml
from trainers.evaluators import caption, label_distribution, vqa
from trainers.run_folder import RunFolder, check_classes, check_resume

logger = logging.getLogger(__name__)

LOGGED_PACKAGES = ("clip_ext", "trainers", "datasets")
RESUME_CHOICES = ("auto", "must", "never")
OWN_IMAGES = "CustomImages"  # the data set that reads what --data names

# Flags that set one config key each.
FLAG_KEYS = {
    "root": "DATASET.ROOT",
    "output_dir": "OUTPUT_DIR",
    "seed": "SEED",
    "source_domains": "DATASET.SOURCE_DOMAINS",
    "target_domains": "DATASET.TARGET_DOMAINS",
    "transforms": "INPUT.TRANSFORMS",
    "trainer": "TRAINER.NAME",
    "backbone": "MODEL.BACKBONE.NAME",
    "head": "MODEL.HEAD.NAME",
}


def prepare(args: argparse.Namespace) -> tuple[CfgNode, RunFolder]:
    """Check everything that can be wrong with a command line before anything is built.

    Args:
        args: What `train.parse_args` returned.
    Returns:
        The frozen configuration and the run folder, which exists and can be written.
    Raises:
        ValueError, OSError: For a wrong setting, file, or run folder, with a message for the user.
    """
    cfg = build_cfg(args)
    check_names(cfg)
    mode = "eval" if args.eval_only else "build" if args.no_train else "train"
    if mode == "train":
        check_resume(cfg, args.resume if args.resume in RESUME_CHOICES else "auto")
    return cfg, RunFolder(cfg, mode)


def run(cfg: CfgNode, folder: RunFolder, args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Train, test a trained model, or only build, and leave a record in the run folder.

    Args:
        cfg: From `prepare`.
        folder: From `prepare`.
        args: What `train.parse_args` returned.
        argv: The words it was parsed from, for the record.
    """
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    with log_to(cfg.OUTPUT_DIR):
        engine = ensure_dassl()
        folder.start(argv, engine)
        try:
            _build_and_run(cfg, args, folder, engine)
        except BaseException as error:  # an interrupted run has failed as well
            logger.error("Run failed: %s: %s", type(error).__name__, error)
            folder.finish(error)
            raise
        folder.finish()


def _build_and_run(cfg: CfgNode, args: argparse.Namespace, folder: RunFolder, engine: Engine) -> None:
    if cfg.SEED >= 0:
        logger.info("Setting fixed seed: %d", cfg.SEED)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    log_banners(cfg, args, engine)
    trainer = build_trainer(cfg)
    folder.describe_data(trainer.dm.dataset)
    folder.record_results(trainer)
    if args.eval_only:
        if not args.model_dir and getattr(trainer, "needs_checkpoint", False):
            raise ValueError(f"--eval-only: {cfg.TRAINER.NAME} needs a trained model; give its run folder as --model-dir")
        check_classes(args.model_dir or "", trainer)
        trainer.load_model(args.model_dir or "", epoch=args.load_epoch)
        trainer.test()
    elif not args.no_train:
        trainer.train()


def build_cfg(args: argparse.Namespace) -> CfgNode:
    """Merge defaults < data set file < trainer file < flags < KEY VALUE pairs, and freeze the result.

    Args:
        args: What `train.parse_args` returned. Files named by `--import` are imported here, and add their keys.
    Raises:
        ValueError: With every problem of files and command line in one message.
        FileNotFoundError: If a file is missing.
    """
    modules = [import_file(path) for path in args.imports or ()]
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    for module in modules:
        if hasattr(module, "extend_cfg"):
            module.extend_cfg(cfg)

    settings: list[Setting] = []
    problems: list[str] = []
    for path in (args.dataset_config_file, args.config_file):
        if path is not None:
            found, wrong = read_yaml(path)
            settings += found
            problems += wrong
    settings, outdated = legacy_keys.separate(cfg, settings + command_line_settings(args))
    problems += outdated + merge_settings(cfg, settings)
    problems += label_distribution.find_problems(cfg) + vqa.find_problems(cfg) + caption.find_problems(cfg)
    if problems:
        raise ValueError(f"{len(problems)} problem(s) in the configuration:\n  " + "\n  ".join(problems))
    cfg.freeze()
    return cfg


def check_names(cfg: CfgNode) -> None:
    """Refuse names that nobody registered, before anything is built.

    Raises:
        ValueError: With every unknown name, its key and the registered ones.
    """
    registries = {
        "TRAINER.NAME": (cfg.TRAINER.NAME, TRAINER_REGISTRY),
        "DATASET.NAME": (cfg.DATASET.NAME, DATASET_REGISTRY),
        "TEST.EVALUATOR": (cfg.TEST.EVALUATOR, EVALUATOR_REGISTRY),
    }
    problems = [
        f"{key} is {name!r}; expected one of {', '.join(sorted(registry.registered_names()))}"
        for key, (name, registry) in registries.items()
        if name not in registry.registered_names()
    ]
    if problems:
        raise ValueError("\n  ".join([f"{len(problems)} unknown name(s):", *problems]))


def command_line_settings(args: argparse.Namespace) -> list[Setting]:
    """Flags that were given (0 and "" count), then the KEY VALUE pairs."""
    settings = [
        Setting(key, getattr(args, flag), f"command line, --{flag.replace('_', '-')}")
        for flag, key in FLAG_KEYS.items()
        if getattr(args, flag) is not None
    ]
    if args.data is not None:
        settings += [Setting("DATASET.NAME", OWN_IMAGES, "command line, --data")]
        settings += [Setting("DATASET.ROOT", args.data, "command line, --data")]
    if args.resume is not None and args.resume not in RESUME_CHOICES:
        settings.append(Setting("RESUME", args.resume, "command line, --resume"))
    pairs = zip(args.opts[0::2], args.opts[1::2], strict=True)
    return settings + [Setting(key, value, "command line") for key, value in pairs]


def import_file(path: str) -> ModuleType:
    """Import a user's file, whose decorators register trainers or data sets.

    Its folder is appended to `sys.path` and stays there, so that worker processes find the module too.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its name would import another module (names that one).
    """
    file = Path(path).resolve()
    if not file.is_file() or file.suffix != ".py":
        raise FileNotFoundError(f"--import {path}: no such Python file")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(file.stem)
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != file:
        raise ValueError(f"--import {path}: `import {file.stem}` means {spec and spec.origin}; rename the file")
    return importlib.import_module(file.stem)


@contextmanager
def log_to(output_dir: str) -> Iterator[None]:
    """Copy stdout into the folder's log, and send the log lines of our packages to stdout."""
    console = sys.stdout
    setup_logger(output_dir)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    loggers = [logging.getLogger(name) for name in LOGGED_PACKAGES]
    for package in loggers:
        package.setLevel(logging.INFO)
        package.addHandler(handler)
    try:
        yield
    finally:
        for package in loggers:
            package.removeHandler(handler)
        sys.stdout.flush()
        sys.stdout = console


def log_banners(cfg: CfgNode, args: argparse.Namespace, engine: Engine) -> None:
    """Log arguments, configuration, engine and machine.

    The configuration is shown without the nodes of other trainers; the live one keeps them, since foreign trainers may read a
    relative's node.
    """
    shown = cfg.clone()
    shown.defrost()
    clean_cfg(shown, cfg.TRAINER.NAME)
    arguments = "\n".join(f"{name}: {value}" for name, value in sorted(vars(args).items()))
    logger.info("***************\n** Arguments **\n***************\n%s", arguments)
    logger.info("************\n** Config **\n************\n%s", shown)
    logger.info("Engine: Dassl %s, %s (%s)", engine.version, engine.side, engine.path)
    logger.info("Collecting env info ...\n** System info **\n%s\n", collect_env_info())
