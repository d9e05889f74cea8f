"""Vectors as an Arrow column, and the table that is written: the columns that are kept, then ``embedding``."""

from __future__ import annotations

import json

import pyarrow as pa

from firstvec.bulk.rows import TextList, values_of
from firstvec.bulk.worker import describe
from firstvec.errors import InputError, RowError
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from firstvec.provider import EmbeddingProvider

_TYPES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}
METADATA_KEY = b"firstvec"
"""Key of the schema's metadata whose value is JSON: what the vectors are and how good they are."""


class Embedded(Record):
    """What became of the texts of one table."""

    column: pa.Array
    """Fixed-size lists, one for each row that is written. Null: the row had no text."""
    rows: list[int] | None
    """The rows that are written, by their place. None: all."""
    computed: int
    """Texts whose vectors were computed. Without duplicates if ``dedupe``."""


def vector_type(about: dict[str, Any], dtype: str, truncate_dim: int | None) -> pa.DataType:
    """Return the type of the column: fixed-size lists of ``dtype``. Of ``binary`` a number has eight components."""
    dim = min(about["embedding_dim"], truncate_dim or about["embedding_dim"])
    return pa.list_(_TYPES[dtype], -(-dim // 8) if dtype == "binary" else dim)


def embed_texts(
    texts: Sequence[str | None],
    encode: Callable[[list[str]], Any],
    kind: pa.DataType,
    *,
    dedupe: bool,
    skip: bool,
) -> Embedded:
    """Compute the vectors of texts.

    Args:
        texts: None: the row has no text.
        encode: texts → a buffer of their numbers.
        kind: `vector_type`. float16 is made of the float32 that ``encode`` gives.
        dedupe: compute the vector of equal texts once.
        skip: leave rows without a text out. Otherwise their vector is null.
    """
    given = [text for text in texts if text is not None]
    place_of: dict[str, int] = {}
    if dedupe:
        for each in given:
            place_of.setdefault(each, len(place_of))
        wanted = [*place_of]
    else:
        wanted = given
    vectors = _as_column(encode(wanted) if wanted else b"", len(wanted), kind)
    if len(given) == len(texts) and len(wanted) == len(given):
        return Embedded(column=vectors, rows=None, computed=len(wanted))
    places: list[int | None] = []
    rows: list[int] = []
    count = 0
    for row, text in enumerate(texts):
        if text is None:
            if skip:
                continue
            places.append(None)
        else:
            places.append(place_of[text] if dedupe else count)
            count += 1
        rows.append(row)
    column = vectors.take(pa.array(places, pa.int64()))
    return Embedded(column=column, rows=rows if len(rows) < len(texts) else None, computed=len(wanted))


def _as_column(buffer: Any, count: int, kind: pa.DataType) -> pa.Array:
    """Return the numbers as an array of fixed-size lists, over the same memory where the type is the same."""
    if pa.types.is_float16(kind.value_type):
        import numpy

        buffer = numpy.frombuffer(buffer, numpy.float32).astype(numpy.float16)
    else:
        buffer = memoryview(buffer).cast("B") if count else b""
    numbers = pa.Array.from_buffers(kind.value_type, count * kind.list_size, [None, pa.py_buffer(buffer)])
    return pa.FixedSizeListArray.from_arrays(numbers, type=kind)


def schema_of(
    kept: pa.Schema, about: dict[str, Any], dtype: str, truncate_dim: int | None, normalize: bool, prompt: str
) -> pa.Schema:
    """Return the schema of the output. Its metadata says what the vectors are, and how good the build measured them."""
    kind = vector_type(about, dtype, truncate_dim)
    facts = {
        **{name: about[name] for name in ("model", "revision", "artifact", "artifact_sha256", "engine")},
        "embedding_dim": min(about["embedding_dim"], truncate_dim or about["embedding_dim"]),
        "dtype": dtype,
        "normalized": normalize or (about["normalized"] and not truncate_dim),
        "prompt": prompt,
        "quality": about["quality"],
    }
    fields = [*kept, pa.field("embedding", kind)]
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(facts, sort_keys=True)})


def output_table(table: pa.Table, embedded: Embedded, schema: pa.Schema) -> pa.Table:
    """Return the table that is written."""
    if embedded.rows is not None and table.num_columns:
        table = table.take(pa.array(embedded.rows, pa.int64()))
    return pa.table([*table.columns, embedded.column], schema=schema)


def embed_table(
    provider: EmbeddingProvider[Any, Any],
    table: pa.Table | pa.RecordBatch,
    *,
    text_column: str = "text",
    keep: Sequence[str] | None = None,
    dtype: str = "float32",
    truncate_dim: int | None = None,
    normalize: bool = False,
    query: bool = False,
    document: bool = False,
    prompt_name: str | None = None,
    on_error: str = "fail",
    dedupe: bool = False,
    batch_size: int = 32,
) -> pa.Table:
    """Embed the texts of an Arrow table, and return the kept columns and ``embedding``.

    Args:
        provider: the loaded model.
        table: a `pyarrow.Table` or `RecordBatch`.
        text_column: column of the texts: strings, or UTF-8 in bytes.
        keep: columns of the result. None: all of the table.
        dtype: ``float32``, ``float16``, ``int8`` or ``binary`` (packed bits, in uint8).
        truncate_dim: keep the first components only (Matryoshka models).
        normalize: scale vectors to unit length.
        query: put the model's prompt for queries before each text.
        document: put the model's prompt for documents before each text.
        prompt_name: put this prompt before each text.
        on_error: a row without a usable text: ``fail``, ``skip`` leaves it out, ``null`` gives a null vector.
        dedupe: compute the vector of equal texts once.
        batch_size: as of `EmbeddingProvider.encode`.

    Returns:
        A table whose column ``embedding`` has fixed-size lists, and whose schema names model, artifact and quality.

    Raises:
        InputError: a column is missing, or an argument is not usable.
        RowError: a row has no usable text, with ``on_error="fail"``.
        FirstvecError: as of `EmbeddingProvider.encode`.
    """
    from firstvec.bulk.job import make_job
    from firstvec.bulk.worker import encode_with

    names = [*table.schema.names] if keep is None else [*keep]
    for name in (text_column, *names):
        if name not in table.schema.names:
            raise InputError(f"the table has no column {name!r}, it has {', '.join(map(repr, table.schema.names))}")
    job = make_job(
        "-",
        "table",
        text_column=text_column,
        id_column=names[0] if names else None,
        keep=names[1:],
        dtype=dtype,
        truncate_dim=truncate_dim,
        normalize=normalize,
        query=query,
        document=document,
        prompt_name=prompt_name,
        on_error=on_error,
        batch_size=batch_size,
    )
    collected = TextList()
    for value in values_of(table.column(text_column)):
        collected.add(value)
    if collected.bad and on_error == "fail":
        raise RowError("the table", *collected.bad[0])
    about = describe(provider)
    encode = encode_with(provider, job.prompt, job.encode_arguments())
    kind = vector_type(about, dtype, truncate_dim)
    embedded = embed_texts(collected.texts, encode, kind, dedupe=dedupe, skip=on_error == "skip")
    kept = pa.table([table.column(name) for name in names], names=names)
    schema = schema_of(kept.schema, about, dtype, truncate_dim, normalize, job.prompt)
    return output_table(kept, embedded, schema)
