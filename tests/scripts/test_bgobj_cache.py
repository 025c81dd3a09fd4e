"""scripts/bgobj_cache.py counts, checks and deletes the entries of a folder, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cache_worlds import OTHER, background, open_cache, request, store

from scripts.bgobj_cache import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two entries of one model, one without keys and values of another, and a file that is no entry."""
    options = {"device_gib": 0.0, "disk_gib": 1.0, "folder": str(tmp_path / "cache")}
    cache = open_cache(**options)
    for seed in (1, 2):
        store(cache, request(background(seed)))
    cache = open_cache(**options, mode="tokens")
    cache.new_context(OTHER)
    store(cache, request(background(3)), context=OTHER)
    (tmp_path / "cache" / "notes.txt").write_text("mine", encoding="utf-8")
    return tmp_path / "cache"


def spoil(folder: Path) -> Path:
    path = sorted(folder.glob("*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    return path


def test_stats_counts_by_context(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["stats", str(folder), "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["entries"] == 3 and stats["foreign"] == ["notes.txt"] and stats["damaged"] == []
    assert stats["contexts"]["c" * 12]["entries"] == 2 and stats["contexts"]["c" * 12]["with_kv"] == 2
    assert stats["contexts"]["d" * 12]["with_kv"] == 0
    assert stats["bytes"] == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert main(["stats", str(folder)]) == 0
    assert "3 entries" in capsys.readouterr().out


def test_verify_finds_a_flipped_byte(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["verify", str(folder)]) == 0
    path = spoil(folder)
    assert main(["verify", str(folder)]) == 1
    assert f"{path.name}: damaged" in capsys.readouterr().out


def test_purge_deletes_what_it_is_asked_to(folder: Path, capsys: pytest.CaptureFixture) -> None:
    path = spoil(folder)
    assert main(["purge", str(folder), "--damaged"]) == 0
    assert not path.exists() and len(list(folder.glob("*.safetensors"))) == 2
    old = next(folder.glob("*.safetensors"))
    os.utime(old, (0, 0))
    assert main(["purge", str(folder), "--older-than", "30"]) == 0
    assert not old.exists() and len(list(folder.glob("*.safetensors"))) == 1
    assert main(["purge", str(folder)]) == 0
    assert [each.name for each in folder.iterdir()] == ["notes.txt"]
    assert capsys.readouterr().out.split() == ["1", "entries", "deleted"] * 3


def test_no_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["stats", str(tmp_path / "nowhere")]) == 2
    assert "no folder" in capsys.readouterr().err
