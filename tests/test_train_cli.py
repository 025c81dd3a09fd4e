"""train.py from the outside: flags, runs in folders, resume, evaluation, and what it says about wrong input."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import train
from trainers import runs

REPOSITORY = Path(__file__).resolve().parent.parent
PLUGIN = str(REPOSITORY / "tests" / "plugins" / "toy_plugin.py")
DIGITS = str(REPOSITORY / "configs" / "datasets" / "handwritten_digits.yaml")
SMALL = "DATASET.NAME PluginColours INPUT.SIZE (4,4) INPUT.TRANSFORMS ('normalize',) DATALOADER.NUM_WORKERS 0".split()
SMALL += ["DATALOADER.TRAIN_X.BATCH_SIZE", "4"]


@pytest.fixture(autouse=True)
def quick_banner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking every tool of the machine for its version takes seconds."""
    monkeypatch.setattr(runs, "collect_env_info", lambda: "machine")


def start(folder: Path, *words: str, trainer: str = "ToyTrainer", epochs: int = 2) -> None:
    """Run train.py's main on the toy data; words are flags first, then KEY VALUE pairs."""
    flags = list(words)
    pairs = []
    while len(flags) >= 2 and train.CONFIG_KEY.fullmatch(flags[-2]):
        pairs = flags[-2:] + pairs
        flags = flags[:-2]
    train.main(
        ["--import", PLUGIN, "--trainer", trainer, "--root", str(folder.parent / "data"), "--output-dir", str(folder)]
        + ["--seed", "1", *flags, *SMALL, "OPTIM.MAX_EPOCH", str(epochs), *pairs]
    )


