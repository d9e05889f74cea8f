"""Write a bundle's folder so that it appears whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from firstvec.bundle import MANIFEST_NAME, SIGNATURE_NAME
from firstvec.bundle.integrity import verify_file
from firstvec.bundle.manifest import File, Manifest
from firstvec.errors import BuildError, FirstvecError, IntegrityError
from firstvec_build import temporary

if TYPE_CHECKING:
    import filelock

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_POLL_SECONDS = 0.2
_ATTEMPTS = 100
"""Attempts to rename a folder while other builds rename it, too. This happens where locks have no effect."""


def check_writable(folder: Path) -> None:
    """Check, before long work, that ``folder`` can be made and written.

    Raises:
        BuildError: it cannot.
    """
    with raise_as_build_error(folder):
        if not _is_utf8(os.path.abspath(folder)):
            raise BuildError(
                f"{os.fsencode(folder)!r}: its name is not UTF-8, and onnxruntime cannot write there; choose another "
                "folder with --output"
            )
        existing = folder
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise BuildError(f"{folder}: cannot be written; choose another folder with --output")


def read_current(target: Path, inputs_sha256: str) -> Manifest | None:
    """Return the manifest of the bundle in ``target``. None: it has other inputs, is damaged, or is missing."""
    try:
        manifest = Manifest.read(target)
        if manifest.inputs_sha256 != inputs_sha256:
            return None
        check_files(manifest)
    except FirstvecError:
        return None
    return manifest


def check_files(manifest: Manifest) -> None:
    """Check every file of a bundle, and that none of them has another name.

    Raises:
        IntegrityError: a file is not the one that was built, or is a link.
    """
    check_no_link(manifest.root, MANIFEST_NAME)
    for file in manifest.files():
        verify_file(manifest.root, file, use_markers=False)
        check_no_link(manifest.root, file.path)


def check_no_link(root: str, path: str) -> None:
    """Check that a bundle's file has no other name, because a write to another name would change the bundle.

    Raises:
        IntegrityError: the file is a link, symbolic or hard, or lies behind a symbolic link.
    """
    place = Path(root)
    for segment in path.split("/"):
        place /= segment
        try:
            link = _describe_link(place)
        except OSError as error:
            raise IntegrityError(str(place), "a regular file", f"{error.strerror or error}") from error
        if link:
            raise IntegrityError(str(place), "a file of its own", link)


def has_leftovers(target: Path) -> bool:
    """Return whether killed builds left folders beside ``target``. `lock` removes them."""
    return any(
        temporary.find_abandoned(target.parent, stem) for stem in (_staging_stem(target), _previous_stem(target))
    )


@contextmanager
def lock(target: Path, report_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let one build of ``target`` run at a time, and repair what killed builds left.

    The lock belongs to the kernel, so it ends with the process that holds it. If a file system has no locks, or its
    locks work within one host only, builds run side by side. Publishing is atomic, so the bundle of the last build
    stays.

    Args:
        target: the bundle's folder.
        report_wait: called once if another build holds the lock.

    Raises:
        BuildError: the folder that will hold ``target`` cannot be made or written.
    """
    import filelock  # an import of 45 ms, which no other command needs

    with raise_as_build_error(target):
        _make_durable_folder(target.parent)
    path = target.parent / f".{target.name}.lock"
    # A soft lock is only a file, which would outlive a killed process and stop every later build.
    file_lock = filelock.FileLock(path, poll_interval=_POLL_SECONDS, fallback_to_soft=False)
    is_held = True
    try:
        file_lock.acquire(blocking=False)
    except filelock.Timeout:
        report_wait()
        is_held = _wait_for(file_lock)
    except (OSError, NotImplementedError):
        is_held = False
    try:
        with raise_as_build_error(target):
            _repair(target)
        yield
    finally:
        if is_held:
            _release(file_lock, path)


def _wait_for(file_lock: filelock.BaseFileLock) -> bool:
    """Acquire the lock. Return False if the file system has no locks."""
    try:
        file_lock.acquire()
    except (OSError, NotImplementedError):
        return False
    return True


def _release(file_lock: filelock.BaseFileLock, path: Path) -> None:
    # The file loses its name while the lock is held. filelock does not accept a lock on a file without a name, so a
    # build that waits for this file makes a new one.
    for step in (path.unlink, file_lock.release):
        try:
            step()
        except OSError:
            continue  # the kernel releases the lock when the process ends


def _repair(target: Path) -> None:
    """Put back the bundle that a killed build had moved away, and remove what killed builds left."""
    for folder in temporary.find_abandoned(target.parent, _previous_stem(target)):
        if (folder / target.name / MANIFEST_NAME).is_file() and not os.path.lexists(target):
            os.rename(folder / target.name, target)
            temporary.sync(target.parent)
    temporary.remove_abandoned(target.parent, _previous_stem(target))
    temporary.remove_abandoned(target.parent, _staging_stem(target))


