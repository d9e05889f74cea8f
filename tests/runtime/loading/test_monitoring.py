"""What a load tells a program: the trace, the log and the spans; and that it costs nothing where nobody listens."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from firstvec import BundleNotFound, NoCompatibleArtifact, OptimizedEmbeddingLoader
from firstvec.loading import hand_over, monitoring
from firstvec.loading.report import Report
from tests.conftest import REPOSITORY, Fresh
from tests.loads import ask_at_once, flip_byte, load, wait_for, wait_for_tasks

SWITCHES = ("logging", "opentelemetry", "opentelemetry.trace", "firstvec.loading.monitoring")
LOADING = {"manifest", "choice", "tokenizer", "verification", "engine", "session", "self-test"}
"""Stages of every load."""


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """Switch the trace on, and return what reads its lines."""
    path = tmp_path / "trace.jsonl"
    monkeypatch.setenv("FIRSTVEC_TRACE", str(path))

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return lines


@pytest.fixture(autouse=True)
def _nothing_was_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "_warned", set())


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "firstvec"]


# The trace

LOAD = """
import sys
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(sys.argv[1], sys.argv[2], output=sys.argv[3])
loader.start_loading()
for text in sys.argv[4:]:
    loader.get_provider().embed_query(text)
"""


@pytest.mark.native
def test_the_trace_is_one_line_on_stderr(tiny_built: Path, fresh: Fresh) -> None:
    before = time.time()
    done = fresh(LOAD, tiny_built, "lazy", "list", "one", "two", check=False, FIRSTVEC_TRACE="1")
    assert (done.returncode, done.stdout) == (0, "")
    [text] = done.stderr.splitlines()
    line = json.loads(text)
    assert set(line) == {"event", "time", "pid", "firstvec", *Report._fields}
    assert (line["event"], line["state"], line["artifact"], line["strategy"]) == (
        *("first vector", "loaded", "native-fp32", "lazy"),
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert before - 0.001 <= datetime.fromisoformat(line["time"]).timestamp() <= time.time()
    assert line["first_vector_ms"] >= 1e3 * line["seconds"]
    assert {stage["name"] for stage in line["stages"]} >= LOADING


def test_the_trace_knows_how_long_numpy_took(tiny_built: Path, fresh: Fresh) -> None:
    done = fresh(LOAD, tiny_built, "lazy", "numpy", "one", check=False, FIRSTVEC_TRACE="1")
    assert "import numpy" in {stage["name"] for stage in json.loads(done.stderr)["stages"]}


@pytest.mark.parametrize("value", ["", "0"])
def test_the_trace_is_off(value: str, tiny_built: Path, fresh: Fresh, tmp_path: Path) -> None:
    code = LOAD + f"assert not {set(SWITCHES)!r} & set(sys.modules)"
    fresh(code, tiny_built, "lazy", "list", "one", FIRSTVEC_TRACE=value)


@pytest.mark.native
def test_the_command_has_a_trace(tiny_built: Path, firstvec: Fresh, tmp_path: Path) -> None:
    done = firstvec("encode", "--model", tiny_built, "a text", FIRSTVEC_TRACE="1")
    assert json.loads(done.stdout)["artifact"] == json.loads(done.stderr)["artifact"] == "native-fp32"
    done = firstvec("encode", "--model", tiny_built / "nothing", "a text", FIRSTVEC_TRACE=str(tmp_path / "file"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert json.loads((tmp_path / "file").read_text())["event"] == "failed"


@pytest.mark.parametrize("strategy", ["background", "progressive"])
def test_a_process_that_ends_before_the_first_vector_leaves_its_line(
    strategy: str, tiny_built: Path, fresh: Fresh
) -> None:
    done = fresh(f"{LOAD}loader.get_provider()", tiny_built, strategy, "numpy", check=False, FIRSTVEC_TRACE="1")
    line = json.loads(done.stderr)
    assert (done.returncode, line["event"], line["state"], line["first_vector_ms"]) == (0, "exit", "loaded", None)
    assert {stage["name"] for stage in line["stages"]} >= LOADING


def test_a_process_that_ends_during_the_load_leaves_its_line(tiny_built: Path, tmp_path: Path, fresh: Fresh) -> None:
    """The exit stops the load. Nothing has failed, so the event is the exit."""
    code = f"""
