"""`firstvec.ray`, the public name of what Ray Data takes."""

from __future__ import annotations

import firstvec.ray
from firstvec.bulk.embedder import Embedder


def test_it_has_the_embedder() -> None:
    assert firstvec.ray.__all__ == ["Embedder"]
    assert firstvec.ray.Embedder is Embedder
