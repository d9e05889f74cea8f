"""An artifact that was built for another version of its engine is passed over, even if the metadata is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firstvec import EmbeddingProvider, NoCompatibleArtifact, OptimizedEmbeddingLoader
from tests.conftest import Fresh, edit_manifest


def _with_versions(**ranges: tuple[str, str]) -> Any:
    def change(document: dict[str, Any]) -> None:
        for artifact in document["artifacts"]:
            if artifact["engine"] in ranges:
                artifact["engine_min"], artifact["engine_below"] = ranges[artifact["engine"]]

    return change


def load(root: Path, strategy: str = "lazy") -> EmbeddingProvider:
    loader = OptimizedEmbeddingLoader(str(root), strategy=strategy)
    loader.start_loading()
    return loader.get_provider(timeout=120)


@pytest.mark.parametrize("wanted", [("99", "100"), ("0.1", "0.2")], ids=["newer", "older"])
def test_an_artifact_for_another_engine_version_is_passed_over(wanted: tuple[str, str], tiny_bundle: Path) -> None:
    edit_manifest(tiny_bundle, _with_versions(native=wanted))
    assert load(tiny_bundle).artifact.id == "onnx-fp32"
    edit_manifest(tiny_bundle, _with_versions(onnxruntime=wanted))
    assert load(tiny_bundle).artifact.id == "torchscript-fp32"
    with pytest.raises(NoCompatibleArtifact, match=f"needs >={wanted[0]},<{wanted[1]}, .* is installed"):
        load(tiny_bundle, "quantized")
    edit_manifest(tiny_bundle, _with_versions(torch=wanted))
    with pytest.raises(NoCompatibleArtifact, match=f"torch: needs >={wanted[0]}"):
        load(tiny_bundle)


def test_a_wrong_version_in_an_engines_metadata_is_found_at_its_import(
    tiny_bundle: Path, tmp_path: Path, fresh: Fresh
) -> None:
    (tmp_path / "wrong" / "onnxruntime-99.0.dist-info").mkdir(parents=True)
    edit_manifest(tiny_bundle, _with_versions(onnxruntime=("99", "100"), native=("99", "100")))
    code = """
import sys
from firstvec import IncompatibleArtifact, NoCompatibleArtifact, OptimizedEmbeddingLoader, ResourceProfile
assert ResourceProfile.detect().engine_version("onnxruntime") == "99.0"
try:
    loader = OptimizedEmbeddingLoader(sys.argv[1], strategy="quantized")
    loader.start_loading()
    loader.get_provider()
except (IncompatibleArtifact, NoCompatibleArtifact) as error:
    print(error)
"""
    done = fresh(code, tiny_bundle, PYTHONPATH=str(tmp_path / "wrong"))
    assert "needs onnxruntime >=99,<100, 1." in done.stdout
    assert "was imported" in done.stdout
