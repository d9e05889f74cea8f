"""How close an artifact is to the fp32 reference, and the thresholds it must meet."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firstvec.errors import BuildError, InputError, QualityError
from firstvec.manifest import Artifact, Quality
from firstvec.provider import EmbeddingProvider

Vectors = npt.NDArray[np.float32]
LabelledPairs = tuple[list[str], list[str], list[float]]

NEIGHBOURS = 10
_BATCH = 40
"""Sentences of mixed lengths that are padded and run together, to see whether batch neighbours change a vector."""
_MOST_ALONE = 1000
"""Of more texts than these only some, evenly over all, are also encoded one by one."""
_ROWS = 1024
"""Texts whose neighbours are looked for at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What an artifact must reach. The only place where they are set; the CLI overrides them.

    Raises:
        InputError: a threshold is outside the range of what it bounds.
    """

    fp32_max_abs_diff: float = 1e-5
    int8_cosine_mean: float = 0.995
    int8_cosine_min: float = 0.97
    int8_neighbour_overlap: float = 0.9
    int8_batch_cosine_min: float = 0.9999

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            low, high = (0.0, 1e9) if name.startswith("fp32") else (0.0 if "overlap" in name else -1.0, 1.0)
            if not low <= value <= high:
                raise InputError(f"the threshold {name} {value!r} is not between {low:g} and {high:g}")

    def of(self, artifact: Artifact) -> dict[str, float]:
        """Metric → threshold for this artifact."""
        if artifact.precision == "fp32":
            return {"max_abs_diff": self.fp32_max_abs_diff}
        metrics = ["cosine_mean", "cosine_min", "neighbour_overlap"]
        if artifact.batch_invariant:
            metrics.append("batch_cosine_min")
        return {metric: getattr(self, f"int8_{metric}") for metric in metrics}

    def hold(self, artifact: Artifact, quality: Quality) -> Artifact:
        """Return the artifact with its quality, and with what that was held to.

        Raises:
            QualityError: it misses a threshold.
        """
        thresholds = self.of(artifact)
        for metric, threshold in thresholds.items():
            value = getattr(quality, metric)
            at_most = metric == "max_abs_diff"
            if not (value <= threshold if at_most else value >= threshold):
                raise QualityError(artifact.id, metric, value, "at most" if at_most else "at least", threshold)
        return artifact.replace(quality=quality.replace(thresholds=thresholds))


def evaluation_sentences() -> list[str]:
    """The project's own sentences: short, long past truncation, code, accents, CJK, emoji, empty."""
    text = (resources.files("firstvec_build") / "data" / "sentences.json").read_text("utf-8")
    return list(json.loads(text))


def read_corpus(path: Path) -> list[str]:
    """Read texts to measure on, one a line.

    Raises:
        BuildError: the file cannot be read, has no line, or has an empty one.
    """
    texts = [line.removesuffix("\r") for line in _lines(path)]
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise BuildError(f"{path}:{number}: is empty; a corpus holds one text a line: remove the line")
    if not texts:
        raise BuildError(f"{path}: is empty; a corpus holds one text a line")
    return texts


def _lines(path: Path) -> list[str]:
    """The file's lines. Not by str.splitlines(): texts may hold U+2028 and other characters that it takes for ends."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{path}: cannot be read ({error})") from error
    return lines[:-1] if lines[-1] == "" else lines


def read_labelled_pairs(path: Path) -> LabelledPairs:
    """Read a labelled set: tab-separated ``score, sentence 1, sentence 2``, or the STS Benchmark's own columns.

    Raises:
        BuildError: the file cannot be read, or a line has other columns.
    """
    first, second, scores = [], [], []
    for number, line in enumerate(_lines(path), 1):
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
    run_together: Callable[[list[str]], Vectors],
    sentences: list[str],
    reference: Vectors,
    measured_with: str,
    labelled: LabelledPairs | None = None,
) -> Quality:
    """Compare an artifact, run by the runtime itself, with the reference vectors of the same sentences.

    Figures are rounded to six digits, so that the manifest does not depend on the last bit of a sum.

    Args:
        provider: of the artifact.
        run_together: encodes texts in one padded batch, which a provider avoids.
        sentences: what is encoded.
        reference: their fp32 vectors, (N, D).
        measured_with: for the manifest.
        labelled: a labelled set, for Spearman.
    """
    vectors: Vectors = provider.encode(sentences)
    scale = np.linalg.norm(reference, axis=1, keepdims=True)  # 1 for models that normalise
    cosines = cosine(vectors, reference)
    some = sentences[:: -(-len(sentences) // _MOST_ALONE)]
    alone = np.stack([provider.encode(text) for text in some])
    together = np.empty_like(alone)
    batches = -(-len(some) // _BATCH)
    for start in range(batches):
        together[start::batches] = run_together(some[start::batches])
    return Quality(
        cosine_mean=_rounded(cosines.mean()),
        cosine_min=_rounded(cosines.min()),
        cosine_p1=_rounded(np.percentile(cosines, 1)),
        max_abs_diff=float(f"{np.abs((vectors - reference) / scale).max():.2g}"),
        neighbour_overlap=_rounded(neighbour_overlap(vectors, reference)),
        batch_cosine_min=_rounded(cosine(alone, together).min()),
        sentences=len(sentences),
        measured_with=measured_with,
        spearman=_rounded(spearman(provider, labelled)) if labelled is not None else None,
        thresholds={},
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

    def nearest(rows: Vectors) -> Iterator[npt.NDArray[np.int64]]:
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        for start in range(0, len(unit), _ROWS):  # all similarities of a large corpus would fill the memory
            similarity = unit[start : start + _ROWS] @ unit.T  # (_ROWS, N)
            own = np.arange(len(similarity))
            similarity[own, start + own] = -np.inf
            yield from np.argsort(-similarity, axis=1, kind="stable")[:, :count]

    pairs = zip(nearest(vectors), nearest(reference), strict=True)
    return float(np.mean([len(np.intersect1d(ours, theirs)) / count for ours, theirs in pairs]))


def spearman(provider: EmbeddingProvider, labelled: LabelledPairs) -> float:
    """Spearman correlation x100 of cosine similarity and label, as MTEB and sentence-transformers report it."""
    from scipy.stats import spearmanr

    first, second, scores = labelled
    similarity = cosine(provider.encode(first), provider.encode(second))
    return float(100 * spearmanr(similarity, scores).statistic)


def _rounded(value: float | np.floating[Any]) -> float:
    return round(float(value), 6)
