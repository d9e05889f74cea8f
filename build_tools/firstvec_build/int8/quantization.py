"""INT8 ONNX for one instruction set, and an exact twin that is measured if the CPU lacks that set."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from firstvec.errors import QuantizationError
from firstvec_build.int8 import static
from firstvec_build.int8.calibration import Product
from firstvec_build.int8.embeddings import quantize_embeddings
from firstvec_build.quiet_tools import silence_tools

_EMBEDDINGS = ("EmbedLayerNormalization", "Gather")
"""The operators that hold the table of embeddings."""
_PRODUCTS = ("MatMul", "Attention")
"""The operators that get fixed scales."""


def quantize(
    fused: Path, isa: str, calibration: list[Product], schemes: static.Schemes, limit: float, path: Path
) -> dict[str, int]:
    """Quantize weights per column to signed 8 (or 7) bits, and activations to unsigned 8 bits with fixed scales.

    Args:
        fused: the fp32 graph.
        isa: the instruction set, for messages.
        calibration: the products that `firstvec_build.int8.calibration.calibrate` returned for that graph.
        schemes: of these products.
        limit: the largest error of a product, one of `firstvec_build.int8.static.LIMITS`.
        path: where the INT8 graph is written: in the folder of ``fused``, whose data file it uses.

    Returns:
        Name of a scheme → how many products have it.

    Raises:
        QuantizationError: most weights belong to an operator that fixed scales do not fit. The message names the
            operator.
    """
    if reason := _find_obstacle(fused, calibration):
        raise QuantizationError(
            f"INT8 for {isa}: {reason}; build with --dynamic-int8 (onnxruntime's own quantization: a text's "
            "vector then depends on its batch), or without INT8: --only torchscript-fp32 --only onnx-fp32"
        )
    model, counts = static.quantize_products(fused, calibration, schemes, limit)
    quantize_embeddings(model, fused.parent)
    onnx.save(model, path)
    return counts


def quantize_dynamically(fused: Path, isa: str, weight_bits: int, path: Path) -> None:
    """Quantize by onnxruntime's own tool. Each run then scales its activations over all texts of its batch.

    Raises:
        QuantizationError: the tool fails on the graph.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        with silence_tools():
            quantize_dynamic(
                fused,
                path,
                per_channel=True,
                weight_type=QuantType.QInt8,
                reduce_range=weight_bits < 8,
                # DefaultTensorType: shape inference does not know onnxruntime's fused operators, whose outputs are all
                # float. MatMulConstBOnly: without it, the attention's products of two activations get scales of the
                # batch.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
            )
    except Exception as error:  # the tool's pattern matching raises ValueError, RuntimeError, AssertionError …
        raise QuantizationError(
            f"INT8 for {isa}: onnxruntime's quantizer fails on the graph: {type(error).__name__}: {error}; "
            "build without it: --only torchscript-fp32 --only onnx-fp32"
        ) from error


def _find_obstacle(fused: Path, calibration: list[Product]) -> str | None:
    """Return why fixed scales do not fit the graph: other operators hold most of the weights. None: the scales fit."""
    graph = onnx.load(fused, load_external_data=False).graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer if len(tensor.dims) > 1}
    weights = Counter[str]()
    examples: dict[str, str] = {}
    for node in graph.node:
        if node.op_type not in (*_EMBEDDINGS, *_PRODUCTS):
            weights[node.op_type] += sum(sizes.get(name, 0) for name in node.input)
            examples.setdefault(node.op_type, node.name or node.output[0])
    in_products = sum(product.weights.size for product in calibration)
    operator, count = max(weights.items(), key=lambda item: item[1], default=("", 0))
    if count > in_products:
        return (
            f"{count / (count + in_products):.0%} of the weights belong to the operator {operator} (the first is "
            f"{examples[operator]}), and fixed scales are for {' and '.join(_PRODUCTS)}"
        )
    return None if in_products else "the graph has no matrix product that could be quantized"


_WEIGHT_INPUTS = {
    # operator → positions of the weights and of their zero point (onnxruntime ContribOperators.md, ONNX Operators.md)
    "MatMulInteger": (1, 3),
    "MatMulIntegerToFloat": (1, 5),
    "DynamicQuantizeMatMul": (1, 3),
    "QAttention": (1, 7),
}


def write_exact_twin(path: Path, twin: Path) -> None:
    """Write a model that computes on any CPU exactly what ``path`` computes where nothing saturates.

    The twin adds 128 to the signed weights and to their zero points, so the weights are unsigned and the products are
    the same integers. onnxruntime's u8 x u8 kernels widen to 16 bits before they multiply: they are exact on every CPU.
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
        if node.op_type not in _WEIGHT_INPUTS:
            continue
        weights, zero_point = _WEIGHT_INPUTS[node.op_type]
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
    static.drop_unused_constants(model)
    onnx.save(model, twin)
