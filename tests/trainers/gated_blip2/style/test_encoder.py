"""Loading of style encoders, and that nothing ever changes one."""

import json
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm_networks import randomise
from torch import nn

from clip_ext.file_hashes import hash_file
from clip_ext.style_names import wikiart_styles
from trainers.gated_blip2.style.encoder import StyleEncoder, find_checkpoint_problems, load_style_encoder
from trainers.gated_blip2.style.files import StyleCard, write_style_file
from trainers.gated_blip2.style.networks import ARCHITECTURES, build_network
from trainers.gated_blip2.style.view import StyleView

TINY = "efficientnet_tiny"
WIKIART = wikiart_styles().names


def tiny(n_classes: int | None) -> nn.Module:
    return randomise(build_network(TINY, n_classes), seed=n_classes or 0)


def save(content: Any, folder: Path) -> str:
    torch.save(content, folder / "best.pt")
    return str(folder / "best.pt")


def images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("n_classes", "names"),
    [(27, WIKIART), (28, (*WIKIART, "non_art")), (1000, None), (None, None)],
    ids=["27", "28", "1000", "none"],
)
def test_the_classifiers_rows_say_what_is_built(n_classes: int | None, names: tuple[str, ...] | None, tmp_path: Path) -> None:
    network = tiny(n_classes)
    encoder = load_style_encoder(TINY, save(network.state_dict(), tmp_path))
    assert (encoder.class_names, encoder.has_styles, encoder.n_classes) == (names, names is not None, n_classes)
    assert encoder.sha256 == hash_file(tmp_path / "best.pt") and encoder.arch == TINY and encoder.width == 192
    with torch.no_grad():
        features = network.avgpool(network.features(images())).flatten(1)
        output = encoder(images())
        assert torch.equal(output.features, features)
        if names is None:
            assert output.logits is None
        else:
            assert torch.equal(output.logits, network(images())) and output.logits.std() > 1e-3


def test_containers_prefixes_and_arguments_load_without_trust(tmp_path: Path) -> None:
    network = tiny(28)
    state = {f"module._orig_mod.{name}": tensor for name, tensor in network.state_dict().items()}
    content = {"args": Namespace(output=Path("runs"), lr=0.1), "best": Path("b"), "model": {"epoch": 3, "state_dict": state}}
    encoder = load_style_encoder(TINY, save(content, tmp_path))
    assert torch.equal(encoder(images()).logits, network(images()))


def test_a_program_in_the_file_is_refused_and_creates_nothing(tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "victim"), "w")

    path = save({"model": tiny(27).state_dict(), "args": Program()}, tmp_path)
    with pytest.raises(ValueError, match="--trust"):
        load_style_encoder(TINY, path)
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("change", ["shape", "missing", "extra", "other"])
def test_loading_is_strict(change: str, tmp_path: Path) -> None:
    state = tiny(27).state_dict()
    message = {
        "shape": r"shape of features.5.0.weight: stored \(192, 95, 1, 1\), expected \(192, 96, 1, 1\)$",
        "missing": "missing tensor: features.0.0.weight$",
        "extra": "unexpected tensor: head.weight$",
        "other": "missing tensor.*; and [0-9]+ more$",
    }[change]
    if change == "shape":
        state["features.5.0.weight"] = state["features.5.0.weight"][:, :95]
    elif change == "missing":
        del state["features.0.0.weight"]
    elif change == "extra":
        state["head.weight"] = torch.zeros(1)
    arch = "efficientnet_b3" if change == "other" else TINY
    with pytest.raises(ValueError, match=f"STYLE.ARCH is '{arch}', and .*best.pt does not fit it: .*{message}"):
        load_style_encoder(arch, save(state, tmp_path))


def test_a_classifier_without_rows_or_of_another_form_is_refused(tmp_path: Path) -> None:
    for shape in ((0, 192), (192,)):
        path = save(tiny(None).state_dict() | {"classifier.1.weight": torch.zeros(shape)}, tmp_path)
        with pytest.raises(ValueError, match="classifier.1.weight has the shape .*; expected"):
            load_style_encoder(TINY, path)


