"""A small data set, in each format that can be read, and the vectors that its texts have."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstvec import OptimizedEmbeddingLoader
from firstvec.bulk import Summary, embed

TEXTS = [f"text number {index}, about {'things ' * (index % 7)}" for index in range(23)]
Embed = Callable[..., Summary]


@pytest.fixture
def vectors(tiny_built: Path) -> np.ndarray:
    """The vectors of `TEXTS`, as a program computes them in memory."""
    loader = OptimizedEmbeddingLoader(str(tiny_built), "background")
    vectors: np.ndarray = loader.get_provider().encode(TEXTS)
    return vectors


@pytest.fixture
def embed_tiny(tiny_built: Path) -> Embed:
    """`firstvec.bulk.embed` with the tiny model and shards of five rows."""

    def run(inputs: Any, output: Path, **options: Any) -> Summary:
        return embed(inputs, output, **{"model": tiny_built, "shard_rows": 5} | options)

    return run


def write_jsonl(path: Path, texts: Any = TEXTS) -> Path:
    lines = [json.dumps({"id": index, "text": text, "half": index / 2}) + "\n" for index, text in enumerate(texts)]
    path.write_text("".join(lines), "utf-8")
    return path


def write_data_set(path: Path) -> Path:
    """Write `TEXTS` with an id, in the format that the name asks for."""
    if path.suffix == ".parquet":
        table = pa.table({"id": range(len(TEXTS)), "text": TEXTS, "half": [index / 2 for index in range(len(TEXTS))]})
        pq.write_table(table, path, row_group_size=7)
        return path
    plain = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    if plain.suffix == ".jsonl":
        write_jsonl(plain)
    elif plain.suffix == ".csv":
        with plain.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["id", "text", "half"])
            writer.writerows([index, text, index / 2] for index, text in enumerate(TEXTS))
    else:
        plain.write_text("".join(f"{text}\n" for text in TEXTS), "utf-8")
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
    elif path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(plain.read_bytes())
    if plain != path:
        plain.unlink()
    return path


def read_vectors(path: Path, column: str = "embedding") -> np.ndarray:
    """Return the vectors of a Parquet file, or of a folder of such files."""
    found = pq.read_table(path)[column].combine_chunks()
    rows = found.flatten().to_numpy(zero_copy_only=False).reshape(-1, found.type.list_size)
    return np.asarray(rows)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the name and content of each file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
