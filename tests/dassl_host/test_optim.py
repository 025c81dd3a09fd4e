"""Optimizers and schedules by name; the golden learning rates hold on both engines."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

TRACE_SCHEDULES = """
import importlib.util, json, sys, torch
spec = importlib.util.spec_from_file_location("compat", sys.argv[1])
sys.modules["compat"] = compat = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compat)
compat.apply()
from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
for options in json.loads(sys.argv[2]):
    optim_cfg = get_cfg_default().OPTIM
    base = ["NAME", "sgd", "LR", 0.002, "MAX_EPOCH", 8, "GAMMA", 0.1, "WARMUP_CONS_LR", 1e-5, "WARMUP_MIN_LR", 1e-5]
    optim_cfg.merge_from_list(base + options)
    optimizer = build_optimizer(torch.nn.Linear(1, 1), optim_cfg)
    scheduler = build_lr_scheduler(optimizer, optim_cfg)
    trace = []
    for epoch in range(8):
        trace.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    print(json.dumps(trace))
"""

COSINE = [0.002, 0.0019238795, 0.0017071068, 0.0013826834, 0.001, 0.00061731657, 0.00029289322, 7.6120467e-5]
LINE = [1e-5, 0.00066666667, 0.0013333333]
CONSTANT_1 = ["LR_SCHEDULER", "cosine", "WARMUP_TYPE", "constant", "WARMUP_EPOCH", 1]
LINEAR_3 = ["LR_SCHEDULER", "cosine", "WARMUP_TYPE", "linear", "WARMUP_EPOCH", 3]
MULTI_STEP = ["LR_SCHEDULER", "multi_step", "STEPSIZE", [2, 5]]
NO_RECOUNT = ["WARMUP_RECOUNT", False]
GOLDEN = [
    (["LR_SCHEDULER", "cosine"], COSINE),
    (CONSTANT_1, [1e-5, *COSINE[:7]]),
    (LINEAR_3, [*LINE, *COSINE[:5]]),
    (LINEAR_3 + NO_RECOUNT, [*LINE, 0.002, 0.0014464627, 0.00089292538, 0.00042365911, 0.00011010542]),
    (
        CONSTANT_1 + NO_RECOUNT,
        [1e-5, 0.002, 0.0017746504, 0.0014373909, 0.0010395661, 0.0006417414, 0.00030448187, 7.913226e-5],
    ),
    (MULTI_STEP + ["WARMUP_EPOCH", 2], [1e-5, 0.001, 0.002, 0.002, 0.0002, 0.0002, 0.0002, 2e-5]),
    (["LR_SCHEDULER", "single_step", "STEPSIZE", [9, 4]], [0.002] * 4 + [0.0002] * 4),
    (["LR_SCHEDULER", "single_step"], [0.002] * 8),
]


@pytest.fixture
def optim_cfg():
    from dassl.config import get_cfg_default

    return get_cfg_default().OPTIM


@pytest.fixture
def optim():
    import dassl.optim

    return dassl.optim


def test_schedules_follow_the_golden_traces(side, run_on, pytestconfig):
    compat = pytestconfig.rootpath / "trainers" / "compat.py"
    printed = run_on(side, TRACE_SCHEDULES, compat, json.dumps([options for options, _ in GOLDEN]))
    traces = [json.loads(line) for line in printed.splitlines() if line.startswith("[")]
    assert len(traces) == len(GOLDEN)
    for trace, (options, expected) in zip(traces, GOLDEN, strict=True):
        assert trace == pytest.approx(expected, rel=1e-6), options


@pytest.mark.parametrize("warmup_type", ["constant", "linear"])
@pytest.mark.parametrize("stopped_after", [1, 2, 5])
def test_warmup_state_is_plain_and_restores_the_remaining_trace(optim, optim_cfg, warmup_type, stopped_after, tmp_path):
    optim_cfg.merge_from_list(["NAME", "sgd", "LR_SCHEDULER", "multi_step", "STEPSIZE", (2, 4)])
    optim_cfg.merge_from_list(["WARMUP_TYPE", warmup_type, "WARMUP_EPOCH", 2])

    def build():
        optimizer = optim.build_optimizer(nn.Linear(2, 2), optim_cfg)
        return optimizer, optim.build_lr_scheduler(optimizer, optim_cfg)

    def advance(optimizer, scheduler, epochs):
        trace = []
        for _ in range(epochs):
            optimizer.step()
            scheduler.step()
            trace.append((optimizer.param_groups[0]["lr"], scheduler.get_last_lr()))
        return trace

    optimizer, scheduler = build()
    advance(optimizer, scheduler, stopped_after)
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed_optimizer, resumed = build()
    resumed_optimizer.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["scheduler"])
    assert advance(resumed_optimizer, resumed, 8) == advance(optimizer, scheduler, 8)
    assert resumed.successor.optimizer is resumed_optimizer


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("NAME", "foo", "adam, amsgrad, sgd, rmsprop, radam, adamw"),
        ("LR_SCHEDULER", "foo", "single_step, multi_step, cosine"),
        ("WARMUP_TYPE", "foo", "linear, constant"),
    ],
)
def test_unknown_name_raises_naming_key_and_choices(optim, optim_cfg, key, value, allowed):
    optim_cfg.merge_from_list(["WARMUP_EPOCH", 1, key, value])
    with pytest.raises(ValueError, match=f"OPTIM.{key} is 'foo'; expected one of {allowed}"):
        optim.build_lr_scheduler(optim.build_optimizer(nn.Linear(1, 1), optim_cfg), optim_cfg)


@pytest.mark.parametrize(
    ("name", "expected", "settings"),
    [
        ("adam", torch.optim.Adam, {"amsgrad": False, "betas": (0.8, 0.99), "weight_decay": 0.01}),
        ("amsgrad", torch.optim.Adam, {"amsgrad": True, "betas": (0.8, 0.99), "weight_decay": 0.01}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.99), "weight_decay": 0.01}),
        ("radam", torch.optim.RAdam, {"decoupled_weight_decay": True, "betas": (0.8, 0.99), "weight_decay": 0.01}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.7, "alpha": 0.9, "weight_decay": 0.01}),
        ("sgd", torch.optim.SGD, {"momentum": 0.7, "dampening": 0, "nesterov": True, "weight_decay": 0.01}),
    ],
)
def test_optimizer_gets_its_keys(optim, optim_cfg, name, expected, settings):
    optim_cfg.merge_from_list(["NAME", name, "ADAM_BETA1", 0.8, "ADAM_BETA2", 0.99, "WEIGHT_DECAY", 0.01])
    optim_cfg.merge_from_list(["MOMENTUM", 0.7, "RMSPROP_ALPHA", 0.9, "SGD_NESTEROV", True])
    optimizer = optim.build_optimizer(nn.Linear(1, 1), optim_cfg)
    assert type(optimizer) is expected
    assert {key: optimizer.defaults[key] for key in settings} == settings


def test_optimizer_takes_frozen_parameters_iterables_and_groups(optim, optim_cfg):
    model = nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    assert optim.build_optimizer(model, optim_cfg).param_groups[0]["params"] == [model.weight, model.bias]
    assert optim.build_optimizer([model.bias], optim_cfg).param_groups[0]["params"] == [model.bias]
    groups = [{"params": [model.bias], "lr": 1.0}]
    assert optim.build_optimizer(model, optim_cfg, param_groups=groups).param_groups[0]["lr"] == 1.0


def test_staged_lr_slows_all_but_the_new_layers(optim, optim_cfg):
    model = nn.Module()
    model.scale, model.body, model.head = nn.Parameter(torch.ones(1)), nn.Linear(2, 2), nn.Linear(2, 1)
    optim_cfg.merge_from_list(["STAGED_LR", True, "NEW_LAYERS", ("head",), "LR", 0.1])
    base, new = optim.build_optimizer(model, optim_cfg).param_groups
    assert base["lr"] == pytest.approx(0.01) and new["lr"] == 0.1
    assert new["params"] == [model.head.weight, model.head.bias]
    assert base["params"] == [model.scale, model.body.weight, model.body.bias]
    with pytest.warns(UserWarning, match="STAGED_LR is ignored"):
        optim.build_optimizer(model, optim_cfg, param_groups=[{"params": model.parameters()}])
    with pytest.raises(TypeError, match="OPTIM.STAGED_LR needs a module; got list"):
        optim.build_optimizer([model.scale], optim_cfg)
