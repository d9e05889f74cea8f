"""A bundle's signature: a required signature must be there and right, and everything else is refused.

model-signing makes the signatures, or the tests make them by hand. model-signing's own verifier is asked, too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from model_signing import hashing

from firstvec import InputError, OptimizedEmbeddingLoader, SignatureError, get_embedding_provider, preload_embeddings
from firstvec.bundle import MANIFEST_NAME, SIGNATURE_NAME
from firstvec.bundle.manifest import Manifest
from firstvec.bundle.signature import (
    MAX_BYTES,
    PublicKey,
    ask_verifiers,
    check_signature,
    check_signature_bytes,
    parse_key,
    read_key,
    read_signature,
    signed_files,
)
from firstvec.bundle.store import find_bundle
from firstvec.errors import FirstvecError, IntegrityError, ManifestError, MissingDependency
from tests.conftest import Fresh, edit_manifest
from tests.keys import Change, Pair, digest_of, forge, make_keys, peer_accepts, sign_with_peer
from tests.loads import wait_for


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_keys(tmp_path_factory.mktemp("other-keys"))


@pytest.fixture
def signed(tiny_bundle: Path, keys: Pair) -> Path:
    """A copy of the tiny bundle that model-signing has signed."""
    sign_with_peer(tiny_bundle, keys.private)
    return tiny_bundle


def loader(bundle: Path, public: Path, **options: Any) -> OptimizedEmbeddingLoader:
    return OptimizedEmbeddingLoader(str(bundle), output="list", require_signature=public, **options)


def refused(bundle: Path, public: Path) -> SignatureError:
    """Return the error, and see that nothing of the bundle is shown or loaded."""
    with pytest.raises(SignatureError) as raised:
        find_bundle(str(bundle), str(public))
    held = loader(bundle, public)
    assert held.get_metadata() is None
    assert held.get_embedding_dim_fast() is None
    with pytest.raises(SignatureError):
        held.choose()
    with pytest.raises(SignatureError):
        held.get_provider()
    assert isinstance(held.get_error(), SignatureError)
    return raised.value


def resign_as_another(bundle: Path) -> None:
    """Change a file, and the manifest so that it is valid again."""
    target = bundle / "config.json"
    target.write_bytes(target.read_bytes() + b"\n")
    data = target.read_bytes()

    def update(document: dict[str, Any]) -> None:
        for file in document["support_files"]:
            if file["path"] == "config.json":
                file.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    edit_manifest(bundle, update)


# --- What is accepted ------------------------------------------------------------------------------------------------


@pytest.mark.native
@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: str(curve.name))
def test_a_bundle_that_model_signing_signed_loads(curve: ec.EllipticCurve, tiny_bundle: Path, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys", key=ec.generate_private_key(curve))
    sign_with_peer(tiny_bundle, keys.private)
    held = loader(tiny_bundle, keys.public)
    assert held.get_embedding_dim_fast() == 32
    assert held.choose().artifact.id == "native-fp32"
    assert len(held.get_provider().embed_query("text")) == 32
    assert peer_accepts(tiny_bundle, keys.public)


def test_a_signature_made_by_hand_is_accepted_by_both_verifiers(tiny_bundle: Path, keys: Pair) -> None:
    forge(tiny_bundle, keys.private)
    assert find_bundle(str(tiny_bundle), str(keys.public)) == Manifest.read(tiny_bundle)
    assert peer_accepts(tiny_bundle, keys.public)


def test_a_signature_may_cover_files_that_the_manifest_does_not_list(tiny_bundle: Path, keys: Pair) -> None:
    (tiny_bundle / "notes ü.txt").write_text("signed, and never opened")
    sign_with_peer(tiny_bundle, keys.private)
    assert find_bundle(str(tiny_bundle), str(keys.public))
    assert peer_accepts(tiny_bundle, keys.public)


def test_a_statement_may_name_ignored_paths_and_allow_links(tiny_bundle: Path, keys: Pair) -> None:
    config = hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME, "notes"]).set_allow_symlinks(True)
    sign_with_peer(tiny_bundle, keys.private, config)
    assert find_bundle(str(tiny_bundle), str(keys.public))
    assert peer_accepts(tiny_bundle, keys.public)


def test_a_signed_folder_may_be_moved_and_renamed(signed: Path, keys: Pair, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "of-another-name"
    shutil.copytree(signed, moved)
    assert find_bundle(str(moved), str(keys.public))
    assert peer_accepts(moved, keys.public)


def test_a_bundle_is_found_by_name_and_must_be_signed_there(
    signed: Path, keys: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(tmp_path))
    assert find_bundle("tiny-bert", str(keys.public)).root == str(signed)
    shutil.copytree(signed, tmp_path / "before" / "tiny-bert", ignore=shutil.ignore_patterns(SIGNATURE_NAME))
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", os.pathsep.join([str(tmp_path / "before"), str(tmp_path)]))
    with pytest.raises(SignatureError, match="before"):
        find_bundle("tiny-bert", str(keys.public))  # a key never makes the search go on


def test_another_bundle_on_the_search_path_need_not_be_signed(
    signed: Path, keys: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "a-bundle-before-it"
    shutil.copytree(signed, other, ignore=shutil.ignore_patterns(SIGNATURE_NAME))
    edit_manifest(other, lambda document: document["model"].update(name="another/model"))
    signed.rename(tmp_path / "under-another-name")
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(tmp_path))
    assert find_bundle("tiny-bert", str(keys.public)).root == str(tmp_path / "under-another-name")


# --- What is refused, by model-signing's verifier, too ---------------------------------------------------------------


def test_an_unsigned_bundle_is_refused(tiny_bundle: Path, keys: Pair) -> None:
    error = refused(tiny_bundle, keys.public)
    assert error.path == str(tiny_bundle / SIGNATURE_NAME)
    assert "is not signed" in str(error)
    assert "`firstvec sign`" in str(error)
    assert not peer_accepts(tiny_bundle, keys.public)


def test_another_key_is_refused(signed: Path, others: Pair) -> None:
    assert "another key" in str(refused(signed, others.public))
    assert not peer_accepts(signed, others.public)


def test_a_signature_of_another_key_that_names_the_required_key_is_refused(
    tiny_bundle: Path, keys: Pair, others: Pair
) -> None:
    hint = read_key(str(keys.public)).hint
    forge(
        tiny_bundle,
        others.private,
        envelope=lambda outer: outer["verificationMaterial"]["publicKey"].update(hint=hint),
    )
    assert "not a valid signature" in str(refused(tiny_bundle, keys.public))
    assert not peer_accepts(tiny_bundle, keys.public)


def test_a_stripped_signature_is_refused(signed: Path, keys: Pair) -> None:
    path = signed / SIGNATURE_NAME
    document = json.loads(path.read_text())
    document["dsseEnvelope"]["signatures"] = []
    path.write_text(json.dumps(document))
    assert "signatures" in refused(signed, keys.public).path
    assert not peer_accepts(signed, keys.public)
    path.write_bytes(b"")
    refused(signed, keys.public)
    assert not peer_accepts(signed, keys.public)
    path.unlink()
    refused(signed, keys.public)


def test_the_signature_of_another_bundle_is_refused(signed: Path, keys: Pair, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(signed, other)
    edit_manifest(other, lambda document: document["model"].update(revision="another"))
    sign_with_peer(other, keys.private)
    shutil.copy(other / SIGNATURE_NAME, signed)
    assert "firstvec.json differs" in str(refused(signed, keys.public))
    assert not peer_accepts(signed, keys.public)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["artifacts"][0]["quality"].update(cosine_min=1.0, cosine_mean=1.0),
        lambda document: document["artifacts"].reverse(),
        lambda document: document["artifacts"].pop(),
        lambda document: document["model"].update(name="another/model"),
        lambda document: document["model"].update(embedding_dim=31),
        lambda document: document.update(unknown="ignored without a key"),
    ],
    ids=["quality", "order", "fewer", "name", "dimension", "unknown key"],
)
def test_a_manifest_that_was_edited_and_is_valid_is_refused(change: Change, signed: Path, keys: Pair) -> None:
    edit_manifest(signed, change)
    Manifest.read(signed)
    assert "firstvec.json differs" in str(refused(signed, keys.public))
    assert not peer_accepts(signed, keys.public)


def test_one_more_space_in_the_manifest_is_refused(signed: Path, keys: Pair) -> None:
    edit_manifest(signed, lambda document: None)  # without its checksum, which would tell first
    sign_with_peer(signed, keys.private)
    path = signed / MANIFEST_NAME
    path.write_bytes(path.read_bytes() + b" ")
    assert "firstvec.json differs" in str(refused(signed, keys.public))


def test_a_changed_file_with_a_manifest_that_agrees_is_refused(signed: Path, keys: Pair) -> None:
    resign_as_another(signed)
    refused(signed, keys.public)
    assert not peer_accepts(signed, keys.public)


def test_a_changed_file_is_refused_by_its_digest_when_it_is_used(signed: Path, keys: Pair) -> None:
    path = signed / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(IntegrityError):
        loader(signed, keys.public).get_provider()
    assert not peer_accepts(signed, keys.public)


@pytest.mark.parametrize("left_out", ["firstvec.json", "tokenizer.json", "onnx/model.onnx_data", "config.json"])
def test_a_signature_that_leaves_a_file_out_is_refused(left_out: str, tiny_bundle: Path, keys: Pair) -> None:
    forge(tiny_bundle, keys.private, without=(left_out,))
    assert f"does not cover {left_out}" in str(refused(tiny_bundle, keys.public))
    assert not peer_accepts(tiny_bundle, keys.public)


def test_a_file_that_was_ignored_at_signing_is_refused(tiny_bundle: Path, keys: Pair) -> None:
    config = hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME, "onnx"])
    sign_with_peer(tiny_bundle, keys.private, config)
    assert "does not cover onnx/" in str(refused(tiny_bundle, keys.public))


# --- A right signature of a wrong statement, or in a wrong envelope --------------------------------------------------


def resources_of(document: dict[str, Any]) -> list[dict[str, str]]:
    resources: list[dict[str, str]] = document["predicate"]["resources"]
    return resources


def doubled(document: dict[str, Any]) -> None:
    resources_of(document).append(dict(resources_of(document)[0]))
    document["subject"][0]["digest"]["sha256"] = digest_of(resources_of(document))


def renamed(name: str) -> Change:
    def change(document: dict[str, Any]) -> None:
        resources_of(document).append({"name": name, "algorithm": "sha256", "digest": "0" * 64})
        document["subject"][0]["digest"]["sha256"] = digest_of(resources_of(document))

    return change


STATEMENTS: dict[str, Change] = {
    "another statement type": lambda d: d.update(_type="https://in-toto.io/Statement/v0.1"),
    "another predicate type": lambda d: d.update(predicateType="https://model_signing/signature/v2.0"),
    "the predicate type of before 1.0": lambda d: d.update(predicateType="https://model_signing/Digests/v0.1"),
    "no subject": lambda d: d.update(subject=[]),
    "two subjects": lambda d: d["subject"].append(d["subject"][0]),
    "another digest of the subject": lambda d: d["subject"][0]["digest"].update(sha256="0" * 64),
    "a digest of another kind": lambda d: d["subject"][0].update(digest={"sha512": "0" * 128}),
    "an unknown key in the subject": lambda d: d["subject"][0].update(uri="https://example.org"),
    "no resources": lambda d: d["predicate"].update(resources=[]),
    "resources in another order": lambda d: resources_of(d).reverse(),
    "a resource twice": doubled,
    "a resource without a digest": lambda d: resources_of(d)[0].pop("digest"),
    "a resource that is a number": lambda d: resources_of(d).append(1),  # type: ignore[arg-type]
    "a digest in capitals": lambda d: resources_of(d)[0].update(digest=resources_of(d)[0]["digest"].upper()),
    "another algorithm": lambda d: resources_of(d)[0].update(algorithm="blake3"),
    "another hash type": lambda d: d["predicate"]["serialization"].update(hash_type="blake2"),
    "shards": lambda d: d["predicate"]["serialization"].update(method="shards", shard_size=1_000_000_000),
    "an unknown key in the serialization": lambda d: d["predicate"]["serialization"].update(case="folded"),
    "links that are a string": lambda d: d["predicate"]["serialization"].update(allow_symlinks="false"),
    "ignored paths that are a string": lambda d: d["predicate"]["serialization"].update(ignore_paths="model.sig"),
    "no serialization": lambda d: d["predicate"].pop("serialization"),
    "an unknown key in the predicate": lambda d: d["predicate"].update(expires="2027-01-01"),
    "an unknown key in the statement": lambda d: d.update(expires="2027-01-01"),
    "a path upwards": renamed("../firstvec.json"),
    "a path from the root": renamed("/firstvec.json"),
    "a path that says it longer": renamed("./firstvec.json"),
    "an empty name": renamed(""),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_signed_statement_that_is_not_what_it_must_be_is_refused(name: str, tiny_bundle: Path, keys: Pair) -> None:
    forge(tiny_bundle, keys.private, statement=STATEMENTS[name])
    refused(tiny_bundle, keys.public)


def first(outer: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = outer["dsseEnvelope"]["signatures"][0]
    return made


ENVELOPES: dict[str, Change] = {
    "another media type": lambda o: o.update(mediaType="application/vnd.dev.sigstore.bundle.v0.2+json"),
    "no media type": lambda o: o.pop("mediaType"),
    "an unknown key": lambda o: o.update(extra=1),
    "a message signature beside it": lambda o: o.update(messageSignature={}),
    "another payload type": lambda o: o["dsseEnvelope"].update(payloadType="application/vnd.in-toto+xml"),
    "an empty payload": lambda o: o["dsseEnvelope"].update(payload=""),
    "a payload that is not base64": lambda o: o["dsseEnvelope"].update(payload="é" + o["dsseEnvelope"]["payload"]),
    "a line break in the payload": lambda o: o["dsseEnvelope"].update(payload="\n" + o["dsseEnvelope"]["payload"]),
    "a payload that is an object": lambda o: o["dsseEnvelope"].update(payload={}),
    "a second signature": lambda o: o["dsseEnvelope"]["signatures"].append(dict(first(o))),
    "a second signature that is wrong": lambda o: o["dsseEnvelope"]["signatures"].append({"sig": "", "keyid": ""}),
    "an unknown key beside the signature": lambda o: first(o).update(cert="x"),
    "a key id": lambda o: first(o).update(keyid="another"),
    "an empty signature": lambda o: first(o).update(sig=""),
    "a signature that is null": lambda o: first(o).update(sig=None),
    "no hint of the key": lambda o: o["verificationMaterial"].update(publicKey={}),
    "a hint of another key": lambda o: o["verificationMaterial"]["publicKey"].update(hint="0" * 64),
    "the key itself": lambda o: o["verificationMaterial"]["publicKey"].update(rawBytes="AAAA"),
    "a certificate": lambda o: o.update(verificationMaterial={"certificate": {"rawBytes": "AAAA"}}),
    "a log entry": lambda o: o["verificationMaterial"].update(tlogEntries=[{}]),
    "log entries that are an object": lambda o: o["verificationMaterial"].update(tlogEntries={}),
}


@pytest.mark.parametrize("name", ENVELOPES)
def test_an_envelope_that_is_not_what_it_must_be_is_refused(name: str, tiny_bundle: Path, keys: Pair) -> None:
    forge(tiny_bundle, keys.private, envelope=ENVELOPES[name])
    refused(tiny_bundle, keys.public)


def test_a_message_shows_no_characters_that_a_terminal_obeys(tiny_bundle: Path, keys: Pair) -> None:
    forge(tiny_bundle, keys.private, envelope=lambda outer: outer.update({"\x1b[31m": 1}))
    error = refused(tiny_bundle, keys.public)
    assert "\x1b" not in str(error)
    assert "\\x1b[31m: is unknown here" in str(error)


def test_an_envelope_may_leave_out_an_empty_key_id_and_empty_log_entries(tiny_bundle: Path, keys: Pair) -> None:
    def change(outer: dict[str, Any]) -> None:
        first(outer).pop("keyid")
        outer["verificationMaterial"].pop("tlogEntries")

    forge(tiny_bundle, keys.private, envelope=change)
    assert find_bundle(str(tiny_bundle), str(keys.public))
    assert peer_accepts(tiny_bundle, keys.public)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{}",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"mediaType": "a", "mediaType": "b"}',
        b'{"mediaType": NaN}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 10_000,
    ],
    ids=lambda data: ascii(data[:20]),
)
def test_a_signature_that_is_other_json_or_no_json_is_refused(data: bytes, tiny_bundle: Path, keys: Pair) -> None:
    (tiny_bundle / SIGNATURE_NAME).write_bytes(data)
    refused(tiny_bundle, keys.public)
    assert not peer_accepts(tiny_bundle, keys.public)


@pytest.mark.parametrize(
    "payload",
    [
        lambda body: body[:-1],
        lambda body: body + b"{}",
        lambda body: body.replace(b'"_type"', b'"_type": "x", "_type"', 1),
        lambda body: b"\xef\xbb\xbf" + body,
        lambda body: body.replace(b"false", b"NaN"),
        lambda _: b"",
        lambda _: b"[]",
    ],
    ids=["cut", "more", "a key twice", "byte order mark", "NaN", "empty", "array"],
)
def test_a_payload_that_is_not_plain_json_is_refused(
    payload: Callable[[bytes], bytes], tiny_bundle: Path, keys: Pair
) -> None:
    forge(tiny_bundle, keys.private, payload=payload)
    refused(tiny_bundle, keys.public)


class Opened:
    """What `check_signature_bytes` needs, read once, so that thousands of damaged signatures take a second."""

    def __init__(self, bundle: Path, public: Path) -> None:
        self.manifest = Manifest.read(bundle)
        self.data = (bundle / MANIFEST_NAME).read_bytes()
        self.signature = (bundle / SIGNATURE_NAME).read_bytes()
        self.key: PublicKey = read_key(str(public))

    def check(self, signature: bytes) -> None:
        check_signature_bytes(self.manifest, self.data, signature, self.key)


def test_a_signature_with_any_one_bit_flipped_is_refused(signed: Path, keys: Pair) -> None:
    opened = Opened(signed, keys.public)
    opened.check(opened.signature)
    for place in range(len(opened.signature)):
        damaged = bytearray(opened.signature)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(SignatureError):
            opened.check(bytes(damaged))


def test_a_signature_cut_anywhere_is_refused(signed: Path, keys: Pair) -> None:
    opened = Opened(signed, keys.public)
    for length in range(len(opened.signature)):
        with pytest.raises(SignatureError):
            opened.check(opened.signature[:length])


def test_a_payload_with_any_one_bit_flipped_is_refused(signed: Path, keys: Pair) -> None:
    opened = Opened(signed, keys.public)
    document = json.loads(opened.signature)
    body = base64.b64decode(document["dsseEnvelope"]["payload"])
    for place in range(len(body)):
        damaged = bytearray(body)
        damaged[place] ^= 1 << place % 8
        document["dsseEnvelope"]["payload"] = base64.b64encode(damaged).decode()
        with pytest.raises(SignatureError, match="not a valid signature"):
            opened.check(json.dumps(document).encode())


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused_with_the_typed_error(data: bytes) -> None:
    with pytest.raises(SignatureError):
        signed_files(data, "model.sig")


def test_signed_files_are_what_the_statement_says(signed: Path) -> None:
    files = signed_files((signed / SIGNATURE_NAME).read_bytes(), "model.sig")
    manifest = Manifest.read(signed)
    assert set(files) == {"firstvec.json", *(file.path for file in manifest.files())}
    assert all(files[file.path] == file.sha256 for file in manifest.files())


# --- Wrong files and keys --------------------------------------------------------------------------------------------


def test_a_huge_signature_is_refused_unread(signed: Path, keys: Pair) -> None:
    with (signed / SIGNATURE_NAME).open("r+b") as stream:
        stream.truncate(1 << 40)  # sparse
    assert f"larger than {MAX_BYTES} bytes" in str(refused(signed, keys.public))


def test_a_huge_manifest_is_refused_unread(signed: Path, keys: Pair) -> None:
    with (signed / MANIFEST_NAME).open("r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ManifestError, match="larger than"):
        find_bundle(str(signed), str(keys.public))
    assert loader(signed, keys.public).get_metadata() is None


def test_a_signature_that_is_a_pipe_or_a_folder_is_refused_at_once(signed: Path, keys: Pair) -> None:
    path = signed / SIGNATURE_NAME
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in str(refused(signed, keys.public))
    path.unlink()
    path.mkdir()
    refused(signed, keys.public)


def test_a_signature_that_cannot_be_read_is_refused(signed: Path, keys: Pair) -> None:
    path = signed / SIGNATURE_NAME
    path.unlink()
    path.symlink_to(path)
    assert "cannot be read" in str(refused(signed, keys.public))


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.SECP224R1()),
    ],
    ids=["RSA", "Ed25519", "secp256k1", "P-224"],
)
def test_a_key_of_another_kind_is_refused(key: Any, signed: Path, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys", key=key)
    error = refused(signed, keys.public)
    assert error.path == str(keys.public)
    assert "P-256, P-384 or P-521" in str(error)
    assert not peer_accepts(signed, keys.public)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text.replace("PUBLIC", "PRIVATE"),
        lambda text: text.replace("-----END PUBLIC KEY-----", ""),
        lambda text: text[:-60] + text[-40:],
        lambda text: text + text,
        lambda text: text.replace("M", "é", 1),
        lambda text: text.replace("\n", "\n=", 1),
    ],
    ids=["empty", "private", "no end", "shorter", "two keys", "not ASCII", "not base64"],
)
def test_a_file_that_is_no_public_key_is_refused(
    change: Callable[[str], str], signed: Path, keys: Pair, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.pub"
    path.write_text(change(keys.public.read_text()), "utf-8")
    assert refused(signed, path).path == str(path)


def test_a_private_key_is_not_taken_for_its_public_key(signed: Path, keys: Pair) -> None:
    assert "openssl ec -in KEY -pubout" in str(refused(signed, keys.private))


def test_a_point_that_is_not_on_the_curve_is_refused(signed: Path, keys: Pair, tmp_path: Path) -> None:
    begin, *rows, end = keys.public.read_text().splitlines()
    der = bytearray(base64.b64decode("".join(rows)))
    der[-1] ^= 1
    path = tmp_path / "wrong.pub"
    path.write_text(f"{begin}\n{base64.b64encode(der).decode()}\n{end}\n")
    refused(signed, path)


def test_a_key_with_other_line_ends_is_the_same_key(signed: Path, keys: Pair, tmp_path: Path) -> None:
    path = tmp_path / "windows.pub"
    path.write_bytes(b"\r\n" + keys.public.read_bytes().replace(b"\n", b"\r\n"))
    assert find_bundle(str(signed), str(path))


@pytest.mark.parametrize("place", ["missing.pub", "", "folder", "nul\0"])
def test_a_key_that_cannot_be_read_is_an_error_of_the_load(place: str, signed: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused(signed, tmp_path / place)


@pytest.mark.parametrize("value", ["", b"key", 1, False, True, ()])
def test_what_is_not_a_path_is_refused_by_the_loader(value: Any) -> None:
    with pytest.raises(InputError, match="require_signature"):
        OptimizedEmbeddingLoader(require_signature=value)
    with pytest.raises(InputError, match="require_signature"):
        preload_embeddings(require_signature=value)


# --- The functions ---------------------------------------------------------------------------------------------------


def test_check_signature_accepts_the_manifest_that_was_signed_and_no_other(signed: Path, keys: Pair) -> None:
    data = (signed / MANIFEST_NAME).read_bytes()
    manifest = Manifest.parse(data, str(signed / MANIFEST_NAME))
    check_signature(manifest, data, str(keys.public))
    check_signature_bytes(manifest, data, read_signature(str(signed)), read_key(str(keys.public)))
    with pytest.raises(SignatureError, match=r"firstvec\.json differs"):
        check_signature(manifest, data + b" ", str(keys.public))


def test_read_signature_returns_the_bytes_of_the_file(signed: Path) -> None:
    assert read_signature(str(signed)) == (signed / SIGNATURE_NAME).read_bytes()
    (signed / SIGNATURE_NAME).unlink()
    with pytest.raises(SignatureError, match="the bundle is not signed"):
        read_signature(str(signed))


@pytest.mark.parametrize(
    ("curve", "name", "digest"),
    [
        (ec.SECP256R1(), "SECP256R1", "SHA256"),
        (ec.SECP384R1(), "SECP384R1", "SHA384"),
        (ec.SECP521R1(), "SECP521R1", "SHA512"),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_a_key_is_parsed_into_its_curve_hash_point_and_hint(
    curve: ec.EllipticCurve, name: str, digest: str, tmp_path: Path
) -> None:
    private = ec.generate_private_key(curve)
    pair = make_keys(tmp_path / "keys", key=private)
    data = pair.public.read_bytes()
    point = private.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    expected = PublicKey(curve=name, hash=digest, point=point, hint=hashlib.sha256(data).hexdigest())
    assert read_key(str(pair.public)) == parse_key(data, "key.pub") == expected


def test_both_verifiers_are_asked_and_their_reasons_are_returned(signed: Path, keys: Pair, others: Pair) -> None:
    data = (signed / MANIFEST_NAME).read_bytes()
    manifest = Manifest.parse(data, str(signed / MANIFEST_NAME))
    assert ask_verifiers(manifest, data, str(keys.public)) == {"firstvec": "ok", "model-signing": "ok"}
    found = ask_verifiers(manifest, data, str(others.public))
    assert "another key" in str(found["firstvec"])
    assert found["model-signing"] not in (None, "ok")


# --- Loaders ---------------------------------------------------------------------------------------------------------


def test_a_relative_path_of_a_key_is_seen_from_where_the_loader_was_made(
    signed: Path, keys: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(keys.public.parent)
    held = OptimizedEmbeddingLoader(str(signed), require_signature=keys.public.name)
    monkeypatch.chdir(tmp_path)
    assert held.get_embedding_dim_fast() == 32


def test_what_the_process_remembers_does_not_stand_in_for_a_signature(tiny_bundle: Path, keys: Pair) -> None:
    assert OptimizedEmbeddingLoader(str(tiny_bundle)).get_embedding_dim_fast() == 32  # remembered by the process
    assert OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider()  # verified, and passed its self-test
    refused(tiny_bundle, keys.public)


def test_a_failed_load_is_tried_again_with_the_signature_that_came(tiny_bundle: Path, keys: Pair) -> None:
    held = loader(tiny_bundle, keys.public)
    with pytest.raises(SignatureError):
        held.get_provider()
    sign_with_peer(tiny_bundle, keys.private)
    assert held.get_provider()


@pytest.mark.parametrize("strategy", ["lazy", "background", "progressive", "quantized", "cached"])
def test_every_strategy_requires_the_signature(strategy: str, tiny_bundle: Path, keys: Pair) -> None:
    held = loader(tiny_bundle, keys.public, strategy=strategy)
    held.start_loading()
    with pytest.raises(SignatureError):
        held.get_provider()
    assert held.report()["error"]
    with pytest.raises(SignatureError):
        held.count_tokens("text")


def test_the_process_wide_functions_require_the_signature(signed: Path, keys: Pair, others: Pair) -> None:
    provider = get_embedding_provider(str(signed), require_signature=keys.public)
    assert provider is get_embedding_provider(str(signed), require_signature=str(keys.public))
    assert provider is get_embedding_provider(str(signed))  # what is left out fits every loader
    with pytest.raises(SignatureError, match="another key"):
        get_embedding_provider(str(signed), require_signature=others.public)


def test_a_loader_without_a_required_signature_does_not_stand_in_for_one_with_it(tiny_bundle: Path, keys: Pair) -> None:
    without = preload_embeddings(str(tiny_bundle))
    held = preload_embeddings(require_signature=keys.public)
    assert held is not without
    assert held.model_name == str(tiny_bundle)
    with pytest.raises(SignatureError, match="is not signed"):
        held.get_provider()
    with pytest.raises(SignatureError, match="is not signed"):
        get_embedding_provider(str(tiny_bundle), require_signature=keys.public)
    assert without.get_provider()


def test_a_forked_child_requires_the_signature(tiny_bundle: Path, keys: Pair, fresh: Fresh) -> None:
    sign_with_peer(tiny_bundle, keys.private)
    code = """
