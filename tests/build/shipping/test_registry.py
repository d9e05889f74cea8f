"""Container registries: Debian's docker-registry on the loopback, and one that lies."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstvec import OptimizedEmbeddingLoader
from firstvec.bundle.manifest import File, Manifest
from firstvec.bundle.store import find_bundle
from firstvec.errors import BuildError, InputError, IntegrityError, ManifestError, SignatureError, TransferError
from firstvec_build import publishing
from firstvec_build.shipping import arrival
from firstvec_build.shipping.addresses import Access
from firstvec_build.shipping.arrival import receive
from firstvec_build.shipping.model_pack import describe
from firstvec_build.shipping.registry import open_remote, push
from firstvec_build.shipping.signing import sign
from tests.build.test_publishing import snapshot
from tests.conftest import Fresh, edit_manifest
from tests.keys import SIGNATURE, Pair, make_keys
from tests.registries import (
    IS_MISSING,
    PASSWORD,
    PLAIN,
    USER,
    Answer,
    Liar,
    Server,
    at,
    docker_registry,
    liar_with,
    refuse,
    send,
    take,
    take_from,
    wire_to,
)

STARTER = "onnx-fp32"
pytestmark = pytest.mark.usefixtures("on_the_loopback")
needs_registry = pytest.mark.skipif(bool(IS_MISSING), reason=IS_MISSING)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_keys(tmp_path_factory.mktemp("keys"))


def largest(root: Path) -> File:
    return max(Manifest.read(root).files(), key=lambda file: file.size)


def size_of(root: Path, *, only: str | None = None) -> int:
    manifest = Manifest.read(root)
    if only is not None:
        manifest = manifest.replace(artifacts=tuple(each for each in manifest.artifacts if each.id == only))
    return sum(file.size for file in manifest.files())


# -- a real registry


@needs_registry
def test_a_bundle_goes_to_a_registry_and_comes_back_with_every_byte(
    server: Server, tiny_built: Path, tmp_path: Path
) -> None:
    first = send(tiny_built, f"oci://{server.host}/round/trip:1")
    assert first.sent + first.present == size_of(tiny_built) + (tiny_built / "firstvec.json").stat().st_size
    assert first.sent > 0
    assert not first.is_signed
    by_tag = take(f"oci://{server.host}/round/trip:1", tmp_path / "tag")
    by_digest = take(first.address, tmp_path / "digest")
    for got in (by_tag, by_digest):
        assert snapshot(Path(got.manifest.root)) == snapshot(tiny_built)
    held = OptimizedEmbeddingLoader(by_tag.manifest.root, output="list")
    assert len(held.get_provider().embed_query("text")) == 32


@needs_registry
def test_what_the_registry_has_is_not_sent_again(server: Server, tiny_built: Path, tiny_bundle: Path) -> None:
    first = send(tiny_built, f"oci://{server.host}/again:1")
    with wire_to(server.port) as wire:
        second = send(tiny_bundle, f"oci://{wire.host}/again:2")
        assert (second.sent, second.present) == (0, first.sent + first.present)
        assert wire.up < 30_000
    digests = [pushed.address.partition("@")[2] for pushed in (first, second)]
    assert digests[0] == digests[1]
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    third = send(tiny_bundle, f"oci://{server.host}/again:3")
    assert third.sent == (tiny_bundle / "firstvec.json").stat().st_size


@needs_registry
def test_the_client_of_oras_opens_the_same_artifact(server: Server, tiny_built: Path, tmp_path: Path) -> None:
    from oras.client import OrasClient

    send(tiny_built, f"oci://{server.host}/peer:1")
    OrasClient(insecure=True).pull(f"{server.host}/peer:1", outdir=str(tmp_path / "pulled"))
    assert snapshot(tmp_path / "pulled") == snapshot(tiny_built)


@needs_registry
def test_only_the_wanted_files_pass_the_wire(server: Server, tiny_built: Path, tmp_path: Path) -> None:
    send(tiny_built, f"oci://{server.host}/few:1")
    with wire_to(server.port) as wire:
        got = take(f"oci://{wire.host}/few:1", tmp_path, only=[STARTER])
        wanted = size_of(tiny_built, only=STARTER)
        assert got.fetched == wanted
        documents = (tiny_built / "firstvec.json").stat().st_size + 15_000
        assert wanted < wire.down < wanted + documents + 500 * len([*got.manifest.files()])
        assert wire.down < size_of(tiny_built) / 2


@needs_registry
def test_the_signature_travels(server: Server, tiny_bundle: Path, keys: Pair, tmp_path: Path) -> None:
    sign(Manifest.read(tiny_bundle), keys.private)
    pushed = send(tiny_bundle, f"oci://{server.host}/signed:1")
    assert pushed.is_signed
    got = take(pushed.address, tmp_path / "whole", require_signature=keys.public)
    assert find_bundle(got.manifest.root, str(keys.public))
    some = take(pushed.address, tmp_path / "some", only=[STARTER], require_signature=keys.public)
    assert some.left_out_signature
    with wire_to(server.port) as wire:
        others = make_keys(tmp_path / "others")
        with pytest.raises(SignatureError, match="another key"):
            take(f"oci://{wire.host}/signed:1", tmp_path / "none", require_signature=others.public)
        assert wire.down < 60_000
    (tiny_bundle / SIGNATURE).unlink()
    unsigned = send(tiny_bundle, f"oci://{server.host}/signed:2")
    with pytest.raises(SignatureError, match="is not signed"):
        take(unsigned.address, tmp_path / "none", require_signature=keys.public)
    assert not (tmp_path / "none").exists()


@needs_registry
def test_a_registry_with_tls_and_a_password(tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with docker_registry(tmp_path, tls=True, password=True) as server:
        address = f"oci://{server.host}/vault/tiny:1"
        trusting = Access(authorities=str(server.authority))
        with pytest.raises(TransferError, match=r"TLS connection to .* failed .*--ca FILE") as caught:
            send(tiny_built, address, Access())
        assert not caught.value.is_passing
        with pytest.raises(TransferError):
            send(tiny_built, address, PLAIN)
        with pytest.raises(TransferError, match=r"401 Unauthorized; log in with `docker login`"):
            send(tiny_built, address, trusting)
        wrong = Access(authorities=str(server.authority), username=USER, password="open")
        with pytest.raises(TransferError, match="401 Unauthorized"):
            send(tiny_built, address, wrong)
        right = Access(authorities=str(server.authority), username=USER, password=PASSWORD)
        pushed = send(tiny_built, address, right)
        with pytest.raises(TransferError, match="401 Unauthorized"):
            take(address, tmp_path / "got", trusting)
        # The stored login of Docker, in the home folder and where DOCKER_CONFIG says.
        login = {"auths": {server.host: {"auth": "YWRhOnNlc2FtZQ=="}}}
        for folder in (Path(os.environ["HOME"]) / ".docker", tmp_path / "docker"):
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(login))
            got = take(pushed.address, tmp_path / folder.name, trusting)
            assert snapshot(Path(got.manifest.root)) == snapshot(tiny_built)
            # DOCKER_CONFIG takes the place of the home folder, so what is there now must not count.
            (folder / "config.json").write_text(json.dumps({"auths": {server.host: {"auth": "YWRhOndyb25n"}}}))
            monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        (tmp_path / "docker" / "config.json").write_text("[]")
        with pytest.raises(TransferError, match="is no JSON object"):
            take(pushed.address, tmp_path / "got", trusting)
        (tmp_path / "docker" / "config.json").write_text("{damaged")
        with pytest.raises(TransferError, match="the credentials cannot be read"):
            take(pushed.address, tmp_path / "got", trusting)
    assert not (tmp_path / "got").exists()


@needs_registry
def test_a_cut_pull_goes_on_and_fetches_nothing_twice(server: Server, tiny_built: Path, tmp_path: Path) -> None:
    pushed = send(tiny_built, f"oci://{server.host}/cut:1")
    whole = size_of(tiny_built)
    documents = (tiny_built / "firstvec.json").stat().st_size + len(describe_of(tiny_built))
    fetched = 0
    for share in (0.2, 0.5, 0.9):
        with wire_to(server.port) as wire:
            remote = open_remote(at(pushed.address.replace(server.host, wire.host)), PLAIN)
            wire.cut_down_at = int(whole * share) - fetched + 30_000
            with pytest.raises(TransferError, match=r"broke off|cannot be reached") as caught:
                receive(remote, tmp_path)
            assert caught.value.is_passing
            fetched += wire.down - documents
        assert not (tmp_path / "tiny-bert").exists()
    with wire_to(server.port) as wire:
        got = take(pushed.address.replace(server.host, wire.host), tmp_path)
        fetched += wire.down - documents
    assert got.reused > whole * 0.5
    assert snapshot(tmp_path / "tiny-bert") == snapshot(tiny_built)
    assert fetched < whole * 1.1


def describe_of(bundle: Path) -> bytes:
    return describe(Manifest.read(bundle), (bundle / "firstvec.json").read_bytes(), None)[0]


@needs_registry
def test_a_cut_push_sets_no_tag_and_goes_on(server: Server, tiny_built: Path, tmp_path: Path) -> None:
    whole = size_of(tiny_built)
    with wire_to(server.port) as wire:
        wire.cut_up_at = whole // 2
        with pytest.raises(TransferError, match=r"cannot be reached|broke off"):
            send(tiny_built, f"oci://{wire.host}/half:1")
    with pytest.raises(TransferError, match="the registry has no such bundle"):
        take(f"oci://{server.host}/half:1", tmp_path)
    again = send(tiny_built, f"oci://{server.host}/half:1")
    assert again.present > 0
    assert snapshot(Path(take(again.address, tmp_path).manifest.root)) == snapshot(tiny_built)


@needs_registry
def test_a_registry_that_ends_and_comes_back_is_waited_for(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "_PAUSE_SECONDS", 0.2)
    (tmp_path / "registry").mkdir()
    with docker_registry(tmp_path / "registry") as server:
        pushed = send(tiny_built, f"oci://{server.host}/tiny:1")
        remote = open_remote(at(pushed.address), PLAIN)
        was_killed: list[int] = []

        def kill_once(done: int, total: int) -> None:
            if done > total / 3 and not was_killed:
                was_killed.append(done)
                server.kill()
                server.start()

        got = receive(remote, tmp_path / "got", report=kill_once)
    assert was_killed
    assert snapshot(Path(got.manifest.root)) == snapshot(tiny_built)


@needs_registry
def test_a_killed_command_leaves_the_old_bundle_and_the_next_one_goes_on(
    server: Server, tiny_built: Path, tiny_bundle: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    output = tmp_path / "output"
    take(send(tiny_built, f"oci://{server.host}/killed:1").address, output)
    renew(tiny_bundle)
    new = send(tiny_bundle, f"oci://{server.host}/killed:2").address
    file = largest(tiny_bundle)
    kills = 20 if request.config.getoption("--faults") else 3
    with wire_to(server.port) as wire:
        for number in range(kills):
            wire.down, wire.down_rate = 0, 400_000.0
            process = start_command("pull", new.replace(server.host, wire.host), "--insecure", "-o", str(output))
            until = time.monotonic() + 60
            while wire.down < 35_000 + file.size * number // kills // 2:
                assert time.monotonic() < until
                if process.poll() is not None:
                    break
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert snapshot(output / "tiny-bert") in (snapshot(tiny_built), snapshot(tiny_bundle))
    got = take(new, output)
    assert got.reused > 0 or not got.is_new
    assert snapshot(output / "tiny-bert") == snapshot(tiny_bundle)
    assert [path.name for path in output.iterdir()] == ["tiny-bert"]


def start_command(*arguments: str) -> subprocess.Popen[bytes]:
    command = str(Path(sys.executable).with_name("firstvec"))
    return subprocess.Popen([command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def renew(bundle: Path) -> None:
    """Write other bytes into the largest file, and name them in the manifest."""
    file = largest(bundle)
    (bundle / file.path).write_bytes(os.urandom(file.size))
    digest = hashlib.sha256((bundle / file.path).read_bytes()).hexdigest()
    edit_manifest(bundle, lambda document: document["model"].update(revision="another"))
    text = (bundle / "firstvec.json").read_text("utf-8")
    (bundle / "firstvec.json").write_text(text.replace(file.sha256, digest), "utf-8")


@needs_registry
def test_a_bundle_that_is_not_the_one_that_was_built_is_not_pushed(
    server: Server, tiny_bundle: Path, keys: Pair
) -> None:
    address = f"oci://{server.host}/refused:1"
    manifest = Manifest.read(tiny_bundle)
    with pytest.raises(InputError, match="push to a tag"):
        push(manifest, at(f"oci://{server.host}/refused@sha256:{'0' * 64}"), PLAIN)
    sign(manifest, keys.private)
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    with pytest.raises(ManifestError, match="was changed since it was read"):
        push(manifest, at(address), PLAIN)
    with pytest.raises(BuildError, match="covers other files"):
        send(tiny_bundle, address)
    (tiny_bundle / SIGNATURE).unlink()
    (tiny_bundle / "config.json").write_text("{}")
    with wire_to(server.port) as wire:
        with pytest.raises(IntegrityError, match=r"config\.json"):
            send(tiny_bundle, address.replace(server.host, wire.host))
        assert wire.up == 0


def test_a_registry_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"127\.0\.0\.1:9 cannot be reached .*refused") as caught:
        take("oci://127.0.0.1:9/tiny:1", tmp_path)
    assert caught.value.is_passing
    with pytest.raises(InputError, match="give a file of certificates"):
        take("oci://127.0.0.1:9/tiny:1", tmp_path, Access(authorities=str(tmp_path / "missing")))


# -- the real model


@needs_registry
def test_the_loader_takes_a_pulled_bundle_by_its_name(
    server: Server, bundle: Path, tmp_path: Path, fresh: Fresh
) -> None:
    """With little memory, 23 MB over the wire, and no network code in the program that uses the bundle."""
    home = tmp_path / "home"
    address = f"oci://{server.host}/minilm:1"
    peaks = {}
    with wire_to(server.port) as wire:
        through = address.replace(server.host, wire.host)
        peaks["push"] = peak_of(fresh, "push", bundle, through, "--insecure")
        before = wire.down
        environment = {"FIRSTVEC_HOME": str(home), "FIRSTVEC_ARTIFACTS": ""}
        peaks["one"] = peak_of(fresh, "pull", through, "--insecure", "--only", "onnx-int8-avx2", **environment)
        taken = wire.down - before
    assert taken < size_of(bundle, only="onnx-int8-avx2") + 100_000 < 26_000_000
    done = fresh(LOAD, **environment)
    assert (home / "bundles" / "all-MiniLM-L6-v2" / "firstvec.json").exists()
    assert json.loads(done.stdout) == ["onnx-int8-avx2", []]
    peaks["all"] = peak_of(fresh, "pull", address, "--insecure", "-o", tmp_path / "all")
    pulled = Manifest.read(tmp_path / "all" / "all-MiniLM-L6-v2")
    publishing.check_files(pulled)
    assert pulled.replace(path="") == Manifest.read(bundle).replace(path="")
    # The largest layer of the two has 23 and 91 MB. A push sends it, too.
    assert max(peaks.values()) - min(peaks.values()) < 20e6, peaks


LOAD = """
import json, sys
from firstvec import OptimizedEmbeddingLoader

