"""The hand-over: after enough tokens the session that runs fastest takes over, and no caller sees a difference."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from firstvec import EmbeddingProvider, LoadingStrategy, NoCompatibleArtifact, OptimizedEmbeddingLoader
from firstvec.loading import hand_over, opening, self_test
from firstvec.loading.session_in_use import SessionInUse
from firstvec.process import threads
from firstvec.strategy import STRATEGIES
from tests.conftest import Fresh
from tests.loads import load, run_in_threads, wait_for, wait_for_tasks

TEXTS = [f"{'word ' * (1 + index % 20)}{index}" for index in range(64)]
"""Of 3 to 22 tokens."""


@pytest.fixture(scope="session")
def tiny_built(tiny_onnx: Path) -> Path:
    """Take the bundle whose sessions are onnxruntime's: the native engine has one kind of session."""
    return tiny_onnx


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hand-over begin right after the run that asks for it."""
    monkeypatch.setattr(hand_over, "DELAY", 0.0)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "firstvec"]


def test_progressive_hands_over_without_changing_a_vector(bundle: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(bundle), LoadingStrategy.PROGRESSIVE, artifact="onnx-fp32")
    loader.start_loading()
    provider = loader.get_provider()
    texts = ["a", "how do I parse a date?", "long " * 300]
    assert provider.session_kind == "quick-start"
    before = provider.encode(texts)
    deadline = time.monotonic() + 120
    while provider.session_kind == "quick-start" and time.monotonic() < deadline:
        # Nobody who encodes while the sessions change hands may notice it.
        np.testing.assert_allclose(provider.encode(texts), before, atol=1e-6)
    assert provider.session_kind == "throughput"
    np.testing.assert_allclose(provider.encode(texts), before, atol=1e-6)


def test_a_swap_under_eight_threads_changes_no_vector(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    open_artifact = hand_over.open_artifact
    runs = [[0, 0] for _ in range(8)]

    def held(*arguments: Any, **options: Any) -> opening.OpenArtifact:
        wait_for(lambda: all(before for before, _ in runs))  # the threads of this test are at work
        return open_artifact(*arguments, **options)

    monkeypatch.setattr(hand_over, "open_artifact", held)
    provider = load(bundle, "progressive", artifact="onnx-fp32").get_provider()
    expected = {size: provider.encode(TEXTS[:size]) for size in (1, 3, 8)}
    assert provider.session_kind == "quick-start"
    swapped = threading.Event()

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


def test_lazy_hands_over_after_4096_tokens_and_changes_no_vector(tiny_built: Path, at_once: None) -> None:
    loader = load(tiny_built, "lazy")
    provider = loader.get_provider()
    tokens = sum(provider.count_tokens(TEXTS))
    before = provider.encode(TEXTS)
    computed = tokens
    while computed + tokens < 4096:
        provider.encode(TEXTS)
        computed += tokens
    wait_for_tasks()
    assert (loader.report()["hand_over"], loader.report()["session"]) == ("waiting", "quick-start")
    provider.encode(TEXTS)
    wait_for(lambda: loader.report()["hand_over"] == "done")
    assert loader.report()["session"] == "throughput"
    np.testing.assert_allclose(provider.encode(TEXTS), before, atol=1e-6)


def test_one_call_of_more_than_4096_tokens_is_enough_for_lazy(tiny_built: Path, at_once: None) -> None:
    loader = load(tiny_built, "lazy")
    provider = loader.get_provider()
    texts = TEXTS * (4096 // sum(provider.count_tokens(TEXTS)) + 1)
    vectors = list(provider.encode_iter(texts))
    wait_for(lambda: loader.report()["hand_over"] == "done")
    assert loader.report()["session"] == "throughput"
    np.testing.assert_allclose(provider.encode(TEXTS), vectors[: len(TEXTS)], atol=1e-6)


ONE_QUERY = """
import json, sys, time
from firstvec import get_embedding_provider
from firstvec.loading import hand_over, opening
hand_over.DELAY = 0.0
opened = []
open_session = opening.open_session
def noted(engine, artifact, options):
    opened.append(options.kind)
    return open_session(engine, artifact, options)
