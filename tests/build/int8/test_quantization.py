"""INT8: which weights in which range, and that an exact twin computes the same as its artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from firstvec import ResourceProfile
from firstvec.bundle.manifest import Manifest
from firstvec.engines.table import INSTRUCTION_SETS
from firstvec.errors import QuantizationError
from firstvec_build.int8 import calibration, quantization, static

ISAS = tuple(INSTRUCTION_SETS)
VOCABULARY = {"tiny": 500, "real": 30522}
# Operator → position of its weights (onnxruntime ContribOperators.md, ONNX Operators.md).
PRODUCTS = {"MatMulInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "QAttention": 1}


@pytest.fixture(scope="module")
def graphs(tiny_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model's fused graph, and for each ISA its INT8 graph and its exact twin."""
    from firstvec_build.exporters import onnx_graph

    folder = tmp_path_factory.mktemp("int8")
    fused = folder / "fused.onnx"
    onnx_graph.export(tiny_encoder, folder / "exported.onnx")
    onnx_graph.fuse(folder / "exported.onnx", tiny_encoder, fused)
    products = calibration.calibrate(fused, np.random.default_rng(7).integers(5, 400, (64, 40)).tolist())
    for isa, row in INSTRUCTION_SETS.items():
        schemes = static.Schemes(fused, products, row.weight_bits)
        quantization.quantize(fused, isa, products, schemes, static.LIMITS[0], folder / f"{isa}.onnx")
        quantization.write_exact_twin(folder / f"{isa}.onnx", folder / f"{isa}-twin.onnx")
        for name in (isa, f"{isa}-twin"):
            onnx_graph.optimize(folder / f"{name}.onnx", folder / f"{name}-optimized.onnx")
    return folder


@pytest.fixture(params=["tiny", "real"])
def artifacts(request: pytest.FixtureRequest, tiny_built: Path, bundle: Path) -> tuple[Path, int]:
    """A bundle's ONNX folder and the size of its vocabulary."""
    root = {"tiny": tiny_built, "real": bundle}[request.param]
    return root / "onnx", VOCABULARY[request.param]


