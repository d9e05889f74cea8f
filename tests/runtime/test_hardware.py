"""What the machine is, read from system files of machines that are not this one, and of this one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest

from firstvec import hardware
from firstvec.hardware import ResourceProfile, is_ssd, usable_cpus
from firstvec.manifest import ISAS
from tests.conftest import Fresh

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's system files")
pytestmark = linux

Files = dict[str, str]

ENGINES = ("numpy", "onnxruntime", "tokenizers", "torch", "psutil")

MEMINFO = "MemTotal:        8000000 kB\nMemFree:          100000 kB\nMemAvailable:    4194304 kB\nBuffers:  1 kB\n"

FLAGS = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr sse sse2 ht syscall nx lm ssse3 fma sse4_1 sse4_2 avx f16c"


def cpuinfo(flags: str) -> str:
    """Two processors of /proc/cpuinfo, with lines that look like flags and are not."""
    other = "vmx flags\t: vnmi avx2 avx512_vnni\n"
    processor = f"vendor_id\t: GenuineIntel\nfpu\t\t: yes\n{other}flags\t\t: {flags}\n{other}\n"
    return "".join(f"processor\t: {number}\n{processor}" for number in range(2))


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_known", {})


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    """The system files that are there: none, until a test adds some."""
    there: Files = {}
    monkeypatch.setattr(hardware, "_read", lambda path, size=1 << 16: there.get(path, "")[:size])
    return there


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set how many cores the process's affinity allows."""

    def allow(count: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(count)))

    return allow


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[str]], None]:
    """Set which GPUs the NVIDIA driver lists."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    listdir = os.listdir

    def install(names: Iterable[str]) -> None:
        found = list(names)
        monkeypatch.setattr(
            os, "listdir", lambda path=".": found if path == "/proc/driver/nvidia/gpus" else listdir(path)
        )

    return install


def site(folder: Path, *distributions: str, torch: str | None = None) -> str:
    """A site folder in which those distributions are installed, and a torch with that ``version.py``."""
    folder.mkdir(exist_ok=True)
    for distribution in distributions:
        (folder / f"{distribution}.dist-info").mkdir()
    if torch is not None:
        (folder / "torch").mkdir()
        (folder / "torch" / "version.py").write_text(torch, "utf-8")
    return str(folder)


# --- Cores -----------------------------------------------------------------------------------------------------------

V2 = "0::/user.slice/app.scope/inner\n"
V2_ROOT = "/sys/fs/cgroup"
V1 = "12:memory:/docker/1\n5:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n"
V1_ROOT = "/sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize("count", [1, 2, 7, 256])
def test_without_a_quota_the_affinity_counts(files: Files, cores: Callable[[int], None], count: int) -> None:
    cores(count)
    assert usable_cpus() == count


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
    files: Files, cores: Callable[[int], None], group: str, quota: str, expected: int
) -> None:
    cores(8)
    files |= {"/proc/self/cgroup": V2, f"{V2_ROOT}{group}/cpu.max": f"{quota}\n"}
    assert usable_cpus() == expected


@pytest.mark.parametrize(
    ("inner", "middle", "outer", "expected"),
    [(4, 2, 6, 2), (2, 4, 6, 2), (6, 4, 2, 2), (None, 3, None, 3), (None, None, 5, 5), (None, None, None, 8)],
)
def test_the_smallest_quota_of_the_nested_groups_wins(
    files: Files, cores: Callable[[int], None], inner: int | None, middle: int | None, outer: int | None, expected: int
) -> None:
    cores(8)
    files["/proc/self/cgroup"] = V2
    groups = ("/user.slice/app.scope/inner", "/user.slice/app.scope", "/user.slice")
    for group, count in zip(groups, (inner, middle, outer), strict=True):
        files[f"{V2_ROOT}{group}/cpu.max"] = f"{count * 100_000 if count else 'max'} 100000\n"
    assert usable_cpus() == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("-1", "100000", 8), ("300000", "100000", 3), ("250000", "100000", 3), ("1000", "100000", 1), ("x", "y", 8)],
)
@pytest.mark.parametrize("group", ["/docker/1", "/docker", ""])
def test_a_version_1_quota_counts(
    files: Files, cores: Callable[[int], None], group: str, quota: str, period: str, expected: int
) -> None:
    cores(8)
    files |= {
        "/proc/self/cgroup": V1,
        f"{V1_ROOT}{group}/cpu.cfs_quota_us": f"{quota}\n",
        f"{V1_ROOT}{group}/cpu.cfs_period_us": f"{period}\n",
    }
    assert usable_cpus() == expected


def test_a_quota_of_another_group_does_not_count(files: Files, cores: Callable[[int], None]) -> None:
    cores(8)
    files |= {
        "/proc/self/cgroup": V2,
        f"{V2_ROOT}/user.slice/other.scope/cpu.max": "100000 100000",
        f"{V2_ROOT}/user.slice/app.scope/inner/deeper/cpu.max": "100000 100000",
    }
    assert usable_cpus() == 8


def test_the_affinity_wins_over_a_larger_quota(files: Files, cores: Callable[[int], None]) -> None:
    cores(3)
    files |= {"/proc/self/cgroup": V2, f"{V2_ROOT}/user.slice/cpu.max": "1600000 100000"}
    assert usable_cpus() == 3


def test_a_hybrid_hierarchy_counts_both(files: Files, cores: Callable[[int], None]) -> None:
    cores(8)
    files |= {
        "/proc/self/cgroup": f"{V1}{V2}",
        f"{V1_ROOT}/docker/cpu.cfs_quota_us": "500000",
        f"{V1_ROOT}/docker/cpu.cfs_period_us": "100000",
        f"{V2_ROOT}/user.slice/cpu.max": "400000 100000",
    }
    assert usable_cpus() == 4


def test_a_group_whose_name_holds_a_colon_is_read(files: Files, cores: Callable[[int], None]) -> None:
    cores(8)
    files |= {"/proc/self/cgroup": "0::/cri-containerd:1:2\n", f"{V2_ROOT}/cri-containerd:1:2/cpu.max": "200000 100000"}
    assert usable_cpus() == 2


def test_this_machine_has_no_more_cores_than_its_affinity() -> None:
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))
    assert ResourceProfile.detect().cpu_count == usable_cpus()


def test_a_process_bound_to_one_core_has_one(fresh: Fresh) -> None:
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from firstvec.hardware import usable_cpus
print(usable_cpus())
"""
    assert fresh(code).stdout == "1\n"


