"""The engines. One file an engine; each opens an artifact's file and turns token ids into vectors.

`engine_for` imports the engine that an artifact needs and no other.
"""

from __future__ import annotations

import os

from firstvec.errors import IncompatibleArtifact, InputError
from firstvec.record import Record
from firstvec.selection import version_fits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    from firstvec.integrity import OpenFile
    from firstvec.manifest import Artifact
    from firstvec.onnx_model import OnnxModel
    from firstvec.sessions.onnx_c import Library

    class Engine(Protocol):
        """A module of this package."""

        def engine_version(self) -> str: ...
        def open_session(self, options: SessionOptions) -> Session: ...

    class Session(Protocol):
        """A loaded artifact."""

        engine: str
        """Engine and version, for people."""
        kind: str
        """``quick-start`` or ``throughput``."""

        def run(self, rows: Sequence[Sequence[int]]) -> memoryview[float]:
            """Embed token ids; rows may differ in length. Returns float32, shape (len(rows), embedding_dim)."""


class SessionOptions(Record):
    """How to open an artifact."""

    file: OpenFile
    """The artifact's first file, verified."""
    model: OnnxModel | None
    """What is in it, for onnxruntime."""
    device: str
    threads: int
    """Cores to use, at least 1."""
    pad_token_id: int
    embedding_dim: int
    quick_start: bool
    """True starts fastest; False spends load time on what makes runs faster (weight prepacking)."""

    @property
    def kind(self) -> str:
        """For people: ``quick-start`` or ``throughput``."""
        return "quick-start" if self.quick_start else "throughput"

    def onnxruntime_entries(self) -> dict[str, str]:
        """Session configuration of onnxruntime (``onnxruntime_session_options_config_keys.h``)."""
        # Or a model that is its own format, too, would be read as that.
        entries = {"session.load_model_format": "ONNX"}
        if self.model is not None and self.model.weights:
            # It is given these, and wants to see all the same that the files are there that the model names.
            entries["session.model_external_initializers_file_folder_path"] = self.file.folder
        if not self.quick_start:
            return entries
        return entries | {
            # Prepacking copies every weight: +12 ms (INT8) to +50 ms (fp32) at load, and no mapped page stays shared.
            "session.disable_prepacking": "1",
            # Worker threads that spin between runs take the core that the caller's own start-up needs.
            "session.intra_op.allow_spinning": "0",
        }


def engine_for(artifact: Artifact) -> Engine:
    """Import the engine of ``artifact``.

    Raises:
        IncompatibleArtifact: the engine is missing, broken, or of a version that the artifact does not accept.
    """
    try:
        if artifact.engine == "torch":
            from firstvec.sessions import torchscript as engine
        elif c_api_unusable() is None:
            from firstvec.sessions import onnx_c as engine  # type: ignore[no-redef]
        else:
            from firstvec.sessions import onnx as engine  # type: ignore[no-redef]
    except (ImportError, OSError) as error:
        raise IncompatibleArtifact(artifact.id, f"{artifact.engine} cannot be imported: {error}") from error
    version = engine.engine_version()
    if not version_fits(version, artifact.engine_min, artifact.engine_below):
        wanted = f">={artifact.engine_min},<{artifact.engine_below}"
        raise IncompatibleArtifact(artifact.id, f"needs {artifact.engine} {wanted}, {version} was imported")
    return engine


def c_api() -> Library | None:
    """The shared library of onnxruntime, loaded; None where `c_api_unusable`."""
    if c_api_unusable() is not None:
        return None
    from firstvec.sessions import onnx_c

    return onnx_c.library()


def c_api_unusable() -> str | None:
    """Why onnxruntime is used through its Python binding; None where its C API is used directly.

    ``FIRSTVEC_ONNXRUNTIME=binding`` asks for the binding.

    Raises:
        InputError: it asks for something else.
    """
    asked = os.environ.get("FIRSTVEC_ONNXRUNTIME", "")
    if asked not in ("", "capi", "binding"):
        raise InputError(f"FIRSTVEC_ONNXRUNTIME is {asked!r}: use 'binding', 'capi', or leave it out")
    if asked == "binding":
        return "FIRSTVEC_ONNXRUNTIME=binding"
    try:
        from firstvec.sessions import onnx_c

        onnx_c.library()
    except (OSError, ImportError) as error:  # a Python without ctypes, too
        return str(error)
    return None


def open_session(engine: Engine, artifact: Artifact, options: SessionOptions) -> Session:
    """Open ``artifact``, whose files have been verified, in its engine.

    Raises:
        IncompatibleArtifact: the engine refuses the artifact.
    """
    try:
        try:
            return engine.open_session(options)
        except RuntimeError as error:
            # onnxruntime's message where the system grants no more threads: slower, and as right.
            if options.threads == 1 or "pthread_create failed" not in str(error):
                raise
            return engine.open_session(options.replace(threads=1))
    except Exception as error:
        # Engines raise their own types, RuntimeError among them; the caller takes the next candidate.
        raise IncompatibleArtifact(artifact.id, f"{artifact.engine} cannot load it: {error}") from error


def run_session(session: Session, artifact_id: str, rows: Sequence[Sequence[int]]) -> memoryview[float]:
    """Run token ids in an open session. Returns float32, shape (len(rows), embedding_dim).

    Raises:
        IncompatibleArtifact: the engine cannot run the artifact.
    """
    try:
        return session.run(rows)
    except (RuntimeError, ValueError) as error:
        if not _is_the_engines(error):
            raise
        raise IncompatibleArtifact(
            artifact_id, f"{session.engine} cannot run it: {error}; run `firstvec verify`, or rebuild the bundle"
        ) from error


def _is_the_engines(error: Exception) -> bool:
    """Whether it was raised in an engine, and not in a signal handler of the program that ran meanwhile."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return str(module).partition(".")[0] in ("firstvec", "numpy", "onnxruntime", "torch")


def pad(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Any, Any]:
    """Right-pad token ids to one length: input_ids and attention_mask, int64, shape (len(rows), longest)."""
    import numpy

    longest = max(map(len, rows))
    input_ids = numpy.full((len(rows), longest), pad_token_id, dtype=numpy.int64)  # (B, T)
    attention_mask = numpy.zeros((len(rows), longest), dtype=numpy.int64)  # (B, T)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = row
        attention_mask[index, : len(row)] = 1
    return input_ids, attention_mask
