"""The file of a shard, its line in the checkpoint, and which shards are missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from firstvec.bulk.checkpoint import open_checkpoint
from firstvec.bulk.files import digest_of
from firstvec.bulk.inputs import find_sources
from firstvec.bulk.job import make_job
from firstvec.bulk.progress import Progress
from firstvec.bulk.rows import Rows
from firstvec.bulk.shards import LISTED_IN_SHARD, Shards, write_shard
from firstvec.bulk.tables import Embedded, schema_of
from tests.runtime.bulk.conftest import write_data_set

ABOUT: dict[str, Any] = {
    **{"model": "m", "revision": "1", "artifact": "a", "artifact_sha256": "0", "engine": "e", "quality": {}},
    **{"embedding_dim": 2, "normalized": True, "batch_invariant": True},
}


def make_rows(bad: int = 0) -> tuple[Rows, Embedded]:
    """Return a shard of the second input whose first rows are bad."""
    count = 30
    vectors = pa.array([None] * bad + [[1.0, 0.0]] * (count - bad), pa.list_(pa.float32(), 2))
    rows = Rows(
        number=3,
        source=1,
        first=60,
        texts=[None] * bad + ["a"] * (count - bad),
        bad=[(60 + row, "is null") for row in range(bad)],
        cut=1,
        table=pa.table({"id": range(count)}),
        position=10,
    )
    return rows, Embedded(column=vectors, rows=None, computed=1)


def test_a_shard_is_a_file_and_a_line(tmp_path: Path) -> None:
    job = make_job("a.parquet", tmp_path, id_column="id", on_error="null", dedupe=True)
    rows, embedded = make_rows(bad=LISTED_IN_SHARD + 5)
    schema = schema_of(rows.table.schema, ABOUT, "float32", None, False, "none")
    entry = write_shard(job, schema, rows, embedded, str(tmp_path / ".scratch"))
    assert os.listdir(tmp_path) == [entry["file"]] == ["part-00003.parquet"]
    assert digest_of(str(tmp_path / entry["file"])) == {"size": entry["size"], "sha256": entry["sha256"]}
    facts = {"shard": 3, "input": 1, "first_row": 60, "rows": 30, "embedded": 5, "computed": 1, "cut": 1, "bad": 25}
    assert {name: entry[name] for name in facts} == facts
    assert entry["bad_rows"] == [[60 + row, "is null"] for row in range(LISTED_IN_SHARD)]
    assert pq.read_table(tmp_path / entry["file"]).schema.equals(schema, check_metadata=False)


def test_shards_that_are_noted_are_done(tmp_path: Path) -> None:
    inputs = [write_data_set(tmp_path / "a.parquet"), write_data_set(tmp_path / "b.parquet")]
    job = make_job(inputs, tmp_path / "out", id_column="id")
    place, checkpoint = open_checkpoint(job)
    try:
        sources = find_sources(job.inputs, None)
        progress = Progress(sum(source.size for source in sources))
        shards = Shards(job, sources, place, checkpoint, progress)
        shards.set_model(ABOUT)
        assert not shards.are_all_done()
        rows, embedded = make_rows()
        schema = shards.begin(rows.table.schema)
        assert schema.names == ["id", "embedding"]
        shards.add(write_shard(job, schema, rows.replace(first=0), embedded), 10)
        assert (progress.rows, progress.bytes) == (30, sources[0].size + 10)
        checkpoint.add_end(0, 0, 0)
        checkpoint.add_end(1, 30, 1)
        assert shards.are_all_done()
    finally:
        checkpoint.close()
