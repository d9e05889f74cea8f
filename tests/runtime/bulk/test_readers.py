"""Inputs as shards of rows: where a shard ends, and what is wrong with an input."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstvec.bulk import readers
from firstvec.bulk.checkpoint import Done
from firstvec.bulk.inputs import find_sources
from firstvec.bulk.job import make_job
from firstvec.bulk.readers import End, read_shards
from firstvec.bulk.rows import MAX_CHARACTERS, Rows
from firstvec.errors import InputChanged, InputError
from tests.runtime.bulk.conftest import TEXTS, write_data_set


def read(
    inputs: Path | list[Path], done: Done | None = None, kept: pa.Schema | None = None, **options: Any
) -> list[Rows | End]:
    job = make_job(inputs, "out", **{"shard_rows": 5} | options)
    return [*read_shards(job, find_sources(job.inputs, job.input_format), kept, done or Done())]


def texts_of(items: list[Rows | End]) -> list[str | None]:
    return [text for item in items if isinstance(item, Rows) for text in item.texts]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv", "a.txt", "a.csv.gz"])
def test_shards_have_so_many_rows(name: str, tmp_path: Path) -> None:
    *shards, end = read(write_data_set(tmp_path / name))
    assert [(each.number, each.first, len(each.texts)) for each in shards] == [  # type: ignore[union-attr]
        (0, 0, 5),
        (1, 5, 5),
        (2, 10, 5),
        (3, 15, 5),
        (4, 20, 3),
    ]
    assert end == End(source=0, rows=23, shards=5)
    assert texts_of(shards) == TEXTS


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_shard_ends_with_so_many_characters(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_SHARD_CHARACTERS", 100)
    *shards, _ = read(write_data_set(tmp_path / name), shard_rows=1000)
    assert len(shards) > 4
    assert texts_of(shards) == TEXTS


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("known", [[0, 1], [1, 3], [0, 1, 2, 3, 4], [4]])
def test_shards_that_are_done_are_not_read_again(name: str, known: list[int], tmp_path: Path) -> None:
    path, other = write_data_set(tmp_path / name), tmp_path / f"b{name}"
    *whole, _ = read([path, write_data_set(other)], keep=["half"])
    done = Done()
    for number in known:
        done.shards[0, 5 * number] = {"rows": 5 if number < 4 else 3}
    done.ends[0] = (23, 5)
    kept = whole[0].table.schema  # type: ignore[union-attr]
    found = read([path, other], done, kept, keep=["half"])
    numbers = [item.number for item in found if isinstance(item, Rows)]
    assert numbers == [number for number in range(10) if number not in known]
    for item in found:
        if isinstance(item, Rows) and item.source == 0:
            [same] = [each for each in whole if isinstance(each, Rows) and each.number == item.number]
            assert (same.texts, same.table) == (item.texts, item.table)


def test_csv_keeps_line_ends_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext,id\r\n"one\r\ntwo, ""three""",007\r\n\r\nplain,x\r\n')
    *shards, _ = read(path, id_column="id")
    assert texts_of(shards) == ['one\r\ntwo, "three"', "plain"]
    assert shards[0].table["id"].to_pylist() == ["007", "x"]  # type: ignore[union-attr]


def test_plain_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\n\n zwei\u2028 \xe9\nlast".encode())
    assert texts_of(read(path)) == ["one", "", " zwei\u2028 é", "last"]


