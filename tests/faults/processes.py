"""Fresh processes that get a signal, and the judgement of how they end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 30.0
"""Seconds after which a process counts as hanging: hundreds of times what it takes."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended."""

    code: int
    """Exit code; minus the signal that killed it."""
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


def run(
    code: str | Path,
    *arguments: object,
    after: float | None = None,
    number: int = signal.SIGINT,
    timeout: float = TIMEOUT,
) -> Ended:
    """Run a program, code or a file, in a fresh process; ``after`` it printed ``ready`` by so many seconds, signal it.

    Raises:
        AssertionError: it hangs; its stacks are on stderr if it asked for `faulthandler`.
    """
    process = subprocess.Popen(
        [sys.executable, *(["-c", code] if isinstance(code, str) else [str(code)]), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A process of its own group: what it forks and forgets is found, too.
        start_new_session=True,
    )
    try:
        first = ""
        if after is not None:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], TIMEOUT)[0], "it did not begin"
            first = process.stdout.readline()
            time.sleep(after)
            process.send_signal(number)
        stdout, stderr = process.communicate(timeout=timeout)
        return Ended(code=process.returncode, stdout=first + stdout, stderr=stderr)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)
        stdout, stderr = process.communicate(timeout=TIMEOUT)
        raise AssertionError(f"it hangs: {arguments}, signal after {after}\n{stdout}\n{stderr}") from None
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def crashed(ended: Ended) -> bool:
    """Whether it ended as no program ought to, whatever it was sent."""
    return ended.code in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGFPE) or any(
        sign in ended.stderr for sign in ("Fatal Python error", "terminate called", "core dumped")
    )
