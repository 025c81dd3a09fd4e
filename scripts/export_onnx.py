"""Export the image side of a trained run as ONNX, and measure how far its logits are from PyTorch's.

    python scripts/export_onnx.py output/first -o first.onnx [--images photos]

The file maps normalised RGB images, (batch, 3, H, H), to logits, (batch, classes): tower, prompts, stage readouts and
classifier are folded in, blocks that no logit depends on are left out, and so is a distribution's own head (DUAL.HEADS dual).
Its metadata hold input size, mean, std, interpolation, class names and the temperature that the logits are divided by before
a softmax.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clip_ext.console import accept_any_text  # noqa: E402
from clip_ext.files import replacing  # noqa: E402
from trainers.config_merge import Setting  # noqa: E402
from trainers.prediction.files import find_images  # noqa: E402
from trainers.prediction.run import TrainedRun, load_trainer, read_run  # noqa: E402

INPUT, OUTPUT, OPSET = "images", "logits", 18
TOLERANCE = 1e-3  # of the largest logit; more is no rounding any more
RANDOM_SIZES = (1, 3)  # batches of another size than the traced one
MAX_REAL = 32  # images of --images that are compared

Runner = Callable[[Tensor], Tensor]


class ImageSide(nn.Module):
    """A CLIP trainer's own inference, images -> logits, with its modules as parts so that their weights are exported.

    Args:
        trainer: Loaded, in evaluation mode; its parameters are frozen here.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self.infer = trainer.model_inference
        parts = {name: part for name, part in vars(trainer).items() if isinstance(part, nn.Module)}
        self.parts = nn.ModuleDict({"visual": trainer.clip.model.visual, **parts}).requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.infer(images).as_subclass(Tensor)


def export(trainer: Any, run: TrainedRun, path: Path) -> None:
    """Write the ONNX file of a loaded trainer, with its metadata.

    Args:
        trainer: On the CPU, in fp32.
        run: Its run.
        path: Of the file.
    """
    import onnx

    size = trainer.clip.info.image_size_px
    with warnings.catch_warnings(), plain_attention():
        # The tracer warns of every check on a shape. torch.export, its successor, cannot follow logits that carry facts.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            ImageSide(trainer),
            (torch.zeros(2, 3, size, size),),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {key: str(value) for key, value in describe(trainer, run).items()})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Keep torch from fusing attention into one operator of its own, which ONNX does not know."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@torch.no_grad()
def describe(trainer: Any, run: TrainedRun) -> dict[str, Any]:
    """Return what a user of the file has to know; lists as JSON."""
    info = trainer.clip.info
    probe = trainer.model_inference(torch.zeros(1, 3, info.image_size_px, info.image_size_px))
    return {
        "trainer": run.cfg.TRAINER.NAME,
        "backbone": info.name,
        "classes": json.dumps(list(run.classes)),
        "image_size_px": info.image_size_px,
        "mean": json.dumps(list(info.mean)),
        "std": json.dumps(list(info.std)),
        "interpolation": info.interpolation,
        "temperature": getattr(probe, "facts", {}).get("temperature", 1.0),
    }


def find_runner(path: Path) -> tuple[str, Runner]:
    """Return the name of what runs ONNX here (onnxruntime, else onnx's slow reference), and images -> logits."""
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = f"onnxruntime {onnxruntime.__version__}"
    else:
        from onnx.reference import ReferenceEvaluator

        session, name = ReferenceEvaluator(str(path)), "onnx's reference evaluator"
    return name, lambda images: torch.from_numpy(np.asarray(session.run([OUTPUT], {INPUT: images.numpy()})[0]))


def batches(trainer: Any, images: list[str] | None) -> dict[str, list[Tensor]]:
    """Return batches to compare by name: random ones, and single real images if there are any."""
    size, preprocess = trainer.clip.info.image_size_px, trainer.clip.preprocess
    generator = torch.Generator().manual_seed(0)
    found = {"random": [torch.randn(count, 3, size, size, generator=generator) for count in RANDOM_SIZES]}
    if images:
        found["real"] = []
        for path in find_images(images).paths[:MAX_REAL]:
            with Image.open(path) as image:
                found["real"].append(preprocess(image.convert("RGB"))[None])
    return found


@torch.no_grad()
def compare(trainer: Any, runner: Runner, groups: dict[str, list[Tensor]]) -> tuple[dict[str, float], float]:
    """Return the largest absolute difference of a logit per group, and the largest absolute logit of all."""
    differences, largest = {}, 0.0
    for name, group in groups.items():
        differences[name] = 0.0
        for images in group:
            expected = trainer.model_inference(images).as_subclass(Tensor)
            differences[name] = max(differences[name], (runner(images) - expected).abs().max().item())
            largest = max(largest, expected.abs().max().item())
    return differences, largest


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder of a training")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write (.onnx)")
    parser.add_argument("--images", nargs="+", metavar="PATH", help="real images to compare as well: files and folders")
    parser.add_argument("--load-epoch", type=int, metavar="N", help="weights after epoch N; default as in predict.py")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="override the run")
    args = parser.parse_args(arguments)
    accept_any_text()
    if args.output.suffix != ".onnx":
        parser.error(f"the output is {args.output}; its name must end in .onnx")
    if importlib.util.find_spec("onnx") is None:
        sys.exit("error: the package onnx is missing; pip install onnx onnxruntime")
    try:
        run_export(args)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


def run_export(args: argparse.Namespace) -> None:
    """Export, compare, and keep the file only if it says what the run says."""
    settings = [Setting(key, value, "command line") for key, value in args.set]
    run = read_run(args.run, settings, device="cpu", full_precision=True)
    trainer, checkpoint = None, ""
    if not run.captions_images:  # a captioner's CLIP is the published one
        with contextlib.redirect_stdout(sys.stderr):  # the engine's lines
            trainer, checkpoint = load_trainer(run, args.load_epoch)
    if not hasattr(trainer, "clip"):
        raise ValueError(f"{run.cfg.TRAINER.NAME} has no CLIP image side to export")
    groups = batches(trainer, args.images)
    with replacing(args.output) as temporary:
        export(trainer, run, temporary)
        name, runner = find_runner(temporary)
        differences, largest = compare(trainer, runner, groups)
        if max(differences.values()) > TOLERANCE * max(largest, 1.0):
            raise ValueError(f"logits of the exported file differ by {differences}, more than rounding; no file was written")
    counts = {group: sum(len(images) for images in tensors) for group, tensors in groups.items()}
    parts = ", ".join(f"{difference:.2g} on {counts[group]} {group} images" for group, difference in differences.items())
    size_mb = args.output.stat().st_size / 1e6
    print(f"{args.output}: {run.cfg.TRAINER.NAME}, {checkpoint or 'nothing trained'}, {size_mb:.1f} MB")
    print(f"maximal difference of a logit from PyTorch: {parts} ({name}; largest logit {largest:.3g})")
    if "real" not in groups:
        print("no real images were compared; give some with --images")


if __name__ == "__main__":
    main()
