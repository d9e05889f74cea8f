"""One attempt to load a model: from a name to a provider, with every step that can overlap overlapped.

firstvec's own engine starts in no time, so its load is a chain of steps in one thread: in the caller's, if no file has
to be hashed, because the load then takes 5 ms, and a thread would take another. onnxruntime's start takes longer than
everything else. So that start begins as soon as the artifact is chosen, and the rest (tokenizer, verification) happens
beside it, in another thread, while the engine works without the GIL.
"""

from __future__ import annotations

import errno
import os
import sys
import time

from firstvec.engines.table import ENGINES
from firstvec.errors import ArtifactError, FirstvecError, IntegrityError, LoadError, LoadTimeout, NoCompatibleArtifact
from firstvec.loading.trace import Trace
from firstvec.process.threads import (
    Event,
    ProcessExiting,
    Task,
    end_with_the_process,
    engine_gate,
    watch_for_lost_ctrl_c,
)
from firstvec.strategy import STRATEGIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any, NoReturn

    from firstvec.bundle.manifest import Artifact, Manifest
    from firstvec.engines.session import EngineModule
    from firstvec.loading.monitoring import Watch
    from firstvec.loading.opening import OpenArtifact, VerifiedArtifact
    from firstvec.machine.profile import ResourceProfile
    from firstvec.options import Options
    from firstvec.provider import EmbeddingProvider
    from firstvec.text.tokenizer import Tokenizer

    Chosen = tuple[Manifest, Artifact, Iterator[Artifact]]
    """The bundle, the best artifact, and the others that could be taken."""


