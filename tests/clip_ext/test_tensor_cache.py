import logging

import pytest
import torch

from clip_ext.tensor_cache import cached_tensors

DATA = {"x": torch.arange(6.0).reshape(2, 3)}


def fetch(path, made, data=DATA):
    def make():
        made.append(1)
        return data

    return cached_tensors(path, make, is_valid=lambda tensors: tensors["x"].shape == (2, 3), content="numbers")


def test_first_call_makes_and_second_reads(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    made, path = [], tmp_path / "new" / "numbers.safetensors"
    for _ in range(2):
        assert torch.equal(fetch(path, made)["x"], DATA["x"])
    assert len(made) == 1
    assert "numbers: cache miss" in caplog.text and "numbers: cache hit" in caplog.text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("wrong", [{"y": torch.zeros(2, 3)}, {"x": torch.zeros(3)}], ids=["name", "shape"])
def test_file_of_other_content_is_rebuilt_with_a_notice(tmp_path, caplog, wrong):
    made, path = [], tmp_path / "numbers.safetensors"
    cached_tensors(path, lambda: wrong, is_valid=lambda tensors: True, content="numbers")
    assert torch.equal(fetch(path, made)["x"], DATA["x"])
    assert len(made) == 1 and "is damaged" in caplog.text
    fetch(path, made)
    assert len(made) == 1


def test_failed_write_leaves_the_old_file_and_no_leftovers(tmp_path, monkeypatch):
    path = tmp_path / "numbers.safetensors"
    path.write_bytes(b"old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("clip_ext.tensor_cache.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        fetch(path, [])
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
