"""INT8 with fixed activation scales: a text's vector cannot depend on the other texts of its batch.

For each matrix product Y = X W a scheme is chosen by its error on the calibration rows:

- *plain*: one scale for X;
- *smooth*: X is divided channel by channel before it is quantized, and W is multiplied to match. The channels that are
  always large then do not set the scale for all (SmoothQuant, Xiao et al. 2022, https://arxiv.org/abs/2211.10438);
- *split*: the few channels with outliers are multiplied in full precision, beside the others;
- *split and smooth*: both, where one alone leaves too large an error;
- *full*: the whole product stays in full precision, where all schemes leave too large an error.

The schemes are compared with weights that are rounded to the nearest integer, which is quick. The scheme that is chosen
gets weights that make up for each other's errors (`firstvec_build.int8.rounding`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from firstvec_build.int8.calibration import Floats, Product, find_products
from firstvec_build.int8.rounding import LARGEST, LARGEST_OF_PAIRS, round_with_compensation

_STRENGTHS = (0.5, 0.65, 0.8)
"""Values of SmoothQuant's alpha, which says how much of the range of X moves into W."""
_MOST_OUTLIERS = 8
_OUTLIER_RATIO = 1.2
"""A channel is an outlier if its largest value is more than this many times that of the ninth largest channel."""
_WORTH = 0.8
"""A scheme that costs time is taken if it leaves at most this share of the plain scheme's error."""
LIMITS = (float("inf"), 1e-3, 5e-4, 2.5e-4)
"""The largest error of a product, from the fastest graph to the most exact one. A build takes the first limit with
which the artifact reaches its thresholds."""
_ROWS = 1024
"""About this many rows of an input measure the error of a scheme."""
_DAMPING = 0.1
"""Compensation trusts the calibration rows less with a larger value.

Tried on every second sentence of the project, which calibration does not see, all-MiniLM-L6-v2 with 7 bits, mean and
worst cosine to fp32: 0.003 .99761 .9886, 0.01 .99770 .9892, 0.03 .99782 .9900, 0.1 .99787 .9923, 0.2 .99802 .9917, 0.4
.99790 .9920. The native engine's inputs have a scale for each row, and its best value is 0.01.
"""
_MARGIN = 1.05
"""Scales cover this many times the range of the calibration texts."""
_QUANTIZED = "_quantised"
"""Ending of a quantized input's name. The graphs hold it, so another spelling would change every built file."""
_DOMAIN = "com.microsoft"
"""Domain of onnxruntime's own operators."""
_OUTLIER_PART = "_outlier_part"
"""Ending of a name: the part of a product that stays in full precision."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one product is quantized."""

    name: str
    divisor: Floats | None = None
    """What X is divided by, channel by channel, (K,)."""
    outliers: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Channels that stay in full precision."""
    error: float = 0.0
    """Mean squared error of Y over Y's mean square, on the calibration rows."""


@dataclass(frozen=True, slots=True)
class QuantizedProduct:
    """Weights and scales of one product."""

    weights: npt.NDArray[np.int8]
    """(K, N)"""
    weight_scales: Floats
    """(N,)"""
    scale: np.float32
    """Scale of X."""
    zero_point: np.uint8
    """Zero point of X."""


class Schemes:
    """Finds the schemes of a graph's products. What was measured for one limit is kept for the next.

    Args:
        path: the graph.
        calibration: its products.
        bits: of the weights, 7 or 8.
    """

    def __init__(self, path: Path, calibration: list[Product], bits: int) -> None:
        self.bits = bits
        self.first_limit = 0
        """Position in `LIMITS` of the first limit that is still worth trying."""
        self._operators = {
            node.output[0]: node.op_type for node, _ in find_products(onnx.load(path, load_external_data=False).graph)
        }
        # Products of one input (query, key and value) share its quantization.
        self._groups: dict[str, list[Product]] = {}
        for product in calibration:
            self._groups.setdefault(product.input, []).append(product)
        self._cheap: dict[str, Scheme] = {}
        self._exact: dict[str, Scheme] = {}
        self._quantized: dict[tuple[str, str], QuantizedProduct] = {}

    def choose(self, limit: float) -> dict[str, Scheme]:
        """Return the scheme of each input: the cheapest one whose error is at most ``limit``."""
        return {name: self._choose(name, limit) for name in self._groups}

    def _choose(self, name: str, limit: float) -> Scheme:
        group = self._groups[name]
        if name not in self._cheap:
            self._cheap[name] = choose_cheap_scheme(join(group), self.bits)
        if self._cheap[name].error <= limit:
            return self._cheap[name]
        if all(self._operators[product.node] == "MatMul" for product in group):  # an attention cannot be split
            if name not in self._exact:
                self._exact[name] = split_and_smooth(join(group), self.bits)
            if self._exact[name].error <= limit:
                return self._exact[name]
        return Scheme("full")

    def quantize(self, name: str, scheme: Scheme) -> dict[str, QuantizedProduct]:
        """Return node → quantized product, for the products of the input ``name``."""
        group = self._groups[name]
        if (name, scheme.name) not in self._quantized:
            self._quantized[name, scheme.name] = quantize_product(join(group), scheme, self.bits, compensate=True)
        quantized = self._quantized[name, scheme.name]
        ends = np.cumsum([product.weights.shape[1] for product in group])[:-1]
        columns = zip(np.split(quantized.weights, ends, axis=1), np.split(quantized.weight_scales, ends), strict=True)
        return {
            product.node: replace(quantized, weights=weights, weight_scales=scales)
            for product, (weights, scales) in zip(group, columns, strict=True)
        }


