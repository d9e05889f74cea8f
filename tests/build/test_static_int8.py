"""Fixed activation scales: the schemes, what they compute, and that a batch's other texts do not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from firstvec import Manifest, OptimizedEmbeddingLoader
from firstvec_build import static_int8
from firstvec_build.calibrate import Floats, Product, calibrate
from firstvec_build.quality import cosine, evaluation_sentences
from firstvec_build.static_int8 import Scheme, choose, joined, quantise_product, rewrite


def product(rows: Floats, weights: Floats, name: str = "y") -> Product:
    return Product(name, "x", weights, rows.min(axis=0), rows.max(axis=0), rows)


def random(*shape: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_even_inputs_need_no_scheme() -> None:
    assert choose(product(random(256, 64), random(64, 64)), 8).name == "plain"
    assert choose(product(random(256, 64), random(64, 16)), 8).name == "plain"


def test_channels_that_are_always_large_are_smoothed() -> None:
    rows = random(256, 64)
    rows[:, :6] *= 40
    found = product(rows, random(64, 128, seed=2))
    scheme = choose(found, 8)
    assert scheme.name == "smooth"
    assert scheme.divisor is not None
    assert scheme.divisor[:6].min() > scheme.divisor[6:].max()
    assert scheme.error < 0.2 * static_int8._measured(found, Scheme("plain"), 8).error


def test_a_few_outliers_of_a_wide_input_are_split_off() -> None:
    rows = random(256, 128)
    rows[3, 5], rows[9, 77] = 300, -200
    found = product(rows, random(128, 32, seed=2))
    scheme = choose(found, 8)
    assert (scheme.name, scheme.outliers.tolist()) == ("split", [5, 77])
    assert scheme.error < 0.05 * static_int8._measured(found, Scheme("plain"), 8).error
    assert not quantise_product(found, scheme, 8).weights[[5, 77]].any()


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (7, 64)])
def test_weights_use_their_bits_column_by_column(bits: int, most: int) -> None:
    quantised = quantise_product(product(random(64, 32), random(32, 16)), Scheme("plain"), bits)
    assert (np.abs(quantised.weights.astype(int)).max(axis=0) == most).all()


def test_what_is_zero_stays_zero() -> None:
    for rows in (random(64, 8), np.abs(random(64, 8)), -np.abs(random(64, 8)), np.zeros((4, 8), np.float32)):
        quantised = quantise_product(product(rows, random(8, 8)), Scheme("plain"), 8)
        assert np.isfinite(quantised.scale)
        assert quantised.scale > 0
        assert 0 <= quantised.zero_point <= 255


def graph_of_three_products(x: Floats, weights: list[Floats]) -> onnx.ModelProto:
    """y0, y1, y2 = x W + b: as query, key and value are made without fusion."""
    nodes, constants, outputs = [], [], []
    for index, each in enumerate(weights):
        bias = random(each.shape[1], seed=9 + index)
        constants += [numpy_helper.from_array(each, f"w{index}"), numpy_helper.from_array(bias, f"b{index}")]
        nodes.append(helper.make_node("MatMul", ["x", f"w{index}"], [f"p{index}"]))
        nodes.append(helper.make_node("Add", [f"p{index}", f"b{index}"], [f"y{index}"]))
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, [None, each.shape[1]]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, x.shape[1]])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_products_of_one_input_share_its_quantisation_and_take_their_biases(tmp_path: Path) -> None:
    x, weights = random(128, 32), [random(32, 32, seed=seed) for seed in (3, 4, 5)]
    x[:, :3] *= 30
    model = graph_of_three_products(x, weights)
    onnx.save(model, tmp_path / "fp32.onnx")
    group = [product(x, each, f"p{index}") for index, each in enumerate(weights)]
    assert joined(group).weights.shape == (32, 96)
    assert rewrite(tmp_path / "fp32.onnx", group, 8, tmp_path / "int8.onnx") == {"smooth": 3}
    nodes = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert sorted(nodes) == ["MatMulIntegerToFloat"] * 3 + ["Mul", "QuantizeLinear"]
    exact, found = (
        np.concatenate(onnxruntime.InferenceSession(str(tmp_path / name)).run(["y0", "y1", "y2"], {"x": x}), axis=1)
        for name in ("fp32.onnx", "int8.onnx")
    )
    assert cosine(found, exact).min() > 0.999


def test_calibration_sees_each_products_input(tmp_path: Path) -> None:
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "T"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["B", "T"])
    table, weights = random(50, 8), random(8, 4)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "weights"], ["y"]),
    ]
    constants = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weights, "weights")]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "T", 4])
    graph = helper.make_graph(nodes, "g", [ids, mask], [output], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "g.onnx")
    (found,) = calibrate(tmp_path / "g.onnx", [[3, 4], [7]])
    seen = table[[3, 4, 7]]
    np.testing.assert_array_equal(found.rows, seen)
    np.testing.assert_array_equal(found.low, seen.min(axis=0))
    np.testing.assert_array_equal(found.high, seen.max(axis=0))


@pytest.mark.parametrize("batch_size", [2, 7, 32])
def test_a_vector_does_not_depend_on_its_batch(batch_size: int, bundle: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(bundle), "quantized", device="cpu")
    loader.start_loading()
    provider = loader.get_provider()
    sentences = evaluation_sentences()
    alone = np.stack([provider.encode(text) for text in sentences])
    order = np.random.default_rng(batch_size).permutation(len(sentences))
    mixed = np.empty_like(alone)
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        mixed[some] = provider.encode([sentences[index] for index in some], batch_size=batch_size)
    assert cosine(alone, mixed).min() >= 0.9999


def test_the_bundles_int8_is_what_the_readme_says(bundle: Path) -> None:
    for artifact in Manifest.read(bundle).artifacts:
        if artifact.precision == "int8":
            quality = artifact.quality
            assert quality.batch_cosine_min >= 0.9999
            assert (quality.cosine_mean >= 0.995, quality.cosine_min >= 0.97) == (True, True)
