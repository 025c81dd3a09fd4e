"""Pre-training of style encoders: an EfficientNet learns the styles of pictures, with Dassl's loaders, loop and evaluator.

Built by `scripts/pretrain_style_encoder.py` and not registered: `train.py` trains what uses such an encoder. Classes of unequal
size are balanced by adding the logarithm of their shares to the logits in the loss: Menon et al., "Long-tail learning via logit
adjustment", ICLR 2021, https://arxiv.org/abs/2007.07314.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from dassl.data import DataManager
from dassl.data.datasets import Datum
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from yacs.config import CfgNode

from trainers.config import problems_with_choices
from trainers.gated_blip2.style.files import StyleCard, write_style_file
from trainers.gated_blip2.style.networks import ARCHITECTURES, find_architecture
from trainers.gated_blip2.style.start import build_start, problems_with_init
from trainers.gated_blip2.style.view import StyleView
from trainers.parameter_groups import ParameterGroup
from trainers.precision import full_precision
from trainers.tuned import TunedTrainer

logger = logging.getLogger(__name__)

# Allowed values of the keys that are words.
CHOICES: dict[str, tuple[str, ...]] = {"ARCH": tuple(ARCHITECTURES), "BALANCE": ("logit_adjust", "none")}
MIN_SIDE_PX = 32  # the trunks halve a picture five times
CROP_SCALE = (0.4, 1.0)  # share of a picture's area that a training crop covers
JITTER = (0.4, 0.4, 0.4, 0.1)  # of brightness, contrast, saturation, hue: a style is not a colour
GRAYSCALE_P = 0.1


def add_config(cfg: CfgNode) -> None:
    """Add the node `TRAINER.STYLEENCODERTRAINER` in place; the side of the crop is Dassl's `INPUT.SIZE`."""
    node = cfg.TRAINER.STYLEENCODERTRAINER = CfgNode()
    node.ARCH = "efficientnet_b3"  # efficientnet_b3 | efficientnet_tiny
    node.INIT = "imagenet"  # weights to start from: imagenet (torchvision's, of efficientnet_b3) | random | a file
    node.BALANCE = "logit_adjust"  # logit_adjust (log class shares added to the logits in the loss) | none
    node.LABEL_SMOOTHING = 0.1  # [0, 1)
    node.PREC = "auto"  # auto (bf16 autocast on a GPU that has it, else fp32) | fp32 | bf16 | amp | fp16 (both: fp16 autocast)
    node.SCHEDULER = "warmup_cosine"  # constant | warmup_constant | warmup_cosine | dassl (OPTIM.LR_SCHEDULER)
    node.SCHEDULER_STEP = "update"  # update (per optimizer update) | epoch
    node.WARMUP_RATIO = 0.05  # share of all updates; [0, 1)
    node.GRAD_ACCUM = 1  # batches per optimizer update
    node.MAX_GRAD_NORM = 1.0  # clip the total gradient norm; 0 = off


