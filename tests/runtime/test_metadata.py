"""What is known of a model is remembered for as long as its manifest stays the same, and only then."""

from __future__ import annotations

import json
import marshal
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstvec import ModelMetadata, metadata
from firstvec.cache import identity, name_of, note, recall
from firstvec.manifest import FILE_NAME, Manifest
from tests.conftest import Fresh, edit_manifest


@pytest.fixture(autouse=True)
def notes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the notes, of an empty cache; nothing is known in this process either."""
    monkeypatch.setattr(metadata, "_seen", {})
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "metadata"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders whose manifests are parsed, as it goes."""
    folders: list[str] = []
    read = Manifest.read

    def watched(root: str) -> Manifest:
        folders.append(root)
        return read(root)

    monkeypatch.setattr(Manifest, "read", watched)
    return folders


def known(root: Path) -> ModelMetadata:
    found = ModelMetadata.from_cache(str(root))
    assert found is not None
    return found


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process does."""
    monkeypatch.setattr(metadata, "_seen", {})


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
    assert path.name.startswith(name_of(identity((tiny_built / FILE_NAME).stat())))


def test_a_changed_manifest_is_parsed_again(
    tiny_bundle: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = known(tiny_bundle)
    status = (tiny_bundle / FILE_NAME).stat()
    edit_manifest(tiny_bundle, lambda manifest: manifest["model"].update(max_seq_length=before.max_seq_length + 1))
    os.utime(tiny_bundle / FILE_NAME, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert known(tiny_bundle).max_seq_length == before.max_seq_length + 1
    forget(monkeypatch)
    assert known(tiny_bundle).max_seq_length == before.max_seq_length + 1
    assert len(parsed) == 2


def test_a_manifest_that_became_invalid_is_not_remembered_as_valid(tiny_bundle: Path) -> None:
    known(tiny_bundle)
    edit_manifest(tiny_bundle, lambda manifest: manifest["artifacts"].clear())
    assert ModelMetadata.from_cache(str(tiny_bundle)) is None
    (tiny_bundle / FILE_NAME).unlink()
    assert ModelMetadata.from_cache(str(tiny_bundle)) is None


def test_the_path_is_the_one_that_was_asked_for(tiny_built: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_built, target_is_directory=True)
    assert known(tiny_built).path == str(tiny_built)
    assert known(tmp_path / "link").path == str(tmp_path / "link")
    assert known(tmp_path / "link").replace(path="") == known(tiny_built).replace(path="")


def spoiled(written: bytes) -> Iterator[bytes]:
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
    for data in spoiled(recall(str(path)) or b""):
        note(str(path), data)
        forget(monkeypatch)
        parsed.clear()
        assert known(tiny_built) == expected
        assert (len(parsed), path.read_bytes()) == (1, content)


def test_any_flipped_bit_missing_end_or_added_byte_of_a_note_is_noticed(tiny_built: Path, notes: Path) -> None:
    known(tiny_built)
    (path,) = notes.iterdir()
    content = path.read_bytes()
    assert recall(str(path)) == content[4:]
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert recall(str(path)) is None
    for damaged in (*(content[:length] for length in range(len(content))), content + b"\0", b"\0" + content):
        path.write_bytes(damaged)
        assert recall(str(path)) is None


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


@pytest.mark.skipif(os.name != "posix", reason="permissions")
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_note_that_others_could_have_written_is_not_believed(
    mode: int, tiny_built: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = known(tiny_built)
    (path,) = notes.iterdir()
    values, tokenizer = marshal.loads(recall(str(path)) or b"")
    note(str(path), marshal.dumps(({**values, "embedding_dim": 1}, tokenizer)))
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


def test_metadata_that_is_remembered_needs_no_json_and_no_manifest(bundle: Path, fresh: Fresh) -> None:
    code = """
import sys
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader()
dimension = loader.get_embedding_dim_fast()
names = ("json", "firstvec.manifest", "numpy", "onnxruntime", "tokenizers", "torch")
modules = [name for name in names if name in sys.modules]
import json
print(json.dumps([dimension, loader.get_metadata().path, modules]))
"""
    first, second = (json.loads(fresh(code).stdout) for _ in range(2))
    assert first == [384, str(bundle), ["json", "firstvec.manifest"]]
    assert second == [384, str(bundle), []]


def test_all_fields_survive_the_note(tiny_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = known(tiny_built).to_dict()
    forget(monkeypatch)
    after = known(tiny_built).to_dict()
    assert after == before
    assert [type(value) for value in after.values()] == [type(value) for value in before.values()]


def test_a_pipe_in_place_of_a_note_is_not_waited_for(tmp_path: Path) -> None:
    from firstvec import cache

    (tmp_path / "notes").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "notes" / "note")
    assert cache.recall(str(tmp_path / "notes" / "note")) is None
