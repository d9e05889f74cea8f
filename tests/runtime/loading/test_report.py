"""The report of a load: the same fields in every state, values of JSON, no lock, no session."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from firstvec import BundleNotFound, OptimizedEmbeddingLoader
from firstvec.loader import _process_loaders
from firstvec.loading import hand_over
from firstvec.loading.report import SPAN_ATTRIBUTES, Report
from firstvec.process.threads import ProcessLock
from tests.conftest import REPOSITORY, Fresh
from tests.loads import flip_byte, hold_sessions, load, wait_for

FIELDS = (
    *("model", "strategy", "state", "artifact", "engine", "device", "session", "verification", "self_test"),
    *("fallbacks", "hand_over", "error", "seconds", "first_vector_ms", "started", "stages"),
)


def test_the_fields_have_an_order_and_the_attributes_of_spans_are_among_them() -> None:
    assert Report._fields == FIELDS
    assert set(SPAN_ATTRIBUTES) < set(FIELDS)


def test_an_idle_loader_has_all_fields() -> None:
    report = OptimizedEmbeddingLoader("no/such-model", "progressive").report()
    assert tuple(report) == FIELDS
    known = {name: value for name, value in report.items() if value is not None}
    assert known == {
        "model": "no/such-model",
        "strategy": "progressive",
        "state": "idle",
        "fallbacks": [],
        "seconds": 0.0,
        "stages": [],
    }


@pytest.mark.native
def test_a_report_has_the_same_fields_in_every_state_and_is_json(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = hold_sessions(monkeypatch)
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
        assert tuple(report) == FIELDS
        assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert (reports[2]["artifact"], reports[2]["device"], reports[2]["session"]) == ("native-fp32", "cpu", "throughput")
    assert reports[2]["engine"].startswith("native ")
    assert (reports[3]["artifact"], reports[3]["engine"], reports[3]["session"]) == ("native-fp32", None, None)
    assert "no/such-model" in reports[4]["error"]
    assert reports[4]["seconds"] > 0


@pytest.mark.native
def test_a_closed_provider_is_reported(tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built))
    assert loader.report()["state"] == "idle"
    provider = loader.get_provider()
    report = loader.report()
    assert (report["state"], report["artifact"], report["error"]) == ("loaded", "native-fp32", None)
    assert {"manifest", "choice", "tokenizer", "verification", "session"} <= {each["name"] for each in report["stages"]}
    assert all(each["ms"] >= 0 <= each["at_ms"] for each in report["stages"])
    provider.close()
    assert (loader.report()["state"], loader.report()["engine"]) == ("closed", None)


@pytest.mark.parametrize("output", ["list", "numpy"])
def test_a_failed_load_has_each_of_its_stages_once(output: str) -> None:
    loader = OptimizedEmbeddingLoader("no/such-model", output=output)
    with pytest.raises(BundleNotFound):
        loader.get_provider()
    assert [stage["name"] for stage in loader.report()["stages"]].count("manifest") == 1


def test_a_report_says_whether_the_files_were_hashed_for_this_load(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "cache"))
    assert [load(tiny_onnx).report()["verification"] for _ in range(2)] == ["hashed now", "remembered"]
    # One file of several is enough.
    marker = next((tmp_path / "cache" / "verified").glob(f"{_digest(tiny_onnx, 'onnx/model.onnx_data')}-*"))
    marker.unlink()
    assert [load(tiny_onnx).report()["verification"] for _ in range(2)] == ["hashed now", "remembered"]


def _digest(root: Path, path: str) -> str:
    document = json.loads((root / "firstvec.json").read_text("utf-8"))
    files = (file for artifact in document["artifacts"] for file in artifact["files"])
    return str(next(file["sha256"] for file in files if file["path"] == path))


@pytest.mark.native
def test_the_verification_is_that_of_the_artifact_in_use(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "cache"))
    load(tiny_bundle)
    flip_byte(tiny_bundle / "native/model.fvw")
    report = load(tiny_bundle).report()
    assert (report["artifact"], report["verification"]) == ("onnx-fp32", "hashed now")
    [fallback] = report["fallbacks"]
    assert (fallback["artifact"], fallback["error"]) == ("native-fp32", "IntegrityError")
    assert "model.fvw is not the file that was built" in fallback["reason"]


def test_a_report_takes_no_lock(tiny_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = load(tiny_built, "progressive")
    reports: list[dict[str, Any]] = []

    def taken(_lock: ProcessLock) -> Any:
        raise AssertionError("a lock is asked for")

    sessions = loader.get_provider()._sessions
    with loader._lock.here(), sessions._lock.here(), _process_loaders._lock.here(), monkeypatch.context() as patch:
        patch.setattr(ProcessLock, "here", taken)
        thread = threading.Thread(target=lambda: reports.append(loader.report()), daemon=True)
        thread.start()
        thread.join(60)
    assert [report["state"] for report in reports] == ["loaded"]


REPORT_IN_CHILD = """
import os, sys
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(sys.argv[1], output="list", artifact=sys.argv[2])
provider = loader.get_provider()
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
def open_again():
    raise AssertionError("a report opens no session")
provider._sessions._open_again = open_again
assert loader.report()["session"] == sys.argv[3]
"""


@pytest.mark.native
@pytest.mark.parametrize(("artifact", "kind"), [("native-fp32", "throughput"), ("onnx-fp32", "quick-start")])
def test_a_report_in_a_forked_child_opens_no_session(artifact: str, kind: str, tiny_built: Path, fresh: Fresh) -> None:
    fresh(REPORT_IN_CHILD, tiny_built, artifact, kind)


def test_reports_are_whole_while_the_load_and_the_hand_over_go_on(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hand_over, "DELAY", 0.0)
    for _ in range(5):
        loader = OptimizedEmbeddingLoader(str(tiny_onnx), "progressive", "cpu")
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
                    report = loader.report()
                    json.dumps(report, allow_nan=False)
                    loaded = report["state"] == "loaded"
                    assert loaded == (report["engine"] is not None) == (report["session"] is not None)
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


def test_the_documentation_has_every_field() -> None:
    text = (REPOSITORY / "docs" / "monitoring.md").read_text("utf-8")
    for name in FIELDS:
        assert f"| `{name}` |" in text, name
