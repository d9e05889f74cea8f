"""Prove that a bundle's files are the ones that were built, once per file and machine.

A file is hashed before an engine sees it. What was hashed is remembered as an empty marker file in the user's cache
folder, named after the file's identity (device, inode, size, modification and change time) and digest, so that later
loads cost one ``stat``. A write to the file changes its change time, which user programs cannot set back; the kernel
does so late for writes through a shared mapping, which `firstvec verify` sees, because it trusts no marker.
"""

from __future__ import annotations

import os
import stat

from firstvec.errors import IntegrityError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firstvec.manifest import File

_CHUNK = 1 << 20


def cache_dir() -> str:
    """The folder for what firstvec remembers: ``$FIRSTVEC_CACHE``, else the platform's user cache folder."""
    if chosen := os.environ.get("FIRSTVEC_CACHE"):
        return chosen
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser(r"~\AppData\Local")
    elif os.uname().sysname == "Darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "firstvec")


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
        if remember and is_marked(marker):
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
    mark(marker)
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
    return status.st_size == file.size and is_marked(_marker(status, file.sha256), use=False)


def last_used(root: str, file: File) -> float:
    """When this user last loaded the bundle that ``file`` (its tokenizer) belongs to: Unix time, 0.0 for never."""
    try:
        return os.stat(_marker(os.stat(os.path.join(root, file.path)), file.sha256)).st_mtime
    except OSError:
        return 0.0


def _marker(status: os.stat_result, sha256: str) -> str:
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return marker_path("verified", f"{sha256}-{'-'.join(f'{number:x}' for number in identity)}")


def marker_path(folder: str, name: str) -> str:
    """Where an empty file stands for something that was found to be so, in a folder of the user's cache."""
    return os.path.join(cache_dir(), folder, name)


def is_marked(marker: str, *, use: bool = True) -> bool:
    """Whether the marker is there and only this user could have put it there; when it is used its time becomes now."""
    try:
        if os.name == "posix":
            folder = os.stat(os.path.dirname(marker))
            if folder.st_uid != os.geteuid() or folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return False
        os.utime(marker) if use else os.stat(marker)
    except OSError:
        return False
    return True


def mark(marker: str) -> None:
    """Put the marker there, if this user may."""
    try:
        os.makedirs(os.path.dirname(marker), mode=0o700, exist_ok=True)
        os.close(os.open(marker, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError:
        # A read-only or missing home: the next load hashes again, which is slower and as safe.
        return


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
