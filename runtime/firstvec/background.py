"""Threads that are waited for at interpreter exit, and the exit's wait for those of the program.

A non-daemon thread would be waited for before ``atexit`` runs, with no way to tell it to hurry; a daemon thread that
is inside an engine while the interpreter is torn down aborts the process. So: daemon threads, joined by ``atexit``,
that can see that the process is ending. A daemon thread of the program's own is let out of the engine, too, and not
in again.

They are started with ``_thread``: ``threading.Thread.start()`` waits until the new thread runs, which costs the caller
the 5 ms for which the new thread may then keep the GIL (``sys.getswitchinterval()``).
"""

from __future__ import annotations

import atexit
import os

# Here, in the caller's thread: the thread that imports threading first is what it takes for the main thread.
import threading
import time
from _thread import allocate_lock, start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Generic, TypeVar

    T = TypeVar("T")
else:

    class Generic:
        def __class_getitem__(cls, _item):
            return cls

    T = None


class Signal:
    """What `threading.Event` is, without the two locks and the condition variable that it makes each time."""

    def __init__(self) -> None:
        self._is_set = False
        self._closed = allocate_lock()
        self._closed.acquire()

    def set(self) -> None:
        """Let all who wait go on. Only the first call counts."""
        if not self._is_set:
            self._is_set = True
            self._closed.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, at most ``timeout`` seconds; return whether it is set."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._is_set:
            # Ctrl-C may fall between the two calls and leave the lock taken: so look again now and then.
            left = 1.0 if deadline is None else min(1.0, max(0.0, deadline - time.monotonic()))
            if self._closed.acquire(timeout=left):
                self._closed.release()
            elif deadline is not None and time.monotonic() >= deadline:
                break
        return self._is_set


exiting = Signal()
"""Set when the interpreter is about to exit: work that nobody waits for is left undone."""


is_over = False
"""Whether the exit waits for nothing that begins now. The program's daemon threads run on: see `stay`."""
inside: set[int] = set()
"""The threads that are in an engine now, by `threading.get_ident`."""


class Task(Generic[T]):
    """A call in a thread of its own; in the calling thread where no thread can be started."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = [work]
        """Until someone takes it."""
        self._value: T | None = None
        self._error: BaseException | None = None
        self._finished = Signal()
        self.thread: int | None = None
        try:
            _running.add(self)
            if is_over:
                _running.discard(self)
                stay()
                _running.add(self)
            start_new_thread(self._run, ())
        except RuntimeError:
            # "can't start new thread": slower, and as right. numpy's OpenBLAS, imported now, would raise SIGINT in the
            # process when it is refused its own (driver/others/blas_server.c).
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
            self._run()
            if self._error is not None and not isinstance(self._error, Exception):
                raise self._error from None  # Ctrl-C is for the program, which did not ask for a thread
        except BaseException:
            # Ctrl-C, and the thread may have been started or not: nobody will ask for what it gives.
            if self._work:
                self._work.clear()
                self._end()
            raise

    def _run(self) -> None:
        try:
            work = self._work.pop()
        except IndexError:
            return
        self.thread = threading.get_ident()
        try:
            self._value = work()
        except BaseException as error:
            self._error = error
        finally:
            del work  # and what it refers to
            self._end()

    def _end(self) -> None:
        _running.discard(self)
        self._finished.set()

    def result(self) -> T:
        """Wait for the call to end; return its value or raise its error."""
        self._finished.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self._error is not None

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the call to end, at most ``timeout`` seconds; its error is not raised."""
        self._finished.wait(timeout)


class Once(Generic[T]):
    """A value that a `Task` computes when it is first asked for, so that a fork waits for it. Errors are not kept."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._task: Task[T] | None = None

    def result(self) -> T:
        """Return the value, waiting for it; raise the error of its computation."""
        task = self._task
        if task is None:
            with _once_lock:
                task = self._task = self._task or Task(self._work)
        try:
            return task.result()
        except BaseException:
            if task.failed:  # and not only the wait for it
                self._task = None
            raise


_once_lock = allocate_lock()
_running: set[Task[Any]] = set()
_PATIENCE = 15.0
"""Seconds to wait for threads at exit, and at a fork: many times what any load takes. On CPython 3.11, Ctrl-C that
arrives inside an import can leave the import lock taken for good; a thread that waits for that lock is in no engine and
can be left."""


_SIGNALS = 100
"""That are borne at most while the exit waits."""
_given_up: set[Task[Any]] = set()
"""For which the exit waited in vain: it does not wait for them again."""


def before_exit() -> None:
    """The interpreter is about to exit: hurry the threads, and wait for them."""
    global is_over
    exiting.set()
    _given_up.update(_wait_patiently(_wait_for_all))
    is_over = True
    _given_up.update(_wait_patiently(_wait_for_all))
    _wait_patiently(_wait_for_runs)


# Twice: Ctrl-C may end the first call before it has begun.
atexit.register(before_exit)
atexit.register(before_exit)


def stay() -> None:
    """Let a daemon thread of the program go no further, once `is_over`; the main thread may, and this module's."""
    this = threading.get_ident()
    if this != threading.main_thread().ident and all(task.thread != this for task in list(_running)):
        inside.discard(this)
        while True:
            time.sleep(3600.0)


def _wait_patiently(wait: Callable[[], list[Task[Any]]]) -> list[Task[Any]]:
    """Wait, whatever signals say: the process must not end, nor fork, while an engine is at work."""
    for _ in range(_SIGNALS):
        try:
            return wait()
        except BaseException:  # Ctrl-C, or what a handler of the program raises
            continue
    return []


def _wait_for_all() -> list[Task[Any]]:
    """Wait for every thread; return those for which the patience was not enough."""
    this = threading.get_ident()
    deadline = time.monotonic() + _PATIENCE
    # A task may start others before it ends.
    while others := [task for task in list(_running) if task.thread != this and task not in _given_up]:
        for task in others:
            if (left := deadline - time.monotonic()) <= 0:
                return others
            task.wait(left)
    return []


def _wait_for_runs() -> list[Task[Any]]:
    """Wait until no daemon thread of the program is inside an engine."""
    deadline = time.monotonic() + _PATIENCE
    while inside and time.monotonic() < deadline:
        time.sleep(0.001)
    return []


def _wait_before_fork() -> None:
    _wait_patiently(_wait_for_all)


def _after_fork_in_child() -> None:
    global exiting, is_over, _once_lock
    exiting = Signal()
    is_over = False
    _once_lock = allocate_lock()
    _running.clear()
    inside.clear()


if hasattr(os, "register_at_fork"):
    # A fork in the middle of an import leaves the child with a module that is half there, for good: let the load end
    # first. It is a matter of a tenth of a second.
    os.register_at_fork(before=_wait_before_fork, after_in_child=_after_fork_in_child)
