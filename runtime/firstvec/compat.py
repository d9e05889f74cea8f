"""`SentenceTransformer`: the class of sentence-transformers, for code that computes vectors.

docs/sentence-transformers.md has an example, and says what differs.
"""

from __future__ import annotations

from firstvec.bundle.similarity import SIMILARITIES, similarity_fn_name
from firstvec.bundle.store import find_bundle
from firstvec.errors import InputError
from firstvec.loader import OptimizedEmbeddingLoader
from firstvec.options import make_options
from firstvec.provider import DOCUMENT_PROMPTS, QUERY_PROMPTS
from firstvec.text.tokenizer import as_list
from firstvec.vectors import as_tensors, check_numpy, not_computed, wait_for_numpy

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from typing import Any

    import numpy.typing as npt

    from firstvec.bundle.manifest import Manifest
    from firstvec.options import Strategy
    from firstvec.provider import Array, EmbeddingProvider

_TRAINS = (
    "firstvec computes vectors and does not train: train with sentence_transformers, and build a bundle of the saved "
    "folder with `firstvec build FOLDER`"
)
_SAVES = (
    "a bundle is never changed: copy its folder, or change and save the model with sentence_transformers, and build a "
    "bundle of the saved folder with `firstvec build FOLDER`"
)
_MODULES = (
    "the weights are in files that an engine maps, and there is no module of torch: for modules use "
    "sentence_transformers; for the vectors of texts call encode"
)
_TOKENIZER = (
    "the tokenizer of transformers is not part of firstvec: call preprocess, or open the bundle's folder with "
    "transformers.AutoTokenizer.from_pretrained, or its file tokenizer.json with tokenizers.Tokenizer.from_file"
)
_EVALUATES = "an evaluator writes into a model's card: call encode and similarity, or evaluate with firstvec[mteb]"
_DEVICE = "a bundle stays on the device on which it was loaded, {loaded}: construct SentenceTransformer(…, device=…)"

_REASONS = {
    _TRAINS: "fit old_fit train requires_grad_ zero_grad gradient_checkpointing_enable smart_batching_collate merge "
    "active_adapter active_adapters add_adapter check_peft_compatible_model delete_adapter disable_adapters "
    "enable_adapters get_adapter_state_dict has_peft_compatible_model load_adapter set_adapter",
    _SAVES: "save save_pretrained save_to_hub push_to_hub model_card_data",
    _MODULES: "forward compile half float double bfloat16 share_memory parameters named_parameters buffers modules "
    "named_modules children named_children state_dict load_state_dict transformers_model config dtype append insert "
    "extend apply register_forward_hook clear_placement_cache set_pooling_include_prompt get_sentence_features",
    _TOKENIZER: "tokenizer processor",
    _EVALUATES: "evaluate",
}
_MISSING = {name: reason for reason, names in _REASONS.items() for name in names.split()}
"""Attribute of sentence-transformers' class that this class has not → the reason, and what to use."""

_HARMLESS_MODEL_KWARGS = ("attn_implementation", "low_cpu_mem_usage", "use_safetensors", "local_files_only")
"""They change how torch loads or computes, and not what is computed."""
_ABSENT: Any = object()


class _NotHere(NotImplementedError, AttributeError):
    """``hasattr`` is False for what is missing, as programs expect that look for a method before they call it."""


