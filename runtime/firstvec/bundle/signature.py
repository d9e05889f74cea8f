"""Check who made a bundle: a detached signature over its manifest and files, and a public key.

The format is that of OpenSSF Model Signing (``model-signing`` 1.1 and later) with a key file: a Sigstore bundle that
holds a DSSE envelope around an in-toto statement. Checking it needs the package ``cryptography`` and nothing else. The
specification is ``artifacts/FORMAT.md``. What is missing, unknown or does not match is refused.
"""

from __future__ import annotations

import os
import stat
import sys

from firstvec.bundle import MANIFEST_NAME, SIGNATURE_NAME
from firstvec.bundle.json_reader import parse_object, read_regular_file
from firstvec.errors import FirstvecError, ManifestError, MissingDependency, SignatureError
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from firstvec.bundle.json_reader import CheckedObject
    from firstvec.bundle.manifest import Manifest

    T = TypeVar("T")

MAX_BYTES = 4 << 20
MAX_KEY_BYTES = 1 << 16

_BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_SIGN = "sign the bundle with `firstvec sign`, or get it from its signer"
_KEY = "give the signer's public key as a PEM file of P-256, P-384 or P-521 (`openssl ec -in KEY -pubout`)"


def check_signature(manifest: Manifest, data: bytes, public_key: str) -> None:
    """Check that the holder of the private key signed this manifest, its bytes ``data``, and every file that it lists.

    Raises:
        SignatureError: there is no signature, or this key did not sign this bundle, or the key is not usable.
        MissingDependency: the package cryptography is not installed.
    """
    key = read_key(public_key)
    check_signature_bytes(manifest, data, read_signature(manifest.root), key)


def read_signature(root: str) -> bytes:
    """Return the bytes of the signature in a bundle's folder, or raise SignatureError."""
    return _read(os.path.join(root, SIGNATURE_NAME), MAX_BYTES, "does not exist: the bundle is not signed", _SIGN)


class PublicKey(Record):
    """The public half of a signer's key."""

    curve: str
    """Name of the curve's class in cryptography."""
    hash: str
    """Name of the hash's class in cryptography."""
    point: bytes
    """Encoded, not compressed."""
    hint: str
    """SHA-256 of the key in PEM. A signature names its key by it."""


def read_key(path: str) -> PublicKey:
    """Return the public key in a PEM file, or raise SignatureError."""
    return parse_key(_read(path, MAX_KEY_BYTES, "does not exist", _KEY, may_be_link=True), path)


def parse_key(data: bytes, path: str) -> PublicKey:
    """Return the public key in the bytes of the PEM file at ``path``, or raise SignatureError.

    cryptography has a reader, but its import takes longer than everything else here. A key in the one form that is
    accepted is a fixed text, which differs for each curve, and the point.
    """
    from binascii import a2b_base64, b2a_base64
    from hashlib import sha256

    lines = data.split()  # BEGIN PUBLIC KEY is three words
    try:
        if lines[:3] != _BEGIN.split() or lines[-3:] != _END.split():
            raise ValueError("the first or last line is not that of a public key")
        der = a2b_base64(b"".join(lines[3:-3]), strict_mode=True)
    except ValueError as error:
        raise SignatureError(path, "is not a public key in PEM", _KEY) from error
    for prefix, (curve, hash_, length) in _CURVES.items():
        if der.startswith(prefix) and len(der) == len(prefix) + length:
            text = b2a_base64(der, newline=False)
            rows = [text[start : start + 64] for start in range(0, len(text), 64)]
            pem = b"\n".join([_BEGIN, *rows, _END, b""])
            return PublicKey(curve=curve, hash=hash_, point=der[len(prefix) - 1 :], hint=sha256(pem).hexdigest())
    reason = "is a public key of a curve that does not sign bundles, or its point is compressed"
    raise SignatureError(path, reason, _KEY)


