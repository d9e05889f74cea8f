"""Where the time of a load goes: a list of stages, to which threads append."""

from __future__ import annotations

from _thread import get_ident
from time import perf_counter, time_ns

from firstvec.process.threads import ProcessExiting, exiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Trace:
    """The stages of one load, in the order in which they ended."""

    def __init__(self) -> None:
        self.began = perf_counter()
        self.began_ns = time_ns()  # Unix time
        self.stages: list[Stage] = []
        self.first_vector_ms: float | None = None  # milliseconds from the load's start
        self.began_at_exit = exiting.is_set
        """Whether a function that the program registered with ``atexit`` waits for these stages."""

    def stage(self, name: str) -> Stage:
        """Return a context manager that adds a stage. On entry it raises `ProcessExiting` if the exit has begun."""
        return Stage(self, name)

    def milliseconds(self, moment: float) -> float:
        """``time.perf_counter()`` → milliseconds from the load's start, with three decimals."""
        return round(1e3 * (moment - self.began), 3)

    def to_values(self) -> list[dict[str, Any]]:
        """Return the stages in the order in which they began, as JSON values."""
        return [
            {
                "name": stage.name,
                "at_ms": self.milliseconds(stage.started),
                "ms": round(1e3 * (stage.ended - stage.started), 3),
                "thread": stage.thread,
            }
            for stage in sorted(self.stages, key=lambda stage: stage.started)
        ]


class Stage:
    """A part of a load. Stages of different threads overlap. Times are ``time.perf_counter()``."""

    started: float
    ended: float
    thread: int

    def __init__(self, trace: Trace, name: str) -> None:
        self.name = name
        self._trace = trace

    def __enter__(self) -> None:
        if exiting.is_set and not self._trace.began_at_exit:
            raise ProcessExiting("the process is exiting, so the load was stopped")
        self.started = perf_counter()

    def __exit__(self, *_exception: object) -> None:
        self.ended, self.thread = perf_counter(), get_ident()
        self._trace.stages.append(self)
        del self._trace  # which refers to this stage now
