"""Timing inside fresh processes: the first call of something in a process can be measured only once in each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

BUNDLE = Path("artifacts/all-MiniLM-L6-v2").resolve()
TIMED = """
{setup}
import time
_began = time.perf_counter()
{statement}
_seconds = time.perf_counter() - _began
{afterwards}
print(_seconds)
"""


def environment() -> dict[str, str]:
    """As an installed app's: offline, with compiled bytecode, the bundle where it is looked for."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**own, **quiet, "FIRSTVEC_ARTIFACTS": str(BUNDLE.parent)}


def run(code: str) -> str:
    """Run code in a fresh process and return what it prints.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment(), timeout=120
    )
    if done.returncode:
        raise RuntimeError(f"a measured process ended with {done.returncode}: {done.stderr.strip()[-1000:]}")
    return done.stdout


def seconds(statement: str, setup: str = "", afterwards: str = "") -> float:
    """How long ``statement`` takes in a fresh process after ``setup``, as the process itself measures it."""
    return float(run(TIMED.format(setup=setup, statement=statement, afterwards=afterwards)).splitlines()[-1])


class Clock:
    """``time.perf_counter`` without what is not to be measured, as the timer of pytest-benchmark."""

    def __init__(self) -> None:
        self._excluded = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._excluded

    def measure(self, statement: str, setup: str = "", afterwards: str = "") -> None:
        """Let as much time pass as the statement takes in a fresh process."""
        began = time.perf_counter()
        inside = seconds(statement, setup, afterwards)
        self._excluded += time.perf_counter() - began - inside
