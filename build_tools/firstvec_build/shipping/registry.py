"""Push a bundle to a container registry, and read it there: OCI Distribution 1.1, media types of CNCF ModelPack.

Every file is a layer of its own, as it is. So a registry keeps equal files once, and a machine takes only the files
that it needs. The credentials and the tokens are those of the package oras. oras's own transfers are not
used: its upload reads a whole file into memory, its download checks no digest, and it tries for two minutes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from firstvec import __version__
from firstvec.bundle import MANIFEST_NAME, SIGNATURE_NAME
from firstvec.bundle import manifest as manifests
from firstvec.bundle import signature as signatures
from firstvec.bundle.integrity import OpenFile, open_verified, verify_file
from firstvec.bundle.json_reader import CheckedObject, parse_object
from firstvec.bundle.manifest import File, Manifest, read_manifest_bytes
from firstvec.errors import InputError, ManifestError, MissingDependency, TransferError, excerpt
from firstvec_build.shipping.addresses import Access, Registry
from firstvec_build.shipping.progress import Report, behind
from firstvec_build.shipping.signing import read_fitting_signature

if TYPE_CHECKING:
    from requests import Response

T = TypeVar("T")

_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
# github.com/modelpack/model-spec, docs/spec.md
_ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
_WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
_WEIGHT_CONFIG_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
_DOCUMENT_TYPE = "application/vnd.cncf.model.doc.v1.raw"
_PATH_KEY = "org.cncf.model.filepath"
_TITLE_KEY = "org.opencontainers.image.title"
"""The command `oras pull` gives a layer the name that this annotation says."""

_MAX_MANIFEST = 4 << 20
"""Bytes of an OCI manifest. Distribution 1.1 lets registries refuse larger ones."""
_PIECE = 1 << 18
_TIMEOUT = (20.0, 60.0)
"""Seconds for a connection, and for the next bytes."""
_ATTEMPTS = 3
_PAUSE_SECONDS = 0.5
_MAX_REDIRECTS = 5
_PUSH_AGAIN = "ask whoever pushed the bundle to push it again"


# -- what a bundle is in a registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One file of a bundle as a layer."""

    path: str
    digest: str
    size: int
    content: bytes | File
    """The bytes, or the file to read them from."""


def describe(manifest: Manifest, data: bytes, signature: bytes | None) -> tuple[bytes, bytes, list[Layer]]:
    """Return the OCI manifest, its config, and the layers. The same bundle gives the same bytes.

    Args:
        manifest: the bundle's manifest.
        data: its bytes.
        signature: the bundle's signature, where there is one.
    """
    layers = [_layer_of(MANIFEST_NAME, data)]
    if signature is not None:
        layers.append(_layer_of(SIGNATURE_NAME, signature))
    layers += [
        Layer(path=file.path, digest=f"sha256:{file.sha256}", size=file.size, content=file) for file in manifest.files()
    ]
    owners = {file.path: artifact.id for artifact in manifest.artifacts for file in artifact.files}
    config = _to_json(_describe_model(manifest, layers))
    quality = {
        artifact.id: {"cosine_mean": artifact.quality.cosine_mean, "cosine_min": artifact.quality.cosine_min}
        for artifact in manifest.artifacts
    }
    annotations = {
        _TITLE_KEY: manifest.model.name,
        "firstvec.artifacts": " ".join(quality),
        "firstvec.quality": json.dumps(quality, sort_keys=True, separators=(",", ":")),
    }
    if manifest.model.revision:
        annotations["org.opencontainers.image.revision"] = manifest.model.revision
    document = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "artifactType": _ARTIFACT_TYPE,
        "config": {"mediaType": _CONFIG_TYPE, "digest": _digest(config), "size": len(config)},
        "layers": [
            {
                "mediaType": _media_type(layer.path, owners),
                "digest": layer.digest,
                "size": layer.size,
                "annotations": {_PATH_KEY: layer.path, _TITLE_KEY: layer.path}
                | ({"firstvec.artifact": owners[layer.path]} if layer.path in owners else {}),
            }
            for layer in layers
        ],
        "annotations": annotations,
    }
    return _to_json(document), config, layers


