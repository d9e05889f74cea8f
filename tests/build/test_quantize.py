"""INT8: which weights, which range, and that the stand-in for another CPU computes the same."""

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
from firstvec.errors import QuantizationError
from firstvec.manifest import ISAS, Manifest
from firstvec_build import calibrate, quantize
from firstvec_build.quantize import TARGETS, Target

BY_ISA = {target.isa: target for target in TARGETS}
VOCABULARY = {"tiny": 500, "real": 30522}
# Operator → position of its weights (onnxruntime ContribOperators.md, ONNX Operators.md).
PRODUCTS = {"MatMulInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "QAttention": 1}


@pytest.fixture(scope="module")
def graphs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model's fused graph, and for each ISA its INT8 graph and its exact twin."""
    from firstvec_build import onnx_export, reference, source

    folder = tmp_path_factory.mktemp("int8")
    model = reference.load(source.resolve(str(tiny_model)))
    onnx_export.export(model, folder / "exported.onnx")
    onnx_export.fuse(folder / "exported.onnx", model, folder / "fused.onnx")
    source_rows = np.random.default_rng(7).integers(5, 400, (64, 40)).tolist()
    calibration = calibrate.calibrate(folder / "fused.onnx", source_rows)
    for target in TARGETS:
        quantize.quantise(folder / "fused.onnx", target, calibration, folder / f"{target.isa}.onnx")
        quantize.exact_twin(folder / f"{target.isa}.onnx", folder / f"{target.isa}-twin.onnx")
        for name in (target.isa, f"{target.isa}-twin"):
            onnx_export.optimise(folder / f"{name}.onnx", folder / f"{name}-optimised.onnx")
    return folder


@pytest.fixture(params=["tiny", "real"])
def artifacts(request: pytest.FixtureRequest, tiny_built: Path, bundle: Path) -> tuple[Path, int]:
    """A bundle's ONNX folder and the size of its vocabulary."""
    root = {"tiny": tiny_built, "real": bundle}[request.param]
    return root / "onnx", VOCABULARY[request.param]


def weights(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The weights of the matrix products, by name."""
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


def test_there_is_a_target_for_each_instruction_set_that_bundles_know() -> None:
    assert tuple(target.isa for target in TARGETS) == ISAS


def test_weights_for_avx2_have_seven_bits(artifacts: tuple[Path, int]) -> None:
    found = weights(artifacts[0] / "model_qint8_avx2.onnx")
    assert found
    for name, values in found.items():
        assert values.dtype == np.int8, name
        assert np.abs(values.astype(int)).max() == 64, name  # 255 x 64 + 255 x 64 < 2^15


@pytest.mark.parametrize("isa", ["avx512_vnni", "arm64"])
def test_weights_elsewhere_have_eight_bits(artifacts: tuple[Path, int], isa: str) -> None:
    found = weights(artifacts[0] / f"model_qint8_{isa}.onnx")
    assert found
    for name, values in found.items():
        assert values.dtype == np.int8, name
        assert np.abs(values.astype(int)).max() >= 127, name


@pytest.mark.parametrize("isa", ISAS)
def test_each_column_has_a_scale_of_its_own(graphs: Path, isa: str) -> None:
    widest = 64 if BY_ISA[isa].reduce_range else 127
    for name, values in weights(graphs / f"{isa}.onnx").items():
        assert (np.abs(values.astype(int)).max(axis=0) >= widest - 1).all(), name


@pytest.mark.parametrize("isa", ISAS)
def test_embeddings_table_is_int8_and_no_large_float_weights_remain(artifacts: tuple[Path, int], isa: str) -> None:
    folder, vocabulary = artifacts
    graph = onnx.load(str(folder / f"model_qint8_{isa}.onnx")).graph
    tables = [tensor for tensor in graph.initializer if vocabulary in tensor.dims]
    assert [tensor.data_type for tensor in tables] in ([TensorProto.INT8], [TensorProto.UINT8])
    floats = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert max(np.prod(tensor.dims, dtype=int) for tensor in floats) < 10_000


@pytest.mark.parametrize("isa", ISAS)
def test_real_int8_artifact_is_small(bundle: Path, isa: str) -> None:
    artifact = next(item for item in Manifest.read(bundle).artifacts if item.id == f"onnx-int8-{isa}")
    assert sum((bundle / file.path).stat().st_size for file in artifact.files) == artifact.size <= 24e6


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("step", ["", "-optimised"])
def test_exact_twin_computes_the_same_bits(graphs: Path, isa: str, step: str) -> None:
    if not BY_ISA[isa].reduce_range and not {"avx512_vnni", "arm64"} & set(ResourceProfile.detect().isa):
        pytest.skip("8-bit signed weights saturate on this CPU: it has neither VNNI nor NEON")
    feeds = random_inputs()
    signed, twin = (run(graphs / f"{name}{step}.onnx", feeds) for name in (isa, f"{isa}-twin"))
    assert np.abs(signed).max() > 0.1
    assert np.array_equal(signed, twin)


@pytest.mark.parametrize("isa", ISAS)
def test_exact_twin_holds_the_same_integers_unsigned(graphs: Path, isa: str) -> None:
    signed, twin = weights(graphs / f"{isa}.onnx"), weights(graphs / f"{isa}-twin.onnx")
    assert len(twin) == len(signed) > 0
    for name, values in signed.items():
        assert twin[f"{name}_u8"].dtype == np.uint8
        assert np.array_equal(twin[f"{name}_u8"].astype(int) - 128, values)


def test_int8_is_close_to_fp32(graphs: Path) -> None:
    from firstvec_build.quality import cosine

    feeds = random_inputs()
    full = run(graphs / "fused.onnx", feeds)
    for target in TARGETS:
        found = run(graphs / f"{target.isa}-twin.onnx", feeds)
        assert cosine(found, full).min() > 0.97
        assert not np.array_equal(found, full)


def graph_of(node: onnx.NodeProto) -> onnx.ModelProto:
    vector = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("x", "y")]
    constant = numpy_helper.from_array(np.ones(4, np.float32), "one")
    graph = helper.make_graph([node], "graph", vector[:1], vector[1:], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.isa)
def test_graph_without_matrix_products_is_refused(target: Target, tmp_path: Path) -> None:
    onnx.save(graph_of(helper.make_node("Add", ["x", "one"], ["y"])), str(tmp_path / "add.onnx"))
    with pytest.raises(QuantizationError, match=f"INT8 for {target.isa}: .* no matrix product"):
        quantize.quantise(tmp_path / "add.onnx", target, [], tmp_path / "int8.onnx")


def test_unreadable_graph_is_refused_with_the_other_way(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(QuantizationError, match=r"cannot be calibrated: .* --only torchscript-fp32 --only onnx-fp32"):
        calibrate.calibrate(tmp_path / "broken.onnx", [[1, 2]])
