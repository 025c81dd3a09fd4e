"""Run the trainers of foreign checkouts, unmodified, on both engines, and merge all their YAML files.

    python benchmarks/third_party.py --upstream DASSL --checkout COOP --checkout MAPLE [--checkout ...] [--clip-weights PT]

CoOp, CoCoOp, ZeroshotCLIP (fp32 where the trainer has the choice) and MaPLe (fp16) train for two epochs on a dozen noise
images; every loss and every test logit must agree within 1e-4. Without `--clip-weights` (a state dict or the published
archive) a small random CLIP stands in. The checkouts and the weights are the user's; nothing is fetched.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from random_clip_state import GRID, PATCH_SIZE, random_clip_state
from third_party_run import load_extend_cfg, write_images

ROOT = Path(__file__).resolve().parents[1]
CHILD = Path(__file__).with_name("third_party_run.py")
SIDES = ("bundled", "upstream")
TOLERANCE = 1e-4
TINY = {"vision_width": 64, "text_width": 64, "layers": 2, "embed_dim": 32}
# MaPLe's code fixes the widths of ViT-B; its depth may be less.
TINY_MAPLE = {"vision_width": 768, "text_width": 512, "layers": 3, "embed_dim": 512}


@dataclass(frozen=True)
class Case:
    """A trainer to run: its module and YAML inside a checkout, and what the short run changes."""

    trainer: str
    module: str
    config: str
    random_size: dict[str, int]
    options: dict[str, Any] = field(default_factory=dict)
    random_options: dict[str, Any] = field(default_factory=dict)  # only with the small random CLIP


CASES = (
    Case("CoOp", "trainers.coop", "configs/trainers/CoOp/vit_b32.yaml", TINY, {"TRAINER.COOP.PREC": "fp32"}),
    Case(
        "CoCoOp",
        "trainers.cocoop",
        "configs/trainers/CoCoOp/vit_b16_c4_ep10_batch1.yaml",
        TINY,
        {"TRAINER.COCOOP.PREC": "fp32"},
    ),
    Case("ZeroshotCLIP", "trainers.zsclip", "configs/trainers/CoOp/vit_b32.yaml", TINY),
    Case(
        "MaPLe",
        "trainers.maple",
        "configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml",
        TINY_MAPLE,
        {"TRAINER.MAPLE.PREC": "fp16"},
        {"TRAINER.MAPLE.PROMPT_DEPTH": 3},
    ),
)


def run_case(case: Case, checkout: Path, args: argparse.Namespace, folder: Path) -> bool:
    """Run one trainer on both engines and report how far they are apart; True if within the tolerance."""
    options = dict(case.options)
    weights = args.clip_weights
    if not weights:
        weights = str(folder / f"{case.trainer}.pt")
        torch.save(random_clip_state(**case.random_size), weights)
        size_px = GRID * PATCH_SIZE
        options |= {"INPUT.SIZE": (size_px, size_px), **case.random_options}
    job = {
        "checkout": str(checkout.resolve()),
        "module": case.module,
        "trainer": case.trainer,
        "config": str((checkout / case.config).resolve()),
        "options": options,
        "epochs": args.epochs,
        "weights": weights,
        "images": str(folder / "images"),
    }
    bundled, upstream = (
        run_in_process(side, {**job, "output": str(folder / case.trainer / side)}, args.upstream) for side in SIDES
    )
    losses, logits = bundled["losses"], list(itertools.chain(*bundled["logits"]))
    gaps = {
        "loss": largest_gap(losses, upstream["losses"]),
        "logit": largest_gap(logits, list(itertools.chain(*upstream["logits"]))),
    }
    agrees = max(gaps.values()) <= TOLERANCE and bundled["accuracy"] == upstream["accuracy"]
    shown = f"{len(losses)} losses {losses[0]:.4f} .. {losses[-1]:.4f}" if losses else "no training"
    report(
        f"{'ok  ' if agrees else 'FAIL'} {case.trainer} ({checkout.name}): {shown}, {len(logits)} test logits; "
        f"largest gap loss {gaps['loss']:.1e}, logit {gaps['logit']:.1e}"
    )
    return agrees


def run_in_process(side: str, job: dict[str, Any], upstream: str) -> dict[str, Any]:
    """Run the child on one engine and return its result."""
    output = Path(job["output"])
    output.mkdir(parents=True)
    job_file, result_file = output / "job.json", output / "result.json"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    paths = [str(ROOT), *([upstream] if side == "upstream" else [])]
    env = {**os.environ, "DASSL_HOST": side, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, CHILD, job_file, result_file], env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{job['trainer']} failed on the {side} engine:\n{done.stdout}\n{done.stderr}")
    result = json.loads(result_file.read_text(encoding="utf-8"))
    assert result["engine"] == side
    return result


def largest_gap(first: list[float], second: list[float]) -> float:
    """Return the largest absolute difference; infinity if the lengths differ."""
    if len(first) != len(second):
        return float("inf")
    return max((abs(a - b) for a, b in zip(first, second)), default=0.0)


def merge_yaml_files(checkout: Path) -> bool:
    """Merge each YAML file of a checkout into a fresh config tree of the bundled engine; True if all do."""
    from dassl_host import ensure_dassl

    os.environ["DASSL_HOST"] = "bundled"
    ensure_dassl()
    from dassl.config import get_cfg_default

    extend_cfg = load_extend_cfg(checkout)
    files = sorted(checkout.glob("configs/**/*.yaml"))
    problems = []
    for file in files:
        cfg = get_cfg_default()
        extend_cfg(cfg)
        try:
            cfg.merge_from_file(str(file))
        except (KeyError, ValueError, AssertionError) as error:
            problems.append(f"     {file.relative_to(checkout)}: {error}")
    report(f"{'FAIL' if problems else 'ok  '} {checkout.name}: {len(files) - len(problems)} of {len(files)} YAML files merge")
    for problem in problems:
        report(problem)
    return not problems and bool(files)


def report(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Parse the command line; exit 1 if anything disagrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, action="append", required=True, help="foreign checkout (repeatable)")
    parser.add_argument("--upstream", help="checkout of upstream Dassl 0.6.3; without it only YAML files are merged")
    parser.add_argument("--clip-weights", help="CLIP file to use instead of the small random one")
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    passed = [merge_yaml_files(checkout) for checkout in args.checkout]
    if args.upstream:
        report(f"CLIP weights: {args.clip_weights or 'small random state, seed 0 (no --clip-weights given)'}")
        with tempfile.TemporaryDirectory() as name:
            write_images(Path(name) / "images", size_px=GRID * PATCH_SIZE)
            for case in CASES:
                homes = [checkout for checkout in args.checkout if (checkout / case.config).is_file()]
                if homes:
                    passed.append(run_case(case, homes[0], args, Path(name)))
    if not all(passed):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
