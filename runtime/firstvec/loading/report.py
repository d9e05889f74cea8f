"""What a load did: the fields of `OptimizedEmbeddingLoader.report`, declared once."""

from __future__ import annotations

from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Report(Record):
    """What a load did, as JSON values. What is not known yet is None."""

    model: str
    strategy: str
    state: str = "idle"  # or "loading", "loaded", "closed", "failed"
    artifact: str | None = None  # id of the artifact that answers
    engine: str | None = None  # with its version
    device: str | None = None
    session: str | None = None  # "quick-start" or "throughput"
    verification: str | None = None  # of the artifact's files: "hashed now", or "remembered" from an earlier load
    self_test: str | None = None  # "passed now", "passed before", or "none" where the bundle has no self-test
    fallbacks: tuple[dict[str, str], ...] = ()  # "artifact", "error" (class) and "reason" of each candidate that failed
    hand_over: str | None = None  # "waiting", "done", "failed: …"; None: the strategy hands nothing over
    error: str | None = None  # message of the error with which the load ended
    seconds: float = 0.0  # how long the load took, 0.0 until it has ended
    first_vector_ms: float | None = None  # milliseconds from the load's start to the end of the provider's first run
    started: float | None = None  # ``time.perf_counter()`` at the load's start
    stages: tuple[dict[str, Any], ...] = ()
    """``name``, ``at_ms`` (begin), ``ms`` (length) and ``thread`` of each. Stages of different threads overlap."""

    def to_values(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**self.to_dict(), "fallbacks": [dict(each) for each in self.fallbacks], "stages": [*self.stages]}


# Fields that are attributes of a load's span, behind "firstvec.".
SPAN_ATTRIBUTES = ("model", "strategy", "artifact", "engine", "device", "session", "verification", "self_test")
