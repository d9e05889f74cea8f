"""Keep a build's memory small: batches by the square of a text's tokens, and memory that is given back."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_MOST_SCORES = 12_000_000
"""Attention scores of one head in one batch, texts x tokens². Twelve heads of fp32 are 0.6 GB then."""


def most_texts(tokens: int, most: int) -> int:
    """Return how many texts of ``tokens`` tokens a batch may have: at least one, and at most ``most``."""
    return max(1, min(most, _MOST_SCORES // max(1, tokens * tokens)))


def split_into_batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield the indices of texts in batches of similar length, the longest first.

    Args:
        lengths: tokens of each text.
        most: texts of a batch, where the memory does not set a smaller limit.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        end = start + most_texts(lengths[order[start]], most)
        yield order[start:end]
        start = end


@contextmanager
def without_collector() -> Iterator[None]:
    """Import the toolchain without looking for reference cycles, and never look at what was imported again.

    The toolchain makes a million objects that stay. The collector would visit them all, and takes 2 of 9 seconds of the
    imports and 0.3 s of each `give_back` on all-MiniLM-L6-v2 (2026-11-29, Intel Xeon).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


def give_back() -> None:
    """Free the objects that only reference cycles hold, and give the free pages back to the system.

    onnxruntime's optimizer leaves cycles that hold copies of all weights. all-mpnet-base-v2 keeps 2.3 GB without this.
    """
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # musl has none
        libc.malloc_trim(0)
