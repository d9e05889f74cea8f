"""Texts in, vectors out: prompts, batches, and the form of the vectors."""

from __future__ import annotations

import sys

from firstvec.errors import IncompatibleArtifact, InputError
from firstvec.options import check_output
from firstvec.process.threads import Task
from firstvec.record import Generic
from firstvec.text.tokenizer import as_list, check_texts
from firstvec.vectors import (
    ARRAYS,
    REDUCED,
    as_array,
    as_features,
    as_row,
    as_rows,
    as_tensors,
    check_numpy,
    no_rows,
    not_computed,
    quantize_embeddings,
    read_ranges,
    shorten,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, Literal, TypedDict, overload

    import numpy as np
    import numpy.typing as npt
    from typing_extensions import TypeVar, Unpack

    from firstvec.bundle.manifest import Artifact, Manifest
    from firstvec.engines.session import Session
    from firstvec.loading.session_in_use import Lease, SessionInUse
    from firstvec.text.tokenizer import Tokenizer

    Array = npt.NDArray[np.float32]
    Row = TypeVar("Row", default=Array)
    Rows = TypeVar("Rows", default=Array)

    Texts = Sequence[str]
    Floats = list[float]
    Buffer = memoryview[float]
    AsNumpy = Literal["numpy"]
    AsList = Literal["list"]
    AsBuffer = Literal["buffer"]

    class BatchOptions(TypedDict, total=False):
        """Parameters that leave the form of the vectors as it is: those of `EmbeddingProvider.embed_batch`."""

        batch_size: int
        show_progress_bar: bool

    class IterOptions(BatchOptions, total=False):
        """Those of `EmbeddingProvider.encode_iter`."""

        prompt_name: str | None
        prompt: str | None

    class EncodeOptions(IterOptions, total=False):
        """Those of `EmbeddingProvider.encode`."""

        normalize_embeddings: bool
        truncate_dim: int | None

else:
    Row = Rows = None

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
QUERY_PROMPTS = ("query",)
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""The named prompts of `embed_query` and `embed_chunk`. The first one that the model has is taken, as by
``encode_query`` and ``encode_document`` of sentence-transformers."""


_WINDOW = 4096
"""Texts that are tokenized and sorted by length together."""
_TOKENS = 1024
"""Most tokens of a run, padding included. More are no faster (2 cores; 32 to 64 texts of 14 tokens, 1 to 4 of 256)."""
_TOKENS_WITHOUT_PADDING = 16_384
"""Most tokens of a run in an engine that needs no padding. All its threads end with a run, so runs are longer."""


class EmbeddingProvider(Generic[Row, Rows]):
    """A loaded model. Safe to use from several threads, and in a forked child, which opens a session of its own.

    A provider pickles as the options of its load: the other process loads the model again when it unpickles.

    `firstvec.OptimizedEmbeddingLoader` makes it. The types `Row` and `Rows` are those of one vector and of several:
    arrays, lists of floats, or memoryviews of float32, as the loader's ``output`` says.
    """

    def __init__(
        self,
        manifest: Manifest,
        artifact: Artifact,
        device: str,
        tokenizer: Tokenizer,
        sessions: SessionInUse,
        output: str = "numpy",
        load_again: tuple[Callable[..., EmbeddingProvider[Any, Any]], tuple[Any, ...]] | None = None,
    ) -> None:
        self.manifest = manifest
        self.artifact = artifact
        self._device = device
        self._tokenizer = tokenizer
        self._sessions = sessions
        self._output = output
        self._load_again = load_again  # a function and its arguments, for a copy
        self._ranges_data: bytes | None = None

    def __reduce__(self) -> Any:
        """Pickle the options of the load. The copy, in another process or here, loads the model again."""
        self._sessions.lease()  # raises ClosedError
        if self._load_again is None:
            raise TypeError("this provider was made by hand, so nothing says how to load it again")
        return self._load_again

    @property
    def embedding_dim(self) -> int:
        """Length of a vector."""
        return self.manifest.model.embedding_dim

    @property
    def device(self) -> str:
        """Where the model runs: ``cpu``, ``cuda`` or ``mps``."""
        return self._device

    @property
    def engine(self) -> str:
        """The engine in use and its version."""
        return self._sessions.lease().session.engine

    @property
    def session_kind(self) -> str:
        """``quick-start`` or ``throughput``: which of an artifact's two kinds of session answers now."""
        return self._sessions.lease().session.kind

    @property
    def session(self) -> Session | None:
        """The session that answers now, None once closed. Takes no lock, never raises."""
        return self._sessions.session

    @property
    def hand_over_state(self) -> str | None:
        """``waiting``, ``done`` or ``failed: …``. None: the strategy hands nothing over."""
        hand_over = self._sessions.hand_over
        return hand_over.state if hand_over is not None else None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._sessions.closed

    def close(self) -> None:
        """Let later calls raise ClosedError, and return at once. The last call that is under way frees the memory.

        A call that has begun gives all its vectors. Of `encode_iter` that is the window of 4,096 texts under way. The
        next window raises ClosedError, because a caller may never ask for it.
        """
        self._sessions.close()

    if TYPE_CHECKING:

        @overload
        def embed_query(self, text: str, output: None = None) -> Row: ...
        @overload
        def embed_query(self, text: str, output: AsNumpy) -> Array: ...
        @overload
        def embed_query(self, text: str, output: AsList) -> Floats: ...
        @overload
        def embed_query(self, text: str, output: AsBuffer) -> Buffer: ...

    def embed_query(self, text: str, output: str | None = None) -> Any:
        """Embed one search query: float32, shape (embedding_dim,).

        Args:
            text: the query. The model's ``query`` prompt is put before it.
            output: ``numpy`` (an array), ``list`` (of floats) or ``buffer`` (a memoryview of float32, which
                ``numpy.frombuffer``, ``struct``, sqlite-vec and others take). None: the loader's.

        Raises:
            InputError: ``text`` is not a str, or holds a lone surrogate, or the output is unknown.
            MissingDependency: the output is ``numpy``, and numpy is not installed. Or the text needs the tokenizers
                package, and the package is not installed.
            ClosedError: the provider was closed.
        """
        return self._embed_one(text, QUERY_PROMPTS, output)

    if TYPE_CHECKING:

        @overload
        def embed_chunk(self, text: str, output: None = None) -> Row: ...
        @overload
        def embed_chunk(self, text: str, output: AsNumpy) -> Array: ...
        @overload
        def embed_chunk(self, text: str, output: AsList) -> Floats: ...
        @overload
        def embed_chunk(self, text: str, output: AsBuffer) -> Buffer: ...

    def embed_chunk(self, text: str, output: str | None = None) -> Any:
        """Embed one passage of a document: float32, shape (embedding_dim,).

        Args:
            text: the passage. The model's ``document`` prompt is put before it.
            output: as for `embed_query`.

        Raises:
            InputError, MissingDependency, ClosedError: as for `embed_query`.
        """
        return self._embed_one(text, DOCUMENT_PROMPTS, output)

    if TYPE_CHECKING:

        @overload
        def embed_batch(self, texts: Texts, batch_size: int = ..., show_progress_bar: bool = ...) -> Rows: ...
        @overload
        def embed_batch(self, texts: Texts, *, output: None, **more: Unpack[BatchOptions]) -> Rows: ...
        @overload
        def embed_batch(
            self, texts: Texts, batch_size: int = ..., *, output: AsNumpy, show_progress_bar: bool = ...
        ) -> Array: ...
        @overload
        def embed_batch(
            self, texts: Texts, batch_size: int = ..., *, output: AsList, show_progress_bar: bool = ...
        ) -> list[Floats]: ...
        @overload
        def embed_batch(
            self, texts: Texts, batch_size: int = ..., *, output: AsBuffer, show_progress_bar: bool = ...
        ) -> Buffer: ...

    def embed_batch(
        self, texts: Texts, batch_size: int = 32, show_progress_bar: bool = False, output: str | None = None
    ) -> Any:
        """Embed passages of documents: float32, shape (len(texts), embedding_dim), in their order.

        Args:
            texts: the passages. The model's ``document`` prompt is put before each.
            batch_size: as for `encode`.
            show_progress_bar: draw a bar on stderr.
            output: as for `embed_query`. A ``buffer`` has two dimensions, a ``list`` holds lists.

        Raises:
            InputError: a text is not usable. The error has its index.
            MissingDependency, ClosedError: as for `embed_query`.
        """
        options = {"batch_size": batch_size, "show_progress_bar": show_progress_bar, "output": output}
        return self.encode(texts, prompt=self._named_prompt(DOCUMENT_PROMPTS), **options)

    if TYPE_CHECKING:

        @overload  # a str is also a Sequence[str]: the first overload that fits counts
        def encode(self, inputs: str, *, output: None = None, **more: Unpack[EncodeOptions]) -> Row: ...
        @overload
        def encode(self, inputs: str, *, output: AsList, **more: Unpack[EncodeOptions]) -> Floats: ...  # type: ignore[overload-overlap]
        @overload
        def encode(self, inputs: Texts, *, output: None = None, **more: Unpack[EncodeOptions]) -> Rows: ...
        @overload
        def encode(self, inputs: Texts, *, output: AsList, **more: Unpack[EncodeOptions]) -> list[Floats]: ...
        @overload
        def encode(self, inputs: str | Texts, *, output: AsBuffer, **more: Unpack[EncodeOptions]) -> Buffer: ...
        @overload
        def encode(self, inputs: str | Texts | None = None, *others: Any, **more: Any) -> Any: ...

    def encode(
        self,
        inputs: str | Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        *,
        sentences: str | Texts | None = None,
        output: str | None = None,
    ) -> Any:
        """Embed texts, with the parameters and shapes of ``SentenceTransformer.encode`` (6.x).

        Args:
            inputs: one text, or a sequence of texts. A text with more than ``max_seq_length`` tokens is truncated. The
                empty string is a text: it has the vector of the tokens around it. An empty sequence has no vectors.
            prompt_name: name of the prompt of the model to put before each text.
            prompt: text to put before each text. ``prompt_name`` is then ignored, with a warning.
            batch_size: most texts per run, in an engine that pads texts to one length. Long texts are run in smaller
                batches, of some 1,024 tokens. Texts of similar length share a batch, so that little padding is
                computed. The native engine pads nothing, and needs no batch size.
            show_progress_bar: draw a bar on stderr. None draws it where the logger ``firstvec`` is set to INFO or
                DEBUG.
            output_value: ``sentence_embedding``, or None for a dict of tensors for each text: ``sentence_embedding``
                (float32, not scaled by ``normalize_embeddings``), ``input_ids`` and ``attention_mask`` (int64, without
                padding). A bundle's engines give no vectors of tokens, so ``token_embeddings`` is an error.
            precision: ``float32``, or None for it; ``int8`` or ``uint8`` (256 steps over each component's range);
                ``binary`` or ``ubinary`` (one bit a component, packed). The formulas are sentence-transformers'. The
                ranges are those of the build, so a text has the same steps in any batch.
            convert_to_numpy: False returns a list of torch tensors.
            convert_to_tensor: True returns one torch tensor.
            device: only the device on which the model was loaded.
            normalize_embeddings: scale vectors to unit length. Without effect where the model does so itself.
            truncate_dim: keep the first components only (Matryoshka models). A number above the dimension keeps all.
            sentences: the older name of ``inputs``.
            output: as for `embed_query`, and not with tensors. ``list`` and ``buffer`` need no numpy for unchanged
                float32 vectors.

        Returns:
            For one text: shape (dim,). For a sequence: shape (len(inputs), dim), in the order given. A buffer of no
            vectors has shape (0,), because a memoryview has no empty rows.

        Raises:
            InputError: a text or an argument is not usable, or the bundle has no ranges for ``int8`` and ``uint8``.
            IntegrityError, ManifestError: the file of the ranges is not the one that was built, or holds none.
            MissingDependency: numpy is not installed and is needed, or tensors are asked for without torch.
            ClosedError: as for `embed_query`.
        """
        texts = sentences if inputs is None else inputs
        if texts is None:
            raise InputError("there is no text to encode: pass a str or a sequence of str")
        if output_value not in ("sentence_embedding", None):
            raise InputError(not_computed(output_value))
        precision = "float32" if precision is None else precision
        if precision not in PRECISIONS:
            raise InputError(f"Precision {precision!r} is not supported, must be one of {', '.join(PRECISIONS)}")
        if device is not None and str(device) != self._device:  # a torch.device is as good as its name
            raise InputError(f"the model was loaded on {self._device}: construct the loader with device={device!r}")
        _check_batch_size(batch_size)
        as_tensor = convert_to_tensor or not convert_to_numpy
        if output_value is None:
            if precision != "float32":
                raise InputError("precision needs output_value='sentence_embedding'")
            as_tensor, normalize_embeddings = True, False
        if output is not None and as_tensor:
            raise InputError("output is one of numpy, list and buffer, or it is a tensor: leave one of the two out")
        is_single = isinstance(texts, (str, bytes))
        rows = as_list(texts)
        check_texts(rows)
        prefix = self._prompt(prompt_name, prompt)
        if precision in ("int8", "uint8"):
            self._read_ranges()  # here, because the error must not come after a million texts
        form = self._output_form(output)
        progress = _logs_information() if show_progress_bar is None else bool(show_progress_bar)
        if not rows:
            self._sessions.lease()  # raises ClosedError
            if not as_tensor and form != "numpy":
                return [] if form == "list" else memoryview(bytearray()).cast("f")
        is_changed = truncate_dim is not None or normalize_embeddings or precision != "float32"
        needs_numpy = as_tensor or is_changed or form == "numpy"
        if needs_numpy and (form != "numpy" or len(rows) > 1):  # here: the error must not come after a million texts
            check_numpy(ARRAYS if as_tensor or form == "numpy" else REDUCED)
        view = self._embed_many(rows, prefix, batch_size, progress) if rows else None
        if as_tensor:
            array = self._convert(view, truncate_dim, normalize_embeddings, precision)
            if output_value is None:
                results = as_features(array, self._tokenizer.tokenize([prefix + text for text in rows]))
            else:
                results = as_tensors(array, bool(convert_to_tensor))
            return results[0] if is_single else results
        if needs_numpy:
            array = self._convert(view, truncate_dim, normalize_embeddings, precision)
            if form == "numpy":
                return array[0] if is_single else array
            view = memoryview(array)  # type: ignore[arg-type]
        assert view is not None
        return as_row(view, form) if is_single else as_rows(view, form)

    if TYPE_CHECKING:

        @overload
        def encode_query(self, inputs: str, *, output: None = None, **more: Unpack[EncodeOptions]) -> Row: ...
        @overload
        def encode_query(self, inputs: Texts, *, output: None = None, **more: Unpack[EncodeOptions]) -> Rows: ...
        @overload
        def encode_query(self, inputs: str | Texts | None = None, *others: Any, **more: Any) -> Any: ...

    def encode_query(
        self,
        inputs: str | Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> Any:
        """Embed queries as `encode` does. Without a prompt, the model's ``query`` prompt is put before each.

        Its name and parameters are those of sentence-transformers. The errors are those of `encode`.
        """
        return self._encode_as(QUERY_PROMPTS, inputs, prompt_name, prompt, options)

    if TYPE_CHECKING:

        @overload
        def encode_document(self, inputs: str, *, output: None = None, **more: Unpack[EncodeOptions]) -> Row: ...
        @overload
        def encode_document(self, inputs: Texts, *, output: None = None, **more: Unpack[EncodeOptions]) -> Rows: ...
        @overload
        def encode_document(self, inputs: str | Texts | None = None, *others: Any, **more: Any) -> Any: ...

    def encode_document(
        self,
        inputs: str | Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> Any:
        """Embed documents as `encode` does. Without a prompt, the model's ``document`` prompt is put before each.

        Its name and parameters are those of sentence-transformers. The errors are those of `encode`.
        """
        return self._encode_as(DOCUMENT_PROMPTS, inputs, prompt_name, prompt, options)

    def _encode_as(
        self,
        names: tuple[str, ...],
        inputs: str | Texts | None,
        prompt_name: str | None,
        prompt: str | None,
        options: dict[str, Any],
    ) -> Any:
        if prompt_name is None and prompt is None:
            prompt_name = next((name for name in names if name in self.manifest.model.prompts), None)
        return self.encode(inputs=inputs, prompt_name=prompt_name, prompt=prompt, **options)

    if TYPE_CHECKING:

        @overload
        def encode_iter(
            self, texts: Iterable[str], *, output: None = None, **more: Unpack[IterOptions]
        ) -> Iterator[Row]: ...
        @overload
        def encode_iter(
            self, texts: Iterable[str], *, output: AsList, **more: Unpack[IterOptions]
        ) -> Iterator[Floats]: ...
        @overload
        def encode_iter(
            self, texts: Iterable[str], *, output: AsBuffer, **more: Unpack[IterOptions]
        ) -> Iterator[Buffer]: ...
        @overload
        def encode_iter(self, texts: Iterable[str], *others: Any, **more: Any) -> Iterator[Any]: ...

    def encode_iter(
        self,
        texts: Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        output: str | None = None,
    ) -> Iterator[Any]:
        """Embed any number of texts: one vector a text, in their order. At most 8,192 texts are held at once.

        Args:
            texts: any iterable of texts. It is read in the calling thread, as the vectors are taken.
            prompt_name: as for `encode`.
            prompt: as for `encode`.
            batch_size: as for `encode`.
            show_progress_bar: draw a count on stderr.
            output: as for `embed_query`.

        Raises:
            InputError: an argument or a text is not usable. The error has the text's index.
            ClosedError: as for `close`.
        """
        if isinstance(texts, (str, bytes)):
            raise InputError("encode_iter takes an iterable of texts: for one text use encode or embed_query")
        _check_batch_size(batch_size)
        prefix = self._prompt(prompt_name, prompt)
        form = self._output_form(output)
        if form == "numpy":
            check_numpy(ARRAYS)
        return self._iterate(_check_one_by_one(texts), prefix, batch_size, show_progress_bar, form)

    def _iterate(self, texts: Iterator[str], prefix: str, batch_size: int, progress: bool, form: str) -> Iterator[Any]:
        with _Progress(None, progress) as bar:
            for view in self._windows(texts, prefix, batch_size, bar):
                if form == "numpy":
                    yield from as_array(view)
                else:
                    yield from (as_row(view[index : index + 1], form) for index in range(len(view)))

    def count_tokens(self, texts: str | Texts) -> list[int]:
        """Return each text's number of tokens, special tokens included, after truncation.

        Raises:
            InputError: a text is not usable. The error has its index.
        """
        return self._tokenizer.count(as_list(texts))

    def _embed_one(self, text: str, prompts: tuple[str, ...], output: str | None) -> Any:
        form = self._output_form(output)
        check_texts([text])
        lease = self._sessions.lease()
        view = self._run(lease, self._tokenizer.tokenize([self._named_prompt(prompts) + text]))
        return as_array(view)[0] if form == "numpy" else as_row(view, form)

    def _embed_many(self, texts: list[str], prefix: str, batch_size: int, progress: bool) -> Buffer:
        """Compute the vectors in the order of the texts, (N, D). A close() meanwhile does not end the call."""
        result = bytearray()
        lease = self._sessions.lease()
        with _Progress(len(texts), progress) as bar:
            for vectors in self._windows(iter(texts), prefix, batch_size, bar, lease):
                result += vectors.cast("B")
        return memoryview(result).cast("f", (len(texts), self.embedding_dim))

    def _windows(
        self, texts: Iterator[str], prefix: str, batch_size: int, bar: _Progress, lease: Lease | None = None
    ) -> Iterator[Buffer]:
        """Compute the vectors of one window of texts after another, (W, D). The next one is tokenized meanwhile.

        Without a ``lease`` of the caller's, each window takes its own: then close() ends the call between two windows.
        """

        def tokenize(window: list[str]) -> list[list[int]]:
            return self._tokenizer.tokenize([prefix + text for text in window] if prefix else window)

        from itertools import islice  # one text does not need it

        window = list(islice(texts, _WINDOW))
        ids = tokenize(window) if window else None
        while ids is not None:
            # The texts are read in this thread, because an iterator may belong to it, as a cursor of sqlite3 does.
            window = list(islice(texts, _WINDOW))
            task = Task(lambda window=window: tokenize(window)) if window else None  # type: ignore[misc]
            yield self._run_sorted(lease or self._sessions.lease(), ids, batch_size, bar)
            ids = task.result() if task is not None else None

    def _run_sorted(self, lease: Lease, ids: list[list[int]], batch_size: int, bar: _Progress) -> Buffer:
        """Compute the vectors of rows of token ids, in their order, (W, D)."""
        # The longest come first: if the memory does not suffice, the first run fails, and later runs use its memory.
        order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
        width = 4 * self.embedding_dim  # bytes of a vector
        result = bytearray(width * len(ids))
        start = 0
        pads = lease.session.pads
        while start < len(order):
            longest = max(1, len(ids[order[start]]))  # a static model's text can have no token
            count = min(batch_size, max(1, _TOKENS // longest)) if pads else max(1, _TOKENS_WITHOUT_PADDING // longest)
            batch = order[start : start + count]
            vectors = self._run(lease, [ids[index] for index in batch]).cast("B")
            for position, index in enumerate(batch):
                result[width * index : width * (index + 1)] = vectors[width * position : width * (position + 1)]
            bar.update(len(batch))
            start += len(batch)
        return memoryview(result).cast("f", (len(ids), self.embedding_dim))

    def _run(self, lease: Lease, rows: Sequence[Sequence[int]]) -> Buffer:
        vectors = lease.run(rows)
        if vectors.shape != (len(rows), self.embedding_dim):
            reason = f"gives vectors of shape {vectors.shape}, the manifest says {self.embedding_dim} components"
            raise IncompatibleArtifact(self.artifact.id, f"{reason}; rebuild the bundle with `firstvec build --force`")
        return vectors

    def _output_form(self, output: str | None) -> str:
        return self._output if output is None else check_output(output)

    def _convert(
        self, view: Buffer | None, truncate_dim: int | None, normalize: bool, precision: str
    ) -> npt.NDArray[Any]:
        vectors = no_rows(self.embedding_dim) if view is None else as_array(view)
        vectors = shorten(vectors, truncate_dim, normalize)
        if precision == "float32":
            return vectors
        if precision in ("binary", "ubinary"):
            return quantize_embeddings(vectors, precision)
        data, path = self._read_ranges()
        ranges = read_ranges(data, path, self.embedding_dim, vectors.shape[1], normalize)
        return quantize_embeddings(vectors, precision, ranges)

    def _read_ranges(self) -> tuple[bytes, str]:
        """Return the bundle's file of ranges and its path. The first call reads and verifies the file."""
        manifest = self.manifest
        if manifest.vector_ranges is None:
            raise InputError(
                f"precision int8 and uint8 need the ranges of the components, and the bundle of {manifest.model.name} "
                "has none, because an older firstvec built it: rebuild it with `firstvec build`, or use binary"
            )
        path = manifest.vector_ranges.file
        if self._ranges_data is None:
            from firstvec.bundle.integrity import read_verified

            file = next(file for file in manifest.support_files if file.path == path)
            self._ranges_data = read_verified(manifest.root, file)
        return self._ranges_data, f"{manifest.root}/{path}"

    def _prompt(self, prompt_name: str | None, prompt: str | None) -> str:
        for argument, value in (("prompt", prompt), ("prompt_name", prompt_name)):
            if value is not None and not isinstance(value, str):
                raise InputError(f"{argument} {value!r} is not a str")
        if prompt is not None:
            if prompt_name is not None:
                import logging

                logging.getLogger("firstvec").warning(
                    "Provide either a `prompt`, a `prompt_name`, or neither, but not both. "
                    "Ignoring the `prompt_name` in favor of `prompt`."
                )
            return prompt
        name = prompt_name or self.manifest.model.default_prompt_name
        if name is None:
            return ""
        prompts = self.manifest.model.prompts
        if name not in prompts:
            raise InputError(
                f"Prompt name {name!r} not found in the configured prompts dictionary with keys {[*prompts]}."
            )
        return prompts[name]

    def _named_prompt(self, names: tuple[str, ...]) -> str:
        prompts = self.manifest.model.prompts
        for name in names:
            if name in prompts:
                return prompts[name]
        return self._prompt(None, None)


def _check_batch_size(batch_size: int) -> None:
    if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or batch_size < 1:
        raise InputError(f"batch_size {batch_size!r} is not a positive integer")


def _check_one_by_one(texts: Iterable[str]) -> Iterator[str]:
    """Return an iterator of the texts that checks each text as it is taken."""

    from itertools import count

    def check(index: int, text: str) -> str:
        check_texts([text], index)
        return text

    try:
        return map(check, count(), texts)
    except TypeError:
        raise InputError(f"{type(texts).__name__} is not an iterable of str") from None


def _logs_information() -> bool:
    """Return whether the program has imported logging, and lets firstvec log at INFO or DEBUG."""
    logging = sys.modules.get("logging")
    return logging is not None and logging.getLogger("firstvec").getEffectiveLevel() in (logging.INFO, logging.DEBUG)


class _Progress:
    """A tqdm bar, or nothing. tokenizers' own dependencies include tqdm. An install without tqdm has no bar."""

    def __init__(self, total: int | None, enabled: bool) -> None:
        self._bar: Any = None
        if enabled:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, unit="text")

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int) -> None:
        if self._bar is not None:
            self._bar.update(count)
