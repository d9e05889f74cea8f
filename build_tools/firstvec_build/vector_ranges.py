"""Write the ranges by which vectors become INT8, and measure how much of the ranking reduced vectors keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from firstvec.bundle.manifest import VectorRanges
from firstvec.vectors import quantize_embeddings
from firstvec_build.quality import Vectors, neighbour_overlap

RANGES_NAME = "vector_ranges.f32"


def write_ranges(folder: Path, reference: Vectors) -> VectorRanges:
    """Write the ranges of the reference vectors, (N, D), into a bundle's folder, and return the manifest's entry.

    The numbers are rounded to four digits, so that the file does not depend on the last bit of a vector. The layout is
    in `firstvec.vectors.read_ranges`.
    """
    lengths = np.sqrt(np.cumsum(reference.astype(np.float64) ** 2, axis=1)).mean(axis=0)  # (D,)
    rows = np.stack([reference.min(axis=0), reference.max(axis=0), np.maximum(lengths, 1e-6)])  # (3, D)
    rounded = np.array([float(f"{value:.4g}") for value in rows.ravel()], "<f4").reshape(rows.shape)
    (folder / RANGES_NAME).write_bytes(rounded.tobytes())
    overlap = {
        precision: round(measure_overlap(reference, precision, rounded[:2]), 6) for precision in ("int8", "binary")
    }
    return VectorRanges(file=RANGES_NAME, neighbour_overlap=overlap)


def measure_overlap(reference: Vectors, precision: str, ranges: Vectors) -> float:
    """Return the mean share of the ten nearest neighbours that stay: by cosine of INT8 steps, or by equal bits.

    Args:
        reference: float32 vectors, (N, D).
        precision: ``int8`` or ``binary``.
        ranges: least and largest value of each component, (2, D).
    """
    if precision == "int8":
        return neighbour_overlap(quantize_embeddings(reference, "int8", ranges).astype(np.float32), reference)
    signs = np.where(reference > 0, np.float32(1), np.float32(-1))
    # Many pairs have equally many bits in common. All sums are exact where the length of a row is a power of two, so
    # that no rounding decides between such pairs. The columns that are added are the same in all rows.
    width = 4 ** int(np.ceil(np.log(signs.shape[1]) / np.log(4)))
    return neighbour_overlap(np.pad(signs, ((0, 0), (0, width - signs.shape[1])), constant_values=1), reference)
