"""onnxruntime's C API by ctypes: no numpy, no Python binding, half the time to the first vector.

The onnxruntime wheel ships the shared library that its C API documents (``onnxruntime_c_api.h``). The one exported
function, ``OrtGetApiBase``, leads to a table of functions. New functions are only added at the end of the table ("add
new functions at the end", says the header), so a released position stays. Version 1.5 had released all positions here.
"""

from __future__ import annotations

import ctypes
import os
import sys
from _thread import allocate_lock
from array import array

from firstvec.bundle.integrity import read_ahead

# onnxruntime's wheels send telemetry and keep a database in the user's cache since 1.29, unless this is set first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from firstvec.engines.session import SessionOptions

_API_VERSION = 17
"""The ORT_API_VERSION that is asked for. An older library answers NULL."""
_LOG_ERRORS_ONLY = 3  # ORT_LOGGING_LEVEL_ERROR
_INT64 = 7  # ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
_FLOAT = 1  # ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
_NO_OPTIMIZATION = 0  # ORT_DISABLE_ALL: the build optimized the file
_ARENA, _DEFAULT_MEMORY = 1, 0  # OrtArenaAllocator, OrtMemTypeDefault

_pointer = ctypes.c_void_p
_out = ctypes.POINTER(ctypes.c_void_p)
_text = ctypes.c_char_p
_size = ctypes.c_size_t
_int = ctypes.c_int
_shape = ctypes.POINTER(ctypes.c_int64)
_texts = ctypes.POINTER(ctypes.c_char_p)

_FUNCTIONS: dict[str, tuple[int, tuple[Any, ...]]] = {
    # name in struct OrtApi → position, argument types; each returns an OrtStatus*, NULL for success
    "CreateEnv": (3, (_int, _text, _out)),
    "CreateSessionFromArray": (8, (_pointer, _text, _size, _pointer, _out)),
    "Run": (9, (_pointer, _pointer, _texts, _out, _size, _texts, _size, _out)),
    "CreateSessionOptions": (10, (_out,)),
    "SetSessionLogSeverityLevel": (22, (_pointer, _int)),
    "SetSessionGraphOptimizationLevel": (23, (_pointer, _int)),
    "SetIntraOpNumThreads": (24, (_pointer, _int)),
    "SetInterOpNumThreads": (25, (_pointer, _int)),
    "CreateTensorWithDataAsOrtValue": (49, (_pointer, _pointer, _size, _shape, _size, _int, _out)),
    "CreateCpuMemoryInfo": (69, (_int, _int, _out)),
    "AddSessionConfigEntry": (130, (_pointer, _text, _text)),
    "AddInitializer": (150, (_pointer, _text, _pointer)),
}
_GET_ERROR_MESSAGE = 2
_RELEASES = {"Status": 93, "Session": 95, "Value": 96, "SessionOptions": 100}
"""Object → position of its Release function, which returns nothing."""
_LONG = ("CreateEnv", "CreateSessionFromArray", "Run", "Session")
"""These functions run without the GIL. The others keep it, because they take microseconds, and to get the GIL back
from a thread that imports numpy takes 5 ms each time."""


class _ApiBase(ctypes.Structure):
    """struct OrtApiBase."""

    _fields_ = (
        ("GetApi", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)),
        ("GetVersionString", ctypes.CFUNCTYPE(ctypes.c_char_p)),
    )


def _prototype(name: str, *types: Any) -> Any:
    return (ctypes.CFUNCTYPE if name in _LONG else ctypes.PYFUNCTYPE)(*types)


