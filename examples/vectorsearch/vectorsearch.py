"""Embed a Parquet data set with `firstvec embed`, and search its files with DuckDB and with sqlite-vec.

    python vectorsearch.py data docs.parquet                     # paragraphs of Python's own help texts
    firstvec embed docs.parquet --output vectors --id-column id --keep topic,text
    python vectorsearch.py duckdb vectors "how do I repeat a block of statements"
    python vectorsearch.py sqlite vectors "how do I repeat a block of statements"

DuckDB searches the files as they are. sqlite-vec searches a table that is made of the files once: the files' floats
are its floats. Needs: pip install 'firstvec[bulk]' duckdb sqlite-vec apsw
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from firstvec import get_embedding_provider, preload_embeddings


def write_data(path: Path) -> None:
    """Write the paragraphs of Python's help texts: columns id, topic and text."""
    from pydoc_data.topics import topics

    rows = [
        (topic, " ".join(paragraph.split()))
        for topic in sorted(topics)
        for paragraph in topics[topic].split("\n\n")
        if len(paragraph) > 80
    ]
    columns = {
        "id": range(len(rows)),
        "topic": [topic for topic, _ in rows],
        "text": [text for _, text in rows],
    }
    pq.write_table(pa.table(columns), path)
    print(f"{path}: {len(rows)} rows")


def artifact_of(vectors: Path) -> str:
    """Return the artifact that has embedded the files. The query must have a vector of the same artifact."""
    schema = pq.read_schema(next(vectors.glob("part-*.parquet")))
    artifact: str = json.loads(schema.metadata[b"firstvec"])["artifact"]
    return artifact


def search_duckdb(vectors: Path, query: Any, top: int) -> list[tuple[float, str, str]]:
    """Return the nearest texts: DuckDB reads the Parquet files."""
    import duckdb

    dim = len(query)
    rows: list[tuple[float, str, str]] = duckdb.execute(
        f"SELECT array_cosine_similarity(embedding::FLOAT[{dim}], ?::FLOAT[{dim}]) AS score, topic, text "
        "FROM read_parquet(?) ORDER BY score DESC LIMIT ?",
        [query.tolist(), str(vectors / "*.parquet"), top],
    ).fetchall()
    return rows


def search_sqlite(vectors: Path, query: Any, top: int) -> list[tuple[float, str, str]]:
    """Return the nearest texts from a database beside the files, which the first search makes."""
    import apsw  # Python's own sqlite3 is often built without extensions
    import sqlite_vec

    path = vectors / "_search.db"  # readers of Parquet pass over names that begin with an underscore
    is_new = not path.exists()
    database = apsw.Connection(str(path))
    database.enable_load_extension(True)
    sqlite_vec.load(database)
    if is_new:
        with database:
            database.execute(f"CREATE VIRTUAL TABLE vectors USING vec0(embedding float[{len(query)}])")
            database.execute("CREATE TABLE texts(id INTEGER PRIMARY KEY, topic, text)")
            for batch in pq.ParquetDataset(vectors).read().to_batches():
                floats = batch.column("embedding").flatten().to_numpy().reshape(-1, len(query))
                rows = zip(*(batch.column(name).to_pylist() for name in ("id", "topic", "text")), strict=True)
                for row, vector in zip(rows, floats, strict=True):
                    database.execute("INSERT INTO texts VALUES (?, ?, ?)", row)
                    database.execute("INSERT INTO vectors(rowid, embedding) VALUES (?, ?)", (row[0], vector.tobytes()))
    found = database.execute(
        "SELECT distance, topic, text FROM (SELECT rowid, distance FROM vectors WHERE embedding MATCH ? AND k = ?) "
        "JOIN texts ON texts.id = rowid ORDER BY distance",
        (query.tobytes(), top),
    )
    # Of vectors of unit length: cosine = 1 - distance² / 2.
    return [(1 - distance**2 / 2, topic, text) for distance, topic, text in found]


def main() -> int:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("data", "duckdb", "sqlite"))
    parser.add_argument("place", type=Path, help="the data set to write, or the folder of vectors to search")
    parser.add_argument("query", nargs="?", help="what to search for")
    parser.add_argument("--top", type=int, default=3)
    options = parser.parse_args()
    if options.command == "data":
        write_data(options.place)
        return 0
    if not options.query:
        parser.error("the query is missing")
    if not [*options.place.glob("part-*.parquet")]:
        print(f"{options.place} has no vectors: run `firstvec embed` first", file=sys.stderr)
        return 2
    artifact = artifact_of(options.place)
    preload_embeddings(artifact=artifact)
    search = search_duckdb if options.command == "duckdb" else search_sqlite
    query = get_embedding_provider(artifact=artifact).embed_query(options.query)
    for score, topic, text in search(options.place, query, options.top):
        print(f"{score:.3f}  {topic}: {text[:100]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