def read_weights(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the weights of the matrix products, by name."""
    graph = onnx.load(str(path)).graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    names = {node.input[PRODUCTS[node.op_type]] for node in graph.node if node.op_type in PRODUCTS}
    return {name: numpy_helper.to_array(initializers[name]) for name in names & set(initializers)}


def run(path: Path, feeds: dict[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    vectors: npt.NDArray[np.float32] = session.run(["sentence_embedding"], feeds)[0]
    return vectors


def random_inputs() -> dict[str, npt.NDArray[np.int64]]:
    generator = np.random.default_rng(5)
    lengths = generator.integers(1, 128, 16)
    mask = (np.arange(128) < lengths[:, None]).astype(np.int64)
    return {"input_ids": generator.integers(5, 400, (16, 128)) * mask, "attention_mask": mask}


def test_each_instruction_set_of_the_runtime_has_an_int8_artifact(tiny_built: Path) -> None:
    items = [item for item in Manifest.read(tiny_built).artifacts if item.format == "onnx" and item.precision == "int8"]
    assert tuple(item.isa for item in items) == ISAS


def test_pairs_of_weights_for_avx2_add_up_exactly(artifacts: tuple[Path, int]) -> None:
    found = read_weights(artifacts[0] / "model_qint8_avx2.onnx")
    assert found
    for name, values in found.items():
        assert values.dtype == np.int8, name
        # vpmaddubsw adds the products of two neighbours in 16 bits: 255 x 128 < 2^15
        pairs = values.astype(int).reshape(-1, 2, values.shape[1])
        assert np.maximum(pairs, 0).sum(axis=1).max() <= 128, name
        assert np.minimum(pairs, 0).sum(axis=1).min() >= -128, name


@pytest.mark.parametrize("isa", ["avx512_vnni", "arm64"])
def test_weights_elsewhere_have_eight_bits(artifacts: tuple[Path, int], isa: str) -> None:
    found = read_weights(artifacts[0] / f"model_qint8_{isa}.onnx")
    assert found
    for name, values in found.items():
        assert values.dtype == np.int8, name
        assert np.abs(values.astype(int)).max() >= 127, name


@pytest.mark.parametrize("isa", ISAS)
def test_each_column_has_a_scale_of_its_own(graphs: Path, isa: str) -> None:
    widest = 64 if INSTRUCTION_SETS[isa].weight_bits == 7 else 126
    for name, values in read_weights(graphs / f"{isa}.onnx").items():
        assert (np.abs(values.astype(int)).max(axis=0) >= widest).all(), name


@pytest.mark.parametrize("isa", ISAS)
def test_embeddings_table_is_int8_and_no_large_float_weights_remain(artifacts: tuple[Path, int], isa: str) -> None:
    folder, vocabulary = artifacts
    graph = onnx.load(str(folder / f"model_qint8_{isa}.onnx")).graph
    tables = {tensor.data_type: tensor.dims[1] for tensor in graph.initializer if vocabulary in tensor.dims}
    assert tables.pop(TensorProto.FLOAT) == 1  # the scale of each row
    assert list(tables) == [TensorProto.INT8]
    floats = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert max(np.prod(tensor.dims[1:], dtype=int) for tensor in floats) < 10_000


@pytest.mark.parametrize("isa", ISAS)
def test_real_int8_artifact_is_small(bundle: Path, isa: str) -> None:
    artifact = next(item for item in Manifest.read(bundle).artifacts if item.id == f"onnx-int8-{isa}")
    assert sum((bundle / file.path).stat().st_size for file in artifact.files) == artifact.size <= 24e6


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("step", ["", "-optimized"])
def test_exact_twin_computes_the_same_bits(graphs: Path, isa: str, step: str) -> None:
    if INSTRUCTION_SETS[isa].weight_bits == 8 and not {"avx512_vnni", "arm64"} & set(ResourceProfile.detect().isa):
        pytest.skip("8-bit signed weights saturate on this CPU: it has neither VNNI nor NEON")
    feeds = random_inputs()
    signed, twin = (run(graphs / f"{name}{step}.onnx", feeds) for name in (isa, f"{isa}-twin"))
    assert np.abs(signed).max() > 0.1
    assert np.array_equal(signed, twin)


@pytest.mark.parametrize("isa", ISAS)
def test_exact_twin_holds_the_same_integers_unsigned(graphs: Path, isa: str) -> None:
    signed, twin = read_weights(graphs / f"{isa}.onnx"), read_weights(graphs / f"{isa}-twin.onnx")
    assert len(twin) == len(signed) > 0
    for name, values in signed.items():
        assert twin[f"{name}_u8"].dtype == np.uint8
        assert np.array_equal(twin[f"{name}_u8"].astype(int) - 128, values)


def test_exact_twin_leaves_other_products_as_they_are(tmp_path: Path) -> None:
    def make_info(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    generator = np.random.default_rng(3)
    signed = generator.integers(-127, 128, (8, 4)).astype(np.int8)
    unsigned = generator.integers(0, 256, (8, 4)).astype(np.uint8)
    constants = {"signed": signed, "unsigned": unsigned, "scale": np.float32(0.5)}
    nodes = [
        # Without a zero point of its own, with unsigned weights, and with weights that are no constants.
        helper.make_node("MatMulIntegerToFloat", ["x", "signed", "scale", "scale"], ["y0"], domain="com.microsoft"),
        helper.make_node("MatMulInteger", ["x", "unsigned"], ["y1"]),
        helper.make_node("MatMulInteger", ["x", "w"], ["y2"]),
    ]
    inputs = [make_info("x", TensorProto.UINT8, "N", 8), make_info("w", TensorProto.INT8, 8, 4)]
    outputs = [make_info("y0", TensorProto.FLOAT, "N", 4)]
    outputs += [make_info(name, TensorProto.INT32, "N", 4) for name in ("y1", "y2")]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "model.onnx")
    quantization.write_exact_twin(tmp_path / "model.onnx", tmp_path / "twin.onnx")

    x = generator.integers(0, 256, (5, 8)).astype(np.uint8)
    session = onnxruntime.InferenceSession(str(tmp_path / "twin.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(["y0", "y1", "y2"], {"x": x, "w": signed})
    wide = x.astype(int)
    assert np.array_equal(found[0], 0.25 * (wide @ signed.astype(int)))
    assert np.array_equal(found[1], wide @ unsigned.astype(int))
    assert np.array_equal(found[2], wide @ signed.astype(int))
    kept = {tensor.name for tensor in onnx.load(tmp_path / "twin.onnx").graph.initializer}
    assert kept == {"signed_u8", "unsigned", "scale", "zero_point_u8"}


def test_int8_is_close_to_fp32(graphs: Path) -> None:
    from firstvec_build.quality import cosine

    feeds = random_inputs()
    full = run(graphs / "fused.onnx", feeds)
    for isa in ISAS:
        found = run(graphs / f"{isa}-twin.onnx", feeds)
        assert cosine(found, full).min() > 0.97
        assert not np.array_equal(found, full)


def graph_of(node: onnx.NodeProto) -> onnx.ModelProto:
    vector = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("x", "y")]
    constant = numpy_helper.from_array(np.ones(4, np.float32), "one")
    graph = helper.make_graph([node], "graph", vector[:1], vector[1:], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("isa", ISAS)
def test_graph_without_matrix_products_is_refused(isa: str, tmp_path: Path) -> None:
    onnx.save(graph_of(helper.make_node("Add", ["x", "one"], ["y"])), str(tmp_path / "add.onnx"))
    schemes = static.Schemes(tmp_path / "add.onnx", [], 8)
    with pytest.raises(QuantizationError, match=f"INT8 for {isa}: .* no matrix product"):
        quantization.quantize(tmp_path / "add.onnx", isa, [], schemes, static.LIMITS[0], tmp_path / "int8.onnx")


def test_graph_that_onnxruntimes_quantizer_cannot_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(QuantizationError, match=r"INT8 for avx2: onnxruntime's quantizer fails .* --only onnx-fp32"):
        quantization.quantize_dynamically(tmp_path / "broken.onnx", "avx2", 7, tmp_path / "int8.onnx")


@pytest.mark.parametrize(("weight_bits", "most"), [(7, 64), (8, 127)])
def test_dynamic_weights_use_their_bits(weight_bits: int, most: int, graphs: Path, tmp_path: Path) -> None:
    quantization.quantize_dynamically(graphs / "fused.onnx", "some-isa", weight_bits, tmp_path / "int8.onnx")
    found = read_weights(tmp_path / "int8.onnx")
    assert found
    for name, values in found.items():
        assert values.dtype == np.int8, name
        assert most - 1 <= np.abs(values.astype(int)).max() <= most + 1, name
