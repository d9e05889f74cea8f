"""Start fresh processes, send them a signal, and report how they ended; and processes that fork for each request."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

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


class Zygote:
    """A process that imports once, and does each request in a forked child. It has a folder for its requests.

    Args:
        module: the module that serves requests, such as `tests.faults.zygote`.
        folder: where only this process works.
        cache: the runtime's cache.
    """

    def __init__(self, module: str, folder: Path, cache: Path) -> None:
        self.folder = folder
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        quiet = {
            "TOKENIZERS_PARALLELISM": "false",
            # Arrow's allocator would start a thread when it is imported. pandas imports Arrow.
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | single | quiet | {"FIRSTVEC_CACHE": str(cache)},
        )
        # A fork of a process with threads is not what a fresh process is.
        assert self._read() == {"threads": 1}

    def ask(self, **request: Any) -> dict[str, Any]:
        """Do a request, and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"root": str(self.folder)} | request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
