"""The loader that a program holds: when to load, once for all its threads."""

from __future__ import annotations

import os
from _thread import allocate_lock
from _weakref import ref

from firstvec.errors import InputError, LoadError
from firstvec.hardware import ResourceProfile
from firstvec.strategy import OUTPUTS, PLANS, LoadingStrategy

# `load` and `store` (threading, json, hashlib: 12 ms) are imported by the first call that needs them, in the loading
# thread where there is one; so a lock and a weak reference come from the modules that are always there.

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firstvec.load import Load
    from firstvec.manifest import Manifest
    from firstvec.provider import EmbeddingProvider
    from firstvec.selection import Choice
    from firstvec.store import ModelMetadata

DEFAULT_MODEL = "all-MiniLM-L6-v2"


class OptimizedEmbeddingLoader:
    """Loads one model by one strategy. Constructing it loads nothing and never raises for an unknown model.

    Args:
        model_name: name of a bundle (``organisation/model`` or ``model``), or the path of a bundle's folder.
        strategy: when to load and which artifact to take.
        device: ``cpu``, ``cuda`` or ``mps``; None takes the best for this machine.
        enable_quantization: let LAZY, BACKGROUND and PROGRESSIVE take INT8. QUANTIZED always does.
        min_quality: smallest acceptable ``cosine_min`` of an artifact to the fp32 reference, -1 to 1.
        output: what the provider returns if it is not told: ``numpy`` arrays, a ``list`` of floats, or a ``buffer``
            (memoryview of float32). Without arrays numpy is never imported, and the first vector comes sooner.

    Raises:
        InputError: the strategy or output is unknown, or an argument has the wrong type.
    """

    _instance: OptimizedEmbeddingLoader | None = None
    _instance_lock = allocate_lock()

    def __init__(
        self,
        model_name: str = DEFAULT_MODEL,
        strategy: LoadingStrategy | str = LoadingStrategy.LAZY,
        device: str | None = None,
        enable_quantization: bool = False,
        *,
        min_quality: float | None = None,
        output: str = "numpy",
    ) -> None:
        if isinstance(model_name, os.PathLike):
            model_name = os.fspath(model_name)
        if not isinstance(model_name, str) or not model_name:
            raise InputError(f"model_name {model_name!r} is not a name or a path")
        if device is not None and device.partition(":")[0] not in ("cpu", "cuda", "mps"):
            raise InputError(f"unknown device {device!r}: use cpu, cuda or mps")
        if output not in OUTPUTS:
            raise InputError(f"unknown output {output!r}: use one of {', '.join(OUTPUTS)}")
        self.model_name = model_name
        self.strategy = LoadingStrategy.parse(strategy)
        self.resource_profile = ResourceProfile.detect()
        self._device = device
        self._enable_quantization = enable_quantization
        self._min_quality = min_quality
        self._output = output
        self._metadata: ModelMetadata | None = None
        self._lock = allocate_lock()
        self._load: Load | None = None
        self._interrupted = False
        _loaders.add(ref(self, _loaders.discard))

    def start_loading(self) -> None:
        """Start to load as the strategy says, and return at once. LAZY waits for the first ``get_provider()``.

        A load that is under way or done is left alone; a failed one is tried again.
        """
        if PLANS[self.strategy].in_thread:
            self._start(in_thread=True)

    def get_provider(self, timeout: float | None = 60.0) -> EmbeddingProvider:
        """Return the loaded model, waiting for what is left of the load. LAZY loads now.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Raises:
            LoadTimeout: it was not loaded in time; the load goes on.
            LoadError: no load was started (not LAZY: call ``start_loading()``), or it failed unexpectedly.
            BundleNotFound, ManifestError, IntegrityError, NoCompatibleArtifact: why the load failed. The same error
                is raised in every thread that waits; ``start_loading()`` tries again.
        """
        load = self._load
        lazy = not PLANS[self.strategy].in_thread
        if load is None and not lazy and not self._interrupted:
            raise LoadError(f"{self.model_name} is not being loaded: call start_loading() first, or use strategy LAZY")
        if load is None or (lazy and not load.usable):
            # With a time limit the work goes on in a thread, so that the limit can be kept.
            load = self._start(in_thread=timeout is not None)
        return load.result(timeout)

    def wait_for_provider(self, timeout: float | None = 60.0) -> EmbeddingProvider:
        """The replaced loader's second name for `get_provider`."""
        return self.get_provider(timeout)

    def count_tokens(self, texts: str | list[str], timeout: float | None = 60.0) -> list[int]:
        """Return each text's number of tokens, waiting for the tokenizer only, not for the model.

        Raises:
            InputError: a text is not usable; the error carries its index.
            LoadError, LoadTimeout and the errors of `get_provider`.
        """
        load = self._load or self._start(in_thread=True)
        return load.tokenizer(timeout).count([texts] if isinstance(texts, str) else texts)

    def is_loaded(self) -> bool:
        """Whether ``get_provider()`` would return at once. Takes no lock."""
        load = self._load
        return load is not None and load.provider is not None

    def is_loading(self) -> bool:
        """Whether a load is under way. Takes no lock."""
        load = self._load
        return load is not None and load.provider is None and load.error is None

    def get_error(self) -> BaseException | None:
        """Return the error of the last load, or None. Never raises."""
        load = self._load
        return load.error if load is not None else None

    def get_load_time(self) -> float:
        """Return how long the load took, in seconds; 0.0 until it is done."""
        load = self._load
        return load.seconds if load is not None else 0.0

    def get_metadata(self) -> ModelMetadata | None:
        """Return what the manifest says of the model, or None if there is no valid bundle. Loads no model."""
        if self._metadata is None:
            from firstvec.store import ModelMetadata

            self._metadata = ModelMetadata.from_cache(self.model_name)
        return self._metadata

    def get_embedding_dim_fast(self) -> int | None:
        """Return the length of a vector, from the manifest, or None if there is no valid bundle. Loads no model."""
        metadata = self._metadata or self.get_metadata()
        return metadata.embedding_dim if metadata is not None else None

    def choose(self) -> Choice:
        """Return which artifact this loader takes, and why not the others. Loads no model.

        Raises:
            BundleNotFound, ManifestError: there is no valid bundle.
            NoCompatibleArtifact: none of its artifacts can be used here.
        """
        from firstvec.store import find

        return self._choose(find(self.model_name))

    @classmethod
    def get_instance(
        cls,
        model_name: str = DEFAULT_MODEL,
        strategy: LoadingStrategy | str = LoadingStrategy.LAZY,
        device: str | None = None,
        enable_quantization: bool = False,
        *,
        output: str = "numpy",
    ) -> OptimizedEmbeddingLoader:
        """Return the process's one loader; the arguments count at the first call only, until ``reset()``."""
        if cls._instance is None:
            with cls._instance_lock:
                if cls._instance is None:
                    cls._instance = cls(model_name, strategy, device, enable_quantization, output=output)
        return cls._instance

    @classmethod
    def reset(cls) -> None:
        """Forget the process's one loader; providers that were handed out stay usable."""
        with cls._instance_lock:
            cls._instance = None

    def _choose(self, manifest: Manifest) -> Choice:
        from firstvec.selection import select

        return select(
            manifest,
            self.resource_profile,
            self.strategy,
            device=self._device,
            enable_quantization=self._enable_quantization,
            min_quality=self._min_quality,
        )

    def _start(self, *, in_thread: bool) -> Load:
        with self._lock:
            load = self._load
            if load is not None and load.usable:
                return load
            from firstvec.load import Load

            load = self._load = Load(self.model_name, self._choose, PLANS[self.strategy], self._output)
        load.start(in_thread=in_thread)
        return load

    def _after_fork_in_child(self) -> None:
        """A load that was under way has no thread here: forget it, so that the child starts its own when it asks.

        Not at once: threads that are started inside the hook are forgotten by threading's own, which runs later.
        """
        self._lock = allocate_lock()
        load = self._load
        if load is not None and load.provider is None and load.error is None:
            self._load = None
            self._interrupted = True