def quantize_products(
    path: Path, calibration: list[Product], schemes: Schemes, limit: float
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Replace the matrix products of the graph at ``path`` by quantized ones, whose error is at most ``limit``.

    Returns:
        The graph, whose other weights stay in their file; and name of a scheme → how many products have it.
    """
    chosen = schemes.choose(limit)
    quantized = {
        node: product
        for name, scheme in chosen.items()
        if scheme.name != "full"
        for node, product in schemes.quantize(name, scheme).items()
    }
    model = onnx.load(path, load_external_data=False)
    nodes = {node.output[0]: node for node, _ in find_products(model.graph)}
    editor = _GraphEditor(model, path.parent)
    folded = {
        nodes[name].output[0]: scheme.divisor
        for name, scheme in chosen.items()
        if scheme.divisor is not None and name in nodes and nodes[name].op_type == "Attention"
    }
    counts = Counter(chosen[product.input].name for product in calibration)
    for product in calibration:
        scheme = chosen[product.input]
        if scheme.name == "full":
            continue
        node = nodes[product.node]
        editor.replace(node, _make_nodes(editor, node, product, scheme, quantized[product.node], folded))
    editor.finish()
    _move_biases(model)
    if _DOMAIN not in [opset.domain for opset in model.opset_import]:  # a graph that is not fused does not import it
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return model, dict(counts)


def join(group: list[Product]) -> Product:
    """Return products of one input as one product, with their weights side by side."""
    return replace(group[0], weights=np.concatenate([product.weights for product in group], axis=1))


def choose_cheap_scheme(product: Product, bits: int) -> Scheme:
    """Return the scheme for a product, with its error on the calibration rows.

    Smoothing costs a pass over X, (T, K), and splitting costs a pass over Y, (T, N). Only the cheaper one is tried.
    """
    sample = take_sample(product)
    plain = measure_error(product, sample, Scheme("plain"), bits)
    inputs, outputs = product.weights.shape
    if inputs <= outputs:
        candidates = [
            measure_error(product, sample, Scheme("smooth", divisor=_make_divisor(product, strength)), bits)
            for strength in _STRENGTHS
        ]
    elif (outliers := _find_outliers(product)).size:
        candidates = [measure_error(product, sample, Scheme("split", outliers=outliers), bits)]
    else:
        candidates = []
    best = min(candidates, key=lambda scheme: scheme.error, default=plain)
    return best if best.error < _WORTH * plain.error else plain


def split_and_smooth(product: Product, bits: int) -> Scheme:
    """Return the scheme that splits outliers off and smooths the other channels, with its error."""
    outliers = _find_outliers(product)
    divisor = _make_divisor(product, _STRENGTHS[-1], outliers)
    scheme = Scheme("split and smooth", divisor=divisor, outliers=outliers)
    return measure_error(product, take_sample(product), scheme, bits)


def _make_divisor(product: Product, strength: float, outliers: npt.NDArray[np.int64] | None = None) -> Floats:
    reach = np.maximum(np.maximum(-product.low, product.high), 1e-5)  # (K,)
    if outliers is not None:
        reach[outliers] = 1e-5  # these channels are not quantized
    weight = np.maximum(np.abs(product.weights).max(axis=1), 1e-5)  # (K,)
    divisor: Floats = (reach**strength / weight ** (1 - strength)).astype(np.float32)
    return divisor / np.float32(np.exp(np.log(divisor).mean()))


def _find_outliers(product: Product) -> npt.NDArray[np.int64]:
    """Return the channels whose values are far larger than those of the ninth largest channel, at most eight."""
    reach = np.maximum(-product.low, product.high)
    order = np.argsort(-reach, kind="stable")
    usual = reach[order[_MOST_OUTLIERS]]
    found = order[:_MOST_OUTLIERS][reach[order[:_MOST_OUTLIERS]] > _OUTLIER_RATIO * usual]
    return np.sort(found).astype(np.int64)


def take_sample(product: Product) -> tuple[Floats, Floats]:
    """Return some of the calibration rows, (T, K), and their exact products, (T, N)."""
    rows = product.read_rows()
    rows = np.ascontiguousarray(rows[:: max(1, len(rows) // _ROWS)])
    return rows, rows @ product.weights


def measure_error(product: Product, sample: tuple[Floats, Floats], scheme: Scheme, bits: int) -> Scheme:
    """Return the scheme with its error on the rows that `take_sample` has returned."""
    quantized = quantize_product(product, scheme, bits)
    rows, exact = sample
    x = rows if scheme.divisor is None else rows / scheme.divisor
    steps = np.clip(np.rint(x / quantized.scale) + quantized.zero_point, 0, 255) - quantized.zero_point
    y = (steps * quantized.scale) @ (quantized.weights * quantized.weight_scales)
    if scheme.outliers.size:
        y += rows[:, scheme.outliers] @ product.weights[scheme.outliers]
    error = float(np.square(y - exact).mean() / max(float(np.square(exact).mean()), 1e-12))
    return replace(scheme, error=error)


def quantize_product(product: Product, scheme: Scheme, bits: int, compensate: bool = False) -> QuantizedProduct:
    """Quantize the weights per column, symmetrically, and fix the scale of the activations, unsigned 8 bits.

    Scale and zero point depend on the input alone, so all products of one input have the same ones.

    Args:
        product: the product.
        scheme: its scheme.
        bits: of the weights. 7 means that vpmaddubsw adds them exactly.
        compensate: round the weights so that they make up for each other's errors, not to the nearest integer.
    """
    weights, low, high = product.weights, product.low, product.high
    if scheme.divisor is not None:
        weights, low, high = weights * scheme.divisor[:, None], low / scheme.divisor, high / scheme.divisor
    if scheme.outliers.size:
        weights = weights.copy()
        weights[scheme.outliers] = 0
        low, high = np.delete(low, scheme.outliers), np.delete(high, scheme.outliers)
    # vpmaddubsw adds two products in 16 bits: 255 x 64 x 2 is less than 2^15.
    most = LARGEST if bits == 8 else LARGEST_OF_PAIRS if compensate else 64
    weight_scales = np.maximum(np.abs(weights).max(axis=0) / most, 1e-12).astype(np.float32)
    scaled = weights / weight_scales
    if compensate:
        rows = product.read_rows() if scheme.divisor is None else product.read_rows() / scheme.divisor
        hessian = (rows.T @ rows).astype(np.float64)
        hessian[scheme.outliers] = hessian[:, scheme.outliers] = 0  # these channels make up for nothing
        integers = round_with_compensation(np.ascontiguousarray(scaled.T), hessian, bits == 7, _DAMPING).T
    else:
        integers = np.rint(scaled).astype(np.int8)
    floor, ceiling = min(float(low.min()) * _MARGIN, 0.0), max(float(high.max()) * _MARGIN, 0.0)
    scale = np.float32(max(ceiling - floor, 1e-6) / 255)
    return QuantizedProduct(
        weights=integers,
        weight_scales=weight_scales,
        scale=scale,
        zero_point=np.uint8(np.clip(np.rint(-floor / scale), 0, 255)),
    )


class _GraphEditor:
    """Adds constants to a model, and replaces its nodes."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self.model = model
        self._folder = folder
        self._replaced: dict[str, list[onnx.NodeProto]] = {}
        self.quantized_inputs: dict[str, str] = {}
        """Input of products → name of its quantized form. An input is added when its form is made."""

    def add_constant(self, name: str, value: npt.NDArray[np.generic] | np.generic) -> str:
        """Add a constant, and return its name."""
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def read_constant(self, name: str) -> Floats:
        """Return the value of a constant."""
        tensor = next(tensor for tensor in self.model.graph.initializer if tensor.name == name)
        value: Floats = numpy_helper.to_array(tensor, str(self._folder)).astype(np.float32)
        return value

    def replace(self, node: onnx.NodeProto, nodes: list[onnx.NodeProto]) -> None:
        """Let ``nodes`` take the place of ``node``."""
        self._replaced[node.output[0]] = nodes

    def finish(self) -> None:
        """Write the changes into the model."""
        nodes: list[onnx.NodeProto] = []
        for node in self.model.graph.node:
            nodes += self._replaced.get(node.output[0] if node.output else "", [node])
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)
        drop_unused_constants(self.model)


