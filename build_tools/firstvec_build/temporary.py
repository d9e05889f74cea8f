"""Make files and folders that are named after their process, flush them, and remove those of dead processes."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

_PROC = Path("/proc")
_ABANDONED_AFTER = 7 * 24 * 3600.0
"""Seconds. Only the age shows whether another host still works on a file."""


def make_folder(parent: Path, stem: str) -> Path:
    """Make a folder in ``parent``. The name has ``stem``, the host, the process and its start time."""
    return Path(tempfile.mkdtemp(dir=parent, prefix=f"{stem}{_maker()}-"))


def make_file(parent: Path, stem: str) -> Path:
    """Make a file in ``parent``, named as `make_folder` names a folder. Every user may read it."""
    descriptor, name = tempfile.mkstemp(dir=parent, prefix=f"{stem}{_maker()}-")
    os.close(descriptor)
    os.chmod(name, 0o644)
    return Path(name)


def find_abandoned(parent: Path, stem: str) -> list[Path]:
    """Return what dead processes of this host left in ``parent``, and what other hosts did not touch for a week.

    The name has the host, because two hosts may share the folder, and each container counts its processes from 1.
    """
    try:
        names = sorted(name for name in os.listdir(parent) if name.startswith(stem))
    except OSError:
        return []  # the folder is not there, or may not be read
    found = []
    for name in names:
        host, _, rest = name.removeprefix(stem).partition("-")
        pid, _, _ = rest.partition("-")
        if host == _host() and pid.isdecimal():
            is_abandoned = not rest.startswith(f"{pid}-{_start_time(int(pid))}-")
        else:
            is_abandoned = _is_old(parent / name)
        if is_abandoned:
            found.append(parent / name)
    return found


def abandon(path: Path, stem: str) -> None:
    """Rename what this process made, so that `find_abandoned` finds it at once. The process may live on."""
    # No process has the number 0. The last part of the name is random, so the new name is free, too.
    path.rename(path.with_name(f"{stem}{_host()}-0-{path.name.rpartition('-')[2]}"))


def remove_abandoned(parent: Path, stem: str) -> None:
    """Remove what `find_abandoned` finds, as far as this user may."""
    for path in find_abandoned(parent, stem):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk.

    Raises:
        OSError: the file or folder is missing, or the disk does not take it.
    """
    is_folder = path.is_dir()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # fsync(2): EINVAL means that the file system has nothing to flush. Some file systems return it for folders.
        if not (is_folder and error.errno == errno.EINVAL):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a folder and everything below it: files first, then the folders that name them."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def _maker() -> str:
    pid = os.getpid()
    return f"{_host()}-{pid}-{_start_time(pid)}"


@functools.cache
def _host() -> str:
    """Return a name for this boot of the kernel and this namespace of processes, where a number means one process."""
    try:
        boot = (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text("ascii")
        namespace = os.readlink(_PROC / "self" / "ns" / "pid")
    except OSError:  # not Linux
        boot, namespace = platform.node(), ""
    return hashlib.sha256(f"{boot}{namespace}".encode()).hexdigest()[:8]


def _start_time(pid: int) -> str:
    """Return when a process started, in ticks since the boot.

    The time is needed, because the kernel gives the number of a dead process to a new one. The result is empty if there
    is no such process. On a system without /proc, the result is "0".
    """
    try:
        # proc(5), field 22. The second field, the name in parentheses, may hold anything.
        return (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    except OSError:
        if (_PROC / "self" / "stat").exists():
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass  # the process belongs to another user
    return "0"


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat(follow_symlinks=False).st_mtime > _ABANDONED_AFTER
    except OSError:
        return False
