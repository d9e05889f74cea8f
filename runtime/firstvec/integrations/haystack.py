"""Haystack: ``FirstvecTextEmbedder()`` and ``FirstvecDocumentEmbedder()``. docs/haystack.md has an example.

This import lets Haystack make the two components from the YAML of a pipeline.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.core.serialization import allow_deserialization_module

from firstvec.errors import InputError
from firstvec.loader import OptimizedEmbeddingLoader
from firstvec.options import DEFAULT_MODEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from haystack.utils import ComponentDevice

    from firstvec.options import Strategy
    from firstvec.provider import EmbeddingProvider, Floats

# Haystack makes components of its own packages only, and of modules that a program trusts. A program that imports this
# module trusts this module.
allow_deserialization_module(__name__)


@component
class FirstvecTextEmbedder:
    """Embed a query for Haystack. `warm_up` or the first run loads the model.

    One component serves all threads, event loops and forked processes.

    Args:
        model: name of a bundle (``organization/model`` or ``model``), or the path of a bundle's folder. The YAML of a
            pipeline has it as it is given, so a relative path is seen from the process that loads the pipeline.
        device: ``cpu``, ``cuda`` or ``mps``, or Haystack's ``ComponentDevice``. None takes the best for this machine.
        prefix: put before the text, in place of the model's ``query`` prompt. Empty: the model's prompt, if it has one.
        suffix: put after the text.
        batch_size: not used, because a run has one text. Haystack's own embedder has it.
        progress_bar: not used, as ``batch_size``.
        normalize_embeddings: divide each vector by its length.
        truncate_dim: keep the first components only. None keeps all.
        strategy: when to load and which artifact to take, as for `firstvec.OptimizedEmbeddingLoader`.
        enable_quantization: let LAZY, BACKGROUND and PROGRESSIVE take INT8.
        min_quality: smallest acceptable ``cosine_min`` of an artifact to the fp32 reference, -1 to 1.
        require_signature: path of a public key (PEM) whose signature the bundle must have.
        artifact: id of the one artifact that may be taken.

    Raises:
        InputError: an argument is not usable. An unknown model is an error of `warm_up`.
    """

    def __init__(
        self,
        *,
        model: str = DEFAULT_MODEL,
        device: ComponentDevice | str | None = None,
        prefix: str = "",
        suffix: str = "",
        batch_size: int = 32,
        progress_bar: bool = True,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        strategy: Strategy = "progressive",
        enable_quantization: bool = False,
        min_quality: float | None = None,
        require_signature: str | os.PathLike[str] | None = None,
        artifact: str | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.prefix = prefix
        self.suffix = suffix
        self.batch_size = batch_size
        self.progress_bar = progress_bar
        self.normalize_embeddings = normalize_embeddings
        self.truncate_dim = truncate_dim
        self.strategy = strategy
        self.enable_quantization = enable_quantization
        self.min_quality = min_quality
        self.require_signature = require_signature
        self.artifact = artifact
        self._loader = _make_loader(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the class and its arguments as JSON values."""
        data: dict[str, Any] = default_to_dict(self, **{name: getattr(self, name) for name in _TEXT_PARAMETERS})
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FirstvecTextEmbedder:
        """Make the component of `to_dict`. Loads nothing.

        Args:
            data: what `to_dict` returned.

        Raises:
            haystack.DeserializationError: it is of another class.
            InputError: an argument is not usable.
        """
        embedder: FirstvecTextEmbedder = default_from_dict(cls, data)
        return embedder

    def warm_up(self) -> None:
        """Load the model, and wait for it. A loaded model is left alone.

        Raises:
            FirstvecError: why the model could not be loaded, as for `OptimizedEmbeddingLoader.get_provider`.
        """
        _get_provider(self._loader)

    async def warm_up_async(self) -> None:
        """Load the model in a thread. The event loop goes on.

        Raises:
            FirstvecError: as for `warm_up`.
        """
        await asyncio.to_thread(self.warm_up)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Embed one text. The result's ``embedding`` is a list of floats.

        Args:
            text: the query.

        Raises:
            TypeError: ``text`` is not a str.
            InputError: ``text`` holds a lone surrogate, or an argument of the component is not usable.
            FirstvecError: as for `warm_up`.
        """
        if not isinstance(text, str):
            raise TypeError(
                f"FirstvecTextEmbedder takes a str, not {type(text).__name__}. FirstvecDocumentEmbedder takes documents"
            )
        vector = _get_provider(self._loader).encode_query(
            text + self.suffix,
            prompt=self.prefix or None,
            show_progress_bar=False,
            normalize_embeddings=self.normalize_embeddings,
            truncate_dim=self.truncate_dim,
        )
        return {"embedding": vector}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Embed one text in a thread. The event loop goes on.

        Args:
            text: the query.

        Raises:
            TypeError, InputError, FirstvecError: as for `run`.
        """
        return await asyncio.to_thread(self.run, text)


