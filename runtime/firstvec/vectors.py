"""The forms of a vector. Only this module imports numpy or torch for the caller, and only when it is called."""

from __future__ import annotations

import os
import sys

from firstvec.errors import InputError, LoadError, ManifestError, MissingDependency
from firstvec.process.threads import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    import numpy.typing as npt

    from firstvec.loading.trace import Trace

ARRAYS = "output='numpy', which is the default,"
REDUCED = "another precision, truncate_dim and normalize_embeddings"
"""What needs numpy, for people."""


def import_numpy_ahead(trace: Trace) -> None:
    """Import numpy in a thread, if it is not there yet. The first array waits for what is left.

    The threads of numpy's OpenBLAS spin for 2^26 cycles when they have nothing to do (driver/others/blas_server.c,
    THREAD_TIMEOUT). That is 50 ms on a core that the engine needs now. They get 2^20 cycles, unless the user has set
    another number. The import of numpy then takes 77 ms of processor time instead of 128, and matrix products take the
    same time.
    """
    global _ahead
    if _ahead is not None or "numpy" in sys.modules:
        return
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")

    def import_numpy() -> None:
        with trace.stage("import numpy"):
            import numpy  # noqa: F401

    _ahead = Task(import_numpy)


_ahead: Task[None] | None = None
_ADDRESSES_OF_NUMPY = 192 << 20
"""Bytes. The import takes 124 MB of addresses on 2 cores of an Intel Xeon with AVX-512, most of them for OpenBLAS."""


def wait_for_numpy() -> None:
    """Wait for the end of the import that was begun ahead, if one was."""
    if _ahead is not None:
        _ahead.finished.wait()


def numpy_for(what: str) -> Any:
    """Return numpy. Wait first: a Ctrl-C in a wait for a module's own lock can leave that lock taken for good.

    Raises:
        MissingDependency: numpy is not installed. ``what`` needs it.
    """
    wait_for_numpy()
    if "numpy" not in sys.modules:
        _check_addresses()
    try:
        import numpy
    except ImportError as error:
        raise _without_numpy(what) from error
    return numpy


def check_numpy(what: str) -> None:
    """Raise MissingDependency if numpy is not installed. A long computation asks before it begins."""
    if sys.modules.get("numpy") is None:
        from importlib.util import find_spec

        if find_spec("numpy") is None:
            raise _without_numpy(what)


def _without_numpy(what: str) -> MissingDependency:
    otherwise = "take output='list' or 'buffer', which need no numpy" if what == ARRAYS else ""
    return MissingDependency(what, "numpy", "firstvec[numpy]", otherwise)


def _check_addresses() -> None:
    """Raise LoadError if the addresses do not suffice (``ulimit -v``): numpy's OpenBLAS would end the process."""
    from firstvec.machine.limits import address_space_left

    if (left := address_space_left()) is not None and left < _ADDRESSES_OF_NUMPY:
        raise LoadError(
            f"numpy needs {_ADDRESSES_OF_NUMPY >> 20} MB of addresses to be imported, and {left >> 20} MB are left: "
            "raise the limit (`ulimit -v`), or take output='buffer' or 'list', which need no numpy"
        )


def as_array(view: memoryview[float]) -> npt.NDArray[np.float32]:
    """Return the vectors as an array over the same memory."""
    numpy = numpy_for(ARRAYS)
    array: npt.NDArray[np.float32] = numpy.asarray(view, dtype=numpy.float32)
    return array


def no_rows(dim: int) -> npt.NDArray[np.float32]:
    """Return no vectors of ``dim`` components, (0, dim)."""
    numpy = numpy_for(ARRAYS)
    array: npt.NDArray[np.float32] = numpy.empty((0, dim), numpy.float32)
    return array


def as_row(view: memoryview[float], output: str) -> Any:
    """Return the only row of (1, D), as a ``list`` or a ``buffer``."""
    flat = view.cast("B").cast(view.format)  # type: ignore[call-overload]
    return flat.tolist() if output == "list" else flat


def as_rows(view: memoryview[float], output: str) -> Any:
    """Return all rows of (N, D), as a ``list`` of lists or a ``buffer``."""
    return view.tolist() if output == "list" else view


