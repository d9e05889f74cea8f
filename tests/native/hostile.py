"""Open damaged files and run them: ``python -m tests.native.hostile FOLDER CAMPAIGN NUMBER``.

The program prints how many files were refused and how many ran. ``FOLDER/case`` says which file came last, so a crash
can be repeated.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from firstvec import _native
from tests.native.files import (
    FIELDS,
    PAIRS_FIELDS,
    UNIGRAM_FIELDS,
    WORDS_FIELDS,
    make_small_pairs,
    make_small_unigram,
    make_small_words,
    make_weights,
    set_field,
)

TEXTS = ("", "the word 12, and é!", "etaoin shrdlu " * 9, "日本 \u0301\u200b\x00 x", "[CLS] a", "a" * 300, "\U0010ffff")
EXTREMES = (0, 1, 2, 3, 16, 255, 256, 257, 1 << 14, 1 << 16, 1 << 24, 1 << 26, 1 << 31, (1 << 32) - 16, (1 << 32) - 1)
LARGEST = 1 << 24
"""Bytes. A file that a header would need is made up to this size."""
SMALLEST: dict[str, Any] = {"hidden": 16, "intermediate": 16, "layers": 1, "heads": 1, "vocabulary": 4, "positions": 8}

Case = tuple[str, bytes]


def tiny_weights() -> list[bytes]:
    small = (SMALLEST, SMALLEST | {"layers": 0})
    return [make_weights(precision=precision, **sizes) for precision in (0, 1) for sizes in small]


def flipped(data: bytes, step: int) -> Iterator[Case]:
    """Yield the file with each bit of its header flipped, and behind the header each ``step``-th bit."""
    damaged = bytearray(data)
    for bit in (*range(1024), *range(1024, 8 * len(data), step)):
        damaged[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(damaged)
        damaged[bit // 8] ^= 1 << bit % 8


def truncated(data: bytes) -> Iterator[Case]:
    """Yield each beginning of the file, as it is and with its true size in the header."""
    for size in range(len(data)):
        yield f"first {size} bytes", data[:size]
        if size >= 24:
            yield f"first {size} bytes, by its header", data[:16] + size.to_bytes(8, "little") + data[24:size]


def extreme(data: bytes, fields: tuple[str, ...], count: int, seed: int) -> Iterator[Case]:
    """Yield files with extreme numbers: each field alone, each two fields, and ``count`` random choices of fields."""
    names = [name for name in fields if name not in ("byte_order", "version", "file_bytes")]
    random = Random(seed)

    def put(data: bytes, *chosen: tuple[str, float]) -> Case:
        for name, value in chosen:
            data = set_field(data, name, value, fields)
        return repr(chosen), data

    def values(name: str) -> list[float]:
        special = [0.0, -1.0, 1.0, float("inf"), float("nan"), 1e-45]
        return special if name == "epsilon" else list(EXTREMES)

    for name in names:
        for value in values(name):
            yield put(data, (name, value))
    for i, name in enumerate(names):
        for other in names[:i]:
            for value in values(name):
                yield put(data, (name, value), (other, random.choice(values(other))))
    for _ in range(count):
        chosen = random.sample(names, random.randint(2, len(names)))
        yield put(data, *((name, random.choice(values(name))) for name in chosen))


def fitted(data: bytes, fields: tuple[str, ...], refuse: Callable[[bytes], str | None]) -> bytes:
    """Return the file with the size that its header needs, as the engine says it, if this size is not too large."""
    needs = re.search(r"its sizes need (\d+) bytes", refuse(data) or "")
    if not needs or int(needs[1]) > LARGEST:
        return data
    size = int(needs[1])
    body = data[128:] * (size // (len(data) - 128) + 1)
    return set_field(data[:128] + body[: size - 128], "file_bytes", size, fields)


class Runner:
    """Opens files, and runs those that are not refused."""

    def __init__(self, folder: Path) -> None:
        self._case = os.open(folder / "case", os.O_RDWR | os.O_CREAT)
        self._file = os.open(folder / "file", os.O_RDWR | os.O_CREAT)
        self.refused = self.ran = 0

    def write(self, name: str, data: bytes) -> tuple[int, int]:
        os.pwrite(self._case, name[:4000].ljust(100).encode() + b"\n", 0)
        os.ftruncate(self._file, len(data))
        os.pwrite(self._file, data, 0)
        return self._file, len(data)

    def run_weights(self, name: str, data: bytes) -> None:
        try:
            weights = _native.Weights(*self.write(name, data))
        except ValueError:
            self.refused += 1
            return
        self.ran += 1
        for rows in ([[]], [[0]], [[0, 0, 0], [0]], [[1, 2, 3, 0], [2]], [[0] * 8] * 20):
            try:
                result = weights.run(rows, 2)
                assert len(result) == len(rows) * 4 * weights.embedding_dim
            except ValueError:
                pass

    def run_words(self, name: str, data: bytes, family: str = "WordPiece") -> None:
        file = self.write(name, data)
        try:
            words = getattr(_native, family)(*file, 16)
        except ValueError:
            self.refused += 1
            return
        self.ran += 1
        for text in TEXTS:
            ids = words.tokenize(text)
            assert ids is None or len(ids) <= 16

    def weights_problem(self, data: bytes) -> str | None:
        try:
            _native.Weights(*self.write("problem", data))
        except ValueError as problem:
            return str(problem)
        return None

    def words_problem(self, data: bytes, family: str = "WordPiece") -> str | None:
        try:
            getattr(_native, family)(*self.write("problem", data), 16)
        except ValueError as problem:
            return str(problem)
        return None


def weights_flips(runner: Runner, step: int) -> None:
    for data in tiny_weights():
        for case in flipped(data, step):
            runner.run_weights(*case)


def weights_truncations(runner: Runner, _count: int) -> None:
    for data in tiny_weights():
        for case in truncated(data):
            runner.run_weights(*case)


def weights_extremes(runner: Runner, count: int) -> None:
    for seed, data in enumerate(tiny_weights()):
        for name, damaged in extreme(data, FIELDS, count, seed):
            runner.run_weights(name, fitted(damaged, FIELDS, runner.weights_problem))


@dataclass(frozen=True)
class Tables:
    """The campaigns of a family of tables files."""

    family: str
    make: Callable[[], bytes]
    fields: tuple[str, ...]

    def flips(self, runner: Runner, step: int) -> None:
        for case in flipped(self.make(), step):
            runner.run_words(*case, self.family)

    def truncations(self, runner: Runner, _count: int) -> None:
        for case in truncated(self.make()):
            runner.run_words(*case, self.family)

    def extremes(self, runner: Runner, count: int) -> None:
        for name, damaged in extreme(self.make(), self.fields, count, 3):
            whole = fitted(damaged, self.fields, lambda data: runner.words_problem(data, self.family))
            runner.run_words(name, whole, self.family)

    def noise(self, runner: Runner, count: int) -> None:
        """Run tables whose arrays are random bytes, or random small numbers, behind a right header."""
        data, random = self.make(), Random(9)
        for number in range(count):
            at, end = sorted(random.choices(range(128, len(data) + 1), k=2))
            noise = random.randbytes(end - at) if number % 2 else bytes(random.choices(range(3), k=end - at))
            runner.run_words(f"noise {number}", data[:at] + noise + data[end:], self.family)


WORDS = Tables("WordPiece", make_small_words, WORDS_FIELDS)
UNIGRAM = Tables("Unigram", make_small_unigram, UNIGRAM_FIELDS)
PAIRS = Tables("BytePairs", make_small_pairs, PAIRS_FIELDS)

CAMPAIGNS: dict[str, Callable[[Runner, int], None]] = {
    "weights-flips": weights_flips,
    "weights-truncations": weights_truncations,
    "weights-extremes": weights_extremes,
    "words-flips": WORDS.flips,
    "words-truncations": WORDS.truncations,
    "words-extremes": WORDS.extremes,
    "words-noise": WORDS.noise,
    "unigram-flips": UNIGRAM.flips,
    "unigram-truncations": UNIGRAM.truncations,
    "unigram-extremes": UNIGRAM.extremes,
    "unigram-noise": UNIGRAM.noise,
    "pairs-flips": PAIRS.flips,
    "pairs-truncations": PAIRS.truncations,
    "pairs-extremes": PAIRS.extremes,
    "pairs-noise": PAIRS.noise,
}

if __name__ == "__main__":
    runner = Runner(Path(sys.argv[1]))
    CAMPAIGNS[sys.argv[2]](runner, int(sys.argv[3]))
    print(json.dumps({"refused": runner.refused, "ran": runner.ran}))
