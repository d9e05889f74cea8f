"""What every way to ship a bundle asks of it first: that it is whole, and that its name can be that of a folder."""

from __future__ import annotations

from firstvec.bundle.integrity import verify_file
from firstvec.bundle.manifest import Manifest, read_manifest_bytes
from firstvec.errors import BuildError, ManifestError


def read_whole(manifest: Manifest) -> bytes:
    """Return the bytes of the manifest of a bundle that is about to be shipped.

    Raises:
        BuildError: an artifact is not installed, because the bundle was installed in parts.
        ManifestError: the manifest was changed since it was read.
    """
    if manifest.absent:
        raise BuildError(
            f"{manifest.root}: {manifest.absent[0].id} is not installed; ship the folder that `firstvec build` made"
        )
    data = read_manifest_bytes(manifest.path)
    if Manifest.parse(data, manifest.path) != manifest:
        raise ManifestError(manifest.path, "was changed since it was read", "try again")
    return data


def verify_files(manifest: Manifest) -> None:
    """Hash every file of a bundle. What was remembered does not count.

    Raises:
        IntegrityError: a file is not the one that was built.
    """
    for file in manifest.files():
        verify_file(manifest.root, file, use_markers=False)


def name_folder(manifest: Manifest) -> str:
    """Return the name of a bundle's folder: that of the model, without the organization.

    Nobody vouches for the name in a manifest, so it must not lead elsewhere.

    Raises:
        ManifestError: the model's name cannot be that of a folder.
    """
    name = manifest.model.name.rsplit("/", 1)[-1]
    if not name or name.startswith(".") or "\\" in name or not name.isprintable() or len(name.encode()) > 100:
        raise ManifestError(
            manifest.path,
            f"model.name {manifest.model.name[:80]!r} cannot be the name of a folder",
            "build the bundle with another --name",
        )
    return name
