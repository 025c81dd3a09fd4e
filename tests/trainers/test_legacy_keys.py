"""Keys of an earlier configuration: each is an error that says what to write, from a file and from the command line alike."""

import re
import shlex
from pathlib import Path

import pytest
from dassl.config import get_cfg_default
from yacs.config import CfgNode

import train
from trainers import legacy_keys, runs
from trainers.config import add_trainer_configs
from trainers.config_merge import Setting, merge_settings

HYBRID, MULTI, LAFTER = "HybridCascadeLaFTer", "MultiLayerLaFTer", "LaFTer"

# trainer at work, old settings, what to write
TRANSLATIONS = [
    (HYBRID, {"HYBRID_CASCADE.CONSISTENCY_LOSS_WEIGHT": "0.3"}, "TRAINER.HYBRIDCASCADELAFTER.CONS_WEIGHT 0.3"),
    (HYBRID, {"HYBRID_CASCADE.NGA_INIT_SIGMA": "0.5"}, "TRAINER.HYBRIDCASCADELAFTER.NGA_SIGMA_INIT 0.5"),
    (MULTI, {"MULTI_LAYER_PROMPT.TOKENS_PER_STAGE": "8"}, "TRAINER.MULTILAYERLAFTER.PROMPT_TOKENS 8"),
    (MULTI, {"MULTI_LAYER_PROMPT.PROGRESSIVE_TRAINING": "False"}, "TRAINER.MULTILAYERLAFTER.PROGRESSIVE False"),
    (MULTI, {"MULTI_LAYER_PROMPT.WARMUP_EPOCHS": "1"}, "TRAINER.MULTILAYERLAFTER.PROGRESSIVE_WARMUP 1"),
    (MULTI, {"MULTI_LAYER_PROMPT.PROGRESSIVE_EPOCHS": "4"}, "TRAINER.MULTILAYERLAFTER.PROGRESSIVE_EPOCHS 4"),
    (HYBRID, {"NGA.INIT_SIGMA": "1.5"}, "TRAINER.HYBRIDCASCADELAFTER.NGA_SIGMA_INIT 1.5"),
    (MULTI, {"NGA.INIT_SIGMA": "1.5"}, "TRAINER.MULTILAYERLAFTER.NGA_SIGMA_INIT 1.5"),
    (MULTI, {"CONSISTENCY_LOSS.ALPHA": "0.2"}, "TRAINER.MULTILAYERLAFTER.CONS_WEIGHT 0.2"),
    (LAFTER, {"DATASET.DISTRIBUTION_STRATEGY": "strategy1"}, "TRAINER.LAFTER.DUAL.STRATEGY strategy1"),
    (HYBRID, {"DATASET.SIGMA_CONF": "2.5"}, "TRAINER.HYBRIDCASCADELAFTER.DUAL.SIGMA 2.5"),
    (LAFTER, {"DATASET.EPSILON": "0.2"}, "TRAINER.LAFTER.DUAL.EPSILON 0.2"),
    (LAFTER, {"DATASET.SPLIT_STRATEGY": "stratified"}, "DATASET.SPLIT seeded"),
    (LAFTER, {"DATASET.SPLIT_RATIO": "0.8"}, "DATASET.TEST_PERCENT 0.2"),
    (LAFTER, {"ENABLE_AUGMENTATION": "False"}, "TRAINER.LAFTER.AUGMENT none"),
    (LAFTER, {"ENABLE_AUGMENTATION": "True"}, "TRAINER.LAFTER.AUGMENT single_crop"),
    (HYBRID, {"USE_TWO_CROPS": "True"}, "TRAINER.HYBRIDCASCADELAFTER.AUGMENT two_crop"),
    (LAFTER, {"USE_TWO_CROPS": "False"}, "TRAINER.LAFTER.AUGMENT single_crop"),
    (LAFTER, {"TRAINER.COOP.PREC": "amp"}, "TRAINER.LAFTER.PREC amp"),
    ("ZeroshotCLIP", {"TRAINER.COOP.PREC": "fp16"}, "TRAINER.ZEROSHOTCLIP.PREC fp16"),
    (HYBRID, {"txt_cls": "templates_only"}, "TRAINER.HYBRIDCASCADELAFTER.TEXT.MODE templates_only"),
    (LAFTER, {"txt_cls": "zero_shot"}, "--trainer ZeroshotCLIP"),
    (
        HYBRID,
        {"HYBRID_CASCADE.STAGE_BOUNDARIES": "[[0, 1], [2]]", "HYBRID_CASCADE.EXTRACTION_INDICES": "[9, 10, 11]"},
        'TRAINER.HYBRIDCASCADELAFTER.STAGES "[[10, 11], [12]]"',
    ),
    (
        HYBRID,
        {"HYBRID_CASCADE.EXTRACTION_INDICES": "[4, 5, 6, 7, 8, 9, 10, 11]"},
        'TRAINER.HYBRIDCASCADELAFTER.STAGES "[[5, 6, 7], [8, 9], [10, 11, 12]]"',
    ),
    (LAFTER, {"ENABLE_AUGMENTATION": "False", "USE_TWO_CROPS": "True"}, "TRAINER.LAFTER.AUGMENT none"),
    (LAFTER, {"ENABLE_AUGMENTATION": "True", "USE_TWO_CROPS": "True"}, "TRAINER.LAFTER.AUGMENT two_crop"),
]


def new_tree() -> CfgNode:
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    return cfg


def messages(trainer: str, old: dict[str, str]) -> list[str]:
    settings = [Setting("TRAINER.NAME", trainer, "flag"), *(Setting(key, value, "here") for key, value in old.items())]
    kept, found = legacy_keys.separate(new_tree(), settings)
    assert kept == settings[:1]
    return found


