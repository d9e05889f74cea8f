"""Pack a bundle as wheels, which pip installs where the runtime looks (PyPA binary distribution format 1.0)."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from firstvec.bundle import MANIFEST_NAME, SIGNATURE_NAME, WHEEL_PACKAGE
from firstvec.bundle.integrity import open_verified
from firstvec.bundle.manifest import Artifact, File, Manifest, keep_artifacts
from firstvec.errors import BuildError, InputError
from firstvec_build import temporary
from firstvec_build.licence import is_name_of_text
from firstvec_build.shipping.core_metadata import check_version, choose_license, make_metadata, require_runtime
from firstvec_build.shipping.sbom import make_sbom
from firstvec_build.shipping.signing import read_fitting_signature
from firstvec_build.shipping.whole_bundle import name_folder, read_whole

USUAL_LIMIT = 100_000_000
"""Bytes. Many package indexes take no larger file, unless somebody asks them to."""
_DATE = (1980, 1, 1, 0, 0, 0)
"""Every file of the wheel has this date, so that the same bundle gives the same bytes."""
_LEVEL = 6
"""zlib's default. Level 1 makes the wheel of an artifact larger by 0.4 to 0.9 %, and level 9 smaller by 0.02 %."""

ReportReplaced = Callable[[Path], None]
"""Called with the path of a wheel that had the same name and other bytes, and was replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wheel:
    """What a wheel will hold."""

    manifest: Manifest
    data: bytes
    """The manifest's bytes, which are packed with the wheel or with another one."""
    name: str
    """Of the distribution, with ``_`` between the words."""
    folder: str
    """Where the files are installed, below ``firstvec_bundles``."""
    kind: str
    """What the wheel is, for people."""
    loose: dict[str, bytes]
    """Path → content of the files that the manifest does not list: the manifest and the signature."""
    files: tuple[File, ...]
    shown: tuple[Artifact, ...]
    """The artifacts in the text for the wheel's page."""
    license_expression: str
    parts: tuple[str, ...] = ()
    """Names of the distributions that need this one."""
    base: str | None = None
    """Name of the distribution without which this wheel is of no use. None: the runtime."""
    version: str = ""


def pack(
    manifest: Manifest,
    output: Path,
    *,
    only: Sequence[str] = (),
    version: str | None = None,
    license: str | None = None,  # noqa: A002 - the word of SPDX and of a package's metadata
    report_replaced: ReportReplaced = lambda _path: None,
) -> Path:
    """Write the bundle's wheel into the folder ``output``, and return its path. The wheel appears whole or not at all.

    The bundle's signature is packed only with the whole bundle, because the signature covers the whole manifest. The
    bill of materials lists the packed files, and lies where PEP 770 says. A wheel with some artifacts is another
    distribution, and its files are installed in another folder, so that no two wheels have a file in common.

    Args:
        manifest: the bundle's manifest.
        output: the folder for the wheel.
        only: ids of the artifacts to pack. Empty: all. An app for one platform needs one or two.
        version: of the wheel. None: ``0.N``, where N comes from the content. Other content has another N.
        license: SPDX expression of the model's licence, where the manifest states none.
        report_replaced: called if a wheel of the same name and of other bytes was replaced.

    Raises:
        IntegrityError: a file of the bundle is not the one that was built, or is a link, symbolic or hard.
        InputError: ``only`` names an artifact that the bundle does not have, ``version`` is no version for a package
            index, or the licence is missing or wrong.
        ManifestError: the manifest was changed since it was read, or the model's name cannot be that of a folder.
        SignatureError: the bundle's signature is malformed.
        MissingDependency: the packages of the extra ``sbom`` are not installed.
        BuildError: the bundle's signature covers other files, or ``output`` cannot be written.
    """
    data, chosen = _read(manifest, only)
    license_expression = choose_license(manifest, license)
    takes_all = len(chosen) == len(manifest.artifacts)
    ids = [artifact.id for artifact in chosen]
    signature = read_fitting_signature(manifest, data) if takes_all else None
    if not takes_all:
        data = keep_artifacts(data, ids)
    kept = manifest.replace(artifacts=chosen)
    name, folder = _name_distribution(manifest, *([] if takes_all else ids))
    wheel = _Wheel(
        manifest=kept,
        data=data,
        name=name,
        folder=folder,
        kind="a bundle" if takes_all else "a bundle of some artifacts",
        loose={MANIFEST_NAME: data} | ({SIGNATURE_NAME: signature} if signature is not None else {}),
        files=tuple(kept.files()),
        shown=chosen,
        license_expression=license_expression,
    )
    return _write(_with_version(wheel, version), output, report_replaced)


