"""Sign a bundle with a private key in a file, by OpenSSF's model-signing, so that the runtime can require it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from firstvec.bundle import MANIFEST_NAME, SIGNATURE_NAME
from firstvec.bundle.contents import find_unlisted
from firstvec.bundle.manifest import Manifest
from firstvec.bundle.signature import (
    MAX_KEY_BYTES,
    check_signature_bytes,
    parse_key,
    read_signature,
    signed_files,
)
from firstvec.errors import BuildError, InputError, MissingDependency
from firstvec_build import temporary
from firstvec_build.shipping.whole_bundle import read_whole, verify_files

if TYPE_CHECKING:
    from firstvec.bundle.signature import PublicKey

_STEM = f".{SIGNATURE_NAME}."
"""How the name of an unfinished signature begins."""
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_HINT = "make one with `openssl ecparam -name prime256v1 -genkey -noout -out KEY`"


def sign(manifest: Manifest, private_key: Path, *, password: str | None = None) -> Path:
    """Sign the manifest and every file that it lists, and return the path of the signature in the bundle's folder.

    The signature appears whole or not at all, and replaces a previous signature. The runtime's own check must accept
    the signature before it appears. Nothing is sent anywhere.

    Args:
        manifest: the bundle's manifest.
        private_key: PEM file of a key of P-256, P-384 or P-521.
        password: password of an encrypted key. An empty password counts as none.

    Raises:
        ManifestError, IntegrityError: the bundle is not the one that was built.
        BuildError: the folder holds something that the manifest does not list, or cannot be written.
        InputError: the key cannot be read, or is of another kind, or the password is wrong.
        MissingDependency: model-signing is not installed.
    """
    try:
        # These imports take half a second, and no other command needs them.
        from model_signing import hashing, signing
    except ImportError as error:
        raise MissingDependency("signing a bundle", error.name or "model-signing", "firstvec[sign]") from error
    password = password or None
    key, public_key = _read_key(private_key, password)
    data = read_whole(manifest)
    verify_files(manifest)
    folder = Path(manifest.root).resolve()  # model-signing accepts no link
    temporary.remove_abandoned(folder, _STEM)
    if unlisted := find_unlisted(manifest):
        path, kind = next(iter(unlisted.items()))
        more = f" (and {len(unlisted) - 1} more: see `firstvec verify --strict`)" if len(unlisted) > 1 else ""
        raise BuildError(f"{os.path.join(manifest.root, path)}: is {kind}{more}; remove it, and sign what was built")
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / SIGNATURE_NAME
        # model-signing must see every file. A bundle has no files of Git, so none are ignored.
        config = hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME], ignore_git_paths=False)
        # model-signing declares a str here, and passes it to cryptography, which takes bytes only.
        secret: object = password.encode() if password is not None else None
        try:
            with _path_of(key, private_key) as path_of_key:
                signer = signing.Config().use_elliptic_key_signer(private_key=path_of_key, password=secret)
            signer.set_hashing_config(config).sign(folder, made)
            signature = made.read_bytes()
        except (OSError, ValueError) as error:
            raise BuildError(f"{folder}: model-signing cannot sign the bundle ({error}); try again") from error
    # model-signing has hashed the files again. The check proves that these are the files that were verified.
    check_signature_bytes(manifest, data, signature, public_key)
    return _write_signature(folder, signature)


def read_fitting_signature(manifest: Manifest, data: bytes) -> bytes | None:
    """Return the bundle's signature, which must cover exactly the manifest's files. None: the bundle is not signed.

    Args:
        manifest: the bundle's manifest.
        data: the manifest's bytes.

    Raises:
        SignatureError: the signature is malformed.
        BuildError: the signature covers other files.
    """
    path = os.path.join(manifest.root, SIGNATURE_NAME)
    if not os.path.lexists(path):
        return None
    signature = read_signature(manifest.root)
    digests = {MANIFEST_NAME: hashlib.sha256(data).hexdigest(), **{file.path: file.sha256 for file in manifest.files()}}
    if signed_files(signature, path) != digests:
        raise BuildError(f"{path}: covers other files than the bundle has; run `firstvec sign` again, or remove it")
    return signature


def _read_key(path: Path, password: str | None) -> tuple[bytes, PublicKey]:
    """Return the bytes of the private key's file, and the public key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_KEY_BYTES)
    except OSError as error:
        raise InputError(f"{path}: the private key cannot be read ({error.strerror or error}); {_HINT}") from error
    try:
        key = load_pem_private_key(data, password.encode() if password is not None else None)
    except TypeError as error:
        if password is None:
            raise InputError(f"{path}: the private key is encrypted; give its --password") from error
        raise InputError(f"{path}: the private key is not encrypted; leave the --password out") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        wrong = "or the password is wrong" if password is not None else "in PEM"
        raise InputError(f"{path}: is not a private key {wrong}; {_HINT}") from error
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise InputError(f"{path}: is not a key of P-256, P-384 or P-521; {_HINT}")
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data, parse_key(pem, str(path))


@contextmanager
def _path_of(key: bytes, path: Path) -> Iterator[Path]:
    """Yield a path at which model-signing can read the key once more.

    ``path`` may be a pipe, which can be read once only. The bytes must not be written to a disk, so a file in memory
    holds the bytes. On a system without such files the path is ``path`` itself.
    """
    if not hasattr(os, "memfd_create"):
        yield path
        return
    with open(os.memfd_create("key"), "wb", buffering=0) as memory:
        memory.write(key)
        yield Path(f"/proc/self/fd/{memory.fileno()}")


def _write_signature(folder: Path, signature: bytes) -> Path:
    target = folder / SIGNATURE_NAME
    try:
        scratch = temporary.make_file(folder, _STEM)
        try:
            scratch.write_bytes(signature)
            temporary.sync(scratch)
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
        temporary.sync(folder)
    except OSError as error:
        raise BuildError(
            f"{target}: cannot be written ({error.strerror or error}); sign a copy of the bundle in another folder"
        ) from error
    return target
