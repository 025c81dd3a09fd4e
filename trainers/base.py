"""What every trainer shares: `TunedTrainer` (how declared parameters train) and `CLIPTrainer` (backbone and views).

The loop, the scheduler's clock, the checkpoints and the evaluation are Dassl's. A trainer declares its trainable groups and
turns a batch into named losses; nothing else steps an optimizer.
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from dassl.data import DataManager
from dassl.data.data_manager import DatasetWrapper
from dassl.data.datasets import Datum
from dassl.engine import TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import read_image
from torch import Tensor, nn
from yacs.config import CfgNode

from clip_ext.loader import LoadedClip, available_models, load_clip
from trainers import precision
from trainers.config import problems_with_choices
from trainers.device_views import DeviceView, build_square_view, problems_with_kornia
from trainers.facts import FactTensor, Scores, Target
from trainers.image_cache import ImageCache
from trainers.schedules import build_schedule, resolve_schedule
from trainers.views import RECIPES, View, build_strong_view

logger = logging.getLogger(__name__)

__all__ = ["CLIPTrainer", "ExtrasWrapper", "FactTensor", "ParameterGroup", "Scores", "Target", "TunedTrainer", "is_labelled"]


class ExtrasWrapper(DatasetWrapper):
    """Dassl's data set wrapper that also copies an item's `extras` into the batch and may read from an image cache.

    `extras` is the only thing that our data sets and trainers agree on: numbers and strings as they are, tuples of numbers as
    float32 tensors. `read` (path -> RGB image) may be replaced before the first batch.
    """

    read: Callable[[str], Any] = staticmethod(read_image)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data_source[index]
        row = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": index}
        image = self.read(item.impath)
        views = self.transform if isinstance(self.transform, (list, tuple)) else [self.transform]
        for number, view in enumerate(views, start=1):
            row["img" if number == 1 else f"img{number}"] = view(image)
        for name, value in getattr(item, "extras", {}).items():
            row[name] = torch.tensor(value, dtype=torch.float32) if isinstance(value, (tuple, list)) else value
        return row


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that train alike.

    Attributes:
        name: For the log and the optimizer's state.
        parameters: Leaves, each in one group only.
        lr_mult: Multiplier of `OPTIM.LR`.
        weight_decay: Absolute.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    lr_mult: float
    weight_decay: float


class TunedTrainer(TrainerX):
    """Base of all trainers: declared groups -> Dassl optimizer and scheduler, precision, accumulation, clipping, guards."""

    needs_checkpoint = True  # --eval-only without --model-dir is an error
    model_name = "adapt"  # under which Dassl registers and saves the trainable module

    @property
    def settings(self) -> CfgNode:
        """This trainer's own config node."""
        return self.cfg.TRAINER[self.node_name()]

    @classmethod
    def node_name(cls) -> str:
        """Name of the config node: the class name in upper case, Dassl's rule."""
        return cls.__name__.upper()

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: One for all problems found.
        """
        problems = self.config_problems(cfg)
        if problems:
            raise ValueError("\n".join([f"{type(self).__name__}: {len(problems)} problem(s) in the config", *problems]))

    def config_problems(self, cfg: CfgNode) -> list[str]:
        """Return one message per problem; children add theirs."""
        node, name = cfg.TRAINER[self.node_name()], f"TRAINER.{self.node_name()}"
        problems = problems_with_choices(node, name)
        problems += precision.problems_with_precision(node.PREC, f"{name}.PREC", use_cuda=cfg.USE_CUDA)
        for key, expected in (("K_TRANSFORMS", 1), ("RETURN_IMG0", False)):
            if cfg.DATALOADER[key] != expected:
                problems.append(
                    f"DATALOADER.{key} is {cfg.DATALOADER[key]}; expected {expected}: views are the trainer's (AUGMENT)"
                )
        return problems

    def register_trainables(self, adapt: nn.Module, groups: Sequence[ParameterGroup]) -> None:
        """Build optimizer and scheduler from the declared groups and register the trainable module with Dassl.

        Args:
            adapt: Holds exactly the trainable parameters; they become fp32 leaves that require gradients.
            groups: Together they cover `adapt`.
        Raises:
            ValueError: If the groups and `adapt` do not hold the same parameters.
        """
        _check_cover(adapt, groups)
        adapt.requires_grad_(True)
        self.adapt, self.groups = adapt, list(groups)
        self.batch_idx, self.num_batches = 0, len(self.train_loader_x)
        base_lr = self.cfg.OPTIM.LR
        self.optim = build_optimizer(
            adapt,
            self.cfg.OPTIM,
            [
                {"params": list(g.parameters), "lr": base_lr * g.lr_mult, "weight_decay": g.weight_decay, "name": g.name}
                for g in groups
            ],
        )
        self.sched = self._build_scheduler()
        self.register_model(self.model_name, adapt, self.optim, self.sched)
        self._log_groups()
        self._gradients_checked = False
        self.prec = precision.resolve_precision(self.settings.PREC, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type) if self.prec in ("amp", "fp16") else None

    def _build_scheduler(self) -> torch.optim.lr_scheduler.LRScheduler:
        node = self.settings
        name = resolve_schedule(node.SCHEDULER, f"TRAINER.{self.node_name()}.SCHEDULER")
        if name == "dassl":
            return build_lr_scheduler(self.optim, self.cfg.OPTIM)
        steps = 1 if node.SCHEDULER_STEP == "epoch" else -(-self.num_batches // node.GRAD_ACCUM)
        return build_schedule(
            self.optim, name, warmup_epochs=node.WARMUP_EPOCHS, max_epochs=self.cfg.OPTIM.MAX_EPOCH, steps_per_epoch=steps
        )

    def _log_groups(self) -> None:
        for group in self.groups:
            count = sum(p.numel() for p in group.parameters)
            logger.info(
                "Trainable: %s, %s numbers, lr x %g, weight decay %g",
                group.name,
                f"{count:,}",
                group.lr_mult,
                group.weight_decay,
            )
        logger.info("Trainable in all: %s numbers", f"{sum(p.numel() for p in self.adapt.parameters()):,}")

    def autocast(self) -> Any:
        """Return the context in which the towers run."""
        return precision.autocast(self.device, precision.autocast_dtype(self.prec))

    @abstractmethod
    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Return the named, weighted losses of a parsed batch; their sum is minimised."""

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """Run one step of Dassl's loop; returns what its meters show."""
        losses = self.compute_losses(self.parse_batch_train(batch))
        total = torch.stack(list(losses.values())).sum()
        self._guard_finite(total, losses, batch)
        self.model_backward_and_update(total)
        if self.settings.SCHEDULER_STEP == "epoch" and self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        parts = {name: value.item() for name, value in losses.items()} if len(losses) > 1 else {}
        return {"loss": total.item(), **parts}

    def _guard_finite(self, total: Tensor, losses: Mapping[str, Tensor], batch: dict) -> None:
        if torch.isfinite(total):
            return
        parts = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
        paths = "\n".join(str(path) for path in batch.get("impath", []))
        raise FloatingPointError(f"Loss is infinite or NaN! Parts: {parts}. Images of the batch:\n{paths}")

    def _window(self) -> tuple[int, int]:
        """Return (first batch, number of batches) of the accumulation window at work; an epoch's last may be short."""
        size = self.settings.GRAD_ACCUM
        first = self.batch_idx - self.batch_idx % size
        return first, min(size, self.num_batches - first)

    def model_zero_grad(self, names: Sequence[str] | None = None) -> None:
        """Clear gradients at the start of an accumulation window."""
        if self.batch_idx == self._window()[0]:
            super().model_zero_grad(names)

    def model_backward(self, loss: Tensor) -> None:
        """Backpropagate the mean over the accumulation window, scaled for fp16."""
        self.detect_anomaly(loss)
        loss = loss / self._window()[1]
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def model_update(self, names: Sequence[str] | None = None) -> None:
        """Step the optimizer at the end of an accumulation window, after clipping."""
        first, size = self._window()
        if self.batch_idx + 1 < first + size:
            return
        self._check_gradients()
        if self.scaler is not None:
            self.scaler.unscale_(self.optim)
        if self.settings.MAX_GRAD_NORM:
            nn.utils.clip_grad_norm_(self.adapt.parameters(), self.settings.MAX_GRAD_NORM)
        if self.scaler is None:
            super().model_update(names)
        else:
            self.scaler.step(self.optim)
            self.scaler.update()
        self.after_update()
        if self.settings.SCHEDULER_STEP == "update":
            self.update_lr()

    def after_update(self) -> None:
        """Do what follows every optimizer step; nothing here."""

    def _check_gradients(self) -> None:
        """After the first backward pass: a parameter that is to train, but has no gradient, is a wiring fault."""
        if self._gradients_checked:
            return
        self._gradients_checked = True
        missing = [name for name, p in self.adapt.named_parameters() if p.requires_grad and p.grad is None]
        if missing:
            raise RuntimeError(f"declared trainable, but the loss does not reach: {', '.join(missing)}")

    def check_gradients_again(self) -> None:
        """Check at the next update once more; for trainers that let further parameters train."""
        self._gradients_checked = False

    def extra_state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside weights, optimizer and scheduler; saved by Dassl's checkpoint."""
        return {} if self.scaler is None else {"scaler": self.scaler.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` returned."""
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])

    def before_train(self) -> None:
        """Check the data, then Dassl's part: resume and open the writer.

        Raises:
            ValueError: One for all problems found.
        """
        problems = self.data_problems()
        if problems:
            raise ValueError("\n".join([f"{type(self).__name__}: {len(problems)} problem(s) with the data", *problems]))
        super().before_train()

    def data_problems(self) -> list[str]:
        """Return one message per reason why this data set cannot be trained on; children add theirs."""
        data, problems = self.dm.dataset, []
        tested = {item.impath for item in data.test}
        for name, items in (("train", data.train_x), ("val", data.val or [])):
            shared = [item.impath for item in items if item.impath in tested and item.label >= 0]
            if shared:
                problems.append(f"{len(shared)} labelled image(s) are in both {name} and test, e.g. {shared[0]}")
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not is_labelled(data.val or []):
            problems.append("TEST.FINAL_MODEL is 'best_val', but the data set has no val split with labels; expected last_step")
        return problems


def is_labelled(items: Sequence[Datum]) -> bool:
    """Whether any item has a label; -1 stands for none."""
    return any(item.label >= 0 for item in items)


def _check_cover(adapt: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    """Raise unless every parameter of `adapt` is in exactly one group, and nothing else is."""
    names = {id(p): name for name, p in adapt.named_parameters()}
    declared = [id(p) for group in groups for p in group.parameters]
    missing = [name for key, name in names.items() if key not in declared]
    if missing or len(declared) != len(set(declared)) or set(declared) - set(names):
        raise ValueError(f"the trainable groups and the module differ; in no group: {missing or 'none'}")


class CLIPTrainer(TunedTrainer):
    """Trainer with a frozen CLIP: its preprocessing makes the views, its towers are never registered or copied."""

    def config_problems(self, cfg: CfgNode) -> list[str]:
        """See `TunedTrainer`."""
        problems = super().config_problems(cfg)
        node = cfg.TRAINER[self.node_name()]
        if not cfg.MODEL.BACKBONE.NAME:
            names = ", ".join(available_models())
            problems.append(
                f"MODEL.BACKBONE.NAME (--backbone) is empty; expected a CLIP: {names}, or a path as in clip_ext/loader.py"
            )
        if node.get("AUGMENT_DEVICE") == "gpu":
            problems += problems_with_kornia(f"TRAINER.{self.node_name()}.AUGMENT_DEVICE")
        if "AUGMENT_RECIPE" in node and node.AUGMENT_RECIPE not in RECIPES:
            problems.append(
                f"TRAINER.{self.node_name()}.AUGMENT_RECIPE is {node.AUGMENT_RECIPE!r}; expected one of {', '.join(RECIPES)}"
            )
        return problems

    def load_backbone(self) -> LoadedClip:
        """Load the CLIP that `MODEL.BACKBONE.NAME` names, in fp32, frozen, on the trainer's device."""
        return load_clip(self.cfg.MODEL.BACKBONE.NAME, device=self.device)

    def train_views(self) -> View | list[View]:
        """Return the transform(s) of the training loader; the weak view unless a child says otherwise."""
        return self.clip.preprocess

    def build_data_loader(self) -> None:
        """Load the backbone and build Dassl's loaders around its preprocessing."""
        self.clip = self.load_backbone()
        self.clip.model.requires_grad_(False).eval()
        if torch.cuda.device_count() > 1:
            logger.info("Several GPUs found; the first one is used")
        # Dassl's own wrapper arguments stay as they are, so upstream's DataManager works as well as the bundled one.
        self.dm = DataManager(
            self.cfg, custom_tfm_train=self.train_views(), custom_tfm_test=self.clip.preprocess, dataset_wrapper=ExtrasWrapper
        )
        self.train_loader_x, self.train_loader_u = self.dm.train_loader_x, self.dm.train_loader_u
        self.val_loader, self.test_loader = self.dm.val_loader, self.dm.test_loader
        self.num_classes, self.lab2cname = self.dm.num_classes, self.dm.lab2cname
        self.num_source_domains = self.dm.num_source_domains

    def strong_view(self) -> View:
        """Return the loader's part of the strong view that `AUGMENT_RECIPE` names, for this backbone."""
        info, node = self.clip.info, self.settings
        look = {"size_px": info.image_size_px, "mean": info.mean, "std": info.std}
        if node.AUGMENT_DEVICE == "gpu":
            self._device_view = DeviceView(node.AUGMENT_RECIPE, **look).to(self.device)
            return build_square_view(info.image_size_px)
        return build_strong_view(node.AUGMENT_RECIPE, **look)

    def finish_strong(self, images: Tensor) -> Tensor:
        """Return strong views, (B, 3, H, W), on the device, from what the loader made of them."""
        images = images.to(self.device)
        return self._device_view(images) if self.settings.AUGMENT_DEVICE == "gpu" else images

    def cache_images(self) -> None:
        """Put a shared cache in front of the training images if `CACHE_IMAGES` asks for it."""
        if self.settings.CACHE_IMAGES == "none":
            return
        paths = [item.impath for item in self.dm.dataset.train_x]
        cache = ImageCache(paths, side_px=self.settings.CACHE_SIDE, max_gb=self.settings.CACHE_MAX_GB)
        self.train_loader_x.dataset.read = cache

    @property
    def classnames(self) -> list[str]:
        """Class names in the order of the labels."""
        return [self.lab2cname[label] for label in range(self.num_classes)]

    def parse_batch_test(self, batch: dict) -> tuple[Tensor, Target]:
        """Return (weak view (B, 3, H, W), labels with the facts that `Target` names) on the device."""
        facts = {"index": batch["index"], "impath": batch["impath"]}
        facts |= {name: batch[name].to(self.device) for name in ("distribution", "has_distribution") if name in batch}
        return batch["img"].to(self.device), Target.of(batch["label"].to(self.device), **facts)

    def test(self, split: str | None = None) -> float | None:
        """Evaluate as Dassl does; a split whose labels are all -1 is skipped, and None returned."""
        split = split or self.cfg.TEST.SPLIT
        items = self.dm.dataset.val if split == "val" and self.val_loader is not None else self.dm.dataset.test
        if is_labelled(items):
            return super().test(split)
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(item.impath)) for item in items])
        logger.info(
            "Test skipped: no image of the *%s* split has a label. Predictions come from\n"
            "python predict.py --model-dir %s --input %s --output predictions.csv",
            split, self.cfg.OUTPUT_DIR, folder,
        )  # fmt: skip
        return None
