"""Rounding with compensation: exact pairs, nearer outputs, and the limits of the integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstvec_build.int8.rounding import PAIR_LIMIT, round_with_compensation


def make_inputs(rows: int, depth: int, seed: int) -> Any:
    """Return correlated inputs, as a layer's are."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, depth // 4)) @ generator.normal(size=(depth // 4, depth))


def test_no_pair_of_weights_overflows_16_bits() -> None:
    rows = np.random.default_rng(1).normal(scale=80, size=(64, 128))  # far too large
    inputs = make_inputs(500, 128, 2)
    integers = round_with_compensation(rows, inputs.T @ inputs, limit_pairs=True).astype(int)
    pairs = integers.reshape(64, 64, 2)
    assert np.maximum(pairs, 0).sum(axis=2).max() == PAIR_LIMIT
    assert np.minimum(pairs, 0).sum(axis=2).min() == -PAIR_LIMIT
    assert np.abs(integers).max() == 127
    assert 255 * PAIR_LIMIT < 1 << 15


@pytest.mark.parametrize("limit_pairs", [True, False])
def test_compensation_computes_nearer_outputs_than_rounding(limit_pairs: bool) -> None:
    rows = np.random.default_rng(3).normal(scale=20, size=(48, 64))
    inputs = make_inputs(1000, 64, 4)
    unseen = inputs[500:]
    integers = round_with_compensation(rows, inputs[:500].T @ inputs[:500], limit_pairs)
    error = np.linalg.norm(unseen @ (integers - rows).T)
    assert error < 0.6 * np.linalg.norm(unseen @ (np.rint(rows) - rows).T)


def test_without_a_limit_pairs_may_have_two_large_weights_and_an_odd_depth_has_a_last_channel() -> None:
    rows = np.full((4, 7), 200.0)
    assert (round_with_compensation(rows, np.eye(7), limit_pairs=False) == 127).all()
    limited = round_with_compensation(rows, np.eye(7), limit_pairs=True).astype(int)
    assert (limited[:, :6].reshape(4, 3, 2).sum(axis=2) == PAIR_LIMIT).all()
    assert (limited[:, 6] == 127).all()


def test_a_channel_that_is_never_used_takes_no_part() -> None:
    rows = np.random.default_rng(6).normal(scale=20, size=(8, 16))
    rows[:, 3] = 0
    inputs = make_inputs(100, 16, 7)
    inputs[:, 3] = 0
    integers = round_with_compensation(rows, inputs.T @ inputs, limit_pairs=True)
    assert not integers[:, 3].any()
    without = np.delete(np.arange(16), 3)
    assert integers[:, without].any()
