"""Machines that are not this one: their system files, their cores and their processor."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from firstvec.machine import limits, processor, profile, system_files

Files = dict[str, str]
Cores = Callable[[int], None]
Machine = Callable[[str], None]


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what this process knows of its machine."""
    monkeypatch.setattr(processor, "_seen", [])
    monkeypatch.setattr(processor, "_found", {})
    monkeypatch.setattr(profile, "_known", {})


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    """Return the system files that are there: path → content. A test adds some, and there are no others."""
    there: Files = {}
    for module in (limits, processor, system_files):
        monkeypatch.setattr(module, "read_text", lambda path, size=1 << 16: there.get(path, "")[:size])
    return there


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a function that sets the processor's family."""
    system = os.uname()

    def install(family: str) -> None:
        monkeypatch.setattr(os, "uname", lambda: os.uname_result((*system[:4], family)))

    return install


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Cores:
    """Return a function that sets how many cores the process's affinity allows."""

    def allow(count: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(count)))

    return allow
