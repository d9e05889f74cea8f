"""onnxruntime's C API: what it takes it frees, threads may share a session, and its errors have its messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from firstvec.engines.onnxruntime import session_entries
from firstvec.engines.onnxruntime_c_api import CApiSession, find_library, open_session
from firstvec.engines.session import SessionOptions
from tests.conftest import Fresh
from tests.loads import run_in_threads
from tests.runtime.engines.options import session_options


def opened(options: SessionOptions) -> CApiSession:
    return open_session(options, session_entries(options))


def test_a_result_outlives_later_runs_and_the_session(tiny_built: Path) -> None:
    session = opened(session_options(tiny_built))
    first = session.run([[1, 2, 3]])
    before = first.tolist()
    for length in range(1, 60):
        session.run([[4] * length, [5]])
    session.close()
    del session
    assert first.tolist() == before


def test_eight_threads_share_a_session(tiny_built: Path) -> None:
    session = opened(session_options(tiny_built))
    rows = [[list(range(2, 3 + index))] for index in range(8)]
    expected = [session.run(each).tolist() for each in rows]
    wrong: list[int] = []

    def work(index: int) -> None:
        wrong.extend(index for _ in range(100) if session.run(rows[index]).tolist() != expected[index])

    run_in_threads(8, work)
    assert wrong == []
    session.close()


def test_ten_thousand_runs_leak_nothing(tiny_built: Path) -> None:
    session = opened(session_options(tiny_built))
    process = psutil.Process()

    def run(times: int) -> int:
        for _ in range(times):
            session.run([[1, 2, 3, 4, 5, 6, 7, 8]])
        return int(process.memory_info().rss)

    before = run(1000)
    # One leaked OrtValue a run would be some 2 MB, one result another 1.3 MB.
    assert run(10_000) - before < 1 << 20
    session.close()


def test_a_thousand_sessions_leak_nothing(tiny_built: Path) -> None:
    options = session_options(tiny_built).replace(threads=1)
    process = psutil.Process()

    def open_and_close(times: int) -> int:
        for _ in range(times):
            session = opened(options)
            session.run([[1, 2, 3]])
            session.close()
        return int(process.memory_info().rss)

    before = open_and_close(100)
    # A session of this tiny model holds about 1 MB: a leak would be hundreds.
    assert open_and_close(1000) - before < 16 << 20


def test_a_thousand_sessions_that_the_library_refuses_leak_nothing(tiny_built: Path) -> None:
    options = session_options(tiny_built).replace(threads=1)
    model = bytearray(options.weights.model)
    model[-40:] = bytes(40)
    options.weights.model = bytes(model)
    process = psutil.Process()

    def fail_to_open(times: int) -> int:
        for _ in range(times):
            with pytest.raises(RuntimeError, match="CreateSessionFromArray"):
                opened(options)
        return int(process.memory_info().rss)

    before = fail_to_open(100)
    assert fail_to_open(1000) - before < 16 << 20


def test_a_session_may_be_closed_twice(tiny_built: Path) -> None:
    session = opened(session_options(tiny_built))
    session.close()
    session.close()


def test_an_error_of_the_library_is_raised_with_its_message(tiny_built: Path) -> None:
    session = opened(session_options(tiny_built))
    with pytest.raises(RuntimeError, match=r"^Run: .*input index out of range"):
        session.run([[10**6]])
    assert np.isfinite(np.asarray(session.run([[1, 2]]))).all()
    session.close()


def test_the_library_is_looked_for_where_import_would_find_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Path(find_library()).name.startswith("libonnxruntime.")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(OSError, match="onnxruntime is not installed"):
        find_library()
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    (tmp_path / "onnxruntime" / "capi" / "libonnxruntime_providers_shared.so").touch()
    with pytest.raises(OSError, match="has no shared library"):
        find_library()


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize("artifact_id", ["onnx-fp32", "onnx-int8-avx2"])
def test_the_c_api_needs_neither_numpy_nor_the_binding(artifact_id: str, fresh: Fresh) -> None:
    code = """
import sys
from firstvec import OptimizedEmbeddingLoader
provider = OptimizedEmbeddingLoader(strategy="background", artifact=sys.argv[1], output="buffer").get_provider()
view = provider.embed_query("text")
assert isinstance(view, memoryview) and view.format == "f" and view.shape == (384,)
assert len(provider.encode(["one", "two"], output="list")[1]) == 384
print(sorted({"numpy", "onnxruntime", "torch"} & set(sys.modules)))
"""
    assert fresh(code, artifact_id).stdout == "[]\n"
