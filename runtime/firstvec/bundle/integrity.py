"""Verify that a bundle's files are the ones that were built, once per file and machine.

A file is opened once, and hashed before anything else sees it. What is then read, mapped or given to an engine is that
open file, whatever its name leads to by then. A verified file is remembered by an empty marker file in the user's cache
folder. The marker's name holds the file's identity (device, inode, size, modification and change time) and its digest,
so a later load costs one ``fstat``. A write to the file changes its change time, which no user program can set back.
For a write through a shared mapping the kernel changes that time late. `firstvec verify` finds such a write, because
`firstvec verify` trusts no marker.
"""

from __future__ import annotations

import errno
import os
import stat

from firstvec.bundle import WHEEL_PACKAGE
from firstvec.errors import IntegrityError, LoadError
from firstvec.machine import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from firstvec.bundle.manifest import File

_CHUNK = 1 << 20
# O_NONBLOCK: the open must not wait for a writer if the path is a pipe.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class OpenFile:
    """An open and verified file of a bundle. It is closed when nothing refers to it any more, or by `close`."""

    def __init__(self, root: str, file: File, artifact: str, descriptor: int) -> None:
        self.descriptor = descriptor
        self.relative_path = file.path
        self.path = os.path.join(root, file.path)
        """Where the file was found, for messages."""
        self.folder = os.path.dirname(self.path)
        self.size = file.size
        self.remembered = False
        """Whether a marker said that the file was verified before, so that it was not hashed now."""
        self._sha256 = file.sha256
        self._artifact = artifact
        self._identity: tuple[int, ...] = ()
        self._is_settled = False

    def verify(self, *, use_markers: bool) -> None:
        """Compare the file with the manifest, or raise IntegrityError. A marker can stand in for hashing."""
        try:
            status = os.fstat(self.descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise self._error("a regular file", "something else")
            if status.st_size != self.size:
                raise self._error(f"{self.size} bytes", f"{status.st_size} bytes")
            if status.st_nlink > 1 and not self._may_have_links():
                raise self._error("a file with one name", f"{status.st_nlink} hard links to it: copy the bundle")
            self._identity = cache.file_identity(status)
            self._is_settled = cache.is_settled(status)
            marker = _marker_path(status, self._sha256)
            if use_markers and cache.has_marker(marker):
                self.remembered = True
                return
            self._compare_digest()
        except OSError as error:
            raise _unreadable(self.path, self.size, error, self._artifact) from error
        if self._is_settled and cache.will_last(self.path):
            cache.put_marker(marker)

    def read(self) -> bytes:
        """Return the content, or raise IntegrityError if it changed since it was verified."""
        try:
            content = b"".join(self._chunks())
        except OSError as error:
            raise _unreadable(self.path, self.size, error, self._artifact) from error
        self.verify_again()
        return content

    def verify_again(self) -> None:
        """Raise IntegrityError if the file was changed since it was verified. This costs one ``fstat`` as a rule."""
        now = cache.file_identity(os.fstat(self.descriptor))
        if now != self._identity or not self._is_settled:
            # The identity changes, too, when a new build takes the file's name away. Only the digest can tell.
            self._compare_digest()
            self._identity = now

    def _may_have_links(self) -> bool:
        # On a read-only file system nobody can write to the file through another name.
        return bool(os.fstatvfs(self.descriptor).f_flag & os.ST_RDONLY) or _is_installed(self.folder)

    def _compare_digest(self) -> None:
        import hashlib  # 3 ms, most of it for OpenSSL: a file that is remembered does not need it

        digest = hashlib.sha256()
        for chunk in self._chunks():
            digest.update(chunk)  # releases the GIL
        if (actual := digest.hexdigest()) != self._sha256:
            raise self._error(f"sha256 {self._sha256[:16]}…", f"sha256 {actual[:16]}…")

    def _chunks(self) -> Iterator[bytes]:
        # pread does not use the file's position, which forked children share.
        position = 0
        while chunk := os.pread(self.descriptor, _CHUNK, position):
            position += len(chunk)
            yield chunk

    def _error(self, expected: str, actual: str) -> IntegrityError:
        return IntegrityError(self.path, expected, actual, self._artifact)

    @property
    def alias(self) -> str | None:
        """A path that leads to this very file, for libraries that open files. None: this user has no such path now."""
        path = f"/proc/self/fd/{self.descriptor}"
        return path if os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids) else None

    @property
    def is_open(self) -> bool:
        """False once this object has closed the file, or a program has, which closes all descriptors as daemons do."""
        try:
            return self.descriptor >= 0 and cache.file_identity(os.fstat(self.descriptor))[:2] == self._identity[:2]
        except OSError:
            return False

    def close(self) -> None:
        """Close the file. What was mapped stays."""
        if self.is_open or (self.descriptor >= 0 and not self._identity):
            os.close(self.descriptor)
        self.descriptor = -1

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if cache is not None:  # None: the interpreter is being taken down, and the system will close the file
            self.close()


