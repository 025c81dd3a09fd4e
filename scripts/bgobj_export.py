"""Write a trained BgObjLLaVA in another form, and compare what it says.

    python scripts/bgobj_export.py output/vqa --format hf -o exported
    python scripts/bgobj_export.py output/vqa --epoch 1 --format peft -o adapter

hf: a plain LLaVA folder (LoRA merged, separators in the spare rows of the embedding); peft: an adapter for peft.PeftModel;
composition: what was trained, for BgObjLlava.from_pretrained. Nothing is kept if the logits of the files differ from the run's.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clip_ext.console import accept_any_text  # noqa: E402

DTYPES = ("float32", "bfloat16", "float16")
FORMATS = ("hf", "peft", "composition")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=Path, help="run folder of a training, or an adapter folder")
    add("--epoch", type=int, metavar="E", help="weights after epoch E; default: the best on validation, else the last")
    add("--format", choices=FORMATS, required=True, help="what to write")
    add("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder to write; must not exist")
    add("--base", default="", metavar="NAME", help="where the base LLaVA lies, if not where it lay in training")
    add("--dtype", choices=DTYPES, default="float32", help="of the exported weights (default float32)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run one command line."""
    args = build_parser().parse_args(arguments)
    accept_any_text()
    logging.basicConfig(format="%(message)s")
    try:
        print(run_export(args))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def run_export(args: argparse.Namespace) -> str:
    """Export and return one line about it."""
    import torch

    import trainers  # noqa: F401  (finds the engine)
    from trainers.bgobj_llava.storage.composition import load_composition
    from trainers.bgobj_llava.storage.export import export

    composition = load_composition(args.run, epoch=args.epoch, base=args.base, dtype=getattr(torch, args.dtype))
    difference = export(composition, args.format, args.output)
    size_mb = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file()) / 1e6
    return (
        f"{args.output}: {args.format}, epoch {composition.adapter.epoch}, {args.dtype}, {size_mb:.1f} MB; "
        f"maximal difference of a logit {difference:.2g}"
    )


if __name__ == "__main__":
    main()
