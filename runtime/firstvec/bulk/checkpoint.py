"""The checkpoint of a run: what it embeds and with what, and which shards are done.

The checkpoint is a file of JSON lines to which a run only adds. The first line is the job. A shard adds its line after
its file has its name and is on the disk. A line that a killed run has left unfinished does not count. So a run costs
one short write a shard, however many shards there are. The file is the lock, too: the kernel drops the lock with its
process.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os

import pyarrow as pa

from firstvec.bulk.files import as_output_errors, sync_folder, write_whole
from firstvec.errors import InputError, JobChanged, OutputError, OutputInUse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firstvec.bulk.job import Job

FORMAT = 1


class Place:
    """Where the parts of an output lie."""

    def __init__(self, job: Job) -> None:
        self.output = job.output
        self.single = job.single
        folder, name = os.path.split(job.output)
        if job.single:
            self.shards = os.path.join(folder, f".{name}.firstvec")
            self.checkpoint = f"{job.output}.firstvec.jsonl"
        else:
            self.shards = job.output
            # Readers of folders of Parquet pass over names that begin with an underscore.
            self.checkpoint = os.path.join(job.output, "_firstvec.jsonl")
        self._ending = job.output_format

    def shard(self, number: int) -> str:
        """Return the path of a shard."""
        return os.path.join(self.shards, f"part-{number:05d}.{self._ending}")

    def is_ours(self, name: str) -> bool:
        """Return whether a file of the folder of the shards is one that a run writes there."""
        return name.startswith(("part-", ".part-", "._firstvec", ".joined")) or name == "_firstvec.jsonl"


class Done:
    """What earlier runs have done."""

    def __init__(self) -> None:
        self.shards: dict[tuple[int, int], dict[str, Any]] = {}
        """(Index of the input, first row) → the shard's line."""
        self.ends: dict[int, tuple[int, int]] = {}
        """Index of an input that was read to its end → its rows and shards."""
        self.output: dict[str, Any] | None = None
        """``size`` and ``sha256`` of the single file, once it was written."""
        self.complete = False

    def beginning(self, source: int) -> tuple[int, int]:
        """Return how many rows and shards at the beginning of an input are done without a gap."""
        rows = shards = 0
        while (entry := self.shards.get((source, rows))) is not None and entry["rows"]:
            rows, shards = rows + entry["rows"], shards + 1
        return rows, shards


class Checkpoint:
    """The open and locked checkpoint of an output."""

    def __init__(self, place: Place, descriptor: int) -> None:
        self._place = place
        self._descriptor = descriptor
        self.job: dict[str, Any] | None = None
        """The first line. None: no shard was begun."""
        self.done = Done()

    @property
    def kept(self) -> pa.Schema | None:
        """The columns that are kept, as the first run found them."""
        if self.job is None:
            return None
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.job["kept_schema"])))

    def read(self) -> None:
        """Read what earlier runs have done, and cut an unfinished line off.

        Raises:
            OutputError: the file is no checkpoint.
        """
        with as_output_errors(self._place.checkpoint):
            with open(os.dup(self._descriptor), "rb") as stream:
                stream.seek(0)
                data = stream.read()
            whole = data[: data.rfind(b"\n") + 1]
            lines = whole.splitlines()
            try:
                documents = [json.loads(line) for line in lines]
                for document in documents:
                    self._take(document)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise OutputError(
                    self._place.checkpoint,
                    f"is no checkpoint of this firstvec ({error})",
                    "begin anew with --overwrite",
                ) from error
            if len(whole) < len(data):
                os.ftruncate(self._descriptor, len(whole))

    def _take(self, line: dict[str, Any]) -> None:
        if "firstvec_embed" in line:
            if line["firstvec_embed"] != FORMAT:
                raise ValueError(f"format {line['firstvec_embed']!r}")
            self.job = line
        elif "end_of_input" in line:
            self.done.ends[line["end_of_input"]] = (line["rows"], line["shards"])
        elif "shard" in line:
            self.done.shards[line["input"], line["first_row"]] = line
        elif "on_error" in line:
            assert self.job is not None
            self.job["settings"]["on_error"] = line["on_error"]
        else:
            self.done.complete = line["complete"]
            self.done.output = line["output"]

    def check_job(self, sources: list[dict[str, Any]], model: dict[str, Any], settings: dict[str, Any]) -> None:
        """Compare the job with that of the first run, if there was one.

        Raises:
            JobChanged: another input, model or option.
        """
        if self.job is None:
            return
        changes = []
        before = self.job
        if len(before["inputs"]) != len(sources):
            changes.append(("number of inputs", str(len(before["inputs"])), str(len(sources))))
        for index, (was, now) in enumerate(zip(before["inputs"], sources, strict=False)):
            changes += _differences(f"input {index} ({now['path']}): ", was, now)
        changes += _differences("model: ", before["model"], model)
        was, now = before["settings"], settings
        if was["on_error"] == "fail" != now["on_error"]:  # no shard that is done has a bad row
            was = was | {"on_error": now["on_error"]}
            if not changes and was == now:
                self._append({"on_error": now["on_error"]})
                before["settings"] = was
        changes += _differences("option ", was, now)
        if changes:
            raise JobChanged(self._place.output, changes)

    def begin(
        self,
        sources: list[dict[str, Any]],
        model: dict[str, Any],
        settings: dict[str, Any],
        kept: pa.Schema,
    ) -> None:
        """Write the first line, if no earlier run has."""
        if self.job is None:
            schema = base64.b64encode(kept.serialize().to_pybytes()).decode()
            first = {"firstvec_embed": FORMAT, "inputs": sources, "model": model, "settings": settings}
            self.job = first | {"kept_schema": schema}
            self._append(self.job)

    def add_shard(self, entry: dict[str, Any]) -> None:
        """Note that a shard is done. Its file is on the disk."""
        self._append(entry)
        self.done.shards[entry["input"], entry["first_row"]] = entry

    def add_end(self, source: int, rows: int, shards: int) -> None:
        """Note how many rows an input has."""
        if source not in self.done.ends:
            self._append({"end_of_input": source, "rows": rows, "shards": shards})
            self.done.ends[source] = (rows, shards)

    def finish(self, output: dict[str, Any] | None) -> None:
        """Write the checkpoint anew, in the order of the shards: the same bytes, however often the run was stopped."""
        assert self.job is not None
        ends = [
            {"end_of_input": source, "rows": rows, "shards": shards}
            for source, (rows, shards) in sorted(self.done.ends.items())
        ]
        shards = [self.done.shards[key] for key in sorted(self.done.shards)]
        lines = [self.job, *shards, *ends, {"complete": True, "output": output}]
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        write_whole(self._place.checkpoint, lambda stream: stream.write(data))
        self.done.complete, self.done.output = True, output

    def _append(self, line: dict[str, Any]) -> None:
        with as_output_errors(self._place.checkpoint):
            if not _is_same(self._descriptor, self._place.checkpoint):
                raise FileNotFoundError(2, "No such file or directory", self._place.checkpoint)
            before = os.lseek(self._descriptor, 0, os.SEEK_END)
            data = json.dumps(line).encode() + b"\n"
            try:
                if os.write(self._descriptor, data) < len(data):
                    raise OSError(28, "No space left on device")
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, before)
                raise

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)


