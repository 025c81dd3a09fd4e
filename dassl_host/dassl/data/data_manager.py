"""From ``cfg`` to loaders: one data set, two transforms, up to four loaders of dict batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torchvision.transforms as T
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset

from dassl.data.datasets import build_dataset
from dassl.data.samplers import build_sampler
from dassl.data.transforms import INTERPOLATION_MODES, build_transform
from dassl.utils import read_image

if TYPE_CHECKING:
    from PIL import Image
    from yacs.config import CfgNode

    from dassl.data.datasets import Datum

Transform = Callable[["Image.Image"], Any]


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Transform | Sequence[Transform] | None = None,
    is_train: bool = True,
    dataset_wrapper: type[DatasetWrapper] | None = None,
) -> DataLoader:
    """Build a loader over `data_source`.

    The last, smaller batch is dropped in training, unless it is the only one. Memory is pinned on CUDA.

    Args:
        cfg: Full config.
        sampler_type: Name of a sampler, see `dassl.data.samplers`.
        data_source: Items to load.
        batch_size: Images per batch.
        n_domain: Domains per batch (RandomDomainSampler).
        n_ins: Images per class in a batch (RandomClassSampler).
        tfm: Transform or list of transforms, see `DatasetWrapper`.
        is_train: Whether this is a training split.
        dataset_wrapper: Class to use instead of `DatasetWrapper`.
    Raises:
        AssertionError: If the loader would yield nothing.
        ValueError: If the sampler is unknown.
    """
    # Asked before the sampler is built: torch's own refuse an empty source with a message that names no key.
    assert data_source, "The data source is empty; check DATASET.NAME, DATASET.ROOT and DATASET.NUM_SHOTS"
    sampler = build_sampler(
        sampler_type, cfg=cfg, data_source=data_source, batch_size=batch_size, n_domain=n_domain, n_ins=n_ins
    )
    wrapper = DatasetWrapper if dataset_wrapper is None else dataset_wrapper
    loader = DataLoader(
        wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )
    assert len(loader) > 0, (
        f"{sampler_type} makes no batch of {batch_size} from {len(data_source)} images; "
        "check DATALOADER.*.SAMPLER, BATCH_SIZE, N_DOMAIN and N_INS"
    )
    return loader


class DataManager:
    """The data set that ``DATASET.NAME`` names and its loaders.

    Attributes:
        dataset: The data set.
        train_loader_x: Loader of labelled training batches.
        train_loader_u: Loader of unlabelled training batches, or None.
        val_loader: Loader of validation batches, or None.
        test_loader: Loader of test batches.

    Args:
        cfg: Full config.
        custom_tfm_train: Transform(s) to use instead of the built training transform.
        custom_tfm_test: Transform(s) to use instead of the built test transform.
        dataset_wrapper: Class to use instead of `DatasetWrapper`.
    Raises:
        AssertionError: If a split that must exist yields no batch (names the split and its keys).
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Transform | Sequence[Transform] | None = None,
        custom_tfm_test: Transform | Sequence[Transform] | None = None,
        dataset_wrapper: type[DatasetWrapper] | None = None,
    ) -> None:
        self.dataset = build_dataset(cfg)
        self._num_classes = self.dataset.num_classes
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self._lab2cname = self.dataset.lab2cname

        tfm_train = _choose_transform(cfg, custom_tfm_train, is_train=True)
        tfm_test = _choose_transform(cfg, custom_tfm_test, is_train=False)
        node_u = "TRAIN_X" if cfg.DATALOADER.TRAIN_U.SAME_AS_X else "TRAIN_U"

        def build(split: str, node: str, tfm: Any) -> DataLoader:
            return _build_split_loader(cfg, self.dataset, split, node, tfm, dataset_wrapper)

        self.train_loader_x = build("train_x", "TRAIN_X", tfm_train)
        self.train_loader_u = build("train_u", node_u, tfm_train) if self.dataset.train_u else None
        self.val_loader = build("val", "TEST", tfm_test) if self.dataset.val else None
        self.test_loader = build("test", "TEST", tfm_test)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @property
    def num_source_domains(self) -> int:
        return self._num_source_domains

    @property
    def lab2cname(self) -> dict[int, str]:
        return self._lab2cname

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Print a table of the data set's name, domains and sizes."""
        rows = [["Dataset", cfg.DATASET.NAME]]
        if cfg.DATASET.SOURCE_DOMAINS:
            rows.append(["Source", cfg.DATASET.SOURCE_DOMAINS])
        if cfg.DATASET.TARGET_DOMAINS:
            rows.append(["Target", cfg.DATASET.TARGET_DOMAINS])
        rows.append(["# classes", f"{self.num_classes:,}"])
        for split in ("train_x", "train_u", "val", "test"):
            items = getattr(self.dataset, split)
            if items or split in ("train_x", "test"):
                rows.append([f"# {split}", f"{len(items):,}"])
        print(tabulate(rows))


