"""The model to build from: a pinned wheel, a hub id and revision, or a local Sentence-Transformers folder."""

from __future__ import annotations

import base64
import csv
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from firstvec.errors import InputError, SourceError
from firstvec.machine.cache import cache_folder
from firstvec_build import licence, temporary

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Patterns of weight files. The first pattern that matches a file is taken."""
POOLINGS = ("cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")
"""The pooling modes of sentence-transformers."""
_OWN_CODE = "sentence_transformers."
"""The module types that begin so are code of sentence-transformers. Every other one lies beside the model."""
_LONGEST_HEADER = 100_000_000
"""Bytes. safetensors reads no longer header."""
_RECORD_HASHES = ("sha256", "sha384", "sha512")
"""The hashes that a wheel's RECORD may use: SHA-256 or better."""
_PART = re.compile(r"(.+\.zip)\.([0-9]+)")
"""A file of an archive in parts, as 7-Zip splits an archive: ``model.zip.001``, ``model.zip.002`` and so on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model on disk, its origin and its digest."""

    name: str
    """``organization/model``, or the name of the local folder."""
    path: Path
    """The Sentence-Transformers folder."""
    origin: str
    """A text for people: ``wheel NAME==VERSION``, ``hub ID``, or ``folder``."""
    revision: str | None
    sha256: str
    """Digest of the one weights' file, or of the names and digests of several files."""
    pooling: str | None = None
    """The pooling mode that the caller chose for a plain transformers folder. None: the folder has its own modules."""
    trust_remote_code: bool = False
    """Whether the build may run the code that lies beside the model."""
    license: str | None = None
    """The model's licence, as an SPDX expression. None: nobody states one."""


