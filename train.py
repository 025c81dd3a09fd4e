"""Train or test any registered trainer on any registered data set: flags -> configuration -> Dassl.

    python train.py --trainer HybridCascadeLaFTer --config-file configs/trainers/hybrid_cascade_lafter/tiny12.yaml \
        --dataset-config-file configs/datasets/handwritten_digits.yaml --output-dir output/first --seed 1

Settings are merged in this order: defaults, data set file, trainer file, flags, KEY VALUE pairs.
"""
import argparse
import os
import re
import sys

CONFIG_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")


def build_parser() -> argparse.ArgumentParser:
    """The command line: CoOp's flags and a few of ours. A flag that is not given changes nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    add = parser.add_argument
    add("--root", metavar="DIR", help="data root (DATASET.ROOT)")
    add("--data", metavar="PATH", help="your own images: a folder, or a .csv, .jsonl or .json file (docs/CUSTOM_DATA.md)")
    add("--output-dir", metavar="DIR", help="run folder (OUTPUT_DIR): log, configuration, checkpoints, results")
    add("--resume", metavar="auto|must|never|DIR", help="auto (default) continues if the run folder has checkpoints")
    add("--seed", type=int, metavar="N", help="seed of all random generators (SEED); negative: unseeded")
    add("--source-domains", nargs="+", metavar="NAME", help="DATASET.SOURCE_DOMAINS")
    add("--target-domains", nargs="+", metavar="NAME", help="DATASET.TARGET_DOMAINS")
    add("--transforms", nargs="+", metavar="NAME", help="INPUT.TRANSFORMS")
    add("--config-file", metavar="YAML", help="trainer settings")
    add("--dataset-config-file", metavar="YAML", help="data set settings")
    add("--trainer", metavar="NAME", help="registered trainer (TRAINER.NAME)")
    add("--backbone", metavar="NAME", help="MODEL.BACKBONE.NAME")
    add("--head", metavar="NAME", help="MODEL.HEAD.NAME")
    add("--eval-only", action="store_true", help="load a trained model and test it")
    add("--model-dir", metavar="DIR", help="run, or adapter below it, to load the model from, with --eval-only")
    add("--load-epoch", type=int, metavar="N", help="epoch of the model to load; default: the best on validation")
    add("--no-train", action="store_true", help="build everything, train nothing")
    add("--import", dest="imports", action="append", metavar="FILE.py",
        help="import a file that registers your trainers or data sets; repeatable")  # fmt: skip
    add("--offline", action="store_true", help="never ask a model hub for anything")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings, after all flags")
    return parser


def check_pairs(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """End the program with a message if `words`, which follow all flags, are no KEY VALUE pairs."""
    flag = next((word for word in words if word.startswith("--")), None)
    if flag:
        parser.error(f"{flag} stands among the KEY VALUE pairs; give all flags before them")
    if len(words) % 2:
        parser.error(f"KEY VALUE pairs expected, got {len(words)} words: {' '.join(words)}")


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse flags and the KEY VALUE pairs behind them; a misplaced flag or pair ends the program with a message."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check_pairs(parser, args.opts)
    if args.data is not None and args.root is not None:
        parser.error("--data and --root both name the data; give one of them")
    for name in ("source_domains", "target_domains", "transforms"):
        key = next((word for word in getattr(args, name) or () if CONFIG_KEY.fullmatch(word)), None)
        if key:
            parser.error(f"--{name.replace('_', '-')} swallowed the setting {key}; put another flag before it")
    return args


def main(argv: list[str]) -> None:
    """Run one command line. Only the standard library is imported before it is known to be well formed."""
    args = parse_args(argv)
    if args.offline:  # read by the hub's clients when they are imported
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

    import datasets  # noqa: F401  (registers the data sets)
    from clip_ext.console import accept_any_text
    from trainers import runs

    accept_any_text()
    try:
        cfg, folder = runs.prepare(args)
        runs.run(cfg, folder, args, argv)
    except (ValueError, OSError) as error:  # a wrong setting, file or folder: the message helps, run.json has the traceback
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
