"""Threads, and what happens to them at the interpreter's exit, at a fork and after Ctrl-C.

The interpreter waits for a non-daemon thread before ``atexit`` runs, and nothing can hurry the thread then. A daemon
thread that is inside an engine while the interpreter is taken down aborts the process. So the threads here are daemon
threads that ``atexit`` waits for, and that can see that the process is exiting. A daemon thread of the program's own
may run an engine, too: `engine_gate` lets it out, and not in again.

Threads are started with ``_thread``, because ``threading.Thread.start()`` waits until the new thread runs, up to 5 ms.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from _thread import allocate_lock, get_ident, get_native_id, start_new_thread

from firstvec.errors import LoadError
from firstvec.process.import_locks import release_left_locks, watch_imports
from firstvec.record import Generic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable
    from typing import Any, NoReturn, TypeVar

    T = TypeVar("T")
else:
    T = None

_POLL = 0.1
"""Seconds between two looks at what nobody announces."""
_PATIENCE = 15.0
"""Seconds that the exit and a fork wait for threads: many times what a load takes."""
_PATIENCE_AFTER_CTRL_C = 0.5
"""Seconds that the exit waits after Ctrl-C for threads that are in no engine."""
_PATIENCE_FOR_ENDS = 0.5
"""Seconds that the exit waits for the system to end threads whose work is done."""
_MOST_ENDING = 32
"""So many of the last threads are looked at."""
_MOST_SIGNALS = 100
"""Signals after which the exit no longer goes on waiting."""


# `import threading` takes 3 ms, so a load that starts no thread does not import it.
if sys.platform != "linux" or get_native_id() != os.getpid():
    import threading  # noqa: F401
_main_thread = get_ident()
"""Counts until threading is imported. On Linux the main thread's native id is the process's."""


def main_thread() -> int | None:
    """Return the identity of the main thread. None: the thread has ended."""
    # Another thread may be in the middle of the import, so the function may be missing.
    ask = getattr(sys.modules.get("threading"), "main_thread", None)
    return ask().ident if ask is not None else _main_thread


def is_main_thread() -> bool:
    """Return whether this is the main thread."""
    return main_thread() == get_ident()


class Event:
    """What `threading.Event` is, for a main thread that Ctrl-C may interrupt anywhere.

    A wait looks again every 0.1 s. So it ends even if Ctrl-C kept the event's lock, or an import lock that the other
    thread needs.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Make the event not set. Nobody may wait."""
        self.is_set = False
        self._closed = allocate_lock()
        self._closed.acquire()

    def set(self) -> None:
        """Let everybody who waits go on. Only the first call counts."""
        if not self.is_set:
            self.is_set = True
            self._closed.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, at most ``timeout`` seconds. Return whether the event is set."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.is_set:
            left = _POLL if deadline is None else min(_POLL, max(0.0, deadline - time.monotonic()))
            if self._closed.acquire(timeout=left):
                self._closed.release()
            elif deadline is not None and time.monotonic() >= deadline:
                break
            elif is_main_thread():
                release_left_locks()
        return self.is_set


exiting = Event()
"""Set when the interpreter is about to exit. Work that nobody waits for is left undone then."""


class ProcessExiting(LoadError):
    """The process is exiting, and the load that is under way is left undone."""


def end_with_the_process() -> NoReturn:
    """Sleep until the process has ended, in a daemon thread of the program that can do nothing useful any more."""
    while True:
        time.sleep(3600.0)


class EngineGate:
    """Every call into an engine goes through this gate. The exit closes it, and waits for who is inside."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Open the gate, with nobody inside."""
        self.is_closed = False
        self._inside: list[int] = []

    def __enter__(self) -> None:
        self._inside.append(get_ident())
        if self.is_closed and not _may_go_on():
            self._inside.remove(get_ident())
            end_with_the_process()

    def __exit__(self, *_exception: object) -> None:
        # In a child that a signal handler of the program has forked meanwhile, nobody is inside. No exception is caught
        # here, because a signal handler may raise any.
        if (this := get_ident()) in self._inside:
            self._inside.remove(this)

    def threads_inside(self) -> list[int]:
        """Return the threads that are in an engine now."""
        return [*self._inside]


engine_gate = EngineGate()