import os, sys
from firstvec import FirstvecError, OptimizedEmbeddingLoader
bundle, key = sys.argv[1:]
loaded = OptimizedEmbeddingLoader(bundle, output="list", require_signature=key)
provider = loaded.get_provider()
fresh = OptimizedEmbeddingLoader(bundle, output="list", require_signature=key)
os.unlink(bundle + "/model.sig")
if (child := os.fork()) == 0:
    length = len(provider.embed_query("text"))  # of the manifest that was checked
    try:
        fresh.get_provider()
    except FirstvecError as error:
        os._exit(length if type(error).__name__ == "SignatureError" else 2)
    os._exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert fresh(code, tiny_bundle, keys.public).stdout == "32\n"


def test_a_hand_over_uses_the_manifest_that_was_checked(signed: Path, keys: Pair) -> None:
    held = loader(signed, keys.public, strategy="progressive", artifact="onnx-fp32")
    held.start_loading()
    provider = held.get_provider()
    before = provider.embed_query("text")
    edit_manifest(signed, lambda document: document["model"].update(embedding_dim=31))
    wait_for(lambda: held.report()["hand_over"] != "waiting")
    assert held.report()["hand_over"] == "done"
    assert provider.embed_query("text") == pytest.approx(before, abs=1e-6)
    refused(signed, keys.public)


