"""What a load tells: `report()`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firstvec import (
    NoCompatibleArtifact,
    OptimizedEmbeddingLoader,
    background,
)
from firstvec import load as load_module
from firstvec.load import FIELDS
from tests.conftest import Fresh
from tests.runtime.test_loader import flip_byte, slow_open


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def loaded(root: Path, strategy: str = "lazy", **options: Any) -> OptimizedEmbeddingLoader:
    loader = OptimizedEmbeddingLoader(str(root), strategy, "cpu", **options)
    loader.start_loading()
    loader.get_provider()
    return loader


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "firstvec"]


# The report


def test_a_report_has_the_same_fields_in_every_state_and_is_json(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = slow_open(monkeypatch)
    loader = OptimizedEmbeddingLoader(str(tiny_built), "background", "cpu")
    missing = OptimizedEmbeddingLoader("no/such-model", "background")
    reports = [loader.report()]
    loader.start_loading()
    reports.append(loader.report())
    release.set()
    provider = loader.get_provider()
    reports.append(loader.report())
    provider.close()
    reports.append(loader.report())
    missing.start_loading()
    wait_for(missing.get_error)
    reports.append(missing.report())
    assert [report["state"] for report in reports] == ["idle", "loading", "loaded", "closed", "failed"]
    for report in reports:
        assert set(report) == set(FIELDS)
        assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert (reports[2]["artifact"], reports[2]["device"], reports[2]["session"]) == ("onnx-fp32", "cpu", "throughput")
    assert reports[2]["engine"].startswith("onnxruntime ")
    assert (reports[3]["artifact"], reports[3]["engine"], reports[3]["session"]) == ("onnx-fp32", None, None)
    assert "no/such-model" in reports[4]["error"]
    assert reports[4]["seconds"] > 0


def test_a_report_says_whether_the_files_were_hashed_for_this_load(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "cache"))
    assert [loaded(tiny_built).report()["verification"] for _ in range(2)] == ["hashed now", "remembered"]
    # One file of several is enough.
    marker = next((tmp_path / "cache" / "verified").glob(f"{_digest(tiny_built, 'onnx/model.onnx_data')}-*"))
    marker.unlink()
    assert [loaded(tiny_built).report()["verification"] for _ in range(2)] == ["hashed now", "remembered"]


def _digest(root: Path, path: str) -> str:
    document = json.loads((root / "firstvec.json").read_text("utf-8"))
    files = (file for artifact in document["artifacts"] for file in artifact["files"])
    return str(next(file["sha256"] for file in files if file["path"] == path))


def test_the_verification_is_that_of_the_artifact_in_use(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "cache"))
    loaded(tiny_bundle)
    flip_byte(tiny_bundle / "onnx/model.onnx_data")
    report = loaded(tiny_bundle).report()
    assert (report["artifact"], report["verification"]) == ("torchscript-fp32", "hashed now")
    [fallback] = report["fallbacks"]
    assert (fallback["artifact"], fallback["error"]) == ("onnx-fp32", "IntegrityError")
    assert "model.onnx_data is not the file that was built" in fallback["reason"]


def test_a_hand_over_that_opens_the_files_again_changes_nothing_in_the_verification(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load_module, "HAND_OVER_DELAY", 0.0)
    loader = loaded(tiny_built, "progressive")
    assert (loader.report()["hand_over"], loader.report()["session"]) == ("waiting", "quick-start")
    loader.get_provider().embed_query("text")
    wait_for(lambda: loader.report()["hand_over"] == "done")
    report = loader.report()
    assert (report["session"], report["verification"], report["self_test"]) == (
        "throughput",
        "hashed now",
        "passed now",
    )


@pytest.mark.parametrize("error", [NoCompatibleArtifact("tiny", "here", [], "hint"), RuntimeError("out of memory")])
def test_a_hand_over_that_fails_is_reported_and_warned_of(
    error: Exception, tiny_built: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(load_module, "HAND_OVER_DELAY", 0.0)
    loader = loaded(tiny_built, "progressive")

    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(load_module.Opener, "open", fail)
    loader.get_provider().embed_query("text")
    wait_for(lambda: loader.report()["hand_over"] != "waiting")
    assert loader.report()["hand_over"] == f"failed: {error}"
    wait_for(lambda: messages(caplog))
    assert messages(caplog) == [f"the quick-start session stays in use: {error}"]
    assert len(loader.get_provider().embed_query("text")) == 32


def test_a_provider_that_was_closed_before_its_hand_over_waits_for_none(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "HAND_OVER_DELAY", 0.05)
    loader = loaded(tiny_built, "progressive")
    loader.get_provider().embed_query("text")
    stages = len(loader.report()["stages"])
    loader.get_provider().close()
    assert loader.report()["hand_over"] is None
    background._wait_for_all()
    assert loader.report()["hand_over"] is None
    assert len(loader.report()["stages"]) == stages  # no session was built in vain


@pytest.mark.parametrize("strategy", ["lazy", "background", "quantized"])
def test_other_strategies_have_no_hand_over(strategy: str, tiny_built: Path) -> None:
    assert loaded(tiny_built, strategy).report()["hand_over"] is None


@pytest.mark.parametrize("strategy", ["lazy", "progressive"])
def test_the_first_vector_is_timed_once(strategy: str, tiny_built: Path) -> None:
    loader = loaded(tiny_built, strategy)
    assert loader.report()["first_vector_ms"] is None
    provider = loader.get_provider()
    time.sleep(0.05)
    provider.embed_query("text")
    now = 1e3 * (time.perf_counter() - loader.report()["started"])
    first = loader.report()["first_vector_ms"]
    assert 1e3 * loader.get_load_time() + 50 <= first <= now
    provider.embed_query("text")
    assert loader.report()["first_vector_ms"] == first


def test_a_report_takes_no_lock(tiny_built: Path) -> None:
    loader = loaded(tiny_built, "progressive")
    provider = loader.get_provider()
    reports: list[dict[str, Any]] = []
    with loader._lock, provider._session_lock, OptimizedEmbeddingLoader._instance_lock:
        thread = threading.Thread(target=lambda: reports.append(loader.report()), daemon=True)
        thread.start()
        thread.join(10)
    assert [report["state"] for report in reports] == ["loaded"]


REPORT_IN_CHILD = """
import os, sys
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(sys.argv[1], output="list")
provider = loader.get_provider()
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
def reopen():
    raise AssertionError("a report opens no session")
provider._reopen = reopen
assert loader.report()["session"] == "quick-start"
"""


def test_a_report_in_a_forked_child_opens_no_session(tiny_built: Path, fresh: Fresh) -> None:
    fresh(REPORT_IN_CHILD, tiny_built)


def test_reports_are_whole_while_the_load_and_the_hand_over_go_on(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "HAND_OVER_DELAY", 0.0)
    for _ in range(5):
        loader = OptimizedEmbeddingLoader(str(tiny_built), "progressive", "cpu")
        loader.start_loading()
        ended = threading.Event()
        failures: list[BaseException] = []

        def look(
            loader: OptimizedEmbeddingLoader = loader,
            ended: threading.Event = ended,
            failures: list[BaseException] = failures,
        ) -> None:
            try:
                while not ended.is_set():
                    json.dumps(loader.report(), allow_nan=False)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=look)
        thread.start()
        provider = loader.get_provider()
        provider.embed_query("text")
        wait_for(lambda loader=loader: loader.report()["hand_over"] == "done")
        provider.close()
        ended.set()
        thread.join()
        assert failures == []
