"""The weights file of firstvec's own engine: written as ``artifacts/FORMAT.md`` describes it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from firstvec.errors import ExportError
from firstvec_build.reference import is_static

Matrix = npt.NDArray[np.float64]
Quantize = Callable[[str, Matrix], tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], npt.NDArray[np.float32] | None]]
"""(name, weights) → integers, scale of each row, and multipliers of the inputs, or None."""

ALIGNMENT = 64
_LANES = 16
_MAGIC, _BYTE_ORDER, _VERSION = b"firstvec", 0x01020304, 1
_HEADER = struct.Struct("<8s2IQ10IfI56x")
_ACTIVATIONS = {"gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "relu": 3}
_POOLINGS = {"mean": 0, "cls": 1}
_MODEL_TYPES = {"bert": 0, "roberta": 1, "xlm-roberta": 1, "camembert": 1}
"""transformers' ``model_type`` → whether a padding token has a position of its own, before that of the first token."""


def find_obstacle(model: SentenceTransformer) -> str | None:
    """Return why the engine cannot compute this model, for people. None: it can."""
    if is_static(model):
        return _find_static_obstacle(model)
    config = model[0].auto_model.config
    if config.model_type not in _MODEL_TYPES:
        return f"the native engine does not compute model_type {config.model_type}"
    modules = [type(module) for module in model][2:]
    pooling = model[1].pooling_mode
    problems = (
        (getattr(config, "position_embedding_type", None) not in (None, "absolute"), "relative positions"),
        (getattr(config, "is_decoder", False), "a decoder"),
        (config.hidden_act not in _ACTIVATIONS, f"hidden_act {config.hidden_act}"),
        (config.hidden_size % _LANES or config.hidden_size > 16384, f"hidden_size {config.hidden_size}"),
        (config.intermediate_size % _LANES, f"intermediate_size {config.intermediate_size}"),
        (getattr(config, "embedding_size", config.hidden_size) != config.hidden_size, "factorized embeddings"),
        (pooling not in _POOLINGS, f"pooling {pooling}"),
        (modules not in ([], [Normalize]), "modules behind the pooling"),
    )
    found = [text for is_problem, text in problems if is_problem]
    return f"the native engine does not compute {', '.join(found)}" if found else None


def _find_static_obstacle(model: SentenceTransformer) -> str | None:
    width = model[0].embedding_dim
    problems = (
        (width % _LANES or width > 16384, f"embeddings of {width} components"),
        ([type(module) for module in model][1:] not in ([], [Normalize]), "modules behind the embeddings"),
    )
    found = [text for is_problem, text in problems if is_problem]
    return f"the native engine does not compute {', '.join(found)}" if found else None


def write_static(model: SentenceTransformer, path: Path) -> None:
    """Write a table of embeddings, of which a vector is the mean, in fp32. The file has no layers.

    Raises:
        ExportError: a weight is not a number.
    """
    table = model[0].embedding.weight.detach().numpy().astype(np.float64)
    if not np.isfinite(table).all():
        raise ExportError("embedding.weight: a weight is not finite")
    file = _File(None)
    file.put_tokens(table)
    vocabulary, width = table.shape
    # The sizes of layers say nothing here, and are the smallest that the format allows.
    sizes = (0, width, 1, _LANES, vocabulary, model.max_seq_length, _ACTIVATIONS["gelu"], _POOLINGS["mean"])
    file.finish(path, *sizes, int(type(model[len(model) - 1]) is Normalize), epsilon=1e-12, padding=0)


