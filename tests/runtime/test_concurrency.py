"""A load, a hand-over, a close and an exit under whatever else the process does."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import ClosedError, EmbeddingProvider, LoadingStrategy, OptimizedEmbeddingLoader, background, load
from firstvec import provider as provider_module
from tests.conftest import Fresh

TEXTS = [f"{'word ' * (1 + index % 20)}{index}" for index in range(64)]
"""Of 3 to 22 tokens."""


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hand-over waits until the threads of a test are at work."""
    monkeypatch.setattr(load, "HAND_OVER_DELAY", 0.5)


def progressive(root: Path) -> EmbeddingProvider:
    loader = OptimizedEmbeddingLoader(str(root), LoadingStrategy.PROGRESSIVE)
    loader.start_loading()
    return loader.get_provider()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run_in_threads(count: int, work: Callable[[int], None], meanwhile: Callable[[], None]) -> None:
    """Start ``work`` in threads, do something meanwhile, and raise what went wrong in any of them."""
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, index) for index in range(count)]
        meanwhile()
        for future in futures:
            future.result(timeout=60)


def test_a_swap_under_eight_threads_changes_no_vector(bundle: Path, held_back: None) -> None:
    provider = progressive(bundle)
    expected = {size: provider.encode(TEXTS[:size]) for size in (1, 3, 8)}
    assert provider.session_kind == "quick-start"
    swapped = threading.Event()
    runs = [[0, 0] for _ in range(8)]

    def work(index: int) -> None:
        size = (1, 3, 8)[index % 3]
        after = 0
        while after < 5:
            done = swapped.is_set()
            np.testing.assert_allclose(provider.encode(TEXTS[:size]), expected[size], atol=1e-6)
            runs[index][done] += 1
            after += done

    def wait_for_the_swap() -> None:
        wait_for(lambda: provider.session_kind == "throughput")
        swapped.set()

    run_in_threads(8, work, wait_for_the_swap)
    # Each thread ran on both sessions.
    assert all(before and after for before, after in runs)


def test_the_first_session_is_released_after_the_swap(bundle: Path) -> None:
    provider = progressive(bundle)
    first = weakref.ref(provider._open_session())
    provider.embed_query("text")
    assert first() is not None
    wait_for(lambda: provider.session_kind == "throughput")
    gc.collect()
    assert first() is None


def test_a_run_that_began_before_the_swap_ends_on_its_session(tiny_built: Path) -> None:
    provider = progressive(tiny_built)
    first = provider._open_session()
    expected = provider.embed_query("text")
    wait_for(lambda: provider.session_kind == "throughput")
    rows = provider._tokenizer.encode(["text"])
    np.testing.assert_allclose(np.asarray(first.run(rows))[0], expected, atol=1e-6)


@pytest.mark.parametrize("strategy", [LoadingStrategy.QUANTIZED, LoadingStrategy.PROGRESSIVE])
def test_calls_that_began_before_the_close_give_all_their_vectors(strategy: LoadingStrategy, bundle: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(bundle), strategy)
    for _ in range(3):
        loader.start_loading()
        provider = loader.get_provider()
        expected = provider.encode(TEXTS[:8])
        wrong = []

        def work(
            _index: int,
            provider: EmbeddingProvider = provider,
            expected: np.ndarray = expected,
            wrong: list[str] = wrong,
        ) -> None:
            while True:
                closed = provider.closed
                try:
                    vectors = provider.encode(TEXTS[:8], batch_size=2)
                except ClosedError:
                    if not provider.closed:
                        wrong.append("ClosedError before the close")
                    return
                if closed:
                    wrong.append("vectors after the close")
                np.testing.assert_allclose(vectors, expected, atol=1e-6)

        def close(provider: EmbeddingProvider = provider) -> None:
            time.sleep(random.uniform(0.05, 0.5))  # PROGRESSIVE: before, during or after the hand-over
            provider.close()

        run_in_threads(8, work, close)
        assert wrong == []
        time.sleep(0.4)
        assert provider.closed  # a hand-over under way does not open it again


@pytest.fixture
def in_the_middle(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], object]]]:
    """What the second run of a call does before it runs, once."""
    todo: list[Callable[[], object]] = []
    real = EmbeddingProvider._run
    runs = itertools.count(1)

    def run(provider: EmbeddingProvider, rows: Any, session: Any) -> Any:
        if todo and next(runs) == 2:
            todo.pop()()
        return real(provider, rows, session)

    monkeypatch.setattr(EmbeddingProvider, "_run", run)
    yield todo
    assert todo == []


def test_an_encode_of_many_runs_and_windows_is_drained(
    tiny_built: Path, in_the_middle: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_module, "_WINDOW", 16)
    provider = OptimizedEmbeddingLoader(str(tiny_built)).get_provider()
    expected = provider.encode(TEXTS)
    session = weakref.ref(provider._open_session())
    in_the_middle.append(provider.close)
    np.testing.assert_allclose(provider.encode(TEXTS, batch_size=4), expected, atol=1e-6)
    assert provider.closed
    gc.collect()
    assert session() is None
    with pytest.raises(ClosedError):
        provider.encode(TEXTS)
    with pytest.raises(ClosedError):
        provider.embed_query("text")


