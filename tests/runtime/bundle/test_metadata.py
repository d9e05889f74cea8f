"""What is known of a model: what its manifest says, for as long as the manifest stays the same, or what was saved."""

from __future__ import annotations

import json
import marshal
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from firstvec import ModelMetadata
from firstvec.bundle import MANIFEST_NAME, metadata
from firstvec.bundle.integrity import verify_file
from firstvec.bundle.manifest import Manifest
from firstvec.bundle.store import find_bundle
from firstvec.machine.cache import file_identity, identity_text, read_note, write_note
from tests.conftest import Fresh, edit_manifest
from tests.manifests import artifact, document, file


@pytest.fixture(autouse=True)
def notes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder of the notes, in an empty cache. This process knows nothing either."""
    monkeypatch.setattr(metadata, "_seen", {})
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "metadata"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the folder of every manifest that is parsed."""
    folders: list[str] = []
    read = Manifest.read

    def watched(root: str) -> Manifest:
        folders.append(root)
        return read(root)

    monkeypatch.setattr(Manifest, "read", watched)
    return folders


def known(root: Path) -> ModelMetadata:
    """Return the metadata of a bundle that is there."""
    found = ModelMetadata.from_cache(str(root))
    assert found is not None
    return found


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what this process knows, as a new process does."""
    monkeypatch.setattr(metadata, "_seen", {})


# --- What the manifest says ------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a bundle that is found as ``tiny``, with two artifacts in full precision and one in INT8."""
    value = document("org/tiny", "abc")
    value["model"] |= {"embedding_dim": 384, "max_seq_length": 256, "pooling_mode": "cls", "normalized": False}
    value["artifacts"] = [
        artifact("large", "onnx", "fp32", "onnxruntime", None) | {"files": [file("large.onnx", 91_000_000)]},
        artifact("fp32", "onnx", "fp32", "onnxruntime", None)
        | {"files": [file("fp32.onnx", 1_000_000), file("fp32.data", 89_000_000)]},
        artifact("int8", "onnx", "int8", "onnxruntime", None) | {"files": [file("int8.onnx", 23_000_000)]},
    ]
    folder = tmp_path / "bundles" / "tiny"
    folder.mkdir(parents=True)
    (folder / MANIFEST_NAME).write_text(json.dumps(value), "utf-8")
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(folder.parent))
    return folder


def test_the_metadata_is_what_the_manifest_says(tiny: Path) -> None:
    assert ModelMetadata.from_cache("tiny") == ModelMetadata(
        model_name="org/tiny",
        embedding_dim=384,
        max_seq_length=256,
        model_size_mb=90.0,
        supports_quantization=True,
        last_used=0.0,
        revision="abc",
        pooling_mode="cls",
        normalized=False,
        artifacts=("large", "fp32", "int8"),
        path=str(tiny),
    )


@pytest.mark.parametrize(
    ("keep", "size", "quantization"), [("fp32", 90.0, False), ("int8", 23.0, True)], ids=["fp32 only", "int8 only"]
)
def test_a_bundle_of_one_precision_has_that_ones_size(tiny: Path, keep: str, size: float, quantization: bool) -> None:
    def drop_the_others(manifest: dict[str, Any]) -> None:
        manifest["artifacts"] = [artifact for artifact in manifest["artifacts"] if artifact["precision"] == keep]

    edit_manifest(tiny, drop_the_others)
    metadata = ModelMetadata.from_cache("tiny")
    assert metadata is not None
    assert (metadata.model_size_mb, metadata.supports_quantization) == (size, quantization)


def test_there_is_no_metadata_of_an_unknown_model() -> None:
    assert ModelMetadata.from_cache("org/unknown") is None


