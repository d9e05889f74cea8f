"""Where bundles are found: argument → FIRSTVEC_ARTIFACTS → installed bundle wheels → the user's data folder."""

from __future__ import annotations

import os
import sys

from firstvec.bundle import MANIFEST_NAME, WHEEL_PACKAGE
from firstvec.errors import BundleNotFound, ManifestError
from firstvec.machine.cache import home_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from firstvec.bundle.manifest import Manifest


def find_bundle(model_name: str, require_signature: str | None = None, working_folder: str = "") -> Manifest:
    """Return the manifest of the bundle of that name, or in that folder.

    Args:
        model_name: ``organization/model``, ``model`` alone, or the path of a bundle's folder. A relative path counts
            as one if it begins with ``.``, or if it has a separator and no bundle of that name is found.
        require_signature: path of the public key whose signature the bundle must have. The key decides nothing else:
            the same bundle is found without it.
        working_folder: folder from which relative paths are seen. Empty: where the process is now.

    Raises:
        BundleNotFound: there is none. The error lists the places that were searched.
        ManifestError: the bundle is there, and its manifest is missing or invalid.
        SignatureError: the bundle is there, and this key did not sign it, or it was changed, or the key is not usable.
        MissingDependency: a signature is required, and the package cryptography is not installed.
    """
    from firstvec.bundle.manifest import Manifest, read_manifest_bytes

    for candidate in candidates(model_name, working_folder):
        folder, must_match, ends_search = candidate
        path = os.path.join(folder, MANIFEST_NAME)
        try:
            data = read_manifest_bytes(path)
            # The absolute path stays right wherever the process goes. A daemon goes to the root.
            manifest = Manifest.parse(data, path).replace(path=os.path.abspath(path))
        except ManifestError:
            if ends_search:
                raise
            continue
        if not must_match or names_model(model_name, manifest.model.name):
            if require_signature is not None:
                from firstvec.bundle.signature import check_signature

                check_signature(manifest, data, require_signature)
            return manifest
    names = dict.fromkeys(map(_describe_folder, installed_folders(working_folder)))
    raise BundleNotFound(model_name, search_path(working_folder), [*names])


def _describe_folder(folder: str) -> str:
    """Return a bundle's name for people. The manifest has the name, and the folder may be called something else."""
    from firstvec.bundle.manifest import Manifest

    name = os.path.basename(folder)
    try:
        model = Manifest.read(folder).model.name
    except ManifestError:
        return name
    return name if names_model(name, model) else f"{model} (in a folder named {name})"


def candidates(model_name: str, working_folder: str = "") -> Iterator[tuple[str, bool, bool]]:
    """Yield the folders that may hold the bundle of that name, in order.

    Each comes with two booleans: whether the manifest must have that name, and whether an invalid manifest ends the
    search.

    Raises:
        BundleNotFound, ManifestError: the name is a path, and there is no bundle.
    """
    path = os.path.expanduser(model_name) if model_name[:1] == "~" else model_name
    if os.path.isabs(path) or path.startswith("."):
        path = os.path.join(working_folder, path)
        if not os.path.exists(path):
            raise BundleNotFound(model_name, [path])
        if not os.path.isfile(os.path.join(path, MANIFEST_NAME)):
            exists = os.path.lexists(os.path.join(path, MANIFEST_NAME))
            what = "is not a regular file" if exists else "does not exist: this is not a complete bundle"
            raise ManifestError(os.path.join(path, MANIFEST_NAME), what)
        yield path, False, True
        return
    base = model_name.rsplit("/", 1)[-1]
    for root in _roots(working_folder):
        # The usual place comes first. As a rule the other bundles of the root are then not read at all.
        usual = os.path.join(root, base)
        if os.path.isfile(f"{usual}/{MANIFEST_NAME}"):
            yield usual, True, True
        for folder in bundle_folders(root):
            if folder != usual:
                yield folder, True, False
    # A path comes last, and never for a bare name: a folder that happens to lie in the current one must not stand in
    # for an installed bundle.
    path = os.path.join(working_folder, path)
    if os.sep in model_name and os.path.isfile(os.path.join(path, MANIFEST_NAME)):
        yield path, False, True


def names_model(asked: str, full_name: str) -> bool:
    """Return whether ``asked`` means the model of that full name."""
    return asked in (full_name, full_name.rsplit("/", 1)[-1])


def search_path(working_folder: str = "") -> list[str]:
    """Return the folders in which bundles are looked for, in order."""
    return [*_roots(working_folder)]


def _roots(working_folder: str) -> Iterator[str]:
    for root in filter(None, os.environ.get("FIRSTVEC_ARTIFACTS", "").split(os.pathsep)):
        yield os.path.join(working_folder, root)
    # Bundle wheels are found as `import` would find them, but nothing is imported.
    yield from filter(os.path.isdir, [os.path.join(working_folder, entry, WHEEL_PACKAGE) for entry in sys.path])
    if (folder := data_folder()) is not None:
        yield os.path.join(working_folder, folder, "bundles")


def data_folder() -> str | None:
    """Return the user's folder for installed bundles: ``$FIRSTVEC_HOME``, else the platform's user data folder.

    None: the user has no home, and no variable names a folder.
    """
    if chosen := os.environ.get("FIRSTVEC_HOME"):
        return chosen
    if base := os.environ.get("XDG_DATA_HOME"):
        return f"{base}/firstvec"
    if (home := home_folder()) is None:
        return None
    return (
        f"{home}/Library/Application Support/firstvec" if sys.platform == "darwin" else f"{home}/.local/share/firstvec"
    )


def bundle_folders(root: str) -> Iterator[str]:
    """Yield the bundle folders in ``root``, or ``root`` itself if it is one."""
    if os.path.isfile(os.path.join(root, MANIFEST_NAME)):
        yield root
        return
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return
    for name in names:
        if not name.startswith(".") and os.path.isfile(os.path.join(root, name, MANIFEST_NAME)):
            yield os.path.join(root, name)


def installed_folders(working_folder: str = "") -> Iterator[str]:
    """Yield every bundle folder of the search path, in its order."""
    for root in search_path(working_folder):
        yield from bundle_folders(root)


def read_installed() -> tuple[list[Manifest], dict[str, str]]:
    """Return the valid manifests of the search path, and folder → error of the bundles with an invalid one."""
    from firstvec.bundle.manifest import Manifest

    manifests, broken = [], {}
    for folder in installed_folders():
        try:
            manifests.append(Manifest.read(folder))
        except ManifestError as error:
            broken[folder] = str(error)
    return manifests, broken
