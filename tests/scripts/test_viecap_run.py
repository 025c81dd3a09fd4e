"""ViECap by the original's command lines: every flag has its key, contradictions are refused, launchers say what they said."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from scripts import viecap_run, viecap_translate
from scripts.viecap_flags import TRAIN, build_parser

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = ROOT / "scripts" / "viecap"
NODE = "TRAINER.VIECAP"
BASH = shutil.which("bash")

# All 33 flags of the original's training, none at its default, and what they set.
ALL_FLAGS = {
    "bs": 8, "lr": 0.001, "epochs": 3, "device": "cuda:5", "random_mask": True, "prob_of_random_mask": 0.6,
    "clip_project_length": 4, "continuous_prompt_length": 6, "max_num_of_entities": 7, "prompt_template_length": 9,
    "num_layers": 2, "noise_variance": 0.1, "clip_model": "ViT-B/16", "using_clip_features": True, "is_rn": True,
    "language_model": "distilgpt2", "using_hard_prompt": True, "soft_prompt_first": True, "only_hard_prompt": True,
    "debug": True, "few_shot_ratio": 0.5, "save_every": 2, "prefix": "mine",
    "path_of_datasets": "./annotations/flickr30k/train_captions.json",
    "out_dir": "out/x", "normalize_prefix": 0, "name_of_objects_vocabs": "visual_genome_entities",
    "path_of_objects_vocabs": "vg/objects.pickle", "frozen_gpt": True, "num_workers": 2, "use_amp": True,
    "disable_random_seed": True, "random_seed": 7,
}  # fmt: skip
ALL_KEYS = {
    "DATALOADER.TRAIN_X.BATCH_SIZE": 8, "OPTIM.LR": 0.001, "OPTIM.MAX_EPOCH": 3, "USE_CUDA": True,
    f"{NODE}.RANDOM_MASK": True, f"{NODE}.PROB_OF_RANDOM_MASK": 0.6, f"{NODE}.CLIP_PROJECT_LENGTH": 4,
    f"{NODE}.CONTINUOUS_PROMPT_LENGTH": 6, f"{NODE}.MAX_NUM_OF_ENTITIES": 7, f"{NODE}.PROMPT_TEMPLATE_LENGTH": 9,
    f"{NODE}.NUM_LAYERS": 2, f"{NODE}.NOISE_VARIANCE": 0.1, "MODEL.BACKBONE.NAME": "ViT-B/16",
    f"{NODE}.USING_CLIP_FEATURES": True, f"{NODE}.LANGUAGE_MODEL": "distilgpt2", f"{NODE}.USING_HARD_PROMPT": True,
    f"{NODE}.SOFT_PROMPT_FIRST": True, f"{NODE}.ONLY_HARD_PROMPT": True, f"{NODE}.DATA_LIMIT": 1000, f"{NODE}.WARMUP_STEPS": 0,
    f"{NODE}.FEW_SHOT_RATIO": 0.5, f"{NODE}.SAVE_EVERY": 2, f"{NODE}.PREFIX": "mine", "DATASET.ROOT": "annotations",
    "DATASET.CAPTION.DIR": "flickr30k", "DATASET.CAPTION.TRAIN": "train_captions.json", "OUTPUT_DIR": "out/x",
    f"{NODE}.NORMALIZE_PREFIX": False, f"{NODE}.NAME_OF_OBJECTS_VOCABS": "visual_genome_entities",
    f"{NODE}.PATH_OF_OBJECTS_VOCABS": "vg/objects.json", f"{NODE}.FROZEN_GPT": True, "DATALOADER.NUM_WORKERS": 2,
    f"{NODE}.PREC": "bf16", "SEED": -1,
    f"{NODE}.PATH_OF_ENTITIES_TEXT": "annotations/vocabulary/vgcocooiobjects_v1_class2ind.json",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_gpu_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def translate(*words: str) -> viecap_translate.Command:
    return viecap_translate.translate(build_parser("").parse_args(words))


def words_of(flags: dict) -> list[str]:
    return [word for name, value in flags.items() for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of the paper's model below checkpoints/train_coco, as far as translation reads it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints" / "train_coco"
    folder.mkdir(parents=True)
    settings = {
        "LANGUAGE_MODEL": "gpt2", "CLIP_PROJECT_LENGTH": 10, "CONTINUOUS_PROMPT_LENGTH": 10, "MAX_NUM_OF_ENTITIES": 10,
        "PROMPT_TEMPLATE_LENGTH": 5, "NUM_LAYERS": 8, "NUM_HEADS": 8, "NORMALIZE_PREFIX": True, "USING_HARD_PROMPT": True,
        "SOFT_PROMPT_FIRST": True, "ONLY_HARD_PROMPT": False, "STOP": "period", "NAME_OF_ENTITIES_TEXT": "coco_entities",
        "PATH_OF_ENTITIES_TEXT": "",
    }  # fmt: skip
    record = {"settings": settings, "clip": {"name": "ViT-B/32"}}
    (folder / "viecap.json").write_text(json.dumps(record), "utf-8")
    return folder


# train ----------------------------------------------------------------------------------------------------------------------


def test_all_33_flags_of_the_original_reach_their_keys(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    cuda = SimpleNamespace(is_available=lambda: True, is_bf16_supported=lambda: True)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert set(ALL_FLAGS) == {flag.name for flag in TRAIN}
    assert len(ALL_FLAGS) == 33
    viecap_run.main(["train", *words_of(ALL_FLAGS), "--dry_run"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    printed = capsys.readouterr().out.splitlines()
    pairs = dict(line.strip().split(" ", 1) for line in printed if line.startswith("  "))
    assert pairs == {key: str(value) for key, value in ALL_KEYS.items()}
    assert "configs/datasets/flickr30k_caption.yaml" in printed[0].replace("\\", "/")
    assert any("--is_rn sets nothing" in line for line in printed)
    assert any("visual_genome vg/objects.pickle -o vg/objects.json" in line.replace("\\", "/") for line in printed)


def test_every_pair_is_a_key_of_the_configuration() -> None:
    import datasets  # noqa: F401  (finds the engine)
    from trainers import runs

    words = translate("train", "--device", "cpu").to_argv(["SEED", "4"])
    cfg = runs.build_cfg(train.parse_args(words[1:]))
    assert (cfg.SEED, cfg.OPTIM.LR, cfg.TRAINER.VIECAP.PREC, cfg.USE_CUDA) == (4, 2e-5, "fp32", False)
    assert (cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.CAPTION.DIR) == ("CocoCaption", "annotations", "coco")


def test_a_switch_that_is_not_given_is_off() -> None:
    pairs = translate("train").pairs
    names = ("RANDOM_MASK", "USING_CLIP_FEATURES", "USING_HARD_PROMPT", "SOFT_PROMPT_FIRST", "ONLY_HARD_PROMPT", "FROZEN_GPT")
    assert [pairs[f"{NODE}.{name}"] for name in names] == [False] * 6
    assert (pairs[f"{NODE}.PREC"], pairs[f"{NODE}.DATA_LIMIT"], pairs["SEED"]) == ("fp32", 0, 30)
    assert pairs[f"{NODE}.PATH_OF_OBJECTS_VOCABS"].endswith("all_objects_attributes_relationships.json")
    assert translate("train", "--name_of_objects_vocabs", "corpus").pairs[f"{NODE}.PATH_OF_OBJECTS_VOCABS"] == ""


@pytest.mark.parametrize(("available", "bf16", "expected"), [(True, 1, "bf16"), (True, 0, "amp"), (False, 0, "auto")])
def test_mixed_precision_is_what_the_gpu_can_do(monkeypatch, available: bool, bf16: int, expected: str) -> None:
    cuda = SimpleNamespace(is_available=lambda: available, is_bf16_supported=lambda: bf16)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert translate("train", "--use_amp").pairs[f"{NODE}.PREC"] == expected


def test_training_captions_by_file_store_or_converted_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = translate("train", "--path_of_datasets", "mine/cats.txt")
    assert own.pairs["DATASET.CAPTION.TRAIN"] == "cats.txt"
    assert [Path(word).stem for word in own.words[3::2]] == ["caption_files", "text"]
    (tmp_path / "annotations" / "coco" / "texts").mkdir(parents=True)
    (tmp_path / "annotations" / "coco" / "texts" / "manifest.json").write_text("{}")
    (tmp_path / "annotations" / "coco" / "entities.jsonl").write_text("{}")
    stored = translate("train", "--path_of_datasets", "annotations/coco/texts.pickle").pairs
    assert stored[f"{NODE}.STORE_DIR"] == "annotations/coco/texts"
    converted = translate("train", "--path_of_datasets", "annotations/coco/entities.pickle")
    assert converted.pairs["DATASET.CAPTION.TRAIN"] == "entities.jsonl"
    assert not any("entities.pickle" in note for note in converted.notes)


def test_unknown_flags_and_wrong_words_are_refused(capsys) -> None:
    for words, message in (
        (["train", "--batch_size", "8"], "unrecognized arguments: --batch_size"),
        (["train", "--bs"], "--bs: expected one argument"),
        (["train", "SEED"], "KEY VALUE pairs expected"),
        (["train", "--random", "--dry_run"], "unrecognized arguments: --random"),
        (["eval", "--bs", "8"], "unrecognized arguments: --bs"),
        (["train", "SEED", "1", "--bs", "8"], "KEY VALUE pairs expected behind all flags"),
    ):
        with pytest.raises(SystemExit) as stop:
            viecap_run.main(words)
        assert stop.value.code == 2, words
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--device is 'gpu'; expected cuda:N, N, cuda or cpu"):
        viecap_run.main(["train", "--device", "gpu"])


# eval and infer -------------------------------------------------------------------------------------------------------------


def test_eval_names_run_epoch_data_and_model(run: Path) -> None:
    command = translate("eval", "--weight_path", "checkpoints/train_coco/coco_prefix-0014.pt", "--device", "cpu",
                        "--path_of_val_datasets", "./annotations/coco/test_captions.json")  # fmt: skip
    words = " ".join(command.words).replace("\\", "/")
    assert "--eval-only --model-dir checkpoints/train_coco --load-epoch 15" in words
    assert "configs/datasets/coco_caption.yaml" in words
    pairs = command.pairs
    assert (pairs["DATASET.CAPTION.TEST"], pairs["DATASET.CAPTION.IMAGES"]) == ("test_captions.json", "val2014")
    assert (pairs[f"{NODE}.NUM_LAYERS"], pairs["MODEL.BACKBONE.NAME"]) == (8, "ViT-B/32")
    assert pairs["OUTPUT_DIR"] == "checkpoints/train_coco"
    assert pairs[f"{NODE}.NAME_OF_ENTITIES_TEXT"] == "vinvl_vgoi_entities"
    assert pairs[f"{NODE}.PATH_OF_ENTITIES_TEXT"].endswith("vgcocooiobjects_v1_class2ind.json")
    assert not command.problems


@pytest.mark.parametrize(
    ("path", "epoch"),
    [("", None), ("coco_prefix-009.pt", 10), ("weights/coco_prefix-014.safetensors", 15), ("weights/my-2-003.safetensors", 4)],
)
def test_weights_are_found_by_folder_and_by_both_kinds_of_names(run: Path, path: str, epoch: int | None) -> None:
    found = viecap_translate.find_run(str(run / path))
    assert (found.folder, found.epoch) == (run, epoch)


def test_weights_of_no_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="belongs to no run"):
        viecap_translate.find_run(str(tmp_path))
    (tmp_path / "coco_prefix-0014.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"viecap_convert\.py weights .*coco_prefix-0014\.pt -o RUN --config-file"):
        viecap_translate.find_run(str(tmp_path / "coco_prefix-0014.pt"))


@pytest.mark.parametrize("command", ["eval", "infer"])
def test_flags_of_the_model_that_contradict_the_run_are_listed(run: Path, command: str, capsys) -> None:
    words = ["--weight_path", str(run), "--only_hard_prompt", "--clip_model", "ViT-L/14", "--num_layers", "4"]
    words += ["--continuous_prompt_length", "10", "--using_hard_prompt", "--normalize_prefix", "1"]
    with pytest.raises(SystemExit) as stop:
        viecap_run.main([command, *words])
    assert str(stop.value.code).splitlines() == [
        "error:",
        f"--num_layers is 4; the run of {run} has 8",
        f"--clip_model is 'ViT-L/14'; the run of {run} has 'ViT-B/32'",
        f"--only_hard_prompt is True; the run of {run} has False",
    ]


def test_a_text_prompt_is_refused_with_its_reason(run: Path) -> None:
    assert "OPT" in translate("infer", "--weight_path", str(run), "--text_prompt", "a photo").problems[0]


def test_infer_names_images_and_output(run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    command = translate("infer", "--weight_path", str(run), "--image_path", "images", "--device", "0", "--prompt_ensemble")
    assert command.script == "predict.py"
    assert command.words[-4:] == ["--input", "images", "--output", str(Path("images", "predictions.jsonl"))]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert set(command.pairs) == {
        f"{NODE}.{name}" for name in (
            "THRESHOLD", "TEMPERATURE", "TOP_K", "SINGLE_WORD_ENTITIES", "NAME_OF_ENTITIES_TEXT", "PROMPT_ENSEMBLE",
            "BEAM_WIDTH", "PATH_OF_ENTITIES_TEXT", "DECODE",
        )
    }  # fmt: skip
    assert translate("infer", "--weight_path", str(run), "--name_of_entities_text", "coco_entities").notes == []


def test_infer_captions_a_folder(
    tiny_world: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from tiny_captioners import write_trained_run

    import predict

    def run_here(argv: list[str], log_dir: str) -> int:
        with pytest.raises(SystemExit) as stop:
            predict.main(argv[1:])
        return stop.value.code

    monkeypatch.setattr(viecap_run, "run", run_here)
    folder = write_trained_run(tmp_path / "run", f"local-dir:{tiny_world / 'clip'}")
    (photos / "cut.png").write_bytes(b"no picture")
    weights = folder / "weights" / "coco_prefix-001.safetensors"
    words = ["--weight_path", str(weights), "--image_path", str(photos), "--device", "cpu", "--prompt_ensemble"]
    words += [ "--name_of_entities_text", "coco_entities", "--beam_width", "2"]
    with pytest.raises(SystemExit) as stop:
        viecap_run.main(["infer", *words, f"{NODE}.MAX_NEW_TOKENS", "4"])
    assert stop.value.code == 1
    rows = [json.loads(line) for line in (photos / "predictions.jsonl").read_text("utf-8").splitlines()]
    printed = capsys.readouterr().out
    assert len(rows) == 4
    for row in rows:
        assert f"{row['impath']}: {row.get('caption') or row['error']}" in printed


# Running --------------------------------------------------------------------------------------------------------------------


def test_what_is_printed_is_also_logged(tmp_path: Path, capsys) -> None:
    (tmp_path / "program.py").write_text("import sys\nprint('Zürich')\nprint('wrong', file=sys.stderr)\nsys.exit(3)\n", "utf-8")
    os.environ["PYTHONUTF8"] = "1"
    try:
        assert viecap_run.run([str(tmp_path / "program.py")], str(tmp_path / "logs" / "mine")) == 3
    finally:
        del os.environ["PYTHONUTF8"]
    (log,) = (tmp_path / "logs" / "mine").glob("*.log")
    assert sorted(log.read_text("utf-8").split()) == ["Zürich", "wrong"]
    assert sorted(capsys.readouterr().out.split()) == ["Zürich", "wrong"]


# Launchers ------------------------------------------------------------------------------------------------------------------

EVALS = ("eval_coco", "eval_flickr30k", "eval_nocaps")
TRAININGS = ("train_coco", "train_flickr30k")
OTHERS = ("infer_by_instance", "infer_by_batch", "language_eval")
CALLS = {
    **dict.fromkeys(EVALS, ["train_coco", "0", "--top_k 2 --threshold 0.25", "14"]),
    **dict.fromkeys(TRAININGS, ["2"]),
    **dict.fromkeys(OTHERS, ["--image_path", "F", "--weight_path", "W"]),
    "language_eval": ["file.json"],
}


@pytest.fixture(scope="module")
def fake_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the launchers without .venv, and an interpreter that shows its arguments."""
    folder = tmp_path_factory.mktemp("a clone")
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    fake = folder / "python"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    return folder


