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


def usable_cores() -> int:
    """Return how many cores this process may use, at least 1: the smaller of affinity and quota, rounded up."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        count = os.cpu_count() or 1
    for folder in _cgroup_folders("cpu"):
        if (quota := _quota(folder)) is not None:
            count = min(count, max(1, -(-quota[0] // quota[1])))
    return max(1, count)


def available_memory() -> int:
    """Return the bytes of memory that can still be used.

    The smallest counts: the system's, what the control groups leave, and what the limit of the addresses leaves.
    """
    if sys.platform != "linux":
        try:
            # macOS has only the total in sysconf. Half of it is a cautious guess at what is free.
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        except (AttributeError, ValueError, OSError):
            return 4 << 30
    available = 0
    for line in read_text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            break
    for folder in _cgroup_folders("memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = read_text(f"{folder}/{limit_name}").strip(), read_text(f"{folder}/{used_name}").strip()
            if limit.isdecimal() and used.isdecimal() and int(limit) < available + int(used):
                left = int(limit) - int(used) + _reclaimable(folder)
                available = min(available, max(0, left))
    if (left_addresses := address_space_left()) is not None:
        available = min(available, max(1 << 20, left_addresses - _RESERVED))
    return available


def address_space_left() -> int | None:
    """Return the bytes of addresses that this process may still take (``ulimit -v``). None: there is no limit."""
    limit = read_text("/proc/self/limits").partition("Max address space")[2].split(maxsplit=1)[:1]
    if not limit or not limit[0].isdecimal():
        return None
    pages = read_text("/proc/self/statm").split(maxsplit=1)[:1]
    return int(limit[0]) - (int(pages[0]) if pages and pages[0].isdecimal() else 0) * os.sysconf("SC_PAGE_SIZE")


def _reclaimable(folder: str) -> int:
    """Return the bytes of a control group's page cache. It counts as used, and the kernel drops it when it must."""
    lines = read_text(f"{folder}/memory.stat").splitlines()
    found = {name: value for name, _, value in (line.partition(" ") for line in lines)}

    def file_pages(prefix: str) -> int:
        values = (found.get(f"{prefix}{kind}_file", "") for kind in ("active", "inactive"))
        return sum(int(value) for value in values if value.isdecimal())

    # Version 1 counts the groups below apart.
    return max(file_pages(""), file_pages("total_"))


def _cgroup_folders(controller: str) -> Iterable[str]:
    """Yield the folders of this process's control group for ``controller`` and of its ancestors, versions 2 and 1.

    A limit anywhere up the tree counts (cgroups(7)). In a container the group's path is often not visible, and the
    mount's root is the container's own group. There the path's ancestors end.
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
        while True:
            yield f"{mount}{path}"
            if not path:
                break
            path = path.rpartition("/")[0]


def _quota(folder: str) -> tuple[int, int] | None:
    """Return (quota, period) in microseconds, or None without a limit."""
    fields = read_text(f"{folder}/cpu.max").split()
    if not fields:
        fields = [read_text(f"{folder}/cpu.cfs_quota_us").strip(), read_text(f"{folder}/cpu.cfs_period_us").strip()]
    if len(fields) == 2 and all(field.isdecimal() and int(field) > 0 for field in fields):
        return int(fields[0]), int(fields[1])
    return None
