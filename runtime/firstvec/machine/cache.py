"""What firstvec remembers on this machine: empty marker files and small notes, in the user's cache folder.

firstvec trusts these files. For that reason it reads only files that no other user could have written.
"""

from __future__ import annotations

import os
import stat
import sys
import time

from firstvec.machine.system_files import read_bytes


def cache_folder() -> str:
    """Return the folder for what firstvec remembers: ``$FIRSTVEC_CACHE``, else the platform's user cache folder.

    A user without a home gets a folder of their own below ``$TMPDIR`` or ``/tmp``. If another user could write there,
    the result is a path at which nothing can be written.
    """
    if chosen := os.environ.get("FIRSTVEC_CACHE"):
        return chosen
    key = tuple(map(os.environ.get, ("XDG_CACHE_HOME", "HOME", "TMPDIR")))
    if key not in _defaults:
        _defaults[key] = _default_folder()
    return _defaults[key]


_defaults: dict[object, str] = {}
"""The variables that decide → the platform's user cache folder."""
_NOWHERE = f"{os.devnull}/firstvec"
"""A path at which nothing can be written."""


def _default_folder() -> str:
    if base := os.environ.get("XDG_CACHE_HOME"):
        return f"{base}/firstvec"
    if (home := home_folder()) is not None:
        return f"{home}/Library/Caches/firstvec" if sys.platform == "darwin" else f"{home}/.cache/firstvec"
    folder = _folder_without_home()
    is_safe = not os.path.lexists(folder) or (not os.path.islink(folder) and _is_private(folder))
    return folder if is_safe else _NOWHERE


def _folder_without_home() -> str:
    return f"{os.environ.get('TMPDIR') or '/tmp'}/firstvec-{os.geteuid()}"


def home_folder() -> str | None:
    """Return the user's home folder. None: HOME is not set, and the user database does not know this user."""
    home = os.path.expanduser("~")
    return None if home.startswith("~") else home


def cache_problem() -> str | None:
    """Return why nothing can be remembered on this machine, for people. None: it can."""
    folder = cache_folder()
    hint = "every start verifies and tests again; set FIRSTVEC_CACHE to a folder that only this user can write"
    if folder == _NOWHERE:
        own = _folder_without_home()
        return f"this user has no home, and {own} was made or can be written by another user, so {hint}"
    existing = folder
    while not os.path.exists(existing) and os.path.dirname(existing) != existing:
        existing = os.path.dirname(existing)
    if not (os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)):
        return f"{existing} cannot be written, so {hint}"
    for believed in (f"{folder}/{kind}" for kind in ("manifests", "metadata", "self-tested", "verified")):
        if os.path.isdir(believed) and not _is_private(believed):
            return f"{believed} can be written by others, so what it holds is not believed, and {hint}"
    return None


def path_of(kind: str, name: str) -> str:
    """Return the path of a marker or note. Each kind has a folder."""
    return f"{cache_folder()}/{kind}/{name}"


def make_folder(folder: str) -> None:
    """Make the folder of a kind, and the cache folder above it, so that only this user can write there."""
    if not os.path.isdir(folder):
        # `makedirs` uses the mode for the last folder only. The cache folder of a user without a home must be private.
        os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
        os.makedirs(folder, mode=0o700, exist_ok=True)


def file_identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what identifies a file's content. Another file has another identity, and so has a file after a write."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


_TICK = 50_000_000
"""Nanoseconds. Two writes within one tick of a file system's clock leave the same times. A tick is 10 ms at most."""


def is_settled(status: os.stat_result) -> bool:
    """Return whether a write from now on would change the file's identity."""
    return time.time_ns() - status.st_ctime_ns > _TICK


def will_last(path: str) -> bool:
    """Return False for a file that a one-file app of PyInstaller has unpacked for this start of the app.

    The next start unpacks the file again, into another folder, so what is remembered of this one is of no use.
    """
    folder: str = getattr(sys, "_MEIPASS", "")
    return not (os.path.basename(folder).startswith("_MEI") and path.startswith(f"{folder}/"))


def identity_text(identity: tuple[int, ...]) -> str:
    """Return the identity as it stands in the name of a marker or note."""
    return "%x-%x-%x-%x-%x" % identity  # noqa: UP031 - twice as fast as five f-strings


def has_marker(path: str, *, touch: bool = True) -> bool:
    """Return whether the marker is there and only this user could have put it there. ``touch`` sets its time to now."""
    try:
        if not _is_private(os.path.dirname(path)):
            return False
        os.utime(path) if touch else os.stat(path)
    except OSError:
        return False
    return True


def put_marker(path: str) -> None:
    """Put the marker there, if this user may."""
    try:
        make_folder(os.path.dirname(path))
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError:
        return  # a home is read-only or missing: the next load verifies again, which is slower and as safe


def _checksum(data: bytes) -> bytes:
    """Return a note's checksum: its bytes as one number, lowest first, with a 1 behind, modulo a prime.

    A flipped bit always changes it, and other damage keeps it once in 10^9. crc32 would do, but its import takes
    0.35 ms, three times as long as everything else that is done for a note.
    """
    return (int.from_bytes(data + b"\1", "little") % ((1 << 30) - 35)).to_bytes(4, "little")


_MOST_OF_NOTE = 1 << 16


def read_note(path: str) -> bytes | None:
    """Return a note of at most 64 KiB. None: it is missing or damaged, or another user could have written it."""
    try:
        data = read_bytes(path, _MOST_OF_NOTE) if _is_private(os.path.dirname(path)) else b""
    except OSError:
        return None
    return data[4:] if data[:4] == _checksum(data[4:]) else None


def write_note(path: str, data: bytes) -> None:
    """Write a note, whole or not at all, if this user may."""
    data = _checksum(data) + data
    if len(data) > _MOST_OF_NOTE:
        return
    unfinished = f"{path}.{os.getpid()}"
    try:
        make_folder(os.path.dirname(path))
        descriptor = os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        try:
            is_whole = os.write(descriptor, data) == len(data)
        finally:
            os.close(descriptor)
        os.replace(unfinished, path) if is_whole else os.unlink(unfinished)
    except OSError:
        return


def _is_private(folder: str) -> bool:
    """Return whether only this user can put files into the folder, which may be a link in a folder of this user."""
    status = os.stat(folder)
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