def write(model: SentenceTransformer, path: Path, quantize: Quantize | None) -> None:
    """Write the weights of ``model``.

    Args:
        model: a model for which `find_obstacle` returns None.
        path: the file.
        quantize: makes integers of a matrix. None: write fp32.

    Raises:
        ExportError: a weight is not a number.
    """
    encoder = model[0].auto_model
    config = encoder.config
    weights = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in encoder.state_dict().items()}
    if bad := [name for name, values in weights.items() if not np.isfinite(values).all()]:
        raise ExportError(f"{bad[0]}: a weight is not finite")
    file = _File(quantize)
    hidden, heads = config.hidden_size, config.num_attention_heads
    file.put_tokens(weights["embeddings.word_embeddings.weight"])
    has_padding = _MODEL_TYPES[config.model_type]
    positions = weights["embeddings.position_embeddings.weight"][config.pad_token_id if has_padding else 0 :]
    file.put(positions + weights["embeddings.token_type_embeddings.weight"][0], np.float32)
    file.put_normalization(weights, "embeddings.LayerNorm")
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}"
        names = [f"{layer}.attention.self.{name}" for name in ("query", "key", "value")]
        # Scores are divided by the root of the head's width. Here, because then no kernel does it.
        factors = np.concatenate([np.full(hidden, (hidden // heads) ** -0.5), np.ones(2 * hidden)])
        rows = np.concatenate([weights[f"{name}.weight"] for name in names])
        bias = np.concatenate([weights[f"{name}.bias"] for name in names])
        file.put_matrix(f"{layer}.attention.self", rows, bias, factors)
        for name, normalization in (
            (f"{layer}.attention.output.dense", f"{layer}.attention.output.LayerNorm"),
            (f"{layer}.intermediate.dense", None),
            (f"{layer}.output.dense", f"{layer}.output.LayerNorm"),
        ):
            file.put_matrix(name, weights[f"{name}.weight"], weights[f"{name}.bias"])
            if normalization:
                file.put_normalization(weights, normalization)
    file.finish(
        path,
        config.num_hidden_layers,
        hidden,
        heads,
        config.intermediate_size,
        len(weights["embeddings.word_embeddings.weight"]),
        len(positions) - has_padding,
        _ACTIVATIONS[config.hidden_act],
        _POOLINGS[model[1].pooling_mode],
        int(type(model[len(model) - 1]) is Normalize),
        epsilon=config.layer_norm_eps,
        padding=config.pad_token_id + 1 if has_padding else 0,
    )


class _File:
    """The arrays of a weights file, each on a multiple of 64 bytes."""

    def __init__(self, quantize: Quantize | None) -> None:
        self._data = bytearray(_HEADER.size)
        self._quantize = quantize

    def put(self, values: npt.NDArray[Any], kind: type) -> None:
        self._data += bytes(-len(self._data) % ALIGNMENT)
        self._data += np.ascontiguousarray(values, np.dtype(kind).newbyteorder("<")).tobytes()

    def put_normalization(self, weights: dict[str, Matrix], name: str) -> None:
        self.put(weights[f"{name}.weight"], np.float32)
        self.put(weights[f"{name}.bias"], np.float32)

    def put_tokens(self, rows: Matrix) -> None:
        if self._quantize is None:
            self.put(rows, np.float32)
            return
        scales = np.maximum(np.abs(rows).max(axis=1) / 127, 1e-12).astype(np.float32)
        self.put(np.clip(np.rint(rows / scales[:, None].astype(np.float64)), -127, 127), np.int8)
        self.put(scales, np.float32)

    def put_matrix(self, name: str, rows: Matrix, bias: Matrix, factors: Matrix | float = 1.0) -> None:
        """Put weights, (columns, depth), as panels of 16 columns. The outputs are multiplied by the factors."""
        columns, depth = rows.shape
        if self._quantize is None:
            rows = rows * np.reshape(factors, (-1, 1))
            self.put(rows.reshape(columns // _LANES, _LANES, depth).transpose(0, 2, 1), np.float32)
            self.put(bias * factors, np.float32)
            return
        integers, scales, multipliers = self._quantize(name, rows)
        self.put(integers.reshape(columns // _LANES, _LANES, depth // 4, 4).transpose(0, 2, 1, 3), np.int8)
        self.put(scales * factors, np.float32)
        self.put(integers.astype(np.int64).sum(axis=1), np.float32)
        if multipliers is not None:
            self.put(multipliers, np.float32)
        self.put(bias * factors, np.float32)

    def finish(self, path: Path, *sizes: int, epsilon: float, padding: int) -> None:
        start = _MAGIC, _BYTE_ORDER, _VERSION, len(self._data), int(self._quantize is not None)
        _HEADER.pack_into(self._data, 0, *start, *sizes, epsilon, padding)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._data)