def test_compressed_files_of_several_members(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\ntw") + gzip.compress(b"o\n"))
    assert texts_of(read(path)) == ["one", "two"]


def test_rows_of_csv_with_another_number_of_fields_are_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,id\none,1\ntwo\nthree,3,x\nfour,\xff\n\xff,5\n")
    [shard, _] = read(path, id_column="id", shard_rows=10)
    assert isinstance(shard, Rows)
    assert shard.texts == ["one", None, None, None, None]
    assert [row for row, _ in shard.bad] == [1, 2, 3, 4]
    assert shard.table["id"].to_pylist() == ["1", None, None, None, "5"]


def write_text(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "write", "options", "message"),
    [
        ("a.jsonl", write_text(b'{"body": "x"}\n'), {}, r"a\.jsonl has no column 'text', it has 'body'"),
        (
            "a.jsonl",
            write_text(b'{"text": "x"}\n'),
            {"keep": ["title"]},
            "none of its first 1 rows has a column 'title'",
        ),
        ("a.csv", write_text(b"body,id\nx,1\n"), {}, "no column 'text', it has 'body', 'id': correct --text-column"),
        ("a.csv", write_text(b"text\nx\n"), {"keep": ["title"]}, "no column 'title'.*--keep"),
        ("a.txt", write_text(b"x\n"), {"keep": ["title"]}, "plain lines have no column 'title'"),
        ("a.txt", write_text(b"x\n"), {"text_column": "title"}, "plain lines have no column 'title'"),
        ("a.parquet", write_text(b"PAR1 and no Parquet"), {}, r"a\.parquet cannot be read as parquet"),
        ("a.txt.gz", write_text(gzip.compress(os.urandom(9000))[:5000]), {}, "cannot be read as lines"),
        ("a.txt.zst", write_text(b"no zstd"), {}, "cannot be read as lines"),
        ("a.jsonl", write_text(b'{"text": "a", "x": 1}\n{"text": "b", "x": "c"}\n'), {"keep": ["x"]}, "no common type"),
    ],
)
def test_inputs_that_cannot_be_used(
    name: str, write: Callable[[Path], object], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name, **options)


def test_columns_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [1, 2], "body": ["a", "b"]}), path)
    with pytest.raises(InputError, match="is int64, and no text"):
        read(path)
    with pytest.raises(InputError, match="no column 'title', it has 'text', 'body'"):
        read(path, text_column="title")
    assert texts_of(read(path, text_column="body")) == ["a", "b"]


def test_another_type_in_a_later_shard_or_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x", "n": 1 if row < 5 else "one"}) + "\n" for row in range(6)))
    with pytest.raises(InputError, match="in the rows from 5 on, the column 'n' has a value that is no int64"):
        read(path, keep=["n"])
    pq.write_table(pa.table({"text": ["x"], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["x"], "n": ["one"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: .* other types than in the first input"):
        read([tmp_path / "a.parquet", tmp_path / "b.parquet"], keep=["n"])


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv", "a.txt.gz"])
@pytest.mark.parametrize("change", ["write", "truncate", "replace", "remove"])
def test_an_input_that_changes_while_it_is_read_is_found(name: str, change: str, tmp_path: Path) -> None:
    path = write_data_set(tmp_path / name)
    job = make_job(path, "out", shard_rows=5)
    items = read_shards(job, find_sources(job.inputs, None), None, Done())
    next(items)
    if change == "write":
        with path.open("ab") as stream:
            stream.write(b"more")
    elif change == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.rename(tmp_path / "moved")
        if change == "replace":
            write_data_set(path)
    with pytest.raises(InputChanged, match=r"a\.\w+(\.gz)?: was .* while it was read"):
        for _ in items:
            pass


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
def test_a_very_long_row_is_not_held(name: str, tmp_path: Path) -> None:
    size = 60_000_000
    opened: Any = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wb") as stream:
        stream.write(b'{"text": "' if "json" in name else b"")
        for _ in range(size // 1_000_000):
            stream.write("é".encode() * 500_000)
        stream.write(b'"}\n{"text": "last"}\n' if "json" in name else b"\nlast\n")
    tracemalloc.start()
    [shard, _] = read(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(shard, Rows)
    assert shard.texts[1] == "last"
    if "json" in name:
        assert "more than 16 MiB" in shard.bad[0][1]
    else:
        assert shard.texts[0] == "é" * MAX_CHARACTERS
    assert peak < 40_000_000
