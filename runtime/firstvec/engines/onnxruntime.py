"""onnxruntime: through its C API where that can be used, else through its Python binding.

The C API needs neither numpy nor the binding, and halves the time to the first vector. The binding serves the
providers other than the CPU's, and machines where the C API cannot be used. The vectors are the same.
"""

from __future__ import annotations

import os
from importlib import import_module

from firstvec.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firstvec.engines.session import Session, SessionOptions

CPU_PROVIDER = "CPUExecutionProvider"
_C_API, _BINDING = "firstvec.engines.onnxruntime_c_api", "firstvec.engines.onnxruntime_binding"


def start() -> None:
    """Create the environment of the C API: the library registers all operators that it knows."""
    if c_api_problem() is None:
        import_module(_C_API).library().environment()


def version() -> str:
    """Return the version of the library, which the first call loads."""
    return str(_way().version())


def open_session(options: SessionOptions) -> Session:
    """Open an ONNX artifact. Its weights stay where the verified file is mapped."""
    way = _way() if options.provider == CPU_PROVIDER else import_module(_BINDING)
    session: Session = way.open_session(options, session_entries(options))
    return session


def describe_use() -> str:
    """Return how the library is used here, for people."""
    problem = c_api_problem()
    return f"through its Python binding: {problem}" if problem else f"through its C API: {_way().library().path}"


def c_api_problem() -> str | None:
    """Return why onnxruntime is used through its Python binding. None: the C API is used.

    Raises:
        InputError: ``FIRSTVEC_ONNXRUNTIME`` is neither ``binding``, which asks for the binding, nor ``capi``.
    """
    asked = os.environ.get("FIRSTVEC_ONNXRUNTIME", "")
    if asked not in ("", "capi", "binding"):
        raise InputError(f"FIRSTVEC_ONNXRUNTIME is {asked!r}: use 'binding' or 'capi', or unset it")
    if asked == "binding":
        return "FIRSTVEC_ONNXRUNTIME=binding"
    try:
        import_module(_C_API).library()
    except (OSError, ImportError) as error:  # ImportError: a Python without ctypes
        return str(error)
    return None


def session_entries(options: SessionOptions) -> dict[str, str]:
    """Return onnxruntime's session configuration (``onnxruntime_session_options_config_keys.h``)."""
    # Without this entry onnxruntime guesses the format, and a file in onnxruntime's own format would be accepted.
    entries = {"session.load_model_format": "ONNX"}
    if options.weights.tensors:
        # onnxruntime is given the weights in memory, but it still checks that the files exist that the model names.
        entries["session.model_external_initializers_file_folder_path"] = options.files[0].folder
    if options.quick_start:
        # Prepacking copies every weight. That costs 12 ms (INT8) to 50 ms (fp32), and no page stays shared.
        entries["session.disable_prepacking"] = "1"
        # Worker threads that spin between runs take the core that the caller's own start needs.
        entries["session.intra_op.allow_spinning"] = "0"
    return entries


def _way() -> Any:
    return import_module(_C_API if c_api_problem() is None else _BINDING)
