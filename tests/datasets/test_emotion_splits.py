"""Folds: balanced, disjoint, repeatable."""

from collections import Counter
from pathlib import Path

from fake_trees import write_image

from datasets.base import Item
from datasets.emotion_splits import deal_folds


def test_deal_folds_is_balanced_per_class_and_repeatable(tmp_path: Path) -> None:
    labels = [0] * 3 + [1] * 11 + [2] * 7
    paths = [write_image(tmp_path / f"{number:02d}.jpg", number) for number in range(len(labels))]
    items = [Item(str(path), label, classname=str(label)) for path, label in zip(paths, labels, strict=True)]
    folds = deal_folds(items, 5, seed=1)
    assert sorted(item.impath for fold in folds for item in fold) == [item.impath for item in items]
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    for label in (0, 1, 2):
        counts = [Counter(item.label for item in fold)[label] for fold in folds]
        assert max(counts) - min(counts) <= 1
    assert deal_folds(reversed(items), 5, seed=1) == folds
    assert deal_folds(items, 5, seed=2) != folds
