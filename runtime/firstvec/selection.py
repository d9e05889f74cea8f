"""Which artifact to take, and why not the others. Pure: everything it knows comes in as arguments."""

from __future__ import annotations

from firstvec.errors import NoCompatibleArtifact
from firstvec.plans import PLANS, strategy_name
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firstvec.hardware import ResourceProfile
    from firstvec.manifest import Artifact, Manifest, Model
    from firstvec.strategy import LoadingStrategy

_ISA_RANK = {"avx512_vnni": 3, "arm64": 2, "avx2": 1, None: 0}
"""Faster first, among INT8 artifacts that are all right on this CPU."""


class Choice(Record):
    """The answer of `select`."""

    artifact: Artifact
    """The one to take."""
    device: str
    """Where it will run."""
    candidates: tuple[Artifact, ...]
    """All that could be taken, best first; the chosen one leads. The next one is taken if it fails to load."""
    rejected: tuple[tuple[Artifact, str], ...]
    """The others, each with the reason, in the manifest's order."""
    reason: str
    """Why the chosen one is the best."""

    def to_values(self) -> dict[str, Any]:
        """The choice as JSON values."""
        return {
            "artifact": self.artifact.id,
            "device": self.device,
            "reason": self.reason,
            "fallbacks": [artifact.id for artifact in self.candidates[1:]],
            "rejected": {artifact.id: reason for artifact, reason in self.rejected},
        }


def select(
    manifest: Manifest,
    profile: ResourceProfile,
    strategy: LoadingStrategy | str = "lazy",
    *,
    device: str | None = None,
    enable_quantization: bool = False,
    min_quality: float | None = None,
) -> Choice:
    """Choose the artifact of ``manifest`` that fits the machine that ``profile`` describes.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``: only artifacts that run there, and only if this machine has it. None
            prefers the profile's recommendation and falls back to the CPU.
        enable_quantization: whether INT8 may be taken by a strategy that takes the best for the profile.
        min_quality: smallest acceptable ``cosine_min`` to the fp32 reference.

    Raises:
        NoCompatibleArtifact: none can be used; the error lists each one's reason.
        InputError: the strategy is unknown.
    """
    plan = PLANS[strategy_name(strategy)]
    prefers = plan.prefers
    target = device or profile.recommended_device
    target_kind = target.partition(":")[0]
    candidates: list[tuple[tuple[int, ...], Artifact]] = []
    rejected: list[tuple[Artifact, str]] = []
    for artifact in manifest.artifacts:
        reason = (
            cannot_run(artifact, profile, device and target_kind)
            or _not_wanted(artifact, prefers, enable_quantization, min_quality)
            or does_not_fit(manifest.model, artifact, profile, quick_start=plan.quick_start)
        )
        if reason:
            rejected.append((artifact, reason))
        else:
            candidates.append((_rank(artifact, profile, prefers, target_kind), artifact))
    candidates.sort(key=lambda candidate: candidate[0], reverse=True)
    if not candidates:
        tight = any(reason.startswith("memory:") for _, reason in rejected)
        hint = _HINTS["memory" if tight else prefers]
        if device not in (None, "cpu"):
            hint = "Leave the device out, or choose cpu."
        raise NoCompatibleArtifact(
            manifest.model.name, str(profile), [(artifact.id, reason) for artifact, reason in rejected], hint
        )
    best = candidates[0][1]
    return Choice(
        artifact=best,
        device=target if target_kind in best.devices else "cpu",
        candidates=tuple(artifact for _, artifact in candidates),
        rejected=tuple(rejected),
        reason=_why(best, profile, prefers, target_kind),
    )


def cannot_run(artifact: Artifact, profile: ResourceProfile, required_device: str | None = None) -> str | None:
    """Why ``artifact`` cannot run on the machine, and on the device that the caller requires; None if it can."""
    if required_device and required_device not in artifact.devices:
        return f"device: runs on {'/'.join(artifact.devices)}, not on {required_device}"
    if required_device not in (None, "cpu", profile.recommended_device):
        return f"device: no usable {required_device} here (the device, its driver, and a torch built for it)"
    if artifact.isa and artifact.isa not in profile.isa:
        return f"isa: needs {artifact.isa}, this CPU has {'+'.join(profile.isa) or profile.machine}"
    version = profile.engine_version(artifact.engine)
    if version is None:
        return f"{artifact.engine}: not installed"
    if not version_fits(version, artifact.engine_min, artifact.engine_below):
        return f"{artifact.engine}: needs >={artifact.engine_min},<{artifact.engine_below}, {version} is installed"
    if profile.recommended_device not in artifact.devices and "cpu" not in artifact.devices:
        return f"device: runs on {'/'.join(artifact.devices)}, not on {profile.recommended_device}"
    return None


