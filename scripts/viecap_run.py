"""ViECap by the original's command lines: every flag by its old name, translated into KEY VALUE pairs and run.

    python scripts/viecap_run.py train --bs 80 --random_mask --using_hard_prompt --soft_prompt_first --out_dir checkpoints/mine
    python scripts/viecap_run.py eval --name_of_datasets coco --weight_path checkpoints/mine/weights/coco_prefix-014.safetensors
    python scripts/viecap_run.py infer --image_path photos --weight_path checkpoints/mine --prompt_ensemble

A switch that is not given is off, as in the original; only what the model is, in eval and infer, is then the run's own. The
original's names of files are understood: annotations/<name>/..., and <prefix>-00<epoch>.pt for the weights of an epoch, counted
from 0. Pickles are not read: convert them once with scripts/viecap_convert.py. KEY VALUE pairs behind all flags win.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from clip_ext.console import accept_any_text  # noqa: E402
from scripts.viecap_flags import build_parser  # noqa: E402
from scripts.viecap_translate import Command, translate  # noqa: E402


def show(command: Command, own_pairs: list[str]) -> None:
    """Print what will run."""
    print(f"{command.script} {' '.join(command.words)}")
    for key, value in [*command.pairs.items(), *zip(own_pairs[::2], own_pairs[1::2], strict=True)]:
        print(f"  {key} {value if value != '' else chr(34) * 2}")
    for note in command.notes:
        print(f"Note: {note}")
    sys.stdout.flush()


def run(argv: list[str], log_dir: str) -> int:
    """Run a program of the checkout; return its exit code. With a folder, what it prints is also written there."""
    words = [sys.executable, *argv]
    if not log_dir:
        return subprocess.run(words).returncode
    Path(log_dir).mkdir(parents=True, exist_ok=True)
    file = Path(log_dir, f"{time.strftime('%Y-%m-%d-%H-%M-%S')}.log")
    with open(file, "w", encoding="utf-8") as log:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")
        for line in process.stdout:
            sys.stdout.write(line)
            log.write(line)
        return process.wait()


def print_captions(argv: list[str]) -> None:
    """Print the captions that predict.py wrote."""
    for line in Path(argv[argv.index("--output") + 1]).read_text("utf-8").splitlines():
        row = json.loads(line)
        print(f"{row['impath']}: {row.get('caption') or row['error']}")


def main(argv: list[str] | None = None) -> None:
    """Run one command line."""
    accept_any_text()
    parser = build_parser(__doc__)
    args = parser.parse_args(argv)
    try:
        command = translate(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if len(args.opts) % 2 or any(word.startswith("--") for word in args.opts):
        parser.error(f"KEY VALUE pairs expected behind all flags, got {' '.join(args.opts)}")
    show(command, args.opts)
    if command.problems:
        sys.exit("\n".join(["error:", *command.problems]))
    if args.dry_run:
        return
    words = command.to_argv(args.opts)
    code = run(words, args.log_dir)
    if args.command == "infer" and code < 2 and words[words.index("--output") + 1].endswith(".jsonl"):
        print_captions(words)
    sys.exit(code)


if __name__ == "__main__":
    main()
