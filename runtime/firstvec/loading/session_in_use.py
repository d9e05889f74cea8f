"""The session that a provider uses: swapped at a hand-over, closed at the end, opened anew in a forked child."""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock

from firstvec.engines.session import run_session
from firstvec.errors import ClosedError
from firstvec.process.threads import ProcessLock, Task, engine_gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from firstvec.engines.session import Session
    from firstvec.loading.hand_over import HandOver


class _OwnedSession:
    """An engine's session. It is closed when nothing refers to it, so after the last run that uses it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.process = os.getpid()

    def __reduce__(self) -> str:
        raise TypeError("a session cannot be copied: load the model again")

    def __del__(
        self, getpid: Callable[[], int] = os.getpid, is_finalizing: Callable[[], bool] = sys.is_finalizing
    ) -> None:
        try:
            # A forked child has the parent's session, but not the threads that freeing the session would wait for.
            if self.process == getpid():
                self.session.close()
            else:
                self.session.abandon()
        except (TypeError, AttributeError):
            if not is_finalizing():  # at the interpreter's exit, None is in place of what the modules had
                raise


class SessionInUse:
    """The session of one artifact, from its opening to `close`."""

    def __init__(
        self,
        artifact_id: str,
        session: Session,
        open_again: Callable[[], Session],
        after_first_run: Callable[[], object] = lambda: None,
    ) -> None:
        self._artifact_id = artifact_id
        self._owned: _OwnedSession | None = _OwnedSession(session)
        self._open_again = open_again  # another session of the same verified files, for a forked child
        self._lock = ProcessLock()
        self._after_first_run = after_first_run
        self._not_run = allocate_lock()  # taken once
        self.hand_over: HandOver | None = None  # None: the strategy hands nothing over

    @property
    def session(self) -> Session | None:
        """The session of the next run. None once closed. Opens nothing, takes no lock, never raises."""
        owned = self._owned
        return owned.session if owned is not None else None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._owned is None

    def lease(self) -> Lease:
        """Return the right to run, for one call of the provider. Raise ClosedError if the session is closed."""
        return Lease(self, self._current(None))

    def close(self) -> None:
        """Let later calls raise ClosedError, and return at once. The last run that is under way frees the memory."""
        self._replace(None)

    def swap(self, session: Session) -> _OwnedSession:
        """Let later runs use ``session``. Return the other one, which is closed where its last reference is dropped."""
        owned = _OwnedSession(session)
        return self._replace(owned) or owned  # a closed one stays closed

    def _replace(self, new: _OwnedSession | None) -> _OwnedSession | None:
        """Return the old session, which the caller drops outside of the lock: freeing it takes milliseconds."""
        with self._lock.here():
            if (old := self._owned) is not None:
                self._owned = new
        return old

    def _current(self, leased: _OwnedSession | None) -> _OwnedSession:
        """Return the session for the next run. Once closed, that is what the call under way has leased."""
        owned = self._owned or leased
        if owned is None:
            raise ClosedError("the provider was closed: get a new one with get_provider() after start_loading()")
        if owned.process == os.getpid():
            return owned
        # An engine's threads stay in the parent, so a forked child needs a session of its own.
        with self._lock.here():
            if self._owned is not None and self._owned.process != os.getpid():
                # A task, so that a fork of this child waits until the session is open.
                self._owned = _OwnedSession(Task(self._open_again).result())
        return self._current(None)

    def _ran(self, tokens: int) -> None:
        if self._not_run.acquire(blocking=False):
            self._after_first_run()
        if self.hand_over is not None:
            self.hand_over.count(tokens)


class Lease:
    """The right of one call to run. A hand-over counts from the next run on, a close() from the next call on."""

    def __init__(self, sessions: SessionInUse, owned: _OwnedSession) -> None:
        self._sessions = sessions
        self._owned = owned

    @property
    def session(self) -> Session:
        """The session of the next run."""
        self._owned = self._sessions._current(self._owned)
        return self._owned.session

    def run(self, rows: Sequence[Sequence[int]]) -> memoryview[float]:
        """Compute the vectors of token ids, float32, (len(rows), embedding_dim). May raise IncompatibleArtifact."""
        session = self.session
        with engine_gate:
            vectors = run_session(session, self._sessions._artifact_id, rows)
        self._sessions._ran(sum(map(len, rows)))
        return vectors
