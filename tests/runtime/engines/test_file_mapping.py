"""A file in memory: without a descriptor, without a copy, for as long as the object lives."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from firstvec.engines.file_mapping import FileMapping


def lines_of(path: Path) -> list[str]:
    """Return the lines of this process's memory map that name a file."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]


def test_a_mapping_keeps_no_descriptor_and_outlives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    descriptor = os.open(path, os.O_RDONLY)
    mapping = FileMapping(descriptor, 7)
    os.close(descriptor)
    path.unlink()
    assert ctypes.string_at(mapping.address, 7) == b"weights"
    mapping.drop_pages()
    assert ctypes.string_at(mapping.address, 7) == b"weights"


def test_a_mapping_ends_with_its_object(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    with path.open("rb") as stream:
        mapping = FileMapping(stream.fileno(), 7)
    assert len(lines_of(path)) == 1
    del mapping
    assert lines_of(path) == []


def test_a_mapping_that_is_not_possible_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as stream, pytest.raises(OSError, match="cannot be mapped into memory") as why:
        FileMapping(stream.fileno(), 0)
    assert why.value.errno
