"""GatedBLIP2 with random weights at full size: memory of every state, speed with and without the cache, updates that survive.

    python -m benchmarks.gated_blip2_memory memory --json OUT.json
    python -m benchmarks.gated_blip2_memory speed --batches 2 8
    python -m benchmarks.gated_blip2_memory updates --quant none int8 nf4
    python -m benchmarks.gated_blip2_memory memory --device cpu --config tiny

`memory`: peaks in GiB, each case in a process of its own; training after 4 updates. The reference is the original recipe on one
A100: 7.49 loaded, 7.56 forward and generation, 9.27 training at batch 2. `speed`: goals 1.5 (batch 8) and 1.2 (batch 2) cached
over live, and 2 for answers in batches of 8 over single ones. `updates`: 20 in a row, at most a quarter skipped by the scaler,
gradients that reach the gates. A CPU shows that everything runs; it has no peaks to show.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gated_blip2_bench import CONFIGS, STATES, Bench, Case, watch_memory
from benchmarks.timing import interleave, stopwatch
from trainers.gated_blip2.config import CHOICES
from trainers.memory_estimate import GIB

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = {"loaded": 7.49, "forward": 7.56, "generation": 7.56, "training": 9.27}
PEAK = REFERENCE["training"]
UPDATES = 4  # the optimizer's moments are there from the second on
CASES = (
    Case("original", goals=REFERENCE),
    Case("original", "bf16"),
    Case("original_live", cached=True, goals={"training": 0.80 * PEAK}),
    Case("gates_proj", cached=True, goals={"training": 0.65 * PEAK}),
    Case("gates_proj", "bf16", cached=True),
    Case("gates_proj", quant="int8", cached=True, goals={"training": 0.40 * PEAK}),
    Case("gates_proj", quant="nf4", cached=True, goals={"training": 0.25 * PEAK}),
    Case("gates_proj", cached=True, grad_ckpt=True, batch=8, goals={"training": 0.65 * PEAK}),
)
SPEED_GOALS, ANSWER_GOAL = {2: 1.2, 8: 1.5}, 2.0
N_UPDATES, SKIPPED_GOAL = 20, 0.25
NO_GPU = "skipped: no CUDA device; random weights of BLIP-2 OPT-2.7B take 7 GB of it. --device cpu --config tiny runs here"


# -- memory -------------------------------------------------------------------------------------------------------------


def run_memory(args: argparse.Namespace) -> dict[str, Any]:
    cases = [_adapt(case, args) for case in _chosen(args)]
    rows = [_measure_apart(case, args) if args.device == "cuda" else measure_memory(case, args) for case in cases]
    result = {"device": _name(args), "config": args.config, "rows": rows}
    show_memory(result)
    return result


def measure_memory(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Return the peaks of the four states of a case; states of a cached case come from features in memory."""
    device = torch.device(args.device)
    peaks: dict[str, dict[str, int]] = {}
    with watch_memory(device) as peaks["loading"]:
        bench = Bench(case, args.config, args.device)
    estimate = bench.estimate()
    if case.cached:
        bench.release()
    for state, work in (("loaded", lambda: None), ("forward", bench.forward), ("generation", bench.generate)):
        with watch_memory(device) as peaks[state]:
            work()
    losses = []
    with watch_memory(device) as peaks["training"]:
        losses += [bench.update().item() for _ in range(UPDATES)]
    return {"case": case.to_dict(), "title": case.title, "peaks": peaks, "estimate": estimate, "losses": losses}


