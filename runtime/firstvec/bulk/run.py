"""One run: what earlier runs have done, the shards that are missing, and the summary."""

from __future__ import annotations

import os
import time
from contextlib import closing

from firstvec.bulk.checkpoint import Checkpoint, Place, open_checkpoint, remove_leftovers
from firstvec.bulk.files import as_output_errors, digest_of, write_whole
from firstvec.bulk.inputs import Source, find_sources
from firstvec.bulk.job import Job, make_job
from firstvec.bulk.pipeline import Pipeline
from firstvec.bulk.progress import make_progress
from firstvec.bulk.shards import Shards
from firstvec.bulk.writers import WRITERS
from firstvec.errors import InputError, JobChanged
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    import pyarrow as pa

    class Workers(Protocol):
        """Who does the shards that are missing."""

        about: dict[str, Any]
        """What `firstvec.bulk.worker.describe` says of the model."""

        def work(self) -> bool:
            """Do the shards that are missing. Return False if Ctrl-C has stopped the run before the last one."""

        def close(self) -> None: ...


LISTED = 100
"""So many bad rows are listed in the summary."""


class Summary(Record):
    """What the output holds after a run, and what the run did."""

    output: str
    complete: bool
    """False: Ctrl-C has stopped the run after a shard."""
    rows: int
    """Rows that were read, in all runs."""
    embedded: int
    """Rows with a vector."""
    bad: int
    """Rows without a usable text."""
    cut: int
    """Texts of more than 262,144 characters, whose end was not tokenized."""
    duplicates: int
    """Vectors that were not computed again, with ``dedupe``."""
    shards: int
    shards_done_before: int
    """Shards that this run found done."""
    shards_damaged: int
    """Shards that were noted as done, and whose file was damaged or missing. They were computed again."""
    bytes_written: int
    seconds: float
    """Of this run, with the load of the model."""
    rows_per_second: float
    """Of this run, without the load of the model."""
    model: str
    artifact: str
    bad_rows: list[dict[str, Any]]
    """The first bad rows: ``file``, ``row`` (from 0) and ``reason``."""


def embed(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    quiet: bool = True,
    **options: Any,
) -> Summary:
    """Embed the texts of files, in shards. After a crash, the same call goes on with the shards that are missing.

    Args:
        inputs: files or patterns of files: Parquet, JSONL, CSV or plain lines. ``-`` is stdin.
        output: a folder, or a file that ends with ``.parquet``, ``.jsonl`` or ``.npy``.
        quiet: False shows the progress on stderr.
        options: those of `firstvec.bulk.job.make_job`, which are those of `firstvec embed`.

    Returns:
        What was done.

    Raises:
        InputError: an option is not usable, a file or column is missing, or a file is damaged.
        RowError: a row has no usable text, with ``on_error="fail"``.
        InputChanged, JobChanged: an input was changed, or the output was begun with another job.
        OutputError, OutputInUse: the output cannot be written, or another run writes there.
        WorkerError: a worker process ended.
        KeyboardInterrupt: Ctrl-C. The shards under way are finished first. A second Ctrl-C ends the run at once.
        FirstvecError: why the model cannot be loaded.
    """
    summary = run(make_job(inputs, output, **options), quiet=quiet)
    if not summary.complete:
        raise KeyboardInterrupt
    return summary


def run(job: Job, *, quiet: bool = True, stdin: Any = None) -> Summary:
    """Do a job. The errors are those of `embed`, but Ctrl-C gives a summary that is not ``complete``."""
    began = time.perf_counter()
    sources = find_sources(job.inputs, job.input_format)
    _refuse_output_as_input(job, sources)
    place, checkpoint = open_checkpoint(job)
    try:
        return _run(job, sources, place, checkpoint, began, quiet, stdin)
    finally:
        checkpoint.close()


def _refuse_output_as_input(job: Job, sources: list[Source]) -> None:
    output = os.path.realpath(job.output)
    for source in sources:
        path = os.path.realpath(source.path)
        if path == output or (not job.single and os.path.dirname(path) == output):
            raise InputError(f"the input {source.path!r} is part of the output: choose another --output")