@pytest.mark.parametrize(("trainer", "old", "successor"), TRANSLATIONS)
def test_old_key_is_an_error_that_names_the_new_one_and_its_value(trainer, old, successor):
    found = messages(trainer, old)
    assert len(found) == len(old)
    for (key, value), message in zip(old.items(), found, strict=True):
        assert message.startswith(f"here: {key} (given {value!r}) is no longer a key; write {successor}")


@pytest.mark.parametrize(("trainer", "old", "successor"), [row for row in TRANSLATIONS if not row[2].startswith("--")])
def test_what_is_to_be_written_is_accepted(trainer, old, successor):
    key, value = shlex.split(successor)
    assert merge_settings(new_tree(), [Setting(key, value, "there")]) == []


def test_all_old_keys_together_are_reported_together():
    every = [*legacy_keys.RENAMED, *legacy_keys.WITHOUT_SUCCESSOR, *legacy_keys.TRANSLATED]
    found = messages(HYBRID, dict.fromkeys(every, "1"))
    assert [re.match(r"here: (\S+) ", message)[1] for message in found] == every


@pytest.mark.parametrize("key", sorted(legacy_keys.WITHOUT_SUCCESSOR))
def test_a_key_without_successor_says_why_it_can_go(key):
    (message,) = messages(MULTI, {key: "True"})
    assert "; delete it: " in message


@pytest.mark.parametrize("key", ["HYBRID_CASCADE", "NGA.WIDTH", "MULTI_LAYER_PROMPT.DEPTH.MAX"])
def test_anything_else_below_an_old_node_points_to_the_table(key):
    (message,) = messages(HYBRID, {key: "1"})
    assert f"of {key.split('.')[0]} nothing is left: docs/TRAINERS.md" in message


@pytest.mark.parametrize(("key", "value", "hint"), [
    ("DATASET.SPLIT_RATIO", "most", "write DATASET.TEST_PERCENT = 1 - ratio"),
    ("txt_cls", "tap", "one of lafter, cls_only"),
    ("HYBRID_CASCADE.STAGE_BOUNDARIES", "[[0, 99]]", "STAGES, lists of 1-based blocks"),
    ("HYBRID_CASCADE.STAGE_BOUNDARIES", "3", "STAGES, lists of 1-based blocks"),
])  # fmt: skip
def test_a_value_that_cannot_be_translated_still_gets_its_new_key(key, value, hint):
    (message,) = messages(LAFTER, {key: value})
    assert hint in message


def test_without_one_of_our_trainers_shared_keys_point_to_lafter():
    (message,) = messages("Unknown", {"DATASET.EPSILON": "0.2"})
    assert message.endswith("write TRAINER.LAFTER.DUAL.EPSILON 0.2")


def test_coops_own_precision_belongs_to_coops_trainers():
    cfg = new_tree()
    cfg.TRAINER.COOP = CfgNode({"PREC": "fp16"})
    settings = [Setting("TRAINER.NAME", "CoOp", "flag"), Setting("TRAINER.COOP.PREC", "amp", "here")]
    assert legacy_keys.separate(cfg, settings) == (settings, [])


def test_a_key_that_a_users_trainer_declares_is_not_outdated():
    cfg = new_tree()
    cfg.txt_cls = ""
    settings = [Setting("txt_cls", "lafter", "here")]
    assert legacy_keys.separate(cfg, settings) == (settings, [])


def test_file_and_command_line_give_one_report_with_file_and_line(tmp_path: Path):
    file = tmp_path / "old.yaml"
    file.write_text(
        "TRAINER:\n  NAME: HybridCascadeLaFTer\n  COOP:\n    PREC: fp32\nOPTIM:\n  LRR: 1\n"
        "HYBRID_CASCADE:\n  NGA_INIT_SIGMA: 0.5\n  STAGE_BOUNDARIES: [[0, 1, 2], [3, 4], [5, 6, 7]]\n"
    )
    words = ["--config-file", str(file), "NGA.INIT_SIGMA", "0.7", "USE_TWO_CROPS", "true"]
    with pytest.raises(ValueError) as caught:
        runs.build_cfg(train.parse_args(words))
    first, *lines = [line.strip() for line in str(caught.value).splitlines()]
    assert first.startswith("6 problem(s)") and len(lines) == 6
    node = "TRAINER.HYBRIDCASCADELAFTER"
    for place, key, successor in (
        (f"{file}, line 4", "TRAINER.COOP.PREC", f"{node}.PREC fp32"),
        (f"{file}, line 8", "HYBRID_CASCADE.NGA_INIT_SIGMA", f"{node}.NGA_SIGMA_INIT 0.5"),
        (f"{file}, line 9", "HYBRID_CASCADE.STAGE_BOUNDARIES", f'{node}.STAGES "[[5, 6, 7], [8, 9], [10, 11, 12]]"'),
        ("command line", "NGA.INIT_SIGMA", f"{node}.NGA_SIGMA_INIT 0.7"),
        ("command line", "USE_TWO_CROPS", f"{node}.AUGMENT "),
    ):
        assert any(line.startswith(f"{place}: {key} ") and f"write {successor}" in line for line in lines), (key, lines)
    assert any("there is no key OPTIM.LRR" in line for line in lines)


def test_true_in_small_letters_counts_on_the_command_line():
    assert messages(LAFTER, {"USE_TWO_CROPS": "true"})[0].endswith("AUGMENT two_crop")


def test_an_evaluators_key_without_its_evaluator_is_in_the_same_report():
    with pytest.raises(ValueError, match="(?s)2 problem.*EPSILON.*TEST.LDL_SYNTHETIC is True, but TEST.EVALUATOR"):
        runs.build_cfg(train.parse_args(["TEST.LDL_SYNTHETIC", "True", "DATASET.EPSILON", "0"]))
