"""One attempt to load a model: from a name to a provider, with every step that can overlap overlapped.

With nothing to wait for but the processor, the first vector comes no sooner than its longest chain of steps: the
engine's library, its environment, the session, the run. So that chain begins before the manifest is read, and all the
rest (manifest, choice, verification, vocabulary, numpy) happens beside it, while the engine works without the GIL.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import weakref
from functools import partial

from firstvec import background
from firstvec.errors import (
    ArtifactError,
    FirstvecError,
    IncompatibleArtifact,
    IntegrityError,
    LoadError,
    LoadTimeout,
    NoCompatibleArtifact,
)
from firstvec.hardware import address_space_left
from firstvec.trace import Trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from firstvec.integrity import OpenFile
    from firstvec.manifest import Artifact, Manifest
    from firstvec.monitoring import Watch
    from firstvec.onnx_model import OnnxModel
    from firstvec.plans import Plan
    from firstvec.provider import EmbeddingProvider
    from firstvec.selection import Choice
    from firstvec.sessions import Session
    from firstvec.tokenizer import Tokenizer

HAND_OVER_DELAY = 0.25
"""Seconds between the first vector and the building of the throughput session: a program that embeds one query and
ends never builds a session that it would only wait for."""
FIELDS = (
    *("model", "strategy", "state", "artifact", "engine", "device", "session", "verification", "self_test"),
    *("fallbacks", "hand_over", "error", "seconds", "first_vector_ms", "started", "stages"),
)
"""Of a report: see `OptimizedEmbeddingLoader.report`."""
_INFO = 20  # logging.INFO


class Load:
    """An attempt to load. Its provider, or its error, is final; `seconds` is how long it took, 0.0 until it has ended.

    Args:
        model_name: name or folder of a bundle.
        choose: which artifact of its manifest to take.
        plan: what the strategy does.
        output: what the provider returns if it is not told.
        engine_first: start onnxruntime before the manifest says that it is needed, which on a CPU it always is.
        strategy: name of the plan, for reports.
        require_signature: path of the public key whose signature the bundle must have.
        here: folder from which relative paths are seen.
    """

    def __init__(
        self,
        model_name: str,
        choose: Callable[[Manifest], Choice],
        plan: Plan,
        output: str,
        *,
        engine_first: bool,
        strategy: str | None = None,
        require_signature: str | None = None,
        here: str = "",
    ) -> None:
        self.provider: EmbeddingProvider | None = None
        self.error: BaseException | None = None
        self.seconds = 0.0
        self.trace = Trace()
        self._model_name = model_name
        self._choose: Callable[[Manifest], Choice] | None = choose
        self._plan = plan
        self._output = output
        self._engine_first = engine_first
        self._strategy = strategy
        self._require_signature = require_signature
        self._here = here
        self._done = background.Signal()
        self._verification: str | None = None
        self._self_test: str | None = None
        self._fallbacks: list[dict[str, str]] = []
        self._hand_over: HandOver | None = None
        self._watch: Watch | None = None
        self._tokenizer: Tokenizer | None = None
        self._tokenizer_done = background.Signal()

    @property
    def usable(self) -> bool:
        """Whether it is under way, or its provider is there and open."""
        return self.error is None and (self.provider is None or not self.provider.closed)

    def start(self) -> None:
        """Load, in a thread."""
        if os.environ.get("FIRSTVEC_TRACE", "0") not in ("", "0") or "opentelemetry.trace" in sys.modules:
            from firstvec.monitoring import watch

            # Here, in the thread that asked: its span is the parent.
            self._watch = watch(self)
        background.Task(self._run)

    def result(self, timeout: float | None) -> EmbeddingProvider:
        """Wait for the provider; raise the load's error, or LoadTimeout."""
        self._wait(self._done, timeout)
        if self.provider is None:
            assert self.error is not None
            raise self.error
        return self.provider

    def tokenizer(self, timeout: float | None) -> Tokenizer:
        """Wait for the tokenizer, which is there before the session; raise the load's error, or LoadTimeout."""
        self._wait(self._tokenizer_done, timeout)
        if self._tokenizer is None:
            assert self.error is not None
            raise self.error
        return self._tokenizer

    def report(self) -> dict[str, Any]:
        """What it did, as JSON values; see `OptimizedEmbeddingLoader.report`."""
        provider, error, hand_over, trace = self.provider, self.error, self._hand_over, self.trace
        session = provider.session if provider is not None else None
        if provider is not None:
            state = "loaded" if session is not None else "closed"
        else:
            state = "loading" if error is None else "failed"
        handed = hand_over.state if hand_over is not None else None
        if session is None and handed == "waiting":  # a closed provider waits for nothing
            handed = None
        return {
            "model": self._model_name,
            "strategy": self._strategy,
            "state": state,
            "artifact": provider.artifact.id if provider is not None else None,
            "engine": session.engine if session is not None else None,
            "device": provider.device if provider is not None else None,
            "session": session.kind if session is not None else None,
            "verification": self._verification,
            "self_test": self._self_test,
            "fallbacks": [dict(each) for each in self._fallbacks],
            "hand_over": handed,
            "error": str(error) if error is not None else None,
            "seconds": round(self.seconds, 6),
            "first_vector_ms": trace.first_vector_ms,
            "started": trace.began,
            "stages": trace.report(),
        }

    def _wait(self, signal: background.Signal, timeout: float | None) -> None:
        if not signal.wait(timeout):
            raise LoadTimeout(self._model_name, timeout or 0.0)

    def _run(self) -> None:
        try:
            provider = self._open()
            self._take_time()
            self.provider = provider
        except FirstvecError as error:
            self._fail(error)
        except Exception as error:
            hint = "run `firstvec doctor` to see what this machine lacks"
            if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
                hint = "close some, or raise the limit (`ulimit -n`), and try again"
            failure = LoadError(f"{self._model_name} could not be loaded: {type(error).__name__}: {error}; {hint}")
            failure.__cause__ = error
            self._fail(failure)
        except BaseException as error:  # Ctrl-C, where no thread could be started
            self._fail(LoadError(f"{self._model_name}: the load was interrupted by {type(error).__name__}; try again"))
            raise
        finally:
            # It is the loader's, which holds this load: with it, a loader that nobody holds any more would keep its
            # session until the garbage collector comes by.
            self._choose = None
            if self._watch is not None:
                self._watch.ended(self)
            self._done.set()
            self._tokenizer_done.set()
            self._tell()

    def _fail(self, error: BaseException) -> None:
        self._take_time()
        self.error = error

    def _take_time(self) -> None:
        self.seconds = time.perf_counter() - self.trace.began

    def _tell(self) -> None:
        """Tell what listens in this process, when nobody waits any more."""
        listens = self._watch is not None or "opentelemetry.trace" in sys.modules
        if not listens and "logging" in sys.modules:
            import logging  # another thread may be about to

            listens = logging.getLogger("firstvec").isEnabledFor(_INFO)
        if listens:
            from firstvec.monitoring import tell

            tell(self, self._watch)
            self._watch = None

    def _open(self) -> EmbeddingProvider:
        trace = self.trace
        library = None
        # Where addresses are limited, first see whether they suffice: the engine, and numpy, end the process if not.
        ahead = address_space_left() is None
        if self._engine_first and ahead:
            from firstvec.sessions import c_api

            # The import and the opening of the library hold the GIL: nothing could overlap with them.
            with trace.stage("onnxruntime: library"):
                library = c_api()
        if self._output == "numpy" and ahead:
            from firstvec.vectors import import_numpy_ahead

            # Nobody waits for it here: the first vector that has to be an array does.
            import_numpy_ahead(trace)
        prepared = background.Task(self._prepare)
        if library is not None:
            with trace.stage("onnxruntime: environment"):
                library.environment()
        manifest, choice, opener, tokenizer = prepared.result()
        errors: list[ArtifactError] = []
        for artifact in choice.candidates:
            if artifact is not opener.artifact:
                opener = Opener(manifest, artifact, _device(choice, artifact), trace)
            try:
                session = opener.open(quick_start=self._plan.quick_start)
            except ArtifactError as error:
                errors.append(error)
                self._fallbacks.append({"artifact": artifact.id, "error": type(error).__name__, "reason": error.reason})
                continue
            if errors:
                _warn_of_fallback(manifest, errors, artifact)
            from firstvec.provider import EmbeddingProvider

            self._verification, self._self_test = opener.verification, opener.self_test
            reopen = partial(opener.open, quick_start=self._plan.quick_start, tested=True)
            provider = EmbeddingProvider(manifest, artifact, opener.device, tokenizer, session, reopen, self._output)
            # The last one is called first.
            if self._watch is not None:
                provider.on_first_run(self._watch.first_vector)
            if self._plan.hands_over:
                self._hand_over = HandOver(provider, opener)
                provider.on_first_run(self._hand_over.start)
            provider.on_first_run(trace.first_vector)
            return provider
        if len(errors) == 1:
            raise errors[0]
        raise NoCompatibleArtifact(
            manifest.model.name,
            "each candidate failed to load",
            [(error.artifact, error.reason) for error in errors],
            "Run `firstvec verify` to see which files were changed, and restore or rebuild the bundle."
            if any(isinstance(error, IntegrityError) for error in errors)
            else "Run `firstvec doctor` to see what this machine lacks.",
        )

    def _prepare(self) -> tuple[Manifest, Choice, Opener, Tokenizer]:
        """Everything but the engine, for the artifact that was chosen."""
        trace = self.trace
        with trace.stage("manifest"):
            from firstvec.store import find

            manifest = find(self._model_name, self._require_signature, self._here)
        with trace.stage("choice"):
            assert self._choose is not None  # a load runs once
            choice = self._choose(manifest)
        opener = Opener(manifest, choice.artifact, _device(choice, choice.artifact), trace)
        opener.read_ahead()
        with trace.stage("tokenizer"):
            from firstvec.tokenizer import open_tokenizer

            self._tokenizer = open_tokenizer(manifest)
            self._tokenizer_done.set()
        opener.verify()
        with trace.stage("import provider"):
            import firstvec.provider  # noqa: F401 - here, where the engine is waited for
        return manifest, choice, opener, self._tokenizer