class ProcessLock:
    """A lock that is free in a forked child, whoever held it in the parent. Use it as ``with lock.here():``."""

    def __init__(self) -> None:
        self._of_process: dict[int, LockType] = {}

    def here(self) -> LockType:
        """Return this process's lock."""
        return self._of_process.setdefault(os.getpid(), allocate_lock())


class Task(Generic[T]):
    """A call in a thread of its own, or in the calling thread where no thread can be started.

    Args:
        work: the call.
        in_thread: False makes the call in the calling thread in any case. A fork and the exit wait for it, too.
    """

    def __init__(self, work: Callable[[], T], *, in_thread: bool = True) -> None:
        if in_thread:
            # Before Python 3.13 the thread that imports threading first counts as the main thread, so the import
            # happens here, before the new thread can need it.
            import threading  # noqa: F401
        self._work = [work]
        """Empty as soon as a thread has taken the work."""
        self._value: T | None = None
        self.error: BaseException | None = None  # with which the call ended
        self.finished = Event()
        self.thread: int | None = None
        self.is_lost = False
        """Whether the process forked while the call was under way: this process has no thread for it."""
        try:
            _running.add(self)
            if engine_gate.is_closed and not _may_go_on():
                _running.discard(self)
                with engine_gate:  # for ever
                    return
            if in_thread:
                start_new_thread(self._run, (True,))
            else:
                self._run_here()
        except RuntimeError:
            # "can't start new thread". The calling thread is slower, and as right. numpy's OpenBLAS, imported now,
            # would raise SIGINT in the process when it is refused its own threads (driver/others/blas_server.c).
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
            self._run_here()
        except BaseException:
            # Ctrl-C: the thread may have been started or not. Nobody will ask for its result.
            if self._work:
                self._work.clear()
                _running.discard(self)
                self.finished.set()
            raise

    def _run_here(self) -> None:
        self._run()
        if self.error is not None and not isinstance(self.error, Exception):
            raise self.error from None  # Ctrl-C is meant for the program, which did not ask for a thread

    def _run(self, has_own_thread: bool = False) -> None:
        try:
            work = self._work.pop()
        except IndexError:
            return
        self.thread = get_ident()
        try:
            self._value = work()
        except BaseException as error:
            self.error = error
        finally:
            del work  # and everything that it refers to
            if has_own_thread:
                _ending.append(get_native_id())
                del _ending[:-_MOST_ENDING]
            _running.discard(self)
            self.finished.set()

    def result(self) -> T:
        """Wait for the call to end. Return its value or raise its error."""
        self.finished.wait()
        if self.error is not None:
            raise self.error
        return self._value  # type: ignore[return-value]


class ComputedOnce(Generic[T]):
    """A value that a `Task` computes when it is first asked for, so that a fork waits for it. An error is not kept."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._task: Task[T] | None = None

    def result(self) -> T:
        """Wait for the value and return it, or raise the error of its computation."""
        task = self._task
        if task is None:
            with _once_lock.here():
                task = self._task = self._task or Task(self._work)
        try:
            return task.result()
        except BaseException:
            if task.error is not None:  # otherwise only the wait was interrupted
                self._task = None
            raise


def watch_for_lost_ctrl_c() -> None:
    """Watch the imports of the main thread and of the tasks, as long as there are tasks."""
    global _is_watching
    watched = main_thread()
    if _running and not _is_watching and watched is not None:
        _is_watching = True
        try:
            watch_imports(watched, _are_tasks_at_work)
        except BaseException as error:
            _is_watching = False
            if not isinstance(error, RuntimeError):  # "can't start new thread"
                raise


def _are_tasks_at_work() -> bool:
    global _is_watching
    _is_watching = bool(_running)
    return _is_watching


_is_watching = False
_once_lock = ProcessLock()
_running: set[Task[Any]] = set()
_given_up: set[Task[Any]] = set()
"""The exit waited for these tasks in vain, and does not wait for them again."""
_ending: list[int] = []
"""Native ids of threads whose work is done, the last ones. The system ends such a thread a little later."""
_exit_deadline: float | None = None
"""When the exit stops waiting, by ``time.monotonic()``. One deadline counts for all that the exit waits for."""
_saw_ctrl_c = False
_resets_in_child: list[Callable[[], object]] = []


def before_exit() -> None:
    """Do what the interpreter's exit needs: hurry the threads, and wait until none of them is in an engine."""
    global _exit_deadline
    exiting.set()
    _exit_deadline = _exit_deadline or time.monotonic() + _PATIENCE
    _given_up.update(_wait_whatever_signals_say(_wait_for_tasks))
    engine_gate.is_closed = True
    _given_up.update(_wait_whatever_signals_say(_wait_for_tasks))
    _wait_whatever_signals_say(_wait_for_engines)
    _wait_whatever_signals_say(_wait_for_ends)


