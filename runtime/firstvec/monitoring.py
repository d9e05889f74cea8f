"""What a load tells a program that listens: a line of JSON, log records, OpenTelemetry spans.

Imported only where something listens. Nothing here raises: what goes wrong is one warning.
"""

from __future__ import annotations

import atexit
import os
import sys
import time

from firstvec import __version__, background

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from opentelemetry.context import Context

    from firstvec.load import Load

_OFF = ("", "0")
_STDERR = ("1", "true", "yes", "on", "stderr")
_ATTRIBUTES = ("model", "strategy", "artifact", "engine", "device", "session", "verification", "self_test")
"""Fields of a report that are attributes of its span, behind ``firstvec.``."""


class Watch:
    """What one load will tell: made where it is started, in the thread that starts it.

    It refers to the load until that has ended, and never to its provider: a model that is dropped is freed as ever.
    """

    def __init__(self, load: Load) -> None:
        self.parent = _current_context()
        self._load: Load | None = load
        self._trace = load.trace
        self._report: dict[str, Any] = {}
        self._target = os.environ.get("FIRSTVEC_TRACE", "")
        if self._target not in _OFF:
            _pending.add(self)

    def ended(self, load: Load) -> None:
        """The load has ended, and nobody has its provider yet."""
        try:
            self._report, self._load = load.report(), None
            if load.error is not None:
                self._write("failed")
        except Exception as error:
            _warn("FIRSTVEC_TRACE", error)

    def first_vector(self) -> None:
        """The first vector was computed, in the calling thread."""
        if self in _pending:
            try:
                # It may still be imported beside: the longest stage of all is worth the wait.
                _wait_for_numpy()
                self._write("first vector")
            except Exception as error:
                _warn("FIRSTVEC_TRACE", error)

    def exit(self) -> None:
        """The interpreter is about to exit."""
        try:
            if self._load is not None:  # it hangs
                self._report = self._load.report()
            self._write("exit")
        except Exception as error:
            _warn("FIRSTVEC_TRACE", error)

    def _write(self, event: str) -> None:
        try:
            _pending.remove(self)
        except KeyError:  # another thread was first, or it is not asked for
            return
        import json

        line = {
            "event": event,
            "time": _utc(self._trace.began_ns),
            "pid": os.getpid(),
            "firstvec": __version__,
            **self._report,
            "first_vector_ms": self._trace.first_vector_ms,
            "stages": self._trace.report(),
        }
        try:
            _append(self._target, json.dumps(line) + "\n")
        except (OSError, ValueError) as error:  # a closed stream is a ValueError
            _warn(f"FIRSTVEC_TRACE={self._target} cannot be written", error)


def watch(load: Load) -> Watch | None:
    """Watch a load that is about to be started."""
    try:
        return Watch(load)
    except Exception as error:
        _warn("the load is not watched", error)
        return None


def tell(load: Load, watch: Watch | None) -> None:
    """Log a load that has ended, and record its spans, where somebody listens. May wait for the import of numpy."""
    try:
        _log(load)
    except Exception as error:
        _warn("the load is not logged", error)
    if "opentelemetry.trace" in sys.modules:
        try:
            _record_spans(load, watch.parent if watch is not None else None)
        except Exception as error:
            _warn("the load's spans are not recorded", error)
    if watch is not None:
        watch.parent = None  # the spans of a request are not kept for as long as the model


def _log(load: Load) -> None:
    if "logging" not in sys.modules:
        return
    import logging

    logger = logging.getLogger("firstvec")
    if not logger.isEnabledFor(logging.INFO):
        return
    report = load.report()
    name, milliseconds = report["model"], 1e3 * report["seconds"]
    if (error := load.error) is not None:
        # Not a warning: whoever asks for the provider gets the error itself.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"  # one line
        logger.info("%s: not loaded, after %.1f ms: %s", name, milliseconds, reason)
    else:
        logger.info(
            "%s: %s loaded in %.1f ms: %s, %s, %s; files %s; self-test %s",
            *(name, report["artifact"], milliseconds, report["engine"], report["device"], report["session"]),
            *(report["verification"], report["self_test"]),
        )
    if logger.isEnabledFor(logging.DEBUG):
        for stage in _stages(load):
            logger.debug(
                "%s: %s: %.1f ms, from %.1f ms, thread %d",
                *(name, stage["name"], stage["ms"], stage["at_ms"], stage["thread"]),
            )


def _record_spans(load: Load, parent: Context | None) -> None:
    from opentelemetry import trace
    from opentelemetry.context import Context

    report, began = load.report(), load.trace.began_ns
    # What is known at the start is what a sampler sees.
    attributes = {f"firstvec.{name}": report[name] for name in _ATTRIBUTES if report[name] is not None}
    if report["fallbacks"]:
        attributes["firstvec.fallbacks"] = [f"{each['artifact']}: {each['error']}" for each in report["fallbacks"]]
    tracer = trace.get_tracer("firstvec", __version__)
    # Without a parent of its own it is a root, whatever this thread is doing.
    span = tracer.start_span(
        "firstvec.load", parent if parent is not None else Context(), attributes=attributes, start_time=began
    )
    if not span.is_recording():
        return
    end = began + round(1e9 * report["seconds"])
    if load.error is not None:
        span.record_exception(load.error, timestamp=end)
        span.set_status(trace.Status(trace.StatusCode.ERROR, f"{type(load.error).__name__}: {load.error}"))
    inside = trace.set_span_in_context(span, Context())
    for stage in _stages(load):
        start = began + round(1e6 * stage["at_ms"])
        child = tracer.start_span(
            f"firstvec.{stage['name']}", inside, attributes={"thread.id": stage["thread"]}, start_time=start
        )
        child.end(start + round(1e6 * stage["ms"]))
    span.end(end)


def _stages(load: Load) -> list[dict[str, Any]]:
    """The stages of the load itself, numpy's import among them, and not those of a hand-over."""
    _wait_for_numpy()
    return [stage for stage in load.trace.report() if stage["at_ms"] <= 1e3 * load.seconds]


def _current_context() -> Context | None:
    """OpenTelemetry's context of this thread; None where the program does not use it."""
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
    # Not to wait for a reader, should it be a pipe.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(target, flags, 0o666)
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
    """One warning a process of each kind."""
    if what in _warned:
        return
    _warned.add(what)
    try:
        import logging

        logging.getLogger("firstvec").warning("%s: %s: %s", what, type(error).__name__, error)
    except Exception:  # a handler or filter of the program's own may raise anything: no load ends for it
        return


_warned: set[str] = set()
_pending: set[Watch] = set()
"""Whose line is not written yet."""


@atexit.register
def _before_exit() -> None:
    # Before what was registered earlier, as a rule the shutdown of OpenTelemetry's exporter: it takes no span later.
    background.before_exit()
    for watch in list(_pending):
        watch.exit()


if hasattr(os, "register_at_fork"):
    # The parent writes the lines of its loads.
    os.register_at_fork(after_in_child=_pending.clear)
