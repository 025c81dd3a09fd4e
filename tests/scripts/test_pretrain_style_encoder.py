"""The command that pre-trains style encoders: a run, its resumption, what it refuses, and the committed miniature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from datasets.mini_scenes_generator import STYLES, background_of_split, training_scene
from scripts import pretrain_style_encoder as script
from trainers.gated_blip2.style import pretrain
from trainers.gated_blip2.style.encoder import load_style_encoder
from trainers.gated_blip2.style.files import SHIPPED

NODE = "TRAINER.STYLEENCODERTRAINER"
ASSET = SHIPPED["tiny_style"]
HELD_OUT_SEED = 31_000_000  # of scenes that no data set holds


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve bright and twelve dark pictures, train, val and test."""
    top = tmp_path_factory.mktemp("pictures of styles")
    rng = np.random.default_rng(3)
    for part, count in (("train", 12), ("val", 4), ("test", 4)):
        for name, middle in (("bright", 190), ("dark", 60)):
            for number in range(count):
                file = top / part / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(middle - 50, middle + 50, (36, 40, 3)).astype(np.uint8)).save(file)
    return top


def words(root: Path, output: Path, *more: str, epochs: int = 2) -> list[str]:
    flags = ["--data", "folder", "--root", str(root), "--arch", "efficientnet_tiny", "--init", "random", "--image-size", "32"]
    flags += ["--epochs", str(epochs), "--batch-size", "8", "--lr", "3e-3", "--output-dir", str(output), *more]
    return [*flags, "DATALOADER.NUM_WORKERS", "0", "USE_CUDA", "False"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "style_encoder.safetensors")


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    script.main(words(pictures, folder))
    return folder


def test_a_run_writes_an_encoder_with_its_classes_view_and_scores(finished: Path) -> None:
    encoder = load_style_encoder("efficientnet_tiny", str(finished))
    assert encoder.class_names == ("bright", "dark") and encoder.view.crop_px == 32
    scores = json.loads((finished / "style_encoder.json").read_text("utf-8"))["scores"]
    tested = json.loads((finished / "results.json").read_text("utf-8"))["test"]
    assert scores.keys() == {"val_accuracy", "test_accuracy", "test_macro_f1"}
    assert scores["test_accuracy"] == pytest.approx(tested["accuracy"], abs=0.01)
    record = json.loads((finished / "run.json").read_text("utf-8"))
    assert (record["status"], record["trainer"]) == ("finished", "StyleEncoderTrainer")
    assert record["data"]["classes"] == ["bright", "dark"]


def test_the_scores_are_those_of_the_written_file(finished: Path, pictures: Path) -> None:
    encoder = load_style_encoder("efficientnet_tiny", str(finished))
    change, right = encoder.view.transform(), []
    for label, name in enumerate(encoder.class_names):
        for file in sorted((pictures / "test" / name).iterdir()):
            right.append(encoder(change(Image.open(file))[None]).logits.argmax().item() == label)
    scores = json.loads((finished / "style_encoder.json").read_text("utf-8"))["scores"]
    assert scores["test_accuracy"] == pytest.approx(100 * sum(right) / len(right), abs=0.01)


def test_a_killed_run_goes_on_to_the_same_weights(
    finished: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_epoch = pretrain.StyleEncoderTrainer.before_epoch

    def stop_in_the_second(self: Any) -> None:
        if self.epoch == 1:
            raise KeyboardInterrupt
        before_epoch(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain.StyleEncoderTrainer, "before_epoch", stop_in_the_second)
        script.main(words(pictures, tmp_path / "run"))
    assert not (tmp_path / "run" / "style_encoder.safetensors").exists()
    with pytest.raises(SystemExit, match="FileExistsError: --output-dir .* holds a run .*give --resume, or another folder"):
        script.main(words(pictures, tmp_path / "run"))
    with pytest.raises(SystemExit, match="OPTIM.MAX_EPOCH: stored 2, now 3"):
        script.main(words(pictures, tmp_path / "run", "--resume", epochs=3))
    script.main(words(pictures, tmp_path / "run", "--resume"))
    straight, resumed = weights(finished), weights(tmp_path / "run")
    assert straight.keys() == resumed.keys() and all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_flags_set_the_keys_they_name(tmp_path: Path) -> None:
    flags = ["--non-art", "photos", "--root", "there", "--output-dir", str(tmp_path), "--balance", "none"]
    cfg = script.build_cfg(script.parse_args([*flags, f"{NODE}.PREC", "fp32"]))
    assert (cfg.DATASET.NAME, cfg.DATASET.NON_ART, cfg.DATASET.ROOT) == ("WikiArt", "photos", "there")
    node = cfg.TRAINER.STYLEENCODERTRAINER
    assert (node.ARCH, node.INIT, node.BALANCE, node.PREC) == ("efficientnet_b3", "imagenet", "none", "fp32")
    assert node.LABEL_SMOOTHING == 0.1 and tuple(cfg.INPUT.SIZE) == (300, 300)
    assert (cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.DATALOADER.TRAIN_X.BATCH_SIZE) == ("adamw", 3e-4, 30, 32)
    assert (cfg.TEST.FINAL_MODEL, cfg.TEST.EVALUATOR) == ("best_val", "Classification")
    scenes = script.build_cfg(script.parse_args(["--data", "mini_scenes", "--output-dir", str(tmp_path)]))
    assert (scenes.DATASET.NAME, scenes.DATASET.MINI_VIEW) == ("MiniScenes", "styles")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "folder"], "--data folder needs --root"),
        (["--data", "mini_scenes", "--non-art", "photos"], "--non-art adds a class to WikiArt's; --data is mini_scenes"),
        (["DATALOADER.NUM_WORKERS"], "KEY VALUE pairs expected after the flags"),
        (["--arch", "vgg"], "invalid choice: 'vgg'"),
    ],
)
def test_what_cannot_be_meant_ends_with_a_message(flags: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        script.parse_args(["--output-dir", "out", *flags])
    assert message in capsys.readouterr().err


def test_wrong_settings_and_absent_data_end_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ValueError: 2 problem"):
        script.main(["--output-dir", str(tmp_path / "run"), "OPTIM.NAME", "lion", "OPTIM.NO_KEY", "1"])
    with pytest.raises(SystemExit, match="FileNotFoundError: DATASET.ROOT is .*style_train.csv"):
        script.main(["--output-dir", str(tmp_path / "run"), "--root", str(tmp_path), "--init", "random", "USE_CUDA", "False"])


def test_the_committed_miniature_tells_styles_apart_on_textures_it_never_saw() -> None:
    assert sum(file.stat().st_size for file in ASSET.iterdir()) <= 1e6
    encoder = load_style_encoder("efficientnet_tiny", "tiny_style")
    assert encoder.class_names == tuple(sorted(STYLES))
    scores = json.loads((ASSET / "style_encoder.json").read_text("utf-8"))["scores"]
    assert scores["test_accuracy"] >= 95
    change, right, count = encoder.view.transform(), 0, 120
    for number in range(count):
        rng = np.random.default_rng(HELD_OUT_SEED + number)
        scene = training_scene(rng, background=background_of_split(rng, "test")).scene
        (logits,) = encoder(change(Image.fromarray(scene.image))[None]).logits
        right += encoder.class_names[logits.argmax()] == scene.background.style
    assert right >= 0.9 * count