def resolve(
    model: str | None = None,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    pooling: str | None = None,
    trust_remote_code: bool = False,
    license: str | None = None,  # noqa: A002 - the word of SPDX, of the hub and of a package's metadata
) -> Source:
    """Find the model to build from, fetch it if it is not here yet, and verify its weights.

    Args:
        model: a name in ``models.toml``, a local folder, a wheel ``NAME==VERSION``, or a hub id. None: the default of
            ``models.toml``.
        revision: commit, tag or branch of a hub id. The result has the commit.
        sha256: expected digest of the weights. A wheel that is not in ``models.toml`` needs it.
        pooling: one of `POOLINGS`, for a plain transformers model, whose folder has no ``modules.json``.
        trust_remote_code: let the build run the code that lies beside the model.
        license: SPDX expression of the model's licence. None: the one that the model card states.

    Raises:
        SourceError: the model is not there, cannot be fetched, is not a sentence-transformers model, is not whole, or
            has other weights.
        InputError: ``pooling`` is no pooling mode, or ``license`` is no SPDX expression.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise InputError(f"unknown pooling {pooling!r}: use one of {', '.join(POOLINGS)}")
    if license is not None:
        license = licence.check_expression(license)  # noqa: A001
    try:
        found = _resolve(model, revision, sha256, pooling, trust_remote_code)
        stated = license or licence.find_license(found.path)
        return replace(found, pooling=pooling, trust_remote_code=trust_remote_code, license=stated)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise SourceError(
            f"{place}cannot be read or written ({error.strerror or error}) while fetching "
            f"{'the default model' if model is None else model}; check the file's permissions, the space and the disk"
        ) from error


def _resolve(
    model: str | None, revision: str | None, sha256: str | None, pooling: str | None, trust_remote_code: bool
) -> Source:
    pins = _read_pins()
    name: str = pins["default"] if model is None else model
    entries: dict[str, dict[str, str]] = pins["models"]
    for known, entry in entries.items():
        if name in (known, known.rsplit("/", 1)[-1]):
            if revision not in (None, entry.get("revision")):
                raise SourceError(
                    f"{known}: models.toml pins revision {entry.get('revision')}, not {revision}; leave --revision "
                    "out, or build the other revision from a folder that holds it"
                )
            if sha256 not in (None, entry["sha256"]):
                raise SourceError(
                    f"{known}: models.toml pins weights of sha256 {entry['sha256']}, not {sha256}; leave --sha256 out"
                )
            return _resolve_wheel(entry["wheel"], known, entry.get("revision"), entry["sha256"], is_pinned=True)
    if os.path.isdir(name):
        return _make_source(Path(name), os.path.basename(os.path.abspath(name)), "folder", revision, sha256, pooling)
    if "==" in name:
        if sha256 is None:
            raise SourceError(f"{name}: a wheel must be pinned: give the digest of its weights with --sha256")
        return _resolve_wheel(name, name.partition("==")[0], revision, sha256, is_pinned=False)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise SourceError(f"{name}: there is no such folder")
    return _resolve_hub_id(name, revision, sha256, pooling, trust_remote_code)


def _read_pins() -> dict[str, Any]:
    """Read ``models.toml``. In a wheel the file lies in the package, and in a checkout in ``artifacts/``."""
    packaged = resources.files("firstvec_build") / "data" / "models.toml"
    if not packaged.is_file():
        packaged = Path(__file__).parents[2] / "artifacts" / "models.toml"
    return tomllib.loads(packaged.read_text("utf-8"))


def _resolve_wheel(requirement: str, name: str, revision: str | None, sha256: str, *, is_pinned: bool) -> Source:
    distribution, _, version = requirement.partition("==")
    folder = Path(cache_folder()) / "sources" / f"{distribution}-{version}"
    if not folder.is_dir():
        _download_wheel(requirement, folder)
    models = sorted(path.parent for path in folder.glob("**/modules.json"))
    try:
        if not models:
            raise SourceError(
                f"wheel {requirement}: holds no sentence-transformers model (no modules.json){_explain_onnx(folder)}"
            )
        source = _make_source(models[0], name, f"wheel {requirement}", revision, sha256)
        # The tokenizer and the configuration decide the vectors, too, so the weights alone prove too little.
        if changed := _find_changed_file(folder, verified=find_weights(source.path)):
            raise SourceError(
                f"{changed}: differs from wheel {requirement}, so firstvec has removed its copy of the wheel; "
                "build again to download the wheel again, or build a changed model from your own folder: "
                "firstvec build FOLDER"
            )
        return source
    except SourceError:
        # A damaged download is removed, so that the next build does not find it again. A good download stays, because
        # the user may have mistyped a digest that is not pinned.
        if is_pinned or _find_changed_file(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _find_changed_file(folder: Path, verified: Collection[Path] = ()) -> Path | None:
    """Return a file of an unpacked wheel that is missing, changed, or not in the wheel's RECORD. None: all are right.

    RECORD must list every file but RECORD itself and its signatures (PyPA binary distribution format).

    Args:
        folder: where the wheel was unpacked.
        verified: files that were compared with a better digest, and are not hashed again.
    """
    listed: set[Path] = set()
    for record in folder.glob("*.dist-info/RECORD"):
        listed |= {record, record.with_suffix(".jws"), record.with_suffix(".p7s")}
        try:
            with record.open(encoding="utf-8", newline="") as lines:
                entries = [(folder / row[0], row[1]) for row in csv.reader(lines) if row]
        except (ValueError, IndexError, csv.Error):
            return record
        for path, recorded in entries:
            algorithm, _, expected = recorded.partition("=")
            if path not in listed and path not in verified:
                if algorithm not in _RECORD_HASHES or not path.is_file():
                    return path
                actual = hashlib.new(algorithm, path.read_bytes()).digest()
                if base64.urlsafe_b64encode(actual).rstrip(b"=").decode() != expected:
                    return path
            listed.add(path)
    if not listed:
        return folder
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return next((path for path in found if path not in listed), None)


def _download_wheel(requirement: str, folder: Path) -> None:
    """Download a wheel with pip and unpack it. ``folder`` appears whole or not at all.

    Where the wheel holds the first part of an archive, the folder is that of the whole archive (`_join_parts`).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary.remove_abandoned(folder.parent, f".{folder.name}-")
    scratch = temporary.make_folder(folder.parent, f".{folder.name}-")
    try:
        unpacked = _fetch_wheel(requirement, scratch)
        if part := _find_part(unpacked):
            unpacked = _join_parts(requirement, unpacked, part, scratch)
        temporary.sync_tree(unpacked)
        try:
            os.rename(unpacked, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another build was first
                raise
        temporary.sync(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fetch_wheel(requirement: str, scratch: Path) -> Path:
    """Download a wheel with pip, unpack it in ``scratch``, remove the wheel, and return the folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(scratch), requirement], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), "no wheel was found")
        raise SourceError(
            f"wheel {requirement}: cannot be downloaded ({reason.strip()}); check the network and pip's settings, "
            "or build from a local folder: firstvec build FOLDER"
        )
    unpacked = scratch / "unpacked"
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(unpacked)
    except zipfile.BadZipFile as error:
        raise SourceError(f"wheel {requirement}: the downloaded file is no wheel ({error}); try again") from error
    wheels[0].unlink()
    return unpacked


def _find_part(unpacked: Path) -> Path | None:
    """Return the part of an archive that an unpacked wheel holds. None: the wheel holds a whole model, or nothing."""
    if next(unpacked.rglob("modules.json"), None) is not None:
        return None
    return next((path for path in sorted(unpacked.rglob("*.zip.*")) if _PART.fullmatch(path.name)), None)


def _join_parts(requirement: str, unpacked: Path, part: Path, scratch: Path) -> Path:
    """Fetch the wheels with the other parts of an archive, and return the folder of the archive that they make.

    The wheels of all parts have one version, and their names end in numbers that follow one another. No list says how
    many parts there are: the directory of a zip archive lies at its end, so the archive opens with its last part. The
    folder gets a RECORD like that of a wheel, because `_find_changed_file` checks the folder by it.

    Args:
        requirement: the wheel of the first part.
        unpacked: the folder of that wheel.
        part: the part in that folder.
        scratch: where the other wheels are unpacked, one after another.
    """
    distribution, _, version = requirement.partition("==")
    stem = distribution.rstrip("0123456789")
    digits = distribution[len(stem) :]
    name, _, first = part.name.rpartition(".")
    if not digits or not int(digits) == int(first) == 1:
        raise SourceError(
            f"wheel {requirement}: holds {part.name}, a part of an archive; name the wheel of the first part, whose "
            f"number is 1: {stem}{1:0{len(digits) or 3}}=={version}"
        )
    archive, joined = scratch / name, scratch / "joined"
    for number in itertools.count(1):
        wheel = f"{stem}{number:0{len(digits)}}=={version}"
        if number > 1:
            try:
                unpacked = _fetch_wheel(wheel, scratch)
            except SourceError as error:
                raise SourceError(
                    f"wheel {requirement}: parts 1 to {number - 1} of {name} make no whole archive, and the next part "
                    f"cannot be fetched: {error}"
                ) from error
        _append_part(wheel, unpacked, f"{name}.{number:0{len(first)}}", archive)
        shutil.rmtree(unpacked)
        try:
            with zipfile.ZipFile(archive) as whole:
                whole.extractall(joined)
        except zipfile.BadZipFile:
            shutil.rmtree(joined, ignore_errors=True)
        except RuntimeError as error:  # NotImplementedError is one, too
            raise SourceError(
                f"wheel {requirement}: {name} cannot be unpacked ({error}); join the parts and unpack the archive "
                "yourself, and build from the folder: firstvec build FOLDER"
            ) from error
        else:
            break
    archive.unlink()
    _write_record(joined, joined / f"{distribution.replace('-', '_')}-{version}.dist-info")
    return joined


def _append_part(wheel: str, unpacked: Path, name: str, archive: Path) -> None:
    """Check an unpacked wheel by its RECORD, and append the part ``name`` that it holds to the archive."""
    if changed := _find_changed_file(unpacked):
        raise SourceError(
            f"wheel {wheel}: {changed.relative_to(unpacked)} differs from the wheel's RECORD; build again to download "
            "the wheel again"
        )
    part = next(unpacked.rglob(name), None)
    if part is None:
        raise SourceError(f"wheel {wheel}: holds no {name}, which follows the part in the wheel before")
    with part.open("rb") as source, archive.open("ab") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _write_record(folder: Path, info: Path) -> None:
    """Write the digests of all files of ``folder`` into a RECORD, as a wheel has it, in the new folder ``info``."""
    rows = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").digest()
        text = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        rows.append((path.relative_to(folder).as_posix(), f"sha256={text}", path.stat().st_size))
    info.mkdir()
    with (info / "RECORD").open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines, lineterminator="\n").writerows(rows)


def _resolve_hub_id(
    name: str, revision: str | None, sha256: str | None, pooling: str | None, trust_remote_code: bool
) -> Source:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise SourceError(f"{name!r} is neither a folder, a name in models.toml, a wheel NAME==VERSION nor a hub id")
    import httpx
    import huggingface_hub

    try:
        commit = huggingface_hub.HfApi().model_info(name, revision=revision).sha
        patterns = ["*.json", "*.txt", "*.model", *_WEIGHTS, "*/config.json", *(["*.py"] if trust_remote_code else [])]
        patterns += licence.PATTERNS
        path = huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=patterns)
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.RevisionNotFoundError) as error:
        raise SourceError(f"hub id {name} at revision {revision or 'main'}: not found on the hub") from error
    except (httpx.HTTPError, OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise SourceError(
            f"hub id {name} (it is no folder and no name in models.toml): the hub cannot be reached "
            f"({type(error).__name__}); check the name and the network, "
            "or build from a local folder: firstvec build FOLDER"
        ) from error
    return _make_source(Path(path), name, f"hub {name}", commit, sha256, pooling)


def _make_source(
    path: Path, name: str, origin: str, revision: str | None, sha256: str | None, pooling: str | None = None
) -> Source:
    """Check a Sentence-Transformers folder and its weights, and return the record."""
    has_modules = (path / "modules.json").is_file()
    if has_modules and pooling is not None:
        raise SourceError(f"{path}: names its own modules and pooling (modules.json); leave --pooling out")
    if not has_modules and (pooling is None or not (path / "config.json").is_file()):
        library = _infer_library(path)
        hint = f"; its files are those of a model of the library {library}" if library else ""
        explained = _explain_onnx(path)
        if library == "transformers" and not explained:
            hint += "; if the model's authors say how its token vectors are pooled, build it with --pooling MODE"
        raise SourceError(f"{path}: is not a sentence-transformers folder (no modules.json){hint}{explained}")
    _check_weights(path)
    actual = _digest_weights(path)
    if sha256 is not None and actual != sha256.lower():
        raise SourceError(
            f"{origin}: the weights are not the pinned ones: expected sha256 {sha256}, found {actual}; "
            "download again, or change the pin if you trust the new weights"
        )
    return Source(name=name, path=path, origin=origin, revision=revision, sha256=actual)


def _check_weights(path: Path) -> None:
    """Refuse a folder that was downloaded in part.

    Raises:
        SourceError: a weights' file is a pointer of Git LFS, is cut off, or is missing.
    """
    again = "download the model again, with all of its files"
    for file in find_weights(path):
        with file.open("rb") as stream:
            head = stream.read(200)
            if head.startswith(b"version https://git-lfs"):
                raise SourceError(
                    f"{file}: is a pointer of Git LFS and holds no weights; run `git lfs pull` in {path}, or {again}"
                )
            if file.suffix == ".safetensors":
                _check_safetensors(file, int.from_bytes(head[:8], "little"), again)
    for index in sorted(path.rglob("*.index.json")):
        try:
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(f"{index}: is no list of weights' files ({error!r}); {again}") from error
        if missing := sorted(shard for shard in map(str, shards) if not (index.parent / shard).is_file()):
            raise SourceError(f"{index.parent / missing[0]}: is missing, and {index.name} names it; {again}")


def _check_safetensors(file: Path, header_bytes: int, again: str) -> None:
    """Check that a file has all bytes of which its header speaks (safetensors' format: size, JSON, tensors)."""
    size = file.stat().st_size
    end = 8 + header_bytes
    if header_bytes > _LONGEST_HEADER:
        return  # it is no safetensors file, and the library that loads it says so
    if end <= size:
        with file.open("rb") as stream:
            stream.seek(8)
            try:
                header = json.loads(stream.read(header_bytes))
                end += max(
                    (each["data_offsets"][1] for key, each in header.items() if key != "__metadata__"), default=0
                )
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                return
    if end > size:
        raise SourceError(f"{file}: is cut off: it has {size} bytes and needs {end}; {again}")


def find_code(path: Path) -> list[str]:
    """Return the files with code that a model's configuration names, as paths or as ``REPOSITORY: FILE``."""
    named: list[str] = []
    modules = _read_json(path / "modules.json")
    for module in modules if isinstance(modules, list) else []:
        kind = str(module.get("type", "")) if isinstance(module, dict) else ""
        if kind and not kind.startswith(_OWN_CODE):
            named.append(kind)
    for name in ("config.json", "tokenizer_config.json"):
        document = _read_json(path / name)
        classes = document.get("auto_map") if isinstance(document, dict) else None
        for value in classes.values() if isinstance(classes, dict) else []:
            named += [str(each) for each in (value if isinstance(value, list) else [value]) if each]
    found = []
    for each in named:
        repository, _, dotted = each.rpartition("--")
        file = "/".join(dotted.split(".")[:-1]) + ".py"
        found.append(f"{repository}: {file}" if repository else file)
    return list(dict.fromkeys(found))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _infer_library(path: Path) -> str | None:
    """Return the library whose model the folder holds, by optimum's rules. None: no library that optimum knows."""
    from optimum.exporters.tasks import TasksManager

    try:
        return str(TasksManager.infer_library_from_model(str(path)))
    except (ValueError, OSError):
        return None


def _digest_weights(path: Path) -> str:
    """Return the digest of the weights' file. Several files have one digest, made of their names and digests."""
    digests = {}
    for file in find_weights(path):
        with file.open("rb") as stream:
            digests[file.relative_to(path).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digests:
        advice = _explain_onnx(path) or (
            "; download the model again, with all of its files, or save it with SentenceTransformer.save()"
        )
        raise SourceError(f"{path}: holds no weights ({' or '.join(_WEIGHTS)}){advice}")
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256("".join(f"{name}:{digest}\n" for name, digest in digests.items()).encode()).hexdigest()


def _explain_onnx(path: Path) -> str:
    """Return what to do about a folder whose only weights are ONNX files. Empty: the folder has no ONNX file.

    The weights of an ONNX file are no source, because its exporter renamed, transposed and fused them. Such wheels hold
    neither a tokenizer nor a configuration, in most cases.
    """
    found = next((file.relative_to(path).as_posix() for file in sorted(path.rglob("*.onnx"))), None)
    if found is None:
        return ""
    return (
        f"; its weights are an ONNX file only ({found}), and firstvec exports all its artifacts from the weights of "
        "torch: build from the sentence-transformers model of which the ONNX file was made"
    )


def find_weights(path: Path) -> list[Path]:
    """Return the weights' files. Shards, and the weights of later modules, are separate files."""
    return next((files for pattern in _WEIGHTS if (files := sorted(path.rglob(pattern)))), [])