# Twice, because Ctrl-C may end the first call before it has begun.
atexit.register(before_exit)
atexit.register(before_exit)


def _may_go_on() -> bool:
    """Return whether this thread may run an engine though the gate is closed: the main thread and awaited tasks may."""
    this = get_ident()
    return is_main_thread() or any(task.thread == this for task in _running - _given_up)


def _wait_whatever_signals_say(wait: Callable[[], list[Task[Any]] | None]) -> list[Task[Any]]:
    """Go on waiting after a signal, because the process must not end, nor fork, while an engine is at work."""
    global _saw_ctrl_c
    for _ in range(_MOST_SIGNALS):
        try:
            release_left_locks()
            return wait() or []
        except BaseException as error:  # Ctrl-C, or what a signal handler of the program raises
            _saw_ctrl_c = _saw_ctrl_c or isinstance(error, KeyboardInterrupt)
    return []


def _wait_for_tasks() -> list[Task[Any]]:
    """Wait for every task. Return the tasks for which the patience was not enough."""
    began, this = time.monotonic(), get_ident()
    deadline = _exit_deadline or began + _PATIENCE
    # A task may start others before it ends.
    while others := [task for task in _running - _given_up if task.thread != this]:
        if (now := time.monotonic()) > deadline:
            return others
        # `sys.last_type` is the error for which the interpreter exits.
        was_interrupted = _saw_ctrl_c or getattr(sys, "last_type", None) is KeyboardInterrupt
        if exiting.is_set and was_interrupted and now - began > _PATIENCE_AFTER_CTRL_C:
            inside = engine_gate.threads_inside()
            if not any(task.thread in inside for task in others):
                return others
        others[0].finished.wait(_POLL)
    return []


def _wait_for_engines() -> None:
    """Wait until no daemon thread of the program is inside an engine."""
    # This thread is in no engine, but Ctrl-C in a `with engine_gate` may have left its entry.
    while {*engine_gate.threads_inside()} - {get_ident()} and time.monotonic() < (_exit_deadline or 0.0):
        time.sleep(0.001)


def _wait_for_ends() -> None:
    """Wait until the system has ended the threads whose work is done.

    A thread that has hashed a file frees OpenSSL's memory when it ends. If the process has begun to free the same
    memory by then, the process ends with SIGSEGV: seen in 5 of some 300 processes with little memory on a busy
    machine.
    """
    deadline = time.monotonic() + _PATIENCE_FOR_ENDS
    this = get_native_id()
    while any(each != this and os.path.exists(f"/proc/self/task/{each}") for each in _ending):
        if time.monotonic() > deadline:
            return
        time.sleep(0.001)


def _after_fork_in_child() -> None:
    global _is_watching, _exit_deadline, _main_thread
    _main_thread = get_ident()
    exiting.reset()
    engine_gate.reset()
    _is_watching, _exit_deadline = False, None
    for task in _running:
        task.is_lost = True
        task.error = RuntimeError("the process forked while this was under way")
        task.finished.reset()
        task.finished.set()
    _running.clear()
    _ending.clear()
    for reset in _resets_in_child:
        reset()


def reset_in_forked_child(reset: Callable[[], object]) -> None:
    """Call ``reset`` in every child that this process forks."""
    _resets_in_child.append(reset)


# A fork in the middle of an import leaves the child with a module that is half there, for good. So the fork waits until
# the tasks end: as a rule a tenth of a second, and at most `_PATIENCE`.
os.register_at_fork(before=lambda: _wait_whatever_signals_say(_wait_for_tasks), after_in_child=_after_fork_in_child)
