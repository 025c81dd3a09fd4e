"""What GatedBLIP2 counts, costs and takes, for every preset: shapes only, no weights, no network, no GPU.

    python scripts/gated_blip2_report.py [--preset NAME] [--batch 2] [--json FILE]

Parameters are exact. Operations are arithmetic. Memory is an estimate beside the reference peak of the original recipe, for
random images at batch 2; benchmarks/gated_blip2_memory.py measures it. Exit status: 0, or 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from trainers.gated_blip2.counts import Counts, count_model, count_parts  # noqa: E402
from trainers.gated_blip2.flops import SampleCost, sample_cost, style_cost  # noqa: E402
from trainers.gated_blip2.gate_hooks import cross_attention_layers  # noqa: E402
from trainers.gated_blip2.gates import GateOptions  # noqa: E402
from trainers.gated_blip2.loading import SHAPES, read_config  # noqa: E402
from trainers.gated_blip2.memory import MemoryPlan, estimate_memory  # noqa: E402
from trainers.gated_blip2.presets import PRESETS, Preset, build_conditioner, trainable_parts  # noqa: E402
from trainers.gated_blip2.style.networks import build_network, feature_width, find_architecture  # noqa: E402
from trainers.gated_blip2.style.source import StyleSource  # noqa: E402
from trainers.gated_blip2.weights import COMPUTE_DTYPES, PartDtypes, RandomWeights, build_empty, put_weights  # noqa: E402
from trainers.memory_estimate import GIB  # noqa: E402

META = torch.device("meta")
REFERENCE_PEAK_GIB = 9.27  # training peak of the original recipe on an A100, batch 2
VOCABULARIES = (50_272, 50_304)  # of OPT, and of the checkpoint on the hub
OPTIONS = {
    "gates, one per head": GateOptions(granularity="head"),
    "gates, one per layer": GateOptions(granularity="scalar"),
    "gates that read the question": GateOptions(question=True),
}
# What memory is estimated for: (title, cached, batch or None for --batch, layers computed again, quantised to)
PLANS = (
    ("live", False, None, False, "none"),
    ("cached", True, None, False, "none"),
    ("cached, batch 8, GRAD_CKPT", True, 8, True, "none"),
    ("cached, int8", True, None, False, "int8"),
    ("cached, nf4", True, None, False, "nf4"),
)


class Shapes:
    """BLIP-2s without memory, each built once.

    Args:
        name: Of `SHAPES`.
        compute: Type of what does not train.
        arch: Of the style encoder.
        n_classes: Its styles.
    """

    def __init__(self, name: str, compute: torch.dtype, arch: str, n_classes: int) -> None:
        self.config_file, self._compute, self._built = SHAPES[name], compute, {}
        with META:
            self.style_encoder = build_network(arch, n_classes)
        self.style_width = feature_width(self.style_encoder)

    def blip2(self, preset: Preset, vocabulary: int) -> nn.Module:
        """Return the model of a preset in the types that its parts keep."""
        key = (preset.text_branch, preset.trains_qformer, preset.post_ln, vocabulary)
        if key not in self._built:
            config = read_config(self.config_file)
            config.text_config.vocab_size, config.qformer_config.use_qformer_text_input = vocabulary, preset.text_branch
            dtypes = PartDtypes(self._compute, preset.trains_qformer, preset.post_ln)
            self._built[key] = build_empty(config)
            put_weights(self._built[key], RandomWeights(META, 0), dtypes=dtypes, device=META)
        return self._built[key]

    def conditioner(self, preset: Preset, vocabulary: int, options: GateOptions | None = None) -> nn.Module | None:
        """Return the gates of a preset."""
        with META:
            return build_conditioner(preset, self.blip2(preset, vocabulary), self.style_width, options)

    def count(
        self, name: str, vocabulary: int, options: GateOptions | None = None, style_source: nn.Module | None = None
    ) -> Counts:
        """Count a preset; one without gates has no style encoder."""
        preset = PRESETS[name]
        conditioner = self.conditioner(preset, vocabulary, options)
        encoder = None if conditioner is None else self.style_encoder
        blip2 = self.blip2(preset, vocabulary)
        return count_model(preset, blip2, conditioner, style_source=style_source, style_encoder=encoder)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return everything that is shown, in JSON's types."""
    shapes = Shapes(args.shapes, COMPUTE_DTYPES[args.prec], args.style_arch, args.style_classes)
    presets, vocabulary = [args.preset] if args.preset else list(PRESETS), VOCABULARIES[-1]
    with META:
        static = StyleSource("static", width=shapes.style_width, n_classes=None)
    return {
        "backbone": {str(each): count_parts(shapes.blip2(PRESETS["frozen"], each)) for each in VOCABULARIES},
        "sizes": _sizes(shapes, vocabulary),
        "presets": {name: shapes.count(name, vocabulary).to_dict() for name in presets},
        "options": {title: shapes.count("gates", vocabulary, options).live for title, options in OPTIONS.items()}
        | {"gates with a static style": shapes.count("gates", vocabulary, style_source=static).live},
        "default_gates": shapes.count("gates", vocabulary).live,
        "original": {str(each): _itemise(shapes.count("original", each)) for each in VOCABULARIES},
        "operations": _cost(shapes, args).to_dict() | {"style_224_px": style_cost(args.style_arch, 224)},
        "memory": {name: _estimate(shapes, PRESETS[name], args) for name in presets},
    }


