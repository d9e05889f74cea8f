"""Who computes the vectors: the model in this process, or one of several worker processes."""

from __future__ import annotations

import pickle
import subprocess
import sys

from firstvec.bulk.worker import describe, encode_with, load, read_message, write_message
from firstvec.errors import InputError, WorkerError
from firstvec.machine.limits import usable_cores
from firstvec.process.threads import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO, Protocol

    from firstvec.bulk.job import Job

    class Encoder(Protocol):
        """Computes vectors. One thread uses it."""

        about: dict[str, Any]
        """What `firstvec.bulk.worker.describe` says of the model."""

        def encode(self, texts: list[str]) -> Any: ...

        def close(self) -> None: ...


class LocalEncoder:
    """The model in this process."""

    def __init__(self, job: Job) -> None:
        self._provider = load(job.options)
        self._encode = encode_with(self._provider, job.prompt, job.encode_arguments())
        self.about = describe(self._provider)

    def encode(self, texts: list[str]) -> Any:
        """Return the buffer of the vectors."""
        return self._encode(texts)

    def close(self) -> None:
        """Let later calls raise ClosedError."""
        # In a thread, because Python loses a Ctrl-C that comes while a destructor frees the session, and prints it.
        Task(self._provider.close).result()


_CODE = "import sys; sys.path[:] = {path!r}; from firstvec.bulk.worker import main; main()"


class WorkerEncoder:
    """The model in a process of its own. Its weights are mapped, so the processes share their pages."""

    about: dict[str, Any]

    def __init__(self, job: Job, cores: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE.format(path=[*sys.path])], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        request = (job.options, cores, job.prompt, job.encode_arguments())
        self._send(pickle.dumps(request))

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def wait(self) -> None:
        """Wait until the model is loaded, or raise the error of the load."""
        self.about = self._receive()

    def encode(self, texts: list[str]) -> Any:
        """Return the buffer of the vectors.

        Raises:
            WorkerError: the process ended.
            FirstvecError: what the process raised.
        """
        self._send(texts)
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            try:
                stream.close()  # type: ignore[union-attr]
            except OSError:  # what was not sent cannot be sent any more
                pass

    def _send(self, message: object) -> None:
        try:
            write_message(_stream(self._process.stdin), message)
        except OSError as error:
            raise self._end() from error

    def _receive(self) -> Any:
        try:
            kind, value = read_message(_stream(self._process.stdout))
        except (EOFError, OSError, ValueError) as error:  # ValueError: `close` was called meanwhile
            raise self._end() from error
        if kind == "error":
            raise pickle.loads(value)
        return value

    def _end(self) -> WorkerError:
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        hint = "; there may be too little memory for so many --workers" if code == -9 else ""
        return WorkerError(
            f"a worker process ended ({how}){hint}; the shards that are done stay: run the same command again"
        )


def _stream(stream: Any) -> BinaryIO:
    found: BinaryIO = stream
    return found


def open_encoders(job: Job) -> list[Encoder]:
    """Return an encoder for each worker of the job. Each has loaded the model.

    Raises:
        InputError: several workers are asked for in a frozen app.
        WorkerError: the processes found different models, or one of them ended.
        FirstvecError: why a load failed.
    """
    count = job.workers or 1
    if count == 1:
        return [LocalEncoder(job)]
    if getattr(sys, "frozen", False):  # there, sys.executable is the app, and would start the same job again
        raise InputError(f"workers is {count}: a frozen app has no Python that could run them, so take 1")
    cores = max(1, usable_cores() // count)
    workers: list[WorkerEncoder] = []
    try:
        for _ in range(count):
            workers.append(WorkerEncoder(job, cores))  # noqa: PERF401 - those that were started must be closed
        for worker in workers:
            worker.wait()
            if worker.about != workers[0].about:
                raise WorkerError("the worker processes found different models: the bundle was replaced; run it again")
    except OSError as error:
        for worker in workers:
            worker.close()
        raise WorkerError(f"a worker process cannot be started ({error.strerror}): take fewer --workers") from error
    except BaseException:
        for worker in workers:
            worker.close()
        raise
    return [*workers]