loader = OptimizedEmbeddingLoader("all-MiniLM-L6-v2", strategy="quantized", output="list")
vector = loader.get_provider().embed_query("how do I reset my password?")
assert len(vector) == 384
network = {"socket", "ssl", "http.client", "urllib.request", "requests", "urllib3", "oras", "huggingface_hub"}
print(json.dumps([loader.report()["artifact"], sorted(network & set(sys.modules))]))
"""


COMMAND = """
import sys
from firstvec.commands.main import main

try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(line.split()[1], file=sys.stderr)
"""


def peak_of(fresh: Fresh, *arguments: object, **environment: str) -> int:
    """Run the command, and return its peak memory in bytes. The memory of this process does not count."""
    done = fresh(COMMAND, *arguments, check=False, **environment)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]) * 1024


# -- a registry that lies


def is_for(request: Any, path: str, liar: Liar) -> bool:
    return bool(request.path.endswith(liar.digest_of(path)))


def test_an_honest_registry_is_believed(liar: Liar, tiny_built: Path, tmp_path: Path) -> None:
    got = take_from(liar, tmp_path)
    assert snapshot(Path(got.manifest.root)) == snapshot(tiny_built)
    assert {headers.get("accept-encoding") for _, _, headers in liar.requests} == {"identity"}
    assert {"authorization" in headers for _, _, headers in liar.requests} == {False}


def test_wrong_bytes_of_a_layer(liar: Liar, tiny_built: Path, tmp_path: Path) -> None:
    path = largest(tiny_built).path
    digest = liar.digest_of(path)
    liar.blobs[digest] = b"x" * len(liar.blobs[digest])
    error = refuse(liar, tmp_path, "is not the file that the manifest describes")
    assert path in str(error)


@pytest.mark.parametrize("path", ["firstvec.json"])
def test_wrong_bytes_of_the_manifest(path: str, liar: Liar, tmp_path: Path) -> None:
    digest = liar.digest_of(path)
    for wrong in (b"{}", liar.blobs[digest] + b" ", liar.blobs[digest].replace(b"tiny", b"evil")):
        liar.blobs[digest] = wrong
        refuse(liar, tmp_path, "the registry sent other bytes than those of sha256:")
    assert [*tmp_path.iterdir()] == []


def test_a_manifest_of_another_digest(liar: Liar, tmp_path: Path) -> None:
    wanted = liar.document_digest
    liar.edit(lambda document: document["annotations"].update(note="changed"))
    with pytest.raises(TransferError, match="the registry sent a manifest of sha256:"):
        take(f"oci://{liar.host}/tiny@{wanted}", tmp_path)

    def name_another(request: Any) -> None:
        if "/manifests/" in request.path:
            raise Answer(200, liar.document, Docker_Content_Digest=wanted)

    liar.lie = name_another
    refuse(liar, tmp_path, "does not have the digest that the registry says")


def test_an_oversized_layer_is_cut_off_and_not_stored(liar: Liar, tiny_built: Path, tmp_path: Path) -> None:
    path = largest(tiny_built).path

    def send_more(request: Any) -> None:
        if is_for(request, path, liar):
            raise Answer(200, b"x" * 300_000_000)

    liar.lie = send_more
    refuse(liar, tmp_path, "found more than")
    assert liar.sent < size_of(tiny_built) + 30_000_000
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < size_of(tiny_built) + 50_000


def test_a_layer_that_unpacks_to_more_is_not_unpacked(liar: Liar, tiny_built: Path, tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)

    def send_packed(request: Any) -> None:
        if is_for(request, "firstvec.json", liar):
            raise Answer(200, bomb, Content_Encoding="gzip")

    liar.lie = send_packed
    refuse(liar, tmp_path, "the registry sent other bytes")


def test_a_truncated_layer(liar: Liar, tiny_built: Path, tmp_path: Path) -> None:
    file = largest(tiny_built)

    def cut_off(request: Any) -> None:
        if is_for(request, file.path, liar):
            raise Answer(200, liar.blobs[liar.digest_of(file.path)][:1000], Content_Length=str(file.size))

    liar.lie = cut_off
    error = refuse(liar, tmp_path, "broke off|ended after")
    assert error.is_passing
    liar.lie = lambda _request: None
    got = take_from(liar, tmp_path)
    assert got.reused >= 1000
    assert snapshot(Path(got.manifest.root)) == snapshot(tiny_built)


def test_a_registry_without_ranges_sends_everything_again(liar: Liar, tiny_built: Path, tmp_path: Path) -> None:
    file = largest(tiny_built)
    whole = liar.blobs[liar.digest_of(file.path)]
    asked: list[str | None] = []

    def ignore_ranges(request: Any) -> None:
        if is_for(request, file.path, liar):
            asked.append(request.headers.get("Range"))
            if len(asked) == 1:
                raise Answer(200, whole[: file.size // 2], Content_Length=str(file.size))
            raise Answer(200, whole)

    liar.lie = ignore_ranges
    got = take_from(liar, tmp_path)
    assert asked == [None, f"bytes={file.size // 2}-"]
    assert snapshot(Path(got.manifest.root)) == snapshot(tiny_built)


def test_another_range_than_the_one_that_was_asked_for(liar: Liar, tiny_built: Path, tmp_path: Path) -> None:
    file = largest(tiny_built)
    whole = liar.blobs[liar.digest_of(file.path)]

    def shift(request: Any) -> None:
        if is_for(request, file.path, liar):
            if request.headers.get("Range") is None:
                raise Answer(200, whole[:1000], Content_Length=str(file.size))
            raise Answer(206, whole[500:], Content_Range=f"bytes 500-{file.size - 1}/{file.size}")

    liar.lie = shift
    refuse(liar, tmp_path, "another part than the one that was asked for")


def test_layers_that_contradict_the_manifest(liar: Liar, tiny_built: Path, tmp_path: Path) -> None:
    path = largest(tiny_built).path
    honest = liar.document

    def edit(change: Any) -> None:
        liar.document = honest
        liar.edit(lambda document: change(document, next(each for each in document["layers"] if name_of(each) == path)))

    def name_of(layer: dict[str, Any]) -> str:
        return str(layer["annotations"]["org.cncf.model.filepath"])

    edit(lambda _document, layer: layer.update(size=layer["size"] + 1))
    refuse(liar, tmp_path, "names another file")
    edit(lambda _document, layer: layer.update(digest=liar.digest_of("firstvec.json")))
    refuse(liar, tmp_path, "names another file")
    edit(lambda document, layer: document["layers"].remove(layer))
    refuse(liar, tmp_path, f"has no layer for {path}")
    edit(lambda document, layer: document["layers"].append(layer))
    refuse(liar, tmp_path, "is there twice")
    edit(lambda _document, layer: layer.update(digest="sha256:../../secret"))
    refuse(liar, tmp_path, "is not a SHA-256")
    edit(lambda document, _layer: document["layers"][0].update(size=1 << 30))
    refuse(liar, tmp_path, "at most 1048576 are allowed")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "is not a bundle of firstvec"),
        (b"[]", "is not a bundle of firstvec"),
        (b'{"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}', "is not a bundle of firstvec"),
        (
            b'{"mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": [{"digest": "sha256:x", '
            b'"size": 1, "annotations": {}}]}',
            "none of them is firstvec.json",
        ),
        (b" " * ((4 << 20) + 1), "more than 4194304 bytes"),
    ],
    ids=["empty", "array", "index", "image", "huge"],
)
def test_what_is_no_bundle(document: bytes, message: str, liar: Liar, tmp_path: Path) -> None:
    liar.document = document
    refuse(liar, tmp_path, message)
    assert [*tmp_path.iterdir()] == []


def test_a_lost_layer(liar: Liar, tiny_built: Path, tmp_path: Path) -> None:
    path = largest(tiny_built).path
    del liar.blobs[liar.digest_of(path)]
    assert path in str(refuse(liar, tmp_path, "the registry has lost the layer"))


def test_a_tag_that_moves_while_it_is_pulled_does_not_mix_two_bundles(
    liar: Liar, tiny_built: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    renew(tiny_bundle)
    with liar_with(tiny_bundle) as other:
        liar.blobs |= other.blobs
        old, new = liar.document, other.document
    moved_after = 0

    def move(request: Any) -> None:
        nonlocal moved_after
        if "/blobs/" in request.path:
            moved_after += 1
            liar.document = new

    liar.lie = move
    got = take_from(liar, tmp_path / "output")
    assert moved_after > 10
    assert liar.document == new != old
    assert snapshot(Path(got.manifest.root)) == snapshot(tiny_built)
    liar.lie = lambda _request: None
    assert snapshot(Path(take_from(liar, tmp_path / "output").manifest.root)) == snapshot(tiny_bundle)


def test_a_registry_that_changes_the_manifest_is_noticed(liar: Liar, tiny_built: Path) -> None:
    def accept(request: Any) -> None:
        if request.command == "HEAD":
            raise Answer(200)
        raise Answer(201, Docker_Content_Digest=f"sha256:{'0' * 64}")

    liar.lie = accept
    with pytest.raises(TransferError, match="the registry changed the manifest"):
        send(tiny_built, f"oci://{liar.host}/tiny:1")
