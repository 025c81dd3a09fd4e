"""What the original ViECap's flags mean here: the program, its flags, and KEY VALUE pairs."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.viecap_flags import COMMANDS, MODEL, NODE, VOCABULARY_FILES

ROOT = Path(__file__).resolve().parents[1]
VOCABULARIES = Path("annotations", "vocabulary")
PICKLES = (".pickle", ".pkl", ".p")
CONVERT = "convert it once: python scripts/viecap_convert.py"
EPOCH_FILE = re.compile(r"-(\d+)\.(?:pt|safetensors)")
DATASETS = {"coco": "coco_caption", "flickr30k": "flickr30k_caption", "nocaps": "nocaps"}  # name -> configs/datasets
RECIPES = {"coco_caption": "coco", "flickr30k_caption": "flickr30k"}  # data set -> configs/trainers/viecap
MODEL_KEYS = frozenset(flag.key for flag in MODEL if flag.key)
DEBUG_CAPTIONS = 1000


@dataclass
class Command:
    """What a command line of the original means here.

    Attributes:
        script: train.py or predict.py.
        words: Its flags.
        pairs: Configuration key -> value.
        notes: What the user should know.
        problems: Why it cannot be run.
    """

    script: str
    words: list[str] = field(default_factory=list)
    pairs: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_argv(self, own_pairs: list[str]) -> list[str]:
        """Return the command line, with the user's own pairs behind ours."""
        pairs = [word for key, value in self.pairs.items() for word in (key, str(value))]
        return [str(ROOT / self.script), *self.words, *pairs, *own_pairs]


@dataclass(frozen=True)
class Run:
    """A trained run, and the epoch that was asked for: finished ones, as Dassl counts; None: the best, else the last."""

    folder: Path
    record: Mapping[str, Any]
    epoch: int | None


# Translation ---------------------------------------------------------------------------------------------------------------


def translate(args: argparse.Namespace) -> Command:
    """Return what a parsed command line means."""
    command = {"train": translate_train, "eval": translate_eval, "infer": translate_infer}[args.command](args)
    if args.offline:
        command.words.append("--offline")
    if getattr(args, "text_prompt", None) is not None:
        command.problems.append("--text_prompt belongs to the original's OPT models, which are not supported")
    if args.is_rn:
        command.notes.append("--is_rn sets nothing: the width of CLIP's embedding is read from MODEL.BACKBONE.NAME")
    return command


def translate_train(args: argparse.Namespace) -> Command:
    """train: what `main.py` of the original did."""
    command = Command("train.py")
    data = name_data(args.path_of_datasets)
    add_files(command, args, data)
    command.pairs = keys_of("train", args)
    command.pairs[f"{NODE}.NORMALIZE_PREFIX"] = bool(args.normalize_prefix)
    command.pairs |= {
        f"{NODE}.PATH_OF_OBJECTS_VOCABS": vocabulary_path(args.name_of_objects_vocabs, args.path_of_objects_vocabs, command),
        "SEED": -1 if args.disable_random_seed else args.random_seed,
        f"{NODE}.PREC": precision(args),
        f"{NODE}.DATA_LIMIT": DEBUG_CAPTIONS if args.debug else 0,
        "USE_CUDA": use_device(args.device),
    }
    if args.debug:
        command.pairs[f"{NODE}.WARMUP_STEPS"] = 0
    if not args.dataset_config_file:
        add_training_data(command, Path(args.path_of_datasets))
        if data == "flickr30k_caption":  # its recipe's test is not on a shipped vocabulary
            command.pairs[f"{NODE}.PATH_OF_ENTITIES_TEXT"] = vocabulary_path("vinvl_vgoi_entities", "", command)
    return command


