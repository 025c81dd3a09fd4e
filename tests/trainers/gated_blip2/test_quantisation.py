"""The language model in fewer bits: what is replaced, and what is said where it cannot be. bitsandbytes itself needs a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from gated_models import STYLE_WIDTH, pixels, styles, texts
from tiny_blip2s import tiny_config, write_blip2
from torch import nn

from trainers.gated_blip2.loading import load_blip2
from trainers.gated_blip2.model import GatedBlip2Model
from trainers.gated_blip2.presets import PRESETS, build_conditioner
from trainers.gated_blip2.quantisation import INT8_THRESHOLD, make_quantiser
from trainers.gated_blip2.weights import PartDtypes, RandomWeights, build_empty, put_weights

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
LINEARS = ("k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2")


class Quantised(nn.Linear):
    """Stands for the layers of bitsandbytes: a Linear that remembers how it was asked for."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool, **options: object) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.options = options


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for bitsandbytes."""
    library = ModuleType("bitsandbytes")
    library.nn = SimpleNamespace(Linear8bitLt=type("Eight", (Quantised,), {}), Linear4bit=type("Four", (Quantised,), {}))
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    return library


def test_nothing_is_quantised_unless_asked_for() -> None:
    assert make_quantiser("none", CPU, torch.float32) is None


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="TRAINER.GATEDBLIP2.QUANT is 'int4'; expected one of none, int8, nf4"):
        make_quantiser("int4", CUDA, torch.float16)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_all_reasons_against_it_are_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    reasons = rf"QUANT is '{kind}': it needs a GPU and the model is on cpu; bitsandbytes cannot"
    with pytest.raises(RuntimeError, match=reasons) as found:
        load_blip2(str(write_blip2(tmp_path)), quant=kind)
    assert "dassl-vlm[quant]" in str(found.value) and "QUANT none" in str(found.value)
    with pytest.raises(RuntimeError) as found:
        make_quantiser(kind, CUDA, torch.float16)
    assert "needs a GPU" not in str(found.value)


@pytest.mark.parametrize(("kind", "cls"), [("int8", "Linear8bitLt"), ("nf4", "Linear4bit")])
def test_linears_of_the_language_model_are_replaced_and_no_others(library: ModuleType, kind: str, cls: str) -> None:
    quantise = make_quantiser(kind, CUDA, torch.bfloat16)
    plain, model = (build_empty(tiny_config()) for _ in range(2))
    for each, finish in ((plain, None), (model, quantise)):
        put_weights(each, RandomWeights(CPU, 0), dtypes=PartDtypes(torch.bfloat16), device=CPU, finish_layer=finish)
    replaced = {name for name, module in model.named_modules() if isinstance(module, Quantised)}
    assert replaced == {
        name
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("language_model.model.decoder.layers.")
    }
    assert {name.rsplit(".", 1)[1] for name in replaced} == set(LINEARS)
    found = model.language_model.model.decoder.layers[0].fc1
    original = plain.language_model.model.decoder.layers[0].fc1
    assert type(found) is getattr(library.nn, cls) and not found.training
    assert found.weight.equal(original.weight) and found.bias.equal(original.bias) and found.weight.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in model.parameters())
    expected = {
        "int8": {"has_fp16_weights": False, "threshold": INT8_THRESHOLD},
        "nf4": {"compute_dtype": torch.bfloat16, "quant_type": "nf4"},
    }
    assert found.options == expected[kind]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantised_language_model_gives_gates_a_gradient(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    loaded = load_blip2(str(write_blip2(tmp_path)), prec="fp16", device="cuda", quant=kind)
    conditioner = build_conditioner(PRESETS["gates"], loaded.model, STYLE_WIDTH).cuda()
    model = GatedBlip2Model(loaded, conditioner=conditioner, prec="fp16").train()
    model.loss(model.encode_images(pixels()), styles(), texts()).total.backward()
    for head in conditioner.heads.values():
        assert head.weight.grad.abs().sum() > 0