def _describe_model(manifest: Manifest, layers: list[Layer]) -> dict[str, Any]:
    """Return ModelPack's config. It has no time, so that the same bundle gives the same bytes."""
    formats = {artifact.format for artifact in manifest.artifacts}
    precisions = {artifact.precision for artifact in manifest.artifacts}
    return {
        "descriptor": {"name": manifest.model.name}
        | ({"revision": manifest.model.revision} if manifest.model.revision else {}),
        "config": {
            "architecture": manifest.model.architecture,
            "precision": precisions.pop() if len(precisions) == 1 else "mixed",
            "capabilities": {"inputTypes": ["text"], "outputTypes": ["embedding"]},
        }
        | ({"format": formats.pop()} if len(formats) == 1 else {}),
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
    }


def _media_type(path: str, owners: Mapping[str, str]) -> str:
    if path in owners:
        return _WEIGHT_TYPE
    name = PurePosixPath(path)
    is_document = name.suffix == ".md" or name.stem.upper() in ("LICENSE", "NOTICE", "README")
    return _DOCUMENT_TYPE if is_document else _WEIGHT_CONFIG_TYPE


def _layer_of(path: str, content: bytes) -> Layer:
    return Layer(path=path, digest=_digest(content), size=len(content), content=content)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _to_json(values: object) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


