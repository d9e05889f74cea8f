"""Ctrl-C in a run: the first one stops it after a shard, and the second one ends it at once."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from firstvec.bulk.progress import Progress


@contextmanager
def stop_on_ctrl_c(stopping: threading.Event, progress: Progress, message: str) -> Iterator[None]:
    """Let the first Ctrl-C set ``stopping`` and show the message, and the second one raise KeyboardInterrupt.

    Signals stay as they are in another thread than the main one, and where the program has a handler of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        stopping.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        progress.say(message)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # the program has a handler of its own, or ignores Ctrl-C
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
