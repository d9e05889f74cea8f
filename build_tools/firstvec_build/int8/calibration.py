"""Record the inputs of each matrix product of a graph, because static quantization needs their ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from firstvec.engines.onnxruntime_binding import onnxruntime  # that module turns the telemetry off
from firstvec.errors import QuantizationError

Floats = npt.NDArray[np.float32]

_ROWS = 4096
"""About this many rows of each input are kept, evenly spread over the texts."""


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product with constant weights, and the record of its input X."""

    node: str
    """Name of the node's first output."""
    input: str
    """Name of X."""
    weights: Floats
    """(K, N)"""
    low: Floats
    """Smallest value of each input channel, (K,)."""
    high: Floats
    """Largest value of each input channel, (K,)."""
    read_rows: Callable[[], Floats]
    """Returns some of the rows of X, (R, K). They lie in a file, because all products' rows would fill the memory."""


def find_products(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, onnx.TensorProto]]:
    """Return the nodes that multiply an activation by constant weights, and the weights, (K, N)."""
    constants = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    names = {tensor.name for tensor in graph.initializer}
    return [
        (node, constants[node.input[1]])
        for node in graph.node
        if node.op_type in ("MatMul", "Attention") and node.input[1] in constants and node.input[0] not in names
    ]


def calibrate(
    path: Path,
    token_ids: Sequence[Sequence[int]],
    report_texts: Callable[[int], None] = lambda _count: None,
) -> list[Product]:
    """Run the graph on each text alone, and return its matrix products with their recorded inputs.

    The recorded rows lie beside the graph, as long as the products are used. ``report_texts`` is called with 1 for each
    text.

    Raises:
        QuantizationError: onnxruntime cannot run the graph.
    """
    try:
        return _record_products(path, token_ids, report_texts)
    except Exception as error:  # onnx and onnxruntime have exception types of their own
        raise QuantizationError(
            f"INT8: the graph cannot be calibrated: {type(error).__name__}: {error}; "
            "build with --dynamic-int8, or without INT8: --only torchscript-fp32 --only onnx-fp32"
        ) from error


def _record_products(
    path: Path, token_ids: Sequence[Sequence[int]], report_texts: Callable[[int], None]
) -> list[Product]:
    folder = path.parent
    model = onnx.load(path, load_external_data=False)
    nodes = [
        (node.output[0], node.input[0], numpy_helper.to_array(weights, str(folder)).astype(np.float32))
        for node, weights in find_products(model.graph)
    ]
    if not nodes:
        return []
    names = list(dict.fromkeys(name for _, name, _ in nodes))
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    onnx.save(model, folder / "calibration.onnx")  # beside the weights
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(folder / "calibration.onnx"), settings, providers=["CPUExecutionProvider"]
    )
    low: dict[str, Floats] = {}
    high: dict[str, Floats] = {}
    step = max(1, sum(map(len, token_ids)) // _ROWS)
    with ExitStack() as stack:
        files = {
            name: stack.enter_context((folder / f"rows-{number}.f32").open("wb")) for number, name in enumerate(names)
        }
        for ids in token_ids:
            feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
            for name, values in zip(names, session.run(names, feeds), strict=True):
                flat = values.reshape(-1, values.shape[-1])  # (T, K)
                low[name] = np.minimum(low.get(name, flat[0]), flat.min(axis=0))
                high[name] = np.maximum(high.get(name, flat[0]), flat.max(axis=0))
                files[name].write(np.ascontiguousarray(flat[::step]).data)
            report_texts(1)
    return [
        Product(
            node=node,
            input=name,
            weights=weights,
            low=low[name],
            high=high[name],
            read_rows=partial(_read_rows, Path(files[name].name), len(low[name])),
        )
        for node, name, weights in nodes
    ]


def _read_rows(path: Path, width: int) -> Floats:
    return np.fromfile(path, np.float32).reshape(-1, width)
