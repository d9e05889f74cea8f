"""Where bundles are found: argument → FIRSTVEC_ARTIFACTS → installed bundle wheels → user data folder."""

from __future__ import annotations

import os
import sys

from firstvec.errors import BundleNotFound, ManifestError
from firstvec.integrity import last_used
from firstvec.manifest import FILE_NAME, Manifest
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

WHEEL_PACKAGE = "firstvec_bundles"
"""Bundle wheels install their bundle as a folder of this namespace package."""


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
    def from_cache(cls, model_name: str) -> ModelMetadata | None:
        """Return the metadata of an installed bundle, read from its manifest; None if there is no valid one."""
        try:
            return cls.of(find(model_name))
        except (BundleNotFound, ManifestError):
            return None

    @classmethod
    def of(cls, manifest: Manifest) -> ModelMetadata:
        """Return what ``manifest`` says of its model."""
        full = [artifact.size for artifact in manifest.artifacts if artifact.precision == "fp32"]
        return cls(
            model_name=manifest.model.name,
            embedding_dim=manifest.model.embedding_dim,
            max_seq_length=manifest.model.max_seq_length,
            model_size_mb=round(min(full or [artifact.size for artifact in manifest.artifacts]) / 1e6, 1),
            supports_quantization=any(artifact.precision == "int8" for artifact in manifest.artifacts),
            last_used=last_used(manifest.root, manifest.tokenizer),
            revision=manifest.model.revision,
            pooling_mode=manifest.model.pooling_mode,
            normalized=manifest.model.normalized,
            artifacts=tuple(artifact.id for artifact in manifest.artifacts),
            path=manifest.root,
        )


def find(model_name: str) -> Manifest:
    """Return the manifest of the bundle of that name, or in that folder.

    Args:
        model_name: ``organisation/model``, ``model`` alone, or the path of a bundle's folder. A relative path counts
            as one if it begins with ``.``, or if it has a separator and no bundle of that name is found.

    Raises:
        BundleNotFound: there is none; the error lists the places that were searched.
        ManifestError: it is there, and its manifest is missing or invalid.
    """
    path = os.path.expanduser(model_name)
    if os.path.isabs(path) or path.startswith("."):
        if not os.path.exists(path):
            raise BundleNotFound(model_name, [path])
        if not os.path.isfile(os.path.join(path, FILE_NAME)):
            raise ManifestError(os.path.join(path, FILE_NAME), "does not exist: this is not a complete bundle")
        return Manifest.read(path)
    base = model_name.rsplit("/", 1)[-1]
    for root in search_path():
        # The usual place first: other bundles of the root then need not be read at all.
        folder = os.path.join(root, base)
        if os.path.isfile(os.path.join(folder, FILE_NAME)) and _is(manifest := Manifest.read(folder), model_name):
            return manifest
        for folder in folders(root):
            try:
                manifest = Manifest.read(folder)
            except ManifestError:
                continue
            if _is(manifest, model_name):
                return manifest
    # Last, and never for a bare name: what lies in the current folder must not stand in for an installed bundle.
    if os.sep in path and os.path.isfile(os.path.join(path, FILE_NAME)):
        return Manifest.read(path)
    names = dict.fromkeys(os.path.basename(folder) for folder in installed())
    raise BundleNotFound(model_name, search_path(), [*names])


def search_path() -> list[str]:
    """The folders in which bundles are looked for, in order."""
    roots = [root for root in os.environ.get("FIRSTVEC_ARTIFACTS", "").split(os.pathsep) if root]
    # Bundle wheels: found as `import` would find them, without importing anything.
    wheels = [os.path.join(entry, WHEEL_PACKAGE) for entry in sys.path]
    return [*roots, *filter(os.path.isdir, wheels), os.path.join(data_dir(), "bundles")]


def data_dir() -> str:
    """The user's folder for installed bundles: ``$FIRSTVEC_HOME``, else the platform's user data folder."""
    if chosen := os.environ.get("FIRSTVEC_HOME"):
        return chosen
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser(r"~\AppData\Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Application Support")
    else:
        base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(base, "firstvec")


def folders(root: str) -> Iterator[str]:
    """The bundle folders in ``root``, or ``root`` itself if it is one."""
    if os.path.isfile(os.path.join(root, FILE_NAME)):
        yield root
        return
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return
    for name in names:
        if not name.startswith(".") and os.path.isfile(os.path.join(root, name, FILE_NAME)):
            yield os.path.join(root, name)


def installed() -> Iterator[str]:
    """Every bundle folder of the search path, in its order."""
    for root in search_path():
        yield from folders(root)


def read_all() -> tuple[list[Manifest], dict[str, str]]:
    """The valid manifests of the search path, and folder → error of the bundles whose manifest is not valid."""
    manifests, broken = [], {}
    for folder in installed():
        try:
            manifests.append(Manifest.read(folder))
        except ManifestError as error:
            broken[folder] = str(error)
    return manifests, broken


def _is(manifest: Manifest, model_name: str) -> bool:
    name = manifest.model.name
    return model_name in (name, name.rsplit("/", 1)[-1])