# -- push


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What `push` did."""

    address: str
    """With the digest of the OCI manifest, which names these bytes for ever."""
    sent: int
    """Bytes of layers that were sent."""
    present: int
    """Bytes of layers that the registry had."""
    is_signed: bool


def push(
    manifest: Manifest,
    address: Registry,
    access: Access,
    report: Report = lambda _done, _total: None,
) -> Pushed:
    """Send a bundle to a registry. Layers that the registry has are not sent again, and the tag is set last.

    Args:
        manifest: the bundle's manifest.
        address: where to, with a tag.
        access: how to reach the registry.
        report: called with the bytes that are done, and all bytes.

    Raises:
        InputError: the address has a digest in place of a tag.
        ManifestError, IntegrityError: the bundle is not the one that was built.
        SignatureError, BuildError: the bundle's signature is malformed, or covers other files.
        TransferError: the registry cannot be reached, or refuses.
        MissingDependency: the package oras is not installed.
    """
    if address.tag is None:
        raise InputError(f"{address}: has a digest, which follows from the bundle; push to a tag: oci://HOST/REPO:TAG")
    client = _Client(address, access)
    data = read_manifest_bytes(manifest.path)
    if Manifest.parse(data, manifest.path) != manifest:
        raise ManifestError(manifest.path, "was changed since it was read", "try again")
    for file in manifest.files():
        verify_file(manifest.root, file, use_markers=False)
    signature = read_fitting_signature(manifest, data)
    document, config, layers = describe(manifest, data, signature)
    done = sent = 0
    total = sum(layer.size for layer in layers)
    for layer in layers:
        if not client.has(layer.digest):
            client.upload(manifest.root, layer, behind(report, done, total))
            sent += layer.size
        done += layer.size
        report(done, total)
    if not client.has(_digest(config)):
        client.upload(manifest.root, _layer_of("config", config), lambda _count: None)
    client.put_manifest(document)
    digest = _digest(document)
    return Pushed(
        address=str(Registry(host=address.host, repository=address.repository, digest=digest)),
        sent=sent,
        present=total - sent,
        is_signed=signature is not None,
    )


class _Body:
    """The body of a request: a part of memory, or a file that is read piece by piece."""

    def __init__(self, content: bytes | OpenFile, size: int, report: Callable[[int], None]) -> None:
        self._content = content
        self._size = size
        self._report = report
        self._position = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read(_PIECE):
            yield piece

    def read(self, size: int = _PIECE) -> bytes:
        """Return the next bytes."""
        if isinstance(self._content, bytes):
            piece = self._content[self._position : self._position + size]
        else:
            piece = os.pread(self._content.descriptor, min(size, self._size - self._position), self._position)
        self._position += len(piece)
        self._report(self._position)
        return piece


# -- pull


def open_remote(address: Registry, access: Access) -> RegistryBundle:
    """Find a bundle in a registry. A tag is resolved here, once. What moves the tag later has no effect.

    Raises:
        TransferError: the registry cannot be reached, refuses, has no such bundle, or sends something else.
        MissingDependency: the package oras is not installed.
    """
    client = _Client(address, access)
    data = client.get_manifest()
    digest = _digest(data)
    found = Registry(host=address.host, repository=address.repository, digest=digest)
    if address.digest not in (None, digest):
        raise TransferError(str(address), f"the registry sent a manifest of {digest}", _PUSH_AGAIN)
    try:
        layers = _read_layers(parse_object(data, str(found)))
    except ManifestError as error:
        raise TransferError(error.path, f"is not a bundle of firstvec: {error.reason}", "check the address") from error
    return RegistryBundle(client, str(found), layers)


def _read_layers(top: CheckedObject) -> dict[str, tuple[str, int]]:
    """Return path → digest and size of the layers of an OCI manifest."""
    top.literal("mediaType", _MANIFEST_TYPE)
    layers: dict[str, tuple[str, int]] = {}
    for layer in top.children("layers", at_least=1):
        path = layer.child("annotations").optional(_PATH_KEY, layer.child("annotations").text)
        if path is None:
            continue
        kind, _, digest = layer.text("digest").partition(":")
        if kind != "sha256" or len(digest) != 64 or digest.strip("0123456789abcdef"):
            raise layer.error("digest", "is not a SHA-256")
        if path in layers:
            raise layer.error("annotations", f"{excerpt(path)!r} is there twice")
        layers[path] = f"sha256:{digest}", layer.integer("size", 0, 1 << 40)
    if MANIFEST_NAME not in layers:
        raise top.error("layers", f"none of them is {MANIFEST_NAME}")
    return layers


class RegistryBundle:
    """One bundle in a registry, by the digest of its OCI manifest: a remote for `firstvec_build.shipping.arrival`."""

    def __init__(self, client: _Client, address: str, layers: dict[str, tuple[str, int]]) -> None:
        self._client = client
        self._address = address
        self._layers = layers

    @property
    def address(self) -> str:
        """The address with the digest."""
        return self._address

    def read_manifest(self) -> bytes:
        """Return the bytes of firstvec.json, which have the digest of their layer."""
        return self._read_small(MANIFEST_NAME, manifests.MAX_BYTES)

    def read_signature(self) -> bytes | None:
        """Return the bytes of model.sig, which have the digest of their layer. None: the bundle has no signature."""
        return self._read_small(SIGNATURE_NAME, signatures.MAX_BYTES) if SIGNATURE_NAME in self._layers else None

    def open_file(self, file: File, start: int) -> Iterator[bytes]:
        """Yield the bytes of a layer from ``start`` on. The caller checks the digest."""
        digest, size = self._layers.get(file.path, ("", 0))
        if not digest:
            raise TransferError(self._address, f"has no layer for {file.path}, which is a part of it", _PUSH_AGAIN)
        if (digest, size) != (f"sha256:{file.sha256}", file.size):
            found = f"{digest[:23]}… of {size} bytes, and {MANIFEST_NAME} names another file"
            raise TransferError(f"{self._address}/{file.path}", f"the layer is {found}", _PUSH_AGAIN)
        return self._client.get_blob(digest, start, file.path)

    def _read_small(self, path: str, limit: int) -> bytes:
        digest, size = self._layers[path]
        name = f"{self._address}/{path}"
        if size > limit:
            raise TransferError(name, f"has {size} bytes, and at most {limit} are allowed", _PUSH_AGAIN)
        data = _try(lambda: _read_limited(self._client.get_blob(digest, 0, path), size))
        if _digest(data) != digest:
            raise TransferError(name, f"the registry sent other bytes than those of {digest[:23]}…", _PUSH_AGAIN)
        return data


def _read_limited(pieces: Iterator[bytes], limit: int) -> bytes:
    """Return the bytes, at most one piece more than ``limit``."""
    data = b""
    for piece in pieces:
        data += piece
        if len(data) > limit:
            break
    return data


# -- requests


def _try(request: Callable[[], T]) -> T:
    """Return what ``request`` returns. A failure that may pass is waited for, twice."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return request()
        except TransferError as error:
            if not error.is_passing:
                raise
            time.sleep(_PAUSE_SECONDS * 2**attempt)
    return request()


