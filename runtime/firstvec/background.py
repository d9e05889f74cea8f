"""Threads that are waited for at interpreter exit.

A non-daemon thread would be waited for before ``atexit`` runs, with no way to tell it to hurry; a daemon thread that
is inside an engine while the interpreter is torn down aborts the process. So: daemon threads, joined by ``atexit``,
that can see that the process is ending.
"""

from __future__ import annotations

import atexit
import os
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Generic, TypeVar

    T = TypeVar("T")
else:

    class Generic:
        def __class_getitem__(cls, _item):
            return cls

    T = None

exiting = threading.Event()
"""Set when the interpreter is about to exit: work that nobody waits for is left undone."""

_threads: set[threading.Thread] = set()
"""Those that are running."""


class Task(Generic[T]):
    """A call in a thread of its own; in the calling thread where no thread can be started."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work: Callable[[], T] | None = work
        self._value: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        _threads.add(self._thread)
        try:
            self._thread.start()
        except RuntimeError:
            # "can't start new thread": slower, and as right.
            _threads.discard(self._thread)
            self._run()

    def _run(self) -> None:
        work, self._work = self._work, None
        assert work is not None
        try:
            self._value = work()
        except BaseException as error:
            self._error = error
        finally:
            _threads.discard(self._thread)

    def result(self) -> T:
        """Wait for the call to end; return its value or raise its error."""
        if self._thread.ident is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


@atexit.register
def _join_all() -> None:
    exiting.set()
    for thread in list(_threads):
        if thread is not threading.current_thread():
            thread.join()


def _after_fork_in_child() -> None:
    global exiting
    exiting = threading.Event()
    _threads.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
