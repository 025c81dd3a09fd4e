"""Every key of `TRAINER.VIECAP`: default, unit and allowed values.

Optimizer, batch size, epochs and seed are Dassl's own keys; the CLIP is `MODEL.BACKBONE.NAME`, and its width is read from it.
"""

from __future__ import annotations

from collections.abc import Callable

from yacs.config import CfgNode

# Allowed values of the keys that are words. The names of vocabularies are checked where these are read.
CHOICES: dict[str, tuple[str, ...]] = {
    "LM_INIT": ("pretrained", "random"),
    "ENTITY_EXTRACTOR": ("textblob", "nltk", "given", "vocabulary"),
    "STOP": ("period", "eos"),
    "LOADER.PLACEMENT": ("auto", "device", "host"),
    "DECODE": ("beam", "greedy", "sample"),
}
JAVA_METRICS = ("meteor", "spice")
OBJECT_VOCABULARIES = ("visual_genome_entities", "corpus", "none")  # besides the names of NAME_OF_ENTITIES_TEXT
ENTITY_VOCABULARIES = (
    "coco_entities",
    "vinvl_vgoi_entities",
    "vinvl_vg_entities",
    "open_image_entities",
    "visual_genome_entities",
    "corpus",
    "mini_scenes",
    "file",
)
# Vocabularies that are neither shipped nor derived from the data: their key of the path may not be empty.
NEED_A_PATH = ("vinvl_vgoi_entities", "vinvl_vg_entities", "open_image_entities", "visual_genome_entities", "file")

# Ranges of the keys that are numbers: (test, words for the message).
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "PROB_OF_RANDOM_MASK": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "CLIP_PROJECT_LENGTH": (lambda v: v >= 1, "1 or more"),
    "CONTINUOUS_PROMPT_LENGTH": (lambda v: v >= 1, "1 or more"),
    "MAX_NUM_OF_ENTITIES": (lambda v: v >= 1, "1 or more"),
    "PROMPT_TEMPLATE_LENGTH": (lambda v: v >= 1, "1 or more"),
    "NUM_LAYERS": (lambda v: v >= 1, "1 or more"),
    "NUM_HEADS": (lambda v: v >= 1, "1 or more"),
    "NOISE_VARIANCE": (lambda v: v >= 0, "0 (no noise) or more"),
    "FEW_SHOT_RATIO": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "DATA_LIMIT": (lambda v: v >= 0, "0 (all) or more"),
    "MAX_CAPTION_TOKENS": (lambda v: v >= 0, "0 (from the data) or more"),
    "WARMUP_STEPS": (lambda v: v >= 0, "0 or more"),
    "ADAM_EPS": (lambda v: v > 0, "above 0"),
    "LOADER.BUCKET_BATCHES": (lambda v: v >= 1, "1 (plain shuffling) or more"),
    "LOADER.PAD_MULTIPLE": (lambda v: v >= 1, "1 or more"),
    "LOG_PER_EPOCH": (lambda v: v >= 0, "0 (never) or more"),
    "SAVE_EVERY": (lambda v: v >= 1, "1 or more"),
    "TOP_K": (lambda v: v >= 1, "1 or more"),
    "THRESHOLD": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "TEMPERATURE": (lambda v: v > 0, "above 0"),
    "BEAM_WIDTH": (lambda v: v >= 1, "1 or more"),
    "MAX_NEW_TOKENS": (lambda v: v >= 1, "1 or more"),
    "NUM_RETURN": (lambda v: v >= 1, "1 or more"),
    "SAMPLE_TOP_P": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "SAMPLE_TEMPERATURE": (lambda v: v > 0, "above 0"),
    "EVAL.VAL_EVERY": (lambda v: v >= 1, "1 or more"),
    "EVAL.VAL_LIMIT": (lambda v: v == -1 or v >= 1, "-1 (all) or 1 or more"),
}


def add_config(cfg: CfgNode) -> None:
    """Add the node `TRAINER.VIECAP` in place."""
    node = cfg.TRAINER.VIECAP = CfgNode()
    _add_model_keys(node)
    _add_data_keys(node)
    _add_training_keys(node)
    _add_output_keys(node)
    _add_retrieval_keys(node)
    _add_decoding_keys(node)


def _add_model_keys(node: CfgNode) -> None:
    """The language model and its two prompts."""
    node.PREC = "auto"  # auto (bf16 autocast on a GPU that has it, else fp32) | fp32 | bf16 | amp | fp16 (both: fp16 autocast)
    node.LANGUAGE_MODEL = "gpt2"  # tiny_gpt2, folder or hub id of a causal language model
    node.LM_INIT = "pretrained"  # pretrained | random (built from its configuration only)
    node.FROZEN_GPT = False  # only the mapping network trains
    node.CLIP_PROJECT_LENGTH = 10  # tokens that the CLIP vector is projected to; 1 or more
    node.CONTINUOUS_PROMPT_LENGTH = 10  # tokens of the soft prompt; 1 or more
    node.NUM_LAYERS = 8  # of the mapping network
    node.NUM_HEADS = 8  # of the mapping network; divides the language model's width
    node.NORMALIZE_PREFIX = True  # the CLIP vector has length 1
    node.NOISE_VARIANCE = 0.016  # per dimension, of the noise on training vectors; 0 = none
    node.NOISE_RESCALE = True  # times 512/E, so that vectors of any width E are disturbed alike
    node.USING_HARD_PROMPT = True  # "There are A, B in image."
    node.SOFT_PROMPT_FIRST = True  # soft prompt before the hard one; False: after it
    node.ONLY_HARD_PROMPT = False  # no soft prompt, no mapping network
    node.MAX_NUM_OF_ENTITIES = 10  # nouns per caption that are looked at; also sets the hard prompt's budget
    node.PROMPT_TEMPLATE_LENGTH = 5  # tokens of the template beside the entities, at least the template's own
    node.STOP = "period"  # what ends a caption: period | eos (the language model's own end, learned)


