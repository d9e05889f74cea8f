"""INT8 tables of embeddings: each row has a scale of its own.

onnxruntime's quantizer has one scale for a whole table, and gives the LayerNorm behind the table INT8 weights, too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from firstvec_build.int8.static import drop_unused_constants

_SMALLEST_TABLE = 10_000
"""Smaller tables (of token types, of relative positions) stay in full precision."""


def quantize_embeddings(model: onnx.ModelProto, folder: Path) -> None:
    """Quantize the large tables from which the graph takes rows. ``folder`` has the graph's data file."""
    graph = model.graph
    tables = {
        tensor.name: tensor
        for tensor in graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += _split(node) if node.op_type == "EmbedLayerNormalization" else [node]
    # A table may serve a product, too.
    others = {name for node in nodes for name in list(node.input)[1 if _takes_rows(node) else 0 :]}
    quantized: dict[str, list[str]] = {}
    del graph.node[:]
    for node in nodes:
        table = tables.get(node.input[0]) if _takes_rows(node) else None
        if table is None or table.name in others or np.prod(table.dims) < _SMALLEST_TABLE:
            graph.node.append(node)
            continue
        if table.name not in quantized:
            integers, scales = _quantize_rows(numpy_helper.to_array(table, str(folder)))
            quantized[table.name] = [f"{table.name}_quantized", f"{table.name}_scales"]
            for name, values in zip(quantized[table.name], (integers, scales), strict=True):
                graph.initializer.append(numpy_helper.from_array(values, name))
        output = node.output[0]
        for name, part in zip(quantized[table.name], ("rows", "scales"), strict=True):
            taken = onnx.NodeProto()
            taken.CopyFrom(node)
            taken.name, taken.input[0], taken.output[0] = "", name, f"{output}_{part}"
            graph.node.append(taken)
        graph.node.append(helper.make_node("Cast", [f"{output}_rows"], [f"{output}_float"], to=onnx.TensorProto.FLOAT))
        graph.node.append(helper.make_node("Mul", [f"{output}_float", f"{output}_scales"], [output]))
    drop_unused_constants(model)


def _takes_rows(node: onnx.NodeProto) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type == "Gather" and axis == 0


def _quantize_rows(table: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return integers, (V, D), and scales, (V, 1)."""
    scales = np.maximum(np.abs(table).max(axis=1, keepdims=True) / 127, 1e-12).astype(np.float32)
    return np.rint(table / scales).astype(np.int8), scales


def _split(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return standard nodes for onnxruntime's EmbedLayerNormalization (ContribOperators.md)."""
    inputs = [*node.input, *[""] * (9 - len(node.input))]
    ids, types, words, positions, type_table, gamma, beta, mask, position_ids = inputs
    output, counts = node.output[0], node.output[1] if len(node.output) > 1 else ""
    nodes = [helper.make_node("Gather", [words, ids], [f"{output}_words"])]
    if not position_ids:  # they count from 0
        position_ids = f"{output}_position_ids"
        for name, value in (("zero", 0), ("one", 1)):
            tensor = helper.make_tensor(name, onnx.TensorProto.INT64, [], [value])
            nodes.append(helper.make_node("Constant", [], [f"{output}_{name}"], value=tensor))
        nodes += [
            helper.make_node("Shape", [ids], [f"{output}_shape"], start=1, end=2),
            helper.make_node("Squeeze", [f"{output}_shape"], [f"{output}_length"]),
            helper.make_node("Range", [f"{output}_zero", f"{output}_length", f"{output}_one"], [position_ids]),
        ]
    nodes.append(helper.make_node("Gather", [positions, position_ids], [f"{output}_positions"]))
    nodes.append(helper.make_node("Add", [f"{output}_words", f"{output}_positions"], [f"{output}_sum"]))
    total = f"{output}_sum"
    if types:
        nodes.append(helper.make_node("Gather", [type_table, types], [f"{output}_types"]))
        nodes.append(helper.make_node("Add", [total, f"{output}_types"], [f"{total}_with_types"]))
        total = f"{total}_with_types"
    epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-12)
    nodes.append(helper.make_node("LayerNormalization", [total, gamma, beta], [output], axis=-1, epsilon=epsilon))
    if counts:  # each text's number of tokens, (B,)
        axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])
        nodes.append(helper.make_node("Constant", [], [f"{output}_axes"], value=axes))
        nodes.append(helper.make_node("ReduceSum", [mask, f"{output}_axes"], [counts], keepdims=0))
    return nodes
