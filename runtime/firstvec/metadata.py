"""What is known of a model without loading it."""

from __future__ import annotations

import marshal
import os
import sys

from firstvec import __version__, cache, store
from firstvec.errors import BundleNotFound, ManifestError
from firstvec.integrity import last_used
from firstvec.record import Record

# `manifest`, with json, is imported only for a bundle that was not seen before.

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firstvec.manifest import Manifest


class ModelMetadata(Record):
    """What is known of a model without loading it."""

    model_name: str
    embedding_dim: int
    """Length of a vector."""
    max_seq_length: int
    """Tokens, special tokens included; longer texts are truncated."""
    model_size_mb: float
    """Size of the full-precision artifact's files, in 10^6 bytes."""
    supports_quantization: bool
    """Whether the bundle holds an INT8 artifact."""
    last_used: float
    """Unix time at which this user last loaded it, 0.0 for never."""
    revision: str | None
    pooling_mode: str
    normalized: bool
    """Whether vectors have unit length."""
    artifacts: tuple[str, ...]
    """Ids of the bundle's artifacts."""
    path: str
    """The bundle's folder."""

    @classmethod
    def from_cache(cls, model_name: str, *, here: str = "") -> ModelMetadata | None:
        """Return the metadata of an installed bundle; None if there is no valid one.

        Relative paths are seen from the folder ``here``; from where the process is now if it is empty.

        It comes from the bundle's manifest, which is parsed and validated once: for as long as the manifest's file
        stays the same, this process and later ones remember what is in it.
        """
        try:
            for folder, by_name, decisive in store.candidates(model_name, here):
                try:
                    values, tokenizer = _known(folder)
                except ManifestError:
                    if decisive:
                        return None
                    continue
                if not by_name or store.is_named(values["model_name"], model_name):
                    return cls(**{**values, "last_used": last_used(folder, *tokenizer), "path": folder})
        except (BundleNotFound, ManifestError):
            return None
        return None

    @classmethod
    def of(cls, manifest: Manifest) -> ModelMetadata:
        """Return what ``manifest`` says of its model."""
        tokenizer = manifest.tokenizer
        values = _values(manifest)
        used = last_used(manifest.root, tokenizer.path, tokenizer.sha256)
        return cls(**{**values, "last_used": used, "path": manifest.root})


def _values(manifest: Manifest) -> dict[str, Any]:
    """The fields, in their order, but for the two that differ from call to call and from path to path."""
    full = [artifact.size for artifact in manifest.artifacts if artifact.precision == "fp32"]
    return {
        "model_name": manifest.model.name,
        "embedding_dim": manifest.model.embedding_dim,
        "max_seq_length": manifest.model.max_seq_length,
        "model_size_mb": round(min(full or [artifact.size for artifact in manifest.artifacts]) / 1e6, 1),
        "supports_quantization": any(artifact.precision == "int8" for artifact in manifest.artifacts),
        "last_used": 0.0,
        "revision": manifest.model.revision,
        "pooling_mode": manifest.model.pooling_mode,
        "normalized": manifest.model.normalized,
        "artifacts": tuple(artifact.id for artifact in manifest.artifacts),
        "path": "",
    }


Known = tuple["dict[str, Any]", tuple[str, str]]
"""The fields, and the path and digest of the tokenizer, by which the last use is known."""

_seen: dict[tuple[int, ...], Known] = {}
"""Manifest's file → what is in it."""


def _known(folder: str) -> Known:
    """What the manifest in ``folder`` says: from this process, from the user's cache, or from the manifest.

    Raises:
        ManifestError: there is no valid manifest.
    """
    try:
        key = cache.identity(os.stat(f"{folder}/{store.FILE_NAME}"))
    except (OSError, ValueError) as error:
        raise ManifestError(folder, f"has no manifest that can be read ({error})") from error
    if (known := _seen.get(key)) is None:
        # Another firstvec, or another Python, may know other fields, and write them otherwise.
        path = cache.place("metadata", f"{cache.name_of(key)}-{__version__}-{sys.hexversion:x}-1")
        known = _parsed(cache.recall(path))
        if known is None:
            from firstvec.manifest import Manifest

            manifest = Manifest.read(folder)
            known = (_values(manifest), (manifest.tokenizer.path, manifest.tokenizer.sha256))
            cache.note(path, marshal.dumps(known))
        _seen[key] = known
    return known


def _parsed(data: bytes | None) -> Known | None:
    if data is None:
        return None
    try:
        # A few damaged bytes can make marshal ask for 16 GB: it is given only what `cache` found as it was written.
        values, (path, sha256) = marshal.loads(data)
        if tuple(values) != ModelMetadata._fields or not isinstance(path, str) or not isinstance(sha256, str):
            return None
    except (EOFError, ValueError, TypeError):
        return None
    return values, (path, sha256)