import threading
from firstvec.loading import opening
from firstvec.process.threads import exiting
verify_artifact, begun = opening.verify_artifact, threading.Event()
def held(*arguments):
    begun.set()
    assert exiting.wait(100)
    return verify_artifact(*arguments)
opening.verify_artifact = held
{LOAD}
assert begun.wait(100)
"""
    # The empty cache makes it a load in a thread, because the files have to be hashed.
    cache = str(tmp_path)
    done = fresh(code, tiny_built, "background", "numpy", check=False, FIRSTVEC_TRACE="1", FIRSTVEC_CACHE=cache)
    line = json.loads(done.stderr)
    assert (done.returncode, line["event"], line["state"], line["artifact"]) == (0, "exit", "failed", None)
    assert line["error"] == "the process is exiting, so the load was stopped"
    assert "manifest" in {stage["name"] for stage in line["stages"]}


def test_a_load_that_hangs_holds_the_exit_up_once_and_leaves_its_line(
    tiny_built: Path, tmp_path: Path, fresh: Fresh
) -> None:
    code = """
import atexit, sys, time
gave_up = []
atexit.register(lambda: print(sum(gave_up)))  # before firstvec's own functions, so it is called after them
from firstvec import OptimizedEmbeddingLoader
from firstvec.loading import opening
from firstvec.process import threads
threads._PATIENCE = 1.0
wait_for_tasks = threads._wait_for_tasks
def noted():
    left = wait_for_tasks()
    gave_up.append(bool(left))
    return left
threads._wait_for_tasks = noted
hangs = []
def hang(*arguments, **options):
    hangs.append(True)
    time.sleep(600)
opening.open_artifact = hang
OptimizedEmbeddingLoader(sys.argv[1], "background", "cpu").start_loading()
while not hangs:
    time.sleep(0.01)
"""
    done = fresh(code, tiny_built, check=False, FIRSTVEC_TRACE="1", FIRSTVEC_CACHE=str(tmp_path))
    line = json.loads(done.stderr)
    assert done.stdout == "1\n"
    assert (done.returncode, line["event"], line["state"], line["seconds"]) == (0, "exit", "loading", 0.0)


def test_a_provider_that_was_dropped_is_freed_and_leaves_its_line(tiny_built: Path, fresh: Fresh) -> None:
    code = """
