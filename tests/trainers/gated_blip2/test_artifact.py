"""Stored adapters: what comes back, what it belongs to, and every difference by name."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dassl.config import get_cfg_default
from tiny_blip2s import random_blip2
from torch import nn
from transformers import Blip2Config, Blip2ForConditionalGeneration

from trainers import adapters
from trainers.adapters import BaseModel, find_adapter, read_adapter, write_adapter
from trainers.config import add_trainer_configs
from trainers.gated_blip2.artifact import ArtifactFacts, describe_model, load_adapter, save_adapter
from trainers.gated_blip2.gates import GateOptions
from trainers.gated_blip2.presets import PRESETS, build_conditioner, trainable_parts
from trainers.gated_blip2.style.view import StyleView

ROOT = Path(__file__).resolve().parents[3]
BASE = BaseModel("some/blip2", "f" * 64)
STYLE_WIDTH = 6


@dataclass(frozen=True)
class Pixels:
    """Image preprocessing, as the loader of the base model describes it."""

    side_px: int = 16
    mean: tuple[float, ...] = (0.5, 0.4, 0.3)
    std: tuple[float, ...] = (0.2, 0.2, 0.2)
    resample: str = "bicubic"


def style_file(*, sha256: str = "a" * 64, classes: tuple[str, ...] | None = ("Baroque", "Cubism"), resize_px: int = 20) -> Any:
    view = StyleView(resize_px=resize_px, crop_px=16, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    return SimpleNamespace(arch="efficientnet_tiny", sha256=sha256, class_names=classes, view=view)


@dataclass
class Built:
    """What a trainer holds of a model."""

    parameters: dict[str, nn.Parameter]
    facts: ArtifactFacts

    def disturb(self) -> Built:
        """Change every trainable parameter, as training would."""
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters.values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return self

    def save(self, run: Path, epoch: int = 1, **options: Any) -> Path:
        """Store it; return the first folder."""
        return save_adapter(run, epoch, parameters=self.parameters, facts=self.facts, scores={"val": 50.0}, **options)[0]


def build(style: Any = None, base: BaseModel = BASE, pixels: Pixels | None = None, **overrides: Any) -> Built:
    """Build the trainables of a tiny model as settings say; `GATE__PHI="film"` sets GATE.PHI."""
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    cfg.TRAINER.NAME = "GatedBLIP2"
    node = cfg.TRAINER.GATEDBLIP2
    for name, value in ({"GATE__HIDDEN": 8} | overrides).items():
        node.merge_from_list([name.replace("__", "."), value])
    preset, gate = PRESETS[node.PRESET], node.GATE
    options = GateOptions(
        sites=gate.SITES, granularity=gate.GRANULARITY, phi=gate.PHI, hidden=gate.HIDDEN, layers=tuple(gate.LAYERS),
        beta_v=gate.BETA_V, question=gate.QUESTION,
    )  # fmt: skip
    model = random_blip2(text_input=preset.text_branch)
    parts = trainable_parts(preset, model, build_conditioner(preset, model, STYLE_WIDTH, options))
    loaded = SimpleNamespace(view=pixels or Pixels(), base=base)
    facts = describe_model(cfg, loaded, style or style_file())
    return Built({name: parameter for pairs in parts.values() for name, parameter in pairs}, facts)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model with default settings; may not be changed."""
    return build().disturb().save(tmp_path_factory.mktemp("run"))


def refused(folder: Path, built: Built) -> list[str]:
    """Return the differences of a load that must fail and must change nothing."""
    before = {name: parameter.clone() for name, parameter in built.parameters.items()}
    with pytest.raises(ValueError, match="difference") as caught:
        load_adapter(folder, parameters=built.parameters, facts=built.facts)
    assert all(torch.equal(parameter, before[name]) for name, parameter in built.parameters.items())
    first, *differences = str(caught.value).splitlines()
    assert first == f"{folder}: {len(differences)} difference(s) to the model as configured:"
    return [line.strip() for line in differences]


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "frozen"])
def test_every_preset_comes_back_exactly(preset: str, tmp_path: Path) -> None:
    built, fresh = build(PRESET=preset).disturb(), build(PRESET=preset)
    folder = built.save(tmp_path)
    assert not all(torch.equal(parameter, fresh.parameters[name]) for name, parameter in built.parameters.items())
    loaded = load_adapter(folder, parameters=fresh.parameters, facts=fresh.facts)
    assert all(torch.equal(parameter, fresh.parameters[name]) for name, parameter in built.parameters.items())
    assert (loaded.epoch, loaded.notes, loaded.record["scores"]) == (1, (), {"val": 50.0})


