"""What is measured on an artifact, and which thresholds are enforced."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from firstvec import OptimizedEmbeddingLoader
from firstvec.bundle.manifest import Artifact, Manifest, Quality
from firstvec.errors import BuildError, InputError, QualityError
from firstvec.provider import EmbeddingProvider
from firstvec_build import quality
from firstvec_build.quality import (
    Thresholds,
    cosine,
    evaluation_sentences,
    measure,
    neighbour_overlap,
    odd_texts,
    read_corpus,
    read_labelled_pairs,
    spearman,
)

THRESHOLDS = Thresholds(fp32_max_abs_diff=0.001, int8_cosine_mean=0.98, int8_cosine_min=0.9, int8_neighbour_overlap=0.8)
PERFECT = Quality(
    cosine_mean=1.0,
    cosine_min=1.0,
    cosine_p1=1.0,
    max_abs_diff=0.0,
    neighbour_overlap=1.0,
    batch_cosine_min=1.0,
    sentences=3,
    measured_with="by hand",
    thresholds={},
)


def make_artifact(precision: str, *, batch_invariant: bool = True) -> Artifact:
    return Artifact(
        id="some-artifact",
        format="onnx",
        precision=precision,
        engine="onnxruntime",
        engine_min="1",
        engine_below="2",
        devices=("cpu",),
        isa=None,
        isa_reason=None,
        batch_invariant=batch_invariant,
        files=(),
        quality=PERFECT,
    )


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small labelled set."""
    path = tmp_path_factory.mktemp("labelled") / "pairs.tsv"
    pairs = [
        ("5.0", "A man is playing a guitar.", "A man plays the guitar."),
        ("4.2", "The cat sleeps on the sofa.", "A cat is lying on the couch."),
        ("2.6", "She is cooking dinner.", "She is eating dinner."),
        ("1.0", "The stock market fell on Monday.", "It rained on Monday."),
        ("0.0", "Two dogs run in the snow.", "The parliament passed the law."),
    ]
    path.write_text("".join("\t".join(pair) + "\n" for pair in pairs), "utf-8")
    return path


def load_full_precision(root: Path) -> EmbeddingProvider:
    provider = OptimizedEmbeddingLoader(str(root), "lazy", device="cpu").get_provider()
    assert provider.artifact.precision == "fp32"
    return provider


@pytest.mark.parametrize(
    ("precision", "metric", "passes", "fails"),
    [
        ("fp32", "max_abs_diff", 0.001, 0.0011),
        ("int8", "cosine_mean", 0.98, 0.9799),
        ("int8", "cosine_min", 0.9, 0.8999),
        ("int8", "neighbour_overlap", 0.8, 0.7999),
        ("int8", "batch_cosine_min", 0.9999, 0.9998),
    ],
)
def test_threshold_of_each_metric_is_enforced(precision: str, metric: str, passes: float, fails: float) -> None:
    enforced = THRESHOLDS.enforce(make_artifact(precision), PERFECT.replace(**{metric: passes})).quality
    assert (getattr(enforced, metric), enforced.thresholds[metric]) == (passes, passes)
    for value in (fails, math.nan):
        with pytest.raises(QualityError, match=f"some-artifact: {metric} is .*, must be at (most|least)") as caught:
            THRESHOLDS.enforce(make_artifact(precision), PERFECT.replace(**{metric: value}))
        assert caught.value.metric == metric
        assert caught.value.value is value
        assert caught.value.threshold == passes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("int8_cosine_min", 1.01),
        ("int8_cosine_mean", -1.01),
        ("int8_batch_cosine_min", math.nan),
        ("int8_neighbour_overlap", -0.01),
        ("fp32_max_abs_diff", -1e-9),
        ("fp32_max_abs_diff", math.inf),
    ],
)
def test_a_threshold_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"{name} {value!r} is not between"):
        Thresholds(**{name: value})


def test_only_the_thresholds_of_the_precision_are_enforced() -> None:
    enforced = THRESHOLDS.enforce(make_artifact("int8"), PERFECT.replace(max_abs_diff=0.5))
    assert "max_abs_diff" not in enforced.quality.thresholds
    with pytest.raises(QualityError, match=r"cosine_mean is 0, must be at least 0\.98"):
        THRESHOLDS.enforce(make_artifact("int8"), PERFECT.replace(cosine_mean=0.0, cosine_min=0.0, max_abs_diff=0.0))


