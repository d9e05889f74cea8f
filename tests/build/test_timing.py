"""The times of fresh processes that a build prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstvec.bundle.manifest import Manifest
from firstvec.errors import BuildError
from firstvec_build import timing
from firstvec_build.timing import measure_first_vectors
from tests.build.conftest import INT8_ELSEWHERE, INT8_HERE


@pytest.fixture(autouse=True)
def _one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_ROUNDS", 1)


def test_artifacts_that_run_here_have_times_and_the_others_have_none(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    some = tuple(artifact for artifact in manifest.artifacts if artifact.id in ("onnx-fp32", INT8_HERE, INT8_ELSEWHERE))
    times = measure_first_vectors(manifest.replace(artifacts=some))
    assert [*times] == [artifact.id for artifact in some]
    assert times.pop(INT8_ELSEWHERE) is None
    for measured in times.values():
        assert measured is not None
        session, first_vector = measured
        assert 0 < session < first_vector < 60_000


def test_artifact_that_a_fresh_process_cannot_use_is_a_build_error(tiny_bundle: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    (tiny_bundle / "onnx" / "model.onnx_data").write_bytes(b"")
    some = tuple(artifact for artifact in manifest.artifacts if artifact.id == "onnx-fp32")
    with pytest.raises(BuildError, match="onnx-fp32: is built, but a fresh process cannot use it: "):
        measure_first_vectors(manifest.replace(artifacts=some))
