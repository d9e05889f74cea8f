"""What this process may use: read from system files of machines that are not this one, and of this one."""

from __future__ import annotations

import os
import sys

import psutil
import pytest

from firstvec.machine import limits
from firstvec.machine.limits import address_space_left, available_memory, usable_cores
from firstvec.machine.profile import ResourceProfile
from tests.conftest import Fresh
from tests.runtime.machine.conftest import Cores, Files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's system files")

MIB = 1 << 20
MEMINFO = "MemTotal:        8000000 kB\nMemFree:          100000 kB\nMemAvailable:    4194304 kB\nBuffers:  1 kB\n"

# --- Cores -----------------------------------------------------------------------------------------------------------

V2 = "0::/user.slice/app.scope/inner\n"
V2_ROOT = "/sys/fs/cgroup"
V1 = "12:memory:/docker/1\n5:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n"
V1_ROOT = "/sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize("count", [1, 2, 7, 256])
def test_without_a_quota_the_affinity_counts(files: Files, cores: Cores, count: int) -> None:
    cores(count)
    assert usable_cores() == count


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("max", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("100001 100000", 2),
        ("100000 100000", 1),
        ("1000 100000", 1),
        ("50000 50000", 1),
        ("400000 50000", 8),
        ("6400000 100000", 8),
        ("0 100000", 8),
        ("100000 0", 8),
        ("-1 100000", 8),
        ("100000", 8),
        ("garbage here", 8),
        ("", 8),
    ],
)
@pytest.mark.parametrize("group", ["/user.slice/app.scope/inner", "/user.slice/app.scope", "/user.slice", ""])
def test_a_version_2_quota_anywhere_up_the_tree_is_rounded_up(
    files: Files, cores: Cores, group: str, quota: str, expected: int
) -> None:
    cores(8)
    files |= {"/proc/self/cgroup": V2, f"{V2_ROOT}{group}/cpu.max": f"{quota}\n"}
    assert usable_cores() == expected


@pytest.mark.parametrize(
    ("inner", "middle", "outer", "expected"),
    [(4, 2, 6, 2), (2, 4, 6, 2), (6, 4, 2, 2), (None, 3, None, 3), (None, None, 5, 5), (None, None, None, 8)],
)
def test_the_smallest_quota_of_the_nested_groups_wins(
    files: Files, cores: Cores, inner: int | None, middle: int | None, outer: int | None, expected: int
) -> None:
    cores(8)
    files["/proc/self/cgroup"] = V2
    groups = ("/user.slice/app.scope/inner", "/user.slice/app.scope", "/user.slice")
    for group, count in zip(groups, (inner, middle, outer), strict=True):
        files[f"{V2_ROOT}{group}/cpu.max"] = f"{count * 100_000 if count else 'max'} 100000\n"
    assert usable_cores() == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("-1", "100000", 8), ("300000", "100000", 3), ("250000", "100000", 3), ("1000", "100000", 1), ("x", "y", 8)],
)
@pytest.mark.parametrize("group", ["/docker/1", "/docker", ""])
def test_a_version_1_quota_counts(
    files: Files, cores: Cores, group: str, quota: str, period: str, expected: int
) -> None:
    cores(8)
    files |= {
        "/proc/self/cgroup": V1,
        f"{V1_ROOT}{group}/cpu.cfs_quota_us": f"{quota}\n",
        f"{V1_ROOT}{group}/cpu.cfs_period_us": f"{period}\n",
    }
    assert usable_cores() == expected


def test_a_quota_of_another_group_does_not_count(files: Files, cores: Cores) -> None:
    cores(8)
    files |= {
        "/proc/self/cgroup": V2,
        f"{V2_ROOT}/user.slice/other.scope/cpu.max": "100000 100000",
        f"{V2_ROOT}/user.slice/app.scope/inner/deeper/cpu.max": "100000 100000",
    }
    assert usable_cores() == 8


