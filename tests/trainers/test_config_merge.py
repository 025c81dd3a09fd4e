"""Settings: what is accepted, and that every mistake is found and reported at once."""

from pathlib import Path

import pytest
from dassl.config import get_cfg_default
from yacs.config import CfgNode

from trainers.config_merge import Setting, flatten, merge_settings, read_yaml


@pytest.fixture
def cfg() -> CfgNode:
    return get_cfg_default()


def write(folder: Path, text: str) -> str:
    path = folder / "settings.yaml"
    path.write_text(text, "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("OPTIM.LR", 1, 1.0),
        ("OPTIM.LR", "1", 1.0),
        ("OPTIM.LR", "1e-4", 1e-4),
        ("USE_CUDA", "false", False),
        ("USE_CUDA", "TRUE", True),
        ("INPUT.SIZE", [48, 48], (48, 48)),
        ("INPUT.SIZE", "(48, 48)", (48, 48)),
        ("INPUT.PIXEL_MEAN", "(0, 0, 0)", [0, 0, 0]),
        ("DATASET.NAME", "101", "101"),
        ("DATASET.NAME", "'quoted'", "quoted"),
        ("DATASET.ROOT", "~/my data", "~/my data"),
        ("SEED", 0, 0),
    ],
)
def test_merge_settings_accepts_and_converts(cfg: CfgNode, key: str, given: object, expected: object) -> None:
    assert merge_settings(cfg, [Setting(key, given, "here")]) == []
    value = dict(flatten(cfg))[key]
    assert (value, type(value)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("key", "given", "kind"),
    [
        ("OPTIM.LR", "fast", "float"),
        ("OPTIM.LR", True, "float"),
        ("SEED", 1.5, "int"),
        ("SEED", True, "int"),
        ("USE_CUDA", 1, "bool"),
        ("USE_CUDA", "no", "bool"),
        ("INPUT.SIZE", 48, "tuple"),
        ("DATASET.NAME", 101, "str"),
        ("OPTIM.LR", None, "float"),
    ],
)
def test_merge_settings_with_a_wrong_type_names_key_value_and_type(
    cfg: CfgNode, key: str, given: object, kind: str
) -> None:
    before = cfg.dump()
    (problem,) = merge_settings(cfg, [Setting(key, given, "a.yaml, line 3")])
    assert problem.startswith(f"a.yaml, line 3: {key} is {given!r}; expected {kind}")
    assert cfg.dump() == before


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("OPTIM.LRR", "OPTIM.LR"), ("LR", "OPTIM.LR"), ("TRAIN.BATCH_SIZE", "DATALOADER.TRAIN_X.BATCH_SIZE"),
     ("SEED.VALUE", None), ("OPTIM.LR.X", "OPTIM.LR")],
)  # fmt: skip
def test_merge_settings_with_an_unknown_key_names_the_nearest(cfg: CfgNode, key: str, nearest: str | None) -> None:
    (problem,) = merge_settings(cfg, [Setting(key, 1, "here")])
    assert f"no key {key} (given 1)" in problem
    assert nearest is None or problem.endswith(f"nearest is {nearest}")


def test_merge_settings_on_a_node_says_that_it_holds_keys(cfg: CfgNode) -> None:
    (problem,) = merge_settings(cfg, [Setting("OPTIM", "sgd", "here")])
    assert problem == "here: OPTIM is 'sgd'; it holds further keys, not a value"


@pytest.mark.parametrize("key", ["OPTIM.NAME", "OPTIM.LR_SCHEDULER", "OPTIM.WARMUP_TYPE", "TRAIN.COUNT_ITER"])
def test_merge_settings_with_an_unknown_word_names_key_and_allowed_words(cfg: CfgNode, key: str) -> None:
    default = dict(flatten(cfg))[key]
    (problem,) = merge_settings(cfg, [Setting(key, "foo", "here")])
    assert problem.startswith(f"{key} is 'foo'; expected one of")
    assert default in problem


def test_merge_settings_lets_a_user_node_take_new_keys(cfg: CfgNode) -> None:
    cfg.TRAINER.MINE = CfgNode(new_allowed=True)
    assert merge_settings(cfg, [Setting("TRAINER.MINE.ALPHA", "0.5", "here")]) == []
    assert cfg.TRAINER.MINE.ALPHA == 0.5


def test_read_yaml_gives_keys_values_and_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "OPTIM:\n  LR: 1e-4\n  NEW_LAYERS: [a, b]\n\nSEED: 3\n")
    settings, problems = read_yaml(path)
    assert problems == []
    assert settings == [
        Setting("OPTIM.LR", "1e-4", f"{path}, line 2"),
        Setting("OPTIM.NEW_LAYERS", ["a", "b"], f"{path}, line 3"),
        Setting("SEED", 3, f"{path}, line 5"),
    ]


def test_read_yaml_with_repeated_keys_names_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "OPTIM:\n  LR: 1.0\n  NAME: sgd\n  LR: 2.0\nSEED: 1\nOPTIM:\n  GAMMA: 0.1\n")
    _, problems = read_yaml(path)
    assert problems == [
        f"{path}: OPTIM stands twice, in line 1 and in line 6",
        f"{path}: OPTIM.LR stands twice, in line 2 and in line 4",
    ]


def test_read_yaml_lets_a_key_override_an_anchor(tmp_path: Path) -> None:
    path = write(tmp_path, "OPTIM: &o\n  LR: 1.0\nTRAIN:\n  <<: *o\n  LR: 2.0\n")
    settings, problems = read_yaml(path)
    assert problems == []
    assert [(s.key, s.value) for s in settings][-1] == ("TRAIN.LR", 2.0)


@pytest.mark.parametrize(("text", "message"), [("a: [1", "not readable as YAML"), ("just words", "expected a mapping")])
def test_read_yaml_with_broken_text_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    settings, (problem,) = read_yaml(path)
    assert settings == []
    assert problem.startswith(path) and message in problem


def test_read_yaml_empty_file_is_no_setting(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "# nothing\n")) == ([], [])


def test_read_yaml_missing_file_is_an_error_naming_it() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        read_yaml("nowhere.yaml")