def test_nothing_of_the_bundle_is_opened_before_it_was_checked(tiny_bundle: Path, keys: Pair, fresh: Fresh) -> None:
    code = """
import os, sys
from firstvec import SignatureError, get_embedding_provider
bundle, key = sys.argv[1:]
opened = set()
def hook(event, arguments):
    if event == "open" and str(arguments[0]).startswith(bundle):
        opened.add(os.path.relpath(arguments[0], bundle))
sys.addaudithook(hook)
try:
    get_embedding_provider(bundle, output="list", require_signature=key)
except SignatureError:
    print(sorted(opened))
"""
    assert fresh(code, tiny_bundle, keys.public).stdout == "['firstvec.json', 'model.sig']\n"
    forge(tiny_bundle, keys.private, without=("config.json",))
    assert fresh(code, tiny_bundle, keys.public).stdout == "['firstvec.json', 'model.sig']\n"


def test_a_load_that_requires_no_signature_imports_nothing_for_signatures(
    signed: Path, keys: Pair, fresh: Fresh
) -> None:
    code = """
import sys
from firstvec import OptimizedEmbeddingLoader
key = sys.argv[2] if len(sys.argv) > 2 else None
loader = OptimizedEmbeddingLoader(sys.argv[1], output="list", require_signature=key)
loader.get_embedding_dim_fast(), loader.get_provider().embed_query("text")
names = ("cryptography", "model_signing", "firstvec.bundle.signature")
print([name for name in names if name in sys.modules])
"""
    assert fresh(code, signed).stdout == "[]\n"
    assert fresh(code, signed, keys.public).stdout == "['cryptography', 'firstvec.bundle.signature']\n"


