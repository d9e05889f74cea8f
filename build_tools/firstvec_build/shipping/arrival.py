"""Take a bundle from a registry or hub. Files are checked while they arrive, and the bundle appears whole or never."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from firstvec.bundle import MANIFEST_NAME, SIGNATURE_NAME
from firstvec.bundle.manifest import File, Manifest, keep_artifacts, read_manifest_bytes
from firstvec.bundle.signature import MAX_BYTES, PublicKey, check_signature_bytes, read_key, signed_files
from firstvec.errors import FirstvecError, InputError, SignatureError, TransferError
from firstvec.machine.profile import ResourceProfile
from firstvec.options import make_options
from firstvec.selection import select
from firstvec_build import publishing, temporary
from firstvec_build.shipping.progress import Report, behind
from firstvec_build.shipping.whole_bundle import name_folder

_CHUNK = 1 << 20
_ATTEMPTS = 4
"""Attempts at one file that bring less than a chunk."""
_PAUSE_SECONDS = 0.5
"""Before the second attempt. Each further pause is twice as long."""


class Remote(Protocol):
    """One bundle in a registry or hub. Every error is a TransferError, also one of the network.

    The implementation stays with one version of the bundle, although names may move to another version meanwhile.
    """

    @property
    def address(self) -> str:
        """Where the bundle is, for messages."""

    def read_manifest(self) -> bytes:
        """Return the bytes of firstvec.json, at most one more than the format allows."""

    def read_signature(self) -> bytes | None:
        """Return the bytes of model.sig, at most one more than the format allows. None: the bundle is not signed."""

    def open_file(self, file: File, start: int) -> Iterator[bytes]:
        """Yield the bytes of a file from byte ``start`` on, in pieces. Nobody has checked them yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What `receive` did."""

    manifest: Manifest
    """Of the bundle in its place."""
    is_new: bool
    """False: the same bundle was there already, and nothing was written."""
    has_replaced: bool
    """Whether another bundle was there before."""
    fetched: int
    """Bytes of files that came from the remote."""
    reused: int
    """Bytes of files that an earlier try, or the previous bundle, had left here."""
    is_signed: bool
    """Whether the signature lies in the bundle."""
    left_out_signature: bool
    """Whether the remote has a signature that was left out, because it covers more artifacts than were taken."""


def receive(
    remote: Remote,
    output: Path,
    *,
    only: Sequence[str] = (),
    strategy: str | None = None,
    require_signature: Path | None = None,
    report: Report = lambda _done, _total: None,
    report_wait: Callable[[], None] = lambda: None,
) -> Received:
    """Take a bundle from ``remote``, and let it appear in a folder of ``output`` that is named after the model.

    Only the files of the wanted artifacts are fetched, and those that every artifact needs. What an earlier try left is
    hashed and used. If some artifacts are left out, the signature is checked and left out, too.

    Args:
        remote: the bundle to take.
        output: the folder for bundles.
        only: ids of the artifacts to take. Empty: all.
        strategy: take only the artifact that this strategy takes on this machine.
        require_signature: file of the public key that must have signed the bundle. The signature is checked before
            any other file is fetched.
        report: called with the bytes of files that are here, and the bytes of all files.
        report_wait: called if another process works on the same bundle.

    Raises:
        TransferError: the remote cannot be reached, or sends something else than it promised.
        ManifestError: the manifest is not valid, or its model's name cannot be that of a folder.
        SignatureError: the signature is required and missing, or it does not fit.
        InputError: ``only`` names an artifact that the bundle does not have, or ``strategy`` is unknown.
        NoCompatibleArtifact: ``strategy`` finds no artifact for this machine.
        BuildError: ``output`` cannot be written.
        MissingDependency: the package cryptography, which the check of a signature needs, is not installed.
    """
    key = check_request(output, only=only, strategy=strategy, require_signature=require_signature)
    data = remote.read_manifest()
    path = f"{remote.address}/{MANIFEST_NAME}"
    manifest = Manifest.parse(data, path)
    signature = remote.read_signature()
    if key is not None:
        if signature is None:
            raise SignatureError(f"{remote.address}/{SIGNATURE_NAME}", "does not exist: the bundle is not signed", _ASK)
        check_signature_bytes(manifest, data, signature, key)
    elif signature is not None:
        _check_fit(manifest, data, signature)
    ids = _choose(manifest, only, strategy)
    takes_all = len(ids) == len(manifest.artifacts)
    kept_data = data if takes_all else keep_artifacts(data, ids)
    kept_signature = signature if takes_all else None
    kept = Manifest.parse(kept_data, path)
    target = output / name_folder(manifest)
    files = {file.path: file for file in kept.files()}
    fetched = 0
    total = sum(file.size for file in files.values())
    with publishing.lock(target, report_wait):
        current = _read_current(target, kept_data, kept_signature)
        is_new, has_replaced = current is None, (target / MANIFEST_NAME).exists()
        if current is not None:
            temporary.remove_abandoned(target.parent, _stem(target))
        else:
            with _make_workplace(target, data) as folder:
                _take_what_is_here(target, data, folder, files)
                done = 0
                for file in files.values():
                    fetched += _fetch(remote, file, folder / file.path, behind(report, done, total))
                    done += file.size
                current = publishing.publish(folder, kept, target, data=kept_data, signature=kept_signature)
    return Received(
        manifest=current,
        is_new=is_new,
        has_replaced=is_new and has_replaced,
        fetched=fetched,
        reused=max(total - fetched, 0) if is_new else 0,
        is_signed=(target / SIGNATURE_NAME).exists(),
        left_out_signature=signature is not None and not takes_all,
    )


def check_request(
    output: Path, *, only: Sequence[str] = (), strategy: str | None = None, require_signature: Path | None = None
) -> PublicKey | None:
    """Check what can be checked before the remote is asked, and return the key that must have signed the bundle.

    Raises:
        InputError: ``strategy`` is unknown, or artifacts are given, too.
        SignatureError: the key is not usable.
        BuildError: ``output`` cannot be written.
    """
    if only and strategy is not None:
        raise InputError("both artifacts and a strategy are given: leave --only or --strategy out")
    if strategy is not None:
        make_options(strategy=strategy)
    publishing.check_writable(output)
    return read_key(str(require_signature)) if require_signature is not None else None


_ASK = "ask the signer to sign the bundle with `firstvec sign` and to push it again"


def _check_fit(manifest: Manifest, data: bytes, signature: bytes) -> None:
    """Raise SignatureError unless the signature names these files. Who made it is not checked, for want of a key."""
    path = os.path.join(manifest.root, SIGNATURE_NAME)
    if len(signature) > MAX_BYTES:
        raise SignatureError(path, f"is larger than {MAX_BYTES} bytes", _ASK)
    named = signed_files(signature, path)
    digests = {MANIFEST_NAME: hashlib.sha256(data).hexdigest(), **{file.path: file.sha256 for file in manifest.files()}}
    for name, digest in digests.items():
        if named.get(name) != digest:
            raise SignatureError(path, f"is of another bundle, or this one was changed: {name} differs", _ASK)


def _choose(manifest: Manifest, only: Sequence[str], strategy: str | None) -> list[str]:
    """Return the ids of the wanted artifacts."""
    ids = [artifact.id for artifact in manifest.artifacts]
    if unknown := [artifact_id for artifact_id in only if artifact_id not in ids]:
        raise InputError(f"the bundle has no artifact {unknown[0]!r}: it has {', '.join(ids)}")
    if strategy is not None:
        return [select(manifest, ResourceProfile.detect(), make_options(strategy=strategy)).artifact.id]
    return [artifact_id for artifact_id in ids if not only or artifact_id in only]


def _read_current(target: Path, data: bytes, signature: bytes | None) -> Manifest | None:
    """Return the manifest of the bundle in ``target``. None: it is another bundle, is damaged, or is missing.

    A signature that only the bundle here has is the user's own, and stays.
    """
    try:
        path = str(target / MANIFEST_NAME)
        if read_manifest_bytes(path) != data:
            return None
        manifest = Manifest.parse(data, path)
        publishing.check_files(manifest)
        if signature is not None and (target / SIGNATURE_NAME).read_bytes() != signature:
            return None
    except (FirstvecError, OSError):
        return None
    return manifest


@contextmanager
def _make_workplace(target: Path, data: bytes) -> Iterator[Path]:
    """Make a hidden folder beside ``target``, and yield a folder in it for the bundle's files.

    After an error the files stay for the next try. They are those of the manifest ``data``, which lies beside them.
    """
    with publishing.raise_as_build_error(target):
        workplace = temporary.make_folder(target.parent, _stem(target))
        try:
            (workplace / _SOURCE).write_bytes(data)
            folder = workplace / "bundle"
            folder.mkdir()
            folder.chmod(0o755)
            yield folder
        except BaseException:
            if any(_size_of(path) > 0 for path in workplace.glob("bundle/**/*")):
                with contextlib.suppress(OSError):
                    temporary.abandon(workplace, _stem(target))
            else:
                shutil.rmtree(workplace, ignore_errors=True)
            raise
        # What is in the folder now is the previous bundle, or nothing.
        shutil.rmtree(workplace, ignore_errors=True)


_SOURCE = "source.json"
"""Name of the remote's manifest in a workplace."""


