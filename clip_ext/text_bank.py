"""Class names x templates x descriptions -> text features with labels and weights, cached by content.

Every sentence is a training sample of the text classifier (LaFTer, NeurIPS 2023); nothing is averaged per class here.
The cache key covers whatever can change a feature, so another backbone or one changed word is a miss, never a stale
hit.
"""

import hashlib
import json
import logging
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from clip_ext.tensor_cache import cached_tensors
from clip_ext.text_encoding import encode_texts, encode_tokens, find_truncated, release_text_tower
from clip_ext.text_files import (
    DEFAULT_ZEROSHOT_TEMPLATE,
    DatasetTexts,
    clean_sentences,
    load_texts,
    match_descriptions,
    normalise_name,
)

if TYPE_CHECKING:
    from clip_ext.loader import LoadedClip

__all__ = [
    "TEXT_MODES",
    "DatasetTexts",
    "TextBank",
    "build_text_bank",
    "class_prototypes",
    "encode_texts",
    "load_texts",
    "release_text_tower",
]

logger = logging.getLogger(__name__)

TEXT_MODES = ("lafter", "cls_only", "single", "templates_only", "descriptions_only")
# Raise when the encoding changes, so that older cache files are not read.
CODE_VERSION = 1


@dataclass(frozen=True)
class TextBank:
    """Encoded texts of a list of classes; all tensors on the CPU.

    Attributes:
        texts: T texts, class by class.
        labels: Class index of each text, (T,), long.
        features: Unit-norm text features, (T, E), fp32.
        weights: Sample weights of mean 1, (T,), fp32.
        key: Hash of everything that determined the features, 64 hex digits.
        classnames: C names, in label order.
    """

    texts: tuple[str, ...]
    labels: Tensor
    features: Tensor
    weights: Tensor
    key: str
    classnames: tuple[str, ...]

    @property
    def n_classes(self) -> int:
        return len(self.classnames)


def build_text_bank(
    clip: "LoadedClip",
    classnames: Sequence[str],
    templates: Sequence[str] = (),
    descriptions: Mapping[str, Sequence[str]] | None = None,
    *,
    mode: str = "lafter",
    zeroshot_template: str = DEFAULT_ZEROSHOT_TEMPLATE,
    clean: bool = True,
    balance: bool = True,
    on_missing: str = "error",
    descriptor_format: str = "",
    keep_underscores: bool = False,
    known_twins: Sequence[str] = (),
    cache_dir: str | Path | None = None,
    batch: int = 256,
) -> TextBank:
    """Compose the texts of every class and encode them, or read their features from the cache.

    Args:
        clip: Loaded CLIP; its text tower runs only on a cache miss.
        classnames: C class names; underscores become spaces in the texts.
        templates: Texts with one `{}` for the class name.
        descriptions: Class name -> sentences; case, `_`, `-` and repeated spaces of the names do not count. Without any,
            mode `lafter` uses the templates alone, with a notice.
        mode: `lafter` (descriptions + templates), `cls_only` (bare names), `single` (the zero-shot template),
            `templates_only`, `descriptions_only`.
        zeroshot_template: Template of mode `single`.
        clean: Drop short, repeated and ambiguous descriptions.
        balance: Weight each text by 1 / (texts of its class), so that classes count equally.
        on_missing: `error`, or `templates`: a class without descriptions gets the templates alone.
        descriptor_format: Frame for short descriptors, with `{class}` and `{descriptor}`; empty: descriptions are
            sentences.
        keep_underscores: Keep underscores of class names in the texts.
        known_twins: Names that may be borne by two classes, with a notice; the classes get the same texts.
        cache_dir: Folder of the feature cache; None: no cache.
        batch: Texts per forward, >= 1.
    Returns:
        The bank.
    Raises:
        ValueError: If an argument is not allowed, two classes bear the same name, or classes have no text (lists all of
            them).
    """
    problems = _argument_problems(templates, mode, on_missing, descriptor_format)
    problems += _name_problems(classnames, known_twins)
    if problems:
        raise ValueError("; ".join(problems))
    names = list(classnames) if keep_underscores else [name.replace("_", " ") for name in classnames]
    sentences: list[list[str]] = [[] for _ in names]
    if mode == "lafter" and not descriptions:
        logger.info("no descriptions are given for these classes: TEXT.MODE lafter uses the templates alone")
    elif mode in ("lafter", "descriptions_only"):
        sentences = _describe(classnames, names, descriptions or {}, clean, on_missing, descriptor_format)
    frames = {"cls_only": ["{}"], "single": [zeroshot_template], "descriptions_only": []}.get(mode, templates)
    # Under `descriptions_only`, templates are reached only by a class that has no description.
    per_class = [
        _compose(name, described, frames if described or mode != "descriptions_only" else templates, clean)
        for name, described in zip(names, sentences, strict=True)
    ]
    _report_coverage(classnames, per_class)

    texts = [text for texts_of_class in per_class for text in texts_of_class]
    counts = torch.tensor([len(texts_of_class) for texts_of_class in per_class])
    labels = torch.arange(len(per_class)).repeat_interleave(counts)
    tokens = clip.tokenizer(texts)
    _report_truncated(clip, texts, tokens)
    key = _bank_key(clip, texts, labels, tokens)
    features = _cached_features(clip, tokens, key, cache_dir, batch)
    balanced = len(texts) / (len(per_class) * counts[labels].float())
    weights = balanced if balance else torch.ones(len(texts))
    return TextBank(tuple(texts), labels, features, weights, key, tuple(classnames))