def translate_eval(args: argparse.Namespace) -> Command:
    """eval: what `validation.py` of the original did."""
    command, run = Command("train.py"), find_run(args.weight_path)
    if args.name_of_datasets not in DATASETS:
        command.problems.append(f"--name_of_datasets is {args.name_of_datasets!r}; expected one of {', '.join(DATASETS)}")
    add_files(command, args, DATASETS.get(args.name_of_datasets, "caption_files"))
    command.words += ["--eval-only", "--model-dir", str(run.folder)]
    command.words += [] if run.epoch is None else ["--load-epoch", str(run.epoch)]
    command.pairs = run_keys(run.record) | keys_of("eval", args) | entity_keys(args, run, command)
    command.problems += contradictions(args, run)
    out = Path(run.folder if args.out_path is None else args.out_path)
    command.pairs["OUTPUT_DIR"] = (out.parent if out.suffix == ".json" else out).as_posix()
    command.pairs["USE_CUDA"] = use_device(args.device)
    if not args.dataset_config_file:
        file = Path(args.path_of_val_datasets)
        command.pairs |= place_of(file) | {"DATASET.CAPTION.TEST": file.name}
        command.pairs["DATASET.CAPTION.IMAGES"] = Path(os.path.relpath(args.image_folder, file.parent)).as_posix()
    return command


def translate_infer(args: argparse.Namespace) -> Command:
    """infer: what `infer_by_instance.py` and `infer_by_batch.py` of the original did."""
    command, run = Command("predict.py"), find_run(args.weight_path)
    images = Path(args.image_path)
    output = args.out_path or (images if images.is_dir() else images.parent) / "predictions.jsonl"
    command.words = ["--model-dir", str(run.folder)] + ([] if run.epoch is None else ["--load-epoch", str(run.epoch)])
    command.words += ["--device", "auto" if use_device(args.device) else "cpu"]
    command.words += ["--input", str(images), "--output", str(output)]
    command.pairs = keys_of("infer", args) | entity_keys(args, run, command)
    command.problems += contradictions(args, run)
    return command


def add_files(command: Command, args: argparse.Namespace, data: str) -> None:
    """Add trainer, data set and recipe."""
    recipe = RECIPES.get(data, "text" if args.command == "train" else "coco")
    command.words += [
        "--trainer", "ViECap",
        "--dataset-config-file", args.dataset_config_file or str(ROOT / "configs" / "datasets" / f"{data}.yaml"),
        "--config-file", args.config_file or str(ROOT / "configs" / "trainers" / "viecap" / f"{recipe}.yaml"),
    ]  # fmt: skip


