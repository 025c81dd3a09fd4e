"""Every key of `TRAINER.GATEDBLIP2`: default, unit and allowed values.

The model is `MODEL.BACKBONE.NAME` (with `MODEL.BACKBONE.PRETRAINED`), the side of its input `INPUT.SIZE`: Dassl's own keys.
"""

from __future__ import annotations

from collections.abc import Callable

from yacs.config import CfgNode

# Allowed values of the keys that are words.
CHOICES: dict[str, tuple[str, ...]] = {
    "PRESET": ("frozen", "projection", "gates", "gates_proj", "gates_xattn", "qformer", "original_live", "original"),
    "QUANT": ("none", "int8", "nf4"),
    "GATE.SITES": ("none", "k", "v", "kv"),
    "GATE.GRANULARITY": ("scalar", "head", "channel"),
    "GATE.PHI": ("tanh", "film"),
    "STYLE.ARCH": ("efficientnet_b3", "efficientnet_tiny"),
    "STYLE.FALLBACK": ("none", "imagenet", "random"),
    "STYLE.SOURCE": ("features", "logits", "label", "static", "zeros", "shuffled"),
    "ANSWER.TRAIN": ("first", "sample"),
    "CHECKPOINT.KEEP": ("all", "best_last", "best", "last"),
}
CONTROLS = ("majority", "shuffled_style", "no_style", "no_image", "ungated")  # what EVAL.CONTROLS may name
ORIGINAL_PRESETS = ("original", "original_live")

# Ranges of the keys that are numbers: (test, words for the message).
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "GATE.HIDDEN": (lambda v: v >= 1, "1 or more"),
    "GATE.INIT_STD": (lambda v: v >= 0, "0 (the untouched BLIP-2) or more"),
    "STYLE.DROPOUT": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "PROMPT.MAX_QUESTION_TOKENS": (lambda v: v >= 1, "1 or more"),
    "CACHE.SHARD_IMAGES": (lambda v: v >= 1, "1 or more"),
    "GEN.NUM_BEAMS": (lambda v: v >= 1, "1 or more"),
    "GEN.MAX_NEW_TOKENS": (lambda v: v >= 1, "1 or more"),
    "EVAL.VAL_LIMIT": (lambda v: v == -1 or v >= 1, "-1 (all) or 1 or more"),
}


def add_config(cfg: CfgNode) -> None:
    """Add the node `TRAINER.GATEDBLIP2` in place."""
    node = cfg.TRAINER.GATEDBLIP2 = CfgNode()
    _add_model_keys(node)
    _add_gate_keys(node)
    _add_style_keys(node)
    _add_training_keys(node)
    _add_output_keys(node)


def _add_model_keys(node: CfgNode) -> None:
    """How the BLIP-2 is held, and what of it trains."""
    node.PRESET = "gates_proj"  # frozen | projection | gates | gates_proj | gates_xattn | qformer | original_live | original
    node.PREC = "auto"  # auto (bf16 on a GPU that has it, else fp32) | fp32 | bf16 | amp | fp16; trainables stay fp32
    node.QUANT = "none"  # of the frozen language model: none | int8 | nf4 (both: bitsandbytes, GPU)
    node.GRAD_CKPT = False  # recompute the language model's layers in the backward pass: less memory, more time
    node.INTERPOLATE_POS = False  # stretch position embeddings to another INPUT.SIZE than the model's own
    node.PROMPT = CfgNode()
    node.PROMPT.TEMPLATE = "Question: {question} Short answer:"  # holds {question} once
    node.PROMPT.MAX_QUESTION_TOKENS = 32  # longer questions are cut


def _add_gate_keys(node: CfgNode) -> None:
    """What style does to keys and values of the cross-attention. The original presets read LAYERS and INIT_STD only."""
    node.GATE = CfgNode()
    node.GATE.SITES = "kv"  # none | k | v | kv
    node.GATE.GRANULARITY = "channel"  # one factor per: scalar (layer) | head | channel
    node.GATE.PHI = "tanh"  # factor is 1 + phi: tanh (in (0, 2)) | film (unbounded)
    node.GATE.HIDDEN = 512  # width of the gates' trunk
    node.GATE.LAYERS = ()  # Q-Former layers from 1, e.g. (1, 3); () = all with cross-attention
    node.GATE.INIT_STD = 0.0  # of the gates' last layer; 0 = step 0 is the untouched BLIP-2
    node.GATE.BETA_V = True  # a shift of the values beside their factor
    node.GATE.QUESTION = False  # the question's mean token embedding moves the gates too


def _add_style_keys(node: CfgNode) -> None:
    """Where the style vector comes from."""
    node.STYLE = CfgNode()
    node.STYLE.ARCH = "efficientnet_b3"  # efficientnet_b3 | efficientnet_tiny
    node.STYLE.CHECKPOINT = ""  # tiny_style (shipped), or a .safetensors or .pt file
    node.STYLE.CLASSES_FILE = ""  # JSON list of class names, for other than 27 or 28 WikiArt styles or 1000 of ImageNet
    node.STYLE.FALLBACK = "none"  # without a checkpoint: none (an error) | imagenet | random (both for smoke tests)
    node.STYLE.SOURCE = "features"  # features | logits | label (the data's) | static (learned constant) | zeros | shuffled
    node.STYLE.DROPOUT = 0.1  # probability per training sample that its style is unknown; [0, 1)


def _add_training_keys(node: CfgNode) -> None:
    """What is learned, and how."""
    node.ANSWER = CfgNode()
    node.ANSWER.TRAIN = "first"  # of several references: first | sample (by seed, epoch and sample)
    node.GRAD_ACCUM = 4  # batches per optimizer update, weighted by answer tokens
    node.MAX_GRAD_NORM = 1.0  # clip the total gradient norm; 0 = off
    node.SCHEDULER = "warmup_cosine"  # constant | warmup_constant | warmup_cosine | dassl (OPTIM.LR_SCHEDULER)
    node.SCHEDULER_STEP = "update"  # update (per optimizer update) | epoch
    node.WARMUP_RATIO = 0.05  # share of all updates; [0, 1)
    node.CACHE = CfgNode()
    node.CACHE.ENABLE = True  # encode each image once; False: ViT and style encoder run in every step
    node.CACHE.DIR = ""  # folder of the cached features; "" = output/cache, below it a folder named by the key
    node.CACHE.SHARD_IMAGES = 2048  # images per file
    node.SAVE_LATEST_PER_EPOCH = 5  # resume points inside an epoch; 0 = none
    node.CHECKPOINT = CfgNode()
    node.CHECKPOINT.KEEP = "best_last"  # adapters of which epochs stay: all | best_last | best | last


def _add_output_keys(node: CfgNode) -> None:
    """How answers are generated, and what is measured beside them."""
    node.GEN = CfgNode()
    node.GEN.NUM_BEAMS = 1  # 1 = greedy
    node.GEN.MAX_NEW_TOKENS = 20  # of an answer
    node.GEN.LENGTH_PENALTY = 1.0  # exponent of the length that divides a beam's score; above 0 favours longer answers
    node.EVAL = CfgNode()
    node.EVAL.CONTROLS = ("majority", "shuffled_style")  # on the test split: any of these, no_style, no_image, ungated
    node.EVAL.VAL_LIMIT = 2000  # rows of a validation, spread over the split; -1 = all