def _choose_transform(cfg: CfgNode, custom: Any, *, is_train: bool) -> Any:
    if custom is None:
        return build_transform(cfg, is_train=is_train)
    print(f"* Using custom transform for {'training' if is_train else 'testing'}")
    return custom


def _build_split_loader(
    cfg: CfgNode, dataset: Any, split: str, node_name: str, tfm: Any, dataset_wrapper: type[DatasetWrapper] | None
) -> DataLoader:
    """Build the loader of one split from the keys of ``DATALOADER.<node_name>``."""
    node = cfg.DATALOADER[node_name]
    is_train = split.startswith("train")
    balance = {"n_domain": node.N_DOMAIN, "n_ins": node.N_INS} if is_train else {}
    try:
        return build_data_loader(
            cfg,
            sampler_type=node.SAMPLER,
            data_source=getattr(dataset, split),
            batch_size=node.BATCH_SIZE,
            tfm=tfm,
            is_train=is_train,
            dataset_wrapper=dataset_wrapper,
            **balance,
        )
    except AssertionError as error:
        raise AssertionError(
            f"No {split} loader for DATASET.NAME {cfg.DATASET.NAME!r} (keys DATALOADER.{node_name}.*): {error}"
        ) from error


class DatasetWrapper(Dataset):
    """Turn items into dicts: ``label``, ``domain``, ``impath``, ``index`` and ``img``.

    A list of transforms yields ``img``, ``img2``, ``img3`` and so on. In training, ``DATALOADER.K_TRANSFORMS`` > 1
    applies each transform that often and yields lists. ``DATALOADER.RETURN_IMG0`` adds ``img0``, the image without
    augmentation. Without a transform ``img`` is the PIL image.

    Args:
        cfg: Full config.
        data_source: Items to wrap.
        transform: One transform, a list of them, or None.
        is_train: Whether this is a training split.
    Raises:
        ValueError: If ``K_TRANSFORMS`` > 1 in training without a transform.
    """

    def __init__(
        self,
        cfg: CfgNode,
        data_source: Sequence[Datum],
        transform: Transform | Sequence[Transform] | None = None,
        is_train: bool = False,
    ) -> None:
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise ValueError(f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but there is no transform to apply")
        self.to_tensor = _plain_transform(cfg)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        item = self.data_source[idx]
        image = read_image(item.impath)
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        if self.transform is None:
            output["img"] = image
        elif isinstance(self.transform, (list, tuple)):
            for number, transform in enumerate(self.transform, start=1):
                output["img" if number == 1 else f"img{number}"] = self._transform_image(transform, image)
        else:
            output["img"] = self._transform_image(self.transform, image)
        if self.return_img0:
            output["img0"] = self.to_tensor(image)
        return output

    def _transform_image(self, tfm: Transform, img0: Image.Image) -> Any:
        """Apply `tfm` once, or `k_tfm` times into a list."""
        if self.k_tfm == 1:
            return tfm(img0)
        return [tfm(img0) for _ in range(self.k_tfm)]


def _plain_transform(cfg: CfgNode) -> T.Compose:
    """Build the transform of ``img0``: resize, to tensor, and normalisation if the config asks for it."""
    node = cfg.INPUT
    steps = [T.Resize(node.SIZE, interpolation=INTERPOLATION_MODES[node.INTERPOLATION]), T.ToTensor()]
    if "normalize" in node.TRANSFORMS:
        steps.append(T.Normalize(mean=node.PIXEL_MEAN, std=node.PIXEL_STD))
    return T.Compose(steps)
