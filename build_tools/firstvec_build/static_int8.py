"""INT8 with fixed activation scales: a text's vector does not depend on what shares its batch, by construction.

For each matrix product Y = X W the scheme with the smallest error on the calibration rows is taken:

- *plain*: one scale for X;
- *smooth*: X divided channel by channel before it is quantised, W multiplied to match, so that the channels that are
  always large do not set the scale for all (SmoothQuant, Xiao et al. 2022, https://arxiv.org/abs/2211.10438);
- *split*: the few channels with outliers are multiplied in full precision beside the others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from firstvec_build.calibrate import Floats, Product, products

_STRENGTHS = (0.5, 0.65, 0.8)
"""SmoothQuant's alpha: how much of the range of X moves into W."""
_MOST_OUTLIERS = 8
_WORTH = 0.8
"""A scheme that costs time is taken if it leaves at most this share of the plain one's error."""
_OUTLIER_PART = "_outlier_part"
_MARGIN = 1.05
"""Scales leave this much room above what the calibration texts reached."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one product is quantised."""

    name: str
    divisor: Floats | None = None
    """Of X, channel by channel, (K,)."""
    outliers: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Channels that are kept in full precision."""
    error: float = 0.0
    """Mean squared error of Y over Y's mean square, on the calibration rows."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """Weights and scales of one product."""

    weights: npt.NDArray[np.int8]
    weight_scales: Floats
    """(N,)"""
    scale: np.float32
    zero_point: np.uint8


def choose(product: Product, bits: int) -> Scheme:
    """Return the scheme for a product, measured on its calibration rows.

    Smoothing costs a pass over X, (T, K), and splitting one over Y, (T, N): each is tried where it is the smaller.
    """
    plain = _measured(product, Scheme("plain"), bits)
    inputs, outputs = product.weights.shape
    if inputs <= outputs:
        candidates = [_measured(product, Scheme("smooth", divisor=_divisor(product, a)), bits) for a in _STRENGTHS]
    elif (outliers := _outliers(product)).size:
        candidates = [_measured(product, Scheme("split", outliers=outliers), bits)]
    else:
        candidates = []
    best = min(candidates, key=lambda scheme: scheme.error, default=plain)
    return best if best.error < _WORTH * plain.error else plain


def _divisor(product: Product, strength: float) -> Floats:
    reach = np.maximum(np.maximum(-product.low, product.high), 1e-5)  # (K,)
    weight = np.maximum(np.abs(product.weights).max(axis=1), 1e-5)  # (K,)
    divisor: Floats = (reach**strength / weight ** (1 - strength)).astype(np.float32)
    return divisor / np.float32(np.exp(np.log(divisor).mean()))


def _outliers(product: Product) -> npt.NDArray[np.int64]:
    """The channels far beyond the ninth largest."""
    reach = np.maximum(-product.low, product.high)
    order = np.argsort(-reach, kind="stable")
    usual = reach[order[_MOST_OUTLIERS]]
    found = order[:_MOST_OUTLIERS][reach[order[:_MOST_OUTLIERS]] > 1.2 * usual]
    return np.sort(found).astype(np.int64)


def _measured(product: Product, scheme: Scheme, bits: int) -> Scheme:
    quantised = quantise_product(product, scheme, bits)
    x = product.rows if scheme.divisor is None else product.rows / scheme.divisor
    steps = np.clip(np.rint(x / quantised.scale) + quantised.zero_point, 0, 255) - quantised.zero_point
    y = (steps * quantised.scale) @ (quantised.weights * quantised.weight_scales)
    if scheme.outliers.size:
        y += product.rows[:, scheme.outliers] @ product.weights[scheme.outliers]
    exact = product.rows @ product.weights
    error = float(np.square(y - exact).mean() / max(float(np.square(exact).mean()), 1e-12))
    return Scheme(scheme.name, scheme.divisor, scheme.outliers, error)


def quantise_product(product: Product, scheme: Scheme, bits: int) -> Quantised:
    """Quantise weights per column, symmetrically, and fix the scale of the activations, unsigned 8 bits.

    What is fixed for the activations depends on the input alone: it is the same for all products of one input.
    """
    weights, low, high = product.weights, product.low, product.high
    if scheme.divisor is not None:
        weights, low, high = weights * scheme.divisor[:, None], low / scheme.divisor, high / scheme.divisor
    if scheme.outliers.size:
        weights = weights.copy()
        weights[scheme.outliers] = 0
        low, high = np.delete(low, scheme.outliers), np.delete(high, scheme.outliers)
    # 255 x 64 x 2 is less than 2^15: what vpmaddubsw adds up.
    most = 64 if bits == 7 else 127
    weight_scales = np.maximum(np.abs(weights).max(axis=0) / most, 1e-12).astype(np.float32)
    floor, ceiling = min(float(low.min()) * _MARGIN, 0.0), max(float(high.max()) * _MARGIN, 0.0)
    scale = np.float32(max(ceiling - floor, 1e-6) / 255)
    return Quantised(
        weights=np.clip(np.rint(weights / weight_scales), -most, most).astype(np.int8),
        weight_scales=weight_scales,
        scale=scale,
        zero_point=np.uint8(np.clip(np.rint(-floor / scale), 0, 255)),
    )


