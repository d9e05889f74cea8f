"""Bundles on the Hugging Face hub: `push` makes one commit of a bundle, and `open_remote` reads the bundle of a commit.

huggingface_hub finds the hub (``HF_ENDPOINT``), the token (``HF_TOKEN``, ``hf auth login``) and the proxy. A token goes
to the hub only: httpx removes it from a request that is redirected to another host.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firstvec import __version__
from firstvec.bundle import MANIFEST_NAME, SIGNATURE_NAME
from firstvec.bundle.manifest import MAX_BYTES, File, Manifest
from firstvec.bundle.signature import MAX_BYTES as MAX_SIGNATURE_BYTES
from firstvec.errors import FirstvecError, InputError, MissingDependency, TransferError, excerpt
from firstvec_build.shipping.addresses import Access, Hub
from firstvec_build.shipping.model_card import MARK, make_model_card
from firstvec_build.shipping.progress import Report, behind
from firstvec_build.shipping.signing import read_fitting_signature
from firstvec_build.shipping.whole_bundle import read_whole, verify_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

_CARD_NAME = "README.md"
_MAX_CARD_BYTES = 1 << 20
_LARGE = 1 << 20
"""Bytes. A file of this size is uploaded for itself, so that the display moves on."""
_TIMEOUT = 30.0
"""Seconds in which the hub must answer, or send the next bytes."""
_LIBRARY, _VERSION = "firstvec", __version__
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What `push` did."""

    address: str
    """With the commit, so that the same bundle can be pulled again."""
    sent: int
    """Bytes of files that are new or changed."""
    present: int
    """Bytes of files that the repository had."""
    is_signed: bool
    is_new: bool
    """False: the repository held exactly this bundle, and there is no new commit."""
    written: tuple[str, ...]
    """Files that are new or changed."""
    removed: tuple[str, ...]
    """Files of the bundle before, which this bundle does not have."""


def push(manifest: Manifest, address: Hub, access: Access, report: Report = lambda _done, _total: None) -> Pushed:
    """Commit a bundle to the branch ``main`` of a repository, and make the repository if there is none.

    One commit brings the files of the bundle, and removes those of the bundle that was there before. Files that a
    person put there stay. A repository without README.md gets a page about the bundle.

    Args:
        manifest: the bundle's manifest.
        address: the repository.
        access: whether a new repository is private. Nothing else, because huggingface_hub has its own settings.
        report: called with the bytes that are done, and all bytes.

    Raises:
        IntegrityError: a file of the bundle is not the one that was built.
        ManifestError: the manifest was changed since it was read, or the one in the repository is not valid.
        SignatureError, BuildError: the bundle's signature is malformed, or covers other files.
        InputError: the address names a revision, or ``access`` does not fit.
        TransferError: the hub cannot be reached or refuses, or a person's file is in the way.
        MissingDependency: the package huggingface_hub is not installed.
    """
    if address.revision is not None:
        raise InputError(f"{address}: names a revision; push to hf://{address.repository}, and the push makes a commit")
    api = _open_api(access)
    contents = _find_contents(manifest)
    with _explain_errors(address):
        head = _open_repository(api, address, private=access.private)
        there = _list_files(api, address.repository, head)
        old = _find_old_files(HubBundle(api, address.repository, head), there)
        if _CARD_NAME not in contents and (_CARD_NAME not in there or _CARD_NAME in old):
            contents[_CARD_NAME] = make_model_card(manifest, str(address)).encode()
        sizes = {path: _size_of(content) for path, content in contents.items()}
        changed = {path: content for path, content in contents.items() if not _is_same(there.get(path), content)}
        for path in changed:
            if path in there and path not in old:
                raise TransferError(
                    f"{address}/{path}",
                    "is another file than the bundle's, and no bundle brought it",
                    "push to a repository of its own, or remove the file on the hub",
                )
        removed = sorted((old & there.keys()) - contents.keys())
        sent = sum(sizes[path] for path in changed)
        if changed or removed:
            report_sent = behind(report, sum(sizes.values()) - sent, sum(sizes.values()))
            head = _commit(api, address.repository, changed, removed, head, manifest.model.name, report_sent)
    return Pushed(
        address=str(Hub(repository=address.repository, revision=head)),
        sent=sent,
        present=sum(sizes.values()) - sent,
        is_signed=SIGNATURE_NAME in contents,
        is_new=bool(changed or removed),
        written=tuple(changed),
        removed=tuple(removed),
    )


