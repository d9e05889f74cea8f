"""Which artifact to take, and why not the others. Pure: everything that decides comes in as an argument."""

from __future__ import annotations

from firstvec import __version__
from firstvec.engines.table import ENGINES, INSTRUCTION_SETS, PRECISIONS, known_devices, version_fits
from firstvec.errors import NoCompatibleArtifact, excerpt
from firstvec.options import Options
from firstvec.record import Record
from firstvec.strategy import STRATEGIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from firstvec.bundle.manifest import Artifact, Manifest, Model
    from firstvec.machine.profile import ResourceProfile

_UPGRADE = ": upgrade"  # ends the reason against an artifact of a newer firstvec
_ABSENT = "not installed: its files are in another wheel of the bundle"
_TOO_SLOW = ", and none of them is used here"  # ends the reason against the native engine in plain C
_NOT_INSTALLED = ": not installed"  # ends the reason against an artifact whose engine is missing


class Choice(Record):
    """What `select` returns."""

    artifact: Artifact
    """The artifact to take."""
    device: str
    """Where it will run."""
    candidates: tuple[Artifact, ...]
    """All artifacts that could be taken, best first. If the first one fails to load, the next one is taken."""
    rejected: tuple[tuple[Artifact, str], ...]
    """The others, each with the reason, in the manifest's order. Those that are not installed come last."""
    reason: str
    """Why the chosen one is the best."""

    def to_values(self) -> dict[str, Any]:
        """Return the choice as JSON values."""
        return {
            "artifact": self.artifact.id,
            "device": self.device,
            "reason": self.reason,
            "fallbacks": [artifact.id for artifact in self.candidates[1:]],
            "rejected": {artifact.id: reason for artifact, reason in self.rejected},
        }


def select(manifest: Manifest, profile: ResourceProfile, options: Options | None = None) -> Choice:
    """Choose the artifact of ``manifest`` that fits the machine and the options.

    Args:
        manifest: the bundle's.
        profile: the machine. Its recommended device is taken where the options name none, with the CPU behind it.
        options: the strategy and what else decides. None: the default options.

    Raises:
        NoCompatibleArtifact: none can be used. The error has the reason for each one.
    """
    options = options or Options()
    taken = tuple(candidates(manifest, profile, options))
    rejected = [
        (artifact, reason)
        for artifact in manifest.artifacts
        if (reason := why_not(artifact, manifest, profile, options))
    ]
    rejected += [(artifact, _ABSENT) for artifact in manifest.absent]
    if not taken:
        reasons = [(artifact.id, reason) for artifact, reason in rejected]
        takes = STRATEGIES[options.strategy].takes
        missing = [
            artifact.engine
            for artifact, reason in rejected
            if reason.endswith(_NOT_INSTALLED) and not _not_taken(artifact, manifest, options, takes)
        ]
        hint = _hint(_known_precisions(manifest), options, takes, reasons, missing)
        raise NoCompatibleArtifact(manifest.model.name, str(profile), reasons, hint)
    return Choice(
        artifact=taken[0],
        device=device_of(taken[0], profile, options),
        candidates=taken,
        rejected=tuple(rejected),
        reason=_why(taken, manifest, profile, options),
    )


def candidates(manifest: Manifest, profile: ResourceProfile, options: Options) -> Iterator[Artifact]:
    """Yield the artifacts that can be taken, best first. An artifact is judged when it is asked for."""
    takes, target = STRATEGIES[options.strategy].takes, _target(profile, options).partition(":")[0]
    known = [artifact for artifact in manifest.artifacts if unknown_part(artifact) is None]
    known.sort(key=lambda artifact: _rank(artifact, profile, takes, target), reverse=True)
    for artifact in known:
        # The options first, because the machine is looked at only when it decides.
        if not (_not_taken(artifact, manifest, options, takes) or why_not(artifact, manifest, profile, options)):
            yield artifact


def device_of(artifact: Artifact, profile: ResourceProfile, options: Options) -> str:
    """Return where a candidate will run."""
    target = _target(profile, options)
    return target if target.partition(":")[0] in usable_devices(artifact) else "cpu"


def why_not(artifact: Artifact, manifest: Manifest, profile: ResourceProfile, options: Options) -> str | None:
    """Return the reason against ``artifact``. None: it can be taken."""
    strategy = STRATEGIES[options.strategy]
    required_device = options.device and options.device.partition(":")[0]
    return (
        cannot_run(artifact, profile, required_device)
        or _not_taken(artifact, manifest, options, strategy.takes)
        or memory_shortage(manifest.model, artifact, profile, quick_start=strategy.quick_start)
    )


def _target(profile: ResourceProfile, options: Options) -> str:
    return options.device or profile.recommended_device


def _known_precisions(manifest: Manifest) -> set[str]:
    return {artifact.precision for artifact in manifest.artifacts if unknown_part(artifact) is None}