def test_without_cryptography_the_load_says_how_to_install_it(
    signed: Path, keys: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingDependency, match=r"pip install 'firstvec\[verify\]'"):
        loader(signed, keys.public).get_provider()
    assert loader(signed, keys.public).get_metadata() is None


# --- The command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["text"], ["--", "text"]], ids=["plain", "typer"])
def test_encode_requires_the_signature(
    arguments: list[str], tiny_bundle: Path, keys: Pair, others: Pair, firstvec: Fresh
) -> None:
    def encode(public: Path) -> Any:
        return firstvec("encode", "-m", tiny_bundle, "--require-signature", public, *arguments)

    done = encode(keys.public)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not signed" in done.stderr
    sign_with_peer(tiny_bundle, keys.private)
    assert encode(keys.public).returncode == 0
    assert encode(others.public).returncode == 1


def test_explain_requires_the_signature(tiny_bundle: Path, keys: Pair, firstvec: Fresh) -> None:
    done = firstvec("explain", "-m", tiny_bundle, "--require-signature", keys.public)
    assert done.returncode == 1
    assert "is not signed" in done.stderr
    sign_with_peer(tiny_bundle, keys.private)
    assert firstvec("explain", "-m", tiny_bundle, "--require-signature", keys.public).returncode == 0


