"""What an engine module and a session are, and the three calls that turn an engine's errors into typed ones."""

from __future__ import annotations

import sys

from firstvec.engines.table import ENGINES, version_fits
from firstvec.errors import IncompatibleArtifact, excerpt
from firstvec.record import Late, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence
    from typing import Any, Protocol

    from firstvec.bundle.integrity import OpenFile
    from firstvec.bundle.manifest import Artifact

    class EngineModule(Protocol):
        """The functions of a module that `firstvec.engines.table.Engine.module` names."""

        def version(self) -> str: ...  # of the engine's library, which the first call loads. Holds the GIL.
        def open_session(self, options: SessionOptions) -> Session: ...  # opens an artifact
        def start(self) -> None: ...  # only where ``starts_early``: does what the first session would wait for
        def describe_use(self) -> str: ...  # only where ``describes_use``: how the library is used here, for people


def _usable_cores() -> int:
    from firstvec.machine.limits import usable_cores  # one text of firstvec's own engine does not need it

    return usable_cores()


class SessionOptions(Record):
    """How to open an artifact."""

    artifact_id: str
    format: str  # value of ``format`` in the manifest
    files: tuple[OpenFile, ...]  # the artifact's files, verified. The first one is the model.
    weights: Any  # what the engine's ``weights_reader`` found in the files
    device: str
    provider: str  # execution provider, for onnxruntime
    threads: int = Late(lambda _: _usable_cores())  # type: ignore[assignment] # cores to use, at least 1
    pad_token_id: int
    embedding_dim: int
    quick_start: bool  # True starts fastest. False spends load time on what makes runs faster (weight prepacking).

    @property
    def kind(self) -> str:
        """``quick-start`` or ``throughput``, for people and for markers in the cache."""
        return "quick-start" if self.quick_start else "throughput"


class Session:
    """An open artifact, which each engine's session extends. ``run`` may be called from several threads at once.

    Args:
        engine: the engine and its version, for people.
        options: how the artifact is opened.
    """

    pads = True
    """Whether the texts of a run are padded to one length, so that larger runs are no faster."""

    def __init__(self, engine: str, options: SessionOptions) -> None:
        self.engine = engine
        self.kind = options.kind
        self._pad_token_id = options.pad_token_id

    def run(self, rows: Sequence[Sequence[int]]) -> memoryview[float]:
        """Compute the vectors of token ids. Rows may differ in length. Returns float32, (len(rows), dim)."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the memory. Nothing may be running."""

    def abandon(self) -> None:
        """Make sure that nothing ever frees the memory: its threads belong to another process."""


def import_module(name: str) -> Any:
    """Do what `importlib.import_module` does. The import of importlib takes 0.7 ms."""
    __import__(name)
    return sys.modules[name]


def import_engine(artifact: Artifact) -> EngineModule:
    """Import the engine of ``artifact``, load its library, and check its version.

    Raises:
        IncompatibleArtifact: the engine is unknown, missing, broken, or of a version that the artifact does not accept.
    """
    if artifact.engine not in ENGINES:
        raise IncompatibleArtifact(
            artifact.id, f"the engine '{excerpt(artifact.engine)}' is unknown to this firstvec: upgrade"
        )
    try:
        engine: EngineModule = import_module(ENGINES[artifact.engine].module)
        version = engine.version()
    except (ImportError, OSError) as error:
        raise IncompatibleArtifact(artifact.id, f"{artifact.engine} cannot be imported: {error}") from error
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
        return engine.open_session(options)
    except Exception as error:  # engines raise types of their own
        # This is onnxruntime's message where the system grants no more threads. One thread gives the same vectors.
        if options.threads > 1 and "pthread_create failed" in str(error):
            return open_session(engine, artifact, options.replace(threads=1))
        raise IncompatibleArtifact(artifact.id, f"{artifact.engine} cannot load it: {error}") from error


def run_session(session: Session, artifact_id: str, rows: Sequence[Sequence[int]]) -> memoryview[float]:
    """Compute the vectors of token ids in an open session. Returns float32, (len(rows), embedding_dim).

    Raises:
        IncompatibleArtifact: the engine cannot run the artifact, or the memory does not suffice.
    """
    try:
        return session.run(rows)
    except MemoryError as error:
        if not _comes_from_engine(error):
            raise
        reason = f"{session.engine} has too little memory to run it; give the process more, or pass shorter texts"
        raise IncompatibleArtifact(artifact_id, reason) from error
    except (RuntimeError, ValueError) as error:
        if not _comes_from_engine(error):
            raise
        reason = f"{session.engine} cannot run it: {error}; run `firstvec verify`, or rebuild the bundle"
        raise IncompatibleArtifact(artifact_id, reason) from error


def _comes_from_engine(error: Exception) -> bool:
    """Return False if a signal handler of the program raised the error while an engine ran."""
    place, module = error.__traceback__, ""
    while place is not None:
        module = str(place.tb_frame.f_globals.get("__name__", ""))
        place = place.tb_next
    packages = {package for row in ENGINES.values() for package in (row.package, row.module.partition(".")[0])}
    return module.partition(".")[0] in packages | {"firstvec", "numpy"}


def pad(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[array[int], array[int]]:
    """Right-pad token ids to one length: input_ids and attention_mask, int64, len(rows) times the longest."""
    from array import array

    longest = max(map(len, rows))
    input_ids = array("q", [pad_token_id]) * (len(rows) * longest)  # (B, T)
    attention_mask = array("q", [0]) * (len(rows) * longest)  # (B, T)
    ones = array("q", [1]) * longest
    for index, row in enumerate(rows):
        start = index * longest
        input_ids[start : start + len(row)] = array("q", row)
        attention_mask[start : start + len(row)] = ones[: len(row)]
    return input_ids, attention_mask
