"""The session module: BERT, mean pooling and normalization in numpy (Devlin et al., 2018)."""

from __future__ import annotations

import math
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from abacus import VERSION
from firstvec.engines.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from firstvec.engines.session import SessionOptions

_gelu = np.vectorize(lambda x: x * 0.5 * (1.0 + math.erf(x / math.sqrt(2.0))))


def version() -> str:
    """Return the version of this engine."""
    return VERSION


class AbacusSession(Session):
    """BERT in float64."""

    def __init__(self, options: SessionOptions) -> None:
        super().__init__(f"abacus {VERSION}", options)
        with np.load(BytesIO(options.files[0].read())) as arrays:
            self._arrays = {name: arrays[name].astype(np.float64) for name in arrays.files}
        self._heads, self._layers = int(self._arrays["heads"]), int(self._arrays["layers"])

    def run(self, rows: Sequence[Sequence[int]]) -> memoryview[float]:
        """Compute the vectors of token ids. Returns float32, (len(rows), dim)."""
        return memoryview(np.stack([self._embed([*row]) for row in rows]).astype(np.float32))

    def close(self) -> None:
        """Free the weights."""
        self._arrays = {}

    def _embed(self, ids: list[int]) -> Any:
        words, positions = self._of("embeddings.word_embeddings"), self._of("embeddings.position_embeddings")
        states = words[ids] + positions[: len(ids)] + self._of("embeddings.token_type_embeddings")[0]  # (T, D)
        states = self._normalize("embeddings.LayerNorm", states)
        for number in range(self._layers):
            layer = f"encoder.layer.{number}"
            states = self._normalize(f"{layer}.attention.output.LayerNorm", states + self._attend(layer, states))
            inner = _gelu(self._apply(f"{layer}.intermediate.dense", states))  # (T, F)
            states = self._normalize(f"{layer}.output.LayerNorm", states + self._apply(f"{layer}.output.dense", inner))
        mean = states.mean(axis=0)  # (D,)
        return mean / np.linalg.norm(mean)

    def _attend(self, layer: str, states: Any) -> Any:
        shape = (len(states), self._heads, -1)
        query, key, value = (
            self._apply(f"{layer}.attention.self.{name}", states).reshape(shape).swapaxes(0, 1)  # (H, T, D / H)
            for name in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])  # (H, T, T)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        together = (shares @ value).swapaxes(0, 1).reshape(len(states), -1)  # (T, D)
        return self._apply(f"{layer}.attention.output.dense", together)

    def _apply(self, name: str, states: Any) -> Any:
        return states @ self._of(name).T + self._of(name, "bias")

    def _normalize(self, name: str, states: Any) -> Any:
        centered = states - states.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-12)
        return centered / deviation * self._of(name) + self._of(name, "bias")

    def _of(self, name: str, kind: str = "weight") -> Any:
        return self._arrays[f"{name}.{kind}"]


open_session = AbacusSession
