"""Each kernel of each instruction set gives the bits of its twin in plain C, and the formulas are right."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from ctypes import c_char_p, c_float, c_int, c_size_t, c_void_p
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from tests.faults.conftest import Campaign
from tests.native.compiling import BUILD, IS_X86, compile_and_link

Floats = npt.NDArray[np.float32]

GUARD = 64
"""Numbers behind each result. A kernel must leave them as they are."""
ACTIVATIONS = {"none": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}


class Matrix(ctypes.Structure):
    """``struct matrix``"""

    _fields_ = (
        *(("columns", c_size_t), ("depth", c_size_t), ("weights", c_void_p), ("quantized", c_void_p)),
        *(("scales", c_void_p), ("sums", c_void_p), ("multipliers", c_void_p), ("bias", c_void_p)),
    )


class Kernels:
    """The kernels of one instruction set, in `kernel_probe.c`."""

    def __init__(self, library: ctypes.CDLL, number: int) -> None:
        self._library, self._number = library, number
        self.name = library.probe_name(number)

    def __getattr__(self, name: str) -> Callable[..., None]:
        function = getattr(self._library, f"probe_{name}")
        return lambda *arguments: function(self._number, *map(_for_c, arguments))


def _for_c(argument: Any) -> Any:
    """Return a NumPy array's address, a size, or what ctypes takes as it is."""
    if isinstance(argument, np.ndarray):
        return c_void_p(argument.ctypes.data)
    return c_size_t(argument) if isinstance(argument, int) else argument


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Compile the kernels into a library, with the flags of the extension module."""
    compiler = BUILD.find_compiler()
    assert compiler, "install a C compiler (gcc)"
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    compile_and_link(
        path, "kernel_probe", compiler=compiler, flags=("-fvisibility=default",), link=("-shared",), stand_in=IS_X86
    )
    library = ctypes.CDLL(str(path))
    library.probe_name.restype = c_char_p
    library.probe_scratch.restype = c_size_t
    return library


@pytest.fixture(scope="module")
def plain(library: ctypes.CDLL) -> Kernels:
    return Kernels(library, 0)


@pytest.fixture(scope="module")
def others(library: ctypes.CDLL) -> list[Kernels]:
    """Return the kernels of this machine's instruction sets, and AVX-VNNI's with a stand-in for its instruction."""
    found = [Kernels(library, number) for number in range(1, 6) if library.probe_name(number)]
    assert found, "this machine has none of the instruction sets"
    return found


KINDS: dict[str, Callable[[np.random.Generator, int], npt.NDArray[Any]]] = {
    "normal": lambda random, count: random.normal(size=count),
    "zeros": lambda random, count: np.zeros(count),
    "both zeros": lambda random, count: random.choice([0.0, -0.0], count),
    "equal": lambda random, count: np.full(count, random.normal()),
    "denormal": lambda random, count: random.normal(size=count) * 1e-40,
    "1e30": lambda random, count: random.normal(size=count) * 1e30,
    "halves": lambda random, count: random.integers(-255, 256, count) / 2,
    "any size": lambda random, count: random.choice([1, -1], count) * np.exp(random.uniform(-95, 88, count)),
    "some extreme": lambda random, count: np.where(
        random.random(count) < 0.1,
        random.choice([0.0, -0.0, 1e-45, -1e-40, 1e30, -1e30, 3e38, 65504.0], count),
        random.normal(size=count),
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def numbers(random: np.random.Generator, kind: str, *shape: int) -> Floats:
    """Return random numbers, at an address that is a multiple of 64, with guards behind them."""
    count = math.prod(shape)
    room = np.full(count + GUARD + 16, 123.0, np.float32)
    start = -room.ctypes.data % 64 // 4
    room[start : start + count] = KINDS[kind](random, count).astype(np.float32)
    return room[start : start + count].reshape(shape)


def integers_of(values: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    room = np.zeros(values.size + 64, np.int8)
    start = -room.ctypes.data % 64
    room[start : start + values.size] = values.reshape(-1)
    return room[start : start + values.size].reshape(values.shape)


def result(*shape: int) -> Floats:
    """Return room for a result, with guards behind it."""
    return numbers(np.random.default_rng(0), "zeros", *shape)


def assert_same_bits(ours: Floats, reference: Floats, where: object) -> None:
    """Compare bit for bit. NaNs are equal, because processors differ in a NaN's sign."""
    for array in (ours, reference):
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        offset = (array.ctypes.data - base.ctypes.data) // 4 + array.size
        assert (base[offset : offset + GUARD] == 123.0).all(), ("written behind the result", where)
    same = (ours.view(np.int32) == reference.view(np.int32)) | (np.isnan(ours) & np.isnan(reference))
    assert same.all(), (where, ours[~same][:4], reference[~same][:4])