def read_json(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- the command line ---------------------------------------------------------------------------------------------------


def test_parsing_loads_the_standard_library_only() -> None:
    code = (
        "import sys, train; train.parse_args(['--seed', '0']);"
        "print(*{'torch', 'numpy', 'yaml', 'trainers', 'datasets', 'dassl'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("SEED 1 --seed 2", "--seed stands among"),
        ("--seed 2 SEED", "KEY VALUE pairs expected"),
        ("--see 2", "unrecognized|KEY VALUE"),
        ("--seed two", "invalid int"),
        ("--transforms random_flip OPTIM.LR 1", "swallowed the setting OPTIM.LR"),
    ],
)
def test_malformed_command_line_ends_with_a_message(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        train.parse_args(words.split())
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_values_may_be_negative_numbers_and_tuples() -> None:
    args = train.parse_args("--seed -1 OPTIM.STEPSIZE (-1,) SEED -5".split())
    assert (args.seed, args.opts) == (-1, ["OPTIM.STEPSIZE", "(-1,)", "SEED", "-5"])


def test_flags_act_when_given_even_if_false(tmp_path: Path) -> None:
    file = tmp_path / "trainer.yaml"
    file.write_text("SEED: 5\nOUTPUT_DIR: elsewhere\nOPTIM:\n  LR: 1e-4\n")
    words = ["--config-file", str(file), "--seed", "0", "--transforms", "normalize", "--output-dir", ""]
    cfg = runs.build_cfg(train.parse_args([*words, "USE_CUDA", "false"]))
    assert (cfg.SEED, cfg.OUTPUT_DIR, cfg.OPTIM.LR, cfg.USE_CUDA) == (0, "", 1e-4, False)
    assert cfg.INPUT.TRANSFORMS == ("normalize",)
    assert cfg.is_frozen()


def test_later_sources_win(tmp_path: Path) -> None:
    dataset, trainer = tmp_path / "d.yaml", tmp_path / "t.yaml"
    dataset.write_text("OPTIM: {LR: 1.0, GAMMA: 1.0, MOMENTUM: 1.0}\nSEED: 1\nDATASET: {NAME: A, ROOT: a}")
    trainer.write_text("OPTIM: {GAMMA: 2.0, MOMENTUM: 2.0}\nSEED: 2\nDATASET: {ROOT: b}")
    words = f"--dataset-config-file {dataset} --config-file {trainer} --seed 3 --root c OPTIM.MOMENTUM 4 DATASET.ROOT d"
    cfg = runs.build_cfg(train.parse_args(words.split()))
    assert (cfg.OPTIM.LR, cfg.OPTIM.GAMMA, cfg.OPTIM.MOMENTUM, cfg.SEED) == (1.0, 2.0, 4.0, 3)
    assert (cfg.DATASET.NAME, cfg.DATASET.ROOT) == ("A", "d")


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("OPTIM:\n  LRR: 1\n  GAMMA: high\n  LR: 1\n  LR: 2\n")
    with pytest.raises(ValueError) as error:
        runs.build_cfg(train.parse_args(["--config-file", str(file), "TRAIN.PRINT_FRQ", "5", "OPTIM.NAME", "foo"]))
    message = str(error.value)
    assert message.startswith("5 problem(s)")
    assert f"{file}, line 2: there is no key OPTIM.LRR (given 1); nearest is OPTIM.LR" in message
    assert f"{file}, line 3: OPTIM.GAMMA is 'high'; expected float" in message
    assert f"{file}: OPTIM.LR stands twice, in line 4 and in line 5" in message
    assert "command line: there is no key TRAIN.PRINT_FRQ (given '5'); nearest is TRAIN.PRINT_FREQ" in message
    assert "OPTIM.NAME is 'foo'; expected one of adam" in message


def test_missing_settings_file_ends_with_its_name_only() -> None:
    with pytest.raises(SystemExit, match="FileNotFoundError: .*nowhere.yaml"):
        train.main(["--config-file", "nowhere.yaml"])


def test_unknown_names_are_reported_together_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        start(tmp_path / "run", "DATASET.NAME", "Digits", "TEST.EVALUATOR", "Guess", trainer="Hybrid")
    assert re.search(r"TRAINER.NAME is 'Hybrid'; expected one of .*HybridCascadeLaFTer", stop.value.code)
    assert re.search(r"DATASET.NAME is 'Digits'; expected one of .*HandwrittenDigits", stop.value.code)
    assert re.search(r"TEST.EVALUATOR is 'Guess'; expected one of .*Classification", stop.value.code)
    assert not (tmp_path / "run").exists()


def test_offline_tells_the_hub_clients_before_they_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(SystemExit, match="nowhere.yaml"):
        train.main(["--offline", "--config-file", "nowhere.yaml"])
    assert (os.environ["HF_HUB_OFFLINE"], os.environ["TRANSFORMERS_OFFLINE"]) == ("1", "1")


def test_imported_file_must_exist_and_have_a_free_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(FileNotFoundError, match="absent.py"):
        runs.import_file(str(tmp_path / "absent.py"))
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ValueError, match="json.py: `import json` means .*rename"):
        runs.import_file(str(tmp_path / "json.py"))
    (tmp_path / "free_name_of_a_test.py").write_text("VALUE = 3")
    assert runs.import_file(str(tmp_path / "free_name_of_a_test.py")).VALUE == 3


# --- a run and its folder -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "first run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "collect_env_info", lambda: "machine")
        start(folder)
    return folder


