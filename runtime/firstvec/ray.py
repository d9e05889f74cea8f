"""Ray Data: ``dataset.map_batches(firstvec.ray.Embedder, …)``. docs/bulk.md has an example.

``firstvec embed --ray`` needs no code. The extra ``firstvec[ray]`` installs what both need.
"""

from __future__ import annotations

from firstvec.bulk.embedder import Embedder

__all__ = ["Embedder"]
