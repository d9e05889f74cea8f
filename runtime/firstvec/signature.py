"""Check who made a bundle: a detached signature over its manifest and files, and a public key.

The signature is that of OpenSSF Model Signing (``model-signing`` 1.1 and later) with a key file: a Sigstore bundle that
holds a DSSE envelope around an in-toto statement. It is read here with the package ``cryptography`` alone; the spec is
``artifacts/FORMAT.md``. What is missing, unknown or does not match is refused.
"""

from __future__ import annotations

import os
import stat
import sys

from firstvec.document import parse_object, read_regular
from firstvec.errors import FirstvecError, ManifestError, MissingDependency, SignatureError
from firstvec.record import Record
from firstvec.store import FILE_NAME as MANIFEST_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from firstvec.document import CheckedObject
    from firstvec.manifest import Manifest

    T = TypeVar("T")

FILE_NAME = "model.sig"
"""The signature's name in a bundle's folder, which is model-signing's own default."""
MAX_BYTES = 4 << 20
MAX_KEY_BYTES = 1 << 16

_BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_SIGN = "sign the bundle with `firstvec sign`, or take it from who signs it"
_KEY = "give the signer's public key as a PEM file of P-256, P-384 or P-521 (`openssl ec -in KEY -pubout`)"


def check(manifest: Manifest, data: bytes, public_key: str) -> None:
    """Check that the holder of the private key signed this manifest, and every file that it lists.

    Args:
        manifest: what was parsed.
        data: the bytes that it was parsed from.
        public_key: path of a PEM file.

    Raises:
        SignatureError: there is no signature, or it is not one of this key over this bundle, or the key is not usable.
        MissingDependency: the package cryptography is not installed.
    """
    key = read_key(public_key)
    check_bytes(manifest, data, read(manifest.root), key)


def read(root: str) -> bytes:
    """The bytes of the signature in a bundle's folder.

    Raises:
        SignatureError: there is none, or it cannot be read.
    """
    return _read(os.path.join(root, FILE_NAME), MAX_BYTES, "does not exist: the bundle is not signed", _SIGN)


class PublicKey(Record):
    """A public key that bundles are signed for."""

    curve: str
    """Name of the class in cryptography."""
    hash: str
    """Name of the class in cryptography, of the hash that its signatures are made with."""
    point: bytes
    """Encoded, not compressed."""
    hint: str
    """SHA-256 of the key in PEM, by which a signature names it."""


def read_key(path: str) -> PublicKey:
    """Read a public key from a PEM file.

    Raises:
        SignatureError: it cannot be read, or is not the public key of a curve that bundles are signed with.
    """
    return parse_key(_read(path, MAX_KEY_BYTES, "does not exist", _KEY, linked=True), path)


def parse_key(data: bytes, path: str) -> PublicKey:
    """Read a public key from the bytes of the PEM file at ``path``.

    Raises:
        SignatureError: it is not the public key of a curve that bundles are signed with.
    """
    # Not by cryptography's own reader, whose import takes longer than everything else here. In the one form that is
    # accepted a key is a fixed text, different for each curve, and the point.
    from binascii import a2b_base64, b2a_base64
    from hashlib import sha256

    lines = data.split()  # BEGIN PUBLIC KEY is three words
    try:
        if lines[:3] != _BEGIN.split() or lines[-3:] != _END.split():
            raise ValueError("no such lines")
        der = a2b_base64(b"".join(lines[3:-3]), strict_mode=True)
    except ValueError as error:
        raise SignatureError(path, "is not a public key in PEM", _KEY) from error
    for prefix, (curve, hash_, length) in _CURVES.items():
        if der.startswith(prefix) and len(der) == len(prefix) + length:
            text = b2a_base64(der, newline=False)
            rows = [text[start : start + 64] for start in range(0, len(text), 64)]
            pem = b"\n".join([_BEGIN, *rows, _END, b""])
            point = der[len(prefix) - 1 :]
            return PublicKey(curve=curve, hash=hash_, point=point, hint=sha256(pem).hexdigest())
    raise SignatureError(
        path, "is a public key of a kind that bundles are not signed with, or its point is compressed", _KEY
    )


