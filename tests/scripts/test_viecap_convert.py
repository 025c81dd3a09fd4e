"""The converter of the original's pickles: every kind comes through whole, and no program in a file ever runs."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_gpt2s import random_gpt2

from scripts import viecap_convert
from trainers.viecap.network.mapping import MappingNetwork
from trainers.viecap.network.model import PrefixCaptioner, PromptLayout
from trainers.viecap.storage.weights import StoredWeights, load_weights

VECTORS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).half()
ENTITIES = [[["dog", "park"], "A dog in a park."], [[], "Nothing, d\u00e9j\u00e0 vu."], [["man"], "A man."]]
WIDTH, CLIP_WIDTH = 32, 24


def dump(path: Path, content: Any, protocol: int | None = None) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def convert(kind: str, source: Path, output: Path, *more: str) -> Path:
    viecap_convert.main([kind, str(source), "-o", str(output), *more])
    return output


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_entities_become_rows_of_own_captions(tmp_path: Path, protocol: int) -> None:
    output = convert("entities", dump(tmp_path / "x.pickle", ENTITIES, protocol), tmp_path / "rows.jsonl")
    assert read_lines(output) == [{"caption": caption, "entities": names} for names, caption in ENTITIES]


@pytest.mark.parametrize("protocol", [3, 4])
def test_texts_keep_captions_entities_and_vectors(tmp_path: Path, protocol: int) -> None:
    rows = [[*row, vector] for row, vector in zip(ENTITIES, VECTORS, strict=True)]
    output = convert("texts", dump(tmp_path / "x.pickle", rows, protocol), tmp_path / "texts")
    assert read_lines(output / "captions.jsonl")[1] == {"caption": ENTITIES[1][1], "entities": []}
    features = load_file(output / "features.safetensors")["feat"]
    assert features.dtype == torch.float16 and torch.equal(features, VECTORS)


@pytest.mark.parametrize("split", [[], ["near-domain"]])
def test_images_keep_names_splits_captions_and_vectors(tmp_path: Path, split: list[str]) -> None:
    rows = [[f"{n}.jpg", *split, VECTORS[n], [f"caption {n}", "b"]] for n in range(3)]
    output = convert("images", dump(tmp_path / "x.pickle", rows), tmp_path / "images")
    listed = json.loads((output / "images.json").read_text("utf-8"))
    named = {"split": split[0]} if split else {}
    assert listed[2] == {"image_id": "2.jpg", "captions": ["caption 2", "b"]} | named
    assert torch.equal(load_file(output / "images.safetensors")["feat"], VECTORS)


def test_vocabulary_keeps_its_vectors_and_gets_sorted_names(tmp_path: Path) -> None:
    source = dump(tmp_path / "x.pickle", VECTORS)
    output = convert("vocabulary", source, tmp_path / "plain.safetensors")
    assert torch.equal(load_file(output)["embeddings"], VECTORS.float())
    (tmp_path / "names.txt").write_text("Dog\nbus\n\nApple\ndog\n", encoding="utf-8")
    output = convert("vocabulary", source, tmp_path / "named.safetensors", "--names", str(tmp_path / "names.txt"))
    with safe_open(output, framework="pt") as file:
        assert json.loads(file.metadata()["names"]) == ["apple", "bus", "dog"]
    (tmp_path / "names.txt").write_text("dog\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="1 different names.* 3 vectors"):
        convert("vocabulary", source, tmp_path / "named.safetensors", "--names", str(tmp_path / "names.txt"))


@pytest.mark.parametrize("protocol", [2, 4])
def test_visual_genome_becomes_a_sorted_list_that_the_filter_reads(tmp_path: Path, protocol: int) -> None:
    from trainers.viecap.words.vocabularies import read_vocabulary

    content = {"objects": {"joint": {"tree", "red car", "dog"}, "ours": {"x"}}, "attributes": {}}
    output = convert("visual_genome", dump(tmp_path / "x.pickle", content, protocol), tmp_path / "names.json")
    assert json.loads(output.read_text("utf-8")) == ["dog", "red car", "tree"]
    assert read_vocabulary("visual_genome_entities", output) == ("dog", "red car", "tree")


def test_flickr_style_becomes_a_list_of_names(tmp_path: Path) -> None:
    names = ["123_ab.jpg", "45_cd.jpg"]
    output = convert("flickr_style", dump(tmp_path / "train.p", names, 0), tmp_path / "train.json")
    assert json.loads(output.read_text("utf-8")) == names


# What must never happen ------------------------------------------------------------------------------------------------------


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple]:
        return self.call


def storage_payload(content: Any) -> Payload:
    """A tensor whose bytes are another pickle."""
    return Payload(torch.storage._load_from_bytes, content)


def payloads(marker: Path) -> dict[str, tuple[Any, str]]:
    shell, code = f"echo x > {marker}", f"open({str(marker)!r}, 'w')"
    inner = io.BytesIO()
    torch.save(Payload(os.system, shell), inner, _use_new_zipfile_serialization=False)
    zipped = io.BytesIO()
    torch.save(Payload(eval, code), zipped)
    return {
        "system": (Payload(os.system, shell), rf"asks for {os.system.__module__}\.system"),
        "eval": (Payload(eval, code), r"asks for builtins\.eval"),
        "getattr": (Payload(getattr, OrderedDict, "fromkeys"), r"asks for builtins\.getattr"),
        "numpy": (Payload(__import__("numpy").zeros, 3), r"asks for numpy\.zeros"),
        "storage": (storage_payload(inner.getvalue()), rf"more than a tensor.*{os.system.__module__}\.system"),
        "zipped storage": (storage_payload(zipped.getvalue()), r"more than a tensor.*eval"),
        "no storage": (Payload(torch._utils._rebuild_tensor_v2, "x", 0, (1,), (1,), False, None), "made of a str"),
    }


@pytest.mark.parametrize("name", payloads(Path("x")))
@pytest.mark.parametrize("kind", sorted(set(viecap_convert.KINDS) - {"weights"}))
def test_programs_are_refused_by_name_and_do_not_run(tmp_path: Path, kind: str, name: str) -> None:
    marker = tmp_path / "marker"
    content, message = payloads(marker)[name]
    reads_tensors = kind in ("texts", "images", "vocabulary")
    if not reads_tensors and ("storage" in name):
        message = r"asks for torch\."
    output = tmp_path / f"out{viecap_convert.KINDS[kind][1]}"
    with pytest.raises(SystemExit, match=message):
        convert(kind, dump(tmp_path / "bad.pickle", [[["a"], "b", content]]), output)
    assert not marker.exists() and not output.exists()


def test_globals_of_one_kind_are_refused_by_another(tmp_path: Path) -> None:
    for kind, suffix, content, asked in (
        ("entities", ".jsonl", [[["a"], "b", VECTORS[0]]], r"torch\._utils\._rebuild_tensor_v2"),
        ("visual_genome", ".json", OrderedDict(objects={}), r"collections\.OrderedDict"),
        ("texts", "", [[{"a"}, "b", VECTORS[0]]], r"builtins\.set"),
    ):
        with pytest.raises(SystemExit, match=f"asks for {asked}"):
            convert(kind, dump(tmp_path / "x.pickle", content, 2), tmp_path / f"out{suffix}")


def test_a_file_cannot_change_what_stands_for_its_globals(tmp_path: Path) -> None:
    # GLOBAL, a dictionary, BUILD: sets attributes of whatever the global is.
    content = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x03\x00\x00\x00abcK\x01sb."
    (tmp_path / "x.pickle").write_bytes(content)
    with pytest.raises(SystemExit, match="expected one tensor"):
        convert("vocabulary", tmp_path / "x.pickle", tmp_path / "x.safetensors")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "abc")


def test_references_outside_the_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pickle").write_bytes(b"Pelsewhere\n.")
    with pytest.raises(SystemExit, match="refers to an object outside"):
        convert("entities", tmp_path / "x.pickle", tmp_path / "x.jsonl")


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(ENTITIES)[:-4], b"\x80\x05K\x01\x94R."])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pickle").write_bytes(content)
    with pytest.raises(SystemExit, match="damaged or no pickle"):
        convert("entities", tmp_path / "x.pickle", tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("entities", {"a": 1}, "holds a dict"),
        ("entities", [["a", "b"], *ENTITIES], "1 of 4 rows are not .*rows 0"),
        ("texts", [[["a"], "b", VECTORS]], "1 of 1 rows"),
        ("texts", [[["a"], "b", torch.zeros(4)], [["a"], "b", torch.zeros(5)]], r"different widths: \[4, 5\]"),
        ("images", [["a.jpg", VECTORS[0], "no list"]], "1 of 1 rows"),
        ("vocabulary", VECTORS[0], "expected one tensor"),
        ("visual_genome", {"objects": {}}, "'objects' -> 'joint'"),
        ("flickr_style", [1, 2], "expected a list of image names"),
    ],
)
def test_other_structures_are_refused(tmp_path: Path, kind: str, content: Any, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        convert(kind, dump(tmp_path / "x.pickle", content), tmp_path / f"out{viecap_convert.KINDS[kind][1]}")


# Weights --------------------------------------------------------------------------------------------------------------------

BLOCK_NAMES = {
    "norm_attention": "norm1", "queries": "attn.to_queries", "keys_values": "attn.to_keys_values", "output": "attn.project",
    "norm_mlp": "norm2", "widen": "mlp.fc1", "narrow": "mlp.fc2",
}  # fmt: skip


def small_captioner() -> PrefixCaptioner:
    language_model, _ = random_gpt2(WIDTH, layers=12)
    torch.manual_seed(0)
    mapping = MappingNetwork(CLIP_WIDTH, WIDTH, prefix_length=5, project_length=3, n_layers=2, n_heads=4)
    return PrefixCaptioner(language_model, mapping, PromptLayout(soft_tokens=5))


def reference_state(model: PrefixCaptioner) -> dict[str, torch.Tensor]:
    """The model's weights as the original names them, with the masks that it stored and the tied head."""
    state = {}
    for name, tensor in model.named_parameters():
        if name.startswith("mapping.blocks."):
            _, _, number, part, leaf = name.split(".")
            name = f"mapping_network.transformer.layers.{number}.{BLOCK_NAMES[part]}.{leaf}"
        name = name.replace("language_model.", "gpt.").replace("mapping.project.", "mapping_network.linear.")
        state[name.replace("mapping.constants", "mapping_network.prefix_const")] = tensor.detach()
    for layer in range(12):
        state[f"gpt.transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
        state[f"gpt.transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return state | {"gpt.lm_head.weight": model.language_model.transformer.wte.weight.detach()}


def test_weights_with_24_buffers_load_strictly(tmp_path: Path) -> None:
    model = small_captioner()
    state = reference_state(model)
    assert len(state) == len(list(model.parameters())) + 24 + 1
    torch.save(state, tmp_path / "coco_prefix-0014.pt")
    output = convert("weights", tmp_path / "coco_prefix-0014.pt", tmp_path / "coco_prefix-014.safetensors")
    with safe_open(output, framework="pt") as file:
        assert file.metadata()["epoch"] == "15"
    other = small_captioner()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    load_weights(other, StoredWeights(output, 15))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_weights_that_do_not_fit_are_refused_with_every_difference(tmp_path: Path) -> None:
    state = reference_state(small_captioner())
    del state["gpt.transformer.h.3.attn.c_attn.weight"]
    state["surplus"] = torch.zeros(1)
    torch.save(state, tmp_path / "x-0.pt")
    with pytest.raises(SystemExit, match=r"(?s)2 difference.*missing tensor: language_model.*h\.3.*unexpected tensor: surplus"):
        convert("weights", tmp_path / "x-0.pt", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"a": torch.zeros(1)}, "no weights of a ViECap with GPT-2"),
        (lambda state: state | {"gpt.lm_head.weight": torch.zeros(2, 2)}, "the head is not tied"),
        (lambda state: [1], "holds a list"),
        (lambda state: state | {"evil": Payload(os.system, "true")}, r"refused.*system"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    torch.save(change(reference_state(small_captioner())), tmp_path / "x-0.pt")
    with pytest.raises(SystemExit, match=message):
        convert("weights", tmp_path / "x-0.pt", tmp_path / "x.safetensors")


def test_weights_without_an_epoch_in_their_name_need_one(tmp_path: Path) -> None:
    torch.save(reference_state(small_captioner()), tmp_path / "latest.pt")
    with pytest.raises(SystemExit, match="give --epoch"):
        convert("weights", tmp_path / "latest.pt", tmp_path / "x.safetensors")
    convert("weights", tmp_path / "latest.pt", tmp_path / "x.safetensors", "--epoch", "3")
    with pytest.raises(SystemExit, match="needs --config-file"):
        convert("weights", tmp_path / "latest.pt", tmp_path / "folder", "--epoch", "3")


def test_missing_file_and_wrong_suffix_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="no file"):
        convert("entities", tmp_path / "none.pickle", tmp_path / "x.jsonl")
    with pytest.raises(SystemExit):
        convert("entities", tmp_path / "none.pickle", tmp_path / "x.txt")
    assert "must end in .jsonl" in capsys.readouterr().err