import gc, sys, weakref
from firstvec import OptimizedEmbeddingLoader
provider = weakref.ref(OptimizedEmbeddingLoader(sys.argv[1], output="list").get_provider())
from firstvec.process import threads
threads._wait_for_tasks()
gc.collect()
assert provider() is None
"""
    done = fresh(code, tiny_built, check=False, FIRSTVEC_TRACE="1")
    assert (done.returncode, json.loads(done.stderr)["event"]) == (0, "exit")


def test_a_line_is_written_where_only_the_provider_is_kept(
    tiny_built: Path, trace: Callable[[], list[dict[str, Any]]]
) -> None:
    OptimizedEmbeddingLoader(str(tiny_built)).get_provider().embed_query("text")
    [line] = trace()
    assert (line["event"], line["pid"]) == ("first vector", os.getpid())


def test_each_load_has_one_line_whoever_is_first(tiny_onnx: Path, trace: Callable[[], list[dict[str, Any]]]) -> None:
    for count in (1, 2):
        provider = load(tiny_onnx, "progressive").get_provider()
        ask_at_once(8, lambda provider=provider: provider.embed_query("text"))
        assert len(trace()) == count
    assert [line["hand_over"] for line in trace()] == ["waiting"] * 2


def test_a_failed_load_has_a_line_and_so_has_the_next_attempt(
    tiny_bundle: Path, trace: Callable[[], list[dict[str, Any]]]
) -> None:
    away = tiny_bundle.with_name("away")
    os.rename(tiny_bundle, away)
    loader = OptimizedEmbeddingLoader(str(tiny_bundle))
    with pytest.raises(BundleNotFound):
        loader.get_provider()
    [line] = trace()  # it is there before the error is
    assert (line["event"], line["state"], line["artifact"]) == ("failed", "failed", None)
    assert line["error"].startswith("no bundle for model")
    os.rename(away, tiny_bundle)
    loader.get_provider().embed_query("text")
    assert [line["event"] for line in trace()] == ["failed", "first vector"]


@pytest.mark.native
def test_a_fallback_is_in_the_trace(tiny_bundle: Path, trace: Callable[[], list[dict[str, Any]]]) -> None:
    for name in ("native/model.fvw", "onnx/model.onnx_data"):
        flip_byte(tiny_bundle / name)
    load(tiny_bundle).get_provider().embed_query("text")
    [line] = trace()
    assert [(each["artifact"], each["error"]) for each in line["fallbacks"]] == [
        *[("native-fp32", "IntegrityError"), ("onnx-fp32", "IntegrityError")],
    ]
    assert line["artifact"] == "torchscript-fp32"


@pytest.mark.native
def test_where_every_candidate_failed_all_are_listed(
    tiny_bundle: Path, trace: Callable[[], list[dict[str, Any]]]
) -> None:
    for name in ("native/model.fvw", "onnx/model.onnx", "torchscript/model.pt"):
        flip_byte(tiny_bundle / name)
    with pytest.raises(NoCompatibleArtifact):
        load(tiny_bundle)
    [line] = trace()
    assert [each["artifact"] for each in line["fallbacks"]] == ["native-fp32", "onnx-fp32", "torchscript-fp32"]
    assert (line["event"], line["verification"]) == ("failed", None)


def test_twenty_processes_write_twenty_whole_lines(tiny_built: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    environment = os.environ | {"FIRSTVEC_TRACE": str(path)}
    # Long lines: with a name of 4,000 characters.
    name = str(tiny_built) + "/." * 2000
    command = [sys.executable, "-c", LOAD, name, "background", "list", "text"]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(20)]
    for process in processes:
        assert (process.communicate(timeout=300)[1], process.returncode) == (b"", 0)
    data = path.read_bytes()
    assert data.endswith(b"\n")
    lines = [json.loads(line) for line in data.splitlines()]
    assert sorted(line["pid"] for line in lines) == sorted(process.pid for process in processes)
    assert {(line["event"], line["model"]) for line in lines} == {("first vector", name)}


@pytest.mark.parametrize("target", ["/proc/no-such-folder/trace", "/"])
def test_a_trace_that_cannot_be_written_is_one_warning(
    target: str, tiny_built: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FIRSTVEC_TRACE", target)
    for _ in range(3):
        assert len(load(tiny_built).get_provider().embed_query("text")) == 32
    [message] = messages(caplog)
    assert f"FIRSTVEC_TRACE={target} cannot be written" in message


def test_a_pipe_that_nobody_reads_holds_nothing_up(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("FIRSTVEC_TRACE", str(tmp_path / "pipe"))
    assert len(load(tiny_built).get_provider().embed_query("text")) == 32
    assert "cannot be written" in messages(caplog)[0]


@pytest.mark.parametrize("state", ["closed", "none"])
def test_a_stderr_that_is_not_there_does_not_matter(
    state: str, tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTVEC_TRACE", "1")
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream if state == "closed" else None)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    assert len(load(tiny_built).get_provider().embed_query("text")) == 32


@pytest.mark.parametrize("broken", ["_append", "Watch", "_wait_for_numpy", "_log"])
def test_an_error_in_the_monitoring_never_breaks_a_load(
    broken: str,
    tiny_built: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trace: Callable[[], list[dict[str, Any]]],
) -> None:
    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(monitoring, broken, fail)
    loader = load(tiny_built, "progressive")
    assert len(loader.get_provider().embed_query("text")) == 32
    with pytest.raises(BundleNotFound):
        OptimizedEmbeddingLoader("no/such-model").get_provider()
    wait_for_tasks()
    assert any("ZeroDivisionError: broken" in message for message in messages(caplog))


FORK_BEFORE_THE_FIRST_VECTOR = """
import os, sys
from firstvec import OptimizedEmbeddingLoader
provider = OptimizedEmbeddingLoader(sys.argv[1], output="list").get_provider()
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print(os.getpid())
else:
    provider.embed_query("text")
    OptimizedEmbeddingLoader(sys.argv[1], "quantized", output="list").start_loading()
    sys.exit()
