"""The options of a load: declared once, checked once.

The constructor of the loader, `get_instance`, `preload_embeddings`, `get_embedding_provider`, the command line and the
load itself all take an `Options` record, or the keyword arguments of `make_options`.
"""

from __future__ import annotations

import os

from firstvec.errors import InputError
from firstvec.record import Record
from firstvec.strategy import strategy_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypedDict

    from firstvec.enums import LoadingStrategy

    Strategy = LoadingStrategy | str

    class MoreOptions(TypedDict, total=False):
        """The options that are given by keyword only. `Options` says what each one means."""

        min_quality: float | None
        require_signature: str | os.PathLike[str] | None
        artifact: str | None

    class ProcessOptions(MoreOptions, total=False):
        """The options that the process's loaders get by keyword, without ``output``. None means no wish."""

        device: str | None
        enable_quantization: bool | None

    class SharedOptions(ProcessOptions, total=False):
        """Those with ``output``."""

        output: str | None


DEFAULT_MODEL = "all-MiniLM-L6-v2"

OUTPUTS = ("numpy", "list", "buffer")
"""The forms of a vector: an array, a list of floats, or a memoryview of float32."""


class Options(Record):
    """What to load and how. `make_options` checks the values."""

    model_name: str = DEFAULT_MODEL
    """Name of a bundle (``organization/model`` or ``model``), or the path of a bundle's folder."""
    strategy: str = "lazy"
    """Key of `firstvec.strategy.STRATEGIES`."""
    device: str | None = None
    """``cpu``, ``cuda``, ``cuda:1`` or ``mps``. None takes the best for this machine."""
    enable_quantization: bool = False
    """Whether LAZY, BACKGROUND and PROGRESSIVE may take INT8. QUANTIZED always does."""
    output: str = "numpy"
    """One of `OUTPUTS`: what the provider returns when a call does not say."""
    min_quality: float | None = None
    """Smallest acceptable ``cosine_min`` of an artifact to the fp32 reference, -1 to 1."""
    require_signature: str | None = None
    """Absolute path of a public key (PEM) whose signature the bundle must have."""
    artifact: str | None = None
    """Id of the one artifact that may be taken, whatever the strategy takes. None leaves the choice to the strategy."""
    working_folder: str = ""
    """Folder from which relative paths are seen. Empty: where the process is when a path is used."""


def make_options(
    model_name: str | os.PathLike[str] = DEFAULT_MODEL,
    strategy: Strategy = "lazy",
    device: str | None = None,
    enable_quantization: bool = False,
    output: str = "numpy",
    min_quality: float | None = None,
    require_signature: str | os.PathLike[str] | None = None,
    artifact: str | None = None,
) -> Options:
    """Check the options of a load and return them as a record. Relative paths are seen from where the process is now.

    Raises:
        InputError: a value is unknown or has the wrong type.
    """
    if isinstance(model_name, os.PathLike):
        model_name = os.fspath(model_name)
    if not isinstance(model_name, str) or not model_name:
        raise InputError(f"model_name {model_name!r} is not a name or a path")
    if device is not None and not _is_device(device):
        raise InputError(f"unknown device {device!r}: use 'cpu', 'cuda', 'cuda:1' or 'mps'")
    if type(enable_quantization) is not bool:
        raise InputError(f"enable_quantization {enable_quantization!r} is neither True nor False")
    if min_quality is not None and not (type(min_quality) in (int, float) and -1 <= min_quality <= 1):
        raise InputError(f"min_quality {min_quality!r} is not a cosine, between -1 and 1")
    if artifact is not None and not (isinstance(artifact, str) and artifact):
        raise InputError(f"artifact {artifact!r} is not the id of an artifact: see `firstvec inspect`")
    return Options(
        model_name=model_name,
        strategy=strategy_name(strategy),
        device=device,
        enable_quantization=enable_quantization,
        output=check_output(output),
        min_quality=min_quality,
        require_signature=None if require_signature is None else _absolute_key_path(require_signature),
        artifact=artifact,
        working_folder=_working_folder(),
    )


def check_output(output: Any) -> str:
    """Return ``output`` if it is one of `OUTPUTS`.

    Raises:
        InputError: it is not.
    """
    if not (isinstance(output, str) and output in OUTPUTS):
        raise InputError(f"unknown output {output!r}: use one of {', '.join(OUTPUTS)}")
    return output


def _is_device(device: object) -> bool:
    if not isinstance(device, str):
        return False
    kind, _, index = device.partition(":")
    return device in ("cpu", "cuda", "mps") or (kind == "cuda" and index.isascii() and index.isdecimal())


def _absolute_key_path(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a key, so that every load reads the same file, wherever the process has gone."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text:
        raise InputError(f"require_signature {path!r} is not the path of a public key")
    try:
        return os.path.abspath(text)
    except OSError as error:  # the working folder was deleted
        raise InputError(f"require_signature {text!r}: {error.strerror}; give an absolute path") from error


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # the working folder was deleted: a bundle with a relative path is not found
        return ""


def is_ray_address(text: str) -> bool:
    """Return whether ``text`` names a Ray cluster. ``local`` is a new one on this machine, ``auto`` a running one."""
    host, _, port = text.rpartition(":")
    return text in ("local", "auto") or (bool(host) and "/" not in host and port.isdigit())
