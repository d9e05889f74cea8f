"""Small files of ``/proc`` and ``/sys`` are read as text, and what cannot be read is empty."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firstvec.machine.system_files import read_text


def test_a_system_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc\xff\ndef")
    assert read_text(str(tmp_path / "file")) == "abc\ufffd\ndef"
    assert read_text(str(tmp_path / "file"), 2) == "ab"


@pytest.mark.parametrize("place", [".", "missing", "missing/x"])
def test_what_is_no_readable_file_reads_as_nothing(tmp_path: Path, place: str) -> None:
    assert read_text(str(tmp_path / place)) == ""


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    before = os.listdir("/proc/self/fd")
    for place in ("file", ".", "missing"):
        read_text(str(tmp_path / place))
    assert os.listdir("/proc/self/fd") == before


def test_at_most_64_kib_are_read_without_a_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    assert read_text(str(tmp_path / "file")) == "x" * (1 << 16)