class _Client:
    """Sends requests to one repository of a registry."""

    def __init__(self, address: Registry, access: Access) -> None:
        try:
            # oras.provider is not needed. It imports jsonschema, which can take a second of processor time.
            from oras.container import Container
            from oras.logger import setup_logger
            from requests import Session
        except ImportError as error:
            raise MissingDependency("a registry", error.name or "oras", "firstvec[ship]") from error
        setup_logger(quiet=True)  # what oras would print is in the errors here
        self._address = address
        self._access = access
        self._verify: bool | str = access.authorities or True
        if access.authorities is not None and not os.path.isfile(access.authorities):
            raise InputError(f"{access.authorities}: is not a file; give a file of certificates in PEM with --ca")
        self._container = Container(f"{address.host}/{address.repository}:{address.tag or 'latest'}")
        self._session = Session()
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.headers["User-Agent"] = f"firstvec/{__version__}"
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _make_adapter())
        self._base = f"{'http' if access.insecure else 'https'}://{address.host}/v2/{address.repository}"
        self._authorization: str | None = None

    # What the registry has

    def get_manifest(self) -> bytes:
        """Return the OCI manifest of the address."""
        return _try(self._get_manifest_once)

    def _get_manifest_once(self) -> bytes:
        reference = self._address.digest or self._address.tag
        with self._send("GET", f"{self._base}/manifests/{reference}", headers={"Accept": _MANIFEST_TYPE}) as response:
            if response.status_code == 404:
                raise TransferError(str(self._address), "the registry has no such bundle", "check the name and the tag")
            self._check(response, 200)
            data = _read_limited(self._stream(response, str(self._address)), _MAX_MANIFEST)
        if len(data) > _MAX_MANIFEST:
            raise TransferError(str(self._address), f"the manifest has more than {_MAX_MANIFEST} bytes", _PUSH_AGAIN)
        if response.headers.get("Docker-Content-Digest", _digest(data)) != _digest(data):
            raise TransferError(
                str(self._address), "the manifest does not have the digest that the registry says", "try again"
            )
        return data

    def has(self, digest: str) -> bool:
        """Return whether the repository has a blob."""
        return _try(lambda: self._has_once(digest))

    def _has_once(self, digest: str) -> bool:
        with self._send("HEAD", f"{self._base}/blobs/{digest}") as response:
            if response.status_code == 404:
                return False
            self._check(response, 200)
            return True

    def get_blob(self, digest: str, start: int, path: str) -> Iterator[bytes]:
        """Yield the bytes of a blob from ``start`` on, as they come. Nothing is unpacked."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        name = f"{self._address}/{path}"
        with self._send("GET", f"{self._base}/blobs/{digest}", headers=headers) as response:
            if response.status_code == 404:
                raise TransferError(name, f"the registry has lost the layer {digest[:23]}…", _PUSH_AGAIN)
            self._check(response, *((200, 206) if start else (200,)))
            goes_on = response.status_code == 206
            if goes_on and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise TransferError(name, "the registry sent another part than the one that was asked for", _PUSH_AGAIN)
            passed = start if goes_on else 0
            for piece in self._stream(response, name):
                # A registry that knows no ranges sends everything again.
                skipped = min(max(start - passed, 0), len(piece))
                passed += len(piece)
                if rest := piece[skipped:]:
                    yield rest

    # What the registry gets

    def upload(self, root: str, layer: Layer, report: Callable[[int], None]) -> None:
        """Send a layer. The registry checks the digest."""
        _try(lambda: self._upload_once(root, layer, report))

    def _upload_once(self, root: str, layer: Layer, report: Callable[[int], None]) -> None:
        with contextlib.ExitStack() as stack:
            content: bytes | OpenFile
            if isinstance(layer.content, bytes):
                content = layer.content
            else:
                content = stack.enter_context(open_verified(root, layer.content, use_markers=False))
            headers = {"Content-Length": "0"}
            response = stack.enter_context(self._send("POST", f"{self._base}/blobs/uploads/", headers=headers))
            self._check(response, 202)
            place = urljoin(response.url, response.headers.get("Location", ""))
            place += f"{'&' if urlsplit(place).query else '?'}digest={quote(layer.digest, safe='')}"
            headers = {"Content-Type": "application/octet-stream"}
            # requests would send a stream without bytes in chunks, which some registries refuse.
            response = stack.enter_context(
                self._send("PUT", place, headers=headers, body=lambda: _Body(content, layer.size, report) or b"")
            )
            self._check(response, 201)

    def put_manifest(self, document: bytes) -> None:
        """Send the OCI manifest, which sets the tag."""
        _try(lambda: self._put_manifest_once(document))

    def _put_manifest_once(self, document: bytes) -> None:
        url = f"{self._base}/manifests/{self._address.tag}"
        with self._send("PUT", url, headers={"Content-Type": _MANIFEST_TYPE}, body=lambda: document) as response:
            self._check(response, 201)
            if response.headers.get("Docker-Content-Digest", _digest(document)) != _digest(document):
                raise TransferError(str(self._address), "the registry changed the manifest", "use another registry")

    # How

    def _send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], bytes | _Body] | None = None,
    ) -> Response:
        """Send a request, log in if the registry asks for it, and follow redirects of GET and HEAD.

        Only the registry itself gets the credentials. The caller closes the response.
        """
        from requests import exceptions

        has_logged_in = False
        redirects = 0
        while True:
            is_home = _origin(url) == _origin(self._base)
            sent = {"Accept-Encoding": "identity", **(headers or {})}
            if is_home and self._authorization:
                sent["Authorization"] = self._authorization
            try:
                response: Response = self._session.request(
                    method,
                    url,
                    headers=sent,
                    data=body() if body is not None else None,
                    stream=True,
                    verify=self._verify,
                    allow_redirects=False,
                    auth=_leave_as_it_is,
                )
            except exceptions.SSLError as error:
                raise TransferError(
                    str(self._address),
                    f"the TLS connection to {urlsplit(url).netloc} failed ({_innermost(error)})",
                    "give the registry's own authority with --ca FILE, or --insecure for a registry without TLS",
                ) from error
            except (exceptions.RequestException, OSError) as error:
                raise self._unreachable(url, error) from error
            wants_login = response.status_code in (401, 403) and "WWW-Authenticate" in response.headers
            if wants_login and is_home and not has_logged_in:
                has_logged_in = True
                with response:
                    self._log_in(response)
                continue
            if response.is_redirect and method in ("GET", "HEAD"):
                redirects += 1
                target = urljoin(url, response.headers["Location"])
                response.close()
                if redirects > _MAX_REDIRECTS or (urlsplit(url).scheme, urlsplit(target).scheme) == ("https", "http"):
                    reason = "redirects too often" if redirects > _MAX_REDIRECTS else "redirects to a place without TLS"
                    raise TransferError(str(self._address), f"the registry {reason}", "ask its administrator")
                url = target
                continue
            return response

    def _log_in(self, challenge: Response) -> None:
        """Get what a registry asks for in its challenge: a token, or the user's name and password."""
        from oras.auth import get_auth_backend
        from oras.auth.utils import parse_auth_header
        from requests import exceptions

        header = challenge.headers["WWW-Authenticate"]
        is_basic = header[:6].lower() == "basic "
        realm = parse_auth_header(header).realm or ""
        if not is_basic and not self._access.insecure and not realm.startswith("https://"):
            raise TransferError(
                str(self._address), f"the registry sends the login to {excerpt(realm)!r}, without TLS", _LOG_IN
            )
        auth = get_auth_backend(
            "basic" if is_basic else "token", self._session, self._access.insecure, tls_verify=self._verify
        )
        try:
            if self._access.username is not None:
                auth.set_basic_auth(self._access.username, self._access.password or "")
            else:
                auth.load_configs(self._container, _docker_configs())
            headers, _ = auth.authenticate_request(challenge, {}, refresh=True)
        except exceptions.RequestException as error:
            raise self._unreachable(realm, error) from error
        except AttributeError:  # oras's way to say that it has no credentials
            headers = {}
        except Exception as error:  # whatever a helper of credentials, or a damaged file of Docker's, makes oras raise
            reason = f"the credentials cannot be read ({type(error).__name__}: {error})"
            raise TransferError(str(self._address), reason, _LOG_IN) from error
        self._authorization = headers.get("Authorization")

    def _stream(self, response: Response, name: str) -> Iterator[bytes]:
        """Yield a response's bytes as they come over the network."""
        from requests import exceptions
        from urllib3.exceptions import HTTPError

        try:
            # Not iter_content, which would unpack what a registry calls compressed.
            yield from response.raw.stream(_PIECE, decode_content=False)
        except (HTTPError, exceptions.RequestException, OSError) as error:
            raise TransferError(
                name, f"the transfer broke off ({_innermost(error)})", _GO_ON, is_passing=True
            ) from error

    def _unreachable(self, url: str, error: BaseException) -> TransferError:
        place = urlsplit(url).netloc
        reason = f"{excerpt(place)} cannot be reached ({_innermost(error)})"
        return TransferError(str(self._address), reason, "check the host and the network", is_passing=True)

    def _check(self, response: Response, *expected: int) -> None:
        """Raise TransferError for an unexpected status, with what the registry says about it."""
        status = response.status_code
        if status in expected:
            return
        answer = f"the registry answers {status} {excerpt(response.reason or '')}".rstrip()
        if message := self._read_message(response):
            answer += f" ({message})"
        if status in (401, 403):
            raise TransferError(str(self._address), answer, _LOG_IN)
        is_passing = status == 429 or status >= 500
        hint = "try again later" if is_passing else "ask the registry's administrator"
        raise TransferError(str(self._address), answer, hint, is_passing=is_passing)

    def _read_message(self, response: Response) -> str:
        """Return the first message of a registry's error (Distribution 1.1, "Error Codes"), or nothing."""
        try:
            (error, *_) = json.loads(_read_limited(self._stream(response, ""), 1 << 16))["errors"]
            return excerpt(str(error.get("message") or error.get("code") or ""))
        except (ValueError, LookupError, TypeError, AttributeError, TransferError):
            return ""


