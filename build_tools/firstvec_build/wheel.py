"""Pack a bundle as a wheel that installs it where the runtime looks (PyPA binary distribution format 1.0)."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import zipfile
from collections.abc import Sequence
from hashlib import sha256 as _sha256
from pathlib import Path

from firstvec.errors import BuildError, InputError
from firstvec.integrity import open_file
from firstvec.manifest import FILE_NAME, Manifest, read_bytes
from firstvec.signature import FILE_NAME as SIGNATURE_NAME
from firstvec.signature import read as read_signature
from firstvec.signature import signed_files
from firstvec.store import WHEEL_PACKAGE
from firstvec_build import unfinished
from firstvec_build.sbom import sbom

_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(manifest: Manifest, output: Path, *, only: Sequence[str] = ()) -> Path:
    """Write the bundle's wheel into the folder ``output`` and return its path. It appears whole or not at all.

    A signature goes along where the whole bundle does: it is one of the whole manifest. The bill of materials is that
    of what is packed, where PEP 770 puts it.

    Args:
        only: ids of the artifacts to take along; empty takes all. An app for one platform needs one or two.

    Raises:
        IntegrityError: a file of the bundle is not the one that was built, or is a link, symbolic or hard.
        InputError: ``only`` names an artifact that the bundle does not have.
        SignatureError: the bundle's signature is not one that it can have.
        MissingDependency: the packages of the extra ``sbom`` are not installed.
        BuildError: the bundle's signature is one of other files, or ``output`` cannot be written.
    """
    ids = [artifact.id for artifact in manifest.artifacts]
    if unknown := [artifact_id for artifact_id in only if artifact_id not in ids]:
        raise InputError(f"the bundle has no artifact {unknown[0]!r}: it has {', '.join(ids)}")
    kept = manifest.replace(
        artifacts=tuple(artifact for artifact in manifest.artifacts if not only or artifact.id in only)
    )
    data, signature = _signed(manifest, kept)
    materials = sbom(kept, data)
    # A name without any letter of ASCII is told apart by its digest.
    name = _plain(manifest.model.name.rsplit("/", 1)[-1], "_") or _sha256(manifest.model.name.encode()).hexdigest()[:12]
    distribution = f"firstvec_bundle_{name}"
    # A bundle has no version of its own; the revision it was built from tells two of them apart (PEP 440 local part).
    # With a letter in front: digits alone would lose their leading zeros in pip's normal form.
    local = _plain((manifest.model.revision or "")[:40], "")
    parts = [f"r{local}"] if local else []
    if len(kept.artifacts) < len(ids):  # or it would take the whole bundle's name, and pip could not tell them apart
        parts.append("o" + _sha256(" ".join(artifact.id for artifact in kept.artifacts).encode()).hexdigest()[:8])
    version = "+".join(["1", *filter(None, [".".join(parts)])])
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
        unfinished.collect(output, f".{path.name}-")
        scratch = unfinished.make_file(output, f".{path.name}-")
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:

            def add(arcname: str, data: bytes) -> None:
                archive.writestr(zipfile.ZipInfo(arcname, _EPOCH), data, zipfile.ZIP_DEFLATED)
                digest = base64.urlsafe_b64encode(_sha256(data).digest()).rstrip(b"=").decode()
                records.append(f"{arcname},sha256={digest},{len(data)}")

            add(f"{folder}/{FILE_NAME}", data)
            if signature is not None:
                add(f"{folder}/{SIGNATURE_NAME}", signature)
            for file in kept.files():
                with open_file(manifest.root, file, remember=False) as opened:
                    add(f"{folder}/{file.path}", opened.read())
            add(f"{info}/METADATA", metadata.encode())
            add(f"{info}/WHEEL", tags.encode())
            add(f"{info}/sboms/{distribution}.cdx.json", materials)
            archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", _EPOCH), "\n".join([*records, f"{info}/RECORD,,", ""]))
        unfinished.sync(scratch)
        os.replace(scratch, path)
        unfinished.sync(output)
    except OSError as error:
        raise BuildError(f"{path}: cannot be written ({error.strerror or error}); choose another --output") from error
    finally:
        if scratch is not None:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
    return path


def _signed(manifest: Manifest, kept: Manifest) -> tuple[bytes, bytes | None]:
    """The manifest's bytes, and the signature of just these, if all of the bundle is packed and it is signed."""
    data = read_bytes(manifest.path)
    if Manifest.parse(data, manifest.path) != kept:
        return kept.to_json(), None
    path = os.path.join(manifest.root, SIGNATURE_NAME)
    if not os.path.lexists(path):
        return data, None
    signature = read_signature(manifest.root)
    digests = {FILE_NAME: _sha256(data).hexdigest(), **{file.path: file.sha256 for file in kept.files()}}
    if signed_files(signature, path) != digests:
        raise BuildError(
            f"{path}: is of other files than the wheel would hold; run `firstvec sign` again, or remove it"
        )
    return data, signature


def _plain(text: str, separator: str) -> str:
    """Lower-case ASCII letters and digits, everything else one ``separator``."""
    return re.sub(r"[^a-z0-9]+", separator, text.lower()).strip(separator)
