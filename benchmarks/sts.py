"""Measure accuracy and throughput on the sentences of a labelled set, such as the test split of the STS Benchmark.

All programs live in one process. Every round runs each program once, in the order of the tables, so other load of the
machine affects all programs alike. A ratio compares two times of the same round, and the tables show the median of the
rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from record import DASH, machine, markdown_list, markdown_table, write
from scipy.stats import spearmanr
from subjects import PEER, STOCK, SUBJECTS, Encode, Subject, long_texts

from firstvec.bundle.manifest import Manifest
from firstvec.errors import FirstvecError
from firstvec_build.quality import cosine, read_labelled_pairs

SEED = 20170801
MOST_SAMPLED = 500
BATCH = 32
LABELLED = f"All sentences, batch {BATCH}"
"""The case whose vectors are compared with the labels."""
ACCURACY = ("cosine, mean", "cosine, p1", "cosine, min", "alone vs. in a batch, min", "Spearman × 100")


@dataclass(frozen=True, slots=True)
class Case:
    """Calls of `Encode` that are timed together."""

    calls: list[list[str]]
    batch_size: int

    @property
    def texts(self) -> int:
        """The number of texts in all calls."""
        return sum(map(len, self.calls))

    def run(self, encode: Encode) -> list[Any]:
        """Make the calls."""
        return [encode(texts, self.batch_size) for texts in self.calls]


Figures = dict[str, dict[str, float | None]]
"""Program → heading → value."""


def main() -> None:
    """Run the benchmark and print its tables."""
    options = parse()
    try:
        measure(options)
    except FirstvecError as error:
        sys.exit(f"error: {error}")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/all-MiniLM-L6-v2"), help="its folder")
    columns = "tab-separated score, sentence 1, sentence 2, or the STS Benchmark's own columns"
    parser.add_argument("--sts", type=Path, required=True, metavar="FILE", help=f"the labelled set: {columns}")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--only", action="append", choices=SUBJECTS, metavar="NAME", help=f"of: {'; '.join(SUBJECTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample, and the machine")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables, and the machine")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def measure(options: argparse.Namespace) -> None:
    """Compare, time and report.

    Raises:
        FirstvecError: the labelled set, the bundle or the source of its model cannot be used.
    """
    first, second, scores = read_labelled_pairs(options.sts)
    manifest = Manifest.read(options.bundle.resolve())
    labelled_set = f"{options.sts.name}, {len(scores)} pairs"
    facts = {"model": manifest.model.name, "labelled set": labelled_set, "rounds": options.rounds, **machine()}
    subjects = choose_subjects(manifest, options.only or SUBJECTS)
    sentences = [*first, *second]
    cases = choose_cases(sentences, manifest)
    with tempfile.TemporaryDirectory(prefix="firstvec-bench-") as scratch:
        peer = SUBJECTS[PEER].open(manifest, Path(scratch))
        reference = encode_all(peer, cases)
        encoders: dict[str, Encode] = {}
        accuracy: Figures = {}
        worst: dict[str, dict[str, float]] = {}
        for subject in subjects:
            print(f"opening and comparing {subject.name}", file=sys.stderr)
            is_peer = subject.name == PEER
            encode = peer if is_peer else subject.open(manifest, Path(scratch))
            vectors = reference if is_peer else encode_all(encode, cases)
            cosines = compare(subject, vectors, reference)
            worst[subject.name] = {case: float(each.min()) for case, each in cosines.items()}
            alone = alone_and_mixed(encode, sentences)
            accuracy[subject.name] = summarize(vectors[LABELLED], cosines[LABELLED], alone, scores)
            encoders[subject.name] = encode
        seconds = run_rounds(encoders, cases, options.rounds)
    throughput: dict[str, Figures] = {
        case: {
            name: {**rates(cases[case].texts, seconds[case], name), "cosine, min": worst[name][case]}
            for name in encoders
        }
        for case in cases
    }
    sections = {"Accuracy": as_table(accuracy, ("{:.5f}", "{:.4f}", "{:.4f}", "{:.6f}", "{:.2f}"))}
    formats = ("{:.0f}", "{:.2f}", "{:.2f}", "{:.4f}")
    sections |= {case: as_table(figures, formats) for case, figures in throughput.items()}
    tables = "\n".join(f"## {heading}\n\n{table}" for heading, table in sections.items())
    print(tables)
    if options.json:
        document = {"run": facts, "accuracy": accuracy, "throughput": throughput, "seconds": seconds}
        write(options.json, json.dumps(document, ensure_ascii=False, indent=1) + "\n")
    if options.markdown:
        write(options.markdown, f"{tables}\n{markdown_list(facts)}")


def choose_subjects(manifest: Manifest, names: Collection[str]) -> list[Subject]:
    """Return the named subjects that can be measured here. Print on stderr why the others cannot."""
    subjects = [subject for name, subject in SUBJECTS.items() if name in names]
    reasons = {subject.name: subject.missing(manifest) for subject in subjects}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"left out: {name}: {reason}", file=sys.stderr)
    return [subject for subject in subjects if reasons[subject.name] is None] or sys.exit("error: nothing is left")


def choose_cases(sentences: Sequence[str], manifest: Manifest) -> dict[str, Case]:
    """Return heading of a table → the timed calls.

    Some programs sort texts by length before they make batches, and other programs do not. The texts of the second case
    are already sorted, so this case treats all programs alike.
    """
    short = [text for text in sentences if len(text) < 100] or sentences
    singles = random.Random(SEED).sample(short, min(50, len(short)))
    return {
        LABELLED: Case([list(sentences)], BATCH),
        f"All sentences, longest first, batch {BATCH}": Case([sorted(sentences, key=len, reverse=True)], BATCH),
        "One short text at a time": Case([[text] for text in singles], 1),
        "256 tokens, batch 8": Case([long_texts(sentences, 16, manifest)], 8),
    }


def encode_all(encode: Encode, cases: Mapping[str, Case]) -> dict[str, Any]:
    """Return the vectors of each case, (N, D)."""
    return {name: np.asarray(np.concatenate(case.run(encode)), np.float32) for name, case in cases.items()}


def compare(subject: Subject, vectors: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """Return each case's cosines to the peer's vectors. End the benchmark if a vector is wrong."""
    try:
        return {case: subject.check(ours, reference[case]) for case, ours in vectors.items()}
    except ValueError as error:
        sys.exit(f"error: {error}")


def alone_and_mixed(encode: Encode, sentences: Sequence[str]) -> float:
    """Return the worst cosine of a text encoded alone to the same text in a batch. The sample is always the same."""
    sample = random.Random(SEED).sample(sentences, min(MOST_SAMPLED, len(sentences)))
    alone = Case([[text] for text in sample], 1)
    mixed = Case([sample[start : start + BATCH] for start in range(0, len(sample), BATCH)], BATCH)
    return float(cosine(*encode_all(encode, {"alone": alone, "mixed": mixed}).values()).min())


def summarize(vectors: Any, cosines: Any, alone: float, scores: Sequence[float]) -> dict[str, float | None]:
    """Return the figures of `ACCURACY`. The vectors are of all first, then of all second sentences."""
    first, second = np.split(vectors, 2)
    spearman = 100 * spearmanr(cosine(first, second), scores).statistic
    values = (cosines.mean(), np.percentile(cosines, 1), cosines.min(), alone, spearman)
    return dict(zip(ACCURACY, map(float, values), strict=True))


def run_rounds(
    encoders: Mapping[str, Encode], cases: Mapping[str, Case], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Return case → program → seconds of each round. `encode_all` has already run each case with each program."""
    seconds: dict[str, dict[str, list[float]]] = {case: {name: [] for name in encoders} for case in cases}
    for number in range(1, rounds + 1):
        for case_name, case in cases.items():
            for name, encode in encoders.items():
                started = time.perf_counter()
                case.run(encode)
                seconds[case_name][name].append(time.perf_counter() - started)
        print(f"round {number}/{rounds}", file=sys.stderr)
    return seconds


def rates(texts: int, seconds: Mapping[str, Sequence[float]], name: str) -> dict[str, float | None]:
    """Return a program's speed in one case, and its ratios to others."""
    return {
        "texts per second": median(texts / each for each in seconds[name]),
        **{f"× {other}": ratio(seconds, name, other) for other in (PEER, STOCK)},
    }


def ratio(seconds: Mapping[str, Sequence[float]], name: str, other: str) -> float | None:
    """Return how many times as fast a program is as the other, in the median round. None: the other was not run."""
    if other not in seconds:
        return None
    return median(theirs / ours for ours, theirs in zip(seconds[name], seconds[other], strict=True))


def as_table(figures: Figures, formats: Sequence[str]) -> str:
    """Return figures as a table in Markdown, with a dash for a figure that was not measured."""
    headings = next(iter(figures.values()))
    rows = [["program", *headings]]
    for name, values in figures.items():
        cells = zip(formats, values.values(), strict=True)
        rows.append([name, *(DASH if value is None else form.format(value) for form, value in cells)])
    return markdown_table(rows)


if __name__ == "__main__":
    main()