def class_prototypes(bank: TextBank) -> Tensor:
    """Return the normalised mean of each class's features, (C, E), fp32: the weights of zero-shot classification."""
    sums = torch.zeros(bank.n_classes, bank.features.shape[1]).index_add_(0, bank.labels, bank.features)
    return F.normalize(sums, dim=-1)


def _argument_problems(templates: Sequence[str], mode: str, on_missing: str, descriptor_format: str) -> list[str]:
    problems = []
    if mode not in TEXT_MODES:
        problems.append(f"TEXT.MODE is {mode!r}; expected one of {', '.join(TEXT_MODES)}")
    if on_missing not in ("error", "templates"):
        problems.append(f"TEXT.ON_MISSING is {on_missing!r}; expected one of error, templates")
    if descriptor_format and "{descriptor}" not in descriptor_format:
        problems.append(
            f"TEXT.DESCRIPTOR_FORMAT is {descriptor_format!r}; expected a text with {{class}} and {{descriptor}}"
        )
    if (mode in ("lafter", "templates_only") or on_missing == "templates") and not templates:
        problems.append(
            f"TEXT.TEMPLATES is empty, but TEXT.MODE {mode} with TEXT.ON_MISSING {on_missing} reads templates"
        )
    return problems


def _name_problems(classnames: Sequence[str], known_twins: Sequence[str]) -> list[str]:
    """Find classes of one name, which no text can tell apart; those that are known give a notice only."""
    known = {normalise_name(name) for name in known_twins}
    first_label: dict[str, int] = {}
    problems = [] if classnames else ["there are no class names"]
    for label, name in enumerate(classnames):
        first = first_label.setdefault(normalise_name(name), label)
        if first == label:
            continue
        problem = f"labels {first} and {label} bear the same class name {name!r}"
        if normalise_name(name) in known:
            logger.warning("%s, as this data set is known to do: their texts are the same", problem)
        else:
            problems.append(f"{problem}; rename one, or list it under 'known_twins' in the file of TEXT.TEMPLATES")
    return problems


