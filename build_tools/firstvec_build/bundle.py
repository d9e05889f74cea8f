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

from firstvec.errors import BuildError, FirstvecError, IntegrityError
from firstvec.integrity import verify
from firstvec.manifest import FILE_NAME as FILE_NAME
from firstvec.manifest import File, Manifest
from firstvec_build import unfinished

if TYPE_CHECKING:
    import filelock

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_POLL_SECONDS = 0.2
_ATTEMPTS = 100
"""To take a place that other builds take at the same time: where locks do nothing."""


def check_writable(folder: Path) -> None:
    """Check, before long work, that ``folder`` can be made and written.

    Raises:
        BuildError: it cannot.
    """
    with _typed(folder):
        if not _is_utf8(os.path.abspath(folder)):
            raise BuildError(
                f"{os.fsencode(folder)!r}: its name is not UTF-8, and onnxruntime writes to no other; choose another "
                "folder with --output"
            )
        existing = folder
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise BuildError(f"{folder}: cannot be written; choose another folder with --output")


@contextmanager
def locked(target: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let builds of the same ``target`` follow one another, and clear up after those that were killed.

    The lock is the kernel's: it ends with the process that holds it, however that ends. Where a file system has no
    locks, or keeps them to each host, builds go on side by side; publishing is atomic, so that the last one stays.

    Args:
        target: the bundle's folder.
        waiting: called once if another build holds the lock.

    Raises:
        BuildError: the folder that will hold ``target`` cannot be made or written.
    """
    import filelock  # 45 ms that no other command waits for

    with _typed(target):
        _make_folder(target.parent)
    path = target.parent / f".{target.name}.lock"
    # A soft lock, a mere file, would stay behind when its process is killed, and stop every later build.
    lock = filelock.FileLock(path, poll_interval=_POLL_SECONDS, fallback_to_soft=False)
    held = True
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        waiting()
        held = _acquire(lock)
    except (OSError, NotImplementedError):
        held = False
    try:
        with _typed(target):
            _recover(target)
        yield
    finally:
        if held:
            _release(lock, path)


def _acquire(lock: filelock.BaseFileLock) -> bool:
    try:
        lock.acquire()
    except (OSError, NotImplementedError):
        return False
    return True


def _release(lock: filelock.BaseFileLock, path: Path) -> None:
    # While it is held: filelock does not take a file that has lost its name in the meantime for a lock.
    for undo in (path.unlink, lock.release):
        try:
            undo()
        except OSError:
            continue  # the end of the process releases it in any case


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, removed at the end unless it was published.

    Raises:
        BuildError: the folder that will hold ``target`` cannot be made or written, or the disk is full.
    """
    folder: Path | None = None
    try:
        with _typed(target):
            _make_folder(target.parent)
            folder = unfinished.make_folder(target.parent, _staging(target))
            folder.chmod(0o755)
            yield folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _typed(target: Path) -> Iterator[None]:
    """Tell errors of the operating system as what they mean for a build."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FirstvecError):
            raise
        raise BuildError(
            f"{error.filename or target}: cannot be written ({error.strerror or error}); choose another folder with "
            "--output, or free some space. A previous bundle is untouched"
        ) from error


def _staging(target: Path) -> str:
    return f".{target.name}.staging-"


def _old(target: Path) -> str:
    return f".{target.name}.old-"


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, for good."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    try:
        unfinished.sync(folder.parent)
    except PermissionError:
        return  # it may be entered and written, and not be read


def is_littered(target: Path) -> bool:
    """Whether killed builds left something beside ``target``, which `locked` would clear up."""
    return any(unfinished.abandoned(target.parent, stem) for stem in (_staging(target), _old(target)))


def _recover(target: Path) -> None:
    """Put back the bundle that a killed build had moved away, and remove what killed builds left."""
    for folder in unfinished.abandoned(target.parent, _old(target)):
        if (folder / target.name / FILE_NAME).is_file() and not os.path.lexists(target):
            os.rename(folder / target.name, target)
            unfinished.sync(target.parent)
    unfinished.collect(target.parent, _old(target))
    unfinished.collect(target.parent, _staging(target))


def describe(folder: Path, path: str) -> File:
    """The manifest's entry for a file of the bundle in ``folder``."""
    with (folder / path).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return File(path=path, size=os.fstat(stream.fileno()).st_size, sha256=digest)


def publish(folder: Path, manifest: Manifest, target: Path) -> Manifest:
    """Write the manifest, make everything durable, and let the finished folder take ``target``'s place.

    The manifest is parsed as the runtime will parse it before anything is replaced.

    Raises:
        BuildError: the folder holds something that the manifest does not list, or a link; ``target`` is not a bundle;
            or its new name could not be flushed.
    """
    data = manifest.to_json()
    published = Manifest.parse(data, str(target / FILE_NAME))
    (folder / FILE_NAME).write_bytes(data)
    listed = {FILE_NAME, *(file.path for file in manifest.files())}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if name not in listed:
            raise BuildError(f"{name} is in the staging folder but not in the manifest")
        if other := _other_name(path):
            raise BuildError(f"{name} in the staging folder is {other}, not a file of its own")
        path.chmod(0o644)
    unfinished.sync_tree(folder)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BuildError(f"{target}: is not a folder; choose another one with --output")
    if _is_something_else(target):
        raise BuildError(f"{target}: is not a bundle, so it is not replaced; choose another folder with --output")
    _take_place(folder, target)
    try:
        unfinished.sync(target.parent)
    except OSError as error:
        raise BuildError(
            f"{target}: the new bundle is in its place, but the folder above could not be flushed "
            f"({error.strerror or error}): after a loss of power it may be the previous one; check the disk"
        ) from error
    return published


def _take_place(folder: Path, target: Path) -> None:
    """Rename ``folder`` to ``target``; what was there ends in ``folder``'s place or is removed."""
    for attempt in range(_ATTEMPTS):
        try:
            if not target.exists():
                os.rename(folder, target)
            elif not _exchange(folder, target):
                _rename_twice(folder, target)
        except OSError as error:
            # Another build put its own there, or took away what was there, since we looked.
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT) and attempt + 1 < _ATTEMPTS:
                continue
            raise
        return


