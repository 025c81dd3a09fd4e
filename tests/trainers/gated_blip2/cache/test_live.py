"""What is read from the cache is what the frozen towers would say now, bit by bit, and so are loss and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.data.datasets import Datum
from dassl.utils import read_image
from gated_models import ASKED, STYLE_WIDTH, gated_model, texts
from PIL import Image
from tiny_blip2s import SIDE_PX

from trainers.adapters import BaseModel
from trainers.gated_blip2.building import build_view
from trainers.gated_blip2.cache.key import feature_key
from trainers.gated_blip2.cache.rows import Rows
from trainers.gated_blip2.data import PictureViews
from trainers.gated_blip2.features import FeatureReader
from trainers.gated_blip2.image_view import MEAN, STD, ImageViewFacts
from trainers.gated_blip2.model import GatedBlip2Model
from trainers.gated_blip2.style.encoder import StyleEncoder
from trainers.gated_blip2.style.networks import build_network
from trainers.gated_blip2.style.view import StyleView

N_PICTURES, BATCH = 7, len(ASKED)
FACTS = ImageViewFacts(SIDE_PX, MEAN, STD, "bicubic")
STYLE_VIEW = StyleView(36, 32)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Datum]:
    """Pictures of noise, not square and not of the models' sizes."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(N_PICTURES)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return [Datum(impath=str(path)) for path in paths]


@pytest.fixture(scope="module")
def style_encoder() -> StyleEncoder:
    torch.manual_seed(0)
    network = build_network("efficientnet_tiny", 3)
    return StyleEncoder(network, arch="efficientnet_tiny", class_names=("a", "b", "c"), view=STYLE_VIEW, sha256="s" * 64)


def views() -> PictureViews:
    return PictureViews(build_view(FACTS), STYLE_VIEW.transform())


def fill(model: GatedBlip2Model, style_encoder: StyleEncoder | None, items: list[Datum], folder: Path) -> FeatureReader:
    """A reader whose cache has the pictures of all items, encoded three at once; the last of them is alone."""
    key = feature_key(
        base=BaseModel("tiny", "b" * 64), image_view=FACTS, dtype=model.blip2.dtype, post_ln=not model.post_ln_trains
    )
    reader = FeatureReader(model, style_encoder, views(), torch.device("cpu"))
    reader.fill(items, folder, key, shard_images=2 * BATCH, batch_size=BATCH, threads=2)
    return reader


def batch_of(items: list[Datum], reader: FeatureReader | None) -> dict[str, torch.Tensor]:
    """What a loader yields: rows of a filled reader, or pictures."""
    if reader is not None:
        rows = torch.tensor(reader.rows_of(items))
        return {"row": rows, "style_row": rows}
    seen = [views().see(read_image(item.impath)) for item in items]
    return {name: torch.stack([each[name] for each in seen]) for name in seen[0]}


def assert_same(found: Rows, expected: Rows) -> None:
    assert found.parts().keys() == expected.parts().keys()
    assert all(torch.equal(found.parts()[name], part) and found.parts()[name].dtype == part.dtype
               for name, part in expected.parts().items())  # fmt: skip


@pytest.mark.parametrize("preset", ["gates_proj", "original"])
@pytest.mark.parametrize("prec", ["fp32", "bf16", "fp16"])
def test_cached_rows_are_live_rows(
    preset: str, prec: str, items: list[Datum], style_encoder: StyleEncoder, tmp_path: Path
) -> None:
    model = gated_model(preset, prec=prec)
    reader = fill(model, style_encoder, items, tmp_path / "cache")
    for batch in (items[:BATCH], items[BATCH : 2 * BATCH], items[2 * BATCH :]):
        cached, live = reader.of(batch_of(batch, reader)), reader.of(batch_of(batch, None))
        assert live.tokens.dtype == model.blip2.dtype
        assert_same(cached, live)
    assert reader.n_read == N_PICTURES


def test_pictures_at_other_places_of_a_batch_differ_by_rounding_only(
    items: list[Datum], style_encoder: StyleEncoder, tmp_path: Path
) -> None:
    reader = fill(gated_model(), style_encoder, items, tmp_path / "cache")
    mixed = [items[5], items[0], items[6], items[2]]
    cached, live = reader.of(batch_of(mixed, reader)), reader.of(batch_of(mixed, None))
    for name, part in live.parts().items():
        torch.testing.assert_close(cached.parts()[name], part, rtol=1e-5, atol=1e-5)


def test_presets_that_train_the_post_ln_cache_what_is_before_it(items: list[Datum], tmp_path: Path) -> None:
    before, after = (
        fill(gated_model(preset), None, items, tmp_path / preset).of(batch_of(items[:BATCH], None)).tokens
        for preset in ("original", "gates_proj")
    )
    assert not torch.equal(before, after)
    layer_norm = gated_model("original").blip2.vision_model.post_layernorm
    assert torch.equal(layer_norm(before), after)


@pytest.mark.parametrize("preset", ["gates_proj", "qformer", "original"])
def test_loss_and_gradients_of_cached_rows_are_those_of_pictures(
    preset: str, items: list[Datum], style_encoder: StyleEncoder, tmp_path: Path
) -> None:
    found = []
    for source in ("live", "cached"):
        model = gated_model(preset, stir=0.1, thaw=True)
        reader = fill(model, style_encoder, items, tmp_path / "cache")
        rows = reader.of(batch_of(items[:BATCH], reader if source == "cached" else None))
        style = torch.nn.functional.pad(rows.features, (0, STYLE_WIDTH))[:, :STYLE_WIDTH]
        loss = model.loss(rows.tokens, style, texts())
        loss.total.backward()
        grads = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        found.append((loss.total.detach(), grads))
    (live, live_grads), (cached, cached_grads) = found
    assert torch.equal(live, cached) and live_grads.keys() == cached_grads.keys()
    assert all(torch.equal(cached_grads[name], grad) for name, grad in live_grads.items())
    assert sum(float(grad.abs().sum()) > 0 for grad in live_grads.values()) > 5
    assert any("post_layernorm" in name for name in live_grads) == (preset == "original")


def test_a_style_of_another_picture_comes_from_its_row(items: list[Datum], style_encoder: StyleEncoder, tmp_path: Path) -> None:
    reader = fill(gated_model(), style_encoder, items, tmp_path / "cache")
    own, donors = reader.rows_of(items[:BATCH]), reader.rows_of(items[3:6])
    mixed = reader.of({"row": torch.tensor(own), "style_row": torch.tensor(donors)})
    first, second = (reader.of(batch_of(each, reader)) for each in (items[:BATCH], items[3:6]))
    assert_same(mixed, Rows(first.tokens, second.features, second.logits))


def test_questions_about_one_picture_share_its_row(items: list[Datum], style_encoder: StyleEncoder, tmp_path: Path) -> None:
    reader = fill(gated_model(), style_encoder, items, tmp_path / "cache")
    rows = reader.rows_of(items)
    asked = [2, 0, 2, 2, 5]
    assert reader.rows_of([items[number] for number in asked]) == [rows[number] for number in asked]
    assert len(set(rows)) == N_PICTURES
