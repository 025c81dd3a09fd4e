"""Loaders and batches, also from spawned workers."""

import multiprocessing

import pytest
import torch
from dassl.data import DataManager, DatasetWrapper, build_data_loader
from dassl.data.datasets import build_dataset
from dassl.data.transforms import build_transform
from toy_world import SIZE_PX


def test_manager_builds_the_loaders_that_the_data_set_has(make_toy_cfg, capsys):
    manager = DataManager(make_toy_cfg())
    assert (manager.num_classes, manager.num_source_domains) == (3, 0)
    assert manager.lab2cname == {0: "red", 1: "green", 2: "blue"}
    assert manager.train_loader_u is None
    assert [len(loader) for loader in (manager.train_loader_x, manager.val_loader, manager.test_loader)] == [3, 2, 2]
    table = capsys.readouterr().out.split("center crop")[-1].splitlines()
    rows = [line.split("  ")[0] for line in table if line.startswith(("Dataset", "#"))]
    assert rows == ["Dataset", "# classes", "# train_x", "# val", "# test"]


def test_manager_without_val_and_with_train_u(make_toy_cfg, capsys):
    cfg = make_toy_cfg(**{
        "DATASET.VAL_PERCENT": 0.0,
        "DATASET.ALL_AS_UNLABELED": True,
        "DATALOADER.TRAIN_U.BATCH_SIZE": 2,
        "DATASET.SOURCE_DOMAINS": ("photo",),
    })  # fmt: skip
    manager = DataManager(cfg)
    assert manager.val_loader is None
    assert manager.train_loader_u.batch_size == 4  # SAME_AS_X
    assert "Source" in capsys.readouterr().out
    cfg.DATALOADER.TRAIN_U.SAME_AS_X = False
    assert DataManager(cfg).train_loader_u.batch_size == 2


def test_custom_transforms_are_used_and_announced(make_toy_cfg, capsys):
    def to_zero(image):
        return torch.zeros(1)

    manager = DataManager(make_toy_cfg(), custom_tfm_train=to_zero, custom_tfm_test=[to_zero, to_zero])
    output = capsys.readouterr().out
    assert "* Using custom transform for training" in output
    assert "* Using custom transform for testing" in output
    assert next(iter(manager.train_loader_x))["img"].shape == (4, 1)
    assert {"img", "img2"} <= set(next(iter(manager.test_loader)))


def test_train_drops_the_last_batch_unless_it_is_the_only_one(make_toy_cfg):
    cfg = make_toy_cfg()
    source = build_dataset(cfg).train_x
    transform = build_transform(cfg)

    def sizes(batch_size: int, *, is_train: bool) -> list[int]:
        loader = build_data_loader(cfg, data_source=source, batch_size=batch_size, tfm=transform, is_train=is_train)
        return [len(batch["label"]) for batch in loader]

    assert sizes(5, is_train=True) == [5, 5]
    assert sizes(5, is_train=False) == [5, 5, 2]
    assert sizes(20, is_train=True) == [12]


def test_batches_hold_label_domain_path_index_and_image(make_toy_cfg):
    batch = next(iter(DataManager(make_toy_cfg()).test_loader))
    assert sorted(batch) == ["domain", "img", "impath", "index", "label"]
    assert batch["img"].shape == (4, 3, SIZE_PX, SIZE_PX)
    assert batch["label"].tolist() == [0, 0, 1, 1]
    assert batch["domain"].tolist() == [0, 0, 1, 1]
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert batch["impath"][0].endswith("test_0_0.png")


def test_wrapper_with_several_transforms_and_repeats(make_toy_cfg):
    cfg = make_toy_cfg(**{"DATALOADER.K_TRANSFORMS": 2, "DATALOADER.RETURN_IMG0": True})
    source = build_dataset(cfg).train_x
    transform = build_transform(cfg)
    item = DatasetWrapper(cfg, source, transform=[transform, transform, transform], is_train=True)[0]
    assert [key for key in item if key.startswith("img")] == ["img", "img2", "img3", "img0"]
    assert isinstance(item["img2"], list)
    assert len(item["img2"]) == 2
    assert item["img0"].shape == (3, SIZE_PX, SIZE_PX)
    assert torch.is_tensor(DatasetWrapper(cfg, source, transform=transform, is_train=False)[0]["img"])


def test_wrapper_without_transform_yields_the_rgb_image(make_toy_cfg):
    cfg = make_toy_cfg()
    item = DatasetWrapper(cfg, build_dataset(cfg).train_x)[0]
    assert (item["img"].mode, item["img"].size) == ("RGB", (10, 12))


def test_wrapper_cannot_repeat_without_transform(make_toy_cfg):
    cfg = make_toy_cfg(**{"DATALOADER.K_TRANSFORMS": 2})
    with pytest.raises(ValueError, match="DATALOADER.K_TRANSFORMS is 2"):
        DatasetWrapper(cfg, build_dataset(cfg).train_x, is_train=True)


def test_empty_split_is_an_error_naming_split_and_key(make_toy_cfg, tmp_path, monkeypatch):
    cfg = make_toy_cfg()
    dataset_class = type(build_dataset(cfg))
    monkeypatch.setattr(dataset_class, "test", property(lambda self: []))
    with pytest.raises(AssertionError, match=r"test loader.*'ToyColours'.*DATALOADER.TEST.*DATASET.ROOT"):
        DataManager(cfg)


def test_unreadable_image_is_an_error_naming_the_path(make_toy_cfg, tmp_path):
    cfg = make_toy_cfg()
    source = build_dataset(cfg).train_x[:1]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    source[0]._impath = str(broken)
    with pytest.raises(OSError, match="broken.png"):
        DatasetWrapper(cfg, source)[0]


def test_spawned_and_forkserver_workers_yield_the_same_test_pixels(make_toy_cfg):
    cfg = make_toy_cfg()
    expected = list(DataManager(cfg).test_loader)
    cfg.DATALOADER.NUM_WORKERS = 2
    multiprocessing.set_forkserver_preload(["torchvision"])  # imported once instead of once per worker
    for method in ("spawn", "forkserver"):
        loader = DataManager(cfg).test_loader
        loader.multiprocessing_context = method
        batches = list(loader)
        assert len(batches) == len(expected) == 2
        for batch, other in zip(batches, expected):
            assert torch.equal(batch["img"], other["img"])
            assert batch["impath"] == other["impath"]
