"""The loader that a program holds: when to load, once for all its threads."""

from __future__ import annotations

import os

from firstvec.errors import FirstvecError, InputError
from firstvec.loading.attempt import Load
from firstvec.machine.profile import ResourceProfile
from firstvec.options import DEFAULT_MODEL, Options, make_options
from firstvec.process.threads import ProcessLock
from firstvec.record import Generic
from firstvec.strategy import STRATEGIES

# What reads a bundle (`firstvec.bundle`, json) is imported by the first call that needs it: in the load's thread where
# there is one.

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, overload

    from typing_extensions import Unpack

    from firstvec.bundle.manifest import Manifest
    from firstvec.bundle.metadata import ModelMetadata
    from firstvec.enums import LoadingStrategy
    from firstvec.options import MoreOptions, ProcessOptions, SharedOptions, Strategy
    from firstvec.provider import Array, AsBuffer, AsList, AsNumpy, Buffer, EmbeddingProvider, Floats, Row, Rows
    from firstvec.selection import Choice
else:
    Row = Rows = None


class OptimizedEmbeddingLoader(Generic[Row, Rows]):
    """Loads one model by one strategy. Constructing it loads nothing, and never raises for an unknown model.

    A loader pickles as its options. The copy loads at its own first use.

    Args:
        model_name: name of a bundle (``organization/model`` or ``model``), or the path of a bundle's folder. Relative
            paths, those of ``FIRSTVEC_ARTIFACTS`` too, are seen from where the process is now, wherever it goes.
        strategy: when to load and which artifact to take.
        device: ``cpu``, ``cuda`` or ``mps``. None takes the best for this machine.
        enable_quantization: let LAZY, BACKGROUND and PROGRESSIVE take INT8. QUANTIZED always does.
        output: what the provider returns when a call does not say: ``numpy`` arrays, a ``list`` of floats, or a
            ``buffer`` (memoryview of float32). Without arrays numpy is never imported, and the first vector comes
            sooner.
        min_quality: smallest acceptable ``cosine_min`` of an artifact to the fp32 reference, -1 to 1.
        require_signature: path of a public key (PEM) whose signature the bundle must have. The key is read and the
            signature is checked at each load, before anything of the bundle is used or shown.
        artifact: id of the one artifact that may be taken.

    Raises:
        InputError: the strategy or output is unknown, or an argument has the wrong type.
    """

    if TYPE_CHECKING:

        @overload
        def __init__(
            self: OptimizedEmbeddingLoader[Array, Array],
            model_name: str = ...,
            strategy: Strategy = ...,
            device: str | None = ...,
            enable_quantization: bool = ...,
            *,
            output: AsNumpy = ...,
            **more: Unpack[MoreOptions],
        ) -> None: ...
        @overload
        def __init__(
            self: OptimizedEmbeddingLoader[Floats, list[Floats]],
            model_name: str = ...,
            strategy: Strategy = ...,
            device: str | None = ...,
            enable_quantization: bool = ...,
            *,
            output: AsList,
            **more: Unpack[MoreOptions],
        ) -> None: ...
        @overload
        def __init__(
            self: OptimizedEmbeddingLoader[Buffer, Buffer],
            model_name: str = ...,
            strategy: Strategy = ...,
            device: str | None = ...,
            enable_quantization: bool = ...,
            *,
            output: AsBuffer,
            **more: Unpack[MoreOptions],
        ) -> None: ...

    def __init__(
        self,
        model_name: str = DEFAULT_MODEL,
        strategy: Strategy = "lazy",
        device: str | None = None,
        enable_quantization: bool = False,
        *,
        output: str = "numpy",
        **more: Unpack[MoreOptions],
    ) -> None:
        self._set_up(make_options(model_name, strategy, device, enable_quantization, output, **more))

    def _set_up(self, options: Options) -> None:
        self._options = options
        self.resource_profile = ResourceProfile.detect()
        self._metadata: ModelMetadata | None = None
        self._lock = ProcessLock()
        self._load: Load | None = None
        self._is_for_all = False

    def __reduce__(self) -> Any:
        """Pickle the options. The copy, in another process or here, has loaded nothing yet."""
        return _make_loader, (type(self), self._options)

    @property
    def model_name(self) -> str:
        """Name or path of the bundle, as the loader was told."""
        return self._options.model_name

    @property
    def strategy(self) -> LoadingStrategy:
        """When this loader loads and which artifact it takes."""
        from firstvec.enums import LoadingStrategy

        return LoadingStrategy(self._options.strategy)

    def start_loading(self) -> None:
        """Start to load as the strategy says. LAZY waits for the first ``get_provider()``.

        Returns within a few milliseconds: what takes longer happens in a thread.

        A load that is under way or done is left alone. A failed one is tried again.
        """
        if STRATEGIES[self._options.strategy].in_background:
            self._start()

    def get_provider(self, timeout: float | None = 60.0) -> EmbeddingProvider[Row, Rows]:
        """Return the loaded model. Wait for what is left of the load, and start a load that nobody started.

        Args:
            timeout: seconds to wait at most. None waits for ever.

        Raises:
            LoadTimeout: the model was not loaded in time. The load goes on.
            BundleNotFound, ManifestError, SignatureError, IntegrityError, NoCompatibleArtifact, LoadError: why the load
                failed. Every thread that waits gets the same error. ``start_loading()`` tries again. With LAZY, a
                ``get_provider()`` that begins after the failure tries again, too.
        """
        seconds = _check_timeout(timeout)
        load = self._current_load()
        is_lazy = not STRATEGIES[self._options.strategy].in_background
        if load is None or (is_lazy and not load.is_usable):
            # LAZY loads in a thread, too. A wait can then have a time limit, and Ctrl-C interrupts the wait.
            # An import that Ctrl-C interrupts can leave its module locked for good.
            load = self._start()
        return load.result(seconds)

    def wait_for_provider(self, timeout: float | None = 60.0) -> EmbeddingProvider[Row, Rows]:
        """Do what `get_provider` does: the replaced loader has both names."""
        return self.get_provider(timeout)

    def count_tokens(self, texts: str | list[str], timeout: float | None = 60.0) -> list[int]:
        """Return each text's number of tokens. Wait for the tokenizer only, and not for the model.

        Raises:
            InputError: a text is not usable. The error has its index.
            LoadTimeout: the tokenizer was not read in time. The load goes on.
            LoadError: why the load failed. The other errors are those of `get_provider`.
        """
        from firstvec.text.tokenizer import as_list

        rows = as_list(texts)
        load = self._current_load() or self._start()
        return load.tokenizer(_check_timeout(timeout)).count(rows)

    def is_loaded(self) -> bool:
        """Return whether ``get_provider()`` would return at once. Takes no lock."""
        load = self._current_load()
        return load is not None and load.provider is not None

    def is_loading(self) -> bool:
        """Return whether a load is under way. Takes no lock."""
        load = self._current_load()
        return load is not None and load.is_under_way

    def get_error(self) -> BaseException | None:
        """Return the error of the last load, or None. Never raises."""
        load = self._current_load()
        return load.error if load is not None else None

    def get_load_time(self) -> float:
        """Return how long the load took, in seconds. 0.0 until it is done."""
        load = self._current_load()
        return load.seconds if load is not None else 0.0

    def report(self) -> dict[str, Any]:
        """Return what the load did, as JSON values: the fields of `firstvec.loading.report.Report`.

        Takes no lock, never raises. What is not known yet is None.
        """
        load = self._current_load()
        if load is not None:
            return load.to_values()
        from firstvec.loading.report import Report

        return Report(model=self._options.model_name, strategy=self._options.strategy).to_values()

    def get_metadata(self) -> ModelMetadata | None:
        """Return what the manifest says of the model, or None if there is no valid bundle. Loads no model.

        Where a signature is required, the result is None for a bundle without this signature.
        """
        if self._metadata is None:
            from firstvec.bundle.metadata import ModelMetadata

            options = self._options
            if options.require_signature is None:
                self._metadata = ModelMetadata.from_cache(options.model_name, working_folder=options.working_folder)
            else:
                try:
                    self._metadata = ModelMetadata.of(self._find_bundle())
                except FirstvecError:
                    return None
        return self._metadata

    def get_embedding_dim_fast(self) -> int | None:
        """Return the length of a vector, from the manifest, or None if there is no valid bundle. Loads no model."""
        metadata = self._metadata or self.get_metadata()
        return metadata.embedding_dim if metadata is not None else None

    def choose(self) -> Choice:
        """Return which artifact a load would take on this machine, and why not the others. Loads nothing.

        Raises:
            BundleNotFound, ManifestError, SignatureError, NoCompatibleArtifact: why a load would fail.
        """
        from firstvec.selection import select

        return select(self._find_bundle(), self.resource_profile, self._options)

    @classmethod
    def get_instance(
        cls, model_name: str | None = None, strategy: Strategy | None = None, **options: Unpack[SharedOptions]
    ) -> OptimizedEmbeddingLoader[Any, Any]:
        """Return the process's loader of that model and these options. The first call makes it.

        An argument that is left out, or None, fits every loader. Two names of the same bundle mean the same model. A
        loader whose load has failed is forgotten.

        Args:
            model_name: as for the constructor. Without a name the model is the one that `get_instance` or
                `preload_embeddings` got before. If they got none, or several and all-MiniLM-L6-v2 is among them, the
                model is all-MiniLM-L6-v2.
            strategy: as for the constructor.
            options: the other arguments of the constructor.

        Raises:
            InputError: an argument is not usable, or no model is named and several others were given before.
        """
        given = {"model_name": model_name, "strategy": strategy, **options}
        return _process_loaders.find(given, default_strategy="lazy", is_for_all=True)

    @classmethod
    def reset(cls) -> None:
        """Forget the process's loaders. Providers that were handed out stay usable."""
        _process_loaders.forget_all()

    def _find_bundle(self) -> Manifest:
        from firstvec.bundle.store import find_bundle

        options = self._options
        return find_bundle(options.model_name, options.require_signature, options.working_folder)

    def _current_load(self) -> Load | None:
        """Return the last load. None: there is none, or a fork has left its thread in the parent process."""
        load = self._load
        return None if load is None or load.is_lost else load

    def _start(self) -> Load:
        with self._lock.here():
            load = self._current_load()
            if load is not None and load.is_usable:
                return load
            if load is not None and load.error is not None:
                self.resource_profile = ResourceProfile.detect()  # the machine's state may have been the reason
            load = Load(self._options, self.resource_profile)
            load.start()
            # The loader refers to the load only now. If Ctrl-C came before, everybody would wait for a load that nobody
            # has started.
            self._load = load
        return load