def test_all_thresholds_but_that_of_batches_are_enforced_for_dynamic_int8() -> None:
    dynamic = make_artifact("int8", batch_invariant=False)
    enforced = THRESHOLDS.enforce(dynamic, PERFECT.replace(batch_cosine_min=0.5)).quality.thresholds
    assert enforced == {"cosine_mean": 0.98, "cosine_min": 0.9, "neighbour_overlap": 0.8}
    with pytest.raises(QualityError, match="cosine_min"):
        THRESHOLDS.enforce(dynamic, PERFECT.replace(cosine_min=0.5))


def test_batch_that_changes_a_vector_is_measured(tiny_built: Path) -> None:
    provider = load_full_precision(tiny_built)
    sentences = evaluation_sentences()[:100]
    reference = provider.encode(sentences)
    sizes = []

    def shifted(texts: list[str]) -> Any:
        sizes.append(len(texts))
        return provider.encode(texts) + np.float32(0.05)

    found = measure(provider, shifted, sentences, reference, "a test")
    assert sizes == [10, 10]
    assert found.cosine_min >= 1 - 1e-6
    assert 0 < found.batch_cosine_min < 0.99


def test_corpus_holds_one_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes("one\ttext\r\nanother\u2028text\n  a third ".encode())
    assert read_corpus(path) == ["one\ttext", "another\u2028text", "  a third "]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "corpus.txt: is empty; a corpus holds one text a line"),
        (b"one\n\nthree\n", "corpus.txt:2: is empty"),
        (b"one\n \t\r\n", "corpus.txt:2: is empty"),
        (b"one\n\xff\n", "corpus.txt: cannot be read"),
        (None, "corpus.txt: cannot be read"),
    ],
)
def test_invalid_corpus_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BuildError, match=message):
        read_corpus(path)


def test_neighbours_are_the_same_for_any_number_of_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((70, 8)).astype(np.float32)
    others = rows + generator.standard_normal((70, 8)).astype(np.float32) / 4
    whole = neighbour_overlap(rows, others)
    assert 0.3 < whole < 0.95
    monkeypatch.setattr(quality, "_ROWS", 16)
    assert neighbour_overlap(rows, others) == whole


def test_cosine_of_rows_by_hand() -> None:
    a = np.array([[3, 4], [1, 0], [1, 1], [2, 0], [0, 0]], np.float32)
    b = np.array([[4, 3], [0, 5], [-1, -1], [7, 0], [1, 0]], np.float32)
    assert cosine(a, b) == pytest.approx([24 / 25, 0, -1, 1, 0], abs=1e-15)
    assert cosine(a, b).dtype == np.float64


def test_cosine_never_leaves_its_range() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 384)).astype(np.float32)
    found = cosine(rows, rows * np.float32(1.1))
    assert found.max() <= 1.0
    assert found.min() > 1 - 1e-9


def test_neighbour_overlap_by_hand() -> None:
    angles = np.deg2rad([0, 10, 30, 90, 100])
    reference = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert neighbour_overlap(reference, reference, 2) == 1.0
    assert neighbour_overlap(reference * 7, reference, 2) == 1.0  # only the direction counts

    # Nearest two in the reference: {1,2} {0,2} {1,0} {4,2} {3,2}. The row at 30° moves to 200°, and they become
    # {1,3} {0,3} {4,3} {4,1} {3,1}: shares of 1/2, 1/2, 0, 1/2 and 1/2.
    angles[2] = np.deg2rad(200)
    moved = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert neighbour_overlap(moved, reference, 2) == pytest.approx((0.5 + 0.5 + 0 + 0.5 + 0.5) / 5)


def test_neighbour_overlap_of_few_rows_takes_all_others() -> None:
    rows = np.eye(3, dtype=np.float32)
    assert neighbour_overlap(rows, -rows, 10) == 1.0


def test_evaluation_sentences_are_of_many_lengths(bundle: Path) -> None:
    sentences = evaluation_sentences()
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.no_truncation()
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(sentences)]
    assert len(sentences) == len(set(sentences)) == 320
    assert sentences.count("") == 1
    assert sum(length > 256 for length in lengths) >= 3  # truncation
    assert sum(length < 16 for length in lengths) >= 50


def test_the_benchmark_of_odd_texts_has_none_of_the_builds_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    benchmark = importlib.import_module("odd_texts").odd_texts()
    texts = odd_texts()
    assert len(texts) == len(set(texts)) == 60
    assert not {*texts} & {*evaluation_sentences(), *(text for each in benchmark.values() for text in each)}