def open_checkpoint(job: Job) -> tuple[Place, Checkpoint]:
    """Make the folder of the output, and open, lock and read the checkpoint.

    Raises:
        OutputInUse: another run has the lock.
        OutputError: the folder cannot be made or written.
        InputError: something else is in the output's place.
    """
    place = Place(job)
    with as_output_errors(job.output):
        os.makedirs(place.shards, exist_ok=True)
        while True:
            is_new = not os.path.exists(place.checkpoint)
            if is_new and not job.overwrite:
                _refuse_others(place)
            descriptor = os.open(place.checkpoint, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if not _lock(descriptor):
                os.close(descriptor)
                raise OutputInUse(job.output)
            # Another run may have finished meanwhile, and put another file there.
            if _is_same(descriptor, place.checkpoint):
                break
            os.close(descriptor)
        checkpoint = Checkpoint(place, descriptor)
        try:
            if job.overwrite:
                os.ftruncate(descriptor, 0)
                _remove_output(place)
            sync_folder(os.path.dirname(place.checkpoint))
            checkpoint.read()
        except BaseException:
            checkpoint.close()
            raise
    return place, checkpoint


def _refuse_others(place: Place) -> None:
    """Refuse an output that no run has begun."""
    if place.single:
        if os.path.lexists(place.output):
            raise InputError(f"{place.output!r} is there already, and no checkpoint beside it: take --overwrite")
    elif others := sorted(os.listdir(place.shards)):
        raise InputError(
            f"{place.output!r} is not empty ({others[0]!r} is in it), and has no checkpoint: choose an empty folder, "
            "or take --overwrite, which removes files of the names that firstvec writes"
        )


def _remove_output(place: Place) -> None:
    """Remove the files of earlier runs."""
    for name in os.listdir(place.shards):
        path = os.path.join(place.shards, name)
        if place.is_ours(name) and path != place.checkpoint:
            os.unlink(path)
    if place.single and os.path.isfile(place.output):
        os.unlink(place.output)


def remove_leftovers(place: Place, known: set[str]) -> None:
    """Remove what a killed run has left: files that were not finished, or not noted."""
    with as_output_errors(place.shards):
        for name in os.listdir(place.shards):
            path = os.path.join(place.shards, name)
            if place.is_ours(name) and path not in known and path != place.checkpoint:
                os.unlink(path)


def _lock(descriptor: int) -> bool:
    """Lock the file for this process. Return False if another process has the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # the file system has no locks: two runs at once are then the user's care
    return True


def _is_same(descriptor: int, path: str) -> bool:
    try:
        named, opened = os.stat(path), os.fstat(descriptor)
    except OSError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _differences(prefix: str, was: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (f"{prefix}{name}", repr(was.get(name)), repr(now.get(name)))
        for name in now
        if was.get(name) != now.get(name) and name not in _EXPLAINED_BY_OTHERS
    ]


_EXPLAINED_BY_OTHERS = ("quality", "normalized")
"""Facts of the model that change with its digest only."""