@pytest.fixture
def used(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(finished.parent, tmp_path / "runs")
    return tmp_path / "runs" / finished.name


def test_record_has_every_field(finished: Path) -> None:
    record = read_json(finished / "run.json")
    assert record["status"] == "finished"
    assert record["argv"][:2] == ["--import", PLUGIN]
    assert record["seed"] == 1
    assert record["device"] == (torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu")
    assert record["engine"]["side"] in ("bundled", "upstream") and record["engine"]["version"] == "0.6.3"
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert all(record["versions"][name] for name in ("python", "torchvision", "numpy", "open_clip_torch"))
    assert {"git_commit", "git_dirty"} <= record.keys()
    assert record["data"]["sizes"] == {"train_x": 8, "train_u": 0, "val": 8, "test": 8}
    assert (record["data"]["name"], record["data"]["split_kind"]) == ("PluginColours", "official")
    assert record["data"]["classes"] == ["red", "blue"]
    assert re.fullmatch("[0-9a-f]{64}", record["data"]["hash"])


def test_results_are_those_of_the_log_in_full_precision(finished: Path) -> None:
    results = read_json(finished / "results.json")
    log = (finished / "log.txt").read_text("utf-8")
    printed = re.findall(r"\* macro_f1: ([\d.]+)%", log)
    assert set(results) == {"test"}
    assert f"{results['test']['macro_f1']:.1f}" == printed[-1]
    assert set(results["test"]) == {"accuracy", "error_rate", "macro_f1"}


def test_log_shows_arguments_cleaned_config_engine_and_seed(finished: Path) -> None:
    log = (finished / "log.txt").read_text("utf-8")
    order = ["Setting fixed seed: 1", "** Arguments **", "** Config **", "Engine: Dassl 0.6.3", "System info",
             "Loading trainer: ToyTrainer"]  # fmt: skip
    assert sorted(order, key=log.index) == order
    assert "TOYTRAINER" in log and "LAFTER" not in log


def test_logging_is_put_back_after_a_run(finished: Path) -> None:
    assert not any(logging.getLogger(name).handlers for name in runs.LOGGED_PACKAGES)
    assert type(sys.stdout).__module__.split(".")[0] != "dassl"


def test_stored_configuration_rebuilds_the_same_run(finished: Path, tmp_path: Path) -> None:
    words = ["--import", PLUGIN, "--config-file", str(finished / "config.yaml")]
    cfg = runs.build_cfg(train.parse_args(words))
    assert cfg.dump() == (finished / "config.yaml").read_text("utf-8")

    from dassl.engine import build_trainer

    logits = []
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        trainer = build_trainer(cfg)
        trainer.load_model(str(finished), epoch=2)
        logits.append(trainer.model_inference(images))
    trained = torch.load(finished / "toy" / "model.pth.tar-2", weights_only=True)["state_dict"]
    by_hand = torch.nn.functional.linear(images.mean(dim=(2, 3)), trained["weight"], trained["bias"])
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], by_hand)


def test_failed_run_says_so_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match="told to fail"):
        start(folder, "TRAIN.CHECKPOINT_FREQ", "1", "TRAINER.TOYTRAINER.FAIL_AT", "1")
    record = read_json(folder / "run.json")
    assert (record["status"], record["error"]) == ("failed", "RuntimeError: told to fail")
    assert "Run failed: RuntimeError: told to fail" in (folder / "log.txt").read_text("utf-8")
    assert torch.load(folder / "toy" / "model.pth.tar-1", weights_only=True)["epoch"] == 1


def test_record_of_the_built_in_digits_does_not_depend_on_where_they_lie(tmp_path: Path) -> None:
    hashes = []
    for place in ("here", "there"):
        words = ["--import", PLUGIN, "--trainer", "ToyUntrained", "--dataset-config-file", DIGITS, "--no-train"]
        words += ["--root", str(tmp_path / place / "data"), "--output-dir", str(tmp_path / place / "run")]
        train.main([*words, "DATALOADER.NUM_WORKERS", "0"])
        data = read_json(tmp_path / place / "run" / "run.json")["data"]
        assert data["sizes"] == {"train_x": 1078, "train_u": 0, "val": 359, "test": 360}
        hashes.append(data["hash"])
    assert hashes[0] == hashes[1]


def test_no_train_builds_and_writes_no_checkpoint(tmp_path: Path) -> None:
    start(tmp_path / "run", "--no-train")
    assert sorted(os.listdir(tmp_path / "run")) == ["config.yaml", "log.txt", "run.json"]
    assert read_json(tmp_path / "run" / "run.json")["mode"] == "build"


def test_unwritable_output_folder_is_an_error_naming_it(tmp_path: Path) -> None:
    (tmp_path / "blocker").write_text("a file in the way")
    folder = tmp_path / "blocker" / "run"
    with pytest.raises(SystemExit) as stop:
        start(folder)
    assert "OUTPUT_DIR" in stop.value.code and str(folder) in stop.value.code