# --- Memory ----------------------------------------------------------------------------------------------------------

MIB = 1 << 20


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
    assert ResourceProfile.detect().available_memory_mb == expected_mb


def test_page_cache_of_a_group_counts_as_free(files: Files) -> None:
    statistics = f"anon {100 * MIB}\nfile {90 * MIB}\nactive_file {50 * MIB}\ninactive_file {30 * MIB}\n"
    files |= {"/proc/self/cgroup": "0::/a\n", "/proc/meminfo": MEMINFO, "/sys/fs/cgroup/a/memory.stat": statistics}
    files |= {"/sys/fs/cgroup/a/memory.max": f"{256 * MIB}\n", "/sys/fs/cgroup/a/memory.current": f"{200 * MIB}\n"}
    assert ResourceProfile.detect().available_memory_mb == 56 + 80


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
    assert ResourceProfile.detect().available_memory_mb == 56 + 10


LIMITS = (
    "Limit                     Soft Limit           Hard Limit           Units\nMax address space         {} {} bytes\n"
)


@pytest.mark.parametrize(
    ("limit", "expected_mb"),
    [("unlimited", 4096), (str(1000 * MIB), 1000 - 100 - 192), (str(50 * MIB), 1), ("x", 4096)],
)
def test_what_is_left_of_the_address_space_counts(files: Files, limit: str, expected_mb: int) -> None:
    pages = 100 * MIB // os.sysconf("SC_PAGE_SIZE")
    files |= {"/proc/meminfo": MEMINFO, "/proc/self/statm": f"{pages} 5 5 1 0 1 0\n"}
    files["/proc/self/limits"] = LIMITS.format(limit, limit)
    assert ResourceProfile.detect().available_memory_mb == expected_mb


