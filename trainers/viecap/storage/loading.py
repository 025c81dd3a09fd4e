"""From a run's artefact to a captioner, and the parts that training and prediction build alike from the same keys."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from yacs.config import CfgNode

from trainers import precision
from trainers.viecap import settings
from trainers.viecap.clip_source import ClipSource
from trainers.viecap.config import add_config
from trainers.viecap.network.captioner import Captioner, ImageCaption
from trainers.viecap.network.language_model import build_language_model, width_of
from trainers.viecap.network.mapping import MappingNetwork
from trainers.viecap.network.model import PrefixCaptioner, PromptLayout
from trainers.viecap.prepare import CACHE_DIR, prepare_vocabulary
from trainers.viecap.storage.artifact import NODE, Artifact, find_artifact, find_clip_differences, find_setting_differences
from trainers.viecap.storage.vocabulary_file import Vocabulary
from trainers.viecap.storage.weights import StoredWeights, load_weights
from trainers.viecap.words.prompts import PromptBuilder
from trainers.viecap.words.retrieval import Retriever, cached_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trainers.viecap.network.decoding import DecodeOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedCaptioner:
    """A captioner and where it comes from.

    Attributes:
        captioner: Ready for images.
        clip: Makes its input: `loaded.preprocess`.
        artifact: Of its run.
        weights: That were loaded.
        vocabulary: That images are compared with; None without a hard prompt.
    """

    captioner: Captioner
    clip: ClipSource
    artifact: Artifact
    weights: StoredWeights
    vocabulary: Vocabulary | None

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.captioner.device

    @property
    def checkpoint(self) -> str:
        """Where its weights lie below the run."""
        return self.weights.path.relative_to(self.artifact.path).as_posix()

    @property
    def facts(self) -> dict[str, Any]:
        """What holds for all captions alike, in JSON's types."""
        options, vocabulary = self.captioner.options, self.vocabulary
        return {
            "epoch": self.weights.epoch,
            "language_model": self.artifact.record["language_model"]["name"],
            "vocabulary": None if vocabulary is None else {"name": vocabulary.name, "size": len(vocabulary.names)},
            "decoding": asdict(options) | {"stop_ids": sorted(options.stop_ids)},
        }

    def preprocess(self, picture: Any) -> torch.Tensor:
        """Return an RGB picture as CLIP sees it, (3, H, W)."""
        return self.clip.loaded.preprocess(picture)

    def caption(self, images: torch.Tensor, rows: Sequence[int]) -> list[ImageCaption]:
        """See `Captioner.caption`."""
        return self.captioner.caption(images, rows)


def load_captioner(
    place: str | Path,
    *,
    epoch: int | None = None,
    node: CfgNode | None = None,
    clip_name: str = "",
    device: torch.device | str = "cpu",
    seed: int = 0,
    cache_dir: str | Path = CACHE_DIR,
) -> LoadedCaptioner:
    """Build the captioner of a run from its artefact; only CLIP's weights come from elsewhere.

    Args:
        place: Run folder, or a weights file in it.
        epoch: Finished epochs; None: the file that was named, else the best on validation, else the last.
        node: Config node `TRAINER.VIECAP`, whose keys of retrieval and decoding are used; None: those of training.
        clip_name: Where the CLIP lies; "" = where it lay in training.
        device: Where everything goes.
        seed: Of sampled captions.
        cache_dir: For the text vectors of another vocabulary than the run's.
    Raises:
        FileNotFoundError: If the run, its weights or a vocabulary's file is missing.
        ValueError: If a file is damaged, or keys or CLIP are not the run's: every difference.
        RuntimeError: If the CLIP cannot be fetched.
    """
    artifact = find_artifact(place)
    weights = artifact.find_weights(epoch)
    node = node_of(artifact.settings) if node is None else node
    clip = ClipSource(clip_name or artifact.record["clip"]["name"], device)
    problems = find_setting_differences(artifact.settings, settings.all_settings(node))
    problems += find_clip_differences(artifact.record, clip.loaded)
    if problems:
        raise ValueError("\n  ".join([f"{artifact.path}: {len(problems)} difference(s) to the run:", *problems]))
    model = _build_untrained(artifact, node)
    load_weights(model, weights)
    model.to(device).eval()
    vocabulary = choose_vocabulary(artifact, node, clip, cache_dir=cache_dir)
    options = settings.decode_options(node, artifact.record["stop_ids"], seed)
    captioner = build_captioner(
        model, read_tokenizer(artifact), node, options=options, vocabulary=vocabulary, encode_images=clip.encode_images
    )
    return LoadedCaptioner(captioner, clip, artifact, weights, vocabulary)


def _build_untrained(artifact: Artifact, node: CfgNode) -> PrefixCaptioner:
    """Build the model from its stored configuration; the global random state stays as it was."""
    record = artifact.record
    with torch.random.fork_rng(devices=[]):
        return build_model(build_language_model(record["language_model"]["config"]), record["clip"]["embed_dim"], node)


