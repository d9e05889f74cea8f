"""`firstvec embed`: files of texts in, files of vectors out, in shards that survive a crash."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout

from firstvec.commands.output import print_json, print_text
from firstvec.errors import InputError, MissingDependency, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from firstvec.bulk.run import Summary

INTERRUPTED = 130


def embed(
    texts: Sequence[str],
    texts_are_literal: bool,
    output: str | None,
    keep: str | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> int | None:
    """Embed a data set: Parquet, JSONL, CSV or plain lines in, a file of vectors for each shard out.

    After a crash, kill -9 or Ctrl-C, the same command goes on with the shards that are missing. The result has the
    bytes of a run that nothing has stopped. A changed input, model or option is an error that says what changed.
    """
    if output is None:
        raise InputError("--output is missing: name a folder, or a file that ends with .parquet, .jsonl or .npy")
    try:
        from firstvec.bulk.job import make_job
        from firstvec.bulk.run import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pyarrow":
            raise
        raise MissingDependency("`firstvec embed`", "pyarrow", "firstvec[bulk]") from error
    columns = tuple(name.strip() for name in keep.split(",")) if keep else ()
    job = make_job(texts, output, keep=columns, **options)
    # Ray writes what happens to its processes to stdout, which is for the summary.
    with redirect_stdout(sys.stderr) if job.ray is not None else nullcontext():
        summary = run(job, quiet=quiet or as_json)
    if as_json:
        print_json(summary.to_dict())
    elif not quiet:
        _print(summary, job.on_error)
    if summary.complete:
        return None
    sys.stderr.write(
        printable(f"firstvec embed: stopped with {summary.shards} shards done; run the same command again to go on\n")
    )
    return INTERRUPTED


def _print(summary: Summary, on_error: str) -> None:
    print_text(
        f"{summary.output}: {summary.embedded:,} vectors of {summary.rows:,} rows in {summary.shards:,} shards, "
        f"{summary.bytes_written / 1e6:,.1f} MB, by {summary.artifact} of {summary.model}"
    )
    if summary.shards_done_before:
        print_text(f"  {summary.shards_done_before:,} of the shards were done before")
    print_text(f"  {summary.seconds:,.1f} s with the load of the model, {summary.rows_per_second:,.0f} rows/s without")
    for count, what in (
        (summary.shards_damaged, "shards were damaged, and were computed again"),
        (summary.duplicates, "vectors of equal texts were not computed again"),
        (summary.cut, "texts have more than 262,144 characters, and their end was not read"),
        (summary.bad, f"rows have no usable text ({'left out' if on_error == 'skip' else 'null vectors'})"),
    ):
        if count:
            print_text(f"  {count:,} {what}")
    for bad in summary.bad_rows:
        print_text(f"    {bad['file']}: row {bad['row']} {bad['reason']}")
    if summary.bad > len(summary.bad_rows):
        print_text(f"    and {summary.bad - len(summary.bad_rows):,} more")