def _run(
    job: Job,
    sources: list[Source],
    place: Place,
    checkpoint: Checkpoint,
    began: float,
    quiet: bool,
    stdin: Any,
) -> Summary:
    done_before, damaged = _check_files(place, checkpoint)
    with make_progress(sum(source.size for source in sources), quiet=quiet) as progress:
        if done_before:
            progress.say(f"{done_before} shards are done, and the run goes on with the others")
        shards = Shards(job, sources, place, checkpoint, progress)
        with closing(_open_workers(shards, stdin)) as workers:
            shards.set_model(workers.about)
            loaded = time.perf_counter()
            is_complete = checkpoint.done.complete or workers.work()
        if is_complete and not checkpoint.done.complete:
            checkpoint.finish(_join(job, place, checkpoint, shards.schema) if job.single else None)
        if is_complete and job.single:
            _remove_shards(place)
    now = time.perf_counter()
    return _summarize(
        job,
        sources,
        checkpoint,
        complete=is_complete,
        shards_done_before=done_before,
        shards_damaged=damaged,
        seconds=round(now - began, 3),
        rows_per_second=round(progress.rows / max(now - loaded, 1e-3), 1),
    )


def _open_workers(shards: Shards, stdin: Any) -> Workers:
    if shards.job.ray is None:
        return Pipeline(shards, stdin)
    from firstvec.bulk.cluster import Cluster

    return Cluster(shards)


def _check_files(place: Place, checkpoint: Checkpoint) -> tuple[int, int]:
    """Forget shards whose file is not what was noted, remove leftovers, and return how many are done and forgotten."""
    done = checkpoint.done
    if done.complete and place.single:
        found = digest_of(place.output)
        if found == done.output:
            return len(done.shards), 0
        if found is not None:
            raise JobChanged(place.output, [("the file", str(done.output), str(found))])
    damaged = 0
    known = set()
    for key, entry in [*done.shards.items()]:
        path = os.path.join(place.shards, entry["file"])
        if digest_of(path) == {"size": entry["size"], "sha256": entry["sha256"]}:
            known.add(path)
        else:
            del done.shards[key]
            damaged += 1
    if damaged:
        done.complete = False
    remove_leftovers(place, known)
    return len(done.shards), damaged


def _join(job: Job, place: Place, checkpoint: Checkpoint, schema: pa.Schema | None) -> dict[str, Any]:
    """Make one file of the shards, beside them, and give it its name. Return its size and digest."""
    assert schema is not None
    _, join = WRITERS[job.output_format]
    described = schema
    entries = [checkpoint.done.shards[key] for key in sorted(checkpoint.done.shards)]
    paths = [os.path.join(place.shards, entry["file"]) for entry in entries]
    scratch = os.path.join(place.shards, ".joined")
    return write_whole(place.output, lambda stream: join(stream, paths, described), scratch)


def _remove_shards(place: Place) -> None:
    with as_output_errors(place.shards):
        if os.path.isdir(place.shards):
            remove_leftovers(place, set())
            os.rmdir(place.shards)


def _summarize(job: Job, sources: list[Source], checkpoint: Checkpoint, **about_run: Any) -> Summary:
    assert checkpoint.job is not None or not about_run["complete"]
    entries = [checkpoint.done.shards[key] for key in sorted(checkpoint.done.shards)]

    def total(name: str) -> int:
        return sum(entry[name] for entry in entries)

    model = checkpoint.job["model"] if checkpoint.job is not None else {"model": job.options.model_name, "artifact": ""}
    output = checkpoint.done.output
    return Summary(
        output=job.output,
        rows=total("rows"),
        embedded=total("embedded"),
        bad=total("bad"),
        cut=total("cut"),
        duplicates=total("embedded") - total("computed"),
        shards=len(entries),
        bytes_written=output["size"] if output is not None else total("size"),
        model=model["model"],
        artifact=model["artifact"],
        bad_rows=[
            {"file": sources[entry["input"]].path, "row": row, "reason": reason}
            for entry in entries
            for row, reason in entry["bad_rows"]
        ][:LISTED],
        **about_run,
    )
