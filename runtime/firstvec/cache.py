"""What firstvec remembers on this machine, in the user's cache folder: empty markers, and small notes.

What is found there is believed, so only where nobody but this user could have put it.
"""

from __future__ import annotations

import os
import stat
import sys
import time


def cache_dir() -> str:
    """The folder for what firstvec remembers: ``$FIRSTVEC_CACHE``, else the platform's user cache folder."""
    get = os.environ.get
    if chosen := get("FIRSTVEC_CACHE"):
        return chosen
    key = (get("XDG_CACHE_HOME"), get("HOME"), os.name)
    if key not in _defaults:
        _defaults[key] = _default()
    return _defaults[key]


_defaults: dict[object, str] = {}
"""What the place depends on → the platform's user cache folder."""


def _default() -> str:
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser(r"~\AppData\Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return f"{base}/firstvec"


def place(folder: str, name: str) -> str:
    """Where something is remembered, in a folder of its kind."""
    return f"{cache_dir()}/{folder}/{name}"


def identity(status: os.stat_result) -> tuple[int, ...]:
    """What a file is known by: another file, or the same one after a write, has another."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


_TICK = 50_000_000
"""Nanoseconds; many times what passes between two times that a file system can tell apart: a hundredth of a second."""


def is_settled(status: os.stat_result) -> bool:
    """Whether a write from now on changes the file's identity: one in the same tick as the last would not."""
    return time.time_ns() - status.st_ctime_ns > _TICK


def name_of(identity: tuple[int, ...]) -> str:
    """The identity in the name of a marker or note."""
    return "%x-%x-%x-%x-%x" % identity  # noqa: UP031 - twice as fast as five f-strings


def is_marked(marker: str, *, use: bool = True) -> bool:
    """Whether the marker is there and only this user could have put it there; when it is used its time becomes now."""
    try:
        if not _is_private(os.path.dirname(marker)):
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
        # A read-only or missing home: the next load finds out again, which is slower and as safe.
        return


def _checksum(data: bytes) -> bytes:
    """Of a note: the remainder by a prime of the number that its bytes are, lowest first, with a 1 behind.

    No flipped bit leaves it as it was, and other damage does once in 10^9. It needs no import: that of crc32 takes
    0.35 ms, three times as long as all else that is done for a note.
    """
    return (int.from_bytes(data + b"\1", "little") % ((1 << 30) - 35)).to_bytes(4, "little")


def recall(path: str) -> bytes | None:
    """A note of at most 8 KiB, if it is there as it was written, and only this user could have written it."""
    try:
        if not _is_private(os.path.dirname(path)):
            return None
        # Not to wait for a writer, should it be a pipe.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            data = os.read(descriptor, 1 << 13)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    return data[4:] if data[:4] == _checksum(data[4:]) else None


def note(path: str, data: bytes) -> None:
    """Write a note, whole or not at all, if this user may."""
    data = _checksum(data) + data
    unfinished = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        descriptor = os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
        try:
            whole = os.write(descriptor, data) == len(data)
        finally:
            os.close(descriptor)
        if whole:
            os.replace(unfinished, path)
        else:
            os.unlink(unfinished)
    except OSError:
        return


def _is_private(folder: str) -> bool:
    """Whether only this user can put files into the folder."""
    if os.name != "posix":
        return True
    status = os.stat(folder)
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
