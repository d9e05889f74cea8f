"""Fixed activation scales: the schemes, what they compute, and that the other texts of a batch do not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from firstvec import Manifest, OptimizedEmbeddingLoader
from firstvec_build.int8.calibration import Floats, Product
from firstvec_build.int8.static import (
    LIMITS,
    Scheme,
    Schemes,
    choose_cheap_scheme,
    join,
    measure_error,
    quantize_product,
    quantize_products,
    split_and_smooth,
    take_sample,
)
from firstvec_build.quality import cosine, evaluation_sentences
from tests.build.conftest import INT8_HERE


def make_product(rows: Floats, weights: Floats, name: str = "y") -> Product:
    return Product(name, "x", weights, rows.min(axis=0), rows.max(axis=0), lambda: rows)


def quantize_at(limit: float, folder: Path, products: list[Product]) -> dict[str, int]:
    """Quantize ``fp32.onnx`` of a folder to ``int8.onnx`` there."""
    schemes = Schemes(folder / "fp32.onnx", products, 8)
    model, counts = quantize_products(folder / "fp32.onnx", products, schemes, limit)
    onnx.save(model, folder / "int8.onnx")
    return counts


def make_random(*shape: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_inputs_without_large_channels_take_the_plain_scheme() -> None:
    assert choose_cheap_scheme(make_product(make_random(256, 64), make_random(64, 64)), 8).name == "plain"
    assert choose_cheap_scheme(make_product(make_random(256, 64), make_random(64, 16)), 8).name == "plain"


def test_channels_that_are_always_large_are_smoothed() -> None:
    rows = make_random(256, 64)
    rows[:, :6] *= 40
    found = make_product(rows, make_random(64, 128, seed=2))
    scheme = choose_cheap_scheme(found, 8)
    assert scheme.name == "smooth"
    assert scheme.divisor is not None
    assert scheme.divisor[:6].min() > scheme.divisor[6:].max()
    assert scheme.error < 0.2 * measure_error(found, take_sample(found), Scheme("plain"), 8).error


def test_a_few_outliers_of_a_wide_input_are_split_off() -> None:
    rows = make_random(256, 128)
    rows[3, 5], rows[9, 77] = 300, -200
    found = make_product(rows, make_random(128, 32, seed=2))
    scheme = choose_cheap_scheme(found, 8)
    assert (scheme.name, scheme.outliers.tolist()) == ("split", [5, 77])
    assert scheme.error < 0.05 * measure_error(found, take_sample(found), Scheme("plain"), 8).error
    assert not quantize_product(found, scheme, 8).weights[[5, 77]].any()


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (7, 64)])
def test_weights_use_their_bits_column_by_column(bits: int, most: int) -> None:
    quantized = quantize_product(make_product(make_random(64, 32), make_random(32, 16)), Scheme("plain"), bits)
    assert (np.abs(quantized.weights.astype(int)).max(axis=0) == most).all()


@pytest.mark.parametrize("bits", [8, 7])
def test_weights_make_up_for_each_others_errors(bits: int) -> None:
    x = make_random(600, 16) @ make_random(16, 64, seed=2)  # channels that vary together
    x[:, [5, 20]] *= 50
    product = make_product(x[:300], make_random(64, 32, seed=3))
    for scheme in (Scheme("plain"), Scheme("split", outliers=np.array([5, 20])), Scheme("smooth", x.std(axis=0))):
        errors = []
        for compensate in (False, True):
            found = quantize_product(product, scheme, bits, compensate)
            weights = found.weights * found.weight_scales
            if scheme.divisor is not None:
                weights = weights / scheme.divisor[:, None]
            weights[scheme.outliers] += product.weights[scheme.outliers]
            errors.append(np.linalg.norm(x[300:] @ (weights - product.weights)))
            assert not found.weights[scheme.outliers].any()
        assert errors[1] < 0.9 * errors[0], (scheme.name, errors)
        pairs = found.weights.astype(int).reshape(32, 2, 32)
        if bits == 7:
            assert np.maximum(pairs, 0).sum(axis=1).max() <= 128
            assert np.minimum(pairs, 0).sum(axis=1).min() >= -128


def test_scale_is_positive_and_zero_has_a_step_of_its_own() -> None:
    for rows in (
        make_random(64, 8),
        np.abs(make_random(64, 8)),
        -np.abs(make_random(64, 8)),
        np.zeros((4, 8), np.float32),
    ):
        quantized = quantize_product(make_product(rows, make_random(8, 8)), Scheme("plain"), 8)
        assert np.isfinite(quantized.scale)
        assert quantized.scale > 0
        assert 0 <= quantized.zero_point <= 255


def make_graph_of_products(x: Floats, weights: list[Floats]) -> onnx.ModelProto:
    """y0, y1, y2 = x W + b: so query, key and value are computed in a graph that is not fused."""
    nodes, constants, outputs = [], [], []
    for index, each in enumerate(weights):
        bias = make_random(each.shape[1], seed=9 + index)
        constants += [numpy_helper.from_array(each, f"w{index}"), numpy_helper.from_array(bias, f"b{index}")]
        nodes.append(helper.make_node("MatMul", ["x", f"w{index}"], [f"p{index}"]))
        nodes.append(helper.make_node("Add", [f"p{index}", f"b{index}"], [f"y{index}"]))
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, [None, each.shape[1]]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, x.shape[1]])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_bias_behind_a_product_with_another_use_stays_where_it_is(tmp_path: Path) -> None:
    x, weights = make_random(256, 64), make_random(64, 16, seed=3)
    model = make_graph_of_products(x, [weights])
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, [None, 16])
    model.graph.node.append(helper.make_node("Mul", ["p0", "p0"], ["z"]))  # another use of the product
    model.graph.output.append(output)
    onnx.save(model, tmp_path / "fp32.onnx")
    group = [make_product(x, weights, "p0")]
    assert quantize_at(LIMITS[0], tmp_path, group) == {"plain": 1}
    nodes = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert sorted(nodes) == ["Add", "MatMulIntegerToFloat", "Mul", "QuantizeLinear"]


def test_outliers_are_added_in_full_precision_and_the_bias_moves_into_the_product(tmp_path: Path) -> None:
    x, weights = make_random(256, 128), make_random(128, 32, seed=2)
    x[3, 5], x[9, 77] = 300, -200
    model = make_graph_of_products(x, [weights])
    del model.opset_import[1]  # a graph that is not fused does not import onnxruntime's operators
    onnx.save(model, tmp_path / "fp32.onnx")
    group = [make_product(x, weights, "p0")]
    assert quantize_at(LIMITS[0], tmp_path, group) == {"split": 1}
    nodes = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert sorted(nodes) == ["Add", "Gather", "MatMul", "MatMulIntegerToFloat", "QuantizeLinear"]
    exact, found = (
        onnxruntime.InferenceSession(str(tmp_path / name)).run(["y0"], {"x": x})[0]
        for name in ("fp32.onnx", "int8.onnx")
    )
    assert cosine(found, exact).min() > 0.999


def test_a_smaller_limit_takes_the_more_exact_scheme_and_full_precision_at_last(tmp_path: Path) -> None:
    x, weights = make_random(512, 128), make_random(128, 32, seed=2)
    x[:, :20] *= 20  # always large, so smoothing helps
    x[3, 50], x[9, 77] = 3000, -2000  # outliers, so splitting helps
    onnx.save(make_graph_of_products(x, [weights]), tmp_path / "fp32.onnx")
    product = make_product(x, weights, "p0")
    schemes = Schemes(tmp_path / "fp32.onnx", [product], 8)
    cheap, both = schemes.choose(float("inf"))["x"], split_and_smooth(product, 8)
    assert cheap.name == "split"
    assert both.error < 0.5 * cheap.error
    assert schemes.choose(cheap.error)["x"].name == "split"
    errors = []
    exact = onnxruntime.InferenceSession(str(tmp_path / "fp32.onnx")).run(["y0"], {"x": x})[0]
    for limit, name in ((cheap.error, "split"), (both.error, "split and smooth"), (both.error / 2, "full")):
        assert quantize_at(limit, tmp_path, [product]) == {name: 1}
        found = onnxruntime.InferenceSession(str(tmp_path / "int8.onnx")).run(["y0"], {"x": x})[0]
        errors.append(float(np.square(found - exact).mean() / np.square(exact).mean()))
    # The schemes' errors are of weights that are rounded to the nearest integer.
    assert 0.3 * cheap.error < errors[0] < cheap.error
    assert 0.3 * both.error < errors[1] < both.error
    assert errors[2] == 0


def test_products_of_one_input_share_its_quantization_and_take_their_biases(tmp_path: Path) -> None:
    x, weights = make_random(128, 32), [make_random(32, 32, seed=seed) for seed in (3, 4, 5)]
    x[:, :3] *= 30
    model = make_graph_of_products(x, weights)
    onnx.save(model, tmp_path / "fp32.onnx")
    group = [make_product(x, each, f"p{index}") for index, each in enumerate(weights)]
    assert join(group).weights.shape == (32, 96)
    assert quantize_at(LIMITS[0], tmp_path, group) == {"smooth": 3}
    nodes = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert sorted(nodes) == ["MatMulIntegerToFloat"] * 3 + ["Mul", "QuantizeLinear"]
    exact, found = (
        np.concatenate(onnxruntime.InferenceSession(str(tmp_path / name)).run(["y0", "y1", "y2"], {"x": x}), axis=1)
        for name in ("fp32.onnx", "int8.onnx")
    )
    assert cosine(found, exact).min() > 0.999


@pytest.mark.parametrize("batch_size", [2, 7, 32])
def test_a_vector_does_not_depend_on_its_batch(batch_size: int, bundle: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(bundle), "quantized", device="cpu", artifact=INT8_HERE)
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


def test_int8_of_the_real_bundle_reaches_the_figures_of_the_readme(bundle: Path) -> None:
    for artifact in Manifest.read(bundle).artifacts:
        if artifact.precision == "int8":
            quality = artifact.quality
            assert quality.batch_cosine_min >= 0.9999
            assert (quality.cosine_mean >= 0.995, quality.cosine_min >= 0.97) == (True, True)
