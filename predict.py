"""Use a trained run: images in, one row of predictions or a caption per image out; or one answer per question.

    python predict.py --model-dir output/first --input photos --output photos.csv
    python predict.py --model-dir output/first --calibrate
    python predict.py --model-dir output/vqa --input photos --question "How many people are there?" --output answers.jsonl
    python predict.py --model-dir output/vqa --input questions.jsonl --output answers.jsonl
    python predict.py --model-dir output/captions --input photos --output captions.jsonl TRAINER.VIECAP.NUM_RETURN 3

The run's configuration, class names and weights are read from its folder; its training data are not needed. A folder is
searched to the bottom; a table (.jsonl, .csv) has `image`, `question` and perhaps `boxes` or `style` per row. An image that
cannot be read gets a row whose `error` says why. Beside the output, FILE.json holds what is the same for all rows. Exit code:
0, or 1 if rows failed, or 2 if nothing was predicted.
"""
import argparse
import contextlib
import dataclasses
import logging
import os
import sys
import time
from typing import TYPE_CHECKING

import train

if TYPE_CHECKING:
    from pathlib import Path

    from trainers.prediction.answers import AnswerTally
    from trainers.prediction.captions import CaptionTally
    from trainers.prediction.rows import Tally
    from trainers.prediction.run import TrainedRun


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    add = parser.add_argument
    add("--model-dir", metavar="RUN", required=True, help="run folder of a training (its --output-dir), or an adapter or "
        "weights file below it")  # fmt: skip
    add("--input", metavar="PATH", nargs="+", help="image files and folders; for questions also tables")
    add("--question", metavar="TEXT", help="what to ask of every image; for runs that answer questions")
    add("--output", metavar="FILE", help="file to write, .csv or .jsonl; an older one is replaced")
    add("--calibrate", action="store_true", help="instead of predicting: fit the temperature of a supervised run's confidences "
        "on its validation images (give DATASET.ROOT if they have moved); later predictions use it")  # fmt: skip
    add("--load-epoch", type=int, metavar="N", help="weights after epoch N; default: the best on validation, else the last")
    add("--top-k", type=int, default=3, metavar="N", help="classes to list per image (default 3)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto: a GPU if the run may use one")
    add("--import", dest="imports", action="append", default=[], metavar="FILE.py",
        help="import a file that registers your trainers; repeatable")  # fmt: skip
    add("--offline", action="store_true", help="never ask a model hub for anything")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings that override the run's, after all flags")
    return parser


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse flags and the KEY VALUE pairs behind them; a misplaced flag or pair ends the program with a message."""
    parser = build_parser()
    args = parser.parse_args(argv)
    train.check_pairs(parser, args.opts)
    if args.calibrate == bool(args.input or args.output or args.question) or bool(args.input) != bool(args.output):
        parser.error("expected --input and --output, or --calibrate without them")
    key = next((word for word in args.input or () if train.CONFIG_KEY.fullmatch(word) and not os.path.exists(word)), None)
    if key:
        parser.error(f"--input swallowed the setting {key}; put another flag before it")
    if args.top_k < 1:
        parser.error(f"--top-k is {args.top_k}; expected 1 or more")
    return args


def read_run(args: argparse.Namespace) -> "TrainedRun":
    """Return the run that the command line names, with its settings."""
    from trainers import runs
    from trainers.config_merge import Setting
    from trainers.prediction import run

    for path in args.imports:
        runs.import_file(path)
    pairs = zip(args.opts[0::2], args.opts[1::2], strict=True)
    return run.read_run(
        args.model_dir, [Setting(key, value, "command line") for key, value in pairs], device=args.device
    )


def predict(args: argparse.Namespace) -> int:
    """Write the predictions; returns the number of rows that failed.

    Raises:
        ValueError, OSError: With a message for the user; the output is then as it was before.
    """
    from trainers.prediction.files import check_output

    output, run = check_output(args.output), read_run(args)
    if run.answers_questions:
        return answer(args, run, output)
    if args.question is not None:
        does = "captions" if run.captions_images else "classifies"
        raise ValueError(f"--question: {run.cfg.TRAINER.NAME} {does} images and takes no question")
    return (caption if run.captions_images else classify)(args, run, output)


def classify(args: argparse.Namespace, run: "TrainedRun", output: "Path") -> int:
    """Write the rows of a classifier, or of another trainer that needs images only."""
    from trainers.prediction.calibration import read_temperature
    from trainers.prediction.files import find_images, write_rows
    from trainers.prediction.rows import Tally, describe_prediction, predict_images
    from trainers.prediction.run import load_trainer

    started, found = time.perf_counter(), find_images(args.input)
    with contextlib.redirect_stdout(sys.stderr):  # the engine's lines; ours is the last one
        trainer, checkpoint = load_trainer(run, args.load_epoch)
        temperature, tally = read_temperature(run, trainer, checkpoint), Tally()
        rows = predict_images(trainer, found.paths, run.classes, top_k=args.top_k, temperature=temperature)
        write_rows(output, tally.count(rows))
    facts = describe_prediction(trainer, run, checkpoint, temperature) | dataclasses.asdict(tally)
    return conclude(output, facts, tally, found.others, trainer.device, started)


def answer(args: argparse.Namespace, run: "TrainedRun", output: "Path") -> int:
    """Write the rows of a trainer that answers questions."""
    from trainers.prediction.answers import AnswerTally, answer_questions, describe_answers
    from trainers.prediction.files import write_rows
    from trainers.prediction.questions import find_questions
    from trainers.prediction.run import load_trainer

    started, found = time.perf_counter(), find_questions(args.input, args.question)
    with contextlib.redirect_stdout(sys.stderr):
        trainer, checkpoint = load_trainer(run, args.load_epoch)
        tally = AnswerTally()
        write_rows(output, tally.count(answer_questions(trainer, found.asked)))
    counts = {name: count for name, count in dataclasses.asdict(tally).items() if count is not None}
    facts = describe_answers(trainer, run, checkpoint) | counts
    return conclude(output, facts, tally, found.others, trainer.device, started)


def caption(args: argparse.Namespace, run: "TrainedRun", output: "Path") -> int:
    """Write the rows of a captioner."""
    from trainers.prediction.captions import CaptionTally, caption_images, describe_captions, load_captioner
    from trainers.prediction.files import find_images, write_rows

    started, found, node = time.perf_counter(), find_images(args.input), run.cfg.DATALOADER
    with contextlib.redirect_stdout(sys.stderr):
        loaded, tally = load_captioner(run, args.load_epoch), CaptionTally()
        rows = caption_images(loaded, found.paths, batch_size=node.TEST.BATCH_SIZE, workers=node.NUM_WORKERS)
        write_rows(output, tally.count(rows))
    facts = describe_captions(loaded, run) | dataclasses.asdict(tally)
    return conclude(output, facts, tally, found.others, loaded.device, started)


def conclude(
    output: "Path", facts: dict, tally: "Tally | AnswerTally | CaptionTally", others: list, device: object, started: float
) -> int:
    """Write what holds for all rows and one line for the user; returns the number of rows that failed."""
    from trainers.prediction.files import write_facts

    write_facts(output.with_name(f"{output.name}.json"), facts)
    passed_over = f", {len(others)} other files passed over" if others else ""
    sys.stdout.write(
        f"{output}: {tally}{passed_over}; {facts['trainer']}, {facts['checkpoint'] or 'nothing trained'}, {device}, "
        f"{time.perf_counter() - started:.1f} s\n"
    )
    return tally.failed


def calibrate(args: argparse.Namespace) -> int:
    """Fit and store the temperature of the run's confidences; returns 0.

    Raises:
        ValueError, OSError: With a message for the user.
    """
    import datasets  # noqa: F401  (registers the data sets)
    from trainers.prediction.calibration import fit_temperature, write_calibration
    from trainers.prediction.run import load_trainer

    run = read_run(args)
    if run.answers_questions or run.captions_images:
        does = "answers questions" if run.answers_questions else "captions images"
        raise ValueError(f"--calibrate: {run.cfg.TRAINER.NAME} {does}; it has no confidences of classes")
    with contextlib.redirect_stdout(sys.stderr):
        trainer, checkpoint = load_trainer(run, args.load_epoch, with_data=True)
        fitted = fit_temperature(run, trainer)
    sys.stdout.write(f"{write_calibration(run, trainer, checkpoint, fitted)}: {fitted}\n")
    return 0


def main(argv: list[str]) -> None:
    """Run one command line. Only the standard library is imported before it is known to be well formed."""
    args = parse_args(argv)
    if args.offline:  # read by the hub's clients when they are imported
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    logging.basicConfig(format="%(message)s")

    from clip_ext.console import accept_any_text

    accept_any_text()
    try:
        failed = calibrate(args) if args.calibrate else predict(args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(2)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
