"""Where bundles are found: argument → FIRSTVEC_ARTIFACTS → installed bundle wheels → the user's data folder."""

from __future__ import annotations

import os
import sys

from firstvec import __version__
from firstvec.bundle import MANIFEST_NAME, WHEEL_PACKAGE
from firstvec.errors import BundleNotFound, ManifestError
from firstvec.machine import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from firstvec.bundle.manifest import Manifest

    T = TypeVar("T")


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
    found = search(model_name, working_folder, _read if require_signature is not None else _read_known)
    if found is not None:
        manifest, data = found
        if require_signature is not None:
            from firstvec.bundle.signature import check_signature

            check_signature(manifest, data, require_signature)
        return manifest
    manifests, broken = read_installed(working_folder)
    names = dict.fromkeys(map(os.path.basename, broken))
    for manifest in manifests:
        name, full_name = os.path.basename(manifest.root), manifest.model.name
        names[name if names_model(name, full_name) else f"{full_name} (in a folder named {name})"] = None
    raise BundleNotFound(model_name, search_path(working_folder), [*names])


def locate(manifest: Manifest, path: str) -> Manifest:
    """Return a whole manifest with the path of its file. Artifacts of which no file is installed become ``absent``.

    Only installed wheels may lack artifacts, because `firstvec wheel --split` makes a wheel of each. Anywhere else a
    missing file is damage.
    """
    # The absolute path stays right wherever the process goes. A daemon goes to the root.
    path = os.path.abspath(path)
    root = os.path.dirname(path)
    if os.path.basename(os.path.dirname(root)) != WHEEL_PACKAGE:
        return manifest.replace(path=path)
    is_here = [
        any(os.path.lexists(f"{root}/{file.path}") for file in artifact.files) for artifact in manifest.artifacts
    ]
    here, absent = (
        tuple(artifact for artifact, found in zip(manifest.artifacts, is_here, strict=True) if found is wanted)
        for wanted in (True, False)
    )
    return manifest.replace(path=path, artifacts=here, absent=absent)


def _read(folder: str) -> tuple[str, tuple[Manifest, bytes]]:
    manifest, data = _parse(folder)
    return manifest.model.name, (locate(manifest, manifest.path), data)


def _parse(folder: str) -> tuple[Manifest, bytes]:
    from firstvec.bundle.manifest import Manifest, read_manifest_bytes

    path = os.path.join(folder, MANIFEST_NAME)
    data = read_manifest_bytes(path)
    return Manifest.parse(data, path), data


def _read_known(folder: str) -> tuple[str, tuple[Manifest, bytes]]:
    """Return what `_read` returns, without the bytes, and remember it for as long as the file stays the same.

    Parsing and checking takes 1.5 ms, with the imports that it needs.
    """
    import marshal

    from firstvec.bundle.manifest import Manifest

    path = os.path.abspath(os.path.join(folder, MANIFEST_NAME))
    try:
        before = os.lstat(path)
    except (OSError, ValueError):
        return _read(folder)
    # Another firstvec, or another Python, may have other fields, and may write them in another form.
    identity = cache.identity_text(cache.file_identity(before))
    note = cache.path_of("manifests", f"{identity}-{__version__}-{sys.hexversion:x}-5")
    if (data := cache.read_note(note)) is not None:
        manifest = locate(Manifest.from_plain(marshal.loads(data)), path)
        return manifest.model.name, (manifest, b"")
    manifest, data = _parse(folder)
    after = os.lstat(path)
    is_same = cache.file_identity(before) == cache.file_identity(after)
    if is_same and cache.is_settled(after) and cache.will_last(path):
        cache.write_note(note, marshal.dumps({**manifest.to_plain(), "path": ""}))
    return manifest.model.name, (locate(manifest, path), data)


def search(model_name: str, working_folder: str, read: Callable[[str], tuple[str, T]]) -> T | None:
    """Return what ``read`` finds in the folder of the bundle of that name. None: there is no such bundle.

    ``read`` returns the name of a folder's model, and what is to be returned. The errors are those of `find_bundle`.
    """
    for folder, must_match, ends_search in candidates(model_name, working_folder):
        try:
            name, found = read(folder)
        except ManifestError:
            if ends_search:
                raise
            continue
        if not must_match or names_model(model_name, name):
            return found
    return None


def candidates(model_name: str, working_folder: str = "") -> Iterator[tuple[str, bool, bool]]:
    """Yield the folders that may hold the bundle of that name, in order.

    Each comes with two booleans: whether the manifest must have that name, and whether an invalid manifest ends the
    search. Raises BundleNotFound or ManifestError if the name is a path, and there is no bundle.
    """
    path = os.path.expanduser(model_name) if model_name[:1] == "~" else model_name
    if os.path.isabs(path) or path.startswith("."):
        path = os.path.join(working_folder, path)
        if not os.path.exists(path):
            raise BundleNotFound(model_name, [path])
        manifest = os.path.join(path, MANIFEST_NAME)
        if not os.path.isfile(manifest):
            missing = "does not exist: this is not a complete bundle"
            raise ManifestError(manifest, "is not a regular file" if os.path.lexists(manifest) else missing)
        yield path, False, True
        return
    base = model_name.rsplit("/", 1)[-1]
    for root in _roots(working_folder):
        # The usual place comes first. As a rule the other bundles of the root are then not read at all.
        usual = os.path.join(root, base)
        if os.path.isfile(f"{usual}/{MANIFEST_NAME}"):
            yield usual, True, True
        yield from ((folder, True, False) for folder in bundle_folders(root) if folder != usual)
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
    home = cache.home_folder()
    below = "Library/Application Support" if sys.platform == "darwin" else ".local/share"
    return f"{home}/{below}/firstvec" if home is not None else None


def bundle_folders(root: str) -> Iterator[str]:
    """Yield the bundle folders in ``root``, or ``root`` itself if it is one."""
    if os.path.isfile(os.path.join(root, MANIFEST_NAME)):
        yield root
        return
    try:
        folders = [os.path.join(root, name) for name in sorted(os.listdir(root)) if name[0] != "."]
    except OSError:
        return
    yield from (folder for folder in folders if os.path.isfile(os.path.join(folder, MANIFEST_NAME)))


def installed_folders(working_folder: str = "") -> Iterator[str]:
    """Yield every bundle folder of the search path, in its order."""
    for root in search_path(working_folder):
        yield from bundle_folders(root)


def read_installed(working_folder: str = "") -> tuple[list[Manifest], dict[str, str]]:
    """Return the valid manifests of the search path, and folder → error of the bundles with an invalid one."""
    from firstvec.bundle.manifest import Manifest

    manifests, broken = [], {}
    for folder in installed_folders(working_folder):
        try:
            manifests.append(locate(Manifest.read(folder), os.path.join(folder, MANIFEST_NAME)))
        except ManifestError as error:
            broken[folder] = str(error)
    return manifests, broken
