"""Chroma: ``FirstvecEmbeddingFunction()``. docs/chroma.md has an example.

This import registers the function, so that a stored collection finds the function again.
"""

from __future__ import annotations

import os

from chromadb.api import types
from chromadb.utils.embedding_functions import register_embedding_function

from firstvec.errors import InputError
from firstvec.loader import OptimizedEmbeddingLoader
from firstvec.options import DEFAULT_MODEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, ClassVar

    from typing_extensions import Unpack

    from firstvec.options import MoreOptions, Options, Strategy
    from firstvec.provider import Array, EmbeddingProvider


@register_embedding_function
class FirstvecEmbeddingFunction(types.EmbeddingFunction[types.Documents]):
    """Embed documents and queries for Chroma. The first call loads the model.

    One function serves all threads and forked processes. The functions of a process with the same arguments share one
    model.

    Args:
        model_name: name of a bundle (``organization/model`` or ``model``), or the path of a bundle's folder. A
            collection stores it as it is given, so a relative path is seen from the process that opens the collection.
        strategy: when to load and which artifact to take, as for `firstvec.OptimizedEmbeddingLoader`.
        device: ``cpu``, ``cuda`` or ``mps``. None takes the best for this machine.
        enable_quantization: let LAZY, BACKGROUND and PROGRESSIVE take INT8.
        min_quality: smallest acceptable ``cosine_min`` of an artifact to the fp32 reference, -1 to 1.
        require_signature: path of a public key (PEM) whose signature the bundle must have.
        artifact: id of the one artifact that may be taken.

    Raises:
        InputError: an argument is not usable. An unknown model is an error of the first call.
    """

    # Chroma makes a stored collection's function anew for each query. Without this table, each query would load.
    _loaders: ClassVar[dict[Options, OptimizedEmbeddingLoader]] = {}

    def __init__(
        self,
        model_name: str = DEFAULT_MODEL,
        strategy: Strategy = "progressive",
        device: str | None = None,
        enable_quantization: bool = False,
        **more: Unpack[MoreOptions],
    ) -> None:
        loader = OptimizedEmbeddingLoader(model_name, strategy, device, enable_quantization, **more)
        self._loader = self._loaders.setdefault(loader._options, loader)
        self.model_name = loader.model_name
        key = more.get("require_signature")
        self._config = {
            "model_name": self.model_name,
            "strategy": loader.strategy.value,
            "device": device,
            "enable_quantization": enable_quantization,
            "min_quality": more.get("min_quality"),
            "require_signature": None if key is None else os.fspath(key),
            "artifact": more.get("artifact"),
        }

    def __call__(self, input: types.Documents) -> types.Embeddings:  # noqa: A002 - Chroma checks the name
        """Embed documents: one float32 array of shape (embedding_dim,) a text. The ``document`` prompt is put before.

        Args:
            input: the documents, a list of str.

        Raises:
            ValueError: the list is empty, as for Chroma's own functions.
            InputError: a text is not usable. The error has its index. It is a ValueError, too.
            FirstvecError: why the model could not be loaded, as for `OptimizedEmbeddingLoader.get_provider`.
        """
        texts = _check_list(input)
        return self._load().embed_batch(texts)

    def embed_query(self, input: types.Documents) -> types.Embeddings:  # noqa: A002
        """Embed queries as documents are embedded, but with the model's ``query`` prompt.

        Args:
            input: the queries, a list of str.

        Raises:
            ValueError, InputError, FirstvecError: as for documents.
        """
        texts = _check_list(input)
        vectors = self._load().encode_query(texts, show_progress_bar=False)
        return types.validate_embeddings(types.normalize_embeddings(vectors))  # as Chroma does for documents

    def _load(self) -> EmbeddingProvider[Array, Array]:
        self._loader.start_loading()  # a load that has failed is tried again
        return self._loader.get_provider(timeout=None)

    @staticmethod
    def name() -> str:
        """Return the name by which Chroma stores the function."""
        return "firstvec"

    def default_space(self) -> types.Space:
        """Return the distance of a collection that names none: the models are trained for the cosine."""
        return "cosine"

    def supported_spaces(self) -> list[types.Space]:
        """Return the distances that fit the vectors."""
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """Return what Chroma stores with a collection: the arguments, as JSON values."""
        return dict(self._config)

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> FirstvecEmbeddingFunction:
        """Make the function of a stored collection. Loads nothing.

        Args:
            config: what `get_config` returned, or a part of it.

        Raises:
            InputError: a key is unknown, or its value is not usable.
        """
        try:
            return FirstvecEmbeddingFunction(**config)
        except TypeError as error:
            raise InputError(f"this configuration is not usable: {error}") from error

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Check a configuration. Loads nothing.

        Args:
            config: as for `build_from_config`.

        Raises:
            InputError: as for `build_from_config`.
        """
        FirstvecEmbeddingFunction.build_from_config(config)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Check a change of a collection's function. A bundle may move to another folder, and keeps its name.

        Args:
            old_config: what is stored.
            new_config: what is to be stored.

        Raises:
            InputError: the model is another one, so its vectors do not fit those that are stored.
        """
        old, new = (str(config.get("model_name", DEFAULT_MODEL)) for config in (old_config, new_config))
        if os.path.basename(old.rstrip("/")) != os.path.basename(new.rstrip("/")):
            raise InputError(f"the model of a collection cannot be changed from {old} to {new}: embed its texts anew")


def _check_list(texts: Sequence[str]) -> Sequence[str]:
    """Return a list of texts. One str would be taken for one text, and Chroma's own functions take its characters."""
    if isinstance(texts, (str, bytes)):
        raise InputError("a function of Chroma takes a list of str: pass [text]")
    return texts
