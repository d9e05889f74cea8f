"""The loader that a program holds: when to load, once for all its threads."""

from __future__ import annotations

import os
from _thread import allocate_lock
from _weakref import ref

from firstvec.errors import FirstvecError, InputError, LoadError
from firstvec.hardware import ResourceProfile
from firstvec.load import FIELDS, Load
from firstvec.plans import OUTPUTS, PLANS, strategy_name

# What reads a bundle (`store`, `manifest`, json) is imported by the first call that needs it, in the loading thread
# where there is one.

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firstvec.manifest import Manifest
    from firstvec.metadata import ModelMetadata
    from firstvec.provider import EmbeddingProvider
    from firstvec.selection import Choice
    from firstvec.strategy import LoadingStrategy

DEFAULT_MODEL = "all-MiniLM-L6-v2"


class OptimizedEmbeddingLoader:
    """Loads one model by one strategy. Constructing it loads nothing and never raises for an unknown model.

    Args:
        model_name: name of a bundle (``organisation/model`` or ``model``), or the path of a bundle's folder. Relative
            paths, those of ``FIRSTVEC_ARTIFACTS`` too, are seen from where the process is now, wherever it goes.
        strategy: when to load and which artifact to take.
        device: ``cpu``, ``cuda`` or ``mps``; None takes the best for this machine.
        enable_quantization: let LAZY, BACKGROUND and PROGRESSIVE take INT8. QUANTIZED always does.
        min_quality: smallest acceptable ``cosine_min`` of an artifact to the fp32 reference, -1 to 1.
        output: what the provider returns if it is not told: ``numpy`` arrays, a ``list`` of floats, or a ``buffer``
            (memoryview of float32). Without arrays numpy is never imported, and the first vector comes sooner.
        require_signature: path of a public key (PEM) whose signature the bundle must have. It is read and checked at
            each load, before anything of the bundle is used or told.

    Raises:
        InputError: the strategy or output is unknown, or an argument has the wrong type.
    """

    _instance: OptimizedEmbeddingLoader | None = None
    _instance_lock = allocate_lock()

    def __init__(
        self,
        model_name: str = DEFAULT_MODEL,
        strategy: LoadingStrategy | str = "lazy",
        device: str | None = None,
        enable_quantization: bool = False,
        *,
        min_quality: float | None = None,
        output: str = "numpy",
        require_signature: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(model_name, os.PathLike):
            model_name = os.fspath(model_name)
        if not isinstance(model_name, str) or not model_name:
            raise InputError(f"model_name {model_name!r} is not a name or a path")
        if device is not None and not _is_device(device):
            raise InputError(f"unknown device {device!r}: use 'cpu', 'cuda', 'cuda:1' or 'mps'")
        if type(enable_quantization) is not bool:
            raise InputError(f"enable_quantization {enable_quantization!r} is neither True nor False")
        if min_quality is not None and not (type(min_quality) in (int, float) and -1 <= min_quality <= 1):
            raise InputError(f"min_quality {min_quality!r} is not a cosine, between -1 and 1")
        if output not in OUTPUTS:
            raise InputError(f"unknown output {output!r}: use one of {', '.join(OUTPUTS)}")
        self.model_name = model_name
        self._strategy = strategy_name(strategy)
        self._plan = PLANS[self._strategy]
        self.resource_profile = ResourceProfile.detect()
        self._device = device
        self._here = _working_folder()
        self._enable_quantization = enable_quantization
        self._min_quality = min_quality
        self._output = output
        self._require_signature = None if require_signature is None else _key_path(require_signature)
        self._metadata: ModelMetadata | None = None
        self._lock = allocate_lock()
        self._load: Load | None = None
        self._interrupted = False
        _loaders.add(ref(self, _loaders.discard))

    @property
    def strategy(self) -> LoadingStrategy:
        """When this loader loads and which artifact it takes."""
        from firstvec.strategy import LoadingStrategy

        return LoadingStrategy(self._strategy)

    def start_loading(self) -> None:
        """Start to load as the strategy says, and return at once. LAZY waits for the first ``get_provider()``.

        A load that is under way or done is left alone; a failed one is tried again.
        """
        if self._plan.in_thread:
            self._start()

    def get_provider(self, timeout: float | None = 60.0) -> EmbeddingProvider:
        """Return the loaded model, waiting for what is left of the load. LAZY loads now.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Raises:
            LoadTimeout: it was not loaded in time; the load goes on.
            LoadError: no load was started (not LAZY: call ``start_loading()``), or it failed unexpectedly.
            BundleNotFound, ManifestError, SignatureError, IntegrityError, NoCompatibleArtifact: why the load failed.
                The same error is raised in every thread that waits; ``start_loading()`` tries again.
        """
        _seconds(timeout)
        load = self._load
        lazy = not self._plan.in_thread
        if load is None and not lazy and not self._interrupted:
            raise LoadError(f"{self.model_name} is not being loaded: call start_loading() first, or use strategy LAZY")
        if load is None or (lazy and not load.usable):
            # In a thread, so that a time limit can be kept, and Ctrl-C interrupts a wait and not an import: there
            # CPython 3.11 can leave a module's lock taken for good.
            load = self._start()
        return load.result(_seconds(timeout))

    def wait_for_provider(self, timeout: float | None = 60.0) -> EmbeddingProvider:
        """The replaced loader's second name for `get_provider`."""
        return self.get_provider(timeout)

    def count_tokens(self, texts: str | list[str], timeout: float | None = 60.0) -> list[int]:
        """Return each text's number of tokens, waiting for the tokenizer only, not for the model.

        Raises:
            InputError: a text is not usable; the error carries its index.
            LoadError, LoadTimeout and the errors of `get_provider`.
        """
        from firstvec.tokenizer import listed

        rows = listed(texts)
        load = self._load or self._start()
        return load.tokenizer(_seconds(timeout)).count(rows)

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

    def report(self) -> dict[str, Any]:
        """Return what the load did, as JSON values. Takes no lock, never raises; what is not known yet is None.

        ``model``, ``strategy``: as the loader was told.
        ``state``: ``idle``, ``loading``, ``loaded``, ``closed`` or ``failed``.
        ``artifact``, ``engine``, ``device``: what answers, in what, and where.
        ``session``: ``quick-start`` or ``throughput``.
        ``verification``: of the artifact's files: ``hashed now``, or ``remembered`` from an earlier load.
        ``self_test``: ``passed now``, ``passed before``, or ``none`` where the bundle has no self-test.
        ``fallbacks``: the candidates that failed, in order: ``artifact``, ``error`` (class) and ``reason`` of each.
        ``hand_over``: PROGRESSIVE's: ``waiting``, ``done`` or ``failed: …``.
        ``error``: message of the error that the load ended with.
        ``seconds``: that the load took, 0.0 until it has ended.
        ``first_vector_ms``: milliseconds from the load's start to the end of the provider's first run.
        ``started``: ``time.perf_counter()`` at the load's start.
        ``stages``: ``name``, ``at_ms`` (begin, from the load's start), ``ms`` (length) and ``thread`` of each. Those of
        different threads overlap: their sum is more than the time that the load took.
        """
        load = self._load
        if load is not None:
            return load.report()
        nothing: dict[str, Any] = dict.fromkeys(FIELDS)
        return nothing | {
            "model": self.model_name,
            "strategy": self._strategy,
            "state": "idle",
            "fallbacks": [],
            "seconds": 0.0,
            "stages": [],
        }

    def get_metadata(self) -> ModelMetadata | None:
        """Return what the manifest says of the model, or None if there is no valid bundle. Loads no model.

        Where a signature is required: of a bundle without it, or with another one, nothing is told.
        """
        if self._metadata is None:
            from firstvec.metadata import ModelMetadata

            if self._require_signature is None:
                self._metadata = ModelMetadata.from_cache(self.model_name, here=self._here)
            else:
                from firstvec.store import find

                try:
                    self._metadata = ModelMetadata.of(find(self.model_name, self._require_signature, self._here))
                except FirstvecError:
                    return None
        return self._metadata

    def get_embedding_dim_fast(self) -> int | None:
        """Return the length of a vector, from the manifest, or None if there is no valid bundle. Loads no model."""
        metadata = self._metadata or self.get_metadata()
        return metadata.embedding_dim if metadata is not None else None

    def choose(self) -> Choice:
        """Return which artifact this loader takes, and why not the others. Loads no model.

        Raises:
            BundleNotFound, ManifestError: there is no valid bundle.
            SignatureError: it has not the signature that is required.
            NoCompatibleArtifact: none of its artifacts can be used here.
        """
        from firstvec.store import find

        return self._choose(find(self.model_name, self._require_signature, self._here))

    @classmethod
    def get_instance(
        cls,
        model_name: str | None = None,
        strategy: LoadingStrategy | str | None = None,
        device: str | None = None,
        enable_quantization: bool | None = None,
        *,
        output: str | None = None,
        require_signature: str | os.PathLike[str] | None = None,
    ) -> OptimizedEmbeddingLoader:
        """Return the process's one loader, made at the first call; arguments that are left out fit any.

        Raises:
            InputError: the loader is there and an argument differs from what it was made with.
        """
        wanted = {
            "model_name": model_name,
            "strategy": None if strategy is None else strategy_name(strategy),
            "device": device,
            "enable_quantization": enable_quantization,
            "output": output,
            "require_signature": None if require_signature is None else _key_path(require_signature),
        }
        wanted = {name: value for name, value in wanted.items() if value is not None}
        with cls._instance_lock:
            if cls._instance is None:
                cls._instance = cls(**wanted)  # type: ignore[arg-type]
            instance = cls._instance
        has = {
            "model_name": instance.model_name,
            "strategy": instance._strategy,
            "device": instance._device,
            "enable_quantization": instance._enable_quantization,
            "output": instance._output,
            "require_signature": instance._require_signature,
        }
        for name, value in wanted.items():
            if has[name] != value:
                raise InputError(
                    f"the process's loader was made with {name}={has[name]!r}, not {value!r}: construct an "
                    "OptimizedEmbeddingLoader of your own, or call OptimizedEmbeddingLoader.reset() first"
                )
        return instance

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
            self._strategy,
            device=self._device,
            enable_quantization=self._enable_quantization,
            min_quality=self._min_quality,
        )

    def _start(self) -> Load:
        with self._lock:
            load = self._load
            if load is not None and load.usable:
                return load
            if load is not None and load.error is not None:
                self.resource_profile = ResourceProfile.detect()  # what was wrong may have been the machine's state
            profile = self.resource_profile
            # On a CPU every artifact but TorchScript in a process that has torch anyway is onnxruntime's.
            engine_first = (self._device or profile.recommended_device) == "cpu" and not profile.torch_loaded
            load = Load(
                self.model_name,
                self._choose,
                self._plan,
                self._output,
                engine_first=engine_first,
                strategy=self._strategy,
                require_signature=self._require_signature,
                here=self._here,
            )
            load.start()
            # Now, not before: Ctrl-C in between would leave a load that all wait for and that nobody began.
            self._load = load
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


