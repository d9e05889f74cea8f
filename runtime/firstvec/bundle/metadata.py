"""What is known of a model without loading it."""

from __future__ import annotations

import marshal
import os
import sys

from firstvec import __version__
from firstvec.bundle import MANIFEST_NAME, store
from firstvec.bundle.integrity import last_used
from firstvec.errors import BundleNotFound, ManifestError
from firstvec.machine import cache
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firstvec.bundle.manifest import Manifest


_MAX_SAVED_BYTES = 1 << 16


class ModelMetadata(Record):
    """What is known of a model without loading it."""

    model_name: str
    embedding_dim: int
    """Length of a vector."""
    max_seq_length: int
    """Tokens, special tokens included. Longer texts are truncated."""
    model_size_mb: float
    """Size of the full-precision artifact's files, in 10^6 bytes."""
    supports_quantization: bool
    """Whether the bundle holds an INT8 artifact."""
    last_used: float
    """Unix time at which this user last loaded the bundle, 0.0 for never."""
    revision: str | None = None
    pooling_mode: str = ""
    normalized: bool = False
    """Whether vectors have unit length."""
    artifacts: tuple[str, ...] = ()
    """Ids of the bundle's artifacts."""
    path: str = ""
    """The bundle's folder. Empty for a record that a program made."""

    @classmethod
    def from_cache(cls, model_name: str, *, working_folder: str = "") -> ModelMetadata | None:
        """Return the metadata of an installed bundle, or what `save` wrote for that name, or None.

        The bundle's manifest is parsed and checked once. As long as the manifest's file stays the same, this process
        and later ones remember what it says.

        Args:
            model_name: as for the loader.
            working_folder: folder from which relative paths are seen. Empty: where the process is now.
        """
        try:
            found = store.search(model_name, working_folder, _known)
        except (BundleNotFound, ManifestError):
            return None
        return cls._at(*found) if found is not None else cls._saved(model_name)

    @classmethod
    def of(cls, manifest: Manifest) -> ModelMetadata:
        """Return what ``manifest`` says of its model."""
        return cls._at(manifest.root, _known_of(manifest))

    @classmethod
    def _at(cls, folder: str, known: Known) -> ModelMetadata:
        values, tokenizer = known
        return cls(**{**values, "last_used": last_used(folder, *tokenizer), "path": folder})

    def save(self) -> None:
        """Write this record into the user's cache folder, for `from_cache` where no bundle of that name is installed.

        The replaced loader's method. firstvec itself does not call it. Errors of the file system are ignored.
        """
        import json

        path = os.fspath(self._get_cache_path(self.model_name))
        try:
            cache.make_folder(os.path.dirname(path))
            with open(path, "w", encoding="utf-8") as stream:
                json.dump(self.to_dict(), stream, indent=2)
        except (OSError, ValueError):  # ValueError: the model's name has a null character or a lone surrogate
            return

    @classmethod
    def _saved(cls, model_name: str) -> ModelMetadata | None:
        path = os.fspath(cls._get_cache_path(model_name))
        if not os.path.exists(path):
            return None
        import json

        from firstvec.bundle.json_reader import read_regular_file

        try:
            values = json.loads(read_regular_file(path, _MAX_SAVED_BYTES))
            record = cls(**{**values, "artifacts": tuple(values.get("artifacts", ()))})
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return None
        numbers = (record.embedding_dim, record.max_seq_length, record.model_size_mb, record.last_used)
        return record if all(isinstance(number, (int, float)) for number in numbers) else None

    @staticmethod
    def _get_cache_path(model_name: str) -> str | os.PathLike[str]:
        return cache.path_of("saved-metadata", f"{model_name.replace('/', '--')}.json")


Known = tuple["dict[str, Any]", tuple[str, str]]
"""The fields, and the path and digest of the tokenizer. The tokenizer's marker tells when the bundle was last used."""

_OF_MODEL = ("embedding_dim", "max_seq_length", "revision", "pooling_mode", "normalized")

_seen: dict[tuple[int, ...], Known] = {}
"""Identity of a manifest's file → what the manifest says."""


def _known_of(manifest: Manifest) -> Known:
    """Return what a manifest says. Two fields are filled in later, because they depend on the call and on the path."""
    model, artifacts = manifest.model, (*manifest.artifacts, *manifest.absent)
    full = [artifact.size for artifact in artifacts if artifact.precision == "fp32"]
    values: dict[str, Any] = dict.fromkeys(ModelMetadata._fields) | {name: getattr(model, name) for name in _OF_MODEL}
    values["model_name"] = model.name
    values["model_size_mb"] = round(min(full or [artifact.size for artifact in artifacts]) / 1e6, 1)
    values["supports_quantization"] = any(artifact.precision == "int8" for artifact in artifacts)
    values["artifacts"] = tuple(artifact.id for artifact in artifacts)
    return values, (manifest.tokenizer.path, manifest.tokenizer.sha256)


def _known(folder: str) -> tuple[str, tuple[str, Known]]:
    """Return the model's name, and the folder with what its manifest says. Raises ManifestError."""
    try:
        key = cache.file_identity(os.stat(f"{folder}/{MANIFEST_NAME}"))
    except (OSError, ValueError) as error:
        raise ManifestError(folder, f"has no manifest that can be read ({error})") from error
    if key not in _seen:
        # Another firstvec, or another Python, may have other fields, and may write them in another form.
        path = cache.path_of("metadata", f"{cache.identity_text(key)}-{__version__}-{sys.hexversion:x}-2")
        known = _parse_note(cache.read_note(path))
        if known is None:
            from firstvec.bundle.manifest import Manifest  # which most processes do not need here

            known = _known_of(Manifest.read(folder))
            if cache.will_last(folder):
                cache.write_note(path, marshal.dumps(known))
        _seen[key] = known
    return _seen[key][0]["model_name"], (folder, _seen[key])


def _parse_note(data: bytes | None) -> Known | None:
    try:
        # A few damaged bytes can make marshal ask for 16 GB. `firstvec.machine.cache` has checked the checksum.
        values, (path, sha256) = marshal.loads(data or b"")
    except (EOFError, ValueError, TypeError):
        return None
    is_right = isinstance(values, dict) and tuple(values) == ModelMetadata._fields
    return (values, (path, sha256)) if is_right and isinstance(path, str) and isinstance(sha256, str) else None