def _truncate(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_text('{"format": "firstvec-bundle"', "utf-8")


def _newer(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(format_version="2.0"))


@pytest.mark.parametrize("damage", [_truncate, _newer])
def test_there_is_no_metadata_of_a_broken_bundle(tiny: Path, damage: Callable[[Path], None]) -> None:
    damage(tiny)
    assert ModelMetadata.from_cache("org/tiny") is None


def test_last_used_is_the_time_at_which_the_real_tokenizer_was_verified(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "empty-cache"))
    time.sleep(0.06)  # what was written a moment ago is not remembered
    manifest = find_bundle(str(tiny_bundle))
    before = ModelMetadata.from_cache(str(tiny_bundle))
    assert before is not None
    assert before.last_used == 0.0
    verify_file(manifest.root, manifest.tokenizer)
    after = ModelMetadata.from_cache(str(tiny_bundle))
    assert after is not None
    # The kernel's clock for file times may lag by a tick.
    assert time.time() - 60 < after.last_used <= time.time() + 1
    assert after.replace(last_used=0.0) == before


def test_a_real_bundles_size_is_that_of_its_smallest_full_precision_artifact(tiny_bundle: Path) -> None:
    metadata = ModelMetadata.from_cache(str(tiny_bundle))
    assert metadata is not None
    sizes = [
        sum((tiny_bundle / file.path).stat().st_size for file in artifact.files)
        for artifact in Manifest.read(tiny_bundle).artifacts
        if artifact.precision == "fp32"
    ]
    assert metadata.model_size_mb == pytest.approx(min(sizes) / 1e6, abs=0.05)
    assert metadata.embedding_dim == 32
    assert metadata.artifacts == tuple(artifact.id for artifact in Manifest.read(tiny_bundle).artifacts)


# --- What is remembered ----------------------------------------------------------------------------------------------