def _is_device(device: object) -> bool:
    if not isinstance(device, str):
        return False
    kind, _, index = device.partition(":")
    return device in ("cpu", "cuda", "mps") or (kind == "cuda" and index.isascii() and index.isdecimal())


def _key_path(path: str | os.PathLike[str]) -> str:
    """Absolute: the same file at every load, wherever the process has gone."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text:
        raise InputError(f"require_signature {path!r} is not the path of a public key")
    try:
        return os.path.abspath(text)
    except OSError as error:  # the working folder is gone
        raise InputError(f"require_signature {text!r}: {error.strerror}; give an absolute path") from error


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it is gone: what is relative is not found
        return ""


def _seconds(timeout: float | None) -> float | None:
    """A time limit that threads accept."""
    if timeout is None:
        return None
    if type(timeout) not in (int, float) or timeout != timeout:
        raise InputError(f"timeout {timeout!r} is not a number of seconds")
    return None if timeout > 1e9 else float(timeout)  # thirty years


def preload_embeddings(
    model_name: str | None = None,
    strategy: LoadingStrategy | str | None = None,
    device: str | None = None,
    enable_quantization: bool | None = None,
    *,
    output: str | None = None,
    require_signature: str | os.PathLike[str] | None = None,
) -> OptimizedEmbeddingLoader:
    """Start to load the process's one model, PROGRESSIVE if nothing else is said, and return its loader at once.

    Raises:
        InputError: an argument is not usable, or differs from what the process's loader was made with.
    """
    if strategy is None and OptimizedEmbeddingLoader._instance is None:
        strategy = "progressive"
    loader = OptimizedEmbeddingLoader.get_instance(
        model_name, strategy, device, enable_quantization, output=output, require_signature=require_signature
    )
    loader.start_loading()
    return loader


def get_embedding_provider(
    model_name: str | None = None,
    strategy: LoadingStrategy | str | None = None,
    timeout: float | None = 60.0,
    device: str | None = None,
    enable_quantization: bool | None = None,
    *,
    output: str | None = None,
    require_signature: str | os.PathLike[str] | None = None,
) -> EmbeddingProvider:
    """Return the process's one model, waiting for what is left of its load; starts the load if nobody did.

    Raises:
        InputError: as for `preload_embeddings`.
        The errors of `OptimizedEmbeddingLoader.get_provider`.
    """
    loader = preload_embeddings(
        model_name, strategy, device, enable_quantization, output=output, require_signature=require_signature
    )
    return loader.get_provider(timeout)


_loaders: set[ref[OptimizedEmbeddingLoader]] = set()


def _after_fork_in_child() -> None:
    OptimizedEmbeddingLoader._instance_lock = allocate_lock()
    for reference in list(_loaders):
        if (loader := reference()) is not None:
            loader._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