def test_everything_that_is_known_is_stored(stored: Path) -> None:
    record = json.loads((stored / "adapter.json").read_text("utf-8"))
    settings = record["settings"]
    assert (record["system"], record["preset"], settings["GATE.HIDDEN"]) == ("GatedBLIP2", "gates_proj", 8)
    assert settings["PROMPT.TEMPLATE"] == "Question: {question} Short answer:"
    assert settings["GEN.MAX_NEW_TOKENS"] == 20
    assert record["preprocessing"] == {"side_px": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "resample": "bicubic"}
    assert record["base"] == {"id": "some/blip2", "fingerprint": "f" * 64}
    style = record["style"]
    assert (style["sha256"], style["classes"], style["arch"]) == ("a" * 64, ["Baroque", "Cubism"], "efficientnet_tiny")
    assert style["view"]["crop_px"] == 16
    assert len(record["cfg_hash"]) == 64
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert sorted(path.name for path in stored.iterdir()) == ["adapter.json", "adapter.safetensors"]


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_all_differences_come_in_one_message(stored: Path) -> None:
    other = build(
        style_file(sha256="b" * 64), BaseModel("other/blip2", "0" * 64), Pixels(side_px=32), PRESET="gates", GATE__PHI="film",
        PROMPT__TEMPLATE="{question}",
    )  # fmt: skip
    found = refused(stored, other)
    base = "base model: the adapter belongs to some/blip2 (ffffffffffff), MODEL.BACKBONE.NAME is other/blip2 (000000000000)"
    assert found[:6] == [
        base,
        "TRAINER.GATEDBLIP2.PRESET: stored 'gates_proj', now 'gates'",
        "TRAINER.GATEDBLIP2.GATE.PHI: stored 'tanh', now 'film'",
        "TRAINER.GATEDBLIP2.PROMPT.TEMPLATE: stored 'Question: {question} Short answer:', now '{question}'",
        "preprocessing.side_px: stored 16, now 32",
        f"style.sha256: stored '{'a' * 64}', now '{'b' * 64}'",
    ]
    assert "unexpected tensor: query_tokens" in found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("GATE.SITES", "v"), ("GATE.GRANULARITY", "head"), ("GATE.HIDDEN", 4), ("GATE.LAYERS", (1,)),
        ("GATE.BETA_V", False), ("GATE.QUESTION", True), ("STYLE.SOURCE", "logits"), ("STYLE.SOURCE", "static"),
    ],
)  # fmt: skip
def test_each_key_of_the_gates_is_compared(key: str, value: Any, stored: Path) -> None:
    found = refused(stored, build(**{key.replace(".", "__"): value}))
    assert any(line.startswith(f"TRAINER.GATEDBLIP2.{key}: stored ") for line in found)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"base": BaseModel("some/blip2", "0" * 64)}, "base model: the adapter belongs to some/blip2 (ffffffffffff)"),
        ({"style": style_file(sha256="b" * 64)}, "style.sha256: stored 'aaaa"),
        ({"style": style_file(resize_px=24)}, "style.view: stored "),
        ({"pixels": Pixels(mean=(0.0, 0.0, 0.0))}, "preprocessing.mean: stored [0.5, 0.4, 0.3], now [0.0, 0.0, 0.0]"),
    ],
)
def test_another_base_style_file_or_preprocessing(changed: dict[str, Any], expected: str, stored: Path) -> None:
    (difference,) = refused(stored, build(**changed))
    assert difference.startswith(expected)


def test_a_stored_label_model_wants_the_same_classes(tmp_path: Path) -> None:
    folder = build(STYLE__SOURCE="label").save(tmp_path)
    (difference,) = refused(folder, build(style_file(classes=("Rococo", "Baroque")), STYLE__SOURCE="label"))
    assert difference == "style.classes: stored ['Baroque', 'Cubism'], now ['Rococo', 'Baroque']"