def test_every_refusal_is_an_error_of_firstvec() -> None:
    assert issubclass(SignatureError, FirstvecError)


def verdicts(done: Any) -> dict[str, str | None]:
    values = json.loads(done.stdout)
    [found] = values["signatures"].values()
    assert values["ok"] is (done.returncode == 0)
    return dict(found)


def test_verify_asks_both_verifiers(signed: Path, keys: Pair, others: Pair, firstvec: Fresh) -> None:
    done = firstvec("verify", "-m", signed, "--public-key", keys.public)
    assert done.returncode == 0
    assert "ok   signature, says firstvec\n" in done.stdout
    assert "ok   signature, says model-signing\n" in done.stdout
    done = firstvec("verify", "-m", signed, "--public-key", others.public)
    assert done.returncode == 1
    assert "BAD  signature, says firstvec: " in done.stdout
    assert "BAD  signature, says model-signing: " in done.stdout
    done = firstvec("verify", "-m", signed, "--public-key", keys.public, "--json")
    assert verdicts(done) == {"firstvec": "ok", "model-signing": "ok"}
    assert "signatures" not in json.loads(firstvec("verify", "-m", signed, "--json").stdout)


def test_verify_fails_if_either_verifier_does(signed: Path, keys: Pair, firstvec: Fresh) -> None:
    (signed / "notes.txt").write_text("not signed, and never opened")
    found = verdicts(firstvec("verify", "-m", signed, "--public-key", keys.public, "--json"))
    assert found["firstvec"] == "ok"
    assert "notes.txt" in str(found["model-signing"])
    (signed / "notes.txt").unlink()
    forge(signed, keys.private, envelope=ENVELOPES["a second signature"])
    found = verdicts(firstvec("verify", "-m", signed, "--public-key", keys.public, "--json"))
    assert "2 signatures" in str(found["firstvec"])
    assert found["model-signing"] == "ok"