def pack_parts(
    manifest: Manifest,
    output: Path,
    *,
    only: Sequence[str] = (),
    version: str | None = None,
    license: str | None = None,  # noqa: A002 - the word of SPDX and of a package's metadata
    report_replaced: ReportReplaced = lambda _path: None,
) -> list[Path]:
    """Write a wheel for each artifact, and a base wheel with all other files. Return their paths, the base first.

    The wheels are installed into one folder, and each file belongs to one wheel. A part needs the base of its own
    version. The base holds the whole manifest and the signature. The runtime passes over artifacts of which no file is
    installed.

    Args:
        only: ids of the artifacts for which a wheel is written. Empty: all. The base is the same in any case.

    The other arguments and the errors are those of `pack`.
    """
    data, chosen = _read(manifest, only)
    license_expression = choose_license(manifest, license)
    signature = read_fitting_signature(manifest, data)
    name, _ = _name_distribution(manifest, "base")
    _, folder = _name_distribution(manifest, "parts")
    names = {artifact.id: _name_distribution(manifest, "part", artifact.id)[0] for artifact in manifest.artifacts}
    base = _Wheel(
        manifest=manifest,
        data=data,
        name=name,
        folder=folder,
        kind="the base of a bundle in parts",
        loose={MANIFEST_NAME: data} | ({SIGNATURE_NAME: signature} if signature is not None else {}),
        files=tuple(manifest.replace(artifacts=()).files()),
        shown=manifest.artifacts,
        license_expression=license_expression,
        parts=tuple(names.values()),
    )
    base = _with_version(base, version)
    parts = [
        replace(
            base,
            name=names[artifact.id],
            parts=(),
            kind="a part of a bundle",
            loose={},
            files=artifact.files,
            shown=(artifact,),
            base=base.name,
        )
        for artifact in chosen
    ]
    # The base comes last: where it lies, its parts lie, too.
    paths = [_write(wheel, output, report_replaced) for wheel in (*parts, base)]
    return [paths[-1], *paths[:-1]]


def _read(manifest: Manifest, only: Sequence[str]) -> tuple[bytes, tuple[Artifact, ...]]:
    """Return the manifest's bytes, and the artifacts to pack."""
    ids = [artifact.id for artifact in manifest.artifacts]
    data = read_whole(manifest)
    if unknown := [artifact_id for artifact_id in only if artifact_id not in ids]:
        raise InputError(f"the bundle has no artifact {unknown[0]!r}: it has {', '.join(ids)}")
    return data, tuple(artifact for artifact in manifest.artifacts if not only or artifact.id in only)


def _name_distribution(manifest: Manifest, *suffixes: str) -> tuple[str, str]:
    """Return the name of a wheel's distribution, and of the folder of its files."""
    base = name_folder(manifest)
    # A name without any ASCII letter or digit is replaced by its digest.
    name = _plain(base, "_") or hashlib.sha256(manifest.model.name.encode()).hexdigest()[:12]
    words = [_plain(suffix, "_") for suffix in suffixes]
    folder = "-".join([base, *(word.replace("_", "-") for word in words)])
    return "_".join(["firstvec_bundle", name, *words]), folder


def _plain(text: str, separator: str) -> str:
    """Return the text in lower-case ASCII letters and digits, with ``separator`` for each run of other characters."""
    return re.sub(r"[^a-z0-9]+", separator, text.lower()).strip(separator)