def usable_devices(artifact: Artifact) -> tuple[str, ...]:
    """Return the devices that the artifact was built for and that its engine can use. The engine must be known."""
    return tuple(device for device in artifact.devices if device in ENGINES[artifact.engine].devices)


def unknown_part(artifact: Artifact) -> str | None:
    """Return what of ``artifact`` this firstvec does not know, for people. None: it knows everything."""
    devices = known_devices()
    for name, value, is_known in (
        ("format", artifact.format, any(artifact.format in engine.formats for engine in ENGINES.values())),
        ("engine", artifact.engine, artifact.engine in ENGINES),
        ("precision", artifact.precision, artifact.precision in PRECISIONS),
        ("isa", artifact.isa or "", artifact.isa is None or artifact.isa in INSTRUCTION_SETS),
        ("device", artifact.devices[0], any(device in devices for device in artifact.devices)),
    ):
        if not is_known:
            return f"{name} '{excerpt(value)}' is unknown to firstvec {__version__}{_UPGRADE}"
    return None


def cannot_run(artifact: Artifact, profile: ResourceProfile, required_device: str | None = None) -> str | None:
    """Return why ``artifact`` cannot run on the machine, or on the device that is asked for. None: it can."""
    if reason := unknown_part(artifact):
        return reason
    devices, kernels = usable_devices(artifact), ENGINES[artifact.engine].kernels
    usable = excerpt("/".join(devices))
    if artifact.format not in ENGINES[artifact.engine].formats:
        return f"engine: {artifact.engine} does not run {artifact.format}"
    if not devices:
        return f"device: {artifact.engine} does not run on {excerpt('/'.join(artifact.devices))}"
    if required_device and required_device not in devices:
        return f"device: runs on {usable}, not on {required_device}"
    if required_device not in (None, "cpu", profile.recommended_device):
        return f"device: no usable {required_device} here (the device, its driver, and an engine built for it)"
    if artifact.isa and artifact.isa not in profile.isa:
        return f"isa: needs {artifact.isa}, this CPU has {'+'.join(profile.isa) or profile.machine}"
    version = profile.engine_version(artifact.engine)
    if version is None:
        return f"{artifact.engine}{_NOT_INSTALLED}"
    if kernels and profile.native_isa not in kernels:
        return f"isa: {artifact.engine} is fast with {', '.join(kernels)} only{_TOO_SLOW}"
    if not version_fits(version, artifact.engine_min, artifact.engine_below):
        return f"{artifact.engine}: needs >={artifact.engine_min},<{artifact.engine_below}, {version} is installed"
    if profile.recommended_device not in devices and "cpu" not in devices:
        return f"device: runs on {usable}, not on {profile.recommended_device}"
    return None


def _not_taken(artifact: Artifact, manifest: Manifest, options: Options, takes: str) -> str | None:
    is_unasked_int8 = takes == "best" and artifact.precision == "int8" and not options.enable_quantization
    if options.artifact is not None:
        if artifact.id != options.artifact:
            return f"artifact: only {options.artifact} is asked for"
    elif takes == "int8" and artifact.precision != "int8":
        return f"precision: {artifact.precision}, the strategy takes int8"
    elif takes == "full" and artifact.precision != "fp32":
        return f"precision: {artifact.precision}, the strategy takes full precision"
    elif is_unasked_int8 and "fp32" in _known_precisions(manifest):
        return "precision: int8, taken only with enable_quantization=True or strategy QUANTIZED"
    if options.min_quality is not None and artifact.quality.cosine_min < options.min_quality:
        return f"quality: cosine_min {artifact.quality.cosine_min:.6g} < min_quality {options.min_quality}"
    return None


def memory_shortage(model: Model, artifact: Artifact, profile: ResourceProfile, *, quick_start: bool) -> str | None:
    """Return why a session of ``artifact`` does not fit into the memory that can be used. None: it fits."""
    if not ENGINES[artifact.engine].memory_mb:
        return None
    needed, available = memory_needed_mb(model, artifact, profile, quick_start=quick_start), profile.available_memory_mb
    return f"memory: needs about {needed:.0f} MB, {available:.0f} MB can be used" if 0 < available < needed else None


