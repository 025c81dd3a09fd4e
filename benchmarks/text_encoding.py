"""Text encoding: one batch cut to its longest text, against one text per forward at full context.

Random weights, since time does not depend on them. The ways run in turn, so that a busy machine slows all of them; a
batch at full context splits the gain into batching and cutting. Ratios are those of the medians. Goal at ViT-B/32: at
least 8 times.

    python -m benchmarks.text_encoding
    python -m benchmarks.text_encoding --models tiny12 --rounds 9 --device cuda
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from clip_ext.loader import LoadedClip, build_clip
from clip_ext.text_bank import encode_texts
from clip_ext.text_files import load_texts

ARCHITECTURES = {"ViT-B/32": "ViT-B-32-quickgelu", "tiny12": "tiny12"}
N_TEXTS = 64


def pick_texts(count: int) -> list[str]:
    """Return shipped descriptions, class by class in turn, so that lengths are those of real texts."""
    classes = load_texts("handwritten_digits").descriptions.values()
    return [text for texts in zip(*classes, strict=True) for text in texts][:count]


@torch.no_grad()
def encode_one_by_one(clip: LoadedClip, texts: Sequence[str], device: str) -> Tensor:
    rows = [clip.model.encode_text(clip.tokenizer([text]).to(device)) for text in texts]
    return F.normalize(torch.cat(rows), dim=-1).cpu()


@torch.no_grad()
def encode_full_context(clip: LoadedClip, texts: Sequence[str], device: str) -> Tensor:
    return clip.model.encode_text(clip.tokenizer(list(texts)).to(device), normalize=True).cpu()


def median_seconds(ways: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Run all ways in turn, after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(model: str, rounds: int, device: str) -> None:
    clip = build_clip(open_clip.get_model_config(ARCHITECTURES[model]), name=model)
    clip.model.to(device)
    texts = pick_texts(N_TEXTS)
    ways = {
        "one by one": lambda: encode_one_by_one(clip, texts, device),
        "batch, full context": lambda: encode_full_context(clip, texts, device),
        "batch, cut context": lambda: encode_texts(clip, texts),
    }
    difference = (ways["one by one"]() - ways["batch, cut context"]()).abs().max().item()
    medians = median_seconds(ways, rounds)
    print(f"{model}: {len(texts)} texts, context {clip.info.context_length}, {torch.get_num_threads()} threads, {device}")
    for name, value in medians.items():
        print(f"  {name:<20} {1000 * value:9.1f} ms  {medians['one by one'] / value:6.1f}x")
    print(f"  largest difference of a feature: {difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds per way")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for model in args.models:
        measure(model, args.rounds, args.device)


if __name__ == "__main__":
    main()
