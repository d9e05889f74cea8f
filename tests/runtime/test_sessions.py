"""The engines: the C API and the Python binding of onnxruntime compute the same, free what they take, and fall back."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from firstvec import IncompatibleArtifact, InputError, Manifest, OptimizedEmbeddingLoader
from firstvec.integrity import open_file
from firstvec.load import Opener
from firstvec.manifest import Artifact
from firstvec.onnx_model import OnnxModel
from firstvec.sessions import SessionOptions, c_api_unusable, engine_for, onnx, onnx_c, open_session
from firstvec.tokenizer import open_tokenizer
from firstvec_build.quality import evaluation_sentences
from tests.conftest import Fresh

ONNX_HERE = ("onnx-fp32", "onnx-int8-avx2", "onnx-int8-avx512_vnni")


def artifact_of(manifest: Manifest, artifact_id: str) -> Artifact:
    return next(artifact for artifact in manifest.artifacts if artifact.id == artifact_id)


def options_of(manifest: Manifest, artifact: Artifact, *, quick_start: bool = True) -> SessionOptions:
    files = [open_file(manifest.root, file) for file in artifact.files]
    return SessionOptions(
        file=files[0],
        model=OnnxModel(artifact.id, files),
        device="cpu",
        threads=2,
        pad_token_id=manifest.model.pad_token_id,
        embedding_dim=manifest.model.embedding_dim,
        quick_start=quick_start,
    )


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The C API's library is not loaded, for this test."""
    monkeypatch.setattr(onnx_c, "_library", None)


def test_the_c_api_is_used_where_the_library_is_found(tiny_built: Path) -> None:
    assert c_api_unusable() is None
    provider = OptimizedEmbeddingLoader(str(tiny_built)).get_provider()
    provider.embed_query("text")
    import onnxruntime

    assert provider.engine == f"onnxruntime {onnxruntime.__version__} (C API)"