def preload_embeddings(
    model_name: str = DEFAULT_MODEL,
    strategy: LoadingStrategy | str = LoadingStrategy.PROGRESSIVE,
    device: str | None = None,
    enable_quantization: bool = False,
    *,
    output: str = "numpy",
) -> OptimizedEmbeddingLoader:
    """Start to load the process's one model, and return its loader at once.

    Raises:
        InputError: the strategy is unknown.
    """
    loader = OptimizedEmbeddingLoader.get_instance(model_name, strategy, device, enable_quantization, output=output)
    loader.start_loading()
    return loader


def get_embedding_provider(
    model_name: str = DEFAULT_MODEL,
    strategy: LoadingStrategy | str = LoadingStrategy.PROGRESSIVE,
    timeout: float | None = 60.0,
    device: str | None = None,
    enable_quantization: bool = False,
    *,
    output: str = "numpy",
) -> EmbeddingProvider:
    """Return the process's one model, waiting for what is left of its load; starts the load if nobody did.

    Raises:
        The errors of `OptimizedEmbeddingLoader.get_provider`.
    """
    loader = preload_embeddings(model_name, strategy, device, enable_quantization, output=output)
    return loader.get_provider(timeout)


_loaders: set[ref[OptimizedEmbeddingLoader]] = set()


def _after_fork_in_child() -> None:
    OptimizedEmbeddingLoader._instance_lock = allocate_lock()
    for reference in list(_loaders):
        if (loader := reference()) is not None:
            loader._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
