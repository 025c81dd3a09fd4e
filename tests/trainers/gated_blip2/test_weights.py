"""Weights put in place: types of parts, what files must hold, and what is random."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_blip2s import attention_of_parts, random_blip2, tiny_config, write_blip2
from torch import nn
from transformers import Blip2ForConditionalGeneration

from trainers.gated_blip2.weights import (
    HEAD,
    PartDtypes,
    RandomWeights,
    StoredWeights,
    WeightSource,
    build_empty,
    put_weights,
)

CPU = torch.device("cpu")
BRANCH = "qformer.encoder.layer.0.intermediate.dense.weight"


def placed(
    source: WeightSource, dtypes: PartDtypes | None = None, *, text_input: bool = False, device: str = "cpu"
) -> Blip2ForConditionalGeneration:
    model = build_empty(tiny_config(text_input=text_input))
    put_weights(model, source, dtypes=dtypes or PartDtypes(torch.float32), device=torch.device(device))
    return model


def random(dtypes: PartDtypes | None = None) -> Blip2ForConditionalGeneration:
    return placed(RandomWeights(CPU, 0), dtypes)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip2(tmp_path_factory.mktemp("blip2"), seed=3) / "model.safetensors"


def changed(stored: Path, folder: Path, *, add: tuple[str, ...] = (), drop: tuple[str, ...] = ()) -> list[Path]:
    tensors = {name: tensor for name, tensor in load_file(stored).items() if name not in drop}
    tensors |= {name: torch.zeros(1) for name in add}
    save_file(tensors, folder / "model.safetensors")
    return [folder / "model.safetensors"]


@pytest.mark.parametrize(("qformer", "post_ln"), [(False, False), (True, False), (False, True)])
def test_parts_have_their_own_types(qformer: bool, post_ln: bool) -> None:
    model = random(PartDtypes(torch.bfloat16, trains_qformer=qformer, trains_post_ln=post_ln))
    full = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    expected = {"query_tokens", "language_projection.weight", "language_projection.bias"}
    expected |= {name for name, _ in model.named_parameters() if qformer and name.startswith("qformer.")}
    expected |= {f"vision_model.post_layernorm.{name}" for name in ("weight", "bias") if post_ln}
    assert full == expected
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32, torch.bfloat16}


def test_stored_weights_are_read_as_they_are(stored: Path) -> None:
    source = StoredWeights([stored], RandomWeights(CPU, 0))
    assert source.find_problems(build_empty(tiny_config())) == []
    expected = dict(random_blip2(seed=3).named_parameters())
    for dtype in (torch.float32, torch.bfloat16):
        found = dict(placed(source, PartDtypes(dtype, trains_qformer=True)).named_parameters())
        assert found.keys() == expected.keys()
        for name, parameter in found.items():
            assert parameter.equal(expected[name].to(parameter.dtype)), name
    assert found["query_tokens"].equal(expected["query_tokens"])  # a bf16 load does not round what trains


def test_model_is_frozen_in_evaluation_mode_and_tied(stored: Path) -> None:
    for model in (placed(StoredWeights([stored], RandomWeights(CPU, 0))), random()):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())
        assert model.language_model.lm_head.weight is model.language_model.get_input_embeddings().weight


def test_missing_and_unexpected_tensors_and_wrong_shapes_are_all_listed(stored: Path, tmp_path: Path) -> None:
    files = changed(stored, tmp_path, add=("other.weight", "query_tokens"), drop=("qformer.layernorm.bias",))
    problems = StoredWeights(files, RandomWeights(CPU, 0)).find_problems(build_empty(tiny_config()))
    assert len(problems) == 3
    said = "\n".join(problems)
    assert "missing tensor: qformer.layernorm.bias" in said and "unexpected tensor: other.weight" in said
    assert "query_tokens: stored (1,), expected (1, 4, 32)" in said


def test_a_stored_head_is_the_embedding(stored: Path, tmp_path: Path) -> None:
    files = changed(stored, tmp_path, add=(HEAD, "qformer.embeddings.position_ids"))
    assert StoredWeights(files, RandomWeights(CPU, 0)).find_problems(build_empty(tiny_config())) == []


def test_text_branch_may_be_missing_as_a_whole_only(stored: Path, tmp_path: Path) -> None:
    empty = build_empty(tiny_config(text_input=True))
    source = StoredWeights([stored], RandomWeights(CPU, 0))
    assert source.find_problems(empty) == []
    model = placed(source, text_input=True)
    branch = dict(model.named_parameters())[BRANCH]
    assert branch.std() > 0.01 and not branch.requires_grad
    assert dict(model.named_parameters())["query_tokens"].equal(random_blip2(seed=3).query_tokens)
    partly = StoredWeights(changed(stored, tmp_path, add=(BRANCH,)), RandomWeights(CPU, 0))
    assert any("missing" in problem for problem in partly.find_problems(empty))


def test_random_weights_follow_the_seed_and_are_no_constant() -> None:
    first, second, other = (placed(RandomWeights(CPU, seed)).query_tokens for seed in (0, 0, 1))
    assert first.equal(second) and not first.equal(other)
    for name, parameter in random().named_parameters():
        assert parameter.isfinite().all()
        assert (parameter.std() > 0.01) if parameter.ndim > 1 else parameter.unique().numel() == 1, name


def test_nothing_is_built_in_another_type(monkeypatch: pytest.MonkeyPatch) -> None:
    made, empty = [], torch.empty

    def noted(*sizes: object, **options: object) -> torch.Tensor:
        made.extend([options["dtype"]] if options.get("device") == CPU else [])
        return empty(*sizes, **options)

    monkeypatch.setattr(torch, "empty", noted)
    random(PartDtypes(torch.bfloat16))
    n_full = 3  # queries, and weight and bias of the projection
    assert made.count(torch.float32) == n_full and made.count(torch.bfloat16) == len(made) - n_full > 50


def test_meta_device_takes_shapes_and_types_only() -> None:
    model = placed(RandomWeights(torch.device("meta"), 0), PartDtypes(torch.bfloat16), device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.vision_model.post_layernorm.weight.dtype == torch.bfloat16


def test_each_decoder_layer_is_finished_before_the_next_is_filled() -> None:
    states = []

    def finish(layer: nn.Module) -> None:
        decoder = model.language_model.model.decoder
        states.append([any(parameter.is_meta for parameter in each.parameters()) for each in decoder.layers])

    model = build_empty(tiny_config())
    put_weights(model, RandomWeights(CPU, 0), dtypes=PartDtypes(torch.float32), device=CPU, finish_layer=finish)
    assert states == [[False, True], [False, False]]


def test_attention_of_all_parts() -> None:
    for attn in ("eager", "sdpa"):
        model = build_empty(tiny_config(), attn)
        parts = (model.vision_model, model.qformer, model.language_model)
        assert [part.config._attn_implementation for part in parts] == list(attention_of_parts(attn).values())


def test_qformer_stays_eager_where_it_has_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers.gated_blip2 import weights

    monkeypatch.setattr(weights.Blip2QFormerModel, "_supports_sdpa", False)
    model = build_empty(tiny_config())
    assert (model.qformer.config._attn_implementation, model.vision_model.config._attn_implementation) == ("eager", "sdpa")


def test_buffers_that_would_stay_empty_are_an_error() -> None:
    model = build_empty(tiny_config())
    model.vision_model.register_buffer("scale", torch.empty(1, device="meta"))
    with pytest.raises(RuntimeError, match=r"stay empty: vision_model\.scale"):
        put_weights(model, RandomWeights(CPU, 0), dtypes=PartDtypes(torch.float32), device=CPU)
