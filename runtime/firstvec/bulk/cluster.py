"""Do the shards of a job on a Ray cluster: Ray Data hands them to actors, and each actor reads, embeds and writes.

The checkpoint, the shards and their bytes are those of `firstvec.bulk.pipeline`. So a run may go on without the
cluster, and a run on the cluster may go on with what one machine has begun. Ray's own checkpoints do not serve, because
they know nothing of model and options, need a column of unique ids, hold all ids in memory, and give files new names.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import socket
import uuid
from contextlib import closing, contextmanager
from importlib.util import find_spec
from itertools import count

import pyarrow as pa

from firstvec.bulk.checkpoint import Place, remove_leftovers
from firstvec.bulk.embedder import load_on_node, name_node
from firstvec.bulk.files import scratch_name
from firstvec.bulk.pipeline import Pipeline
from firstvec.bulk.readers import count_rows, find_kept_schema, read_shard
from firstvec.bulk.shards import Shards, write_shard
from firstvec.bulk.tables import embed_texts, vector_type
from firstvec.bulk.worker import describe, encode_with, load
from firstvec.errors import FirstvecError, InputError, MissingDependency, OutputError, RowError, WorkerError
from firstvec.machine.limits import usable_cores

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from firstvec.bulk.inputs import Source
    from firstvec.bulk.job import Job

_MOST_BLOCKS = 10_000
"""Ray Data holds a few kilobytes for each block of its input, so a block of a larger job has several shards."""
_CONNECT_SECONDS = 5.0
_REASON = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)\b.*: ")
"""A line that names an exception. Ray's messages end with advice about Ray."""


