"""SQL functions for SQLite: ``embed``, ``embed_query`` and ``vec_distance``. docs/sqlite.md has examples.

Python's own ``sqlite3`` and ``apsw`` are supported. This module imports neither.
"""

from __future__ import annotations

import math
import struct

from firstvec.errors import InputError
from firstvec.loader import OptimizedEmbeddingLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from typing_extensions import Unpack

    from firstvec.options import ProcessOptions, Strategy
    from firstvec.provider import EmbeddingProvider


class Failure:
    """Why the last call of a connection's functions failed: ``error``, or None if the call did not fail.

    Python's ``sqlite3`` reports every error of a function as ``OperationalError: user-defined function raised
    exception``, and drops the error itself.
    """

    error: BaseException | None = None


def register(
    connection: Any,
    model: str | None = None,
    *,
    name: str = "embed",
    strategy: Strategy = "progressive",
    **options: Unpack[ProcessOptions],
) -> Failure:
    """Give a connection the SQL functions ``embed(text)``, ``embed_query(text)`` and ``vec_distance(a, b)``.

    A vector is a blob of float32 numbers. ``embed`` puts the model's ``document`` prompt before the text, and
    ``embed_query`` the ``query`` prompt. ``vec_distance`` is the cosine distance of two blobs, 0 to 2. NULL gives NULL.

    The first call of ``embed`` or ``embed_query`` loads the model. All connections of a process share one load: the
    loader is the one of `OptimizedEmbeddingLoader.get_instance`.

    Args:
        connection: of ``sqlite3`` or ``apsw``.
        model: name of a bundle, or the path of its folder. None: as for `OptimizedEmbeddingLoader.get_instance`.
        name: of the first function. The second one is called ``{name}_query``.
        strategy: as for `OptimizedEmbeddingLoader`.
        options: the other arguments of `OptimizedEmbeddingLoader`, without ``output``.

    Returns:
        A record whose ``error`` says why a statement failed. ``sqlite3`` hides the reason, ``apsw`` raises it.

    Raises:
        BundleNotFound, ManifestError, SignatureError, NoCompatibleArtifact: why the model cannot be loaded.
        InputError: an argument is not usable.
    """
    is_apsw = hasattr(connection, "create_scalar_function")
    if not is_apsw and not hasattr(connection, "create_function"):
        raise InputError(f"{type(connection).__name__} is not a connection of sqlite3 or apsw")
    loader = OptimizedEmbeddingLoader.get_instance(model, strategy, output="buffer", **options)
    if loader.get_embedding_dim_fast() is None:
        loader.choose()  # raises the reason, which `sqlite3` would hide later

    def load() -> EmbeddingProvider[Any, Any]:
        loader.start_loading()  # a load that has failed is tried again
        return loader.get_provider(timeout=None)

    if not (isinstance(name, str) and name.isidentifier()):
        raise InputError(f"name {name!r} is not the name of a function: letters, digits and _ only")
    taken = "SELECT name FROM pragma_function_list WHERE builtin AND name IN (?, ?)"
    for (known,) in connection.execute(taken, (name.lower(), f"{name}_query".lower())):
        raise InputError(f"name {name!r}: SQLite has a function {known} of its own; choose another name")
    failure = Failure()
    for function, call, count in (
        (name, lambda text: load().embed_chunk(text), 1),
        (f"{name}_query", lambda text: load().embed_query(text), 1),
        ("vec_distance", _cosine_distance, 2),
    ):
        guarded = _guard(call, failure)
        # SQLite computes a deterministic function of constants once for a statement, and not for each row.
        if is_apsw:
            connection.create_scalar_function(function, guarded, count, deterministic=True)
        else:
            connection.create_function(function, count, guarded, deterministic=True)
    return failure


def _guard(call: Callable[..., Any], failure: Failure) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        failure.error = None
        if None in arguments:
            return None
        try:
            return call(*arguments)
        except BaseException as error:  # Ctrl-C, too
            failure.error = error
            raise

    return run


def _cosine_distance(one: bytes, other: bytes) -> float | None:
    """Return the cosine distance of two vectors. None: one has only zeros, as in sqlite-vec's function."""
    a, b = _unpack(one), _unpack(other)
    if len(a) != len(b):
        raise InputError(f"vec_distance got vectors of {len(a)} and {len(b)} components: use one model for both")
    length, other_length = math.hypot(*a), math.hypot(*b)
    if not length or not other_length:
        return None
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a b, because hypot and dist are loops in C. A sum of products takes 3 times as long.
    product = (length**2 + other_length**2 - math.dist(a, b) ** 2) / 2
    return 1 - product / (length * other_length)


def _unpack(blob: bytes) -> tuple[float, ...]:
    if not isinstance(blob, bytes) or not blob or len(blob) % 4:
        found = f"a blob of {len(blob)} bytes" if isinstance(blob, bytes) else type(blob).__name__
        raise InputError(f"vec_distance got {found}: a vector is a blob of float32 numbers, as embed returns it")
    return struct.unpack(f"{len(blob) // 4}f", blob)
