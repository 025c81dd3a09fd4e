"""Every key of `TRAINER.BGOBJLLAVA`: default, unit and allowed values.

With `SPLIT none` the keys of detector, masks, separators, fusion and cache are inert: none of these is built.
"""

from __future__ import annotations

from collections.abc import Callable

from yacs.config import CfgNode

from trainers.bgobj_llava import geometry
from trainers.bgobj_llava.model import options

# Allowed values of the keys that are words; those of DET and MASK stand in detection/options.py and geometry.py.
CHOICES: dict[str, tuple[str, ...]] = {
    "ATTN": ("sdpa", "eager", "flash_attention_2"),
    "SPLIT": options.SPLITS,
    "VIT_TRAIN": options.EXECUTIONS,
    "VIT_EVAL": options.EXECUTIONS,
    "PROJECTOR": options.PROJECTORS,
    "CLS": options.CLS_MODES,
    "POSITION": options.POSITIONS,
    "IMAGE.ASPECT": geometry.ASPECTS,
    "SEP.STYLE": options.SEPARATOR_STYLES,
    "SEP.INIT": options.SEPARATOR_INITS,
    "FUSION.INIT": options.FUSION_INITS,
    "TRAIN.SCOPE": ("projector", "fusion_projector", "last_k", "lora", "full"),
    "CACHE.MODE": ("kv", "tokens", "none"),
    "CACHE.MATCH": ("contained", "identical", "approx"),
    "CACHE.DISK_KV": ("always", "never"),
    "CHECKPOINT.KEEP": ("all", "best_last", "best", "last"),
}

# Ranges of the keys that are numbers: (test, words for the message).
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "FUSION.LAYERS": (lambda v: v in range(5), "in 0-4"),
    "TRAIN.LAST_K": (lambda v: v >= 1, "1 or more"),
    "LORA.R": (lambda v: v >= 1, "1 or more"),
    "LORA.ALPHA": (lambda v: v > 0, "above 0"),
    "LORA.DROPOUT": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "AUG.DILATE_MAX": (lambda v: v in range(5), "in 0-4"),
    "AUG.SPURIOUS_P": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "AUG.DROP_P": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "AUG.P_FULL": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "AUG.BG_JITTER": (lambda v: 0 <= v <= 255, "in [0, 255]"),
    "MAX_LEN": (lambda v: v >= 1, "1 or more"),
    "DATA.MAX_DROP": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "CACHE.TAU": (lambda v: 0 <= v < 255, "in [0, 255)"),
    "CACHE.TOPK": (lambda v: v >= 1, "1 or more"),
    "CACHE.ADMIT_AFTER": (lambda v: v >= 1, "1 or more"),
    "CACHE.AUDIT_EVERY": (lambda v: v >= 0, "0 (never) or more"),
    "CACHE.DEVICE_GIB": (lambda v: v >= 0, "0 (unused) or more"),
    "CACHE.HOST_GIB": (lambda v: v >= 0, "0 (unused) or more"),
    "CACHE.DISK_GIB": (lambda v: v >= 0, "0 (unused) or more"),
    "GEN.MAX_NEW_TOKENS": (lambda v: v >= 1, "1 or more"),
    "VIS.EVERY": (lambda v: v >= 0, "0 (never) or more"),
}


def add_config(cfg: CfgNode) -> None:
    """Add the node `TRAINER.BGOBJLLAVA` in place."""
    node = cfg.TRAINER.BGOBJLLAVA = CfgNode()
    _add_model_keys(node)
    _add_detector_keys(node)
    _add_mask_keys(node)
    _add_training_keys(node)
    _add_cache_keys(node)
    _add_output_keys(node)


