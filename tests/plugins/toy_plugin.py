"""A user's own file for `--import`: a data set of 24 one-colour pictures, and trainers that learn it in a second."""

from pathlib import Path

import torch
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from PIL import Image
from torch.nn import functional as F
from yacs.config import CfgNode

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


def extend_cfg(cfg: CfgNode) -> None:
    cfg.TRAINER.TOYTRAINER = CfgNode()
    cfg.TRAINER.TOYTRAINER.FAIL_AT = -1  # epoch, from 0, at whose start training breaks; -1 = never


@DATASET_REGISTRY.register()
class PluginColours(DatasetBase):
    """Eight pictures per split, two colours."""

    dataset_dir = "toy_colours"
    split_kind = "official"

    def __init__(self, cfg: CfgNode) -> None:
        folder = Path(cfg.DATASET.ROOT) / self.dataset_dir
        folder.mkdir(parents=True, exist_ok=True)
        splits = [[self._item(folder, split, number) for number in range(8)] for split in ("train", "val", "test")]
        super().__init__(train_x=splits[0], val=splits[1], test=splits[2])

    @staticmethod
    def _item(folder: Path, split: str, number: int) -> Datum:
        path, label = folder / f"{split}_{number}.png", number % 2
        classname = list(COLOURS)[label]
        if not path.exists():
            Image.new("RGB", (4, 4), tuple(part + number for part in COLOURS[classname])).save(path)
        return Datum(str(path), label, classname=classname)


@TRAINER_REGISTRY.register()
class ToyTrainer(TrainerX):
    """A linear layer on the mean colour."""

    needs_checkpoint = True

    def build_model(self) -> None:
        self.model = torch.nn.Linear(3, self.num_classes).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("toy", self.model, self.optim, self.sched)

    def model_inference(self, image: torch.Tensor) -> torch.Tensor:
        return self.model(image.mean(dim=(2, 3)))

    def before_epoch(self) -> None:
        if self.epoch == self.cfg.TRAINER.TOYTRAINER.FAIL_AT:
            raise RuntimeError("told to fail")

    def forward_backward(self, batch: dict) -> dict[str, float]:
        image, label, _ = self.parse_batch_train(batch)
        logits = self.model_inference(image)
        loss = F.cross_entropy(logits, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(logits, label)[0].item()}


@TRAINER_REGISTRY.register()
class ToyUntrained(TrainerX):
    """Trains nothing and can be tested as it is."""

    def build_model(self) -> None:
        self.model = torch.nn.Flatten()

    def model_inference(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean(dim=(2, 3))[:, [0, 2]]
