"""LangChain: ``FirstvecEmbeddings(model="all-MiniLM-L6-v2")``. docs/langchain.md has an example."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from firstvec.errors import InputError
from firstvec.loader import OptimizedEmbeddingLoader
from firstvec.options import DEFAULT_MODEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os

    from firstvec.options import Strategy
    from firstvec.provider import EmbeddingProvider, Floats


class FirstvecEmbeddings(Embeddings):
    """Embed documents and queries for LangChain. The first call loads the model.

    One object serves all threads, event loops and forked processes. A pickled or copied object loads the model again.
    ``aembed_documents`` and ``aembed_query`` compute in a thread, so the event loop goes on.

    Args:
        model: name of a bundle (``organization/model`` or ``model``), or the path of a bundle's folder.
        strategy: when to load and which artifact to take, as for `firstvec.OptimizedEmbeddingLoader`.
        device: ``cpu``, ``cuda`` or ``mps``. None takes the best for this machine.
        enable_quantization: let LAZY, BACKGROUND and PROGRESSIVE take INT8.
        min_quality: smallest acceptable ``cosine_min`` of an artifact to the fp32 reference, -1 to 1.
        require_signature: path of a public key (PEM) whose signature the bundle must have.
        artifact: id of the one artifact that may be taken.

    Raises:
        InputError: an argument is not usable. An unknown model is an error of the first call.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        strategy: Strategy = "progressive",
        device: str | None = None,
        enable_quantization: bool = False,
        *,
        min_quality: float | None = None,
        require_signature: str | os.PathLike[str] | None = None,
        artifact: str | None = None,
    ) -> None:
        self._loader = OptimizedEmbeddingLoader(
            model,
            strategy,
            device,
            enable_quantization,
            output="list",
            min_quality=min_quality,
            require_signature=require_signature,
            artifact=artifact,
        )

    @property
    def model(self) -> str:
        """Name or path of the bundle, as the object was told."""
        return self._loader.model_name

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.model!r}, strategy={self._loader.strategy.value!r})"

    def embed_documents(self, texts: list[str]) -> list[Floats]:
        """Embed documents: one list of floats a text, in their order. The model's ``document`` prompt is put before.

        Args:
            texts: the documents. An empty list has no vectors.

        Raises:
            InputError: a text is not usable. The error has its index.
            FirstvecError: why the model could not be loaded, as for `OptimizedEmbeddingLoader.get_provider`. The next
                call tries again.
        """
        if isinstance(texts, str):
            raise InputError("embed_documents takes a list of texts: pass [text], or call embed_query")
        return self._load().embed_batch(texts)

    def embed_query(self, text: str) -> Floats:
        """Embed a search query: a list of floats. The model's ``query`` prompt is put before.

        Args:
            text: the query.

        Raises:
            InputError, FirstvecError: as for `embed_documents`.
        """
        return self._load().embed_query(text)

    def _load(self) -> EmbeddingProvider[Floats, list[Floats]]:
        self._loader.start_loading()  # a load that has failed is tried again
        return self._loader.get_provider(timeout=None)
