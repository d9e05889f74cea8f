"""Vectors in the form that the caller asked for. Only this module imports numpy or torch for it, when it is called."""

from __future__ import annotations

import os
import sys

from firstvec.errors import InputError, MissingDependency

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    import numpy.typing as npt


def spare_the_second_core() -> None:
    """Keep the threads of numpy's OpenBLAS from spinning when numpy is imported, unless the user set how long they do.

    They spin for 2^26 cycles (driver/others/blas_server.c, THREAD_TIMEOUT), 50 ms on a core that the engine needs
    now: importing numpy takes 128 ms of processor time, and 77 with 2^20. Matrix products take the same time.
    """
    if "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")


def as_array(view: memoryview[float]) -> npt.NDArray[np.float32]:
    """The vectors as an array over the same memory."""
    import numpy

    return numpy.asarray(view, dtype=numpy.float32)


def as_row(view: memoryview[float], output: str) -> Any:
    """The only row of (1, D), as a ``list`` or a ``buffer``."""
    flat = view.cast("B").cast(view.format)  # type: ignore[call-overload]
    return flat.tolist() if output == "list" else flat


def as_rows(view: memoryview[float], output: str) -> Any:
    """All rows of (N, D), as a ``list`` of lists or a ``buffer``."""
    return view.tolist() if output == "list" else view


def quantize_embeddings(vectors: npt.NDArray[np.float32], precision: str) -> npt.NDArray[Any]:
    """Reduce the precision of vectors, shape (N, D), with the formulas of sentence-transformers' function."""
    import numpy

    if precision in ("binary", "ubinary"):
        bits = numpy.packbits(vectors > 0, axis=-1)  # (N, ceil(D / 8))
        return bits if precision == "ubinary" else (bits.astype(numpy.int16) - 128).astype(numpy.int8)
    low, high = vectors.min(axis=0), vectors.max(axis=0)  # (D,)
    step = (high - low) / 255
    steps = numpy.clip(numpy.floor((vectors - low) / numpy.where(step == 0, 1, step)), 0, 255)
    quantised: npt.NDArray[Any] = (
        steps.astype(numpy.uint8) if precision == "uint8" else (steps - 128).astype(numpy.int8)
    )
    return quantised


def shorten(
    vectors: npt.NDArray[np.float32], truncate_dim: int | None, normalize: bool, dim: int
) -> npt.NDArray[np.float32]:
    """Keep the first components of vectors, (N, dim), and scale them to unit length, as asked.

    Raises:
        InputError: ``truncate_dim`` is not between 1 and ``dim``.
    """
    import numpy

    if truncate_dim is not None:
        if type(truncate_dim) is not int or not 1 <= truncate_dim <= dim:
            raise InputError(f"truncate_dim {truncate_dim!r} is not between 1 and {dim}")
        vectors = numpy.ascontiguousarray(vectors[:, :truncate_dim])
    if normalize:
        norms = numpy.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / numpy.maximum(norms, 1e-12)
    return vectors


def as_tensors(vectors: npt.NDArray[Any], stacked: bool) -> Any:
    """The vectors as one torch tensor, or as a list of them.

    Raises:
        MissingDependency: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("convert_to_tensor", "torch", "firstvec[torch]") from error
    tensor = torch.from_numpy(vectors)
    return tensor if stacked else list(tensor)
