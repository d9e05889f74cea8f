"""Which files are read, in which format, and whether they are still the same ones."""

from __future__ import annotations

import glob
import hashlib
import os
import stat

from firstvec.bulk.job import INPUT_FORMATS
from firstvec.errors import InputChanged, InputError
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

STDIN = "-"
_COMPRESSION_OF_ENDING = {".gz": "gzip", ".zst": "zstd"}
_FORMAT_OF_ENDING = {
    **{".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"},
    **{".txt": "lines", ".text": "lines", ".lines": "lines"},
}
_EDGE = 1 << 16
"""Bytes at the beginning and at the end of a file whose digest is part of its identity."""


class Source(Record):
    """One input: a file, or stdin."""

    path: str
    format: str
    compression: str | None
    size: int
    """Bytes. 0 of stdin, whose size nobody knows."""
    mtime_ns: int
    edges_sha256: str

    @property
    def is_stdin(self) -> bool:
        """Whether the texts come from stdin."""
        return self.path == STDIN

    def identity(self) -> dict[str, Any]:
        """Return what says that a later run has the same input.

        The digest of a whole file would read a terabyte twice. So the identity is the size, the time of the last write,
        and the digest of both ends. Each write changes the time. A copy that keeps the time has the digest.
        """
        names = ("path", "format", "compression", "size", "mtime_ns", "edges_sha256")
        return {name: getattr(self, name) for name in names}

    def check_unchanged(self, descriptor: int) -> None:
        """Raise InputChanged if the open file was written to since `find_sources`, or its name leads elsewhere."""
        if self.is_stdin:
            return
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise InputChanged(self.path, f"was written to (it had {self.size} bytes, and has {status.st_size})")
        try:
            named = os.stat(self.path)
        except OSError as error:
            raise InputChanged(self.path, f"was taken away ({error.strerror})") from error
        if (named.st_dev, named.st_ino) != (status.st_dev, status.st_ino):
            raise InputChanged(self.path, "was replaced by another file")


def find_sources(inputs: Sequence[str], input_format: str | None) -> list[Source]:
    """Return the inputs in their order. The files of a pattern come in the order of their names.

    Raises:
        InputError: a file is missing, cannot be read, is given twice, or has an unknown format.
    """
    paths = [path for given in inputs for path in _expand(given)]
    seen: dict[str, str] = {}
    for path in paths:
        key = path if path == STDIN else os.path.realpath(path)
        if key in seen:
            raise InputError(f"{path!r} is given twice (also as {seen[key]!r}): name each input once")
        seen[key] = path
    return [_describe(path, input_format) for path in paths]


def _expand(given: str) -> list[str]:
    if given == STDIN or os.path.isfile(given):
        return [given]
    if os.path.isdir(given):
        raise InputError(f"{given!r} is a folder: name its files, for example {os.path.join(given, '*.parquet')!r}")
    if glob.has_magic(given):
        found = sorted(path for path in glob.glob(given, recursive=True) if os.path.isfile(path))
        if not found:
            raise InputError(f"no file fits the pattern {given!r}: correct the pattern")
        return found
    if os.path.exists(given):
        raise InputError(f"{given!r} is neither a file nor a folder: for a stream use -")
    raise InputError(f"no such file: {given!r}; correct the path")


def _describe(path: str, input_format: str | None) -> Source:
    if path == STDIN:
        form = input_format or "lines"
        if form == "parquet":
            raise InputError("Parquet cannot be read from stdin, because its index is at its end: name a file")
        return Source(path=path, format=form, compression=None, size=0, mtime_ns=0, edges_sha256="")
    stem, ending = os.path.splitext(path)
    compression = _COMPRESSION_OF_ENDING.get(ending.lower())
    if compression is not None:
        ending = os.path.splitext(stem)[1]
    form = input_format or _FORMAT_OF_ENDING.get(ending.lower(), "")
    if not form:
        raise InputError(
            f"{path!r} has none of the endings {', '.join(_FORMAT_OF_ENDING)}, with or without .gz or .zst: "
            f"say what it is with --input-format ({', '.join(INPUT_FORMATS)})"
        )
    if form == "parquet" and compression is not None:
        raise InputError(f"{path!r}: Parquet is compressed inside: decompress the file first")
    try:
        # O_NONBLOCK: the open must not wait for a writer if a pipe has taken the file's place.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path!r} is not a file: for a stream use -")
            digest = hashlib.sha256(os.pread(descriptor, _EDGE, 0))
            digest.update(os.pread(descriptor, _EDGE, max(0, status.st_size - _EDGE)))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InputError(f"{path!r} cannot be read ({error.strerror}): let this user read it") from error
    return Source(
        path=path,
        format=form,
        compression=compression,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        edges_sha256=digest.hexdigest(),
    )
