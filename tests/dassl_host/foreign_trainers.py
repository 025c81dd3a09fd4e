"""Four small trainers written the way CLIP repositories write theirs, for either engine.

As a command, `python foreign_trainers.py IMAGES OUTPUT RESULT` trains all of them and writes
{name: {"weights": {...}, "accuracy": float, "trained": float}} to RESULT.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.transforms as T
from runs_in_pieces import repair_engine
from torch import nn
from toy_world import N_PIXELS, SIZE_PX, make_cfg

from dassl.data import DataManager
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, set_random_seed

WIDTH = 8


class PromptLearner(nn.Module):
    """Learned context, with the fixed word vectors as buffers that must not be loaded back."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.ctx = nn.Parameter(torch.randn(2, WIDTH) * 0.02)
        self.register_buffer("token_prefix", torch.randn(n_classes, 1, WIDTH))

    def forward(self) -> torch.Tensor:
        context = self.ctx.expand(len(self.token_prefix), -1, -1)
        return torch.cat([self.token_prefix, context], dim=1)  # (C, 1 + 2, WIDTH)


class PromptedModel(nn.Module):
    """Frozen image and text encoders around a prompt learner."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.prompt_learner = PromptLearner(n_classes)
        self.image_encoder = nn.Sequential(nn.Flatten(), nn.Linear(N_PIXELS, WIDTH))
        self.text_encoder = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.image_encoder(image), dim=-1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        text = F.normalize(self.text_encoder(self.prompt_learner())[0][:, -1], dim=-1)
        return 10 * self.encode_image(image) @ text.t()


class ForeignTrainer(TrainerX):
    """What all of them repeat: two-tensor batches and a schedule stepped at the end of an epoch."""

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def finish_batch(self, loss: torch.Tensor, logits: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(logits, label)[0].item()}


@TRAINER_REGISTRY.register()
class TextPrompt(ForeignTrainer):
    """A part of the model is registered; its own `load_model` forgives the missing buffers."""

    def build_model(self) -> None:
        self.model = PromptedModel(len(self.dm.dataset.classnames))
        for name, param in self.model.named_parameters():
            param.requires_grad_("prompt_learner" in name)
        self.model.to(self.device)
        learner = self.model.prompt_learner
        self.optim = build_optimizer(learner, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", learner, self.optim, self.sched)

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        image, label = self.parse_batch_train(batch)
        logits = self.model(image)
        loss = F.cross_entropy(logits, label)
        self.model_backward_and_update(loss)
        return self.finish_batch(loss, logits, label)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        for name in self.get_model_names():
            file_name = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
            checkpoint = load_checkpoint(os.path.join(directory, name, file_name))
            weights = checkpoint["state_dict"]
            del weights["token_prefix"]
            self._models[name].load_state_dict(weights, strict=False)


@TRAINER_REGISTRY.register()
class ConditionalPrompt(ForeignTrainer):
    """One image per batch: the context is shifted by a small network of the image feature."""

    def build_model(self) -> None:
        self.model = PromptedModel(self.num_classes)
        self.meta_net = nn.Sequential(nn.Linear(WIDTH, 2), nn.ReLU(), nn.Linear(2, WIDTH))
        self.model.prompt_learner.meta_net = self.meta_net
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_(False)
        self.optim = build_optimizer(self.model.prompt_learner, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)

    def model_inference(self, image: torch.Tensor) -> torch.Tensor:
        rows = []
        for feature in self.model.encode_image(image):
            shifted = self.model.prompt_learner() + self.meta_net(feature)
            text = F.normalize(self.model.text_encoder(shifted)[0][:, -1], dim=-1)
            rows.append(10 * feature @ text.t())
        return torch.stack(rows)

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        image, label = self.parse_batch_train(batch)
        logits = self.model_inference(image)
        loss = F.cross_entropy(logits, label)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        return self.finish_batch(loss, logits, label)


@TRAINER_REGISTRY.register()
class TwoModules(ForeignTrainer):
    """Two registered modules with optimizers of their own, under mixed precision with a scaler."""

    def build_model(self) -> None:
        self.adapter = nn.Sequential(nn.Flatten(), nn.Linear(N_PIXELS, WIDTH), nn.Dropout(0.1))
        self.classifier = nn.Linear(WIDTH, self.num_classes)
        self.optims = [build_optimizer(part, self.cfg.OPTIM) for part in (self.adapter, self.classifier)]
        scheds = [build_lr_scheduler(optim, self.cfg.OPTIM) for optim in self.optims]
        self.register_model("adapter", self.adapter, self.optims[0], scheds[0])
        self.register_model("classifier", self.classifier, self.optims[1], scheds[1])
        self.scaler = torch.amp.GradScaler("cpu")

    def model_inference(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.adapter(image))

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        image, label = self.parse_batch_train(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.model_inference(image)
            loss = F.cross_entropy(logits, label)
        self.model_zero_grad()
        self.scaler.scale(loss).backward()
        for optim in self.optims:
            self.scaler.step(optim)
        self.scaler.update()
        return self.finish_batch(loss, logits, label)


class TwoCrops:
    """Return two random crops of one image."""

    def __init__(self) -> None:
        self.crop = T.Compose([T.RandomResizedCrop(SIZE_PX), T.ToTensor()])

    def __call__(self, image: Any) -> list[torch.Tensor]:
        return [self.crop(image), self.crop(image)]


@TRAINER_REGISTRY.register()
class BuildOnly(ForeignTrainer):
    """Builds data and model only, registered without an optimizer; a loop outside trains it."""

    def build_data_loader(self) -> None:
        test_transform = T.Compose([T.Resize((SIZE_PX, SIZE_PX)), T.ToTensor()])
        dm = DataManager(self.cfg, custom_tfm_train=TwoCrops(), custom_tfm_test=test_transform)
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.num_source_domains = dm.num_classes, dm.num_source_domains
        self.lab2cname, self.dm = dm.lab2cname, dm

    def build_model(self) -> None:
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(N_PIXELS, self.num_classes))
        self.register_model("adapt", self.model)


def drive_from_outside(trainer: BuildOnly) -> None:
    """Two epochs of self-training: the hard guess on one crop is the target of the other."""
    optim = torch.optim.AdamW(trainer.model.parameters(), lr=1e-2)
    for _ in range(2):
        trainer.set_model_mode("train")
        for batch in trainer.train_loader_x:
            first, second = batch["img"]
            loss = F.cross_entropy(trainer.model(first), trainer.model(second).argmax(dim=1).detach())
            optim.zero_grad()
            loss.backward()
            optim.step()


RECIPES: dict[str, tuple[dict[str, Any], Callable[[Any], None]]] = {
    "TextPrompt": (
        {"OPTIM.WARMUP_EPOCH": 1, "OPTIM.WARMUP_TYPE": "constant", "TEST.FINAL_MODEL": "best_val"},
        TrainerX.train,
    ),
    "ConditionalPrompt": ({"DATALOADER.TRAIN_X.BATCH_SIZE": 1, "DATASET.NUM_SHOTS": 2}, TrainerX.train),
    "TwoModules": ({"OPTIM.NAME": "adamw", "DATALOADER.NUM_WORKERS": 2}, TrainerX.train),
    "BuildOnly": ({}, drive_from_outside),
}


def run_recipe(images: Path, output: Path, name: str) -> dict[str, Any]:
    """Build, train and test one trainer; `trained` is how far its weights moved."""
    changes, drive = RECIPES[name]
    set_random_seed(1)
    trainer = build_trainer(make_cfg(images, output / name, name, changes))
    before = {key: value.clone() for key, value in _weights(trainer).items()}
    drive(trainer)
    after = _weights(trainer)
    moved = sum(float((after[key] - before[key]).abs().sum()) for key in after)
    return {"weights": after, "accuracy": float(trainer.test()), "trained": moved}


def _weights(trainer: TrainerX) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for name, model in trainer._models.items() for key, value in model.state_dict().items()}


if __name__ == "__main__":
    repair_engine()
    torch.save({name: run_recipe(Path(sys.argv[1]), Path(sys.argv[2]), name) for name in RECIPES}, sys.argv[3])
