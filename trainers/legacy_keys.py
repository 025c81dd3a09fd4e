"""Keys of an earlier configuration, and what to write instead.

They are no aliases: a setting that uses one is a mistake, and its message names the new key with the translated value. So an
old file is moved over in one pass, and no run depends on two spellings of one thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from yacs.config import CfgNode

from clip_ext.stages import from_legacy
from trainers.config import CHOICES
from trainers.config_merge import Setting, decode

# Config nodes of which nothing is left.
ROOTS = ("HYBRID_CASCADE", "MULTI_LAYER_PROMPT", "NGA", "CONSISTENCY_LOSS")

LAFTER, MULTI_LAYER, HYBRID = FAMILY = ("LAFTER", "MULTILAYERLAFTER", "HYBRIDCASCADELAFTER")
NODES = ("ZEROSHOTCLIP", *FAMILY)

# Old key -> (node of its successor unless the trainer at work has that key, successor); values stay as they are.
RENAMED = {
    "HYBRID_CASCADE.CONSISTENCY_LOSS_WEIGHT": (HYBRID, "CONS_WEIGHT"),
    "HYBRID_CASCADE.NGA_INIT_SIGMA": (HYBRID, "NGA_SIGMA_INIT"),
    "MULTI_LAYER_PROMPT.TOKENS_PER_STAGE": (MULTI_LAYER, "PROMPT_TOKENS"),
    "MULTI_LAYER_PROMPT.PROGRESSIVE_TRAINING": (MULTI_LAYER, "PROGRESSIVE"),
    "MULTI_LAYER_PROMPT.WARMUP_EPOCHS": (MULTI_LAYER, "PROGRESSIVE_WARMUP"),
    "MULTI_LAYER_PROMPT.PROGRESSIVE_EPOCHS": (MULTI_LAYER, "PROGRESSIVE_EPOCHS"),
    "NGA.INIT_SIGMA": (HYBRID, "NGA_SIGMA_INIT"),
    "CONSISTENCY_LOSS.ALPHA": (HYBRID, "CONS_WEIGHT"),
    "DATASET.DISTRIBUTION_STRATEGY": (LAFTER, "DUAL.STRATEGY"),
    "DATASET.SIGMA_CONF": (LAFTER, "DUAL.SIGMA"),
    "DATASET.EPSILON": (LAFTER, "DUAL.EPSILON"),
    "TRAINER.COOP.PREC": (LAFTER, "PREC"),
}
WITHOUT_SUCCESSOR = {
    "MULTI_LAYER_PROMPT.ENABLED": "delete it: --trainer MultiLayerLaFTer is the switch",
    "MULTI_LAYER_PROMPT.NUM_STAGES": "delete it: STAGE_SCHEME or STAGES says how many stages there are",
    "NGA.LEARNABLE_SIGMA": "delete it: the widths are learned with NGA_MODE gaussian; mean and last have none",
}
TRANSLATED = (
    "HYBRID_CASCADE.STAGE_BOUNDARIES", "HYBRID_CASCADE.EXTRACTION_INDICES", "DATASET.SPLIT_STRATEGY", "DATASET.SPLIT_RATIO",
    "ENABLE_AUGMENTATION", "USE_TWO_CROPS", "txt_cls",
)  # fmt: skip

# What the two keys of the stages meant if only one of them was set.
OLD_BOUNDARIES, OLD_INDICES = [[0, 1, 2], [3, 4], [5, 6, 7]], list(range(4, 12))


def separate(cfg: CfgNode, settings: Sequence[Setting]) -> tuple[list[Setting], list[str]]:
    """Take settings of outdated keys out of a list.

    Args:
        cfg: The tree that the settings are meant for; a key that it declares (a user's own trainer may) is not outdated.
        settings: In merge order.
    Returns:
        The other settings, and one message per outdated one: source, key, value, and what to write instead.
    """
    names = [str(setting.value) for setting in settings if setting.key == "TRAINER.NAME"]
    trainer = names[-1].upper() if names else cfg.TRAINER.NAME.upper()
    outdated = [setting for setting in settings if _is_outdated(cfg, setting.key, trainer)]
    values = {setting.key: decode(setting.value) for setting in outdated}
    messages = []
    for setting in outdated:
        advisor = _Advisor(cfg, trainer, {**values, setting.key: decode(setting.value)})
        given = f"{setting.key} (given {setting.value!r})"
        messages.append(f"{setting.source}: {given} is no longer a key; {advisor.advice(setting.key)}")
    return [setting for setting in settings if setting not in outdated], messages


def _is_outdated(cfg: CfgNode, key: str, trainer: str) -> bool:
    if key == "TRAINER.COOP.PREC":  # CoOp's own key; LaFTer's public code read it for LaFTer
        return trainer in NODES
    known = key in RENAMED or key in TRANSLATED or key.split(".")[0] in ROOTS
    return known and not _has(cfg, key)


def _has(node: CfgNode, key: str) -> bool:
    first, _, rest = key.partition(".")
    return first in node and (not rest or (isinstance(node[first], CfgNode) and _has(node[first], rest)))


@dataclass(frozen=True)
class _Advisor:
    """Knows what to write instead of an outdated key.

    Attributes:
        cfg: The new tree.
        trainer: Node name of the trainer at work, perhaps of none of ours.
        values: All outdated settings of the run, since some are translated together.
    """

    cfg: CfgNode
    trainer: str
    values: Mapping[str, object]

    def advice(self, key: str) -> str:
        """Return the end of the message about `key`."""
        if key in WITHOUT_SUCCESSOR:
            return WITHOUT_SUCCESSOR[key]
        if key in RENAMED:
            home, successor = RENAMED[key]
            return f"write {self._below_trainer(successor, home)} {self.values[key]}"
        if key in ("HYBRID_CASCADE.STAGE_BOUNDARIES", "HYBRID_CASCADE.EXTRACTION_INDICES"):
            return self._stages()
        if key in ("ENABLE_AUGMENTATION", "USE_TWO_CROPS"):
            return self._views()
        if key == "DATASET.SPLIT_STRATEGY":
            return "write DATASET.SPLIT seeded (or auto, coop, official)"
        if key == "DATASET.SPLIT_RATIO":
            return self._test_share()
        if key == "txt_cls":
            return self._texts()
        return f"of {key.split('.')[0]} nothing is left: docs/TRAINERS.md lists what replaced its keys"

    def _below_trainer(self, key: str, home: str = LAFTER) -> str:
        own = self.trainer in NODES and _has(self.cfg.TRAINER[self.trainer], key)
        return f"TRAINER.{self.trainer if own else home}.{key}"

    def _stages(self) -> str:
        boundaries = self.values.get("HYBRID_CASCADE.STAGE_BOUNDARIES", OLD_BOUNDARIES)
        indices = self.values.get("HYBRID_CASCADE.EXTRACTION_INDICES", OLD_INDICES)
        key = self._below_trainer("STAGES", HYBRID)
        try:
            return f'write {key} "{from_legacy(boundaries, indices)}"'
        except (TypeError, IndexError):
            return f"write {key}, lists of 1-based blocks (boundaries {boundaries} do not point into indices {indices})"

    def _views(self) -> str:
        if str(self.values.get("ENABLE_AUGMENTATION", True)).lower() == "false":
            views = "none"
        else:
            views = "two_crop" if str(self.values.get("USE_TWO_CROPS")).lower() == "true" else "single_crop"
        return f"write {self._below_trainer('AUGMENT')} {views}"

    def _test_share(self) -> str:
        ratio = self.values["DATASET.SPLIT_RATIO"]
        is_share = isinstance(ratio, (int, float)) and 0 < ratio <= 1
        return f"write DATASET.TEST_PERCENT {round(1 - ratio, 10) if is_share else '= 1 - ratio'}"

    def _texts(self) -> str:
        mode = self.values["txt_cls"]
        if mode == "zero_shot":
            return "write --trainer ZeroshotCLIP: the baseline is a trainer of its own"
        known = CHOICES["TEXT.MODE"]
        return f"write {self._below_trainer('TEXT.MODE')} {mode if mode in known else 'and one of ' + ', '.join(known)}"
