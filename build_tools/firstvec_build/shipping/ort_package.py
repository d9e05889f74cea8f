"""Export a bundle as a model package of ONNX Runtime: schema 1.0, which onnxruntime 1.32 reads.

onnxruntime's own documents describe the folder: ``model_package/README.md`` has the layout, and
``onnxruntime/core/session/model_package/README.md`` has the part ``ort`` of ``executor_info``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from firstvec.bundle.integrity import open_verified
from firstvec.bundle.manifest import Artifact, File, Manifest
from firstvec.engines.table import ENGINES
from firstvec.errors import BuildError, IncompatibleArtifact, InputError, MissingDependency
from firstvec_build import publishing, temporary
from firstvec_build.shipping.whole_bundle import read_whole

SCHEMA_VERSION = "1.0"
COMPONENT = "model"
"""The component that holds the variants. onnxruntime-genai has this name, too."""
_ENGINE = "onnxruntime"
_MANIFEST_NAME = "manifest.json"
_ASSETS = "shared_assets"
_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json")
"""Files that transformers reads beside tokenizer.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A model package that was written."""

    path: Path
    size: int
    """Bytes of all files."""
    variants: tuple[Artifact, ...]
    """In the package's order. onnxruntime 1.32 takes the first of them on every processor."""


def export(manifest: Manifest, target: Path, *, only: Sequence[str] = ()) -> Package:
    """Write the bundle's ONNX artifacts as a model package. The folder appears whole or not at all.

    Each artifact becomes a variant. The instruction set is the variant's ``compatibility_string``. onnxruntime 1.32
    does not look at this string on a CPU, and takes the first variant. So artifacts for any processor come first.

    The tokenizer is a shared asset. The model of several artifacts is a shared asset, too, if it is the same. Every
    file is verified while it is read. The same bundle gives the same bytes.

    Args:
        manifest: the bundle's manifest.
        target: the package's folder. A package that this function wrote is replaced.
        only: ids of the artifacts to export. Empty: all ONNX artifacts.

    Raises:
        IntegrityError: a file of the bundle is not the one that was built, or is a link, symbolic or hard.
        InputError: ``only`` names an artifact that the bundle does not have or that is not ONNX, or the bundle has no
            ONNX artifact.
        ManifestError: the manifest was changed since it was read.
        MissingDependency: the package onnx, which compares two models, is not installed.
        IncompatibleArtifact: the model of an artifact is no ONNX model.
        BuildError: ``target`` is no model package of firstvec, or cannot be written.
    """
    data = read_whole(manifest)
    artifacts = _choose(manifest, only)
    target = Path(os.path.abspath(target))
    _check_replaceable(target)
    files = _plan(manifest, sha256(data).hexdigest(), artifacts)
    staging: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stem = f".{target.name}.staging-"
        temporary.remove_abandoned(target.parent, stem)
        staging = temporary.make_folder(target.parent, stem)
        size = _write(manifest.root, files, staging)
        for path in (staging, *staging.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        temporary.sync_tree(staging)
        _check_replaceable(target)
        publishing.replace_folder(staging, target)
        temporary.sync(target.parent)
    except OSError as error:
        raise BuildError(
            f"{error.filename or target}: cannot be written ({error.strerror or error}); choose another folder with "
            "--ort-package, or free some space"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return Package(path=target, size=size, variants=tuple(artifacts))


def _choose(manifest: Manifest, only: Sequence[str]) -> list[Artifact]:
    """Return the artifacts to export. Those that any processor computes right come first."""
    ids = [artifact.id for artifact in manifest.artifacts]
    found = {artifact.id: artifact for artifact in manifest.artifacts if artifact.engine == _ENGINE}
    if not found:
        raise InputError(f"{manifest.model.name} has no ONNX artifact: it has {', '.join(ids)}")
    for artifact_id in only:
        if artifact_id not in ids:
            raise InputError(f"the bundle has no artifact {artifact_id!r}: it has {', '.join(ids)}")
        if artifact_id not in found:
            raise InputError(f"{artifact_id} is no ONNX artifact: export one of {', '.join(found)}")
    chosen = [artifact for artifact in found.values() if not only or artifact.id in only]
    for artifact in chosen:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", artifact.id):
            raise InputError(
                f"the artifact {artifact.id[:80]!r} cannot be exported, because no folder can have this name"
            )
    return sorted(chosen, key=lambda artifact: artifact.isa is not None)


def _check_replaceable(target: Path) -> None:
    """Raise BuildError if something is there that `export` did not write."""
    try:
        if not stat.S_ISDIR(target.lstat().st_mode):
            raise BuildError(f"{target}: is not a folder; choose another one with --ort-package")
        names = os.listdir(target)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BuildError(
            f"{target}: cannot be read ({error.strerror or error}); choose another folder with --ort-package"
        ) from error
    if names and not ({*names} <= {_MANIFEST_NAME, COMPONENT, _ASSETS} and _is_written_here(target)):
        raise BuildError(
            f"{target}: is no model package of firstvec, so it is not replaced; choose another folder with "
            "--ort-package"
        )


def _is_written_here(target: Path) -> bool:
    try:
        document = json.loads((target / _MANIFEST_NAME).read_bytes())
        return isinstance(document["additional_metadata"]["firstvec"]["bundle_sha256"], str)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _plan(manifest: Manifest, bundle_sha256: str, artifacts: Sequence[Artifact]) -> dict[str, File | bytes]:
    """Return the package's files by their paths: files of the bundle, and what is written anew."""
    files: dict[str, File | bytes] = {}
    support = {file.path: file for file in manifest.support_files}
    tokenizer = _add_asset(
        files,
        {"tokenizer.json": manifest.tokenizer, **{name: support[name] for name in _TOKENIZER_FILES if name in support}},
    )
    shared = _find_same_models(manifest, artifacts)
    variants: dict[str, Any] = {}
    for artifact in artifacts:
        place = f"{COMPONENT}/{artifact.id}"
        of_model = _name_files(shared.get(artifact.id, artifact))
        model_file = next(iter(of_model))
        if artifact.id in shared:
            model_file = f"{_add_asset(files, of_model)}/{model_file}"
        else:
            files |= {f"{place}/{name}": file for name, file in of_model.items()}
        files[f"{place}/ort_info.json"] = _to_json({"model_file": model_file})
        variants[artifact.id] = _describe(artifact, of_model, place, f"{tokenizer}/tokenizer.json")
    about = manifest.model
    files[_MANIFEST_NAME] = _to_json(
        {
            "schema_version": SCHEMA_VERSION,
            "package_name": about.name,
            "description": f"{about.architecture} sentence embeddings, {about.embedding_dim} components. The output "
            "sentence_embedding is the finished vector.",
            "layout": "portable",
            "components": {COMPONENT: {"variants": variants}},
            "additional_metadata": {"firstvec": {"bundle_sha256": bundle_sha256, "model": about.to_plain()}},
        }
    )
    return files


def _describe(artifact: Artifact, files: Mapping[str, File], place: str, tokenizer: str) -> dict[str, Any]:
    """Return a variant of the package's manifest."""
    return {
        "variant_directory": place,
        "ep": ENGINES[_ENGINE].provider,
        "device": "cpu",
        **({"compatibility_string": artifact.isa} if artifact.isa is not None else {}),
        "executor_info": {"ort": "ort_info.json", "firstvec": {"tokenizer": tokenizer}},
        "additional_metadata": {
            "precision": artifact.precision,
            "isa_reason": artifact.isa_reason,
            "batch_invariant": artifact.batch_invariant,
            "engine_min": artifact.engine_min,
            "engine_below": artifact.engine_below,
            "files": {name: file.sha256 for name, file in files.items()},
            "quality": artifact.quality.to_plain(),
        },
    }


def _write(root: str, files: Mapping[str, File | bytes], folder: Path) -> int:
    """Write the package's files, and return their size in bytes. The bundle's files are verified."""
    for name, file in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file, bytes):
            path.write_bytes(file)
            continue
        with open_verified(root, file, use_markers=False) as opened:
            with open(opened.descriptor, "rb", closefd=False) as source, path.open("xb") as copy:
                source.seek(0)
                shutil.copyfileobj(source, copy)
            opened.verify_again()
    return sum(len(file) if isinstance(file, bytes) else file.size for file in files.values())


def _name_files(artifact: Artifact) -> dict[str, File]:
    """Return an artifact's files by their paths from the folder of the model, where the model looks for its weights."""
    folder = f"{PurePosixPath(artifact.files[0].path).parent}/"
    return {file.path.removeprefix(folder): file for file in artifact.files}


def _add_asset(files: dict[str, File | bytes], asset: Mapping[str, File]) -> str:
    """Add a shared asset to the package's files, and return its URI, which hashes the names and contents."""
    lines = [f"{file.sha256}  {name}\n" for name, file in sorted(asset.items())]
    digest = sha256("".join(lines).encode()).hexdigest()
    files |= {f"{_ASSETS}/sha256-{digest}/{name}": file for name, file in asset.items()}
    return f"sha256:{digest}"


def _find_same_models(manifest: Manifest, artifacts: Sequence[Artifact]) -> dict[str, Artifact]:
    """Return, for the ids of artifacts that are the same model, the first of these artifacts.

    The build makes one model for the two instruction sets that multiply all 8-bit weights without overflow.
    """
    by_weights: dict[tuple[str, ...], list[Artifact]] = {}
    for artifact in artifacts:
        by_weights.setdefault(tuple(file.sha256 for file in artifact.files[1:]), []).append(artifact)
    by_model: dict[str, list[Artifact]] = {}
    for weights, several in by_weights.items():
        for artifact in several if weights and len(several) > 1 else ():
            by_model.setdefault(_digest_model(manifest, artifact), []).append(artifact)
    return {artifact.id: same[0] for same in by_model.values() if len(same) > 1 for artifact in same}


def _digest_model(manifest: Manifest, artifact: Artifact) -> str:
    """Return a digest of a model in which the names of the files with the weights do not matter."""
    try:
        import onnx
    except ImportError as error:
        raise MissingDependency("the comparison of two models with the same weights", "onnx", "onnx") from error
    files = _name_files(artifact)
    with open_verified(manifest.root, artifact.files[0], artifact.id, use_markers=False) as opened:
        data = opened.read()
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's DecodeError, and firstvec does not import that package
        raise IncompatibleArtifact(artifact.id, f"{opened.path} is not an ONNX model ({error})") from error
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value in files:
                entry.value = files[entry.value].sha256
    return sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _to_json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=True) + "\n").encode()