class SentenceTransformer:
    """Compute vectors of texts with the interface of sentence-transformers 6.2, from a bundle and without torch.

    Constructing it finds the bundle and starts to load it in a thread. The first call that needs the model waits. One
    object serves all threads and forked processes. A pickled or copied object loads the model again.

    Args:
        model_name_or_path: name of a bundle (``organization/model`` or ``model``), or the path of a bundle's folder.
        modules: not implemented.
        device: ``cpu``, ``cuda`` or ``mps``. None takes the best for this machine.
        prompts: name → text to put before a text to encode. They replace the model's prompts of the same names.
        default_prompt_name: name of the prompt for calls that name none. None takes the model's.
        cache_folder: without effect, because nothing is downloaded.
        trust_remote_code: without effect, because a bundle has no code.
        revision: only the revision from which the bundle was built.
        local_files_only: without effect, because nothing is downloaded.
        token: without effect, because nothing is downloaded.
        use_auth_token: the older name of ``token``.
        model_kwargs: ``file_name`` with ``backend="onnx"``, and keys that do not change the vectors.
        processor_kwargs: not implemented.
        tokenizer_kwargs: the older name of ``processor_kwargs``.
        config_kwargs: not implemented.
        model_card_data: without effect, because no card is written.
        backend: ``torch`` takes the artifact that ``strategy`` takes, on any engine. ``onnx`` takes onnxruntime's fp32
            artifact, or that of ``model_kwargs={"file_name": …}``.
        similarity_fn_name: ``cosine``, ``dot``, ``euclidean`` or ``manhattan``. None takes the model's.
        truncate_dim: components of a vector to keep. None keeps all.
        strategy: when to load and which artifact to take, as for `firstvec.OptimizedEmbeddingLoader`.
        enable_quantization: let LAZY, BACKGROUND and PROGRESSIVE take INT8.
        min_quality: smallest acceptable ``cosine_min`` of an artifact to the fp32 reference, -1 to 1.
        require_signature: path of a public key (PEM) whose signature the bundle must have.
        artifact: id of the one artifact that may be taken.

    Raises:
        MissingDependency: numpy is not installed.
        BundleNotFound, ManifestError, SignatureError: why there is no usable bundle. Errors of the load itself are
            those of the first call that waits for it.
        NotImplementedError: an argument would change the vectors, and a bundle cannot follow it.
        InputError: an argument is not usable. It is a ValueError, too.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | None = None,
        *,
        modules: Any = None,
        device: Any = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        use_auth_token: bool | str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        model_card_data: Any = None,
        backend: str = "torch",
        similarity_fn_name: Any = None,
        truncate_dim: int | None = None,
        strategy: Strategy = "progressive",
        enable_quantization: bool = False,
        min_quality: float | None = None,
        require_signature: str | os.PathLike[str] | None = None,
        artifact: str | None = None,
    ) -> None:
        if modules is not None:
            raise NotImplementedError(f"modules: {_MODULES}")
        if model_name_or_path is None:
            raise InputError("model_name_or_path is missing: give the name of a bundle, or the path of its folder")
        if truncate_dim is not None and not (type(truncate_dim) is int and truncate_dim > 0):
            raise InputError(f"truncate_dim {truncate_dim!r} is not a positive integer")
        for name, value in (("prompts", prompts), ("model_kwargs", model_kwargs)):
            if value is not None and not hasattr(value, "items"):
                raise InputError(f"{name} {value!r} is not a dict")
        if token is not None and use_auth_token is not None:
            raise InputError(
                "Both `token` and `use_auth_token` are specified. Please only specify the `token` argument."
            )
        for name, value in (
            ("processor_kwargs", processor_kwargs),
            ("tokenizer_kwargs", tokenizer_kwargs),
            ("config_kwargs", config_kwargs),
        ):
            if value:
                raise NotImplementedError(
                    f"{name} {[*value]}: the bundle's tokenizer and graph are those of the build; change and save the "
                    "model with sentence_transformers, and build a bundle of the saved folder with `firstvec build`"
                )
        options: dict[str, Any] = {
            "device": None if device is None else str(device),
            "strategy": strategy,
            "enable_quantization": enable_quantization,
            "min_quality": min_quality,
            "require_signature": require_signature,
            "artifact": artifact,
        }
        checked = make_options(model_name_or_path, **options)
        manifest = find_bundle(checked.model_name, checked.require_signature, checked.working_folder)
        if revision not in (None, manifest.model.revision):
            raise NotImplementedError(
                f"revision {revision!r}: the bundle was built from revision {manifest.model.revision!r}, and nothing "
                "is downloaded; build a bundle with `firstvec build --revision`"
            )
        if (chosen := _artifact_of(manifest, backend, model_kwargs or {})) is not None and artifact is None:
            options["artifact"] = chosen
        self._manifest = manifest
        self._backend = backend
        self.truncate_dim = truncate_dim
        self._similarity: str | None = None
        self.similarity_fn_name = similarity_fn_name
        self.prompts: dict[str, str] = {"query": "", "document": "", **manifest.model.prompts}
        """Name → text. A program may change it."""
        self.prompts.update({name: text for name, text in (prompts or {}).items() if text is not None})
        if default_prompt_name is None:
            default_prompt_name = manifest.model.default_prompt_name
        self.default_prompt_name = default_prompt_name
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise InputError(
                f"Default prompt name {self.default_prompt_name!r} not found in the configured prompts dictionary with "
                f"keys {[*self.prompts]}."
            )
        self._loader = OptimizedEmbeddingLoader(checked.model_name, **options)
        self._loader.start_loading()
        check_numpy("SentenceTransformer of firstvec.compat")  # behind the load, which begins to import numpy

    def __getattr__(self, name: str) -> Any:
        if name in _MISSING:
            raise _NotHere(f"SentenceTransformer.{name}: {_MISSING[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @staticmethod
    def load(input_path: str | os.PathLike[str]) -> SentenceTransformer:
        """Return ``SentenceTransformer(input_path)``, with its errors.

        Args:
            input_path: as ``model_name_or_path``.
        """
        return SentenceTransformer(input_path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._loader.model_name!r}, strategy={self._loader.strategy.value!r})"

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Raise NotImplementedError: there is no module of torch."""
        raise NotImplementedError(f"SentenceTransformer.__call__: {_MODULES}")

    def __getitem__(self, index: object) -> Any:
        """Raise NotImplementedError: there is no module of torch."""
        raise NotImplementedError(f"SentenceTransformer[{index!r}]: {_MODULES}")

    # Vectors

    def encode(
        self,
        inputs: Any = _ABSENT,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Any = None,
        chunk_size: int | None = None,
        **others: Any,
    ) -> Any:
        """Embed texts, as `firstvec.EmbeddingProvider.encode` does: float32, shape (N, dim), or (dim,) for one text.

        Args:
            inputs: one text, or a sequence of texts. The older name is ``sentences``.
            prompt_name: name of the prompt to put before each text.
            prompt: text to put before each text.
            batch_size: most texts per run, in an engine that pads texts to one length.
            show_progress_bar: draw a bar on stderr. None draws it where the logger ``firstvec`` is set to INFO or
                DEBUG.
            output_value: ``sentence_embedding``, or None for a dict of tensors for each text.
            precision: ``float32``, ``int8``, ``uint8``, ``binary`` or ``ubinary``.
            convert_to_numpy: False returns a list of torch tensors.
            convert_to_tensor: True returns one torch tensor.
            device: the device on which the model was loaded, or a list of it.
            normalize_embeddings: scale vectors to unit length.
            truncate_dim: components to keep. None takes the constructor's.
            pool: without effect: the vectors are computed in this process, on all its cores.
            chunk_size: without effect.
            others: ``task`` is without effect, because a bundle has one graph.

        Raises:
            InputError: a text or an argument is not usable. It is a ValueError, too.
            NotImplementedError: vectors of tokens, another device, or ``processing_kwargs``.
            MissingDependency: tensors are asked for and torch is not installed.
            FirstvecError: why the model could not be loaded, as for `OptimizedEmbeddingLoader.get_provider`.
        """
        sentences = others.pop("sentences", _ABSENT)
        texts = sentences if inputs is _ABSENT else inputs
        if texts is _ABSENT:
            raise TypeError("encode() missing 1 required positional argument: 'inputs'")
        if output_value not in ("sentence_embedding", None):
            raise NotImplementedError(not_computed(output_value))
        if chunk_size is not None and chunk_size <= 0:
            raise InputError(f"chunk_size must be a positive integer, got {chunk_size}.")
        _check_others(others)
        provider = self._load()
        for each in device if isinstance(device, (list, tuple)) else (device,):
            _check_device(each, provider.device)
        return provider.encode(
            texts,
            # A prompt of the manifest must not come in where the program has changed `prompts`.
            prompt=self._prompt(prompt_name) if prompt is None else prompt,
            prompt_name=None if prompt is None else prompt_name,  # with both, the provider warns
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            output_value=output_value,
            precision=precision,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=self.truncate_dim if truncate_dim is None else truncate_dim,
        )

    def encode_query(
        self,
        inputs: Any = _ABSENT,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """Embed queries as `encode` does. Without a prompt, the prompt named ``query`` is put before each.

        Args:
            inputs: as for `encode`.
            prompt_name: as for `encode`.
            prompt: as for `encode`.
            more: the other arguments of `encode`, in its order.
            options: the other arguments of `encode`.

        Raises:
            InputError, NotImplementedError, MissingDependency, FirstvecError: as for `encode`.
        """
        return self.encode(inputs, self._named(QUERY_PROMPTS, prompt_name, prompt), prompt, *more, **options)

    def encode_document(
        self,
        inputs: Any = _ABSENT,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """Embed documents as `encode` does. Without a prompt, the prompt named ``document`` is put before each.

        If there is no such prompt, ``passage`` and then ``corpus`` are taken.

        Args:
            inputs: as for `encode`.
            prompt_name: as for `encode`.
            prompt: as for `encode`.
            more: the other arguments of `encode`, in its order.
            options: the other arguments of `encode`.

        Raises:
            InputError, NotImplementedError, MissingDependency, FirstvecError: as for `encode`.
        """
        return self.encode(inputs, self._named(DOCUMENT_PROMPTS, prompt_name, prompt), prompt, *more, **options)

    def _named(self, names: tuple[str, ...], prompt_name: str | None, prompt: str | None) -> str | None:
        if prompt_name is None and prompt is None:
            return next((name for name in names if name in self.prompts), None)
        return prompt_name

    def _prompt(self, name: str | None) -> str:
        if name is None:
            return "" if self.default_prompt_name is None else self.prompts.get(self.default_prompt_name, "")
        try:
            return self.prompts[name]
        except (KeyError, TypeError):
            raise InputError(
                f"Prompt name {name!r} not found in the configured prompts dictionary with keys {[*self.prompts]}."
            ) from None

    def _load(self) -> EmbeddingProvider[Array, Array]:
        self._loader.start_loading()  # a load that has failed is tried again
        return self._loader.get_provider(timeout=None)

    # Processes

    def start_multi_process_pool(self, target_devices: list[Any] | None = None) -> dict[str, Any]:
        """Return an empty pool: `encode` computes in this process, on all its cores. No process is started.

        Args:
            target_devices: the device on which the model was loaded, any number of times.

        Raises:
            NotImplementedError: another device.
        """
        for each in target_devices or ():
            _check_device(each, self.device)
        return {"input": None, "output": None, "processes": []}

    @staticmethod
    def stop_multi_process_pool(pool: dict[str, Any]) -> None:
        """Do nothing: a pool of `start_multi_process_pool` has no processes.

        Args:
            pool: the pool.
        """

    def encode_multi_process(
        self,
        sentences: Any,
        pool: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        chunk_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: str | None = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """Embed texts as `encode` does, in this process: an array.

        Args:
            sentences: as for `encode`.
            pool: without effect.
            prompt_name: as for `encode`.
            prompt: as for `encode`.
            batch_size: as for `encode`.
            chunk_size: without effect.
            show_progress_bar: as for `encode`.
            precision: as for `encode`.
            normalize_embeddings: as for `encode`.
            truncate_dim: as for `encode`.

        Raises:
            InputError, FirstvecError: as for `encode`.
        """
        return self.encode(
            sentences,
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            precision=precision,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            pool=pool,
            chunk_size=chunk_size,
        )

    # Similarity

    @property
    def similarity_fn_name(self) -> str:
        """``cosine``, ``dot``, ``euclidean`` or ``manhattan``: the constructor's, else the model's, else ``cosine``."""
        if self._similarity is None:
            self._similarity = similarity_fn_name(self._manifest)
        return self._similarity

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: Any) -> None:
        name: str | None = getattr(value, "value", value)  # a SimilarityFunction is as good as its name
        if name is not None and name not in SIMILARITIES:
            raise InputError(f"{type(self).__name__} only supports similarity_fn_name in {SIMILARITIES}, got {name!r}.")
        self._similarity = name

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the similarity of each vector with each: shape (N, M). It is a tensor where torch is installed.

        Without torch, it is an array. Distances (``euclidean``, ``manhattan``) have a negative sign.

        Args:
            embeddings1: shape (N, dim) or (dim,): array, tensor, or list of them.
            embeddings2: shape (M, dim) or (dim,), in the same way.

        Raises:
            InputError: the vectors have different lengths, or are none.
        """
        first, second = (_as_vectors(each) for each in (embeddings1, embeddings2))
        first, second = (each[None] if each.ndim == 1 else each for each in (first, second))
        _check_shapes(first, second, (2,))
        return _as_the_original(_compare(self.similarity_fn_name, first, second, in_pairs=False))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the similarity of the vectors of the same place: shape (N,), of the type that `similarity` returns.

        Args:
            embeddings1: shape (N, dim): array, tensor, or list of them.
            embeddings2: shape (N, dim), in the same way.

        Raises:
            InputError: the vectors have different lengths, or are none.
        """
        first, second = (_as_vectors(each) for each in (embeddings1, embeddings2))
        _check_shapes(first, second, (1, 2))
        return _as_the_original(_compare(self.similarity_fn_name, first, second, in_pairs=True))

    # The model

    def preprocess(self, inputs: Any, prompt: str | None = None, **others: Any) -> dict[str, Any]:
        """Return the token ids of texts: ``input_ids`` and ``attention_mask``, int64, shape (N, longest).

        They are tensors where torch is installed, else arrays. The ids are padded on the right.

        Args:
            inputs: a list of texts.
            prompt: text to put before each text.
            others: ``task`` is without effect.

        Raises:
            InputError: a text is not usable.
            NotImplementedError: ``processing_kwargs``.
            FirstvecError: as for `encode`.
        """
        _check_others(others)
        if isinstance(inputs, str):
            raise InputError("preprocess and tokenize take a list of texts: pass [text]")
        texts = as_list(inputs)
        if not texts:
            return {}
        wait_for_numpy()
        import numpy

        # `tokenize` checks the texts. A prompt must not hide one that is no str.
        rows = self._load()._tokenizer.tokenize(
            [prompt + text if isinstance(text, str) else text for text in texts] if prompt else texts
        )
        ids = numpy.full((len(rows), max(map(len, rows))), self._manifest.model.pad_token_id, numpy.int64)
        mask = numpy.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return {"input_ids": _as_the_original(ids), "attention_mask": _as_the_original(mask), "modality": "text"}

    def tokenize(self, texts: Any, **others: Any) -> dict[str, Any]:
        """Do what `preprocess` does. It is the older name.

        Args:
            texts: as for `preprocess`.
            others: as for `preprocess`.

        Raises:
            InputError, NotImplementedError, FirstvecError: as for `preprocess`.
        """
        return self.preprocess(texts, **others)

    @property
    def max_seq_length(self) -> int:
        """Most tokens of a text, special tokens included. A longer text is truncated."""
        return self._manifest.model.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        if value != self.max_seq_length:
            raise NotImplementedError(
                f"max_seq_length {value!r}: the bundle truncates at {self.max_seq_length} tokens, as it was built and "
                "measured; set max_seq_length in sentence_transformers, save the model, and build a bundle of the "
                "saved folder with `firstvec build FOLDER`"
            )

    def get_max_seq_length(self) -> int:
        """Return `max_seq_length`."""
        return self.max_seq_length

    def get_embedding_dimension(self) -> int:
        """Return the length of a vector, after ``truncate_dim``. Does not wait for the model."""
        dim = self._manifest.model.embedding_dim
        return dim if self.truncate_dim is None else min(dim, self.truncate_dim)

    def get_sentence_embedding_dimension(self) -> int:
        """Return `get_embedding_dimension`. It is the older name."""
        return self.get_embedding_dimension()

    def truncate_embeddings(self, truncate_dim: int | None) -> _Truncated:
        """Return a context in which `encode` keeps the first components only. It counts for all threads.

        Args:
            truncate_dim: components to keep. None keeps all.
        """
        return _Truncated(self, truncate_dim)

    truncate_sentence_embeddings = truncate_embeddings

    @property
    def device(self) -> str:
        """Where the model runs, a str: ``cpu``, ``cuda`` or ``mps``. Waits for the model."""
        return self._load().device

    def to(self, device: Any) -> SentenceTransformer:
        """Return this object.

        Args:
            device: the device on which the model was loaded.

        Raises:
            NotImplementedError: it is another device.
        """
        _check_device(device, self.device)
        return self

    def cpu(self) -> SentenceTransformer:
        """Do what ``to("cpu")`` does, with its error."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> SentenceTransformer:
        """Do what ``to("cuda")`` does, with its error.

        Args:
            device: a device of CUDA, or its number.
        """
        return self.to("cuda" if device is None else f"cuda:{device}" if isinstance(device, int) else device)

    def eval(self) -> SentenceTransformer:
        """Return this object: there is nothing to switch off."""
        return self

    def get_backend(self) -> str:
        """Return the constructor's ``backend``."""
        return self._backend

    @property
    def backend(self) -> str:
        """The constructor's ``backend``."""
        return self._backend

    @property
    def modalities(self) -> list[str]:
        """``["text"]``."""
        return ["text"]

    def supports(self, modality: object) -> bool:
        """Return whether ``modality`` is ``text``.

        Args:
            modality: its name.
        """
        return modality == "text"

    def get_model_kwargs(self) -> list[str]:
        """Return an empty list: `encode` takes no argument that belongs to one model."""
        return []


class _Truncated:
    """The context of `SentenceTransformer.truncate_embeddings`. ``import contextlib`` takes longer than this module."""

    def __init__(self, model: SentenceTransformer, truncate_dim: int | None) -> None:
        self._model = model
        self._dim = truncate_dim

    def __enter__(self) -> None:
        self._before = self._model.truncate_dim
        self._model.truncate_dim = self._dim

    def __exit__(self, *_exception: object) -> None:
        self._model.truncate_dim = self._before


def _artifact_of(manifest: Manifest, backend: str, model_kwargs: Mapping[str, Any]) -> str | None:
    """Return the id of the artifact that ``backend`` and ``model_kwargs`` name. None: they leave the choice."""
    file_name = None
    for name, value in model_kwargs.items():
        is_harmless = name in _HARMLESS_MODEL_KWARGS or value is None
        is_harmless |= name in ("dtype", "torch_dtype") and str(value) in ("auto", "float32", "torch.float32")
        if backend == "onnx":
            is_harmless |= (name, value) in (("provider", "CPUExecutionProvider"), ("export", False))
            if name == "file_name" and isinstance(value, str):
                file_name, is_harmless = value, True
        if not is_harmless:
            hint = "take INT8 by strategy='quantized', and a device by device=…"
            raise NotImplementedError(f"model_kwargs {name}={value!r}: a bundle's artifacts cannot follow it; {hint}")
    if backend == "torch":
        return None
    if backend == "onnx":
        name = file_name or "model.onnx"
        for artifact in manifest.artifacts:
            if artifact.engine == "onnxruntime" and any(
                f"/{each.path}".endswith(f"/{name}") for each in artifact.files
            ):
                return artifact.id
        raise NotImplementedError(f"backend='onnx': the bundle has no artifact for onnxruntime with the file {name!r}")
    raise NotImplementedError(f"backend {backend!r}: a bundle is for 'torch' or 'onnx'; see `firstvec inspect`")


def _check_others(others: dict[str, Any]) -> None:
    """Raise for a keyword argument that a bundle cannot follow, or that there is not."""
    if others.get("processing_kwargs"):
        raise NotImplementedError("processing_kwargs: the bundle's tokenizer is that of the build")
    if unknown := [name for name in others if name not in ("task", "processing_kwargs")]:
        raise InputError(
            "SentenceTransformer.encode() has been called with additional keyword arguments that this model does not "
            f"use: {unknown}. As per SentenceTransformer.get_model_kwargs(), this model does not accept any additional "
            "keyword arguments."
        )


def _check_device(device: Any, loaded: str) -> None:
    if device is not None and str(device).removesuffix(":0") != loaded.removesuffix(":0"):
        raise NotImplementedError(f"device {str(device)!r}: {_DEVICE.format(loaded=loaded)}")


def _as_the_original(values: npt.NDArray[Any]) -> Any:
    """Return a tensor where torch is installed, as sentence-transformers does, else the array."""
    from importlib.util import find_spec

    return values if find_spec("torch") is None else as_tensors(values, True)


def _as_vectors(embeddings: Any) -> npt.NDArray[Any]:
    """Return vectors as an array of float32, or of float64 if they have that type."""
    wait_for_numpy()
    import numpy

    if isinstance(embeddings, (list, tuple)) and not all(isinstance(each, (int, float)) for each in embeddings):
        try:
            stacked: npt.NDArray[Any] = numpy.stack([*map(_as_vectors, embeddings)])
        except ValueError as error:
            raise InputError(f"the vectors cannot be put together: {error}") from error
        return stacked
    if hasattr(embeddings, "detach"):  # a tensor of torch, wherever it lies
        tensor = embeddings.detach().cpu()
        embeddings = (tensor if tensor.element_size() >= 4 else tensor.float()).numpy()  # numpy has no bfloat16
    try:
        is_double = isinstance(embeddings, numpy.ndarray) and embeddings.dtype == numpy.float64
        return numpy.asarray(embeddings, numpy.float64 if is_double else numpy.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{type(embeddings).__name__} is no vector: {error}") from error


def _check_shapes(first: npt.NDArray[Any], second: npt.NDArray[Any], dimensions: tuple[int, ...]) -> None:
    if first.ndim not in dimensions or second.ndim not in dimensions or first.shape[-1] != second.shape[-1]:
        raise InputError(f"shapes {first.shape} and {second.shape} are not those of vectors of one length")


def _compare(name: str, first: npt.NDArray[Any], second: npt.NDArray[Any], in_pairs: bool) -> npt.NDArray[Any]:
    """Return the similarities of (N, D) and (M, D): (N, M), or (N,) in pairs. The formulas are the original's."""
    import numpy

    if name == "cosine":
        first, second = (
            vectors / numpy.maximum(numpy.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
            for vectors in (first, second)
        )
    if name in ("cosine", "dot"):
        return numpy.asarray((first * second).sum(axis=-1)) if in_pairs else first @ second.T
    order = 1 if name == "manhattan" else 2
    if in_pairs:
        return numpy.asarray(-numpy.linalg.norm(first - second, order, axis=-1))
    # Row by row, because all differences at once have N × M × D numbers.
    rows = [-numpy.linalg.norm(row - second, order, axis=-1) for row in first]
    return numpy.array(rows, numpy.result_type(first, second)).reshape(len(first), len(second))
