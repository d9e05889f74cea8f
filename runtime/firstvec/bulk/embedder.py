"""`Embedder`, for ``map_batches`` of Ray Data: a batch of texts in, the batch and its vectors out.

An actor holds one. It loads the model once, with as many threads as the actor has processors.
"""

from __future__ import annotations

import math
import socket
import sys
from inspect import signature

import pyarrow as pa

from firstvec.bulk.tables import embed_table
from firstvec.bulk.worker import load_with_cores
from firstvec.errors import FirstvecError, InputError
from firstvec.machine.limits import usable_cores
from firstvec.options import DEFAULT_MODEL, make_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from typing import Any

    from firstvec.options import Options
    from firstvec.provider import EmbeddingProvider


class Embedder:
    """Embeds Arrow tables, with one model. `firstvec.bulk.embed_table` has the arguments and the result.

    ::

        dataset.map_batches(
            firstvec.ray.Embedder,
            fn_constructor_kwargs={"model": "all-MiniLM-L6-v2", "enable_quantization": True},
            batch_format="pyarrow", batch_size=1024, num_cpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
        )

    Args:
        model: name of a bundle, or the path of its folder. Each node of the cluster needs it.
        device: as of `firstvec.get_embedding_provider`.
        enable_quantization: as there.
        min_quality: as there.
        require_signature: as there.
        artifact: the one artifact that may be taken. A node that cannot run it raises an error. Without it, nodes with
            other instruction sets may take other artifacts, whose vectors differ.
        table_options: ``text_column``, ``keep``, ``dtype``, ``truncate_dim``, ``normalize``, ``query``, ``document``,
            ``prompt_name``, ``on_error``, ``dedupe`` and ``batch_size`` of `firstvec.bulk.embed_table`.

    Raises:
        InputError: an option is unknown, or its value is not usable.
        FirstvecError: why the model cannot be loaded on this node. The message begins with the node.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        device: str | None = None,
        enable_quantization: bool = False,
        min_quality: float | None = None,
        require_signature: str | os.PathLike[str] | None = None,
        artifact: str | None = None,
        **table_options: Any,
    ) -> None:
        options = make_options(
            model,
            "background",
            device=device,
            enable_quantization=enable_quantization,
            output="buffer",
            min_quality=min_quality,
            require_signature=require_signature,
            artifact=artifact,
        )
        try:
            signature(embed_table).bind(None, None, **table_options)
        except TypeError as error:
            raise InputError(f"Embedder {error}: see firstvec.bulk.embed_table for its options") from error
        self._table_options = table_options
        self._provider = load_on_node(options)
        columns = {table_options.get("text_column", "text"), *(table_options.get("keep") or ())}
        self(pa.table({name: pa.array([], pa.string()) for name in columns}))  # checks the values of the options

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table with its vectors.

        Raises:
            InputError, RowError, FirstvecError: as of `firstvec.bulk.embed_table`.
        """
        if not isinstance(table, (pa.Table, pa.RecordBatch)):
            raise InputError(f'the batch is a {type(table).__name__}: call map_batches with batch_format="pyarrow"')
        try:
            return embed_table(self._provider, table, **self._table_options)
        except FirstvecError as error:
            raise name_node(error) from error.__cause__


def load_on_node(options: Options) -> EmbeddingProvider[Any, Any]:
    """Load a model with as many threads as this actor has processors.

    Raises:
        FirstvecError: why the load failed. The message begins with the node.
    """
    try:
        return load_with_cores(options, _assigned_cores())
    except FirstvecError as error:
        raise name_node(error) from error.__cause__


def name_node(error: FirstvecError) -> FirstvecError:
    """Put the node's name before the error's message, because each node has its own files."""
    error.args = (f"on the node {socket.gethostname()}: {error}",)
    return error


def _assigned_cores() -> int:
    """Return how many processors Ray has given this actor, at least 1. Outside of Ray, all that are usable."""
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return usable_cores()
    try:
        assigned = ray.get_runtime_context().get_assigned_resources().get("CPU")
    except AssertionError:  # this program is connected to a cluster, and is no actor
        return usable_cores()
    return usable_cores() if assigned is None else max(1, math.ceil(assigned))


__all__ = ["Embedder"]