def _device(choice: Choice, artifact: Artifact) -> str:
    return choice.device if choice.device.partition(":")[0] in artifact.devices else "cpu"


class Opener:
    """Opens sessions of one artifact: verified files, then the engine, then the self-test.

    The files stay open for as long as it lives: a session that it opens later, for a hand-over or in a forked child, is
    of the same files, whatever took their names by then.
    """

    def __init__(self, manifest: Manifest, artifact: Artifact, device: str, trace: Trace | None = None) -> None:
        self.manifest = manifest
        self.artifact = artifact
        self.device = device
        self._trace = trace or Trace()
        self.verification: str | None = None
        """``hashed now``, or ``remembered`` for every file, at the last `verify`; None if a file was wrong."""
        self.self_test = "none"
        """What `firstvec.self_test.check` said at the last `open`."""
        self._error: ArtifactError | None = None
        self._files: list[OpenFile] = []
        self._model: OnnxModel | None = None
        self._place = ""

    def read_ahead(self) -> None:
        """Ask the system to read the artifact's files, while other work is done."""
        from firstvec.integrity import read_ahead

        for file in self.artifact.files:
            read_ahead(os.path.join(self.manifest.root, file.path))

    def verify(self) -> None:
        """Open and verify the artifact's files; what is found the next `open` raises.

        Raises:
            LoadError: too many files are open.
        """
        from firstvec import self_test
        from firstvec.integrity import open_file

        with self._trace.stage("verification"):
            try:
                files = [open_file(self.manifest.root, file, self.artifact.id) for file in self.artifact.files]
                self._model = self._read(files)
                self._files = files
                self.verification = "remembered" if all(file.remembered for file in files) else "hashed now"
            except ArtifactError as error:
                self.verification, self._error = None, error
            self._place = self_test.identity(self.manifest, self.artifact, self.device)

    def _read(self, files: list[OpenFile]) -> OnnxModel | None:
        if self.artifact.engine != "onnxruntime":
            return None
        from firstvec.onnx_model import OnnxModel

        return OnnxModel(self.artifact.id, files)

    def open(self, *, quick_start: bool = True, tested: bool = False) -> Session:
        """Verify the artifact's files, open it, and see that this machine computes what the build computed.

        Args:
            quick_start: which kind of session.
            tested: that kind of this opener's has passed the self-test.

        Raises:
            IntegrityError: a file is not the one that was built.
            IncompatibleArtifact: the engine cannot run it.
            SelfTestError: this machine computes other vectors.
        """
        if self._error is None and not (self._files and all(file.is_open for file in self._files)):
            self.verify()
        error, self._error = self._error, None
        if error is not None:
            raise error
        files = self._files
        model, self._model = self._model or self._read(files), None  # of one session: its memory is freed with it
        from firstvec import self_test
        from firstvec.hardware import usable_cpus
        from firstvec.sessions import SessionOptions, engine_for, open_session

        options = SessionOptions(
            file=files[0],
            model=model,
            device=self.device,
            threads=usable_cpus(),
            pad_token_id=self.manifest.model.pad_token_id,
            embedding_dim=self.manifest.model.embedding_dim,
            quick_start=quick_start,
        )
        with self._trace.stage("engine"):
            engine = engine_for(self.artifact)
        with self._trace.stage("session"):
            session = open_session(engine, self.artifact, options)
        for file in files:
            file.check()
        if not tested:
            with self._trace.stage("self-test"):
                version = engine.engine_version()
                self.self_test = self_test.check(self.manifest, self.artifact, self._place, version, session)
        return session


