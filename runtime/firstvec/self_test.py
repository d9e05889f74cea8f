"""Prove that this machine computes the vectors that the build computed.

A file can be the one that was built, and run, and still give other vectors: 8-bit weights on a processor that adds
their products in 16 bits, or a defect of an engine on some processor. So a bundle carries a few texts with the vectors
of each artifact, and a session runs them before it is used. What passed is remembered, as an empty marker file, for
this processor, engine, device and kind of session, and for these files.
"""

from __future__ import annotations

import os
from math import dist, hypot

from firstvec import cache, integrity
from firstvec.document import parse_object
from firstvec.errors import ManifestError, SelfTestError
from firstvec.hardware import cpu_identity
from firstvec.record import Record
from firstvec.sessions import run_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from firstvec.manifest import Artifact, Manifest
    from firstvec.sessions import Session

_FEW = 3
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.")


class Golden(Record):
    """What one artifact must compute."""

    token_ids: tuple[tuple[int, ...], ...]
    """Of N texts."""
    vectors: list[float]
    """What the build computed of them in one run, N x embedding_dim, one text after another."""
    max_difference: float
    """Largest mean relative difference of a right vector to these."""


def check(manifest: Manifest, artifact: Artifact, place: str, version: str, session: Session) -> str:
    """Run the self-test in ``session`` unless it passed before.

    Args:
        manifest: the bundle's.
        artifact: the one that is open.
        place: what `identity` gave.
        version: of its engine.
        session: of the artifact.

    Returns:
        ``passed now``, ``passed before``, or ``none`` where the bundle has no self-test.

    Raises:
        SelfTestError: this machine computes other vectors than the build.
        IncompatibleArtifact: the engine cannot run the artifact.
        IntegrityError, ManifestError: the bundle's self-test is damaged.
    """
    if manifest.self_test is None:
        return "none"
    marker = _marker(place, version, session.kind)
    if cache.is_marked(marker):
        return "passed before"
    run(artifact, session, read(manifest, artifact))
    cache.mark(marker)
    return "passed now"


def is_remembered(manifest: Manifest, artifact: Artifact, device: str, version: str, kind: str) -> bool | None:
    """Whether that kind of session passed before on this machine; None where the bundle has no self-test."""
    if manifest.self_test is None:
        return None
    return cache.is_marked(_marker(identity(manifest, artifact, device), version, kind), use=False)


def identity(manifest: Manifest, artifact: Artifact, device: str) -> str:
    """What the outcome depends on, the engine apart: the artifact's files, the processor, the device."""
    files = (*artifact.files, manifest.self_test) if manifest.self_test is not None else artifact.files
    # One number for all files: to hash their digests would take an import of 3 ms.
    number = sum(int(file.sha256, 16) for file in files) % (1 << 256)
    return f"{number:064x}-{cpu_identity()}-{artifact.engine}-{device}"


def _marker(place: str, version: str, kind: str) -> str:
    name = f"{place}-{version}-{kind}"
    return cache.place("self-tested", "".join(letter if letter in _NAME_CHARACTERS else "-" for letter in name))


def read(manifest: Manifest, artifact: Artifact) -> Golden:
    """Read what ``artifact`` must compute from the bundle's self-test.

    Raises:
        IntegrityError: it is not the file that was built.
        ManifestError: it is not valid, or has nothing of this artifact.
    """
    assert manifest.self_test is not None
    path = os.path.join(manifest.root, manifest.self_test.path)
    top = parse_object(integrity.read(manifest.root, manifest.self_test, artifact.id), path)
    token_ids = tuple(item.integers("token_ids", 0, 1 << 31) for item in top.children("texts", at_least=1))
    for item in top.children("artifacts"):
        if item.text("id") == artifact.id:
            vectors = item.floats("vectors")
            if len(vectors) != len(token_ids) * manifest.model.embedding_dim or not all(token_ids):
                raise item.error("vectors", f"is not one vector of {manifest.model.embedding_dim} numbers a text")
            if artifact.precision == "fp32":
                # Without rounding, right and wrong are far apart: no mean over many texts is needed, nor waited for.
                token_ids = token_ids[:_FEW]
                vectors = vectors[: len(token_ids) * manifest.model.embedding_dim]
            return Golden(token_ids=token_ids, vectors=vectors, max_difference=item.number("max_difference", 0, 2))
    raise ManifestError(path, f"holds no vectors of {artifact.id}")


def run(artifact: Artifact, session: Session, golden: Golden) -> float:
    """Run the texts in ``session`` and return the mean relative difference of their vectors to the golden ones.

    Raises:
        SelfTestError: it is larger than is right, or not a number.
        IncompatibleArtifact: the engine cannot run the artifact.
    """
    vectors = run_session(session, artifact.id, golden.token_ids)
    found = mean_difference(vectors.cast("B").cast("f").tolist(), golden.vectors, len(golden.token_ids))
    if not found <= golden.max_difference:
        raise SelfTestError(artifact.id, session.engine, found, golden.max_difference)
    return found


def mean_difference(vectors: Sequence[float], golden: Sequence[float], count: int) -> float:
    """Mean over ``count`` vectors of ‖v - g‖ / ‖g‖; infinite where there is another number of components."""
    if len(vectors) != len(golden):
        return float("inf")
    width = len(golden) // count
    rows = range(0, len(golden), width)
    return sum(
        dist(vectors[at : at + width], golden[at : at + width]) / max(hypot(*golden[at : at + width]), 1e-30)
        for at in rows
    ) / len(rows)