def test_verify_fails_for_an_unsigned_bundle_and_for_a_changed_file(
    tiny_bundle: Path, keys: Pair, firstvec: Fresh
) -> None:
    found = verdicts(firstvec("verify", "-m", tiny_bundle, "--public-key", keys.public, "--json"))
    assert "is not signed" in str(found["firstvec"])
    assert "model.sig" in str(found["model-signing"])
    sign_with_peer(tiny_bundle, keys.private)
    (tiny_bundle / "config.json").write_text("{}")
    found = verdicts(firstvec("verify", "-m", tiny_bundle, "--public-key", keys.public, "--json"))
    assert found["firstvec"] == "ok"  # the manifest is the signed one, and the file is found by its digest
    assert "config.json" in str(found["model-signing"])


def test_verify_works_without_model_signing(signed: Path, keys: Pair, others: Pair, fresh: Fresh) -> None:
    code = """
import sys
sys.modules["model_signing"] = None
from firstvec.commands.main import main
sys.exit(main(["verify", *sys.argv[1:]]))
"""
    done = fresh(code, "-m", signed, "--public-key", keys.public)
    assert "model-signing is not installed" in done.stdout
    assert fresh(code, "-m", signed, "--public-key", others.public, check=False).returncode == 1


def test_verify_takes_a_bundle_that_is_reached_through_a_link(
    signed: Path, keys: Pair, tmp_path: Path, firstvec: Fresh
) -> None:
    (tmp_path / "link").symlink_to(signed)
    found = verdicts(firstvec("verify", "-m", tmp_path / "link", "--public-key", keys.public, "--json"))
    assert found == {"firstvec": "ok", "model-signing": "ok"}