opening.open_session = noted
provider = get_embedding_provider(sys.argv[1], "lazy", output="list")
provider.embed_query("how do I reset my password?")
time.sleep(0.3)
from firstvec.process import threads
threads._PATIENCE = 600
threads.before_exit()
print(opened, provider.hand_over_state)
"""


def test_a_program_with_one_query_never_builds_a_second_session(tiny_built: Path, fresh: Fresh) -> None:
    assert fresh(ONE_QUERY, tiny_built).stdout == "['quick-start'] waiting\n"


def test_a_program_that_ends_after_its_query_waits_for_no_hand_over(tiny_built: Path, fresh: Fresh) -> None:
    """Also with PROGRESSIVE, which hands over after the first run: the exit comes before the delay is over."""
    code = ONE_QUERY.replace("hand_over.DELAY = 0.0", "hand_over.DELAY = 600.0").replace('"lazy"', '"progressive"')
    assert fresh(code, tiny_built).stdout == "['quick-start'] waiting\n"


STOPPED = """
import sys
from firstvec import get_embedding_provider
from firstvec.loading import hand_over
from firstvec.process.threads import Event, exiting
hand_over.DELAY = 0.0
open_artifact, begun = hand_over.open_artifact, Event()
def held(*arguments, **options):
    begun.set()
    assert exiting.wait(100)
    return open_artifact(*arguments, **options)
