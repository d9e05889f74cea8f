"""Keys, and signatures of bundles that model-signing makes, or that are made by hand. No code of the project signs."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing, verifying

SIGNATURE = "model.sig"
Change = Callable[[dict[str, Any]], object]


class Pair(NamedTuple):
    """The files of a private key and its public key."""

    private: Path
    public: Path


def make_keys(folder: Path, name: str = "key", key: Any = None, password: str | None = None) -> Pair:
    """Write a pair of keys and return its files. The key is of P-256 if none is given."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(exist_ok=True)
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.pub")
    encryption = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    pair.private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    public = key.public_key()
    pair.public.write_bytes(
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return pair


def sign_with_peer(bundle: Path, private: Path, config: hashing.Config | None = None) -> None:
    """Sign a bundle as `model_signing sign key` does."""
    config = config or hashing.Config().set_ignored_paths(paths=[SIGNATURE])
    signing.Config().use_elliptic_key_signer(private_key=private).set_hashing_config(config).sign(
        bundle, bundle / SIGNATURE
    )


def peer_accepts(bundle: Path, public: Path) -> bool:
    """Return whether model-signing's own verifier finds nothing wrong."""
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=public).verify(bundle, bundle / SIGNATURE)
    except Exception:  # the verifier raises its own errors, and those of pydantic, cryptography and the system
        return False
    return True


def forge(
    bundle: Path,
    private: Path,
    *,
    statement: Change = lambda _: None,
    envelope: Change = lambda _: None,
    payload: Callable[[bytes], bytes] = lambda data: data,
    without: tuple[str, ...] = (),
) -> None:
    """Sign a bundle by hand.

    Args:
        bundle: its folder.
        private: the key.
        statement: changes the statement before it is signed.
        envelope: changes the envelope after the statement was signed.
        payload: changes the statement's bytes before they are signed.
        without: files that the statement leaves out.
    """
    files = {
        path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(bundle.rglob("*"))
        if path.is_file() and path.name != SIGNATURE
    }
    resources = [
        {"name": name, "algorithm": "sha256", "digest": digest} for name, digest in files.items() if name not in without
    ]
    document = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": bundle.name, "digest": {"sha256": digest_of(resources)}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            },
            "resources": resources,
        },
    }
    statement(document)
    body = payload(json.dumps(document).encode())
    key = serialization.load_pem_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    kind = b"application/vnd.in-toto+json"
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)
    hashed = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[key.curve.key_size]
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    outer = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": hashlib.sha256(pem).hexdigest()}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(body).decode(),
            "payloadType": kind.decode(),
            "signatures": [{"sig": base64.b64encode(key.sign(signed, ec.ECDSA(hashed))).decode(), "keyid": ""}],
        },
    }
    envelope(outer)
    (bundle / SIGNATURE).write_text(json.dumps(outer))


def digest_of(resources: list[dict[str, str]]) -> str:
    """Return the subject's digest, which is that of the resources' digests."""
    return hashlib.sha256(b"".join(bytes.fromhex(each["digest"]) for each in resources)).hexdigest()
