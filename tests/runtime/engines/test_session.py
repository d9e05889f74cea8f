"""The three calls that turn an engine's errors into typed ones, and the padding."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from firstvec import IncompatibleArtifact, Manifest
from firstvec.engines.session import SessionOptions, import_engine, open_session, pad, run_session
from firstvec.engines.table import ENGINES
from tests.loads import artifact_of
from tests.runtime.engines.options import session_options


def test_an_engine_that_is_no_row_is_an_incompatible_artifact(tiny_built: Path) -> None:
    artifact = artifact_of(Manifest.read(tiny_built), "onnx-fp32").replace(engine="abacus")
    with pytest.raises(IncompatibleArtifact, match=r"onnx-fp32: the engine 'abacus' is unknown .*: upgrade"):
        import_engine(artifact)


@pytest.mark.parametrize("error", [ImportError("no such module"), OSError("no such library")])
def test_an_engine_that_cannot_be_loaded_is_an_incompatible_artifact(
    error: Exception, tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr("firstvec.engines.onnxruntime.version", fail)
    with pytest.raises(IncompatibleArtifact, match=f"onnx-fp32: onnxruntime cannot be imported: {error}"):
        import_engine(artifact_of(Manifest.read(tiny_built), "onnx-fp32"))


def test_an_engine_whose_module_is_missing_is_an_incompatible_artifact(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "firstvec.engines.torchscript", None)
    with pytest.raises(IncompatibleArtifact, match="torchscript-fp32: torch cannot be imported"):
        import_engine(artifact_of(Manifest.read(tiny_built), "torchscript-fp32"))


def test_an_engine_version_out_of_range_is_refused(tiny_built: Path) -> None:
    artifact = artifact_of(Manifest.read(tiny_built), "onnx-fp32").replace(engine_min="99.0", engine_below="100")
    with pytest.raises(IncompatibleArtifact, match=r"needs onnxruntime >=99\.0,<100, 1\."):
        import_engine(artifact)


def test_a_model_that_the_engine_refuses_is_an_incompatible_artifact(tiny_built: Path) -> None:
    artifact = artifact_of(Manifest.read(tiny_built), "onnx-fp32")
    options = session_options(tiny_built)
    options.weights.model = b"no protobuf"
    with pytest.raises(IncompatibleArtifact, match=r"onnx-fp32: onnxruntime cannot load it: .*CreateSession"):
        open_session(import_engine(artifact), artifact, options)


class ScriptedEngine:
    """An engine whose ``open_session`` raises the given errors in turn, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = [*errors]
        self.threads: list[int] = []

    def open_session(self, options: SessionOptions) -> str:
        self.threads.append(options.threads)
        if self.errors:
            raise self.errors.pop(0)
        return "session"


NO_THREADS = RuntimeError("pthread_create failed for thread: 1, error code: 11")


def test_where_the_system_grants_no_threads_the_session_has_one(tiny_built: Path) -> None:
    artifact, options = artifact_of(Manifest.read(tiny_built), "onnx-fp32"), session_options(tiny_built)
    engine: Any = ScriptedEngine(NO_THREADS)
    assert open_session(engine, artifact, options) == "session"
    assert engine.threads == [2, 1]
    engine = ScriptedEngine(NO_THREADS)
    with pytest.raises(IncompatibleArtifact, match="pthread_create failed"):
        open_session(engine, artifact, options.replace(threads=1))
    assert engine.threads == [1]
    engine = ScriptedEngine(ZeroDivisionError("an error of its own"))
    with pytest.raises(IncompatibleArtifact, match="onnxruntime cannot load it: an error of its own"):
        open_session(engine, artifact, options)


class FailingSession:
    """A session whose run raises an error in a function of a module with the given name."""

    engine, kind = "engine 1.0", "quick-start"

    def __init__(self, error: Exception, module: str) -> None:
        self._namespace: dict[str, Any] = {"__name__": module, "error": error}
        exec("def fail():\n    raise error", self._namespace)

    def run(self, rows: object) -> Any:
        self._namespace["fail"]()


@pytest.mark.parametrize("module", [*(row.package for row in ENGINES.values()), "numpy.core", "firstvec.engines.x"])
@pytest.mark.parametrize("error", [RuntimeError("failed"), ValueError("failed")])
def test_an_error_that_an_engine_raises_in_a_run_is_an_incompatible_artifact(error: Exception, module: str) -> None:
    session: Any = FailingSession(error, module)
    with pytest.raises(IncompatibleArtifact, match=r"onnx-fp32: engine 1\.0 cannot run it: failed; run `firstvec"):
        run_session(session, "onnx-fp32", [[1]])


def test_too_little_memory_in_a_run_is_an_incompatible_artifact() -> None:
    session: Any = FailingSession(MemoryError(), "firstvec.engines.x")
    with pytest.raises(IncompatibleArtifact, match=r"onnx-fp32: engine 1\.0 has too little memory to run it; give"):
        run_session(session, "onnx-fp32", [[1]])


@pytest.mark.parametrize(
    "error",
    [RuntimeError("of the program"), ValueError("of the program"), MemoryError("of the program"), KeyboardInterrupt()],
)
def test_an_error_that_a_signal_handler_of_the_program_raises_stays_as_it_is(error: Exception) -> None:
    session: Any = FailingSession(error, "__main__")
    with pytest.raises(type(error)) as caught:
        run_session(session, "onnx-fp32", [[1]])
    assert caught.value is error


def test_rows_are_padded_on_the_right_to_the_longest() -> None:
    input_ids, attention_mask = pad([[5, 6, 7], [8], [9, 10]], 3)
    assert (input_ids.typecode, input_ids.itemsize) == (attention_mask.typecode, attention_mask.itemsize) == ("q", 8)
    assert input_ids.tolist() == [*[5, 6, 7], *[8, 3, 3], *[9, 10, 3]]
    assert attention_mask.tolist() == [*[1, 1, 1], *[1, 0, 0], *[1, 1, 0]]
    assert [each.tolist() for each in pad([[], []], 3)] == [[], []]


def test_the_kind_of_a_session_is_named_for_people(tiny_built: Path) -> None:
    kinds = [session_options(tiny_built, quick_start=each).kind for each in (True, False)]
    assert kinds == ["quick-start", "throughput"]
