"""One attempt to load a model: from a name to a provider, with every step that can overlap overlapped."""

from __future__ import annotations

import threading
import time
import weakref

from firstvec import background
from firstvec.errors import (
    ArtifactError,
    FirstvecError,
    IntegrityError,
    LoadError,
    LoadTimeout,
    NoCompatibleArtifact,
)
from firstvec.store import find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firstvec.manifest import Artifact, Manifest
    from firstvec.provider import EmbeddingProvider
    from firstvec.selection import Choice
    from firstvec.sessions import Session
    from firstvec.strategy import Plan
    from firstvec.tokenizer import Tokenizer

HAND_OVER_DELAY = 0.25
"""Seconds between the first vector and the building of the throughput session: a program that embeds one query and
ends never builds a session that it would only wait for."""


class Load:
    """An attempt to load. Its provider, or its error, is final; `seconds` is how long it took."""

    def __init__(self, model_name: str, choose: Callable[[Manifest], Choice], plan: Plan, output: str) -> None:
        self.provider: EmbeddingProvider | None = None
        self.error: BaseException | None = None
        self.seconds = 0.0
        self._model_name = model_name
        self._choose = choose
        self._plan = plan
        self._output = output
        self._done = threading.Event()
        self._tokenizer: Tokenizer | None = None
        self._tokenizer_done = threading.Event()

    @property
    def usable(self) -> bool:
        """Whether it is under way, or its provider is there and open."""
        return self.error is None and (self.provider is None or not self.provider.closed)

    def start(self, *, in_thread: bool) -> None:
        """Load, in a thread or now."""
        if in_thread:
            background.Task(self._run, "load")
        else:
            self._run()

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

    def _wait(self, event: threading.Event, timeout: float | None) -> None:
        if not event.wait(timeout):
            raise LoadTimeout(self._model_name, timeout or 0.0)

    def _run(self) -> None:
        started = time.perf_counter()
        try:
            provider = self._open()
            self.seconds = time.perf_counter() - started
            self.provider = provider
        except FirstvecError as error:
            self.error = error
        except Exception as error:
            self.error = LoadError(
                f"{self._model_name} could not be loaded: {type(error).__name__}: {error}; "
                "run `firstvec doctor` to see what this machine lacks"
            )
            self.error.__cause__ = error
        finally:
            self._done.set()
            self._tokenizer_done.set()

    def _open(self) -> EmbeddingProvider:
        manifest = find(self._model_name)
        choice = self._choose(manifest)
        # Reading the tokenizer releases the GIL: it costs nothing beside the import of the engine.
        tokenizer = background.Task(lambda: self._read_tokenizer(manifest), "tokenizer")
        # What turns vectors into arrays is imported beside the load, and only if arrays are wanted.
        arrays = background.Task(_import_numpy, "numpy") if self._output == "numpy" else None
        errors: list[ArtifactError] = []
        for artifact in choice.candidates:
            device = choice.device if choice.device.partition(":")[0] in artifact.devices else "cpu"
            opener = Opener(manifest, artifact, device)
            try:
                session = opener.open(quick_start=self._plan.quick_start)
            except ArtifactError as error:
                errors.append(error)
                continue
            if errors:
                _warn_of_fallback(manifest, errors, artifact)
            from firstvec.provider import EmbeddingProvider

            provider = EmbeddingProvider(
                manifest, artifact, device, tokenizer.result(), session, opener.open, self._output
            )
            if arrays is not None:
                arrays.result()
            if self._plan.hands_over:
                hand_over = HandOver(provider, opener)
                provider.on_first_run(hand_over.start)
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

    def _read_tokenizer(self, manifest: Manifest) -> Tokenizer:
        from firstvec.integrity import locate, verify
        from firstvec.tokenizer import Tokenizer

        try:
            verify(manifest.root, manifest.tokenizer)
            self._tokenizer = Tokenizer(locate(manifest.root, manifest.tokenizer), manifest.model.max_seq_length)
        finally:
            if self._tokenizer is not None:
                self._tokenizer_done.set()
        return self._tokenizer


def _import_numpy() -> None:
    import numpy  # noqa: F401


class Opener:
    """Opens sessions of one artifact: verified files, then the engine."""

    def __init__(self, manifest: Manifest, artifact: Artifact, device: str) -> None:
        self.manifest = manifest
        self.artifact = artifact
        self.device = device

    def open(self, *, quick_start: bool = True) -> Session:
        """Verify the artifact's files and open it.

        Raises:
            IntegrityError: a file is not the one that was built.
            IncompatibleArtifact: the engine cannot run it.
        """
        root = self.manifest.root
        verified = background.Task(self._verify, "verify")
        try:
            from firstvec.sessions import SessionOptions, engine_for, open_session

            engine = engine_for(self.artifact)  # imports it, while the files are hashed
        finally:
            verified.result()
        from firstvec.hardware import usable_cpus
        from firstvec.integrity import locate

        options = SessionOptions(
            path=locate(root, self.artifact.files[0], self.artifact.id),
            device=self.device,
            threads=usable_cpus(),
            pad_token_id=self.manifest.model.pad_token_id,
            embedding_dim=self.manifest.model.embedding_dim,
            quick_start=quick_start,
        )
        return open_session(engine, self.artifact, options)

    def _verify(self) -> None:
        from firstvec.integrity import verify

        for file in self.artifact.files:
            verify(self.manifest.root, file, self.artifact.id)


class HandOver:
    """Builds the session that runs fastest, behind the one that answered first, and swaps it in."""

    def __init__(self, provider: EmbeddingProvider, opener: Opener) -> None:
        self._provider = weakref.ref(provider)
        self._opener = opener

    def start(self) -> None:
        """Build it in a thread."""
        background.Task(self._run, "hand-over")

    def _run(self) -> None:
        if background.exiting.wait(HAND_OVER_DELAY) or self._provider() is None:
            return
        try:
            session = self._opener.open(quick_start=False)
        except ArtifactError as error:
            import logging

            logging.getLogger("firstvec").warning("the quick-start session stays in use: %s", error)
            return
        if (provider := self._provider()) is not None:
            provider.swap(session)


def _warn_of_fallback(manifest: Manifest, errors: list[ArtifactError], artifact: Artifact) -> None:
    import logging

    reasons = "; ".join(str(error) for error in errors)
    logging.getLogger("firstvec").warning(
        "%s: using %s, because a better artifact failed: %s", manifest.model.name, artifact.id, reasons
    )