@pytest.mark.parametrize("group", ["/docker/1", "/docker", ""])
@pytest.mark.parametrize(("limit", "expected_mb"), [(1000 * MIB, 600), (9_223_372_036_854_771_712, 4096)])
def test_version_1_memory_limits_count(files: Files, group: str, limit: int, expected_mb: int) -> None:
    files |= {
        "/proc/self/cgroup": V1,
        "/proc/meminfo": MEMINFO,
        f"/sys/fs/cgroup/memory{group}/memory.limit_in_bytes": f"{limit}\n",
        f"/sys/fs/cgroup/memory{group}/memory.usage_in_bytes": f"{400 * MIB}\n",
    }
    assert ResourceProfile.detect().available_memory_mb == expected_mb


@pytest.mark.parametrize(
    ("available_mb", "expected"), [(0, 8), (1000, 8), (2048, 8), (2049, 32), (8192, 32), (8193, 64), (500_000, 64)]
)
def test_the_batch_size_follows_the_memory(files: Files, available_mb: int, expected: int) -> None:
    files["/proc/meminfo"] = f"MemTotal: 1 kB\nMemAvailable: {available_mb * 1024} kB\n"
    assert ResourceProfile.detect().recommended_batch_size == expected


def test_this_machines_memory_is_what_psutil_says(monkeypatch: pytest.MonkeyPatch) -> None:
    # psutil knows nothing of control groups.
    monkeypatch.setattr(hardware, "_cgroup_folders", lambda _controller: ())
    measured = ResourceProfile.detect().available_memory_mb
    assert measured == pytest.approx(psutil.virtual_memory().available / MIB, rel=0.5)


def test_a_control_group_only_takes_memory_away() -> None:
    assert 0 < ResourceProfile.detect().available_memory_mb <= psutil.virtual_memory().total / MIB


# --- Instruction sets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", FLAGS, ()),
        ("x86_64", f"{FLAGS} avx2 bmi2", ("avx2",)),
        ("x86_64", f"{FLAGS} avx2 avx512f avx512bw avx512vl", ("avx2",)),
        ("x86_64", f"{FLAGS} avx2 avx512f avx512_vnni amx_tile", ("avx2", "avx512_vnni")),
        ("x86_64", f"avx512_vnni {FLAGS} avx2", ("avx2", "avx512_vnni")),
        ("x86_64", f"{FLAGS} avx2 avx_vnni", ("avx2",)),
        ("x86_64", f"{FLAGS} xavx2 avx2x avx512_vnni2", ()),
        ("AMD64", f"{FLAGS} avx2", ("avx2",)),
        ("x86_64", "", ()),
        ("riscv64", f"{FLAGS} avx2", ()),
        ("ppc64le", "", ()),
        ("unknown", "", ()),
    ],
)
def test_the_instruction_sets_are_read_from_the_cpus_flags(
    files: Files, monkeypatch: pytest.MonkeyPatch, machine: str, flags: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(hardware, "_machine", lambda: machine)
    files["/proc/cpuinfo"] = cpuinfo(flags)
    profile = ResourceProfile.detect()
    assert profile.isa == expected
    assert profile.machine == machine


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "ARM64"])
def test_64_bit_arm_is_known_by_its_name(files: Files, monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr(hardware, "_machine", lambda: machine)
    files["/proc/cpuinfo"] = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n"
    assert ResourceProfile.detect().isa == ("arm64",)


def test_an_unreadable_cpuinfo_claims_nothing(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_machine", lambda: "x86_64")
    assert ResourceProfile.detect().isa == ()


def test_the_flags_lie_within_what_is_read_on_a_machine_of_many_cores(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_machine", lambda: "x86_64")
    every = " ".join(f"some_other_flag_{number}" for number in range(200))
    files["/proc/cpuinfo"] = cpuinfo(f"{every} avx2 avx512_vnni") * 256
    assert ResourceProfile.detect().isa == ("avx2", "avx512_vnni")


def test_this_machines_instruction_sets_are_those_of_its_cpuinfo() -> None:
    isa = ResourceProfile.detect().isa
    assert set(isa) <= set(ISAS)
    flags = Path("/proc/cpuinfo").read_text("utf-8").split()
    assert ("avx2" in isa) == ("avx2" in flags)
    assert ("avx512_vnni" in isa) == ("avx512_vnni" in flags)


# --- Accelerators ----------------------------------------------------------------------------------------------------

CUDA_TORCH = (
    "from typing import Optional\n__all__ = ['cuda']\ndebug = False\ncuda: Optional[str] = '13.0'\nhip = None\n"
)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, True),
        ("0", True),
        ("0,1", True),
        (" 1 ", True),
        ("0,-1", True),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", True),
        ("", False),
        (" ", False),
        ("-1", False),
        (" -1 ", False),
        # CUDA C++ Programming Guide, environment variables: devices behind an invalid index are not visible.
        ("-1,0", False),
        ("NoDevFiles", False),
    ],
)
def test_cuda_is_hidden_by_cuda_visible_devices(
    monkeypatch: pytest.MonkeyPatch, gpus: Callable[[Iterable[str]], None], visible: str | None, expected: bool
) -> None:
    gpus(["0000:01:00.0"])
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert ResourceProfile.detect().has_cuda is expected


