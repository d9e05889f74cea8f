"""Which files are read, and whether they were changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firstvec.bulk.inputs import find_sources
from firstvec.errors import InputChanged, InputError


@pytest.mark.parametrize(
    ("name", "form", "compression"),
    [
        ("a.parquet", "parquet", None),
        ("a.JSONL", "jsonl", None),
        ("a.ndjson.gz", "jsonl", "gzip"),
        ("a.csv.zst", "csv", "zstd"),
        ("a.txt", "lines", None),
    ],
)
def test_the_ending_decides(name: str, form: str, compression: str | None, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    [source] = find_sources([str(tmp_path / name)], None)
    assert (source.format, source.compression, source.size) == (form, compression, 1)


def test_patterns_are_sorted_and_stdin_has_lines(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_sources([f"{tmp_path}/**/*.txt", "-"], None)
    assert [os.path.relpath(source.path, tmp_path) for source in found[:3]] == ["a.txt", "b.txt", "sub/c.txt"]
    assert (found[3].is_stdin, found[3].format) == (True, "lines")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "link.txt").symlink_to("a.txt")
    (tmp_path / "a.xml").touch()
    (tmp_path / "a.parquet.gz").touch()
    os.mkfifo(tmp_path / "pipe.txt")
    for inputs, form, message in (
        (["missing.txt"], None, "no such file"),
        (["*.csv"], None, "no file fits the pattern"),
        (["."], None, r"is a folder: name its files, for example '.*\*\.parquet'"),
        (["pipe.txt"], None, "for a stream use -"),
        (["a.txt", "link.txt"], None, "is given twice"),
        (["a.xml"], None, "say what it is with --input-format"),
        (["a.parquet.gz"], None, "Parquet is compressed inside"),
    ):
        with pytest.raises(InputError, match=message):
            find_sources([str(tmp_path / name) for name in inputs], form)
    with pytest.raises(InputError, match="Parquet cannot be read from stdin"):
        find_sources(["-"], "parquet")


def test_a_write_a_replacement_and_a_removal_are_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    [source] = find_sources([str(path)], None)
    with path.open("rb") as stream:
        source.check_unchanged(stream.fileno())
        path.rename(tmp_path / "moved")
        with pytest.raises(InputChanged, match="was taken away"):
            source.check_unchanged(stream.fileno())
        path.write_text("one")
        with pytest.raises(InputChanged, match="was replaced"):
            source.check_unchanged(stream.fileno())
        (tmp_path / "moved").write_text("two")
        with pytest.raises(InputChanged, match="was written to"):
            source.check_unchanged(stream.fileno())


def test_the_identity_has_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    identities = []
    for data in (b"a" * 200_000, b"b" + b"a" * 199_999, b"a" * 199_999 + b"b"):
        path.write_bytes(data)
        os.utime(path, ns=(7, 7))
        [source] = find_sources([str(path)], None)
        identities.append(source.identity())
    assert len({each["edges_sha256"] for each in identities}) == 3
    assert identities[0] | {"edges_sha256": ""} == identities[1] | {"edges_sha256": ""}
