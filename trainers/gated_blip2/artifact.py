"""What a trained GatedBLIP2 stores beside the base model, and the strict way back.

`adapter.json` says what the tensors belong to: settings, image preprocessing, style encoder, base model. Loading compares what
shapes the model or its input; one `ValueError` lists every difference. A style that is taken away (`STYLE.SOURCE zeros`) or
exchanged (`shuffled`) is a way of using a model, and noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from yacs.config import CfgNode

from trainers import adapter_facts, adapters
from trainers.adapter_facts import LoadedAdapter, all_keys, as_stored, list_differences
from trainers.adapters import Adapter, BaseModel
from trainers.config_merge import flatten
from trainers.gated_blip2.presets import PRESETS
from trainers.run_folder import hash_settings

if TYPE_CHECKING:
    from trainers.gated_blip2.loading import LoadedBlip2
    from trainers.gated_blip2.style.encoder import StyleEncoder

SYSTEM, NODE = "GatedBLIP2", "TRAINER.GATEDBLIP2"
PRESET, SOURCE = "PRESET", "STYLE.SOURCE"
PROMPT_KEYS = ("PROMPT.TEMPLATE",)
# Keys that shape a preset's conditioner; GATE.INIT_STD is where training began.
CONDITIONER_KEYS = {
    "none": (),
    "gates": (
        "GATE.SITES", "GATE.GRANULARITY", "GATE.PHI", "GATE.HIDDEN", "GATE.LAYERS", "GATE.BETA_V", "GATE.QUESTION",
    ),
    "original": ("GATE.LAYERS",),
}  # fmt: skip
INPUT_KEYS = ("PROMPT.MAX_QUESTION_TOKENS", "QUANT")
# (stored, now) values of STYLE.SOURCE that one model can be used with; all others are other models.
SOURCES_IN_USE = {
    ("features", "zeros"), ("features", "shuffled"), ("shuffled", "features"), ("shuffled", "zeros"),
    ("logits", "label"), ("label", "logits"),
}  # fmt: skip
# What of the style encoder a source depends on.
STYLE_FACTS = {
    "features": ("arch", "sha256", "view"),
    "shuffled": ("arch", "sha256", "view"),
    "logits": ("arch", "sha256", "view", "classes"),
    "label": ("classes",),
}


@dataclass(frozen=True)
class ArtifactFacts:
    """What a model is, beside its trained tensors; in JSON's types.

    Attributes:
        settings: Keys below `TRAINER.GATEDBLIP2`, dotted -> values; among them preset, gates, prompt and generation defaults.
        preprocessing: How a picture becomes the ViT's input: side_px, mean, std, resample.
        style: Of the style encoder: arch, sha256, classes (None: features only), view. Empty without one.
        base: The BLIP-2 it is built on.
        cfg_hash: SHA-256 of all settings that training depends on.
    """

    settings: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    style: Mapping[str, Any]
    base: BaseModel
    cfg_hash: str


def describe_model(cfg: CfgNode, loaded: LoadedBlip2, style: StyleEncoder | None) -> ArtifactFacts:
    """Return what a model is.

    Args:
        cfg: Full configuration.
        loaded: The BLIP-2 around which it is built.
        style: Its style encoder; None without one.
    """
    return ArtifactFacts(
        settings={key: as_stored(value) for key, value in flatten(cfg.TRAINER.GATEDBLIP2)},
        preprocessing=_plain(asdict(loaded.view)),
        style={} if style is None else _describe_style(style),
        base=loaded.base,
        cfg_hash=hash_settings(cfg),
    )


def _describe_style(style: StyleEncoder) -> dict[str, Any]:
    classes = None if style.class_names is None else list(style.class_names)
    return {"arch": style.arch, "sha256": style.sha256, "classes": classes, "view": _plain(asdict(style.view))}


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: as_stored(value) for name, value in fields.items()}


def save_adapter(
    run: str | Path,
    epoch: int,
    *,
    parameters: Mapping[str, Tensor],
    facts: ArtifactFacts,
    scores: Mapping[str, float],
    keep: str = "best_last",
    best: bool = False,
) -> list[Path]:
    """Store the trained tensors and what they belong to; returns the folders that `keep` asked for.

    Args:
        run: Output folder of the run.
        epoch: Finished epochs, from 1.
        parameters: Stable name -> trainable parameter, all of them.
        facts: Of the model.
        scores: Metric -> value, as far as known.
        keep: `CHECKPOINT.KEEP`.
        best: Store as the best epoch so far, otherwise as a finished epoch.
    Raises:
        OSError: If a folder cannot be written.
    """
    record = {
        "system": SYSTEM,
        "preset": facts.settings[PRESET],
        "settings": dict(facts.settings),
        "preprocessing": dict(facts.preprocessing),
        "style": dict(facts.style),
        "cfg_hash": facts.cfg_hash,
        "scores": dict(scores),
    }
    return adapter_facts.store_adapter(run, epoch, parameters, record, facts.base, keep=keep, best=best)


def load_adapter(
    run: str | Path, epoch: int | None = None, *, parameters: Mapping[str, Tensor], facts: ArtifactFacts
) -> LoadedAdapter:
    """Read a stored adapter into the model's trainable parameters.

    Args:
        run: Run folder, an adapter folder, or a file in that.
        epoch: Finished epochs; None: the best on validation, else the last.
        parameters: Stable name -> trainable parameter of the model as it is built now.
        facts: Of that model.
    Raises:
        FileNotFoundError: If there is no such adapter, or it is incomplete.
        ValueError: If it does not belong to this model: every difference in one message.
    """
    return adapter_facts.load_strictly(
        run, epoch, system=SYSTEM, parameters=parameters, needs_tokenizer=False,
        find_problems=lambda adapter: find_differences(adapter, parameters, facts),
        find_notes=lambda adapter: find_notes(adapter.record["settings"], facts.settings),
    )  # fmt: skip


def find_differences(adapter: Adapter, parameters: Mapping[str, Tensor], facts: ArtifactFacts) -> list[str]:
    """Return one message per reason why a stored adapter does not fit a model."""
    stored, now = adapter.record, facts.settings
    conditioners = {PRESETS[preset].conditioner for preset in (stored["settings"][PRESET], now[PRESET])}
    keys = [PRESET, *dict.fromkeys(key for kind in sorted(conditioners) for key in CONDITIONER_KEYS[kind]), *PROMPT_KEYS]
    if conditioners != {"none"} and not _fits_source(stored["settings"], now):
        keys.append(SOURCE)
    problems = adapters.problems_with_base(adapter, facts.base)
    problems += list_differences(f"{NODE}.", stored["settings"], now, keys)
    pixels = stored["preprocessing"]
    problems += list_differences("preprocessing.", pixels, facts.preprocessing, all_keys(pixels, facts.preprocessing))
    if conditioners != {"none"}:
        problems += list_differences("style.", stored["style"], facts.style, STYLE_FACTS.get(now[SOURCE], ()))
    return problems + adapters.problems_with_tensors(adapter, parameters)


def _fits_source(stored: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return (stored[SOURCE], now[SOURCE]) in SOURCES_IN_USE


def find_notes(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one message per difference in how a model is used, between two settings."""
    keys = [key for key in (SOURCE, *INPUT_KEYS) if stored.get(key) != now.get(key)]
    return [f"{note}: the model learned otherwise" for note in list_differences(f"{NODE}.", stored, now, keys)]
