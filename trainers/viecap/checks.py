"""What cannot work in ViECap's settings, all found at once before anything is built."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Collection

from yacs.config import CfgNode

from trainers.config import problems_with_choices
from trainers.viecap.config import (
    CHOICES,
    ENTITY_VOCABULARIES,
    JAVA_METRICS,
    NEED_A_PATH,
    OBJECT_VOCABULARIES,
    RANGES,
)

NAME = "TRAINER.VIECAP"
EVALUATOR = "Captioning"
LIBRARIES = ("transformers",)
OPTIMIZERS = ("adam", "adamw")  # the ones that know an epsilon


def find_problems(cfg: CfgNode) -> list[str]:
    """Return one message per value or combination of keys that cannot work.

    Args:
        cfg: The full config.
    """
    node = cfg.TRAINER.VIECAP
    problems = problems_with_choices(node, NAME, CHOICES, RANGES)
    problems += [*_library_problems(node), *_run_problems(cfg, node), *_prompt_problems(node)]
    problems += [*_vocabulary_problems(node), *_decoding_problems(node)]
    return problems


def _library_problems(node: CfgNode) -> list[str]:
    needed = [*LIBRARIES, *(name for name in ("textblob", "nltk") if node.ENTITY_EXTRACTOR == name)]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    return [f"ViECap needs {' and '.join(missing)}: pip install -e .[vlm]"] if missing else []


def _run_problems(cfg: CfgNode, node: CfgNode) -> list[str]:
    problems = []
    if not cfg.MODEL.BACKBONE.NAME:
        problems.append("MODEL.BACKBONE.NAME (--backbone) is empty; expected a CLIP, e.g. tiny12 or ViT-B/32")
    if not node.LANGUAGE_MODEL:
        problems.append(f"{NAME}.LANGUAGE_MODEL is empty; expected tiny_gpt2, a folder or a hub id, e.g. gpt2")
    if cfg.TEST.EVALUATOR != EVALUATOR:
        problems.append(f"TEST.EVALUATOR is {cfg.TEST.EVALUATOR!r}, but ViECap writes captions; expected {EVALUATOR}")
    if cfg.OPTIM.NAME not in OPTIMIZERS:
        problems.append(f"OPTIM.NAME is {cfg.OPTIM.NAME!r}, which has no epsilon ({NAME}.ADAM_EPS); expected adamw or adam")
    if cfg.TEST.FINAL_MODEL == "best_val" and node.EVAL.VAL_EVERY > 1:
        problems.append(
            f"{NAME}.EVAL.VAL_EVERY is {node.EVAL.VAL_EVERY}, but TEST.FINAL_MODEL best_val compares all epochs; expected 1, "
            "or TEST.FINAL_MODEL last_step"
        )
    unknown = [metric for metric in node.EVAL.JAVA if metric not in JAVA_METRICS]
    if unknown:
        problems.append(f"{NAME}.EVAL.JAVA has {', '.join(map(repr, unknown))}; expected some of {', '.join(JAVA_METRICS)}")
    if not node.PREFIX or any(sign in node.PREFIX for sign in "/\\"):
        problems.append(f"{NAME}.PREFIX is {node.PREFIX!r}; expected the first part of a file name, without folders")
    return problems


def _prompt_problems(node: CfgNode) -> list[str]:
    problems = []
    if node.ONLY_HARD_PROMPT and not node.USING_HARD_PROMPT:
        problems.append(f"{NAME}.ONLY_HARD_PROMPT is True, but {NAME}.USING_HARD_PROMPT is False: there is no prompt at all")
    if node.ONLY_HARD_PROMPT and node.FROZEN_GPT:
        problems.append(f"{NAME}.ONLY_HARD_PROMPT and {NAME}.FROZEN_GPT are both True: nothing trains; expected one False")
    if node.FROZEN_GPT and node.LM_INIT == "random":
        problems.append(f"{NAME}.LM_INIT is 'random', but {NAME}.FROZEN_GPT is True: it never learns; expected pretrained")
    return problems


def _vocabulary_problems(node: CfgNode) -> list[str]:
    problems = []
    if node.USING_HARD_PROMPT:
        problems += _name_problems(node, "ENTITIES_TEXT", ENTITY_VOCABULARIES)
        problems += _name_problems(node, "OBJECTS_VOCABS", tuple(dict.fromkeys((*OBJECT_VOCABULARIES, *ENTITY_VOCABULARIES))))
    if node.ENTITY_EXTRACTOR == "vocabulary" and node.NAME_OF_OBJECTS_VOCABS in ("corpus", "none"):
        problems.append(
            f"{NAME}.ENTITY_EXTRACTOR is 'vocabulary', but {NAME}.NAME_OF_OBJECTS_VOCABS is {node.NAME_OF_OBJECTS_VOCABS!r}, "
            "which holds no words before the captions were read; expected the name of a vocabulary"
        )
    return problems


def _name_problems(node: CfgNode, kind: str, allowed: Collection[str]) -> list[str]:
    """Check the pair of keys NAME_OF_<kind>, PATH_OF_<kind>."""
    name, path = node[f"NAME_OF_{kind}"], node[f"PATH_OF_{kind}"]
    if name not in allowed:
        near = difflib.get_close_matches(name, allowed, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return [f"{NAME}.NAME_OF_{kind} is {name!r}{hint}; expected one of {', '.join(allowed)}"]
    if name in NEED_A_PATH and not path:
        return [
            f"{NAME}.PATH_OF_{kind} is empty, but {NAME}.NAME_OF_{kind} {name} is not shipped; expected its file "
            "(docs/DATASETS.md says where it is)"
        ]
    return []


def _decoding_problems(node: CfgNode) -> list[str]:
    if node.DECODE == "beam" and node.NUM_RETURN > node.BEAM_WIDTH:
        return [f"{NAME}.NUM_RETURN is {node.NUM_RETURN}, more than {NAME}.BEAM_WIDTH {node.BEAM_WIDTH} hypotheses"]
    if node.DECODE == "greedy" and node.NUM_RETURN > 1:
        return [f"{NAME}.NUM_RETURN is {node.NUM_RETURN}, but {NAME}.DECODE greedy knows one caption; expected beam or sample"]
    return []


def find_data_problems(cfg: CfgNode, n_captions: int, total_steps: int) -> list[str]:
    """Return one message per reason why a run cannot learn from its captions.

    Args:
        cfg: The full config.
        n_captions: To learn from.
        total_steps: Optimizer updates of the run.
    """
    batch_size, warmup = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.TRAINER.VIECAP.WARMUP_STEPS
    if not n_captions:
        return [
            f"DATASET.NAME {cfg.DATASET.NAME} has no training captions: it is for evaluation (--eval-only --model-dir RUN). "
            "Expected CaptionFiles (your own text, CSV or JSON), CocoCaption or Flickr30kCaption to train on"
        ]
    if n_captions < batch_size:
        return [
            f"there are {n_captions} training captions, less than one batch: DATALOADER.TRAIN_X.BATCH_SIZE is {batch_size}; "
            f"lower it, or see {NAME}.FEW_SHOT_RATIO and DATA_LIMIT"
        ]
    if warmup >= total_steps:
        return [f"{NAME}.WARMUP_STEPS is {warmup}, but the run has {total_steps} optimizer updates; expected fewer than these"]
    return []
