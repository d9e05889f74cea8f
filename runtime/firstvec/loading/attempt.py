"""One attempt to load a model: from a name to a provider, with every step that can overlap overlapped.

The first vector comes no sooner than the longest chain of steps: the engine's library, its environment, the session,
the run. So that chain begins before the manifest is read. The rest (manifest, choice, verification, vocabulary, numpy)
happens beside it, while the engine works without the GIL.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from functools import partial
from importlib import import_module

from firstvec.engines.table import ENGINES
from firstvec.errors import (
    ArtifactError,
    FirstvecError,
    IntegrityError,
    LoadError,
    LoadTimeout,
    NoCompatibleArtifact,
)
from firstvec.loading.trace import Trace
from firstvec.machine.limits import address_space_left
from firstvec.process.threads import Event, ProcessExiting, Task, engine_gate, watch_for_lost_ctrl_c
from firstvec.record import Record
from firstvec.strategy import STRATEGIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Any

    from firstvec.bundle.manifest import Artifact, Manifest
    from firstvec.engines.session import EngineModule
    from firstvec.loading.monitoring import Watch
    from firstvec.loading.opening import OpenArtifact, VerifiedArtifact
    from firstvec.machine.profile import ResourceProfile
    from firstvec.options import Options
    from firstvec.provider import EmbeddingProvider
    from firstvec.selection import Choice
    from firstvec.text.tokenizer import Tokenizer

_INFO = 20  # logging.INFO


class Load:
    """An attempt to load. Its provider, or its error, is final.

    Args:
        options: what to load and how.
        profile: the machine.
    """

    def __init__(self, options: Options, profile: ResourceProfile) -> None:
        self.provider: EmbeddingProvider[Any, Any] | None = None
        self.error: BaseException | None = None
        self.seconds = 0.0
        """How long the load took. 0.0 until it has ended."""
        self.trace = Trace()
        self._options = options
        self._strategy = STRATEGIES[options.strategy]
        self._profile = profile
        self._done = Event()
        self._tokenizer: Tokenizer | None = None
        self._tokenizer_done = Event()
        self._verification: str | None = None
        self._self_test: str | None = None
        self._fallbacks: list[dict[str, str]] = []
        self._traceback: TracebackType | None = None
        self._watch: Watch | None = None
        self._task: Task[None] | None = None

    @property
    def is_usable(self) -> bool:
        """Whether the load is under way, or its provider is there and open."""
        if self.provider is not None:
            return not self.provider.closed
        return self.is_under_way

    @property
    def is_under_way(self) -> bool:
        """Whether the load has not ended."""
        return self.provider is None and self.error is None

    @property
    def is_lost(self) -> bool:
        """Whether the process forked while the load was under way: its thread is in the parent, so it never ends."""
        return self.is_under_way and self._task is not None and self._task.is_lost

    def start(self) -> None:
        """Load, in a thread."""
        if os.environ.get("FIRSTVEC_TRACE", "0") not in ("", "0") or "opentelemetry.trace" in sys.modules:
            from firstvec.loading.monitoring import watch_load

            # Here, in the thread that asked for the load: that thread's span is the parent.
            self._watch = watch_load(self.to_values, self.trace)
        self._task = Task(self._run)
        watch_for_lost_ctrl_c()

    def result(self, timeout: float | None) -> EmbeddingProvider[Any, Any]:
        """Wait for the provider. Raise the load's error, or LoadTimeout."""
        self._wait(self._done, timeout)
        if self.provider is None:
            raise self._final_error()
        return self.provider

    def tokenizer(self, timeout: float | None) -> Tokenizer:
        """Wait for the tokenizer, which is there before the session. Raise the load's error, or LoadTimeout."""
        self._wait(self._tokenizer_done, timeout)
        if self._tokenizer is None:
            raise self._final_error()
        return self._tokenizer

    def to_values(self) -> dict[str, Any]:
        """Return what the load did, as JSON values: see `firstvec.loading.report.Report`."""
        from firstvec.loading.report import Report

        provider, error, trace = self.provider, self.error, self.trace
        session = provider.session if provider is not None else None
        if provider is not None:
            state = "loaded" if session is not None else "closed"
        else:
            state = "loading" if error is None else "failed"
        hand_over = provider.hand_over_state if provider is not None else None
        if session is None and hand_over == "waiting":  # a closed provider waits for nothing
            hand_over = None
        return Report(
            model=self._options.model_name,
            strategy=self._options.strategy,
            state=state,
            artifact=provider.artifact.id if provider is not None else None,
            engine=session.engine if session is not None else None,
            device=provider.device if provider is not None else None,
            session=session.kind if session is not None else None,
            verification=self._verification,
            self_test=self._self_test,
            fallbacks=tuple(self._fallbacks),
            hand_over=hand_over,
            error=str(error) if error is not None else None,
            seconds=round(self.seconds, 6),
            first_vector_ms=trace.first_vector_ms,
            started=trace.began,
            stages=tuple(trace.to_values()),
        ).to_values()

    def _final_error(self) -> BaseException:
        """Return the error as the load left it. A raise adds to the traceback, and every call raises the same error."""
        assert self.error is not None
        return self.error.with_traceback(self._traceback)

    def _wait(self, event: Event, timeout: float | None) -> None:
        if not event.wait(timeout):
            raise LoadTimeout(self._options.model_name, timeout or 0.0)

    def _run(self) -> None:
        try:
            provider = self._load()
            self.seconds = time.perf_counter() - self.trace.began
            self.provider = provider
        except FirstvecError as error:
            self._fail(error)
        except Exception as error:
            hint = "run `firstvec doctor` to see what this machine lacks"
            if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
                hint = "close some files, or raise the limit (`ulimit -n`), and try again"
            name = self._options.model_name
            failure = LoadError(f"{name} could not be loaded: {type(error).__name__}: {error}; {hint}")
            failure.__cause__ = error
            self._fail(failure)
        except BaseException as error:  # Ctrl-C, where no thread could be started
            name, kind = self._options.model_name, type(error).__name__
            self._fail(LoadError(f"{name}: the load was interrupted by {kind}; try again"))
            raise
        finally:
            if self._watch is not None:
                # A load that the exit stopped has not failed: its line is written by the exit.
                has_failed = self.error is not None and not isinstance(self.error, ProcessExiting)
                self._watch.load_ended(has_failed=has_failed)
            self._done.set()
            self._tokenizer_done.set()
            self._tell_listeners()

    def _fail(self, error: BaseException) -> None:
        self.seconds = time.perf_counter() - self.trace.began
        _clear_frames(error)
        self._traceback = error.__traceback__
        self.error = error

    def _tell_listeners(self) -> None:
        """Log the load and record its spans, where something listens. Nobody waits for the load any more."""
        has_listener = self._watch is not None or "opentelemetry.trace" in sys.modules
        if not has_listener and "logging" in sys.modules:
            import logging  # it is in sys.modules, but another thread may be in the middle of its import

            has_listener = logging.getLogger("firstvec").isEnabledFor(_INFO)
        if has_listener:
            from firstvec.loading.monitoring import tell

            tell(self.to_values(), self.trace, self.error, self._watch)
            self._watch = None

    def _load(self) -> EmbeddingProvider[Any, Any]:
        trace = self.trace
        # Where addresses are limited, nothing starts early: the engine and numpy would end the process if the addresses
        # do not suffice, so the choice of the artifact looks at the memory first.
        may_start_early = address_space_left() is None
        engine = _start_early(self._options, self._profile, trace) if may_start_early else None
        if self._options.output == "numpy" and may_start_early:
            from firstvec.vectors import import_numpy_ahead

            # Nobody waits for numpy here. The first vector that has to be an array does.
            import_numpy_ahead(trace)
        preparing = Task(partial(_prepare, self._options, self._profile, trace, self._have_tokenizer))
        if engine is not None:
            with trace.stage(f"{engine[0]}: environment"), engine_gate:
                engine[1].start()
        prepared = preparing.result()
        verified, opened = self._open_candidate(prepared)
        return self._make_provider(prepared, verified, opened)

    def _have_tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokenizer_done.set()

    def _open_candidate(self, prepared: Prepared) -> tuple[VerifiedArtifact, OpenArtifact]:
        """Open the first candidate that works.

        Raises:
            ArtifactError: there was one candidate, and it failed.
            NoCompatibleArtifact: each of several candidates failed.
        """
        from firstvec.loading.opening import open_artifact

        errors: list[ArtifactError] = []
        for artifact in prepared.choice.candidates:
            try:
                verified = prepared.verify(artifact, self.trace)
                opened = open_artifact(verified, quick_start=self._strategy.quick_start, trace=self.trace)
            except ArtifactError as error:
                errors.append(error)
                self._fallbacks.append({"artifact": artifact.id, "error": type(error).__name__, "reason": error.reason})
                continue
            if errors:
                _warn_of_fallback(prepared.manifest, errors, artifact)
                # Each traceback refers to this frame, and so to the session: it would not be freed with the provider.
                for each in (each for error in errors for each in _with_causes(error)):
                    each.__traceback__ = None
            self._verification, self._self_test = verified.verification, opened.self_test
            return verified, opened
        if len(errors) == 1:
            raise errors[0]
        raise NoCompatibleArtifact(
            prepared.manifest.model.name,
            "each candidate failed to load",
            [(error.artifact, error.reason) for error in errors],
            "Run `firstvec verify` to see which files were changed, and restore or rebuild the bundle."
            if any(isinstance(error, IntegrityError) for error in errors)
            else "Run `firstvec doctor` to see what this machine lacks.",
        )

    def _make_provider(
        self, prepared: Prepared, verified: VerifiedArtifact, opened: OpenArtifact
    ) -> EmbeddingProvider[Any, Any]:
        from firstvec.loading.session_in_use import SessionInUse
        from firstvec.provider import EmbeddingProvider

        strategy, trace = self._strategy, self.trace
        sessions = SessionInUse(
            verified.artifact.id,
            opened.session,
            partial(_open_again, verified, strategy.quick_start),
            partial(_first_vector, trace, self._watch),
        )
        if strategy.hand_over_after is not None and strategy.quick_start:
            from firstvec.loading.hand_over import HandOver

            sessions.hand_over = HandOver(sessions, verified, strategy.hand_over_after, trace)
        manifest, artifact = verified.manifest, verified.artifact
        return EmbeddingProvider(
            manifest, artifact, verified.device, prepared.tokenizer, sessions, self._options.output
        )


