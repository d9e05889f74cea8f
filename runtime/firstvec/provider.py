"""Text in, vectors out."""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock, get_ident
from functools import partial
from itertools import count, islice

from firstvec import background
from firstvec.background import Task, inside
from firstvec.errors import ClosedError, IncompatibleArtifact, InputError
from firstvec.plans import OUTPUTS
from firstvec.sessions import run_session
from firstvec.tokenizer import check_texts, listed
from firstvec.vectors import as_array, as_row, as_rows, as_tensors, quantize_embeddings, shorten

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    import numpy.typing as npt

    from firstvec.manifest import Artifact, Manifest
    from firstvec.sessions import Session
    from firstvec.tokenizer import Tokenizer

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
QUERY_PROMPTS = ("query",)
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""Which named prompt `embed_query` and `embed_chunk` use, first found: as ``encode_query`` and ``encode_document`` of
sentence-transformers."""


_WINDOW = 4096
"""Texts that are tokenised and sorted by length together."""
_TOKENS = 1024
"""Most tokens of a run, padding included: more are no faster (2 cores; 32 to 64 texts of 14 tokens, 1 to 4 of 256)."""


class EmbeddingProvider:
    """A loaded model. Safe to use from several threads, and in a forked child, which opens a session of its own."""

    def __init__(
        self,
        manifest: Manifest,
        artifact: Artifact,
        device: str,
        tokenizer: Tokenizer,
        session: Session,
        reopen: Callable[[], Session],
        output: str = "numpy",
    ) -> None:
        self.manifest = manifest
        self.artifact = artifact
        self._device = device
        self._tokenizer = tokenizer
        self._session: Session | None = session
        self._reopen = reopen
        self._output = output
        self._pid = os.getpid()
        self._session_locks: dict[int, LockType] = {}
        self._after_first_run: list[Callable[[], object]] = []

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
        return self._open_session().engine

    def embed_query(self, text: str, output: str | None = None) -> Any:
        """Embed one search query: float32, shape (embedding_dim,).

        Args:
            output: ``numpy`` (an array), ``list`` (of floats) or ``buffer`` (a memoryview of float32, which
                ``numpy.frombuffer``, ``struct``, sqlite-vec and others take); None: as the loader was told.

        Raises:
            InputError: ``text`` is not a str, or holds a lone surrogate; the output is unknown.
        """
        return self._encode_one(text, QUERY_PROMPTS, output)

    def embed_chunk(self, text: str, output: str | None = None) -> Any:
        """Embed one passage of a document: float32, shape (embedding_dim,).

        Args:
            output: as for `embed_query`.

        Raises:
            InputError: as for `embed_query`.
        """
        return self._encode_one(text, DOCUMENT_PROMPTS, output)

    def embed_batch(
        self,
        texts: Sequence[str],
        batch_size: int = 32,
        show_progress_bar: bool = False,
        output: str | None = None,
    ) -> Any:
        """Embed passages of documents: float32, shape (len(texts), embedding_dim), in the order given.

        Args:
            output: as for `embed_query`; a ``buffer`` has two dimensions, a ``list`` holds lists.

        Raises:
            InputError: there are no texts, or one is not usable; the error carries its index.
        """
        prompt = self._named_prompt(DOCUMENT_PROMPTS)
        return self.encode(
            texts, prompt=prompt, batch_size=batch_size, show_progress_bar=show_progress_bar, output=output
        )

    def encode(
        self,
        inputs: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        *,
        sentences: str | Sequence[str] | None = None,
        output: str | None = None,
    ) -> Any:
        """Embed texts, with the parameters and shapes of ``SentenceTransformer.encode`` (5.x).

        Args:
            inputs: one text, or a sequence of texts. Texts longer than ``max_seq_length`` tokens are truncated. The
                empty string is a text, with the vector of the tokens around it; an empty sequence is refused.
            prompt_name: name of one of the model's prompts to put before each text.
            prompt: text to put before each text; ``prompt_name`` is then ignored.
            batch_size: most texts per run; long texts are run in fewer at once, some 1,024 tokens. Texts are batched by
                length, so that little padding is computed.
            show_progress_bar: draw a bar on stderr; None does where the logger ``firstvec`` is set to INFO or DEBUG.
            output_value: only ``sentence_embedding``.
            precision: ``float32``; ``int8`` and ``uint8`` (256 steps over each component's range in *these* vectors);
                ``binary`` and ``ubinary`` (one bit a component, packed). Formulas of sentence-transformers.
            convert_to_numpy: False returns a list of torch tensors.
            convert_to_tensor: return one torch tensor.
            device: only the one that the model was loaded on.
            normalize_embeddings: scale vectors to unit length; a no-op where the model does so itself.
            truncate_dim: keep the first components only (Matryoshka models).
            sentences: the older name of ``inputs``.
            output: as for `embed_query`. Not with tensors. Only ``list`` and ``buffer`` of unchanged float32 vectors
                need no numpy.

        Returns:
            One text: shape (dim,). A sequence: shape (len(inputs), dim), in the order given.

        Raises:
            InputError: no text, a text or an argument that is not usable.
            MissingDependency: tensors are asked for and torch is not installed.
        """
        texts = sentences if inputs is None else inputs
        if texts is None:
            raise InputError("there is no text to encode: pass a str or a sequence of str")
        if output_value != "sentence_embedding":
            raise InputError(f"output_value {output_value!r} is not in the bundle: only 'sentence_embedding' is")
        if precision not in PRECISIONS:
            raise InputError(f"unknown precision {precision!r}: use one of {', '.join(PRECISIONS)}")
        if device is not None and not (isinstance(device, str) and device == self._device):
            raise InputError(f"the model was loaded on {self._device}: construct the loader with device={device!r}")
        _check_batch_size(batch_size)
        if output is not None and (convert_to_tensor or not convert_to_numpy):
            raise InputError("output is one of numpy, list and buffer, or it is a tensor: leave one of the two out")
        single = isinstance(texts, (str, bytes))
        rows: list[str] = listed(texts)
        if not rows:
            raise InputError("the list of texts is empty: pass at least one text, or skip the call")
        check_texts(rows)
        prefix = self._prompt(prompt_name, prompt)
        wanted = self._wanted(output)
        progress = _logs_information() if show_progress_bar is None else bool(show_progress_bar)
        view = self._encode_many(rows, prefix, batch_size, progress)
        if convert_to_tensor or not convert_to_numpy:
            vectors = as_tensors(self._changed(view, truncate_dim, normalize_embeddings, precision), convert_to_tensor)
            return vectors[0] if single else vectors
        if wanted == "numpy" or truncate_dim is not None or normalize_embeddings or precision != "float32":
            array = self._changed(view, truncate_dim, normalize_embeddings, precision)
            if wanted == "numpy":
                return array[0] if single else array
            view = memoryview(array)  # type: ignore[arg-type]
        return as_row(view, wanted) if single else as_rows(view, wanted)

    def encode_iter(
        self,
        texts: Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        output: str | None = None,
    ) -> Iterator[Any]:
        """Embed any number of texts, one vector a text in their order, without holding more than 8,192 of them.

        Args:
            texts: any iterable of texts, which is read in the calling thread as the vectors are taken.
            prompt_name: as for `encode`.
            prompt: as for `encode`.
            batch_size: as for `encode`.
            show_progress_bar: draw a count on stderr.
            output: as for `embed_query`.

        Raises:
            InputError: an argument or a text is not usable; the error carries the text's index.
        """
        if isinstance(texts, (str, bytes)):
            raise InputError("encode_iter takes an iterable of texts: for one text use encode or embed_query")
        _check_batch_size(batch_size)
        prefix = self._prompt(prompt_name, prompt)
        wanted = self._wanted(output)
        return self._vectors(_checked(texts), prefix, batch_size, show_progress_bar, wanted)

    def _vectors(
        self, texts: Iterator[str], prefix: str, batch_size: int, progress: bool, wanted: str
    ) -> Iterator[Any]:
        with _Progress(None, progress) as bar:
            for view in self._windows(texts, prefix, batch_size, bar):
                if wanted == "numpy":
                    yield from as_array(view)
                else:
                    yield from (as_row(view[index : index + 1], wanted) for index in range(len(view)))

    def count_tokens(self, texts: str | Sequence[str]) -> list[int]:
        """Return each text's number of tokens, special tokens included, after truncation.

        Raises:
            InputError: a text is not usable; the error carries its index.
        """
        return self._tokenizer.count(listed(texts))

    @property
    def session_kind(self) -> str:
        """``quick-start`` or ``throughput``: which of an artifact's two kinds of session answers now."""
        return self._open_session().kind

    @property
    def session(self) -> Session | None:
        """The session that answers now, None once closed. Opens none in a forked child, takes no lock, never raises."""
        return self._session

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._session is None

    def on_first_run(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once, after the first vector was computed."""
        self._after_first_run.append(callback)

    def close(self) -> None:
        """Let later calls raise ClosedError, and return at once; the memory is released when the last call has ended.

        A call that has begun gives all its vectors. Of `encode_iter` that is the window of 4,096 texts under way: the
        next one raises ClosedError, because a caller may never ask for it.
        """
        with self._session_lock():
            session, self._session = self._session, None
        if self._pid != os.getpid() and session is not None:
            _keep_forever.append(session)

    def swap(self, session: Session) -> None:
        """Let later runs use ``session``, of the same artifact; runs under way end on the one that they began with."""
        with self._session_lock():
            if self._session is not None:
                self._session = session

    def _encode_one(self, text: str, prompts: tuple[str, ...], output: str | None) -> Any:
        wanted = self._wanted(output)
        check_texts([text])
        session = self._open_session()
        view = self._run(self._tokenizer.encode([(self._named_prompt(prompts) or "") + text]), session)
        if wanted == "numpy":
            return as_array(view)[0]
        return as_row(view, wanted)

    def _encode_many(self, texts: list[str], prefix: str, batch_size: int, progress: bool) -> memoryview[float]:
        """The vectors in the order of the texts, (N, D)."""
        result = bytearray()
        with _Progress(len(texts), progress) as bar:
            for vectors in self._windows(iter(texts), prefix, batch_size, bar, whole=True):
                result += vectors.cast("B")
        return memoryview(result).cast("f", (len(texts), self.embedding_dim))

    def _windows(
        self, texts: Iterator[str], prefix: str, batch_size: int, bar: _Progress, *, whole: bool = False
    ) -> Iterator[memoryview[float]]:
        """The vectors of one window of texts after another, (W, D); each is tokenised while the last one runs.

        ``whole``: close() does not end it between two windows.
        """
        held = self._open_session() if whole else None

        def tokenise(window: list[str]) -> list[list[int]]:
            return self._tokenizer.encode([prefix + text for text in window] if prefix else window)

        window = list(islice(texts, _WINDOW))
        ahead = tokenise(window) if window else None
        while ahead is not None:
            ids = ahead
            # Read here: an iterator may belong to this thread, as a cursor of sqlite3 does.
            window = list(islice(texts, _WINDOW))
            task = Task(partial(tokenise, window)) if window else None
            if whole:
                held = self._open_session(held)
            yield self._run_sorted(ids, batch_size, bar, held)
            ahead = task.result() if task is not None else None

    def _run_sorted(
        self, ids: list[list[int]], batch_size: int, bar: _Progress, held: Session | None
    ) -> memoryview[float]:
        """The vectors of rows of token ids, in their order, (W, D)."""
        session = held or self._open_session()
        # Longest first: memory that does not suffice fails at once, and later runs reuse what the first one took.
        order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
        width = 4 * self.embedding_dim  # bytes of a vector
        result = bytearray(width * len(ids))
        start = 0
        while start < len(order):
            longest = len(ids[order[start]])
            batch = order[start : start + min(batch_size, max(1, _TOKENS // longest))]
            # A hand-over counts from the next run on, a close() from the next call on.
            session = self._open_session(session)
            vectors = self._run([ids[index] for index in batch], session).cast("B")
            for position, index in enumerate(batch):
                result[width * index : width * (index + 1)] = vectors[width * position : width * (position + 1)]
            bar.update(len(batch))
            start += len(batch)
        return memoryview(result).cast("f", (len(ids), self.embedding_dim))

    def _wanted(self, output: str | None) -> str:
        if output is None:
            return self._output
        if output not in OUTPUTS:
            raise InputError(f"unknown output {output!r}: use one of {', '.join(OUTPUTS)}")
        return output

    def _changed(
        self, view: memoryview[float], truncate_dim: int | None, normalize: bool, precision: str
    ) -> npt.NDArray[Any]:
        vectors = shorten(as_array(view), truncate_dim, normalize, self.embedding_dim)
        return vectors if precision == "float32" else quantize_embeddings(vectors, precision)

    def _run(self, rows: Sequence[Sequence[int]], session: Session) -> memoryview[float]:
        thread = get_ident()
        inside.add(thread)
        try:
            if background.is_over:
                background.stay()
            vectors = run_session(session, self.artifact.id, rows)
        finally:
            inside.discard(thread)
        if vectors.shape != (len(rows), self.embedding_dim):
            reason = f"gives vectors of shape {vectors.shape}, the manifest says {self.embedding_dim} components"
            raise IncompatibleArtifact(self.artifact.id, f"{reason}; rebuild the bundle with `firstvec build --force`")
        while self._after_first_run:
            try:
                callback = self._after_first_run.pop()
            except IndexError:  # another thread was first
                break
            callback()
        return vectors

    def _open_session(self, held: Session | None = None) -> Session:
        """The session for the next run; of a closed provider the one that the call under way holds."""
        session = self._session or held
        if session is None:
            raise ClosedError("the provider was closed: get a new one with get_provider() after start_loading()")
        if self._pid != os.getpid():
            # An engine's threads stay behind in the parent: a forked child needs a session of its own.
            with self._session_lock():
                if self._pid != os.getpid() and self._session is not None:
                    _keep_forever.append(self._session)
                    # In a task, so that a fork of this child waits for it.
                    self._session = Task(self._reopen).result()
                    self._pid = os.getpid()
            return self._open_session()
        return session

    def _session_lock(self) -> LockType:
        """This process's: a fork may leave the parent's taken for good."""
        return self._session_locks.setdefault(os.getpid(), allocate_lock())

    def _prompt(self, prompt_name: str | None, prompt: str | None) -> str:
        for argument, value in (("prompt", prompt), ("prompt_name", prompt_name)):
            if value is not None and not isinstance(value, str):
                raise InputError(f"{argument} {value!r} is not a str")
        if prompt is not None:
            return prompt
        name = prompt_name or self.manifest.model.default_prompt_name
        if name is None:
            return ""
        prompts = self.manifest.model.prompts
        if name not in prompts:
            raise InputError(f"unknown prompt_name {name!r}: the model has {', '.join(sorted(prompts)) or 'none'}")
        return prompts[name]

    def _named_prompt(self, names: tuple[str, ...]) -> str | None:
        prompts = self.manifest.model.prompts
        for name in names:
            if name in prompts:
                return prompts[name]
        return self._prompt(None, None)


def _check_batch_size(batch_size: int) -> None:
    if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or batch_size < 1:
        raise InputError(f"batch_size {batch_size!r} is not a positive integer")


def _checked(texts: Iterable[str]) -> Iterator[str]:
    """The texts, each checked as it is taken."""
    try:
        iterator = iter(texts)
    except TypeError:
        raise InputError(f"{type(texts).__name__} is not an iterable of str") from None
    return map(_checked_text, count(), iterator)


def _checked_text(index: int, text: str) -> str:
    check_texts([text], index)
    return text


_keep_forever: list[Session] = []
"""Sessions inherited over a fork: their destructor would wait for threads that do not exist in the child."""


def _logs_information() -> bool:
    """Whether the program lets firstvec log at INFO or DEBUG; one that has not imported logging does not."""
    logging = sys.modules.get("logging")
    return logging is not None and logging.getLogger("firstvec").getEffectiveLevel() in (logging.INFO, logging.DEBUG)


class _Progress:
    """A tqdm bar, or nothing. tqdm comes with tokenizers' own dependencies."""

    def __init__(self, total: int | None, enabled: bool) -> None:
        self._bar: Any = None
        if enabled:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="text")

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int) -> None:
        if self._bar is not None:
            self._bar.update(count)