def _make_loader(
    kind: type[OptimizedEmbeddingLoader[Any, Any]], options: Options
) -> OptimizedEmbeddingLoader[Any, Any]:
    """Make a loader of options that were checked before."""
    loader = kind.__new__(kind)
    loader._set_up(options)
    return loader


class _ProcessLoaders:
    """The loaders that the functions of this module share in a process: one for each model and options."""

    def __init__(self) -> None:
        self._lock = ProcessLock()
        self._loaders: list[OptimizedEmbeddingLoader[Any, Any]] = []

    def forget_all(self) -> None:
        with self._lock.here():
            self._loaders.clear()

    def find(
        self, given: dict[str, Any], *, default_strategy: str, is_for_all: bool
    ) -> OptimizedEmbeddingLoader[Any, Any]:
        """Return the first loader that fits what is given, or make one.

        Args:
            given: keyword arguments of `firstvec.options.make_options`. None fits every loader.
            default_strategy: of a loader that is made, if none is given.
            is_for_all: whether a call without a model name may mean this model later.

        Raises:
            InputError: as `OptimizedEmbeddingLoader.get_instance`.
        """
        given = {name: value for name, value in given.items() if value is not None}
        options = make_options(**{"strategy": default_strategy, **given})
        with self._lock.here():
            self._loaders = [loader for loader in self._loaders if loader.get_error() is None]
            if "model_name" not in given and (model := self._model_of_the_process()):
                options = options.replace(model_name=model[0], working_folder=model[1])
            for loader in self._loaders:
                fits = all(
                    getattr(loader._options, name) == getattr(options, name) for name in given if name != "model_name"
                )
                if fits and _mean_same_model(loader._options, options):
                    break
            else:
                loader = _make_loader(OptimizedEmbeddingLoader, options)
                self._loaders.append(loader)
            loader._is_for_all = loader._is_for_all or is_for_all
            return loader

    def _model_of_the_process(self) -> tuple[str, str] | None:
        """Return name and working folder of the model of a call that names none. None: the default model."""
        all_options = [loader._options for loader in self._loaders if loader._is_for_all]
        models = [*dict.fromkeys((options.model_name, options.working_folder) for options in all_options)]
        if len(models) == 1:
            return models[0]
        names = [name for name, _ in models]
        if names and DEFAULT_MODEL not in names:
            raise InputError(f"this process has loaders of {', '.join(names)}: say which one with model_name")
        return None


