"""Run the training loop of a checkout of jmiemirza/LaFTer as it is, one step per request.

The checkout is imported where it lies; this file only prepares what the import expects of its surroundings. Used by
`benchmarks.lafter_reference`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import sys
import time
import types
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import packaging.version
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.timing import wait_for
from dassl_host import ensure_dassl

LR = 5e-4  # as in our published.yaml and in the checkout's scripts
PACKAGES = ("clip", "datasets", "trainers", "utils")
GRADIENTS_FILE = "gradients_reference.safetensors"  # of the first step, beside the start file


class Feed:
    """Loader for the checkout's loop: one batch per request. The time until the loop wants the next batch is its step."""

    def __init__(self, pipe: Connection, views: list[Tensor], device: str) -> None:
        self.losses: list[Tensor] = []
        self._pipe, self._views, self._device = pipe, views, device

    def __len__(self) -> int:
        return 1  # for the loop's log line

    def __iter__(self) -> Iterator[dict[str, list[Tensor]]]:
        self._pipe.send("ready")
        while self._pipe.recv() is not None:
            wait_for(self._device)
            start = time.perf_counter()
            yield {"img": self._views}
            wait_for(self._device)
            self._pipe.send((time.perf_counter() - start, self.losses[-1].item()))


def serve_checkout(pipe: Connection, start_file: Path, args: argparse.Namespace) -> None:
    """Import the checkout, give its model the common start, and run its loop on what the pipe asks for.

    Args:
        pipe: Any text asks for a step, answered with (seconds, loss); None ends the loop.
        start_file: Weights and views.
        args: checkout (folder), threads, device (`cpu` or `cuda`).
    """
    torch.set_num_threads(args.threads)
    os.chdir(start_file.parent)  # it writes into the working folder
    start = load_file(start_file)
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        script = import_checkout(args.checkout, args.device)
        model = build_model(script, start, args.device)
        feed = Feed(pipe, [start["weak"], start["strong"]], args.device)
        record_step(script, model, feed.losses, start_file.parent / GRADIENTS_FILE)
        settings = argparse.Namespace(
            txt_epochs=0, epochs=1, lr=LR, scheduler="cosine", mile_stones=None, print_freq=sys.maxsize
        )
        script.train_lafter(settings, model, feed, [])


def import_checkout(checkout: Path, device: str) -> types.ModuleType:
    """Import the checkout's main script and what it imports; returns the script's module."""
    ensure_dassl()
    for name in PACKAGES:  # bound to the checkout, whatever else bears these names
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name)]
        sys.modules[name] = package
    if importlib.util.find_spec("pkg_resources") is None:  # gone from recent setuptools
        sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")
        sys.modules["pkg_resources"].packaging = packaging
    if device == "cpu":
        torch.Tensor.cuda = nn.Module.cuda = lambda self, *args, **kwargs: self
    spec = importlib.util.spec_from_file_location("checkout_script", checkout / "LaFTer.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def build_model(script: types.ModuleType, start: dict[str, Tensor], device: str) -> nn.Module:
    """Build the checkout's model on the weights of the start."""
    weights = {name.removeprefix("clip."): value for name, value in start.items() if name.startswith("clip.")}
    sizes = {name: torch.tensor(0) for name in ("input_resolution", "context_length", "vocab_size")}  # it deletes these
    clip = importlib.import_module("clip.model").build_model(weights | sizes).float()
    clip.load_state_dict(weights)
    classes = [str(number) for number in range(len(start["classifier"]))]
    model = script.lafter_uft.LaFTerUFT(clip, classes, templates=["{}"], device=device, txt_cls="zero_shot")
    with torch.no_grad():
        model.prompt_embeddings.copy_(start["prompts"])
        model.adapter[0].weight.copy_(start["classifier"])
    return model


def record_step(script: types.ModuleType, model: nn.Module, losses: list[Tensor], gradients_file: Path) -> None:
    """Let the checkout's loss function note its values, and its optimizer write the gradients of the first step."""
    set_up = script.setup_lafter_training_utils

    def set_up_and_record(*args: object) -> tuple:
        optimizer, scheduler, criterion = set_up(*args)
        optimizer.register_step_pre_hook(lambda *_: save_gradients(model, gradients_file))

        def recorded(*inputs: Tensor) -> Tensor:
            loss = criterion(*inputs)
            losses.append(loss.detach())
            return loss

        return optimizer, scheduler, recorded

    script.setup_lafter_training_utils = set_up_and_record


def save_gradients(model: nn.Module, path: Path) -> None:
    """Write the gradients that the loss reached, under our names, unless an earlier step has."""
    if path.exists():
        return
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    save_file({our_name(name): grad.detach().cpu().clone().contiguous() for name, grad in found.items()}, path)


def our_name(name: str) -> str:
    """Translate the checkout's name of a trainable parameter to the one in our `adapt`."""
    if name == "prompt_embeddings":
        return "prompts"
    if name.startswith("adapter."):
        return "classifier.weight"
    norm, kind = name.split("visual.")[-1].rsplit(".", 1)
    if norm.startswith("transformer.resblocks."):  # counted from 0 there, from 1 here
        number, norm = norm.removeprefix("transformer.resblocks.").split(".")
        norm = f"blocks_{int(number) + 1}_{norm}"
    return f"norms.{norm}.{kind}"