_BEGIN, _END = b"-----BEGIN PUBLIC KEY-----", b"-----END PUBLIC KEY-----"
_CURVES = {
    bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004"): ("SECP256R1", "SHA256", 64),
    bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004"): ("SECP384R1", "SHA384", 96),
    bytes.fromhex("30819b301006072a8648ce3d020106052b810400230381860004"): ("SECP521R1", "SHA512", 132),
}
"""How the DER of a key of each curve begins (RFC 5480), up to the 4 that says that the point is not compressed, and how
long the rest is."""


def check_bytes(manifest: Manifest, data: bytes, signature: bytes, key: PublicKey) -> None:
    """Check what `check` does, with a signature and a key that were read already.

    Raises:
        SignatureError: it is not a signature of this key over this bundle.
        MissingDependency: the package cryptography is not installed.
    """
    from hashlib import sha256

    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise MissingDependency("checking a bundle's signature", "cryptography", "firstvec[verify]") from error
    path = os.path.join(manifest.root, FILE_NAME)
    hint, payload, signed = _parsed(_envelope, signature, path)
    if hint != key.hint:
        raise SignatureError(path, "was made with another key than the required one", _SIGN)
    # DSSE's pre-authentication encoding: both parts with their lengths, so that none can be taken for the other.
    text = b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)
    try:
        public = ec.EllipticCurvePublicKey.from_encoded_point(getattr(ec, key.curve)(), key.point)
        public.verify(signed, text, ec.ECDSA(getattr(hashes, key.hash)()))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:  # ValueError: the point is not on the curve
        raise SignatureError(path, "is not a valid signature of the required key", _SIGN) from error
    files = _parsed(_statement, payload, path)
    expected = {MANIFEST_NAME: sha256(data).hexdigest(), **{file.path: file.sha256 for file in manifest.files()}}
    for name, digest in expected.items():
        if name not in files:
            raise SignatureError(path, f"does not cover {name}, which is a part of the bundle", _SIGN)
        if files[name] != digest:
            raise SignatureError(path, f"is of another bundle, or this one was changed: {name} differs", _SIGN)


def judge(manifest: Manifest, data: bytes, public_key: str) -> dict[str, str | None]:
    """Say what each verifier finds: ``ok``, or the reason against the signature; None of one that is not asked.

    The verifiers are `check` and model-signing's own, which hashes every file in the bundle's folder. It is not asked
    where it is not installed, nor about files that are no plain ones: it would read a pipe or device for ever.
    """
    verdicts: dict[str, str | None] = {"firstvec": "ok", "model-signing": "ok"}
    try:
        check(manifest, data, public_key)
    except FirstvecError as error:
        verdicts["firstvec"] = str(error)
    try:
        plain = _is_plain(os.path.join(manifest.root, FILE_NAME), MAX_BYTES) and _is_plain(public_key, MAX_KEY_BYTES)
        if not (plain and _ask_model_signing(manifest.root, public_key)):
            verdicts["model-signing"] = None
    except Exception as error:  # its own errors, and those of half a dozen packages that it lets through
        verdicts["model-signing"] = f"{manifest.root}: {type(error).__name__}: {error}"
    return verdicts


