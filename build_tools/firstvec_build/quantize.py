"""INT8 ONNX for one instruction set, and an exact stand-in for measuring it where that set is not there."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        QuantizationError: most weights belong to an operator that cannot be quantised so; the message names it.
    """
    if reason := _unsuitable(fused, calibration):
        raise QuantizationError(
            f"INT8 for {target.isa}: {reason}; build with --dynamic-int8 (onnxruntime's own quantisation: a text's "
            "vector then depends on its batch), or without INT8: --only torchscript-fp32 --only onnx-fp32"
        )
    products = path.with_name(f"{path.stem}-products.onnx")
    static_int8.rewrite(fused, calibration, 7 if target.reduce_range else 8, products)
    _quantize_dynamic(products, path, target, op_types_to_quantize=list(EMBEDDINGS))


def quantise_dynamically(fused: Path, target: Target, path: Path) -> None:
    """Quantise by onnxruntime's own tool: activations are scaled at run time, over all texts of a batch at once.

    Raises:
        QuantizationError: the tool fails on the graph.
    """
    _quantize_dynamic(fused, path, target, reduce_range=target.reduce_range)


def _quantize_dynamic(graph: Path, path: Path, target: Target, **options: Any) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        with quiet_tools():
            quantize_dynamic(
                graph,
                path,
                per_channel=True,
                weight_type=QuantType.QInt8,
                # Shape inference does not know onnxruntime's fused operators; all their outputs are float. Products of
                # two activations, those of the attention, would be scaled over the batch as well.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
                **options,
            )
    except Exception as error:  # ValueError, RuntimeError, AssertionError … from pattern matching
        raise QuantizationError(
            f"INT8 for {target.isa}: onnxruntime's quantiser fails on the graph: {type(error).__name__}: {error}; "
            "build without it: --only torchscript-fp32 --only onnx-fp32"
        ) from error


def _unsuitable(fused: Path, calibration: list[Product]) -> str | None:
    """Which operator holds more weights than all that fixed scales are for; None if there is no such operator."""
    graph = onnx.load(fused).graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer if len(tensor.dims) > 1}
    weights = Counter[str]()
    example: dict[str, str] = {}
    for node in graph.node:
        if node.op_type not in EMBEDDINGS:
            weights[node.op_type] += sum(sizes.get(name, 0) for name in node.input)
            example.setdefault(node.op_type, node.name or node.output[0])
    ours = sum(product.weights.size for product in calibration)
    for name in ("MatMul", "Attention"):
        weights.pop(name, None)
    operator, count = max(weights.items(), key=lambda item: item[1], default=("", 0))
    if count > ours:
        return (
            f"{count / (count + ours):.0%} of the weights belong to the operator {operator} (the first is "
            f"{example[operator]}), and fixed scales are for MatMul and Attention"
        )
    return None if ours else "the graph has no matrix product that could be quantised"


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
