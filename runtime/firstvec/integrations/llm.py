"""Embedding models for the command `llm`: one for each bundle on this machine. docs/llm.md has examples.

`llm` imports this module at the start of each of its commands, so the module imports nothing that `llm` has not
imported.
"""

from __future__ import annotations

import os

import click
import llm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class EmbeddingError(llm.ModelError, click.ClickException):
    """An error of firstvec, which is the ``__cause__``. The command shows the message, and no traceback."""


class FirstvecModel(llm.EmbeddingModel):
    """A bundle as an embedding model of `llm`.

    Args:
        model_id: the model's name in `llm`.
        folder: the bundle's folder.
    """

    batch_size = 4096  # of llm's Python API. The commands take 100, or their --batch-size.

    def __init__(self, model_id: str, folder: str) -> None:
        from firstvec.loader import OptimizedEmbeddingLoader

        self.model_id = model_id
        self._loader = OptimizedEmbeddingLoader(folder, "progressive", output="list")

    def embed_batch(self, items: Iterable[str], *, key: str | None = None) -> Iterator[list[float]]:
        """Return the vectors of texts, in their order. The first call loads the model.

        The texts get no prompt but the one that the model has for every text, because `llm` does not say whether a text
        is a query.

        Args:
            items: the texts.
            key: `llm` gives every model its key of an API. A bundle needs none.

        Raises:
            EmbeddingError: a text is not usable, or the model cannot be loaded.
        """
        from firstvec.errors import FirstvecError

        try:
            self._loader.start_loading()  # a load that has failed is tried again
            provider = self._loader.get_provider(timeout=None)
            return iter(provider.encode([*items], show_progress_bar=False))
        except FirstvecError as error:
            raise EmbeddingError(str(error)) from error


@llm.hookimpl
def register_embedding_models(register: Callable[..., None]) -> None:
    """Register the bundles of the search path. Of several with one name, the first has it, as in a loader."""
    from firstvec.bundle.metadata import ModelMetadata
    from firstvec.bundle.store import installed_folders

    taken: set[str] = set()
    for folder in map(os.path.abspath, installed_folders()):
        known = ModelMetadata.from_cache(folder)
        # A bundle with an invalid manifest is registered, too: its use says what is wrong.
        full_name = os.path.basename(folder) if known is None else known.model_name
        names = dict.fromkeys(f"firstvec/{name}" for name in (full_name.rpartition("/")[2], full_name))
        free = [name for name in names if name not in taken]
        taken.update(free)
        if free:
            register(FirstvecModel(free[0], folder), aliases=free[1:])
