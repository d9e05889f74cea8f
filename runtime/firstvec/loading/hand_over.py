"""The hand-over: behind the session that answered first, build the one that runs fastest, and swap it in."""

from __future__ import annotations

import sys
import time
import weakref
from _thread import allocate_lock, get_ident
from functools import partial

from firstvec.errors import IncompatibleArtifact
from firstvec.loading.opening import VerifiedArtifact, open_artifact
from firstvec.machine.profile import ResourceProfile
from firstvec.process.threads import ProcessExiting, Task, exiting
from firstvec.selection import memory_shortage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firstvec.loading.session_in_use import SessionInUse
    from firstvec.loading.trace import Trace

DELAY = 0.25
"""Seconds until the building begins, so that a program that ends after one vector does not wait for a session."""
_PATIENCE = 5.0
"""Seconds that a replaced session is kept for the runs that still use it. A fork waits for this thread meanwhile."""


class HandOver:
    """Waits until ``after_tokens`` tokens were computed, then builds the throughput session in a thread."""

    def __init__(self, sessions: SessionInUse, verified: VerifiedArtifact, after_tokens: int, trace: Trace) -> None:
        self.state = "waiting"  # then "done", or "failed: …" with the reason
        self._sessions = weakref.ref(sessions)
        self._verified = verified
        self._left = after_tokens
        self._trace = trace
        self._begun = allocate_lock()  # taken once, in the thread: Ctrl-C that comes before lets a later run try again

    def count(self, tokens: int) -> None:
        """Count the tokens of a run. Threads may count at once: then a hand-over comes a little later."""
        self._left -= tokens
        if self._left <= 0 and not self._begun.locked():
            Task(partial(self._build, get_ident()))

    def _build(self, caller: int) -> None:
        if not self._begun.acquire(blocking=False):
            return
        if exiting.wait(DELAY) or (sessions := self._sessions()) is None or sessions.closed:
            return
        del sessions
        try:
            model, artifact = self._verified.manifest.model, self._verified.artifact
            if reason := memory_shortage(model, artifact, ResourceProfile.detect(), quick_start=False):
                raise IncompatibleArtifact(artifact.id, reason)
            opened = open_artifact(self._verified, quick_start=False, trace=self._trace)
        except Exception as error:  # whatever it is, the provider goes on with the session that it has
            if not isinstance(error, ProcessExiting):
                self.state = f"failed: {error}"
                import logging

                logging.getLogger("firstvec").warning("the quick-start session stays in use: %s", error)
            return
        if (sessions := self._sessions()) is None:
            opened.session.close()
            return
        replaced, unused = [sessions.swap(opened.session)], [object()]
        if not sessions.closed:
            self.state = "done"
        del sessions, opened
        # Closing takes milliseconds. In a caller's thread it would run in a destructor, where Ctrl-C is lost. So this
        # thread waits until no run uses the replaced session, unless it is the caller's: no other could be started.
        deadline = time.monotonic() + (_PATIENCE if get_ident() != caller else 0.0)
        while sys.getrefcount(replaced[0]) > sys.getrefcount(unused[0]) and time.monotonic() < deadline:
            if exiting.wait(0.01):
                return
