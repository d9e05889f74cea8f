"""Give back the import locks that Ctrl-C left with the main thread.

CPython raises KeyboardInterrupt in the main thread between any two instructions, also inside importlib. There importlib
can keep a lock for good: in `_get_module_lock` the one lock of all imports, in `_ModuleLockManager.__enter__` the lock
of one module. Then every thread that imports waits. A load imports modules in threads, and the exit waits for these
threads, so a Ctrl-C during an import of the program's own could hang the process (docs/reliability.md has figures).
"""

from __future__ import annotations

import _imp
import _signal  # type: ignore[import-not-found]  # `import signal` imports enum, which takes 3 ms
import sys
import time
from _thread import get_ident, start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

_IMPORTLIB = "<frozen importlib._bootstrap>"
_POLL = 0.1
"""Seconds between two looks of the watch."""
_LOOKS = 10
_BETWEEN_LOOKS = 0.05
"""Seconds. importlib holds the one lock of all imports while it looks for a module's file, which takes little time.
Held at 10 looks, between which no module was imported, it is held for good."""


def release_left_locks() -> None:
    """Release the import locks that this thread holds and no longer uses. Call it in the main thread.

    The locks of imports under way stay: a module that is imported, or a signal handler, may be what calls this.
    """
    frames: list[FrameType] = []  # in which this thread runs importlib's code
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTLIB:
            frames.append(frame)
        frame = frame.f_back
    uses_the_one_lock = any(frame.f_code.co_name in ("_get_module_lock", "cb") for frame in frames)
    while _imp.lock_held() and not uses_the_one_lock:
        try:
            _imp.release_lock()
        except RuntimeError:  # another thread holds the lock, and uses it
            break
    # A module's lock is held by `_find_and_load` and `_exec`, whose local is the name, and by `_load(spec)`.
    under_way = {frame.f_locals.get("name") for frame in frames}
    under_way |= {getattr(frame.f_locals.get("spec"), "name", None) for frame in frames}
    # importlib has no public list of its locks. Without this list there is nothing to release.
    locks: dict[Any, Any] = getattr(sys.modules.get("_frozen_importlib"), "_module_locks", {})
    for reference in list(locks.values()):
        lock = reference()
        while lock is not None and getattr(lock, "owner", None) == get_ident() and lock.name not in under_way:
            lock.release()


def watch_imports(main_thread: int, are_threads_at_work: Callable[[], bool]) -> None:
    """Send the main thread a Ctrl-C that Python has lost, as long as firstvec's threads may import something.

    Ctrl-C can come in a weak reference's callback in importlib. Then Python ignores the exception, but the main thread
    keeps the one lock of all imports, and no other thread may release it. When the main thread then imports a module
    that another thread is importing, both wait for ever. So the main thread is sent SIGINT once more.

    The watch looks at the lock only. A frame of the main thread would keep importlib's objects alive, and the watch
    would then be the thread that runs their callbacks, and waits for the lock.
    """
    start_new_thread(_watch, (main_thread, are_threads_at_work))


def _watch(main_thread: int, are_threads_at_work: Callable[[], bool]) -> None:
    looks = modules = 0
    while looks or are_threads_at_work():
        time.sleep(_BETWEEN_LOOKS if looks else _POLL)
        # A thread that imports a large package gives this thread the GIL just where it looks for files, with the lock.
        before, modules = modules, len(sys.modules)
        looks = looks + 1 if _imp.lock_held() and modules == before else 0
        if looks == _LOOKS:
            _signal.pthread_kill(main_thread, _signal.SIGINT)
            looks = 0