def _rename_twice(folder: Path, target: Path) -> None:
    """Without an atomic exchange the name is missing for the time between two renames; see `_recover`."""
    old = unfinished.make_folder(target.parent, _old(target))
    moved = old / target.name
    try:
        os.rename(target, moved)
        try:
            os.rename(folder, target)
        except OSError:
            if not target.exists():
                os.rename(moved, target)
            raise
    except OSError:
        # With the previous bundle in it, it is all there is: the next build puts that back.
        if not moved.exists() or target.exists():
            shutil.rmtree(old, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def is_current(target: Path, inputs_sha256: str) -> bool:
    """Whether ``target`` holds a bundle of these inputs whose every file is the one that was built."""
    try:
        manifest = Manifest.read(target)
        if manifest.inputs_sha256 != inputs_sha256:
            return False
        check_plain(str(target), FILE_NAME)
        for file in manifest.files():
            verify(str(target), file, remember=False)
            check_plain(str(target), file.path)
    except FirstvecError:
        return False
    return True


def _is_something_else(target: Path) -> bool:
    """Whether it is a folder with content that is not a bundle's. One look: another build may move it at any time."""
    try:
        names = os.listdir(target)
    except FileNotFoundError:
        return False
    return bool(names) and FILE_NAME not in names


def check_plain(root: str, path: str) -> None:
    """Check that a bundle's file is not one of elsewhere, nor also there: what is written there would change it.

    Raises:
        IntegrityError: it is a link, symbolic or hard, or is reached through one.
    """
    place = Path(root)
    for segment in path.split("/"):
        place /= segment
        try:
            other = _other_name(place)
        except OSError as error:
            raise IntegrityError(str(place), "a regular file", f"{error.strerror or error}") from error
        if other:
            raise IntegrityError(str(place), "a file of its own", other)


def _other_name(path: Path) -> str | None:
    """What a file is instead of a file of its own, if it is not one."""
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


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders' names atomically (renameat2(2), Linux 3.15); False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)
