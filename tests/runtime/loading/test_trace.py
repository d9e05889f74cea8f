"""The stages of a load: their times, their threads, and that none begins while the process exits."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from firstvec import LoadError
from firstvec.loading.trace import Trace
from firstvec.process.threads import ProcessExiting, exiting
from tests.loads import load, run_in_threads


def test_a_stage_has_its_name_its_thread_and_its_time() -> None:
    trace = Trace()
    assert 0 <= time.time_ns() - trace.began_ns < 60 * 10**9
    with trace.stage("outer"), trace.stage("inner"):
        time.sleep(0.02)
    inner, outer = trace.stages
    assert (outer["name"], inner["name"]) == ("outer", "inner")
    assert 0 <= outer["at_ms"] <= inner["at_ms"]
    assert 20 <= inner["ms"] <= outer["ms"]
    assert outer["thread"] == inner["thread"] == threading.get_ident()


def test_a_stage_that_fails_is_a_stage() -> None:
    trace = Trace()
    with pytest.raises(ZeroDivisionError), trace.stage("division"):
        _ = 1 // 0
    assert [stage["name"] for stage in trace.stages] == ["division"]


def test_the_values_are_in_the_order_in_which_stages_began_and_are_json() -> None:
    trace = Trace()

    began, ended = ([threading.Event() for _ in range(3)] for _ in range(2))

    def work(index: int) -> None:
        assert index == 0 or began[index - 1].wait(60)
        with trace.stage(f"stage {index}"):
            began[index].set()
            assert index == 2 or ended[index + 1].wait(60)
        ended[index].set()

    run_in_threads(3, work)
    values = trace.to_values()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert [set(value) for value in values] == [{"name", "at_ms", "ms", "thread"}] * 3
    assert [value["name"] for value in values] == ["stage 0", "stage 1", "stage 2"]
    assert [value["at_ms"] for value in values] == sorted(value["at_ms"] for value in values)
    # The stages themselves are in the order in which they ended.
    assert [stage["name"] for stage in trace.stages] == ["stage 2", "stage 1", "stage 0"]
    assert len({value["thread"] for value in values}) == 3


def test_a_moment_is_milliseconds_from_the_start() -> None:
    trace = Trace()
    assert trace.milliseconds(trace.began) == 0.0
    assert trace.milliseconds(trace.began + 0.0123456) == 12.346
    assert trace.first_vector_ms is None


def test_no_stage_begins_while_the_process_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace()
    monkeypatch.setattr(exiting, "is_set", True)
    message = "the process is exiting, so the load was stopped"
    with pytest.raises(ProcessExiting, match=message) as caught, trace.stage("too late"):
        raise AssertionError("the stage has begun")
    assert isinstance(caught.value, LoadError)
    assert trace.stages == []


def test_a_trace_that_begins_while_the_process_exits_has_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exiting, "is_set", True)
    trace = Trace()
    with trace.stage("wanted"):
        pass
    assert [stage["name"] for stage in trace.stages] == ["wanted"]


@pytest.mark.parametrize("strategy", ["lazy", "progressive"])
def test_the_first_vector_is_timed_once(strategy: str, tiny_built: Path) -> None:
    loader = load(tiny_built, strategy)
    assert loader.report()["first_vector_ms"] is None
    provider = loader.get_provider()
    time.sleep(0.05)
    provider.embed_query("text")
    now = 1e3 * (time.perf_counter() - loader.report()["started"])
    first = loader.report()["first_vector_ms"]
    assert 1e3 * loader.get_load_time() + 50 <= first <= now
    provider.embed_query("text")
    assert loader.report()["first_vector_ms"] == first