class HandOver:
    """Builds the session that runs fastest, behind the one that answered first, and swaps it in."""

    def __init__(self, provider: EmbeddingProvider, opener: Opener) -> None:
        self.state = "waiting"
        """Then ``done``, or ``failed: …`` with the reason."""
        self._provider = weakref.ref(provider)
        self._opener = opener

    def start(self) -> None:
        """Build it in a thread."""
        background.Task(self._run)

    def _run(self) -> None:
        if background.exiting.wait(HAND_OVER_DELAY) or not self._is_wanted():
            return
        try:
            self._check_memory()
            session = self._opener.open(quick_start=False)
        except Exception as error:  # whatever it is, the provider goes on
            self.state = f"failed: {error}"
            import logging

            logging.getLogger("firstvec").warning("the quick-start session stays in use: %s", error)
            return
        if (provider := self._provider()) is not None:
            provider.swap(session)
            if not provider.closed:
                self.state = "done"

    def _check_memory(self) -> None:
        from firstvec.hardware import ResourceProfile
        from firstvec.selection import does_not_fit

        model, artifact = self._opener.manifest.model, self._opener.artifact
        if reason := does_not_fit(model, artifact, ResourceProfile.detect(), quick_start=False):
            raise IncompatibleArtifact(artifact.id, reason)

    def _is_wanted(self) -> bool:
        provider = self._provider()
        return provider is not None and not provider.closed


def _warn_of_fallback(manifest: Manifest, errors: list[ArtifactError], artifact: Artifact) -> None:
    import logging

    reasons = "; ".join(str(error) for error in errors)
    logging.getLogger("firstvec").warning(
        "%s: using %s, because a better artifact failed: %s", manifest.model.name, artifact.id, reasons
    )
