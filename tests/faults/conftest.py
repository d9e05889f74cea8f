"""Campaigns: one test each, at a few points in `make test` and at all points in `make faults`."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import REPOSITORY

FIGURES = REPOSITORY / "build" / "faults" / "figures.json"


class Campaign:
    """How many points a test tries, and the figures that it finds."""

    def __init__(self, *, full: bool) -> None:
        self.full = full
        self.figures: dict[str, dict[str, Any]] = {}

    def size(self, few: int, all_of_them: int) -> int:
        """Return how many points to try: ``few`` in `make test`, ``all_of_them`` in `make faults`."""
        return all_of_them if self.full else few

    def record(self, promise: str, **figures: Any) -> None:
        """Keep figures for docs/reliability.md: ``record("kill -9 of a build", points=1200, lost=0)``."""
        self.figures.setdefault(promise, {}).update(figures)


@pytest.fixture(scope="session")
def campaign(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    """The campaign of this run. At the end of `make faults` its figures are in build/faults/figures.json."""
    campaign = Campaign(full=request.config.getoption("--faults"))
    yield campaign
    if campaign.full:
        known = json.loads(FIGURES.read_text("utf-8")) if FIGURES.is_file() else {}
        FIGURES.parent.mkdir(parents=True, exist_ok=True)
        about = {"python": platform.python_version(), "machine": platform.machine()}
        FIGURES.write_text(json.dumps(known | {"run on": about} | campaign.figures, indent=2) + "\n", "utf-8")