_BEGIN, _END = b"-----BEGIN PUBLIC KEY-----", b"-----END PUBLIC KEY-----"
_CURVES = {
    bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004"): ("SECP256R1", "SHA256", 64),
    bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004"): ("SECP384R1", "SHA384", 96),
    bytes.fromhex("30819b301006072a8648ce3d020106052b810400230381860004"): ("SECP521R1", "SHA512", 132),
}
"""How the DER of a key of each curve begins (RFC 5480), and the length of the rest. The last byte of the beginning is a
4, which means that the point is not compressed."""


def check_signature_bytes(manifest: Manifest, data: bytes, signature: bytes, key: PublicKey) -> None:
    """Do what `check_signature` does, with a signature and a key that were read already."""
    from hashlib import sha256

    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise MissingDependency("checking a bundle's signature", "cryptography", "firstvec[verify]") from error
    path = os.path.join(manifest.root, SIGNATURE_NAME)
    hint, payload, signed = _parse(_parse_envelope, signature, path)
    if hint != key.hint:
        raise SignatureError(path, "was made with another key than the required one", _SIGN)
    # DSSE's pre-authentication encoding: each part has its length in front, so no byte can count for the other part.
    text = b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)
    try:
        public = ec.EllipticCurvePublicKey.from_encoded_point(getattr(ec, key.curve)(), key.point)
        public.verify(signed, text, ec.ECDSA(getattr(hashes, key.hash)()))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:  # ValueError: the point is not on the curve
        raise SignatureError(path, "is not a valid signature of the required key", _SIGN) from error
    files = _parse(_parse_statement, payload, path)
    files_of_absent = [file for artifact in manifest.absent for file in artifact.files]
    listed = {file.path: file.sha256 for file in (*manifest.files(), *files_of_absent)}
    expected = {MANIFEST_NAME: sha256(data).hexdigest(), **listed}
    for name, digest in expected.items():
        if name not in files:
            raise SignatureError(path, f"does not cover {name}, which is a part of the bundle", _SIGN)
        if files[name] != digest:
            raise SignatureError(path, f"is of another bundle, or this one was changed: {name} differs", _SIGN)


def ask_verifiers(manifest: Manifest, data: bytes, public_key: str) -> dict[str, str | None]:
    """Return what each verifier finds: ``ok``, or the reason against the signature. None: the verifier was not asked.

    The verifiers are `check_signature` and model-signing's own, which hashes every file in the bundle's folder.
    model-signing is not asked where it is not installed, nor where artifacts are not installed, because it wants every
    file. It is not asked about pipes and devices either, because it would read them for ever.
    """
    verdicts: dict[str, str | None] = {"firstvec": "ok", "model-signing": None}
    try:
        check_signature(manifest, data, public_key)
    except FirstvecError as error:
        verdicts["firstvec"] = str(error)
    signature = os.path.join(manifest.root, SIGNATURE_NAME)
    may_ask = not manifest.absent
    if may_ask and _is_plain_file(signature, MAX_BYTES) and _is_plain_file(public_key, MAX_KEY_BYTES):
        try:
            verdicts["model-signing"] = _ask_model_signing(manifest.root, public_key)
        except Exception as error:  # model-signing's own errors, and those of half a dozen packages that it uses
            verdicts["model-signing"] = f"{manifest.root}: {type(error).__name__}: {error}"
    return verdicts


