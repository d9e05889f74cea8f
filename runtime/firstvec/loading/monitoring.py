"""What a load tells a program that listens: a line of JSON, log records, OpenTelemetry spans.

This module is imported only where something listens. Nothing here raises: an error here becomes one warning.
"""

from __future__ import annotations

import atexit
import os
import sys
import time

from firstvec import __version__
from firstvec.loading.report import SPAN_ATTRIBUTES
from firstvec.process import threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from opentelemetry.context import Context

    from firstvec.loading.trace import Trace

_OFF = ("", "0")
_STDERR = ("1", "true", "yes", "on", "stderr")


class Watch:
    """What one load will tell. It is made in the thread that starts the load.

    Args:
        report: returns the load's report. It is kept until the load has ended, so a dropped model is freed at once.
        trace: of the load.
    """

    def __init__(self, report: Callable[[], dict[str, Any]], trace: Trace) -> None:
        self.parent = _current_context()
        self._report: Callable[[], dict[str, Any]] | None = report
        self._trace = trace
        self._values: dict[str, Any] = {}
        self._target = os.environ.get("FIRSTVEC_TRACE", "")
        if self._target not in _OFF:
            _unwritten.add(self)

    def load_ended(self, *, has_failed: bool) -> None:
        """Keep what the load did. Nobody has its provider yet."""
        try:
            if self._report is not None:
                self._values, self._report = self._report(), None
            if has_failed:
                self._write("failed")
        except Exception as error:
            _warn("FIRSTVEC_TRACE", error)

    def first_vector_computed(self) -> None:
        """Write the line, in the thread that computed the first vector."""
        if self in _unwritten:
            try:
                # numpy may still be imported in another thread. That is the longest stage of all, so wait for it.
                _wait_for_numpy()
                self._write("first vector")
            except Exception as error:
                _warn("FIRSTVEC_TRACE", error)

    def process_exits(self) -> None:
        """Write the line of a load that has given no vector."""
        try:
            if self._report is not None:  # the load hangs
                self._values = self._report()
            self._write("exit")
        except Exception as error:
            _warn("FIRSTVEC_TRACE", error)

    def _write(self, event: str) -> None:
        try:
            _unwritten.remove(self)
        except KeyError:  # another thread was first, or no line is asked for
            return
        import json

        line = {
            "event": event,
            "time": _utc(self._trace.began_ns),
            "pid": os.getpid(),
            "firstvec": __version__,
            **self._values,
            "first_vector_ms": self._trace.first_vector_ms,
            "stages": self._trace.to_values(),
        }
        try:
            _append(self._target, json.dumps(line) + "\n")
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            _warn(f"FIRSTVEC_TRACE={self._target} cannot be written", error)


def watch_load(report: Callable[[], dict[str, Any]], trace: Trace) -> Watch | None:
    """Watch a load that is about to be started."""
    try:
        return Watch(report, trace)
    except Exception as error:
        _warn("the load is not watched", error)
        return None


def tell(values: dict[str, Any], trace: Trace, error: BaseException | None, watch: Watch | None) -> None:
    """Log a load that has ended, and record its spans, where something listens. May wait for the import of numpy.

    Args:
        values: the load's report.
        trace: its stages.
        error: the error with which it ended, if it did.
        watch: what `watch_load` returned.
    """
    try:
        _log(values, trace, error)
    except Exception as problem:
        _warn("the load is not logged", problem)
    if "opentelemetry.trace" in sys.modules:
        try:
            _record_spans(values, trace, error, watch.parent if watch is not None else None)
        except Exception as problem:
            _warn("the load's spans are not recorded", problem)
    if watch is not None:
        watch.parent = None  # a model lives longer than the request that loaded it, whose spans must not stay


