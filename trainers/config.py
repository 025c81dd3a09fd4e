"""Every config key of the trainers, with default, unit and allowed values.

Dassl's own tree stays as it is; `add_trainer_configs` adds one node per trainer under `TRAINER`, named like the class in upper
case, and what our data sets read. The language systems declare their keys in their own rooms. Each node is complete in itself,
so that Dassl's `clean_cfg` may drop the others. A key exists only if code reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from yacs.config import CfgNode

from trainers.bgobj_llava import config as bgobj_llava_config
from trainers.dataset_keys import add_dataset_keys
from trainers.evaluators import label_distribution, vqa
from trainers.gated_blip2 import config as gated_blip2_config
from trainers.viecap import config as viecap_config

# Allowed values of the keys that are words; `problems_with_choices` checks them for the trainer at work.
CHOICES: dict[str, tuple[str, ...]] = {
    "PREC": ("auto", "fp32", "bf16", "amp", "fp16"),
    "MODE": ("pseudo", "supervised", "direct"),
    "PHASE": ("both", "text_only"),
    "SELECT": ("dassl", "proxy"),
    "TEACHER": ("frozen", "shared", "ema", "self"),
    "DIST_ALIGN": ("none", "uniform", "shares"),
    "FEAT_NORM": ("l2", "none"),
    "CLASSIFIER_INIT": ("random", "text_mean"),
    "AUGMENT": ("auto", "two_crop", "single_crop", "none"),
    "AUGMENT_DEVICE": ("cpu", "gpu"),
    "CACHE_IMAGES": ("none", "ram"),
    "SCHEDULER_STEP": ("epoch", "update"),
    "PROMPT_MODE": ("replace", "accumulate", "deep"),
    "READOUT": ("shared", "stage"),
    "STAGE_CLASSIFIER": ("shared", "copy"),
    "NGA_MODE": ("gaussian", "free", "mean", "last"),
    "FUSION": ("softmax", "sum", "last"),
    "FUSION_INIT": ("last", "uniform"),
    "CONS_PAIRS": ("all", "adjacent", "to_last"),
    "DUAL.LOSS": ("ce", "kl"),
    "DUAL.HEADS": ("single", "dual"),
    "DUAL.STRATEGY": ("json", "strategy1"),
    "DUAL.MISSING": ("strategy1", "onehot", "error"),
    "TEXT.MODE": ("lafter", "cls_only", "single", "templates_only", "descriptions_only"),
    "TEXT.ON_MISSING": ("error", "templates"),
}

Range = tuple[Callable[[float], bool], str]  # test, and its words for the message

# Ranges of the keys that are numbers.
RANGES: dict[str, Range] = {
    "LABEL_SMOOTHING": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "CONF_THRESHOLD": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "EMA_DECAY": (lambda v: 0 < v < 1, "in (0, 1)"),
    "DUAL.LAMBDA": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "DUAL.TEMPERATURE": (lambda v: v > 0, "above 0"),
    "DUAL.SIGMA": (lambda v: v > 0, "above 0"),
    "DUAL.EPSILON": (lambda v: v >= 0, "0 or more"),
    "KEEP_SHARE": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "SCALE_INIT": (lambda v: 1 <= v <= 100, "in [1, 100]"),
    "PROMPT_TOKENS": (lambda v: v >= 0, "0 or more"),
    "PROGRESSIVE_WARMUP": (lambda v: v >= 0, "0 or more"),
    "PROGRESSIVE_EPOCHS": (lambda v: v >= 0, "0 or more"),
    "WARMUP_EPOCHS": (lambda v: v >= 0, "0 or more"),
    "ADAPTER_LR_MULT": (lambda v: v > 0, "above 0"),
    "NGA_LR_MULT": (lambda v: v > 0, "above 0"),
    "WARMUP_RATIO": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "SAVE_LATEST_PER_EPOCH": (lambda v: v >= 0, "0 (never) or more"),
    "GRAD_ACCUM": (lambda v: v >= 1, "1 or more"),
    "MAX_GRAD_NORM": (lambda v: v >= 0, "0 (off) or more"),
    "CACHE_SIDE": (lambda v: v >= 1, "1 or more"),
    "CACHE_MAX_GB": (lambda v: v > 0, "above 0"),
    "NGA_OFFSET": (lambda v: v in (0, 1), "0 or 1"),
    "NGA_SIGMA_MIN": (lambda v: v > 0, "above 0"),
    "CONS_WEIGHT": (lambda v: v >= 0, "0 (off) or more"),
    "DEEP_SUPERVISION": (lambda v: v >= 0, "0 (off) or more"),
    "UNSURE_BELOW": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "TEXT.EPOCHS": (lambda v: v >= 0, "0 (the templates file's value) or more"),
    "TEXT.NOISE_STD": (lambda v: v >= 0, "0 or more"),
}


def add_trainer_configs(cfg: CfgNode) -> None:
    """Add the keys of every trainer, and of our data sets, to Dassl's default config in place.

    Args:
        cfg: What `dassl.config.get_cfg_default()` returned.
    """
    add_dataset_keys(cfg.DATASET)
    label_distribution.add_config(cfg)
    vqa.add_config(cfg)
    cfg.TRAINER.ZEROSHOTCLIP = _zeroshot_clip_node()
    cfg.TRAINER.LAFTER = _lafter_node()
    cfg.TRAINER.MULTILAYERLAFTER = _multilayer_lafter_node()
    cfg.TRAINER.HYBRIDCASCADELAFTER = _hybrid_cascade_lafter_node()
    bgobj_llava_config.add_config(cfg)
    gated_blip2_config.add_config(cfg)
    viecap_config.add_config(cfg)


def problems_with_choices(
    node: CfgNode, name: str, choices: Mapping[str, tuple[str, ...]] = CHOICES, ranges: Mapping[str, Range] = RANGES
) -> list[str]:
    """Return one message per key of `node` whose value is not allowed.

    Args:
        node: The trainer's node.
        name: Its dotted name for the messages, e.g. `TRAINER.LAFTER`.
        choices: Dotted key below the node -> allowed words; the shared ones unless a room passes its own.
        ranges: Dotted key below the node -> (test, words for the message), likewise.
    """
    problems = []
    for key, value in _leaves(node):
        if key in choices and value not in choices[key]:
            problems.append(f"{name}.{key} is {value!r}; expected one of {', '.join(choices[key])}")
        if key in ranges and not ranges[key][0](value):
            problems.append(f"{name}.{key} is {value!r}; expected a value {ranges[key][1]}")
    return problems


def _leaves(node: CfgNode, prefix: str = "") -> list[tuple[str, object]]:
    """Return (dotted key below the node, value) for every leaf."""
    found = []
    for key, value in node.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [(f"{prefix}{key}", value)]
    return found


def _zeroshot_clip_node() -> CfgNode:
    node = CfgNode()
    node.PREC = "auto"  # auto (bf16 on a GPU that has it, else fp32) | fp32 | bf16 | amp | fp16 (half weights, GPU)
    node.UNSURE_BELOW = 0.5  # predict.py marks predictions of a lower confidence; [0, 1]
    _add_text_keys(node)
    node.TEXT.MODE = "single"
    return node


def _lafter_node() -> CfgNode:
    node = CfgNode()
    node.PREC = "auto"  # auto (bf16 autocast on a GPU that has it, else fp32) | fp32 | bf16 | amp | fp16 (both: fp16 autocast)
    node.UNSURE_BELOW = 0.5  # predict.py marks predictions of a lower confidence; [0, 1]
    _add_pseudo_label_keys(node)
    _add_dual_keys(node)
    _add_text_keys(node)
    node.TEXT.EPOCHS = 0  # full-batch steps of the text phase; 0 = the templates file's own number, else 400
    node.TEXT.NOISE_STD = 0.1  # Gaussian noise per dimension of a unit text feature
    node.TEXT.BALANCE = True  # classes with many and with few sentences weigh the same
    node.PROMPT_TOKENS = 50  # learned tokens after CLS; 0 = none
    _add_optimisation_keys(node)
    _add_view_keys(node)
    return node


def _multilayer_lafter_node() -> CfgNode:
    node = _lafter_node()
    _add_stage_keys(node)
    node.PROMPT_TOKENS = 16  # per stage
    node.PROMPT_MODE = "replace"  # a stage's prompts replace | accumulate (join) the stage before's | deep (a set per block)
    node.READOUT = "stage"
    node.CONS_PAIRS = "adjacent"
    node.PROGRESSIVE = True  # stages begin to train from the deepest to the shallowest
    node.PROGRESSIVE_WARMUP = 2  # epochs of the deepest stage alone
    node.PROGRESSIVE_EPOCHS = 3  # epochs after that which open one more stage each; then everything trains
    return node


def _hybrid_cascade_lafter_node() -> CfgNode:
    node = _lafter_node()
    _add_stage_keys(node)
    return node


def _add_stage_keys(node: CfgNode) -> None:
    """Which blocks are read in which stages, and how the stages are judged together."""
    node.FEAT_NORM = "l2"
    node.SCHEDULER = "warmup_constant"
    node.ADAPTER_LR_MULT = 5.0
    node.STAGE_SCHEME = "auto"  # auto | MultiLayer: even, shallow_deep | Hybrid: cascadeclip, keep_last; see clip_ext/stages.py
    node.STAGES = []  # lists of 1-based block numbers, e.g. [[5, 6, 7], [8, 9], [10, 11, 12]]; overrides STAGE_SCHEME
    node.READOUT = "shared"  # shared (CLIP's own post-norm and projection) | stage (trainable copies per stage)
    node.STAGE_CLASSIFIER = "shared"  # shared | copy (one trainable copy of the text classifier per stage)
    node.NGA_MODE = "gaussian"  # weights inside a stage: gaussian | free | mean | last
    node.NGA_OFFSET = 0  # 0 | 1 blocks between a stage's deepest block and the centre of the Gaussian
    node.NGA_SIGMA_INIT = 1.0  # blocks of a 12-block tower; above NGA_SIGMA_MIN
    node.NGA_SIGMA_MIN = 0.25  # blocks of a 12-block tower
    node.FUSION = "softmax"  # of the stage logits: softmax | sum | last
    node.FUSION_INIT = "last"  # last (the deepest stage leads) | uniform
    node.CONS_WEIGHT = 0.1  # of the consistency loss between stages; 0 = off
    node.CONS_PAIRS = "all"  # all | adjacent | to_last
    node.CONS_DETACH = True  # the deeper stage of a pair is a target only
    node.DEEP_SUPERVISION = 0.0  # weight of the main loss on every single stage; 0 = off


def _add_pseudo_label_keys(node: CfgNode) -> None:
    """What is learned from, and which weights are kept."""
    node.MODE = "pseudo"  # pseudo (label-free) | supervised (the data set's labels) | direct (those, without texts; dual task)
    node.PHASE = "both"  # both | text_only (stop after the text classifier and test it on image features)
    node.SELECT = "dassl"  # dassl (last epoch) | proxy (highest agreement x effective-class share; needs no label)
    node.REPORT_TEST_MAX = False  # test every epoch and log the maximum, which drives no choice
    node.TEACHER = "frozen"  # frozen (labels once) | self (by the student, before every epoch) | shared | ema (each batch)
    node.EMA_DECAY = 0.999  # share that the weights of TEACHER ema keep per optimizer step; (0, 1)
    node.DIST_ALIGN = "none"  # of the teacher's class shares: none | uniform | shares (CLASS_SHARES); frozen and self only
    node.CLASS_SHARES = []  # one positive number per class, for DIST_ALIGN shares
    node.CONF_THRESHOLD = 0.0  # absolute: images whose teacher confidence is lower do not count; [0, 1)
    node.KEEP_SHARE = 1.0  # relative: share of each pseudo-class that counts, most confident first; (0, 1]; frozen, self
    node.LABEL_SMOOTHING = 0.1  # [0, 1)
    node.FEAT_NORM = "none"  # of student features: l2 (with a learned logit scale) | none
    node.SCALE_INIT = 10.0  # initial logit scale with FEAT_NORM l2; [1, 100]
    node.CLASSIFIER_INIT = "random"  # before the text phase: random | text_mean (class means of the text features)


def _add_dual_keys(node: CfgNode) -> None:
    """How a distribution over the classes is learned beside the class."""
    node.DUAL = CfgNode()
    node.DUAL.ENABLED = False  # MODE direct switches it on
    node.DUAL.LAMBDA = 0.8  # weight of the distribution against the label; [0, 1]
    node.DUAL.TEMPERATURE = 1.0  # divides the logits of the distribution, in training and test
    node.DUAL.LOSS = "ce"  # ce | kl, of HEADS single; the gradients are equal
    node.DUAL.HEADS = "single"  # single | dual (the distribution has a classifier of its own, compared by KL)
    node.DUAL.STRATEGY = "json"  # json (votes given by the data set) | strategy1 (Gaussian around the label on the ring)
    node.DUAL.SIGMA = 1.0  # of strategy1, in steps on the ring
    node.DUAL.EPSILON = 0.1  # of strategy1: mass that all classes share
    node.DUAL.RING = []  # class names in ring order; [] = the data set's ring
    node.DUAL.MISSING = "strategy1"  # image without votes under json: strategy1 | onehot | error


def _add_text_keys(node: CfgNode) -> None:
    """Which sentences describe the classes."""
    node.TEXT = CfgNode()
    node.TEXT.MODE = "lafter"  # lafter (descriptions + templates) | cls_only | single | templates_only | descriptions_only
    node.TEXT.TEMPLATES = ""  # path of a JSON file; "" = the shipped file of the data set
    node.TEXT.DESCRIPTIONS = ""  # path of a JSON file; "" = the one that the templates file names
    node.TEXT.CLEAN = True  # drop junk and ambiguous sentences
    node.TEXT.ON_MISSING = "error"  # class without descriptions: error | templates
    node.TEXT.DESCRIPTOR_FORMAT = ""  # e.g. "a photo of a {class}, which has {descriptor}."; "" = whole sentences
    node.TEXT.KEEP_UNDERSCORES = False  # in class names
    node.TEXT.CACHE_DIR = "output/cache"  # text features and pseudo-labels, keyed by content


def _add_optimisation_keys(node: CfgNode) -> None:
    node.SCHEDULER = "constant"  # constant | warmup_constant | warmup_cosine | dassl (OPTIM.LR_SCHEDULER)
    node.SCHEDULER_STEP = "epoch"  # epoch | update (per optimizer update)
    node.WARMUP_EPOCHS = 3  # of the warm-up schedules, from a tenth of the lr; below OPTIM.MAX_EPOCH
    node.ADAPTER_LR_MULT = 1.0  # times OPTIM.LR, for the classifier
    node.NGA_LR_MULT = 0.1  # times OPTIM.LR, for the few scalars: logit scale, Gaussian widths, fusion weights
    node.LN_DECAY = False  # weight decay on LayerNorm weights and prompts too, as published
    node.GRAD_CKPT = False  # recompute blocks in the backward pass: less memory, more time
    node.GRAD_ACCUM = 1  # batches per optimizer update
    node.MAX_GRAD_NORM = 0.0  # clip the total gradient norm; 0 = off


def _add_view_keys(node: CfgNode) -> None:
    node.AUGMENT = "auto"  # views per image: auto | two_crop (weak + strong) | single_crop (strong) | none (weak)
    node.AUGMENT_RECIPE = "standard"  # of the strong view: a name in trainers/views.py
    node.AUGMENT_DEVICE = "cpu"  # where strong views are made: cpu (loader workers) | gpu (on the model's device, by kornia)
    node.CACHE_IMAGES = "none"  # none | ram (decode every file once)
    node.CACHE_SIDE = 256  # px of the shorter side in the cache; smaller files stay as they are
    node.CACHE_MAX_GB = 8.0  # error if the cache would be larger
