"""What this process may use: cores, memory, addresses."""

from __future__ import annotations

import os
import sys

from firstvec.machine.system_files import read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_RESERVED = 192 << 20
"""Bytes of addresses that are reserved and not used, for the stacks of threads and the arenas of malloc. Found by
trying with 2 cores: with less than that, libraries abort the process instead of failing."""
_MEMORY_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Limit and use of a control group, versions 2 and 1."""


def usable_cores() -> int:
    """Return how many cores this process may use, at least 1: the smaller of affinity and quota, rounded up."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        count = os.cpu_count() or 1
    return max(1, min([count, *filter(None, map(_quota, _cgroup_folders("cpu")))]))


def available_memory() -> int:
    """Return the bytes of memory that can still be used.

    The smallest counts: the system's, what the control groups leave, and what the limit of the addresses leaves.
    """
    if sys.platform != "linux":
        # macOS has only the total in sysconf. Half of it is a cautious guess at what is free.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    available = (_first_number("/proc/meminfo", "MemAvailable:") or 0) * 1024
    for folder in _cgroup_folders("memory"):
        for limit_file, used_file in _MEMORY_FILES:
            limit, used = _first_number(f"{folder}/{limit_file}"), _first_number(f"{folder}/{used_file}")
            if limit is not None and used is not None and limit < available + used:
                available = min(available, max(0, limit - used + _reclaimable(folder)))
    if (left := address_space_left()) is not None:
        available = min(available, max(1 << 20, left - _RESERVED))
    return available


def address_space_left() -> int | None:
    """Return the bytes of addresses that this process may still take (``ulimit -v``). None: there is no limit."""
    if (limit := _first_number("/proc/self/limits", "Max address space")) is None:
        return None
    return limit - (_first_number("/proc/self/statm") or 0) * os.sysconf("SC_PAGE_SIZE")


def _first_number(path: str, label: str = "") -> int | None:
    """Return the number behind the label in a system file, or at its beginning. None: there is none."""
    words = (read_text(path).partition(label)[2] if label else read_text(path)).split(maxsplit=1)
    return int(words[0]) if words and words[0].isdecimal() else None


def _reclaimable(folder: str) -> int:
    """Return the bytes of a control group's page cache. It counts as used, and the kernel drops it when it must."""
    lines = [line.partition(" ") for line in read_text(f"{folder}/memory.stat").splitlines()]
    found = {name: int(value) for name, _, value in lines if value.isdecimal()}
    # Version 1 counts the groups below apart.
    return max(found.get(f"{of}active_file", 0) + found.get(f"{of}inactive_file", 0) for of in ("", "total_"))


def _cgroup_folders(controller: str) -> Iterable[str]:
    """Yield the folders of this process's control group and of its ancestors, whose limits count, too (cgroups(7)).

    In a container the group's path is often not visible, and the mount's root is the container's own group.
    """
    if sys.platform != "linux":
        return
    for line in read_text("/proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            mount = "/sys/fs/cgroup"
        elif controller in controllers.split(","):
            mount = f"/sys/fs/cgroup/{controllers}"
        else:
            continue
        path = path.rstrip("/")
        while path:
            yield f"{mount}{path}"
            path = path.rpartition("/")[0]
        yield mount


def _quota(folder: str) -> int | None:
    """Return the cores that a control group may use, rounded up, or None without a limit."""
    text = read_text(f"{folder}/cpu.max")
    text = text or f"{read_text(f'{folder}/cpu.cfs_quota_us')} {read_text(f'{folder}/cpu.cfs_period_us')}"
    quota_and_period = [int(field) if field.isdecimal() else 0 for field in text.split()]
    if len(quota_and_period) != 2 or 0 in quota_and_period:
        return None
    return -(-quota_and_period[0] // quota_and_period[1])
