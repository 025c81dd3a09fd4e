"""What a continued run may not change, and the hash of what a training depends on."""

from __future__ import annotations

from typing import Any

import pytest
from dassl.config import get_cfg_default
from yacs.config import CfgNode

from trainers.config import add_trainer_configs
from trainers.run_folder import hash_settings
from trainers.run_identity import check_identity


def settings(**overrides: Any) -> CfgNode:
    """Config of a BgObjLLaVA run; `OPTIM__LR=1` sets OPTIM.LR."""
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    cfg.TRAINER.NAME = "BgObjLLaVA"
    for name, value in overrides.items():
        cfg.merge_from_list([name.replace("__", "."), value])
    return cfg


def test_the_same_run_passes_and_every_difference_of_another_is_told() -> None:
    was = {"data": "a" * 64, "PRESET": "gates", "SEED": 1}
    check_identity(was, dict(was))
    with pytest.raises(ValueError) as caught:
        check_identity(was, {"data": "b" * 64, "PRESET": "gates", "base": "c"})
    assert str(caught.value).splitlines() == [
        "cannot continue the run, 3 thing(s) differ:",
        "  SEED: the run has 1, now None",
        "  base: the run has None, now 'c'",
        f"  data: the run has {'a' * 12}..., now {'b' * 12}...",
    ]


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"OPTIM__LR": 0.5}, False),
        ({"TRAINER__BGOBJLLAVA__LORA__R": 3}, False),
        ({"TRAINER__NAME": "ViECap"}, False),
        ({"OUTPUT_DIR": "elsewhere"}, True),
        ({"TRAINER__BGOBJLLAVA__GEN__MAX_NEW_TOKENS": 3}, True),
        ({"TRAINER__VIECAP__NUM_LAYERS": 3}, True),
    ],
)
def test_a_hash_of_settings_covers_what_a_training_depends_on(changed: dict[str, Any], same: bool) -> None:
    assert (hash_settings(settings(**changed)) == hash_settings(settings())) == same
