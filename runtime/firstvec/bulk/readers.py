"""Read inputs as shards of rows: Parquet by pyarrow; JSONL, CSV and plain lines by Python's own parsers, row by row."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from codecs import getincrementaldecoder
from contextlib import contextmanager
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from firstvec.bulk.inputs import Source
from firstvec.bulk.rows import MAX_CHARACTERS, Problem, Rows, TextList, values_of
from firstvec.errors import FirstvecError, InputChanged, InputError
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from typing import Any

    from firstvec.bulk.checkpoint import Done
    from firstvec.bulk.job import Job

    TextRecord = tuple[object, dict[str, Any] | None, int]
    """A row of a text format: its text or `Problem`, its columns (None: unknown), and its size in characters."""

MAX_SHARD_CHARACTERS = 1 << 25
"""A shard ends with the row that reaches so many characters of text, however few rows it has."""
MAX_ROW_BYTES = 1 << 24
"""A longer row of JSONL or CSV is not read, because the parser would need the whole row in memory."""
_MAX_LINE_BYTES = 4 * MAX_CHARACTERS
"""Of a longer plain line, so many bytes are read. They are at least `MAX_CHARACTERS` characters."""
_BATCH_ROWS = 1024
_BUFFER = 1 << 20


class End(Record):
    """The end of an input."""

    source: int
    rows: int
    shards: int


def read_shards(
    job: Job, sources: Sequence[Source], kept: pa.Schema | None, done: Done, stdin: Any = None
) -> Iterator[Rows | End]:
    """Yield the shards that are not done, in their order, and the end of each input that is read to its end.

    A shard ends after ``job.shard_rows`` rows, after `MAX_SHARD_CHARACTERS`, or with its input. So the first row of a
    shard decides where the shard ends, and a later run finds the same shards.

    Args:
        kept: names and types of the columns that are kept, as an earlier run found them. None: the first shard decides.
        done: what earlier runs have done.
        stdin: the binary stream in place of stdin.

    Raises:
        InputError: a column is missing or has another type, or a file is damaged.
        InputChanged: a file was changed while it was read, or stdin gives other texts than it gave before.
    """
    number = 0
    for index, source in enumerate(sources):
        rows, shards = (0, 0) if source.is_stdin else done.beginning(index)
        if done.ends.get(index) == (rows, shards) and not source.is_stdin:
            number += shards
            continue
        number += shards
        begun = number - shards
        for shard in _shards_of(job, source, index, kept, rows, number, stdin):
            kept = shard.table.schema
            rows, number = shard.first + len(shard.texts), shard.number + 1
            entry = done.shards.get((index, shard.first))
            if entry is None:
                yield shard
            elif source.is_stdin and entry["texts_sha256"] != shard.digest():
                raise InputChanged("-", "stdin gives other texts than before. It was changed")
        yield End(source=index, rows=rows, shards=number - begun)
    if number == 0 and not done.shards:
        names = _kept_names(job)
        table = (kept or pa.schema([(name, pa.string()) for name in names])).empty_table()
        if job.id_column is None and kept is None:
            table = _add_places(table, "", 0, 0)
        yield Rows(number=0, source=0, first=0, texts=[], bad=[], cut=0, table=table, position=0)


def count_rows(job: Job, source: Source) -> int:
    """Return how many rows a Parquet file has.

    Raises:
        InputError: it cannot be read, or lacks a column.
    """
    return int(_open_parquet(job, source).metadata.num_rows)


def find_kept_schema(job: Job, source: Source) -> pa.Schema:
    """Return names and types of the columns that are kept, as `read_shards` finds them in a Parquet file."""
    names = _kept_names(job)
    found_there = _open_parquet(job, source).schema_arrow
    fields = [found_there.field(name) for name in names]
    table = pa.schema([pa.field(field.name, _plain_type(field.type)) for field in fields]).empty_table()
    found: pa.Schema = (_add_places(table, "", 0, 0) if job.id_column is None else table).schema
    return found


def read_shard(job: Job, source: Source, index: int, kept: pa.Schema, first: int, number: int) -> Rows:
    """Return the shard that begins at row ``first`` of a Parquet file. The errors are those of `read_shards`."""
    shards = _shards_of(job, source, index, kept, first, number, None)
    try:
        return next(shards)
    finally:
        shards.close()


def _open_parquet(job: Job, source: Source) -> pq.ParquetFile:
    with _as_input_errors(source, -1):
        opened = pq.ParquetFile(source.path)
    _check_columns([job.text_column, *_kept_names(job)], opened.schema_arrow.names, source)
    return opened


def _shards_of(
    job: Job, source: Source, index: int, kept: pa.Schema | None, first: int, number: int, stdin: Any
) -> Generator[Rows, None, None]:
    """Yield the shards of one input from row ``first`` on, as it was found by `find_sources`."""
    file = (stdin or sys.stdin.buffer) if source.is_stdin else _open(source)
    # A descriptor of its own, because Arrow's decompression closes the file that it has read to its end.
    descriptor = -1 if source.is_stdin else os.dup(file.fileno())
    try:
        with _as_input_errors(source, descriptor):
            read = _read_parquet if source.format == "parquet" else _read_text
            for texts, table, position in read(job, source, file, kept, first):
                source.check_unchanged(descriptor)
                if job.id_column is None:
                    table = _add_places(table, source.path, texts.first, len(texts.texts))
                if kept is not None and table.schema != kept:
                    table = _cast(table, kept, source)
                kept = table.schema
                yield Rows(
                    number=number,
                    source=index,
                    first=texts.first,
                    texts=texts.texts,
                    bad=texts.bad,
                    cut=texts.cut,
                    table=table,
                    position=position,
                )
                number += 1
            source.check_unchanged(descriptor)
    finally:
        if not source.is_stdin:
            file.close()
            os.close(descriptor)


def _open(source: Source) -> Any:
    try:
        return open(source.path, "rb")
    except OSError as error:
        raise InputChanged(source.path, f"was taken away ({error.strerror})") from error


@contextmanager
def _as_input_errors(source: Source, descriptor: int) -> Iterator[None]:
    """Raise what a parser raises as InputChanged if the file was changed, else as InputError."""
    try:
        yield
    except (OSError, EOFError, ValueError, csv.Error, pa.ArrowException) as error:
        if isinstance(error, FirstvecError):
            raise
        if descriptor >= 0:
            source.check_unchanged(descriptor)
        raise InputError(
            f"{source.path} cannot be read as {source.format} ({error}): repair the file, or give its --input-format"
        ) from error


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _read_parquet(
    job: Job, source: Source, file: Any, kept: pa.Schema | None, first: int
) -> Iterator[tuple[TextList, pa.Table, int]]:
    # Without pre_buffer, and with a buffer, a column is streamed page by page, and not held as a whole row group.
    opened = pq.ParquetFile(source.path, pre_buffer=False, buffer_size=_BUFFER)
    source.check_unchanged(file.fileno())  # the two openings have found the same file
    names = _kept_names(job)
    _check_columns([job.text_column, *names], opened.schema_arrow.names, source)
    groups: list[int] = []
    skipped = 0
    for group in range(opened.num_row_groups):
        rows = opened.metadata.row_group(group).num_rows
        if not groups and skipped + rows <= first:
            skipped += rows
        else:
            groups.append(group)
    total = max(1, opened.metadata.num_rows)
    columns = [*dict.fromkeys([job.text_column, *names])]
    batches = opened.iter_batches(min(_BATCH_ROWS, job.shard_rows), row_groups=groups, columns=columns)
    schema = pa.schema([opened.schema_arrow.field(name) for name in names]).remove_metadata()
    shard, size = TextList(first), 0
    pieces: list[pa.RecordBatch] = []
    for batch in batches:
        if skipped < first:
            dropped = min(first - skipped, batch.num_rows)
            batch, skipped = batch.slice(dropped), skipped + dropped
        begin = 0
        for place, value in enumerate(values_of(batch.column(job.text_column)), 1):
            shard.add(value)
            size += len(value) if isinstance(value, (str, bytes)) else 0
            if len(shard.texts) == job.shard_rows or size >= MAX_SHARD_CHARACTERS:
                pieces.append(batch.slice(begin, place - begin))
                done = shard.first + len(shard.texts)
                yield shard, _join(pieces, names, schema, source), source.size * done // total
                shard, size, pieces, begin = TextList(done), 0, [], place
        if begin < batch.num_rows:
            pieces.append(batch.slice(begin))
    if shard.texts:
        yield shard, _join(pieces, names, schema, source), source.size


def _join(pieces: list[pa.RecordBatch], names: Sequence[str], schema: pa.Schema, source: Source) -> pa.Table:
    """Return the kept columns of a shard as one table, without what pandas and others noted in the schema."""
    tables = [pa.table([piece.column(name) for name in names], names=[*names]) for piece in pieces]
    if not names:
        return pa.table({})
    table = pa.concat_tables(tables).combine_chunks()
    table = table.cast(pa.schema([pa.field(field.name, _plain_type(field.type)) for field in table.schema]))
    table.validate(full=True)  # a string that is no UTF-8 would be found by the reader of the output
    return table


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


# --- Text formats ----------------------------------------------------------------------------------------------------


def _read_text(
    job: Job, source: Source, file: Any, kept: pa.Schema | None, first: int
) -> Iterator[tuple[TextList, pa.Table, int]]:
    plain: Any = file if source.compression is None else pa.CompressedInputStream(file, source.compression)
    stream: Any = io.BufferedReader(plain, _BUFFER) if source.compression is not None else plain
    names = _kept_names(job)
    records = islice(_RECORDS[source.format](job, stream, source), first, None)
    types = {name: kept.field(name).type for name in names} if kept is not None else None
    while True:
        shard, size = TextList(first), 0
        values: dict[str, list[Any]] = {name: [] for name in names}
        missing = {*names}
        for value, others, weight in records:
            shard.add(value)
            for name in names:
                values[name].append(None if others is None else others.get(name))
            if missing and others is not None:
                missing.difference_update(others)
            size += weight
            if len(shard.texts) == job.shard_rows or size >= MAX_SHARD_CHARACTERS:
                break
        if not shard.texts:
            return
        if types is None:
            if missing:
                raise InputError(
                    f"{source.path}: none of its first {len(shard.texts)} rows has a column {min(missing)!r}: "
                    "correct --id-column or --keep"
                )
            types = {name: _infer(name, values[name], source) for name in names}
        arrays = [_to_array(name, values[name], types[name], source, first) for name in names]
        yield shard, pa.table(arrays, names=names), 0 if source.is_stdin else file.tell()
        first += len(shard.texts)


def _infer(name: str, values: list[Any], source: Source) -> pa.DataType:
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError) as error:
        raise InputError(
            f"{source.path}: the values of {name!r} have no common type ({error}): leave the column out"
        ) from error
    return pa.string() if pa.types.is_null(kind) else kind


def _to_array(name: str, values: list[Any], kind: pa.DataType, source: Source, first: int) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise InputError(
            f"{source.path}: in the rows from {first} on, the column {name!r} has a value that is no {kind}, the type "
            f"of the first shard ({error}): leave the column out, or make it one type"
        ) from error


def _lines(stream: Any, limit: int) -> Iterator[tuple[bytes, bool]]:
    """Yield each line with its end, at most ``limit`` bytes of it, and whether something was cut off."""
    is_first = True
    while line := stream.readline(limit + 2):
        is_long = not line.endswith(b"\n") and len(line) > limit
        rest = line if is_long else b""
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(_BUFFER)
        if is_first:
            line, is_first = line.removeprefix(b"\xef\xbb\xbf"), False
        yield (line[:limit], True) if is_long else (line, False)


def _read_lines(job: Job, stream: Any, source: Source) -> Iterator[TextRecord]:
    if names := [*_kept_names(job), *([job.text_column] if job.text_column != "text" else [])]:
        raise InputError(
            f"{source.path}: plain lines have no column {names[0]!r}: leave --text-column, --id-column and --keep out"
        )
    for line, is_long in _lines(stream, _MAX_LINE_BYTES):
        value: object = line.removesuffix(b"\n").removesuffix(b"\r")
        if is_long:  # the cut may be inside of a character
            try:
                value = getincrementaldecoder("utf-8")().decode(line)
            except UnicodeDecodeError as error:
                value = Problem(f"is not UTF-8 (byte {error.start} of the text)")
        yield value, {}, len(line)


def _read_jsonl(job: Job, stream: Any, source: Source) -> Iterator[TextRecord]:
    is_first = True
    for line, is_long in _lines(stream, MAX_ROW_BYTES):
        if is_long:
            yield Problem(f"has more than {MAX_ROW_BYTES >> 20} MiB, the most of a row of JSONL"), None, _BUFFER
            continue
        if not line.strip():
            continue
        try:
            document = json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield Problem(f"is not UTF-8 (byte {error.start} of the line)"), None, len(line)
            continue
        except (ValueError, RecursionError) as error:
            yield Problem(f"is not JSON ({error})"), None, len(line)
            continue
        if not isinstance(document, dict):
            yield Problem(f"is {type(document).__name__}, and no object"), None, len(line)
            continue
        if is_first:
            _check_columns([job.text_column], [*document], source)
            is_first = False
        if job.text_column not in document:
            yield Problem(f"has no {job.text_column!r}"), document, len(line)
        else:
            yield document[job.text_column], document, len(line)


def _read_csv(job: Job, stream: Any, source: Source) -> Iterator[TextRecord]:
    def lines() -> Iterator[str]:
        for line, is_long in _lines(stream, MAX_ROW_BYTES):
            if is_long:
                raise csv.Error(f"line {parser.line_num + 1} has more than {MAX_ROW_BYTES >> 20} MiB")
            yield line.decode("utf-8", "surrogateescape")

    # The limit belongs to the process. Python's own is 131,072 characters, fewer than a text may have.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    parser = csv.reader(lines())
    header = next(parser, None)
    if header is None:
        return
    names = _kept_names(job)
    _check_columns([job.text_column, *names], header, source)
    text, places = header.index(job.text_column), {name: header.index(name) for name in names}
    for row in parser:
        if not row:  # an empty line
            continue
        weight = sum(map(len, row))
        if len(row) != len(header):
            yield Problem(f"has {len(row)} fields, and the first line has {len(header)}"), None, weight
            continue
        others = {name: row[place] for name, place in places.items()}
        try:
            "".join(others.values()).encode()
        except UnicodeEncodeError:
            yield Problem("is not UTF-8 in a column that is kept"), None, weight
            continue
        yield row[text], others, weight


_RECORDS = {"lines": _read_lines, "jsonl": _read_jsonl, "csv": _read_csv}


# --- Columns ---------------------------------------------------------------------------------------------------------


def _kept_names(job: Job) -> list[str]:
    return [*([job.id_column] if job.id_column is not None else []), *job.keep]


def _check_columns(asked: Sequence[str], found: Sequence[str], source: Source) -> None:
    for name in asked:
        if name not in found:
            shown = ", ".join(map(repr, found[:20])) or "none"
            option = "--text-column" if name == asked[0] else "--id-column or --keep"
            raise InputError(f"{source.path} has no column {name!r}, it has {shown}: correct {option}")


def _add_places(table: pa.Table, path: str, first: int, count: int) -> pa.Table:
    """Put the columns ``file`` and ``row`` before the others."""
    places = [pa.repeat(path, count), pa.array(range(first, first + count), pa.int64())]
    return pa.table([*places, *table.columns], names=["file", "row", *table.column_names])


def _cast(table: pa.Table, kept: pa.Schema, source: Source) -> pa.Table:
    try:
        return table.cast(kept)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(
            f"{source.path}: the columns {table.schema.names} have other types than in the first input ({error}): "
            "give the inputs the same types, or leave the columns out"
        ) from error
