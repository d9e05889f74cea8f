"""Where the time of a load goes: a list of stages, to which threads append."""

from __future__ import annotations

from _thread import get_ident
from time import perf_counter, time_ns

from firstvec.process.threads import exiting, stop_if_exiting
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Stage(Record):
    """A part of a load."""

    name: str
    started: float
    """``time.perf_counter()``, seconds."""
    ended: float
    thread: int
    """``threading.get_ident()``. Stages of different threads overlap."""


class Trace:
    """The stages of one load, in the order in which they ended."""

    def __init__(self) -> None:
        self.began = perf_counter()
        self.began_ns = time_ns()
        """Unix time, nanoseconds."""
        self.stages: list[Stage] = []
        self._first_vector: float | None = None
        self.began_at_exit = exiting.is_set
        """Whether a function that the program registered with ``atexit`` waits for these stages."""

    def stage(self, name: str) -> _Timer:
        """Return a context manager that adds a stage. On entry it raises `ProcessExiting` if the exit has begun."""
        return _Timer(self, name)

    def note_first_vector(self) -> None:
        """Take the time of the first vector: now."""
        self._first_vector = perf_counter()

    @property
    def first_vector_ms(self) -> float | None:
        """Milliseconds from the load's start to the first vector. None until then."""
        return self.milliseconds(self._first_vector) if self._first_vector is not None else None

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


class _Timer:
    def __init__(self, trace: Trace, name: str) -> None:
        self._trace = trace
        self._name = name

    def __enter__(self) -> None:
        if not self._trace.began_at_exit:
            stop_if_exiting()
        self._started = perf_counter()

    def __exit__(self, *_exception: object) -> None:
        stage = Stage(name=self._name, started=self._started, ended=perf_counter(), thread=get_ident())
        self._trace.stages.append(stage)