def quantize_embeddings(
    vectors: npt.NDArray[np.float32], precision: str, ranges: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[Any]:
    """Reduce the precision of vectors, (N, D), with the formulas of sentence-transformers' function of that name.

    Args:
        vectors: float32.
        precision: ``int8``, ``uint8``, ``binary`` or ``ubinary``.
        ranges: least and largest value of each component, (2, D), for ``int8`` and ``uint8``.
    """
    numpy = numpy_for(REDUCED)
    if precision in ("binary", "ubinary"):
        bits: npt.NDArray[Any] = numpy.packbits(vectors > 0, axis=-1)  # (N, ceil(D / 8))
        if precision == "binary":
            bits = (bits.astype(numpy.int16) - 128).astype(numpy.int8)
        return bits
    assert ranges is not None
    step = (ranges[1] - ranges[0]) / 255  # (D,)
    steps = numpy.clip(numpy.floor((vectors - ranges[0]) / numpy.where(step == 0, 1, step)), 0, 255)
    quantized: npt.NDArray[Any] = (
        steps.astype(numpy.uint8) if precision == "uint8" else (steps - 128).astype(numpy.int8)
    )
    return quantized


def read_ranges(data: bytes, path: str, dim: int, truncate_dim: int, normalized: bool) -> npt.NDArray[np.float32]:
    """Return the ranges of the first components of vectors, (2, truncate_dim), from a bundle's file of ranges.

    The file holds three rows of ``dim`` little-endian float32 numbers: the least and the largest value of each
    component, and at place d the mean length of the first d components. The mean length turns the ranges into those of
    vectors that are scaled to unit length after all but d components were dropped.

    Args:
        data: the file's content.
        path: of the file, for the error.
        dim: components of the model's vectors.
        truncate_dim: components that are kept.
        normalized: whether the vectors are scaled to unit length afterwards.

    Raises:
        ManifestError: the file does not hold such numbers.
    """
    numpy = numpy_for(REDUCED)
    if len(data) != 12 * dim:
        raise ManifestError(path, f"has {len(data)} bytes, not the {12 * dim} of three numbers a component")
    rows = numpy.frombuffer(data, "<f4").reshape(3, dim).astype(numpy.float32)
    if not (numpy.isfinite(rows).all() and (rows[0] <= rows[1]).all() and (rows[2] > 0).all()):
        raise ManifestError(path, "holds numbers that are no ranges and no lengths")
    ranges: npt.NDArray[np.float32] = rows[:2, :truncate_dim]
    return ranges / rows[2, truncate_dim - 1] if normalized else ranges


def shorten(vectors: npt.NDArray[np.float32], truncate_dim: int | None, normalize: bool) -> npt.NDArray[np.float32]:
    """Keep the first components of vectors, (N, D), and scale the vectors to unit length, as asked.

    Raises:
        InputError: ``truncate_dim`` is no positive integer.
    """
    numpy = numpy_for(REDUCED)
    if truncate_dim is not None:
        if isinstance(truncate_dim, bool) or not hasattr(truncate_dim, "__index__") or truncate_dim < 1:
            raise InputError(f"truncate_dim {truncate_dim!r} is not a positive integer")
        vectors = numpy.ascontiguousarray(vectors[:, :truncate_dim])
    if normalize:
        norms = numpy.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / numpy.maximum(norms, 1e-12)
    return vectors


def as_tensors(vectors: npt.NDArray[Any], stacked: bool) -> Any:
    """Return the vectors as one torch tensor, or as a list of tensors.

    Raises:
        MissingDependency: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("convert_to_tensor", "torch", "firstvec[torch]") from error
    tensor = torch.from_numpy(vectors)
    return tensor if stacked else list(tensor)


class Features(dict):  # type: ignore[type-arg]
    """What ``encode(output_value=None)`` gives of one text. A key that is not there is an InputError."""

    def __missing__(self, key: object) -> Any:
        raise InputError(not_computed(key))


def not_computed(name: object) -> str:
    """Return the text of the error for an output that sentence-transformers has, and a bundle has not."""
    return (
        f"output_value {name!r} is not computed, only 'sentence_embedding' is: for vectors of tokens use "
        "sentence-transformers, or the output last_hidden_state of the bundle's ONNX file"
    )


def as_features(vectors: npt.NDArray[np.float32], token_ids: list[list[int]]) -> list[Features]:
    """Return each text's vector, token ids and attention mask, as tensors. The errors are those of `as_tensors`."""
    features, numpy = [], numpy_for(ARRAYS)
    for vector, ids in zip(as_tensors(vectors, False), token_ids, strict=True):
        numbers = numpy.array(ids, "int64")
        masked = {"input_ids": numbers, "attention_mask": numpy.ones_like(numbers)}
        features.append(Features(sentence_embedding=vector, **{k: as_tensors(v, True) for k, v in masked.items()}))
    return features
