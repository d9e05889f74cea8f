"""Prove that a bundle's files are the ones that were built, once per file and machine.

A file is opened once, and hashed before anything else sees it; what is then read, mapped or given to an engine is that
open file, whatever its name leads to by then. What was hashed is remembered as an empty marker file in the user's cache
folder, named after the file's identity (device, inode, size, modification and change time) and digest, so that later
loads cost one ``fstat``. A write to the file changes its change time, which user programs cannot set back; the kernel
does so late for writes through a shared mapping, which `firstvec verify` sees, because it trusts no marker.
"""

from __future__ import annotations

import errno
import os
import stat

from firstvec import cache
from firstvec.errors import IntegrityError, LoadError
from firstvec.store import WHEEL_PACKAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from firstvec.manifest import File

_CHUNK = 1 << 20
# Not to wait for a writer, should it be a pipe.
_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_NOT_A_LINK = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_STEPWISE = os.open in os.supports_dir_fd and bool(_NOT_A_LINK)
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
"""Errors that say nothing of the file: the process or the machine has run out of something."""


class OpenFile:
    """A file of a bundle, open, and the one that was built, until it is closed or nobody refers to it any more."""

    def __init__(self, root: str, file: File, artifact: str, descriptor: int) -> None:
        self.descriptor = descriptor
        self._sha256 = file.sha256
        self.relative_path = file.path
        self.path = os.path.join(root, file.path)
        """Where it was found, for messages."""
        self.folder = os.path.dirname(self.path)
        self.size = file.size
        self.remembered = False
        """Whether it was hashed before, and not now."""
        self._artifact = artifact
        self._identity: tuple[int, ...] = ()
        self._settled = False

    def prove(self, *, linked: bool, remember: bool) -> None:
        """See that this is the file that was built; for `open_file`.

        Raises:
            IntegrityError: it is not.
        """
        try:
            status = os.fstat(self.descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise self._error("a regular file", "something else")
            if status.st_size != self.size:
                raise self._error(f"{self.size} bytes", f"{status.st_size} bytes")
            if status.st_nlink > 1 and not linked and not self._is_read_only():
                raise self._error("a file of one name", f"{status.st_nlink} hard links to it: copy the bundle")
            self._identity = cache.identity(status)
            self._settled = cache.is_settled(status)
            marker = _marker(status, self._sha256)
            if remember and cache.is_marked(marker):
                self.remembered = True
                return
            self._hash()
        except OSError as error:
            raise _unreadable(self.path, self.size, error, self._artifact) from error
        if self._settled:
            cache.mark(marker)

    def read(self) -> bytes:
        """Return what is in it.

        Raises:
            IntegrityError: it changed since it was proven.
        """
        try:
            content = b"".join(self._chunks())
        except OSError as error:
            raise _unreadable(self.path, self.size, error, self._artifact) from error
        self.check()
        return content

    def check(self) -> None:
        """See that nobody has written to it since it was proven.

        Raises:
            IntegrityError: somebody has.
        """
        now = cache.identity(os.fstat(self.descriptor))
        if now != self._identity or not self._settled:
            # Its name may have been given to another file meanwhile, by a new build: that is no change of this one.
            self._hash()
            self._identity = now

    def _hash(self) -> None:
        import hashlib  # 3 ms, most of it OpenSSL: not for a file that is remembered

        digest = hashlib.sha256()
        for chunk in self._chunks():
            digest.update(chunk)  # releases the GIL
        if (actual := digest.hexdigest()) != self._sha256:
            raise self._error(f"sha256 {self._sha256[:16]}…", f"sha256 {actual[:16]}…")

    def _chunks(self) -> Iterator[bytes]:
        if not hasattr(os, "pread"):
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            while chunk := os.read(self.descriptor, _CHUNK):
                yield chunk
            return
        # Not by the file's position: forked children share that.
        position = 0
        while chunk := os.pread(self.descriptor, _CHUNK, position):
            position += len(chunk)
            yield chunk

    @property
    def alias(self) -> str | None:
        """A path that leads to this very file, for libraries that open files by themselves.

        None where there is no /proc, or this user, who may have been another when it was opened, may not read it.
        """
        path = f"/proc/self/fd/{self.descriptor}"
        effective = os.access in os.supports_effective_ids
        return path if os.access(path, os.R_OK, effective_ids=effective) else None

    @property
    def is_open(self) -> bool:
        """Whether it was not closed, by this object or by a program that closes all descriptors to become a daemon."""
        try:
            return self.descriptor >= 0 and cache.identity(os.fstat(self.descriptor))[:2] == self._identity[:2]
        except OSError:
            return False

    def close(self) -> None:
        """Close it; what was mapped stays."""
        if self.is_open or (self.descriptor >= 0 and not self._identity):
            os.close(self.descriptor)
        self.descriptor = -1

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    __del__ = close

    def _is_read_only(self) -> bool:
        """Whether it lies on a read-only file system, where nobody can write to it through another of its names."""
        return hasattr(os, "fstatvfs") and bool(os.fstatvfs(self.descriptor).f_flag & os.ST_RDONLY)

    def _error(self, expected: str, actual: str) -> IntegrityError:
        return IntegrityError(self.path, expected, actual, self._artifact)


def open_file(root: str, file: File, artifact: str = "", *, remember: bool = True) -> OpenFile:
    """Open ``file`` of the bundle in folder ``root``, and prove that it is the one that the manifest describes.

    A file of several names (hard links) can be written to through one that nobody looks at, so it is refused; but not
    where packages are installed, because installers such as uv link files from their cache.

    Args:
        root: the bundle's folder.
        file: the manifest's entry.
        artifact: id for the error message.
        remember: False hashes the file in any case (``firstvec verify``).

    Raises:
        IntegrityError: it is missing, of another size or content, has several names, or is reached through a symbolic
            link.
        LoadError: too many files are open.
    """
    opened = OpenFile(root, file, artifact, _open(root, file, artifact))
    try:
        installed = os.path.basename(os.path.dirname(os.path.abspath(root))) == WHEEL_PACKAGE
        opened.prove(linked=installed, remember=remember)
    except BaseException:
        opened.close()
        raise
    return opened


def verify(root: str, file: File, artifact: str = "", *, remember: bool = True) -> bool:
    """Check that ``file`` lies in ``root`` as the manifest describes it, and say whether that was remembered.

    Raises:
        IntegrityError, LoadError: as `open_file`.
    """
    with open_file(root, file, artifact, remember=remember) as opened:
        return opened.remembered


def read(root: str, file: File, artifact: str = "") -> bytes:
    """Return the content of ``file``, proven to be the one that was built.

    Raises:
        IntegrityError, LoadError: as `open_file`.
    """
    with open_file(root, file, artifact) as opened:
        return opened.read()


def _open(root: str, file: File, artifact: str) -> int:
    """Open a file, from the bundle's folder on through no symbolic link."""
    path = os.path.join(root, file.path)
    try:
        if not _STEPWISE:
            if link := _link(root, file):
                raise IntegrityError(link, "a regular file", "a symbolic link", artifact)
            return os.open(path, _FLAGS)
        *folders, name = file.path.split("/")
        descriptor = os.open(root, _FOLDER)
        try:
            for folder in folders:
                inner = os.open(folder, _FOLDER | _NOT_A_LINK, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            return os.open(name, _FLAGS | _NOT_A_LINK, dir_fd=descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise LoadError(
                f"{path} cannot be opened: {os.strerror(error.errno).lower()}; close some, or raise the limit "
                "(`ulimit -n`), and try again"
            ) from error
        if link := _link(root, file):
            raise IntegrityError(link, "a regular file", "a symbolic link", artifact) from error
        raise _unreadable(path, file.size, error, artifact) from error


def _unreadable(path: str, size: int, error: OSError, artifact: str) -> IntegrityError:
    missing = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    return IntegrityError(path, f"{size} bytes", f"{error.strerror or error}", artifact, unreadable=not missing)


def _link(root: str, file: File) -> str | None:
    """The part of the path below ``root`` that is a symbolic link, if one is."""
    path = root
    for segment in file.path.split("/"):
        path = os.path.join(path, segment)
        if os.path.islink(path):
            return path
    return None


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
