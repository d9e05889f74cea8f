"""Test that this machine computes the vectors that the build computed.

Vectors can be wrong though the files are right. Some processors add products of 8-bit weights in 16 bits. So a bundle
carries a few texts with the vectors of each artifact, and a session computes them before it is used. An empty marker
file remembers a passed test, for these files, this processor, engine, device and kind of session.
"""

from __future__ import annotations

import os

from firstvec.bundle.integrity import read_verified
from firstvec.engines.session import run_session
from firstvec.engines.table import ENGINES
from firstvec.errors import ManifestError, SelfTestError
from firstvec.machine import cache, native
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from firstvec.bundle.manifest import Artifact, Manifest
    from firstvec.engines.session import Session

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.")


class Golden(Record):
    """What one artifact must compute."""

    token_ids: tuple[tuple[int, ...], ...]  # of N texts
    sha256: str | None = None  # of the vectors' bytes. None: the artifact's engine does not promise the same bits
    vectors: list[float] | None = None  # what the build computed of them in one run, N x embedding_dim numbers
    max_difference: float = 0.0  # largest mean relative difference of a right vector to these


def pass_self_test(manifest: Manifest, artifact: Artifact, key: str, engine_version: str, session: Session) -> str:
    """Run the self-test in the artifact's session. Return ``passed now``, ``passed before``, or ``none`` without one.

    Raises:
        SelfTestError, IncompatibleArtifact: this machine computes other vectors than the build, or cannot run it.
        IntegrityError, ManifestError: the bundle's self-test is damaged.
    """
    if manifest.self_test is None:
        return "none"
    marker = _marker_path(key, engine_version, session.kind)
    if cache.has_marker(marker):
        return "passed before"
    compare(artifact, session, read_golden(manifest, artifact))
    cache.put_marker(marker)
    return "passed now"


def is_remembered(manifest: Manifest, artifact: Artifact, device: str, version: str, kind: str) -> bool | None:
    """Return whether that kind of session passed before on this machine. None: the bundle has no self-test."""
    if manifest.self_test is None:
        return None
    return cache.has_marker(_marker_path(self_test_key(manifest, artifact, device), version, kind), touch=False)


def self_test_key(manifest: Manifest, artifact: Artifact, device: str) -> str:
    """Return what decides the result, the engine's version apart: the artifact's files, the processor, the device."""
    files = (*artifact.files, manifest.self_test) if manifest.self_test is not None else artifact.files
    # A sum stands for all files, because hashing their digests would take an import of 3 ms.
    number = sum(int(file.sha256, 16) for file in files) % (1 << 256)
    # Where every processor computes the same bits, the instruction set stands for the processor.
    same_bits = artifact.engine in ENGINES and ENGINES[artifact.engine].same_bits
    where = native.instruction_set() if same_bits else _identity_of_processor()
    return f"{number:064x}-{where}-{artifact.engine}-{device}"


def _identity_of_processor() -> str:
    from firstvec.machine import processor

    return processor.identity()


def _marker_path(*parts: str) -> str:
    return cache.path_of("self-tested", "".join(each if each in _NAME_CHARACTERS else "-" for each in "-".join(parts)))


def read_golden(manifest: Manifest, artifact: Artifact) -> Golden:
    """Read from the bundle's self-test what ``artifact`` must compute. Raise IntegrityError or ManifestError."""
    from firstvec.bundle.json_reader import parse_object  # a self-test that is remembered does not need it

    assert manifest.self_test is not None
    path = os.path.join(manifest.root, manifest.self_test.path)
    top = parse_object(read_verified(manifest.root, manifest.self_test, artifact.id), path)
    token_ids = tuple(item.integers("token_ids", 0, 1 << 31) for item in top.children("texts", at_least=1))
    dim = manifest.model.embedding_dim
    for item in top.children("artifacts"):
        if item.text("id") == artifact.id:
            if ENGINES[artifact.engine].same_bits:
                return Golden(token_ids=token_ids, sha256=item.digest("sha256"))
            vectors = item.floats("vectors")
            if len(vectors) != len(token_ids) * dim or not all(token_ids):
                raise item.error("vectors", f"is not one vector of {dim} numbers a text")
            # Without rounding, right and wrong vectors are far apart. A few texts are enough, and are sooner done.
            count = 3 if artifact.precision == "fp32" else len(token_ids)
            limit = item.number("max_difference", 0, 2)
            return Golden(token_ids=token_ids[:count], vectors=vectors[: count * dim], max_difference=limit)
    raise ManifestError(path, f"holds no vectors of {artifact.id}")


def compare(artifact: Artifact, session: Session, golden: Golden) -> float:
    """Run the texts. Return the mean relative difference of the vectors. Raise SelfTestError if it is too large.

    Of an engine that promises the same bits, the difference is 0 or infinite.
    """
    vectors = run_session(session, artifact.id, golden.token_ids)
    if golden.vectors is None:
        found = 0.0 if digest_vectors(vectors) == golden.sha256 else float("inf")
    else:
        found = mean_difference(vectors.cast("B").cast("f").tolist(), golden.vectors, len(golden.token_ids))
    if not found <= golden.max_difference:  # also where it is not a number
        raise SelfTestError(artifact.id, session.engine, found, golden.max_difference)
    return found


def digest_vectors(vectors: memoryview[float]) -> str:
    """Return the SHA-256 of the vectors' float32 numbers, little-endian, one vector behind the other."""
    import hashlib  # 3 ms: a self-test that is remembered does not need it

    return hashlib.sha256(vectors).hexdigest()


def mean_difference(vectors: Sequence[float], golden: Sequence[float], count: int) -> float:
    """Return the mean over ``count`` vectors of ‖v - g‖ / ‖g‖. Infinite: the numbers of components differ."""
    if len(vectors) != len(golden):
        return float("inf")
    from math import dist, hypot

    width = len(golden) // count
    rows = [slice(at, at + width) for at in range(0, len(golden), width)]
    return sum(dist(vectors[row], golden[row]) / max(hypot(*golden[row]), 1e-30) for row in rows) / len(rows)
