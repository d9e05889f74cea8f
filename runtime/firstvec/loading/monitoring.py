"""What a load tells a program that listens: a line of JSON, log records, OpenTelemetry spans.

This module is imported only where something listens. Nothing here raises: an error here becomes one warning.
"""

from __future__ import annotations

import atexit
import os
import sys

from firstvec import __version__
from firstvec.loading.report import SPAN_ATTRIBUTES
from firstvec.process import threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from opentelemetry.context import Context

    from firstvec.loading.attempt import Load


class Watch:
    """What one load will tell. It is made in the thread that starts the load."""

    def __init__(self, load: Load) -> None:
        self.parent: Context | None = None
        if "opentelemetry.trace" in sys.modules:
            from opentelemetry import context

            self.parent = context.get_current()
        self._load: Load | None = load  # until the load ends, so that a dropped model is freed at once
        self._trace = load.trace
        self._values: dict[str, Any] = {}
        self._target = os.environ.get("FIRSTVEC_TRACE", "")
        if self._target not in ("", "0"):
            _unwritten.add(self)

    def note(self, event: str) -> None:
        """Note that the load is ``loaded``, or write the line of its end: ``failed``, ``first vector`` or ``exit``."""
        _try("FIRSTVEC_TRACE", self._note, event)

    def _note(self, event: str) -> None:
        if self._load is not None:  # the load has ended, or it hangs while the process exits
            self._values, self._load = self._load.to_values(), None
        if event == "loaded" or self not in _unwritten:
            return
        if event == "first vector":
            _wait_for_numpy()
        try:
            _unwritten.remove(self)
        except KeyError:  # another thread was first
            return
        import json
        from datetime import UTC, datetime

        began = datetime.fromtimestamp(self._trace.began_ns / 1e9, UTC).isoformat(timespec="milliseconds")
        line = {
            "event": event,
            "time": began.replace("+00:00", "Z"),
            "pid": os.getpid(),
            "firstvec": __version__,
            **self._values,
            "first_vector_ms": self._trace.first_vector_ms,
            "stages": self._trace.to_values(),
        }
        _try(f"FIRSTVEC_TRACE={self._target} cannot be written", _append, self._target, json.dumps(line) + "\n")


def watch_load(load: Load) -> Watch | None:
    """Watch a load that is about to be started."""
    watch: Watch | None = _try("the load is not watched", Watch, load)
    return watch


def tell(load: Load, watch: Watch | None) -> None:
    """Log a load that has ended, and record its spans, where something listens. Wait for the import of numpy."""
    _try("the import of numpy is not measured", _wait_for_numpy)
    values = load.to_values()
    # Those of a hand-over are no part of the load. numpy's import is, and a short load may end before it begins.
    end = 1e3 * values["seconds"]
    values["stages"] = [each for each in values["stages"] if each["at_ms"] <= end or each["name"] == "import numpy"]
    if "logging" in sys.modules:
        _try("the load is not logged", _log, values, load.error)
    if "opentelemetry.trace" in sys.modules:
        parent = watch.parent if watch is not None else None
        _try("the load's spans are not recorded", _record_spans, values, load.trace.began_ns, load.error, parent)
    if watch is not None:
        watch.parent = None  # a model lives longer than the request that loaded it, whose spans must not stay


def _try(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function. Log its error as one warning of each kind in a process, and return None then."""
    try:
        return function(*arguments)
    except Exception as error:
        if what not in _warned:
            _warned.add(what)
            try:
                import logging

                logging.getLogger("firstvec").warning("%s: %s: %s", what, type(error).__name__, error)
            except Exception:  # a handler or filter of the program may raise anything, and no load ends because of it
                return None


def _log(values: dict[str, Any], error: BaseException | None) -> None:
    import logging

    logger = logging.getLogger("firstvec")
    if not logger.isEnabledFor(logging.INFO):
        return
    values = {**values, "ms": 1e3 * values["seconds"]}
    if error is not None:
        # This is no warning, because the caller who asks for the provider gets the error itself.
        values["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())}"  # one line
        logger.info("%(model)s: not loaded, after %(ms).1f ms: %(reason)s", values)
    else:
        logger.info(
            "%(model)s: %(artifact)s loaded in %(ms).1f ms: %(engine)s, %(device)s, %(session)s; "
            "files %(verification)s; self-test %(self_test)s",
            values,
        )
    if logger.isEnabledFor(logging.DEBUG):
        for stage in values["stages"]:
            text = "%(model)s: %(name)s: %(ms).1f ms, from %(at_ms).1f ms, thread %(thread)d"
            logger.debug(text, {"model": values["model"], **stage})


def _record_spans(values: dict[str, Any], began: int, error: BaseException | None, parent: Context | None) -> None:
    from opentelemetry import trace as telemetry
    from opentelemetry.context import Context

    # A sampler sees the attributes that are known at the start of a span.
    attributes = {f"firstvec.{name}": values[name] for name in SPAN_ATTRIBUTES if values[name] is not None}
    if values["fallbacks"]:
        attributes["firstvec.fallbacks"] = [f"{each['artifact']}: {each['error']}" for each in values["fallbacks"]]
    start_span = telemetry.get_tracer("firstvec", __version__).start_span
    # A load without a parent is a root, whatever this thread is doing.
    span = start_span("firstvec.load", parent or Context(), attributes=attributes, start_time=began)
    if not span.is_recording():
        return
    end = began + round(1e9 * values["seconds"])
    if error is not None:
        span.record_exception(error, timestamp=end)
        span.set_status(telemetry.Status(telemetry.StatusCode.ERROR, f"{type(error).__name__}: {error}"))
    inside = telemetry.set_span_in_context(span, Context())
    for stage in values["stages"]:
        start = began + round(1e6 * stage["at_ms"])
        attributes = {"thread.id": stage["thread"]}
        child = start_span(f"firstvec.{stage['name']}", inside, attributes=attributes, start_time=start)
        child.end(start + round(1e6 * stage["ms"]))
    span.end(end)


def _wait_for_numpy() -> None:
    """Wait for the longest stage of all, the import of numpy in another thread, if there is one."""
    if "firstvec.vectors" in sys.modules:
        from firstvec.vectors import wait_for_numpy

        wait_for_numpy()


def _append(target: str, line: str) -> None:
    """Write the line with one call, so that the lines of several processes do not mix."""
    if target.lower() in ("1", "true", "yes", "on", "stderr"):
        if sys.stderr is not None:
            print(line, end="", file=sys.stderr, flush=True)
        return
    # O_NONBLOCK: the open must not wait for a reader if the path is a pipe.
    descriptor = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
    try:
        data = line.encode()
        if os.write(descriptor, data) < len(data):
            raise OSError("only a part of the line was written")
    finally:
        os.close(descriptor)


_warned: set[str] = set()
_unwritten: set[Watch] = set()


@atexit.register
def _before_exit() -> None:
    # atexit runs this before the functions that were registered earlier. One of them is as a rule the shutdown of
    # OpenTelemetry's exporter, which takes no span later.
    threads.before_exit()
    for watch in list(_unwritten):
        watch.note("exit")


threads.reset_in_forked_child(_unwritten.clear)  # the parent writes the lines of its own loads
