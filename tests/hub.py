"""A hub on the loopback, as far as huggingface_hub uses it: repositories with commits, branches, tokens and LFS."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

GITATTRIBUTES = b"*.onnx filter=lfs diff=lfs merge=lfs -text\n"
"""The hub writes such a file into each new repository."""
LARGE = 10_000_000
"""Bytes. The hub takes no larger file without LFS."""


Request = tuple[str, str, dict[str, str]]
"""Method, path and headers."""


class Repository:
    """The commits and branches of one repository."""

    def __init__(self, private: bool = False) -> None:
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.messages: list[str] = []
        self.objects: dict[str, bytes] = {}

    def commit(self, files: dict[str, bytes], *, sha: str = "", branch: str = "main", message: str = "") -> str:
        """Add a commit that holds exactly ``files``, and let the branch point to it."""
        text = json.dumps([len(self.commits), *((name, sha256(data)) for name, data in sorted(files.items()))])
        sha = sha or hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    @property
    def head(self) -> str:
        """The commit of the branch main."""
        return self.branches["main"]

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the branch main."""
        return self.commits[self.head]

    def find(self, revision: str) -> str | None:
        """Return the commit of a branch or commit."""
        revision = unquote(revision)
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub:
    """What the hub holds, what it was asked, and how it misbehaves."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.token: str | None = None
        """What writes need, and reads of a private repository. None: nobody needs a token."""
        self.can_write = True
        self.alter: dict[str, Callable[[bytes], bytes]] = {}
        """File → what the hub makes of its bytes when it sends them."""
        self.cuts: dict[str, int] = {}
        """File → bytes after which the connection ends, once."""
        self.takes_ranges = True
        self.files_host: str | None = None
        """Where the hub redirects requests of files. None: it sends them itself."""
        self.before: Callable[[str, str], None] = lambda method, path: None
        """Called with the method and path of each request, before the hub looks at it."""
        self.has_xet = False
        """Whether the hub gives tokens for a Xet storage, which is not there."""
        self.fails: dict[str, int] = {}
        """Beginning of a path → status with which the hub answers it."""

    def add(self, name: str, folder: Path, *, commit: str = "") -> Repository:
        """Add a repository that holds the files of a folder."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        repository = self.repositories[name] = Repository()
        repository.commit(files, sha=commit)
        return repository

    def asked(self, method: str, part: str) -> list[str]:
        """Return the paths of the requests of a method whose path holds ``part``."""
        return [path for each, path, _ in self.requests if each == method and part in path]


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve an empty hub."""
    hub = Hub()
    with _serve(lambda *arguments: _Handler(hub, *arguments)) as endpoint:
        hub.endpoint = endpoint
        yield hub


@contextmanager
def serve_files(hub: Hub) -> Iterator[list[Request]]:
    """Serve the hub's files from another host, to which the hub redirects. Yield what that host was asked."""
    asked: list[Request] = []

    class Host(_Handler):
        def asked(self) -> list[Request]:
            return asked

        def answer(self) -> None:
            _, _, rest = self.path.partition("/files/")
            name, _, path = rest.partition("/resolve/")
            self.send_file(self.hub.repositories[name], path.partition("?")[0])

    with _serve(lambda *arguments: Host(hub, *arguments)) as endpoint:
        hub.files_host = endpoint.replace("127.0.0.1", "localhost")
        try:
            yield asked
        finally:
            hub.files_host = None