hand_over.open_artifact = held
provider = get_embedding_provider(sys.argv[1], "progressive", output="list")
provider.embed_query("text")
assert begun.wait(100)
from firstvec.process.threads import before_exit
before_exit()
print(provider.hand_over_state, provider.session_kind)
"""


def test_a_hand_over_that_the_exit_meets_stops_between_stages_and_warns_of_nothing(
    tiny_built: Path, fresh: Fresh
) -> None:
    assert fresh(STOPPED, tiny_built).stdout == "waiting quick-start\n"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_a_strategy_that_hands_over_has_a_hand_over(strategy: str, tiny_built: Path) -> None:
    expected = None if strategy == "background" else "waiting"
    # The tests import torch, which CACHED would take.
    options = {"artifact": "onnx-fp32"} if strategy == "cached" else {}
    assert load(tiny_built, strategy, **options).report()["hand_over"] == expected


def test_a_hand_over_that_opens_the_files_again_changes_nothing_in_the_verification(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at_once: None
) -> None:
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "cache"))
    loader = load(tiny_built, "progressive")
    assert (loader.report()["hand_over"], loader.report()["session"]) == ("waiting", "quick-start")
    loader.get_provider().embed_query("text")
    wait_for(lambda: loader.report()["hand_over"] == "done")
    report = loader.report()
    assert (report["session"], report["verification"], report["self_test"]) == (
        *("throughput", "hashed now", "passed now"),
    )


@pytest.mark.parametrize("error", [NoCompatibleArtifact("tiny", "here", [], "hint"), RuntimeError("out of memory")])
def test_a_hand_over_that_fails_is_reported_and_warned_of(
    error: Exception,
    tiny_built: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at_once: None,
) -> None:
    loader = load(tiny_built, "progressive")

    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(hand_over, "open_artifact", fail)
    loader.get_provider().embed_query("text")
    wait_for(lambda: loader.report()["hand_over"] != "waiting")
    assert loader.report()["hand_over"] == f"failed: {error}"
    wait_for(lambda: messages(caplog))
    assert messages(caplog) == [f"the quick-start session stays in use: {error}"]
    assert len(loader.get_provider().embed_query("text")) == 32


def test_a_hand_over_that_the_memory_does_not_suffice_for_is_not_begun(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at_once: None
) -> None:
    loader = load(tiny_built, "progressive")
    stages = len(loader.report()["stages"])
    monkeypatch.setattr("firstvec.machine.limits.available_memory", lambda: 10 << 20)
    loader.get_provider().embed_query("text")
    wait_for(lambda: loader.report()["hand_over"] != "waiting")
    assert "memory: needs about" in loader.report()["hand_over"]
    wait_for(lambda: messages(caplog))
    assert len(loader.report()["stages"]) == stages


def test_a_session_that_computes_wrong_is_not_handed_over_to(
    tiny_built: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at_once: None,
) -> None:
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "cache"))  # no self-test has passed before
    compare = self_test.compare

    def wrong_when_prepacked(artifact: Any, session: Any, golden: Any) -> float:
        if session.kind == "throughput":
            golden = golden.replace(vectors=[-value for value in golden.vectors])
        return compare(artifact, session, golden)

    monkeypatch.setattr(self_test, "compare", wrong_when_prepacked)
    swapped: list[object] = []
    monkeypatch.setattr(SessionInUse, "swap", lambda *arguments: swapped.append(arguments))
    with caplog.at_level(logging.WARNING, "firstvec"):
        provider = load(tiny_built, "progressive").get_provider()
        provider.embed_query("a text")
        wait_for(lambda: caplog.records)
    assert "the quick-start session stays in use" in caplog.text
    assert (provider.session_kind, swapped) == ("quick-start", [])


def test_a_provider_that_was_closed_before_its_hand_over_waits_for_none(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = threading.Event()
    delay = SimpleNamespace(wait=lambda _seconds: not closed.wait(120))
    monkeypatch.setattr(hand_over, "exiting", delay)
    loader = load(tiny_built, "progressive")
    loader.get_provider().embed_query("text")
    stages = len(loader.report()["stages"])
    loader.get_provider().close()
    assert loader.report()["hand_over"] is None
    closed.set()
    wait_for_tasks()
    assert loader.report()["hand_over"] is None
    assert len(loader.report()["stages"]) == stages  # no session was built in vain


@pytest.mark.parametrize("what", ["closed", "dropped"])
def test_a_session_that_nobody_needs_any_more_when_it_is_built_is_closed(
    what: str, tiny_built: Path, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    open_artifact, closed = opening.open_artifact, []
    built, go_on = threading.Event(), threading.Event()

    def held(*arguments: Any, **options: Any) -> opening.OpenArtifact:
        opened = open_artifact(*arguments, **options)
        close = opened.session.close
        opened.session.close = lambda: (closed.append(opened.session.kind), close())  # type: ignore[method-assign]
        built.set()
        assert go_on.wait(120)
        return opened

    monkeypatch.setattr(hand_over, "open_artifact", held)
    provider: EmbeddingProvider[Any, Any] | None = load(tiny_built, "progressive").get_provider()
    assert provider is not None
    provider.embed_query("text")
    assert built.wait(120)
    if what == "closed":
        provider.close()
    else:
        provider = None
    go_on.set()
    wait_for_tasks()
    wait_for(lambda: closed)
    assert closed == ["throughput"]
    assert provider is None or (provider.closed and provider.session is None)


def test_ctrl_c_while_a_hand_over_is_started_lets_the_next_run_start_it(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    provider = load(tiny_built, "progressive").get_provider()
    with monkeypatch.context() as patch:
        patch.setattr(threads, "start_new_thread", interrupted)
        with pytest.raises(KeyboardInterrupt):
            provider.embed_query("text")
    assert provider.hand_over_state == "waiting"
    provider.embed_query("text")
    wait_for(lambda: provider.hand_over_state == "done")


def test_where_no_thread_can_be_started_the_hand_over_does_not_wait_for_its_own_caller(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    def refused(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(hand_over, "_PATIENCE", 600.0)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    provider = load(tiny_built, "progressive").get_provider()
    monkeypatch.setattr(threads, "start_new_thread", refused)
    began = time.monotonic()
    provider.embed_query("text")
    assert (provider.hand_over_state, provider.session_kind) == ("done", "throughput")
    assert time.monotonic() - began < 300


def test_the_replaced_session_is_closed_in_the_thread_of_the_hand_over(
    tiny_built: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a caller's thread, the close would run in a destructor, and Ctrl-C in a destructor is lost."""
    monkeypatch.setattr(hand_over, "_PATIENCE", 600.0)
    provider = load(tiny_built, "progressive").get_provider()
    lease = provider._sessions.lease()
    session = lease.session
    close, closed_in = session.close, []
    session.close = lambda: (closed_in.append(threading.get_ident()), close())  # type: ignore[method-assign]
    provider.embed_query("text")
    wait_for(lambda: provider.session_kind == "throughput")
    assert closed_in == []  # the lease may be in a run
    lease.run([[101, 102]])  # on the new session
    wait_for(lambda: closed_in)
    assert closed_in[0] != threading.get_ident()


KEPT = """
import sys, time
from firstvec import get_embedding_provider
from firstvec.loading import hand_over
hand_over.DELAY, hand_over._PATIENCE = 0.0, 600.0
provider = get_embedding_provider(sys.argv[1], "progressive", output="list")
lease = provider._sessions.lease()
provider.embed_query("text")
while provider.session_kind == "quick-start":
    time.sleep(0.01)
print(provider.session_kind)
from firstvec.process import threads
threads.before_exit()
assert threads._given_up == set()
"""


def test_the_exit_does_not_wait_for_a_call_that_uses_the_replaced_session(tiny_built: Path, fresh: Fresh) -> None:
    assert fresh(KEPT, tiny_built).stdout == "throughput\n"
