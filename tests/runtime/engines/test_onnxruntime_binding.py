"""onnxruntime's Python binding: its sessions use the mapped weights, and are freed or abandoned as the process asks."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import onnxruntime as package
import psutil
import pytest

from firstvec.engines.onnxruntime import session_entries
from firstvec.engines.onnxruntime_binding import BindingSession, open_session, version
from firstvec.engines.session import SessionOptions
from tests.conftest import Fresh
from tests.runtime.engines.options import session_options


def opened(options: SessionOptions) -> BindingSession:
    return open_session(options, session_entries(options))


@pytest.mark.parametrize("quick_start", [True, False])
def test_a_session_says_what_it_is_and_computes(quick_start: bool, tiny_built: Path) -> None:
    options = session_options(tiny_built, quick_start=quick_start)
    session = opened(options)
    assert version() == package.__version__
    assert session.engine == f"onnxruntime {package.__version__} (Python binding)"
    assert session.kind == options.kind
    vectors = session.run([[2, 5, 3], [2, 3]])
    assert (vectors.format, vectors.shape) == ("f", (2, 32))
    np.testing.assert_allclose(np.asarray(session.run([[2, 3]]))[0], np.asarray(vectors)[1], atol=1e-6)
    session.close()


def test_the_weights_are_not_copied(tiny_built: Path) -> None:
    options = session_options(tiny_built)
    session = opened(options)
    addresses = {address for *_, address, _ in options.weights.tensors}
    assert {value.numpy().__array_interface__["data"][0] for value in session._weights} == addresses
    session.close()


def test_a_closed_session_is_freed_and_an_abandoned_one_stays(tiny_built: Path) -> None:
    session = opened(session_options(tiny_built))
    inner = weakref.ref(session._session)
    session.close()
    gc.collect()
    assert inner() is None
    session = opened(session_options(tiny_built))
    inner = weakref.ref(session._session)
    session.abandon()
    del session
    gc.collect()
    assert inner() is not None


def test_a_provider_that_is_not_there_is_refused_by_name(tiny_built: Path) -> None:
    options = session_options(tiny_built).replace(provider="AbacusExecutionProvider")
    with pytest.raises(RuntimeError, match="this onnxruntime has no AbacusExecutionProvider"):
        opened(options)


def test_two_hundred_sessions_leak_nothing(tiny_built: Path) -> None:
    options = session_options(tiny_built).replace(threads=1)
    process = psutil.Process()

    def open_and_close(times: int) -> int:
        for _ in range(times):
            session = opened(options)
            session.run([[1, 2, 3]])
            session.close()
        return int(process.memory_info().rss)

    before = open_and_close(50)
    # A session of this tiny model holds about 1 MB: a leak would be two hundred.
    assert open_and_close(200) - before < 16 << 20


def test_telemetry_is_off_before_the_package_is_imported(tiny_onnx: Path, fresh: Fresh) -> None:
    code = """
import os, sys
from firstvec import get_embedding_provider
get_embedding_provider(sys.argv[1], "lazy").embed_query("text")
assert "onnxruntime" in sys.modules
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""
    assert fresh(code, tiny_onnx, FIRSTVEC_ONNXRUNTIME="binding").stdout == "1\n"
