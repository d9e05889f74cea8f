"""The session that a provider uses: swaps, closes, forks, and that a session is freed as soon as nobody needs it."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import random
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import (
    ClosedError,
    EmbeddingProvider,
    LoadingStrategy,
    Manifest,
    OptimizedEmbeddingLoader,
    ResourceProfile,
)
from firstvec import provider as provider_module
from firstvec.loading.opening import open_artifact, verify_artifact
from firstvec.loading.session_in_use import Lease, SessionInUse
from tests.conftest import Fresh
from tests.loads import artifact_of, load, run_in_threads, wait_for, wait_for_tasks

INT8 = next(f"onnx-int8-{isa}" for isa in ("avx512_vnni", "arm64", "avx2") if isa in ResourceProfile.detect().isa)
TEXTS = [f"{'word ' * (1 + index % 20)}{index}" for index in range(64)]
"""Of 3 to 22 tokens."""


class FakeSession:
    """A session that notes what is done with it."""

    def __init__(self, name: str, done: list[str], during_run: Callable[[], object] = lambda: None) -> None:
        self.engine, self.kind = name, "quick-start"
        self._done = done
        self._during_run = during_run

    def run(self, rows: Any) -> memoryview[float]:
        self._during_run()
        self._done.append(f"{self.engine} ran {len(rows)}")
        return memoryview(bytes(4 * len(rows))).cast("f", (len(rows), 1))

    def close(self) -> None:
        self._done.append(f"{self.engine} closed")

    def abandon(self) -> None:
        self._done.append(f"{self.engine} abandoned")


def never() -> Any:
    raise AssertionError("a session was opened again")


def test_each_run_of_a_lease_is_on_the_session_of_that_moment() -> None:
    done: list[str] = []
    sessions = SessionInUse("an-artifact", FakeSession("first", done), never, lambda: done.append("first run"))
    lease = sessions.lease()
    lease.run([[1], [2, 3]])
    sessions.swap(FakeSession("second", done))
    # The lease may still be in a run of the first session, so this session is open until the next run.
    assert done == ["first ran 2", "first run"]
    lease.run([[4]])
    assert done == ["first ran 2", "first run", "first closed", "second ran 1"]
    sessions.close()
    del lease
    assert done[4:] == ["second closed"]


def test_a_swap_to_a_closed_one_closes_the_new_session() -> None:
    done: list[str] = []
    sessions = SessionInUse("an-artifact", FakeSession("first", done), never)
    sessions.close()
    sessions.swap(FakeSession("second", done))
    assert done == ["first closed", "second closed"]
    assert sessions.closed
    assert sessions.session is None
    with pytest.raises(ClosedError, match="start_loading"):
        sessions.lease()
    sessions.close()


def test_a_session_is_closed_after_the_run_that_a_close_meets() -> None:
    done: list[str] = []
    sessions: list[SessionInUse] = []
    sessions.append(SessionInUse("an-artifact", FakeSession("first", done, lambda: sessions[0].close()), never))
    lease = sessions[0].lease()
    lease.run([[1]])
    lease.run([[2]])  # a call that has begun goes on
    assert done == ["first ran 1", "first ran 1"]
    del lease
    assert done[2:] == ["first closed"]


@pytest.mark.native
@pytest.mark.parametrize("artifact", ["native-fp32", "onnx-fp32"])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_session_cannot_be_copied(copied: Callable[[object], object], artifact: str, tiny_built: Path) -> None:
    """The copy would free what both use, but for the native engine's, which frees nothing itself."""
    provider = load(tiny_built, artifact=artifact).get_provider()
    for session in (provider.session, provider._sessions._owned)[artifact == "native-fp32" :]:
        with pytest.raises(TypeError, match="a session cannot be copied: load the model again"):
            copied(session)
    gc.collect()
    assert provider.embed_query("text").shape == (32,)


def test_the_first_session_is_released_after_the_swap(bundle: Path) -> None:
    provider = load(bundle, "progressive", artifact="onnx-fp32").get_provider()
    first = weakref.ref(provider.session)
    provider.embed_query("text")
    assert first() is not None
    wait_for(lambda: provider.session_kind == "throughput")
    wait_for_tasks()
    gc.collect()
    assert first() is None


