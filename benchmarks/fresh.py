"""Measure fresh processes: a whole process from outside, or one statement inside a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

BUNDLE = Path(__file__).parents[1] / "artifacts/all-MiniLM-L6-v2"
"""The default bundle, which `make artifacts` builds."""
TIMED = """
{setup}
import time
_began = time.perf_counter()
{statement}
_seconds = time.perf_counter() - _began
{afterwards}
print(_seconds)
"""


class ProcessFailed(Exception):
    """A measured process failed. The message has the exit status, and the text on stderr."""


@dataclass(frozen=True, slots=True)
class Usage:
    """One process, from exec to exit."""

    seconds: float
    processor_seconds: float
    """User time and system time of all the process's threads. Other programs on the machine change this time little."""
    output: str


def environment() -> dict[str, str]:
    """Return the environment of an installed app: offline, with compiled bytecode, and with the default bundle."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    unset = ("PYTHONDONTWRITEBYTECODE", "FIRSTVEC_TRACE")
    own = {name: value for name, value in os.environ.items() if name not in unset}
    return {**own, **quiet, "FIRSTVEC_ARTIFACTS": str(BUNDLE.parent)}


def measure(command: Sequence[str], environ: Mapping[str, str] | None = None) -> Usage:
    """Run a command, and return its times and its output.

    Raises:
        ProcessFailed: the command ended with another exit status than 0.
    """
    environ = environment() if environ is None else environ
    with TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environ)
        assert process.stdout is not None
        with process.stdout:
            output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            reason = errors.read().strip()[-1000:]
            raise ProcessFailed(f"a measured process ended with {process.returncode}: {reason}")
    return Usage(seconds, usage.ru_utime + usage.ru_stime, output)


def run(code: str, environ: Mapping[str, str] | None = None) -> str:
    """Run code in a fresh process, and return the text that the code prints.

    Raises:
        ProcessFailed: the process failed.
    """
    return measure((sys.executable, "-c", code), environ).output


def seconds(statement: str, setup: str = "", afterwards: str = "") -> float:
    """Return how long ``statement`` takes in a fresh process after ``setup``, as the process itself measures it."""
    return float(run(TIMED.format(setup=setup, statement=statement, afterwards=afterwards)).splitlines()[-1])


class Clock:
    """``time.perf_counter`` without the start and end of measured processes. It is a timer for pytest-benchmark."""

    def __init__(self) -> None:
        self._excluded = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._excluded

    def measure(self, statement: str, setup: str = "", afterwards: str = "") -> None:
        """Let as much time pass as the statement takes in a fresh process."""
        began = time.perf_counter()
        inside = seconds(statement, setup, afterwards)
        self._excluded += time.perf_counter() - began - inside
