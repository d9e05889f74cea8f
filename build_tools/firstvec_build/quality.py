"""Measure how close an artifact is to the fp32 reference, and enforce the thresholds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firstvec.bundle.manifest import Artifact, Quality
from firstvec.errors import BuildError, InputError, QualityError
from firstvec.provider import EmbeddingProvider
from firstvec_build.memory import most_texts

Vectors = npt.NDArray[np.float32]
LabelledPairs = tuple[list[str], list[str], list[float]]
"""First sentences, second sentences, and the score of each pair."""

_NEIGHBOURS = 10
_BATCH = 12
"""So many sentences of mixed lengths are padded and run together, to see whether the batch changes a vector."""
_MOST_ALONE = 24
"""At most this many texts are encoded alone and in padded batches, evenly spread over all texts."""
_PART = 80
"""About this many texts are encoded between two reports of the progress."""
_ROWS = 1024
"""Number of texts whose neighbours are searched in one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The limits that an artifact must reach. The defaults are only here, and the command's options override them.

    Raises:
        InputError: a threshold is outside the range of its metric.
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

    def check(self, artifact: Artifact, figures: Mapping[str, float]) -> None:
        """Compare an artifact's figures, metric → value, with the thresholds.

        Raises:
            QualityError: the artifact misses a threshold.
        """
        for metric, threshold in self._thresholds_of(artifact).items():
            if metric not in figures:
                continue
            value, at_most = figures[metric], metric == "max_abs_diff"
            if not (value <= threshold if at_most else value >= threshold):
                raise QualityError(artifact.id, metric, value, "at most" if at_most else "at least", threshold)

    def enforce(self, artifact: Artifact, quality: Quality) -> Artifact:
        """Return the artifact with its quality and the thresholds that were enforced.

        Raises:
            QualityError: the artifact misses a threshold.
        """
        thresholds = self._thresholds_of(artifact)
        self.check(artifact, {metric: getattr(quality, metric) for metric in thresholds})
        return artifact.replace(quality=quality.replace(thresholds=thresholds))

    def _thresholds_of(self, artifact: Artifact) -> dict[str, float]:
        """Return metric → threshold."""
        if artifact.precision == "fp32":
            return {"max_abs_diff": self.fp32_max_abs_diff}
        metrics = ["cosine_mean", "cosine_min", "neighbour_overlap"]
        if artifact.batch_invariant:
            metrics.append("batch_cosine_min")
        return {metric: getattr(self, f"int8_{metric}") for metric in metrics}


def evaluation_sentences() -> list[str]:
    """Return the project's own sentences: short ones, truncated ones, code, accents, CJK, emoji, and the empty text."""
    return _read_texts("sentences.json")


def odd_texts() -> list[str]:
    """Return texts that nobody expects, such as repeated characters, names of special tokens, and control characters.

    Texts of one kind follow one another, so every second text has nearly the same kinds as the others.
    """
    return _read_texts("odd_texts.json")


def _read_texts(name: str) -> list[str]:
    return list(json.loads((resources.files("firstvec_build") / "data" / name).read_text("utf-8")))


def read_corpus(path: Path) -> list[str]:
    """Read the texts of a corpus, one a line.

    Raises:
        BuildError: the file cannot be read, has no line, or has an empty line.
    """
    texts = [line.removesuffix("\r") for line in _read_lines(path)]
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise BuildError(f"{path}:{number}: is empty; a corpus holds one text a line: remove the line")
    if not texts:
        raise BuildError(f"{path}: is empty; a corpus holds one text a line")
    return texts


def read_labelled_pairs(path: Path) -> LabelledPairs:
    """Read a labelled set: tab-separated ``score, sentence 1, sentence 2``, or the STS Benchmark's own columns.

    Raises:
        BuildError: the file cannot be read, a line has other columns, or the labels cannot be correlated.
    """
    first, second, scores = [], [], []
    for number, line in enumerate(_read_lines(path), 1):
        columns = line.removesuffix("\r").split("\t")
        # STS Benchmark: genre, file, year, id, score, sentence 1, sentence 2, and sources.
        columns = columns[4:7] if len(columns) >= 7 else columns
        try:
            score, one, two = columns
            scores.append(_parse_score(score))
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


def _read_lines(path: Path) -> list[str]:
    try:
        # str.splitlines() would also split at U+2028 and other characters that a text may hold.
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{path}: cannot be read ({error})") from error
    return lines[:-1] if lines[-1] == "" else lines


def _parse_score(text: str) -> float:
    if not math.isfinite(score := float(text)):
        raise ValueError(text)
    return score