def _describe(
    classnames: Sequence[str],
    names: Sequence[str],
    descriptions: Mapping[str, Sequence[str]],
    clean: bool,
    on_missing: str,
    descriptor_format: str,
) -> list[list[str]]:
    per_class, unknown = match_descriptions(classnames, descriptions)
    if unknown:
        names_shown = ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else "")
        logger.info("descriptions of %d names that are no class are not used: %s", len(unknown), names_shown)
    if descriptor_format:
        per_class = [
            [
                descriptor_format.replace("{class}", name).replace("{descriptor}", descriptor)
                for descriptor in descriptors
            ]
            for name, descriptors in zip(names, per_class, strict=True)
        ]
    if clean:
        per_class, dropped = clean_sentences(per_class, [normalise_name(name) for name in classnames])
        if any(dropped.values()):
            logger.info(
                "descriptions dropped: %(short)d short, %(repeated)d repeated, %(shared)d of two classes", dropped
            )
    missing = [name for name, sentences in zip(classnames, per_class, strict=True) if not sentences]
    if missing and on_missing == "error":
        raise ValueError(
            f"{len(missing)} of {len(classnames)} classes have no description: {', '.join(missing)}. Add them to "
            "TEXT.DESCRIPTIONS, or set TEXT.ON_MISSING to templates"
        )
    if missing:
        logger.info("%d classes have no description and use templates alone: %s", len(missing), ", ".join(missing))
    return per_class


def _compose(name: str, sentences: Sequence[str], frames: Sequence[str], clean: bool) -> list[str]:
    """Return a class's sentences and filled templates; cleaned, each occurs once."""
    texts = [*sentences, *(frame.replace("{}", name) for frame in frames)]
    return list(dict.fromkeys(texts)) if clean else texts


def _report_coverage(classnames: Sequence[str], per_class: Sequence[Sequence[str]]) -> None:
    counts = [len(texts) for texts in per_class]
    if min(counts) == max(counts):
        logger.info("text bank: %d texts, %d for each of %d classes", sum(counts), counts[0], len(counts))
        return
    coverage = ", ".join(f"{name} {count}" for name, count in zip(classnames, counts, strict=True))
    logger.info("text bank: %d texts for %d classes: %s", sum(counts), len(counts), coverage)


def _report_truncated(clip: "LoadedClip", texts: Sequence[str], tokens: Tensor) -> None:
    truncated = find_truncated(clip, texts, tokens)
    if truncated:
        examples = "; ".join(repr(textwrap.shorten(texts[i], 80)) for i in truncated[:3])
        logger.warning(
            "%d of %d texts are longer than %d tokens and lose their end, first: %s",
            len(truncated), len(texts), tokens.shape[1], examples,
        )  # fmt: skip


def _bank_key(clip: "LoadedClip", texts: Sequence[str], labels: Tensor, tokens: Tensor) -> str:
    """Hash all that determines the features; token ids stand for the tokenizer's word list, cleaning and context."""
    identity = {
        "code": CODE_VERSION,
        "texts": list(texts),
        "labels": labels.tolist(),
        "tokens": tokens.tolist(),
        "weights": clip.fingerprint,
        # Equal weights under another activation (GELU, QuickGELU) are another tower.
        "modules": sorted({type(module).__name__ for module in clip.model.modules()}),
        "dtype": str(next(clip.model.parameters()).dtype),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode("utf-8")).hexdigest()


def _cached_features(clip: "LoadedClip", tokens: Tensor, key: str, cache_dir: str | Path | None, batch: int) -> Tensor:
    def encode() -> dict[str, Tensor]:
        return {"features": encode_tokens(clip.model, tokens, batch=batch)}

    def is_valid(tensors: dict[str, Tensor]) -> bool:
        # Unit norm is checked because flipped bytes inside the data pass safetensors' own check.
        norms = tensors["features"].float().norm(dim=-1)
        return norms.shape == (len(tokens),) and torch.allclose(norms, torch.ones(len(tokens)), atol=1e-3)

    if cache_dir is None:
        return encode()["features"]
    path = Path(cache_dir) / f"text_bank-{key}.safetensors"
    return cached_tensors(path, encode, is_valid=is_valid, content="text features")["features"]