@contextmanager
def make_staging_folder(target: Path) -> Iterator[Path]:
    """Make a new folder beside ``target``. At the end, remove the folder, unless it was published.

    Raises:
        BuildError: the folder that will hold ``target`` cannot be made or written, or the disk is full.
    """
    folder: Path | None = None
    try:
        with raise_as_build_error(target):
            _make_durable_folder(target.parent)
            folder = temporary.make_folder(target.parent, _staging_stem(target))
            folder.chmod(0o755)
            yield folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _staging_stem(target: Path) -> str:
    return f".{target.name}.staging-"


def _previous_stem(target: Path) -> str:
    return f".{target.name}.old-"


@contextmanager
def raise_as_build_error(target: Path) -> Iterator[None]:
    """Raise a BuildError for an error of the operating system."""
    try:
        yield
    except OSError as error:
        raise BuildError(
            f"{error.filename or target}: cannot be written ({error.strerror or error}); choose another folder with "
            "--output, or free some space. A previous bundle is untouched"
        ) from error


def _make_durable_folder(folder: Path) -> None:
    """Make a folder and those above it, and flush their names to the disk."""
    if folder.is_dir():
        return
    _make_durable_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    try:
        temporary.sync(folder.parent)
    except PermissionError:
        return  # this user may write into the folder above, but may not read it


def describe_file(folder: Path, path: str) -> File:
    """Return the manifest's entry for a file of the bundle in ``folder``."""
    with (folder / path).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return File(path=path, size=os.fstat(stream.fileno()).st_size, sha256=digest)


def _is_no_folder(path: Path) -> bool:
    """Return whether something else than a folder is there. One question, because another build may rename it now."""
    try:
        return not stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def publish(
    folder: Path, manifest: Manifest, target: Path, *, data: bytes | None = None, signature: bytes | None = None
) -> Manifest:
    """Write the manifest, flush everything, and let the finished folder take the place of ``target``.

    The runtime's own reader parses the manifest before anything is replaced.

    Args:
        folder: the finished folder, on the file system of ``target``.
        manifest: what the folder holds.
        target: the bundle's folder.
        data: the manifest's bytes, where another writer made them. They may have keys that this firstvec does not know.
        signature: the signature of these bytes, where there is one.

    Raises:
        BuildError: the folder holds a link, or a file that the manifest does not list; ``target`` is not a bundle; or
            the disk did not take the new name.
        ManifestError: the runtime would refuse the manifest.
    """
    data = data if data is not None else manifest.to_json()
    published = Manifest.parse(data, str(target / MANIFEST_NAME))
    (folder / MANIFEST_NAME).write_bytes(data)
    listed = {MANIFEST_NAME, *(file.path for file in manifest.files())}
    if signature is not None:
        (folder / SIGNATURE_NAME).write_bytes(signature)
        listed.add(SIGNATURE_NAME)
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
            continue
        if name not in listed:
            raise BuildError(f"{name} is in the staging folder but not in the manifest")
        if link := _describe_link(path):
            raise BuildError(f"{name} in the staging folder is {link}, not a file of its own")
        path.chmod(0o644)
    temporary.sync_tree(folder)
    if _is_no_folder(target):
        raise BuildError(f"{target}: is not a folder; choose another one with --output")
    if _holds_other_files(target):
        raise BuildError(f"{target}: is not a bundle, so it is not replaced; choose another folder with --output")
    replace_folder(folder, target)
    try:
        temporary.sync(target.parent)
    except OSError as error:
        raise BuildError(
            f"{target}: the new bundle is in its place, but the folder above could not be flushed "
            f"({error.strerror or error}): after a loss of power the previous bundle may be back; check the disk"
        ) from error
    return published


def _holds_other_files(target: Path) -> bool:
    """Return whether ``target`` is a folder that is not empty and is not a bundle.

    The folder is read once, because another build may move it at any time.
    """
    try:
        names = os.listdir(target)
    except FileNotFoundError:
        return False
    return bool(names) and MANIFEST_NAME not in names


def replace_folder(folder: Path, target: Path) -> None:
    """Rename ``folder`` to ``target``. The previous bundle is removed, or gets the name of ``folder``."""
    for attempt in range(_ATTEMPTS):
        try:
            if not target.exists():
                os.rename(folder, target)
            elif not _exchange(folder, target):
                _rename_twice(folder, target)
        except OSError as error:
            # Another build has put its own bundle there, or has taken the previous one away.
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT) and attempt + 1 < _ATTEMPTS:
                continue
            raise
        return


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders' names atomically (renameat2(2), Linux 3.15). Return False if the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _rename_twice(folder: Path, target: Path) -> None:
    """Move the previous bundle away, then the new one to its place.

    Between the two renames there is no bundle. If the build is killed there, `_repair` puts the previous bundle back.
    """
    previous = temporary.make_folder(target.parent, _previous_stem(target))
    moved = previous / target.name
    try:
        os.rename(target, moved)
        try:
            os.rename(folder, target)
        except OSError:
            if not target.exists():
                os.rename(moved, target)
            raise
    except OSError:
        # If the previous bundle could not be put back, it stays here, and the next build puts it back.
        if not moved.exists() or target.exists():
            shutil.rmtree(previous, ignore_errors=True)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _describe_link(path: Path) -> str | None:
    """Return which kind of link a file is. None: the file is no link, and has no other name."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "a symbolic link"
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        return f"one of {status.st_nlink} hard links"
    return None


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