_LOG_IN = "log in with `docker login` or `oras login`, or give --username and FIRSTVEC_REGISTRY_PASSWORD"
_GO_ON = "try again: what has come is not fetched again"


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.scheme, parts.hostname, port or {"http": 80, "https": 443}.get(parts.scheme)


def _leave_as_it_is(request: Any) -> Any:
    """Keep requests from adding a password of ~/.netrc."""
    return request


def _docker_configs() -> list[str]:
    """Return the configuration of Docker in DOCKER_CONFIG. oras itself knows only the one in the home folder."""
    folder = os.environ.get("DOCKER_CONFIG")
    path = os.path.join(folder, "config.json") if folder else ""
    return [path] if path and os.path.isfile(path) else []


def _make_adapter() -> Any:
    """Return the adapter of requests with a limit for waiting, which oras does not set."""
    from requests.adapters import HTTPAdapter

    class Impatient(HTTPAdapter):
        def send(self, request: Any, **options: Any) -> Any:  # type: ignore[override]
            return super().send(request, **{**options, "timeout": options.get("timeout") or _TIMEOUT})

    return Impatient()


def _innermost(error: BaseException) -> str:
    """Return the message of the first cause, because requests and urllib3 wrap it in long words."""
    reason: BaseException = error
    for _ in range(10):  # an error may name itself as its cause
        wrapped = (getattr(reason, "reason", None), *reason.args, reason.__cause__)
        reason = next((each for each in wrapped if isinstance(each, BaseException)), reason)
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return excerpt(text)
