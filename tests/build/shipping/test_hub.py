"""Bundles on a hub: what a push commits, and that a pull takes the bundle of one commit, whole and verified."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstvec import OptimizedEmbeddingLoader
from firstvec.bundle.manifest import MAX_BYTES, Manifest, keep_artifacts
from firstvec.errors import InputError, IntegrityError, ManifestError, SignatureError, TransferError
from firstvec_build.shipping import arrival
from firstvec_build.shipping.addresses import Access
from firstvec_build.shipping.addresses import Hub as Address
from firstvec_build.shipping.arrival import receive
from firstvec_build.shipping.hub import open_remote, push
from firstvec_build.shipping.model_card import MARK
from firstvec_build.shipping.signing import sign
from tests.conftest import Fresh
from tests.hub import GITATTRIBUTES, Hub, Repository, serve_files, serve_hub
from tests.keys import make_keys

# huggingface_hub uploads files in a way that httpx advises against.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "org/tiny"
HERE = Address(repository=NAME)
ANYHOW = Access()
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
    push(manifest, HERE, ANYHOW)
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
    pushed = push(manifest, HERE, ANYHOW)

    repository = hub.repositories[NAME]
    card = repository.files["README.md"]
    assert repository.files == {**files_of(manifest), ".gitattributes": GITATTRIBUTES, "README.md": card}
    assert repository.messages == ["initial commit", f"Bundle of {manifest.model.name}"]
    assert pushed.is_new
    assert pushed.address == f"hf://{NAME}@{repository.head}"
    assert sorted(pushed.written) == sorted([*files_of(manifest), "README.md"])
    assert not repository.private
    assert repository.objects  # the weights went by LFS


def test_second_push_of_the_bundle_makes_no_commit_and_uploads_nothing(
    hub: Hub, manifest: Manifest, pushed: Repository
) -> None:
    head = pushed.head
    again = push(manifest, HERE, ANYHOW)
    assert (again.is_new, again.written, again.removed) == (False, (), ())
    assert again.address == f"hf://{NAME}@{head}"
    assert pushed.head == head
    assert {method for method, _, _ in hub.requests} == {"GET"}


def test_push_of_a_changed_bundle_removes_the_files_of_the_old_one_and_no_others(
    hub: Hub, manifest: Manifest, pushed: Repository
) -> None:
    pushed.commit({**pushed.files, "notes/of-a-person.txt": b"kept"})
    before = pushed.files
    changed = drop_native(manifest)
    gone = {file.path for file in manifest.files()} - {file.path for file in changed.files()}

    result = push(changed, HERE, ANYHOW)

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
    assert not push(manifest, HERE, ANYHOW).is_new
    push(drop_native(manifest), HERE, ANYHOW)
    assert pushed.files["README.md"] == page


def test_file_of_a_person_is_never_replaced(hub: Hub, manifest: Manifest) -> None:
    repository = hub.repositories[NAME] = Repository()
    repository.commit({"config.json": b'{"of": "a person"}'})
    head = repository.head
    with pytest.raises(
        TransferError, match=r"org/tiny/config\.json: is another file .* no bundle brought it; push to a"
    ):
        push(manifest, HERE, ANYHOW)
    assert repository.head == head


def test_equal_file_of_a_person_is_not_in_the_way(hub: Hub, manifest: Manifest) -> None:
    repository = hub.repositories[NAME] = Repository()
    files = files_of(manifest)
    repository.commit({name: files[name] for name in ("config.json", "onnx/model.onnx")})
    result = push(manifest, HERE, ANYHOW)
    assert not {"config.json", "onnx/model.onnx"} & set(result.written)
    assert files.items() <= repository.files.items()


def test_ignore_rules_of_the_repository_leave_nothing_out(hub: Hub, manifest: Manifest) -> None:
    repository = hub.repositories[NAME] = Repository()
    repository.commit({".gitignore": b"config.json\nonnx/model.onnx\n"})
    push(manifest, HERE, ANYHOW)
    assert files_of(manifest).items() <= repository.files.items()


def test_private_makes_a_private_repository(hub: Hub, manifest: Manifest) -> None:
    push(manifest, HERE, Access(private=True))
    assert hub.repositories[NAME].private
    assert not push(manifest, HERE, Access(private=True)).is_new


def test_private_is_refused_for_a_public_repository(manifest: Manifest, pushed: Repository) -> None:
    with pytest.raises(InputError, match="is public already"):
        push(manifest, HERE, Access(private=True))


def test_push_to_a_revision_is_refused(hub: Hub, manifest: Manifest) -> None:
    with pytest.raises(InputError, match=f"hf://{NAME}@main: names a revision; push to hf://{NAME}, and"):
        push(manifest, Address(repository=NAME, revision="main"), ANYHOW)
    assert hub.requests == []


def test_damaged_bundle_is_not_pushed(hub: Hub, manifest: Manifest) -> None:
    path = Path(manifest.root, manifest.tokenizer.path)
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(IntegrityError):
        push(manifest, HERE, ANYHOW)
    assert hub.requests == []


def test_manifest_that_changed_since_it_was_read_is_not_pushed(hub: Hub, manifest: Manifest) -> None:
    drop_native(manifest)
    with pytest.raises(ManifestError, match="was changed since it was read"):
        push(manifest, HERE, ANYHOW)
    assert hub.requests == []


def test_repository_with_an_unreadable_manifest_is_left_alone(manifest: Manifest, pushed: Repository) -> None:
    pushed.commit({**pushed.files, "firstvec.json": b"{}"})
    head = pushed.head
    with pytest.raises(ManifestError, match=rf"hf://{NAME}@{head}/firstvec\.json: "):
        push(manifest, HERE, ANYHOW)
    assert pushed.head == head


def test_push_beside_another_push_makes_no_commit(hub: Hub, manifest: Manifest, pushed: Repository) -> None:
    def push_first(method: str, path: str) -> None:
        if "/preupload/" in path:
            pushed.commit({**pushed.files, "other.txt": b"of the other push"})

    hub.before = push_first
    with pytest.raises(TransferError, match="somebody else changed the repository meanwhile; push again"):
        push(drop_native(manifest), HERE, ANYHOW)
    assert pushed.files["other.txt"] == b"of the other push"
    hub.before = lambda method, path: None
    assert push(Manifest.read(manifest.root), HERE, ANYHOW).is_new


def test_hub_with_xet_storage_gets_the_files_there(hub: Hub, manifest: Manifest) -> None:
    pytest.importorskip("hf_xet")
    hub.has_xet = True
    hub.fails = {"/xet": 403}
    with pytest.raises(TransferError, match=f"^hf://{NAME}: "):
        push(manifest, HERE, ANYHOW)
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
        ({"fails": {"/api/models": 200}}, r"the hub's answer is not understood \(JSONDecodeError"),
    ],
)
def test_each_refusal_of_a_push_has_its_message(
    hub: Hub, manifest: Manifest, change: dict[str, Any], message: str
) -> None:
    vars(hub).update(change)
    with pytest.raises(TransferError, match=f"^hf://{NAME}: .*{message}"):
        push(manifest, HERE, ANYHOW)
    assert NAME not in hub.repositories


def test_failed_upload_makes_no_commit(hub: Hub, manifest: Manifest) -> None:
    hub.fails = {f"/objects/{NAME}": 403}
    with pytest.raises(TransferError, match="the token does not allow this"):
        push(manifest, HERE, ANYHOW)
    assert hub.repositories[NAME].messages == ["initial commit"]


def test_pull_of_a_commit_gives_the_bundle(hub: Hub, manifest: Manifest, pushed: Repository, tmp_path: Path) -> None:
    bundle = open_remote(Address(repository=NAME, revision=pushed.head), ANYHOW)
    assert hub.requests == []  # a commit needs no look-up
    received = receive(bundle, tmp_path / "bundles")
    assert received.is_new
    assert files_of(received.manifest) == files_of(manifest)
    assert bundle.address == f"hf://{NAME}@{pushed.head}"


def test_page_of_the_repository_shows_how_onnxruntime_computes_the_vector_of_firstvec(
    hub: Hub, pushed: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = receive(open_remote(HERE, ANYHOW), tmp_path / "bundles").manifest.root
    blocks = re.findall(r"```python\n(.*?)```", pushed.files["README.md"].decode(), re.DOTALL)
    names: dict[str, Any] = {}
    monkeypatch.chdir(root)
    exec(next(block for block in blocks if "InferenceSession" in block), names)
    loader = OptimizedEmbeddingLoader(root, strategy="cached")
    vector = loader.get_provider().embed_query("how do I reset my password?")
    assert float(names["vector"] @ vector) > 0.99999


def test_pull_takes_the_files_of_the_wanted_artifact_only(
    hub: Hub, manifest: Manifest, pushed: Repository, tmp_path: Path
) -> None:
    received = receive(open_remote(HERE, ANYHOW), tmp_path / "bundles", only=["onnx-fp32"])
    assert [artifact.id for artifact in received.manifest.artifacts] == ["onnx-fp32"]
    assert hub.asked("GET", "/resolve/")
    assert not hub.asked("GET", "native/model")


@pytest.mark.parametrize("revision", [None, "main", "v1"])
def test_branch_is_looked_up_once_so_the_bundle_is_that_of_one_commit(
    hub: Hub, manifest: Manifest, pushed: Repository, tmp_path: Path, revision: str | None
) -> None:
    head = pushed.branches["v1"] = pushed.head
    bundle = open_remote(Address(repository=NAME, revision=revision), ANYHOW)
    files = files_of(manifest)
    push(drop_native(manifest), HERE, ANYHOW)
    pushed.branches["v1"] = pushed.head
    hub.requests.clear()

    received = receive(bundle, tmp_path / "bundles")

    assert bundle.commit == head != pushed.head
    assert files_of(received.manifest) == files
    assert all(f"/resolve/{head}/" in path for _, path, _ in hub.requests)


def test_wrong_bytes_are_refused_and_nothing_appears(hub: Hub, pushed: Repository, tmp_path: Path) -> None:
    hub.alter["onnx/model.onnx"] = lambda data: data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(TransferError, match=rf"hf://{NAME}@\w+/onnx/model\.onnx: is not the file that the manifest"):
        receive(open_remote(HERE, ANYHOW), tmp_path / "bundles")
    assert not (tmp_path / "bundles" / "tiny-bert").exists()


def test_broken_connection_is_taken_up_where_it_broke(hub: Hub, pushed: Repository, tmp_path: Path) -> None:
    size = len(pushed.files["tokenizer.json"])
    hub.cuts["tokenizer.json"] = 1000
    received = receive(open_remote(HERE, ANYHOW), tmp_path / "bundles")
    asked = [headers.get("range") for _, path, headers in hub.requests if path.endswith("/tokenizer.json")]
    assert asked == [None, "bytes=1000-"]
    assert received.fetched == sum({file.path: file.size for file in received.manifest.files()}.values())
    assert size > 1000


def test_hub_without_ranges_is_read_from_the_start(
    hub: Hub, manifest: Manifest, pushed: Repository, tmp_path: Path
) -> None:
    hub.takes_ranges = False
    hub.cuts["tokenizer.json"] = 1000
    received = receive(open_remote(HERE, ANYHOW), tmp_path / "bundles")
    assert files_of(received.manifest) == files_of(manifest)
    assert len(hub.asked("GET", "/tokenizer.json")) == 2  # the bytes that had come were kept


def test_file_that_is_too_short_is_refused(hub: Hub, pushed: Repository, tmp_path: Path) -> None:
    hub.alter["tokenizer.json"] = lambda data: data[:-1]
    with pytest.raises(TransferError, match=r"tokenizer\.json: "):
        receive(open_remote(HERE, ANYHOW), tmp_path / "bundles")
    assert not (tmp_path / "bundles" / "tiny-bert").exists()


def test_file_that_is_missing_is_named(hub: Hub, pushed: Repository, tmp_path: Path) -> None:
    pushed.commit({path: data for path, data in pushed.files.items() if path != "tokenizer.json"})
    with pytest.raises(TransferError, match=r"/tokenizer\.json: there is no such file; ask whoever pushed"):
        receive(open_remote(HERE, ANYHOW), tmp_path / "bundles")


def test_token_does_not_go_to_another_host(hub: Hub, manifest: Manifest, pushed: Repository, tmp_path: Path) -> None:
    pushed.private = True
    with serve_files(hub) as asked:
        received = receive(open_remote(HERE, ANYHOW), tmp_path / "bundles")
    assert files_of(received.manifest) == files_of(manifest)
    assert len(asked) > len(manifest.artifacts)
    assert all("authorization" not in headers for _, _, headers in asked)
    assert all(TOKEN in headers["authorization"] for _, path, headers in hub.requests if "/resolve/" in path)


def test_other_host_with_wrong_bytes_is_refused(hub: Hub, pushed: Repository, tmp_path: Path) -> None:
    hub.alter["onnx/model.onnx"] = lambda data: b"other" + data
    with serve_files(hub), pytest.raises(TransferError, match="is not the file that the manifest describes"):
        receive(open_remote(HERE, ANYHOW), tmp_path / "bundles")


def test_signature_travels(hub: Hub, manifest: Manifest, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    other = make_keys(tmp_path / "keys", "other")
    sign(manifest, keys.private)
    push(manifest, HERE, ANYHOW)
    with pytest.raises(SignatureError, match="another key"):
        receive(open_remote(HERE, ANYHOW), tmp_path / "bundles", require_signature=other.public)
    assert not hub.asked("GET", "tokenizer.json")  # the signature is checked before any file is fetched
    received = receive(open_remote(HERE, ANYHOW), tmp_path / "bundles", require_signature=keys.public)
    assert files_of(received.manifest) == files_of(manifest)
    assert "model.sig" in files_of(manifest)


def test_signature_of_the_bundle_before_is_removed(hub: Hub, manifest: Manifest, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    signature = sign(manifest, keys.private)
    push(manifest, HERE, ANYHOW)
    signature.unlink()
    assert push(manifest, HERE, ANYHOW).removed == ("model.sig",)
    with pytest.raises(SignatureError, match="does not exist"):
        receive(open_remote(HERE, ANYHOW), tmp_path / "bundles", require_signature=keys.public)


def test_signature_of_another_bundle_is_not_pushed(hub: Hub, manifest: Manifest, tmp_path: Path) -> None:
    sign(manifest, make_keys(tmp_path / "keys").private)
    with pytest.raises(Exception, match="covers other files than the bundle has"):
        push(drop_native(manifest), HERE, ANYHOW)
    assert hub.requests == []


def test_repository_without_a_manifest_is_no_bundle(hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    repository = hub.add(NAME, tiny_model)
    command = f"firstvec build {NAME} --revision {repository.head}"
    with pytest.raises(TransferError, match=rf"@\w+: holds no firstvec\.json, so it is no bundle; .*: {command}$"):
        receive(open_remote(HERE, ANYHOW), tmp_path / "bundles")


@pytest.mark.parametrize(
    ("change", "address", "message"),
    [
        ({}, "org/unknown", r"there is no such repository, or the token does not show it \(404\); check the name, and"),
        ({"token": "hf_other"}, "org/unknown", r"there is no such repository, or the hub wants a valid token \(401\)"),
        ({}, f"{NAME}@other", "there is no such revision; name a commit, a branch or a tag that is there"),
        ({"fails": {"/api/models": 503}}, f"{NAME}@main", r"the hub refuses \(503\); try again later"),
        ({"fails": {f"/{NAME}/resolve": 403}}, NAME, r"the token does not allow this \(403\)"),
        ({"fails": {"/api/models": 200}}, NAME, r"the hub's answer is not understood \(JSONDecodeError"),
    ],
)
def test_each_refusal_of_a_pull_has_its_message(
    hub: Hub, pushed: Repository, tmp_path: Path, change: dict[str, Any], address: str, message: str
) -> None:
    vars(hub).update(change)
    repository, _, revision = address.partition("@")
    with pytest.raises(TransferError, match=f"^hf://{address}.*: {message}"):
        receive(open_remote(Address(repository=repository, revision=revision or None), ANYHOW), tmp_path / "bundles")
    assert not (tmp_path / "bundles" / "tiny-bert").exists()


def test_hub_that_sends_too_much_of_a_manifest_is_cut_off(hub: Hub, pushed: Repository, tmp_path: Path) -> None:
    hub.alter["firstvec.json"] = lambda data: data + b" " * (8 << 20)
    assert len(open_remote(HERE, ANYHOW).read_manifest()) == MAX_BYTES + 1
    with pytest.raises(ManifestError, match=f"is larger than {MAX_BYTES} bytes"):
        receive(open_remote(HERE, ANYHOW), tmp_path / "bundles")


def test_hub_that_says_nothing_is_given_up(
    hub: Hub, pushed: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firstvec_build.shipping.hub._TIMEOUT", 0.2)
    hub.before = lambda method, path: time.sleep(0.6) if "tokenizer.json" in path else None
    with pytest.raises(TransferError, match=r"/tokenizer\.json: the hub cannot be reached \(ReadTimeout"):
        receive(open_remote(HERE, ANYHOW), tmp_path / "bundles")
    assert len(hub.asked("GET", "tokenizer.json")) == 4


@pytest.mark.parametrize("option", [{"username": "me", "password": "secret"}, {"insecure": True}, {"authorities": "a"}])
def test_options_for_registries_are_refused(hub: Hub, manifest: Manifest, option: dict[str, Any]) -> None:
    for use in (lambda access: push(manifest, HERE, access), lambda access: open_remote(HERE, access)):
        with pytest.raises(
            InputError, match="hf:// takes no --username, --insecure and --ca: huggingface_hub reads HF_"
        ):
            use(Access(**option))
    assert hub.requests == []


def run_with(hub: Hub, tmp_path: Path, **more: str) -> dict[str, str]:
    """Return the variables with which a fresh process uses the hub."""
    hub.token = TOKEN
    home = {"HF_HOME": str(tmp_path / "hf"), "FIRSTVEC_HOME": str(tmp_path / "data"), "FIRSTVEC_ARTIFACTS": ""}
    return {"HF_ENDPOINT": hub.endpoint, "NO_PROXY": "*", "HF_TOKEN": TOKEN, **home, **more}


def test_commands_push_and_pull_and_a_loader_takes_the_bundle_by_name(
    firstvec: Fresh, tiny_built: Path, tmp_path: Path
) -> None:
    with serve_hub() as hub:
        variables = run_with(hub, tmp_path)
        pushed = firstvec("push", tiny_built, f"hf://{NAME}", "--private", **variables)
        assert (pushed.returncode, pushed.stderr) == (0, "")
        assert hub.repositories[NAME].private
        address = f"hf://{NAME}@{hub.repositories[NAME].head}"
        assert pushed.stdout.startswith(f"{address}  (")

        pulled = firstvec("pull", f"hf://{NAME}", "--json", **variables)
        assert (pulled.returncode, pulled.stderr) == (0, "")
        assert json.loads(pulled.stdout)["address"] == address
        again = firstvec("pull", address, **variables)
        assert (again.returncode, again.stderr) == (0, "")
        assert "(up to date)" in again.stdout
        assert address in again.stdout
    encoded = firstvec("encode", "--model", "tiny-bert", "a text", **run_with(hub, tmp_path))
    assert (encoded.returncode, encoded.stderr) == (0, "")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "the hub is not asked, because HF_HUB_OFFLINE is set; unset HF_HUB_OFFLINE"),
        # Port 9 (discard) refuses connections.
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached (ConnectError"),
        ({"HF_TOKEN": ""}, "or the hub wants a valid token (401"),
    ],
)
@pytest.mark.parametrize("command", ["push", "pull"])
def test_hub_out_of_reach_is_one_line(
    firstvec: Fresh, tiny_built: Path, tmp_path: Path, command: str, variables: dict[str, str], message: str
) -> None:
    with serve_hub() as hub:
        first = ["push", tiny_built] if command == "push" else ["pull"]
        done = firstvec(*first, f"hf://{NAME}", **run_with(hub, tmp_path, **variables))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: hf://{NAME}: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").rglob("firstvec.json"))
