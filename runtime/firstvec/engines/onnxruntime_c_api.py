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

from firstvec.bundle.integrity import read_ahead
from firstvec.engines.session import Session, pad

# onnxruntime's wheels send telemetry and keep a database in the user's cache since 1.29, unless this is set first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from firstvec.engines.session import SessionOptions

_API_VERSION = 17  # the ORT_API_VERSION that is asked for. An older library answers NULL.
_LOG_ERRORS_ONLY = 3  # ORT_LOGGING_LEVEL_ERROR
_FLOAT, _INT64 = 1, 7  # ONNXTensorElementDataType
_NO_OPTIMIZATION = 0  # ORT_DISABLE_ALL: the build optimized the file
_ARENA, _DEFAULT_MEMORY = 1, 0  # OrtArenaAllocator, OrtMemTypeDefault

_pointer, _text, _size, _int = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int

_FUNCTIONS: dict[str, tuple[int, tuple[Any, ...]]] = {
    # name in struct OrtApi → position, argument types; each returns an OrtStatus*, NULL for success
    "CreateEnv": (3, (_int, _text, _pointer)),
    "CreateSessionFromArray": (8, (_pointer, _text, _size, _pointer, _pointer)),
    "Run": (9, (_pointer, _pointer, _pointer, _pointer, _size, _pointer, _size, _pointer)),
    "CreateSessionOptions": (10, (_pointer,)),
    "SetSessionLogSeverityLevel": (22, (_pointer, _int)),
    "SetSessionGraphOptimizationLevel": (23, (_pointer, _int)),
    "SetIntraOpNumThreads": (24, (_pointer, _int)),
    "SetInterOpNumThreads": (25, (_pointer, _int)),
    "CreateTensorWithDataAsOrtValue": (49, (_pointer, _pointer, _size, _pointer, _size, _int, _pointer)),
    "CreateCpuMemoryInfo": (69, (_int, _int, _pointer)),
    "AddSessionConfigEntry": (130, (_pointer, _text, _text)),
    "AddInitializer": (150, (_pointer, _text, _pointer)),
}
_GET_ERROR_MESSAGE = 2
_RELEASES = {"Status": 93, "Session": 95, "Value": 96, "SessionOptions": 100}  # they return nothing
_LONG = ("CreateEnv", "CreateSessionFromArray", "Run", "Session")
"""These functions run without the GIL. The others keep it, because they take microseconds, and to get the GIL back
from a thread that imports numpy takes 5 ms each time."""


