"""Pack a bundle as a wheel, which pip installs where the runtime looks (PyPA binary distribution format 1.0)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from firstvec.bundle import MANIFEST_NAME, SIGNATURE_NAME, WHEEL_PACKAGE
from firstvec.bundle.integrity import open_verified
from firstvec.bundle.manifest import Manifest, keep_artifacts, read_manifest_bytes
from firstvec.errors import BuildError, InputError, ManifestError
from firstvec_build import temporary
from firstvec_build.shipping.sbom import make_sbom
from firstvec_build.shipping.signing import read_fitting_signature

_DATE = (1980, 1, 1, 0, 0, 0)
"""Every file of the wheel has this date, so that the same bundle gives the same bytes."""


def pack(manifest: Manifest, output: Path, *, only: Sequence[str] = ()) -> Path:
    """Write the bundle's wheel into the folder ``output``, and return its path. The wheel appears whole or not at all.

    The bundle's signature is packed only with the whole bundle, because the signature covers the whole manifest. The
    bill of materials lists the packed files, and lies where PEP 770 says.

    Args:
        manifest: the bundle's manifest.
        output: the folder for the wheel.
        only: ids of the artifacts to pack. Empty: all. An app for one platform needs one or two.

    Raises:
        IntegrityError: a file of the bundle is not the one that was built, or is a link, symbolic or hard.
        InputError: ``only`` names an artifact that the bundle does not have.
        ManifestError: the manifest was changed since it was read.
        SignatureError: the bundle's signature is malformed.
        MissingDependency: the packages of the extra ``sbom`` are not installed.
        BuildError: the bundle's signature covers other files, or ``output`` cannot be written.
    """
    ids = [artifact.id for artifact in manifest.artifacts]
    if unknown := [artifact_id for artifact_id in only if artifact_id not in ids]:
        raise InputError(f"the bundle has no artifact {unknown[0]!r}: it has {', '.join(ids)}")
    data = read_manifest_bytes(manifest.path)
    if Manifest.parse(data, manifest.path) != manifest:
        raise ManifestError(manifest.path, "was changed since it was read", "try again")
    kept = manifest.replace(
        artifacts=tuple(artifact for artifact in manifest.artifacts if not only or artifact.id in only)
    )
    takes_all = len(kept.artifacts) == len(ids)
    signature = read_fitting_signature(manifest, data) if takes_all else None
    if not takes_all:
        data = keep_artifacts(data, [artifact.id for artifact in kept.artifacts])
    materials = make_sbom(kept, data)
    distribution, version = _name_distribution(kept, takes_all=takes_all)
    folder = f"{WHEEL_PACKAGE}/{manifest.model.name.rsplit('/', 1)[-1]}"
    info = f"{distribution}-{version}.dist-info"
    metadata = (
        f"Metadata-Version: 2.1\nName: {distribution.replace('_', '-')}\nVersion: {version}\n"
        f"Summary: {manifest.model.name}, as a firstvec bundle\nRequires-Dist: firstvec\n"
    )
    tags = "Wheel-Version: 1.0\nGenerator: firstvec\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    path = output / f"{distribution}-{version}-py3-none-any.whl"
    scratch: Path | None = None
    records = []
    try:
        output.mkdir(parents=True, exist_ok=True)
        temporary.remove_abandoned(output, f".{path.name}-")
        scratch = temporary.make_file(output, f".{path.name}-")
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:

            def add(name: str, content: bytes) -> None:
                archive.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED)
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                records.append(f"{name},sha256={digest},{len(content)}")

            add(f"{folder}/{MANIFEST_NAME}", data)
            if signature is not None:
                add(f"{folder}/{SIGNATURE_NAME}", signature)
            for file in kept.files():
                with open_verified(manifest.root, file, use_markers=False) as opened:
                    add(f"{folder}/{file.path}", opened.read())
            add(f"{info}/METADATA", metadata.encode())
            add(f"{info}/WHEEL", tags.encode())
            add(f"{info}/sboms/{distribution}.cdx.json", materials)
            archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", _DATE), "\n".join([*records, f"{info}/RECORD,,", ""]))
        temporary.sync(scratch)
        os.replace(scratch, path)
        temporary.sync(output)
    except OSError as error:
        raise BuildError(f"{path}: cannot be written ({error.strerror or error}); choose another --output") from error
    finally:
        if scratch is not None:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
    return path


def _name_distribution(kept: Manifest, *, takes_all: bool) -> tuple[str, str]:
    """Return the wheel's distribution and version.

    A bundle has no version of its own. The local part of the wheel's version (PEP 440) says from which revision the
    bundle was built. If some artifacts are left out, the local part also identifies the packed artifacts. pip can then
    distinguish the wheels.
    """
    model = kept.model
    # A name without any ASCII letter or digit is replaced by its digest.
    name = _plain(model.name.rsplit("/", 1)[-1], "_") or hashlib.sha256(model.name.encode()).hexdigest()[:12]
    # The letter is needed, because pip would remove leading zeros from a part that has only digits.
    revision = _plain((model.revision or "")[:40], "")
    parts = [f"r{revision}"] if revision else []
    if not takes_all:
        ids = " ".join(artifact.id for artifact in kept.artifacts)
        parts.append("o" + hashlib.sha256(ids.encode()).hexdigest()[:8])
    return f"firstvec_bundle_{name}", "+".join(["1", *filter(None, [".".join(parts)])])


def _plain(text: str, separator: str) -> str:
    """Return the text in lower-case ASCII letters and digits, with ``separator`` for each run of other characters."""
    return re.sub(r"[^a-z0-9]+", separator, text.lower()).strip(separator)