"""


def test_a_forked_child_writes_the_lines_of_its_own_loads_only(tiny_built: Path, fresh: Fresh) -> None:
    done = fresh(FORK_BEFORE_THE_FIRST_VECTOR, tiny_built, check=False, FIRSTVEC_TRACE="1")
    child, parent = (json.loads(line) for line in done.stderr.splitlines())
    assert (parent["pid"], parent["event"], parent["strategy"]) == (int(done.stdout), "exit", "lazy")
    assert (child["event"], child["strategy"]) == ("exit", "quantized")
    assert child["pid"] != parent["pid"]


POOL = """
import multiprocessing, sys
from firstvec import get_embedding_provider
def work():
    assert get_embedding_provider(sys.argv[1]).embed_query("text").shape == (32,)
if __name__ == "__main__":
    children = [multiprocessing.get_context("fork").Process(target=work) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
"""


def test_workers_that_end_at_once_write_their_line(tiny_built: Path, fresh: Fresh, tmp_path: Path) -> None:
    fresh(POOL, tiny_built, FIRSTVEC_TRACE=str(tmp_path / "trace"))
    lines = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["first vector"] * 4


# The log


@pytest.mark.native
@pytest.mark.parametrize(
    ("artifact", "engine"),
    [(None, r"native-fp32 .*: native 1\.0 \(\w+\)"), ("onnx-fp32", r"onnx-fp32 .*: onnxruntime .*")],
)
def test_a_load_is_one_line_at_info(
    artifact: str | None, engine: str, tiny_built: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(tiny_built, artifact=artifact)
    wait_for_tasks()  # so that the level is asked for before it changes
    with caplog.at_level(logging.INFO, "firstvec"):
        load(tiny_built, "background", artifact=artifact)
        wait_for_tasks()
    [record] = [record for record in caplog.records if record.name == "firstvec"]
    message = record.getMessage()
    assert record.levelno == logging.INFO
    assert re.search(r"-fp32 loaded in \d+\.\d ms: ", message)
    assert re.search(rf"{engine}, cpu, throughput; files remembered", message)


def test_the_stages_are_lines_at_debug(tiny_built: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "firstvec"):
        loader = load(tiny_built)
        wait_for_tasks()
    found = [record for record in caplog.records if record.name == "firstvec"]
    assert [record.levelno for record in found] == [logging.INFO, *[logging.DEBUG] * (len(found) - 1)]
    names = {record.getMessage().removeprefix(f"{tiny_built}: ").split(":")[0] for record in found[1:]}
    assert names >= LOADING
    assert len(found) == 1 + len(loader.report()["stages"])


def test_a_failed_load_is_one_line_at_info(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "firstvec"):
        with pytest.raises(BundleNotFound):
            OptimizedEmbeddingLoader("no/such-model").get_provider()
        wait_for_tasks()
    [message] = messages(caplog)
    assert "\n" not in message
    assert re.match(r"no/such-model: not loaded, after \d+\.\d ms: BundleNotFound: no bundle", message)


def test_above_info_there_is_nothing(tiny_built: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "firstvec"):
        load(tiny_built)
        wait_for_tasks()
    assert messages(caplog) == []


# The spans: each in a fresh process, because a process has one tracer provider.

SPANS = """
import json, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from firstvec import OptimizedEmbeddingLoader
from firstvec.process import threads
exporter = InMemorySpanExporter()
def record(sampler=sampling.ALWAYS_ON):
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
def load(strategy="lazy", output="list", artifact=None):
    loader = OptimizedEmbeddingLoader(sys.argv[1], strategy, "cpu", output=output, artifact=artifact)
    loader.start_loading()
    return loader
def show(**others):
    threads._wait_for_tasks()
    spans = [
        dict(
            name=span.name, start=span.start_time, end=span.end_time, attributes=dict(span.attributes),
            id=span.context.span_id, trace=span.context.trace_id, parent=span.parent and span.parent.span_id,
            status=span.status.status_code.name, description=span.status.description,
            scope=span.instrumentation_scope.name,
            events=[dict(name=event.name, attributes=dict(event.attributes)) for event in span.events],
        )
        for span in exporter.get_finished_spans()
    ]
    print(json.dumps(dict(spans=spans, **others)))
"""


def spans_of(fresh: Fresh, code: str, *arguments: object, **environment: str) -> tuple[Any, dict[str, Any]]:
    """The load's span, and everything that was shown."""
    shown = json.loads(fresh(SPANS + code, *arguments, **environment).stdout)
    [top] = [span for span in shown["spans"] if span["name"] == "firstvec.load"]
    return top, shown


@pytest.mark.native
@pytest.mark.parametrize("artifact", ["native-fp32", "onnx-fp32"])
@pytest.mark.parametrize("output", ["list", "numpy"])
def test_spans_nest_and_add_up(output: str, artifact: str, bundle: Path, fresh: Fresh) -> None:
    code = """
import time
record()
before = time.time_ns()
loader = load("background", *sys.argv[2:])
loader.get_provider()
after = time.time_ns()
threads._wait_for_tasks()  # numpy's import may end after the load
show(before=before, after=after, report=loader.report())
"""
    top, shown = spans_of(fresh, code, bundle, output, artifact)
    report = shown["report"]
    children = [span for span in shown["spans"] if span is not top]
    assert (top["scope"], top["status"], top["parent"], top["events"]) == ("firstvec", "UNSET", None, [])
    assert shown["before"] <= top["start"] <= top["end"] <= shown["after"] + 1000
    assert (top["end"] - top["start"]) / 1e9 == pytest.approx(report["seconds"], abs=2e-6)
    assert {span["name"].removeprefix("firstvec.") for span in children} == {each["name"] for each in report["stages"]}
    threads = defaultdict(list)
    for span in children:
        assert (span["parent"], span["trace"]) == (top["id"], top["trace"])
        assert top["start"] <= span["start"] <= span["end"]
        if span["name"] == "firstvec.import numpy":  # the load does not wait for it
            assert output == "numpy"
            continue
        assert span["end"] <= top["end"] + 2000
        threads[span["attributes"]["thread.id"]].append((span["start"], span["end"]))
    # The thread that starts the load chooses the artifact. Only onnxruntime needs two more.
    assert len(threads) == (3 if artifact == "onnx-fp32" else 1)
    for spans in threads.values():
        spans.sort()
        # Within a thread one after another, so that no thread's sum is more than the whole.
        assert all(end <= start + 2000 for (_, end), (start, _) in pairwise(spans))
        assert sum(end - start for start, end in spans) <= top["end"] - top["start"] + 20_000
    assert top["attributes"] == {
        f"firstvec.{name}": report[name]
        for name in ("model", "strategy", "artifact", "engine", "device", "session", "verification", "self_test")
    }


def test_the_parent_is_the_span_of_the_thread_that_started_the_load(tiny_built: Path, fresh: Fresh) -> None:
    code = """
record()
tracer = trace.get_tracer("app")
with tracer.start_as_current_span("request") as request:
    loader = load("background")
with tracer.start_as_current_span("another"):
    loader.get_provider().embed_query("text")
show(request=request.context.span_id)
"""
    top, shown = spans_of(fresh, code, tiny_built)
    assert top["parent"] == shown["request"]


def test_the_span_of_a_request_is_not_kept(tiny_built: Path, fresh: Fresh) -> None:
    code = """
import gc, weakref
record()
with trace.get_tracer("app").start_as_current_span("request") as request:
    loader = load()
    provider = loader.get_provider()
threads._wait_for_tasks()
exporter.clear()
request = weakref.ref(request)
gc.collect()
assert request() is None
"""
    fresh(SPANS + code, tiny_built)


def test_a_failed_load_is_a_span_with_its_error(fresh: Fresh) -> None:
    code = """
record()
try:
    load().get_provider()
except Exception as error:
    show(report=None)
"""
    top, _ = spans_of(fresh, code, "no/such-model")
    assert top["status"] == "ERROR"
    assert top["description"].startswith("BundleNotFound: no bundle for model 'no/such-model'")
    [event] = top["events"]
    assert event["name"] == "exception"
    assert event["attributes"]["exception.type"] == "firstvec.errors.BundleNotFound"
    assert "Traceback" in event["attributes"]["exception.stacktrace"]
    assert top["attributes"] == {"firstvec.model": "no/such-model", "firstvec.strategy": "lazy"}


@pytest.mark.native
def test_fallbacks_are_an_attribute(tiny_bundle: Path, fresh: Fresh) -> None:
    for name in ("native/model.fvw", "onnx/model.onnx_data"):
        flip_byte(tiny_bundle / name)
    code = "import logging; logging.disable(); record(); load().get_provider(); show()"
    top, _ = spans_of(fresh, code, tiny_bundle)
    assert top["attributes"]["firstvec.fallbacks"] == ["native-fp32: IntegrityError", "onnx-fp32: IntegrityError"]
    assert top["attributes"]["firstvec.artifact"] == "torchscript-fp32"


def test_the_stages_of_a_hand_over_are_no_part_of_the_load(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hand_over, "DELAY", 0.0)
    loader = load(tiny_onnx, "progressive")
    loader.get_provider().embed_query("text")
    wait_for(lambda: loader.report()["hand_over"] == "done")
    assert loader._load is not None
    assert [stage["name"] for stage in loader.report()["stages"]].count("session") == 2
    with caplog.at_level(logging.DEBUG, "firstvec"):
        monitoring.tell(loader._load, None)
    assert sum(": session: " in message for message in messages(caplog)) == 1


@pytest.mark.parametrize("text", [[], ["text"]])
def test_a_process_that_ends_at_once_exports_its_span(text: list[str], bundle: Path, fresh: Fresh) -> None:
    code = """
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
record()
trace.get_tracer_provider().add_span_processor(
    BatchSpanProcessor(ConsoleSpanExporter(formatter=lambda span: span.name + chr(10)))
)
loader = load("background", "numpy")
for text in sys.argv[2:]:
    loader.get_provider().embed_query(text)
"""
    assert "firstvec.load" in fresh(SPANS + code, bundle, *text).stdout.splitlines()


@pytest.mark.parametrize("switch", ["", "record(sampling.ALWAYS_OFF)"])
def test_where_nothing_would_be_recorded_no_span_of_a_stage_is_made(
    switch: str, tiny_built: Path, fresh: Fresh
) -> None:
    code = f"""
{switch}
from opentelemetry.sdk.trace import Tracer
from opentelemetry.trace import NoOpTracer, ProxyTracer
started = []
for kind in (Tracer, ProxyTracer):
    def start_span(self, name, *arguments, _real=kind.start_span, **options):
        started.append(name)
        return _real(self, name, *arguments, **options)
    kind.start_span = start_span
load().get_provider().embed_query("text")
threads._wait_for_tasks()
assert started == ["firstvec.load"], started
show()
"""
    assert json.loads(fresh(SPANS + code, tiny_built).stdout)["spans"] == []


def test_a_program_that_imports_opentelemetry_during_the_load_has_its_span_as_a_root(
    tiny_built: Path, tmp_path: Path, fresh: Fresh
) -> None:
    code = """
import sys, time
from firstvec import OptimizedEmbeddingLoader
from firstvec.loading import opening
open_artifact = opening.open_artifact
def held(verified, **options):
    while "shown" not in globals():
        time.sleep(0.01)
    return open_artifact(verified, **options)
opening.open_artifact = held
loader = OptimizedEmbeddingLoader(sys.argv[1], "background", "cpu", output="list")
loader.start_loading()
""" + SPANS.replace("def load(", "def unused(")
    code += 'record()\nshown = True\nwith trace.get_tracer("app").start_as_current_span("request"):\n'
    code += "    loader.get_provider()\nshow()"
    done = fresh(code, tiny_built, FIRSTVEC_CACHE=str(tmp_path))
    top = [span for span in json.loads(done.stdout)["spans"] if span["name"] == "firstvec.load"]
    assert [span["parent"] for span in top] == [None]


def test_a_tracer_that_fails_is_a_warning(tiny_built: Path, fresh: Fresh) -> None:
    code = """
class Broken(trace.TracerProvider):
    def get_tracer(self, *arguments, **options):
        raise ZeroDivisionError("broken")
trace.set_tracer_provider(Broken())
assert len(load().get_provider().embed_query("text")) == 32
"""
    done = fresh(SPANS + code, tiny_built, check=False)
    assert done.returncode == 0
    assert done.stderr == "the load's spans are not recorded: ZeroDivisionError: broken\n"


# Where nobody listens

QUIET = f"""
import sys
from firstvec import get_embedding_provider, preload_embeddings
loader = preload_embeddings(sys.argv[1], sys.argv[2], output=sys.argv[3])
get_embedding_provider().embed_query("text")
loader.report()
from firstvec.process import threads
threads._wait_for_tasks()
print(sorted(set(sys.modules) & set({SWITCHES!r})))
"""


@pytest.mark.parametrize("output", ["list", "numpy"])
@pytest.mark.parametrize("strategy", ["lazy", "background", "progressive", "quantized", "cached"])
def test_a_load_that_nobody_listens_to_imports_nothing_for_it(
    strategy: str, output: str, bundle: Path, fresh: Fresh
) -> None:
    assert fresh(QUIET, bundle, strategy, output).stdout == "[]\n"


def test_the_command_imports_nothing_for_it(tiny_built: Path, fresh: Fresh) -> None:
    code = f"""
import sys
from firstvec.__main__ import main
main(["encode", "--model", sys.argv[1], "a text"])
assert not set({SWITCHES!r}) & set(sys.modules)
"""
    fresh(code, tiny_built)


def test_a_failed_load_that_nobody_listens_to_imports_nothing_for_it(fresh: Fresh) -> None:
    code = QUIET.replace('get_embedding_provider().embed_query("text")', "loader._load._done.wait()")
    assert fresh(code, "no/such-model", "background", "list").stdout == "[]\n"


def test_logging_that_is_not_set_to_info_is_no_listener(tiny_built: Path, fresh: Fresh) -> None:
    assert fresh(f"import logging{QUIET}", tiny_built, "background", "list").stdout == "['logging']\n"


# The documentation


def blocks(language: str) -> list[str]:
    text = (REPOSITORY / "docs" / "monitoring.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_the_programs_of_the_documentation_run(index: int, bundle: Path, fresh: Fresh) -> None:
    done = fresh(blocks("python")[index], check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_the_documentation_has_every_field_of_a_line() -> None:
    text = (REPOSITORY / "docs" / "monitoring.md").read_text("utf-8")
    for name in (*Report._fields, "event", "time", "pid", "firstvec"):
        assert f"| `{name}` |" in text, name