def test_full_disk_is_an_error_naming_the_file_and_keeps_the_checkpoint(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(used)

    def full(self: Path, *_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SystemExit, match="cannot write .*config.yaml.*No space left"):
        start(used)
    after = contents(used)
    assert all(after[name] == content for name, content in before.items())


# --- evaluation ---------------------------------------------------------------------------------------------------------


def test_eval_only_repeats_the_result_and_changes_nothing_else(used: Path) -> None:
    before, results = contents(used), read_json(used / "results.json")
    (used / "results.json").unlink()
    start(used, "--eval-only", "--model-dir", str(used), "--load-epoch", "2")
    after = contents(used)
    new = set(after) - set(before)
    assert len(new) == 1 and new.pop().startswith("log.txt-")
    assert read_json(used / "results.json") == results
    assert all(after[name] == content for name, content in before.items() if name != "results.json")


def test_eval_only_of_another_split_keeps_both_results(used: Path) -> None:
    start(used, "--eval-only", "--no-train", "--model-dir", str(used), "--load-epoch", "2", "TEST.SPLIT", "val")
    assert set(read_json(used / "results.json")) == {"test", "val"}


def test_eval_only_without_a_model_is_an_error_for_a_trainer_that_needs_one(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ValueError: .*ToyTrainer needs a trained model.*--model-dir"):
        start(tmp_path / "run", "--eval-only")
    record = read_json(tmp_path / "run" / "run.json")
    assert record["status"] == "failed"
    assert any("_build_and_run" in line for line in record["traceback"])


def test_eval_only_without_a_model_tests_a_trainer_that_needs_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(tmp_path / "run", "--eval-only", trainer="ToyUntrained")
    assert read_json(tmp_path / "run" / "results.json")["test"]["accuracy"] == 100.0
    assert read_json(tmp_path / "run" / "run.json")["mode"] == "eval"
    assert "load_model() is skipped" in capsys.readouterr().out


# --- resume -------------------------------------------------------------------------------------------------------------


def test_auto_continues_from_the_checkpoint(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    start(whole, epochs=4)
    frequent = ("TRAIN.CHECKPOINT_FREQ", "1")
    with pytest.raises(RuntimeError):
        start(parts, *frequent, "TRAINER.TOYTRAINER.FAIL_AT", "2", epochs=4)
    stored = yaml.safe_load((parts / "config.yaml").read_text())
    stored["TRAINER"]["TOYTRAINER"]["FAIL_AT"] = -1  # stands for a killed run, whose configuration never said "fail"
    (parts / "config.yaml").write_text(yaml.safe_dump(stored))
    start(parts, *frequent, epochs=4)
    states = [
        torch.load(folder / "toy" / "model.pth.tar-4", weights_only=True)["state_dict"] for folder in (whole, parts)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert read_json(parts / "run.json")["status"] == "finished"
    assert read_json(parts / "results.json") == read_json(whole / "results.json")


def test_must_without_a_checkpoint_and_never_with_one_are_errors(used: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="FileNotFoundError: --resume must.*checkpoint"):
        start(tmp_path / "new", "--resume", "must")
    assert not (tmp_path / "new").exists()
    before = contents(used)
    with pytest.raises(SystemExit, match="FileExistsError: --resume never.*OUTPUT_DIR"):
        start(used, "--resume", "never")
    assert contents(used) == before
    start(used, "--resume", "must")


def test_resume_folder_has_to_hold_checkpoints_and_is_continued(used: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="FileNotFoundError: RESUME is .*empty"):
        start(tmp_path / "new", "--resume", str(tmp_path / "empty"))
    start(tmp_path / "runs" / "second", "--resume", str(used))
    assert "Found checkpoint at" in (tmp_path / "runs" / "second" / "log.txt").read_text("utf-8")


def test_continuing_with_another_configuration_names_key_and_both_values(used: Path) -> None:
    before = contents(used)
    with pytest.raises(SystemExit) as stop:
        start(used, "OPTIM.LR", "0.5", epochs=3)
    assert "OPTIM.LR: stored 0.0003, now 0.5" in stop.value.code
    assert "OPTIM.MAX_EPOCH: stored 2, now 3" in stop.value.code
    assert contents(used) == before


def test_continuing_may_change_places_hardware_and_testing(used: Path) -> None:
    start(used, "USE_CUDA", "False", "TRAIN.PRINT_FREQ", "1", "TEST.PER_CLASS_RESULT", "True")
    assert "per-class result" in "".join(file.read_text("utf-8") for file in used.glob("log.txt*"))


def test_fresh_start_forgets_results_of_an_earlier_try(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "results.json").write_text('{"val": {"accuracy": 1.0}}')
    start(folder)
    assert set(read_json(folder / "results.json")) == {"test"}
