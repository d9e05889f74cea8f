"""INT8 for the native engine: exact pairs, compensation, multipliers, and the same integers again."""

from __future__ import annotations

from typing import Any

import numpy as np

from firstvec_build.int8.integers import PAIR_LIMIT, Quantizer, choose_multipliers, round_with_compensation


def make_inputs(rows: int, depth: int, seed: int) -> Any:
    """Return correlated inputs, as a layer's are."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, depth // 4)) @ generator.normal(size=(depth // 4, depth))


def test_no_pair_of_weights_overflows_16_bits() -> None:
    rows = np.random.default_rng(1).normal(scale=80, size=(64, 128))  # far too large
    inputs = make_inputs(500, 128, 2)
    integers = round_with_compensation(rows, inputs.T @ inputs).astype(int)
    pairs = integers.reshape(64, 64, 2)
    assert np.maximum(pairs, 0).sum(axis=2).max() == PAIR_LIMIT
    assert np.minimum(pairs, 0).sum(axis=2).min() == -PAIR_LIMIT
    assert np.abs(integers).max() == 127
    assert 255 * PAIR_LIMIT < 1 << 15


def test_compensation_computes_nearer_outputs_than_rounding() -> None:
    rows = np.random.default_rng(3).normal(scale=20, size=(48, 64))
    inputs = make_inputs(1000, 64, 4)
    unseen = inputs[500:]
    integers = round_with_compensation(rows, inputs[:500].T @ inputs[:500])
    error = np.linalg.norm(unseen @ (integers - rows).T)
    assert error < 0.6 * np.linalg.norm(unseen @ (np.rint(rows) - rows).T)


def test_multipliers_make_large_channels_smaller() -> None:
    multipliers = choose_multipliers(np.ones((4, 3)), np.array([1.0, 100.0, 1.0]))
    assert multipliers[1] < 0.2 * multipliers[0]
    np.testing.assert_allclose(np.log(multipliers).mean(), 0, atol=1e-6)
    # A channel that is never used divides nothing by 0.
    assert np.isfinite(choose_multipliers(np.zeros((4, 3)), np.zeros(3))).all()


def test_the_same_model_and_texts_give_the_same_integers(tiny_encoder: Any) -> None:
    texts = ["how do I reset my password?", "a cat", "", "x " * 300]
    name, rows = "encoder.layer.1.attention.self", np.random.default_rng(5).normal(size=(96, 32))
    one, other = (Quantizer(tiny_encoder, texts)(name, rows) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert Quantizer(tiny_encoder, texts)("encoder.layer.1.output.dense", np.ones((32, 64)))[2] is None