def _log(values: dict[str, Any], trace: Trace, error: BaseException | None) -> None:
    if "logging" not in sys.modules:
        return
    import logging

    logger = logging.getLogger("firstvec")
    if not logger.isEnabledFor(logging.INFO):
        return
    name, milliseconds = values["model"], 1e3 * values["seconds"]
    if error is not None:
        # This is no warning, because the caller who asks for the provider gets the error itself.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"  # one line
        logger.info("%s: not loaded, after %.1f ms: %s", name, milliseconds, reason)
    else:
        logger.info(
            "%s: %s loaded in %.1f ms: %s, %s, %s; files %s; self-test %s",
            *(name, values["artifact"], milliseconds, values["engine"], values["device"], values["session"]),
            *(values["verification"], values["self_test"]),
        )
    if logger.isEnabledFor(logging.DEBUG):
        for stage in _stages_of_load(values, trace):
            logger.debug(
                "%s: %s: %.1f ms, from %.1f ms, thread %d",
                *(name, stage["name"], stage["ms"], stage["at_ms"], stage["thread"]),
            )


def _record_spans(values: dict[str, Any], trace: Trace, error: BaseException | None, parent: Context | None) -> None:
    from opentelemetry import trace as telemetry
    from opentelemetry.context import Context

    began = trace.began_ns
    # A sampler sees the attributes that are known at the start of a span.
    attributes = {f"firstvec.{name}": values[name] for name in SPAN_ATTRIBUTES if values[name] is not None}
    if values["fallbacks"]:
        attributes["firstvec.fallbacks"] = [f"{each['artifact']}: {each['error']}" for each in values["fallbacks"]]
    tracer = telemetry.get_tracer("firstvec", __version__)
    # A load without a parent is a root, whatever this thread is doing.
    span = tracer.start_span(
        "firstvec.load", parent if parent is not None else Context(), attributes=attributes, start_time=began
    )
    if not span.is_recording():
        return
    end = began + round(1e9 * values["seconds"])
    if error is not None:
        span.record_exception(error, timestamp=end)
        span.set_status(telemetry.Status(telemetry.StatusCode.ERROR, f"{type(error).__name__}: {error}"))
    inside = telemetry.set_span_in_context(span, Context())
    for stage in _stages_of_load(values, trace):
        start = began + round(1e6 * stage["at_ms"])
        child = tracer.start_span(
            f"firstvec.{stage['name']}", inside, attributes={"thread.id": stage["thread"]}, start_time=start
        )
        child.end(start + round(1e6 * stage["ms"]))
    span.end(end)


def _stages_of_load(values: dict[str, Any], trace: Trace) -> list[dict[str, Any]]:
    """Return the stages of the load itself. numpy's import is one of them, and those of a hand-over are not."""
    _wait_for_numpy()
    return [stage for stage in trace.to_values() if stage["at_ms"] <= 1e3 * values["seconds"]]


def _current_context() -> Context | None:
    """Return OpenTelemetry's context of this thread. None: the program does not use OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import context

    return context.get_current()


def _wait_for_numpy() -> None:
    if "firstvec.vectors" in sys.modules:
        from firstvec.vectors import wait_for_numpy

        wait_for_numpy()


def _append(target: str, line: str) -> None:
    """Write the line with one call, so that the lines of several processes do not mix."""
    if target.lower() in _STDERR:
        if sys.stderr is not None:
            sys.stderr.write(line)
            sys.stderr.flush()
        return
    # O_NONBLOCK: the open must not wait for a reader if the path is a pipe.
    descriptor = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
    try:
        data = line.encode()
        if os.write(descriptor, data) < len(data):
            raise OSError("only a part of the line was written")
    finally:
        os.close(descriptor)


def _utc(nanoseconds: int) -> str:
    """Unix time → ISO 8601, with milliseconds."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest // 10**6:03d}Z"


def _warn(what: str, error: Exception) -> None:
    """Log one warning of each kind in a process."""
    if what in _warned:
        return
    _warned.add(what)
    try:
        import logging

        logging.getLogger("firstvec").warning("%s: %s: %s", what, type(error).__name__, error)
    except Exception:  # a handler or filter of the program may raise anything, and no load ends because of it
        return


_warned: set[str] = set()
_unwritten: set[Watch] = set()
"""The watches whose line is not written yet."""


@atexit.register
def _before_exit() -> None:
    # atexit runs this before the functions that were registered earlier. One of them is as a rule the shutdown of
    # OpenTelemetry's exporter, which takes no span later.
    threads.before_exit()
    for watch in list(_unwritten):
        watch.process_exits()


# The parent writes the lines of its own loads.
threads.reset_in_forked_child(_unwritten.clear)
