"""What holds for every registered trainer of this package; a new one is covered as soon as it is registered."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import dassl
import pytest
import tiny_world as world_module
import torch
from safetensors.torch import load_file
from tiny_world import make_cfg, node_of, test_logits

import trainers

ALL = trainers.__all__
TRAINED = [name for name in ALL if name != "ZeroshotCLIP"]
LAFTERS = [name for name in TRAINED if issubclass(getattr(trainers, name), trainers.LaFTer)]
LIVE = {"GatedBLIP2": {".CACHE.ENABLE": False}}  # settings with which a training keeps its frozen encoders in memory
ROOT = Path(__file__).resolve().parents[2]


def one_step(trainer) -> dict[str, float]:
    """Run the first step of a run, text phase included."""
    trainer.before_train()
    trainer.before_epoch()
    trainer.set_model_mode("train")
    return trainer.forward_backward(next(iter(trainer.train_loader_x)))


def frozen_parameters(trainer) -> dict[str, torch.Tensor]:
    declared = {id(p) for p in trainer.adapt.parameters()}
    whole = trainer.clip.model.visual if hasattr(trainer, "clip") else trainer.model
    # A tower that has done its work may have left the memory.
    found = {name: p for name, p in whole.named_parameters() if id(p) not in declared and not p.is_meta}
    assert found
    return found


@pytest.mark.parametrize("name", ALL)
def test_trainer_trains_and_tests_twice_alike(name: str, make_trainer) -> None:
    trainer = make_trainer(name)
    trainer.train()
    assert trainer.test() == trainer.test()
    assert 0.0 <= trainer.test() <= 100.0


@pytest.mark.parametrize("name", TRAINED)
def test_first_step_has_a_finite_loss_that_is_the_sum_of_its_parts(name: str, make_trainer) -> None:
    summary = one_step(make_trainer(name))
    assert math.isfinite(summary["loss"])
    parts = [value for part, value in summary.items() if part != "loss"]
    assert not parts or sum(parts) == pytest.approx(summary["loss"], rel=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_only_declared_parameters_receive_gradients_and_all_of_them_change(name: str, make_trainer) -> None:
    settings = {".SCHEDULER": "constant"} if "SCHEDULER" in node_of(name) else {".WARMUP_STEPS": 0}
    trainer = make_trainer(name, settings | LIVE.get(name, {}))
    before = {key: p.detach().clone() for key, p in trainer.adapt.named_parameters()}
    frozen = {key: p.detach().clone() for key, p in frozen_parameters(trainer).items()}
    one_step(trainer)
    changed = {key for key, p in trainer.adapt.named_parameters() if not torch.equal(p, before[key])}
    assert changed == set(before)
    for key, p in frozen_parameters(trainer).items():
        assert p.grad is None and not p.requires_grad
        assert torch.equal(p, frozen[key]), key


@pytest.mark.parametrize("name", TRAINED)
def test_groups_hold_every_trainable_once_and_reach_the_optimizer(name: str, make_trainer) -> None:
    trainer = make_trainer(name)
    in_optimizer = [id(p) for group in trainer.optim.param_groups for p in group["params"]]
    assert sorted(in_optimizer) == sorted(id(p) for p in trainer.adapt.parameters())
    assert [group["name"] for group in trainer.optim.param_groups] == [group.name for group in trainer.groups]
    for group, declared in zip(trainer.optim.param_groups, trainer.groups, strict=True):
        assert group["initial_lr"] == pytest.approx(trainer.cfg.OPTIM.LR * declared.lr_mult)
        assert group["weight_decay"] == declared.weight_decay


@pytest.mark.parametrize("name", LAFTERS)
def test_groups_of_the_lafter_family_have_their_own_rates_and_decays(name: str, make_trainer) -> None:
    trainer = make_trainer(name)
    rates = {group["name"]: group["initial_lr"] for group in trainer.optim.param_groups}
    assert rates["classifier"] == pytest.approx(1e-3 * trainer.settings.ADAPTER_LR_MULT)
    decays = {group["name"]: group["weight_decay"] for group in trainer.optim.param_groups}
    assert decays["prompts"] == decays["layer norms"] == 0.0
    assert decays["classifier"] == trainer.cfg.OPTIM.WEIGHT_DECAY


@pytest.mark.parametrize("name", LAFTERS)
def test_scalars_never_decay_even_with_ln_decay(name: str, make_trainer) -> None:
    trainer = make_trainer(name, {".LN_DECAY": True, ".FEAT_NORM": "l2"})
    decays = {group["name"]: group["weight_decay"] for group in trainer.optim.param_groups}
    assert decays["layer norms"] == decays["prompts"] == trainer.cfg.OPTIM.WEIGHT_DECAY
    assert decays["layer norm biases"] == decays.get("readout norm biases", 0.0) == 0.0
    assert decays["scalars"] == 0.0 and decays.get("stage weights", 0.0) == 0.0


@pytest.mark.parametrize("name", TRAINED)
def test_registered_module_holds_fp32_trainables_only(name: str, make_trainer) -> None:
    trainer = make_trainer(name)
    assert trainer.get_model_names() == [trainer.registered_name]
    assert set(trainer.adapt.state_dict()) == {name for name, _ in trainer.adapt.named_parameters()}
    assert {id(p) for p in trainer.adapt.parameters()} == {id(p) for group in trainer.groups for p in group.parameters}
    assert all(p.dtype == torch.float32 and p.requires_grad for p in trainer.adapt.parameters())


@pytest.mark.parametrize("name", LAFTERS)
def test_student_of_the_lafter_family_shares_the_loaded_blocks(name: str, make_trainer) -> None:
    trainer = make_trainer(name)
    assert trainer.get_model_names() == ["adapt"]
    visual = trainer.clip.model.visual
    blocks = visual.transformer.resblocks
    assert all(mine is theirs for mine, theirs in zip(trainer.student.driver.tower.blocks, blocks, strict=True))
    clip_ids, adapt_ids = {id(p) for p in visual.parameters()}, {id(p) for p in trainer.adapt.parameters()}
    assert {id(p) for p in trainer.student.parameters()} == clip_ids | adapt_ids


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("prec", ["auto", "fp32", "bf16"])
def test_precisions_of_the_cpu_train_with_fp32_trainables(name: str, prec: str, make_trainer) -> None:
    trainer = make_trainer(name, {".PREC": prec})
    assert math.isfinite(one_step(trainer)["loss"])
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in trainer.adapt.parameters())


@pytest.mark.parametrize("prec", ["auto", "fp32", "bf16"])
def test_zeroshot_runs_in_the_precisions_of_the_cpu(prec: str, make_trainer) -> None:
    logits = test_logits(make_trainer("ZeroshotCLIP", {".PREC": prec}))
    assert logits.dtype == torch.float32 and logits.isfinite().all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("prec", ["amp", "fp16"])
def test_half_precision_on_a_cpu_is_refused(name: str, prec: str, make_trainer) -> None:
    with pytest.raises(ValueError, match=rf"TRAINER\.{name.upper()}\.PREC is '{prec}'"):
        make_trainer(name, {".PREC": prec})


def test_a_fresh_process_gives_the_same_logits_from_the_checkpoints(tiny_world: Path, tmp_path: Path) -> None:
    expected, words = {}, [sys.executable, world_module.__file__]
    for name in TRAINED:
        cfg = make_cfg(tiny_world, tmp_path / name, name)
        trainer = world_module.build(cfg)
        trainer.train()
        expected[name] = test_logits(trainer)
        (tmp_path / f"{name}.yaml").write_text(cfg.dump(), encoding="utf-8")
        words += [str(tmp_path / f"{name}.yaml"), str(tmp_path / name), "2", str(tmp_path / f"{name}.safetensors")]
    threads = str(torch.get_num_threads())  # another number sums in another order
    engine = str(Path(dassl.__file__).parents[1])  # whichever is at work here
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), engine]), "OMP_NUM_THREADS": threads}
    subprocess.run(words, env=env, check=True, capture_output=True, timeout=240, cwd=tmp_path)
    for name in TRAINED:
        assert (load_file(tmp_path / f"{name}.safetensors")["logits"] - expected[name]).abs().max() == 0


@pytest.mark.parametrize("name", TRAINED)
def test_checkpoint_is_readable_without_pickle_and_holds_no_frozen_weight(name: str, make_trainer, tmp_path: Path) -> None:
    trainer = make_trainer(name, {"OPTIM.MAX_EPOCH": 2, "TEST.NO_TEST": True})
    trainer.train()
    saved = torch.load(tmp_path / "run" / trainer.registered_name / "model.pth.tar-2", weights_only=True)
    assert set(saved["state_dict"]) == set(trainer.adapt.state_dict())
    assert not set(saved["state_dict"]) & set(frozen_parameters(trainer))
    if name != "ViECap":  # whose language model trains
        assert not any("attn" in key or "mlp" in key or "conv1" in key for key in saved["state_dict"])
