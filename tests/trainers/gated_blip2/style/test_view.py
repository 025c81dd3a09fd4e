"""The style encoder's preprocessing, and how it is stored."""

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.gated_blip2.style.networks import ARCHITECTURES
from trainers.gated_blip2.style.view import StyleView, read_view


def test_b3_sees_the_middle_300_px_of_345_with_imagenet_statistics() -> None:
    view = ARCHITECTURES["efficientnet_b3"].view
    pixels = np.zeros((690, 1380, 3), np.uint8)
    pixels[:, 400:980] = 255  # 90 px of 345 wide stay black at each side after resizing: 200 .. 490 of 690
    tensor = view.transform()(Image.fromarray(pixels))
    assert tensor.shape == (3, 300, 300) and tensor.dtype == torch.float32
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(tensor[:, 150, 150], white, atol=1e-6)
    # the crop spans 195 .. 495 of the resized width, so five columns at each side are black
    black = -torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(tensor[:, 150, 0], black, atol=1e-6) and torch.allclose(tensor[:, 150, 8], white, atol=1e-2)


def test_a_view_survives_its_json() -> None:
    view = StyleView(70, 64, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert read_view(view.as_json()) == (view, [])


@pytest.mark.parametrize(
    ("change", "problem"),
    [({"resize_px": 0}, "resize_px 0; expected pixels >= 1"), ({"crop_px": 64.5}, "crop_px 64.5"), ({"mean": [0]}, "mean [0]"),
     ({"std": [1, 0, 1]}, "std [1, 0, 1]; expected three numbers > 0"), ({"crop_px": 99}, "crop_px 99 over resize_px 70"),
     ({"crop": 3}, "unknown entry 'crop'"), ({"mean": None}, "mean None"), ({"resize_px": True}, "resize_px True")],
)  # fmt: skip
def test_read_view_says_what_is_wrong(change: dict, problem: str) -> None:
    view, problems = read_view(StyleView(70, 64).as_json() | change)
    assert view is None and len(problems) == 1 and problem in problems[0]


def test_read_view_lists_every_problem() -> None:
    assert len(read_view({})[1]) == 4
    assert read_view(None) == (None, ["'view' is None; expected an object with resize_px, crop_px, mean, std"])
