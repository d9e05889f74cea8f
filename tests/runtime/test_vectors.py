"""The forms of a vector: arrays, lists, views and tensors of the same numbers; and numpy's import beside the load."""

from __future__ import annotations

import re
import sys
from array import array
from pathlib import Path

import numpy as np
import pytest

from firstvec import InputError, ManifestError, MissingDependency
from firstvec.vectors import as_array, as_row, as_rows, as_tensors, quantize_embeddings, read_ranges, shorten
from tests.conftest import Fresh

NUMBERS = [[0.5, -1.5, 2.0], [3.25, 0.0, -4.0]]


def view_of(rows: list[list[float]]) -> memoryview:
    """Return float32 numbers as an engine returns them."""
    flat = array("f", [number for row in rows for number in row])
    return memoryview(flat).cast("B").cast("f", (len(rows), len(rows[0])))


def test_too_few_addresses_for_numpy_are_a_typed_error(fresh: Fresh) -> None:
    code = """
import resource, sys
from firstvec import LoadError
from firstvec.vectors import as_array

def limit(more):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, resource.RLIM_INFINITY))

view = memoryview(bytearray(8)).cast("B").cast("f", (1, 2))
limit(60 << 20)  # numpy's OpenBLAS would end the process
try:
    as_array(view)
except LoadError as error:
    print(error, "numpy" in sys.modules)
limit(1 << 30)
print(as_array(view).shape)
"""
    if sys.platform != "linux":
        pytest.skip("other systems do not say how many addresses are left")
    refused, shape = fresh(code).stdout.splitlines()
    assert re.match(r"numpy needs 192 MB of addresses to be imported, and (5\d|60) MB are left: raise the", refused)
    assert refused.endswith("no numpy False")
    assert shape == "(1, 2)"


def test_an_array_is_over_the_same_memory() -> None:
    view = view_of(NUMBERS)
    found = as_array(view)
    assert (found.dtype, found.shape, found.tolist()) == (np.float32, (2, 3), NUMBERS)
    found[1, 2] = 7.0
    assert view[1, 2] == 7.0


@pytest.mark.parametrize("output", ["list", "buffer"])
def test_one_row_has_one_dimension_and_several_have_two(output: str) -> None:
    row, rows = as_row(view_of(NUMBERS[:1]), output), as_rows(view_of(NUMBERS), output)
    if output == "list":
        assert (row, rows) == (NUMBERS[0], NUMBERS)
    else:
        assert (row.format, row.shape, row.tolist()) == ("f", (3,), NUMBERS[0])
        assert (rows.format, rows.shape, rows.tolist()) == ("f", (2, 3), NUMBERS)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_reduced_precisions_are_those_of_sentence_transformers(precision: str) -> None:
    from sentence_transformers.util.quantization import quantize_embeddings as theirs

    vectors = np.random.default_rng(3).normal(size=(40, 20)).astype(np.float32)
    ranges = np.stack([vectors[:10].min(axis=0), vectors[:10].max(axis=0)])  # some vectors are outside of it
    ours = quantize_embeddings(vectors, precision, ranges)
    np.testing.assert_array_equal(ours, theirs(vectors, precision=precision, ranges=ranges))
    assert ours.dtype == theirs(vectors, precision=precision, ranges=ranges).dtype


@pytest.mark.parametrize(("precision", "expected"), [("uint8", 0), ("int8", -128)])
def test_a_component_without_a_range_is_the_lowest_step(precision: str, expected: int) -> None:
    ones = np.ones((3, 2), np.float32)
    assert quantize_embeddings(ones, precision, ones[:2]).tolist() == [[expected] * 2] * 3


def test_ranges_of_fewer_components_and_of_unit_length() -> None:
    data = np.array([[-1, -2, 0], [1, 2, 4], [0.5, 0.8, 1]], "<f4").tobytes()
    assert read_ranges(data, "file", 3, 3, False).tolist() == [[-1, -2, 0], [1, 2, 4]]
    assert read_ranges(data, "file", 3, 2, False).tolist() == [[-1, -2], [1, 2]]
    np.testing.assert_allclose(read_ranges(data, "file", 3, 2, True), [[-1.25, -2.5], [1.25, 2.5]])
    np.testing.assert_allclose(read_ranges(data, "file", 3, 1, True), [[-2], [2]])