def test_a_link_in_place_of_the_signature_is_refused(signed: Path, keys: Pair) -> None:
    (signed / SIGNATURE_NAME).rename(signed.parent / "elsewhere.sig")
    (signed / SIGNATURE_NAME).symlink_to(signed.parent / "elsewhere.sig")
    assert "it is a symbolic link" in str(refused(signed, keys.public))


def test_pipes_are_neither_waited_for_nor_given_to_model_signing(signed: Path, keys: Pair, firstvec: Fresh) -> None:
    pipe = signed.parent / "pipe"
    os.mkfifo(pipe)
    done = firstvec("verify", "-m", signed, "--public-key", pipe)
    assert done.returncode == 1
    assert "it is not a regular file" in done.stdout
    (signed / SIGNATURE_NAME).unlink()
    os.mkfifo(signed / SIGNATURE_NAME)
    done = firstvec("verify", "-m", signed, "--public-key", keys.public)
    assert done.returncode == 1
    assert "it is not a regular file" in done.stdout


def test_a_relative_key_in_a_folder_that_is_gone_is_an_input_error(fresh: Fresh, tmp_path: Path) -> None:
    code = """
import os, sys
from firstvec import InputError, OptimizedEmbeddingLoader
os.chdir(sys.argv[1])
os.rmdir(sys.argv[1])
try:
    OptimizedEmbeddingLoader(require_signature="key.pub")
except InputError as error:
    print(error)
"""
    (tmp_path / "gone").mkdir()
    assert "give an absolute path" in fresh(code, tmp_path / "gone").stdout