def copy(array: Floats) -> Floats:
    twin = result(*array.shape)
    twin[...] = array
    return twin


def make_matrix(random: np.random.Generator, kind: str, columns: int, depth: int, **arrays: Any) -> tuple[Matrix, Any]:
    """Return a matrix and the arrays that its pointers need."""
    held = {"bias": numbers(random, kind, columns)} | arrays
    pointers = {name: array.ctypes.data for name, array in held.items() if array is not None}
    return Matrix(columns=columns, depth=depth, **pointers), held


SHAPES = [(c, d) for c in (16, 32, 48, 64, 112, 144) for d in (16, 32, 48, 384)] + [(48, 1536), (1536, 16), (16, 768)]
shapes = pytest.mark.parametrize(("columns", "depth"), SHAPES, ids=[f"{c}x{d}" for c, d in SHAPES])
widths = pytest.mark.parametrize("width", [16, 32, 48, 64, 112, 384, 768, 1536])


def row_counts(columns: int, depth: int) -> Iterator[int]:
    """Yield 1 to 17, or fewer of them where a product is large."""
    yield from range(1, 18) if columns * depth < 20_000 else (1, 2, 7, 8, 9, 13, 17)


@shapes
def test_products_in_fp32(plain: Kernels, others: list[Kernels], columns: int, depth: int) -> None:
    random = np.random.default_rng(columns * depth)
    for rows in row_counts(columns, depth):
        kind, activation = [*KINDS][rows % len(KINDS)], rows % 4
        x = numbers(random, kind, rows, depth)
        matrix, _held = make_matrix(random, "normal", columns, depth, weights=numbers(random, kind, columns * depth))
        expected = result(rows, columns)
        plain.multiply_fp32(x, rows, ctypes.byref(matrix), c_int(activation), expected)
        for kernels in others:
            out = result(rows, columns)
            kernels.multiply_fp32(x, rows, ctypes.byref(matrix), c_int(activation), out)
            assert_same_bits(out, expected, (kernels.name, rows, kind, activation))


class Quantized:
    """Rows that one instruction set quantized."""

    def __init__(self, kernels: Kernels, x: Floats, matrix: Matrix) -> None:
        rows, depth = x.shape
        self.scales, self.lows = result(rows), result(rows)
        self.integers = integers_of(np.zeros((rows, depth), np.int8))
        kernels.quantize(x, rows, ctypes.byref(matrix), self.integers, self.scales, self.lows)
        # NEON's kernels store each integer minus 128
        shift = 128 if kernels.name == b"neon_dot" else 0
        self.values = (self.integers.view(np.uint8) + np.uint8(shift)).astype(np.int64)

    def multiply(self, kernels: Kernels, matrix: Matrix, activation: int, out: Floats) -> None:
        rows = len(self.integers)
        parts = (self.integers, self.scales, self.lows)
        kernels.multiply_int8(*parts, rows, ctypes.byref(matrix), c_int(activation), out)