def rewrite(path: Path, calibration: list[Product], bits: int, target: Path) -> dict[str, int]:
    """Replace the matrix products of the graph at ``path`` by quantised ones; return how often each scheme is taken."""
    model = onnx.load(path)
    nodes = {node.output[0]: node for node, _ in products(model.graph)}
    groups: dict[str, list[Product]] = {}
    for product in calibration:
        groups.setdefault(product.input, []).append(product)
    # Products of one input (query, key and value) share its quantisation.
    schemes = {name: choose(joined(group), bits) for name, group in groups.items()}
    graph = _Graph(model)
    folded = {
        nodes[name].output[0]: scheme.divisor
        for name, scheme in schemes.items()
        if scheme.divisor is not None and name in nodes and nodes[name].op_type == "Attention"
    }
    counts: dict[str, int] = {}
    for product in calibration:
        scheme = schemes[product.input]
        counts[scheme.name] = counts.get(scheme.name, 0) + 1
        node = nodes[product.node]
        quantised = quantise_product(product, scheme, bits)
        graph.replace(node, _nodes(graph, node, product, scheme, quantised, folded))
    graph.finish()
    move_biases(model)
    onnx.save(model, target)
    return counts


def move_biases(model: onnx.ModelProto) -> None:
    """Let quantised products add the biases that are added behind them, while they scale their result."""
    graph = model.graph
    vectors = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}
    uses = Counter(name for node in graph.node for name in node.input)
    # Output → the product that it comes from, and the node that gives it: the same one, or the addition of outliers.
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


def joined(group: list[Product]) -> Product:
    """Products of one input as one, their weights side by side."""
    return replace(group[0], weights=np.concatenate([product.weights for product in group], axis=1))


class _Graph:
    """A model whose nodes are replaced and whose constants are added to."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._replaced: dict[str, list[onnx.NodeProto]] = {}
        self.quantised_inputs: dict[str, str] = {}
        """Input of products → its quantised form, once that is made."""

    def constant(self, name: str, value: npt.NDArray[np.generic] | np.generic) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def value(self, name: str) -> Floats:
        tensor = next(tensor for tensor in self.model.graph.initializer if tensor.name == name)
        value: Floats = numpy_helper.to_array(tensor).astype(np.float32)
        return value

    def replace(self, node: onnx.NodeProto, nodes: list[onnx.NodeProto]) -> None:
        self._replaced[node.output[0]] = nodes

    def finish(self) -> None:
        nodes: list[onnx.NodeProto] = []
        for node in self.model.graph.node:
            nodes += self._replaced.get(node.output[0] if node.output else "", [node])
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in used]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)


def _nodes(
    graph: _Graph,
    node: onnx.NodeProto,
    product: Product,
    scheme: Scheme,
    quantised: Quantised,
    folded: dict[str, Floats],
) -> list[onnx.NodeProto]:
    """What takes a product's place. ``folded`` maps an attention's output to what it is to be divided by."""
    name, nodes = product.node, []
    x = graph.quantised_inputs.get(product.input)
    if x is None:
        x, source = f"{product.input}_quantised", product.input
        if scheme.divisor is not None and product.input not in folded:
            reciprocal = graph.constant(f"{x}_reciprocal", (1 / scheme.divisor).astype(np.float32))
            nodes.append(helper.make_node("Mul", [source, reciprocal], [f"{x}_smoothed"]))
            source = f"{x}_smoothed"
        graph.constant(f"{x}_scale", quantised.scale)
        graph.constant(f"{x}_zero_point", quantised.zero_point)
        nodes.append(helper.make_node("QuantizeLinear", [source, f"{x}_scale", f"{x}_zero_point"], [x]))
        graph.quantised_inputs[product.input] = x
    weights = graph.constant(f"{name}_weights", quantised.weights)
    if node.op_type == "Attention":
        weight_scales, bias = quantised.weight_scales, graph.value(node.input[2])
        if (divisor := folded.get(node.output[0])) is not None:
            # The attention's output is a mean of values: dividing the values divides it.
            by = np.concatenate([np.ones(2 * len(divisor), np.float32), divisor])
            weight_scales, bias = weight_scales / by, bias / by
        inputs = [
            *(x, weights, graph.constant(f"{name}_bias", bias), f"{x}_scale"),
            *(graph.constant(f"{name}_weight_scales", weight_scales), *node.input[3:4], f"{x}_zero_point"),
            graph.constant(f"{name}_weight_zero_point", np.int8(0)),
        ]
        attention = helper.make_node("QAttention", inputs, [name], domain="com.microsoft")
        attention.attribute.extend(node.attribute)
        return [*nodes, attention]
    graph.constant(f"{name}_weight_scales", quantised.weight_scales)
    output = f"{name}_main" if scheme.outliers.size else name
    inputs = [x, weights, f"{x}_scale", f"{name}_weight_scales", f"{x}_zero_point"]
    nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [output], domain="com.microsoft"))
    if scheme.outliers.size:
        indices = graph.constant(f"{name}_outliers", scheme.outliers)
        rest = graph.constant(f"{name}_outlier_weights", product.weights[scheme.outliers])
        nodes.append(helper.make_node("Gather", [product.input, indices], [f"{name}_outlier_values"], axis=-1))
        nodes.append(helper.make_node("MatMul", [f"{name}_outlier_values", rest], [f"{name}{_OUTLIER_PART}"]))
        nodes.append(helper.make_node("Add", [output, f"{name}{_OUTLIER_PART}"], [name]))
    return nodes