class Load:
    """An attempt to load. Its provider, or its error, is final."""

    def __init__(self, options: Options, profile: ResourceProfile) -> None:
        self.provider: EmbeddingProvider[Any, Any] | None = None
        self.error: BaseException | None = None
        self.seconds = 0.0  # how long the load took, 0.0 until it has ended
        self.trace = Trace()
        self._options = options
        self._strategy = STRATEGIES[options.strategy]
        self._profile = profile
        self._done = Event()
        self._tokenizer: Tokenizer | None = None
        self._tokenizer_done = Event()
        self._checks: dict[str, str] = {}  # the report's fields verification and self_test
        self._fallbacks: list[dict[str, str]] = []
        self._traceback: TracebackType | None = None
        self._watch: Watch | None = None
        self._task: Task[None] | None = None
        self._chosen: Chosen | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether the load has not ended."""
        return self.provider is None and self.error is None

    @property
    def is_usable(self) -> bool:
        """Whether the load is under way, or its provider is there and open."""
        return self.is_under_way if self.provider is None else not self.provider.closed

    @property
    def is_lost(self) -> bool:
        """Whether the process forked while the load was under way: its thread is in the parent, so it never ends."""
        return self.is_under_way and self._task is not None and self._task.is_lost

    def start(self) -> None:
        """Choose the artifact, then load it, in a thread if that takes time. Never raises: the load's error is kept."""
        if os.environ.get("FIRSTVEC_TRACE", "0") not in ("", "0") or "opentelemetry.trace" in sys.modules:
            from firstvec.loading.monitoring import watch_load

            # Here, in the thread that asked for the load: that thread's span is the parent.
            self._watch = watch_load(self)
        in_thread = True
        if self._options.require_signature is None:
            # Here, because the choice decides where the rest happens. It takes 2 ms.
            try:
                self._chosen = self._choose()
            except Exception:  # whatever it is: the load's thread meets the same error again, and keeps it as its own
                self.trace.stages.clear()
            else:
                in_thread = not self._is_short(*self._chosen[:2])
        try:
            self._task = Task(self._run, in_thread=in_thread)
        except (OSError, ImportError) as error:  # threading cannot be imported: too many files are open
            self._end(error)
            return
        watch_for_lost_ctrl_c()

    def _is_short(self, manifest: Manifest, artifact: Artifact) -> bool:
        """Return whether the load takes a few milliseconds: firstvec's own engine takes it, and nothing is hashed."""
        from firstvec.bundle.integrity import is_remembered

        is_native = bool(ENGINES[artifact.engine].kernels)
        return is_native and all(is_remembered(manifest.root, file) for file in artifact.files)

    def result(self, timeout: float | None) -> EmbeddingProvider[Any, Any]:
        """Wait for the provider. Raise the load's error, or LoadTimeout."""
        self._wait(self._done, timeout)
        return self.provider if self.provider is not None else self._raise_error()

    def tokenizer(self, timeout: float | None) -> Tokenizer:
        """Wait for the tokenizer, which is there before the session. Raise the load's error, or LoadTimeout."""
        self._wait(self._tokenizer_done, timeout)
        return self._tokenizer if self._tokenizer is not None else self._raise_error()

    def _wait(self, event: Event, timeout: float | None) -> None:
        if not event.wait(timeout):
            raise LoadTimeout(self._options.model_name, timeout or 0.0)

    def _raise_error(self) -> NoReturn:
        """Raise the error as the load left it: every call raises the same one, and a raise adds to the traceback."""
        assert self.error is not None
        if isinstance(self.error, ProcessExiting):
            import threading

            if threading.current_thread().daemon:
                end_with_the_process()  # otherwise Python would print an error that nobody can catch
        raise self.error.with_traceback(self._traceback)

    def to_values(self) -> dict[str, Any]:
        """Return what the load did, as JSON values: see `firstvec.loading.report.Report`."""
        from firstvec.loading.report import Report

        report = Report(
            model=self._options.model_name,
            strategy=self._options.strategy,
            state="loading" if self.error is None else "failed",
            fallbacks=tuple(self._fallbacks),
            error=str(self.error) if self.error is not None else None,
            seconds=round(self.seconds, 6),
            first_vector_ms=self.trace.first_vector_ms,
            started=self.trace.began,
            stages=tuple(self.trace.to_values()),
            **self._checks,
        )
        if (provider := self.provider) is not None:
            state, hand_over = "closed", provider.hand_over_state
            if (session := provider.session) is not None:
                state, report = "loaded", report.replace(engine=session.engine, session=session.kind)
            elif hand_over == "waiting":  # a closed provider waits for nothing
                hand_over = None
            artifact = provider.artifact.id
            report = report.replace(state=state, artifact=artifact, device=provider.device, hand_over=hand_over)
        return report.to_values()

    def _run(self) -> None:
        try:
            provider = self._load()
        except BaseException as error:
            self._end(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._end(provider)

    def _end(self, outcome: EmbeddingProvider[Any, Any] | BaseException) -> None:
        """Keep the provider or the error, let everybody who waits go on, and tell those who listen."""
        self.seconds = time.perf_counter() - self.trace.began
        if isinstance(outcome, BaseException):
            failure = _as_firstvec_error(outcome, self._options.model_name)
            _clear_frames(failure)
            self._traceback = failure.__traceback__
            self.error = failure
        else:
            self.provider = outcome
        if self._watch is not None:
            # A load that the exit stopped has not failed: its line is written by the exit.
            has_failed = self.error is not None and not isinstance(self.error, ProcessExiting)
            self._watch.note("failed" if has_failed else "loaded")
        self._done.set()
        self._tokenizer_done.set()
        self._tell_listeners()

    def _load(self) -> EmbeddingProvider[Any, Any]:
        trace, strategy, watch = self.trace, self._strategy, self._watch
        manifest, best, others = self._chosen or self._choose()
        self._chosen = None
        device = self._device_of(best)
        if ENGINES[best.engine].starts_early and device == "cpu" and _may_start_early():
            self._import_numpy_ahead()
            preparing = Task(lambda: self._prepare(manifest, best))
            self._start_early(best.engine)
            tokenizer, first = preparing.result()
        else:
            tokenizer, first = self._prepare(manifest, best)
        verified, opened = self._open_candidate(manifest, best, others, first)
        self._import_numpy_ahead()
        from firstvec.loading.opening import open_artifact
        from firstvec.loading.session_in_use import SessionInUse
        from firstvec.provider import EmbeddingProvider

        def open_again() -> Any:
            return open_artifact(verified, quick_start=strategy.quick_start, self_test=False).session

        def note_first_vector() -> None:
            trace.first_vector_ms = trace.milliseconds(time.perf_counter())
            if watch is not None:
                watch.note("first vector")

        sessions = SessionInUse(verified.artifact.id, opened.session, open_again, note_first_vector)
        if strategy.hand_over_after is not None and ENGINES[verified.artifact.engine].has_two_kinds:
            from firstvec.loading.hand_over import HandOver

            sessions.hand_over = HandOver(sessions, verified, strategy.hand_over_after, trace)
        again = (load_again, (self._options,))
        output = self._options.output
        return EmbeddingProvider(manifest, verified.artifact, verified.device, tokenizer, sessions, output, again)

    def _choose(self) -> Chosen:
        """Find the bundle, and choose the artifact. The others that could be taken are judged when they are needed."""
        options, trace = self._options, self.trace
        with trace.stage("manifest"):
            from firstvec.bundle.store import find_bundle

            manifest = find_bundle(options.model_name, options.require_signature, options.working_folder)
        with trace.stage("choice"):
            from firstvec.selection import candidates, select

            found = candidates(manifest, self._profile, options)
            for best in found:
                return manifest, best, found
            return manifest, select(manifest, self._profile, options).artifact, found  # raises, with every reason

    def _device_of(self, artifact: Artifact) -> str:
        from firstvec.selection import device_of

        return device_of(artifact, self._profile, self._options)

    def _start_early(self, name: str) -> None:
        """Load the library of an engine, and let it do what its first session would wait for."""
        # The import, and the opening of the library, hold the GIL: nothing could overlap with them.
        from firstvec.engines.session import import_module

        with self.trace.stage(f"{name}: library"), engine_gate:
            engine: EngineModule = import_module(ENGINES[name].module)
            try:
                engine.version()  # loads the library
            except (ImportError, OSError):
                return  # opening the artifact will say so
        with self.trace.stage(f"{name}: environment"), engine_gate:
            engine.start()

    def _import_numpy_ahead(self) -> None:
        """Begin to import numpy, if the first vector will wait for it. firstvec's own engine is done before that."""
        if self._options.output == "numpy" and _may_start_early():
            from firstvec.vectors import import_numpy_ahead

            import_numpy_ahead(self.trace)

    def _prepare(self, manifest: Manifest, artifact: Artifact) -> tuple[Tokenizer, VerifiedArtifact | None]:
        """Do all but the engine's work: open the tokenizer, and verify the artifact."""
        trace = self.trace
        if not ENGINES[artifact.engine].kernels:  # firstvec's own engine asks for what it reads, in larger blocks
            from firstvec.bundle.integrity import read_ahead

            for file in artifact.files:
                read_ahead(os.path.join(manifest.root, file.path))
        with trace.stage("tokenizer"):
            from firstvec.text.tokenizer import open_tokenizer

            self._tokenizer = open_tokenizer(manifest)
            self._tokenizer_done.set()
        from firstvec.loading.opening import verify_artifact

        first: VerifiedArtifact | None = None
        try:
            first = verify_artifact(manifest, artifact, self._device_of(artifact), trace)
        except ArtifactError:
            pass  # the opening of the candidates meets the error again, and tries the next candidate
        with trace.stage("import provider"):
            # Here, beside the engine's start. An import that fails later would leave a session open.
            import firstvec.loading.session_in_use
            import firstvec.provider  # noqa: F401
        return self._tokenizer, first

    def _open_candidate(
        self, manifest: Manifest, best: Artifact, others: Iterator[Artifact], first: VerifiedArtifact | None
    ) -> tuple[VerifiedArtifact, OpenArtifact]:
        """Open the first candidate that works. Raise the error of the only one, or NoCompatibleArtifact."""
        from firstvec.loading.opening import open_artifact, verify_artifact

        errors: list[ArtifactError] = []
        artifact: Artifact | None = best
        while artifact is not None:
            try:
                if first is not None and first.artifact is artifact:
                    verified = first
                else:
                    verified = verify_artifact(manifest, artifact, self._device_of(artifact), self.trace)
                opened = open_artifact(verified, quick_start=self._strategy.quick_start, trace=self.trace)
            except ArtifactError as error:
                errors.append(error)
                self._fallbacks.append({"artifact": artifact.id, "error": type(error).__name__, "reason": error.reason})
                artifact = next(others, None)
                continue
            if errors:
                import logging

                text, reasons = "%s: using %s, because a better artifact failed: %s", "; ".join(map(str, errors))
                logging.getLogger("firstvec").warning(text, manifest.model.name, artifact.id, reasons)
                # Each traceback refers to this frame, and so to the session: it would not be freed with the provider.
                for each in (each for error in errors for each in _with_causes(error)):
                    each.__traceback__ = None
            self._checks = {"verification": verified.verification, "self_test": opened.self_test}
            return verified, opened
        if len(errors) == 1:
            raise errors[0]
        hint = "Run `firstvec doctor` to see what this machine lacks."
        if any(isinstance(error, IntegrityError) for error in errors):
            hint = "Run `firstvec verify` to see which files were changed, and restore or rebuild the bundle."
        rejected = [(error.artifact, error.reason) for error in errors]
        raise NoCompatibleArtifact(manifest.model.name, "each candidate failed to load", rejected, hint)

    def _tell_listeners(self) -> None:
        """Log the load and record its spans, where something listens. Nobody waits for the load any more."""
        if self._watch is None and "opentelemetry.trace" not in sys.modules:
            if "logging" not in sys.modules:
                return
            import logging  # it is in sys.modules, but another thread may be in the middle of its import

            if not logging.getLogger("firstvec").isEnabledFor(logging.INFO):
                return
        from firstvec.loading.monitoring import tell

        tell(self, self._watch)
        self._watch = None


def load_again(options: Options) -> EmbeddingProvider[Any, Any]:
    """Load a model that a process has loaded with these options, for a copy of its provider. Raise why it fails."""
    from firstvec.machine.profile import ResourceProfile

    load = Load(options, ResourceProfile.detect())
    load.start()
    return load.result(None)


def _may_start_early() -> bool:
    """Return False where addresses are limited: numpy and onnxruntime would end the process if they do not suffice."""
    from firstvec.machine.limits import address_space_left

    return address_space_left() is None


def _as_firstvec_error(error: BaseException, model_name: str) -> FirstvecError:
    if isinstance(error, FirstvecError):
        return error
    kind = type(error).__name__
    if not isinstance(error, Exception):  # Ctrl-C, where no thread could be started
        return LoadError(f"{model_name}: the load was interrupted by {kind}; try again")
    hint = "run `firstvec doctor` to see what this machine lacks"
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        hint = "close some files, or raise the limit (`ulimit -n`), and try again"
    if isinstance(error, MemoryError):
        hint = "give the process more memory"
    failure = LoadError(f"{model_name} could not be loaded: {kind}: {error}; {hint}")
    failure.__cause__ = error
    return failure


def _clear_frames(error: BaseException) -> None:
    """Drop what the frames of a caught error refer to, such as open files, before the garbage collector comes by."""
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
