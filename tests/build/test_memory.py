"""How many texts fit into a batch."""

from __future__ import annotations

import gc
import random

import pytest

from firstvec_build.memory import most_texts, split_into_batches, without_collector


@pytest.mark.parametrize(
    ("tokens", "most", "expected"),
    [(8, 32, 32), (512, 32, 32), (1024, 32, 11), (2048, 32, 2), (8192, 32, 1), (0, 4, 4)],
)
def test_a_batch_has_fewer_texts_if_they_are_long(tokens: int, most: int, expected: int) -> None:
    assert most_texts(tokens, most) == expected


def test_every_text_is_in_one_batch_and_the_longest_come_first() -> None:
    lengths = [random.Random(3).choice((3, 40, 500, 3000)) + index % 7 for index in range(200)]
    batches = [*split_into_batches(lengths, 16)]
    assert sorted(index for batch in batches for index in batch) == [*range(200)]
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(lengths, reverse=True)
    for batch in batches[:-1]:
        assert len(batch) == most_texts(max(lengths[index] for index in batch), 16)


def test_no_text_makes_no_batch() -> None:
    assert [*split_into_batches([], 16)] == []


def test_what_is_imported_is_never_looked_at_again() -> None:
    assert gc.isenabled()
    with without_collector():
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= len(kept)
    with pytest.raises(ImportError), without_collector():
        raise ImportError
    assert gc.isenabled()
    gc.unfreeze()
