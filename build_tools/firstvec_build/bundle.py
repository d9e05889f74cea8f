"""Write a bundle's folder so that it appears whole or not at all."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firstvec.errors import BuildError, FirstvecError
from firstvec.integrity import verify
from firstvec.manifest import FILE_NAME as FILE_NAME
from firstvec.manifest import File, Manifest

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def check_writable(folder: Path) -> None:
    """Check, before long work, that ``folder`` can be made and written.

    Raises:
        BuildError: it cannot.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise BuildError(f"{folder}: cannot be written; choose another folder with --output")


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, removed at the end unless it was published.

    Raises:
        BuildError: the folder that will hold ``target`` cannot be made or written, or the disk is full.
    """
    folder: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _collect_stale(target)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.staging-{os.getpid()}-"))
        folder.chmod(0o755)
        yield folder
    except OSError as error:
        if isinstance(error, FirstvecError):
            raise
        raise BuildError(
            f"{error.filename or target}: cannot be written ({error.strerror or error}); choose another folder with "
            "--output, or free some space. A previous bundle is untouched"
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _collect_stale(target: Path) -> None:
    """Remove the staging folders of builds that were killed."""
    prefix = f".{target.name}.staging-"
    for folder in target.parent.glob(f"{prefix}*"):
        pid = folder.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal() and not is_running(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def is_running(pid: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def describe(folder: Path, path: str) -> File:
    """The manifest's entry for a file of the bundle in ``folder``."""
    with (folder / path).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return File(path=path, size=os.fstat(stream.fileno()).st_size, sha256=digest)


def publish(folder: Path, manifest: Manifest, target: Path) -> Manifest:
    """Write the manifest, make everything durable, and let the finished folder take ``target``'s place.

    The manifest is parsed as the runtime will parse it before anything is replaced.
    """
    data = manifest.to_json()
    Manifest.parse(data, str(target / FILE_NAME))
    (folder / FILE_NAME).write_bytes(data)
    listed = {FILE_NAME, *(file.path for file in manifest.files())}
    for path in sorted(folder.rglob("*"), reverse=True):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            sync(path)
        elif name in listed:
            path.chmod(0o644)
            sync(path)
        else:
            raise BuildError(f"{name} is in the staging folder but not in the manifest")
    sync(folder)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BuildError(f"{target}: is not a folder; choose another one with --output")
    if target.exists() and any(target.iterdir()) and not (target / FILE_NAME).exists():
        raise BuildError(f"{target}: is not a bundle, so it is not replaced; choose another folder with --output")
    if not target.exists():
        os.rename(folder, target)
    elif not _exchange(folder, target):
        # Without an atomic exchange the name is missing for the time between two renames.
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old-"))
        os.rename(target, old / target.name)
        try:
            os.rename(folder, target)
        except OSError:
            os.rename(old / target.name, target)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    sync(target.parent)
    return Manifest.read(target)


def is_current(target: Path, inputs_sha256: str) -> bool:
    """Whether ``target`` holds a bundle of these inputs whose every file is the one that was built."""
    try:
        manifest = Manifest.read(target)
        if manifest.inputs_sha256 != inputs_sha256:
            return False
        for file in manifest.files():
            verify(str(target), file, remember=False)
    except FirstvecError:
        return False
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders' names atomically (renameat2(2), Linux 3.15); False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle to a folder that could be flushed
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
