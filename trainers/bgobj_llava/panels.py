"""Pictures of what evaluation saw: every n-th sample's masks, and what its answer took from the cache (`VIS.EVERY`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dassl.data.datasets import Datum
from numpy.typing import NDArray

from trainers.bgobj_llava.data import SceneView
from trainers.bgobj_llava.geometry import open_image
from trainers.bgobj_llava.visualise import CachedPart, save_view, view_split


class PanelWriter:
    """Draws every n-th sample of a test.

    Args:
        every: n; 0 = none.
        folder: Of the pictures; made when there is one.
        view: How evaluation sees an item; without a finder there is no split to show.
    """

    def __init__(self, every: int, folder: str | Path, view: SceneView) -> None:
        self._every = every if view.find is not None else 0
        self._folder, self._view = Path(folder), view

    def write(self, item: Datum, index: int, facts: Mapping[str, Any], cached: NDArray | None) -> None:
        """Draw a sample if it is one of the n-th.

        Args:
            item: The sample.
            index: In its split, from 0; also the file's name.
            facts: Of the answer.
            cached: Patches that came from the cache, (P,), bool; None without a hit.
        """
        if not self._every or index % self._every:
            return
        view, image = self._view, open_image(item.impath)
        found = view.find(item, view.canvas.place(image), index)
        part = None if cached is None else CachedPart(cached, ~cached)
        save_view(self._folder, f"{index:06d}", view_split(image, found, view.canvas, view.policy, part), dict(facts))
