"""Files and folders in the making: named after their maker, collected when that is dead, flushed when they are done."""

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

_ABANDONED_AFTER = 7 * 24 * 3600.0
"""Seconds. What another host left cannot be told from what it works on, except by its age."""


def make_folder(parent: Path, stem: str) -> Path:
    """Make a hidden folder in ``parent`` whose name says whose it is: host, process, and when that started."""
    return Path(tempfile.mkdtemp(dir=parent, prefix=f"{stem}{_maker(os.getpid())}-"))


def make_file(parent: Path, stem: str) -> Path:
    """The same for a file, which everybody may read."""
    descriptor, name = tempfile.mkstemp(dir=parent, prefix=f"{stem}{_maker(os.getpid())}-")
    os.close(descriptor)
    os.chmod(name, 0o644)
    return Path(name)


def abandoned(parent: Path, stem: str) -> list[Path]:
    """What dead processes of this host left in ``parent``, and what other hosts did not touch for a week.

    Two hosts may share the folder, and each container counts its processes from 1: a number alone means nothing.
    """
    try:
        names = sorted(name for name in os.listdir(parent) if name.startswith(stem))
    except OSError:
        return []  # it is not there, or may not be read
    found = []
    for name in names:
        host, _, rest = name.removeprefix(stem).partition("-")
        pid, _, _ = rest.partition("-")
        if host == _host() and pid.isdecimal():
            is_dead = not rest.startswith(f"{pid}-{_started(int(pid))}-")
        else:
            is_dead = _is_old(parent / name)
        if is_dead:
            found.append(parent / name)
    return found


def collect(parent: Path, stem: str) -> None:
    """Remove what is abandoned, as far as that is possible."""
    for path in abandoned(parent, stem):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk.

    Raises:
        OSError: it could not be.
    """
    is_folder = path.is_dir()
    if os.name == "nt" and is_folder:
        return  # Windows has no handle to a folder that could be flushed
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # fsync(2): EINVAL where a file system has nothing to flush for this kind of file; some have that for folders.
        if not (is_folder and error.errno == errno.EINVAL):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a folder and everything below it: files first, then the folders that name them."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def _maker(pid: int) -> str:
    return f"{_host()}-{pid}-{_started(pid)}"


@functools.cache
def _host() -> str:
    """A name for this boot of this kernel and this namespace of process numbers: where a number means one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        boot, namespace = platform.node(), ""
    return hashlib.sha256(f"{boot}{namespace}".encode()).hexdigest()[:8]


def _started(pid: int) -> str:
    """When a process started, in ticks since the boot; "0" where that is unknown, "" if there is no such process.

    A number is given to another process sooner or later.
    """
    try:
        # proc(5), field 22; the second, the name in parentheses, may hold anything.
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "0"


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat(follow_symlinks=False).st_mtime > _ABANDONED_AFTER
    except OSError:
        return False