_process_loaders = _ProcessLoaders()


def _mean_same_model(one: Options, other: Options) -> bool:
    """Return whether two names lead to the same bundle."""
    if one.model_name == other.model_name:
        # A name with a slash may be a relative path.
        if one.working_folder == other.working_folder or "/" not in one.model_name or one.model_name.startswith("/"):
            return True
    elif os.path.basename(one.model_name.rstrip("/")) != os.path.basename(other.model_name.rstrip("/")):
        return False
    from firstvec.bundle.metadata import ModelMetadata

    folders = set()
    for each in (one, other):
        metadata = ModelMetadata.from_cache(each.model_name, working_folder=each.working_folder)
        if metadata is None or not metadata.path:
            return False
        folders.add(os.path.realpath(metadata.path))
    return len(folders) == 1


def _check_timeout(timeout: float | None) -> float | None:
    """Return a time limit in seconds that threads accept."""
    if timeout is None:
        return None
    if type(timeout) not in (int, float) or timeout != timeout:
        raise InputError(f"timeout {timeout!r} is not a number of seconds")
    return None if timeout > 1e9 else float(timeout)  # 1e9 seconds are thirty years


def preload_embeddings(
    model_name: str | None = None, strategy: Strategy | None = None, **options: Unpack[SharedOptions]
) -> OptimizedEmbeddingLoader[Any, Any]:
    """Start to load a model for this process, and return its loader at once. The default strategy is PROGRESSIVE.

    The arguments are those of `OptimizedEmbeddingLoader.get_instance`.

    Raises:
        InputError: as `OptimizedEmbeddingLoader.get_instance`.
    """
    given = {"model_name": model_name, "strategy": strategy, **options}
    loader = _process_loaders.find(given, default_strategy="progressive", is_for_all=True)
    loader.start_loading()
    return loader


