"""firstvec's own engine: the extension module ``firstvec._native``, whose sources are in ``runtime/native``.

Its vectors have the same bits on every processor, alone or in a batch, with any number of threads.
"""

from __future__ import annotations

from firstvec import _native
from firstvec.engines.session import Session
from firstvec.machine import native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from firstvec.engines.session import SessionOptions


def version() -> str:
    """Return the engine's version, which counts the changes of the vectors' bits."""
    return str(_native.VERSION)


class NativeSession(Session):
    """A mapped weights file. A run of several texts uses threads, which end with the run."""

    pads = False

    def __init__(self, options: SessionOptions) -> None:
        file = options.files[0]
        weights = _native.Weights(file.descriptor, file.size, native.instruction_set())
        super().__init__(f"native {version()} ({weights.isa})", options)
        self._weights = weights
        self._options = options

    def run(self, rows: Sequence[Sequence[int]]) -> memoryview[float]:
        """Compute the vectors of token ids. Returns float32, (len(rows), dim), in memory of its own."""
        weights = self._weights
        threads = self._options.threads if len(rows) > 1 else 1
        return memoryview(weights.run(rows, threads)).cast("f", (len(rows), weights.embedding_dim))


open_session = NativeSession
