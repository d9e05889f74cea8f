"""ONNX artifacts in onnxruntime, through its Python binding: where the C API cannot be used."""

from __future__ import annotations

import ctypes
import os

# First, and by name: onnxruntime's C extension imports parts of numpy without the lock that `import numpy` takes, and
# fails where another thread is in the middle of one.
import numpy

from firstvec.sessions import SessionOptions, pad

# Wheels from 1.29 on send telemetry and keep a database in the user's cache unless this is set before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as onnxruntime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

OUTPUT = "sentence_embedding"
_LOG_ERRORS_ONLY = 3
_ELEMENTS = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
"""TensorProto.DataType → numpy's."""


def engine_version() -> str:
    """The version of the imported onnxruntime."""
    return str(onnxruntime.__version__)


def open_session(options: SessionOptions) -> OnnxSession:
    """Open an ONNX file; its external weights are memory-mapped."""
    return OnnxSession(options)


class OnnxSession:
    """An onnxruntime session on the CPU. ``run`` may be called from several threads."""

    def __init__(self, options: SessionOptions) -> None:
        self._session: Any = None
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = _LOG_ERRORS_ONLY
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        # The file was optimised when it was built.
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        for key, value in options.onnxruntime_entries().items():
            settings.add_session_config_entry(key, value)
        self.engine = f"onnxruntime {engine_version()} (Python binding)"
        self.kind = options.kind
        self._pid = os.getpid()
        self._pad_token_id = options.pad_token_id
        model = options.model
        assert model is not None
        self._mappings = model.mappings
        self._weights = [_value(*weight[1:]) for weight in model.weights]
        for (name, *_), value in zip(model.weights, self._weights, strict=True):
            settings.add_initializer(name.decode(), value)
        self._session = onnxruntime.InferenceSession(
            model.data, sess_options=settings, providers=["CPUExecutionProvider"]
        )
        if not options.quick_start:
            model.forget()

    def run(self, rows: Sequence[Sequence[int]]) -> memoryview[float]:
        """Embed token ids. Returns float32, shape (len(rows), embedding_dim)."""
        input_ids, attention_mask = pad(rows, self._pad_token_id)
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        return memoryview(self._session.run([OUTPUT], feeds)[0])

    def __del__(
        self,
        getpid: Callable[[], int] = os.getpid,
        keep: Callable[[Any], None] = ctypes.pythonapi.Py_IncRef,
        as_object: Callable[[Any], Any] = ctypes.py_object,
    ) -> None:
        # The binding's destructor waits for its threads, which a forked child does not have: there it never runs.
        # At the end of an exit no builtin is left, and none is used.
        if self._session is not None and self._pid != getpid():
            keep(as_object(self._session))


def _value(kind: int, dims: tuple[int, ...], address: int, size: int) -> onnxruntime.OrtValue:
    """A tensor over memory that the model maps."""
    memory = (ctypes.c_char * size).from_address(address)
    array = numpy.frombuffer(memoryview(memory).cast("B"), _ELEMENTS[kind]).reshape(dims)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