@pytest.mark.parametrize("quick_start", [True, False])
@pytest.mark.parametrize("artifact_id", ONNX_HERE)
def test_both_ways_into_onnxruntime_give_identical_vectors(artifact_id: str, quick_start: bool, bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    options = options_of(manifest, artifact_of(manifest, artifact_id), quick_start=quick_start)
    direct, binding = onnx_c.open_session(options), onnx.open_session(options)
    ids = open_tokenizer(manifest).encode(evaluation_sentences())
    for start in range(0, len(ids), 32):
        rows = ids[start : start + 32]
        ours, theirs = np.asarray(direct.run(rows)), np.asarray(binding.run(rows))
        assert ours.shape == (len(rows), 384)
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


def test_a_result_outlives_later_runs_and_the_session(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    session = onnx_c.open_session(options_of(manifest, artifact_of(manifest, "onnx-fp32")))
    first = session.run([[1, 2, 3]])
    before = first.tolist()
    for length in range(1, 60):
        session.run([[4] * length, [5]])
    del session
    assert first.tolist() == before


def test_a_session_cannot_be_copied(tiny_built: Path) -> None:
    """The copy would free what both use."""
    provider = OptimizedEmbeddingLoader(str(tiny_built), device="cpu").get_provider()
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a session cannot be copied"):
            copied(provider.session)
    gc.collect()
    assert provider.embed_query("text").shape == (32,)


def test_eight_threads_share_a_session(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    session = onnx_c.open_session(options_of(manifest, artifact_of(manifest, "onnx-fp32")))
    rows = [[list(range(2, 3 + index))] for index in range(8)]
    expected = [session.run(each).tolist() for each in rows]
    wrong: list[int] = []

    def work(index: int) -> None:
        wrong.extend(index for _ in range(100) if session.run(rows[index]).tolist() != expected[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_ten_thousand_runs_leak_nothing(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    session = onnx_c.open_session(options_of(manifest, artifact_of(manifest, "onnx-fp32")))
    process = psutil.Process()

    def run(times: int) -> int:
        for _ in range(times):
            session.run([[1, 2, 3, 4, 5, 6, 7, 8]])
        return int(process.memory_info().rss)

    before = run(1000)
    # One leaked OrtValue a run would be some 2 MB, one result another 1.3 MB.
    assert run(10_000) - before < 1 << 20


def test_a_thousand_sessions_leak_nothing(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    options = options_of(manifest, artifact_of(manifest, "onnx-fp32")).replace(threads=1)
    process = psutil.Process()

    def open_and_close(times: int) -> int:
        for _ in range(times):
            onnx_c.open_session(options).run([[1, 2, 3]])
        return int(process.memory_info().rss)

    before = open_and_close(100)
    # A session of this tiny model holds about 1 MB: a leak would be hundreds.
    assert open_and_close(1000) - before < 16 << 20


def test_an_error_of_the_library_is_raised_with_its_message(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    session = onnx_c.open_session(options_of(manifest, artifact_of(manifest, "onnx-fp32")))
    with pytest.raises(RuntimeError, match=r"^Run: .*input index out of range"):
        session.run([[10**6]])
    assert np.isfinite(np.asarray(session.run([[1, 2]]))).all()


def test_a_model_that_the_engine_refuses_is_an_incompatible_artifact(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    artifact = artifact_of(manifest, "onnx-fp32")
    options = options_of(manifest, artifact)
    assert options.model is not None
    options.model.data = b"no protobuf"
    with pytest.raises(IncompatibleArtifact, match=r"onnx-fp32: onnxruntime cannot load it: .*CreateSession"):
        open_session(engine_for(artifact), artifact, options)


def test_the_binding_is_used_on_request(tiny_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = OptimizedEmbeddingLoader(str(tiny_built)).get_provider().embed_query("text")
    monkeypatch.setenv("FIRSTVEC_ONNXRUNTIME", "binding")
    provider = OptimizedEmbeddingLoader(str(tiny_built)).get_provider()
    assert provider.engine.endswith("(Python binding)")
    np.testing.assert_array_equal(provider.embed_query("text"), direct)


def test_an_unknown_way_into_onnxruntime_is_refused(tiny_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTVEC_ONNXRUNTIME", "c-api")
    with pytest.raises(InputError, match="FIRSTVEC_ONNXRUNTIME is 'c-api': use 'binding', 'capi', or leave it out"):
        OptimizedEmbeddingLoader(str(tiny_built), device="cpu").get_provider()


def test_a_missing_library_leads_to_the_binding_with_the_reason(
    tiny_built: Path, no_library: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime/capi").mkdir(parents=True)
    # The package itself is imported already: only the search for the library goes by the path.
    import onnxruntime  # noqa: F401

    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert "has no shared library libonnxruntime.so" in str(c_api_unusable())
    manifest = Manifest.read(tiny_built)
    opener = Opener(manifest, artifact_of(manifest, "onnx-fp32"), "cpu")
    assert opener.open().engine.endswith("(Python binding)")


def test_a_library_that_is_not_onnxruntime_leads_to_the_binding(
    no_library: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import _ctypes

    monkeypatch.setattr(onnx_c, "find_library", lambda: _ctypes.__file__)
    assert "has no OrtGetApiBase" in str(c_api_unusable())


def test_a_library_that_is_too_old_leads_to_the_binding(no_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # The library answers NULL to an API version that it does not have: to it, this is how "too old" looks.
    monkeypatch.setattr(onnx_c, "_API_VERSION", 10_000)
    assert "has no API version 10000" in str(c_api_unusable())


def test_an_engine_version_out_of_range_is_refused(tiny_built: Path) -> None:
    artifact = artifact_of(Manifest.read(tiny_built), "onnx-fp32").replace(engine_min="99.0", engine_below="100")
    with pytest.raises(IncompatibleArtifact, match=r"needs onnxruntime >=99\.0,<100, 1\."):
        engine_for(artifact)


def test_the_c_api_needs_neither_numpy_nor_the_binding(bundle: Path, fresh: Fresh) -> None:
    code = """
import sys
from firstvec import get_embedding_provider
provider = get_embedding_provider(strategy="quantized", output="buffer")
view = provider.embed_query("text")
assert isinstance(view, memoryview) and view.format == "f" and view.shape == (384,)
assert len(provider.encode(["one", "two"], output="list")[1]) == 384
print(sorted({"numpy", "onnxruntime", "torch"} & set(sys.modules)))
"""
    assert fresh(code).stdout == "[]\n"
