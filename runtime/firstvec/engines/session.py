"""What an engine module and a session are, and the three calls that turn an engine's errors into typed ones."""

from __future__ import annotations

from importlib import import_module

from firstvec.engines.table import ENGINES, version_fits
from firstvec.errors import IncompatibleArtifact
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    from firstvec.bundle.integrity import OpenFile
    from firstvec.bundle.manifest import Artifact

    class EngineModule(Protocol):
        """The functions of a module that `firstvec.engines.table.Engine.module` names."""

        def load_library(self) -> None:
            """Load the engine's library into the process. Holds the GIL."""

        def start(self) -> None:
            """Do what the first session would wait for. Releases the GIL."""

        def version(self) -> str:
            """Return the version of the loaded library."""

        def describe_use(self) -> str:
            """Return how the library is used here, for people."""

        def open_session(self, options: SessionOptions) -> Session:
            """Open an artifact."""

    class Session(Protocol):
        """An open artifact. ``run`` may be called from several threads at once."""

        engine: str
        """Engine and version, for people."""
        kind: str
        """``quick-start`` or ``throughput``."""

        def run(self, rows: Sequence[Sequence[int]]) -> memoryview[float]:
            """Compute the vectors of token ids. Rows may differ in length. Returns float32, (len(rows), dim)."""

        def close(self) -> None:
            """Free the memory. Nothing may be running."""

        def abandon(self) -> None:
            """Make sure that nothing ever frees the memory: its threads belong to another process."""


class SessionOptions(Record):
    """How to open an artifact."""

    artifact_id: str
    files: tuple[OpenFile, ...]
    """The artifact's files, verified. The first one is the model."""
    weights: Any
    """What the engine's ``weights_reader`` found in the files."""
    device: str
    provider: str
    """Execution provider, for onnxruntime."""
    threads: int
    """Cores to use, at least 1."""
    pad_token_id: int
    embedding_dim: int
    quick_start: bool
    """True starts fastest. False spends load time on what makes runs faster (weight prepacking)."""

    @property
    def kind(self) -> str:
        """``quick-start`` or ``throughput``, for people."""
        return session_kind(quick_start=self.quick_start)


def session_kind(*, quick_start: bool) -> str:
    """Return the name of a kind of session, for people and for markers in the cache."""
    return "quick-start" if quick_start else "throughput"


def import_engine(artifact: Artifact) -> EngineModule:
    """Import the engine of ``artifact``, load its library, and check its version.

    Raises:
        IncompatibleArtifact: the engine is unknown, missing, broken, or of a version that the artifact does not accept.
    """
    row = ENGINES.get(artifact.engine)
    if row is None:
        raise IncompatibleArtifact(artifact.id, f"the engine {artifact.engine!r} is unknown to this firstvec: upgrade")
    try:
        engine: EngineModule = import_module(row.module)
        engine.load_library()
    except (ImportError, OSError) as error:
        raise IncompatibleArtifact(artifact.id, f"{artifact.engine} cannot be imported: {error}") from error
    version = engine.version()
    if not version_fits(version, artifact.engine_min, artifact.engine_below):
        needed = f">={artifact.engine_min},<{artifact.engine_below}"
        raise IncompatibleArtifact(artifact.id, f"needs {artifact.engine} {needed}, {version} was imported")
    return engine


def open_session(engine: EngineModule, artifact: Artifact, options: SessionOptions) -> Session:
    """Open ``artifact``, whose files have been verified, in its engine.

    Raises:
        IncompatibleArtifact: the engine refuses the artifact.
    """
    try:
        try:
            return engine.open_session(options)
        except RuntimeError as error:
            # This is onnxruntime's message where the system grants no more threads. One thread gives the same vectors.
            if options.threads == 1 or "pthread_create failed" not in str(error):
                raise
            return engine.open_session(options.replace(threads=1))
    except Exception as error:
        # Engines raise types of their own. The caller takes the next candidate.
        raise IncompatibleArtifact(artifact.id, f"{artifact.engine} cannot load it: {error}") from error


def run_session(session: Session, artifact_id: str, rows: Sequence[Sequence[int]]) -> memoryview[float]:
    """Compute the vectors of token ids in an open session. Returns float32, (len(rows), embedding_dim).

    Raises:
        IncompatibleArtifact: the engine cannot run the artifact.
    """
    try:
        return session.run(rows)
    except (RuntimeError, ValueError) as error:
        if not _comes_from_engine(error):
            raise
        raise IncompatibleArtifact(
            artifact_id, f"{session.engine} cannot run it: {error}; run `firstvec verify`, or rebuild the bundle"
        ) from error


def _comes_from_engine(error: Exception) -> bool:
    """Return False if a signal handler of the program raised the error while an engine ran."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = str(frame.tb_frame.f_globals.get("__name__", "")) if frame is not None else ""
    packages = {package for row in ENGINES.values() for package in (row.package, row.module.partition(".")[0])}
    return module.partition(".")[0] in packages | {"firstvec", "numpy"}


def pad(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Any, Any]:
    """Right-pad token ids to one length: input_ids and attention_mask, int64 arrays, (len(rows), longest)."""
    import numpy

    longest = max(map(len, rows))
    input_ids = numpy.full((len(rows), longest), pad_token_id, dtype=numpy.int64)  # (B, T)
    attention_mask = numpy.zeros((len(rows), longest), dtype=numpy.int64)  # (B, T)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = row
        attention_mask[index, : len(row)] = 1
    return input_ids, attention_mask