if TYPE_CHECKING:

    @overload
    def get_embedding_provider(
        model_name: str | None = ...,
        strategy: Strategy | None = ...,
        timeout: float | None = ...,
        *,
        output: AsNumpy | None = ...,
        **options: Unpack[ProcessOptions],
    ) -> EmbeddingProvider[Array, Array]: ...
    @overload
    def get_embedding_provider(
        model_name: str | None = ...,
        strategy: Strategy | None = ...,
        timeout: float | None = ...,
        *,
        output: AsList,
        **options: Unpack[ProcessOptions],
    ) -> EmbeddingProvider[Floats, list[Floats]]: ...
    @overload
    def get_embedding_provider(
        model_name: str | None = ...,
        strategy: Strategy | None = ...,
        timeout: float | None = ...,
        *,
        output: AsBuffer,
        **options: Unpack[ProcessOptions],
    ) -> EmbeddingProvider[Buffer, Buffer]: ...


def get_embedding_provider(
    model_name: str | None = None,
    strategy: Strategy | None = None,
    timeout: float | None = 60.0,
    **options: Unpack[SharedOptions],
) -> EmbeddingProvider[Any, Any]:
    """Return a model for this process. Wait for what is left of its load, and start a load that nobody started.

    There is one loader for each model and options, so a second call with the same arguments returns the same provider.
    A program may ask for several models. The arguments, ``timeout`` apart, are those of
    `OptimizedEmbeddingLoader.get_instance`, and the default strategy is PROGRESSIVE.

    Raises:
        InputError: as `OptimizedEmbeddingLoader.get_instance`.
        FirstvecError: the errors of `OptimizedEmbeddingLoader.get_provider`.
    """
    given = {"model_name": model_name, "strategy": strategy, **options}
    loader = _process_loaders.find(given, default_strategy="progressive", is_for_all=False)
    loader.start_loading()
    return loader.get_provider(timeout)