def _with_version(wheel: _Wheel, version: str | None) -> _Wheel:
    """Return the wheel with the version that was given, or with ``0.N``, where N is a digest of the content.

    The order of two such versions means nothing, but pip replaces a wheel by one of other content. Every release
    number from 1 is above them.
    """
    if version is not None:
        return replace(wheel, version=check_version(version))
    content = b"".join([*wheel.loose.values(), _make_metadata(replace(wheel, version="0")), _make_bill(wheel)])
    return replace(wheel, version=f"0.{int(hashlib.sha256(content).hexdigest()[:8], 16)}")


def _find_license_files(wheel: _Wheel) -> list[File]:
    return [file for file in wheel.manifest.support_files if is_name_of_text(file.path)]


def _make_metadata(wheel: _Wheel) -> bytes:
    return make_metadata(
        wheel.manifest,
        wheel.shown,
        name=wheel.name.replace("_", "-"),
        version=wheel.version,
        kind=wheel.kind,
        license_expression=wheel.license_expression,
        license_files=[file.path for file in _find_license_files(wheel)],
        requires=_find_requirements(wheel),
        installs=[each.replace("_", "-") for each in wheel.parts or (wheel.name,)],
    )


def _find_requirements(wheel: _Wheel) -> list[str]:
    runtime = require_runtime(wheel.manifest, () if wheel.parts else wheel.shown)
    return [f"{wheel.base.replace('_', '-')}=={wheel.version}", runtime] if wheel.base is not None else [runtime]


def _make_bill(wheel: _Wheel) -> bytes:
    is_whole = MANIFEST_NAME in wheel.loose and wheel.files == tuple(wheel.manifest.files())
    files = list(wheel.files)
    if MANIFEST_NAME in wheel.loose:
        files.insert(0, File(path=MANIFEST_NAME, size=len(wheel.data), sha256=hashlib.sha256(wheel.data).hexdigest()))
    return make_sbom(
        wheel.manifest,
        wheel.data,
        files=None if is_whole else files,
        license_expression=wheel.license_expression,
    )


def _write(wheel: _Wheel, output: Path, report_replaced: ReportReplaced) -> Path:
    """Write a wheel, and return its path. A previous wheel of the same name stays until the new one is whole."""
    stem = f"{wheel.name}-{wheel.version}"
    folder, info = f"{WHEEL_PACKAGE}/{wheel.folder}", f"{stem}.dist-info"
    materials = _make_bill(wheel)
    tags = "Wheel-Version: 1.0\nGenerator: firstvec\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    path = output / f"{stem}-py3-none-any.whl"
    scratch: Path | None = None
    lines = io.StringIO()
    records = csv.writer(lines, lineterminator="\n")
    try:
        output.mkdir(parents=True, exist_ok=True)
        temporary.remove_abandoned(output, f".{path.name}-")
        scratch = temporary.make_file(output, f".{path.name}-")
        with zipfile.ZipFile(scratch, "w") as archive:

            def add(name: str, content: bytes) -> None:
                # A ZipInfo does not take over the level of the archive.
                archive.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED, _LEVEL)
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                records.writerow((name, f"sha256={digest}", len(content)))

            for name, content in wheel.loose.items():
                add(f"{folder}/{name}", content)
            for file in wheel.files:
                with open_verified(wheel.manifest.root, file, use_markers=False) as opened:
                    add(f"{folder}/{file.path}", opened.read())
            add(f"{info}/METADATA", _make_metadata(wheel))
            add(f"{info}/WHEEL", tags.encode())
            for file in _find_license_files(wheel):
                with open_verified(wheel.manifest.root, file, use_markers=False) as opened:
                    add(f"{info}/licenses/{file.path}", opened.read())
            add(f"{info}/sboms/{wheel.name}.cdx.json", materials)
            records.writerow((f"{info}/RECORD", "", ""))
            archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", _DATE), lines.getvalue())
        temporary.sync(scratch)
        is_other = path.is_file() and _digest(path) != _digest(scratch)
        os.replace(scratch, path)
        temporary.sync(output)
    except OSError as error:
        raise BuildError(f"{path}: cannot be written ({error.strerror or error}); choose another --output") from error
    finally:
        if scratch is not None:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
    if is_other:
        report_replaced(path)
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
