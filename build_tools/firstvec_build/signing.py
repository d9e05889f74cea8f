"""Sign a bundle with a private key in a file, by OpenSSF's model-signing; what the runtime then requires."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from firstvec.contents import unlisted
from firstvec.errors import BuildError, InputError, ManifestError, MissingDependency
from firstvec.integrity import verify
from firstvec.manifest import Manifest, read_bytes
from firstvec.signature import FILE_NAME, MAX_KEY_BYTES, check_bytes, parse_key
from firstvec_build import unfinished

if TYPE_CHECKING:
    from firstvec.signature import PublicKey

_STEM = f".{FILE_NAME}."
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_HINT = "make one with `openssl ecparam -name prime256v1 -genkey -noout -out KEY`"


def sign(manifest: Manifest, private_key: Path, *, password: str | None = None) -> Path:
    """Sign the manifest and every file that it lists, write the signature into the bundle's folder, return its path.

    The signature appears whole or not at all, in the place of one that is there. The runtime's own check has accepted
    it then. Nothing is sent anywhere.

    Args:
        private_key: PEM file of a key of P-256, P-384 or P-521.
        password: of the key, if it is encrypted.

    Raises:
        ManifestError, IntegrityError: the bundle is not the one that was built.
        BuildError: its folder holds something that the manifest does not list, or cannot be written.
        InputError: the key cannot be read, or is of another kind, or the password is wrong.
        MissingDependency: model-signing is not installed.
    """
    try:
        # Here: half a second of imports.
        from model_signing import hashing, signing
    except ImportError as error:
        raise MissingDependency("signing a bundle", error.name or "model-signing", "firstvec[sign]") from error
    password = password or None
    key, public = _keys(private_key, password)
    data = read_bytes(manifest.path)
    if Manifest.parse(data, manifest.path) != manifest:
        raise ManifestError(manifest.path, "has been changed since it was read", "try again")
    for file in manifest.files():
        verify(manifest.root, file, remember=False)
    folder = Path(manifest.root).resolve()  # model-signing takes no link
    unfinished.collect(folder, _STEM)
    if others := unlisted(manifest):
        path, what = next(iter(others.items()))
        more = f" (and {len(others) - 1} more: see `firstvec verify --strict`)" if len(others) > 1 else ""
        raise BuildError(f"{os.path.join(manifest.root, path)}: is {what}{more}; remove it, and sign what was built")
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / FILE_NAME
        # Files of git are not left out: a bundle has none.
        config = hashing.Config().set_ignored_paths(paths=[FILE_NAME], ignore_git_paths=False)
        # The type of its password is a mistake: cryptography takes bytes only.
        secret: object = password.encode() if password is not None else None
        try:
            with _reread(private_key, key) as same:
                signer = signing.Config().use_elliptic_key_signer(private_key=same, password=secret)
            signer.set_hashing_config(config).sign(folder, made)
            signature = made.read_bytes()
        except (OSError, ValueError) as error:
            raise BuildError(f"{folder}: model-signing cannot sign it ({error}); try again") from error
    # model-signing has hashed the files once more: they must be those that were verified.
    check_bytes(manifest, data, signature, public)
    return _write(folder, signature)


@contextmanager
def _reread(path: Path, data: bytes) -> Iterator[Path]:
    """A path that leads to these bytes: a pipe gives a key once, and no disk shall have it."""
    if not hasattr(os, "memfd_create"):
        yield path
        return
    with open(os.memfd_create("key"), "wb", buffering=0) as memory:
        memory.write(data)
        yield Path(f"/proc/self/fd/{memory.fileno()}")


def _keys(path: Path, password: str | None) -> tuple[bytes, PublicKey]:
    """What is in the private key's file, and its public key."""
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


def _write(folder: Path, signature: bytes) -> Path:
    target = folder / FILE_NAME
    try:
        scratch = unfinished.make_file(folder, _STEM)
        try:
            scratch.write_bytes(signature)
            unfinished.sync(scratch)
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
        unfinished.sync(folder)
    except OSError as error:
        raise BuildError(
            f"{target}: cannot be written ({error.strerror or error}); sign a copy of the bundle that can be"
        ) from error
    return target
