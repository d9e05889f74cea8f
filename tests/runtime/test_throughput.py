"""Many texts: in their order, in runs of bounded size, without holding them all."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import EmbeddingProvider, InputError, OptimizedEmbeddingLoader, provider
from tests.conftest import Fresh

TEXTS = [f"{'word ' * (index * 7 % 90)}number {index}" for index in range(300)]


@pytest.fixture
def tiny(tiny_built: Path) -> EmbeddingProvider:
    return OptimizedEmbeddingLoader(str(tiny_built)).get_provider()


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "_WINDOW", 32)


@pytest.fixture
def runs(tiny: EmbeddingProvider, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(texts, longest) of each run."""
    seen: list[tuple[int, int]] = []
    run = tiny._run

    def recorded(rows: Any, session: Any) -> Any:
        seen.append((len(rows), max(map(len, rows))))
        return run(rows, session)

    monkeypatch.setattr(tiny, "_run", recorded)
    return seen


def test_windows_do_not_change_a_vector(tiny: EmbeddingProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny.encode(TEXTS)
    monkeypatch.setattr(provider, "_WINDOW", 32)
    np.testing.assert_allclose(tiny.encode(TEXTS), whole, atol=1e-6)
    np.testing.assert_allclose(np.stack(list(tiny.encode_iter(TEXTS))), whole, atol=1e-6)


def test_a_run_holds_a_bounded_number_of_tokens(tiny: EmbeddingProvider, runs: list[tuple[int, int]]) -> None:
    tiny.encode(TEXTS, batch_size=200)
    assert sum(count for count, _ in runs) == len(TEXTS)
    assert all(count * longest <= 1024 for count, longest in runs)
    assert [longest for _, longest in runs] == sorted((longest for _, longest in runs), reverse=True)
    # As many as fit: no run could have taken the next one's longest text, too.
    assert all((count + 1) * longest > 1024 for count, longest in runs[:-1])


def test_a_run_holds_at_most_batch_size_texts(tiny: EmbeddingProvider, runs: list[tuple[int, int]]) -> None:
    tiny.encode(TEXTS, batch_size=5)
    assert max(count for count, _ in runs) == 5


@pytest.mark.parametrize("output", ["numpy", "list", "buffer"])
def test_encode_iter_gives_each_output(output: str, tiny: EmbeddingProvider) -> None:
    expected = tiny.encode(TEXTS[:5])
    found = list(tiny.encode_iter(iter(TEXTS[:5]), output=output))
    assert {type(vector) for vector in found} == {{"numpy": np.ndarray, "list": list, "buffer": memoryview}[output]}
    np.testing.assert_allclose(np.array([np.asarray(vector) for vector in found]), expected, atol=1e-6)


def test_encode_iter_reads_little_ahead(tiny: EmbeddingProvider, small_windows: None) -> None:
    taken = []

    def source() -> Iterator[str]:
        for index in itertools.count():
            taken.append(index)
            yield f"text {index}"

    vectors = tiny.encode_iter(source())
    assert taken == []
    for _ in range(100):
        next(vectors)
    assert len(taken) <= 100 + 2 * 32


def test_encode_iter_reads_in_the_callers_thread(tiny: EmbeddingProvider, small_windows: None) -> None:
    connection = sqlite3.connect(":memory:")  # refuses other threads
    connection.execute("create table texts (text)")
    connection.executemany("insert into texts values (?)", ((text,) for text in TEXTS))
    rows = (text for (text,) in connection.execute("select text from texts"))
    assert len(list(tiny.encode_iter(rows))) == len(TEXTS)


def test_encode_iter_of_nothing_is_nothing(tiny: EmbeddingProvider) -> None:
    assert list(tiny.encode_iter([])) == []


@pytest.mark.parametrize("bad", ["one text", b"bytes", None, 5])
def test_encode_iter_refuses_what_is_no_iterable_of_texts(bad: Any, tiny: EmbeddingProvider) -> None:
    with pytest.raises(InputError):
        tiny.encode_iter(bad)


def test_encode_iter_says_which_text_is_not_usable(tiny: EmbeddingProvider, small_windows: None) -> None:
    vectors = tiny.encode_iter(itertools.chain(TEXTS[:100], [None], TEXTS))
    with pytest.raises(InputError) as caught:
        list(vectors)
    assert caught.value.index == 100


def test_prompts_are_put_before_each_text(tiny: EmbeddingProvider) -> None:
    expected = tiny.encode(["query: a", "query: b"])
    np.testing.assert_allclose(list(tiny.encode_iter(["a", "b"], prompt="query: ")), expected, atol=1e-6)


MEMORY = """
import sys
from firstvec import OptimizedEmbeddingLoader
def resident():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS:"))) / 1024
provider = OptimizedEmbeddingLoader(sys.argv[1], output="buffer").get_provider()
texts = (f"text number {index} of very many" for index in range(int(sys.argv[2])))
count = 0
for vector in provider.encode_iter(texts):
    count += 1
    if count == 10_000:
        before = resident()
print(count, resident() - before)
"""


def test_encode_iter_holds_no_more_for_more_texts(tiny_built: Path, fresh: Fresh) -> None:
    count, grown = fresh(MEMORY, tiny_built, 60_000).stdout.split()
    assert count == "60000"
    # Held, the other 50,000 texts and vectors of 32 components would take some 15 MB.
    assert float(grown) < 4