def read_tokenizer(artifact: Artifact) -> PreTrainedTokenizerBase:
    """Return the language model's tokenizer as it was stored."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(artifact.tokenizer, local_files_only=True)


def build_model(language_model: PreTrainedModel, d_clip: int, node: CfgNode, *, frozen: bool = False) -> PrefixCaptioner:
    """Put a language model behind the prompts that the keys describe.

    Args:
        language_model: As loaded or built.
        d_clip: Width E of CLIP's vectors.
        node: Config node `TRAINER.VIECAP`.
        frozen: See `PrefixCaptioner`.
    """
    soft_tokens = settings.soft_tokens(node)
    mapping = None
    if soft_tokens:
        mapping = MappingNetwork(
            d_clip, width_of(language_model), prefix_length=soft_tokens, project_length=node.CLIP_PROJECT_LENGTH,
            n_layers=node.NUM_LAYERS, n_heads=node.NUM_HEADS,
        )  # fmt: skip
    layout = PromptLayout(hard=node.USING_HARD_PROMPT, soft_first=node.SOFT_PROMPT_FIRST, soft_tokens=soft_tokens)
    return PrefixCaptioner(language_model, mapping, layout, frozen=frozen)


def build_captioner(
    model: PrefixCaptioner,
    tokenizer: PreTrainedTokenizerBase,
    node: CfgNode,
    *,
    options: DecodeOptions,
    vocabulary: Vocabulary | None,
    encode_images: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Captioner:
    """Assemble a captioner from a model and its keys.

    Args:
        model: On its device.
        tokenizer: Of its language model.
        node: Config node `TRAINER.VIECAP`.
        options: How captions are generated.
        vocabulary: For the hard prompt; None without one.
        encode_images: See `Captioner`.
    """
    prompts = retriever = None
    if node.USING_HARD_PROMPT:
        prompts = PromptBuilder(tokenizer, node.MAX_NUM_OF_ENTITIES, node.PROMPT_TEMPLATE_LENGTH)
        keys = {"top_k": node.TOP_K, "threshold": node.THRESHOLD, "temperature": node.TEMPERATURE}
        retriever = Retriever(vocabulary.embeddings, vocabulary.names, **keys)
    return Captioner(
        model, tokenizer, options, normalise=node.NORMALIZE_PREFIX, prompts=prompts, retriever=retriever,
        encode_images=encode_images, autocast=partial(_autocast, model, node.PREC),
    )  # fmt: skip


def _autocast(model: PrefixCaptioner, prec: str) -> AbstractContextManager:
    return precision.autocast(model.device, precision.autocast_dtype(precision.resolve_precision(prec, model.device)))


def choose_vocabulary(
    artifact: Artifact, node: CfgNode, clip: ClipSource, *, cache_dir: str | Path = CACHE_DIR
) -> Vocabulary | None:
    """Return the run's vocabulary, or the one that the keys name instead; None without a hard prompt.

    Raises:
        ValueError: If another one is to be derived from a corpus, which only training has.
    """
    if not node.USING_HARD_PROMPT:
        return None
    stored, keys = artifact.read_vocabulary(), artifact.settings
    same_names = node.NAME_OF_ENTITIES_TEXT == stored.name and node.SINGLE_WORD_ENTITIES == keys["SINGLE_WORD_ENTITIES"]
    same_names &= node.PATH_OF_ENTITIES_TEXT in ("", keys["PATH_OF_ENTITIES_TEXT"])
    if same_names and node.PROMPT_ENSEMBLE == stored.ensemble:
        return stored
    if same_names:
        vectors = cached_embeddings(
            stored.names, clip.identity, lambda: clip.loaded, ensemble=node.PROMPT_ENSEMBLE, cache_dir=cache_dir
        )
        return replace(stored, embeddings=vectors, ensemble=node.PROMPT_ENSEMBLE)
    if node.NAME_OF_ENTITIES_TEXT == "corpus":
        raise ValueError(
            f"{NODE}.NAME_OF_ENTITIES_TEXT is 'corpus', which is derived from the captions of a training; "
            f"the run of {artifact.path} has {stored.name!r}"
        )
    return prepare_vocabulary(
        node.NAME_OF_ENTITIES_TEXT, node.PATH_OF_ENTITIES_TEXT, clip=clip, ensemble=node.PROMPT_ENSEMBLE,
        single_word=node.SINGLE_WORD_ENTITIES, cache_dir=cache_dir,
    )  # fmt: skip


# Keys ---------------------------------------------------------------------------------------------------------------------


def node_of(stored: Mapping[str, Any]) -> CfgNode:
    """Return a node with stored keys; those that an older version did not know have their defaults."""
    cfg = CfgNode({"TRAINER": CfgNode()})
    add_config(cfg)
    for name, value in stored.items():
        *parents, leaf = name.split(".")
        node = cfg.TRAINER.VIECAP
        for parent in parents:
            node = node[parent]
        node[leaf] = tuple(value) if isinstance(value, list) else value
    return cfg.TRAINER.VIECAP