def test_an_adapter_of_another_system(stored: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stored, tmp_path / "x")
    record = json.loads((folder / "adapter.json").read_text("utf-8")) | {"system": "BgObjLLaVA"}
    (folder / "adapter.json").write_text(json.dumps(record), "utf-8")
    built = build()
    with pytest.raises(ValueError, match="belongs to 'BgObjLLaVA'; expected 'GatedBLIP2'"):
        load_adapter(folder, parameters=built.parameters, facts=built.facts)


# --- what may differ ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["zeros", "shuffled"])
def test_style_may_be_taken_away_or_shuffled(source: str, stored: Path) -> None:
    built = build(STYLE__SOURCE=source)
    found = load_adapter(stored, parameters=built.parameters, facts=built.facts)
    assert found.notes == (
        f"TRAINER.GATEDBLIP2.STYLE.SOURCE: stored 'features', now '{source}': the model learned otherwise",
    )


def test_without_style_no_style_file_is_needed(stored: Path) -> None:
    built = build(STYLE__SOURCE="zeros")
    facts = replace(built.facts, style={})
    load_adapter(stored, parameters=built.parameters, facts=facts)
    assert any("style.sha256" in line for line in refused(stored, Built(build().parameters, replace(build().facts, style={}))))


def test_keys_without_effect_on_a_preset_may_differ(tmp_path: Path) -> None:
    folder = build(PRESET="projection").save(tmp_path)
    built = build(style_file(sha256="b" * 64), PRESET="projection", GATE__PHI="film", STYLE__SOURCE="zeros")
    load_adapter(folder, parameters=built.parameters, facts=built.facts)


def test_ways_of_asking_are_noted_and_decoding_is_free(stored: Path) -> None:
    built = build(PROMPT__MAX_QUESTION_TOKENS=8, GEN__NUM_BEAMS=5, GRAD_ACCUM=1, GATE__INIT_STD=0.01)
    notes = load_adapter(stored, parameters=built.parameters, facts=built.facts).notes
    assert [note.split(":")[0] for note in notes] == ["TRAINER.GATEDBLIP2.PROMPT.MAX_QUESTION_TOKENS"]


# --- on disk ------------------------------------------------------------------------------------------------------------


def test_keep_best_leaves_one_adapter_only(tmp_path: Path) -> None:
    built = build()
    for epoch, best in ((1, True), (2, False), (3, True)):
        for as_best in [True, False] if best else [False]:
            save_adapter(
                tmp_path, epoch, parameters=built.parameters, facts=built.facts, scores={}, keep="best", best=as_best
            )
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["best"]
    assert load_adapter(tmp_path, parameters=built.parameters, facts=built.facts).epoch == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process to kill")
def test_a_kill_while_saving_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "adapter" / "last"
    write_adapter(folder, {"x": torch.ones(2)}, {"epoch": 1}, BASE)

    def stop_half_way(state: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(adapters, "save_file", stop_half_way)
            write_adapter(folder, {"x": torch.zeros(2)}, {"epoch": 2}, BASE)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(folder.parent.iterdir())) == 2  # what the killed one left is still there
    assert find_adapter(tmp_path) == folder
    adapter = read_adapter(folder, needs_tokenizer=False)
    assert (adapter.record["epoch"], adapter.tensors["x"].tolist()) == (1, [1.0, 1.0])
    write_adapter(folder, {"x": torch.zeros(2)}, {"epoch": 2}, BASE)
    assert read_adapter(folder, needs_tokenizer=False).record["epoch"] == 2


def real_trainables(preset: str, style_width: int) -> dict[str, torch.Tensor]:
    """Return random tensors of the shapes that a preset trains in BLIP-2 with OPT-2.7B; the rest is never allocated."""
    config = json.loads((ROOT / "trainers/gated_blip2/assets/blip2_opt_2_7b.json").read_text("utf-8"))
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(Blip2Config.from_dict(config))
        conditioner = build_conditioner(PRESETS[preset], model, style_width)
        parts = trainable_parts(PRESETS[preset], model, conditioner)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(each.shape, generator=generator) for pairs in parts.values() for name, each in pairs}


def test_an_adapter_of_real_shape_is_small(tmp_path: Path) -> None:
    tensors = real_trainables("gates_proj", style_width=1536)
    assert sum(tensor.numel() for tensor in tensors.values()) == 9_874_944
    folder = save_adapter(tmp_path, 1, parameters=tensors, facts=build().facts, scores={"val": 50.0}, best=True)[0]
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= 40_000_000