@pytest.mark.parametrize(
    ("place", "value"), [((0, 0), 1.5), ((2, 1), 0.0), ((2, 1), -1.0), ((1, 2), np.nan), ((0, 1), -np.inf)]
)
def test_numbers_that_are_no_ranges_are_refused(place: tuple[int, int], value: float) -> None:
    rows = np.array([[-1, -2, 0], [1, 2, 4], [0.5, 0.8, 1]], "<f4")
    rows[place] = value
    with pytest.raises(ManifestError, match="file: holds numbers that are no ranges"):
        read_ranges(rows.tobytes(), "file", 3, 3, False)
    with pytest.raises(ManifestError, match="file: has 36 bytes, not the 24 of three numbers a component"):
        read_ranges(rows.tobytes(), "file", 2, 2, False)


def test_vectors_are_shortened_and_then_scaled() -> None:
    vectors = np.array([[3.0, 4.0, 12.0], [0.0, 0.0, 5.0]], np.float32)
    assert shorten(vectors, None, False) is vectors
    assert shorten(vectors, 2, False).tolist() == [[3.0, 4.0], [0.0, 0.0]]
    np.testing.assert_allclose(shorten(vectors, 2, True), [[0.6, 0.8], [0.0, 0.0]], atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(shorten(vectors, None, True), axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("truncate_dim", [0, -1, True, 2.0, "2"])
def test_a_length_that_no_vector_has_is_refused(truncate_dim: object) -> None:
    with pytest.raises(InputError, match="is not a positive integer"):
        shorten(np.ones((1, 3), np.float32), truncate_dim, False)  # type: ignore[arg-type]


def test_tensors_are_over_the_same_memory() -> None:
    vectors = np.array(NUMBERS, np.float32)
    stacked, listed = as_tensors(vectors, True), as_tensors(vectors, False)
    assert stacked.tolist() == [row.tolist() for row in listed] == NUMBERS
    assert [tuple(row.shape) for row in listed] == [(3,), (3,)]
    vectors[0, 0] = 9.0
    assert stacked[0, 0] == 9.0


@pytest.mark.parametrize(("name", "install"), [("numpy", r"firstvec\[numpy\]"), ("torch", r"firstvec\[torch\]")])
def test_a_missing_package_is_named(name: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, view = np.array(NUMBERS, np.float32), view_of(NUMBERS)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=f"needs {name}, which is not installed: pip install '{install}'"):
        as_array(view) if name == "numpy" else as_tensors(vectors, True)


AHEAD = """
import os, sys
from firstvec import vectors
from firstvec.loading.trace import Trace
trace = Trace()
if sys.argv[1] == "there":
    import numpy
vectors.import_numpy_ahead(trace)
vectors.import_numpy_ahead(trace)
vectors.wait_for_numpy()
assert "numpy" in sys.modules
print([stage["name"] for stage in trace.stages], os.environ.get("OPENBLAS_THREAD_TIMEOUT"))
"""


@pytest.mark.parametrize(
    ("numpy", "timeout", "expected"),
    [
        ("not there", {}, "['import numpy'] 20"),
        ("not there", {"OPENBLAS_THREAD_TIMEOUT": "26"}, "['import numpy'] 26"),
        ("there", {}, "[] None"),
    ],
)
def test_numpy_is_imported_ahead_once_if_it_is_not_there(
    numpy: str, timeout: dict[str, str], expected: str, fresh: Fresh
) -> None:
    assert fresh(AHEAD, numpy, **timeout).stdout == f"{expected}\n"


IMPORT_DURING_LOAD = """
import sys, time
from firstvec import preload_embeddings
loader = preload_embeddings(sys.argv[1], "progressive")
time.sleep(float(sys.argv[2]))
import numpy
assert loader.get_provider().embed_query("text").dtype == numpy.float32
"""


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.01, 0.02, 0.03, 0.05])
def test_the_program_may_import_numpy_during_the_load(seconds: float, tiny_built: Path, fresh: Fresh) -> None:
    # onnxruntime's extension must not meet a half-imported numpy: it did in one run of six.
    for _ in range(4):
        fresh(IMPORT_DURING_LOAD, tiny_built, seconds)


WITHOUT_ARRAYS = """
import sys
from firstvec import OptimizedEmbeddingLoader
provider = OptimizedEmbeddingLoader(sys.argv[1], output=sys.argv[2]).get_provider()
provider.embed_query("text")
provider.encode(["one", "two"])
list(provider.encode_iter(["one", "two"]))
print("numpy" in sys.modules, provider.embed_query("text", output="numpy").shape)
"""


@pytest.mark.parametrize("output", ["list", "buffer"])
def test_without_arrays_numpy_is_imported_for_the_call_that_asks_for_one(
    output: str, tiny_built: Path, fresh: Fresh
) -> None:
    assert fresh(WITHOUT_ARRAYS, tiny_built, output).stdout == "False (32,)\n"