@pytest.mark.parametrize(
    ("kind", "belongs"),
    [
        ("a character many times", lambda text: len(text) > 10 and len(set(text)) == 1),
        ("a word many times", lambda text: len(text.split()) > 10 and len(set(text.split())) == 1),
        ("the name of a special token", lambda text: "[SEP]" in text or "[PAD]" in text or "[MASK]" in text),
        ("control characters", lambda text: any(character < " " for character in text)),
        (
            "no ASCII",
            lambda text: not text.isascii() and all(character > "~" or character == " " for character in text),
        ),
        ("one long word", lambda text: len(text) > 40 and text.isalnum() and len(set(text)) > 5),
    ],
)
@pytest.mark.parametrize("half", [0, 1], ids=["calibrated", "unseen"])
def test_each_half_of_the_odd_texts_holds(kind: str, belongs: Callable[[str], bool], half: int) -> None:
    assert any(map(belongs, odd_texts()[half::2])), kind


@pytest.mark.parametrize(
    ("kind", "belongs"),
    [
        ("CJK", lambda text: any("\u4e00" <= character <= "\u9fff" for character in text)),
        ("emoji", lambda text: any("\U0001f300" <= character <= "\U0001faff" for character in text)),
        ("code", lambda text: any(mark in text for mark in ("def ", "SELECT ", "return ", "();", "{\n"))),
        ("accents", lambda text: any(character in text for character in "éüñçø")),
    ],
)
def test_evaluation_sentences_hold(kind: str, belongs: Callable[[str], bool]) -> None:
    assert sum(map(belongs, evaluation_sentences())) >= 3, kind


def test_labelled_pairs_are_read_in_both_layouts(tmp_path: Path) -> None:
    rows = [("4.5", "one", "two"), ("0", "three", "vier für fünf"), ("3.25", 'with "quotes', "a, b")]
    (tmp_path / "plain.tsv").write_text("".join("\t".join(row) + "\n" for row in rows), "utf-8")
    (tmp_path / "sts.csv").write_text(
        "\n".join("\t".join(["main-news", "MSRpar", "2012", "0001", *row, "source", "other"]) for row in rows), "utf-8"
    )
    (tmp_path / "sts-without-sources.csv").write_text(
        "\r\n".join("\t".join(["main-news", "MSRpar", "2012", "0001", *row]) for row in rows), "utf-8"
    )
    expected = (["one", "three", 'with "quotes'], ["two", "vier für fünf", "a, b"], [4.5, 0.0, 3.25])
    for name in ("plain.tsv", "sts.csv", "sts-without-sources.csv"):
        assert read_labelled_pairs(tmp_path / name) == expected


