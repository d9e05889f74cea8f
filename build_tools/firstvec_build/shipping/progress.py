"""What a long transfer shows on stderr: a bar on a terminal, and a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

Report = Callable[[int, int], None]
"""Called with the bytes that are done, and all bytes."""

LOG_SECONDS = 10.0
"""Seconds between two lines of a log."""


def behind(report: Report, done: int, total: int) -> Callable[[int], None]:
    """Return a function that reports the bytes of one file, behind ``done`` bytes of other files."""
    return partial(_report_behind, report, done, total)


def _report_behind(report: Report, done: int, total: int, count: int) -> None:
    report(done + count, total)


class TransferDisplay:
    """Shows how far a transfer is, unless it is over at once."""

    def __init__(self, command: str, *, silent: bool) -> None:
        self._command = command
        self._silent = silent
        self._next = time.monotonic() + LOG_SECONDS
        self._bar: Any = None
        if not silent and sys.stderr.isatty():
            # rich is imported here, because the other commands of this room do not need it.
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)
            self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> TransferDisplay:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def report(self, done: int, total: int) -> None:
        """Show how many bytes are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif not self._silent and time.monotonic() >= self._next:
            self.say(f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB")
            self._next = time.monotonic() + LOG_SECONDS

    def say(self, text: str) -> None:
        """Show a line."""
        if self._bar is not None:
            self._bar.console.print(f"firstvec {self._command}: {text}", markup=False)
        elif not self._silent:
            print(f"firstvec {self._command}: {text}", file=sys.stderr, flush=True)
