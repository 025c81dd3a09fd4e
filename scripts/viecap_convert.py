"""Read a pickle of the original ViECap, once, and write what it holds as JSON or safetensors.

    python scripts/viecap_convert.py entities coco_with_entities.pickle -o captions.jsonl        # DATASET.CAPTION.TRAIN
    python scripts/viecap_convert.py texts coco_texts_features_ViT-B32.pickle -o texts           # a folder
    python scripts/viecap_convert.py images test_captions_ViT-B32.pickle -o images               # a folder
    python scripts/viecap_convert.py vocabulary coco_embeddings_with_ensemble.pickle -o coco.safetensors --names coco.txt
    python scripts/viecap_convert.py visual_genome all_objects_attributes_relationships.pickle -o visual_genome.json
    python scripts/viecap_convert.py flickr_style train.p -o train.json                          # beside the captions
    python scripts/viecap_convert.py weights coco_prefix-0014.pt -o coco_prefix-014.safetensors
    python scripts/viecap_convert.py weights coco_prefix-0014.pt -o output/coco --config-file configs/trainers/viecap/coco.yaml

A pickle is a program. This one is the only reader of pickles here, and it runs nothing: each kind has a short list of names
that a file may ask for, and anything else stops the conversion. The last line makes a run folder that predict.py reads; KEY
VALUE pairs may follow.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clip_ext.console import accept_any_text  # noqa: E402
from clip_ext.files import replacing  # noqa: E402
from clip_ext.folders import replacing_folder  # noqa: E402

Globals = Mapping[tuple[str, str], Callable[..., Any]]

SHOWN = 5  # faulty rows in a message
# What unpickling raises for bytes that are no pickle, or one of something else.
UNREADABLE = (
    pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError, RuntimeError,
    OverflowError, MemoryError,
)  # fmt: skip


class Refused(ValueError):
    """A file asks for something that its kind does not need."""


# Reading --------------------------------------------------------------------------------------------------------------------


class AllowListUnpickler(pickle.Unpickler):
    """Knows the names of an allow-list and nothing else.

    Args:
        file: Open for reading.
        allowed: (module, name) -> what stands for it. Never the real object where that could be changed.
    """

    def __init__(self, file: BinaryIO, allowed: Globals) -> None:
        super().__init__(file)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Return what stands for a global.

        Raises:
            Refused: If it is not on the list.
        """
        module = {"__builtin__": "builtins"}.get(module, module)  # Python 2's name
        if (module, name) not in self._allowed:
            known = ", ".join(".".join(pair) for pair in self._allowed) or "none"
            raise Refused(f"it asks for {module}.{name}; this kind of file may ask for: {known}")
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to objects outside the file."""
        raise Refused(f"it refers to an object outside itself: {pid!r:.80}")


def tensor_globals() -> Globals:
    """Return what a pickled tensor asks for. The functions are made anew, so that a file cannot change them for others."""

    def load_storage(content: bytes) -> Any:
        try:
            return torch.load(io.BytesIO(content), weights_only=True)
        except pickle.UnpicklingError as error:
            raise Refused(f"a tensor's bytes hold more than a tensor: {_first_line(error)}") from error

    def rebuild(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
        if not isinstance(storage, torch.storage.TypedStorage):
            raise Refused(f"a tensor is made of a {type(storage).__name__}; expected a storage")
        return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())

    return {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild,
        ("torch.storage", "_load_from_bytes"): load_storage,
    }


def read_pickle(path: Path, allowed: Globals) -> Any:
    """Read a pickle of a known kind.

    Raises:
        Refused: If it asks for a global that is not allowed (names it); nothing of the file has run.
        ValueError: If it is damaged.
    """
    with path.open("rb") as file:
        try:
            return AllowListUnpickler(file, allowed).load()
        except Refused as error:
            raise Refused(f"{path} is refused: {error}") from error
        except UNREADABLE as error:
            raise ValueError(f"{path} is damaged or no pickle: {type(error).__name__} {error}") from error


def _first_line(error: BaseException) -> str:
    """Return the line of torch's long message that names the global."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "GLOBAL" in line or "global" in line), lines[0] if lines else type(error).__name__)


# Checking -------------------------------------------------------------------------------------------------------------------