def _stem(target: Path) -> str:
    return f".{target.name}.pull-"


def _take_what_is_here(target: Path, data: bytes, folder: Path, files: dict[str, File]) -> None:
    """Fill ``folder`` with what earlier tries and the previous bundle have of the files. Nothing is trusted yet."""
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    for workplace in temporary.find_abandoned(target.parent, _stem(target)):
        if _read_bytes(workplace / _SOURCE) == data:
            for path, file in files.items():
                left, place = workplace / "bundle" / path, folder / path
                if _size_of(place) < _size_of(left) <= file.size:
                    with contextlib.suppress(OSError):  # another pull has taken it, where locks have no effect
                        left.replace(place)
        shutil.rmtree(workplace, ignore_errors=True)
    try:
        previous = {file.sha256: file.path for file in Manifest.read(target).files()}
    except FirstvecError:
        return
    for path, file in files.items():
        here, place = target / previous.get(file.sha256, ""), folder / path
        if _size_of(here) == file.size > _size_of(place):
            try:
                shutil.copyfile(here, place, follow_symlinks=False)
            except OSError:
                place.unlink(missing_ok=True)


def _size_of(path: Path) -> int:
    """Return the size of a file, or -1 if there is no file of that name. A link is no file."""
    return path.lstat().st_size if path.is_file() and not path.is_symlink() else -1


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _fetch(remote: Remote, file: File, path: Path, report: Callable[[int], None]) -> int:
    """Bring a file to ``path``, behind what is there of it, and return how many bytes were fetched."""
    fetched = attempt = 0
    while True:
        before = fetched
        try:
            for count in _fetch_once(remote, file, path, report):
                fetched += count
        except TransferError as error:
            attempt = 0 if fetched - before >= _CHUNK else attempt + 1
            if not error.is_passing or attempt >= _ATTEMPTS:
                raise
            time.sleep(_PAUSE_SECONDS * 2 ** max(attempt - 1, 0))
        else:
            return fetched


