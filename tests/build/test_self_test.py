"""The self-test that the build writes is what the runtime reads, and its limits follow from the distance to fp32."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from firstvec.bundle.manifest import Manifest
from firstvec.loading.self_test import read_golden
from firstvec_build.publishing import describe_file
from firstvec_build.self_test import TEXTS, compute_golden, write_self_test

TOKEN_IDS = [[2, number, 3] for number in range(len(TEXTS))]
VECTORS = np.random.default_rng(1).normal(size=(len(TEXTS), 4)).astype(np.float32)


class FixedSession:
    """A session that computes `VECTORS` of `TOKEN_IDS`."""

    def run(self, rows: Sequence[Sequence[int]]) -> memoryview:
        assert rows == TOKEN_IDS
        return memoryview(VECTORS)


@pytest.mark.parametrize(("distance", "limit"), [(0.0, 0.001), (0.001, 0.001), (0.1, 0.075), (0.5, 0.375)])
def test_limit_is_three_quarters_of_the_distance_to_fp32_but_never_tiny(distance: float, limit: float) -> None:
    reference = (VECTORS.astype(np.float64) / (1 + distance)).ravel().tolist()  # ‖v - r‖ / ‖r‖ is the distance
    entry = compute_golden("some-artifact", FixedSession(), TOKEN_IDS, reference, same_bits=False)  # type: ignore[arg-type]
    assert entry["id"] == "some-artifact"
    assert entry["max_difference"] == pytest.approx(limit, rel=5e-3)
    assert base64.b64decode(str(entry["vectors"])) == VECTORS.tobytes()


def test_runtime_reads_what_was_written(tiny_built: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_built, tmp_path / "bundle"))
    vectors = np.zeros((len(TEXTS), 32), "<f4")
    vectors[:, 5] = range(len(TEXTS))
    entries: list[dict[str, object]] = [
        {"id": artifact_id, "max_difference": limit, "vectors": base64.b64encode(vectors.tobytes()).decode()}
        for artifact_id, limit in (("onnx-fp32", 0.001), ("onnx-int8-avx2", 0.25))
    ]
    write_self_test(root, TOKEN_IDS, entries)
    manifest = Manifest.read(root).replace(self_test=describe_file(root, "self_test.json"))
    artifacts = {artifact.id: artifact for artifact in manifest.artifacts}
    int8 = read_golden(manifest, artifacts["onnx-int8-avx2"])
    assert int8.token_ids == tuple(map(tuple, TOKEN_IDS))
    assert int8.vectors == vectors.ravel().tolist()
    assert int8.max_difference == 0.25
    assert read_golden(manifest, artifacts["onnx-fp32"]).vectors == vectors[:3].ravel().tolist()


def test_bundle_has_an_entry_of_each_artifact_and_the_tokens_of_each_text(tiny_built: Path) -> None:
    document = json.loads((tiny_built / "self_test.json").read_text("utf-8"))
    assert [entry["id"] for entry in document["artifacts"]] == [
        artifact.id for artifact in Manifest.read(tiny_built).artifacts
    ]
    assert [entry["text"] for entry in document["texts"]] == [*TEXTS]
    assert all(entry["token_ids"][0] == 2 and entry["token_ids"][-1] == 3 for entry in document["texts"])
