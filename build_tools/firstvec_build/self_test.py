"""Write the bundle's self-test: a few texts, and the vectors that each artifact must give for them."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from firstvec.loading.self_test import digest_vectors, mean_difference

if TYPE_CHECKING:
    from firstvec.engines.session import Session

SELF_TEST_NAME = "self_test.json"
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
"""Short texts, because the first vector waits for them. In full precision the runtime takes the first three."""
_SMALLEST_LIMIT = 1e-3
_SHARE_OF_DISTANCE = 0.75
"""The vectors of a machine may differ from the golden vectors by this share of the artifact's own distance to fp32.

Rounding to 8 bits turns a difference in the last bit of a float into a step. Machines that compute right therefore
differ more in INT8 than in fp32. docs/int8.md has the measurement: right kernels differ by 0 to 0.5 of that distance,
and saturating kernels by 1.2.
"""


def compute_golden(
    artifact_id: str,
    session: Session,
    token_ids: Sequence[Sequence[int]],
    reference: Sequence[float],
    *,
    same_bits: bool,
) -> dict[str, object]:
    """Compute the golden vectors of an artifact, and return its entry of the self-test as JSON values.

    Args:
        artifact_id: the artifact's id.
        session: a session of the artifact, or of its exact twin.
        token_ids: the tokens of `TEXTS`.
        reference: the fp32 vectors of `TEXTS`, one after another.
        same_bits: whether every machine computes the same bits. The entry then has the digest of the vectors.
    """
    found = session.run(token_ids)
    if same_bits:
        return {"id": artifact_id, "sha256": digest_vectors(found)}
    vectors = found.cast("B").cast("f").tolist()
    distance = mean_difference(vectors, reference, len(token_ids))
    return {
        "id": artifact_id,
        "max_difference": float(f"{max(_SMALLEST_LIMIT, _SHARE_OF_DISTANCE * distance):.3g}"),
        "vectors": base64.b64encode(np.array(vectors, "<f4").tobytes()).decode(),
    }


def write_self_test(folder: Path, token_ids: Sequence[Sequence[int]], entries: Sequence[dict[str, object]]) -> None:
    """Write the self-test with the entries of all artifacts into a bundle's folder."""
    texts = [{"text": text, "token_ids": list(ids)} for text, ids in zip(TEXTS, token_ids, strict=True)]
    document = {"texts": texts, "artifacts": list(entries)}
    (folder / SELF_TEST_NAME).write_text(json.dumps(document, indent=2) + "\n", "utf-8")