def test_encode_iter_gives_the_window_under_way_and_then_closed_error(
    tiny_built: Path, in_the_middle: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_module, "_WINDOW", 16)
    provider = OptimizedEmbeddingLoader(str(tiny_built)).get_provider()
    expected = provider.encode(TEXTS[:16])
    session = weakref.ref(provider._open_session())
    in_the_middle.append(provider.close)
    vectors = provider.encode_iter(TEXTS, batch_size=4)
    np.testing.assert_allclose([next(vectors) for _ in range(16)], expected, atol=1e-6)
    gc.collect()
    assert session() is None  # though nobody has asked for the rest
    with pytest.raises(ClosedError):
        next(vectors)


def test_a_swap_counts_for_the_later_runs_of_a_call(
    tiny_built: Path, in_the_middle: list[Callable[[], object]]
) -> None:
    provider = OptimizedEmbeddingLoader(str(tiny_built)).get_provider()
    expected = provider.encode(TEXTS)
    first, used = provider._open_session(), []

    class Second:
        engine, kind = "another", "throughput"

        def run(self, rows: Any) -> Any:
            used.append(len(rows))
            return first.run(rows)

    in_the_middle.append(lambda: provider.swap(Second()))
    np.testing.assert_allclose(provider.encode(TEXTS, batch_size=16), expected, atol=1e-6)
    # The first run was on the first session, and the second had begun.
    assert used == [16, 16]


def test_a_swap_after_the_close_does_not_open_it_again(tiny_built: Path) -> None:
    provider = progressive(tiny_built)
    session = provider._open_session()
    provider.close()
    provider.swap(session)
    assert provider.closed


FORK_DURING_PACKAGE = """
import os, sys, threading, time
from firstvec import OptimizedEmbeddingLoader
provider = OptimizedEmbeddingLoader(sys.argv[1]).get_provider()
assert "tokenizers" not in sys.modules
thread = threading.Thread(target=provider.embed_query, args=("[CLS] text",))
thread.start()
time.sleep(float(sys.argv[2]))
if child := os.fork():
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
else:
    assert provider.embed_query("[MASK] text").shape == (384,)
    sys.exit(0)
"""


@pytest.mark.parametrize("seconds", [0.0, 0.003, 0.006, 0.012, 0.02])
def test_a_fork_while_the_tokenizers_package_is_loaded(seconds: float, bundle: Path, fresh: Fresh) -> None:
    fresh(FORK_DURING_PACKAGE, bundle, seconds)


INTERRUPTED = """
import signal, sys
from firstvec import OptimizedEmbeddingLoader
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
loader = OptimizedEmbeddingLoader(sys.argv[1])
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
try:
    loader.get_provider(timeout=None)
except KeyboardInterrupt:
    assert loader.report()["state"] in ("loading", "loaded"), loader.report()
    assert loader.get_error() is None
signal.setitimer(signal.ITIMER_REAL, 0)
assert loader.get_provider(timeout=None).embed_query("text").shape == (384,)
assert loader.report()["state"] == "loaded"
"""


@pytest.mark.parametrize("seconds", [0.002, 0.01, 0.02, 0.03])
def test_a_wait_that_ctrl_c_interrupts_can_be_tried_again(seconds: float, bundle: Path, fresh: Fresh) -> None:
    fresh(INTERRUPTED, bundle, seconds)


@pytest.mark.parametrize("started", [False, True])
def test_ctrl_c_while_a_thread_is_started_leaves_nothing_to_wait_for(
    started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = background.start_new_thread
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def interrupted(work: Callable[[], None], arguments: tuple[()]) -> None:
        if started:
            real(work, arguments)
            begun.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(background, "start_new_thread", interrupted)

    def work() -> None:
        begun.set()
        go_on.wait(10)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        background.Task(work)
    # A thread that has begun is waited for, as ever; one that has not finds nothing to do.
    go_on.set()
    deadline = time.monotonic() + 5
    background._wait_for_all()
    assert time.monotonic() < deadline
    assert ended.is_set() or not started


def test_ctrl_c_while_a_load_is_started_leaves_a_loader_that_loads(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built), LoadingStrategy.BACKGROUND)

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(background, "start_new_thread", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loader.start_loading()
    assert not loader.is_loading()
    loader.start_loading()
    assert loader.get_provider(timeout=30).embedding_dim == 32


def test_ctrl_c_in_a_load_without_threads_reaches_the_program(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    loader = OptimizedEmbeddingLoader(str(tiny_built))
    monkeypatch.setattr(background, "start_new_thread", refused)
    with monkeypatch.context() as patch:
        patch.setattr(load.Load, "_open", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loader.get_provider()
    assert loader.get_provider(timeout=30).embed_query("text").shape == (32,)


INTERRUPTED_EXIT = """
import signal, sys, time
from firstvec import background
def handler(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handler)
def work():
    time.sleep(0.5)
    print("done", flush=True)
background.Task(work)
signal.setitimer(signal.ITIMER_REAL, 0.2)
{}
"""


@pytest.mark.parametrize("how", ["", "import os\nif os.fork(): os.wait()\nelse: os._exit(0)"])
def test_an_exit_and_a_fork_wait_for_threads_through_ctrl_c(how: str, fresh: Fresh) -> None:
    assert fresh(INTERRUPTED_EXIT.format(how)).stdout == "done\n"