def drop_unused_constants(model: onnx.ModelProto) -> None:
    """Remove the constants that no node uses."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _make_nodes(
    editor: _GraphEditor,
    node: onnx.NodeProto,
    product: Product,
    scheme: Scheme,
    quantized: QuantizedProduct,
    folded: dict[str, Floats],
) -> list[onnx.NodeProto]:
    """Return the nodes that replace a product. ``folded`` maps an attention's output to the divisor of that output."""
    name, nodes = product.node, []
    x = editor.quantized_inputs.get(product.input)
    if x is None:
        x, source = f"{product.input}{_QUANTIZED}", product.input
        if scheme.divisor is not None and product.input not in folded:
            reciprocal = editor.add_constant(f"{x}_reciprocal", (1 / scheme.divisor).astype(np.float32))
            nodes.append(helper.make_node("Mul", [source, reciprocal], [f"{x}_smoothed"]))
            source = f"{x}_smoothed"
        editor.add_constant(f"{x}_scale", quantized.scale)
        editor.add_constant(f"{x}_zero_point", quantized.zero_point)
        nodes.append(helper.make_node("QuantizeLinear", [source, f"{x}_scale", f"{x}_zero_point"], [x]))
        editor.quantized_inputs[product.input] = x
    weights = editor.add_constant(f"{name}_weights", quantized.weights)
    if node.op_type == "Attention":
        weight_scales, bias = quantized.weight_scales, editor.read_constant(node.input[2])
        if (divisor := folded.get(node.output[0])) is not None:
            # An attention's output is a mean of values, so dividing the values divides the output.
            divisors = np.concatenate([np.ones(2 * len(divisor), np.float32), divisor])
            weight_scales, bias = weight_scales / divisors, bias / divisors
        inputs = [
            *(x, weights, editor.add_constant(f"{name}_bias", bias), f"{x}_scale"),
            *(editor.add_constant(f"{name}_weight_scales", weight_scales), *node.input[3:4], f"{x}_zero_point"),
            editor.add_constant(f"{name}_weight_zero_point", np.int8(0)),
        ]
        attention = helper.make_node("QAttention", inputs, [name], domain=_DOMAIN)
        attention.attribute.extend(node.attribute)
        return [*nodes, attention]
    editor.add_constant(f"{name}_weight_scales", quantized.weight_scales)
    output = f"{name}_main" if scheme.outliers.size else name
    inputs = [x, weights, f"{x}_scale", f"{name}_weight_scales", f"{x}_zero_point"]
    nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [output], domain=_DOMAIN))
    if scheme.outliers.size:
        indices = editor.add_constant(f"{name}_outliers", scheme.outliers)
        rest = editor.add_constant(f"{name}_outlier_weights", product.weights[scheme.outliers])
        nodes.append(helper.make_node("Gather", [product.input, indices], [f"{name}_outlier_values"], axis=-1))
        nodes.append(helper.make_node("MatMul", [f"{name}_outlier_values", rest], [f"{name}{_OUTLIER_PART}"]))
        nodes.append(helper.make_node("Add", [output, f"{name}{_OUTLIER_PART}"], [name]))
    return nodes


def _move_biases(model: onnx.ModelProto) -> None:
    """Move biases into the quantized products before them, because a product adds a bias while it scales its result."""
    graph = model.graph
    vectors = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}
    uses = Counter(name for node in graph.node for name in node.input)
    # Output → its product, and the node that computes it. That node is the product, or the addition of outliers.
    sources = {node.output[0]: (node, node) for node in graph.node if node.op_type == "MatMulIntegerToFloat"}
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        kept.append(node)
        if node.op_type not in ("Add", "BiasGelu") or node.input[0] not in sources or uses[node.input[0]] != 1:
            continue
        product, last = sources[node.input[0]]
        if node.input[1].endswith(_OUTLIER_PART):
            sources[node.output[0]] = (product, node)
        elif node.input[1] in vectors:
            product.input.extend([""] * (6 - len(product.input)) + [node.input[1]])
            if node.op_type == "BiasGelu":
                del node.input[1]
                node.op_type = "Gelu"
            else:
                last.output[0] = node.output[0]
                kept.pop()
    del graph.node[:]
    graph.node.extend(kept)
