"""Convert one of OpenAI's CLIP archives (.pt, TorchScript) to safetensors, which this package can load.

    python scripts/convert_openai_clip.py ViT-B-32.pt ViT-B-32.safetensors
    python train.py ... --backbone ViT-B-32.safetensors

TorchScript archives contain programs. Convert only files that you trust: the known SHA-256 of OpenAI's files is the
folder name in their download address.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clip_ext.weights import clean_state_dict, describe_state_dict  # noqa: E402


def convert(source: Path, target: Path) -> dict[str, int]:
    """Write the weights of a TorchScript CLIP as safetensors, in the precision they are stored in.

    Returns:
        Sizes of the model.
    Raises:
        FileNotFoundError: If there is no `source`.
        ValueError: If it is not a TorchScript archive, or not a CLIP ViT with a CLS token.
    """
    if not source.is_file():
        raise FileNotFoundError(f"no file at {source}")
    try:
        archive = torch.jit.load(str(source), map_location="cpu")
    except RuntimeError as error:
        raise ValueError(f"{source} is not a TorchScript archive; only those need conversion: {error}") from error
    state = clean_state_dict(archive.state_dict(), source)
    sizes = describe_state_dict(state)
    unfinished = target.with_name(f"{target.name}.part")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, unfinished)
    unfinished.replace(target)
    return sizes


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="OpenAI's archive (.pt)")
    parser.add_argument("target", type=Path, help="file to write (.safetensors)")
    options = parser.parse_args(arguments)
    if options.target.suffix != ".safetensors":
        parser.error(f"the target is {options.target}; its name must end in .safetensors")
    try:
        sizes = convert(options.source, options.target)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"wrote {options.target}: {', '.join(f'{name} {size}' for name, size in sizes.items())}\n")


if __name__ == "__main__":
    main()
