"""What this machine is: cores, memory, instruction sets, storage, accelerators and engines, without importing any.

Linux is read from ``/proc``, ``/sys`` and the control-group files; macOS and Windows from their own calls through
ctypes. What a platform does not tell is the cautious value: an instruction set that cannot be seen is not used.
"""

from __future__ import annotations

import os
import sys

from firstvec.record import Late, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

ENGINE_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime_gpu", "onnxruntime_directml", "onnxruntime_openvino"),
    "tokenizers": ("tokenizers",),
    "torch": ("torch",),
}
"""Engine → the distributions that provide its import package."""

_X86_FLAGS = {"avx2": "avx2", "avx512_vnni": "avx512_vnni"}
_IDENTITY = frozenset(
    (
        *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),  # x86-64
        *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),  # Arm
    )
)
"""Lines of ``/proc/cpuinfo``; the others change from core to core, or while the machine runs."""


class ResourceProfile(Record):
    """A machine, as far as choosing and running an artifact needs to know it.

    Cores, memory, storage and engines are looked up when they are first asked for; a profile does not change then.
    """

    machine: str
    """Processor family as ``platform.machine()`` spells it, for example ``x86_64`` or ``arm64``."""
    cpu_count: int = Late(lambda _: usable_cpus())  # type: ignore[assignment]
    """Cores this process may use: the smaller of its affinity and its control group's quota, rounded up."""
    isa: tuple[str, ...]
    """The instruction sets that matter here and that the CPU has, of `firstvec.manifest.ISAS`."""
    has_cuda: bool
    """Whether an NVIDIA driver and a device are there and not hidden by CUDA_VISIBLE_DEVICES."""
    has_mps: bool
    """Whether this is an Apple-silicon Mac."""
    available_memory_mb: float = Late(lambda _: round(_available_memory() / (1 << 20), 1))  # type: ignore[assignment]
    """Memory that can still be used, in 2^20 bytes: the smallest of the system's, the control groups' and what the
    limit of the process's address space leaves; 0.0 where the system does not tell."""
    is_ssd: bool | None = Late(lambda _: is_ssd(os.curdir))  # type: ignore[assignment]
    """Whether the current folder's storage is not rotational; None where the system does not tell."""
    recommended_batch_size: int = Late(lambda profile: _batch_size(profile.available_memory_mb))  # type: ignore[assignment]
    recommended_device: str
    """``cuda`` or ``mps`` where a torch that can use it is installed, else ``cpu``."""
    engines: tuple[tuple[str, str | None], ...] = Late(lambda _: _engines()[1])  # type: ignore[assignment]
    """Engine → installed version, or None; see `engine_version`."""
    torch_loaded: bool
    """Whether this process has imported torch already."""

    @classmethod
    def detect(cls) -> ResourceProfile:
        """Return the profile of this machine and process. Imports no engine, writes nothing, never raises."""
        has_cuda = _has_cuda()
        machine = _machine()
        has_mps = sys.platform == "darwin" and machine == "arm64"
        device = "cpu"
        if (has_cuda or has_mps) and (torch_folder := _engines()[0]):
            device = "cuda" if has_cuda and _torch_has_cuda(torch_folder) else "mps" if has_mps else "cpu"
        return cls(
            machine=machine,
            isa=_isa(),
            has_cuda=has_cuda,
            has_mps=has_mps,
            recommended_device=device,
            torch_loaded="torch" in sys.modules,
        )

    def engine_version(self, engine: str) -> str | None:
        """The installed version of ``engine``, or None."""
        return dict(self.engines).get(engine)

    def __str__(self) -> str:
        parts = [
            self.machine,
            "+".join(self.isa) or "no known vector extension",
            f"{self.cpu_count} core{'s' if self.cpu_count != 1 else ''}",
        ]
        return ", ".join([*parts, *(name for name in ("cuda", "mps") if getattr(self, f"has_{name}"))])


def _batch_size(memory_mb: float) -> int:
    return 64 if memory_mb > 8192 else 32 if memory_mb > 2048 else 8


