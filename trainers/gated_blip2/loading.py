"""Loading a BLIP-2 with an OPT language model: from the hub, from a folder, the one that ships, or random in its shapes.

BLIP-2: https://arxiv.org/abs/2301.12597; Salesforce/blip2-opt-2.7b is MIT, its OPT has a licence of its own. Every name ends in
a local folder of configuration, tokenizer, image processor and safetensors; nothing else is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from trainers.adapters import BaseModel
from trainers.gated_blip2.image_view import ImageViewFacts, problems_with_size, read_view
from trainers.gated_blip2.prompts import find_stop_id
from trainers.gated_blip2.quantisation import make_quantiser
from trainers.gated_blip2.stand_in_tokenizer import build_stand_in_tokenizer
from trainers.gated_blip2.weights import (
    COMPUTE_DTYPES,
    PartDtypes,
    RandomWeights,
    StoredWeights,
    build_empty,
    count_elements,
    put_weights,
)
from trainers.model_folders import find_model_folder, find_weight_files, hash_weight_files

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parent / "assets"
SHIPPED = {"tiny_blip2": ASSETS / "tiny_blip2"}
# Names whose shapes are known without a network.
SHAPES = {"blip2_opt_2_7b": ASSETS / "blip2_opt_2_7b.json", "Salesforce/blip2-opt-2.7b": ASSETS / "blip2_opt_2_7b.json"}
EXAMPLE = "Salesforce/blip2-opt-2.7b"
NAME_KEY = "MODEL.BACKBONE.NAME"
FLOORS = {"torch": (2, 9), "transformers": (5, 10)}
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
RANDOM_SEED = 0


@dataclass(frozen=True, eq=False)
class LoadedBlip2:
    """A BLIP-2 and what has to be known of it.

    Attributes:
        model: In evaluation mode, frozen, on the device.
        tokenizer: Of its language model.
        base: Name and fingerprint.
        view: How pictures become input.
        n_tokens: Tokens that the vision tower makes of a picture, its CLS included.
        stop_id: Token that ends an answer, the newline.
        dtype: Of vision tower and language model.
        quant: How the language model is quantised: `none`, `int8` or `nf4`.
    """

    model: Blip2ForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    base: BaseModel
    view: ImageViewFacts
    n_tokens: int
    stop_id: int
    dtype: torch.dtype
    quant: str = "none"

    @property
    def max_positions(self) -> int:
        """Of the language model, those of the queries included."""
        return self.model.config.text_config.max_position_embeddings

    @property
    def n_queries(self) -> int:
        return self.model.config.num_query_tokens


def load_blip2(
    name: str,
    *,
    pretrained: bool = True,
    prec: str = "fp32",
    device: torch.device | str = "cpu",
    trains_qformer: bool = False,
    trains_post_ln: bool = False,
    text_branch: bool = False,
    input_size_px: int | None = None,
    interpolate_pos: bool = False,
    quant: str = "none",
    attn: str = "sdpa",
    revision: str = "",
) -> LoadedBlip2:
    """Load a BLIP-2 whose language model is an OPT, every part in the type it keeps.

    Args:
        name: Hub id, local folder, `tiny_blip2`, or, with random weights, `blip2_opt_2_7b`.
        pretrained: False: random weights of the configuration's shapes, for benchmarks and dry runs.
        prec: Resolved precision: fp32, bf16, amp or fp16.
        device: Where the model goes; `meta`: shapes and types only, if it is not pretrained.
        trains_qformer: Whether something of the Q-Former will train, so that it is fp32.
        trains_post_ln: The same for the vision tower's last LayerNorm.
        text_branch: Add the Q-Former's text feed-forwards, which the original recipe declares and never runs.
        input_size_px: Side of the input; None: what the image processor says.
        interpolate_pos: Whether position embeddings may be stretched to another side than the model's own.
        quant: Of the language model: none, int8, nf4.
        attn: sdpa or eager.
        revision: Branch, tag or commit of a hub id; "" = the newest.
    Raises:
        FileNotFoundError: If the folder is missing.
        OSError: If the hub has no such model, or cannot be asked.
        RuntimeError: If torch or transformers is too old, or `quant` cannot work here.
        ValueError: If it is no BLIP-2 that this package can drive, or the size is impossible: all reasons at once.
    """
    check_versions()
    device = torch.device(device)
    quantise = make_quantiser(quant, device, COMPUTE_DTYPES[prec])
    origin = SHAPES.get(name) if not pretrained else None
    origin = origin or find_model_folder(name, revision, key=NAME_KEY, shipped=SHIPPED, example=EXAMPLE)
    problems = _problems_with_origin(origin, pretrained=pretrained)
    _refuse(problems, name, origin)
    config = read_config(origin)
    config.qformer_config.use_qformer_text_input |= text_branch
    view = read_view(origin, config, input_size_px)
    vision = config.vision_config
    _refuse(problems_with_size(view.side_px, vision.patch_size, interpolate_pos, native_px=vision.image_size), name, origin)
    dtypes = PartDtypes(COMPUTE_DTYPES[prec], trains_qformer, trains_post_ln)
    model, fingerprint = _build(name, origin, config, pretrained, attn, dtypes, device, quantise)
    tokenizer = _read_tokenizer(origin, config)
    n_tokens = (view.side_px // vision.patch_size) ** 2 + 1
    return LoadedBlip2(
        model, tokenizer, BaseModel(name, fingerprint), view, n_tokens, find_stop_id(tokenizer), dtypes.compute, quant
    )


def check_versions() -> None:
    """Require the versions that GatedBLIP2 needs, which are above the package's own.

    Raises:
        RuntimeError: Naming all that are too old.
    """
    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    old = [
        f"{package} {version} (expected {'.'.join(map(str, FLOORS[package]))} or newer)"
        for package, version in found.items()
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < FLOORS[package]
    ]
    if old:
        raise RuntimeError(f"GatedBLIP2 cannot run with {' and '.join(old)}; remedy: pip install -U {' '.join(FLOORS)}")


def read_config(origin: Path) -> Blip2Config:
    """Read the configuration of a model folder, or a configuration file."""
    file = origin / "config.json" if origin.is_dir() else origin
    return Blip2Config.from_dict(json.loads(file.read_text("utf-8")))


def _refuse(problems: list[str], name: str, origin: Path) -> None:
    if problems:
        raise ValueError("\n  ".join([f"{NAME_KEY} is {name!r}: {len(problems)} problem(s) with {origin}:", *problems]))


def _problems_with_origin(origin: Path, *, pretrained: bool) -> list[str]:
    file = origin / "config.json" if origin.is_dir() else origin
    if not file.is_file():
        return ["it has no config.json; expected a folder as transformers writes it"]
    found = json.loads(file.read_text("utf-8")).get("model_type")
    if found != "blip-2":
        return [f"model_type is {found!r}; expected 'blip-2'"]
    problems, text = [], read_config(origin).text_config.model_type
    if text != "opt":
        problems.append(f"its language model is {text!r}; expected 'opt', as in {EXAMPLE}")
    if not origin.is_dir():
        return problems
    if not any((origin / name).is_file() for name in PROCESSOR_FILES):
        problems.append(f"it has no {PROCESSOR_FILES[0]}")
    if not any((origin / name).is_file() for name in TOKENIZER_FILES):
        problems.append(f"it has no {TOKENIZER_FILES[0]}")
    return problems + (_problems_with_weights(origin) if pretrained else [])


def _problems_with_weights(folder: Path) -> list[str]:
    if find_weight_files(folder):
        return []
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        return [f"its weights are pickles ({', '.join(pickles[:3])}), which are not read; expected *.safetensors"]
    return ["it has no weights: expected model.safetensors, or MODEL.BACKBONE.PRETRAINED False for random ones"]


def _read_tokenizer(origin: Path, config: Blip2Config) -> PreTrainedTokenizerBase:
    if origin.is_dir():
        return AutoTokenizer.from_pretrained(origin, local_files_only=True)
    return build_stand_in_tokenizer(config)


def _build(
    name: str, origin: Path, config: Blip2Config, pretrained: bool, attn: str, dtypes: PartDtypes, device: torch.device,
    quantise: Callable[[nn.Module], None] | None,
) -> tuple[Blip2ForConditionalGeneration, str]:  # fmt: skip
    """Return the model and the fingerprint of its weights."""
    described = config.to_json_string(use_diff=False)
    model = build_empty(config, attn)
    source = random = RandomWeights(device, RANDOM_SEED)
    if pretrained:
        files = find_weight_files(origin)
        source = StoredWeights(files, random)
        _refuse(source.find_problems(model), name, origin)
        fingerprint = hash_weight_files(files)
    else:
        logger.warning("RANDOM WEIGHTS: MODEL.BACKBONE.PRETRAINED is False; %s gives shapes only; answers mean nothing", name)
        fingerprint = hashlib.sha256(f"random {RANDOM_SEED} {device.type} {dtypes} {described}".encode()).hexdigest()
    put_weights(model, source, dtypes=dtypes, device=device, finish_layer=quantise)
    full = [parameter for parameter in model.parameters() if parameter.dtype == torch.float32]
    logger.info(
        "Loaded %s: %s parameters, towers in %s, %s parameters in float32",
        name, f"{count_elements(model.parameters()):,}", dtypes.compute, f"{count_elements(full):,}",
    )  # fmt: skip
    return model, fingerprint
