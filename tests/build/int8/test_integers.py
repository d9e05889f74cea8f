"""INT8 for the native engine: multipliers, and the same integers again."""

from __future__ import annotations

from typing import Any

import numpy as np

from firstvec_build.int8.integers import Quantizer, choose_multipliers


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
