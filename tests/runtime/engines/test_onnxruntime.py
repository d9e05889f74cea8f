"""onnxruntime: which of the two ways into it is used, and that both compute the same."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from firstvec import IncompatibleArtifact, InputError, Manifest, OptimizedEmbeddingLoader
from firstvec.bundle.manifest import Artifact
from firstvec.engines import onnxruntime, onnxruntime_binding, onnxruntime_c_api
from firstvec.engines.table import ENGINES
from firstvec.loading.opening import open_artifact, verify_artifact
from firstvec.text.tokenizer import open_tokenizer
from firstvec_build.quality import evaluation_sentences
from tests.conftest import edit_manifest
from tests.loads import artifact_of, load
from tests.runtime.engines.options import session_options

ONNX_HERE = ("onnx-fp32", "onnx-int8-avx2", "onnx-int8-avx512_vnni")


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the C API's library be not loaded, for this test."""
    monkeypatch.setattr(onnxruntime_c_api, "_library", None)


def test_the_c_api_is_used_where_the_library_is_found(tiny_onnx: Path) -> None:
    assert onnxruntime.c_api_problem() is None
    provider = load(tiny_onnx).get_provider()
    provider.embed_query("text")
    import onnxruntime as package

    assert provider.engine == f"onnxruntime {package.__version__} (C API)"
    assert onnxruntime.describe_use() == f"through its C API: {onnxruntime_c_api.find_library()}"


@pytest.mark.parametrize("quick_start", [True, False])
@pytest.mark.parametrize("artifact_id", ONNX_HERE)
def test_both_ways_into_onnxruntime_give_identical_vectors(artifact_id: str, quick_start: bool, bundle: Path) -> None:
    options = session_options(bundle, artifact_id, quick_start=quick_start)
    entries = onnxruntime.session_entries(options)
    direct = onnxruntime_c_api.open_session(options, entries)
    binding = onnxruntime_binding.open_session(options, entries)
    assert direct.kind == binding.kind == options.kind
    ids = open_tokenizer(Manifest.read(bundle)).tokenize(evaluation_sentences()[::4])
    for start in range(0, len(ids), 32):
        rows = ids[start : start + 32]
        ours, theirs = np.asarray(direct.run(rows)), np.asarray(binding.run(rows))
        assert ours.shape == (len(rows), 384)
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)
    direct.close()
    binding.close()


def test_a_quick_start_session_neither_prepacks_nor_spins(tiny_built: Path) -> None:
    quick, throughput = (
        onnxruntime.session_entries(session_options(tiny_built, quick_start=quick_start))
        for quick_start in (True, False)
    )
    assert quick.items() - throughput.items() == {
        ("session.disable_prepacking", "1"),
        ("session.intra_op.allow_spinning", "0"),
    }
    assert throughput == {
        "session.load_model_format": "ONNX",
        "session.model_external_initializers_file_folder_path": str(tiny_built / "onnx"),
    }


def test_the_binding_is_used_on_request(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = load(tiny_onnx).get_provider().embed_query("text")
    monkeypatch.setenv("FIRSTVEC_ONNXRUNTIME", "binding")
    provider = load(tiny_onnx).get_provider()
    assert provider.engine.endswith("(Python binding)")
    assert onnxruntime.describe_use() == "through its Python binding: FIRSTVEC_ONNXRUNTIME=binding"
    np.testing.assert_array_equal(provider.embed_query("text"), direct)


def test_an_unknown_way_into_onnxruntime_is_refused(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTVEC_ONNXRUNTIME", "c-api")
    with pytest.raises(InputError, match="FIRSTVEC_ONNXRUNTIME is 'c-api': use 'binding' or 'capi', or unset it"):
        OptimizedEmbeddingLoader(str(tiny_onnx), device="cpu").get_provider()


def test_a_missing_library_leads_to_the_binding_with_the_reason(
    tiny_built: Path, no_library: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime/capi").mkdir(parents=True)
    # The package itself is imported already: only the search for the library goes by the path.
    import onnxruntime as package  # noqa: F401

    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert "has no shared library libonnxruntime.so" in str(onnxruntime.c_api_problem())
    manifest = Manifest.read(tiny_built)
    opened = open_artifact(verify_artifact(manifest, artifact_of(manifest, "onnx-fp32")))
    assert opened.session.engine.endswith("(Python binding)")
    opened.session.close()


def test_a_library_that_is_not_onnxruntime_leads_to_the_binding(
    no_library: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import _ctypes

    monkeypatch.setattr(onnxruntime_c_api, "find_library", lambda: _ctypes.__file__)
    assert "has no OrtGetApiBase" in str(onnxruntime.c_api_problem())


def test_a_library_that_is_too_old_leads_to_the_binding(no_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # The library answers NULL to an API version that it does not have. That is how an older library answers.
    monkeypatch.setattr(onnxruntime_c_api, "_API_VERSION", 10_000)
    assert "has no API version 10000" in str(onnxruntime.c_api_problem())


def as_engine(name: str, root: Path, monkeypatch: pytest.MonkeyPatch, execution_provider: str) -> Artifact:
    """Add a row for another execution provider of onnxruntime, and let the bundle's fp32 artifact name that row."""
    monkeypatch.setitem(ENGINES, name, ENGINES["onnxruntime"].replace(provider=execution_provider, starts_early=False))

    def change(document: dict[str, list[dict[str, str]]]) -> None:
        for artifact in document["artifacts"]:
            artifact["engine"] = artifact["engine"].replace("onnxruntime", name)

    edit_manifest(root, change)
    return artifact_of(Manifest.read(root), "onnx-fp32")


def test_another_provider_of_onnxruntime_is_a_row_and_runs_in_the_binding(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(tiny_bundle, artifact="onnx-fp32").get_provider().embed_query("text")
    monkeypatch.setattr("firstvec.machine.profile._known", {})  # the versions of the rows that there were
    as_engine("onnxruntime-azure", tiny_bundle, monkeypatch, "AzureExecutionProvider")
    loader = load(tiny_bundle, artifact="onnx-fp32")
    versions = dict(loader.resource_profile.engines)
    assert versions["onnxruntime"] == versions["onnxruntime-azure"] is not None
    provider = loader.get_provider()
    session = provider.session
    assert isinstance(session, onnxruntime_binding.BindingSession)
    assert session._session.get_providers()[0] == "AzureExecutionProvider"
    assert loader.report()["fallbacks"] == []
    np.testing.assert_allclose(provider.embed_query("text"), expected, atol=1e-6)


def test_a_provider_that_this_onnxruntime_lacks_is_an_incompatible_artifact_that_names_it(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = as_engine("onnxruntime-abacus", tiny_bundle, monkeypatch, "AbacusExecutionProvider")
    with pytest.raises(IncompatibleArtifact, match="this onnxruntime has no AbacusExecutionProvider"):
        open_artifact(verify_artifact(Manifest.read(tiny_bundle), artifact))
