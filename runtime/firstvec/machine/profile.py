"""`ResourceProfile`: what choosing and running an artifact needs to know of this machine. No engine is imported."""

from __future__ import annotations

import os
import sys

from firstvec.engines.table import ENGINES
from firstvec.machine import processor
from firstvec.machine.limits import available_memory, usable_cores
from firstvec.machine.system_files import read_text
from firstvec.record import Late, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TOKENIZERS = ("tokenizers", ("tokenizers",))
"""A package that is no engine, whose version is shown beside those of the engines."""


class ResourceProfile(Record):
    """A machine and a process, as far as choosing and running an artifact needs to know them.

    Cores, memory, storage and engines are looked up when they are first read. Then they stay.
    """

    machine: str
    """Processor family as ``platform.machine()`` spells it, for example ``x86_64`` or ``arm64``."""
    cpu_count: int = Late(lambda _: usable_cores())  # type: ignore[assignment]
    """Cores that this process may use: the smaller of its affinity and its control group's quota, rounded up."""
    isa: tuple[str, ...]
    """The instruction sets of `firstvec.engines.table.INSTRUCTION_SETS` that the processor has."""
    has_cuda: bool
    """Whether an NVIDIA driver and a device are there, and CUDA_VISIBLE_DEVICES does not hide them."""
    has_mps: bool
    """Whether this is an Apple-silicon Mac."""
    available_memory_mb: float = Late(lambda _: round(available_memory() / (1 << 20), 1))  # type: ignore[assignment]
    """Memory that can still be used, in 2^20 bytes: the smallest of the system's, the control groups' and what the
    limit of the process's addresses leaves. 0.0 where the system does not say."""
    is_ssd: bool | None = Late(lambda _: is_ssd(os.curdir))  # type: ignore[assignment]
    """Whether the current folder's storage is not rotational. None where the system does not say."""
    recommended_batch_size: int = Late(lambda profile: _batch_size(profile.available_memory_mb))  # type: ignore[assignment]
    """64 with more than 8 GB of memory, 32 with more than 4 GB, else 16: as the replaced loader's."""
    recommended_device: str
    """``cuda`` or ``mps`` where an engine that can use it is installed, else ``cpu``."""
    engines: tuple[tuple[str, str | None], ...] = Late(lambda _: _installed().versions)  # type: ignore[assignment]
    """Engine → installed version, or None. See `engine_version`."""
    loaded_engines: tuple[str, ...]
    """Engines whose package this process has imported already."""

    @classmethod
    def detect(cls) -> ResourceProfile:
        """Return the profile of this machine and process. Imports no engine, writes nothing, never raises."""
        machine = processor.machine()
        devices = {"cuda": _has_cuda(), "mps": sys.platform == "darwin" and machine == "arm64"}
        return cls(
            machine=machine,
            isa=processor.instruction_sets(),
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
        parts = [
            self.machine,
            "+".join(self.isa) or "no known vector extension",
            f"{self.cpu_count} core{'s' if self.cpu_count != 1 else ''}",
        ]
        return ", ".join([*parts, *(name for name in ("cuda", "mps") if getattr(self, f"has_{name}"))])


def _batch_size(memory_mb: float) -> int:
    return 64 if memory_mb > 8192 else 32 if memory_mb > 4096 else 16


def is_ssd(path: str) -> bool | None:
    """Return whether the storage that holds ``path`` is not rotational. None where the system does not say.

    Linux only, from ``/sys/dev/block`` (Documentation/ABI/stable/sysfs-block, ``queue/rotational``). A partition has
    no queue of its own. The queue of its disk is one folder up.
    """
    try:
        device = os.stat(path).st_dev
        block = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    except (OSError, AttributeError):
        return None
    for folder in (block, f"{block}/.."):
        if text := read_text(f"{folder}/queue/rotational"):
            return text.strip() == "0"
    return None


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


class _Installed(Record):
    """What the folders of ``sys.path`` hold."""

    versions: tuple[tuple[str, str | None], ...]
    """Engine → version, from the names of ``*.dist-info`` folders."""
    folders: dict[str, str]
    """Engine → the folder of its package."""


def _can_use(device: str) -> bool:
    """Return whether an installed engine was built for the device."""
    installed = _installed()
    versions = dict(installed.versions)
    return any(
        device in engine.devices
        and versions[name] is not None
        and name in installed.folders
        and engine.was_built_for(installed.folders[name], device)
        for name, engine in ENGINES.items()
    )


_known: dict[Any, _Installed] = {}
"""What was found counts until ``sys.path``, or a folder of it, changes."""

_STANDARD_LIBRARY = frozenset((os.path.dirname(os.__file__), os.path.join(os.path.dirname(os.__file__), "lib-dynload")))
"""These folders hold no packages."""


def _installed() -> _Installed:
    key = tuple((entry, _modified(entry or os.curdir)) for entry in sys.path if entry not in _STANDARD_LIBRARY)
    found = _known.get(key)
    if found is None or not any(version for _, version in found.versions):
        # Nothing may have been found because too many files were open: the next call tries again.
        found = _known[key] = _find_installed([entry for entry, _ in key])
    return found


def _modified(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def _find_installed(entries: list[str]) -> _Installed:
    # Two rows may have a distribution in common: two providers of onnxruntime, for example.
    engines_of: dict[str, list[str]] = {}
    for engine, distributions in (*((name, row.distributions) for name, row in ENGINES.items()), _TOKENIZERS):
        for distribution in distributions:
            engines_of.setdefault(distribution, []).append(engine)
    versions: dict[str, str | None] = dict.fromkeys((*ENGINES, _TOKENIZERS[0]))
    folders: dict[str, str] = {}
    for entry in entries:
        try:
            names = os.listdir(entry or os.curdir)
        except OSError:
            continue
        for name in names:
            if name.endswith(".dist-info"):
                distribution, _, version = name[: -len(".dist-info")].rpartition("-")
                for engine in engines_of.get(distribution.lower(), ()):
                    versions[engine] = versions[engine] or version
        for engine, row in ENGINES.items():
            if engine not in folders and row.package in names:
                folders[engine] = os.path.join(entry, row.package)
    return _Installed(versions=tuple(sorted(versions.items())), folders=folders)
