"""What a trained BgObjLLaVA stores beside the base model, and the strict way back.

Loading compares everything that shapes the model; one `ValueError` lists every difference. What only makes the model's input
(split, masks, positions) may differ and is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from yacs.config import CfgNode

from trainers import adapter_facts, adapters
from trainers.adapter_facts import LoadedAdapter, all_keys, as_stored, list_differences
from trainers.adapters import Adapter, BaseModel
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.prompt import PromptEncoder
from trainers.bgobj_llava.storage.loading import LoadedLlava
from trainers.bgobj_llava.storage.probe import Probe, check_probe
from trainers.config_merge import flatten

NODE = "TRAINER.BGOBJLLAVA"
INPUT_KEYS = ("SPLIT", "POSITION", "CLS", "MASK.", "IMAGE.", "DET.BACKEND")  # prefixes
SCOPE = "TRAIN.SCOPE"
SHAPE_KEYS = ("PROJECTOR", "FUSION.LAYERS", "SEP.STYLE", SCOPE)
SCOPE_KEYS = {"TRAIN.LAST_K": "last_k", "LORA.R": "lora", "LORA.ALPHA": "lora"}  # shape the model in that scope only
# Keys, and first names of tensors, that are not built unless SPLIT is one of these.
BUILT_WITH = {
    "SEP.STYLE": ("separators.", ("bgobj", "order_only")),
    "FUSION.LAYERS": ("fusion.", ("bgobj", "order_only", "isolate_only")),
}


@dataclass(frozen=True)
class ArtifactFacts:
    """What a model is, beside its trained tensors.

    Attributes:
        settings: Keys below `TRAINER.BGOBJLLAVA`, dotted -> values.
        prompt: The prompt template's fields.
        preprocessing: side_px, patch_px, mean, std, fill_rgb.
        base: The LLaVA it is built on.
        separators: Token -> id of every separator, in order.
    """

    settings: Mapping[str, Any]
    prompt: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    base: BaseModel
    separators: Mapping[str, int]


def describe_model(model: BgObjLlava, encoder: PromptEncoder, loaded: LoadedLlava, settings: CfgNode) -> ArtifactFacts:
    """Return what a model is.

    Args:
        model: As built.
        encoder: Of its prompt.
        loaded: The LLaVA around which it is built.
        settings: Config node of the trainer.
    """
    return ArtifactFacts(
        settings={key: as_stored(value) for key, value in flatten(settings)},
        prompt=asdict(encoder.template),
        preprocessing=loaded.preprocessing,
        base=loaded.base,
        separators=dict(model.info.separator_ids),
    )


def save_adapter(
    run: str | Path,
    epoch: int,
    *,
    parameters: Mapping[str, Tensor],
    facts: ArtifactFacts,
    tokenizer: Any,
    probe: Probe,
    scores: Mapping[str, float],
    keep: str = "all",
    best: bool = False,
) -> list[Path]:
    """Store the trained tensors and what they belong to; returns the folders that `keep` asked for.

    Args:
        run: Output folder of the run.
        epoch: Finished epochs, from 1.
        parameters: Stable name -> trainable parameter, all of them; the projector is always among them.
        facts: Of the model.
        tokenizer: With the separators added.
        probe: Of the model as it is now, from `compute_probe`.
        scores: Metric -> value, as far as known.
        keep: `CHECKPOINT.KEEP`.
        best: Store as the best epoch so far, otherwise as a finished epoch.
    Raises:
        OSError: If a folder cannot be written.
    """
    record = {
        "system": "BgObjLLaVA",
        "settings": dict(facts.settings),
        "prompt": dict(facts.prompt),
        "preprocessing": dict(facts.preprocessing),
        "separators": dict(facts.separators),
        "probe": asdict(probe),
        "scores": dict(scores),
    }
    return adapter_facts.store_adapter(
        run, epoch, parameters, record, facts.base, keep=keep, best=best, save_tokenizer=tokenizer.save_pretrained
    )


def load_adapter(
    run: str | Path,
    epoch: int | None = None,
    *,
    parameters: Mapping[str, Tensor],
    facts: ArtifactFacts,
    probe: Callable[[], Probe] | None = None,
) -> LoadedAdapter:
    """Read a stored adapter into the model's trainable parameters.

    Args:
        run: Run folder, an adapter folder, or a file in that.
        epoch: Finished epochs; None: the best on validation, else the last.
        parameters: Stable name -> trainable parameter of the model as it is built now.
        facts: Of that model.
        probe: Computes the probe of the model after loading; None: it is not compared.
    Raises:
        FileNotFoundError: If there is no such adapter, or it is incomplete (no tokenizer, for example).
        ValueError: If it does not belong to this model: every difference in one message; or if its logits differ.
    """
    return adapter_facts.load_strictly(
        run, epoch, system="BgObjLLaVA", parameters=parameters, needs_tokenizer=True,
        find_problems=lambda adapter: find_differences(adapter, parameters, facts),
        find_notes=lambda adapter: _notes(adapter, facts, probe),
    )  # fmt: skip


def _notes(adapter: Adapter, facts: ArtifactFacts, probe: Callable[[], Probe] | None) -> list[str]:
    notes = input_notes(adapter.record["settings"], facts.settings)
    if probe is not None:
        notes += check_probe(Probe(**adapter.record["probe"]), probe(), adapter.path)
    return notes


def find_differences(adapter: Adapter, parameters: Mapping[str, Tensor], facts: ArtifactFacts) -> list[str]:
    """Return one message per reason why a stored adapter does not fit a model."""
    stored, inert = adapter.record, _inert_keys(facts.settings)
    problems = adapters.problems_with_base(adapter, facts.base)
    keys = [key for key in SHAPE_KEYS if key not in inert]
    keys += [key for key, scope in SCOPE_KEYS.items() if scope in (stored["settings"].get(SCOPE), facts.settings.get(SCOPE))]
    problems += list_differences(f"{NODE}.", stored["settings"], facts.settings, keys)
    parts = {"prompt": facts.prompt, "preprocessing": facts.preprocessing}
    if "SEP.STYLE" not in inert:
        parts["separators"] = facts.separators
    for part, now in parts.items():
        problems += list_differences(f"{part}.", stored[part], now, all_keys(stored[part], now))
    unused = tuple(BUILT_WITH[key][0] for key in inert)
    used = {name: tensor for name, tensor in adapter.tensors.items() if not name.startswith(unused)}
    return problems + adapters.problems_with_tensors(replace(adapter, tensors=used), parameters)


def _inert_keys(settings: Mapping[str, Any]) -> list[str]:
    return [key for key, (_, splits) in BUILT_WITH.items() if settings.get("SPLIT") not in splits]


def input_notes(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one message per input-making key that differs between two settings."""
    keys = [key for key in all_keys(stored, now) if key.startswith(INPUT_KEYS)]
    return [f"{note}: the model learned from other inputs" for note in list_differences(f"{NODE}.", stored, now, keys)]
