"""Bundles on a hub: what a push commits, and that a pull takes the bundle of one commit, whole and verified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstvec.bundle.manifest import Manifest, keep_artifacts
from firstvec.errors import InputError, IntegrityError, ManifestError, SignatureError, TransferError
from firstvec_build.shipping import arrival
from firstvec_build.shipping.addresses import Hub as Address
from firstvec_build.shipping.arrival import receive
from firstvec_build.shipping.hub import open_bundle, push
from firstvec_build.shipping.model_card import MARK
from firstvec_build.shipping.signing import sign
from tests.hub import GITATTRIBUTES, Hub, Repository, serve_files, serve_hub
from tests.keys import make_keys

# huggingface_hub uploads files in a way that httpx advises against.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "org/tiny"
HERE = Address(repository=NAME)
TOKEN = "hf_of_the_test"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Serve an empty hub, which is the only one that huggingface_hub knows."""
    import huggingface_hub
    from huggingface_hub import constants

    with serve_hub() as hub:
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # A fresh process would take these from HF_ENDPOINT.
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_AGENT_HARNESSES_PATH", str(tmp_path / "harnesses.json"), raising=False)
        monkeypatch.setattr(arrival, "_PAUSE_SECONDS", 0.0)
        hub.token = TOKEN
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    """The manifest of a bundle that may be changed."""
    return Manifest.read(tiny_bundle)


@pytest.fixture
def pushed(hub: Hub, manifest: Manifest) -> Repository:
    """Push the bundle."""
    push(manifest, HERE)
    hub.requests.clear()
    return hub.repositories[NAME]


def files_of(manifest: Manifest) -> dict[str, bytes]:
    """Return the bundle's files as they are on the disk."""
    root = Path(manifest.root)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def drop_native(manifest: Manifest) -> Manifest:
    """Take the native artifacts and their files out of the bundle."""
    path = Path(manifest.path)
    path.write_bytes(
        keep_artifacts(path.read_bytes(), [each.id for each in manifest.artifacts if each.engine != "native"])
    )
    changed = Manifest.read(manifest.root)
    for gone in {file.path for file in manifest.files()} - {file.path for file in changed.files()}:
        (path.parent / gone).unlink()
    return changed