def measure(
    provider: EmbeddingProvider,
    run_together: Callable[[list[str]], Vectors],
    sentences: list[str],
    reference: Vectors,
    measured_with: str,
    labelled: LabelledPairs | None = None,
    check: Callable[[Mapping[str, float]], None] = lambda _figures: None,
    report_texts: Callable[[int], None] = lambda _count: None,
    matryoshka_dims: Sequence[int] = (),
    odd: tuple[list[str], Vectors] | None = None,
) -> Quality:
    """Compare an artifact, which the runtime itself runs, with the reference vectors of the same sentences.

    Figures are rounded to six digits, so that the manifest does not depend on the last bit of a sum.

    Args:
        provider: the artifact's provider.
        run_together: encodes texts in one padded batch. A provider would sort them into batches without padding.
        sentences: the texts.
        reference: the texts' fp32 vectors, (N, D).
        measured_with: engine and version, for the manifest.
        labelled: a labelled set, for Spearman's correlation.
        check: called with the cheap figures, metric → value, before the expensive ones are measured. What ``check``
            raises ends the measurement.
        report_texts: called with the number of texts that were encoded.
        matryoshka_dims: the dimensions that the model is made to be cut to.
        odd: odd texts, (M,), and their fp32 vectors, (M, D). None: they are not measured.
    """
    vectors = np.empty_like(reference)
    parts = -(-len(sentences) // _PART)
    for start in range(parts):  # each part has texts of all lengths
        vectors[start::parts] = provider.encode(sentences[start::parts])
        report_texts(len(sentences[start::parts]))
    # (N, 1), 1 for models that normalize. A static model's vector of the empty text is 0.
    scale = np.maximum(np.linalg.norm(reference, axis=1, keepdims=True), 1e-30)
    cosines = cosine(vectors, reference)
    cheap = {
        "cosine_mean": _round(cosines.mean()),
        "cosine_min": _round(cosines.min()),
        "cosine_p1": _round(np.percentile(cosines, 1)),
        "max_abs_diff": float(f"{np.abs((vectors - reference) / scale).max():.2g}"),
        "neighbour_overlap": _round(neighbour_overlap(vectors, reference)),
    }
    check(cheap)
    odd_cosine_min = None
    if odd is not None:
        odd_cosine_min = _round(cosine(provider.encode(odd[0]), odd[1]).min())
        report_texts(len(odd[0]))
    some = sentences[:: -(-len(sentences) // _MOST_ALONE)]
    alone = np.stack([provider.encode(text) for text in some])
    together = np.empty_like(alone)
    batches = -(-len(some) // most_texts(max(provider.count_tokens(some)), _BATCH))
    for start in range(batches):
        together[start::batches] = run_together(some[start::batches])
        report_texts(2 * len(some[start::batches]))
    return Quality(
        cosine_mean=cheap["cosine_mean"],
        cosine_min=cheap["cosine_min"],
        cosine_p1=cheap["cosine_p1"],
        odd_cosine_min=odd_cosine_min,
        max_abs_diff=cheap["max_abs_diff"],
        neighbour_overlap=cheap["neighbour_overlap"],
        batch_cosine_min=_round(cosine(alone, together).min()),
        sentences=len(sentences),
        measured_with=measured_with,
        spearman=_round(spearman(provider, labelled)) if labelled is not None else None,
        matryoshka={
            str(dim): _round(neighbour_overlap(vectors[:, :dim], reference))
            for dim in matryoshka_dims
            if dim < reference.shape[1]
        }
        or None,
        thresholds={},
    )


def cosine(a: Vectors, b: Vectors) -> Vectors:
    """Return the cosine of each row of ``a``, (N, D), to the same row of ``b``: (N,), in float64.

    Equal rows have cosine 1, also where both are 0.
    """
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(wide_a, axis=1) * np.linalg.norm(wide_b, axis=1)
    cosines = np.clip((wide_a * wide_b).sum(axis=1) / np.maximum(norms, 1e-30), -1.0, 1.0)
    result: Vectors = np.where((a == b).all(axis=1), 1.0, cosines)
    return result


def neighbour_overlap(vectors: Vectors, reference: Vectors, count: int = _NEIGHBOURS) -> float:
    """Return the mean share of each row's ``count`` nearest other rows (by cosine) that are the same in both sets."""
    count = min(count, len(vectors) - 1)

    def find_nearest(rows: Vectors) -> Iterator[npt.NDArray[np.int64]]:
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        for start in range(0, len(unit), _ROWS):  # all similarities of a large corpus would fill the memory
            similarity = unit[start : start + _ROWS] @ unit.T  # (_ROWS, N)
            own = np.arange(len(similarity))
            similarity[own, start + own] = -np.inf
            yield from np.argsort(-similarity, axis=1, kind="stable")[:, :count]

    pairs = zip(find_nearest(vectors), find_nearest(reference), strict=True)
    return float(np.mean([len(np.intersect1d(ours, theirs)) / count for ours, theirs in pairs]))


def spearman(provider: EmbeddingProvider, labelled: LabelledPairs) -> float:
    """Return Spearman's correlation x100 of cosine and label, as MTEB and sentence-transformers report it."""
    from scipy.stats import spearmanr

    first, second, scores = labelled
    similarity = cosine(provider.encode(first), provider.encode(second))
    return float(100 * spearmanr(similarity, scores).statistic)


def _round(value: float | np.floating[Any]) -> float:
    return round(float(value), 6)