def _not_wanted(artifact: Artifact, prefers: str, enable_quantization: bool, min_quality: float | None) -> str | None:
    if prefers == "int8" and artifact.precision != "int8":
        return f"precision: {artifact.precision}, the strategy takes int8"
    if prefers == "precompiled" and artifact.precision != "fp32":
        return f"precision: {artifact.precision}, the strategy takes full precision"
    if prefers == "best" and artifact.precision == "int8" and not enable_quantization:
        return "precision: int8, taken only with enable_quantization=True or strategy QUANTIZED"
    if min_quality is not None and artifact.quality.cosine_min < min_quality:
        return f"quality: cosine_min {artifact.quality.cosine_min:g} < min_quality {min_quality:g}"
    return None


def does_not_fit(model: Model, artifact: Artifact, profile: ResourceProfile, *, quick_start: bool) -> str | None:
    """Why a session of ``artifact`` does not fit into the memory that can be used; None if it does."""
    needed = memory_needed_mb(model, artifact, profile, quick_start=quick_start)
    available = profile.available_memory_mb
    if 0 < available < needed:
        return f"memory: needs about {needed:.0f} MB, {available:.0f} MB can be used"
    return None


def memory_needed_mb(model: Model, artifact: Artifact, profile: ResourceProfile, *, quick_start: bool) -> float:
    """Memory that a session of ``artifact`` needs to load and to run batches, in 2^20 bytes.

    Weights that are mapped need none, the kernel drops and reads them as it likes; sessions that are not quick to start
    copy those of the layers, all but the embeddings of some 30,000 tokens. Found in control groups, runs of 1,024
    tokens, on 2 cores. all-MiniLM-L6-v2: killed at 57 MB and alive at 61, fp32 and INT8; at 119 and 123 with a
    hand-over to a throughput session in fp32; at 200 and 300 with TorchScript, torch included. A model of BERT-base's
    shape: at 103 and 107; at 448 and 464.
    """
    size = artifact.size / (1 << 20)
    # What a run computes grows with both: the layers' outputs, and each token's attention to each other.
    runs = 20 * (model.embedding_dim / 384) * (model.max_seq_length / 256)
    if artifact.engine == "torch":
        return (60 if profile.torch_loaded else 180) + runs + size
    embeddings = 30_000 * model.embedding_dim * (1 if artifact.precision == "int8" else 4) / (1 << 20)
    return 60 + runs + (0 if quick_start else max(size - embeddings, size / 2))


def _rank(artifact: Artifact, profile: ResourceProfile, prefers: str, target: str) -> tuple[int, ...]:
    return (
        # An accelerator that was asked for, or recommended, is why one would load torch.
        int(target != "cpu" and target in artifact.devices),
        int(prefers == "precompiled" and artifact.format == "torchscript" and profile.torch_loaded),
        int(artifact.precision == "int8"),
        _ISA_RANK[artifact.isa],
        int(artifact.format == "onnx"),
    )


def _why(artifact: Artifact, profile: ResourceProfile, prefers: str, target: str) -> str:
    if target != "cpu" and target in artifact.devices:
        return f"runs on {target}"
    if artifact.precision == "int8":
        return f"INT8 for this CPU ({artifact.isa or 'any ISA'})"
    if artifact.format == "torchscript":
        return "torch is loaded already" if profile.torch_loaded else "the only full-precision form that runs here"
    return "full precision, starts fastest on a CPU"


def version_fits(version: str, minimum: str, below: str) -> bool:
    """Whether minimum ≤ version < below, comparing the numeric release parts."""
    return _release(minimum) <= _release(version) < _release(below)


def _release(version: str) -> tuple[int, ...]:
    parts: list[int] = []
    for part in version.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


_HINTS = {
    "memory": "Give the process more memory, or allow INT8 (strategy QUANTIZED).",
    "int8": "Use a full-precision strategy (LAZY, BACKGROUND, PROGRESSIVE, CACHED), or build INT8 for this CPU.",
    "precompiled": "Install onnxruntime (`pip install onnxruntime`), or build the bundle with its fp32 artifacts.",
    "best": "Install onnxruntime (`pip install onnxruntime`), or allow INT8 with enable_quantization=True.",
}
