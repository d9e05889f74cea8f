"""What the tests of several modules do with loads, sessions and threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from firstvec import Manifest, OptimizedEmbeddingLoader
from firstvec.bundle.manifest import Artifact
from firstvec.loading import opening
from firstvec.loading.attempt import Load
from firstvec.process import threads


def load(root: Path, strategy: str = "lazy", **options: Any) -> OptimizedEmbeddingLoader[Any, Any]:
    """Return a loader whose model is loaded on the CPU."""
    loader = OptimizedEmbeddingLoader(str(root), strategy, "cpu", **options)
    loader.start_loading()
    loader.get_provider()
    return loader


def artifact_of(manifest: Manifest, artifact_id: str) -> Artifact:
    """Return the artifact with that id."""
    return next(artifact for artifact in manifest.artifacts if artifact.id == artifact_id)


def keep_only(artifact_ids: Iterable[str]) -> Callable[[dict[str, Any]], None]:
    """Return a change for `tests.conftest.edit_manifest` that removes all other artifacts."""

    def change(document: dict[str, Any]) -> None:
        document["artifacts"] = [each for each in document["artifacts"] if each["id"] in artifact_ids]

    return change


def flip_byte(path: Path, offset: int = 100) -> None:
    """Damage a file: one bit of it changes, its size stays."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def hold_sessions(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let no load open a session until the returned event is set."""
    release = threading.Event()
    open_artifact = opening.open_artifact

    def held(*arguments: Any, **options: Any) -> opening.OpenArtifact:
        assert release.wait(120)
        return open_artifact(*arguments, **options)

    monkeypatch.setattr(opening, "open_artifact", held)
    load_in_threads(monkeypatch)
    return release


def load_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every load happen in a thread, as if its files had to be hashed."""
    monkeypatch.setattr(Load, "_is_short", lambda *_: False)


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until the condition holds, at most two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_tasks() -> None:
    """Wait until no task of firstvec runs, a load's last words included."""
    assert threads._wait_for_tasks() == []


def run_in_threads(count: int, work: Callable[[int], object], meanwhile: Callable[[], None] = lambda: None) -> None:
    """Start ``work`` in threads, do something meanwhile, and raise what went wrong in any of them."""
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, index) for index in range(count)]
        meanwhile()
        for future in futures:
            future.result(timeout=300)


def ask_at_once(count: int, ask: Callable[[], Any]) -> list[Any]:
    """Return what ``ask`` gives to threads that call it at the same moment."""
    barrier = threading.Barrier(count)
    answers: list[Any] = []

    def work(_index: int) -> None:
        barrier.wait(120)
        answers.append(ask())

    run_in_threads(count, work)
    return answers
