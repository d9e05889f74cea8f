"""What a run shows on stderr: a bar on a terminal, a line now and then in a log, or nothing."""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOG_SECONDS = 10.0
"""Seconds between two lines of a log."""


class Progress:
    """Shows nothing, and counts. The others show what it counts."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        """Bytes of all inputs. 0: nobody knows."""
        self.rows = 0
        """Rows of this run, without those that were done before."""
        self.bytes = 0
        self._first_bytes: int | None = None
        self._began = time.perf_counter()

    def __enter__(self) -> Progress:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / max(time.perf_counter() - self._began, 1e-3)

    def seconds_left(self) -> float | None:
        """Return the seconds until the inputs are read, at the rate of this run. None: nobody knows."""
        read = self.bytes - (self._first_bytes or 0)
        if not self.total_bytes or read <= 0:
            return None
        return (self.total_bytes - self.bytes) * (time.perf_counter() - self._began) / read

    def begin_at(self, position: int) -> None:
        """Say how many bytes of the inputs earlier runs have done."""
        self._first_bytes = self.bytes = position

    def advance(self, rows: int, position: int) -> None:
        """Count the rows of a shard that was written, and how far the inputs were read."""
        self.rows += rows
        self.bytes = max(self.bytes, position)

    def say(self, text: str) -> None:
        """Show a message."""

    def words(self) -> str:
        """Return the state in a line."""
        share = (
            f" ({self.bytes / self.total_bytes:.0%} of {self.total_bytes / 1e6:,.1f} MB)" if self.total_bytes else ""
        )
        left = self.seconds_left()
        ending = f", {_clock(left)} left" if left is not None else ""
        return f"{self.rows:,} rows{share}, {self.rate:,.0f} rows/s{ending}"


class LogProgress(Progress):
    """Writes a plain line every ten seconds, for logs and pipes."""

    def __init__(self, total_bytes: int) -> None:
        super().__init__(total_bytes)
        self._next = time.perf_counter() + LOG_SECONDS

    def advance(self, rows: int, position: int) -> None:
        """Count, and write a line if the last one is ten seconds old."""
        super().advance(rows, position)
        if time.perf_counter() >= self._next:
            self.say(self.words())
            self._next = time.perf_counter() + LOG_SECONDS

    def say(self, text: str) -> None:
        """Write a line."""
        print(f"firstvec embed: {text}", file=sys.stderr, flush=True)


class BarProgress(Progress):
    """Draws a bar on the terminal."""

    def __init__(self, total_bytes: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        super().__init__(total_bytes)
        self._console = Console(stderr=True, highlight=False)
        columns: list[Any] = [SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
        self._bar = Bar(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task("the model is loaded", total=total_bytes or None)

    def __enter__(self) -> Progress:
        self._bar.start()
        return super().__enter__()

    def __exit__(self, *_exception: object) -> None:
        self._bar.stop()

    def advance(self, rows: int, position: int) -> None:
        """Count, and draw."""
        super().advance(rows, position)
        self._bar.update(self._task, completed=self.bytes, description=self.words())

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        self._console.print(text, markup=False)


def make_progress(total_bytes: int, *, quiet: bool) -> Progress:
    """Return what fits stderr. Without the package rich, a terminal gets the lines of a log."""
    if quiet:
        return Progress(total_bytes)
    if sys.stderr.isatty():
        try:
            return BarProgress(total_bytes)
        except ImportError:
            pass
    return LogProgress(total_bytes)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