class Prepared(Record):
    """Everything but the engine."""

    manifest: Manifest
    choice: Choice
    tokenizer: Tokenizer
    first: VerifiedArtifact | ArtifactError
    """The chosen artifact, or why its files cannot be used."""

    def verify(self, artifact: Artifact, trace: Trace) -> VerifiedArtifact:
        """Return the artifact with verified files. The chosen one was verified already.

        Raises:
            ArtifactError, LoadError: as `firstvec.loading.opening.verify_artifact`.
        """
        if artifact is not self.choice.artifact:
            from firstvec.loading.opening import verify_artifact

            return verify_artifact(self.manifest, artifact, self.choice.device_of(artifact), trace)
        if isinstance(self.first, ArtifactError):
            raise self.first
        return self.first


def _start_early(options: Options, profile: ResourceProfile, trace: Trace) -> tuple[str, EngineModule] | None:
    """Load the library of the engine that a load on the CPU takes nearly always. Return its name and module."""
    if (options.device or profile.recommended_device) != "cpu":
        return None
    for name, row in ENGINES.items():
        if row.starts_early and not any(
            ENGINES[other].is_preferred_when_loaded for other in profile.loaded_engines if other in ENGINES
        ):
            # The import, and the opening of the library, hold the GIL: nothing could overlap with them.
            with trace.stage(f"{name}: library"), engine_gate:
                engine: EngineModule = import_module(row.module)
                try:
                    engine.load_library()
                except (ImportError, OSError):
                    return None  # opening the artifact will say so
            return name, engine
    return None


