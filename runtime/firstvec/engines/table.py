"""The table of engines and the table of instruction sets. Everything that differs between two engines is in a row.

A new engine is one row here, one module with the functions of `firstvec.engines.session.EngineModule`, and one recipe
in `firstvec_build.recipes`. A provider of onnxruntime (CUDA, OpenVINO, CoreML) is a row, too: the same module with
another ``provider``, its own distributions and devices.
"""

from __future__ import annotations

from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Engine(Record):
    """What runs artifacts of some formats. The name of a row is the value of ``engine`` in a manifest."""

    formats: tuple[str, ...]  # values of ``format`` in a manifest
    module: str  # Python module with the functions of `firstvec.engines.session.EngineModule`
    weights_reader: str | None = None  # module whose ``read_weights(artifact_id, files)`` reads verified files first
    package: str  # what Python imports. An engine whose package is imported already counts as loaded.
    distributions: tuple[str, ...]  # that provide the package, as ``.dist-info`` folders spell them, in lower case
    versions: tuple[str, str]  # for a manifest of the build: from the first (inclusive) to the second (exclusive)
    devices: tuple[str, ...]  # on which this engine can run an artifact
    was_built_for: Callable[[str, str], bool] = lambda _folder, _device: True  # whether that package can use the device
    provider: str = ""  # execution provider, for the rows of onnxruntime
    rank: int  # the higher rank is taken on the CPU where two artifacts are otherwise equal
    is_preferred_when_loaded: bool = False  # CACHED takes it in a process that has imported the package already
    starts_early: bool = False  # its start takes long, so a load begins it before the artifact's files are verified
    kernels: tuple[str, ...] = ()  # instruction sets of firstvec's own engine, see `firstvec.machine.native`
    has_two_kinds: bool = False  # whether a session that takes longer to open then runs faster than a quick-start one
    same_bits: bool = False  # whether every machine computes the same bits, which the self-test then compares
    memory_mb: float  # for the library and for small runs, in 2^20 bytes. 0: nobody has to look at the memory first
    memory_when_loaded_mb: float  # the same in a process that has imported the package already
    maps_weights: bool  # whether a quick-start session uses the weights where the file is mapped, and copies none
    describes_use: bool = False  # whether the module says how the library is used here: ``describe_use``
    install: str  # what to give to ``pip install``
    purpose: str  # what the engine does, for people


def _torch_was_built_for(folder: str, device: str) -> bool:
    """``torch/version.py`` has the line ``cuda: Optional[str] = '13.0'``, or None in a build without CUDA."""
    if device != "cuda":
        return True
    try:
        with open(f"{folder}/version.py", encoding="utf-8", errors="replace") as lines:
            return any(line.startswith("cuda") and not line.rstrip().endswith("None") for line in lines)
    except OSError:
        return False


ENGINES = {
    "native": Engine(
        formats=("native",),
        module="firstvec.engines.native",
        package="firstvec._native",
        distributions=(),
        # The engine's version counts the changes of the vectors' bits.
        versions=("1", "2"),
        devices=("cpu",),
        rank=3,
        kernels=("avx512_vnni", "avx_vnni", "avx2", "neon_dot"),
        same_bits=True,
        # It maps its file, and raises MemoryError where memory is short.
        memory_mb=0,
        memory_when_loaded_mb=0,
        maps_weights=True,
        install="firstvec",
        purpose="starts soonest (firstvec was installed without its C module: see docs/native-engine.md)",
    ),
    "onnxruntime": Engine(
        formats=("onnx",),
        module="firstvec.engines.onnxruntime",
        weights_reader="firstvec.engines.onnx_weights",
        package="onnxruntime",
        distributions=("onnxruntime", "onnxruntime_gpu", "onnxruntime_directml", "onnxruntime_openvino"),
        # onnxruntime 1.23.2 and 1.32.0 are tested. A major version may drop the file format.
        versions=("1.23", "2"),
        devices=("cpu",),
        provider="CPUExecutionProvider",
        rank=2,
        starts_early=True,
        has_two_kinds=True,
        memory_mb=60,
        memory_when_loaded_mb=60,
        maps_weights=True,
        describes_use=True,
        install="firstvec[onnx]",
        purpose="runs the ONNX artifacts",
    ),
    "torch": Engine(
        formats=("torchscript", "pt2"),
        module="firstvec.engines.torchscript",
        package="torch",
        distributions=("torch",),
        # torch 2.13.0 is tested. A major version may drop the file format.
        versions=("2.13", "3"),
        devices=("cpu", "cuda", "mps"),
        was_built_for=_torch_was_built_for,
        rank=1,
        is_preferred_when_loaded=True,
        memory_mb=180,
        memory_when_loaded_mb=60,
        maps_weights=False,
        install="firstvec[torch]",
        purpose="runs the TorchScript artifact (accelerators)",
    ),
}
"""Value of ``engine`` in a manifest → row."""


class InstructionSet(Record):
    """An instruction set that INT8 artifacts are built for. The name of a row is the value of ``isa`` in a manifest."""

    machines: tuple[str, ...]  # processor families that can have it: ``platform.machine()`` in lower case
    cpu_flag: str | None  # word in the flags of ``/proc/cpuinfo``. None: every processor of these families has it.
    sysctl: str | None = None  # key of macOS's ``sysctl`` that says the same
    rank: int  # the higher rank is faster, among artifacts that this processor computes right
    weight_bits: int  # that this instruction set multiplies without overflow
    reason: str  # why these weights need this instruction set, for people


_X86 = ("x86_64", "amd64", "i686", "i386")

INSTRUCTION_SETS = {
    "avx2": InstructionSet(
        machines=_X86,
        cpu_flag="avx2",
        sysctl="hw.optional.avx2_0",
        rank=1,
        weight_bits=7,
        reason="weights limited in pairs: without VNNI, vpmaddubsw adds pairs of u8 x s8 products in int16, which "
        "other 8-bit weights overflow silently",
    ),
    "avx512_vnni": InstructionSet(
        machines=_X86,
        cpu_flag="avx512_vnni",
        sysctl="hw.optional.avx512vnni",
        rank=3,
        weight_bits=8,
        reason="8-bit weights: vpdpbusd adds u8 x s8 products in int32; on a CPU without it they saturate",
    ),
    "arm64": InstructionSet(
        machines=("arm64", "aarch64"),
        cpu_flag=None,
        rank=2,
        weight_bits=8,
        reason="8-bit weights: NEON multiplies and adds 8-bit integers without saturation",
    ),
}
"""Value of ``isa`` in a manifest → row."""

PRECISIONS = ("fp32", "int8")
"""Values of ``precision`` in a manifest that this firstvec knows."""


def known_devices() -> tuple[str, ...]:
    """Return every device that some engine can use."""
    return (*dict.fromkeys(device for engine in ENGINES.values() for device in engine.devices),)


def version_fits(version: str, minimum: str, below: str) -> bool:
    """Return whether minimum ≤ version < below, by the numeric parts of the release."""
    return _release(minimum) <= _release(version) < _release(below)


def _release(version: str) -> tuple[int, ...]:
    """``1.23.0rc1+cpu`` → (1, 23)."""
    parts: list[int] = []
    for part in version.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