def usable_cpus() -> int:
    """How many cores this process may use, at least 1: min(affinity, quota rounded up)."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    for folder in _cgroup_folders("cpu"):
        if (quota := _quota(folder)) is not None:
            count = min(count, max(1, -(-quota[0] // quota[1])))
    return max(1, count)


def is_ssd(path: str) -> bool | None:
    """Whether the storage that holds ``path`` is not rotational; None where the system does not tell.

    Linux only, from ``/sys/dev/block`` (Documentation/ABI/stable/sysfs-block, ``queue/rotational``). A partition has
    no queue of its own; its disk's is one folder up.
    """
    try:
        device = os.stat(path).st_dev
        block = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    except (OSError, AttributeError):
        return None
    for folder in (block, f"{block}/.."):
        if text := _read(f"{folder}/queue/rotational"):
            return text.strip() == "0"
    return None


def _machine() -> str:
    if hasattr(os, "uname"):
        return os.uname().machine
    return os.environ.get("PROCESSOR_ARCHITECTURE", "unknown").lower()


_known: dict[Any, Any] = {}
"""What does not change while a process runs, or is known under a key that changes with it."""


def _processor() -> str:
    """Linux's description of the first processor."""
    text: str = _known.get("processor", "")
    if not text:  # not read yet, or not readable then: too many files were open
        # Short even on a machine of 256 cores.
        text = _known["processor"] = _read("/proc/cpuinfo", 8192).partition("\n\n")[0]
    return text


def _isa() -> tuple[str, ...]:
    isa: tuple[str, ...] = _known.get("isa", ())
    if not isa:
        isa = _known["isa"] = _find_isa()
    return isa


def _find_isa() -> tuple[str, ...]:
    machine = _machine().lower()
    if machine in ("arm64", "aarch64"):
        return ("arm64",)
    if machine not in ("x86_64", "amd64", "i686", "i386"):
        return ()
    if sys.platform == "linux":
        flags = set(_processor().partition("\nflags")[2].partition("\n")[0].partition(":")[2].split())
        return tuple(isa for isa, flag in _X86_FLAGS.items() if flag in flags)
    return _isa_darwin() if sys.platform == "darwin" else _isa_windows()


def cpu_identity() -> str:
    """Eight hexadecimal digits that differ between processors of another model, stepping or set of features."""
    from binascii import crc32

    if sys.platform == "linux":
        told = "\n".join(line for line in _processor().splitlines() if line.partition(":")[0].strip() in _IDENTITY)
    elif sys.platform == "darwin":
        told = _brand_darwin()
    else:
        told = os.environ.get("PROCESSOR_IDENTIFIER", "")
    return f"{crc32(f'{_machine()} {told}'.encode()):08x}"


def _brand_darwin() -> str:
    import ctypes

    text = ctypes.create_string_buffer(256)
    size = ctypes.c_size_t(len(text) - 1)
    ctypes.CDLL(None).sysctlbyname(b"machdep.cpu.brand_string", text, ctypes.byref(size), None, 0)
    return text.value.decode("utf-8", "replace")


def _isa_darwin() -> tuple[str, ...]:
    import ctypes

    libc = ctypes.CDLL(None)
    found = []
    for isa, name in (("avx2", b"hw.optional.avx2_0"), ("avx512_vnni", b"hw.optional.avx512vnni")):
        value, size = ctypes.c_int(0), ctypes.c_size_t(4)
        if libc.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0) == 0 and value.value:
            found.append(isa)
    return tuple(found)


def _isa_windows() -> tuple[str, ...]:
    import ctypes

    # PF_AVX2_INSTRUCTIONS_AVAILABLE (winnt.h). Windows does not tell about VNNI: not used there.
    kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    return ("avx2",) if kernel32.IsProcessorFeaturePresent(40) else ()