def _sizes(shapes: Shapes, vocabulary: int) -> dict[str, int]:
    """Return the sizes of parts of parts: title -> numbers."""
    parts, original = count_parts(shapes.blip2(PRESETS["original"], vocabulary)), shapes.count("original", vocabulary)
    crossed = shapes.count("gates_xattn", vocabulary).groups["cross_attention"]
    n_cross = len(cross_attention_layers(shapes.blip2(PRESETS["frozen"], vocabulary).qformer))
    gates = original.groups["gate_trunk"] + original.groups["gate_heads"]
    trunk = original.parts["style_encoder"]
    return {
        "vision_model with ln_vision": parts["vision_model"] + parts["ln_vision"],
        f"cross-attention, {n_cross} layers": crossed, "cross-attention of one layer": crossed // n_cross,
        "text branch, if built": parts["text_branch"], "qformer with text branch": parts["qformer"] + parts["text_branch"],
        f"gates of original, {n_cross} layers": gates, "gates of original, one layer": gates // n_cross,
        "style encoder": trunk, "style encoder, classifier": original.style_head,
        "style encoder with classifier": trunk + original.style_head,
    }  # fmt: skip


def _itemise(counts: Counts) -> dict[str, Any]:
    return {**counts.to_dict(), "lines": counts.describe().splitlines()}


def _cost(shapes: Shapes, args: argparse.Namespace) -> SampleCost:
    view = find_architecture(args.style_arch).view
    config = read_config(shapes.config_file)
    return sample_cost(config, n_text=args.cost_text, style=style_cost(args.style_arch, view.crop_px))