def leftovers(folder: Path) -> list[str]:
    """Return what lies in a folder, except the bundles."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")] if folder.exists() else []


def test_push_makes_a_repository_with_one_commit_of_exactly_the_bundle(hub: Hub, manifest: Manifest) -> None:
    pushed = push(manifest, HERE)

    repository = hub.repositories[NAME]
    card = repository.files["README.md"]
    assert repository.files == {**files_of(manifest), ".gitattributes": GITATTRIBUTES, "README.md": card}
    assert repository.messages == ["initial commit", f"Bundle of {manifest.model.name}"]
    assert pushed.is_new
    assert str(pushed.address) == f"hf://{NAME}@{repository.head}"
    assert sorted(pushed.written) == sorted([*files_of(manifest), "README.md"])
    assert not repository.private
    assert repository.objects  # the weights went by LFS


def test_second_push_of_the_bundle_makes_no_commit_and_uploads_nothing(
    hub: Hub, manifest: Manifest, pushed: Repository
) -> None:
    head = pushed.head
    again = push(manifest, HERE)
    assert (again.is_new, again.written, again.removed) == (False, (), ())
    assert str(again.address) == f"hf://{NAME}@{head}"
    assert pushed.head == head
    assert {method for method, _, _ in hub.requests} == {"GET"}


def test_push_of_a_changed_bundle_removes_the_files_of_the_old_one_and_no_others(
    hub: Hub, manifest: Manifest, pushed: Repository
) -> None:
    pushed.commit({**pushed.files, "notes/of-a-person.txt": b"kept"})
    before = pushed.files
    changed = drop_native(manifest)
    gone = {file.path for file in manifest.files()} - {file.path for file in changed.files()}

    result = push(changed, HERE)

    assert gone
    assert set(result.removed) == gone
    assert set(result.written) == {"firstvec.json", "README.md"}
    assert pushed.files.keys() == before.keys() - gone
    assert pushed.files["notes/of-a-person.txt"] == b"kept"
    assert b"native" in before["README.md"]
    assert b"| native" not in pushed.files["README.md"]
    assert len(hub.asked("POST", "/commit/")) == 1


def test_page_of_a_person_is_kept(hub: Hub, manifest: Manifest, pushed: Repository) -> None:
    page = pushed.files["README.md"].replace(MARK.encode(), b"My own words.")
    pushed.commit({**pushed.files, "README.md": page})
    assert not push(manifest, HERE).is_new
    push(drop_native(manifest), HERE)
    assert pushed.files["README.md"] == page


def test_file_of_a_person_is_never_replaced(hub: Hub, manifest: Manifest) -> None:
    repository = hub.repositories[NAME] = Repository()
    repository.commit({"config.json": b'{"of": "a person"}'})
    head = repository.head
    with pytest.raises(
        TransferError, match=r"org/tiny/config\.json: is another file .* no bundle brought it; push to a"
    ):
        push(manifest, HERE)
    assert repository.head == head


def test_equal_file_of_a_person_is_not_in_the_way(hub: Hub, manifest: Manifest) -> None:
    repository = hub.repositories[NAME] = Repository()
    files = files_of(manifest)
    repository.commit({name: files[name] for name in ("config.json", "onnx/model.onnx")})
    result = push(manifest, HERE)
    assert not {"config.json", "onnx/model.onnx"} & set(result.written)
    assert files.items() <= repository.files.items()


def test_ignore_rules_of_the_repository_leave_nothing_out(hub: Hub, manifest: Manifest) -> None:
    repository = hub.repositories[NAME] = Repository()
    repository.commit({".gitignore": b"config.json\nonnx/model.onnx\n"})
    push(manifest, HERE)
    assert files_of(manifest).items() <= repository.files.items()


def test_private_makes_a_private_repository(hub: Hub, manifest: Manifest) -> None:
    push(manifest, HERE, private=True)
    assert hub.repositories[NAME].private
    assert not push(manifest, HERE, private=True).is_new


def test_private_is_refused_for_a_public_repository(manifest: Manifest, pushed: Repository) -> None:
    with pytest.raises(InputError, match="is public already"):
        push(manifest, HERE, private=True)


def test_push_to_a_revision_is_refused(hub: Hub, manifest: Manifest) -> None:
    with pytest.raises(InputError, match=f"hf://{NAME}@main: names a revision; push to hf://{NAME}, and"):
        push(manifest, Address(repository=NAME, revision="main"))
    assert hub.requests == []


def test_damaged_bundle_is_not_pushed(hub: Hub, manifest: Manifest) -> None:
    path = Path(manifest.root, manifest.tokenizer.path)
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(IntegrityError):
        push(manifest, HERE)
    assert hub.requests == []


def test_manifest_that_changed_since_it_was_read_is_not_pushed(hub: Hub, manifest: Manifest) -> None:
    drop_native(manifest)
    with pytest.raises(ManifestError, match="was changed since it was read"):
        push(manifest, HERE)
    assert hub.requests == []


def test_repository_with_an_unreadable_manifest_is_left_alone(manifest: Manifest, pushed: Repository) -> None:
    pushed.commit({**pushed.files, "firstvec.json": b"{}"})
    head = pushed.head
    with pytest.raises(ManifestError, match=rf"hf://{NAME}@{head}/firstvec\.json: "):
        push(manifest, HERE)
    assert pushed.head == head


def test_push_beside_another_push_makes_no_commit(hub: Hub, manifest: Manifest, pushed: Repository) -> None:
    def push_first(method: str, path: str) -> None:
        if "/preupload/" in path:
            pushed.commit({**pushed.files, "other.txt": b"of the other push"})

    hub.before = push_first
    with pytest.raises(TransferError, match="somebody else changed the repository meanwhile; push again"):
        push(drop_native(manifest), HERE)
    assert pushed.files["other.txt"] == b"of the other push"
    hub.before = lambda method, path: None
    assert push(Manifest.read(manifest.root), HERE).is_new


def test_hub_with_xet_storage_gets_the_files_there(hub: Hub, manifest: Manifest) -> None:
    pytest.importorskip("hf_xet")
    hub.has_xet = True
    hub.fails = {"/xet": 403}
    with pytest.raises(TransferError, match=f"^hf://{NAME}: "):
        push(manifest, HERE)
    assert any("/xet/" in path for _, path, _ in hub.requests)
    assert not hub.asked("POST", "/info/lfs/")
    assert hub.repositories[NAME].messages == ["initial commit"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": "hf_other"}, r"or the hub wants a valid token \(401.*log in with `hf auth login`, or set HF_TOKEN"),
        ({"can_write": False}, r"the token does not allow this \(403: .*rights to create"),
        ({"fails": {"/api/models": 500}}, r"the hub refuses \(500\); try again later"),
        ({"fails": {"/api/repos": 409}}, r"the hub refuses \(409\); see what the hub says"),
    ],
)
def test_each_refusal_of_a_push_has_its_message(
    hub: Hub, manifest: Manifest, change: dict[str, Any], message: str
) -> None:
    vars(hub).update(change)
    with pytest.raises(TransferError, match=f"^hf://{NAME}: .*{message}"):
        push(manifest, HERE)
    assert NAME not in hub.repositories


def test_failed_upload_makes_no_commit(hub: Hub, manifest: Manifest) -> None:
    hub.fails = {f"/objects/{NAME}": 403}
    with pytest.raises(TransferError, match="the token does not allow this"):
        push(manifest, HERE)
    assert hub.repositories[NAME].messages == ["initial commit"]


def test_pull_of_a_commit_gives_the_bundle(hub: Hub, manifest: Manifest, pushed: Repository, tmp_path: Path) -> None:
    bundle = open_bundle(Address(repository=NAME, revision=pushed.head))
    assert hub.requests == []  # a commit needs no look-up
    received = receive(bundle, tmp_path / "bundles")
    assert received.is_new
    assert files_of(received.manifest) == files_of(manifest)
    assert bundle.address == f"hf://{NAME}@{pushed.head}"


def test_pull_takes_the_files_of_the_wanted_artifact_only(
    hub: Hub, manifest: Manifest, pushed: Repository, tmp_path: Path
) -> None:
    received = receive(open_bundle(HERE), tmp_path / "bundles", only=["onnx-fp32"])
    assert [artifact.id for artifact in received.manifest.artifacts] == ["onnx-fp32"]
    assert hub.asked("GET", "/resolve/")
    assert not hub.asked("GET", "native/model")


@pytest.mark.parametrize("revision", [None, "main", "v1"])
def test_branch_is_looked_up_once_so_the_bundle_is_that_of_one_commit(
    hub: Hub, manifest: Manifest, pushed: Repository, tmp_path: Path, revision: str | None
) -> None:
    head = pushed.branches["v1"] = pushed.head
    bundle = open_bundle(Address(repository=NAME, revision=revision))
    files = files_of(manifest)
    push(drop_native(manifest), HERE)
    pushed.branches["v1"] = pushed.head
    hub.requests.clear()

    received = receive(bundle, tmp_path / "bundles")

    assert bundle.commit == head != pushed.head
    assert files_of(received.manifest) == files
    assert all(f"/resolve/{head}/" in path for _, path, _ in hub.requests)


def test_wrong_bytes_are_refused_and_nothing_appears(hub: Hub, pushed: Repository, tmp_path: Path) -> None:
    hub.alter["onnx/model.onnx"] = lambda data: data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(TransferError, match=rf"hf://{NAME}@\w+/onnx/model\.onnx: is not the file that the manifest"):
        receive(open_bundle(HERE), tmp_path / "bundles")
    assert not (tmp_path / "bundles" / "tiny-bert").exists()


def test_broken_connection_is_taken_up_where_it_broke(hub: Hub, pushed: Repository, tmp_path: Path) -> None:
    size = len(pushed.files["tokenizer.json"])
    hub.cuts["tokenizer.json"] = 1000
    received = receive(open_bundle(HERE), tmp_path / "bundles")
    asked = [headers.get("range") for _, path, headers in hub.requests if path.endswith("/tokenizer.json")]
    assert asked == [None, "bytes=1000-"]
    assert received.fetched == sum({file.path: file.size for file in received.manifest.files()}.values())
    assert size > 1000


def test_hub_without_ranges_is_read_from_the_start(
    hub: Hub, manifest: Manifest, pushed: Repository, tmp_path: Path
) -> None:
    hub.takes_ranges = False
    hub.cuts["tokenizer.json"] = 1000
    received = receive(open_bundle(HERE), tmp_path / "bundles")
    assert files_of(received.manifest) == files_of(manifest)


def test_file_that_is_too_short_is_refused(hub: Hub, pushed: Repository, tmp_path: Path) -> None:
    hub.alter["tokenizer.json"] = lambda data: data[:-1]
    with pytest.raises(TransferError, match=r"tokenizer\.json: "):
        receive(open_bundle(HERE), tmp_path / "bundles")
    assert not (tmp_path / "bundles" / "tiny-bert").exists()


def test_file_that_is_missing_is_named(hub: Hub, pushed: Repository, tmp_path: Path) -> None:
    pushed.commit({path: data for path, data in pushed.files.items() if path != "tokenizer.json"})
    with pytest.raises(TransferError, match=r"/tokenizer\.json: there is no such file; ask whoever pushed"):
        receive(open_bundle(HERE), tmp_path / "bundles")


def test_token_does_not_go_to_another_host(hub: Hub, manifest: Manifest, pushed: Repository, tmp_path: Path) -> None:
    pushed.private = True
    with serve_files(hub) as asked:
        received = receive(open_bundle(HERE), tmp_path / "bundles")
    assert files_of(received.manifest) == files_of(manifest)
    assert len(asked) > len(manifest.artifacts)
    assert all("authorization" not in headers for _, _, headers in asked)
    assert all(TOKEN in headers["authorization"] for _, path, headers in hub.requests if "/resolve/" in path)


def test_other_host_with_wrong_bytes_is_refused(hub: Hub, pushed: Repository, tmp_path: Path) -> None:
    hub.alter["onnx/model.onnx"] = lambda data: b"other" + data
    with serve_files(hub), pytest.raises(TransferError, match="is not the file that the manifest describes"):
        receive(open_bundle(HERE), tmp_path / "bundles")


def test_signature_travels(hub: Hub, manifest: Manifest, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    other = make_keys(tmp_path / "keys", "other")
    sign(manifest, keys.private)
    push(manifest, HERE)
    with pytest.raises(SignatureError, match="another key"):
        receive(open_bundle(HERE), tmp_path / "bundles", require_signature=other.public)
    assert not hub.asked("GET", "tokenizer.json")  # the signature is checked before any file is fetched
    received = receive(open_bundle(HERE), tmp_path / "bundles", require_signature=keys.public)
    assert files_of(received.manifest) == files_of(manifest)
    assert "model.sig" in files_of(manifest)


def test_signature_of_the_bundle_before_is_removed(hub: Hub, manifest: Manifest, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    signature = sign(manifest, keys.private)
    push(manifest, HERE)
    signature.unlink()
    assert push(manifest, HERE).removed == ("model.sig",)
    with pytest.raises(SignatureError, match="does not exist"):
        receive(open_bundle(HERE), tmp_path / "bundles", require_signature=keys.public)


def test_signature_of_another_bundle_is_not_pushed(hub: Hub, manifest: Manifest, tmp_path: Path) -> None:
    sign(manifest, make_keys(tmp_path / "keys").private)
    with pytest.raises(Exception, match="covers other files than the bundle has"):
        push(drop_native(manifest), HERE)
    assert hub.requests == []


def test_repository_without_a_manifest_is_no_bundle(hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    repository = hub.add(NAME, tiny_model)
    command = f"firstvec build {NAME} --revision {repository.head}"
    with pytest.raises(TransferError, match=rf"@\w+: holds no firstvec\.json, so it is no bundle; .*: {command}$"):
        receive(open_bundle(HERE), tmp_path / "bundles")


@pytest.mark.parametrize(
    ("change", "address", "message"),
    [
        ({}, "org/unknown", r"there is no such repository, or the token does not show it \(404\); check the name, and"),
        ({"token": "hf_other"}, "org/unknown", r"there is no such repository, or the hub wants a valid token \(401\)"),
        ({}, f"{NAME}@other", "there is no such revision; name a commit, a branch or a tag that is there"),
        ({"fails": {"/api/models": 503}}, f"{NAME}@main", r"the hub refuses \(503\); try again later"),
        ({"fails": {f"/{NAME}/resolve": 403}}, NAME, r"the token does not allow this \(403\)"),
    ],
)
def test_each_refusal_of_a_pull_has_its_message(
    hub: Hub, pushed: Repository, tmp_path: Path, change: dict[str, Any], address: str, message: str
) -> None:
    vars(hub).update(change)
    repository, _, revision = address.partition("@")
    with pytest.raises(TransferError, match=f"^hf://{address}.*: {message}"):
        receive(open_bundle(Address(repository=repository, revision=revision or None)), tmp_path / "bundles")
    assert not (tmp_path / "bundles" / "tiny-bert").exists()
