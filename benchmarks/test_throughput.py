"""Measure speed and accuracy of warm models beside their peers: ``make bench``.

Each benchmark encodes the same texts. Its `extra_info` has the texts per second and the worst cosine to the vectors of
sentence-transformers. `--benchmark-json` writes these figures, and the table at the end shows them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fresh import BUNDLE
from pytest_benchmark.fixture import BenchmarkFixture
from subjects import PEER, SUBJECTS, Encode, Subject, long_texts

from firstvec.bundle.manifest import Manifest
from firstvec_build.quality import evaluation_sentences

SHORT = [text for text in evaluation_sentences() if 0 < len(text) < 100][:128]
CASES = ("single", "batch 8", "batch 32", "batch 128", "256 tokens, batch 8")


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    return Manifest.read(BUNDLE)


@pytest.fixture(scope="session")
def cases(manifest: Manifest) -> dict[str, tuple[list[str], int]]:
    """Return case → texts and batch size."""
    inputs = ((SHORT[:1], 1), (SHORT[:8], 8), (SHORT[:32], 32), (SHORT, 128), (long_texts(SHORT, 8, manifest), 8))
    return dict(zip(CASES, inputs, strict=True))


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("subjects")


@pytest.fixture(scope="module")
def reference(manifest: Manifest, scratch: Path, cases: dict[str, tuple[list[str], int]]) -> dict[str, Any]:
    encode = SUBJECTS[PEER].open(manifest, scratch)
    return {case: encode(texts, batch_size) for case, (texts, batch_size) in cases.items()}


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest, manifest: Manifest, scratch: Path) -> tuple[Subject, Encode]:
    subject = SUBJECTS[request.param]
    if reason := subject.missing(manifest):
        pytest.skip(reason)
    return subject, subject.open(manifest, scratch)


@pytest.mark.parametrize("case", CASES)
def test_encode(
    case: str,
    subject: tuple[Subject, Encode],
    cases: dict[str, tuple[list[str], int]],
    reference: dict[str, Any],
    benchmark: BenchmarkFixture,
) -> None:
    program, encode = subject
    texts, batch_size = cases[case]
    benchmark.group = case
    cosines = program.check(benchmark(encode, texts, batch_size), reference[case])
    benchmark.extra_info |= {
        "subject": program.name,
        "texts per second": round(len(texts) / benchmark.stats.stats.median, 1),
        "worst cosine": round(float(cosines.min()), 5),
    }