def test_the_affinity_wins_over_a_larger_quota(files: Files, cores: Cores) -> None:
    cores(3)
    files |= {"/proc/self/cgroup": V2, f"{V2_ROOT}/user.slice/cpu.max": "1600000 100000"}
    assert usable_cores() == 3


def test_a_hybrid_hierarchy_counts_both(files: Files, cores: Cores) -> None:
    cores(8)
    files |= {
        "/proc/self/cgroup": f"{V1}{V2}",
        f"{V1_ROOT}/docker/cpu.cfs_quota_us": "500000",
        f"{V1_ROOT}/docker/cpu.cfs_period_us": "100000",
        f"{V2_ROOT}/user.slice/cpu.max": "400000 100000",
    }
    assert usable_cores() == 4


def test_a_group_whose_name_holds_a_colon_is_read(files: Files, cores: Cores) -> None:
    cores(8)
    files |= {"/proc/self/cgroup": "0::/cri-containerd:1:2\n", f"{V2_ROOT}/cri-containerd:1:2/cpu.max": "200000 100000"}
    assert usable_cores() == 2


def test_this_machine_has_no_more_cores_than_its_affinity() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
    assert ResourceProfile.detect().cpu_count == usable_cores()


def test_a_process_bound_to_one_core_has_one(fresh: Fresh) -> None:
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from firstvec.machine.limits import usable_cores
print(usable_cores())
"""
    assert fresh(code).stdout == "1\n"


# --- Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "expected_mb"),
    [
        ({}, 4096),
        ({"/a/b/memory.max": "max", "/a/b/memory.current": "1"}, 4096),
        ({"/a/b/memory.max": f"{512 * MIB}", "/a/b/memory.current": f"{200 * MIB}"}, 312),
        ({"/a/memory.max": f"{512 * MIB}", "/a/memory.current": f"{200 * MIB}"}, 312),
        ({"/memory.max": f"{512 * MIB}", "/memory.current": f"{200 * MIB}"}, 312),
        (
            {
                "/a/b/memory.max": f"{512 * MIB}",
                "/a/b/memory.current": f"{100 * MIB}",
                "/a/memory.max": f"{1024 * MIB}",
                "/a/memory.current": f"{900 * MIB}",
            },
            124,
        ),
        ({"/a/b/memory.max": f"{100 * MIB}", "/a/b/memory.current": f"{101 * MIB}"}, 0),
        ({"/a/b/memory.max": f"{9000 * MIB}", "/a/b/memory.current": f"{100 * MIB}"}, 4096),
        ({"/a/b/memory.max": f"{512 * MIB}"}, 4096),
        ({"/a/b/memory.max": "garbage", "/a/b/memory.current": "garbage"}, 4096),
    ],
)
def test_version_2_memory_limits_count(files: Files, limits: Files, expected_mb: int) -> None:
    files |= {"/proc/self/cgroup": "0::/a/b\n", "/proc/meminfo": MEMINFO}
    files |= {f"/sys/fs/cgroup{path}": f"{value}\n" for path, value in limits.items()}
    assert available_memory() == expected_mb * MIB


def test_page_cache_of_a_group_counts_as_free(files: Files) -> None:
    statistics = f"anon {100 * MIB}\nfile {90 * MIB}\nactive_file {50 * MIB}\ninactive_file {30 * MIB}\n"
    files |= {"/proc/self/cgroup": "0::/a\n", "/proc/meminfo": MEMINFO, "/sys/fs/cgroup/a/memory.stat": statistics}
    files |= {"/sys/fs/cgroup/a/memory.max": f"{256 * MIB}\n", "/sys/fs/cgroup/a/memory.current": f"{200 * MIB}\n"}
    assert available_memory() == (56 + 80) * MIB


def test_page_cache_of_a_version_1_group_and_those_below_counts_as_free(files: Files) -> None:
    place = "/sys/fs/cgroup/memory/docker/1"
    files |= {
        "/proc/self/cgroup": V1,
        "/proc/meminfo": MEMINFO,
        f"{place}/memory.limit_in_bytes": f"{256 * MIB}\n",
        f"{place}/memory.usage_in_bytes": f"{200 * MIB}\n",
        f"{place}/memory.stat": f"active_file 1\ninactive_file 1\ntotal_active_file {9 * MIB}\n"
        f"total_inactive_file {MIB}\n",
    }
    assert available_memory() == (56 + 10) * MIB


LIMITS = (
    "Limit                     Soft Limit           Hard Limit           Units\nMax address space         {} {} bytes\n"
)


@pytest.mark.parametrize(
    ("limit", "expected_mb"),
    [("unlimited", 4096), (str(1000 * MIB), 1000 - 100 - 192), (str(50 * MIB), 1), ("x", 4096)],
)
def test_the_rest_of_the_address_space_counts(files: Files, limit: str, expected_mb: int) -> None:
    pages = 100 * MIB // os.sysconf("SC_PAGE_SIZE")
    files |= {"/proc/meminfo": MEMINFO, "/proc/self/statm": f"{pages} 5 5 1 0 1 0\n"}
    files["/proc/self/limits"] = LIMITS.format(limit, limit)
    assert available_memory() == expected_mb * MIB


@pytest.mark.parametrize("group", ["/docker/1", "/docker", ""])
@pytest.mark.parametrize(("limit", "expected_mb"), [(1000 * MIB, 600), (9_223_372_036_854_771_712, 4096)])
def test_version_1_memory_limits_count(files: Files, group: str, limit: int, expected_mb: int) -> None:
    files |= {
        "/proc/self/cgroup": V1,
        "/proc/meminfo": MEMINFO,
        f"/sys/fs/cgroup/memory{group}/memory.limit_in_bytes": f"{limit}\n",
        f"/sys/fs/cgroup/memory{group}/memory.usage_in_bytes": f"{400 * MIB}\n",
    }
    assert available_memory() == expected_mb * MIB


def test_this_machines_memory_is_what_psutil_says(monkeypatch: pytest.MonkeyPatch) -> None:
    # psutil does not look at control groups.
    monkeypatch.setattr(limits, "_cgroup_folders", lambda _controller: ())
    assert available_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.5)


def test_a_control_group_only_takes_memory_away() -> None:
    assert 0 < available_memory() <= psutil.virtual_memory().total


def test_without_a_description_of_the_memory_there_is_none(files: Files) -> None:
    assert available_memory() == 0


def test_the_addresses_that_are_left_are_the_limit_less_what_the_process_has(files: Files) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    assert address_space_left() is None
    files["/proc/self/limits"] = LIMITS.format(1000 * MIB, "unlimited")
    assert address_space_left() == 1000 * MIB
    files["/proc/self/statm"] = "7 5 5 1 0 1 0\n"
    assert address_space_left() == 1000 * MIB - 7 * page
    files["/proc/self/limits"] = LIMITS.format("unlimited", "unlimited")
    assert address_space_left() is None


def test_a_process_with_a_limit_of_addresses_knows_what_is_left(fresh: Fresh) -> None:
    code = """
import resource
from firstvec.machine.limits import address_space_left
assert address_space_left() is None
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
left = address_space_left()
taken = bytearray(256 << 20)
print(3 << 30 < left < 4 << 30, 250 << 20 < left - address_space_left() < 262 << 20)
"""
    assert fresh(code).stdout == "True True\n"


def test_on_other_systems_half_of_the_memory_is_the_guess(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PAGE_SIZE": 16384, "SC_PHYS_PAGES": 1 << 20}
    with monkeypatch.context() as mac:
        mac.setattr(sys, "platform", "darwin")
        mac.setattr(os, "sysconf", sizes.__getitem__)
        assert available_memory() == 8 << 30
        mac.delattr(os, "sched_getaffinity")
        mac.setattr(os, "cpu_count", lambda: 10)
        assert usable_cores() == 10
        mac.setattr(os, "cpu_count", lambda: None)
        assert usable_cores() == 1
