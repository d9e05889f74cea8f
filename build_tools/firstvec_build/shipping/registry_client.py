"""The requests to one repository of a container registry: OCI Distribution 1.1.

The credentials and the tokens are those of the package oras. Its transfers are not used: its upload reads a whole
file into memory, its download checks no digest, and it tries for two minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from firstvec import __version__
from firstvec.bundle.integrity import OpenFile, open_verified
from firstvec.errors import InputError, MissingDependency, TransferError, excerpt
from firstvec_build.shipping.addresses import Access, Registry
from firstvec_build.shipping.model_pack import MANIFEST_TYPE, Layer, digest_of

if TYPE_CHECKING:
    from requests import Response

T = TypeVar("T")

_MAX_MANIFEST = 4 << 20
"""Bytes of an OCI manifest. Distribution 1.1 lets registries refuse larger ones."""
_PIECE = 1 << 18
_TIMEOUT = (20.0, 60.0)
"""Seconds for a connection, and for the next bytes."""
_ATTEMPTS = 3
_PAUSE_SECONDS = 0.5
_MAX_REDIRECTS = 5
PUSH_AGAIN = "ask whoever pushed the bundle to push it again"


def read_limited(pieces: Iterator[bytes], limit: int) -> bytes:
    """Return the bytes, at most one piece more than ``limit``."""
    data = b""
    for piece in pieces:
        data += piece
        if len(data) > limit:
            break
    return data


def try_again(request: Callable[[], T]) -> T:
    """Return what ``request`` returns. A failure that may pass is waited for, twice."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return request()
        except TransferError as error:
            if not error.is_passing:
                raise
            time.sleep(_PAUSE_SECONDS * 2**attempt)
    return request()


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


class Client:
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
        self._container.registry = address.host  # oras takes a host without a dot for a folder of Docker's own registry
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
        return try_again(self._get_manifest_once)

    def _get_manifest_once(self) -> bytes:
        reference = self._address.digest or self._address.tag
        with self._send("GET", f"{self._base}/manifests/{reference}", headers={"Accept": MANIFEST_TYPE}) as response:
            if response.status_code == 404:
                raise TransferError(str(self._address), "the registry has no such bundle", "check the name and the tag")
            self._check(response, 200)
            data = read_limited(self._stream(response, str(self._address)), _MAX_MANIFEST)
        if len(data) > _MAX_MANIFEST:
            raise TransferError(str(self._address), f"the manifest has more than {_MAX_MANIFEST} bytes", PUSH_AGAIN)
        if response.headers.get("Docker-Content-Digest", digest_of(data)) != digest_of(data):
            raise TransferError(
                str(self._address), "the manifest does not have the digest that the registry says", "try again"
            )
        return data

    def has(self, digest: str) -> bool:
        """Return whether the repository has a blob."""
        return try_again(lambda: self._has_once(digest))

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
                raise TransferError(name, f"the registry has lost the layer {digest[:23]}…", PUSH_AGAIN)
            self._check(response, *((200, 206) if start else (200,)))
            goes_on = response.status_code == 206
            if goes_on and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise TransferError(name, "the registry sent another part than the one that was asked for", PUSH_AGAIN)
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
        try_again(lambda: self._upload_once(root, layer, report))

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
            place = self._follow(response.url, response.headers.get("Location", ""))
            place += f"{'&' if urlsplit(place).query else '?'}digest={quote(layer.digest, safe='')}"
            headers = {"Content-Type": "application/octet-stream"}
            # requests would send a stream without bytes in chunks, which some registries refuse.
            response = stack.enter_context(
                self._send("PUT", place, headers=headers, body=lambda: _Body(content, layer.size, report) or b"")
            )
            self._check(response, 201)

    def put_manifest(self, document: bytes) -> None:
        """Send the OCI manifest, which sets the tag."""
        try_again(lambda: self._put_manifest_once(document))

    def _put_manifest_once(self, document: bytes) -> None:
        url = f"{self._base}/manifests/{self._address.tag}"
        with self._send("PUT", url, headers={"Content-Type": MANIFEST_TYPE}, body=lambda: document) as response:
            self._check(response, 201)
            if response.headers.get("Docker-Content-Digest", digest_of(document)) != digest_of(document):
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
            except ValueError as error:  # requests reads the address of a redirect, even if it does not go there
                reason = f"the registry redirects to what is no address ({error})"
                raise TransferError(str(self._address), reason, _ASK_ADMINISTRATOR) from error
            wants_login = response.status_code in (401, 403) and "WWW-Authenticate" in response.headers
            if wants_login and is_home and not has_logged_in:
                has_logged_in = True
                with response:
                    self._log_in(response)
                continue
            if response.is_redirect and method in ("GET", "HEAD"):
                redirects += 1
                response.close()
                url = self._follow(url, response.headers["Location"])
                if redirects > _MAX_REDIRECTS:
                    raise TransferError(str(self._address), "the registry redirects too often", _ASK_ADMINISTRATOR)
                continue
            return response

    def _follow(self, url: str, location: str) -> str:
        """Return the address to which the registry sends a request. It must not lead to a place without TLS."""
        try:
            target = urljoin(url, location)
            schemes = urlsplit(url).scheme, urlsplit(target).scheme
        except ValueError as error:
            reason = f"the registry redirects to {excerpt(location)!r}, which is no address"
            raise TransferError(str(self._address), reason, _ASK_ADMINISTRATOR) from error
        if schemes == ("https", "http"):
            reason = "the registry redirects to a place without TLS"
            raise TransferError(str(self._address), reason, _ASK_ADMINISTRATOR)
        return target

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
                auth.__dict__.pop("_basic_auth", None)  # of ORAS_USER, which names no registry
                auth._auth_config = _read_logins()
                auth.load_configs(self._container)
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
        try:
            place = urlsplit(url).netloc
        except ValueError:
            place = url
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
            (error, *_) = json.loads(read_limited(self._stream(response, ""), 1 << 16))["errors"]
            return excerpt(str(error.get("message") or error.get("code") or ""))
        except (ValueError, LookupError, TypeError, AttributeError, TransferError):
            return ""


_LOG_IN = "log in with `docker login` or `oras login`, or give --username and FIRSTVEC_REGISTRY_PASSWORD"
_ASK_ADMINISTRATOR = "ask its administrator"
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


def _read_logins() -> dict[str, Any]:
    """Return Docker's configuration: that of the folder DOCKER_CONFIG, or else that of the home folder, as Docker does.

    oras would mix both, in an order that differs from process to process.
    """
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as stream:
            values = json.load(stream)
    except FileNotFoundError:
        values = {}
    if not isinstance(values, dict):
        raise ValueError(f"{folder}/config.json is no JSON object")
    return {"auths": {}, **values}


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
