"""What a killed build leaves is collected, and what another one works on is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from firstvec_build import unfinished

STEM = ".model.staging-"
WEEK = 7 * 24 * 3600


def left_by_a_dead_process(parent: Path) -> Path:
    code = f"from firstvec_build import unfinished; print(unfinished.make_folder({str(parent)!r}, {STEM!r}))"
    return Path(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def test_folder_of_a_dead_process_is_collected_with_all_that_is_in_it(tmp_path: Path) -> None:
    stale = left_by_a_dead_process(tmp_path)
    (stale / "onnx").mkdir()
    (stale / "onnx" / "model.onnx").write_bytes(b"half")
    (tmp_path / "bundle").mkdir()
    assert unfinished.abandoned(tmp_path, STEM) == [stale]
    unfinished.collect(tmp_path, STEM)
    assert os.listdir(tmp_path) == ["bundle"]


def test_folder_and_file_of_a_running_process_are_not(tmp_path: Path) -> None:
    made = [unfinished.make_folder(tmp_path, STEM), unfinished.make_file(tmp_path, STEM)]
    assert unfinished.abandoned(tmp_path, STEM) == []
    unfinished.collect(tmp_path, STEM)
    assert sorted(tmp_path.iterdir()) == sorted(made)
    assert made[1].stat().st_mode & 0o777 == 0o644


def test_number_that_went_to_another_process_protects_nothing(tmp_path: Path) -> None:
    host, pid, started, rest = unfinished.make_folder(tmp_path, STEM).name.removeprefix(STEM).split("-", 3)
    assert (int(pid), int(started) > 0) == (os.getpid(), True)
    earlier = tmp_path / f"{STEM}{host}-{pid}-{int(started) - 1}-{rest}"
    earlier.mkdir()
    assert unfinished.abandoned(tmp_path, STEM) == [earlier]


@pytest.mark.parametrize("name", ["0badc0de-1-2-abc", "12345-abc", "x", "0badc0de-no-number"])
def test_what_another_host_made_is_collected_when_it_is_a_week_old(name: str, tmp_path: Path) -> None:
    other = tmp_path / f"{STEM}{name}"
    other.mkdir()
    assert unfinished.abandoned(tmp_path, STEM) == []
    os.utime(other, (time.time() - WEEK + 60,) * 2)
    assert unfinished.abandoned(tmp_path, STEM) == []
    os.utime(other, (time.time() - WEEK - 60,) * 2)
    assert unfinished.abandoned(tmp_path, STEM) == [other]


def test_link_is_collected_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    stale = left_by_a_dead_process(tmp_path)
    stale.rmdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "photo.jpg").touch()
    stale.symlink_to(tmp_path / "precious", target_is_directory=True)
    unfinished.collect(tmp_path, STEM)
    assert [path.name for path in tmp_path.rglob("*")] == ["precious", "photo.jpg"]


def test_names_are_taken_as_they_are(tmp_path: Path) -> None:
    made = unfinished.make_folder(tmp_path, ".[a-z]*.staging-")
    assert made.name.startswith(".[a-z]*.staging-")
    assert unfinished.abandoned(tmp_path, ".b.staging-") == []
    assert unfinished.abandoned(tmp_path / "missing", STEM) == []
    (tmp_path / "file").touch()
    assert unfinished.abandoned(tmp_path / "file", STEM) == []


def test_flushing_tells_of_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"data")
    unfinished.sync_tree(tmp_path)
    with pytest.raises(FileNotFoundError):
        unfinished.sync(tmp_path / "missing")
