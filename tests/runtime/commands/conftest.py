"""Command lines of bash, and a machine without the command-line libraries."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Fresh

Shell = Callable[..., subprocess.CompletedProcess[str]]

PROGRAM = str(Path(sys.executable).with_name("firstvec"))


@pytest.fixture
def shell() -> Shell:
    """Run a command line of bash. In it ``$F`` is `firstvec`, and ``$1`` … are the values."""

    def run(command: str, *values: object) -> subprocess.CompletedProcess[str]:
        arguments = ["bash", "-c", f"set -o pipefail; F={PROGRAM}; {command}", "bash", *map(str, values)]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.fixture
def bare(firstvec: Fresh, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """Run the installed `firstvec` where neither typer nor rich can be imported, as without the extra cli."""
    site = tmp_path_factory.mktemp("bare")
    (site / "sitecustomize.py").write_text("import sys\nsys.modules['typer'] = sys.modules['rich'] = None\n", "utf-8")

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return firstvec(*arguments, **options, PYTHONPATH=str(site))

    return run


def on_a_terminal(arguments: list[object], typed: bytes) -> tuple[int, str]:
    """Run `firstvec` on a terminal and type. Returns the exit code and what the terminal shows."""
    process, terminal = pty.fork()
    if process == 0:
        os.execv(PROGRAM, ["firstvec", *map(str, arguments)])
    shown = b""
    try:
        os.write(terminal, typed)
        end = time.monotonic() + 300
        while time.monotonic() < end and select.select([terminal], [], [], 300)[0]:
            data = os.read(terminal, 1 << 16)
            if not data:
                break
            shown += data
    except OSError:
        pass  # Linux reports the end of the other side as an error
    finally:
        os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), shown.decode()