def _is_plain_file(path: str, limit: int) -> bool:
    """Return whether reading the path comes to an end. A path at which nothing is does, too."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return True
    return stat.S_ISREG(status.st_mode) and status.st_size <= limit


def _ask_model_signing(root: str, public_key: str) -> str | None:
    """Return ``ok``, or None if model-signing is not installed. Raises whatever model-signing raises."""
    from contextlib import redirect_stdout
    from importlib.util import find_spec
    from pathlib import Path

    if find_spec("model_signing") is None:
        return None
    from model_signing import verifying

    # model-signing accepts no link as its folder, and prints to stdout, which is for firstvec's own output.
    folder = Path(root).resolve()
    config = verifying.Config().use_elliptic_key_verifier(public_key=Path(public_key))
    with redirect_stdout(sys.stderr):
        config.verify(folder, folder / SIGNATURE_NAME)
    return "ok"


def signed_files(signature: bytes, path: str) -> dict[str, str]:
    """Return the files that a signature names and their SHA-256, or raise SignatureError. Nothing of it is proven."""
    return _parse(_parse_statement, _parse(_parse_envelope, signature, path)[1], path)


def _parse(parse: Callable[[bytes, str], T], data: bytes, path: str) -> T:
    try:
        return parse(data, path)
    except ManifestError as error:
        raise SignatureError(error.path, error.reason, _SIGN) from error


def _parse_envelope(signature: bytes, path: str) -> tuple[str, bytes, bytes]:
    """Return the key's digest, the payload and its signature. Nothing of it is proven yet."""
    top = _with_keys(parse_object(signature, path), "mediaType", "verificationMaterial", "dsseEnvelope")
    top.literal("mediaType", _BUNDLE_TYPE)
    material = _with_keys(top.child("verificationMaterial"), "publicKey", "tlogEntries")
    if material.value.get("tlogEntries", []) != []:
        raise material.error("tlogEntries", "is not an empty array, as signatures with a key file have")
    public = _with_keys(material.child("publicKey"), "hint")
    envelope = _with_keys(top.child("dsseEnvelope"), "payload", "payloadType", "signatures")
    envelope.literal("payloadType", _PAYLOAD_TYPE)
    made = _with_keys(_only_child(envelope, "signatures"), "sig", "keyid")
    if made.value.get("keyid", "") != "":
        raise made.error("keyid", "is not an empty string, as signatures with a key file have")
    return public.digest("hint"), envelope.base64("payload"), made.base64("sig")


def _parse_statement(payload: bytes, path: str) -> dict[str, str]:
    """Return the names and SHA-256 of the files that the statement is about."""
    from hashlib import sha256

    top = parse_object(payload, f"{path}: payload")
    _with_keys(top, "_type", "subject", "predicateType", "predicate").literal("_type", _STATEMENT_TYPE)
    top.literal("predicateType", _PREDICATE_TYPE)
    subject = _with_keys(_only_child(top, "subject"), "name", "digest")
    subject.text("name")  # the name of the folder that was signed: here the folder may have another one
    digests = _with_keys(subject.child("digest"), "sha256")
    predicate = _with_keys(top.child("predicate"), "serialization", "resources")
    way = predicate.child("serialization")
    _with_keys(way, "method", "hash_type", "allow_symlinks", "ignore_paths").literal("method", "files")
    way.literal("hash_type", "sha256")
    way.boolean("allow_symlinks")  # either value is accepted, because no link below a bundle's folder is followed
    if "ignore_paths" in way.value:
        way.strings("ignore_paths")
    files: dict[str, str] = {}
    for resource in predicate.children("resources", at_least=1):
        _with_keys(resource, "name", "algorithm", "digest").literal("algorithm", "sha256")
        name = resource.text("name")
        if any(segment in ("", ".", "..") for segment in name.split("/")):
            raise resource.error("name", f"{name[:80]!r} is not the path of a file in a folder")
        if name in files:
            raise resource.error("name", f"{name[:80]!r} occurs twice")
        files[name] = resource.digest("digest")
    if digests.digest("sha256") != sha256(bytes.fromhex("".join(files.values()))).hexdigest():
        raise digests.error("sha256", "is not the digest of the resources")
    return files


def _with_keys(item: CheckedObject, *known: str) -> CheckedObject:
    """Return ``item``, which must have no other keys."""
    for key in item.value:
        if key not in known:
            raise item.error(key, f"is unknown here; the known keys are {', '.join(known)}")
    return item


def _only_child(item: CheckedObject, key: str) -> CheckedObject:
    children = item.children(key, at_least=1)
    if len(children) > 1:
        raise item.error(key, f"holds {len(children)} {key}, not one")
    return children[0]


def _read(path: str, limit: int, missing: str, hint: str, *, may_be_link: bool = False) -> bytes:
    try:
        data = read_regular_file(path, limit + 1, may_be_link=may_be_link)
    except FileNotFoundError as error:
        raise SignatureError(path, missing, hint) from error
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise SignatureError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})", hint) from error
    if len(data) > limit:
        raise SignatureError(path, f"is larger than {limit} bytes", hint)
    return data