class Cluster:
    """Does the shards of a job on a Ray cluster.

    Args:
        shards: what is done, and where it is noted.

    Raises:
        MissingDependency: Ray is not installed.
        InputError: an input is not Parquet, or lacks a column.
        WorkerError: there is no cluster at the address.
        FirstvecError: why this machine cannot load the model. It needs the bundle, too.
    """

    def __init__(self, shards: Shards) -> None:
        job = shards.job
        if find_spec("ray") is None:
            raise MissingDependency("`firstvec embed --ray`", "ray", "firstvec[ray]")
        for source in shards.sources:
            if source.format != "parquet":
                raise InputError(f"{source.path!r} is {source.format}, and --ray reads Parquet only: leave --ray out")
        self._shards = shards
        provider = load(job.options)
        self.about = describe(provider)
        """What `firstvec.bulk.worker.describe` says of the model."""
        provider.close()
        self._started = _connect(job)

    def work(self) -> bool:
        """Do the shards that are missing. Return False if Ctrl-C has stopped the run before the last one."""
        shards, job = self._shards, self._shards.job
        counts = [count_rows(job, source) for source in shards.sources]
        if not sum(counts):  # one file without rows is written
            with closing(Pipeline(shards)) as pipeline:
                return pipeline.work()
        missing = _find_missing(shards, counts)
        first = next(source for source, rows in zip(shards.sources, counts, strict=True) if rows)
        kept = shards.checkpoint.kept
        kept = find_kept_schema(job, first) if kept is None else kept
        schema = shards.find_schema(kept)
        try:
            for entry in self._run(missing, schema) if missing else ():
                self._check_written(entry)
                source = shards.sources[entry["input"]]
                done = entry["first_row"] + entry["rows"]
                shards.begin(kept)
                shards.add(entry, source.size * done // counts[entry["input"]])
        except KeyboardInterrupt:
            shards.progress.say("Ctrl-C: the run stops, and the next one does the shards under way")
            return False
        for index, rows in enumerate(counts):
            shards.checkpoint.add_end(index, rows, -(-rows // job.shard_rows))
        known = {os.path.join(shards.place.shards, entry["file"]) for entry in shards.checkpoint.done.shards.values()}
        remove_leftovers(shards.place, known)  # of actors that were killed
        return True

    def close(self) -> None:
        """Leave the cluster, and stop it if this run has started it."""
        if self._started:
            import ray

            ray.shutdown()

    def _run(self, missing: list[dict[str, int]], schema: pa.Schema) -> Iterator[dict[str, Any]]:
        """Yield the line of each shard, as it is done.

        Raises:
            FirstvecError: what an actor raised.
        """
        import ray.data

        shards = self._shards
        # Each node takes the artifact that this machine has chosen, or says that it cannot.
        job = shards.job.replace(options=shards.job.options.replace(artifact=self.about["artifact"]))
        arguments = (job, shards.sources, self.about, schema, os.getcwd())
        processors = int(ray.cluster_resources().get("CPU", 0))
        if not processors:
            raise WorkerError("the Ray cluster has no processor: start it, or a node of it, with at least one")
        actors = job.workers or processors
        with _quiet_ray_data():
            dataset = ray.data.from_items(missing, override_num_blocks=min(len(missing), _MOST_BLOCKS)).map_batches(
                ShardActor,
                fn_constructor_args=arguments,
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(actors, len(missing))),
                num_cpus=1,
            )
            try:
                batches: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
                for batch in batches:
                    for result in batch.column("result").to_pylist():
                        entry = pickle.loads(result)
                        if isinstance(entry, FirstvecError):
                            raise entry
                        yield entry
            except ray.exceptions.RayError as error:
                raise WorkerError(
                    f"the Ray cluster could not go on ({_find_reason(error)}); the shards that are done stay: "
                    "run the same command again"
                ) from error

    def _check_written(self, entry: dict[str, Any]) -> None:
        """Raise OutputError if this machine does not see the file that a node has written."""
        path = os.path.join(self._shards.place.shards, entry["file"])
        try:
            size = os.stat(path).st_size
        except OSError:
            size = -1
        node = entry.pop("node")
        if size != entry["size"]:
            raise OutputError(
                path,
                f"the node {node} wrote it, and this machine does not see it",
                "choose an --output on storage that all nodes share, and run the same command again",
            )


class ShardActor:
    """Reads, embeds and writes shards on a node. Ray Data makes one in each actor.

    An error is a result like any other, because Ray Data would wrap it, and lose its type.
    """

    def __init__(
        self,
        job: Job,
        sources: list[Source],
        about: dict[str, Any],
        schema: pa.Schema,
        folder: str,
    ) -> None:
        self._job, self._sources, self._schema = job, sources, schema
        self._kept = pa.schema([*schema][:-1])
        self._error: FirstvecError | None = None
        try:
            if os.path.isdir(folder):
                os.chdir(folder)  # relative paths are those of the program that has started the run
            provider = load_on_node(job.options)
            if (found := describe(provider)) != about:
                raise name_node(_explain_difference(about, found))
        except FirstvecError as error:
            self._error = error
            return
        self._encode = encode_with(provider, job.prompt, job.encode_arguments())
        self._kind = vector_type(about, job.dtype, job.truncate_dim)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Do shards. A row of the table has ``number``, ``source``, ``first`` and ``rows``."""
        results = [pickle.dumps(self._try(**row)) for row in table.to_pylist()]
        return pa.table({"result": pa.array(results, pa.binary())})

    def _try(self, number: int, source: int, first: int, rows: int) -> dict[str, Any] | FirstvecError:
        if self._error is not None:
            return self._error
        try:
            return self._make(number, source, first, rows) | {"node": socket.gethostname()}
        except FirstvecError as error:
            return name_node(error)

    def _make(self, number: int, source: int, first: int, expected: int) -> dict[str, Any]:
        job, path = self._job, self._sources[source].path
        rows = read_shard(job, self._sources[source], source, self._kept, first, number)
        if len(rows.texts) != expected:
            raise InputError(
                f"{path}: the {expected} rows from {first} on have too many characters for one shard: "
                "begin anew with --overwrite and fewer --shard-rows"
            )
        if rows.bad and job.on_error == "fail":
            row, reason = rows.bad[0]
            raise RowError(path, row, reason)
        skip = job.on_error == "skip"
        embedded = embed_texts(rows.texts, self._encode, self._kind, dedupe=job.dedupe, skip=skip)
        # An actor that Ray gave up, and that is still alive, may write the same shard.
        scratch = f"{scratch_name(Place(job).shard(number))}.{uuid.uuid4().hex}"
        return write_shard(job, self._schema, rows, embedded, scratch)


def _find_missing(shards: Shards, counts: list[int]) -> list[dict[str, int]]:
    """Return the shards that are not done: ``number``, ``source`` (an index), ``first`` and ``rows``.

    Raises:
        InputError: the shards that are done have other limits.
    """
    job, done = shards.job, shards.checkpoint.done.shards
    planned, numbers = [], count()
    for source, rows in enumerate(counts):
        for first in range(0, rows, job.shard_rows):
            entry = {"source": source, "first": first, "rows": min(job.shard_rows, rows - first)}
            planned.append({"number": next(numbers), **entry})
    places = {(each["source"], each["first"]): each["rows"] for each in planned}
    if any(places.get(key) != entry["rows"] for key, entry in done.items()):
        raise InputError(
            f"{job.output}: a run on one machine has ended some shards early, because they have many characters: "
            "go on without --ray, or begin anew with --overwrite and fewer --shard-rows"
        )
    return [each for each in planned if (each["source"], each["first"]) not in done]


def _find_reason(error: Exception) -> str:
    """Return the line of Ray's message that says what happened."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return next((line for line in reversed(lines) if _REASON.match(line)), lines[0])


def _explain_difference(expected: dict[str, Any], found: dict[str, Any]) -> WorkerError:
    names = ", ".join(name for name in expected if expected[name] != found.get(name))
    return WorkerError(
        f"the bundle there is another one than on the machine that has started the run ({names} differ): "
        "give all nodes the same bundle, and the same version of the engine"
    )


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Let Ray Data draw no bar and write no line, because the run has a progress of its own."""
    import ray.data

    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, level = before
        logger.setLevel(level)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Send what Ray's C++ part writes to nowhere: it announces the level of its log."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _connect(job: Job) -> bool:
    """Join the cluster of the job. Return whether the connection is this run's own.

    Raises:
        WorkerError: there is no cluster at the address, or none can be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends statistics of its use otherwise
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of the C++ part, which writes to stderr
    import ray

    host, _, port = str(job.ray).rpartition(":")
    if ray.is_initialized():
        address = ray.get_runtime_context().gcs_address
        if host and address != job.ray:
            raise InputError(
                f"this program is connected to the Ray cluster {address}, and not to {job.ray}: name that one"
            )
        return False
    local: dict[str, Any] = {"include_dashboard": False, "num_cpus": job.workers or usable_cores()}
    try:
        if host:  # Ray itself tries a wrong address for minutes
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        with _silent_stderr():
            ray.init(job.ray, log_to_driver=False, logging_level=logging.ERROR, **(local if job.ray == "local" else {}))
    except Exception as error:  # Ray raises RuntimeError, ConnectionError, ValueError, and Exception itself
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WorkerError(
            f"no Ray cluster could be reached at {job.ray!r} ({reason}): correct the address, or leave it out for a "
            "cluster on this machine"
        ) from error
    return True
