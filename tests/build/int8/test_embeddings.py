"""INT8 tables of embeddings: a scale for each row, and the nodes that stand for onnxruntime's own operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from firstvec_build.int8.embeddings import quantize_embeddings
from firstvec_build.quality import cosine

WIDTH = 32
IDS = np.array([[3, 900, 7, 1], [12, 5, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.int32)
TYPES = np.array([[0, 0, 1, 1], [0, 1, 0, 0]], np.int32)
POSITION_IDS = np.array([[2, 3, 4, 5], [2, 3, 1, 1]], np.int32)
FEEDS = {"ids": IDS, "mask": MASK, "types": TYPES, "position_ids": POSITION_IDS}


def make_model(nodes: list[onnx.NodeProto], outputs: dict[str, tuple[int, list[Any]]]) -> onnx.ModelProto:
    generator = np.random.default_rng(4)
    constants = {
        # Rows of very different size, as a vocabulary has them.
        "words": generator.normal(size=(1000, WIDTH)) * generator.uniform(0.01, 4, size=(1000, 1)),
        "positions": generator.normal(size=(400, WIDTH)),
        "type_table": generator.normal(size=(2, WIDTH)),
        "gamma": generator.normal(size=WIDTH),
        "beta": generator.normal(size=WIDTH),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["B", "T"]) for name in FEEDS],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(model: onnx.ModelProto) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, FEEDS))


def read_constants(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("has_positions", [True, False])
@pytest.mark.parametrize("has_types", [True, False])
def test_onnxruntimes_operator_becomes_nodes_that_compute_the_same(has_types: bool, has_positions: bool) -> None:
    inputs = ["ids", "types" if has_types else "", "words", "positions", "type_table" if has_types else ""]
    inputs += ["gamma", "beta", "mask", *(["position_ids"] if has_positions else [])]
    node = helper.make_node("EmbedLayerNormalization", inputs, ["y", "counts"], domain="com.microsoft", epsilon=1e-3)
    outputs = {"y": (TensorProto.FLOAT, ["B", "T", WIDTH]), "counts": (TensorProto.INT32, ["B"])}
    model = make_model([node], outputs)
    vectors, counts = run(model)
    quantize_embeddings(model, Path())
    found, found_counts = run(model)
    assert counts.tolist() == found_counts.tolist() == [4, 2]
    assert cosine(found.reshape(-1, WIDTH), vectors.reshape(-1, WIDTH)).min() > 0.9995
    assert not np.array_equal(found, vectors)
    constants = read_constants(model)
    assert {"words", "positions"}.isdisjoint(constants)
    assert constants["words_quantized"].dtype == constants["positions_quantized"].dtype == np.int8
    assert constants["words_scales"].shape == (1000, 1)
    # Each row uses all of its bits, however small the row is.
    assert (np.abs(constants["words_quantized"].astype(int)).max(axis=1) == 127).all()
    assert constants["gamma"].dtype == np.float32


def test_small_tables_and_tables_with_another_use_stay_as_they_are() -> None:
    nodes = [
        helper.make_node("Gather", ["type_table", "types"], ["few"]),
        helper.make_node("Gather", ["words", "ids"], ["rows"]),
        helper.make_node("Transpose", ["words"], ["turned"]),
    ]
    kinds = {"few": ["B", "T", WIDTH], "rows": ["B", "T", WIDTH], "turned": [WIDTH, 1000]}
    model = make_model(nodes, {name: (TensorProto.FLOAT, shape) for name, shape in kinds.items()})
    before = run(model)
    quantize_embeddings(model, Path())
    assert all(np.array_equal(one, other) for one, other in zip(before, run(model), strict=True))
    assert [node.op_type for node in model.graph.node] == ["Gather", "Gather", "Transpose"]


def test_a_row_of_zeros_stays_zero() -> None:
    model = make_model(
        [helper.make_node("Gather", ["words", "ids"], ["y"])], {"y": (TensorProto.FLOAT, ["B", "T", WIDTH])}
    )
    words = np.zeros((1000, WIDTH), np.float32)
    words[900] = 1e-3
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(words, "words"))
    quantize_embeddings(model, Path())
    (found,) = run(model)
    np.testing.assert_allclose(found, words[IDS], rtol=1e-6)