def shell_words(checkout: Path, name: str, words: list[str]) -> list[str]:
    """The words that a .sh hands to the interpreter, the program's path relative to the checkout."""
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(checkout / "python")}
    script = checkout / "scripts" / "viecap" / f"{name}.sh"
    done = subprocess.run([BASH, str(script), *words], capture_output=True, text=True, env=environment, check=True, cwd="/")
    program, *rest = done.stdout.splitlines()
    return [Path(program).relative_to(checkout).as_posix(), *rest]


def batch_words(name: str, words: list[str]) -> list[str]:
    """The words that a .bat hands on, by cmd's rules as far as the launchers need them."""
    text = (LAUNCHERS / f"{name}.bat").read_text("utf-8").replace(" ^\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith('call "%~dp0start.bat"')]
    values = {str(number): value for number, value in enumerate(words, start=1)}
    line = line.replace("%GPU%", words[0] if words else "0").replace("%*", shlex.join(words))
    line = re.sub(r"%~?(\d)", lambda match: values.get(match[1], ""), line)
    return shlex.split(line.partition("start.bat\" ")[2].replace("\\", "/"))


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize("name", [*EVALS, *TRAININGS, *OTHERS])
def test_both_files_of_a_launcher_say_the_same(fake_checkout: Path, name: str) -> None:
    words = shell_words(fake_checkout, name, CALLS[name])
    assert words == batch_words(name, CALLS[name])
    expected = "scripts/caption_score.py" if name == "language_eval" else "scripts/viecap_run.py"
    assert words[0] == expected
    assert (ROOT / expected).is_file()


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    ("name", "vocabulary", "threshold", "decode", "data", "images"),
    [
        ("eval_coco", "coco_entities", 0.4, "beam", "coco_caption", "val2014"),
        ("eval_flickr30k", "vinvl_vgoi_entities", 0.3, "greedy", "flickr30k_caption", "flickr30k-images"),
        ("eval_nocaps", "vinvl_vgoi_entities", 0.2, "beam", "nocaps", "."),
    ],
)
def test_an_evaluation_is_the_row_of_the_table(
    fake_checkout: Path, run: Path, name: str, vocabulary: str, threshold: float, decode: str, data: str, images: str
) -> None:
    command = translate(*shell_words(fake_checkout, name, ["train_coco", "cpu", "", "14"])[1:])
    pairs = command.pairs
    assert (pairs[f"{NODE}.NAME_OF_ENTITIES_TEXT"], pairs[f"{NODE}.TOP_K"]) == (vocabulary, 3)
    assert (pairs[f"{NODE}.THRESHOLD"], pairs[f"{NODE}.DECODE"], pairs[f"{NODE}.BEAM_WIDTH"]) == (threshold, decode, 5)
    assert pairs[f"{NODE}.PROMPT_ENSEMBLE"] is True and pairs[f"{NODE}.USING_IMAGE_FEATURES"] is True
    assert Path(command.words[command.words.index("--dataset-config-file") + 1]).stem == data
    assert command.words[command.words.index("--load-epoch") + 1] == "15"
    assert (pairs["OUTPUT_DIR"], pairs["DATASET.CAPTION.IMAGES"]) == ("checkpoints/train_coco", images)
    assert not command.problems
    other = ["train_coco", "0", "--top_k 5 --threshold 0.1 --using_greedy_search", "9"]
    pairs = translate(*shell_words(fake_checkout, name, other)[1:]).pairs
    assert (pairs[f"{NODE}.TOP_K"], pairs[f"{NODE}.THRESHOLD"], pairs[f"{NODE}.DECODE"]) == (5, 0.1, "greedy")


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(("name", "epochs"), [("train_coco", 15), ("train_flickr30k", 30)])
def test_a_training_is_the_papers(fake_checkout: Path, name: str, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False)))
    args = build_parser("").parse_args(shell_words(fake_checkout, name, ["2", "SEED", "4"])[1:])
    pairs = viecap_translate.translate(args).pairs
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert (pairs["OPTIM.MAX_EPOCH"], pairs["OPTIM.LR"], pairs["DATALOADER.TRAIN_X.BATCH_SIZE"]) == (epochs, 2e-5, 80)
    assert (pairs["OUTPUT_DIR"], args.log_dir, args.opts) == (f"checkpoints/{name}", f"logs/{name}", ["SEED", "4"])
    switches = ("RANDOM_MASK", "USING_CLIP_FEATURES", "USING_HARD_PROMPT", "SOFT_PROMPT_FIRST")
    assert all(pairs[f"{NODE}.{switch}"] for switch in switches)
    assert pairs[f"{NODE}.PROB_OF_RANDOM_MASK"] == 0.4
    default, chosen = (shell_words(fake_checkout, name, words) for words in ([], ["2"]))
    assert default == ["0" if word == "2" else word for word in chosen]


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize("name", ["infer_by_instance", "infer_by_batch"])
def test_inference_has_the_originals_defaults(fake_checkout: Path, run: Path, name: str) -> None:
    flags = "--prompt_ensemble --using_hard_prompt --soft_prompt_first --image_path F --weight_path".split()
    command = translate(*shell_words(fake_checkout, name, [*flags, str(run)])[1:])
    pairs = command.pairs
    assert (pairs[f"{NODE}.NAME_OF_ENTITIES_TEXT"], pairs[f"{NODE}.TOP_K"]) == ("vinvl_vgoi_entities", 3)
    assert (pairs[f"{NODE}.THRESHOLD"], pairs[f"{NODE}.DECODE"], pairs[f"{NODE}.BEAM_WIDTH"]) == (0.2, "beam", 5)
    assert not command.problems


@pytest.mark.parametrize("script", sorted(LAUNCHERS.glob("*.bat")), ids=lambda path: path.name)
def test_a_batch_file_has_a_twin_and_hands_on_the_exit_code(script: Path) -> None:
    assert script.with_suffix(".sh").is_file()
    text = script.read_text("utf-8")
    assert "exit /b %ERRORLEVEL%" in text
    assert "pause" not in text.lower()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
@pytest.mark.parametrize("script", sorted(LAUNCHERS.glob("*.sh")), ids=lambda path: path.name)
def test_a_launcher_can_be_run_as_a_program(script: Path) -> None:
    assert os.access(script, os.X_OK) == script.read_text("utf-8").startswith("#!")
    assert script.with_suffix(".bat").is_file()
