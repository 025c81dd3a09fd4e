"""CLIP features of captions and images: encoding in large batches, and the table of image features on disk."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip_ext import text_encoding
from clip_ext.file_hashes import hash_file
from trainers.viecap.caption_store.store_files import Key, StoreDamaged, open_sealed, write_sealed

if TYPE_CHECKING:
    from clip_ext.loader import LoadedClip

logger = logging.getLogger(__name__)

KIND = "images"
CHUNK = 16_384  # texts between two lines of progress; sorting by length works within them
TEXT_BATCH = 512

Transform = Callable[[Image.Image], Tensor]


def encode_texts(clip: LoadedClip, texts: Sequence[str], batch: int = TEXT_BATCH) -> Tensor:
    """Encode captions in batches of similar length.

    Args:
        clip: Its text tower runs where the model lies.
        texts: N captions; what exceeds CLIP's context is cut.
        batch: Texts per forward, >= 1.
    Returns:
        As the text tower returns them, not normalised, (N, E), fp16, on the CPU.
    """
    parts = []
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        parts.append(text_encoding.encode_texts(clip, chunk, batch=batch, normalise=False).half())
        if len(texts) > CHUNK:
            logger.info("text features: %d of %d captions", start + len(chunk), len(texts))
    return torch.cat(parts)


class _Pictures(Dataset):
    """Preprocessed images; an unreadable one is the words of its error."""

    def __init__(self, paths: Sequence[str], transform: Transform) -> None:
        self.paths, self.transform = list(paths), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            with Image.open(self.paths[index]) as image:
                return self.transform(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            return f"{self.paths[index]}: {error}"


def encode_images(
    clip: LoadedClip, paths: Sequence[str], *, batch: int = 64, workers: int = 0, transform: Transform | None = None
) -> Tensor:
    """Encode image files.

    Args:
        clip: Its image tower runs where the model lies.
        paths: N files.
        batch: Images per forward, >= 1.
        workers: Processes that decode.
        transform: RGB picture -> (3, H, W); None: the CLIP's own preprocessing.
    Returns:
        As the image tower returns them, not normalised, (N, E), fp16, on the CPU.
    Raises:
        ValueError: If files cannot be read (names them all, up to ten).
    """
    weight = next(clip.model.visual.parameters())
    loader = DataLoader(_Pictures(paths, transform or clip.preprocess), batch_size=batch, num_workers=workers, collate_fn=list)
    features, faults = [torch.empty(0, clip.info.embed_dim, dtype=torch.float16)], []
    for pictures in loader:
        faults += [picture for picture in pictures if isinstance(picture, str)]
        if not faults:
            with torch.no_grad():
                encoded = clip.model.encode_image(torch.stack(pictures).to(weight.device, weight.dtype))
            features.append(encoded.half().cpu())
    if faults:
        raise ValueError(
            f"{len(faults)} of {len(paths)} images cannot be read: {'; '.join(faults[:10])}; remove them, or set "
            "DATASET.CAPTION.MISSING to skip"
        )
    return torch.cat(features)


class FeatureTable:
    """Stored features of images.

    Attributes:
        features: Of the image tower, not normalised, (N, E), fp16, mapped from the file.
        ids: Names of the images, in the same order.

    Args:
        features: See above.
        ids: Each name once.
    """

    def __init__(self, features: Tensor, ids: Sequence[str]) -> None:
        self.features, self.ids = features, tuple(ids)
        self._rows = {name: row for row, name in enumerate(self.ids)}

    def find(self, names: Sequence[str]) -> Tensor:
        """Return the features of images, (B, E), fp32.

        Raises:
            KeyError: If an image is not in the table.
        """
        missing = [name for name in names if name not in self._rows]
        if missing:
            raise KeyError(f"no stored features of {', '.join(missing[:3])}; the table holds {len(self.ids)} images")
        return self.features[torch.tensor([self._rows[name] for name in names], dtype=torch.long)].float()


def hash_images(paths: Sequence[str], names: Sequence[str]) -> str:
    """Hash the names and the bytes of images, in their order."""
    digest = hashlib.sha256()
    for path, name in zip(paths, names, strict=True):
        digest.update(f"{name}\0{hash_file(path)}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def write_images(folder: Path, key: Key, split: str, table: FeatureTable) -> None:
    """Write the features of a split; see `read_images`."""
    tensors = {f"images_{split}.safetensors": {"feat": table.features}}
    facts = {"images": len(table.ids), "width": table.features.shape[1]}
    write_sealed(folder, KIND, key, tensors=tensors, texts={f"images_{split}.json": list(table.ids)}, facts=facts)


def read_images(folder: Path, key: Key, split: str) -> FeatureTable:
    """Read the features of a split; errors as of `open_sealed`."""
    sealed = open_sealed(folder, KIND, key)
    ids: Any = sealed.texts.get(f"images_{split}.json")
    if ids is None:
        raise StoreDamaged(f"{folder} holds {', '.join(sealed.texts)}, expected images_{split}.json")
    return FeatureTable(sealed.tensors["feat"], ids)
