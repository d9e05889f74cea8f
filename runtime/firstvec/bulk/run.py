"""One run: read, embed and write the shards that are missing, all three at once, and note each that is done."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from contextlib import contextmanager

from firstvec.bulk.checkpoint import Checkpoint, Place, open_checkpoint, remove_leftovers
from firstvec.bulk.encoders import open_encoders
from firstvec.bulk.files import as_output_errors, digest_of, write_whole
from firstvec.bulk.inputs import Source, find_sources
from firstvec.bulk.job import Job, make_job
from firstvec.bulk.progress import Progress, make_progress
from firstvec.bulk.readers import End, read_shards
from firstvec.bulk.rows import Rows
from firstvec.bulk.tables import Embedded, embed_texts, output_table, schema_of, vector_type
from firstvec.bulk.writers import WRITERS
from firstvec.errors import InputError, JobChanged, RowError
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    import pyarrow as pa

    from firstvec.bulk.encoders import Encoder

LISTED_IN_SHARD = 20
"""So many bad rows of a shard are listed in the checkpoint. All are counted."""
LISTED = 100
"""So many bad rows are listed in the summary."""
_POLL = 0.1


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
    identities = [source.identity() for source in sources]
    done_before, damaged = _check_files(place, checkpoint)
    with make_progress(sum(source.size for source in sources), quiet=quiet) as progress:
        if done_before:
            progress.say(f"{done_before} shards are done, and the run goes on with the others")
        encoders = open_encoders(job)
        about = json.loads(json.dumps(encoders[0].about))
        pipeline = _Pipeline(job, sources, place, checkpoint, about, progress, encoders, stdin)
        try:
            checkpoint.check_job(identities, about, job.settings())
            loaded = time.perf_counter()
            is_complete = checkpoint.done.complete or pipeline.work(identities)
        finally:
            for encoder in encoders:
                encoder.close()
        if is_complete and not checkpoint.done.complete:
            checkpoint.finish(_join(job, place, checkpoint, pipeline.schema) if job.single else None)
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


class _Pipeline:
    """A thread reads, a thread for each encoder computes, and the calling thread writes."""

    def __init__(
        self,
        job: Job,
        sources: list[Source],
        place: Place,
        checkpoint: Checkpoint,
        about: dict[str, Any],
        progress: Progress,
        encoders: list[Encoder],
        stdin: Any,
    ) -> None:
        self._job, self._sources, self._place, self._checkpoint = job, sources, place, checkpoint
        self._about, self._progress, self._encoders, self._stdin = about, progress, encoders, stdin
        self._kind = vector_type(about, job.dtype, job.truncate_dim)
        self.schema: pa.Schema | None = None
        self._tasks: queue.Queue[Rows | None] = queue.Queue(1)
        self._results: queue.Queue[tuple[Rows, Embedded] | End | BaseException | None] = queue.Queue(len(encoders))
        self._stopping = threading.Event()
        """Ctrl-C has come: what is computed now is written, and nothing else is begun."""
        self._abandoned = threading.Event()
        """An error has come, or the second Ctrl-C: nobody reads the queues any more."""

    def work(self, identities: list[dict[str, Any]]) -> bool:
        """Do the shards that are missing. Return False if Ctrl-C has stopped the run before the last one."""
        if (kept := self._checkpoint.kept) is not None:
            self._set_schema(kept)
        threads = [threading.Thread(target=self._read, daemon=True)]
        threads += [threading.Thread(target=self._compute, args=(each,), daemon=True) for each in self._encoders]
        self._progress.begin_at(self._position_before())
        ends: list[End] = []
        try:
            with self._stop_on_ctrl_c():
                for thread in threads:
                    thread.start()
                left = len(self._encoders)
                while left:
                    result = self._results.get()
                    if isinstance(result, BaseException):
                        raise result
                    if result is None:
                        left -= 1
                    elif isinstance(result, End):
                        ends.append(result)
                    else:
                        self._write(*result, identities)
                    if self._checkpoint.job is not None:  # the job is the first line
                        for end in ends:
                            self._checkpoint.add_end(end.source, end.rows, end.shards)
                        ends.clear()
        finally:
            self._abandoned.set()
        return not self._stopping.is_set() or self._has_all()

    def _position_before(self) -> int:
        done = self._checkpoint.done
        return sum(source.size for index, source in enumerate(self._sources) if index in done.ends)

    def _has_all(self) -> bool:
        done = self._checkpoint.done
        return all(done.ends.get(index) == done.beginning(index) for index in range(len(self._sources)))

    def _set_schema(self, kept: pa.Schema) -> None:
        job = self._job
        self.schema = schema_of(kept, self._about, job.dtype, job.truncate_dim, job.normalize, job.prompt)

    def _read(self) -> None:
        job, checkpoint = self._job, self._checkpoint
        try:
            for item in read_shards(job, self._sources, checkpoint.kept, checkpoint.done, self._stdin):
                if self._stopping.is_set():
                    break
                if isinstance(item, End):
                    self._put(self._results, item)
                    continue
                if item.bad and job.on_error == "fail":
                    row, reason = item.bad[0]
                    raise RowError(self._sources[item.source].path, row, reason)
                self._put(self._tasks, item)
        except BaseException as error:
            self._put(self._results, error)
        for _ in self._encoders:
            self._put(self._tasks, None)

    def _compute(self, encoder: Encoder) -> None:
        job = self._job
        try:
            while (rows := self._take_task()) is not None:
                if self._stopping.is_set():
                    continue
                skip = job.on_error == "skip"
                embedded = embed_texts(rows.texts, encoder.encode, self._kind, dedupe=job.dedupe, skip=skip)
                self._put(self._results, (rows, embedded))
        except BaseException as error:
            self._put(self._results, error)
        self._put(self._results, None)

    def _take_task(self) -> Rows | None:
        while not self._abandoned.is_set():
            try:
                return self._tasks.get(timeout=_POLL)
            except queue.Empty:
                pass
        return None

    def _put(self, items: queue.Queue[Any], item: object) -> None:
        while not self._abandoned.is_set():
            try:
                return items.put(item, timeout=_POLL)
            except queue.Full:
                pass
        return None

    def _write(self, rows: Rows, embedded: Embedded, identities: list[dict[str, Any]]) -> None:
        """Write a shard, and note that it is done."""
        job, checkpoint = self._job, self._checkpoint
        if self.schema is None:
            self._set_schema(rows.table.schema)
        checkpoint.begin(identities, self._about, job.settings(), rows.table.schema)
        write, _ = WRITERS[job.output_format]
        path = self._place.shard(rows.number)
        assert self.schema is not None
        table = output_table(rows.table, embedded, self.schema)
        written = write_whole(path, lambda stream: write(stream, table))
        entry = {
            "shard": rows.number,
            "file": os.path.basename(path),
            "input": rows.source,
            "first_row": rows.first,
            "rows": len(rows.texts),
            **written,
            "embedded": len(rows.texts) - len(rows.bad),
            "computed": embedded.computed,
            "cut": rows.cut,
            "bad": len(rows.bad),
            "bad_rows": [list(each) for each in rows.bad[:LISTED_IN_SHARD]],
        }
        if self._sources[rows.source].is_stdin:
            entry["texts_sha256"] = rows.digest()
        checkpoint.add_shard(entry)
        before = sum(source.size for source in self._sources[: rows.source])
        self._progress.advance(len(rows.texts), before + rows.position)

    @contextmanager
    def _stop_on_ctrl_c(self) -> Iterator[None]:
        """Let the first Ctrl-C finish the shards under way, and the second one end the run at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(_number: int, _frame: object) -> None:
            self._stopping.set()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._progress.say("Ctrl-C: the shards under way are finished first; press Ctrl-C again to end at once")

        before = signal.getsignal(signal.SIGINT)
        if before is not signal.default_int_handler:  # the program has a handler of its own, or ignores Ctrl-C
            yield
            return
        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


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
