"""Print the figures of the miniature world: tiny12, its texts, HandwrittenDigits, MiniScenes, and what tuning gains there.

    python scripts/mini_report.py [--data data] [--quickstart output/quickstart/<time>]

Everything is measured now, from the committed files; the gains are read from the runs of `scripts/quickstart.py`.
"""
from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import datasets  # noqa: E402, F401  (registers the data sets and finds the engine)
from clip_ext.loader import LoadedClip, load_clip  # noqa: E402
from clip_ext.text_bank import TEXT_MODES, build_text_bank, class_prototypes  # noqa: E402
from clip_ext.text_files import load_texts  # noqa: E402
from dassl.config import get_cfg_default  # noqa: E402
from dassl.data.datasets import build_dataset  # noqa: E402
from scripts.pretrain_tiny_clip import HELD_OUT_SEED, Batches, evaluate  # noqa: E402
from trainers.config import add_trainer_configs  # noqa: E402

Lines = list[tuple[str, str]]


def describe_weights(clip: LoadedClip) -> Lines:
    """Size on disk, parameters, and what held-out rendered pictures give."""
    files = [ROOT / "clip_ext" / "model_configs" / "tiny12.json", *sorted((ROOT / "clip_ext" / "assets").glob("tiny12*"))]
    size = sum(file.stat().st_size for file in files) / 1e6
    parameters = sum(p.numel() for p in clip.model.parameters())
    held_out = evaluate(clip, Batches(clip, 512, 0.125, 1000, HELD_OUT_SEED))
    return [
        ("tiny12, files together", f"{size:.2f} MB"),
        ("tiny12, parameters", f"{parameters:,}"),
        ("held-out rendered pictures, caption -> picture, best of 512", f"{held_out['retrieval']:.1f} %"),
        ("held-out printed digits, zero-shot", f"{held_out['digits']:.1f} %"),
    ]


def load_data(name: str, root: str, **keys: str):
    """A registered data set, built as train.py builds it; `keys` are below DATASET."""
    cfg = get_cfg_default()
    add_trainer_configs(cfg)
    cfg.DATASET.NAME, cfg.DATASET.ROOT = name, root
    for key, value in keys.items():
        cfg.DATASET[key] = value
    return build_dataset(cfg)


def scene_lines(root: str) -> Lines:
    """Scenes and questions of MiniScenes, and the texture combinations that train and test share."""
    data = load_data("MiniScenes", root, MINI_VIEW="questions")
    splits = {"train": data.train_x, "val": data.val, "test": data.test}
    scenes = [str(len({item.impath for item in items})) for items in splits.values()]
    questions = [f"{len(items):,}" for items in splits.values()]
    backgrounds = [{item.extras["background_id"] for item in items} for items in splits.values()]
    return [
        ("MiniScenes scenes, train / val / test", " / ".join(scenes)),
        ("MiniScenes questions, train / val / test", " / ".join(questions)),
        ("MiniScenes, backgrounds that train and test share", str(len(backgrounds[0] & backgrounds[2]))),
    ]


def model_lines() -> Lines:
    """Sizes of the miniature models of the language systems."""
    lines: Lines = []
    for weights in sorted((ROOT / "trainers").glob("*/assets/*/*.safetensors")):
        size = sum(file.stat().st_size for file in weights.parent.iterdir()) / 1e6
        with safe_open(weights, "pt") as file:
            parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
        name = weights.parent.name
        lines += [(f"{name}, files together", f"{size:.2f} MB"), (f"{name}, stored numbers", f"{parameters:,}")]
    return lines


@torch.no_grad()
def encode_split(clip: LoadedClip, items) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features (N, E) and labels (N,) of a split's items."""
    images = torch.stack([clip.preprocess(Image.open(item.impath).convert("RGB")) for item in items])
    return F.normalize(clip.model.encode_image(images), dim=-1), torch.tensor([item.label for item in items])


@torch.no_grad()
def zero_shot_lines(clip: LoadedClip, data) -> Lines:
    """Zero-shot accuracy on val and test for every way to compose class texts; val chooses, test is what is reported."""
    splits = {name: encode_split(clip, items) for name, items in (("val", data.val), ("test", data.test))}
    texts = load_texts("HandwrittenDigits")
    lines = []
    for mode in TEXT_MODES:
        bank = build_text_bank(
            clip, data.classnames, texts.templates, texts.descriptions, mode=mode, zeroshot_template=texts.zeroshot
        )
        prototypes = class_prototypes(bank)
        hits = [((features @ prototypes.T).argmax(1) == labels).float().mean() for features, labels in splits.values()]
        figures = " / ".join(f"{100 * share:.2f}" for share in hits)
        lines.append((f"zero-shot on HandwrittenDigits {' / '.join(splits)}, TEXT.MODE {mode}", f"{figures} %"))
    return lines


def text_lines(clip: LoadedClip) -> Lines:
    """Counts and the longest sentence in tokens, start and end included."""
    texts = load_texts("HandwrittenDigits")
    sentences = [sentence for per_class in texts.descriptions.values() for sentence in per_class]
    longest = int((clip.tokenizer(sentences) != 0).sum(1).max())
    per_class = {len(sentences) for sentences in texts.descriptions.values()}
    return [("descriptions per class", ", ".join(map(str, sorted(per_class)))), ("longest description", f"{longest} tokens")]


def gain_lines(folder: Path) -> Lines:
    """Mean, spread and gain over zero-shot of every row that a quickstart left behind."""
    accuracy = {
        row.name: [json.loads(file.read_text("utf-8"))["test"]["accuracy"] for file in sorted(row.glob("seed*/results.json"))]
        for row in sorted(folder.iterdir())
        if row.is_dir()
    }
    baseline = statistics.fmean(accuracy["zero-shot"])
    lines = []
    for name, values in accuracy.items():
        spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        mean = statistics.fmean(values)
        lines.append((f"{name}, {len(values)} seed(s)", f"{mean:.2f}{spread} %, gain {mean - baseline:+.2f}"))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="data root")
    parser.add_argument("--quickstart", type=Path, help="folder of a quickstart, for the gains")
    args = parser.parse_args()
    clip, data = load_clip("tiny12"), load_data("HandwrittenDigits", args.data)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    lines = [("commit", commit.strip() or "unknown"), *describe_weights(clip), *text_lines(clip)]
    lines.append(("HandwrittenDigits train / val / test", f"{len(data.train_x)} / {len(data.val)} / {len(data.test)}"))
    lines += [*zero_shot_lines(clip, data), *scene_lines(args.data), *model_lines()]
    if args.quickstart:
        lines += gain_lines(args.quickstart)
    print(tabulate(lines, tablefmt="github", headers=("figure", "measured")))


if __name__ == "__main__":
    main()