def _add_data_keys(node: CfgNode) -> None:
    """What is learned from."""
    node.ENTITY_EXTRACTOR = "textblob"  # textblob | nltk (needs its corpora) | given (by the data set) | vocabulary
    node.NAME_OF_OBJECTS_VOCABS = "visual_genome_entities"  # training entities: OBJECT_VOCABULARIES or ENTITY_VOCABULARIES
    node.PATH_OF_OBJECTS_VOCABS = ""  # its file, where it is not shipped or derived
    node.RANDOM_MASK = True  # drop entities at random in training
    node.PROB_OF_RANDOM_MASK = 0.4  # probability per occurrence; [0, 1]
    node.FEW_SHOT_RATIO = 1.0  # share of the training captions, chosen by SEED; (0, 1]
    node.DATA_LIMIT = 0  # first training captions; 0 = all
    node.MAX_CAPTION_TOKENS = 0  # longer captions are cut; 0 = min(mean + 10 standard deviations, longest)
    node.USING_CLIP_FEATURES = True  # text vectors from the store; False: the text tower encodes in every step
    node.STORE_DIR = ""  # folder of the caption store; "" = output/cache, named by its key and rebuilt when that changes
    node.LOADER = CfgNode()
    node.LOADER.PLACEMENT = "auto"  # of the store's tensors: auto (device if below 25 % of its free memory) | device | host
    node.LOADER.BUCKET_BATCHES = 50  # batches in which captions are sorted by length; 1 = plain shuffling
    node.LOADER.PAD_MULTIPLE = 4  # sequences are padded to a multiple of this many tokens


def _add_training_keys(node: CfgNode) -> None:
    """How it is learned. The rate rises linearly over `WARMUP_STEPS` updates and falls linearly to 0 at the last one."""
    node.WARMUP_STEPS = 5000  # optimizer updates; fewer than the run has
    node.ADAM_EPS = 1e-6  # of AdamW's denominator; above 0
    node.GRAD_ACCUM = 1  # batches per optimizer update, weighted by caption tokens
    node.MAX_GRAD_NORM = 0.0  # clip the total gradient norm; 0 = off
    node.LOG_PER_EPOCH = 5  # lines with the mean loss; 0 = none
    node.SAVE_LATEST_PER_EPOCH = 5  # resume points inside an epoch; 0 = none


def _add_output_keys(node: CfgNode) -> None:
    """What a run leaves, and how it is validated."""
    node.SAVE_EVERY = 1  # epochs between exported weights; the last epoch is always exported
    node.PREFIX = "coco_prefix"  # first part of their file names
    node.EVAL = CfgNode()
    node.EVAL.VAL_EVERY = 1  # epochs between validations
    node.EVAL.VAL_LIMIT = 1000  # images of a validation, the first ones; -1 = all
    node.EVAL.JAVA = ()  # further metrics by the official Java tools: "meteor", "spice"


def _add_retrieval_keys(node: CfgNode) -> None:
    """Which entities of a vocabulary an image shows."""
    node.NAME_OF_ENTITIES_TEXT = "vinvl_vgoi_entities"  # one of ENTITY_VOCABULARIES
    node.PATH_OF_ENTITIES_TEXT = ""  # its file, where it is not shipped or derived
    node.SINGLE_WORD_ENTITIES = False  # leave out names of several words
    node.PROMPT_ENSEMBLE = True  # mean of seven templates; False: "A photo of a {}."
    node.TOP_K = 3  # most entities per image
    node.THRESHOLD = 0.2  # smallest probability of an entity; [0, 1]
    node.TEMPERATURE = 0.01  # divides the cosines; above 0


def _add_decoding_keys(node: CfgNode) -> None:
    """How captions are generated."""
    node.USING_IMAGE_FEATURES = True  # evaluate on stored image features; False: every image is opened and encoded
    node.DECODE = "beam"  # beam (by average log-probability) | greedy | sample
    node.BEAM_WIDTH = 5  # hypotheses of beam
    node.MAX_NEW_TOKENS = 64  # longest caption, tokens
    node.NUM_RETURN = 1  # distinct captions per image; at most BEAM_WIDTH with beam
    node.SAMPLE_TOP_P = 0.9  # probability mass that sample draws from; (0, 1]
    node.SAMPLE_TEMPERATURE = 1.0  # of sample; above 0