class Library:
    """The loaded shared library, its version, and the one environment of the process.

    Raises:
        OSError: the library cannot be loaded, or is older than the API version that is asked for.
    """

    def __init__(self, path: str) -> None:
        read_ahead(path)
        library = ctypes.CDLL(path)
        try:
            get_base = library.OrtGetApiBase
        except AttributeError as error:
            raise OSError(f"{path} has no OrtGetApiBase") from error
        get_base.restype = ctypes.POINTER(_ApiBase)
        base = get_base().contents
        self.path = path
        self.version: str = base.GetVersionString().decode()
        table = base.GetApi(_API_VERSION)
        if not table:
            raise OSError(f"{path} is onnxruntime {self.version}, which has no API version {_API_VERSION}")
        functions = ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p))
        self._functions = {
            name: _prototype(name, ctypes.c_void_p, *arguments)(functions[position])
            for name, (position, arguments) in _FUNCTIONS.items()
        }
        self._error_message = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(functions[_GET_ERROR_MESSAGE])
        self._release: dict[str, Callable[[Any], None]] = {
            name: _prototype(name, None, ctypes.c_void_p)(functions[position]) for name, position in _RELEASES.items()
        }
        self.memory = self.create("CreateCpuMemoryInfo", _ARENA, _DEFAULT_MEMORY)
        self._environment: ctypes.c_void_p | None = None
        self._environment_lock = allocate_lock()

    def environment(self) -> ctypes.c_void_p:
        """Return the environment, which the first call creates: the library registers all operators that it knows.

        Raises:
            RuntimeError: the environment cannot be created.
        """
        with self._environment_lock:
            if self._environment is None:
                self._environment = self.create("CreateEnv", _LOG_ERRORS_ONLY, b"firstvec")
            return self._environment

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the API. Raise RuntimeError with the library's message if the function fails."""
        status = self._functions[name](*arguments)
        if status:
            message = self._error_message(status).decode("utf-8", "replace")
            self._release["Status"](status)
            raise RuntimeError(f"{name}: {message}")

    def create(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """Call a function whose last argument receives what the function creates."""
        created = ctypes.c_void_p()
        self.call(name, *arguments, ctypes.byref(created))
        return created

    def release(self, kind: str, handle: ctypes.c_void_p) -> None:
        """Free what was created."""
        self._release[kind](handle)


_library: Library | None = None
_library_lock = allocate_lock()


def library() -> Library:
    """Return the shared library of the installed onnxruntime. The first call loads it, without importing the package.

    Raises:
        OSError: the library is not found, cannot be loaded, or is too old.
    """
    global _library
    with _library_lock:
        if _library is None:
            _library = Library(find_library())
        return _library


def find_library() -> str:
    """Return the path of the shared library in the onnxruntime package that ``import`` would find.

    Raises:
        OSError: there is none.
    """
    prefix, suffix = ("libonnxruntime.", ".dylib") if sys.platform == "darwin" else ("libonnxruntime.so", "")
    for entry in sys.path:
        folder = os.path.join(entry or os.curdir, "onnxruntime", "capi")
        try:
            files = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in files:
            if name.startswith(prefix) and name.endswith(suffix) and "providers" not in name:
                return os.path.join(folder, name)
        raise OSError(f"{folder} has no shared library {prefix}*{suffix}")
    raise OSError("onnxruntime is not installed")


def version() -> str:
    """Return the version of the shared library."""
    return library().version


def open_session(options: SessionOptions, entries: Mapping[str, str]) -> CApiSession:
    """Open an ONNX artifact on the CPU. ``entries`` is onnxruntime's session configuration."""
    return CApiSession(library(), options, entries)


class CApiSession:
    """An onnxruntime session on the CPU: a `firstvec.engines.session.Session`."""

    _INPUTS = (ctypes.c_char_p * 2)(b"input_ids", b"attention_mask")
    _OUTPUTS = (ctypes.c_char_p * 1)(b"sentence_embedding")

    def __init__(self, api: Library, options: SessionOptions, entries: Mapping[str, str]) -> None:
        self._api = api
        self.engine = f"onnxruntime {api.version} (C API)"
        self.kind = options.kind
        self._pad_token_id = options.pad_token_id
        self._dim = options.embedding_dim
        weights = options.weights
        self._mappings = weights.mappings
        self._weights: list[ctypes.c_void_p] = []
        settings = api.create("CreateSessionOptions")
        try:
            api.call("SetSessionLogSeverityLevel", settings, _LOG_ERRORS_ONLY)
            api.call("SetSessionGraphOptimizationLevel", settings, _NO_OPTIMIZATION)
            api.call("SetIntraOpNumThreads", settings, options.threads)
            api.call("SetInterOpNumThreads", settings, 1)
            for key, value in entries.items():
                api.call("AddSessionConfigEntry", settings, key.encode(), os.fsencode(value))
            for name, kind, dims, address, size in weights.tensors:
                shape = (ctypes.c_int64 * len(dims))(*dims)
                self._weights.append(self._tensor(address, size, shape, kind))
                api.call("AddInitializer", settings, name, self._weights[-1])
            data = weights.model
            self._session = api.create("CreateSessionFromArray", api.environment(), data, len(data), settings)
        except BaseException:
            self._release_weights()
            raise
        finally:
            api.release("SessionOptions", settings)
        if not options.quick_start:
            weights.drop_pages()

    def __reduce__(self) -> str:
        # A copy would have the same handles, and would use them after this session has freed them.
        raise TypeError("a session cannot be copied: load the model again")

    def run(self, rows: Sequence[Sequence[int]]) -> memoryview[float]:
        """Compute the vectors of token ids. Returns float32, (len(rows), dim), in memory of its own."""
        longest = max(map(len, rows))
        shape = (ctypes.c_int64 * 2)(len(rows), longest)
        input_ids = array("q", [self._pad_token_id]) * (len(rows) * longest)  # (B, T)
        attention_mask = array("q", [0]) * (len(rows) * longest)  # (B, T)
        ones = array("q", [1]) * longest
        for index, row in enumerate(rows):
            start = index * longest
            input_ids[start : start + len(row)] = array("q", row)
            attention_mask[start : start + len(row)] = ones[: len(row)]
        result = bytearray(4 * len(rows) * self._dim)  # (B, D)
        target = (ctypes.c_char * len(result)).from_buffer(result)
        values: list[ctypes.c_void_p] = []
        try:
            for data in (input_ids, attention_mask):
                address, count = data.buffer_info()
                values.append(self._tensor(address, 8 * count, shape, _INT64))
            out_shape = (ctypes.c_int64 * 2)(len(rows), self._dim)
            values.append(self._tensor(ctypes.addressof(target), len(result), out_shape, _FLOAT))
            feeds = (ctypes.c_void_p * 2)(values[0], values[1])
            fetches = (ctypes.c_void_p * 1)(values[2])
            self._api.call("Run", self._session, None, self._INPUTS, feeds, 2, self._OUTPUTS, 1, fetches)
        finally:
            for value in values:
                self._api.release("Value", value)
        return memoryview(result).cast("f", (len(rows), self._dim))

    def close(self) -> None:
        """Free the session and the handles of its weights."""
        session, self._session = self._session, ctypes.c_void_p()
        self._api.release("Session", session)
        self._release_weights()

    def abandon(self) -> None:
        """Do nothing: no destructor frees a handle of the C API."""

    def _release_weights(self) -> None:
        while self._weights:
            self._api.release("Value", self._weights.pop())

    def _tensor(self, address: int, size: int, shape: Any, kind: int) -> ctypes.c_void_p:
        """Make a tensor over memory of ours, which must live longer than the tensor."""
        create = "CreateTensorWithDataAsOrtValue"
        return self._api.create(create, self._api.memory, address, size, shape, len(shape), kind)
