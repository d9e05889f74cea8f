"""A bundle's files are the ones that were built, and a marker stands in for hashing only where it may."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firstvec.bundle.integrity import is_remembered, last_used, open_verified, read_ahead, read_verified, verify_file
from firstvec.bundle.manifest import File
from firstvec.errors import IntegrityError, LoadError
from firstvec.machine import cache

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def markers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder of the markers, in an empty cache."""
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "verified"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a bundle's folder with one file, ``onnx/model.onnx``."""
    (tmp_path / "bundle" / "onnx").mkdir(parents=True)
    (tmp_path / "bundle" / "onnx" / "model.onnx").write_bytes(CONTENT)
    time.sleep(0.06)  # a file that was written a moment ago is not remembered, and a test below shows why
    return tmp_path / "bundle"


def entry(content: bytes = CONTENT, path: str = "onnx/model.onnx") -> File:
    """Return the manifest's entry of a file."""
    return File(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def verify(root: Path, file: File, artifact: str = "", *, use_markers: bool = True) -> str:
    """Verify a file. Return ``remembered`` if a marker stood in for hashing, else ``hashed now``."""
    with open_verified(str(root), file, artifact, use_markers=use_markers) as opened:
        return "remembered" if opened.remembered else "hashed now"


def test_what_was_written_a_moment_ago_is_not_remembered(
    root: Path, markers: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next write may come in the same tick of the file system's clock. It leaves the file's identity as it is."""
    path = root / "onnx" / "model.onnx"
    path.write_bytes(CONTENT)
    monkeypatch.setattr(cache, "_TICK", 10**12)  # so long is a moment here, however slow the machine is
    for _ in range(2):
        with open_verified(str(root), entry()) as opened:
            assert not opened.remembered
            opened.verify_again()
    assert sum(hashed) == 4 * len(CONTENT)  # `verify_again` hashes, too
    assert not markers.exists()
    monkeypatch.setattr(cache, "_TICK", 0)
    with open_verified(str(root), entry()) as opened:
        assert not opened.remembered
        opened.verify_again()
    assert sum(hashed) == 5 * len(CONTENT)
    assert verify(root, entry()) == "remembered"


def test_a_file_that_cannot_be_read_is_not_called_another_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if path == "model.onnx":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(
        IntegrityError, match=r"model\.onnx cannot be read \(Permission denied\), so .*; let this user read it"
    ):
        verify(root, entry())
    monkeypatch.undo()
    (root / "onnx" / "model.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"model\.onnx is not the file that was built: .*No such file"):
        verify(root, entry())


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives the size of every chunk that is hashed."""
    sizes: list[int] = []
    sha256 = hashlib.sha256

    class Watched:
        def __init__(self, data: bytes = b"") -> None:
            self.inner = sha256(data)
            self.hexdigest = self.inner.hexdigest

        def update(self, data: Any) -> None:
            sizes.append(len(data))
            self.inner.update(data)

    monkeypatch.setattr(hashlib, "sha256", Watched)
    return sizes


@pytest.mark.parametrize("size", [0, 1, 10_240, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_file_as_built_is_verified_whatever_its_size(root: Path, size: int) -> None:
    content = (CONTENT * (size // len(CONTENT) + 1))[:size]
    (root / "onnx" / "model.onnx").write_bytes(content)
    assert verify(root, entry(content)) == "hashed now"


@pytest.mark.parametrize("position", [0, len(CONTENT) // 2, len(CONTENT) - 1])
def test_one_flipped_bit_is_refused_with_both_digests(root: Path, position: int) -> None:
    damaged = bytearray(CONTENT)
    damaged[position] ^= 1
    path = root / "onnx" / "model.onnx"
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError) as caught:
        verify(root, entry(), "onnx-fp32")
    error = caught.value
    assert (error.file, error.artifact) == (str(path), "onnx-fp32")
    assert error.expected == f"sha256 {hashlib.sha256(CONTENT).hexdigest()[:16]}…"
    assert error.actual == f"sha256 {hashlib.sha256(damaged).hexdigest()[:16]}…"


def test_a_flipped_bit_behind_the_first_mebibyte_is_refused(root: Path) -> None:
    content = CONTENT * 120
    damaged = bytearray(content)
    damaged[-1] ^= 0x80
    (root / "onnx" / "model.onnx").write_bytes(damaged)
    with pytest.raises(IntegrityError):
        verify(root, entry(content))


@pytest.mark.parametrize("damaged", [b"", CONTENT[:-1], CONTENT + b"\0"], ids=["empty", "truncated", "trailing byte"])
def test_another_size_is_refused_without_hashing(root: Path, damaged: bytes, hashed: list[int]) -> None:
    path = root / "onnx" / "model.onnx"
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError) as caught:
        verify(root, entry())
    assert caught.value.file == str(path)
    assert caught.value.expected == f"{len(CONTENT)} bytes"
    assert caught.value.actual == f"{len(damaged)} bytes"
    assert hashed == []


def _remove(path: Path) -> None:
    path.unlink()


def _remove_folder(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()


def _file_for_folder(path: Path) -> None:
    _remove_folder(path)
    path.parent.write_bytes(CONTENT)


@pytest.mark.parametrize("damage", [_remove, _remove_folder, _file_for_folder])
def test_a_missing_file_is_refused(root: Path, damage: Callable[[Path], None]) -> None:
    path = root / "onnx" / "model.onnx"
    damage(path)
    with pytest.raises(IntegrityError) as caught:
        verify(root, entry(), "onnx-fp32")
    assert caught.value.file == str(path)
    assert caught.value.expected == f"{len(CONTENT)} bytes"
    assert caught.value.actual in ("No such file or directory", "Not a directory")
    assert caught.value.artifact == "onnx-fp32"


@pytest.mark.parametrize("same_size", [False, True])
def test_a_directory_in_place_of_the_file_is_refused(root: Path, same_size: bool) -> None:
    path = root / "onnx" / "model.onnx"
    path.unlink()
    path.mkdir()
    file = entry().replace(size=path.stat().st_size if same_size else len(CONTENT) + 1)
    with pytest.raises(IntegrityError) as caught:
        verify(root, file, "onnx-fp32")
    assert caught.value.file == str(path)
    assert caught.value.artifact == "onnx-fp32"


@pytest.mark.parametrize("content", [b"", CONTENT], ids=["as empty as a pipe", "not empty"])
def test_a_pipe_in_place_of_the_file_is_refused_and_not_waited_for(root: Path, content: bytes) -> None:
    path = root / "onnx" / "model.onnx"
    path.unlink()
    os.mkfifo(path)

    def waited(_signal: int, _frame: object) -> None:
        raise AssertionError("open_verified waits for somebody to write into the pipe")

    previous = signal.signal(signal.SIGALRM, waited)
    signal.setitimer(signal.ITIMER_REAL, 120.0)
    try:
        with pytest.raises(IntegrityError):
            verify(root, entry(content))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


def test_a_symbolic_link_to_the_right_content_is_refused(root: Path, tmp_path: Path) -> None:
    path = root / "onnx" / "model.onnx"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError) as caught:
        verify(root, entry(), "onnx-fp32")
    error = caught.value
    assert (error.file, error.expected, error.actual) == (str(path), "a regular file", "a symbolic link")
    assert error.artifact == "onnx-fp32"


def test_a_symbolic_link_in_the_middle_of_the_path_is_refused(root: Path, tmp_path: Path) -> None:
    (root / "onnx").rename(tmp_path / "elsewhere")
    (root / "onnx").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(IntegrityError) as caught:
        verify(root, entry())
    assert caught.value.file == str(root / "onnx")
    assert caught.value.actual == "a symbolic link"


def test_a_file_that_was_remembered_is_still_refused_behind_a_link(root: Path, tmp_path: Path) -> None:
    verify(root, entry())
    (root / "onnx").rename(tmp_path / "elsewhere")
    (root / "onnx").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(IntegrityError):
        verify(root, entry())


def test_the_bundle_itself_may_be_reached_through_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(root, target_is_directory=True)
    assert verify(tmp_path / "current", entry()) == "hashed now"


def test_the_second_time_is_remembered_and_hashes_nothing(root: Path, hashed: list[int]) -> None:
    assert verify(root, entry()) == "hashed now"
    assert sum(hashed) == len(CONTENT)
    hashed.clear()
    assert verify(root, entry()) == "remembered"
    assert hashed == []


def test_a_marker_of_one_file_does_not_stand_in_for_another_file(root: Path) -> None:
    verify(root, entry())
    (root / "copy.onnx").write_bytes(CONTENT)
    assert verify(root, entry(path="copy.onnx")) == "hashed now"


def test_a_marker_of_one_digest_does_not_stand_in_for_another_digest(root: Path) -> None:
    verify(root, entry())
    with pytest.raises(IntegrityError):
        verify(root, entry().replace(sha256="0" * 64))


def test_nothing_is_remembered_of_a_file_that_was_refused(root: Path, markers: Path) -> None:
    for _ in range(2):
        with pytest.raises(IntegrityError):
            verify(root, entry().replace(sha256="0" * 64))
    assert not markers.exists()


def _overwrite(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(b"\xff")


def _exchange(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"\xff" + CONTENT[1:])
    other.replace(path)


@pytest.mark.parametrize("change", [_overwrite, _exchange])
def test_a_change_after_it_was_remembered_is_noticed_even_with_the_old_size_and_time(
    root: Path, change: Callable[[Path], None]
) -> None:
    path = root / "onnx" / "model.onnx"
    verify(root, entry())
    assert verify(root, entry()) == "remembered"
    before = path.stat()
    # The kernel's change time counts in ticks: a write in the tick of the creation leaves the change time as it was.
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        change(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(IntegrityError, match="sha256"):
        verify(root, entry())


def test_without_markers_a_remembered_file_is_hashed(root: Path, hashed: list[int]) -> None:
    verify(root, entry())
    assert verify(root, entry()) == "remembered"
    hashed.clear()
    assert verify(root, entry(), use_markers=False) == "hashed now"
    assert sum(hashed) == len(CONTENT)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_marker_folder_that_others_can_write_is_not_trusted(root: Path, markers: Path, mode: int) -> None:
    verify(root, entry())
    assert verify(root, entry()) == "remembered"
    markers.chmod(mode)
    assert verify(root, entry()) == "hashed now"
    assert verify(root, entry()) == "hashed now"


def test_a_marker_folder_of_somebody_else_is_not_trusted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify(root, entry())
    assert verify(root, entry()) == "remembered"
    somebody_else = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody_else)
    assert verify(root, entry()) == "hashed now"


def test_the_marker_folder_is_made_for_this_user_alone(root: Path, markers: Path) -> None:
    previous = os.umask(0)
    try:
        verify(root, entry())
    finally:
        os.umask(previous)
    assert stat.S_IMODE(markers.stat().st_mode) == 0o700
    assert [stat.S_IMODE(marker.stat().st_mode) for marker in markers.iterdir()] == [0o600]


@pytest.mark.parametrize("place", ["file", "proc"])
def test_a_cache_that_cannot_be_written_slows_but_does_not_stop(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    # No chmod, because root may write into any folder.
    (tmp_path / "a-file").write_bytes(b"")
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "a-file" / "cache") if place == "file" else "/proc/firstvec")
    assert verify(root, entry()) == "hashed now"
    assert verify(root, entry()) == "hashed now"
    assert last_used(str(root), entry().path, entry().sha256) == 0.0


def test_a_cache_that_was_deleted_is_made_again(root: Path, markers: Path) -> None:
    verify(root, entry())
    for marker in markers.iterdir():
        marker.unlink()
    markers.rmdir()
    assert verify(root, entry()) == "hashed now"
    assert verify(root, entry()) == "remembered"


def test_last_used_is_zero_until_the_file_was_verified(root: Path) -> None:
    assert last_used(str(root), entry().path, entry().sha256) == 0.0
    before = time.time()
    verify(root, entry())
    # The kernel's clock for file times may lag by a tick.
    assert before - 1 <= last_used(str(root), entry().path, entry().sha256) <= time.time() + 1


def test_last_used_is_the_last_time_and_not_the_first(root: Path, markers: Path) -> None:
    verify(root, entry())
    (marker,) = markers.iterdir()
    os.utime(marker, (1_000_000, 1_000_000))
    assert last_used(str(root), entry().path, entry().sha256) == 1_000_000
    before = time.time()
    assert verify(root, entry()) == "remembered"
    assert last_used(str(root), entry().path, entry().sha256) >= before - 1


def test_last_used_of_a_file_that_is_not_there_is_zero(root: Path) -> None:
    assert last_used(str(root), "nothing.json", entry().sha256) == 0.0


def test_a_file_of_several_names_is_refused(root: Path, tmp_path: Path) -> None:
    os.link(root / "onnx/model.onnx", tmp_path / "other-name")
    with pytest.raises(IntegrityError, match="found 2 hard links to it: copy the bundle"):
        verify(root, entry())
    (tmp_path / "other-name").unlink()
    verify(root, entry())


def test_files_that_an_installer_linked_from_its_cache_are_accepted(root: Path, tmp_path: Path) -> None:
    os.link(root / "onnx/model.onnx", tmp_path / "installers-cache")
    installed = tmp_path / "site-packages" / "firstvec_bundles" / "model"
    installed.parent.mkdir(parents=True)
    root.rename(installed)
    verify(installed, entry())


def test_such_files_of_an_apps_own_package_are_accepted_beside_its_metadata(root: Path, tmp_path: Path) -> None:
    os.link(root / "onnx/model.onnx", tmp_path / "installers-cache")
    package = tmp_path / "installed" / "app" / "data"
    package.mkdir(parents=True)
    root.rename(package / "bundle")
    with pytest.raises(IntegrityError, match="found 2 hard links to it: copy the bundle"):
        verify(package / "bundle", entry())
    (tmp_path / "installed" / "app-1.0.dist-info").mkdir()
    verify(package / "bundle", entry())
    (tmp_path / "installed").chmod(0o1777)  # like /tmp, where everyone could put such metadata
    with pytest.raises(IntegrityError, match="found 2 hard links to it: copy the bundle"):
        verify(package / "bundle", entry())


def test_too_many_open_files_are_a_load_error_and_no_fault_of_the_bundle(root: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(LoadError, match="cannot be opened: too many open files; close some"):
            verify(root, entry())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    verify(root, entry())


def test_verify_file_returns_nothing_and_leaves_no_open_file(root: Path, markers: Path) -> None:
    before = os.listdir("/proc/self/fd")
    assert verify_file(str(root), entry()) is None  # type: ignore[func-returns-value]
    assert len([*markers.iterdir()]) == 1
    with pytest.raises(IntegrityError, match="onnx-fp32"):
        verify_file(str(root), entry().replace(sha256="0" * 64), "onnx-fp32")
    assert os.listdir("/proc/self/fd") == before


def test_verify_file_hashes_without_markers(root: Path, hashed: list[int]) -> None:
    verify_file(str(root), entry())
    hashed.clear()
    verify_file(str(root), entry())
    assert hashed == []
    verify_file(str(root), entry(), use_markers=False)
    assert sum(hashed) == len(CONTENT)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1])
def test_read_verified_returns_the_content(root: Path, size: int) -> None:
    content = (CONTENT * (size // len(CONTENT) + 1))[:size]
    (root / "onnx" / "model.onnx").write_bytes(content)
    for _ in range(2):
        assert read_verified(str(root), entry(content)) == content
    with pytest.raises(IntegrityError):
        read_verified(str(root), entry(content).replace(sha256="0" * 64))


def test_a_write_after_the_file_was_verified_is_noticed_when_it_is_read(root: Path) -> None:
    with open_verified(str(root), entry()) as opened:
        assert opened.read() == CONTENT
        _overwrite(root / "onnx" / "model.onnx")
        with pytest.raises(IntegrityError, match="sha256"):
            opened.read()
        with pytest.raises(IntegrityError, match="sha256"):
            opened.verify_again()


def test_a_file_that_lost_its_name_is_still_the_verified_one(root: Path) -> None:
    path = root / "onnx" / "model.onnx"
    with open_verified(str(root), entry()) as opened:
        path.unlink()
        path.write_bytes(b"another file")
        opened.verify_again()
        assert opened.read() == CONTENT
        assert Path(str(opened.alias)).read_bytes() == CONTENT


def test_an_open_file_knows_whether_it_is_open(root: Path) -> None:
    opened = open_verified(str(root), entry())
    assert opened.is_open
    assert opened.path == str(root / "onnx" / "model.onnx")
    assert opened.folder == str(root / "onnx")
    assert (opened.relative_path, opened.size) == ("onnx/model.onnx", len(CONTENT))
    opened.close()
    assert not opened.is_open
    opened.close()


def test_a_descriptor_that_the_program_closed_and_used_again_is_left_alone(root: Path) -> None:
    """A daemon closes all descriptors, and later files get the same numbers."""
    opened = open_verified(str(root), entry())
    os.close(opened.descriptor)
    assert not opened.is_open
    other = os.open(root, os.O_RDONLY)
    assert other == opened.descriptor
    assert not opened.is_open
    opened.close()
    os.fstat(other)
    os.close(other)


def test_is_remembered_looks_at_the_marker_and_does_not_touch_it(root: Path, markers: Path) -> None:
    assert is_remembered(str(root), entry()) is False
    verify_file(str(root), entry())
    (marker,) = markers.iterdir()
    os.utime(marker, (1_000_000, 1_000_000))
    assert is_remembered(str(root), entry()) is True
    assert marker.stat().st_mtime == 1_000_000
    assert is_remembered(str(root), entry().replace(sha256="0" * 64)) is False
    assert is_remembered(str(root), entry().replace(size=1)) is False
    assert is_remembered(str(root), entry(path="missing")) is False


@pytest.mark.parametrize("name", ["onnx/model.onnx", "onnx", "missing", "pipe"])
def test_reading_ahead_never_fails_and_leaves_no_open_file(root: Path, name: str) -> None:
    os.mkfifo(root / "pipe")
    before = os.listdir("/proc/self/fd")
    read_ahead(str(root / name))
    assert os.listdir("/proc/self/fd") == before
