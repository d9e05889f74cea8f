"""The hand-over: behind the session that answered first, build the one that runs fastest, and swap it in."""

from __future__ import annotations

import weakref

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
"""Seconds between the run that asks for it and the building of the throughput session. A program that computes one
vector and ends never builds a session that it would only wait for."""


class HandOver:
    """Waits until ``after_tokens`` tokens were computed, then builds the throughput session in a thread.

    Args:
        sessions: where the new session is swapped in. It is not kept alive.
        verified: the artifact.
        after_tokens: how many tokens.
        trace: for the stages.
    """

    def __init__(self, sessions: SessionInUse, verified: VerifiedArtifact, after_tokens: int, trace: Trace) -> None:
        self.state = "waiting"
        """Then ``done``, or ``failed: …`` with the reason."""
        self._sessions = weakref.ref(sessions)
        self._verified = verified
        self._left = after_tokens
        self._not_started = [True]
        self._trace = trace

    def count(self, tokens: int) -> None:
        """Count the tokens of a run. Threads may count at once: then a hand-over comes a little later."""
        self._left -= tokens
        if self._left <= 0 and self._not_started:
            try:
                self._not_started.pop()
            except IndexError:  # another thread was first
                return
            Task(self._build)

    def _build(self) -> None:
        if exiting.wait(DELAY) or not self._is_needed():
            return
        try:
            model, artifact = self._verified.manifest.model, self._verified.artifact
            if reason := memory_shortage(model, artifact, ResourceProfile.detect(), quick_start=False):
                raise IncompatibleArtifact(artifact.id, reason)
            opened = open_artifact(self._verified, quick_start=False, trace=self._trace)
        except ProcessExiting:
            return
        except Exception as error:  # whatever it is, the provider goes on with the session that it has
            self.state = f"failed: {error}"
            import logging

            logging.getLogger("firstvec").warning("the quick-start session stays in use: %s", error)
            return
        if (sessions := self._sessions()) is not None:
            sessions.swap(opened.session)
            if not sessions.closed:
                self.state = "done"
        else:
            opened.session.close()

    def _is_needed(self) -> bool:
        sessions = self._sessions()
        return sessions is not None and not sessions.closed
