"""INT8 ONNX for one instruction set, and an exact stand-in for measuring it where that set is not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from firstvec.errors import QuantizationError
from firstvec_build import static_int8
from firstvec_build.calibrate import Product
from firstvec_build.quiet import quiet_tools

EMBEDDINGS = ("EmbedLayerNormalization", "Gather")
"""What holds the embeddings table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How weights are quantised for one instruction set."""

    isa: str
    reduce_range: bool
    """7-bit weights."""
    reason: str


TARGETS = (
    Target(
        isa="avx2",
        reduce_range=True,
        reason="7-bit weights: without VNNI, vpmaddubsw adds pairs of u8 x s8 products in int16, which 8-bit weights "
        "overflow silently",
    ),
    Target(
        isa="avx512_vnni",
        reduce_range=False,
        reason="8-bit weights: vpdpbusd adds u8 x s8 products in int32; on a CPU without it they saturate",
    ),
    Target(
        isa="arm64",
        reduce_range=False,
        reason="8-bit weights: NEON multiplies and adds 8-bit integers without saturation",
    ),
)


def quantise(fused: Path, target: Target, calibration: list[Product], path: Path) -> None:
    """Quantise weights per column to signed 8 (or 7) bits, activations to unsigned 8 bits with scales fixed here.

    Args:
        fused: the fp32 graph.
        target: the instruction set.
        calibration: what `firstvec_build.calibrate.calibrate` saw in that graph.
        path: where the INT8 graph is written.

    Raises:
        QuantizationError: the graph holds nothing to quantise, or onnxruntime's quantiser fails on its embeddings.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if not calibration:
        raise _refused(target, "the graph has no matrix product that could be quantised")
    products = path.with_name(f"{path.stem}-products.onnx")
    static_int8.rewrite(fused, calibration, 7 if target.reduce_range else 8, products)
    try:
        with quiet_tools():
            quantize_dynamic(
                products,
                path,
                op_types_to_quantize=list(EMBEDDINGS),
                per_channel=True,
                weight_type=QuantType.QInt8,
                # Shape inference does not know onnxruntime's fused operators; all their outputs are float.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
    except Exception as error:  # ValueError, RuntimeError, AssertionError … from pattern matching
        raise _refused(target, f"{type(error).__name__}: {error}") from error


def _refused(target: Target, reason: str) -> QuantizationError:
    return QuantizationError(
        f"INT8 for {target.isa}: the graph cannot be quantised: {reason}; "
        "build without it: --only torchscript-fp32 --only onnx-fp32"
    )


_WEIGHTS = {
    # operator → positions of the weights and of their zero point (onnxruntime ContribOperators.md, ONNX Operators.md)
    "MatMulInteger": (1, 3),
    "MatMulIntegerToFloat": (1, 5),
    "DynamicQuantizeMatMul": (1, 3),
    "QAttention": (1, 7),
}


def exact_twin(path: Path, twin: Path) -> None:
    """Write a model that computes, on any CPU, exactly what ``path`` computes where nothing saturates.

    Signed weights become unsigned, with 128 added to them and to their zero points: the same integers, but
    onnxruntime's u8 x u8 kernels, which widen to 16 bits before they multiply and are exact on every CPU.
    """
    model = onnx.load(path)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    shifted: dict[str, str] = {}

    def shift(name: str) -> str:
        if name not in shifted:
            values = numpy_helper.to_array(initializers[name])
            unsigned = (values.astype(np.int16) + 128).astype(np.uint8)
            shifted[name] = f"{name}_u8"
            model.graph.initializer.append(numpy_helper.from_array(unsigned, shifted[name]))
        return shifted[name]

    for node in model.graph.node:
        if node.op_type not in _WEIGHTS:
            continue
        weights, zero_point = _WEIGHTS[node.op_type]
        if node.input[weights] not in initializers:
            continue
        if numpy_helper.to_array(initializers[node.input[weights]]).dtype != np.int8:
            continue
        while len(node.input) <= zero_point:
            node.input.append("")
        if node.input[zero_point]:
            node.input[zero_point] = shift(node.input[zero_point])
        else:
            node.input[zero_point] = "zero_point_u8"
        node.input[weights] = shift(node.input[weights])
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(128), "zero_point_u8"))
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, twin)