def _add_model_keys(node: CfgNode) -> None:
    """How the language model sees an image."""
    node.PREC = "auto"  # auto (bf16 on a GPU that has it, else fp32) | fp32 | bf16 | amp | fp16; trainables stay fp32
    node.ATTN = "sdpa"  # of the language model: sdpa | eager | flash_attention_2 (GPU)
    node.REVISION = ""  # of a hub id in MODEL.BACKBONE.NAME: branch, tag or commit; "" = the newest
    node.SPLIT = "bgobj"  # bgobj | order_only (full ViT) | isolate_only (raster order) | none (stock LLaVA)
    node.VIT_TRAIN = "mask"  # isolation in training: mask (one pass) | gather (one pass per group)
    node.VIT_EVAL = "gather"  # isolation in evaluation: gather | mask
    node.PROJECTOR = "shared"  # shared (the checkpoint's) | separate (a copy per group)
    node.CLS = "per_group"  # class token in the ViT: per_group (each group has a copy) | none
    node.POSITION = "sequential"  # of image tokens in the language model: sequential | raster (their place in the image)
    node.IMAGE = CfgNode()
    node.IMAGE.ASPECT = "pad"  # pad (to a square, as LLaVA-1.5 was trained) | crop (the processor's own)
    node.SEP = CfgNode()
    node.SEP.STYLE = "pairs"  # separator tokens: pairs (start and end of each group) | single (between them) | none
    node.SEP.INIT = "words"  # words (mean embedding of what they mean) | random
    node.FUSION = CfgNode()
    node.FUSION.LAYERS = 0  # causal decoder layers before the language model; 0 (none) - 4
    node.FUSION.INIT = "copy_zero"  # copy_zero (step 0 equals none) | copy | random
    node.GRAD_CKPT = False  # recompute the language model's layers in the backward pass: less memory, more time
    node.MAX_LEN = 2048  # tokens of a training row, image included; longer ones are dropped


def _add_detector_keys(node: CfgNode) -> None:
    """Where the objects are."""
    node.DET = CfgNode()
    node.DET.BACKEND = "precomputed"  # precomputed | rtdetr | dfine | bgsub | ultralytics | random (control) | none
    node.DET.FILE = ""  # side file of scripts/bgobj_detect.py, for images whose record has no boxes (precomputed, random)
    node.DET.WEIGHTS = ""  # of rtdetr, dfine (hub id or folder) and ultralytics (an existing file)
    node.DET.FRAME = "original"  # what the detector sees: original (better for small objects) | model (the square canvas)
    node.DET.MISSING = "error"  # image without a record in the side file: error | no_detection
    node.DET.CONF = 0.25  # smallest score; [0, 1]
    node.DET.IOU = 0.7  # overlap above which ultralytics merges boxes; (0, 1]
    node.DET.IMGSZ = 640  # px of a learned detector's input, a multiple of 32
    node.DET.MAX = 300  # boxes per image
    node.DET.CLASSES = []  # class names to keep, or -name to leave out; [] = all
    node.DET.MIN_AREA = 0.0  # px^2 of the original image; smaller boxes do not count
    node.DET.BGSUB_TAU = 12.0  # mean grey-level difference above which a patch is an object; [0, 255)
    node.DET.BGSUB_FRAMES = 25  # frames whose median is the reference of bgsub
    node.DET.REFERENCE = ""  # image of the empty scene for bgsub; "" = that median


def _add_mask_keys(node: CfgNode) -> None:
    """How boxes become patches."""
    node.MASK = CfgNode()
    node.MASK.RHO = 0.0  # covered share from which a patch is an object; 0 = any; [0, 1]
    node.MASK.DILATE = 1  # patches by which objects grow; 0-4
    node.MASK.BLOCK = 1  # side in patches of the blocks that are decided as one; 1-3
    node.MASK.OVERLAP_RING = 0  # width in patches of the background ring that is also encoded as object; 0-4
    node.MASK.MAX_OBJ_FRAC = 0.9  # share of object patches above which all are objects; (0, 1]
    node.MASK.OBJECT_MODE = "multi"  # multi (union of all) | single (highest score)
    node.MASK.NO_DETECTION = "object_only"  # no object found: object_only (all are) | bg_only | baseline (stock order)


