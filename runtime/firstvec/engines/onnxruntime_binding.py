"""onnxruntime's Python binding: where the C API cannot be used, and for providers other than the CPU's."""

from __future__ import annotations

import ctypes
import os

# numpy comes first, because onnxruntime's C extension imports parts of numpy without the lock of `import numpy`, and
# fails where another thread is in the middle of that import.
import numpy

from firstvec.engines.session import Session, pad

# onnxruntime's wheels send telemetry and keep a database in the user's cache since 1.29, unless this is set first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as onnxruntime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from firstvec.engines.session import SessionOptions

_INPUTS, _OUTPUT = ("input_ids", "attention_mask"), "sentence_embedding"
_LOG_ERRORS_ONLY = 3
_ELEMENTS = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
"""TensorProto.DataType → numpy's data type."""


def version() -> str:
    """Return the version of the imported onnxruntime."""
    return str(onnxruntime.__version__)


class BindingSession(Session):
    """A session of the Python binding, in any provider. ``entries`` is onnxruntime's session configuration."""

    def __init__(self, options: SessionOptions, entries: Mapping[str, str]) -> None:
        super().__init__(f"onnxruntime {version()} (Python binding)", options)
        if options.provider not in onnxruntime.get_available_providers():
            raise RuntimeError(f"this onnxruntime has no {options.provider}")
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = _LOG_ERRORS_ONLY
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        # The build optimized the file.
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        for key, value in entries.items():
            settings.add_session_config_entry(key, value)
        weights = options.weights
        self._mappings = weights.mappings
        self._weights = [_value(*tensor[1:]) for tensor in weights.tensors]
        for (name, *_), value in zip(weights.tensors, self._weights, strict=True):
            settings.add_initializer(name.decode(), value)
        self._session: Any = onnxruntime.InferenceSession(weights.model, settings, providers=[options.provider])
        if not options.quick_start:
            weights.drop_pages()

    def run(self, rows: Sequence[Sequence[int]]) -> memoryview[float]:
        """Compute the vectors of token ids. Returns float32, (len(rows), dim)."""
        arrays = (numpy.frombuffer(each, numpy.int64).reshape(len(rows), -1) for each in pad(rows, self._pad_token_id))
        return memoryview(self._session.run([_OUTPUT], dict(zip(_INPUTS, arrays, strict=True)))[0])

    def close(self) -> None:
        """Free the session."""
        self._session = None

    # The arguments are for the interpreter's exit, at which the names of this module are gone.
    def abandon(self, keep: Any = ctypes.pythonapi.Py_IncRef, as_object: Any = ctypes.py_object) -> None:
        """Keep the session for ever: the binding's destructor waits for threads that this process does not have."""
        keep(as_object(self._session))


open_session = BindingSession


def _value(kind: int, dims: tuple[int, ...], address: int, size: int) -> onnxruntime.OrtValue:
    """Make a tensor over memory that the weights map."""
    memory = (ctypes.c_char * size).from_address(address)
    array = numpy.frombuffer(memoryview(memory).cast("B"), _ELEMENTS[kind]).reshape(dims)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