def _is_plain(path: str, limit: int) -> bool:
    """Whether it can be read to its end; what is not there can be."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return True
    return stat.S_ISREG(status.st_mode) and status.st_size <= limit


def _ask_model_signing(root: str, public_key: str) -> bool:
    """False if it is not installed; raises whatever it finds."""
    from contextlib import redirect_stdout
    from importlib.util import find_spec
    from pathlib import Path

    if find_spec("model_signing") is None:
        return False
    from model_signing import verifying

    # Its folder must not be a link, and what it prints is not for our output.
    folder = Path(root).resolve()
    with redirect_stdout(sys.stderr):
        verifying.Config().use_elliptic_key_verifier(public_key=Path(public_key)).verify(folder, folder / FILE_NAME)
    return True


def signed_files(signature: bytes, path: str) -> dict[str, str]:
    """The files that a signature covers and their SHA-256, as it says: without a key nothing of it is proven.

    Raises:
        SignatureError: it is not a signature that a bundle can have.
    """
    return _parsed(_statement, _parsed(_envelope, signature, path)[1], path)


def _parsed(parse: Callable[[bytes, str], T], data: bytes, path: str) -> T:
    try:
        return parse(data, path)
    except ManifestError as error:
        raise SignatureError(error.path, error.reason, _SIGN) from error


def _envelope(signature: bytes, path: str) -> tuple[str, bytes, bytes]:
    """The key's digest, the payload and its signature. Nothing in it is proven yet."""
    top = parse_object(signature, path)
    _keys(top, "mediaType", "verificationMaterial", "dsseEnvelope")
    top.literal("mediaType", _BUNDLE_TYPE)
    material = top.child("verificationMaterial")
    _keys(material, "publicKey", "tlogEntries")
    if material.value.get("tlogEntries", []) != []:
        raise material.error("tlogEntries", "is not an empty array, as signatures with a key file have")
    public = material.child("publicKey")
    _keys(public, "hint")
    envelope = top.child("dsseEnvelope")
    _keys(envelope, "payload", "payloadType", "signatures")
    envelope.literal("payloadType", _PAYLOAD_TYPE)
    made = envelope.children("signatures", at_least=1)
    if len(made) > 1:
        raise envelope.error("signatures", f"holds {len(made)} signatures, not one")
    _keys(made[0], "sig", "keyid")
    if made[0].value.get("keyid", "") != "":
        raise made[0].error("keyid", "is not an empty string, as signatures with a key file have")
    return public.digest("hint"), envelope.base64("payload"), made[0].base64("sig")


def _statement(payload: bytes, path: str) -> dict[str, str]:
    """The names and SHA-256 of the files that the statement is about."""
    from hashlib import sha256

    top = parse_object(payload, f"{path}: payload")
    _keys(top, "_type", "subject", "predicateType", "predicate")
    top.literal("_type", _STATEMENT_TYPE)
    top.literal("predicateType", _PREDICATE_TYPE)
    subjects = top.children("subject", at_least=1)
    if len(subjects) > 1:
        raise top.error("subject", f"holds {len(subjects)} subjects, not one")
    _keys(subjects[0], "name", "digest")
    subjects[0].text("name")  # of the folder that was signed: it may have another name here
    digests = subjects[0].child("digest")
    _keys(digests, "sha256")
    predicate = top.child("predicate")
    _keys(predicate, "serialization", "resources")
    way = predicate.child("serialization")
    _keys(way, "method", "hash_type", "allow_symlinks", "ignore_paths")
    way.literal("method", "files")
    way.literal("hash_type", "sha256")
    way.boolean("allow_symlinks")  # whichever: no link below a bundle's folder is followed
    if "ignore_paths" in way.value:
        way.strings("ignore_paths")
    files: dict[str, str] = {}
    whole = sha256()
    for resource in predicate.children("resources", at_least=1):
        _keys(resource, "name", "algorithm", "digest")
        resource.literal("algorithm", "sha256")
        name, digest = resource.text("name"), resource.digest("digest")
        if any(segment in ("", ".", "..") for segment in name.split("/")):
            raise resource.error("name", f"{name[:80]!r} is not the path of a file in a folder")
        if name in files:
            raise resource.error("name", f"{name[:80]!r} occurs twice")
        files[name] = digest
        whole.update(bytes.fromhex(digest))
    if digests.digest("sha256") != whole.hexdigest():
        raise digests.error("sha256", "is not the digest of the resources")
    return files


def _keys(item: CheckedObject, *known: str) -> None:
    for key in item.value:
        if key not in known:
            raise item.error(ascii(key[:80])[1:-1], f"is not known here; known are {', '.join(known)}")


def _read(path: str, limit: int, missing: str, hint: str, *, linked: bool = False) -> bytes:
    try:
        data = read_regular(path, limit + 1, linked=linked)
    except FileNotFoundError as error:
        raise SignatureError(path, missing, hint) from error
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise SignatureError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})", hint) from error
    if len(data) > limit:
        raise SignatureError(path, f"is larger than {limit} bytes", hint)
    return data
