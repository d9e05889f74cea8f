"""The formats of the output, in their edge cases. `test_run` reads what whole runs have written."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstvec.bulk.files import Hashed
from firstvec.bulk.writers import WRITERS

KIND = pa.list_(pa.float32(), 2)


def table_of(vectors: list[list[float] | None], **columns: pa.Array) -> pa.Table:
    return pa.table({**columns, "embedding": pa.array(vectors, KIND)})


def write(form: str, table: pa.Table) -> bytes:
    stream = io.BytesIO()
    WRITERS[form][0](Hashed(stream), table)
    return stream.getvalue()


def test_numbers_in_json_are_the_same_float32() -> None:
    values = [0.1, 1 / 3, 1e-30, 16777217.0, 1.5, float(np.float32(np.pi)), 3.4028235e38]
    lines = write("jsonl", table_of([[value, 1.0] for value in values])).splitlines()
    found = [np.float32(json.loads(line)["embedding"][0]) for line in lines]
    assert [each.tobytes() for each in found] == [np.float32(value).tobytes() for value in values]


def test_json_has_a_text_for_what_it_has_no_type_for() -> None:
    columns = {
        "name": pa.array(["é \u2028"]),
        "day": pa.array([datetime.date(2026, 11, 29)]),
        "data": pa.array([b"\x00\xff"]),
        "tags": pa.array([["a", None]]),
    }
    [line] = write("jsonl", table_of([None], **columns)).splitlines()
    assert json.loads(line) == {
        "name": "é \u2028",
        "day": "2026-11-29",
        "data": "AP8=",
        "tags": ["a", None],
        "embedding": None,
    }


def test_npy_has_nan_for_null() -> None:
    found = np.load(io.BytesIO(write("npy", table_of([[1, 2], None, [3, 4]]))))
    np.testing.assert_array_equal(found, np.array([[1, 2], [np.nan, np.nan], [3, 4]], np.float32))


@pytest.mark.parametrize("form", [*WRITERS])
def test_shards_become_one_file(form: str, tmp_path: Path) -> None:
    shards = [table_of([[1, 2], [3, 4]]), table_of([]), table_of([[5, 6]])]
    paths = []
    for number, shard in enumerate(shards):
        paths.append(tmp_path / f"{number}.{form}")
        paths[-1].write_bytes(write(form, shard))
    stream = io.BytesIO()
    WRITERS[form][1](Hashed(stream), [*map(str, paths)], shards[0].schema)
    if form == "parquet":
        found = pq.read_table(pa.BufferReader(stream.getvalue()))
        assert found.equals(pa.concat_tables(shards))
    else:
        whole = write(form, pa.concat_tables(shards))
        assert stream.getvalue() == whole


def test_vectors_are_stored_plain_and_other_columns_compressed() -> None:
    table = table_of([[float(row), 0.5] for row in range(1000)], title=pa.array(["the same title"] * 1000))
    metadata = pq.ParquetFile(pa.BufferReader(write("parquet", table))).metadata.row_group(0)
    title, vector = metadata.column(0), metadata.column(1)
    assert (title.compression, vector.compression) == ("ZSTD", "UNCOMPRESSED")
    assert (title.has_dictionary_page, vector.has_dictionary_page) == (True, False)
