"""scripts/parse_test_res.py: it agrees with CoOp's rules, prefers full precision, and says what it leaves out."""

import importlib.util
import json
import re
import statistics
import sys
from pathlib import Path

import pytest
from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator

import train
from trainers import runs
from trainers.config import add_trainer_configs

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = str(ROOT / "tests" / "plugins" / "toy_plugin.py")
TRAINED = "* accuracy: 11.0%\nFinish training\nEvaluate on the *test* set\n=> result\n* accuracy: {}%\n* error: 5.0%\n"


@pytest.fixture(scope="module")
def parser_module():
    spec = importlib.util.spec_from_file_location("parse_test_res_under_test", ROOT / "scripts" / "parse_test_res.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parse(parser_module, capsys):
    """Return `parse(*words) -> printed text`."""

    def run(*words: object) -> str:
        capsys.readouterr()
        parser_module.main([str(word) for word in words])
        return capsys.readouterr().out

    return run


def write_run(folder: Path, log: str | None, results: dict | None = None, status: str | None = None) -> Path:
    folder.mkdir(parents=True)
    if log is not None:
        (folder / "log.txt").write_text(log, "utf-8")
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    if status is not None:
        (folder / "run.json").write_text(json.dumps({"status": status}))
    return folder


def coops_reading(directory: Path, keyword: str = "accuracy") -> list[float]:
    """CoOp's rules, written down independently: per sub-folder, the last figure of log.txt after the end of training."""
    found = []
    for folder in sorted(path for path in directory.iterdir() if not path.name.startswith(".")):
        text = (folder / "log.txt").read_text("utf-8")
        after = re.split(r"^\s*Finish training\s*$", text, maxsplit=1, flags=re.M)[1]
        found.append(float(re.findall(rf"\* {keyword}: ([\.\deE+-]+)%", after)[-1]))
    return found


@pytest.mark.parametrize("evaluator", ["Classification", "LabelDistribution"])
def test_agrees_with_coops_rules_on_three_real_seeds(evaluator, tmp_path, parse, monkeypatch):
    monkeypatch.setattr(runs, "collect_env_info", lambda: "machine")
    words = "DATASET.NAME HandwrittenDigits INPUT.SIZE (4,4) INPUT.TRANSFORMS ('normalize',) DATALOADER.NUM_WORKERS 0".split()
    words += ["DATALOADER.TEST.BATCH_SIZE", "360", "OPTIM.MAX_EPOCH", "1", "USE_CUDA", "False", "TEST.EVALUATOR", evaluator]
    for seed in ("1", "2", "3"):
        flags = ["--import", PLUGIN, "--trainer", "ToyTrainer", "--root", str(tmp_path / "data"), "--seed", seed]
        train.main([*flags, "--output-dir", str(tmp_path / "runs" / f"seed{seed}"), *words])
    theirs = coops_reading(tmp_path / "runs")
    exact = [json.loads(file.read_text())["test"]["accuracy"] for file in sorted(tmp_path.glob("runs/*/results.json"))]
    assert theirs == pytest.approx(exact, abs=0.05) and len(set(exact)) == 3
    assert theirs != pytest.approx(exact, abs=0.005)  # the log alone would have lost digits
    printed = parse(tmp_path / "runs")
    assert re.findall(r"accuracy: ([\d.]+)%\. ", printed) == [f"{value:.2f}" for value in exact]
    assert f"* accuracy: {statistics.fmean(exact):.2f}% +- {statistics.pstdev(exact):.2f}%" in printed


def test_mean_and_both_spreads_of_three_logs(tmp_path, parse):
    for seed, accuracy in enumerate((80.0, 82.0, 87.0)):
        write_run(tmp_path / f"seed{seed}", TRAINED.format(accuracy))
    assert "* accuracy: 83.00% +- 2.94%\n===" in parse(tmp_path)
    assert "* accuracy: 83.00% +- 3.33%\n===" in parse(tmp_path, "--ci95")
    assert "* error: 5.00% +- 0.00%\n===" in parse(tmp_path, "--keyword", "error")


def test_scores_of_captions_are_read_by_their_names(tmp_path, parse, caplog):
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "out"), "TEST.EVALUATOR", "Captioning", "TRAINER.NAME", "ViECap"])
    evaluator = build_evaluator(cfg)
    domains = {"image_id": ["1", "2", "3"], "domain": ["in_domain", "out_domain", "out_domain"]}
    captions = [["a red bus on the road"], ["two people ride bikes", "bikes"], ["a dog sleeps here"]]
    evaluator.process(["a red bus", "two people ride", "a cat sleeps here"], {**domains, "captions": captions})
    with caplog.at_level("INFO", logger="trainers.evaluators.caption"):
        results = evaluator.evaluate()
    block = caplog.records[-1].getMessage()
    write_run(tmp_path / "runs" / "seed1", f"* CIDEr: 1.0%\nFinish training\nEvaluate on the *test* set\n{block}\n")
    for name in ("CIDEr", "BLEU-4", "out_domain/CIDEr"):
        for more in ([], ["--test-log"]):
            printed = parse(tmp_path / "runs", "--keyword", name, *more)
            assert f"* {name}: {results[name]:.1f}0% +- 0.00%" in printed
    assert len({f"{results[name]:.1f}" for name in ("CIDEr", "in_domain/CIDEr", "out_domain/CIDEr")}) == 3


