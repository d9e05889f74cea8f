"""Open an artifact: verified files first, then the engine's session, then the self-test.

Each step returns a value that the next step needs, so no session can be opened of files that were not verified.
"""

from __future__ import annotations

from firstvec.bundle.integrity import OpenFile, open_verified
from firstvec.engines.session import SessionOptions, import_engine, import_module, open_session
from firstvec.engines.table import ENGINES
from firstvec.errors import IncompatibleArtifact
from firstvec.loading.self_test import pass_self_test, self_test_key
from firstvec.loading.trace import Trace
from firstvec.process.threads import engine_gate
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firstvec.bundle.manifest import Artifact, Manifest
    from firstvec.engines.session import Session


class VerifiedArtifact(Record):
    """An artifact whose files are the ones that were built. They stay open, for a session that is opened later."""

    manifest: Manifest
    artifact: Artifact
    device: str
    files: tuple[OpenFile, ...]
    weights: list[Any]  # what the engine's reader found in the files, until the first session takes it out
    verification: str  # "hashed now", or "remembered" for every file
    key: str  # for the self-test's marker


class OpenArtifact(Record):
    """A session that may be used."""

    session: Session
    self_test: str  # what `pass_self_test` returned, or "skipped"


def verify_artifact(
    manifest: Manifest, artifact: Artifact, device: str = "cpu", trace: Trace | None = None
) -> VerifiedArtifact:
    """Open and verify the artifact's files.

    Raises:
        IntegrityError, IncompatibleArtifact, LoadError: a file was changed, cannot be read, or cannot be opened.
    """
    with (trace or Trace()).stage("verification"):
        files = tuple(open_verified(manifest.root, file, artifact.id) for file in artifact.files)
        return VerifiedArtifact(
            manifest=manifest,
            artifact=artifact,
            device=device,
            files=files,
            weights=[_read_weights(artifact, files)],
            verification="remembered" if all(file.remembered for file in files) else "hashed now",
            key=self_test_key(manifest, artifact, device),
        )


def open_artifact(
    verified: VerifiedArtifact, *, quick_start: bool = True, self_test: bool = True, trace: Trace | None = None
) -> OpenArtifact:
    """Open a session of a verified artifact, and test that this machine computes what the build computed.

    Args:
        quick_start: True opens the session that starts fastest, False the one that runs fastest. Engines with one kind
            of session always open that one.
        self_test: False leaves the self-test out, where the same kind of session has passed it in this process.

    Raises:
        IntegrityError: a file is not the one that was built.
        IncompatibleArtifact, SelfTestError: this machine cannot run the artifact, or computes other vectors.
    """
    trace = trace or Trace()
    manifest, artifact = verified.manifest, verified.artifact
    if not all(file.is_open for file in verified.files):
        # The program has closed all descriptors, as a daemon does.
        verified = verify_artifact(manifest, artifact, verified.device, trace)
    with trace.stage("engine"):
        # Outside of the gate: an import, which may take seconds, is Python's work and no run of an engine.
        engine = import_engine(artifact)
    row = ENGINES[artifact.engine]
    options = SessionOptions(
        artifact_id=artifact.id,
        format=artifact.format,
        files=verified.files,
        weights=verified.weights.pop() if verified.weights else _read_weights(artifact, verified.files),
        device=verified.device,
        provider=row.provider,
        pad_token_id=manifest.model.pad_token_id,
        embedding_dim=manifest.model.embedding_dim,
        quick_start=quick_start and row.has_two_kinds,
    )
    with trace.stage("session"), engine_gate:
        session = open_session(engine, artifact, options)
    try:
        for file in verified.files:
            file.verify_again()
        result = "skipped"
        if self_test:
            with trace.stage("self-test"), engine_gate:
                result = pass_self_test(manifest, artifact, verified.key, engine.version(), session)
        return OpenArtifact(session=session, self_test=result)
    except BaseException:
        session.close()
        raise


def _read_weights(artifact: Artifact, files: tuple[OpenFile, ...]) -> Any:
    """Let the engine's reader read the files, which are verified. None: the engine has no reader."""
    if artifact.engine not in ENGINES:
        raise IncompatibleArtifact(artifact.id, f"the engine {artifact.engine!r} is unknown to this firstvec: upgrade")
    reader = ENGINES[artifact.engine].weights_reader
    return None if reader is None else import_module(reader).read_weights(artifact.id, files)