@contextmanager
def _serve(handler: Callable[..., Any]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def sha256(data: bytes) -> str:
    """Return a digest in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def blob_id(data: bytes) -> str:
    """Return the name that Git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest()


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Return whether the hub wants a file by LFS."""
    return path.endswith(".onnx") or size > LARGE or (b"\0" in sample)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def do_any(self) -> None:
        self.body = self.read_body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked().append((self.command, self.path, headers))
        self.hub.before(self.command, self.path)
        try:
            self.answer()
        except ConnectionError:  # the reader has gone
            self.close_connection = True

    def asked(self) -> list[Request]:
        return self.hub.requests

    do_HEAD = do_GET = do_POST = do_PUT = do_any  # noqa: N815 - the names of http.server

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        for beginning, status in self.hub.fails.items():
            if path.startswith(beginning):
                self.send(status)
                return
        if self.command in ("POST", "PUT") and path != "/api/validate-yaml" and not path.startswith("/objects/"):
            if self.hub.token is not None and not self.is_authorized():
                self.send(401, {"error": "Invalid username or password."})
                return
            if not self.hub.can_write and path != "/api/repos/create":
                self.send(403, {"error": "You have read access but not the required permissions."})
                return
        for method, pattern, handle in _ROUTES:
            if self.command in method and (match := re.fullmatch(pattern, path)):
                arguments = match.groupdict()
                name = arguments.pop("name", None)
                if name is None:
                    handle(self, **arguments)
                    return
                repository = self.hub.repositories.get(name)
                is_hidden = handle is not _Handler.store and not self.is_authorized()  # a link to store needs no token
                if repository is None or (repository.private and is_hidden):
                    # The hub does not tell a stranger which private repositories there are.
                    self.send(401 if not self.is_authorized() else 404, headers={"X-Error-Code": "RepoNotFound"})
                else:
                    handle(self, repository, name=name, **arguments)
                return
        self.send(404, headers={"X-Error-Code": "RepoNotFound"})

    def is_authorized(self) -> bool:
        return self.hub.token is None or self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def create(self) -> None:
        request = json.loads(self.body)
        name = f"{request['organization']}/{request['name']}"
        is_private = request.get("visibility") == "private" or request.get("private", False)  # the new way and the old
        if not self.hub.can_write:
            self.send(403, {"error": "You don't have the rights to create a model under this namespace"})
        elif name in self.hub.repositories:
            self.send(409, {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"})
        else:
            repository = self.hub.repositories[name] = Repository(private=is_private)
            repository.commit({".gitattributes": GITATTRIBUTES}, message="initial commit")
            self.send(200, {"url": f"{self.hub.endpoint}/{name}"})

    def describe(self, repository: Repository, name: str, revision: str | None = None) -> None:
        if sha := self.find_commit(repository, revision or "main"):
            siblings = [{"rfilename": path} for path in repository.commits[sha]]
            self.send(200, {"id": name, "sha": sha, "private": repository.private, "siblings": siblings})

    def list_tree(self, repository: Repository, name: str, revision: str, below: str | None = None) -> None:
        if below is not None:
            self.send(404, headers={"X-Error-Code": "EntryNotFound"})  # nobody asks for a folder that is there
        elif sha := self.find_commit(repository, revision):
            folders = {parent.as_posix() for path in repository.commits[sha] for parent in PurePosixPath(path).parents}
            entries: list[dict[str, object]] = [
                {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in folders - {"."}
            ]
            for path, data in repository.commits[sha].items():
                entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
                if is_large(path, len(data), data[:512]):
                    entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
                entries.append(entry)
            self.send(200, entries)

    def resolve(self, repository: Repository, name: str, revision: str, path: str) -> None:
        sha = self.find_commit(repository, revision)
        if sha is None:
            return
        if self.hub.files_host is not None:
            target = f"{self.hub.files_host}/files/{name}/resolve/{sha}/{path}"
            self.send(302, headers={"Location": target, "X-Repo-Commit": sha})
        else:
            self.send_file(repository, f"{sha}/{path}")

    def send_file(self, repository: Repository, rest: str) -> None:
        sha, _, path = unquote(rest).partition("/")
        data = repository.commits[sha].get(path)
        if data is None:
            self.send(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        data = self.hub.alter.get(path, bytes)(data)
        headers = {"ETag": f'"{sha256(data)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or not self.hub.takes_ranges:
            self.send(200, data, headers, cut=self.hub.cuts.pop(path, None))
        elif (start := int(asked[1])) >= len(data):
            self.send(416, headers={"Content-Range": f"bytes */{len(data)}"})
        else:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send(206, data[start:], headers, cut=self.hub.cuts.pop(path, None))

    def preupload(self, repository: Repository, name: str, revision: str) -> None:
        sha = self.find_commit(repository, revision)
        if sha is None:
            return
        request = json.loads(self.body)
        files = repository.commits[sha]
        ignored = request.get("gitIgnore", files.get(".gitignore", b"").decode()).split()
        answers = []
        for each in request["files"]:
            path = each["path"]
            large = is_large(path, each["size"], base64.b64decode(each["sample"]))
            old = files.get(path)
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": path in ignored,
                    "oid": None if old is None else sha256(old) if large else blob_id(old),
                }
            )
        self.send(200, {"files": answers})

    def batch(self, repository: Repository, name: str) -> None:
        answers = []
        for each in json.loads(self.body)["objects"]:
            answer: dict[str, object] = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in repository.objects:
                href = f"{self.hub.endpoint}/objects/{name}/{each['oid']}"
                answer["actions"] = {"upload": {"href": href}}
            answers.append(answer)
        self.send(200, {"transfer": "basic", "objects": answers}, {"Content-Type": "application/vnd.git-lfs+json"})

    def store(self, repository: Repository, name: str, oid: str) -> None:
        if sha256(self.body) != oid:
            self.send(400, {"error": "wrong digest"})
        else:
            repository.objects[oid] = self.body
            self.send(200)

    def take_commit(self, repository: Repository, name: str, revision: str) -> None:
        sha = self.find_commit(repository, revision)
        if sha is None:
            return
        files = dict(repository.commits[sha])
        message = ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    message = value["summary"]
                    if value.get("parentCommit", sha) != sha:
                        self.send(412, {"error": "A commit has happened since. Please refresh and try again."})
                        return
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = repository.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        made = repository.commit(files, branch=revision, message=message)
        url = f"{self.hub.endpoint}/{name}/commit/{made}"
        self.send(200, {"success": True, "commitOid": made, "commitUrl": url})

    def find_commit(self, repository: Repository, revision: str) -> str | None:
        sha = repository.find(revision)
        if sha is None:
            self.send(404, headers={"X-Error-Code": "RevisionNotFound"})
        return sha

    def open_xet(self, repository: Repository, name: str) -> None:
        if not self.hub.has_xet:
            self.send(404, {"error": "Sorry, we can't find the page you are looking for."})
            return
        headers = {
            "X-Xet-Cas-Url": f"{self.hub.endpoint}/xet",
            "X-Xet-Access-Token": "token",
            "X-Xet-Token-Expiration": "9999999999",
        }
        content = {"casUrl": headers["X-Xet-Cas-Url"], "accessToken": "token", "exp": 9999999999}
        self.send(200, content, headers)

    def validate(self) -> None:
        self.send(200, {"errors": [], "warnings": []})

    def send(
        self,
        status: int,
        content: object = b"",
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        """Send an answer. With ``cut``, end the connection after so many bytes of it."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = {} if isinstance(content, bytes) else {"Content-Type": "application/json"}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


_NAME = r"(?P<name>[^/]+/[^/]+)"
_ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("POST",), r"/api/repos/create", _Handler.create),
    (("POST",), r"/api/validate-yaml", _Handler.validate),
    (("GET", "HEAD"), rf"/api/models/{_NAME}", _Handler.describe),
    (("GET", "HEAD"), rf"/api/models/{_NAME}/revision/(?P<revision>[^/]+)", _Handler.describe),
    (("GET", "HEAD"), rf"/api/models/{_NAME}/tree/(?P<revision>[^/]+)(?:/(?P<below>.+))?", _Handler.list_tree),
    (("GET",), rf"/api/models/{_NAME}/xet-(?:read|write)-token/[^/]+", _Handler.open_xet),
    (("POST",), rf"/api/models/{_NAME}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (("POST",), rf"/api/models/{_NAME}/commit/(?P<revision>[^/]+)", _Handler.take_commit),
    (("POST",), rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), rf"/objects/{_NAME}/(?P<oid>[0-9a-f]+)", _Handler.store),
    (("GET", "HEAD"), rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
