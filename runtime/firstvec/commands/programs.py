"""The programs that `firstvec bench` measures, and their processes. No model is opened in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from importlib.util import find_spec

from firstvec.errors import LoadError, MissingDependency, NoCompatibleArtifact
from firstvec.options import make_options
from firstvec.record import Record
from firstvec.selection import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import ExitStack
    from typing import Any

    from firstvec.bundle.manifest import Manifest
    from firstvec.machine.profile import ResourceProfile

PEER = "sentence-transformers"

# Code that opens a model. `get_provider` starts the load as the strategy says.
_OURS = """
import sys
from firstvec import OptimizedEmbeddingLoader
_, root, artifact, device, strategy, output = sys.argv
model = OptimizedEmbeddingLoader(root, strategy, device, artifact=artifact, output=output).get_provider(None)
errors = []
"""
_THEIRS = """
import json, sys
from sentence_transformers import SentenceTransformer
errors = []
for name, options in json.loads(sys.argv[1]):
    try:
        model = SentenceTransformer(name, device=sys.argv[2], **options)
    except Exception as error:
        errors.append(str(error).strip() or type(error).__name__)
    else:
        break
"""
_FIRST_VECTOR = """
print(*model.encode(sys.stdin.buffer.read().decode(), show_progress_bar=False).tolist())
"""
# On Linux a program inherits the peak memory of the process that starts it (fs/exec.c, exec_mmap). So a bare
# interpreter starts each program.
_LAUNCHER = """
import os, sys, time
began = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ), 0)
seconds = time.perf_counter() - began
print(os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""
# stdout is for the answers. What a library prints goes to stderr.
_WORKER = """
import json, os, sys, time
answers = open(os.dup(1), "w")
os.dup2(2, 1)
{open}
print(json.dumps(errors), file=answers, flush=True)
for line in sys.stdin:
    texts, passes, began = json.loads(line), 0, time.perf_counter()
    while not passes or time.perf_counter() - began < {shortest}:
        vectors = model.encode(texts, batch_size=32, show_progress_bar=False)
        passes += 1
    rate = passes * len(texts) / (time.perf_counter() - began)
    print(json.dumps([rate, vectors.tolist()]), file=answers, flush=True)
"""
_SHORTEST = 0.5
"""Seconds that a worker encodes its texts again and again, to measure a rate."""
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


class Program(Record):
    """What is measured: code that opens a model, with its arguments in a fresh process and in a warm one."""

    name: str
    code: str
    has_model: bool = True
    """False: the code is all that runs."""
    fresh: tuple[str, ...] = ()
    warm: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    """The strategies that take this artifact."""


BARE = Program(name="bare interpreter", code="pass", has_model=False)
NUMPY = Program(name="import numpy", code="import numpy", has_model=False)


def own_programs(manifest: Manifest, profile: ResourceProfile, strategy: str | None) -> list[Program]:
    """Return a program for each artifact that the strategies, or the one strategy, take on this machine.

    Raises:
        NoCompatibleArtifact: there is none.
    """
    takers: dict[tuple[str, str], list[str]] = {}
    names = [strategy] if strategy else ["progressive", "cached", "lazy", "background", "quantized"]
    for name in names:
        try:
            choice = select(manifest, profile, make_options(manifest.root, name))
            takers.setdefault((choice.artifact.id, choice.device), []).append(name)
        except NoCompatibleArtifact:
            if name == names[-1] and not takers:
                raise
    return [
        Program(
            name=f"firstvec {artifact}",
            code=_OURS,
            fresh=(manifest.root, artifact, device, strategies[0], "buffer"),
            warm=(manifest.root, artifact, device, "background", "buffer"),  # it opens the session that runs fastest
            strategies=tuple(strategies),
        )
        for (artifact, device), strategies in takers.items()
    ]


def open_peer(
    manifest: Manifest, device: str, reference: str | None, stack: ExitStack
) -> tuple[Program, Worker] | tuple[None, str]:
    """Open the original model in sentence-transformers, without a network.

    Args:
        manifest: the bundle. Without a reference its model is opened by name, or the bundle as a model in ONNX.
        device: where the model runs.
        reference: folder of the original model, or its name in the cache of the hub.
        stack: ends the worker.

    Returns:
        The program and its worker, or None and the reason.

    Raises:
        LoadError: the reference cannot be opened.
        MissingDependency: a reference is given, and sentence-transformers is not installed.
    """
    if find_spec("sentence_transformers") is None:
        if reference is not None:
            raise MissingDependency("--reference", PEER, PEER)
        return None, f"{PEER} is not installed, so nothing is measured beside firstvec: pip install {PEER}"
    sources = originals(manifest) if reference is None else [(reference, {})]
    try:
        peer = Program(name=PEER, code=_THEIRS, warm=(json.dumps(sources), device))
        worker = stack.enter_context(start_worker(peer))
    except LoadError as error:  # it cannot be imported
        why = str(error)
    else:
        if used := sources[len(worker.errors) :][:1]:
            return peer.replace(fresh=(json.dumps(used), device)), worker
        reasons = (error.splitlines()[0].split(". ")[0] for error in worker.errors)
        pairs = "; ".join(f"{source}: {reason}" for (source, _), reason in zip(sources, reasons, strict=True))
        why = f"{PEER} cannot open the original model without a network ({pairs})"
    if reference is not None:
        raise LoadError(f"{why}; give the folder of the model, or a name that lies in the cache of the hub")
    return None, f"{why}, so nothing is measured beside firstvec: give the folder of the model with --reference"


def originals(manifest: Manifest) -> list[tuple[str, dict[str, Any]]]:
    """Return what sentence-transformers may open as the bundle's original, best first: names or folders, and options.

    The bundle itself comes last, because its vectors are not independent of it, and it needs the package optimum-onnx.
    """
    name, revision = manifest.model.name, manifest.model.revision
    # A folder of that name in the current folder would be opened, and may hold any model.
    by_name = [] if os.path.exists(name) else [(name, {"revision": revision})]
    return [*by_name, (manifest.root, {"backend": "onnx"})]


class Usage(Record):
    """What a process has used, from exec to exit."""

    ms: float
    peak_mb: float
    """Largest resident memory, in 10^6 bytes."""
    vector: tuple[float, ...]
    """Empty if the program has no model."""


def run_fresh(program: Program, text: str) -> Usage:
    """Compute the vector of one text in a fresh process.

    Raises:
        LoadError: the process failed.
    """
    code = program.code + (_FIRST_VECTOR if program.has_model else "")
    # -P: what lies in the current folder is not imported.
    with _process(["-I", "-S", "-c", _LAUNCHER, "-P", "-c", code, *program.fresh]) as (process, last_error):
        *printed, measured = process.communicate(text)[0].splitlines() or [""]
        status, seconds, peak = measured.split() if process.returncode == 0 else (process.returncode, 0, 0)
        if int(status) != 0:
            raise _failure(program, int(status), last_error())
    vector = map(float, printed[-1].split()) if program.has_model else ()
    return Usage(ms=1e3 * float(seconds), peak_mb=int(peak) / 1e6, vector=tuple(vector))


class Worker:
    """A process with an open model. ``errors`` says why earlier sources could not be opened."""

    def __init__(self, program: Program, process: subprocess.Popen[str], last_error: Callable[[], str]) -> None:
        self._program, self._process, self._last_error = program, process, last_error
        self.errors: list[str] = self._answer()

    def encode(self, texts: Sequence[str]) -> tuple[float, list[list[float]]]:
        """Encode the texts, for half a second at least. Return the texts per second, and the vectors.

        Raises:
            LoadError: the process failed.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer, either
            self._process.stdin.write(json.dumps(texts) + "\n")
            self._process.stdin.flush()
        rate, vectors = self._answer()
        return rate, vectors

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        raise _failure(self._program, self._process.wait(), self._last_error())


@contextmanager
def start_worker(program: Program) -> Iterator[Worker]:
    """Start a process that opens the program's model. It ends with the context.

    Raises:
        LoadError: the process failed.
    """
    code = _WORKER.format(open=program.code, shortest=_SHORTEST)
    with _process(["-P", "-c", code, *program.warm]) as (process, last_error):
        yield Worker(program, process, last_error)


@contextmanager
def _process(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str]]]:
    """Start Python in a process group that ends with the context. Yield it, with a function for its last error."""
    with tempfile.TemporaryFile() as errors:

        def last_error() -> str:
            errors.seek(0)
            return (errors.read().decode("utf-8", "replace").strip() or "no message").splitlines()[-1]

        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
            env=os.environ | _ENVIRONMENT,
            process_group=0,
        )
        try:
            yield process, last_error
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            with suppress(BrokenPipeError):
                process.__exit__(None, None, None)  # closes the pipes, and waits


def _failure(program: Program, status: int, last_error: str) -> LoadError:
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
    hint = "; `firstvec doctor` shows what is wrong here" if program.strategies else ""
    return LoadError(f"{program.name}: its process {how}: {last_error}{hint}")
