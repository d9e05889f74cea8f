"""The first vector of fresh processes, step by step: from the start of the interpreter to the end of the process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from ast import literal_eval
from signal import Signals
from tempfile import TemporaryFile
from threading import Timer

from firstvec import __version__
from firstvec.machine.system_files import read_text
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from firstvec.options import Options

TEXT = "how do I reset my password?"
ROUNDS = 7
ROUNDS_IF_SLOW = 3
"""Of a load whose first round takes longer than `_SLOW`, for example of one that imports torch."""

PROGRAM = """\
from time import perf_counter
entered = perf_counter()
from firstvec import FirstvecError, OptimizedEmbeddingLoader
imported = perf_counter()
try:
    loader = OptimizedEmbeddingLoader({arguments})
    loader.start_loading()
    provider = loader.get_provider(timeout=None)
    vector = provider.embed_query({text})
    answer = entered, imported, perf_counter(), loader.report()
except FirstvecError as error:
    answer = str(error)
import sys
sys.stdout.write("\\nanswer: " + repr((answer, perf_counter())) + "\\n")
"""
"""What each process runs. ``repr``, because the import of json would lengthen the process that is measured."""

_SLOW = 2.0
"""Seconds."""
_TIME_LIMIT = 120.0
"""Seconds for one process. The import of torch from a cold disk takes many of them."""


class Run(Record):
    """One process. Times are milliseconds from the moment before the process was started."""

    first_vector_ms: float
    """When the program had the vector."""
    end_ms: float
    """When the process had ended."""
    steps: tuple[dict[str, Any], ...]
    """``name``, ``kind``, ``level`` (1: a part of the step of level 0 before it), ``at_ms`` and ``ms`` of each."""
    report: dict[str, Any]
    """What ``loader.report()`` said when the vector was there."""


class Measured(Record):
    """The rounds of one load."""

    options: Options
    program: str
    runs: tuple[Run, ...] = ()
    error: str | None = None
    """Why there is no vector. Then there are no runs."""

    @property
    def median(self) -> Run:
        """The run whose first vector came when those of half of the other runs had come."""
        return sorted(self.runs, key=lambda run: run.first_vector_ms)[len(self.runs) // 2]


def measure(loads: Sequence[Options]) -> list[Measured]:
    """Load each in fresh processes, in turn. The first round is not counted, because it may have files to verify."""
    results = []
    for options in loads:
        began, program = time.perf_counter(), _program(options)
        first = _run(program)
        is_slow = time.perf_counter() - began > _SLOW
        error = first if isinstance(first, str) else None
        results.append((Measured(options=options, program=program, error=error), ROUNDS_IF_SLOW if is_slow else ROUNDS))
    for turn in range(ROUNDS):
        for place, (measured, rounds) in enumerate(results):
            if measured.error is None and turn < rounds:
                run = _run(measured.program)
                change = {"error": run, "runs": ()} if isinstance(run, str) else {"runs": (*measured.runs, run)}
                results[place] = measured.replace(**change), rounds
    return [measured for measured, _ in results]


def conditions() -> dict[str, str]:
    """Return on what, and beside what, the processes run. What cannot be found out is left out."""
    system, names = os.uname(), (line.partition(":") for line in read_text("/proc/cpuinfo", 8192).splitlines())
    found = {
        "processor": next((value.strip() for name, _, value in names if name.strip() == "model name"), ""),
        "system": f"{system.sysname} {system.release}",
        "Python": sys.version.split()[0],
        "firstvec": __version__,
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    try:
        found["load average"] = f"{os.getloadavg()[0]:.1f} (programs that ran or waited in the minute before)"
    except OSError:
        pass
    return {name: value for name, value in found.items() if value}


def _program(options: Options) -> str:
    # Not the working folder, because the processes start in the same one.
    values = options.replace(output="list", working_folder="").to_dict().items()
    given = [f"{name}={value!a}" for name, value in values if value not in (None, "") and value is not False]
    return PROGRAM.format(arguments=", ".join(given), text=repr(TEXT))


def _run(program: str) -> Run | str:
    """Run one process. Return its times, or why there are none."""
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # firstvec's folder comes last. Otherwise the process could find another copy of an engine than programs find.
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), home)))
    environment = {**os.environ, "PYTHONPATH": path, "FIRSTVEC_TRACE": "0"}
    command = [sys.executable, "-P", "-c", program]  # -P: what lies in the current folder is not imported
    with TemporaryFile() as errors:
        began = time.perf_counter()  # CLOCK_MONOTONIC, which all processes share
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment
            )
        except OSError as error:
            return f"its process cannot be started: {error.strerror or error}"
        # Not the time limit of `communicate`, which looks for the end every few milliseconds.
        watchdog = Timer(_TIME_LIMIT, process.kill)
        watchdog.start()
        try:
            with process:
                assert process.stdout is not None
                output = process.stdout.read().decode("utf-8", "replace")
        finally:
            watchdog.cancel()
        ended, status = time.perf_counter(), process.returncode
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip()
    found = output.rpartition("\nanswer: ")[2].partition("\n")[0] if "\nanswer: " in output else ""
    if status or not found:  # a process that crashes at its exit has failed, too
        how = f"killed by {Signals(-status).name}" if status < 0 else f"exit code {status}"
        how += f" after {ended - began:.0f} s" if ended - began > _TIME_LIMIT else ""
        return f"its process failed: {how}, {(said or 'no message').splitlines()[-1]}"
    answer, leaving = literal_eval(found)
    if isinstance(answer, str):
        return answer
    entered, imported, had, report = answer
    return _timed(began, entered, imported, had, report, leaving, ended)


def _timed(
    began: float, entered: float, imported: float, had: float, report: dict[str, Any], leaving: float, ended: float
) -> Run:
    """Put the steps of the process and those of the load on one clock."""

    def step(name: str, kind: str, begin: float, end: float, level: int = 0) -> dict[str, Any]:
        at_ms, ms = round(1e3 * (begin - began), 3), round(1e3 * (end - begin), 3)
        return {"name": name, "kind": kind, "level": level, "at_ms": at_ms, "ms": ms}

    load_began = report["started"]
    loaded = load_began + report["seconds"]
    stages = [(stage, load_began + stage["at_ms"] / 1e3) for stage in report["stages"]]
    return Run(
        first_vector_ms=round(1e3 * (had - began), 3),
        end_ms=round(1e3 * (ended - began), 3),
        steps=(
            step("Python starts", "python", began, entered),
            step("import firstvec", "import", entered, imported),
            step("load", "load", load_began, loaded),
            *(step(stage["name"], "load", begin, begin + stage["ms"] / 1e3, level=1) for stage, begin in stages),
            step("tokenize, compute", "compute", loaded, had),
            step("Python ends", "python", leaving, ended),
        ),
        report=report,
    )
