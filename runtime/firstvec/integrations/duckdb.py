"""SQL functions for DuckDB: ``embed`` and ``embed_query``, over whole vectors of rows. docs/duckdb.md has examples."""

from __future__ import annotations

from importlib.util import find_spec

from firstvec.errors import InputError, MissingDependency
from firstvec.loader import OptimizedEmbeddingLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from typing_extensions import Unpack

    from firstvec.options import ProcessOptions, Strategy


def register(
    connection: Any,
    model: str | None = None,
    *,
    name: str = "embed",
    strategy: Strategy = "progressive",
    **options: Unpack[ProcessOptions],
) -> None:
    """Give a connection the SQL functions ``embed(text)`` and ``embed_query(text)``, which return ``FLOAT[dim]``.

    ``embed`` puts the model's ``document`` prompt before each text, and ``embed_query`` the ``query`` prompt. NULL
    gives NULL. An error of a call is a ``duckdb.InvalidInputException`` with the message of firstvec's error, because
    DuckDB drops the error itself.

    The first call loads the model. All connections of a process share one load: the loader is the one of
    `OptimizedEmbeddingLoader.get_instance`.

    Args:
        connection: of ``duckdb``. Its cursors have the functions, too.
        model: name of a bundle, or the path of its folder. None: as for `OptimizedEmbeddingLoader.get_instance`.
        name: of the first function. The second one is called ``{name}_query``.
        strategy: as for `OptimizedEmbeddingLoader`.
        options: the other arguments of `OptimizedEmbeddingLoader`, without ``output``.

    Raises:
        BundleNotFound, ManifestError, SignatureError, NoCompatibleArtifact: why the model cannot be loaded.
        InputError: an argument is not usable.
        MissingDependency: pyarrow or numpy is not installed.
    """
    if not hasattr(connection, "create_function"):
        raise InputError(f"{type(connection).__name__} is not a connection of duckdb")
    for package in ("pyarrow", "numpy"):  # DuckDB itself imports numpy when a function is registered
        if find_spec(package) is None:
            raise MissingDependency("a function for DuckDB", package, "firstvec[duckdb]")
    if not (isinstance(name, str) and name.isidentifier()):
        raise InputError(f"name {name!r} is not the name of a function: letters, digits and _ only")
    loader = OptimizedEmbeddingLoader.get_instance(model, strategy, output="buffer", **options)
    dim = loader.get_embedding_dim_fast()
    if dim is None:
        loader.choose()  # raises the reason
    registered: list[str] = []
    try:
        for function, method in ((name, "encode_document"), (f"{name}_query", "encode_query")):
            connection.create_function(
                function,
                _make_function(loader, method),
                ["VARCHAR"],
                f"FLOAT[{dim}]",
                type="arrow",
                # The same text has the same vector, so a call with constants is computed once for a statement.
                side_effects=False,
            )
            registered.append(function)
    except Exception:  # whatever DuckDB raises, it is raised again: one function without the other would stay
        for function in registered:
            connection.remove_function(function)
        raise


def _make_function(loader: OptimizedEmbeddingLoader[Any, Any], method: str) -> Callable[[Any], Any]:
    # DuckDB evaluates the annotations of a function. A lambda has none.
    return lambda texts: _embed(loader, method, texts)


def _embed(loader: OptimizedEmbeddingLoader[Any, Any], method: str, texts: Any) -> Any:
    """Return the vectors of a pyarrow.ChunkedArray of strings, as a pyarrow.FixedSizeListArray."""
    import pyarrow

    loader.start_loading()  # a load that has failed is tried again
    provider = loader.get_provider(timeout=None)
    view = getattr(provider, method)(texts.to_pylist(), show_progress_bar=False)
    # The array lies over the memory of the vectors.
    floats = pyarrow.Array.from_buffers(pyarrow.float32(), view.nbytes // 4, [None, pyarrow.py_buffer(view)])
    return pyarrow.FixedSizeListArray.from_arrays(floats, provider.embedding_dim)