@pytest.mark.parametrize("separator", ["\x85", "\u2028", "\x0b", "\x1c"])
def test_only_newlines_end_a_labelled_pair(separator: str, tmp_path: Path) -> None:
    # All of these are line ends to str.splitlines(); texts from the web hold them.
    path = tmp_path / "pairs.tsv"
    path.write_text(f"1\ta{separator}b\tc\n2\td\te\n3\tf\tg\n", "utf-8")
    assert read_labelled_pairs(path)[0] == [f"a{separator}b", "d", "f"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("one\ttwo", "found 2"),
        ("1.0, one, two", "found 1"),
        ("", "found 1"),
        ("1.0\tone\ttwo\tthree", "found 4"),
        ("high\tone\ttwo", "three tab-separated columns"),
        # NaN has no rank, so the correlation would be NaN, too, and NaN is not JSON.
        ("nan\tone\ttwo", "pairs.tsv:3"),
    ],
)
def test_wrong_columns_are_reported_with_file_and_line(line: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(f"1.0\tone\ttwo\n2.0\tthree\tfour\n{line}\n3.0\tfive\tsix\n", "utf-8")
    with pytest.raises(BuildError) as caught:
        read_labelled_pairs(path)
    assert f"{path}:3: " in str(caught.value)
    assert found in str(caught.value)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_labelled_pairs_are_refused(count: int, tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("1.0\tone\ttwo\n" * count, "utf-8")
    with pytest.raises(BuildError, match=rf"pairs\.tsv: holds {count} labelled pairs, at least 3"):
        read_labelled_pairs(path)


def test_equal_labels_are_refused(tmp_path: Path) -> None:
    # The correlation with a constant is NaN, which a manifest cannot hold.
    path = tmp_path / "pairs.tsv"
    path.write_text("1.0\tone\ttwo\n1.0\tthree\tfour\n1.0\tfive\tsix\n", "utf-8")
    with pytest.raises(BuildError, match=r"pairs\.tsv"):
        read_labelled_pairs(path)


@pytest.mark.parametrize("content", [None, b"1.0\tcaf\xe9\tcoffee\n"])
def test_unreadable_labelled_set_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BuildError, match=r"pairs\.tsv: cannot be read"):
        read_labelled_pairs(path)


def test_spearman_equals_that_of_sentence_transformers(bundle: Path, sentence_transformer: Any, labelled: Path) -> None:
    from scipy.stats import spearmanr

    first, second, scores = read_labelled_pairs(labelled)
    one, two = sentence_transformer.encode(first), sentence_transformer.encode(second)
    expected = 100 * spearmanr((one * two).sum(axis=1), scores).statistic
    found = spearman(load_full_precision(bundle), (first, second, scores))
    assert found == pytest.approx(expected, abs=1e-9)
    assert 50 < found <= 100


def test_measure_compares_with_the_reference(tiny_built: Path, labelled: Path) -> None:
    provider = load_full_precision(tiny_built)
    sentences = evaluation_sentences()[:40]
    exact = provider.encode(sentences)
    reference = exact.copy()
    reference[3] = exact[4]  # one sentence went wrong
    found = measure(provider, provider.encode, sentences, reference, "a test", read_labelled_pairs(labelled))

    similarity = float((exact[3] * exact[4]).sum())
    assert found.cosine_min == pytest.approx(similarity, abs=2e-6)
    # numpy.percentile takes a point between the worst cosine and the next of 40: 0.39 of the way.
    assert found.cosine_p1 == pytest.approx(similarity + 0.39 * (1 - similarity), abs=2e-6)
    assert found.cosine_mean == pytest.approx((39 + similarity) / 40, abs=2e-6)
    assert found.max_abs_diff == pytest.approx(float(np.abs(exact[3] - exact[4]).max()), rel=0.06)
    assert 0 < found.neighbour_overlap < 1
    assert found.batch_cosine_min >= 1 - 1e-6
    assert (found.sentences, found.measured_with) == (40, "a test")
    assert found.spearman == pytest.approx(spearman(provider, read_labelled_pairs(labelled)), abs=1e-6)


def test_odd_texts_have_a_figure_of_their_own(tiny_built: Path) -> None:
    provider = load_full_precision(tiny_built)
    sentences, odd = evaluation_sentences()[:12], odd_texts()[:12]
    exact = provider.encode(odd)
    vectors = exact.copy()
    vectors[5] = exact[9]  # one odd text went wrong
    seen: list[int] = []
    found = measure(
        *(provider, provider.encode, sentences, provider.encode(sentences), "a test"),
        odd=(odd, vectors),
        report_texts=seen.append,
    )
    assert found.odd_cosine_min == pytest.approx(float((exact[5] * exact[9]).sum()), abs=2e-6)
    assert (found.cosine_min, found.sentences, sum(seen)) == (1.0, 12, 12 + 12 + 2 * 12)
    assert found.worst_cosine == found.odd_cosine_min
    without = measure(provider, provider.encode, sentences, provider.encode(sentences), "a test")
    assert (without.odd_cosine_min, without.worst_cosine) == (None, 1.0)


def test_difference_is_relative_to_the_length_of_the_reference(tiny_built: Path) -> None:
    provider = load_full_precision(tiny_built)
    sentences = evaluation_sentences()[:12]
    found = measure(provider, provider.encode, sentences, 2 * provider.encode(sentences), "a test")
    largest = float(np.abs(provider.encode(sentences)).max())
    assert found.max_abs_diff == pytest.approx(largest / 2, rel=0.06)
    assert found.cosine_min == 1.0
    assert found.spearman is None


def test_real_bundle_states_its_measured_quality(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    assert [artifact.precision for artifact in manifest.artifacts] == ["fp32"] * 3 + ["int8"] * 4
    for artifact in manifest.artifacts:
        assert Thresholds().enforce(artifact, artifact.quality) == artifact
        assert artifact.quality.thresholds
        assert artifact.batch_invariant
        assert artifact.quality.cosine_min <= artifact.quality.cosine_p1 <= artifact.quality.cosine_mean
        assert artifact.quality.sentences == 320
        assert (artifact.quality.odd_cosine_min is None) == (artifact.precision == "fp32")
        assert artifact.quality.worst_cosine > 0.96
        if artifact.precision == "fp32":
            assert artifact.quality.max_abs_diff <= 1e-5
            assert artifact.quality.batch_cosine_min >= 0.999999
    stated = json.loads((bundle / "firstvec.json").read_bytes())["artifacts"]
    figures = [value for item in stated for value in item["quality"].values() if isinstance(value, float)]
    assert len(figures) >= 5 * 5
    assert all(map(math.isfinite, figures))