def open_verified(root: str, file: File, artifact: str = "", *, use_markers: bool = True) -> OpenFile:
    """Open ``file`` of the bundle in folder ``root``, and verify that it is the one that the manifest describes.

    A file with several names (hard links) is refused, because somebody can write to it through a name that nobody
    looks at. It is accepted where packages are installed, because installers such as uv and pex link files from their
    cache. The bundle can be a wheel of its own, or a folder of the app's package.

    Args:
        root: the bundle's folder.
        file: the manifest's entry.
        artifact: id for the error message.
        use_markers: False hashes the file in any case.

    Raises:
        IntegrityError: the file is missing, has another size or content, has several names, or is reached through a
            symbolic link.
        LoadError: too many files are open.
    """
    opened = OpenFile(root, file, artifact, _open(root, file, artifact))
    try:
        opened.verify(use_markers=use_markers)
    except BaseException:
        opened.close()
        raise
    return opened


def verify_file(root: str, file: File, artifact: str = "", *, use_markers: bool = True) -> None:
    """Verify ``file`` as `open_verified` does, with the same errors."""
    open_verified(root, file, artifact, use_markers=use_markers).close()


def read_verified(root: str, file: File, artifact: str = "") -> bytes:
    """Return the content of ``file``, verified as `open_verified` does, with the same errors."""
    with open_verified(root, file, artifact) as opened:
        return opened.read()


def _open(root: str, file: File, artifact: str) -> int:
    """Open a file below the bundle's folder, through no symbolic link."""
    path = os.path.join(root, file.path)
    try:
        *folders, name = file.path.split("/")
        descriptor = os.open(root, _FOLDER)
        try:
            for folder in folders:
                inner = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            return os.open(name, _FILE, dir_fd=descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # these say nothing about the file
            raise LoadError(
                f"{path} cannot be opened: {os.strerror(error.errno).lower()}; close some files, or raise the limit "
                "(`ulimit -n`), and try again"
            ) from error
        part = root
        for segment in file.path.split("/"):
            part = os.path.join(part, segment)
            if os.path.islink(part):
                raise IntegrityError(part, "a regular file", "a symbolic link", artifact) from error
        raise _unreadable(path, file.size, error, artifact) from error


def _is_installed(folder: str) -> bool:
    """Return whether the folder lies where an installer puts packages: beside the package there is its metadata.

    A folder in which everyone can write, such as ``/tmp``, is none, because everyone could put metadata there.
    """
    inner = os.path.abspath(folder)
    while (outer := os.path.dirname(inner)) != inner:
        try:
            is_package = os.path.basename(inner) == WHEEL_PACKAGE or any(
                name.endswith(".dist-info") for name in os.listdir(outer)
            )
            if is_package and not os.stat(outer).st_mode & stat.S_IWOTH:
                return True
        except OSError:  # this user may pass through the folder, and not list it
            pass
        inner = outer
    return False


def _unreadable(path: str, size: int, error: OSError, artifact: str) -> IntegrityError:
    is_missing = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    return IntegrityError(path, f"{size} bytes", f"{error.strerror or error}", artifact, unreadable=not is_missing)


def is_remembered(root: str, file: File) -> bool:
    """Return whether ``file`` was verified on this machine and has not changed since: it will not be hashed again."""
    try:
        status = os.stat(os.path.join(root, file.path))
    except OSError:
        return False
    return status.st_size == file.size and cache.has_marker(_marker_path(status, file.sha256), touch=False)


def last_used(root: str, path: str, sha256: str) -> float:
    """Return when this user last loaded the bundle that has this tokenizer: Unix time, 0.0 for never."""
    try:
        return os.stat(_marker_path(os.stat(f"{root}/{path}"), sha256)).st_mtime
    except OSError:
        return 0.0


def _marker_path(status: os.stat_result, sha256: str) -> str:
    return cache.path_of("verified", f"{sha256}-{cache.identity_text(cache.file_identity(status))}")


def read_ahead(path: str) -> None:
    """Ask the system to bring a file into memory, and do not wait. This is for speed only, so errors are ignored."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
    except (OSError, AttributeError):  # AttributeError: macOS has no posix_fadvise
        return
