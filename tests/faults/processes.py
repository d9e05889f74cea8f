"""Start fresh processes, send them a signal, and report how they ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 120.0
"""Seconds after which a process counts as hanging. A loaded machine takes a hundredth of that."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended."""

    code: int
    """Exit code. Of a process that a signal killed: minus the signal's number."""
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
    """Run a program in a fresh process, and send it a signal if ``after`` is given.

    Args:
        code: the program's code, or its file.
        arguments: the program's arguments.
        after: seconds from the line ``ready`` of the program to the signal. None: no signal is sent.
        number: the signal.
        timeout: seconds after which the process counts as hanging.

    Raises:
        AssertionError: the process hangs. The message has its stacks if the program enabled `faulthandler`.
    """
    process = subprocess.Popen(
        [sys.executable, *(["-c", code] if isinstance(code, str) else [str(code)]), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Without a buffer, `readline` takes no byte of the next line, which `communicate` could not find then.
        bufsize=0,
        # The process leads a group, so that children that it forks and forgets are killed, too.
        start_new_session=True,
    )
    try:
        first = b""
        if after is not None:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], TIMEOUT)[0], "the program did not get ready"
            first = process.stdout.readline()
            time.sleep(after)
            process.send_signal(number)
        stdout, stderr = process.communicate(timeout=timeout)
        return Ended(code=process.returncode, stdout=(first + stdout).decode(), stderr=stderr.decode())
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)
        stdout, stderr = process.communicate(timeout=TIMEOUT)
        printed = f"{stdout.decode()}\n{stderr.decode()}"
        raise AssertionError(f"a hang: {arguments}, signal after {after}\n{printed}") from None
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def has_crashed(ended: Ended) -> bool:
    """Return whether the process crashed: no signal that it was sent excuses that."""
    return ended.code in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGFPE) or any(
        sign in ended.stderr for sign in ("Fatal Python error", "terminate called", "core dumped")
    )
