"""The model to build from: a pinned wheel, a hub id and revision, or a local Sentence-Transformers folder."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from firstvec.errors import SourceError
from firstvec.machine.cache import cache_folder
from firstvec_build import temporary

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Patterns of weight files. The first pattern that matches a file is taken."""
_RECORD_HASHES = ("sha256", "sha384", "sha512")
"""The hashes that a wheel's RECORD may use: SHA-256 or better."""


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


def resolve(model: str | None = None, *, revision: str | None = None, sha256: str | None = None) -> Source:
    """Find the model to build from, fetch it if it is not here yet, and verify its weights.

    Args:
        model: a name in ``models.toml``, a local folder, a wheel ``NAME==VERSION``, or a hub id. None: the default of
            ``models.toml``.
        revision: commit, tag or branch of a hub id. The result has the commit.
        sha256: expected digest of the weights. A wheel that is not in ``models.toml`` needs it.

    Raises:
        SourceError: the model is not there, cannot be fetched, is not a sentence-transformers model, or has other
            weights.
    """
    try:
        return _resolve(model, revision, sha256)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise SourceError(
            f"{place}cannot be read or written ({error.strerror or error}) while fetching "
            f"{'the default model' if model is None else model}; check the file's permissions, the space and the disk"
        ) from error


def _resolve(model: str | None, revision: str | None, sha256: str | None) -> Source:
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
        return _make_source(Path(name), os.path.basename(os.path.abspath(name)), "folder", revision, sha256)
    if "==" in name:
        if sha256 is None:
            raise SourceError(f"{name}: a wheel must be pinned: give the digest of its weights with --sha256")
        return _resolve_wheel(name, name.partition("==")[0], revision, sha256, is_pinned=False)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise SourceError(f"{name}: there is no such folder")
    return _resolve_hub_id(name, revision, sha256)


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
            raise SourceError(f"wheel {requirement}: holds no sentence-transformers model (no modules.json)")
        source = _make_source(models[0], name, f"wheel {requirement}", revision, sha256)
        # The tokenizer and the configuration decide the vectors, too, so the weights alone prove too little.
        if changed := _find_changed_file(folder, verified=_find_weights(source.path)):
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
    """Download a wheel with pip and unpack it. ``folder`` appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary.remove_abandoned(folder.parent, f".{folder.name}-")
    scratch = temporary.make_folder(folder.parent, f".{folder.name}-")
    try:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(
            [*command, "--dest", str(scratch), requirement], capture_output=True, text=True, check=False
        )
        wheels = list(scratch.glob("*.whl"))
        if done.returncode or not wheels:
            reason = next(
                (line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), "no wheel was found"
            )
            raise SourceError(
                f"wheel {requirement}: cannot be downloaded ({reason.strip()}); check the network and pip's settings, "
                "or build from a local folder: firstvec build FOLDER"
            )
        try:
            with zipfile.ZipFile(wheels[0]) as archive:
                archive.extractall(scratch / "unpacked")
        except zipfile.BadZipFile as error:
            raise SourceError(f"wheel {requirement}: the downloaded file is no wheel ({error}); try again") from error
        temporary.sync_tree(scratch / "unpacked")
        try:
            os.rename(scratch / "unpacked", folder)
        except OSError:
            if not folder.is_dir():  # otherwise another build was first
                raise
        temporary.sync(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _resolve_hub_id(name: str, revision: str | None, sha256: str | None) -> Source:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise SourceError(f"{name!r} is neither a folder, a name in models.toml, a wheel NAME==VERSION nor a hub id")
    import httpx
    import huggingface_hub

    try:
        commit = huggingface_hub.HfApi().model_info(name, revision=revision).sha
        path = huggingface_hub.snapshot_download(
            name, revision=commit, allow_patterns=["*.json", "*.txt", "*.model", *_WEIGHTS, "*/config.json"]
        )
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.RevisionNotFoundError) as error:
        raise SourceError(f"hub id {name} at revision {revision or 'main'}: not found on the hub") from error
    except (httpx.HTTPError, OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise SourceError(
            f"hub id {name} (it is no folder and no name in models.toml): the hub cannot be reached "
            f"({type(error).__name__}); check the name and the network, "
            "or build from a local folder: firstvec build FOLDER"
        ) from error
    return _make_source(Path(path), name, f"hub {name}", commit, sha256)


def _make_source(path: Path, name: str, origin: str, revision: str | None, sha256: str | None) -> Source:
    """Check a Sentence-Transformers folder and its weights, and return the record."""
    if not (path / "modules.json").is_file():
        library = _infer_library(path)
        hint = f"; its files are those of a model of the library {library}" if library else ""
        raise SourceError(f"{path}: is not a sentence-transformers folder (no modules.json){hint}")
    actual = _digest_weights(path)
    if sha256 is not None and actual != sha256.lower():
        raise SourceError(
            f"{origin}: the weights are not the pinned ones: expected sha256 {sha256}, found {actual}; "
            "download again, or change the pin if you trust the new weights"
        )
    return Source(name=name, path=path, origin=origin, revision=revision, sha256=actual)


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
    for file in _find_weights(path):
        with file.open("rb") as stream:
            digests[file.relative_to(path).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digests:
        raise SourceError(f"{path}: holds no weights ({' or '.join(_WEIGHTS)})")
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256("".join(f"{name}:{digest}\n" for name, digest in digests.items()).encode()).hexdigest()


def _find_weights(path: Path) -> list[Path]:
    """Return the weights' files. Shards, and the weights of later modules, are separate files."""
    return next((files for pattern in _WEIGHTS if (files := sorted(path.rglob(pattern)))), [])