def test_a_driver_without_a_gpu_is_no_cuda(gpus: Callable[[Iterable[str]], None]) -> None:
    gpus([])
    assert ResourceProfile.detect().has_cuda is False


@pytest.mark.parametrize(
    ("torch", "has_gpu", "expected"),
    [
        (CUDA_TORCH, True, "cuda"),
        ("cuda = '12.4'\n", True, "cuda"),
        (CUDA_TORCH, False, "cpu"),
        (CUDA_TORCH.replace("'13.0'", "None"), True, "cpu"),
        ("cuda = None\n", True, "cpu"),
        ("", True, "cpu"),
        (None, True, "cpu"),
    ],
)
def test_cuda_is_recommended_with_a_gpu_and_a_torch_that_was_built_for_it(
    monkeypatch: pytest.MonkeyPatch,
    gpus: Callable[[Iterable[str]], None],
    tmp_path: Path,
    torch: str | None,
    has_gpu: bool,
    expected: str,
) -> None:
    gpus(["0000:01:00.0"] if has_gpu else [])
    monkeypatch.setattr(sys, "path", [site(tmp_path / "site", torch=torch)])
    profile = ResourceProfile.detect()
    assert profile.recommended_device == expected
    assert profile.has_cuda is has_gpu


def test_the_torch_that_counts_is_the_one_that_would_be_imported(
    monkeypatch: pytest.MonkeyPatch, gpus: Callable[[Iterable[str]], None], tmp_path: Path
) -> None:
    gpus(["0000:01:00.0"])
    first = site(tmp_path / "first", torch="cuda = None\n")
    second = site(tmp_path / "second", torch=CUDA_TORCH)
    monkeypatch.setattr(sys, "path", [first, second])
    assert ResourceProfile.detect().recommended_device == "cpu"
    monkeypatch.setattr(sys, "path", [second, first])
    assert ResourceProfile.detect().recommended_device == "cuda"


def test_a_torch_in_the_current_folder_counts_where_python_would_import_it(
    monkeypatch: pytest.MonkeyPatch, gpus: Callable[[Iterable[str]], None], tmp_path: Path
) -> None:
    gpus(["0000:01:00.0"])
    monkeypatch.chdir(site(tmp_path / "site", torch=CUDA_TORCH))
    monkeypatch.setattr(sys, "path", [""])
    assert ResourceProfile.detect().recommended_device == "cuda"


