"""Arrow tables in and out: what a Ray actor or another program uses in place of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from firstvec import EmbeddingProvider, OptimizedEmbeddingLoader
from firstvec.bulk import embed_table
from firstvec.bulk.tables import embed_texts
from firstvec.errors import InputError, RowError
from tests.runtime.bulk.conftest import TEXTS


@pytest.fixture
def provider(tiny_built: Path) -> EmbeddingProvider[Any, Any]:
    return OptimizedEmbeddingLoader(str(tiny_built), "background").get_provider()


def numbers_of(table: pa.Table) -> np.ndarray:
    column = table["embedding"].combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size))


@pytest.mark.parametrize("as_batch", [False, True])
def test_a_table_gets_the_vectors_of_encode(
    as_batch: bool, provider: EmbeddingProvider[Any, Any], vectors: np.ndarray
) -> None:
    table: Any = pa.table({"text": TEXTS, "n": range(23)})
    found = embed_table(provider, table.to_batches()[0] if as_batch else table)
    assert found.column_names == ["text", "n", "embedding"]
    np.testing.assert_array_equal(numbers_of(found), vectors)
    facts = json.loads(found.schema.metadata[b"firstvec"])
    assert facts["artifact"] == provider.artifact.id
    assert embed_table(provider, table, keep=[]).column_names == ["embedding"]


def test_the_column_is_over_the_memory_of_the_vectors(provider: EmbeddingProvider[Any, Any]) -> None:
    kept: list[Any] = []

    def encode(texts: list[str]) -> Any:
        kept.append(provider.encode(texts, output="buffer"))
        return kept[0]

    found = embed_texts(TEXTS, encode, pa.list_(pa.float32(), 32), dedupe=False, skip=False)
    address = np.asarray(kept[0]).__array_interface__["data"][0]
    assert found.column.flatten().buffers()[1].address == address


def test_bad_rows_and_wrong_arguments(provider: EmbeddingProvider[Any, Any], vectors: np.ndarray) -> None:
    table = pa.table({"text": [*TEXTS[:3], None], "n": range(4)})
    with pytest.raises(RowError, match="the table: row 3"):
        embed_table(provider, table)
    assert embed_table(provider, table, on_error="null")["embedding"].to_pylist()[3] is None
    skipped = embed_table(provider, table, on_error="skip", dtype="float16")
    np.testing.assert_array_equal(numbers_of(skipped), vectors[:3].astype(np.float16))
    assert skipped["n"].to_pylist() == [0, 1, 2]
    with pytest.raises(InputError, match="no column 'body', it has 'text', 'n'"):
        embed_table(provider, table, text_column="body")
    with pytest.raises(InputError, match="unknown dtype"):
        embed_table(provider, table, dtype="float64")


def test_equal_texts_are_computed_once(provider: EmbeddingProvider[Any, Any], vectors: np.ndarray) -> None:
    seen: list[int] = []

    def encode(texts: list[str]) -> Any:
        seen.append(len(texts))
        return provider.encode(texts, output="buffer")

    texts = [TEXTS[0], None, TEXTS[1], TEXTS[0], TEXTS[0]]
    found = embed_texts(texts, encode, pa.list_(pa.float32(), 32), dedupe=True, skip=True)
    assert (seen, found.computed, found.rows) == ([2], 2, [0, 2, 3, 4])
    np.testing.assert_array_equal(np.array(found.column.to_pylist(), np.float32), vectors[[0, 1, 0, 0]])
