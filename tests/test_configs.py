"""Every shipped YAML file merges, and its trainer accepts it: each trainer file with one data set, and the reverse.

A data set file sets nothing but a name, so that the full table of pairs would check the same things over and over. Rungs of a
ladder (`configs/trainers/<name>/ladder/`) are no configs of their own: lists of overrides for each config beside that folder.
"""

from pathlib import Path

import pytest
import yaml
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from yacs.config import CfgNode

import datasets  # noqa: F401  (registers the data sets)
import train
from trainers import runs

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DATASETS = sorted((CONFIGS / "datasets").rglob("*.yaml"))
RUNGS = sorted((CONFIGS / "trainers").glob("*/ladder/*.yaml"))
TRAINERS = sorted(set((CONFIGS / "trainers").rglob("*.yaml")) - set(RUNGS))


def trainer_of(path: Path) -> str:
    """The registered trainer whose name, in snake case, is the file's folder."""
    folder = path.relative_to(CONFIGS / "trainers").parts[0]
    (name,) = [name for name in TRAINER_REGISTRY.registered_names() if name.lower() == folder.replace("_", "")]
    return name


# What a recipe leaves to its user: a style encoder is a file of theirs.
LEFT_OPEN = {"GatedBLIP2": ("TRAINER.GATEDBLIP2.STYLE.FALLBACK", "random")}


def config(dataset: Path, trainer: Path, *overrides: str) -> CfgNode:
    name = trainer_of(trainer)
    words = ["--dataset-config-file", str(dataset), "--config-file", str(trainer), "--trainer", name]
    return runs.build_cfg(train.parse_args([*words, "USE_CUDA", "false", *LEFT_OPEN.get(name, ()), *overrides]))


def check(cfg: CfgNode) -> None:
    """Let the trainer look at a config, as Dassl does: before the instance has attributes."""
    trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    trainer_class.check_cfg(object.__new__(trainer_class), cfg)


def test_there_are_configs_for_every_trainer_of_ours() -> None:
    import trainers

    assert {trainer_of(path) for path in TRAINERS} == set(trainers.__all__)


NEED_A_GPU = {CONFIGS / "trainers" / "gated_blip2" / "nf4.yaml"}
PAIRS = [(DATASETS[0], trainer) for trainer in TRAINERS if trainer not in NEED_A_GPU]
PAIRS += [(dataset, TRAINERS[0]) for dataset in DATASETS[1:]]


@pytest.mark.parametrize(("dataset", "trainer"), PAIRS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_config_merges_and_its_trainer_accepts_it(dataset: Path, trainer: Path) -> None:
    check(config(dataset, trainer))


@pytest.mark.parametrize("trainer", sorted(NEED_A_GPU), ids=lambda path: path.stem)
def test_config_that_needs_a_gpu_says_so(trainer: Path) -> None:
    cfg = config(DATASETS[0], trainer)
    with pytest.raises(ValueError, match="QUANT is 'nf4', which needs a GPU"):
        check(cfg)


@pytest.mark.parametrize("name", ["artquest", "blip2_opt_2_7b", "low_memory", "nf4", "original"])
def test_recipes_of_gated_blip2_ask_for_a_style_encoder(name: str) -> None:
    cfg = config(DATASETS[0], CONFIGS / "trainers" / "gated_blip2" / f"{name}.yaml", *LEFT_OPEN["GatedBLIP2"][:1], "none")
    with pytest.raises(ValueError, match=r"STYLE.CHECKPOINT is empty"):
        check(cfg)


def test_ladder_has_every_rung() -> None:
    names = [path.stem for path in RUNGS if path.parts[-3] == "bgobj_llava"]
    assert names == ["E0", "E1", "E2", "E2i", "E3", "E4", "E5", "E6", "E7", "E8", "E9"]


@pytest.mark.parametrize("rung", RUNGS, ids=lambda path: path.stem)
def test_rung_is_a_list_of_overrides_that_every_config_beside_the_ladder_takes(rung: Path) -> None:
    content = yaml.safe_load(rung.read_text("utf-8"))
    assert set(content) - {"miniature_lr"} == {"meaning", "trains", "overrides"} and content["meaning"]
    assert content["trains"] == ("OPTIM.LR" in content["overrides"]) == ("miniature_lr" in content)
    words = [str(word) for pair in content["overrides"].items() for word in pair]
    for trainer in sorted(rung.parents[1].glob("*.yaml")):
        check(config(DATASETS[0], trainer, *words))


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda path: path.stem)
def test_dataset_file_sets_the_name_of_a_registered_set_only(dataset: Path) -> None:
    settings, problems = runs.read_yaml(str(dataset))
    assert problems == []
    assert [setting.key for setting in settings] == ["DATASET.NAME"]
    assert settings[0].value in DATASET_REGISTRY.registered_names()


@pytest.mark.parametrize("path", DATASETS + TRAINERS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_config_sets_nothing_that_belongs_to_the_run(path: Path) -> None:
    settings, _ = runs.read_yaml(str(path))
    own = {"SEED", "OUTPUT_DIR", "RESUME", "DATASET.ROOT"}
    assert own & {setting.key for setting in settings} == set()


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_config_header_shows_a_command_that_parses_and_names_this_file(trainer: Path) -> None:
    head = " ".join(line.strip("# \\\n") for line in trainer.read_text("utf-8").splitlines() if line.startswith("#"))
    command = head[head.index("python train.py") :].split()[2:]
    args = train.parse_args(command)
    assert args.trainer == trainer_of(trainer)
    assert args.config_file == trainer.relative_to(CONFIGS.parent).as_posix()
    assert (CONFIGS.parent / args.dataset_config_file).is_file()