def _fetch_once(remote: Remote, file: File, path: Path, report: Callable[[int], None]) -> Iterator[int]:
    """Go on with a file behind what is there of it, and yield the size of each piece that came.

    Raises:
        TransferError: the file has not come to its end, or is another one. What is wrong is removed.
    """
    digest = hashlib.sha256()
    with path.open("a+b") as stream:
        stream.seek(0)
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
        start = size = stream.tell()
        report(size)
        if size < file.size:
            with contextlib.closing(_closable(remote.open_file(file, size))) as pieces:
                for piece in pieces:
                    size += len(piece)
                    if size > file.size:
                        break
                    stream.write(piece)
                    digest.update(piece)
                    report(size)
                    yield len(piece)
    name = f"{remote.address}/{file.path}"
    if size < file.size:
        raise TransferError(name, f"ended after {size} of {file.size} bytes", "try again", is_passing=True)
    if size == file.size and digest.hexdigest() == file.sha256:
        return
    path.unlink()
    if start:  # the bytes that an earlier try left may be the wrong ones
        yield from _fetch_once(remote, file, path, report)
        return
    found = f"more than {file.size} bytes" if size > file.size else f"sha256 {digest.hexdigest()[:16]}…"
    raise TransferError(
        name,
        f"is not the file that the manifest describes: expected sha256 {file.sha256[:16]}…, found {found}",
        "nothing of it was kept; ask whoever pushed the bundle to push it again",
    )


def _closable(pieces: Iterator[bytes]) -> Generator[bytes, None, None]:
    """Return a generator, which ends a transfer when it is closed."""
    yield from pieces