@kinds
@widths
@pytest.mark.parametrize("has_multipliers", [False, True])
def test_quantized_rows(plain: Kernels, others: list[Kernels], kind: str, width: int, has_multipliers: bool) -> None:
    random = np.random.default_rng(width)
    for rows in (1, 2, 17):
        x = numbers(random, kind, rows, width)
        multipliers = numbers(random, "normal", width) if has_multipliers else None
        matrix, _held = make_matrix(random, "normal", 16, width, multipliers=multipliers)
        expected = Quantized(plain, x, matrix)
        assert expected.values.min() >= 0
        assert expected.values.max() <= 255
        for kernels in others:
            ours = Quantized(kernels, x, matrix)
            assert_same_bits(ours.scales, expected.scales, (kernels.name, kind))
            assert_same_bits(ours.lows, expected.lows, (kernels.name, kind))
            assert np.array_equal(ours.values, expected.values), (kernels.name, kind)


def panels(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return INT8 weights, (columns, depth), in panels of 16 columns."""
    columns, depth = weights.shape
    return weights.reshape(columns // 16, 16, depth // 4, 4).transpose(0, 2, 1, 3)


@shapes
def test_products_in_int8(plain: Kernels, others: list[Kernels], columns: int, depth: int) -> None:
    random = np.random.default_rng(columns * depth)
    for rows in row_counts(columns, depth):
        kind, activation = [*KINDS][rows % len(KINDS)], rows % 4
        x = numbers(random, kind, rows, depth)
        weights = random.integers(-64, 65, (columns, depth), np.int8)
        if rows % 5 == 2:  # the largest sums: integers of 255, and pairs of weights of one sign that add up to 128
            x[:, 1:], x[:, 0] = 1.0, -1.0
            weights[:, ::2], weights[:, 1::2] = ((127, 1), (-1, -127))[rows % 2]
        matrix, _held = make_matrix(
            *(random, "normal", columns, depth),
            quantized=integers_of(panels(weights)),
            scales=numbers(random, "normal", columns),
            sums=copy(weights.astype(np.int64).sum(axis=1).astype(np.float32)),
        )
        expected = result(rows, columns)
        Quantized(plain, x, matrix).multiply(plain, matrix, activation, expected)
        for kernels in others:
            out = result(rows, columns)
            Quantized(kernels, x, matrix).multiply(kernels, matrix, activation, out)
            assert_same_bits(out, expected, (kernels.name, rows, kind, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(plain: Kernels, others: list[Kernels], activation: str) -> None:
    """A product with weights of 0 is the activation of the bias."""
    random = np.random.default_rng(5)
    columns = 1 << 12
    for kind in KINDS:
        bias = numbers(random, kind, columns) * np.float32(1 if kind != "normal" else 3)
        guarded = copy(bias)
        matrix, _held = make_matrix(
            random, kind, columns, 16, weights=numbers(random, "zeros", columns * 16), bias=guarded
        )
        x, expected = numbers(random, "zeros", 1, 16), result(1, columns)
        plain.multiply_fp32(x, 1, ctypes.byref(matrix), c_int(ACTIVATIONS[activation]), expected)
        for kernels in others:
            out = result(1, columns)
            kernels.multiply_fp32(x, 1, ctypes.byref(matrix), c_int(ACTIVATIONS[activation]), out)
            assert_same_bits(out, expected, (kernels.name, kind))


HEADS = [(1, 1), (3, 1), (4, 4), (2, 8), (1, 16), (2, 24), (2, 32), (1, 40), (1, 64), (1, 80)]


@pytest.mark.parametrize(("heads", "head_width"), HEADS, ids=[f"{h}x{w}" for h, w in HEADS])
def test_attention(library: ctypes.CDLL, plain: Kernels, others: list[Kernels], heads: int, head_width: int) -> None:
    random = np.random.default_rng(heads * head_width)
    for tokens in (*range(1, 41), 255, 512):
        for kind in [[*KINDS][tokens % len(KINDS)], "normal"][: 2 if tokens < 255 else 1]:
            qkv = numbers(random, kind, tokens, 3 * heads * head_width)
            room = library.probe_scratch(c_size_t(tokens), c_size_t(head_width))
            expected = result(tokens, heads * head_width)
            scratch = numbers(random, "1e30", room)
            plain.attend(qkv, tokens, heads, head_width, expected, scratch)
            assert_same_bits(scratch, scratch, "scratch")
            for kernels in others:
                out, scratch = result(*expected.shape), numbers(random, "some extreme", room)
                kernels.attend(qkv, tokens, heads, head_width, out, scratch)
                assert_same_bits(out, expected, (kernels.name, tokens, kind))
                assert_same_bits(scratch, scratch, "scratch")


class RowInputs(NamedTuple):
    x: Floats
    residual: Floats
    gamma: Floats
    beta: Floats
    integers: npt.NDArray[np.int8]
    scale: c_float


def compute_rows(kernels: Kernels, inputs: RowInputs) -> dict[str, Floats]:
    """Run the kernels of LayerNorm, embeddings, means and unit length."""
    x, residual, gamma, beta, integers, scale = inputs
    rows, width = x.shape
    with_residual, without, unit = copy(x), copy(x), copy(x[0])
    mean, from_integers, from_floats = result(width), result(width), result(width)
    parameters = (rows, width, gamma, beta, c_float(1e-12))
    kernels.normalize(with_residual, residual, *parameters)
    kernels.normalize(without, None, *parameters)
    kernels.scale_to_unit(unit, width)
    kernels.mean(x, rows, width, mean)
    kernels.embed(integers, ctypes.byref(scale), beta, width, from_integers)
    kernels.embed(x, None, beta, width, from_floats)
    return {
        **{"residual": with_residual, "normalize": without, "unit": unit, "mean": mean},
        **{"from integers": from_integers, "from floats": from_floats},
    }


@kinds
@widths
def test_rows(plain: Kernels, others: list[Kernels], kind: str, width: int) -> None:
    random = np.random.default_rng(width)
    for rows in (1, 2, 3, 8, 17):
        inputs = RowInputs(
            x=numbers(random, kind, rows, width),
            residual=numbers(random, kind, rows, width),
            gamma=numbers(random, "normal", width),
            beta=numbers(random, kind, width),
            integers=integers_of(random.integers(-128, 128, width, np.int8)),
            scale=c_float(float(random.normal())),
        )
        expected = compute_rows(plain, inputs)
        for kernels in others:
            for name, ours in compute_rows(kernels, inputs).items():
                assert_same_bits(ours, expected[name], (kernels.name, name, kind, rows))


# --- The formulas, against float64 -----------------------------------------------------------------------------------


def ulps(ours: Floats, exact: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the errors in units of the last place of the exact result, as float32."""
    return np.abs(ours - exact) / np.spacing(np.maximum(np.abs(exact).astype(np.float32), np.float32(1.2e-38)))


def bit_patterns(low: float, high: float, count: int) -> Floats:
    """Return ``count`` numbers whose bit patterns are evenly spaced between two numbers of one sign."""
    first, last = np.array([low, high], np.float32).view(np.uint32).tolist()
    patterns: Floats = np.linspace(first, last, count).astype(np.uint32).view(np.float32)
    return patterns


def apply(function: Any, x: Floats, *arguments: object) -> Floats:
    out = np.empty_like(x)
    function(c_void_p(x.ctypes.data), c_size_t(x.size), *arguments, c_void_p(out.ctypes.data))
    return out


def test_the_exponential_is_right_within_2_ulp(library: ctypes.CDLL, campaign: Campaign) -> None:
    worst, count = 0.0, campaign.size(1 << 16, 1 << 22)
    for low, high in ((-1e-45, -1e-3), (-1e-3, -1.0), (-1.0, -87.0), (1e-45, 1.0), (1.0, 80.0)):
        x = bit_patterns(low, high, count)
        worst = max(worst, ulps(apply(library.probe_exponential, x), np.exp(x.astype(np.float64))).max())
    campaign.record("formulas of the native engine", exponential_ulp=round(worst, 3))
    assert worst < 2
    below = apply(library.probe_exponential, np.array([-87.5, -1e30, -np.inf], np.float32))
    assert (below == np.float32(np.exp(-87.0))).all()
    assert apply(library.probe_exponential, np.zeros(1, np.float32))[0] == 1.0


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gelu_is_right_within_2e_7_of_its_argument(library: ctypes.CDLL, activation: str, campaign: Campaign) -> None:
    count, worst = campaign.size(1 << 14, 1 << 19), 0.0
    for low, high in ((1e-38, 1e-3), (1e-3, 1.0), (1.0, 10.0), (10.0, 3e38)):
        for sign in (1, -1):
            x = bit_patterns(low, high, count) * np.float32(sign)
            wide = x.astype(np.float64)
            if activation == "gelu":
                exact = wide / 2 * (1 + np.array([math.erf(value) for value in wide / math.sqrt(2)]))
            else:
                exact = wide / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
            ours = apply(library.probe_activate, x, c_int(ACTIVATIONS[activation]))
            assert np.isfinite(ours).all()
            worst = max(worst, float((np.abs(ours - exact) / np.abs(wide)).max()))
    campaign.record("formulas of the native engine", **{f"{activation}_error_per_argument": f"{worst:.2g}"})
    assert worst < 2e-7


def test_attention_is_the_softmax_of_the_scores(plain: Kernels) -> None:
    random = np.random.default_rng(1)
    qkv = numbers(random, "normal", 40, 3 * 2 * 24)
    q, k, v = qkv.astype(np.float64).reshape(40, 3, 2, 24).transpose(1, 2, 0, 3)
    scores = np.exp(q @ k.transpose(0, 2, 1))
    exact = (scores / scores.sum(axis=2, keepdims=True) @ v).transpose(1, 0, 2).reshape(40, 48)
    out, scratch = result(40, 48), result(48 * (2 * 32 + 8) + 8 * 32)
    plain.attend(qkv, 40, 2, 24, out, scratch)
    assert np.abs(out - exact).max() < 3e-6


def test_an_int8_product_is_that_of_the_quantized_rows(plain: Kernels) -> None:
    random = np.random.default_rng(1)
    x, weights = numbers(random, "normal", 9, 384), random.integers(-64, 65, (48, 384), np.int8)
    scales, multipliers = numbers(random, "normal", 48), numbers(random, "normal", 384)
    matrix, held = make_matrix(
        *(random, "normal", 48, 384),
        quantized=integers_of(panels(weights)),
        scales=scales,
        sums=copy(weights.astype(np.int64).sum(axis=1).astype(np.float32)),
        multipliers=multipliers,
    )
    quantized, out = Quantized(plain, x, matrix), result(9, 48)
    dequantized = quantized.lows[:, None] + quantized.scales[:, None] * quantized.values.astype(np.float64)
    assert np.abs(dequantized - x * multipliers).max() <= quantized.scales.max() * 0.5001
    quantized.multiply(plain, matrix, 0, out)
    exact = dequantized @ weights.T.astype(np.float64) * scales + held["bias"]
    assert (np.abs(out - exact) <= 1e-5 * np.abs(exact).max()).all()


def test_rows_are_normalized_as_the_formulas_say(plain: Kernels) -> None:
    random = np.random.default_rng(1)
    x, residual = numbers(random, "normal", 5, 384), numbers(random, "normal", 5, 384)
    gamma, beta = numbers(random, "normal", 384), numbers(random, "normal", 384)
    wide = x.astype(np.float64) + residual
    spread = np.sqrt(wide.var(axis=1, keepdims=True) + 1e-12)
    exact = (wide - wide.mean(axis=1, keepdims=True)) / spread * gamma + beta
    plain.normalize(x, residual, 5, 384, gamma, beta, c_float(1e-12))
    assert np.abs(x - exact).max() < 3e-6
    out = result(384)
    plain.mean(x, 5, 384, out)
    assert np.abs(out - x.astype(np.float64).mean(axis=0)).max() < 1e-6
    plain.scale_to_unit(out, 384)
    assert abs(np.linalg.norm(out.astype(np.float64)) - 1) < 1e-6
