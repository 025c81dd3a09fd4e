"""Weights inside what training scripts store: containers, prefixes, and files that hold none."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.gated_blip2.style.states import CONTAINERS, find_state

STATE = {"a.weight": torch.ones(2), "b.count": torch.tensor(3)}
PATH = Path("best.pt")


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_is_opened(name: str) -> None:
    assert find_state({"epoch": 3, name: STATE, "args": object()}, PATH) == STATE


@pytest.mark.parametrize(
    "content",
    [STATE, {"model": {"state_dict": STATE}}, {"state_dict": {"model": {"ema": STATE}}},
     {"model": STATE, "ema": {"x": torch.ones(1)}},
     {"state_dict": {f"module.{name}": tensor for name, tensor in STATE.items()}},
     {f"module._orig_mod.{name}": tensor for name, tensor in STATE.items()},
     {"ema": {"n_averaged": torch.tensor(5)} | {f"module.module.{name}": tensor for name, tensor in STATE.items()}}],
)  # fmt: skip
def test_nested_containers_and_prefixes_are_removed(content: Any) -> None:
    assert find_state(content, PATH) == STATE


def test_a_prefix_that_some_names_lack_is_part_of_the_names() -> None:
    content = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert find_state(content, PATH).keys() == content.keys()


@pytest.mark.parametrize(
    ("content", "found"),
    [(torch.ones(1), "found a Tensor"), ({}, "it is empty"), ({"model": {}}, "['model'] is empty"),
     ({"epoch": 3, "net": STATE}, "it has entries that are no tensors: epoch (int), net (dict)"),
     ({"model": {"a": torch.ones(1), "b": "text"}}, "['model'] has entries that are no tensors: b (str)"),
     ({"model": [STATE]}, "it has entries that are no tensors: model (list)")],
)  # fmt: skip
def test_a_file_without_weights_is_refused_with_what_it_holds(content: Any, found: str) -> None:
    with pytest.raises(ValueError) as caught:
        find_state(content, PATH)
    assert f"best.pt holds no weights: {found}; expected name -> tensor, alone or below one of state_dict" in str(caught.value)


def test_a_container_that_holds_itself_ends() -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    with pytest.raises(ValueError, match="holds no weights"):
        find_state(content, PATH)


def test_weights_that_are_no_numbers_are_named() -> None:
    content = STATE | {"c": torch.tensor([1.0, float("nan")]), "d": torch.tensor([float("inf")])}
    with pytest.raises(ValueError, match="infinite or not a number, in c, d$"):
        find_state(content, PATH)
