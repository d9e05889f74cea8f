"""Threads that are waited for at interpreter exit.

A non-daemon thread would be waited for before ``atexit`` runs, with no way to tell it to hurry; a daemon thread that
is inside an engine while the interpreter is torn down aborts the process. So: daemon threads, joined by ``atexit``,
that can see that the process is ending.
"""

from __future__ import annotations

import atexit
import os
import threading
import time

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


class Task(Generic[T]):
    """A call in a thread of its own; in the calling thread where no thread can be started."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work = work
        self._value: T | None = None
        self._error: BaseException | None = None
        self._finished = threading.Event()
        try:
            threading.Thread(target=self._run, name=f"{_PREFIX}{name}", daemon=True).start()
        except RuntimeError:
            # "can't start new thread": slower, and as right.
            self._run()

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error
        finally:
            del self._work  # and what it refers to
            self._finished.set()

    def result(self) -> T:
        """Wait for the call to end; return its value or raise its error."""
        self._finished.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


_PREFIX = "firstvec-"
_PATIENCE = 15.0
"""Seconds to wait for threads at exit, and at a fork: many times what any load takes. On CPython 3.11, Ctrl-C that
arrives inside an import can leave the import lock taken for good; a thread that waits for that lock is in no engine and
can be left."""


@atexit.register
def _before_exit() -> None:
    exiting.set()
    _wait_for_all()


def _wait_for_all() -> None:
    deadline = time.monotonic() + _PATIENCE
    # A task may start others before it ends; one that is just being started cannot be joined yet.
    while (left := deadline - time.monotonic()) > 0 and (threads := _running()):
        for thread in threads:
            if thread.ident is not None:
                thread.join(left)


def _running() -> list[threading.Thread]:
    this = threading.current_thread()
    return [thread for thread in threading.enumerate() if thread.name.startswith(_PREFIX) and thread is not this]


def _after_fork_in_child() -> None:
    global exiting
    exiting = threading.Event()


if hasattr(os, "register_at_fork"):
    # A fork in the middle of an import leaves the child with a module that is half there, for good: let the load end
    # first. It is a matter of a tenth of a second.
    os.register_at_fork(before=_wait_for_all, after_in_child=_after_fork_in_child)