def test_scores_of_answers_are_read_by_their_names_of_types_and_styles_too(tmp_path, parse, caplog):
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "out"), "TEST.EVALUATOR", "VQA"])
    evaluator = build_evaluator(cfg)
    asked = {"question": "Q", "impath": "a.png"}
    painted = ("oil", "oil on canvas", "technique", "Pop_Art")
    answered = [("dutch", "dutch", "school", "Baroque"), painted, ("x", "y", "school", "")]
    targets = [asked | {"answers": [text], "question_type": kind, "style": style} for _, text, kind, style in answered]
    evaluator.process([{"answer": answer} for answer, *_ in answered], targets)
    with caplog.at_level("INFO", logger="trainers.evaluators.vqa"):
        results = evaluator.evaluate()
    block = caplog.records[-1].getMessage()
    write_run(tmp_path / "runs" / "seed1", f"* accuracy: 1.0%\nFinish training\nEvaluate on the *test* set\n{block}\n")
    for name in ("accuracy", "bleu", "rouge_l", "bleu/technique", "accuracy/style=Baroque"):
        assert f"* {name}: {results[name]:.1f}0% +- 0.00%" in parse(tmp_path / "runs", "--keyword", name)
    assert len({f"{results[name]:.1f}" for name in ("accuracy", "bleu", "rouge_l", "accuracy/school")}) == 4


def test_the_last_figure_after_the_signal_counts(tmp_path, parse):
    write_run(tmp_path / "seed1", TRAINED.format(50.0) + "* accuracy: 6e+1%\n")
    assert "* accuracy: 60.00% +-" in parse(tmp_path)


def test_full_precision_is_preferred_but_never_from_another_test(tmp_path, parse):
    write_run(tmp_path / "a" / "seed1", TRAINED.format(83.3), {"test": {"accuracy": 83.3333333}, "val": {"accuracy": 1.0}})
    assert "* accuracy: 83.33% +-" in parse(tmp_path / "a")
    write_run(tmp_path / "b" / "seed1", TRAINED.format(83.3), {"test": {"accuracy": 90.0}})
    printed = parse(tmp_path / "b")
    assert "* accuracy: 83.30% +-" in printed and "results.json has 90.00, of another test" in printed


def test_the_split_that_the_log_names_is_looked_up(tmp_path, parse):
    log = TRAINED.format(70.1).replace("*test*", "*val*")
    write_run(tmp_path / "seed1", log, {"test": {"accuracy": 70.12}, "val": {"accuracy": 70.14}})
    assert "* accuracy: 70.14%" in parse(tmp_path)


def test_a_metric_without_percent_is_read_from_results(tmp_path, parse):
    write_run(tmp_path / "seed1", TRAINED.format(70.0) + "* kl: 0.2707\n", {"test": {"kl": 0.27069}})
    assert "* kl: 0.27 +- 0.00\n" in parse(tmp_path, "--keyword", "kl")


def test_logs_that_only_test_need_their_flag(tmp_path, parse):
    write_run(tmp_path / "seed1", "=> result\n* accuracy: 40.0%\n")
    with pytest.raises(SystemExit, match="Nothing found"):
        parse(tmp_path)
    assert "* accuracy: 40.00%" in parse(tmp_path, "--test-log")


def test_a_resumed_run_is_read_from_its_second_log(tmp_path, parse):
    folder = write_run(tmp_path / "seed1", "epoch [1/2]\n", status="finished")
    (folder / "log.txt-2030-01-01-00-00-00").write_text(TRAINED.format(64.0))
    assert "* accuracy: 64.00%" in parse(tmp_path)


def test_stray_and_unfinished_folders_are_named_and_left_out(tmp_path, parse):
    write_run(tmp_path / "seed1", TRAINED.format(80.0), status="finished")
    write_run(tmp_path / "seed2", TRAINED.format(10.0), status="running")
    write_run(tmp_path / "seed3", "epoch [1/2]\n")
    write_run(tmp_path / "plots", None)
    write_run(tmp_path / ".hidden", None)
    (tmp_path / "notes.txt").write_text("a file, not a run")
    printed = parse(tmp_path)
    assert "* accuracy: 80.00% +- 0.00%" in printed
    reasons = dict(re.findall(r"left out: \S+/(\S+): (.*)", printed))
    assert set(reasons) == {"seed2", "seed3", "plots"}
    assert reasons["seed2"] == "not finished: run.json says running" and reasons["plots"] == "no log.txt"
    assert reasons["seed3"].startswith("not finished: no line 'Finish training'")


def test_several_experiments_are_averaged(tmp_path, parse):
    for name, accuracy in (("one", 60.0), ("two", 70.0)):
        write_run(tmp_path / name / "seed1", TRAINED.format(accuracy))
    (tmp_path / "empty").mkdir()
    printed = parse(tmp_path, "--multi-exp")
    assert printed.endswith("Average performance\n* accuracy: 65.00%\n")
    assert f"left out: Nothing found in {tmp_path / 'empty'}" in printed


def test_base_and_new_give_their_harmonic_mean(tmp_path, parse):
    write_run(tmp_path / "base" / "seed1", TRAINED.format(80.0))
    write_run(tmp_path / "new" / "seed1", "=> result\n* accuracy: 60.0%\n")
    printed = parse("--base", tmp_path / "base", "--new", tmp_path / "new")
    assert printed.endswith("* base: 80.00%\n* new: 60.00%\n* H: 68.57%\n")


@pytest.mark.parametrize("words", ["", "--base a", "--new b", "a --base b --new c"])
def test_incomplete_command_lines_end_with_a_message(words, parse):
    with pytest.raises(SystemExit) as stop:
        parse(*words.split())
    assert stop.value.code == 2


def test_a_missing_folder_fails(tmp_path, parse):
    with pytest.raises(SystemExit, match="there is no folder"):
        parse(tmp_path / "nowhere")
