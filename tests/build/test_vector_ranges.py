"""The ranges that the build writes, and the share of the neighbours that reduced vectors keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from firstvec.bundle.manifest import Manifest
from firstvec.vectors import read_ranges
from firstvec_build.vector_ranges import RANGES_NAME, measure_overlap, write_ranges

VECTORS = np.random.default_rng(5).normal(size=(60, 24)).astype(np.float32)


@pytest.mark.parametrize(("dim", "normalized"), [(24, False), (24, True), (7, False), (7, True)])
def test_ranges_are_those_of_the_reference(dim: int, normalized: bool, tmp_path: Path) -> None:
    write_ranges(tmp_path, VECTORS)
    found = read_ranges((tmp_path / RANGES_NAME).read_bytes(), "", 24, dim, normalized)
    kept = VECTORS[:, :dim]
    scale = np.linalg.norm(kept, axis=1).mean() if normalized else 1
    np.testing.assert_allclose(found, np.stack([kept.min(axis=0), kept.max(axis=0)]) / scale, rtol=1.1e-3)


def test_the_last_bit_of_a_vector_does_not_change_the_file(tmp_path: Path) -> None:
    write_ranges(tmp_path, VECTORS)
    before = (tmp_path / RANGES_NAME).read_bytes()
    write_ranges(tmp_path, np.nextafter(VECTORS, np.float32(np.inf)))
    assert (tmp_path / RANGES_NAME).read_bytes() == before
    write_ranges(tmp_path, VECTORS * np.float32(1.01))
    assert (tmp_path / RANGES_NAME).read_bytes() != before


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_overlap_is_that_of_the_reduced_vectors(precision: str) -> None:
    ranges = np.stack([np.full(24, -8, np.float32), np.full(24, 8, np.float32)])
    assert 0.2 < measure_overlap(VECTORS, precision, ranges) < 1
    signs = np.sign(VECTORS)
    signs[:, 1:] = signs[:, :-1]
    assert measure_overlap(signs, "binary", ranges) == 1.0
    coarse = np.stack([np.full(24, -800, np.float32), np.full(24, 800, np.float32)])
    assert measure_overlap(VECTORS, "int8", coarse) < measure_overlap(VECTORS, "int8", ranges)


def test_a_bundle_says_how_much_of_the_ranking_stays(tiny_built: Path) -> None:
    ranges = Manifest.read(tiny_built).vector_ranges
    assert ranges is not None
    assert {*ranges.neighbour_overlap} == {"int8", "binary"}
    assert all(0.1 < share <= 1 for share in ranges.neighbour_overlap.values())
