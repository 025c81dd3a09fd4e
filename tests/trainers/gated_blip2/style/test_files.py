"""Files of style encoders: what is written, what is read back, and what is said where it cannot be."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_ext.file_hashes import hash_file
from trainers.gated_blip2.style import files
from trainers.gated_blip2.style.files import (
    StyleCard,
    describe_missing_file,
    find_style_file,
    read_card,
    read_style_file,
    write_state,
    write_style_file,
)
from trainers.gated_blip2.style.networks import build_network
from trainers.gated_blip2.style.view import StyleView

CARD = StyleCard("efficientnet_tiny", ("plain", "dotted"), StyleView(70, 64), {"accuracy": 97.5})


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network("efficientnet_tiny", 2)


def test_what_is_written_is_read_back(network, tmp_path: Path) -> None:
    path = write_style_file(tmp_path / "new" / "folder", network, CARD)
    assert {file.name for file in path.parent.iterdir()} == {"style_encoder.safetensors", "style_encoder.json"}
    file = read_style_file(path)
    assert file.card == CARD and file.sha256 == hash_file(path)
    assert file.state.keys() == network.state_dict().keys()
    assert all(torch.equal(file.state[name], tensor) for name, tensor in network.state_dict().items())


def test_half_precision_halves_the_floating_point_tensors_only(network, tmp_path: Path) -> None:
    path = write_style_file(tmp_path, network, CARD, dtype=torch.float16)
    stored = load_file(path)
    assert stored["features.0.0.weight"].dtype == torch.float16
    assert stored["features.0.1.num_batches_tracked"].dtype == torch.int64
    assert network.state_dict()["features.0.0.weight"].dtype == torch.float32
    assert path.stat().st_size + path.with_suffix(".json").stat().st_size < 1e6


def test_a_number_too_large_for_the_type_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="numbers too large for torch.float16 in big$"):
        write_state(tmp_path / "x.safetensors", {"big": torch.tensor([1e6]), "small": torch.ones(1)}, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    write_state(tmp_path / "x.safetensors", {"whole": whole, "part": whole.T[1]})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["part"], torch.tensor([1.0, 4.0]))


def test_a_failed_write_leaves_the_old_file(network, tmp_path: Path, monkeypatch) -> None:
    path = write_style_file(tmp_path, network, CARD)
    before = path.read_bytes()

    def fail(state: dict, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(files, "save_file", fail)
    with pytest.raises(OSError, match="cannot write .*style_encoder.safetensors: disk full"):
        write_style_file(tmp_path, network, CARD)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_is_a_file_a_folder_or_a_shipped_name(network, tmp_path: Path, monkeypatch) -> None:
    path = write_style_file(tmp_path / "run", network, CARD)
    assert find_style_file(str(path)) == find_style_file(str(path.parent)) == path
    monkeypatch.setitem(files.SHIPPED, "tiny_style", path.parent)
    assert find_style_file("tiny_style") == path
    os.remove(path)
    assert find_style_file("tiny_style") is find_style_file(str(path)) is find_style_file(str(path.parent)) is None
    assert find_style_file("") is None


def test_the_message_for_a_missing_file_has_three_remedies() -> None:
    for checkpoint, found in (("", "CHECKPOINT is empty"), ("runs/b3.pt", "CHECKPOINT is 'runs/b3.pt': no such file")):
        message = describe_missing_file(checkpoint)
        assert found in message
        assert "path of a .safetensors or .pt file" in message
        assert "python scripts/pretrain_style_encoder.py" in message
        assert "for smoke tests only, set TRAINER.GATEDBLIP2.STYLE.FALLBACK to imagenet or random" in message


def test_a_damaged_safetensors_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no header")
    with pytest.raises(ValueError, match="x.safetensors is damaged or not a safetensors file"):
        read_style_file(tmp_path / "x.safetensors")


def test_weights_without_a_json_have_no_card_and_pt_files_never_have_one(network, tmp_path: Path) -> None:
    path = write_style_file(tmp_path, network, CARD)
    torch.save(network.state_dict(), path.with_suffix(".pt"))
    assert read_style_file(path.with_suffix(".pt")).card is None
    path.with_suffix(".json").unlink()
    assert read_style_file(path).card is None


def test_a_card_of_another_form_lists_every_problem(network, tmp_path: Path) -> None:
    path = tmp_path / "style_encoder.json"
    path.write_text(json.dumps({"arch": "b3", "classes": [], "view": 3, "scores": [], "epoch": 1}), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_card(path)
    for problem in ("'arch' is 'b3'; expected one of", "'classes' is []", "'view' is 3", "'scores' is []", "entry 'epoch'"):
        assert problem in str(caught.value)
    for content, message in (("[]", "holds a list"), ("{", "not valid JSON")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_card(path)


def test_a_card_may_have_no_classes_and_no_scores(tmp_path: Path) -> None:
    path = tmp_path / "style_encoder.json"
    view = StyleView(70, 64)
    path.write_text(json.dumps({"arch": "efficientnet_b3", "view": view.as_json()}), encoding="utf-8")
    assert read_card(path) == StyleCard("efficientnet_b3", None, view, {})