def _has_cuda() -> bool:
    # CUDA takes the listed devices up to the first that it cannot (CUDA Programming Guide, environment variables).
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not (first.isdecimal() or first.startswith(("GPU-", "MIG-"))):
        return False
    if sys.platform == "win32":
        return os.path.isfile(os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll"))
    # Native Linux lists its GPUs here; WSL 2 has no /proc/driver/nvidia but the one device.
    try:
        return bool(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return os.path.exists("/dev/dxg") and os.path.exists("/usr/lib/wsl/lib/libcuda.so.1")


def _engines() -> tuple[str | None, tuple[tuple[str, str | None], ...]]:
    """The folder of the torch package, if any, and engine → version from the names of ``*.dist-info`` folders.

    What was found counts until sys.path, or a folder of it, changes. The standard library's folders hold no packages.
    """
    key = tuple((entry, _changed(entry or os.curdir)) for entry in sys.path if entry not in _STANDARD_LIBRARY)
    found: tuple[str | None, tuple[tuple[str, str | None], ...]] | None = _known.get(key)
    if found is None or not any(version for _, version in found[1]):  # none, or none could be seen: as above
        found = _known[key] = _find_engines([entry for entry, _ in key])
    return found


_STANDARD_LIBRARY = frozenset((os.path.dirname(os.__file__), os.path.join(os.path.dirname(os.__file__), "lib-dynload")))


def _changed(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def _find_engines(folders: list[str]) -> tuple[str | None, tuple[tuple[str, str | None], ...]]:
    wanted = {dist: engine for engine, dists in ENGINE_DISTRIBUTIONS.items() for dist in dists}
    versions: dict[str, str | None] = dict.fromkeys(ENGINE_DISTRIBUTIONS)
    torch_folder = None
    for entry in folders:
        try:
            names = os.listdir(entry or os.curdir)
        except OSError:
            continue
        for name in [name for name in names if name.endswith(".dist-info")]:
            distribution, _, version = name[: -len(".dist-info")].rpartition("-")
            engine = wanted.get(distribution.lower())
            if engine and versions[engine] is None:
                versions[engine] = version
        folder = os.path.join(entry, "torch")
        if torch_folder is None and "torch" in names and os.path.isfile(os.path.join(folder, "version.py")):
            torch_folder = folder
    return torch_folder, tuple(versions.items())


def _torch_has_cuda(folder: str) -> bool:
    """Whether that torch was built for CUDA: ``cuda: Optional[str] = '13.0'`` in its version.py, None otherwise."""
    for line in _read(f"{folder}/version.py").splitlines():
        if line.startswith("cuda"):
            return not line.rstrip().endswith("None")
    return False


def _available_memory() -> int:
    """Bytes."""
    if sys.platform == "linux":
        available = 0
        for line in _read("/proc/meminfo").splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
                break
        for folder in _cgroup_folders("memory"):
            for limit_name, used_name in (
                ("memory.max", "memory.current"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            ):
                limit, used = _read(f"{folder}/{limit_name}").strip(), _read(f"{folder}/{used_name}").strip()
                if limit.isdecimal() and used.isdecimal() and int(limit) < available + int(used):
                    left = int(limit) - int(used) + _reclaimable(folder)
                    available = min(available, max(0, left))
        if (left_addresses := address_space_left()) is not None:
            available = min(available, max(1 << 20, left_addresses - _RESERVED))
        return available
    if sys.platform == "win32":
        import ctypes

        # GlobalMemoryStatusEx, MEMORYSTATUSEX: two DWORDs, then seven DWORDLONGs; the second is ullAvailPhys.
        status = (ctypes.c_ulonglong * 8)()
        status[0] = ctypes.sizeof(status)
        if ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status)):
            return int(status[2])
    try:
        # macOS tells only the total through sysconf; half of it is a cautious guess at what is free.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 4 << 30


_RESERVED = 192 << 20
"""Addresses that are reserved and not used: the stacks of threads, the arenas of malloc. Below that much (found by
trying, with 2 cores) libraries abort the process instead of failing."""


def address_space_left() -> int | None:
    """Bytes of addresses that this process may still take (``ulimit -v``); None without a limit."""
    limit = _read("/proc/self/limits").partition("Max address space")[2].split(maxsplit=1)[:1]
    if not limit or not limit[0].isdecimal():
        return None
    pages = _read("/proc/self/statm").split(maxsplit=1)[:1]
    return int(limit[0]) - (int(pages[0]) if pages and pages[0].isdecimal() else 0) * os.sysconf("SC_PAGE_SIZE")


def _reclaimable(folder: str) -> int:
    """Bytes of a control group's page cache, which counts as used and which the kernel drops when memory is wanted."""
    lines = _read(f"{folder}/memory.stat").splitlines()
    found = {name: value for name, _, value in (line.partition(" ") for line in lines)}

    def files(prefix: str) -> int:
        values = (found.get(f"{prefix}{kind}_file", "") for kind in ("active", "inactive"))
        return sum(int(value) for value in values if value.isdecimal())

    # Version 1 counts the groups below apart.
    return max(files(""), files("total_"))


def _cgroup_folders(controller: str) -> Iterable[str]:
    """The folders of this process's control group for ``controller`` and its ancestors, v2 and v1.

    A limit anywhere up the tree counts (cgroups(7)). In a container the group's path is often not visible inside,
    and the mount's root is the container's own group: then the ancestors of the path end there.
    """
    if sys.platform != "linux":
        return
    for line in _read("/proc/self/cgroup").splitlines():
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
    """(quota, period) in microseconds, or None without a limit."""
    fields = _read(f"{folder}/cpu.max").split()
    if not fields:
        fields = [_read(f"{folder}/cpu.cfs_quota_us").strip(), _read(f"{folder}/cpu.cfs_period_us").strip()]
    if len(fields) == 2 and all(field.isdecimal() and int(field) > 0 for field in fields):
        return int(fields[0]), int(fields[1])
    return None


def _read(path: str, size: int = 1 << 16) -> str:
    """The beginning of a small system file, or an empty string."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        return os.read(descriptor, size).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