def keys_of(command: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the pairs of the flags that set one key each; in eval and infer, flags of the model only have to agree."""
    given = {flag.key: getattr(args, flag.name) for flag in COMMANDS[command] if flag.key}
    return given if command == "train" else {key: value for key, value in given.items() if key not in MODEL_KEYS}


def run_keys(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pairs that rebuild a run's model."""
    names = [flag.key.removeprefix(f"{NODE}.") for flag in MODEL if flag.key.startswith(NODE)]
    keys = {f"{NODE}.{name}": record["settings"][name] for name in (*names, "STOP")}
    return keys | {"MODEL.BACKBONE.NAME": record["clip"]["name"]}


def entity_keys(args: argparse.Namespace, run: Run, command: Command) -> dict[str, Any]:
    """Return the pairs of retrieval and decoding that are no plain flags; the run's own vocabulary is stored with it."""
    name, path = args.name_of_entities_text, args.path_of_entities_text
    if not path and name == run.record["settings"]["NAME_OF_ENTITIES_TEXT"]:
        path = run.record["settings"]["PATH_OF_ENTITIES_TEXT"]
    else:
        path = vocabulary_path(name, path, command)
    return {f"{NODE}.PATH_OF_ENTITIES_TEXT": path, f"{NODE}.DECODE": "greedy" if args.using_greedy_search else "beam"}


def contradictions(args: argparse.Namespace, run: Run) -> list[str]:
    """Return one message per given flag of the model whose value is not the run's."""
    settings = {f"{NODE}.{name}": value for name, value in run.record["settings"].items()}
    settings["MODEL.BACKBONE.NAME"] = run.record["clip"]["name"]
    problems = []
    for flag in MODEL:
        given = getattr(args, flag.name)
        if not flag.key or given is None:
            continue
        stored = settings[flag.key]
        if type(stored)(given) != stored:
            problems.append(f"--{flag.name} is {given!r}; the run of {run.folder} has {stored!r}")
    return problems


# Files ---------------------------------------------------------------------------------------------------------------------


def name_data(path: str) -> str:
    """Return the data set that a path of training captions means: the original's folders have the names."""
    parts = [part.lower() for part in Path(path).parts]
    return next((DATASETS[name] for name in ("flickr30k", "coco") if any(name in part for part in parts)), "caption_files")


def place_of(file: Path) -> dict[str, str]:
    """Return the pairs that name a file's folder: the one above it is the data root."""
    return {"DATASET.ROOT": file.parent.parent.as_posix(), "DATASET.CAPTION.DIR": file.parent.name}


def add_training_data(command: Command, path: Path) -> None:
    """Name the training captions: a file, a store, or what was converted from a pickle."""
    command.pairs |= place_of(path)
    store = path.with_suffix("") if path.suffix in PICKLES else path
    if (store / "manifest.json").is_file():
        command.pairs[f"{NODE}.STORE_DIR"] = store.as_posix()
    elif path.suffix not in PICKLES:
        command.pairs["DATASET.CAPTION.TRAIN"] = path.name
    elif path.with_suffix(".jsonl").is_file():
        command.pairs["DATASET.CAPTION.TRAIN"] = path.with_suffix(".jsonl").name
    else:
        command.notes.append(f"{path} is not read; entities and text features are computed from the captions beside it")


def vocabulary_path(name: str, path: str, command: Command) -> str:
    """Return the file of a vocabulary, by default where the original keeps it; "" for a shipped or derived one.

    What a pickle is converted to stands in for it; the note says what is still to be done.
    """
    if not path and name not in VOCABULARY_FILES:
        return ""
    file = Path(path) if path else VOCABULARIES / VOCABULARY_FILES[name]
    if file.suffix not in PICKLES:
        return file.as_posix()
    converted = file.with_suffix(".json")
    if not converted.is_file():
        command.notes.append(f"{file} is a pickle, {CONVERT} visual_genome {file} -o {converted}")
    return converted.as_posix()


def find_run(weight_path: str) -> Run:
    """Return the run and the epoch that --weight_path names.

    Raises:
        ValueError: If it names no run.
    """
    path = Path(weight_path)
    match = EPOCH_FILE.search(path.name)
    folders = [path] if match is None else [path.parent, path.parent.parent]
    folder = next((each for each in folders if (each / "viecap.json").is_file()), None)
    if folder is None:
        recipe = "--config-file configs/trainers/viecap/coco.yaml"
        hint = f"; {CONVERT} weights {path} -o RUN {recipe}" if path.suffix == ".pt" and path.is_file() else ""
        raise ValueError(f"--weight_path {path} belongs to no run: there is no {folders[-1] / 'viecap.json'}{hint}")
    record = json.loads((folder / "viecap.json").read_text("utf-8"))
    return Run(folder, record, None if match is None else int(match[1]) + 1)


# Machine ------------------------------------------------------------------------------------------------------------------


def use_device(device: str) -> bool:
    """Return USE_CUDA, and let programs see only the GPU that was named.

    Raises:
        ValueError: If it is neither cuda:N, N nor cpu.
    """
    number = device.removeprefix("cuda:")
    if number.isdecimal():
        os.environ["CUDA_VISIBLE_DEVICES"] = number
    elif device not in ("cuda", "cpu"):
        raise ValueError(f"--device is {device!r}; expected cuda:N, N, cuda or cpu")
    return device != "cpu"


def precision(args: argparse.Namespace) -> str:
    """Return PREC: what --use_amp means on this machine; fp32 without it."""
    if not args.use_amp:
        return "fp32"
    use_device(args.device)  # before torch looks for GPUs
    import torch

    if args.device == "cpu" or not torch.cuda.is_available():
        return "auto"  # bf16 where it is supported, else fp32: scaled fp16 needs a GPU
    return "bf16" if torch.cuda.is_bf16_supported() else "amp"
