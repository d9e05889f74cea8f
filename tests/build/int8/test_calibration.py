"""Calibration records what flows into each matrix product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from firstvec.errors import QuantizationError
from firstvec_build.int8 import calibration
from firstvec_build.int8.calibration import Floats, calibrate, find_products


def make_random(*shape: int) -> Floats:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def save_graph(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, Floats]) -> onnx.ModelProto:
    """Save a graph from input_ids and attention_mask, (B, T), to y, (B, T, 4)."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "T"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["B", "T"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "T", 4])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [ids, mask], [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return model


EMBED = helper.make_node("Gather", ["table", "input_ids"], ["x"])
MULTIPLY = helper.make_node("MatMul", ["x", "weights"], ["y"])


def test_each_products_input_is_recorded(tmp_path: Path) -> None:
    table, weights = make_random(50, 8), make_random(8, 4)
    save_graph(tmp_path / "g.onnx", [EMBED, MULTIPLY], {"table": table, "weights": weights})
    (found,) = calibrate(tmp_path / "g.onnx", [[3, 4], [7]])
    seen = table[[3, 4, 7]]
    assert (found.node, found.input) == ("y", "x")
    np.testing.assert_array_equal(found.weights, weights)
    np.testing.assert_array_equal(found.read_rows(), seen)
    np.testing.assert_array_equal(found.low, seen.min(axis=0))
    np.testing.assert_array_equal(found.high, seen.max(axis=0))


def test_some_rows_are_kept_evenly_and_all_rows_count_for_the_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_ROWS", 4)
    table = make_random(50, 8)
    save_graph(tmp_path / "g.onnx", [EMBED, MULTIPLY], {"table": table, "weights": make_random(8, 4)})
    (found,) = calibrate(tmp_path / "g.onnx", [[*range(10)], [*range(10, 20)]])
    np.testing.assert_array_equal(found.read_rows(), table[[0, 5, 10, 15]])
    np.testing.assert_array_equal(found.high, table[:20].max(axis=0))


def test_products_are_those_of_an_activation_and_a_constant_matrix(tmp_path: Path) -> None:
    nodes = [
        EMBED,
        helper.make_node("MatMul", ["x", "weights"], ["constant"]),
        helper.make_node("MatMul", ["x", "turned"], ["activations"]),
        helper.make_node("MatMul", ["table", "weights"], ["constants"]),
        helper.make_node("MatMul", ["x", "batched"], ["batch"]),
    ]
    constants = {"table": make_random(50, 8), "weights": make_random(8, 4), "batched": make_random(2, 8, 4)}
    model = save_graph(tmp_path / "g.onnx", nodes, constants)
    assert [node.output[0] for node, _ in find_products(model.graph)] == ["constant"]


def test_graph_without_products_gives_none(tmp_path: Path) -> None:
    save_graph(
        tmp_path / "g.onnx", [helper.make_node("Gather", ["table", "input_ids"], ["y"])], {"table": make_random(50, 4)}
    )
    assert calibrate(tmp_path / "g.onnx", [[1]]) == []


def test_unreadable_graph_is_refused_and_the_other_ways_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(QuantizationError, match=r"cannot be calibrated: .* --only torchscript-fp32 --only onnx-fp32"):
        calibrate(tmp_path / "broken.onnx", [[1, 2]])