@pytest.mark.parametrize(
    ("machine", "torch", "has_mps", "device"),
    [("arm64", "cuda = None\n", True, "mps"), ("arm64", None, True, "cpu"), ("x86_64", "cuda = None\n", False, "cpu")],
)
def test_apple_silicon_has_mps_and_it_is_recommended_with_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, torch: str | None, has_mps: bool, device: str
) -> None:
    folder = site(tmp_path / "site", torch=torch)
    with monkeypatch.context() as mac:
        mac.setattr(hardware, "_machine", lambda: machine)
        mac.setattr(hardware, "_isa_darwin", lambda: ())
        mac.setattr(sys, "path", [folder])
        mac.setattr(sys, "platform", "darwin")
        profile = ResourceProfile.detect()
        profile.to_dict()
    assert (profile.has_mps, profile.recommended_device) == (has_mps, device)
    assert profile.available_memory_mb > 0


# --- Engines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distributions", "expected"),
    [
        ([], {"onnxruntime": None, "tokenizers": None, "torch": None}),
        (
            ["onnxruntime-1.32.0", "tokenizers-0.23.2", "torch-2.13.0+cpu"],
            {"onnxruntime": "1.32.0", "tokenizers": "0.23.2", "torch": "2.13.0+cpu"},
        ),
        (["onnxruntime_gpu-1.24.1"], {"onnxruntime": "1.24.1"}),
        (["onnxruntime_directml-1.23.0"], {"onnxruntime": "1.23.0"}),
        (["onnxruntime_openvino-1.23.0"], {"onnxruntime": "1.23.0"}),
        (["Torch-2.13.0"], {"torch": "2.13.0"}),
        (["torch-2.14.0.dev20260101+cu130"], {"torch": "2.14.0.dev20260101+cu130"}),
        (
            ["torchvision-0.2", "torch_geometric-2.6", "onnxruntime_genai-0.9", "sentencepiece-0.2", "~orch-2.0"],
            {"onnxruntime": None, "tokenizers": None, "torch": None},
        ),
    ],
)
def test_engines_are_known_by_their_dist_info_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, distributions: list[str], expected: dict[str, str | None]
) -> None:
    monkeypatch.setattr(sys, "path", [site(tmp_path / "site", *distributions)])
    profile = ResourceProfile.detect()
    assert [engine for engine, _ in profile.engines] == ["onnxruntime", "tokenizers", "torch"]
    assert {engine: profile.engine_version(engine) for engine in expected} == expected


def test_a_package_that_is_installed_while_the_process_runs_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = site(tmp_path / "site", "torch-2.13.0")
    monkeypatch.setattr(sys, "path", [folder])
    assert ResourceProfile.detect().engine_version("onnxruntime") is None
    (tmp_path / "site" / "onnxruntime-1.32.0.dist-info").mkdir()
    assert ResourceProfile.detect().engine_version("onnxruntime") == "1.32.0"
    monkeypatch.setattr(sys, "path", [])
    assert ResourceProfile.detect().engine_version("torch") is None


