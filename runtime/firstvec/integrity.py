"""Prove that a bundle's files are the ones that were built, once per file and machine.

A file is hashed before an engine sees it. What was hashed is remembered as an empty marker file in the user's cache
folder, named after the file's identity (device, inode, size, modification and change time) and digest, so that later
loads cost one ``stat``. A write to the file changes its change time, which user programs cannot set back; the kernel
does so late for writes through a shared mapping, which `firstvec verify` sees, because it trusts no marker.
"""

from __future__ import annotations

import os
import stat

from firstvec import cache
from firstvec.errors import IntegrityError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firstvec.manifest import File

_CHUNK = 1 << 20


def verify(root: str, file: File, artifact: str = "", *, remember: bool = True) -> bool:
    """Check that ``file`` lies in ``root`` as the manifest describes it, and say whether that was remembered.

    Args:
        root: the bundle's folder.
        file: the manifest's entry.
        artifact: id for the error message.
        remember: False hashes the file in any case (``firstvec verify``).

    Raises:
        IntegrityError: it is missing, of another size or content, or reached through a symbolic link.
    """
    path = locate(root, file, artifact)
    try:
        # Not to wait for a writer, should it be a pipe.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise IntegrityError(path, f"{file.size} bytes", f"{error.strerror or error}", artifact) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IntegrityError(path, "a regular file", "something else", artifact)
        if status.st_size != file.size:
            raise IntegrityError(path, f"{file.size} bytes", f"{status.st_size} bytes", artifact)
        marker = _marker(status, file.sha256)
        if remember and cache.is_marked(marker):
            return True
        import hashlib  # 3 ms, most of it OpenSSL: not for a file that is remembered

        digest = hashlib.sha256()
        while chunk := os.read(descriptor, _CHUNK):
            digest.update(chunk)  # releases the GIL
    except OSError as error:
        raise IntegrityError(path, f"{file.size} bytes", f"{error.strerror or error}", artifact) from error
    finally:
        os.close(descriptor)
    if (actual := digest.hexdigest()) != file.sha256:
        raise IntegrityError(path, f"sha256 {file.sha256[:16]}…", f"sha256 {actual[:16]}…", artifact)
    cache.mark(marker)
    return False


def locate(root: str, file: File, artifact: str = "") -> str:
    """The path of ``file`` in ``root``.

    Raises:
        IntegrityError: a part of the path below ``root`` is a symbolic link.
    """
    path = root
    for segment in file.path.split("/"):
        path = os.path.join(path, segment)
        if os.path.islink(path):
            raise IntegrityError(path, "a regular file", "a symbolic link", artifact)
    return path


def is_remembered(root: str, file: File) -> bool:
    """Whether ``file`` was verified on this machine before, and is unchanged since: it will not be hashed again."""
    try:
        status = os.stat(os.path.join(root, file.path))
    except OSError:
        return False
    return status.st_size == file.size and cache.is_marked(_marker(status, file.sha256), use=False)


def last_used(root: str, path: str, sha256: str) -> float:
    """When this user last loaded the bundle whose tokenizer this is: Unix time, 0.0 for never."""
    try:
        return os.stat(_marker(os.stat(f"{root}/{path}"), sha256)).st_mtime
    except OSError:
        return 0.0


def _marker(status: os.stat_result, sha256: str) -> str:
    return cache.place("verified", f"{sha256}-{cache.name_of(cache.identity(status))}")


def read_ahead(path: str) -> None:
    """Ask the system to bring a file into memory, and do not wait for it. A matter of speed: whatever fails is left."""
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
    except OSError:
        return
