"""`ResourceProfile`: what choosing and running an artifact needs to know of this machine. No engine is imported."""

from __future__ import annotations

import os
import sys

from firstvec.engines.table import ENGINES
from firstvec.machine import native
from firstvec.record import Late, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# A load of firstvec's own engine needs neither of the two, and imports neither.


def _limits() -> Any:
    from firstvec.machine import limits

    return limits


def _processor() -> Any:
    from firstvec.machine import processor

    return processor


class ResourceProfile(Record):
    """A machine and a process. Cores, memory, storage and engines are looked up when they are first read."""

    machine: str
    """Processor family as ``platform.machine()`` spells it, for example ``x86_64`` or ``arm64``."""
    cpu_count: int = Late(lambda _: _limits().usable_cores())  # type: ignore[assignment]
    """See `firstvec.machine.limits.usable_cores`."""
    isa: tuple[str, ...] = Late(lambda _: _processor().instruction_sets())  # type: ignore[assignment]
    """The instruction sets of `firstvec.engines.table.INSTRUCTION_SETS` that the processor has."""
    has_cuda: bool
    """Whether an NVIDIA driver and a device are there, and CUDA_VISIBLE_DEVICES does not hide them."""
    has_mps: bool
    """Whether this is an Apple-silicon Mac."""
    available_memory_mb: float = Late(lambda _: round(_limits().available_memory() / (1 << 20), 1))  # type: ignore[assignment]
    """Memory that can still be used, in 2^20 bytes. The control groups and the limit of addresses count."""
    is_ssd: bool | None = Late(lambda _: is_ssd(os.curdir))  # type: ignore[assignment]
    """Of the current folder's storage: see `is_ssd`."""
    recommended_batch_size: int = Late(lambda profile: _batch_size(profile.available_memory_mb))  # type: ignore[assignment]
    """64 with more than 8 GB of memory, 32 with more than 4 GB, else 16: as the replaced loader's."""
    recommended_device: str
    """``cuda`` or ``mps`` where an engine that can use it is installed, else ``cpu``."""
    native_isa: str | None = Late(lambda _: native.instruction_set())  # type: ignore[assignment]
    """The instruction set of the kernels of firstvec's own engine. None: firstvec was installed without the engine."""
    engines: tuple[tuple[str, str | None], ...] = Late(lambda _: _installed()[0])  # type: ignore[assignment]
    """Engine → installed version, or None. See `engine_version`."""
    loaded_engines: tuple[str, ...]
    """Engines whose package this process has imported already."""

    @classmethod
    def detect(cls) -> ResourceProfile:
        """Return the profile of this machine and process. Imports no engine, writes nothing, never raises."""
        machine = os.uname().machine
        devices = {"cuda": _has_cuda(), "mps": sys.platform == "darwin" and machine == "arm64"}
        return cls(
            machine=machine,
            has_cuda=devices["cuda"],
            has_mps=devices["mps"],
            recommended_device=next((name for name, there in devices.items() if there and _can_use(name)), "cpu"),
            loaded_engines=tuple(name for name, engine in ENGINES.items() if engine.package in sys.modules),
        )

    def engine_version(self, engine: str) -> str | None:
        """Return the installed version of ``engine``, or None."""
        return dict(self.engines).get(engine)

    @staticmethod
    def _detect_ssd() -> bool:
        """Return False if the current folder's storage is rotational: the replaced loader's method."""
        return is_ssd(os.curdir) is not False

    def __str__(self) -> str:
        isa = "+".join(self.isa) or "no known vector extension"
        cores = f"{self.cpu_count} core{'s' if self.cpu_count != 1 else ''}"
        accelerators = (name for name in ("cuda", "mps") if getattr(self, f"has_{name}"))
        return ", ".join([self.machine, isa, cores, *accelerators])


def _batch_size(memory_mb: float) -> int:
    return 64 if memory_mb > 8192 else 32 if memory_mb > 4096 else 16


def is_ssd(path: str) -> bool | None:
    """Return whether the storage that holds ``path`` is not rotational. None where the system does not say.

    Linux says it in ``/sys/dev/block`` (Documentation/ABI/stable/sysfs-block). A partition has no queue of its own. The
    queue of its disk is one folder up.
    """
    try:
        device = os.stat(path).st_dev
        block = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    except OSError:
        return None
    from firstvec.machine.system_files import read_text

    text = read_text(f"{block}/queue/rotational") or read_text(f"{block}/../queue/rotational")
    return text.strip() == "0" if text else None


def _has_cuda() -> bool:
    # CUDA takes the listed devices up to the first that it cannot use (CUDA Programming Guide, environment variables).
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not (first.isdecimal() or first.startswith(("GPU-", "MIG-"))):
        return False
    # Native Linux lists its GPUs here. WSL 2 has no /proc/driver/nvidia, but this one device.
    try:
        return bool(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return os.path.exists("/dev/dxg") and os.path.exists("/usr/lib/wsl/lib/libcuda.so.1")


def _can_use(device: str) -> bool:
    """Return whether an installed engine was built for the device."""
    versions, folders = _installed()
    has = dict(versions)
    return any(
        device in engine.devices and has[name] and name in folders and engine.was_built_for(folders[name], device)
        for name, engine in ENGINES.items()
    )


Installed = tuple[tuple[tuple[str, "str | None"], ...], dict[str, str]]
"""Of each engine: its version, from the name of its ``*.dist-info`` folder, and the folder of its package."""

_known: dict[Any, Installed] = {}
"""What was found counts until ``sys.path``, or a folder of it, changes."""

_HOME = os.path.dirname(getattr(os, "__file__", ""))
# In a frozen app, the module os has no file, or lies among the packages, in no folder such as python3.11.
_STANDARD_LIBRARY = (_HOME, f"{_HOME}/lib-dynload") if os.path.basename(_HOME).startswith("python") else ()
"""These folders hold no packages."""


def _installed() -> Installed:
    key = tuple((entry, _modified(entry or os.curdir)) for entry in sys.path if entry not in _STANDARD_LIBRARY)
    # Nothing may have been found because too many files were open: the next call tries again.
    if key not in _known or not any(version for _, version in _known[key][0]):
        _known[key] = _find_installed([entry for entry, _ in key])
    return _known[key]


def _modified(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def _find_installed(entries: list[str]) -> Installed:
    # Two rows may have a distribution in common: two providers of onnxruntime, for example. The tokenizers package is
    # no engine, and its version is shown beside those of the engines.
    engines_of: dict[str, list[str]] = {"tokenizers": ["tokenizers"]}
    for engine, row in ENGINES.items():
        for distribution in row.distributions:
            engines_of.setdefault(distribution, []).append(engine)
    versions: dict[str, str | None] = dict.fromkeys((*ENGINES, "tokenizers"))
    versions["native"] = native.version()
    folders: dict[str, str] = {}
    for entry in entries:
        try:
            names = os.listdir(entry or os.curdir)
        except OSError:
            continue
        for name in names:
            if name.endswith(".dist-info"):
                distribution, _, version = name.removesuffix(".dist-info").rpartition("-")
                for engine in engines_of.get(distribution.lower(), ()):
                    versions[engine] = versions[engine] or version
        for engine, row in ENGINES.items():
            if row.package in names:
                folders.setdefault(engine, os.path.join(entry, row.package))
    return tuple(sorted(versions.items())), folders
