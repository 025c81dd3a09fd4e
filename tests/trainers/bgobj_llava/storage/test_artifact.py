"""Stored models: what comes back, in another process too, and every difference by name."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_world import Built, build
from llava_folders import write_llava

from trainers.bgobj_llava.model.encode import SplitBatch
from trainers.bgobj_llava.storage.artifact import load_adapter
from trainers.bgobj_llava.storage.composition import load_composition, read_settings

ROOT = Path(__file__).resolve().parents[4]
FUSED = {"TRAIN__SCOPE": "lora", "LORA__R": 4, "FUSION__LAYERS": 1, "PROJECTOR": "separate"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("artifact") / "base")


@pytest.fixture(scope="module")
def stored(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Path]:
    """A model with all parts and its folder; neither may be changed."""
    built = build(base, **FUSED)
    built.disturb()
    return built, built.save(tmp_path_factory.mktemp("run"))


def answer_logits(built: Any) -> torch.Tensor:
    """Logits of one question about one fixed picture."""
    size = built.model.info.side_px
    images = torch.linspace(-2, 2, 3 * size * size).reshape(1, 3, size, size)
    objects = torch.arange(built.model.info.n_patches)[None] % 3 == 0
    with torch.no_grad():
        return built.model(images, SplitBatch.of(objects), [built.encoder.encode([("what colour is the circle?", None)])])[0]


def load(folder: Path, built: Built, *, probe: bool = True) -> Any:
    return load_adapter(folder, parameters=built.parameters, facts=built.facts, probe=built.probe if probe else None)


def refused(folder: Path, built: Built) -> str:
    """Return the message of a load that must fail and must change nothing."""
    before = {name: parameter.clone() for name, parameter in built.parameters.items()}
    with pytest.raises(ValueError, match="difference") as caught:
        load(folder, built)
    assert all(torch.equal(parameter, before[name]) for name, parameter in built.parameters.items())
    return str(caught.value)


@pytest.mark.parametrize("scope", ["projector", "fusion_projector", "last_k", "lora", "full"])
def test_every_scope_comes_back_exactly(scope: str, base: Path, tmp_path: Path) -> None:
    options = {"TRAIN__SCOPE": scope, "FUSION__LAYERS": 0 if scope == "projector" else 1}
    built, fresh = build(base, **options), build(base, **options)
    built.disturb()
    folder = built.save(tmp_path)
    assert not torch.equal(answer_logits(built), answer_logits(fresh))
    loaded = load(folder, fresh)
    assert torch.equal(answer_logits(built), answer_logits(fresh))
    assert (loaded.epoch, loaded.notes, loaded.record["scores"]) == (1, (), {"accuracy": 50.0})
    names = {name.split(".")[0] for name in built.parameters}
    assert "llava" in names
    assert any("multi_modal_projector" in name for name in built.parameters)


def test_a_new_process_says_the_same(stored: tuple[Built, Path], tmp_path: Path) -> None:
    built, folder = stored
    code = (
        "import sys, torch; sys.path[:0] = sys.argv[3:]\n"
        "from test_artifact import answer_logits; from trainers.bgobj_llava.storage.composition import load_composition\n"
        "torch.save(answer_logits(load_composition(sys.argv[1])), sys.argv[2])"
    )
    here = Path(__file__).parent
    places = [str(ROOT), str(ROOT / "tests"), str(here), str(here.parent)]
    subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "logits"), *places], check=True, cwd=tmp_path)
    assert torch.equal(torch.load(tmp_path / "logits", weights_only=True), answer_logits(built))


def test_a_composition_needs_no_run(stored: tuple[Built, Path], base: Path, tmp_path: Path) -> None:
    built, folder = stored
    moved = shutil.copytree(folder, tmp_path / "any name")
    shutil.copytree(base, tmp_path / "base elsewhere")
    composition = load_composition(moved, base=str(tmp_path / "base elsewhere"))
    assert torch.equal(answer_logits(composition), answer_logits(built))
    assert composition.model.tokenizer.get_vocab() == built.model.tokenizer.get_vocab()
    assert not any(parameter.requires_grad for parameter in composition.model.parameters())


def test_a_composition_runs_as_it_learned(base: Path, tmp_path: Path) -> None:
    folder = build(base, TRAIN__SCOPE="lora", LORA__R=2, LORA__DROPOUT=0.5, ATTN="eager").save(tmp_path)
    composition = load_composition(folder)
    assert not any(module.training for module in composition.model.modules())
    assert composition.loaded.model.config.text_config._attn_implementation == "eager"
    assert load_composition(folder, attn="sdpa").loaded.model.config.text_config._attn_implementation == "sdpa"


def test_half_precision_agrees_with_the_probe(stored: tuple[Built, Path]) -> None:
    composition = load_composition(stored[1], dtype=torch.bfloat16)
    assert composition.model.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in composition.parameters.values()} == {torch.float32}


def test_everything_that_is_known_is_stored(stored: tuple[Built, Path], base: Path) -> None:
    record = json.loads((stored[1] / "adapter.json").read_text("utf-8"))
    assert record["settings"]["LORA.R"] == 4
    assert record["settings"]["MASK.DILATE"] == 1
    assert "USER" in record["prompt"].values()
    assert record["preprocessing"]["fill_rgb"] == [122, 116, 104]
    assert record["base"]["id"] == str(base)
    assert len(record["separators"]) == 4
    assert (stored[1] / "tokenizer" / "tokenizer.json").is_file()


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_other_shapes_list_every_difference(stored: tuple[Built, Path], base: Path) -> None:
    message = refused(stored[1], build(base, TRAIN__SCOPE="projector", SEP__STYLE="none"))
    for part in (
        "TRAINER.BGOBJLLAVA.PROJECTOR: stored 'separate', now 'shared'",
        "TRAINER.BGOBJLLAVA.FUSION.LAYERS: stored 1, now 0",
        "TRAINER.BGOBJLLAVA.SEP.STYLE: stored 'pairs', now 'none'",
        "TRAINER.BGOBJLLAVA.TRAIN.SCOPE: stored 'lora', now 'projector'",
        "missing tensor: llava.model.multi_modal_projector.linear_1.weight",
        "unexpected tensor: separators.table",
        "unexpected tensor: projector_bg.linear_1.weight",
        "separators.bg_start: stored ",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({"LORA__R": 8}, "LORA.R: stored 4, now 8"),
        ({"LORA__ALPHA": 8.0}, "LORA.ALPHA: stored 32.0, now 8.0"),
        ({"FUSION__LAYERS": 2}, "FUSION.LAYERS: stored 1, now 2"),
    ],
)
def test_other_sizes(now: dict, expected: str, stored: tuple[Built, Path], base: Path) -> None:
    assert f"TRAINER.BGOBJLLAVA.{expected}" in refused(stored[1], build(base, **(FUSED | now)))


def test_another_number_of_last_layers(base: Path, tmp_path: Path) -> None:
    folder = build(base, TRAIN__SCOPE="last_k", TRAIN__LAST_K=1).save(tmp_path)
    message = refused(folder, build(base, TRAIN__SCOPE="last_k", TRAIN__LAST_K=2))
    assert "TRAINER.BGOBJLLAVA.TRAIN.LAST_K: stored 1, now 2" in message and "missing tensor: " in message
    assert load(build(base).save(tmp_path / "other"), build(base, TRAIN__LAST_K=2)).notes == ()  # shapes nothing in this scope


def test_another_base(stored: tuple[Built, Path], tmp_path: Path) -> None:
    other = write_llava(tmp_path / "other", seed=1)
    message = refused(stored[1], build(other, **FUSED))
    assert "1 difference(s)" in message
    assert "base model: the adapter belongs to " in message
    with pytest.raises(ValueError, match="base model: "):
        load_composition(stored[1], base=str(other))


def edit_stored(folder: Path, target: Path, **fields: Any) -> Path:
    """Return a copy whose adapter.json says something else."""
    shutil.copytree(folder, target)
    record = json.loads((target / "adapter.json").read_text("utf-8"))
    (target / "adapter.json").write_text(json.dumps(record | fields), encoding="utf-8")
    return target


def test_another_prompt_or_preprocessing(stored: tuple[Built, Path], base: Path, tmp_path: Path) -> None:
    built = build(base, **FUSED)
    prompt = {**built.facts.prompt, "user": "HUMAN"}
    pixels = {**built.facts.preprocessing, "mean": [0.5, 0.5, 0.5]}
    folder = edit_stored(stored[1], tmp_path / "x", prompt=prompt, preprocessing=pixels)
    message = refused(folder, built)
    assert "prompt.user: stored 'HUMAN', now 'USER'" in message
    assert "preprocessing.mean: stored [0.5, 0.5, 0.5], now [0.48145466, " in message


def test_a_folder_without_tokenizer(stored: tuple[Built, Path], base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stored[1], tmp_path / "x")
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(FileNotFoundError, match="no complete adapter: it has no tokenizer"):
        load(folder, build(base, **FUSED))


def test_an_adapter_of_another_system(stored: tuple[Built, Path], base: Path, tmp_path: Path) -> None:
    folder = edit_stored(stored[1], tmp_path / "x", system="GatedBLIP2")
    with pytest.raises(ValueError, match="belongs to 'GatedBLIP2'"):
        load(folder, build(base, **FUSED))


def test_a_model_that_says_something_else(stored: tuple[Built, Path], base: Path, tmp_path: Path) -> None:
    probe = json.loads((stored[1] / "adapter.json").read_text("utf-8"))["probe"]
    probe["logits"][3] += 0.01 * probe["scale"]
    folder = edit_stored(stored[1], tmp_path / "x", probe=probe)
    with pytest.raises(ValueError, match="does not say what the stored one said"):
        load(folder, build(base, **FUSED))
    load(folder, build(base, **FUSED), probe=False)


def test_settings_of_another_version() -> None:
    with pytest.raises(ValueError, match="2 setting") as caught:
        read_settings({"SPLIT": "none", "SPLITS": 1, "LORA.R": "many"}, Path("x"))
    assert "SPLITS is 1" in str(caught.value)


# --- what may differ ----------------------------------------------------------------------------------------------------


def test_other_inputs_are_noted(stored: tuple[Built, Path], base: Path, caplog: pytest.LogCaptureFixture) -> None:
    fresh = build(base, **FUSED, POSITION="raster", MASK__DILATE=2, CLS="none", IMAGE__ASPECT="crop", GEN__MAX_NEW_TOKENS=3)
    with caplog.at_level(logging.INFO, "trainers"):
        notes = load(stored[1], fresh).notes
    differing = [f"TRAINER.BGOBJLLAVA.{key}" for key in ("CLS", "IMAGE.ASPECT", "MASK.DILATE", "POSITION")]
    assert [note.split(":")[0] for note in notes] == [*differing, "the stored probe was not compared"]
    assert all(note in caplog.text for note in notes)


def test_a_split_may_be_switched_off(base: Path, tmp_path: Path) -> None:
    built = build(base, TRAIN__SCOPE="fusion_projector", FUSION__LAYERS=1)
    built.disturb()
    plain = build(base, TRAIN__SCOPE="fusion_projector", FUSION__LAYERS=1, SPLIT="none")
    notes = load(built.save(tmp_path), plain).notes
    assert any("SPLIT: stored 'bgobj', now 'none'" in note for note in notes)
    name = "llava.model.multi_modal_projector.linear_1.weight"
    assert torch.equal(plain.parameters[name], built.parameters[name])


def test_epochs_and_the_best(base: Path, tmp_path: Path) -> None:
    built = build(base)
    built.save(tmp_path, 1)
    built.disturb()
    built.save(tmp_path, 2, best=True)
    built.save(tmp_path, 2)
    fresh = build(base)
    for epoch, expected in ((1, 1), (None, 2)):
        loaded = load_adapter(tmp_path, epoch, parameters=fresh.parameters, facts=fresh.facts)
        assert loaded.epoch == expected
    assert torch.equal(answer_logits(fresh), answer_logits(built))


def test_a_run_goes_on_with_its_own_base_only(trained_run, make_trainer, tmp_path: Path) -> None:
    folder, trainer = trained_run("BgObjLLaVA")
    resume = {"RESUME": str(folder), "OPTIM.MAX_EPOCH": 1}
    same = make_trainer("BgObjLLaVA", resume)
    same.before_train()
    assert same.start_epoch == 1
    other = write_llava(tmp_path / "other", vision=(3, 32), llm=(2, 48), seed=5)
    changed = make_trainer("BgObjLLaVA", resume | {"MODEL.BACKBONE.NAME": str(other)}, run="changed")
    with pytest.raises(ValueError, match="cannot continue the run, 1 thing.*\n.*base model"):
        changed.before_train()


def test_an_evaluation_keeps_its_notes(trained_run, make_trainer, tmp_path: Path) -> None:
    folder, _ = trained_run("BgObjLLaVA")
    before = (folder / "report.json").read_text("utf-8")
    for run, overrides, expected in (("same", {}, False), ("other", {".MASK.DILATE": 3}, True)):
        trainer = make_trainer("BgObjLLaVA", overrides, run=run)
        trainer.load_model(str(folder), epoch=1)
        report = tmp_path / run / "report.json"
        assert report.is_file() == expected
    assert json.loads(report.read_text("utf-8"))["notes"][0].startswith("TRAINER.BGOBJLLAVA.MASK.DILATE: stored 1, now 3")
    trainer = make_trainer("BgObjLLaVA", {".MASK.DILATE": 3, "OUTPUT_DIR": str(folder)})
    trainer.load_model(str(folder), epoch=1)
    assert (folder / "report.json").read_text("utf-8") == before