@component
class FirstvecDocumentEmbedder:
    """Embed documents for Haystack. `warm_up` or the first run loads the model.

    One component serves all threads, event loops and forked processes. The text of a document is that of Haystack's own
    embedders: the metadata fields to embed, and then the content, with the separator between them.

    Args:
        model: as for `FirstvecTextEmbedder`.
        device: as there.
        prefix: put before each text, in place of the model's ``document`` prompt. Empty: the model's prompt, if it has
            one.
        suffix: put after each text.
        batch_size: most texts that the model computes at once.
        progress_bar: draw a bar on stderr.
        normalize_embeddings: as there.
        meta_fields_to_embed: names of the metadata fields to embed. A field that a document lacks is left out.
        embedding_separator: put between the fields and the content.
        truncate_dim: as there.
        strategy: as there.
        enable_quantization: as there.
        min_quality: as there.
        require_signature: as there.
        artifact: as there.

    Raises:
        InputError: an argument is not usable. An unknown model is an error of `warm_up`.
    """

    def __init__(
        self,
        *,
        model: str = DEFAULT_MODEL,
        device: ComponentDevice | str | None = None,
        prefix: str = "",
        suffix: str = "",
        batch_size: int = 32,
        progress_bar: bool = True,
        normalize_embeddings: bool = False,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        truncate_dim: int | None = None,
        strategy: Strategy = "progressive",
        enable_quantization: bool = False,
        min_quality: float | None = None,
        require_signature: str | os.PathLike[str] | None = None,
        artifact: str | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.prefix = prefix
        self.suffix = suffix
        self.batch_size = batch_size
        self.progress_bar = progress_bar
        self.normalize_embeddings = normalize_embeddings
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator
        self.truncate_dim = truncate_dim
        self.strategy = strategy
        self.enable_quantization = enable_quantization
        self.min_quality = min_quality
        self.require_signature = require_signature
        self.artifact = artifact
        self._loader = _make_loader(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the class and its arguments as JSON values."""
        data: dict[str, Any] = default_to_dict(self, **{name: getattr(self, name) for name in _DOCUMENT_PARAMETERS})
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FirstvecDocumentEmbedder:
        """Make the component of `to_dict`. Loads nothing.

        Args:
            data: what `to_dict` returned.

        Raises:
            haystack.DeserializationError: it is of another class.
            InputError: an argument is not usable.
        """
        embedder: FirstvecDocumentEmbedder = default_from_dict(cls, data)
        return embedder

    def warm_up(self) -> None:
        """Load the model, and wait for it. A loaded model is left alone.

        Raises:
            FirstvecError: why the model could not be loaded, as for `OptimizedEmbeddingLoader.get_provider`.
        """
        _get_provider(self._loader)

    async def warm_up_async(self) -> None:
        """Load the model in a thread. The event loop goes on.

        Raises:
            FirstvecError: as for `warm_up`.
        """
        await asyncio.to_thread(self.warm_up)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents. The result's ``documents`` are copies with an ``embedding``, a list of floats.

        Args:
            documents: the documents, which stay as they are. An empty list gives an empty list.

        Raises:
            TypeError: ``documents`` is not a list of documents.
            InputError: a text holds a lone surrogate, or an argument of the component is not usable.
            FirstvecError: as for `warm_up`.
        """
        if not isinstance(documents, list):
            raise TypeError(
                f"FirstvecDocumentEmbedder takes a list of Document, not {type(documents).__name__}. "
                "FirstvecTextEmbedder takes a str"
            )
        for index, document in enumerate(documents):
            if not isinstance(document, Document):
                raise TypeError(f"document {index}: is {type(document).__name__}, not Document")
        vectors = _get_provider(self._loader).encode_document(
            [self._text_of(document) for document in documents],
            prompt=self.prefix or None,
            batch_size=self.batch_size,
            show_progress_bar=self.progress_bar,
            normalize_embeddings=self.normalize_embeddings,
            truncate_dim=self.truncate_dim,
        )
        return {
            "documents": [
                replace(document, embedding=vector) for document, vector in zip(documents, vectors, strict=True)
            ]
        }

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents in a thread. The event loop goes on.

        Args:
            documents: as for `run`.

        Raises:
            TypeError, InputError, FirstvecError: as for `run`.
        """
        return await asyncio.to_thread(self.run, documents)

    def _text_of(self, document: Document) -> str:
        fields = (document.meta.get(name) for name in self.meta_fields_to_embed)
        parts = [*(str(field) for field in fields if field is not None), document.content or ""]
        return self.embedding_separator.join(parts) + self.suffix


_TEXT_PARAMETERS = (
    *("model", "device", "prefix", "suffix", "batch_size", "progress_bar", "normalize_embeddings", "truncate_dim"),
    *("strategy", "enable_quantization", "min_quality", "require_signature", "artifact"),
)
_DOCUMENT_PARAMETERS = (*_TEXT_PARAMETERS, "meta_fields_to_embed", "embedding_separator")
_KINDS = {
    "prefix": str,
    "suffix": str,
    "progress_bar": bool,
    "normalize_embeddings": bool,
    "meta_fields_to_embed": list,
    "embedding_separator": str,
}


def _make_loader(
    embedder: FirstvecTextEmbedder | FirstvecDocumentEmbedder,
) -> OptimizedEmbeddingLoader[Floats, list[Floats]]:
    """Check a component's arguments, make its loader, and let the arguments be values that YAML has."""
    for name, value in vars(embedder).items():
        if (kind := _KINDS.get(name)) is not None and not isinstance(value, kind):
            raise InputError(f"{name} {value!r} is not a {kind.__name__}")
        if name in ("batch_size", "truncate_dim") and value is not None and not (type(value) is int and value > 0):
            raise InputError(f"{name} {value!r} is not a positive integer")
    device: Any = embedder.device
    loader = OptimizedEmbeddingLoader(
        embedder.model,
        embedder.strategy,
        device.to_torch_str() if hasattr(device, "to_torch_str") else device,
        embedder.enable_quantization,
        output="list",
        min_quality=embedder.min_quality,
        require_signature=embedder.require_signature,
        artifact=embedder.artifact,
    )
    embedder.model = loader.model_name
    embedder.strategy = loader.strategy.value
    if embedder.require_signature is not None:
        embedder.require_signature = os.fspath(embedder.require_signature)
    return loader


def _get_provider(
    loader: OptimizedEmbeddingLoader[Floats, list[Floats]],
) -> EmbeddingProvider[Floats, list[Floats]]:
    loader.start_loading()  # a load that has failed is tried again
    return loader.get_provider(timeout=None)
