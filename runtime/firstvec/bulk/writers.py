"""The formats of the output: how one shard is written, and how the shards become one file."""

from __future__ import annotations

import base64
import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from firstvec.bulk.files import Hashed

    Write = Callable[[Hashed, pa.Table], None]
    Join = Callable[[Hashed, Sequence[str], pa.Schema], None]

_COPIED = 1 << 20


def _parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Return how columns are stored. Compression and dictionaries make vectors no smaller, and take time."""
    others = [name for name in schema.names if name != "embedding"]
    return {
        "compression": dict.fromkeys(others, "zstd") | {"embedding.list.element": "none"},
        "use_dictionary": others or False,
        "write_statistics": others or False,
        "store_schema": True,
    }


def write_parquet(stream: Hashed, table: pa.Table) -> None:
    """Write a shard as a Parquet file of one row group."""
    with pq.ParquetWriter(pa.PythonFile(stream, "w"), table.schema, **_parquet_options(table.schema)) as writer:
        writer.write_table(table, row_group_size=max(1, table.num_rows))


def join_parquet(stream: Hashed, paths: Sequence[str], schema: pa.Schema) -> None:
    """Write one Parquet file. Each shard becomes a row group."""
    with pq.ParquetWriter(pa.PythonFile(stream, "w"), schema, **_parquet_options(schema)) as writer:
        for path in paths:
            table = pq.read_table(path, memory_map=False)
            if table.num_rows:
                writer.write_table(table.cast(schema), row_group_size=table.num_rows)


def write_jsonl(stream: Hashed, table: pa.Table) -> None:
    """Write a line of JSON for each row. A vector's numbers have the fewest digits that mean the same float32."""
    names = table.schema.names[:-1]
    texts = _vector_texts(_vectors_of(table))
    rows = table.select(names).to_pylist() if names else [{}] * table.num_rows
    for row, text in zip(rows, texts, strict=True):
        head = json.dumps(row, ensure_ascii=False, default=_plain)[:-1]
        separator = ", " if names else ""
        stream.write(f'{head}{separator}"embedding": {"null" if text is None else f"[{text}]"}}}\n'.encode())


def _vectors_of(table: pa.Table) -> pa.Array:
    """Return the vectors of a table as one array. A shard has them in one piece."""
    chunks = table.column("embedding").chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays([pa.array([], table.schema[-1].type), *chunks])


def _vector_texts(vectors: pa.Array) -> list[str | None]:
    """Return each vector's numbers as text. Arrow does it, because Python takes longer than the model."""
    size = vectors.type.list_size
    filled = vectors.drop_null()
    numbers = filled.flatten()
    if pa.types.is_float16(numbers.type):
        numbers = numbers.cast(pa.float32())
    lists = pa.ListArray.from_arrays(
        pa.array(range(0, size * len(filled) + 1, size), pa.int32()), numbers.cast(pa.string())
    )
    found = iter(pc.binary_join(lists, ", ").to_pylist())
    return [next(found) if valid else None for valid in vectors.is_valid().to_pylist()]


def _plain(value: Any) -> Any:
    """Return a value that JSON has no type for as text: bytes in base64, times in ISO 8601."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def join_jsonl(stream: Hashed, paths: Sequence[str], _schema: pa.Schema) -> None:
    """Write the lines of all shards."""
    for path in paths:
        with open(path, "rb") as shard:
            while chunk := shard.read(_COPIED):
                stream.write(chunk)


def write_npy(stream: Hashed, table: pa.Table) -> None:
    """Write the vectors as an array, (N, D). A null vector is NaN."""
    import numpy

    column = _vectors_of(table)
    kind = column.type
    array = numpy.full((table.num_rows, kind.list_size), 0, kind.value_type.to_pandas_dtype())
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if not valid.all():
        array[~valid] = numpy.nan
    array[valid] = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, kind.list_size)
    _write_npy_header(stream, table.num_rows, kind)
    stream.write(array.data)


def _write_npy_header(stream: Hashed, rows: int, kind: pa.DataType) -> None:
    import io

    import numpy

    header = io.BytesIO()
    dtype = numpy.dtype(kind.value_type.to_pandas_dtype())
    description = {"descr": numpy.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    numpy.lib.format.write_array_header_1_0(header, description | {"shape": (rows, kind.list_size)})
    stream.write(header.getvalue())


def join_npy(stream: Hashed, paths: Sequence[str], schema: pa.Schema) -> None:
    """Write one array of all shards."""
    import numpy

    kind = schema.field("embedding").type
    arrays = [numpy.load(path, mmap_mode="r") for path in paths]
    _write_npy_header(stream, sum(map(len, arrays)), kind)
    del arrays
    for path in paths:
        stream.write(numpy.load(path).data)


WRITERS: dict[str, tuple[Write, Join]] = {
    "parquet": (write_parquet, join_parquet),
    "jsonl": (write_jsonl, join_jsonl),
    "npy": (write_npy, join_npy),
}
"""Format → the functions that write a shard, and that make one file of the shards."""