def test_cores_memory_and_storage_are_looked_up_when_they_are_asked_for(
    files: Files, cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    inner = hardware._read
    monkeypatch.setattr(hardware, "_read", lambda path, size=1 << 16: read.append(path) or inner(path, size))
    files["/proc/meminfo"] = "MemAvailable:    3000000 kB\n"
    cores(3)
    profile = ResourceProfile.detect()
    assert "/proc/meminfo" not in read
    assert (profile.cpu_count, profile.recommended_batch_size) == (3, 32)
    assert "/proc/meminfo" in read
    files["/proc/meminfo"] = "MemAvailable:    30000000 kB\n"
    cores(5)
    assert (profile.cpu_count, profile.recommended_batch_size) == (3, 32)  # a profile does not change
    assert (ResourceProfile.detect().cpu_count, ResourceProfile.detect().recommended_batch_size) == (5, 64)


@pytest.mark.parametrize(
    ("change", "other"),
    [
        (("cpu MHz\t\t: 2596.1", "cpu MHz\t\t: 3100.0"), False),
        (("processor\t: 0", "processor\t: 7"), False),
        (("avx2", "avx2 avx512_vnni"), True),
        (("stepping\t: 1", "stepping\t: 2"), True),
        (("model name\t: EPYC", "model name\t: Xeon"), True),
    ],
)
def test_processors_are_told_apart_by_model_stepping_and_features(
    change: tuple[str, str], other: bool, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "processor\t: 0\nvendor_id\t: AMD\nmodel name\t: EPYC\nstepping\t: 1\ncpu MHz\t\t: 2596.1\n"
        "flags\t\t: sse avx2\n\nprocessor\t: 1\n"
    )
    files["/proc/cpuinfo"] = text
    first = hardware.cpu_identity()
    assert len(first) == 8
    assert change[0] in text
    files["/proc/cpuinfo"] = text.replace(*change)
    monkeypatch.setattr(hardware, "_known", {})
    assert (hardware.cpu_identity() != first) is other


def test_the_first_of_two_installations_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = [site(tmp_path / "a", "torch-2.12.0"), site(tmp_path / "b", "torch-2.13.0", "tokenizers-0.23")]
    monkeypatch.setattr(sys, "path", folders)
    assert ResourceProfile.detect().engines == (("onnxruntime", None), ("tokenizers", "0.23"), ("torch", "2.12.0"))


def test_entries_of_the_import_path_that_are_no_folders_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "archive.zip").write_bytes(b"PK")
    folder = site(tmp_path / "site", "torch-2.13.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "missing"), str(tmp_path / "archive.zip"), "", folder])
    assert ResourceProfile.detect().engine_version("torch") == "2.13.0"


def test_an_unknown_engine_has_no_version() -> None:
    assert ResourceProfile.detect().engine_version("tensorflow") is None


@pytest.mark.parametrize("engine", ["onnxruntime", "tokenizers", "torch"])
def test_the_engines_of_this_environment_have_the_versions_of_their_metadata(engine: str) -> None:
    assert ResourceProfile.detect().engine_version(engine) == version(engine)


@pytest.mark.parametrize("loaded", [False, True])
def test_torch_is_loaded_when_it_was_imported(monkeypatch: pytest.MonkeyPatch, loaded: bool) -> None:
    if loaded:
        monkeypatch.setitem(sys.modules, "torch", sys)
    else:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert ResourceProfile.detect().torch_loaded is loaded


# --- Storage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rotational", "expected"), [("0\n", True), ("1\n", False), (None, None)])
@pytest.mark.parametrize("level", ["", "/.."], ids=["disk", "partition"])
def test_storage_is_solid_state_when_its_queue_is_not_rotational(
    files: Files, tmp_path: Path, level: str, rotational: str | None, expected: bool | None
) -> None:
    device = tmp_path.stat().st_dev
    if rotational is not None:
        files[f"/sys/dev/block/{os.major(device)}:{os.minor(device)}{level}/queue/rotational"] = rotational
    assert is_ssd(str(tmp_path)) is expected


def test_storage_of_a_path_that_is_not_there_is_unknown(tmp_path: Path) -> None:
    assert is_ssd(str(tmp_path / "missing")) is None


def test_storage_that_is_no_block_device_is_unknown() -> None:
    assert is_ssd("/proc") is None


# --- The whole record ------------------------------------------------------------------------------------------------


def test_detect_gives_a_full_record() -> None:
    profile = ResourceProfile.detect()
    kinds: dict[str, Any] = {
        "machine": str,
        "cpu_count": int,
        "isa": tuple,
        "has_cuda": bool,
        "has_mps": bool,
        "available_memory_mb": float,
        "is_ssd": bool | None,
        "recommended_batch_size": int,
        "recommended_device": str,
        "engines": tuple,
        "torch_loaded": bool,
    }
    values = profile.to_dict()
    assert values.keys() == kinds.keys()
    assert all(isinstance(value, kinds[name]) for name, value in values.items())
    assert profile.machine == os.uname().machine
    assert profile.recommended_device in ("cpu", "cuda")
    assert profile == ResourceProfile(**values)
    assert hash(profile) == hash(ResourceProfile(**values))


def test_detect_imports_no_engine(fresh: Fresh) -> None:
    code = """
import json, sys
from firstvec import ResourceProfile
profile = ResourceProfile.detect()
print(json.dumps([sorted(set(sys.argv[1:]) & {name.partition(".")[0] for name in sys.modules}), profile.to_dict()]))
"""
    imported, profile = json.loads(fresh(code, *ENGINES).stdout)
    assert imported == []
    assert profile["torch_loaded"] is False
    assert dict(profile["engines"])["onnxruntime"] == version("onnxruntime")


def test_detect_writes_nothing_and_opens_no_socket(fresh: Fresh, tmp_path: Path) -> None:
    code = """
import os, sys
from firstvec import ResourceProfile
os.chdir(sys.argv[1])
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.utime", "os.link", "os.symlink",
           "os.chmod", "os.chown", "subprocess.Popen", "os.system", "os.fork", "os.exec", "os.posix_spawn"}
seen = []
def watch(event, arguments):
    if event == "open":
        seen.append("read")
        if arguments[2] & WRITES:
            print("writes", arguments)
    elif event in CHANGES or event.startswith("socket."):
        print(event, arguments)
ResourceProfile.detect
sys.addaudithook(watch)
ResourceProfile.detect()
print(len(seen) > 0)
"""
    environment = {"HOME": str(tmp_path), "FIRSTVEC_CACHE": str(tmp_path / "c"), "FIRSTVEC_HOME": str(tmp_path / "h")}
    assert fresh(code, tmp_path, **environment).stdout == "True\n"
    assert list(tmp_path.iterdir()) == []


def test_detect_never_raises_when_nothing_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as locked:
        for name in ("open", "stat", "listdir", "scandir", "lstat"):
            locked.setattr(os, name, refuse)
        profile = ResourceProfile.detect()
        profile.to_dict()  # some of it is looked up only now
    assert profile.cpu_count == len(os.sched_getaffinity(0))
    assert profile.available_memory_mb == 0.0
    assert profile.recommended_batch_size == 8
    assert (profile.has_cuda, profile.is_ssd, profile.recommended_device) == (False, None, "cpu")
    assert profile.engines == (("onnxruntime", None), ("tokenizers", None), ("torch", None))
    assert profile.isa == (("arm64",) if profile.machine in ("aarch64", "arm64") else ())


@pytest.mark.parametrize("content", ["\n", "\ufffd" * 100, ":", "0", "max max\n", "a:b:c\n0::\n::::\n", "-1 -1"])
def test_detect_never_raises_on_system_files_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(hardware, "_read", lambda _path, _size=0: content)
    profile = ResourceProfile.detect()
    assert profile.cpu_count >= 1
    assert profile.available_memory_mb >= 0


def test_a_system_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc\xff\ndef")
    assert hardware._read(str(tmp_path / "file")) == "abc\ufffd\ndef"
    assert hardware._read(str(tmp_path / "file"), 2) == "ab"


@pytest.mark.parametrize("place", [".", "missing"])
def test_what_is_no_readable_file_reads_as_nothing(tmp_path: Path, place: str) -> None:
    assert hardware._read(str(tmp_path / place)) == ""


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "x86_64, avx2, 4 cores"),
        ({"isa": ("avx2", "avx512_vnni"), "has_cuda": True}, "x86_64, avx2+avx512_vnni, 4 cores, cuda"),
        ({"isa": ("arm64",), "machine": "arm64", "has_mps": True}, "arm64, arm64, 4 cores, mps"),
        ({"isa": ()}, "x86_64, no known vector extension, 4 cores"),
    ],
)
def test_a_profile_reads_as_one_short_line(changes: dict[str, Any], text: str) -> None:
    profile = ResourceProfile.detect().replace(
        **{"machine": "x86_64", "isa": ("avx2",), "cpu_count": 4, "has_cuda": False, "has_mps": False, **changes}
    )
    assert str(profile) == text