def _function(address: int, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """Make a function of the library callable."""
    return (ctypes.CFUNCTYPE if name in _LONG else ctypes.PYFUNCTYPE)(result, *arguments)(address)


class Library:
    """The loaded shared library, its version, and the one environment of the process.

    Raises:
        OSError: the library cannot be loaded, or is older than the API version that is asked for.
    """

    def __init__(self, path: str) -> None:
        read_ahead(path)
        get_base = getattr(ctypes.CDLL(path), "OrtGetApiBase", None)
        if get_base is None:
            raise OSError(f"{path} has no OrtGetApiBase")
        get_base.restype = ctypes.POINTER(_pointer)
        get_api, get_version = get_base()[:2]  # struct OrtApiBase
        self.path = path
        self.version = str(_function(get_version, "GetVersionString", _text)().decode())
        at = _function(get_api, "GetApi", ctypes.POINTER(_pointer), ctypes.c_uint32)(_API_VERSION)
        if not at:
            raise OSError(f"{path} is onnxruntime {self.version}, which has no API version {_API_VERSION}")
        self._functions = {
            name: _function(at[position], name, _pointer, *arguments)
            for name, (position, arguments) in _FUNCTIONS.items()
        }
        self.release = {name: _function(at[position], name, None, _pointer) for name, position in _RELEASES.items()}
        self._error_message = _function(at[_GET_ERROR_MESSAGE], "GetErrorMessage", _text, _pointer)
        self.memory = self.create("CreateCpuMemoryInfo", _ARENA, _DEFAULT_MEMORY)
        self._environment: ctypes.c_void_p | None = None
        self._environment_lock = allocate_lock()

    def environment(self) -> ctypes.c_void_p:
        """Return the environment, which the first call creates: the library registers all operators that it knows."""
        with self._environment_lock:
            if self._environment is None:
                self._environment = self.create("CreateEnv", _LOG_ERRORS_ONLY, b"firstvec")
            return self._environment

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the API. Raise RuntimeError with the library's message if the function fails."""
        status = self._functions[name](*arguments)
        if status:
            message = self._error_message(status).decode("utf-8", "replace")
            self.release["Status"](status)
            raise RuntimeError(f"{name}: {message}")

    def create(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """Call a function whose last argument receives what the function creates."""
        created = ctypes.c_void_p()
        self.call(name, *arguments, ctypes.byref(created))
        return created


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
        if os.path.isdir(folder):
            for name in sorted(os.listdir(folder)):
                if name.startswith(prefix) and name.endswith(suffix) and "providers" not in name:
                    return os.path.join(folder, name)
            raise OSError(f"{folder} has no shared library {prefix}*{suffix}")
    raise OSError("onnxruntime is not installed")


def version() -> str:
    """Return the version of the shared library."""
    return library().version


class CApiSession(Session):
    """A session of the C API, on the CPU. ``entries`` is onnxruntime's session configuration."""

    _INPUTS = (ctypes.c_char_p * 2)(b"input_ids", b"attention_mask")
    _OUTPUTS = (ctypes.c_char_p * 1)(b"sentence_embedding")

    def __init__(self, options: SessionOptions, entries: Mapping[str, str]) -> None:
        self._api = api = library()
        super().__init__(f"onnxruntime {api.version} (C API)", options)
        self._dim = options.embedding_dim
        weights = options.weights
        self._mappings = weights.mappings
        self._handles: list[tuple[str, ctypes.c_void_p]] = []  # of the weights, then of the session
        settings = api.create("CreateSessionOptions")
        try:
            api.call("SetSessionLogSeverityLevel", settings, _LOG_ERRORS_ONLY)
            api.call("SetSessionGraphOptimizationLevel", settings, _NO_OPTIMIZATION)
            api.call("SetIntraOpNumThreads", settings, options.threads)
            api.call("SetInterOpNumThreads", settings, 1)
            for key, value in entries.items():
                api.call("AddSessionConfigEntry", settings, key.encode(), os.fsencode(value))
            for name, kind, dims, address, size in weights.tensors:
                tensor = self._tensor(address, size, dims, kind)
                self._handles.append(("Value", tensor))
                api.call("AddInitializer", settings, name, tensor)
            data = weights.model
            self._session = api.create("CreateSessionFromArray", api.environment(), data, len(data), settings)
            self._handles.append(("Session", self._session))
        except BaseException:
            self.close()
            raise
        finally:
            api.release["SessionOptions"](settings)
        if not options.quick_start:
            weights.drop_pages()

    def __reduce__(self) -> str:
        # A copy would have the same handles, and would use them after this session has freed them.
        raise TypeError("a session cannot be copied: load the model again")

    def run(self, rows: Sequence[Sequence[int]]) -> memoryview[float]:
        """Compute the vectors of token ids. Returns float32, (len(rows), dim), in memory of its own."""
        inputs = pad(rows, self._pad_token_id)
        shape = (len(rows), len(inputs[0]) // len(rows))  # (B, T)
        result = bytearray(4 * len(rows) * self._dim)  # (B, D)
        values: list[ctypes.c_void_p] = []
        try:
            for data in inputs:
                address, count = data.buffer_info()
                values.append(self._tensor(address, 8 * count, shape, _INT64))
            target = ctypes.addressof(ctypes.c_char.from_buffer(result))
            values.append(self._tensor(target, len(result), (len(rows), self._dim), _FLOAT))
            feeds = (ctypes.c_void_p * 2)(*values[:2])
            fetches = (ctypes.c_void_p * 1)(values[2])
            self._api.call("Run", self._session, None, self._INPUTS, feeds, 2, self._OUTPUTS, 1, fetches)
        finally:
            for value in values:
                self._api.release["Value"](value)
        return memoryview(result).cast("f", (len(rows), self._dim))

    def close(self) -> None:
        """Free the session and the handles of its weights. Only this method frees them, and no destructor."""
        self._session = ctypes.c_void_p()
        while self._handles:
            kind, handle = self._handles.pop()
            self._api.release[kind](handle)

    def _tensor(self, address: int, size: int, dims: tuple[int, ...], kind: int) -> ctypes.c_void_p:
        """Make a tensor over memory of ours, which must live longer than the tensor."""
        shape = (ctypes.c_int64 * len(dims))(*dims)
        create = "CreateTensorWithDataAsOrtValue"
        return self._api.create(create, self._api.memory, address, size, shape, len(dims), kind)


open_session = CApiSession
