"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import resource
from pathlib import Path

import pytest

from firstvec.bulk import files
from firstvec.bulk.files import Hashed, digest_of, write_whole
from firstvec.errors import OutputError


def test_a_file_is_written_and_described(tmp_path: Path) -> None:
    path = tmp_path / "a"
    written = write_whole(str(path), lambda stream: (stream.write(b"one"), stream.write(memoryview(b"two"))))
    assert path.read_bytes() == b"onetwo"
    assert written == {"size": 6, "sha256": hashlib.sha256(b"onetwo").hexdigest()} == digest_of(str(path))
    assert [*tmp_path.iterdir()] == [path]
    assert digest_of(str(tmp_path / "missing")) is None


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left on device; free some space, and run the same command again"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EIO, "Input/output error; repair what the system says"),
    ],
)
def test_a_failing_write_leaves_what_was_there(number: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")

    def fail(stream: Hashed) -> None:
        stream.write(b"half")
        raise OSError(number, "x")

    with pytest.raises(OutputError, match=message):
        write_whole(str(path), fail)
    assert path.read_bytes() == b"before"
    assert [*tmp_path.iterdir()] == [path]


def test_a_folder_that_was_taken_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder was taken away .*put the folder back"):
        write_whole(str(tmp_path / "gone" / "a"), lambda stream: stream.write(b"x"))


def test_a_real_limit_of_the_file_size_is_a_typed_error(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            write_whole(str(tmp_path / "a"), lambda stream: stream.write(bytes(100_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [*tmp_path.iterdir()] == []


def test_the_file_is_flushed_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(files.os, name)
        monkeypatch.setattr(files.os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    write_whole(str(tmp_path / "a"), lambda stream: stream.write(b"x"))
    assert calls == ["fsync", "replace", "fsync"]
