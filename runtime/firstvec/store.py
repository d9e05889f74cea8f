"""Where bundles are found: argument → FIRSTVEC_ARTIFACTS → installed bundle wheels → user data folder."""

from __future__ import annotations

import os
import sys

from firstvec.errors import BundleNotFound, ManifestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from firstvec.manifest import Manifest

FILE_NAME = "firstvec.json"
"""The manifest's name in a bundle's folder."""

WHEEL_PACKAGE = "firstvec_bundles"
"""Bundle wheels install their bundle as a folder of this namespace package."""


def find(model_name: str, require_signature: str | None = None, here: str = "") -> Manifest:
    """Return the manifest of the bundle of that name, or in that folder.

    Args:
        model_name: ``organisation/model``, ``model`` alone, or the path of a bundle's folder. A relative path counts
            as one if it begins with ``.``, or if it has a separator and no bundle of that name is found.
        require_signature: path of the public key whose signature the bundle must have. It decides nothing else: the
            bundle is the one that is found without it.
        here: folder from which relative paths are seen; where the process is now if empty.

    Raises:
        BundleNotFound: there is none; the error lists the places that were searched.
        ManifestError: it is there, and its manifest is missing or invalid.
        SignatureError: it is there, and not signed with that key, or was changed; or the key is not usable.
        MissingDependency: a signature is required, and the package cryptography is not installed.
    """
    from firstvec.manifest import Manifest, read_bytes

    for folder, by_name, decisive in candidates(model_name, here):
        path = os.path.join(folder, FILE_NAME)
        try:
            data = read_bytes(path)
            # The same place wherever the process goes: a daemon's is the root.
            manifest = Manifest.parse(data, path).replace(path=os.path.abspath(path))
        except ManifestError:
            if decisive:
                raise
            continue
        if not by_name or is_named(manifest.model.name, model_name):
            if require_signature is not None:
                from firstvec.signature import check

                check(manifest, data, require_signature)
            return manifest
    names = dict.fromkeys(map(_named, installed(here)))
    raise BundleNotFound(model_name, search_path(here), [*names])


def _named(folder: str) -> str:
    """How a bundle is told of to somebody who looks for another one: its name is the manifest's, not the folder's."""
    from firstvec.manifest import Manifest

    name = os.path.basename(folder)
    try:
        model = Manifest.read(folder).model.name
    except ManifestError:
        return name
    return name if is_named(model, name) else f"{model} (in a folder named {name})"


def candidates(model_name: str, here: str = "") -> Iterator[tuple[str, bool, bool]]:
    """The folders that may hold the bundle of that name, in order; relative paths are seen from ``here``.

    Each with whether its manifest must have that name, and whether an invalid manifest ends the search.

    Raises:
        BundleNotFound, ManifestError: the name is a path, and there is no bundle.
    """
    path = os.path.expanduser(model_name) if model_name[:1] == "~" else model_name
    if os.path.isabs(path) or path.startswith("."):
        path = os.path.join(here, path)
        if not os.path.exists(path):
            raise BundleNotFound(model_name, [path])
        if not os.path.isfile(os.path.join(path, FILE_NAME)):
            there = os.path.lexists(os.path.join(path, FILE_NAME))
            what = "is not a regular file" if there else "does not exist: this is not a complete bundle"
            raise ManifestError(os.path.join(path, FILE_NAME), what)
        yield path, False, True
        return
    base = model_name.rsplit("/", 1)[-1]
    for root in _roots(here):
        # The usual place first: other bundles of the root then need not be read at all.
        usual = os.path.join(root, base)
        if os.path.isfile(f"{usual}/{FILE_NAME}"):
            yield usual, True, True
        for folder in folders(root):
            if folder != usual:
                yield folder, True, False
    # Last, and never for a bare name: what lies in the current folder must not stand in for an installed bundle.
    path = os.path.join(here, path)
    if os.sep in model_name and os.path.isfile(os.path.join(path, FILE_NAME)):
        yield path, False, True


def is_named(name: str, model_name: str) -> bool:
    """Whether a model of that full name is meant by ``model_name``."""
    return model_name in (name, name.rsplit("/", 1)[-1])


def search_path(here: str = "") -> list[str]:
    """The folders in which bundles are looked for, in order."""
    return [*_roots(here)]


def _roots(here: str) -> Iterator[str]:
    join = os.path.join
    for root in filter(None, os.environ.get("FIRSTVEC_ARTIFACTS", "").split(os.pathsep)):
        yield join(here, root)
    # Bundle wheels: found as `import` would find them, without importing anything.
    yield from filter(os.path.isdir, [join(here, entry, WHEEL_PACKAGE) for entry in sys.path])
    yield join(here, data_dir(), "bundles")


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


def installed(here: str = "") -> Iterator[str]:
    """Every bundle folder of the search path, in its order."""
    for root in search_path(here):
        yield from folders(root)


def read_all() -> tuple[list[Manifest], dict[str, str]]:
    """The valid manifests of the search path, and folder → error of the bundles whose manifest is not valid."""
    from firstvec.manifest import Manifest

    manifests, broken = [], {}
    for folder in installed():
        try:
            manifests.append(Manifest.read(folder))
        except ManifestError as error:
            broken[folder] = str(error)
    return manifests, broken
