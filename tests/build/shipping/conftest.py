"""Registries for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from firstvec_build.shipping import arrival, registry_client
from tests.registries import Liar, liar_with


@pytest.fixture
def on_the_loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no proxy and no credentials of this user decide, and let nothing wait."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("DOCKER_CONFIG", "ORAS_USER", "ORAS_PASS", "FIRSTVEC_REGISTRY_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    for module in (arrival, registry_client):
        monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.0)


@pytest.fixture
def liar(tiny_built: Path) -> Iterator[Liar]:
    with liar_with(tiny_built) as running:
        yield running