class StyleEncoderTrainer(TunedTrainer):
    """Trains a whole EfficientNet on the labels of any registered data set of classes.

    Attributes:
        network: What trains.
        view: What it sees when it is used.
    """

    registered_name = "style_encoder"

    def config_problems(self, cfg: CfgNode) -> list[str]:
        """See `TunedTrainer`."""
        node, name = cfg.TRAINER[self.node_name()], f"TRAINER.{self.node_name()}"
        problems = super().config_problems(cfg) + problems_with_choices(node, name, CHOICES, {})
        height, width = cfg.INPUT.SIZE
        if height != width or width < MIN_SIDE_PX:
            problems.append(f"INPUT.SIZE (--image-size) is {(height, width)}; expected a square of {MIN_SIDE_PX} px or more")
        if cfg.TEST.FINAL_MODEL != "best_val" or cfg.TEST.NO_TEST:
            found = f"TEST.FINAL_MODEL is {cfg.TEST.FINAL_MODEL!r}, TEST.NO_TEST {cfg.TEST.NO_TEST}"
            problems.append(f"{found}; expected best_val, False: validation picks what is tested and written")
        return problems + (problems_with_init(node.INIT, node.ARCH) if node.ARCH in ARCHITECTURES else [])

    def build_data_loader(self) -> None:
        """Build Dassl's loaders with the views of the architecture."""
        node = self.settings
        self.view = scale_view(find_architecture(node.ARCH).view, self.cfg.INPUT.SIZE[0])
        self.dm = DataManager(
            self.cfg, custom_tfm_train=build_train_view(self.view), custom_tfm_test=self.view.transform()
        )
        self.train_loader_x, self.train_loader_u = self.dm.train_loader_x, self.dm.train_loader_u
        self.val_loader, self.test_loader = self.dm.val_loader, self.dm.test_loader
        self.num_classes, self.lab2cname = self.dm.num_classes, self.dm.lab2cname
        self.num_source_domains = self.dm.num_source_domains

    def build_model(self) -> None:
        """Build the network, whole and trainable."""
        node = self.settings
        self.network = build_start(node.ARCH, node.INIT, self.num_classes).to(self.device)
        decay = self.cfg.OPTIM.WEIGHT_DECAY
        kernels = [p for p in self.network.parameters() if p.ndim >= 2]
        others = [p for p in self.network.parameters() if p.ndim < 2]  # BatchNorm and biases
        groups = [ParameterGroup("kernels", kernels, 1.0, decay), ParameterGroup("norms_and_biases", others, 1.0, 0.0)]
        self.register_trainables(self.network, groups)
        self.shift: Tensor | float = 0.0
        if node.BALANCE == "logit_adjust":
            self.shift = log_shares(self.dm.dataset.train_x, self.num_classes).to(self.device)

    def data_problems(self) -> list[str]:
        """See `TunedTrainer`; every picture needs a class, and every class a picture."""
        problems, found = super().data_problems(), Counter(item.label for item in self.dm.dataset.train_x)
        if found[-1]:
            problems.append(f"{found[-1]} picture(s) to learn from have no label")
        absent = [name for label, name in sorted(self.lab2cname.items()) if label not in found]
        if absent:
            problems.append(f"{len(absent)} class(es) without a picture to learn from: {', '.join(absent)}")
        return problems

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return pictures (B, 3, S, S) and labels (B,) on the device."""
        return self.parse_batch_test(batch)

    def compute_losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """See `TunedTrainer`: the smoothed cross-entropy."""
        images, labels = batch
        with self.autocast():
            logits = self.network(images)
        with full_precision(self.device):
            smoothing = self.settings.LABEL_SMOOTHING
            return {"loss": F.cross_entropy(logits.float() + self.shift, labels, label_smoothing=smoothing)}

    def model_inference(self, images: Tensor) -> Tensor:
        """Return logits (B, C), fp32, without the shares of the training set."""
        with self.autocast():
            return self.network(images).float()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load weights for a test, rounded as `export` stores them: what is written is what was tested."""
        super().load_model(directory, epoch)
        round_kernels(self.network)

    def export(self, folder: Path, scores: Mapping[str, float]) -> Path:
        """Write the encoder, `style_encoder.safetensors` and `.json`, and return the path of the weights.

        Args:
            folder: Where.
            scores: What was measured, for the JSON.
        """
        names = tuple(name for _, name in sorted(self.lab2cname.items()))
        card = StyleCard(self.settings.ARCH, names, self.view, scores)
        path = write_style_file(folder, with_half_kernels(self.network), card)
        logger.info("Style encoder written: %s, %.2f MB", path, path.stat().st_size / 1e6)
        return path


def scale_view(view: StyleView, crop_px: int) -> StyleView:
    """Return an architecture's view at another size of the crop."""
    return StyleView(round(view.resize_px * crop_px / view.crop_px), crop_px, view.mean, view.std)


def build_train_view(view: StyleView) -> transforms.Compose:
    """Return random crops, mirrored and of other colours, at the size and with the normalisation of a view."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(view.crop_px, scale=CROP_SCALE, interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(*JITTER),
            transforms.RandomGrayscale(GRAYSCALE_P),
            transforms.ToTensor(),
            view.normalise(),
        ]
    )


def log_shares(items: Sequence[Datum], n_classes: int) -> Tensor:
    """Return the logarithm of each class's share of the items, (C,), fp32; a class without any counts as if it had one."""
    counts = Counter(item.label for item in items)
    shares = torch.tensor([max(1, counts[label]) for label in range(n_classes)], dtype=torch.float64)
    return (shares / shares.sum()).log().float()


@torch.no_grad()
def round_kernels(network: nn.Module) -> None:
    """Round the weights of convolutions and of the classifier to fp16 in place; BatchNorm and biases need more range."""
    for parameter in network.parameters():
        if parameter.ndim >= 2:
            parameter.copy_(parameter.half())


def with_half_kernels(network: nn.Module) -> nn.Module:
    """Return a copy whose convolutions and classifier have weights of type fp16, for storing."""
    stored = copy.deepcopy(network)
    for parameter in stored.parameters():
        if parameter.ndim >= 2:
            parameter.data = parameter.data.half()
    return stored