def _add_training_keys(node: CfgNode) -> None:
    """What trains, and how."""
    node.TRAIN = CfgNode()
    node.TRAIN.SCOPE = "projector"  # projector | fusion_projector | last_k | lora | full; the ViT is always frozen
    node.TRAIN.LAST_K = 3  # layers of the language model that last_k trains
    node.LORA = CfgNode()
    node.LORA.R = 16  # rank
    node.LORA.ALPHA = 32.0  # times 1/R is the factor of the update
    node.LORA.DROPOUT = 0.05  # [0, 1)
    node.GRAD_ACCUM = 1  # batches per optimizer update, weighted by answer tokens
    node.MAX_GRAD_NORM = 1.0  # clip the total gradient norm; 0 = off
    node.SCHEDULER = "warmup_cosine"  # constant | warmup_constant | warmup_cosine | dassl (OPTIM.LR_SCHEDULER)
    node.SCHEDULER_STEP = "update"  # update (per optimizer update) | epoch
    node.WARMUP_RATIO = 0.03  # share of all updates; [0, 1)
    node.AUG = CfgNode()
    node.AUG.DILATE_MAX = 2  # patches; in training objects grow by a random 0 to this, not by MASK.DILATE; 0 = by that; 0-4
    node.AUG.SPURIOUS_P = 0.1  # probability per image of one more box
    node.AUG.DROP_P = 0.1  # probability per box of being missed
    node.AUG.P_FULL = 0.1  # probability per image of stock LLaVA's order, without a split
    node.AUG.BG_JITTER = 0.0  # standard deviation of noise on background patches, grey levels 0-255
    node.DATA = CfgNode()
    node.DATA.MAX_DROP = 0.01  # share of training samples that may be unusable; more is an error
    node.SAVE_LATEST_PER_EPOCH = 5  # resume points inside an epoch; 0 = none
    node.CHECKPOINT = CfgNode()
    node.CHECKPOINT.KEEP = "all"  # adapters of which epochs stay: all | best_last | best | last


def _add_cache_keys(node: CfgNode) -> None:
    """What is kept of backgrounds that were seen; at work in evaluation and prediction only."""
    node.CACHE = CfgNode()
    node.CACHE.MODE = "kv"  # kv (tokens and the language model's keys and values) | tokens | none
    node.CACHE.MATCH = "contained"  # contained (exact pixels) | identical (and the same patches) | approx (CACHE.TAU)
    node.CACHE.TAU = 6.0  # of approx: largest mean grey-level difference of a patch; [0, 255)
    node.CACHE.TOPK = 8  # of approx: entries that are compared
    node.CACHE.ADMIT_AFTER = 1  # sightings before a background is stored
    node.CACHE.AUDIT_EVERY = 0  # recompute every n-th exact hit and stop on a difference; 0 = never
    node.CACHE.DEVICE_GIB = 2.0  # budget beside the model; 0 = unused
    node.CACHE.HOST_GIB = 8.0  # budget in pinned host memory (CUDA only); 0 = unused
    node.CACHE.DISK_GIB = 0.0  # budget in CACHE.DIR; 0 = unused
    node.CACHE.DIR = ""  # folder of the disk tier
    node.CACHE.DISK_KV = "always"  # whether keys and values go to disk beside the tokens: always | never


def _add_output_keys(node: CfgNode) -> None:
    """What evaluation writes and shows."""
    node.GEN = CfgNode()
    node.GEN.MAX_NEW_TOKENS = 16  # of an answer
    node.EVAL = CfgNode()
    node.EVAL.OCR_TOKENS = False  # append TextVQA's reference OCR tokens to the question
    node.VIS = CfgNode()
    node.VIS.EVERY = 0  # draw the masks of every n-th evaluated sample; 0 = never
    node.VIS.DIR = ""  # folder of these pictures; "" = panels/ in the run folder