def _open_api(access: Access) -> HfApi:
    if access.username is not None or access.insecure or access.authorities is not None:
        raise InputError(
            "hf:// takes no --username, --insecure and --ca: huggingface_hub reads HF_TOKEN, HF_ENDPOINT and "
            "SSL_CERT_FILE"
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints an error of its import before it raises the error
            from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingDependency("a hub", error.name or "huggingface_hub", "firstvec[ship]") from error
    except ValueError as error:  # of a variable that huggingface_hub reads at its import
        raise InputError(
            f"huggingface_hub refuses a variable of the environment ({excerpt(str(error))}); check those whose names "
            "begin with HF_, such as HF_ENDPOINT"
        ) from error
    return HfApi(library_name=_LIBRARY, library_version=_VERSION)


def _find_contents(manifest: Manifest) -> dict[str, bytes | str]:
    """Verify every file, and return what the repository will hold: path there → bytes, or path here."""
    data = read_whole(manifest)
    verify_files(manifest)
    contents: dict[str, bytes | str] = {MANIFEST_NAME: data}
    signature = read_fitting_signature(manifest, data)
    if signature is not None:
        contents[SIGNATURE_NAME] = signature
    return contents | {file.path: os.path.join(manifest.root, file.path) for file in manifest.files()}


def _size_of(content: bytes | str) -> int:
    return len(content) if isinstance(content, bytes) else os.path.getsize(content)


def _open_repository(api: HfApi, address: Hub, *, private: bool) -> str:
    """Return the commit of the branch ``main``. Make the repository if there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(address.repository, timeout=_TIMEOUT)
    except RepositoryNotFoundError:
        # A private repository that the token cannot see looks the same. Then the hub refuses to make the repository.
        api.create_repo(address.repository, private=private or None)
        info = api.model_info(address.repository, timeout=_TIMEOUT)
    else:
        if private and not info.private:
            raise InputError(
                f"{address}: is public already, and --private is for new repositories; make the repository private on "
                "the hub, or leave --private out"
            )
    return str(info.sha)


def _list_files(api: HfApi, repository: str, commit: str) -> dict[str, RepoFile]:
    from huggingface_hub.hf_api import RepoFile

    entries = api.list_repo_tree(repository, recursive=True, revision=commit)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _find_old_files(bundle: HubBundle, there: dict[str, RepoFile]) -> set[str]:
    """Return the files that earlier pushes wrote."""
    written = set()
    if MANIFEST_NAME in there:
        manifest = Manifest.parse(bundle.read_manifest(), f"{bundle.address}/{MANIFEST_NAME}")
        written = {MANIFEST_NAME, SIGNATURE_NAME, *(file.path for file in manifest.files())}
    if _CARD_NAME in there and MARK.encode() in (bundle.read(_CARD_NAME, _MAX_CARD_BYTES) or b""):
        written.add(_CARD_NAME)
    return written


def _is_same(there: RepoFile | None, content: bytes | str) -> bool:
    """Return whether a file of the repository has this content, by the digest that the hub tells."""
    if there is None:
        return False
    with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as stream:
        if there.size != stream.seek(0, os.SEEK_END):
            return False
        if there.lfs is not None:
            stream.seek(0)
            return hashlib.file_digest(stream, "sha256").hexdigest() == there.lfs.sha256
        digest = hashlib.sha1(b"blob %d\0" % there.size)  # the name that Git gives to the content
        stream.seek(0)
        digest.update(stream.read())
        return digest.hexdigest() == there.blob_id


def _commit(
    api: HfApi,
    repository: str,
    contents: dict[str, bytes | str],
    removed: list[str],
    parent: str,
    name: str,
    report: Callable[[int], None],
) -> str:
    """Upload the files, make the commit, and return it. The branch must still point to the commit ``parent``."""
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    additions = [CommitOperationAdd(path, content) for path, content in contents.items()]
    small = [each for each in additions if _size_of(contents[each.path_in_repo]) < _LARGE]
    operations: list[CommitOperationAdd | CommitOperationDelete | CommitOperationCopy] = [
        *additions,
        *(CommitOperationDelete(path, is_folder=False) for path in removed),
    ]
    done = 0
    with _leave_xet_out_where_it_is_missing(api, repository), _hide_bars():
        for batch in [small, *([each] for each in additions if each not in small)]:
            report(done)
            # Without these rules, the repository's .gitignore would leave files out of the commit, in silence.
            api.preupload_lfs_files(repository, batch, free_memory=False, gitignore_content="# none\n")
            done += sum(_size_of(contents[each.path_in_repo]) for each in batch)
        report(done)
        made = api.create_commit(repository, operations, commit_message=f"Bundle of {name}", parent_commit=parent)
    return made.oid


@contextmanager
def _leave_xet_out_where_it_is_missing(api: HfApi, repository: str) -> Iterator[None]:
    """Let huggingface_hub upload by Git LFS if the hub has no Xet storage, as many mirrors and own hubs.

    With the package hf_xet, huggingface_hub 1.33 uploads by Xet only, and fails where there is none.
    """
    import httpx
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers

    url = f"{api.endpoint}/api/models/{repository}/xet-write-token/main"
    answer = get_session().get(
        url, headers=build_hf_headers(library_name=_LIBRARY, library_version=_VERSION), timeout=_TIMEOUT
    )
    is_disabled = constants.HF_HUB_DISABLE_XET
    if answer.status_code == httpx.codes.NOT_FOUND:
        # The package reads the environment at its import, and no function of it has an argument for Xet.
        constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = is_disabled


@contextmanager
def _hide_bars() -> Iterator[None]:
    """Keep huggingface_hub from showing bars of its own."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def open_remote(address: Hub, access: Access) -> HubBundle:
    """Find the commit that an address names, and return the bundle of that commit. The bundle is not read yet.

    A branch or a tag is looked up once. If it moves meanwhile, the bundle is still that of one commit.

    Args:
        address: the repository, with a commit, a branch or a tag. Without one, the branch ``main`` is meant.
        access: nothing, because huggingface_hub has its own settings.

    Raises:
        InputError: ``access`` says something.
        TransferError: the hub cannot be reached or refuses, or has no such repository or revision.
        MissingDependency: the package huggingface_hub is not installed.
    """
    api = _open_api(access)
    with _explain_errors(address):
        commit = address.revision or "main"
        if not _COMMIT.fullmatch(commit):
            commit = str(api.model_info(address.repository, revision=commit, timeout=_TIMEOUT).sha)
            if not _COMMIT.fullmatch(commit):
                raise ValueError(f"{commit!r} is no commit")
    return HubBundle(api, address.repository, commit)


class HubBundle:
    """The bundle of one commit, as `firstvec_build.shipping.arrival.receive` takes it."""

    def __init__(self, api: HfApi, repository: str, commit: str) -> None:
        self._api = api
        self.commit = commit
        self.repository = repository

    @property
    def address(self) -> str:
        """``hf://ORG/NAME@COMMIT``."""
        return str(Hub(repository=self.repository, revision=self.commit))

    def read_manifest(self) -> bytes:
        """Return the bytes of firstvec.json, at most one more than the format allows.

        Raises:
            TransferError: the hub cannot be reached or refuses, or the repository has no such file.
        """
        data = self.read(MANIFEST_NAME, MAX_BYTES)
        if data is None:
            raise TransferError(
                self.address,
                f"holds no {MANIFEST_NAME}, so it is no bundle",
                f"build a bundle from the model: firstvec build {self.repository} --revision {self.commit}",
            )
        return data

    def read_signature(self) -> bytes | None:
        """Return the bytes of model.sig, at most one more than the format allows. None: the bundle is not signed.

        Raises:
            TransferError: the hub cannot be reached or refuses.
        """
        return self.read(SIGNATURE_NAME, MAX_SIGNATURE_BYTES)

    def read(self, path: str, limit: int) -> bytes | None:
        """Return the bytes of a small file, at most ``limit`` and one. None: the commit has no such file."""
        with _explain_errors(f"{self.address}/{path}"):
            from huggingface_hub.errors import EntryNotFoundError

            data = b""
            with contextlib.closing(self._stream(path, 0)) as pieces:
                try:
                    for piece in pieces:
                        data += piece
                        if len(data) > limit:
                            break
                except EntryNotFoundError:
                    return None
        return data[: limit + 1]

    def open_file(self, file: File, start: int) -> Iterator[bytes]:
        """Yield the bytes of a file from byte ``start`` on, in pieces. Nobody has checked them yet.

        Raises:
            TransferError: the hub cannot be reached or refuses, or ends too early.
        """
        with _explain_errors(f"{self.address}/{file.path}"):
            yield from self._stream(file.path, start)

    def _stream(self, path: str, start: int) -> Generator[bytes]:
        import httpx
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(self.repository, path, revision=self.commit, endpoint=self._api.endpoint)
        # The bytes of a compressed answer have other places, so a transfer could not go on in the middle.
        headers = build_hf_headers(library_name=_LIBRARY, library_version=_VERSION) | {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT) as answer:
            hf_raise_for_status(answer)
            skipped = 0 if answer.status_code == httpx.codes.PARTIAL_CONTENT else start  # of a hub without ranges
            for piece in answer.iter_bytes():  # pieces of a fixed size would be lost in part with the connection
                yield piece[skipped:]
                skipped -= min(skipped, len(piece))


@contextmanager
def _explain_errors(address: Hub | str) -> Iterator[None]:
    """Raise a TransferError for an error of huggingface_hub or httpx."""
    try:
        yield
    except FirstvecError:
        raise
    except Exception as error:  # huggingface_hub promises no types; a wrong answer gives a KeyError, for example
        raise _explain(error, str(address)) from error


def _explain(error: Exception, address: str) -> TransferError:
    import httpx
    from huggingface_hub import errors

    causes = [error]
    while isinstance(cause := causes[-1].__cause__, Exception):
        causes.append(cause)
    refusal = next((each for each in causes if isinstance(each, errors.HfHubHTTPError)), None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return TransferError(address, "the hub is not asked, because HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    if isinstance(refusal, errors.HfHubHTTPError):
        return _explain_refusal(refusal, address)
    text = excerpt(f"{type(causes[-1]).__name__}: {causes[-1]}")
    if any(isinstance(each, httpx.HTTPError | OSError) for each in causes):
        reason = f"the hub cannot be reached ({text})"
        return TransferError(address, reason, "check the network, and HF_ENDPOINT", is_passing=True)
    return TransferError(address, f"the hub's answer is not understood ({text})", "check HF_ENDPOINT, and try again")


def _explain_refusal(error: HfHubHTTPError, address: str) -> TransferError:
    from huggingface_hub import errors

    status = error.response.status_code
    answer = f"{status}: {excerpt(error.server_message)}" if error.server_message else f"{status}"
    if isinstance(error, errors.RevisionNotFoundError):
        return TransferError(address, "there is no such revision", "name a commit, a branch or a tag that is there")
    if isinstance(error, errors.EntryNotFoundError):
        return TransferError(address, "there is no such file", "ask whoever pushed the bundle to push it again")
    if isinstance(error, errors.GatedRepoError):
        hint = f"accept the conditions on the repository's page, and {_LOG_IN}"
        return TransferError(address, f"the repository is gated ({answer})", hint)
    if status == 401:
        reason = f"there is no such repository, or the hub wants a valid token ({answer})"
        return TransferError(address, reason, f"check the name, and {_LOG_IN}")
    if status == 403:
        return TransferError(address, f"the token does not allow this ({answer})", f"{_LOG_IN} with a token that does")
    if status == 404:
        reason = f"there is no such repository, or the token does not show it ({answer})"
        return TransferError(address, reason, f"check the name, and {_LOG_IN}")
    if status == 412:
        return TransferError(address, "somebody else changed the repository meanwhile", "push again")
    is_passing = status in (408, 429) or status >= 500
    hint = "try again later" if is_passing else "see what the hub says"
    return TransferError(address, f"the hub refuses ({answer})", hint, is_passing=is_passing)
