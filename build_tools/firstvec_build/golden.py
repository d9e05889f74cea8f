"""The bundle's self-test: a few texts and the vectors that each artifact gives them where it is computed right."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from firstvec.self_test import mean_difference

if TYPE_CHECKING:
    from firstvec.sessions import Session

FILE_NAME = "self_test.json"
TEXTS = (
    "How do I reset my password?",
    "A man is playing a guitar.",
    "interest rates rose in 2019",
    "the weather, yesterday",
    "return a + b",
    "Order 4512 has not arrived!",
    "una casa en el campo",
    "photosynthesis",
)
"""Short, because they are run before the first vector. In full precision the runtime takes the first three."""
_FLOOR = 1e-3
_SHARE = 0.75
"""A right machine's vectors may be as far from the golden ones as this share of the artifact's own distance to fp32.

Rounding to 8 bits turns a difference in the last bit of a float into a step, so machines that compute right agree less
in INT8 than in fp32. docs/int8.md has what was measured: right kernels differ by 0 to 0.5 of that distance, kernels
that saturate by 1.2.
"""


def record(
    artifact_id: str, session: Session, token_ids: Sequence[Sequence[int]], reference: Sequence[float]
) -> dict[str, object]:
    """What ``artifact_id`` must compute: run ``token_ids`` in its session.

    Args:
        artifact_id: of the artifact.
        session: of the artifact, or of its exact stand-in.
        token_ids: of `TEXTS`.
        reference: their vectors in fp32, one after another.
    """
    vectors = session.run(token_ids).cast("B").cast("f").tolist()
    distance = mean_difference(vectors, reference, len(token_ids))
    return {
        "id": artifact_id,
        "max_difference": float(f"{max(_FLOOR, _SHARE * distance):.3g}"),
        "vectors": base64.b64encode(np.array(vectors, "<f4").tobytes()).decode(),
    }


def write(folder: Path, token_ids: Sequence[Sequence[int]], records: Sequence[dict[str, object]]) -> None:
    """Write the self-test into a bundle's folder."""
    texts = [{"text": text, "token_ids": list(ids)} for text, ids in zip(TEXTS, token_ids, strict=True)]
    (folder / FILE_NAME).write_text(json.dumps({"texts": texts, "artifacts": list(records)}, indent=2) + "\n", "utf-8")
