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
        self.stages: list[dict[str, Any]] = []  # as `firstvec.loading.report.Report` describes them
        self.first_vector_ms: float | None = None  # milliseconds from the load's start
        self.began_at_exit = exiting.is_set  # then a function that the program registered with ``atexit`` waits

    def stage(self, name: str) -> _Timer:
        """Return a context manager that adds a stage. On entry it raises `ProcessExiting` if the exit has begun."""
        return _Timer(self, name)

    def milliseconds(self, moment: float) -> float:
        """``time.perf_counter()`` → milliseconds from the load's start, with three decimals."""
        return round(1e3 * (moment - self.began), 3)

    def to_values(self) -> list[dict[str, Any]]:
        """Return the stages in the order in which they began, as JSON values."""
        return [dict(stage) for stage in sorted(self.stages, key=lambda stage: stage["at_ms"])]


class _Timer:
    def __init__(self, trace: Trace, name: str) -> None:
        self._trace = trace
        self._name = name

    def __enter__(self) -> None:
        if exiting.is_set and not self._trace.began_at_exit:
            raise ProcessExiting("the process is exiting, so the load was stopped")
        self._started = perf_counter()

    def __exit__(self, *_exception: object) -> None:
        at_ms, ms = self._trace.milliseconds(self._started), round(1e3 * (perf_counter() - self._started), 3)
        self._trace.stages.append({"name": self._name, "at_ms": at_ms, "ms": ms, "thread": get_ident()})