def test_a_manifest_is_parsed_once_in_a_process_and_once_on_a_machine(
    tiny_built: Path, parsed: list[str], notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = known(tiny_built)
    assert first == ModelMetadata.of(Manifest.read(tiny_built))
    parsed.clear()
    assert known(tiny_built) == first
    forget(monkeypatch)
    assert known(tiny_built) == first
    assert parsed == []
    (path,) = notes.iterdir()
    assert path.name.startswith(identity_text(file_identity((tiny_built / MANIFEST_NAME).stat())))


def test_a_changed_manifest_is_parsed_again(
    tiny_bundle: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = known(tiny_bundle)
    status = (tiny_bundle / MANIFEST_NAME).stat()
    edit_manifest(tiny_bundle, lambda manifest: manifest["model"].update(max_seq_length=before.max_seq_length + 1))
    os.utime(tiny_bundle / MANIFEST_NAME, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert known(tiny_bundle).max_seq_length == before.max_seq_length + 1
    forget(monkeypatch)
    assert known(tiny_bundle).max_seq_length == before.max_seq_length + 1
    assert len(parsed) == 2


def test_a_manifest_that_became_invalid_is_not_remembered_as_valid(tiny_bundle: Path) -> None:
    known(tiny_bundle)
    edit_manifest(tiny_bundle, lambda manifest: manifest["artifacts"].clear())
    assert ModelMetadata.from_cache(str(tiny_bundle)) is None
    (tiny_bundle / MANIFEST_NAME).unlink()
    assert ModelMetadata.from_cache(str(tiny_bundle)) is None


def test_the_path_is_the_one_that_was_asked_for(tiny_built: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_built, target_is_directory=True)
    assert known(tiny_built).path == str(tiny_built)
    assert known(tmp_path / "link").path == str(tmp_path / "link")
    assert known(tmp_path / "link").replace(path="") == known(tiny_built).replace(path="")


def spoiled(written: bytes) -> Iterator[bytes]:
    """Yield notes that are whole and make no sense."""
    values, tokenizer = marshal.loads(written)
    yield b""
    yield b"\xff" * 100
    yield marshal.dumps(None)
    yield marshal.dumps(({}, tokenizer))
    yield marshal.dumps(({**values, "another": 1}, tokenizer))
    yield marshal.dumps((values, (1, 2)))
    yield marshal.dumps((values,))


def test_a_note_that_makes_no_sense_is_written_again(
    tiny_built: Path, parsed: list[str], notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = known(tiny_built)
    (path,) = notes.iterdir()
    content = path.read_bytes()
    for data in spoiled(read_note(str(path)) or b""):
        write_note(str(path), data)
        forget(monkeypatch)
        parsed.clear()
        assert known(tiny_built) == expected
        assert (len(parsed), path.read_bytes()) == (1, content)


def test_a_note_of_which_marshal_would_make_a_huge_tuple_is_not_given_to_it(
    tiny_built: Path, notes: Path, fresh: Fresh
) -> None:
    expected = known(tiny_built).embedding_dim
    (path,) = notes.iterdir()
    content = path.read_bytes()
    at = content.index(b"onnx-fp32")
    for place in range(at - 12, at):  # somewhere here is the count of the artifacts
        path.write_bytes(content[:place] + b"(\xff\xff\xff\x7f" + content[place + 5 :])
        code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from firstvec import ModelMetadata
print(ModelMetadata.from_cache(sys.argv[1]).embedding_dim)
"""
        assert int(fresh(code, tiny_built).stdout) == expected


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_note_that_others_could_have_written_is_not_believed(
    mode: int, tiny_built: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = known(tiny_built)
    (path,) = notes.iterdir()
    values, tokenizer = marshal.loads(read_note(str(path)) or b"")
    write_note(str(path), marshal.dumps(({**values, "embedding_dim": 1}, tokenizer)))
    forget(monkeypatch)
    assert known(tiny_built).embedding_dim == 1  # believed, where only this user writes
    notes.chmod(mode)
    forget(monkeypatch)
    assert known(tiny_built) == expected


def test_without_a_folder_to_remember_in_it_is_parsed_every_time(
    tiny_built: Path, parsed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        known(tiny_built)
        forget(monkeypatch)
    assert len(parsed) == 2


def test_a_full_disk_leaves_no_half_a_note(tiny_built: Path, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
    known(tiny_built)
    assert list(notes.iterdir()) == []


def test_remembered_metadata_needs_neither_json_nor_the_manifests_module(bundle: Path, fresh: Fresh) -> None:
    code = """
import sys
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader()
dimension = loader.get_embedding_dim_fast()
names = ("json", "firstvec.bundle.manifest", "numpy", "onnxruntime", "tokenizers", "torch")
modules = [name for name in names if name in sys.modules]
import json
print(json.dumps([dimension, loader.get_metadata().path, modules]))
"""
    first, second = (json.loads(fresh(code).stdout) for _ in range(2))
    assert first == [384, str(bundle), ["firstvec.bundle.manifest"]]
    assert second == [384, str(bundle), []]


def test_all_fields_survive_the_note(tiny_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = known(tiny_built).to_dict()
    forget(monkeypatch)
    after = known(tiny_built).to_dict()
    assert after == before
    assert [type(value) for value in after.values()] == [type(value) for value in before.values()]


# --- What a program saved --------------------------------------------------------------------------------------------

OLD_FIELDS: dict[str, Any] = {
    "model_name": "org/saved",
    "embedding_dim": 768,
    "max_seq_length": 512,
    "model_size_mb": 438.0,
    "supports_quantization": False,
    "last_used": 1_700_000_000.0,
}
"""The six fields of the loader that this one replaces."""


def test_the_six_fields_of_the_replaced_loader_are_enough() -> None:
    made = ModelMetadata(**OLD_FIELDS)
    assert made.to_dict() == OLD_FIELDS | {
        "revision": None,
        "pooling_mode": "",
        "normalized": False,
        "artifacts": (),
        "path": "",
    }


@pytest.mark.parametrize("name", OLD_FIELDS)
def test_each_of_the_six_fields_is_required(name: str) -> None:
    with pytest.raises(TypeError, match=f"misses the argument {name!r}"):
        ModelMetadata(**{key: value for key, value in OLD_FIELDS.items() if key != name})


@pytest.mark.parametrize("more", [{}, {"revision": "abc", "artifacts": ("a", "b"), "path": "/b", "normalized": True}])
def test_a_saved_record_is_returned_for_a_name_without_a_bundle(more: dict[str, Any], tmp_path: Path) -> None:
    made = ModelMetadata(**OLD_FIELDS, **more)
    assert ModelMetadata.from_cache("org/saved") is None
    made.save()
    assert ModelMetadata.from_cache("org/saved") == made
    assert ModelMetadata.from_cache("saved") is None
    assert [path.name for path in (tmp_path / "cache").rglob("*.json")] == ["org--saved.json"]


def test_a_record_is_saved_again(tmp_path: Path) -> None:
    for dimension in (768, 5):
        ModelMetadata(**OLD_FIELDS | {"embedding_dim": dimension}).save()
    found = ModelMetadata.from_cache("org/saved")
    assert found is not None
    assert found.embedding_dim == 5


@pytest.mark.parametrize("name", ["org/tiny", "tiny"])
def test_a_bundle_of_that_name_comes_before_a_saved_record(name: str, tiny: Path) -> None:
    ModelMetadata(**OLD_FIELDS | {"model_name": name}).save()
    found = ModelMetadata.from_cache(name)
    assert found is not None
    assert (found.embedding_dim, found.path) == (384, str(tiny))
    (tiny / MANIFEST_NAME).unlink()
    found = ModelMetadata.from_cache(name)
    assert found is not None
    assert (found.embedding_dim, found.path) == (768, "")


def test_a_broken_bundle_of_that_name_is_not_replaced_by_a_saved_record(tiny: Path) -> None:
    ModelMetadata(**OLD_FIELDS | {"model_name": "tiny"}).save()
    (tiny / MANIFEST_NAME).write_bytes(b"{")
    assert ModelMetadata.from_cache("tiny") is None


def change(**values: object) -> bytes:
    """Return a saved file with other values."""
    return json.dumps(OLD_FIELDS | values).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        change()[:-5],
        change(another=1),
        change(embedding_dim="768"),
        change(max_seq_length=None),
        change(model_size_mb=[]),
        change(last_used="now"),
        change(artifacts=5),
        change(revision="x" * (1 << 20)),
    ],
    ids=lambda data: ascii(data[-20:]),
)
def test_a_damaged_saved_file_is_no_metadata(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "saved.json"
    monkeypatch.setattr(ModelMetadata, "_get_cache_path", staticmethod(lambda _name: path))
    path.write_bytes(change())
    assert ModelMetadata.from_cache("org/saved") == ModelMetadata(**OLD_FIELDS)
    path.write_bytes(data)
    assert ModelMetadata.from_cache("org/saved") is None


def test_the_replaced_loaders_tests_can_choose_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def path_of(model_name: str) -> Path:
        asked.append(model_name)
        return tmp_path / "a" / "b" / "meta.json"

    monkeypatch.setattr(ModelMetadata, "_get_cache_path", staticmethod(path_of))
    made = ModelMetadata(**OLD_FIELDS)
    made.save()
    assert json.loads((tmp_path / "a" / "b" / "meta.json").read_text("utf-8"))["embedding_dim"] == 768
    assert ModelMetadata.from_cache("org/saved") == made
    assert asked == ["org/saved", "org/saved"]


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000, "../../../up", "a/b/c", "."])
def test_saving_never_raises_and_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    ModelMetadata(**OLD_FIELDS | {"model_name": name}).save()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in written} <= {tmp_path / "cache" / "saved-metadata"}
    ModelMetadata.from_cache(name)


def test_saving_where_nothing_can_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "file" / "cache"))
    ModelMetadata(**OLD_FIELDS).save()
    assert ModelMetadata.from_cache("org/saved") is None


def test_a_pipe_or_a_link_in_place_of_a_saved_file_is_no_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(change())
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        monkeypatch.setattr(ModelMetadata, "_get_cache_path", staticmethod(lambda _name, name=name: tmp_path / name))
        assert ModelMetadata.from_cache("org/saved") is None
