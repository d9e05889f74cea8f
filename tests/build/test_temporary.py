"""The files of a killed process are removed, and the files of a running process stay."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from firstvec_build import temporary

STEM = ".model.staging-"
WEEK = 7 * 24 * 3600


def make_as_a_dead_process(parent: Path) -> Path:
    code = f"from firstvec_build import temporary; print(temporary.make_folder({str(parent)!r}, {STEM!r}))"
    return Path(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def test_folder_of_a_dead_process_is_removed_with_its_content(tmp_path: Path) -> None:
    stale = make_as_a_dead_process(tmp_path)
    (stale / "onnx").mkdir()
    (stale / "onnx" / "model.onnx").write_bytes(b"half")
    (tmp_path / "bundle").mkdir()
    assert temporary.find_abandoned(tmp_path, STEM) == [stale]
    temporary.remove_abandoned(tmp_path, STEM)
    assert os.listdir(tmp_path) == ["bundle"]


def test_folder_and_file_of_a_running_process_stay(tmp_path: Path) -> None:
    made = [temporary.make_folder(tmp_path, STEM), temporary.make_file(tmp_path, STEM)]
    assert temporary.find_abandoned(tmp_path, STEM) == []
    temporary.remove_abandoned(tmp_path, STEM)
    assert sorted(tmp_path.iterdir()) == sorted(made)
    assert made[1].stat().st_mode & 0o777 == 0o644


def test_process_that_got_the_number_of_a_dead_one_is_not_the_maker(tmp_path: Path) -> None:
    host, pid, started, rest = temporary.make_folder(tmp_path, STEM).name.removeprefix(STEM).split("-", 3)
    assert (int(pid), int(started) > 0) == (os.getpid(), True)
    earlier = tmp_path / f"{STEM}{host}-{pid}-{int(started) - 1}-{rest}"
    earlier.mkdir()
    assert temporary.find_abandoned(tmp_path, STEM) == [earlier]


@pytest.mark.parametrize("name", ["0badc0de-1-2-abc", "12345-abc", "x", "0badc0de-no-number"])
def test_folder_of_another_host_is_removed_when_it_is_a_week_old(name: str, tmp_path: Path) -> None:
    other = tmp_path / f"{STEM}{name}"
    other.mkdir()
    assert temporary.find_abandoned(tmp_path, STEM) == []
    os.utime(other, (time.time() - WEEK + 60,) * 2)
    assert temporary.find_abandoned(tmp_path, STEM) == []
    os.utime(other, (time.time() - WEEK - 60,) * 2)
    assert temporary.find_abandoned(tmp_path, STEM) == [other]


def test_link_is_removed_and_its_target_stays(tmp_path: Path) -> None:
    stale = make_as_a_dead_process(tmp_path)
    stale.rmdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "photo.jpg").touch()
    stale.symlink_to(tmp_path / "precious", target_is_directory=True)
    temporary.remove_abandoned(tmp_path, STEM)
    assert [path.name for path in tmp_path.rglob("*")] == ["precious", "photo.jpg"]


def test_stem_is_not_a_pattern_and_a_missing_folder_holds_nothing(tmp_path: Path) -> None:
    made = temporary.make_folder(tmp_path, ".[a-z]*.staging-")
    assert made.name.startswith(".[a-z]*.staging-")
    assert temporary.find_abandoned(tmp_path, ".b.staging-") == []
    assert temporary.find_abandoned(tmp_path / "missing", STEM) == []
    (tmp_path / "file").touch()
    assert temporary.find_abandoned(tmp_path / "file", STEM) == []


def test_folder_that_vanishes_meanwhile_is_not_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", lambda _folder: [f"{STEM}of-another-host"])
    assert temporary.find_abandoned(tmp_path, STEM) == []


def test_flushing_a_missing_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"data")
    temporary.sync_tree(tmp_path)
    with pytest.raises(FileNotFoundError):
        temporary.sync(tmp_path / "missing")


def test_file_system_that_cannot_flush_folders_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()

    def invalid(_descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", invalid)
    temporary.sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        temporary.sync(tmp_path / "file")


def test_dead_processes_are_found_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "_PROC", tmp_path / "no-proc")
    temporary._host.cache_clear()
    try:
        running = temporary.make_folder(tmp_path, STEM)
        host, pid, started, _ = running.name.removeprefix(STEM).split("-", 3)
        assert (int(pid), started) == (os.getpid(), "0")
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            process.wait()
        dead = tmp_path / f"{STEM}{host}-{process.pid}-0-abc"
        dead.mkdir()
        assert temporary.find_abandoned(tmp_path, STEM) == [dead]

        def refuse(_pid: int, _signal: int) -> None:
            raise PermissionError  # a process of another user

        monkeypatch.setattr(os, "kill", refuse)
        assert temporary.find_abandoned(tmp_path, STEM) == []
    finally:
        temporary._host.cache_clear()


def test_what_was_given_up_is_found_though_its_process_lives(tmp_path: Path) -> None:
    folder = temporary.make_folder(tmp_path, ".x.")
    (folder / "file").touch()
    assert temporary.find_abandoned(tmp_path, ".x.") == []
    temporary.abandon(folder, ".x.")
    (found,) = temporary.find_abandoned(tmp_path, ".x.")
    assert found != folder
    assert [*found.iterdir()] == [found / "file"]
