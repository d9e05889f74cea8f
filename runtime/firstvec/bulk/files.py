"""Write files so that they appear whole or not at all, also if the process is killed or the machine loses power."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import contextmanager

from firstvec.errors import OutputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_HINTS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space of this user",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`), or take fewer --shard-rows",
    errno.ENOENT: "put the folder back",
    errno.ENOTDIR: "put the folder back",
    errno.EACCES: "let this user write there",
    errno.EROFS: "choose another --output",
}


@contextmanager
def as_output_errors(path: str) -> Iterator[None]:
    """Raise an OSError as OutputError, with what to do about it."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            reason = f"the folder was taken away ({reason})"
        hint = _HINTS.get(error.errno or 0, "repair what the system says")
        raise OutputError(
            path, reason, f"{hint}, and run the same command again: it goes on with the shards that are missing"
        ) from error


class Hashed:
    """A stream that is written to: it counts the bytes, and computes their sha256."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Write bytes."""
        self._stream.write(data)
        self._digest.update(data)
        self.size += memoryview(data).nbytes
        return memoryview(data).nbytes

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self.size

    def flush(self) -> None:
        """Do nothing: `write_whole` flushes."""

    def close(self) -> None:
        """Do nothing: `write_whole` closes."""

    def result(self) -> dict[str, Any]:
        """Return ``size`` and ``sha256``."""
        return {"size": self.size, "sha256": self._digest.hexdigest()}


def write_whole(path: str, write: Callable[[Hashed], object], scratch: str | None = None) -> dict[str, Any]:
    """Write a file under another name, flush it, and give it its name. Return its ``size`` and ``sha256``.

    Args:
        write: writes the content to the stream that it gets.
        scratch: the other name, on the same file system.

    Raises:
        OutputError: the disk is full, the folder was taken away, and the like. No part of the file stays.
    """
    if scratch is None:
        scratch = scratch_name(path)
    with as_output_errors(path):
        try:
            with open(scratch, "wb") as stream:
                hashed = Hashed(stream)
                write(hashed)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(scratch, path)
        except BaseException:
            try:
                os.unlink(scratch)
            except OSError:
                pass
            raise
        sync_folder(os.path.dirname(path))
    return hashed.result()


def scratch_name(path: str) -> str:
    """Return the name under which a file is written. Readers of folders pass over names that begin with a dot."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.tmp")


def sync_folder(path: str) -> None:
    """Flush the names of a folder's files to the disk."""
    descriptor = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # fsync(2): the file system has nothing to flush
            raise
    finally:
        os.close(descriptor)


def digest_of(path: str) -> dict[str, Any] | None:
    """Return ``size`` and ``sha256`` of a file. None: it cannot be read."""
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
    except OSError:
        return None
    return {"size": size, "sha256": digest.hexdigest()}