def memory_needed_mb(model: Model, artifact: Artifact, profile: ResourceProfile, *, quick_start: bool) -> float:
    """Return the memory that a session of ``artifact`` needs to load and to run batches, in 2^20 bytes.

    Mapped weights need none, because the kernel drops and reads them again. A session that runs fastest copies the
    weights of the layers: all but the embeddings of some 30,000 tokens. Measured in control groups, runs of 1,024
    tokens, 2 cores. all-MiniLM-L6-v2, fp32 and INT8: killed at 57 MB and alive at 61. With a hand-over in fp32: at 119
    and 123. With torch: at 200 and 300. BERT-base's shape: at 103 and 107, with the hand-over at 448 and 464.
    """
    engine = ENGINES[artifact.engine]
    keeps_mapped = quick_start or not engine.has_two_kinds
    base = engine.memory_when_loaded_mb if artifact.engine in profile.loaded_engines else engine.memory_mb
    size = artifact.size / (1 << 20)
    # A run computes the layers' outputs, and each token's attention to every other: both factors count.
    runs = 20 * (model.embedding_dim / 384) * (model.max_seq_length / 256)
    embeddings = 30_000 * model.embedding_dim * (1 if artifact.precision == "int8" else 4) / (1 << 20)
    copied_layers = 0 if keeps_mapped else max(size - embeddings, size / 2)
    return base + runs + (copied_layers if engine.maps_weights else size)


def _rank(artifact: Artifact, profile: ResourceProfile, takes: str, target: str) -> tuple[int, ...]:
    engine = ENGINES[artifact.engine]
    return (
        # An accelerator that was asked for, or recommended, comes before everything else.
        int(target != "cpu" and target in usable_devices(artifact)),
        int(takes == "full" and engine.is_preferred_when_loaded and artifact.engine in profile.loaded_engines),
        int(artifact.precision == "int8"),
        engine.rank,
        INSTRUCTION_SETS[artifact.isa].rank if artifact.isa else 0,
    )


def _why(taken: tuple[Artifact, ...], manifest: Manifest, profile: ResourceProfile, options: Options) -> str:
    artifact, target = taken[0], _target(profile, options).partition(":")[0]
    if target != "cpu" and target in usable_devices(artifact):
        return f"runs on {target}"
    kernels = ENGINES[artifact.engine].kernels
    if artifact.precision == "int8":
        is_absent = any(other.precision == "fp32" for other in manifest.absent)
        only = "; no full precision is installed" if is_absent else "; the bundle has no full precision"
        if "fp32" in _known_precisions(manifest):
            only = ""
        return f"INT8 for this CPU ({artifact.isa or (kernels and profile.native_isa) or 'any ISA'}){only}"
    if artifact.engine in profile.loaded_engines and ENGINES[artifact.engine].is_preferred_when_loaded:
        return f"{artifact.engine} is loaded already"
    fp32 = [other for other in manifest.artifacts if other.precision == "fp32" and unknown_part(other) is None]
    if len(fp32) > 1 and not any(other in fp32 for other in taken[1:]):
        return "the only full-precision form that runs here" if options.artifact is None else "it is asked for"
    return "full precision, starts fastest on a CPU"


def _hint(
    precisions: set[str], options: Options, takes: str, rejected: list[tuple[str, str]], missing: list[str]
) -> str:
    """Return what to do next where no artifact can be used. ``missing`` are the engines that would be enough."""
    is_unasked_int8 = takes == "best" and "int8" in precisions and not options.enable_quantization
    if all(reason.endswith(_UPGRADE) for _, reason in rejected):
        return "Upgrade firstvec (`pip install --upgrade firstvec`)."
    if missing:
        name = max(missing, key=lambda name: (name != "native", ENGINES[name].rank))
        install = f"Install {name} (`pip install '{ENGINES[name].install}'`)"
        if name == "native":
            install = "Install firstvec from a wheel for this machine, or with a C compiler, because it has no engine"
        return f"{install}{', or allow INT8 with enable_quantization=True' if is_unasked_int8 else ''}."
    if any(reason.endswith(_TOO_SLOW) for _, reason in rejected):
        return "Build ONNX artifacts for this processor, and install onnxruntime (`pip install 'firstvec[onnx]'`)."
    if options.device not in (None, "cpu"):
        return "Leave the device out, or choose cpu."
    if options.artifact is not None:
        names = [name for name, _ in rejected]
        if options.artifact not in names:
            return f"The bundle has no artifact {options.artifact!r}: it has {', '.join(names)}."
        if (options.artifact, _ABSENT) in rejected:
            return "Install the wheel with this artifact, or leave the artifact out: the strategy then chooses one."
        return "Leave the artifact out: the strategy then chooses one."
    if any(reason.startswith("quality:") for _, reason in rejected):
        return "Lower min_quality, or leave it out."
    if any(reason.startswith("memory:") for _, reason in rejected):
        return "Give the process more memory, or allow INT8 (strategy QUANTIZED)."
    if any(reason == _ABSENT for _, reason in rejected):
        return "Install the wheel with one of the artifacts that are not installed."
    if takes == "full" and precisions == {"int8"}:
        return "This bundle has INT8 only: use strategy='quantized'."
    if takes == "int8":
        return "Use a full-precision strategy (LAZY, BACKGROUND, PROGRESSIVE, CACHED), or build INT8 for this CPU."
    if takes == "full":
        return "Install a version of an engine that fits, or build the bundle with its fp32 artifacts."
    return "Install a version of an engine that fits, or allow INT8 with enable_quantization=True."
