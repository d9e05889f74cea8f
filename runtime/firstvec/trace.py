"""Where the time of a load goes: a list of stages, which threads append to."""

from __future__ import annotations

from _thread import get_ident
from time import perf_counter

from firstvec.record import Record


class Stage(Record):
    """A part of a load."""

    name: str
    started: float
    """``time.perf_counter()``, seconds."""
    ended: float
    thread: int
    """``threading.get_ident()``: stages of different threads overlap."""


class Trace:
    """The stages of one load, in the order in which they ended."""

    def __init__(self) -> None:
        self.began = perf_counter()
        self.stages: list[Stage] = []

    def stage(self, name: str) -> _Timer:
        """A context manager that adds a stage when it is left."""
        return _Timer(self, name)


class _Timer:
    def __init__(self, trace: Trace, name: str) -> None:
        self._trace = trace
        self._name = name

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(self, *_exception: object) -> None:
        stage = Stage(name=self._name, started=self._started, ended=perf_counter(), thread=get_ident())
        self._trace.stages.append(stage)