def _prepare(
    options: Options, profile: ResourceProfile, trace: Trace, have_tokenizer: Callable[[Tokenizer], None]
) -> Prepared:
    """Find the bundle, choose the artifact, open the tokenizer, and verify the artifact's files."""
    with trace.stage("manifest"):
        from firstvec.bundle.store import find_bundle

        manifest = find_bundle(options.model_name, options.require_signature, options.working_folder)
    with trace.stage("choice"):
        from firstvec.selection import select

        choice = select(manifest, profile, options)
    from firstvec.loading.opening import read_artifact_ahead, verify_artifact

    read_artifact_ahead(manifest, choice.artifact)
    with trace.stage("tokenizer"):
        from firstvec.text.tokenizer import open_tokenizer

        tokenizer = open_tokenizer(manifest)
        have_tokenizer(tokenizer)
    first: VerifiedArtifact | ArtifactError
    try:
        first = verify_artifact(manifest, choice.artifact, choice.device, trace)
    except ArtifactError as error:
        first = error
    with trace.stage("import provider"):
        # Here, where the other thread waits for the engine. An import that fails later would leave a session open.
        import firstvec.loading.session_in_use
        import firstvec.provider  # noqa: F401
    return Prepared(manifest=manifest, choice=choice, tokenizer=tokenizer, first=first)


def _open_again(verified: VerifiedArtifact, quick_start: bool) -> Any:
    """Open another session of the same files, for a forked child."""
    from firstvec.loading.opening import open_artifact

    return open_artifact(verified, quick_start=quick_start, self_test=False).session


def _first_vector(trace: Trace, watch: Watch | None) -> None:
    trace.note_first_vector()
    if watch is not None:
        watch.first_vector_computed()


def _clear_frames(error: BaseException) -> None:
    """Drop what the traceback of a caught error refers to, such as open files. The lines of the traceback stay.

    An error and the frames that it came through refer to each other, so without this call all that would stay until the
    garbage collector comes by.
    """
    for each in _with_causes(error):
        entry = each.__traceback__
        while entry is not None:
            try:
                entry.tb_frame.clear()
            except RuntimeError:  # the frame that has caught the error still runs
                pass
            entry = entry.tb_next


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _warn_of_fallback(manifest: Manifest, errors: list[ArtifactError], artifact: Artifact) -> None:
    import logging

    reasons = "; ".join(str(error) for error in errors)
    logging.getLogger("firstvec").warning(
        "%s: using %s, because a better artifact failed: %s", manifest.model.name, artifact.id, reasons
    )
