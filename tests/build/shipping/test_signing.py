"""Signing: the runtime and model-signing accept the signature, and a damaged bundle is not signed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from firstvec import OptimizedEmbeddingLoader
from firstvec.bundle.manifest import Manifest
from firstvec.bundle.signature import signed_files
from firstvec.bundle.store import find_bundle
from firstvec.errors import BuildError, InputError, IntegrityError, ManifestError, SignatureError
from firstvec_build.shipping.signing import sign
from tests.conftest import Fresh, edit_manifest
from tests.keys import SIGNATURE, Pair, make_keys, peer_accepts


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: str(curve.name))
def test_both_verifiers_accept_the_signature(curve: ec.EllipticCurve, tiny_bundle: Path, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys", key=ec.generate_private_key(curve))
    path = sign(Manifest.read(tiny_bundle), keys.private)
    assert path == tiny_bundle / SIGNATURE
    assert path.stat().st_mode & 0o777 == 0o644
    assert peer_accepts(tiny_bundle, keys.public)
    held = OptimizedEmbeddingLoader(str(tiny_bundle), output="list", require_signature=keys.public)
    assert len(held.get_provider().embed_query("text")) == 32


def test_signature_covers_the_manifest_and_the_files_that_it_lists(tiny_bundle: Path, keys: Pair) -> None:
    manifest = Manifest.read(tiny_bundle)
    path = sign(manifest, keys.private)
    expected = {"firstvec.json", *(file.path for file in manifest.files())}
    assert set(signed_files(path.read_bytes(), str(path))) == expected
    assert {path.name for path in tiny_bundle.iterdir() if path.name.startswith(".")} == set()


def test_signing_again_replaces_the_signature(tiny_bundle: Path, keys: Pair, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    sign(manifest, keys.private)
    others = make_keys(tmp_path / "keys")
    sign(manifest, others.private)
    assert find_bundle(str(tiny_bundle), str(others.public))
    assert peer_accepts(tiny_bundle, others.public)
    with pytest.raises(SignatureError):
        find_bundle(str(tiny_bundle), str(keys.public))


@pytest.mark.parametrize(
    "damage",
    [
        lambda bundle: (bundle / "config.json").write_text("{}"),
        lambda bundle: (bundle / "onnx/model.onnx_data").unlink(),
        lambda bundle: (bundle / "self_test.json").write_bytes((bundle / "self_test.json").read_bytes() + b" "),
    ],
    ids=["changed", "missing", "longer"],
)
def test_damaged_bundle_is_not_signed(damage: Callable[[Path], object], tiny_bundle: Path, keys: Pair) -> None:
    manifest = Manifest.read(tiny_bundle)
    damage(tiny_bundle)
    with pytest.raises(IntegrityError):
        sign(manifest, keys.private)
    assert not (tiny_bundle / SIGNATURE).exists()


def test_manifest_that_was_changed_since_it_was_read_is_not_signed(tiny_bundle: Path, keys: Pair) -> None:
    manifest = Manifest.read(tiny_bundle)
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    with pytest.raises(ManifestError, match="changed"):
        sign(manifest, keys.private)


def test_a_folder_that_holds_something_else_is_not_signed(tiny_bundle: Path, keys: Pair) -> None:
    manifest = Manifest.read(tiny_bundle)
    (tiny_bundle / "notes.txt").write_text("")
    with pytest.raises(BuildError, match=r"notes\.txt: is a file that the manifest does not list; remove it"):
        sign(manifest, keys.private)
    (tiny_bundle / "extra").mkdir()
    with pytest.raises(BuildError, match=r"\(and 1 more: see `firstvec verify --strict`\)"):
        sign(manifest, keys.private)
    assert not (tiny_bundle / SIGNATURE).exists()


def test_an_encrypted_key_needs_its_password(tiny_bundle: Path, keys: Pair, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    locked = make_keys(tmp_path / "keys", password="sésame")
    sign(manifest, locked.private, password="sésame")
    assert peer_accepts(tiny_bundle, locked.public)
    with pytest.raises(InputError, match="password is wrong"):
        sign(manifest, locked.private, password="sesame")
    with pytest.raises(InputError, match="give its --password"):
        sign(manifest, locked.private)
    with pytest.raises(InputError, match="leave the --password out"):
        sign(manifest, keys.private, password="sesame")


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256K1()),
    ],
    ids=["RSA", "Ed25519", "secp256k1"],
)
def test_a_key_of_another_kind_is_refused(key: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys", key=key)
    with pytest.raises(InputError, match="P-256, P-384 or P-521"):
        sign(Manifest.read(tiny_bundle), keys.private)


def test_file_that_is_no_private_key_is_refused(tiny_bundle: Path, keys: Pair, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    for path in (keys.public, Path("/dev/null"), tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match="openssl ecparam"):
            sign(manifest, path)


def test_a_failed_write_leaves_the_signature_that_is_there(
    tiny_bundle: Path, keys: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(tiny_bundle)
    before = sign(manifest, keys.private).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BuildError, match="No space left"):
        sign(manifest, keys.private)
    assert (tiny_bundle / SIGNATURE).read_bytes() == before
    assert [path.name for path in tiny_bundle.glob(".*")] == []


def test_leftover_of_a_killed_run_is_removed(tiny_bundle: Path, keys: Pair) -> None:
    code = "import sys, pathlib; from firstvec_build import temporary; "
    code += "temporary.make_file(pathlib.Path(sys.argv[1]), sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, tiny_bundle, f".{SIGNATURE}."], check=True)
    assert len([*tiny_bundle.glob(".*")]) == 1
    sign(Manifest.read(tiny_bundle), keys.private)
    assert [path.name for path in tiny_bundle.glob(".*")] == []
    (tiny_bundle / f".{SIGNATURE}.of-somebody-else").touch()
    with pytest.raises(BuildError, match="remove it"):
        sign(Manifest.read(tiny_bundle), keys.private)


def test_signing_opens_no_connection(tiny_bundle: Path, keys: Pair, fresh: Fresh) -> None:
    code = """
import sys
from pathlib import Path
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print(event, arguments)
sys.addaudithook(hook)
from firstvec.bundle.manifest import Manifest
from firstvec.bundle.signature import ask_verifiers
from firstvec_build.shipping.signing import sign
manifest = Manifest.read(sys.argv[1])
sign(manifest, Path(sys.argv[2]))
print(ask_verifiers(manifest, Path(manifest.path).read_bytes(), sys.argv[3]))
"""
    assert fresh(code, tiny_bundle, *keys).stdout == "{'firstvec': 'ok', 'model-signing': 'ok'}\n"


def test_empty_password_counts_as_none(tiny_bundle: Path, keys: Pair) -> None:
    sign(Manifest.read(tiny_bundle), keys.private, password="")
    assert peer_accepts(tiny_bundle, keys.public)


def test_system_without_files_in_memory_signs_with_the_keys_own_file(
    tiny_bundle: Path, keys: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    sign(Manifest.read(tiny_bundle), keys.private)
    assert peer_accepts(tiny_bundle, keys.public)


def test_error_of_model_signing_is_a_build_error(
    tiny_bundle: Path, keys: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_signing import signing

    def fail(*_: object, **__: object) -> None:
        raise ValueError("the reason")

    monkeypatch.setattr(signing.Config, "use_elliptic_key_signer", fail)
    with pytest.raises(BuildError, match=r"model-signing cannot sign the bundle \(the reason\); try again"):
        sign(Manifest.read(tiny_bundle), keys.private)
    assert not (tiny_bundle / SIGNATURE).exists()