def test_a_run_that_began_before_the_swap_ends_on_its_session(tiny_onnx: Path) -> None:
    provider = load(tiny_onnx, "progressive").get_provider()
    lease = provider._sessions.lease()
    first = lease._owned.session
    expected = provider.embed_query("text")
    wait_for(lambda: provider.session_kind == "throughput")
    rows = provider._tokenizer.tokenize(["text"])
    assert first.kind == "quick-start"
    np.testing.assert_allclose(np.asarray(first.run(rows))[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("strategy", "artifact"),
    [
        (LoadingStrategy.QUANTIZED, None),
        (LoadingStrategy.QUANTIZED, INT8),
        (LoadingStrategy.PROGRESSIVE, "onnx-fp32"),
    ],
)
def test_calls_that_began_before_the_close_give_all_their_vectors(
    strategy: LoadingStrategy, artifact: str | None, bundle: Path
) -> None:
    loader = OptimizedEmbeddingLoader(str(bundle), strategy, artifact=artifact)
    for _ in range(3):
        loader.start_loading()
        provider = loader.get_provider()
        expected = provider.encode(TEXTS[:8])
        wrong: list[str] = []

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
    run = EmbeddingProvider._run
    runs = itertools.count(1)

    def run_with_interlude(provider: EmbeddingProvider, lease: Lease, rows: Any) -> Any:
        if todo and next(runs) == 2:
            todo.pop()()
        return run(provider, lease, rows)

    monkeypatch.setattr(EmbeddingProvider, "_run", run_with_interlude)
    yield todo
    assert todo == []


@pytest.mark.native
@pytest.mark.parametrize("artifact", ["native-fp32", "onnx-fp32"])
def test_an_encode_of_many_runs_and_windows_is_drained(
    artifact: str, tiny_built: Path, in_the_middle: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_module, "_WINDOW", 16)
    monkeypatch.setattr(provider_module, "_TOKENS_WITHOUT_PADDING", 88)  # four of the longest texts
    provider = load(tiny_built, artifact=artifact).get_provider()
    expected = provider.encode(TEXTS)
    session = weakref.ref(provider.session)
    in_the_middle.append(provider.close)
    np.testing.assert_allclose(provider.encode(TEXTS, batch_size=4), expected, atol=1e-6)
    assert provider.closed
    gc.collect()
    assert session() is None
    with pytest.raises(ClosedError):
        provider.encode(TEXTS)
    with pytest.raises(ClosedError):
        provider.embed_query("text")


@pytest.mark.native
@pytest.mark.parametrize("artifact", ["native-fp32", "onnx-fp32"])
def test_encode_iter_gives_the_window_under_way_and_then_closed_error(
    artifact: str, tiny_built: Path, in_the_middle: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_module, "_WINDOW", 16)
    monkeypatch.setattr(provider_module, "_TOKENS_WITHOUT_PADDING", 88)  # four of the longest texts
    provider = load(tiny_built, artifact=artifact).get_provider()
    expected = provider.encode(TEXTS[:16])
    session = weakref.ref(provider.session)
    in_the_middle.append(provider.close)
    vectors = provider.encode_iter(TEXTS, batch_size=4)
    np.testing.assert_allclose([next(vectors) for _ in range(16)], expected, atol=1e-6)
    gc.collect()
    assert session() is None  # though nobody has asked for the rest
    with pytest.raises(ClosedError):
        next(vectors)


def test_a_swap_counts_for_the_later_runs_of_a_call(tiny_onnx: Path, in_the_middle: list[Callable[[], object]]) -> None:
    provider = load(tiny_onnx).get_provider()
    expected = provider.encode(TEXTS)
    manifest = Manifest.read(tiny_onnx)
    second = open_artifact(verify_artifact(manifest, artifact_of(manifest, "onnx-fp32")), quick_start=False).session
    run, used = second.run, []

    def noted(rows: Any) -> Any:
        used.append(len(rows))
        return run(rows)

    second.run = noted  # type: ignore[method-assign]
    in_the_middle.append(lambda: provider._sessions.swap(second))
    np.testing.assert_allclose(provider.encode(TEXTS, batch_size=16), expected, atol=1e-6)
    # The first of four runs was on the first session. The sessions were swapped before the second run.
    assert used == [16, 16, 16]


def test_a_closed_provider_says_so(tiny_built: Path) -> None:
    provider = load(tiny_built).get_provider()
    provider.close()
    with pytest.raises(ClosedError, match="start_loading"):
        provider.embed_query("text")


def test_a_closed_provider_can_be_loaded_again(tiny_built: Path) -> None:
    loader = load(tiny_built)
    loader.get_provider().close()
    assert loader.get_provider().embed_query("text").shape == (32,)


FREED = """
import gc, os, sys, time, weakref
from firstvec import OptimizedEmbeddingLoader
from firstvec.process import threads

def use():
    loader = OptimizedEmbeddingLoader(sys.argv[1], sys.argv[2], "cpu", output="list")
    loader.start_loading()
    provider = loader.get_provider()
    provider.embed_query("text")
    if sys.argv[2] in ("lazy", "quantized"):
        provider.encode(["text of some words"] * 1000)  # more than 4,096 tokens
    while loader.report()["hand_over"] == "waiting":
        time.sleep(0.02)
    return weakref.ref(provider), weakref.ref(provider.session)

def open_files():
    threads._wait_for_tasks()  # the thread of a load, or of a hand-over, may still be about to end
    return len(os.listdir("/proc/self/fd"))

use()
gc.disable()
before = open_files()
for _ in range(3):
    for reference in use():
        for _ in range(6000):  # the thread that made it may still be about to end
            if reference() is None:
                break
            time.sleep(0.01)
        assert reference() is None, reference
assert open_files() == before
"""


@pytest.mark.parametrize("engine", ["native", "onnxruntime"])
@pytest.mark.parametrize("strategy", ["lazy", "background", "progressive", "quantized"])
def test_a_loader_that_nobody_holds_any_more_frees_all_at_once(
    strategy: str, engine: str, tiny_built: Path, tiny_onnx: Path, fresh: Fresh
) -> None:
    """Not when the garbage collector comes by: until then there would be sessions without number."""
    fresh(FREED, tiny_built if engine == "native" else tiny_onnx, strategy)


# Forks

FORK = """
import os, sys
import numpy
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(sys.argv[1], "background", artifact=sys.argv[3])
loader.start_loading()
if sys.argv[2] == "after":
    expected = loader.get_provider().embed_query("text")
child = os.fork()
provider = loader.get_provider()
vector = provider.embed_query("text")
if child == 0:
    assert vector.shape == (32,)
    if sys.argv[2] == "after":
        numpy.testing.assert_allclose(vector, expected, atol=1e-6)
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.native
@pytest.mark.parametrize("artifact", ["native-fp32", "onnx-fp32"])
@pytest.mark.parametrize("moment", ["during", "after"])
def test_a_forked_child_opens_its_own_session(moment: str, artifact: str, tiny_built: Path, fresh: Fresh) -> None:
    fresh(FORK, tiny_built, moment, artifact)


CHILD = """
import os, sys, threading
from firstvec.loading.session_in_use import SessionInUse

class Session:
    engine, kind = "engine", "quick-start"
    def __init__(self, name):
        self.name = name
    def run(self, rows):
        done.append(self.name + " ran")
        return memoryview(bytes(4)).cast("f", (1, 1))
    def close(self):
        done.append(self.name + " closed")
    def abandon(self):
        done.append(self.name + " abandoned")

def open_again():
    assert threading.get_ident() != threading.main_thread().ident
    return Session("the child's")

done = []
sessions = SessionInUse("artifact", Session("the parent's"), open_again)
lease = sessions.lease()
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lease.run([[1]])
    sessions.close()
    del lease
    assert done == ["the parent's ran", "the parent's closed"], done
else:
    assert sessions.session.name == "the parent's"  # nothing is opened to look at it
    lease.run([[1]])
    lease.run([[1]])
    assert done == ["the parent's abandoned", "the child's ran", "the child's ran"], done
    if sys.argv[1] == "close":
        sessions.close()
        del lease
        assert done[3:] == ["the child's closed"], done
"""


@pytest.mark.parametrize("then", ["close", "exit"])
def test_a_forked_child_abandons_the_session_of_its_parent(then: str, fresh: Fresh) -> None:
    fresh(CHILD, then)


def test_a_closed_one_opens_nothing_in_a_forked_child(fresh: Fresh) -> None:
    code = (
        CHILD[: CHILD.index("lease = ")]
        + """
from firstvec import ClosedError
lease = sessions.lease()
sessions.close()
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
else:
    for call in (sessions.lease, lambda: lease.run([[1]])):
        try:
            call()
        except ClosedError:
            continue
        raise AssertionError
"""
    )
    fresh(code)
