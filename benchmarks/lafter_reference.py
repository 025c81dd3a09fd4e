"""LaFTer's training step against the public implementation (jmiemirza/LaFTer), of which the user names a checkout.

Two processes: ours runs the shipped trainer with `published.yaml`, the other the checkout's own loop, unchanged. The losses of
all steps and the first step's gradients of every trainable that both have are compared, which shows that both compute the same. Aligned at the start: the weights of the CLIP (theirs are
rounded to fp16 when built, so they are set again), the prompts (theirs start in the range of 16 px patches, whatever the
model), the classifier, and both views of the one batch. What LaFTer can do here beyond the paper, labels that are made once,
is timed too. Goal on two CPU cores: at least 1.5 times as fast.

    python -m benchmarks.lafter_reference --checkout DIR
    python -m benchmarks.lafter_reference --checkout DIR --device cuda --batch 50 --prec bf16
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.lafter_checkout import GRADIENTS_FILE, serve_checkout
from benchmarks.timing import interleave, stopwatch

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED, LABELS_ONCE, REFERENCE = "ours, published", "ours, labels made once", "reference"
OUR_GRADIENTS_FILE = "gradients_ours.safetensors"
SETTINGS = {PUBLISHED: {}, LABELS_ONCE: {"TEACHER": "frozen", "AUGMENT": "auto"}}


def serve_ours(pipe: Connection, start_file: Path, args: argparse.Namespace) -> None:
    """Write the common start, then run each step that is asked for by name and answer with (seconds, loss)."""
    # Not at the top: the checkout has packages and a registered trainer of the same names, and its process imports this file.
    from benchmarks.noise_runs import build_run, write_noise

    torch.set_num_threads(args.threads)
    folder = start_file.parent
    write_noise(folder, batch=args.batch)
    runs, steps = {}, {}
    for name, settings in SETTINGS.items():
        runs[name] = run = build_run(
            "LaFTer",
            args.model,
            folder,
            batch=args.batch,
            device=args.device,
            settings={"PREC": args.prec, **settings},
            config_file=str(ROOT / "configs" / "trainers" / "lafter" / "published.yaml"),
        )
        weak, strong = torch.randn(
            2, args.batch, 3, *[run.clip.info.image_size_px] * 2, generator=torch.Generator().manual_seed(0)
        )
        views = {"img": weak, "img2": strong} if name == PUBLISHED else {"img": strong}
        if name == PUBLISHED:
            _write_start(start_file, run, weak, strong)
        steps[name] = functools.partial(run.forward_backward, {**views, "index": torch.arange(args.batch)})
    pipe.send("ready")
    for name in iter(pipe.recv, None):
        losses: list[dict[str, float]] = []
        seconds = stopwatch(lambda step=steps[name]: losses.append(step()), args.device)()
        if name == PUBLISHED and not (folder / OUR_GRADIENTS_FILE).exists():
            gradients = {key: p.grad.detach().cpu().clone() for key, p in runs[name].student.adapt.named_parameters()}
            save_file(gradients, folder / OUR_GRADIENTS_FILE)
        pipe.send((seconds, losses[0]["loss"]))


def _write_start(path: Path, run: object, weak: Tensor, strong: Tensor) -> None:
    """Write views and weights; the text tower, which the trainer has released, comes from a CLIP of the same seed."""
    adapt = run.student.adapt
    tensors = {f"clip.{name}": value for name, value in run.load_backbone().model.state_dict().items()}
    tensors |= {"prompts": adapt.prompts, "classifier": adapt.classifier.weight, "weak": weak, "strong": strong}
    save_file({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, path)


def start_process(
    serve: Callable[[Connection, Path, argparse.Namespace], None], start_file: Path, args: argparse.Namespace
) -> Connection:
    """Start `serve` in a fresh process and return the pipe to it, once it is ready."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=serve, args=(theirs, start_file, args), daemon=True).start()
    theirs.close()  # else a process that dies would leave this one waiting
    ours.recv()
    return ours


def ask_for_step(pipe: Connection, name: str, losses: list[float]) -> float:
    """Have the other process run a step; return its seconds and append its loss."""
    pipe.send(name)
    seconds, loss = pipe.recv()
    losses.append(loss)
    return seconds


def compare(args: argparse.Namespace) -> None:
    """Run the steps in turn and print medians, ratios and the difference of the losses."""
    with tempfile.TemporaryDirectory() as name:
        start_file = Path(name) / "start.safetensors"
        ours = start_process(serve_ours, start_file, args)
        pipes = {PUBLISHED: ours, LABELS_ONCE: ours, REFERENCE: start_process(serve_checkout, start_file, args)}
        losses: dict[str, list[float]] = {name: [] for name in pipes}
        ways = {name: functools.partial(ask_for_step, pipe, name, losses[name]) for name, pipe in pipes.items()}
        medians = interleave(ways, rounds=args.rounds, warmup=args.warmup)
        for pipe in set(pipes.values()):
            pipe.send(None)
        for process in multiprocessing.active_children():
            process.join()
        gradients = compare_gradients(start_file.parent)
    print(
        f"{args.model}, batch {args.batch}, {args.threads} threads, {args.device}, ours in {args.prec}, reference in fp32, "
        f"{args.rounds} rounds"
    )
    for name, value in medians.items():
        print(f"  {name:<22} {value:8.3f} s  reference / this {medians[REFERENCE] / value:5.2f}")
    differences = [abs(a - b) for a, b in zip(losses[PUBLISHED], losses[REFERENCE], strict=True)]
    print(f"loss of the first step: ours {losses[PUBLISHED][0]:.6f}, reference {losses[REFERENCE][0]:.6f}")
    print(gradients)
    print(f"difference of the losses: {differences[0]:.1e}, largest of all {len(differences)} steps {max(differences):.1e}")


def compare_gradients(folder: Path) -> str:
    """Return a line on the largest relative difference, |ours - theirs| / |theirs| of each shared parameter's gradient."""
    ours, theirs = load_file(folder / OUR_GRADIENTS_FILE), load_file(folder / GRADIENTS_FILE)
    shared = sorted(ours.keys() & theirs.keys())
    errors = {name: ((ours[name] - theirs[name].view_as(ours[name])).norm() / theirs[name].norm()).item() for name in shared}
    worst = max(errors, key=errors.__getitem__)
    alone = sorted(ours.keys() ^ theirs.keys()) or "none"
    return (
        f"gradients of the first step: {len(shared)} parameters in both, in one only: {alone}; "
        f"largest relative difference {errors[worst]:.1e} ({worst})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkout", type=Path, required=True, help="folder of the public implementation")
    parser.add_argument("--model", choices=("ViT-B/32", "ViT-B/16"), default="ViT-B/32")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--prec", choices=("fp32", "bf16"), default="fp32", help="of our step; the reference has fp32 only")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each kind")
    parser.add_argument("--warmup", type=int, default=5, help="steps of each kind before those")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of either process, which take turns")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    if not (args.checkout / "trainers" / "LaFTer.py").is_file():
        parser.error(f"--checkout is {args.checkout}, which has no trainers/LaFTer.py; expected a checkout of jmiemirza/LaFTer")
    args.checkout = args.checkout.resolve()
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported, so before the processes start
    compare(args)


if __name__ == "__main__":
    main()
