"""How close an artifact is to the fp32 reference, and the thresholds it must meet."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firstvec.errors import BuildError, QualityError
from firstvec.manifest import Quality
from firstvec.provider import EmbeddingProvider

Vectors = npt.NDArray[np.float32]
LabelledPairs = tuple[list[str], list[str], list[float]]

NEIGHBOURS = 10
_BATCHES = 8
"""In how many batches of mixed lengths the sentences are encoded, to see whether batch neighbours change a vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What an artifact must reach. The only place where they are set; the CLI overrides them."""

    fp32_max_abs_diff: float = 1e-5
    int8_cosine_mean: float = 0.995
    int8_cosine_min: float = 0.97
    int8_neighbour_overlap: float = 0.9
    int8_batch_cosine_min: float = 0.9999

    def check(self, artifact: str, precision: str, quality: Quality) -> None:
        """Check an artifact's quality.

        Raises:
            QualityError: it misses a threshold.
        """
        if precision == "fp32":
            if not quality.max_abs_diff <= self.fp32_max_abs_diff:
                raise QualityError(artifact, "max_abs_diff", quality.max_abs_diff, "at most", self.fp32_max_abs_diff)
            return
        for metric in ("cosine_mean", "cosine_min", "neighbour_overlap", "batch_cosine_min"):
            value, threshold = getattr(quality, metric), getattr(self, f"int8_{metric}")
            if not value >= threshold:
                raise QualityError(artifact, metric, value, "at least", threshold)


def evaluation_sentences() -> list[str]:
    """The project's own sentences: short, long past truncation, code, accents, CJK, emoji, empty."""
    text = (resources.files("firstvec_build") / "data" / "sentences.json").read_text("utf-8")
    return list(json.loads(text))


def read_labelled_pairs(path: Path) -> LabelledPairs:
    """Read a labelled set: tab-separated ``score, sentence 1, sentence 2``, or the STS Benchmark's own columns.

    Raises:
        BuildError: the file cannot be read, or a line has other columns.
    """
    first, second, scores = [], [], []
    try:
        # Not str.splitlines(): sentences may hold U+2028 and other characters that it takes for line ends.
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        columns = line.removesuffix("\r").split("\t")
        # STS Benchmark: genre, file, year, id, score, sentence 1, sentence 2, and sources.
        columns = columns[4:7] if len(columns) >= 7 else columns
        try:
            score, one, two = columns
            scores.append(_finite(score))
        except ValueError:
            raise BuildError(
                f"{path}:{number}: expected three tab-separated columns (score, sentence 1, sentence 2) or the STS "
                f"Benchmark's columns, found {len(columns)}"
            ) from None
        first.append(one)
        second.append(two)
    if len(scores) < 3:
        raise BuildError(f"{path}: holds {len(scores)} labelled pairs, at least 3 are needed")
    if len(set(scores)) == 1:
        raise BuildError(f"{path}: all labels are {scores[0]:g}; a correlation needs different ones")
    return first, second, scores


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def measure(
    provider: EmbeddingProvider,
    sentences: list[str],
    reference: Vectors,
    measured_with: str,
    labelled: LabelledPairs | None = None,
) -> Quality:
    """Compare an artifact, run by the runtime itself, with the reference vectors of the same sentences.

    Figures are rounded to six digits, so that the manifest does not depend on the last bit of a sum.
    """
    vectors: Vectors = provider.encode(sentences)
    scale = np.linalg.norm(reference, axis=1, keepdims=True)  # 1 for models that normalise
    cosines = cosine(vectors, reference)
    alone = np.stack([provider.encode(text) for text in sentences])
    together = np.empty_like(alone)
    for start in range(_BATCHES):
        # Each a single batch: short texts are padded to the longest.
        together[start::_BATCHES] = provider.encode(sentences[start::_BATCHES], batch_size=len(sentences))
    return Quality(
        cosine_mean=_rounded(cosines.mean()),
        cosine_min=_rounded(cosines.min()),
        max_abs_diff=float(f"{np.abs((vectors - reference) / scale).max():.2g}"),
        neighbour_overlap=_rounded(neighbour_overlap(vectors, reference)),
        batch_cosine_min=_rounded(cosine(alone, together).min()),
        sentences=len(sentences),
        measured_with=measured_with,
        spearman=_rounded(spearman(provider, labelled)) if labelled is not None else None,
    )


def cosine(a: Vectors, b: Vectors) -> Vectors:
    """Cosine of each row of ``a``, (N, D), to the same row of ``b``: (N,), in float64."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(wide_a, axis=1) * np.linalg.norm(wide_b, axis=1)
    result: Vectors = np.clip((wide_a * wide_b).sum(axis=1) / np.maximum(norms, 1e-30), -1.0, 1.0)
    return result


def neighbour_overlap(vectors: Vectors, reference: Vectors, count: int = NEIGHBOURS) -> float:
    """Mean share of each row's ``count`` nearest other rows (by cosine) that are the same in both sets."""
    count = min(count, len(vectors) - 1)

    def nearest(rows: Vectors) -> npt.NDArray[np.int64]:
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        similarity = unit @ unit.T  # (N, N)
        np.fill_diagonal(similarity, -np.inf)
        return np.argsort(-similarity, axis=1, kind="stable")[:, :count]

    pairs = zip(nearest(vectors), nearest(reference), strict=True)
    return float(np.mean([len(np.intersect1d(ours, theirs)) / count for ours, theirs in pairs]))


def spearman(provider: EmbeddingProvider, labelled: LabelledPairs) -> float:
    """Spearman correlation x100 of cosine similarity and label, as MTEB and sentence-transformers report it."""
    from scipy.stats import spearmanr

    first, second, scores = labelled
    similarity = cosine(provider.encode(first), provider.encode(second))
    return float(100 * spearmanr(similarity, scores).statistic)


def _rounded(value: float) -> float:
    return round(float(value), 6)
