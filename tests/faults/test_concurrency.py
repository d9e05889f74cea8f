"""Many threads that ask for the first load, and exits at random points of a load."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import (
    EmbeddingProvider,
    FirstvecError,
    IntegrityError,
    LoadingStrategy,
    NoCompatibleArtifact,
    OptimizedEmbeddingLoader,
)
from firstvec.loading import hand_over, opening
from tests.faults.conftest import Campaign
from tests.faults.processes import has_crashed, run

THREADS = 64
STARTED = [strategy for strategy in LoadingStrategy if strategy is not LoadingStrategy.LAZY]
"""Strategies whose failed load all threads see. With LAZY the call of the next thread would be the next try."""


class Crowd:
    """64 threads that make the same call at the same moment, again and again."""

    def __init__(self) -> None:
        self._gate = threading.Barrier(THREADS)
        self._pool = ThreadPoolExecutor(THREADS)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def __call__(self, work: Callable[[], object]) -> list[object]:
        """Return what each thread got: a value, or an error that firstvec raised."""

        def one(_index: int) -> object:
            self._gate.wait(60)
            try:
                return work()
            except FirstvecError as error:
                return error

        return list(self._pool.map(one, range(THREADS)))


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    crowd = Crowd()
    yield crowd
    crowd.close()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The artifacts of all sessions that are opened, whether the opening succeeds or fails."""
    artifacts: list[str] = []
    real = opening.open_session

    def counted(engine: Any, artifact: Any, options: Any) -> Any:
        artifacts.append(artifact.id)
        return real(engine, artifact, options)

    monkeypatch.setattr(opening, "open_session", counted)
    # The hand-over of PROGRESSIVE would open a second session. Now it comes after the test.
    monkeypatch.setattr(hand_over, "DELAY", 600.0)
    return artifacts


def test_64_threads_get_one_session(tiny_built: Path, opened: list[str], crowd: Crowd, campaign: Campaign) -> None:
    loads = campaign.size(40, 1000)
    slowest = 0.0
    for index in range(loads):
        loader = OptimizedEmbeddingLoader(str(tiny_built), list(LoadingStrategy)[index % 5], device="cpu")

        def ask(loader: OptimizedEmbeddingLoader = loader) -> EmbeddingProvider:
            loader.start_loading()
            return loader.get_provider(timeout=120)

        opened.clear()
        started = time.perf_counter()
        providers = crowd(ask)
        slowest = max(slowest, time.perf_counter() - started)
        assert len(set(map(id, providers))) == 1, index
        assert isinstance(providers[0], EmbeddingProvider), providers[0]
        assert len(opened) == 1, (index, opened)
        providers[0].close()
    campaign.record(
        "64 threads, first loads", loads=loads, sessions_of_each=1, errors=0, slowest_ms=round(1e3 * slowest, 1)
    )


def test_64_threads_get_one_error_and_may_try_again(tiny_bundle: Path, crowd: Crowd, campaign: Campaign) -> None:
    loads = campaign.size(8, 100)
    models = (
        *tiny_bundle.glob("onnx/*.onnx"),
        tiny_bundle / "torchscript/model.pt",
        *tiny_bundle.glob("native/m*.fvw"),
    )
    whole = {path: path.read_bytes() for path in models}
    expected = {}
    for strategy in STARTED:
        loader = OptimizedEmbeddingLoader(str(tiny_bundle), strategy, device="cpu")
        loader.start_loading()
        expected[strategy] = loader.get_provider().embed_query("text")
    for index in range(loads):
        for path, data in whole.items():
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        strategy = STARTED[index % len(STARTED)]
        loader = OptimizedEmbeddingLoader(str(tiny_bundle), strategy, device="cpu")
        loader.start_loading()

        def ask(loader: OptimizedEmbeddingLoader = loader) -> EmbeddingProvider:
            return loader.get_provider(timeout=120)

        errors = crowd(ask)
        assert isinstance(errors[0], (NoCompatibleArtifact, IntegrityError)), errors[0]
        assert len(set(map(id, errors))) == 1
        assert loader.get_error() is errors[0]
        for path, data in whole.items():
            path.write_bytes(data)

        def again(loader: OptimizedEmbeddingLoader = loader) -> EmbeddingProvider:
            loader.start_loading()
            return loader.get_provider(timeout=120)

        providers = crowd(again)
        assert len(set(map(id, providers))) == 1
        assert isinstance(providers[0], EmbeddingProvider), providers[0]
        np.testing.assert_allclose(providers[0].embed_query("text"), expected[strategy], atol=1e-5)
        providers[0].close()
    campaign.record("64 threads, a damaged bundle", loads=loads, errors_of_each=1, retries_failed=0)


EXIT = """
import faulthandler, os, signal, sys, threading, time
faulthandler.enable()
from firstvec import OptimizedEmbeddingLoader
root, strategy, output, how, moment, seconds = sys.argv[1:]
loader = OptimizedEmbeddingLoader(root, strategy, device="cpu", output=output)
loader.start_loading()
if moment == "vector":
    loader.get_provider().embed_query("text")
def embed():
    loader.start_loading()
    loader.get_provider().encode([f"{'word ' * (number % 50)}{number}" for number in range(200)])
if how == "sys.exit in a thread":
    threading.Thread(target=sys.exit, args=(5,)).start()
elif how == "a thread that embeds":
    threading.Thread(target=embed).start()
elif how == "a daemon thread that embeds":
    threading.Thread(target=embed, daemon=True).start()
print("ready", flush=True)
time.sleep(600 if how == "SIGTERM" else float(seconds))
if how == "sys.exit":
    sys.exit(3)
if how == "an exception":
    raise ValueError("on purpose")
"""
EXITS = {
    "the end": 0,
    "sys.exit": 3,
    "an exception": 1,
    "sys.exit in a thread": 0,
    "a thread that embeds": 0,
    "a daemon thread that embeds": 0,
    "SIGTERM": -signal.SIGTERM,
}
"""How the program ends → its exit code."""


def test_the_interpreter_exits_cleanly_at_random_points_of_a_load(bundle: Path, campaign: Campaign) -> None:
    source = random.Random(20261123)
    points = campaign.size(14, 200)
    cases = [
        (
            source.choice(("lazy", "background", "progressive", "quantized", "cached")),
            source.choice(("numpy", "buffer")),
            list(EXITS)[index % len(EXITS)],
            # A load takes about 0.05 s. A hand-over begins 0.25 s after the first vector.
            *(("load", source.uniform(0.0, 0.15)) if index % 4 else ("vector", source.uniform(0.2, 0.35))),
        )
        for index in range(points)
    ]

    def one(case: tuple[str, str, str, str, float]) -> str | None:
        ended = run(EXIT, bundle, *case, after=case[-1] if case[2] == "SIGTERM" else None, number=signal.SIGTERM)
        if case[2] == "an exception":
            is_right_error = ended.stderr.rstrip().endswith("ValueError: on purpose")
        else:
            is_right_error = ended.stderr == ""
        is_right = ended.code == EXITS[case[2]] and is_right_error and not has_crashed(ended)
        return None if is_right else f"{case}\n{ended}"

    with ThreadPoolExecutor(2) as pool:
        failed = [each for each in pool.map(one, cases) if each is not None]
    assert failed == [], "\n\n".join([f"{len(failed)} of {points}", *failed[:5]])
    campaign.record("exit at any point of a load", points=points, ways=len(EXITS), wrong_codes=0, aborts=0, hung=0)