def _estimate(shapes: Shapes, preset: Preset, args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Return title -> bytes by purpose."""
    blip2, conditioner = shapes.blip2(preset, VOCABULARIES[-1]), shapes.conditioner(preset, VOCABULARIES[-1])
    parts, vision = trainable_parts(preset, blip2, conditioner), blip2.config.vision_config
    compute = None if args.prec == "fp32" else COMPUTE_DTYPES[args.prec]
    found = {}
    for title, cached, batch, grad_ckpt, quant in PLANS:
        plan = MemoryPlan(
            "adamw", compute, batch or args.batch, args.text, args.answer, (vision.image_size // vision.patch_size) ** 2 + 1,
            cached, grad_ckpt, quant,
        )  # fmt: skip
        gates = [] if conditioner is None else [conditioner]
        style = None if conditioner is None else shapes.style_encoder
        found[title] = estimate_memory(blip2, parts, plan, gates=gates, style_encoder=style).to_dict()
    return found


def show(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print it."""
    _show_backbone(result)
    print(f"\n{'preset':<16}{'trainable':>14}{'live':>14}{'dead':>13}{'share':>9}{'as built':>16}")
    for name, row in result["presets"].items():
        numbers = f"{row['trainable']:>14,}{row['live']:>14,}{row['dead']:>13,}{row['share_percent']:>7.2f} %"
        print(f"{name:<16}{numbers}{row['as_built']:>16,}")
    print(f"\n{'gates, other than default':<30}{'trainable':>16}{'difference':>16}")
    for title, number in result["options"].items():
        print(f"{title:<30}{number:>16,}{number - result['default_gates']:>+16,}")
    for vocabulary, row in result["original"].items():
        print(f"\noriginal, vocabulary {int(vocabulary):,}")
        print("\n".join(row["lines"]))
    _show_operations(result["operations"], args)
    _show_memory(result["memory"], args)


def _show_backbone(result: dict[str, Any]) -> None:
    vocabularies = list(result["backbone"])
    print(f"{'backbone, vocabulary':<30}" + "".join(f"{int(each):>16,}" for each in vocabularies))
    for part in result["backbone"][vocabularies[0]]:
        numbers = [result["backbone"][each][part] for each in vocabularies]
        if any(numbers):
            print(f"{part:<30}" + "".join(f"{number:>16,}" for number in numbers))
    print(f"{'in all':<30}" + "".join(f"{sum(result['backbone'][each].values()):>16,}" for each in vocabularies))
    print("\n".join(f"{title:<30}{number:>16,}" for title, number in result["sizes"].items()))


def _show_operations(cost: dict[str, float], args: argparse.Namespace) -> None:
    print(f"\nGFLOP per sample, {args.cost_text} text tokens")
    for name, number in cost.items():
        print(f"{name.replace('_', ' '):<30}{number / 1e9:>16,.{2 if number < 1e10 else 1}f}")
    print(f"{'cached over live step':<30}{cost['cached_step'] / cost['live_step']:>15.2f}x")


def _show_memory(memory: dict[str, dict[str, dict[str, int]]], args: argparse.Namespace) -> None:
    print(f"\nEstimated GiB of an update, not measured: PREC {args.prec}, batch {args.batch}, {args.text} text tokens;")
    print(f"in brackets over the reference peak of {REFERENCE_PEAK_GIB} GiB")
    print(f"{'preset':<16}" + "".join(f"{title:>28}" for title, *_ in PLANS))
    for name, row in memory.items():
        sizes = [row[title]["total"] / GIB for title, *_ in PLANS]
        print(f"{name:<16}" + "".join(f"{size:.2f} ({size / REFERENCE_PEAK_GIB:.2f})".rjust(28) for size in sizes))
    first, *_ = PLANS[0]
    purposes = list(next(iter(memory.values()))[first])
    print(f"\n{first:<16}" + "".join(f"{purpose:>14}" for purpose in purposes))
    for name, row in memory.items():
        print(f"{name:<16}" + "".join(f"{row[first][purpose] / GIB:14.3f}" for purpose in purposes))


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=tuple(PRESETS), help="one instead of all")
    parser.add_argument("--shapes", choices=tuple(SHAPES), default="blip2_opt_2_7b", help="of the BLIP-2")
    parser.add_argument("--style-arch", default="efficientnet_b3", help="of the style encoder")
    parser.add_argument("--style-classes", type=int, default=28)
    parser.add_argument("--cost-text", type=int, default=16, help="text tokens that operations are counted for")
    parser.add_argument("--prec", choices=tuple(COMPUTE_DTYPES), default="amp", help="that memory is estimated for")
    parser.add_argument("--batch", type=int, default=2, help="samples")
    parser.add_argument("--text", type=int, default=8, help="text tokens that memory is estimated for")
    parser.add_argument("--answer", type=int, default=3, help="tokens of these with a loss")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args(arguments)
    try:
        find_architecture(args.style_arch)
    except ValueError as error:
        parser.error(str(error))
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    result = measure(args)
    show(result, args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