def is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_vector(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 1 and value.is_floating_point()


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def check_rows(rows: Any, expected: str, *columns: tuple[Callable[[Any], bool], ...]) -> list[tuple]:
    """Return rows if each has one of the given columns' forms.

    Args:
        rows: What was read.
        expected: The forms in words.
        columns: Alternative forms: a test per column.
    Raises:
        ValueError: If rows have another form (lists the first ones).
    """
    if not isinstance(rows, (list, tuple)) or not rows:
        raise ValueError(f"the file holds a {type(rows).__name__}, empty or no list; expected a list of rows {expected}")

    def fits(row: Any, tests: tuple[Callable[[Any], bool], ...]) -> bool:
        is_row = isinstance(row, (list, tuple)) and len(row) == len(tests)
        return is_row and all(test(value) for test, value in zip(tests, row, strict=True))

    wrong = [number for number, row in enumerate(rows) if not any(fits(row, tests) for tests in columns)]
    if wrong:
        shown = ", ".join(map(str, wrong[:SHOWN]))
        raise ValueError(f"{len(wrong)} of {len(rows)} rows are not {expected}: rows {shown}")
    return [tuple(row) for row in rows]


def stack(vectors: list[torch.Tensor]) -> torch.Tensor:
    """Return vectors as rows.

    Raises:
        ValueError: If their widths differ.
    """
    widths = sorted({len(vector) for vector in vectors})
    if len(widths) != 1:
        raise ValueError(f"vectors of different widths: {widths}; expected one CLIP's")
    return torch.stack(vectors)


# Kinds ----------------------------------------------------------------------------------------------------------------------


def convert_entities(args: argparse.Namespace) -> str:
    rows = check_rows(read_pickle(args.file, {}), "[[entity, ...], caption]", (is_names, is_text))
    write_rows(args.output, [{"caption": caption, "entities": entities} for entities, caption in rows])
    return f"{len(rows)} captions with entities"


def convert_texts(args: argparse.Namespace) -> str:
    found = read_pickle(args.file, tensor_globals())
    rows = check_rows(found, "[[entity, ...], caption, vector]", (is_names, is_text, is_vector))
    features = stack([vector for _, _, vector in rows])
    with replacing_folder(args.output) as folder:
        write_rows(folder / "captions.jsonl", [{"caption": caption, "entities": names} for names, caption, _ in rows])
        save_file({"feat": features}, folder / "features.safetensors")
    return f"{len(rows)} captions with vectors of width {features.shape[1]}"


def convert_images(args: argparse.Namespace) -> str:
    form = "[image, vector, [caption, ...]] or [image, split, vector, [caption, ...]]"
    of_nocaps = (is_text, is_text, is_vector, is_names)
    rows = check_rows(read_pickle(args.file, tensor_globals()), form, (is_text, is_vector, is_names), of_nocaps)
    features = stack([row[-2] for row in rows])
    listed = [{"image_id": row[0], "captions": row[-1]} | ({"split": row[1]} if len(row) == 4 else {}) for row in rows]
    with replacing_folder(args.output) as folder:
        write_json(folder / "images.json", listed)
        save_file({"feat": features}, folder / "images.safetensors")
    return f"{len(rows)} images with vectors of width {features.shape[1]}"


def convert_vocabulary(args: argparse.Namespace) -> str:
    vectors = read_pickle(args.file, tensor_globals())
    if not isinstance(vectors, torch.Tensor) or vectors.ndim != 2:
        raise ValueError(f"{args.file} holds a {type(vectors).__name__}; expected one tensor (names, width)")
    facts = {}
    if args.names is not None:
        lines = args.names.read_text(encoding="utf-8-sig").splitlines()
        names = sorted({line.strip().lower() for line in lines if line.strip()})
        if len(names) != len(vectors):
            raise ValueError(f"--names has {len(names)} different names, {args.file} {len(vectors)} vectors; expected as many")
        facts = {"names": json.dumps(names, ensure_ascii=False)}
    with replacing(args.output) as temporary:
        save_file({"embeddings": vectors.float().contiguous()}, temporary, facts)
    return f"{len(vectors)} vectors of width {vectors.shape[1]}, in the order of the sorted lower-case names"


def convert_visual_genome(args: argparse.Namespace) -> str:
    found = read_pickle(args.file, {("builtins", "set"): set})
    joint = found.get("objects", {}) if isinstance(found, dict) else {}
    names = joint.get("joint", None) if isinstance(joint, dict) else None
    if not isinstance(names, (set, list, tuple)) or not all(map(is_text, names)):
        raise ValueError(f"{args.file}: expected a dictionary whose 'objects' -> 'joint' is a set of names")
    write_json(args.output, sorted(names))
    return f"{len(names)} names of objects"


def convert_flickr_style(args: argparse.Namespace) -> str:
    names = read_pickle(args.file, {})
    if not is_names(names):
        raise ValueError(f"{args.file} holds a {type(names).__name__}; expected a list of image names")
    write_json(args.output, names)
    return f"{len(names)} names of images"


def convert_weights(args: argparse.Namespace) -> str:
    from trainers.viecap.storage.reference_weights import read_sizes, rename_reference

    try:
        state = torch.load(args.file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise Refused(f"{args.file} is refused, damaged, or no state dict: {_first_line(error)}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{args.file} holds a {type(state).__name__}; expected a state dict")
    try:
        renamed = rename_reference(state)
    except ValueError as error:
        raise ValueError(f"{args.file}: {error}") from error
    epoch = args.epoch or epoch_of(args.file.stem)
    if args.output.suffix == ".safetensors":
        from clip_ext.weights import compute_fingerprint
        from trainers.viecap.storage.weights import save_tensors

        save_tensors(renamed, args.output, {"epoch": str(epoch), "sha256": compute_fingerprint(renamed)})
    else:
        write_run(args, renamed, epoch)
    return f"{len(renamed)} tensors of {epoch} finished epochs, {read_sizes(renamed)}"


def epoch_of(stem: str) -> int:
    """Return how many epochs were finished when a file was written: its name counts from 0."""
    number = re.search(r"-(\d+)$", stem)
    if number is None:
        raise ValueError(f"{stem!r} does not end in the number of an epoch, e.g. coco_prefix-0014; give --epoch")
    return int(number[1]) + 1


def write_run(args: argparse.Namespace, state: dict[str, torch.Tensor], epoch: int) -> None:
    """Write a run folder around the weights."""
    if args.config_file is None:
        raise ValueError(f"-o {args.output} is a run folder, which needs --config-file; or name a .safetensors file")
    import train
    from trainers.runs import build_cfg
    from trainers.viecap.storage.reference_run import write_reference_run

    cfg = build_cfg(train.parse_args(["--config-file", str(args.config_file), *args.opts]))
    write_reference_run(args.output, state, cfg, epoch)


# Writing --------------------------------------------------------------------------------------------------------------------


def write_json(path: Path, content: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=0), encoding="utf-8")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


KINDS: dict[str, tuple[Callable[[argparse.Namespace], str], str]] = {
    "entities": (convert_entities, ".jsonl"),
    "texts": (convert_texts, ""),
    "images": (convert_images, ""),
    "vocabulary": (convert_vocabulary, ".safetensors"),
    "visual_genome": (convert_visual_genome, ".json"),
    "flickr_style": (convert_flickr_style, ".json"),
    "weights": (convert_weights, ""),
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("kind", choices=KINDS, help="what the file holds")
    add("file", type=Path, help="pickle, or .pt of weights")
    add("-o", "--output", type=Path, required=True, help="file to write (texts, images: folder; weights: either)")
    add("--names", type=Path, metavar="FILE", help="vocabulary: its names, one per line, in any order")
    add("--epoch", type=int, metavar="E", help="weights: finished epochs, where the name does not end in the epoch")
    add("--config-file", type=Path, metavar="YAML", help="weights: settings of the run folder")
    add("opts", nargs="*", metavar="KEY VALUE", help="weights: further settings of the run folder")
    args = parser.parse_intermixed_args(arguments)
    suffix = KINDS[args.kind][1]
    if suffix and args.output.suffix != suffix:
        parser.error(f"-o is {args.output}; the name of {args.kind} must end in {suffix}")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Run one command line."""
    accept_any_text()
    args = parse_args(arguments)
    try:
        if not args.file.is_file():
            raise FileNotFoundError(f"no file {args.file}")
        args.output.parent.mkdir(parents=True, exist_ok=True)
        print(f"{args.output}: {KINDS[args.kind][0](args)}")
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
