"""LlamaIndex: ``FirstvecEmbedding(model_name="all-MiniLM-L6-v2")``. docs/llama-index.md has an example."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, field_validator

from firstvec.loader import OptimizedEmbeddingLoader
from firstvec.options import DEFAULT_MODEL
from firstvec.strategy import strategy_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from firstvec.provider import EmbeddingProvider, Floats


class FirstvecEmbedding(BaseEmbedding):
    """Embed nodes and queries for LlamaIndex. The first call loads the model.

    One object serves all threads, event loops and forked processes. A pickled or copied object loads the model again.
    The ``a…`` methods compute in a thread, so the event loop goes on. A node gets the model's ``document`` prompt, and
    a query gets the model's ``query`` prompt.

    Args:
        model_name: name of a bundle (``organization/model`` or ``model``), or the path of a bundle's folder.
        embed_batch_size: most texts of a call to the model, and so of an event.
        strategy: when to load and which artifact to take, as for `firstvec.OptimizedEmbeddingLoader`.
        device: ``cpu``, ``cuda`` or ``mps``. None takes the best for this machine.
        enable_quantization: let LAZY, BACKGROUND and PROGRESSIVE take INT8.
        min_quality: smallest acceptable ``cosine_min`` of an artifact to the fp32 reference, -1 to 1.
        require_signature: path of a public key (PEM) whose signature the bundle must have.
        artifact: id of the one artifact that may be taken.

    The other arguments are those of LlamaIndex's ``BaseEmbedding``.

    Raises:
        pydantic.ValidationError: an argument is unknown or not usable. If firstvec refuses the argument, the cause is
            a group that has the InputError. An unknown model is an error of the first call.
        InputError: a text is not usable.
        FirstvecError: why the model could not be loaded, as for `OptimizedEmbeddingLoader.get_provider`. The next call
            tries again.
    """

    model_config = ConfigDict(extra="forbid", validation_error_cause=True)

    model_name: str = Field(DEFAULT_MODEL, frozen=True)
    embed_batch_size: int = Field(256, gt=0, le=2048)
    strategy: str = Field("progressive", frozen=True)
    device: str | None = Field(None, frozen=True)
    enable_quantization: bool = Field(False, frozen=True)
    min_quality: float | None = Field(None, frozen=True)
    require_signature: str | None = Field(None, frozen=True)
    artifact: str | None = Field(None, frozen=True)

    _loader: OptimizedEmbeddingLoader[Floats, list[Floats]] = PrivateAttr()

    @field_validator("strategy", mode="before")
    @classmethod
    def _accept_a_member_of_the_enum(cls, strategy: object) -> str:
        return strategy_name(strategy)

    def model_post_init(self, _context: Any) -> None:
        """Make the loader, which loads nothing yet. pydantic calls this method."""
        self._loader = OptimizedEmbeddingLoader(
            self.model_name,
            self.strategy,
            self.device,
            self.enable_quantization,
            output="list",
            min_quality=self.min_quality,
            require_signature=self.require_signature,
            artifact=self.artifact,
        )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> FirstvecEmbedding:
        """Return a copy. A copy with other options has a loader of its own.

        Args:
            update: option → value.
            deep: copy what the fields hold, too.

        Raises:
            InputError: an option is not usable.
        """
        copy: FirstvecEmbedding = super().model_copy(update=update, deep=deep)
        if update:
            copy.model_post_init(None)
        return copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # LlamaIndex makes the loader anew, which then sees relative paths from where this process is.
        self._loader = state["__pydantic_private__"]["_loader"]

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex writes into ``to_dict``."""
        return "FirstvecEmbedding"

    def _load(self) -> EmbeddingProvider[Floats, list[Floats]]:
        self._loader.start_loading()  # a load that has failed is tried again
        return self._loader.get_provider(timeout=None)

    def _get_query_embedding(self, query: str) -> Floats:
        return self._load().embed_query(query)

    def _get_text_embedding(self, text: str) -> Floats:
        return self._load().embed_chunk(text)

    def _get_text_embeddings(self, texts: list[str]) -> list[Floats]:
        return self._load().embed_batch(texts)

    async def _aget_query_embedding(self, query: str) -> Floats:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> Floats:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Floats]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