def _measure_apart(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a case in a fresh process, where nothing else has memory of the device."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        words = ["--only", json.dumps(case.to_dict()), "--config", args.config, "--json", str(file)]
        command = [sys.executable, "-m", "benchmarks.gated_blip2_memory", "memory", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            return {"case": case.to_dict(), "title": case.title, "error": done.stderr.strip().splitlines()[-1:]}
        return json.loads(file.read_text("utf-8"))


def _chosen(args: argparse.Namespace) -> list[Case]:
    return [case for case in CASES if args.preset in ("", case.preset) and case.quant in args.quant]


def _adapt(case: Case, args: argparse.Namespace) -> Case:
    """Return a case that runs here: a CPU has no fp16, and the reference is of the full size."""
    if args.device == "cpu":
        case = replace(case, prec="bf16" if case.prec == "bf16" else "fp32")
    return case if args.config == "full" else replace(case, goals={})


def show_memory(result: dict[str, Any]) -> bool:
    """Print peaks, allocated and reserved; True if all goals are met."""
    print(f"{result['device']}, {result['config']} size, random weights; GiB allocated (reserved), goal; x = over {PEAK} GiB")
    met = True
    for row in result["rows"]:
        print(row["title"])
        if "error" in row:
            met = False
            print(f"  failed: {' '.join(row['error'])}")
            continue
        for state in STATES:
            met &= _show_state(state, row["peaks"][state], row["case"]["goals"].get(state))
        print(f"  {'estimated':<12}{row['estimate']['total'] / GIB:9.3f}{'':<12}{row['estimate']['total'] / GIB / PEAK:8.3f}x")
    return met


def _show_state(state: str, peaks: dict[str, int], goal: float | None) -> bool:
    if not peaks:
        print(f"  {state:<12}done; no peaks on a CPU")
        return True
    allocated, met = peaks["allocated"] / GIB, goal is None or peaks["allocated"] / GIB <= goal
    words = "" if goal is None else f"  goal {goal:.2f}: {'met' if met else 'MISSED'}"
    print(f"  {state:<12}{allocated:9.3f} ({peaks['reserved'] / GIB:8.3f}){allocated / PEAK:9.3f}x{words}")
    return met


# -- speed --------------------------------------------------------------------------------------------------------------


def run_speed(args: argparse.Namespace) -> dict[str, Any]:
    prec = args.prec or ("fp32" if args.device == "cpu" else "auto")
    bench = Bench(Case(args.preset or "gates_proj", prec), args.config, args.device)
    result = {"device": _name(args), "config": args.config, "rounds": args.rounds, "rows": []}
    for batch in args.batches:
        pictures, text = bench.pictures(batch), bench.text(batch)
        rows = bench.features.encode(*pictures).to("cpu")
        ways = {
            "live": lambda pictures=pictures, text=text: bench.update(bench.features.encode(*pictures), text),
            "cached": lambda rows=rows, text=text: bench.update(rows.to(bench.device, non_blocking=True), text),
        }
        seconds = _time(ways, args)
        result["rows"].append({"batch": batch, "seconds": seconds, "ratio": seconds["live"] / seconds["cached"]})
    asked = {n: bench.pictures(n) for n in (1, 8)}
    seconds = _time({str(n): lambda n=n, pictures=pictures: bench.generate(n, pictures) for n, pictures in asked.items()}, args)
    result["answers"] = {"seconds": seconds, "ratio": 8 * seconds["1"] / seconds["8"]}
    show_speed(result)
    return result


def _time(ways: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    watched = {name: stopwatch(work, args.device) for name, work in ways.items()}
    return interleave(watched, rounds=args.rounds, warmup=args.warmup)


def show_speed(result: dict[str, Any]) -> bool:
    """Print it; True if all goals are met."""
    print(f"{result['device']}, {result['config']} size, random weights, median of {result['rounds']} updates in turn")
    met = True
    for row in result["rows"]:
        seconds, goal = row["seconds"], SPEED_GOALS.get(row["batch"])
        met &= goal is None or row["ratio"] >= goal
        rates = ", ".join(f"{name} {row['batch'] / seconds[name]:.2f}" for name in ("live", "cached"))
        words = "" if goal is None else f" (goal at least {goal})"
        print(f"batch {row['batch']}: samples per second {rates}; cached over live {row['ratio']:.2f}{words}")
    answers = result["answers"]
    print(f"answers in batches of 8 over single ones {answers['ratio']:.2f} (goal at least {ANSWER_GOAL:g})")
    return met and answers["ratio"] >= ANSWER_GOAL


# -- updates ------------------------------------------------------------------------------------------------------------


def run_updates(args: argparse.Namespace) -> dict[str, Any]:
    precs = ("fp32", "bf16") if args.device == "cpu" else ("bf16", "fp16")
    cases = [Case(args.preset or "gates_proj", prec, quant, cached=True) for quant in args.quant for prec in precs]
    result = {"device": _name(args), "config": args.config, "rows": [measure_updates(case, args) for case in cases]}
    show_updates(result)
    return result


def measure_updates(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Return losses, skipped updates and the smallest gradient of the gates over a row of updates on one batch."""
    bench = Bench(case, args.config, args.device)
    rows, text = bench.encode(case.batch), bench.text(case.batch)
    losses, gradients = [], []
    for _ in range(N_UPDATES):
        skipped = bench.skipped
        losses.append(bench.update(rows, text).item())
        if bench.skipped == skipped:
            gradients.append(bench.gate_gradient())
    found = {"losses": losses, "skipped": bench.skipped, "smallest_gradient": min(gradients, default=0.0)}
    del bench
    if args.device == "cuda":
        torch.cuda.empty_cache()
    return {"title": case.title, **found}


def show_updates(result: dict[str, Any]) -> bool:
    """Print it; True if all goals are met."""
    print(f"{result['device']}, {result['config']} size, random weights, {N_UPDATES} updates on one batch")
    met = True
    for row in result["rows"]:
        good = row["skipped"] <= SKIPPED_GOAL * N_UPDATES and row["smallest_gradient"] > 0
        met &= good
        words = f"loss {row['losses'][0]:.4f} to {row['losses'][-1]:.4f}, skipped {row['skipped']}"
        gradient = f"smallest gradient of the gate heads {row['smallest_gradient']:.2e}"
        print(f"{row['title']}: {words}, {gradient}: {'met' if good else 'MISSED'}")
    return met


# -- command line -------------------------------------------------------------------------------------------------------


def _name(args: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if args.device == "cuda" else "CPU"


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    common.add_argument("--config", choices=tuple(CONFIGS), default="full", help="of the model: full size, or the miniature")
    common.add_argument("--preset", choices=("", *CHOICES["PRESET"]), default="", help='"" = all, or the default one')
    common.add_argument("--json", type=Path, help="file for the results")
    kinds_of = {"nargs": "+", "choices": CHOICES["QUANT"], "help": "of the language model; int8 and nf4 need bitsandbytes"}
    memory = kinds.add_parser("memory", parents=[common])
    memory.add_argument("--quant", default=list(CHOICES["QUANT"]), **kinds_of)
    memory.add_argument("--only", help=argparse.SUPPRESS)
    memory.set_defaults(run=run_memory)
    speed = kinds.add_parser("speed", parents=[common])
    speed.add_argument("--batches", type=int, nargs="+", default=[2, 8])
    speed.add_argument("--prec", choices=("fp32", "bf16", "amp", "fp16"), help="default: fp32 on a CPU, PREC auto on a GPU")
    speed.add_argument("--rounds", type=int, default=20, help="timed updates")
    speed.add_argument("--warmup", type=int, default=3, help="updates before those")
    speed.set_defaults(run=run_speed)
    updates = kinds.add_parser("updates", parents=[common])
    updates.add_argument("--quant", default=["none"], **kinds_of)
    updates.set_defaults(run=run_updates)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU)
        result = {"skipped": "no CUDA device"}
    elif getattr(args, "only", None):
        result = measure_memory(Case(**json.loads(args.only)), args)
    else:
        result = args.run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
