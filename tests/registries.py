"""Container registries on the loopback: Debian's docker-registry, one that lies, and a wire that can be cut."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import ipaddress
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from firstvec.bundle.manifest import Manifest
from firstvec_build.shipping.registry import describe

DOCKER_REGISTRY = shutil.which("docker-registry")
IS_MISSING = "" if DOCKER_REGISTRY else "docker-registry is not installed (Debian's package of that name)"

USER, PASSWORD = "ada", "sesame"
_HTPASSWD = f"{USER}:$2b$04$TgnVIM9NKS350k693qM3S.0.dGQBPdolVq6efXACLDY64geTXesmC\n"


class Server:
    """A running docker-registry."""

    def __init__(self, folder: Path, *, tls: bool = False, password: bool = False) -> None:
        self.port = find_port()
        self.host = f"127.0.0.1:{self.port}"
        self.authority = folder / "ca.pem"
        values: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": {"addr": self.host},
        }
        if tls:
            make_certificate(self.authority, folder / "key.pem")
            values["http"]["tls"] = {"certificate": str(self.authority), "key": str(folder / "key.pem")}
        if password:
            (folder / "htpasswd").write_text(_HTPASSWD)
            values["auth"] = {"htpasswd": {"realm": "the vault", "path": str(folder / "htpasswd")}}
        self._config = folder / "config.yml"
        self._config.write_text(json.dumps(values))  # JSON is YAML
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the registry, and wait until it listens."""
        assert DOCKER_REGISTRY is not None
        self._process = subprocess.Popen(
            [DOCKER_REGISTRY, "serve", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self._process.poll() is None, "docker-registry ended"
                assert time.monotonic() < until
                time.sleep(0.02)

    def kill(self) -> None:
        """End the registry at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def docker_registry(folder: Path, *, tls: bool = False, password: bool = False) -> Iterator[Server]:
    """Run a docker-registry that keeps its data in ``folder``."""
    server = Server(folder, tls=tls, password=password)
    try:
        yield server
    finally:
        server.kill()


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def make_certificate(certificate: Path, key: Path) -> None:
    """Write a certificate for 127.0.0.1 that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


class Wire:
    """A TCP proxy to a port of the loopback. It counts the bytes, and cuts every connection after some of them."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.host = f"127.0.0.1:{self.port}"
        self.down = 0
        """Bytes that came from the server."""
        self.up = 0
        self.cut_down_at: int | None = None
        """Cut when so many bytes have come from the server."""
        self.cut_up_at: int | None = None
        self.down_rate: float | None = None
        """Bytes a second."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                if self._listener.fileno() < 0:
                    return
                client.close()
                continue
            for source, target, is_down in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._copy, args=(source, target, is_down), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, is_down: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 14):
                seen, cut = (self.down, self.cut_down_at) if is_down else (self.up, self.cut_up_at)
                if cut is not None:
                    piece = piece[: max(cut - seen, 0)]
                target.sendall(piece)
                if is_down:
                    self.down += len(piece)
                    if self.down_rate:
                        time.sleep(len(piece) / self.down_rate)
                else:
                    self.up += len(piece)
                if cut is not None and seen + len(piece) >= cut:
                    break
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@contextmanager
def wire_to(port: int) -> Iterator[Wire]:
    """Run a proxy to ``port``."""
    wire = Wire(port)
    try:
        yield wire
    finally:
        wire.close()


class Answer(Exception):
    """What a liar answers in place of the truth."""

    def __init__(self, status: int, body: bytes = b"", **headers: str) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Liar:
    """A registry with one bundle. ``lie`` may raise an `Answer`, and gets the handler of the request."""

    def __init__(self, bundle: Path, certificate: Path | None = None) -> None:
        manifest = Manifest.read(bundle)
        self.bundle = bundle
        self.manifest = manifest
        self.document, self.config, self.layers = describe(manifest, (bundle / "firstvec.json").read_bytes(), None)
        self.blobs = {
            layer.digest: layer.content if isinstance(layer.content, bytes) else (bundle / layer.path).read_bytes()
            for layer in self.layers
        }
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.sent = 0
        self.lie: Callable[[BaseHTTPRequestHandler], None] = lambda _request: None
        liar = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                liar.requests.append(
                    (self.command, self.path, {key.lower(): value for key, value in self.headers.items()})
                )
                try:
                    liar.lie(self)
                    answer = liar.tell_truth(self)
                except Answer as given:
                    answer = given
                self.send_response(answer.status)
                for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for start in range(0, len(answer.body), 1 << 14):
                        piece = answer.body[start : start + (1 << 14)]
                        self.wfile.write(piece)
                        liar.sent += len(piece)
                except OSError:
                    pass
                if int(answer.headers.get("Content-Length", len(answer.body))) != len(answer.body):
                    self.close_connection = True

            do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - names that http.server looks for

            def log_message(self, *_arguments: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(sys.exception(), OSError):  # a client may go at any time
                    super().handle_error(request, client_address)

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if certificate is not None:
            key = certificate.with_suffix(".key")
            make_certificate(certificate, key)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()

    def tell_truth(self, request: BaseHTTPRequestHandler) -> Answer:
        """Return what an honest registry answers."""
        kind, _, name = request.path.removeprefix("/v2/tiny/").partition("/")
        if kind == "manifests":
            return Answer(200, self.document, Content_Type="application/vnd.oci.image.manifest.v1+json")
        data = self.blobs.get(name)
        if kind != "blobs" or data is None:
            return Answer(404)
        asked = request.headers.get("Range")
        if asked is None:
            return Answer(200, data)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        return Answer(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")

    def digest_of(self, path: str) -> str:
        """Return the digest of a file's layer."""
        return next(layer.digest for layer in self.layers if layer.path == path)

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the OCI manifest."""
        document = json.loads(self.document)
        change(document)
        self.document = json.dumps(document).encode()

    @property
    def document_digest(self) -> str:
        """Digest of the OCI manifest."""
        return f"sha256:{hashlib.sha256(self.document).hexdigest()}"


@contextmanager
def liar_with(bundle: Path, certificate: Path | None = None) -> Iterator[Liar]:
    """Run a registry that can lie. With a path for its certificate, it speaks TLS."""
    liar = Liar(bundle, certificate)
    try:
        yield liar
    finally:
        liar.close()
