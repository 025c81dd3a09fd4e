"""Registry, meters, log file and small tools."""

from __future__ import annotations

import io
import random
import sys

import numpy as np
import pytest
import torch
from dassl.utils import (
    AverageMeter,
    Logger,
    MetricMeter,
    Registry,
    check_availability,
    check_isfile,
    get_most_similar_str_to_a_from_b,
    listdir_nohidden,
    mkdir_if_missing,
    read_image,
    read_json,
    set_random_seed,
    setup_logger,
    tolist_if_not,
    write_json,
)
from PIL import Image


def test_registry_keeps_order_and_refuses_duplicates():
    registry = Registry("FRUIT")

    @registry.register()
    def pear():
        return 1

    def apple():
        return 2

    assert registry.register(apple) is None
    assert registry.registered_names() == ["pear", "apple"] and registry._name == "FRUIT"
    assert registry.get("pear") is pear and registry._obj_map["apple"] is apple
    with pytest.raises(KeyError, match="'apple' is already in the FRUIT registry"):
        registry.register(apple)
    registry.register(apple, force=True)
    with pytest.raises(KeyError, match="'plum' is not in the FRUIT registry; registered: pear, apple"):
        registry.get("plum")


def test_check_availability_names_request_choices_and_nearest():
    check_availability("CoOp", ["CoOp", "CoCoOp"])
    with pytest.raises(ValueError, match=r"\[CoOpp\].*\['CoOp', 'LaFTer'\].*do you mean \[CoOp\]"):
        check_availability("CoOpp", ["CoOp", "LaFTer"])
    assert get_most_similar_str_to_a_from_b("x", []) is None


def test_average_meter_weighs_counts_and_ema():
    meter = AverageMeter()
    meter.update(torch.tensor(2.0), 3)
    meter.update(6.0)
    assert (meter.val, meter.sum, meter.count, meter.avg) == (6.0, 12.0, 4, 3.0)
    ema = AverageMeter(ema=True)
    ema.update(10.0)
    ema.update(20.0)
    assert ema.avg == pytest.approx(0.9 * 1.0 + 0.1 * 20.0)


def test_metric_meter_shows_value_and_average_and_takes_none():
    meters = MetricMeter()
    meters.update(None)
    meters.update({"loss": torch.tensor(1.0), "acc": 50.0})
    meters.update({"loss": 2.0})
    assert str(meters) == "loss 2.0000 (1.5000) acc 50.0000 (50.0000)"
    with pytest.raises(TypeError, match="got float; expected a dict"):
        meters.update(1.0)


class FakeConsole(io.StringIO):
    encoding = "cp437"

    def isatty(self) -> bool:
        return True


def test_logger_tees_delegates_and_leaves_the_console_open(monkeypatch, tmp_path):
    console = FakeConsole()
    monkeypatch.setattr(sys, "stdout", console)
    with Logger(str(tmp_path / "new" / "log.txt")) as logger:
        assert logger.write("größe\n") == 6
        assert logger.isatty() and logger.encoding == "cp437"
        assert (tmp_path / "new" / "log.txt").read_text(encoding="utf-8") == "größe\n"  # before any flush
    logger.write("after\n")
    assert console.getvalue() == "größe\nafter\n" and not console.closed


def test_setup_logger_chooses_the_file_and_keeps_old_ones(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", console := FakeConsole())
    setup_logger(None)
    assert sys.stdout is console
    for output in (tmp_path / "run", tmp_path / "run", tmp_path / "own.log"):
        setup_logger(str(output))
        sys.stdout.write("line\n")
        sys.stdout.close()
        sys.stdout = console
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert len(names) == 2 and names[0] == "log.txt" and names[1].startswith("log.txt-20")
    assert (tmp_path / "own.log").read_text() == "line\n"


def test_json_round_trip_makes_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json({"naïve": [1, 2]}, "a.json")
    write_json([1], str(tmp_path / "x" / "y.json"))
    assert read_json("a.json") == {"naïve": [1, 2]} and read_json(str(tmp_path / "x" / "y.json")) == [1]


def test_set_random_seed_seeds_all_generators():
    def draw():
        set_random_seed(3)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()


def test_files_and_lists(tmp_path):
    mkdir_if_missing(str(tmp_path / "a" / "b"))
    mkdir_if_missing(str(tmp_path / "a"))
    (tmp_path / ".hidden").touch()
    (tmp_path / "z").touch()
    assert listdir_nohidden(str(tmp_path), sort=True) == ["a", "z"]
    assert check_isfile(str(tmp_path / "z"))
    with pytest.warns(UserWarning, match="No file found at .*nowhere"):
        assert not check_isfile(str(tmp_path / "nowhere"))
    assert tolist_if_not(1) == [1] and tolist_if_not([1]) == [1]


def test_read_image_yields_rgb_and_names_unreadable_files(tmp_path):
    Image.new("LA", (3, 2)).save(tmp_path / "grey.png")
    assert read_image(str(tmp_path / "grey.png")).mode == "RGB"
    (tmp_path / "text.png").write_text("no image")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    for name in ("text.png", "cut.png", "nowhere.png"):
        with pytest.raises(OSError, match=name):
            read_image(str(tmp_path / name))
