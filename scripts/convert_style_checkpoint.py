"""Write the weights of a style encoder's checkpoint (.pt) as safetensors, which this package reads without any risk.

    python scripts/convert_style_checkpoint.py best.pt best.safetensors
    python scripts/convert_style_checkpoint.py --trust best.pt best.safetensors
    python train.py --trainer GatedBLIP2 ... TRAINER.GATEDBLIP2.STYLE.CHECKPOINT best.safetensors

A .pt file is a pickle, and a pickle is a program. Without --trust nothing of it runs: tensors, plain values, paths and
argparse.Namespace are read, and anything else is refused by name. With --trust the program runs with your rights: use it for
files whose source you trust, and where their own code can be imported.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clip_ext.file_hashes import hash_file  # noqa: E402
from trainers.gated_blip2.style.files import write_state  # noqa: E402
from trainers.gated_blip2.style.pickles import is_torchscript, load_pickle_safely  # noqa: E402
from trainers.gated_blip2.style.states import find_state  # noqa: E402


def load_trusted(path: Path) -> Any:
    """Return what a pickle makes, having run it.

    Raises:
        ValueError: If it cannot be read, for example because its own code is not installed here.
    """
    if is_torchscript(path):
        raise ValueError(f"{path} is a TorchScript archive; store the model's state_dict in its place")
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a program may raise anything
        raise ValueError(f"{path} cannot be read: {type(error).__name__} {error}") from error


def replace_modules(content: Any) -> Any:
    """Return the content with each whole model, alone or an entry, replaced by its tensors."""
    if isinstance(content, nn.Module):
        return content.state_dict()
    if isinstance(content, Mapping):
        return {name: value.state_dict() if isinstance(value, nn.Module) else value for name, value in content.items()}
    return content


def convert(source: Path, target: Path, *, trust: bool) -> int:
    """Write the weights of a checkpoint as safetensors, under their own names and in their own types.

    Args:
        source: What torch saved: tensors alone, below a container's name, or with `trust` a whole model.
        target: The file to write.
        trust: Whether to run the pickle.
    Returns:
        How many tensors were written.
    Raises:
        FileNotFoundError: If there is no `source`.
        ValueError: If it is refused, damaged, or holds no weights.
        OSError: If writing fails.
    """
    if not source.is_file():
        raise FileNotFoundError(f"no file at {source}")
    content = replace_modules(load_trusted(source)) if trust else load_pickle_safely(source)
    state = find_state(content, source)
    write_state(target, state)
    return len(state)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="the checkpoint (.pt)")
    parser.add_argument("target", type=Path, help="file to write (.safetensors)")
    parser.add_argument("--trust", action="store_true", help="run the pickle: it can do whatever you can do")
    options = parser.parse_args(arguments)
    if options.target.suffix != ".safetensors":
        parser.error(f"the target is {options.target}; its name must end in .safetensors")
    try:
        count = convert(options.source, options.target, trust=options.trust)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"wrote {options.target}: {count} tensors, sha256 {hash_file(options.target)}\n")


if __name__ == "__main__":
    main()
