"""Read, embed and write the shards that are missing, all three at once, on one machine."""

from __future__ import annotations

import queue
import threading

from firstvec.bulk.encoders import open_encoders
from firstvec.bulk.interrupts import stop_on_ctrl_c
from firstvec.bulk.readers import End, read_shards
from firstvec.bulk.rows import Rows
from firstvec.bulk.shards import Shards, write_shard
from firstvec.bulk.tables import Embedded, embed_texts, vector_type
from firstvec.errors import RowError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firstvec.bulk.encoders import Encoder

_POLL = 0.1
_ON_CTRL_C = "Ctrl-C: the shards under way are finished first; press Ctrl-C again to end at once"


class Pipeline:
    """A thread reads, a thread for each encoder computes, and the calling thread writes.

    Args:
        shards: what is done, and where it is noted.
        stdin: the binary stream in place of stdin.

    Raises:
        WorkerError, FirstvecError: as of `firstvec.bulk.encoders.open_encoders`.
    """

    def __init__(self, shards: Shards, stdin: Any = None) -> None:
        job = shards.job
        self._encoders: list[Encoder] = open_encoders(job)
        self._shards, self._stdin = shards, stdin
        self.about = self._encoders[0].about
        """What `firstvec.bulk.worker.describe` says of the model."""
        self._kind = vector_type(self.about, job.dtype, job.truncate_dim)
        self._tasks: queue.Queue[Rows | None] = queue.Queue(1)
        self._results: queue.Queue[tuple[Rows, Embedded] | End | BaseException | None] = queue.Queue(
            len(self._encoders)
        )
        self._stopping = threading.Event()
        """Ctrl-C has come: what is computed now is written, and nothing else is begun."""
        self._abandoned = threading.Event()
        """An error has come, or the second Ctrl-C: nobody reads the queues any more."""

    def work(self) -> bool:
        """Do the shards that are missing. Return False if Ctrl-C has stopped the run before the last one."""
        checkpoint = self._shards.checkpoint
        threads = [threading.Thread(target=self._read, daemon=True)]
        threads += [threading.Thread(target=self._compute, args=(each,), daemon=True) for each in self._encoders]
        ends: list[End] = []
        try:
            with stop_on_ctrl_c(self._stopping, self._shards.progress, _ON_CTRL_C):
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
                        self._write(*result)
                    if checkpoint.job is not None:  # the job is the first line
                        for end in ends:
                            checkpoint.add_end(end.source, end.rows, end.shards)
                        ends.clear()
        finally:
            self._abandoned.set()
        return not self._stopping.is_set() or self._shards.are_all_done()

    def close(self) -> None:
        """Close the model, or end the worker processes."""
        for encoder in self._encoders:
            encoder.close()

    def _write(self, rows: Rows, embedded: Embedded) -> None:
        """Write a shard, and note that it is done."""
        shards = self._shards
        schema = shards.begin(rows.table.schema)
        entry = write_shard(shards.job, schema, rows, embedded)
        if shards.sources[rows.source].is_stdin:
            entry["texts_sha256"] = rows.digest()
        shards.add(entry, rows.position)

    def _read(self) -> None:
        job, sources, checkpoint = self._shards.job, self._shards.sources, self._shards.checkpoint
        try:
            for item in read_shards(job, sources, checkpoint.kept, checkpoint.done, self._stdin):
                if self._stopping.is_set():
                    break
                if isinstance(item, End):
                    self._put(self._results, item)
                    continue
                if item.bad and job.on_error == "fail":
                    row, reason = item.bad[0]
                    raise RowError(sources[item.source].path, row, reason)
                self._put(self._tasks, item)
        except BaseException as error:
            self._put(self._results, error)
        for _ in self._encoders:
            self._put(self._tasks, None)

    def _compute(self, encoder: Encoder) -> None:
        job = self._shards.job
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
