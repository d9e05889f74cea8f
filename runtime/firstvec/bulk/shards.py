"""A shard of the output: its file, and what the checkpoint notes of it."""

from __future__ import annotations

import json
import os

from firstvec.bulk.checkpoint import Checkpoint, Place
from firstvec.bulk.files import write_whole
from firstvec.bulk.inputs import Source
from firstvec.bulk.job import Job
from firstvec.bulk.progress import Progress
from firstvec.bulk.rows import Rows
from firstvec.bulk.tables import Embedded, output_table, schema_of
from firstvec.bulk.writers import WRITERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    import pyarrow as pa

LISTED_IN_SHARD = 20
"""So many bad rows of a shard are listed in the checkpoint. All are counted."""


def write_shard(
    job: Job, schema: pa.Schema, rows: Rows, embedded: Embedded, scratch: str | None = None
) -> dict[str, Any]:
    """Write the file of a shard, and return the shard's line of the checkpoint.

    Args:
        schema: of the output.
        scratch: as of `firstvec.bulk.files.write_whole`.

    Raises:
        OutputError: as of `firstvec.bulk.files.write_whole`.
    """
    write, _ = WRITERS[job.output_format]
    path = Place(job).shard(rows.number)
    table = output_table(rows.table, embedded, schema)
    written = write_whole(path, lambda stream: write(stream, table), scratch)
    return {
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


class Shards:
    """The shards of a run: the job, where its parts lie, and what is noted as done."""

    def __init__(
        self,
        job: Job,
        sources: list[Source],
        place: Place,
        checkpoint: Checkpoint,
        progress: Progress,
    ) -> None:
        self.job, self.sources, self.place, self.checkpoint, self.progress = job, sources, place, checkpoint, progress
        self._about: dict[str, Any] = {}
        self.schema: pa.Schema | None = None
        """Of the output. None: nobody knows the columns that are kept yet."""

    def set_model(self, about: dict[str, Any]) -> None:
        """Compare the job with that of the first run. ``about`` is what `firstvec.bulk.worker.describe` says.

        Raises:
            JobChanged: another input, model or option.
        """
        self._about = json.loads(json.dumps(about))
        self.checkpoint.check_job(self._identities(), self._about, self.job.settings())
        if (kept := self.checkpoint.kept) is not None:
            self.schema = self.find_schema(kept)
        done = self.checkpoint.done
        self.progress.begin_at(sum(source.size for index, source in enumerate(self.sources) if index in done.ends))

    def begin(self, kept: pa.Schema) -> pa.Schema:
        """Note the job, if no earlier run has, and return the schema of the output."""
        if self.schema is None:
            self.schema = self.find_schema(kept)
        self.checkpoint.begin(self._identities(), self._about, self.job.settings(), kept)
        return self.schema

    def find_schema(self, kept: pa.Schema) -> pa.Schema:
        """Return the schema of the output for the columns that are kept."""
        job = self.job
        return schema_of(kept, self._about, job.dtype, job.truncate_dim, job.normalize, job.prompt)

    def add(self, entry: dict[str, Any], position: int) -> None:
        """Note that a shard is done, and that its input was read to ``position``."""
        self.checkpoint.add_shard(entry)
        before = sum(source.size for source in self.sources[: entry["input"]])
        self.progress.advance(entry["rows"], before + position)

    def are_all_done(self) -> bool:
        """Return whether no shard is missing."""
        done = self.checkpoint.done
        return all(done.ends.get(index) == done.beginning(index) for index in range(len(self.sources)))

    def _identities(self) -> list[dict[str, Any]]:
        return [source.identity() for source in self.sources]