def test_other_class_counts_need_a_classes_file(tmp_path: Path) -> None:
    path = save(tiny(2).state_dict(), tmp_path)
    with pytest.raises(ValueError, match="has 2 classes.*STYLE.CLASSES_FILE"):
        load_style_encoder(TINY, path)
    classes = tmp_path / "classes.json"
    classes.write_text('["plain", "dotted"]', encoding="utf-8")
    assert load_style_encoder(TINY, path, classes_file=str(classes)).class_names == ("plain", "dotted")


def test_the_json_beside_the_weights_gives_names_and_view(tmp_path: Path, caplog) -> None:
    network, view = tiny(2), StyleView(40, 32, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    write_style_file(tmp_path, network, StyleCard(TINY, ("plain", "dotted"), view), dtype=torch.float16)
    with caplog.at_level(logging.INFO):
        encoder = load_style_encoder(TINY, str(tmp_path))
    assert (encoder.class_names, encoder.view) == (("plain", "dotted"), view)
    assert {tensor.dtype for tensor in encoder.parameters()} == {torch.float32}
    assert f"2 styles, width 192, sha256 {hash_file(tmp_path / 'style_encoder.safetensors')}" in caplog.text
    with pytest.raises(ValueError, match="STYLE.ARCH is 'efficientnet_b3', but .* is efficientnet_tiny: set .*ARCH to that"):
        load_style_encoder("efficientnet_b3", str(tmp_path))


def test_without_a_json_the_view_is_the_architectures(tmp_path: Path) -> None:
    assert load_style_encoder(TINY, save(tiny(27).state_dict(), tmp_path)).view == ARCHITECTURES[TINY].view


def test_an_encoder_stays_frozen_and_in_evaluation_whatever_holds_it(tmp_path: Path) -> None:
    encoder = load_style_encoder(TINY, save(tiny(27).state_dict(), tmp_path))
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    alone = encoder(images(1)).features
    holder = nn.Sequential(encoder)
    holder.train()
    assert encoder.train(True) is encoder
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    output = encoder(images(4).requires_grad_())
    assert not output.features.requires_grad and not output.logits.requires_grad
    assert torch.allclose(output.features[:1], alone, atol=1e-5)  # no statistic of the batch
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_autocast_and_half_images_leave_the_outputs_in_fp32(tmp_path: Path) -> None:
    encoder = load_style_encoder(TINY, save(tiny(27).state_dict(), tmp_path))
    plain = encoder(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = encoder(images())
    assert torch.equal(output.features, plain.features) and torch.equal(output.logits, plain.logits)
    assert encoder(images().half()).features.dtype == torch.float32


def test_loading_uses_up_no_random_numbers(tmp_path: Path) -> None:
    path = save(tiny(27).state_dict(), tmp_path)
    state = torch.get_rng_state()
    load_style_encoder(TINY, path)
    load_style_encoder(TINY, "", fallback="random")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_missing_file_raises_with_three_remedies() -> None:
    with pytest.raises(FileNotFoundError, match="'absent.pt': no such file.*give the path.*train one.*FALLBACK"):
        load_style_encoder(TINY, "absent.pt")
    with pytest.raises(FileNotFoundError, match="STYLE.CHECKPOINT is empty"):
        load_style_encoder(TINY, "")


def test_checks_find_every_problem_without_reading_weights(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"not looked at")
    assert find_checkpoint_problems(TINY, str(tmp_path / "best.pt")) == []
    assert find_checkpoint_problems(TINY, "", fallback="random") == []
    problems = find_checkpoint_problems("resnet", "absent.pt", classes_file=str(tmp_path / "absent.json"))
    assert all(words in problem for words, problem in zip(("'resnet'", "absent.pt", "absent.json"), problems, strict=True))
    problems = find_checkpoint_problems(TINY, "", fallback="some")
    assert len(problems) == 1 and "FALLBACK is 'some'; expected one of none, imagenet, random" in problems[0]


def test_an_encoder_of_1000_classes_forgets_its_classifier() -> None:
    encoder = StyleEncoder(tiny(1000), arch=TINY, class_names=None, view=StyleView(64, 64), sha256="")
    assert encoder.n_classes == 1000 and not [name for name, _ in encoder.named_parameters() if "classifier" in name]
    assert json.dumps(encoder.width)
