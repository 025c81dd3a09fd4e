"""What the trainer tests share beside the tiny world."""

from __future__ import annotations

import pytest


@pytest.fixture
def with_pictures() -> None:
    """Ask for it to let a run draw its pictures."""


@pytest.fixture(autouse=True)
def _without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare every other run the second that drawing takes."""
    if "with_pictures" not in request.fixturenames:
        monkeypatch.setattr("trainers.lafter_parts.plots.draw_run", lambda *arguments: [])
