"""What cannot work in the LaFTer family's settings, all found at once before anything is built."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from trainers.schedules import OLDER_SPELLINGS, SCHEDULES


def find_problems(cfg: CfgNode, node_name: str) -> list[str]:
    """Return one message per combination of keys that cannot work.

    Args:
        cfg: The full config.
        node_name: Of the trainer's node below `TRAINER`.
    """
    node, name = cfg.TRAINER[node_name], f"TRAINER.{node_name}"
    by_mode = _label_free_problems if node.MODE == "pseudo" else _supervised_problems
    return [*by_mode(cfg, node, name), *_dual_problems(cfg, node, name), *_schedule_problems(cfg, node, name)]


def _label_free_problems(cfg: CfgNode, node: CfgNode, name: str) -> list[str]:
    problems = []
    if cfg.DATASET.NUM_SHOTS >= 1:
        problems.append(
            f"DATASET.NUM_SHOTS is {cfg.DATASET.NUM_SHOTS}: few-shot sampling reads labels, {name}.MODE pseudo must not"
        )
    if cfg.TEST.FINAL_MODEL == "best_val":
        problems.append(f"TEST.FINAL_MODEL is 'best_val', which reads labels; expected last_step, or {name}.SELECT proxy")
    if node.DUAL.ENABLED and node.DUAL.STRATEGY == "json":
        problems.append(f"{name}.DUAL.STRATEGY is 'json', which reads votes; {name}.MODE pseudo must not: expected strategy1")
    return problems + _teacher_problems(node, name)


def _supervised_problems(cfg: CfgNode, node: CfgNode, name: str) -> list[str]:
    problems = []
    if node.SELECT == "proxy":
        problems.append(
            f"{name}.SELECT is 'proxy', which is for {name}.MODE pseudo; expected dassl (TEST.FINAL_MODEL best_val)"
        )
    if node.PHASE == "text_only":
        if node.MODE == "direct":
            problems.append(f"{name}.PHASE is 'text_only', but {name}.MODE direct has no text phase; expected both")
        elif cfg.TEST.FINAL_MODEL == "best_val":
            problems.append(f"TEST.FINAL_MODEL is 'best_val', but {name}.PHASE text_only has no epochs; expected last_step")
    if node.MODE == "direct" and node.CLASSIFIER_INIT == "text_mean":
        problems.append(f"{name}.CLASSIFIER_INIT is 'text_mean', but {name}.MODE direct reads no texts; expected random")
    return problems


def _dual_problems(cfg: CfgNode, node: CfgNode, name: str) -> list[str]:
    problems, enabled = [], node.DUAL.ENABLED or node.MODE == "direct"
    if node.DUAL.HEADS == "dual" and not enabled:
        problems.append(f"{name}.DUAL.HEADS is 'dual', but the dual task is off; expected single, or {name}.DUAL.ENABLED True")
    if len(set(node.DUAL.RING)) < len(node.DUAL.RING):
        problems.append(f"{name}.DUAL.RING is {node.DUAL.RING}; expected every class name once")
    if enabled and node.DUAL.STRATEGY == "strategy1" and not node.DUAL.RING and not _has_ring(cfg.DATASET.NAME):
        problems.append(
            f"{name}.DUAL.STRATEGY is 'strategy1', but data set {cfg.DATASET.NAME} has no emotion ring; "
            f"set {name}.DUAL.RING to all class names in ring order"
        )
    return problems


def _has_ring(dataset: str) -> bool:
    """Whether a data set may have a ring; whether it fits the classes shows once the data are read."""
    return dataset not in DATASET_REGISTRY.registered_names() or hasattr(DATASET_REGISTRY.get(dataset), "emotion_ring")


def _teacher_problems(node: CfgNode, name: str) -> list[str]:
    problems = []
    if node.TEACHER in ("shared", "ema"):
        if node.AUGMENT not in ("auto", "two_crop"):
            problems.append(
                f"{name}.AUGMENT is {node.AUGMENT!r}; TEACHER {node.TEACHER} labels weak views online: "
                "expected auto or two_crop"
            )
        if node.DIST_ALIGN != "none":
            problems.append(
                f"{name}.DIST_ALIGN is {node.DIST_ALIGN!r}; it needs the whole set: expected TEACHER frozen or self"
            )
        if node.KEEP_SHARE < 1:
            problems.append(f"{name}.KEEP_SHARE is {node.KEEP_SHARE}; it needs the whole set: expected TEACHER frozen or self")
    if node.DIST_ALIGN == "shares" and not node.CLASS_SHARES:
        problems.append(f"{name}.DIST_ALIGN is 'shares', but CLASS_SHARES is empty; expected one positive number per class")
    if node.DIST_ALIGN != "shares" and node.CLASS_SHARES:
        problems.append(f"{name}.CLASS_SHARES is set, but DIST_ALIGN is {node.DIST_ALIGN!r}; expected shares")
    return problems


def _schedule_problems(cfg: CfgNode, node: CfgNode, name: str) -> list[str]:
    problems = []
    if node.SCHEDULER not in (*SCHEDULES, *OLDER_SPELLINGS):
        known = ", ".join((*SCHEDULES, *OLDER_SPELLINGS))
        problems.append(f"{name}.SCHEDULER is {node.SCHEDULER!r}; expected one of {known}")
    resolved = OLDER_SPELLINGS.get(node.SCHEDULER, node.SCHEDULER)
    if resolved.startswith("warmup") and node.PHASE == "both" and node.WARMUP_EPOCHS >= cfg.OPTIM.MAX_EPOCH:
        problems.append(
            f"{name}.WARMUP_EPOCHS is {node.WARMUP_EPOCHS}; expected fewer than OPTIM.MAX_EPOCH {cfg.OPTIM.MAX_EPOCH}"
        )
    if resolved == "dassl" and node.SCHEDULER_STEP != "epoch":
        problems.append(f"{name}.SCHEDULER_STEP is {node.SCHEDULER_STEP!r}; SCHEDULER dassl counts epochs: expected epoch")
    return problems
