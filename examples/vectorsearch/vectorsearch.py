"""Embed a Parquet data set with `firstvec embed`, and search its files with DuckDB and with sqlite-vec.

    python vectorsearch.py data docs.parquet                     # paragraphs of Python's own help texts
    firstvec embed docs.parquet --output vectors --id-column id --keep topic,text
    python vectorsearch.py duckdb vectors "how do I repeat a block of statements"
    python vectorsearch.py sqlite vectors "how do I repeat a block of statements"

DuckDB searches the files as they are. sqlite-vec searches a table that is made of the files once.
Needs: pip install 'firstvec[bulk]' duckdb sqlite-vec apsw
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from firstvec import get_embedding_provider, preload_embeddings

Hit = tuple[float, str, str]
"""Cosine, topic and text."""


def write_data(path: Path) -> None:
    """Write the paragraphs of Python's help texts: columns id, topic and text."""
    from pydoc_data.topics import topics

    import pyarrow as pa
    import pyarrow.parquet as pq

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
    import pyarrow.parquet as pq

    schema = pq.read_schema(next(vectors.glob("part-*.parquet")))
    artifact: str = json.loads(schema.metadata[b"firstvec"])["artifact"]
    return artifact


def search_duckdb(vectors: Path, text: str, top: int) -> list[Hit]:
    """Return the nearest texts: DuckDB reads the Parquet files."""
    artifact = artifact_of(vectors)
    preload_embeddings(artifact=artifact, output="list")
    import duckdb

    query = get_embedding_provider(artifact=artifact, output="list").embed_query(text)
    dim = len(query)
    rows: list[Hit] = duckdb.execute(
        f"SELECT array_cosine_similarity(embedding::FLOAT[{dim}], ?::FLOAT[{dim}]) AS score, topic, text "
        "FROM read_parquet(?) ORDER BY score DESC LIMIT ?",
        [query, str(vectors / "*.parquet"), top],
    ).fetchall()
    return rows


def search_sqlite(vectors: Path, text: str, top: int) -> list[Hit]:
    """Return the nearest texts from a database beside the files, which the first search makes.

    The later searches import neither pyarrow nor numpy, because the import of numpy takes longer than the first vector.
    """
    import apsw  # Python's own sqlite3 is often built without extensions

    # Readers of Parquet pass over names that begin with an underscore.
    database = apsw.Connection(str(vectors / "_search.db"))
    # `import sqlite_vec` would import numpy. The extension needs only its path.
    package = find_spec("sqlite_vec")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("sqlite-vec is not installed: pip install sqlite-vec")
    database.enable_load_extension(True)
    database.load_extension(str(Path(package.submodule_search_locations[0], "vec0")))
    if not [*database.execute("SELECT 1 FROM sqlite_master WHERE name = 'about'")]:
        fill(database, vectors)
    ((artifact,),) = database.execute("SELECT artifact FROM about")
    preload_embeddings(artifact=artifact, output="buffer")
    query = get_embedding_provider(artifact=artifact, output="buffer").embed_query(text)
    found = database.execute(
        "SELECT distance, topic, text FROM (SELECT rowid, distance FROM vectors WHERE embedding MATCH ? AND k = ?) "
        "JOIN texts ON texts.id = rowid ORDER BY distance",
        (query, top),
    )
    # Of vectors of unit length: cosine = 1 - distance² / 2.
    return [(1 - distance**2 / 2, topic, text) for distance, topic, text in found]


def fill(database: Any, vectors: Path) -> None:
    """Make the tables of the files: the files' floats are the database's floats."""
    import pyarrow.parquet as pq

    data = pq.ParquetDataset(vectors).read()
    dim = data.schema.field("embedding").type.list_size
    with database:
        database.execute("CREATE TABLE about(artifact)")
        database.execute("INSERT INTO about VALUES (?)", (artifact_of(vectors),))
        database.execute(f"CREATE VIRTUAL TABLE vectors USING vec0(embedding float[{dim}])")
        database.execute("CREATE TABLE texts(id INTEGER PRIMARY KEY, topic, text)")
        for batch in data.to_batches():
            floats = batch.column("embedding").flatten().to_numpy().reshape(-1, dim)
            rows = zip(*(batch.column(name).to_pylist() for name in ("id", "topic", "text")), strict=True)
            for row, vector in zip(rows, floats, strict=True):
                database.execute("INSERT INTO texts VALUES (?, ?, ?)", row)
                database.execute("INSERT INTO vectors(rowid, embedding) VALUES (?, ?)", (row[0], vector.tobytes()))


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
    search = search_duckdb if options.command == "duckdb" else search_sqlite
    for score, topic, text in search(options.place, options.query, options.top):
        print(f"{score:.3f}  {topic}: {text[:100]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
