"""A weights file without layers: a vector is the mean of its tokens' rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.native.files import make_weights

VOCABULARY, WIDTH = 200, 64


def read_table(data: bytes, precision: int) -> npt.NDArray[np.float64]:
    """Return the table of a file, (V, H), as artifacts/FORMAT.md lays it out."""
    shape = (VOCABULARY, WIDTH)
    if precision == 0:
        return np.frombuffer(data, np.float32, VOCABULARY * WIDTH, 128).reshape(shape).astype(np.float64)
    scales = np.frombuffer(data, np.float32, VOCABULARY, 128 + VOCABULARY * WIDTH)
    integers = np.frombuffer(data, np.int8, VOCABULARY * WIDTH, 128).reshape(shape)
    return integers.astype(np.float64) * scales[:, None]


def open_weights(path: Path, data: bytes, isa: str | None = None) -> Any:
    from firstvec import _native

    path.write_bytes(data)
    with path.open("rb") as file:
        return _native.Weights(file.fileno(), len(data), isa)


@pytest.mark.parametrize("precision", [0, 1], ids=["fp32", "int8"])
@pytest.mark.parametrize("unit_length", [0, 1])
def test_every_instruction_set_gives_the_mean_of_the_rows(precision: int, unit_length: int, tmp_path: Path) -> None:
    from firstvec import _native

    data = make_weights(precision=precision, layers=0, hidden=WIDTH, vocabulary=VOCABULARY, unit_length=unit_length)
    table, random = read_table(data, precision), np.random.default_rng(1)
    rows = [random.integers(0, VOCABULARY, length).tolist() for length in (0, 1, 2, 7, 64, 0, 33)]
    expected = np.stack([table[row].mean(axis=0) if row else np.zeros(WIDTH) for row in rows])
    if unit_length:
        expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    found = {
        bytes(open_weights(tmp_path / "file", data, isa).run(rows, threads))
        for isa in _native.instruction_sets()
        for threads in (1, 3)
    }
    assert len(found) == 1  # the same bits
    vectors = np.frombuffer(found.pop(), np.float32).reshape(len(rows), WIDTH)
    assert np.abs(vectors - expected).max() < 1e-6
    assert np.abs(expected[1:5]).max() > 0.1


def test_only_a_file_without_layers_takes_a_text_without_tokens(tmp_path: Path) -> None:
    static = open_weights(tmp_path / "static", make_weights(layers=0, positions=64))
    assert bytes(static.run([[]], 1)) == bytes(4 * static.embedding_dim)
    with pytest.raises(ValueError, match="text 0 has 65 tokens, and the weights take 0 to 64"):
        static.run([[0] * 65], 1)
    with pytest.raises(ValueError, match="text 0 has 0 tokens, and the weights take 1 to 64"):
        open_weights(tmp_path / "layers", make_weights(layers=1, positions=64)).run([[]], 1)


def test_a_file_with_more_behind_its_table_is_refused(tmp_path: Path) -> None:
    data = make_weights(layers=0)
    longer = data[:16] + (len(data) + 64).to_bytes(8, "little") + data[24:] + bytes(64)
    with pytest.raises(ValueError, match="its sizes need"):
        open_weights(tmp_path / "file", longer)
