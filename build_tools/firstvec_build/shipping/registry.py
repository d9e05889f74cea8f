"""Push a bundle to a container registry, and read it there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from firstvec.bundle import MANIFEST_NAME, SIGNATURE_NAME
from firstvec.bundle import manifest as manifests
from firstvec.bundle import signature as signatures
from firstvec.bundle.json_reader import parse_object
from firstvec.bundle.manifest import File, Manifest
from firstvec.errors import InputError, ManifestError, TransferError
from firstvec_build.shipping.addresses import Access, Registry
from firstvec_build.shipping.model_pack import describe, digest_of, layer_of, read_layers
from firstvec_build.shipping.progress import Report, behind
from firstvec_build.shipping.registry_client import PUSH_AGAIN, Client, read_limited, try_again
from firstvec_build.shipping.signing import read_fitting_signature
from firstvec_build.shipping.whole_bundle import read_whole, verify_files


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
    client = Client(address, access)
    data = read_whole(manifest)
    verify_files(manifest)
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
    if not client.has(digest_of(config)):
        client.upload(manifest.root, layer_of("config", config), lambda _count: None)
    client.put_manifest(document)
    digest = digest_of(document)
    return Pushed(
        address=str(Registry(host=address.host, repository=address.repository, digest=digest)),
        sent=sent,
        present=total - sent,
        is_signed=signature is not None,
    )


def open_remote(address: Registry, access: Access) -> RegistryBundle:
    """Find a bundle in a registry. A tag is resolved here, once. What moves the tag later has no effect.

    Raises:
        TransferError: the registry cannot be reached, refuses, has no such bundle, or sends something else.
        MissingDependency: the package oras is not installed.
    """
    client = Client(address, access)
    data = client.get_manifest()
    digest = digest_of(data)
    found = Registry(host=address.host, repository=address.repository, digest=digest)
    if address.digest not in (None, digest):
        raise TransferError(str(address), f"the registry sent a manifest of {digest}", PUSH_AGAIN)
    try:
        layers = read_layers(parse_object(data, str(found)))
    except ManifestError as error:
        raise TransferError(error.path, f"is not a bundle of firstvec: {error.reason}", "check the address") from error
    return RegistryBundle(client, str(found), layers)


class RegistryBundle:
    """One bundle in a registry, by the digest of its OCI manifest: a remote for `firstvec_build.shipping.arrival`."""

    def __init__(self, client: Client, address: str, layers: dict[str, tuple[str, int]]) -> None:
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
            raise TransferError(self._address, f"has no layer for {file.path}, which is a part of it", PUSH_AGAIN)
        if (digest, size) != (f"sha256:{file.sha256}", file.size):
            found = f"{digest[:23]}… of {size} bytes, and {MANIFEST_NAME} names another file"
            raise TransferError(f"{self._address}/{file.path}", f"the layer is {found}", PUSH_AGAIN)
        return self._client.get_blob(digest, start, file.path)

    def _read_small(self, path: str, limit: int) -> bytes:
        digest, size = self._layers[path]
        name = f"{self._address}/{path}"
        if size > limit:
            raise TransferError(name, f"has {size} bytes, and at most {limit} are allowed", PUSH_AGAIN)
        data = try_again(lambda: read_limited(self._client.get_blob(digest, 0, path), size))
        if digest_of(data) != digest:
            raise TransferError(name, f"the registry sent other bytes than those of {digest[:23]}…", PUSH_AGAIN)
        return data
