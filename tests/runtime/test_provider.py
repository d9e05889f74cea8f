"""Texts in, vectors out: shapes, order, errors, and agreement with sentence-transformers."""

from __future__ import annotations

import itertools
import logging
import sqlite3
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import (
    ClosedError,
    EmbeddingProvider,
    FirstvecError,
    IncompatibleArtifact,
    InputError,
    IntegrityError,
    OptimizedEmbeddingLoader,
)
from firstvec import provider as provider_module
from firstvec.vectors import read_ranges
from firstvec_build.quality import evaluation_sentences
from tests.conftest import Fresh, edit_manifest
from tests.loads import load

FP32 = ["native-fp32", "onnx-fp32"]
"""An engine that pads no text, and one that pads texts to one length."""


@pytest.fixture(scope="module", params=FP32)
def provider(bundle: Path, request: pytest.FixtureRequest) -> EmbeddingProvider:
    return OptimizedEmbeddingLoader(str(bundle), artifact=request.param).get_provider()


def reference(model: Any, *arguments: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.encode(*arguments, **options)


def test_all_evaluation_sentences_agree_with_sentence_transformers(
    provider: EmbeddingProvider, reference_vectors: Any
) -> None:
    vectors = provider.encode(evaluation_sentences())
    assert np.abs(vectors - reference_vectors).max() <= 1e-5
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_token_counts_agree_with_sentence_transformers(provider: EmbeddingProvider, sentence_transformer: Any) -> None:
    sentences = evaluation_sentences()
    encoded = sentence_transformer.tokenizer(sentences, truncation=True, max_length=256)["input_ids"]
    assert provider.count_tokens(sentences) == [len(ids) for ids in encoded]


def test_one_text_has_one_dimension_and_a_list_has_two(provider: EmbeddingProvider) -> None:
    assert provider.encode("text").shape == (384,)
    assert provider.encode(["text"]).shape == (1, 384)
    assert provider.encode(("one", "two")).shape == (2, 384)
    assert provider.encode(np.array(["one", "two"]).tolist()).dtype == np.float32
    assert provider.embed_query("text").shape == provider.embed_chunk("text").shape == (384,)
    assert provider.embed_batch(["one", "two", "three"]).shape == (3, 384)


def test_vectors_come_in_the_order_of_the_texts(provider: EmbeddingProvider) -> None:
    texts = ["short", "a " * 200, "a middling text of some words", "x"]
    together = provider.encode(texts, batch_size=2)
    for index, text in enumerate(texts):
        np.testing.assert_allclose(together[index], provider.encode(text), atol=1e-6)


def test_the_older_name_of_the_parameter_works(provider: EmbeddingProvider) -> None:
    np.testing.assert_array_equal(provider.encode(sentences=["text"]), provider.encode(["text"]))


def test_the_empty_string_has_a_vector(provider: EmbeddingProvider, sentence_transformer: Any) -> None:
    np.testing.assert_allclose(provider.embed_query(""), reference(sentence_transformer, ""), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"truncate_dim": 20}, {"truncate_dim": 20, "normalize_embeddings": True}])
@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precisions_agree_with_sentence_transformers(precision: str, options: dict[str, Any], tiny_built: Path) -> None:
    from sentence_transformers.util.quantization import quantize_embeddings

    provider = OptimizedEmbeddingLoader(str(tiny_built)).get_provider()
    sentences = evaluation_sentences()[:120]
    data = (tiny_built / "vector_ranges.f32").read_bytes()
    dim = options.get("truncate_dim", 32)
    ranges = read_ranges(data, "", 32, dim, "normalize_embeddings" in options)
    ours = provider.encode(sentences, precision=precision, **options)
    theirs = quantize_embeddings(provider.encode(sentences, **options), precision=precision, ranges=ranges)
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype


@pytest.mark.native
@pytest.mark.parametrize("artifact", ["native-fp32", "native-int8"])
@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_a_text_has_the_same_bytes_in_any_batch(precision: str, artifact: str, tiny_built: Path) -> None:
    provider = OptimizedEmbeddingLoader(str(tiny_built), artifact=artifact).get_provider()
    sentences = evaluation_sentences()[:40]
    together = provider.encode(sentences, precision=precision)
    for start in (0, 3, 39):
        np.testing.assert_array_equal(provider.encode(sentences[start:], precision=precision), together[start:])
    alone = provider.encode(sentences[7], precision=precision, output="buffer")
    assert bytes(alone) == together[7].tobytes()
    assert len({row.tobytes() for row in together}) > 30


def test_a_bundle_without_ranges_says_so_before_it_computes(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_manifest(tiny_bundle, lambda document: document.pop("vector_ranges"))
    provider = OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider()
    assert provider.encode("text", precision="binary").shape == (4,)
    monkeypatch.setattr(provider, "_run", None)
    for precision in ("int8", "uint8"):
        with pytest.raises(InputError, match="has none, because an older firstvec built it: rebuild it with"):
            provider.encode("text", precision=precision)


def test_damaged_ranges_are_found_when_they_are_needed(tiny_bundle: Path) -> None:
    path = tiny_bundle / "vector_ranges.f32"
    path.write_bytes(path.read_bytes()[:-4] + b"1234")
    provider = OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider()
    assert provider.encode("text", precision="binary").shape == (4,)
    with pytest.raises(IntegrityError, match=r"vector_ranges\.f32"):
        provider.encode("text", precision="int8")


def test_truncated_and_normalized_vectors_agree_with_sentence_transformers(
    provider: EmbeddingProvider, sentence_transformer: Any
) -> None:
    options: dict[str, Any] = {"truncate_dim": 64, "normalize_embeddings": True}
    theirs = reference(sentence_transformer, ["one", "two"], **options)
    np.testing.assert_allclose(provider.encode(["one", "two"], **options), theirs, atol=1e-5)


def test_tensors_are_returned_where_torch_is_there(provider: EmbeddingProvider) -> None:
    import torch

    assert provider.encode(["one", "two"], convert_to_tensor=True).shape == torch.Size([2, 384])
    assert [len(each) for each in provider.encode(["one", "two"], convert_to_numpy=False)] == [384, 384]


@pytest.mark.parametrize("method", ["embed_query", "embed_chunk", "encode"])
def test_outputs_hold_the_same_vector(method: str, provider: EmbeddingProvider) -> None:
    embed = getattr(provider, method)
    array, floats, view = (embed("some text", output=output) for output in ("numpy", "list", "buffer"))
    assert isinstance(array, np.ndarray)
    assert isinstance(floats, list)
    assert isinstance(view, memoryview)
    assert (view.format, view.shape, view.contiguous) == ("f", (384,), True)
    np.testing.assert_array_equal(np.frombuffer(view, np.float32), array)
    np.testing.assert_array_equal(np.array(floats, np.float32), array)


@pytest.mark.parametrize("method", ["embed_batch", "encode"])
def test_outputs_of_several_texts_have_two_dimensions(method: str, provider: EmbeddingProvider) -> None:
    embed = getattr(provider, method)
    texts = ["some text", "x " * 300, ""]
    array, floats, view = (embed(texts, output=output) for output in ("numpy", "list", "buffer"))
    assert array.shape == view.shape == (3, 384)
    np.testing.assert_array_equal(np.asarray(view), array)
    np.testing.assert_array_equal(np.array(floats, np.float32), array)


def test_changed_vectors_come_in_any_output(provider: EmbeddingProvider) -> None:
    options: dict[str, Any] = {"truncate_dim": 8, "normalize_embeddings": True}
    expected = provider.encode("text", **options)
    np.testing.assert_array_equal(provider.encode("text", output="buffer", **options), expected)
    np.testing.assert_array_equal(np.array(provider.encode("text", output="list", **options), np.float32), expected)
    short = provider.encode("text", truncate_dim=8, output="buffer")
    np.testing.assert_array_equal(short, provider.encode("text")[:8])
    bits = provider.encode(["a", "b"], precision="ubinary", output="list")
    assert bits == provider.encode(["a", "b"], precision="ubinary").tolist()


def test_an_array_can_be_written_to(provider: EmbeddingProvider) -> None:
    vector = provider.embed_query("text")
    vector *= 2
    np.testing.assert_allclose(np.linalg.norm(vector), 2.0, atol=1e-5)


def test_the_loader_sets_the_output(tiny_built: Path) -> None:
    provider = OptimizedEmbeddingLoader(str(tiny_built), output="list").get_provider()
    assert isinstance(provider.embed_query("text"), list)
    assert isinstance(provider.embed_query("text", output="numpy"), np.ndarray)
    with pytest.raises(InputError, match="numpy, list, buffer"):
        OptimizedEmbeddingLoader(output="tensor")
    with pytest.raises(InputError, match="numpy, list, buffer"):
        provider.embed_query("text", output="tensor")


def test_a_progress_bar_is_drawn_on_request(provider: EmbeddingProvider, capsys: pytest.CaptureFixture[str]) -> None:
    provider.encode(["one", "two"], show_progress_bar=True)
    assert "2/2" in capsys.readouterr().err
    provider.encode(["one", "two"])
    assert capsys.readouterr().err == ""


def test_without_tqdm_there_is_no_bar(
    provider: EmbeddingProvider, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert len(provider.encode(["one", "two"], show_progress_bar=True)) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("level", "asked", "drawn"),
    [
        (logging.INFO, None, True),
        (logging.DEBUG, None, True),
        (logging.WARNING, None, False),
        (logging.INFO, False, False),
    ],
)
def test_a_progress_bar_is_drawn_where_the_program_logs_information(
    level: int, asked: bool | None, drawn: bool, provider: EmbeddingProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("firstvec")
    before = logger.level
    logger.setLevel(level)
    try:
        provider.encode(["one", "two"], show_progress_bar=asked)
    finally:
        logger.setLevel(before)
    assert ("2/2" in capsys.readouterr().err) is drawn


@pytest.mark.parametrize("bad", [None, b"bytes", 3, 1.5, ["nested"], "lone \ud800 surrogate"])
def test_a_bad_text_is_refused_with_its_index(bad: Any, provider: EmbeddingProvider) -> None:
    with pytest.raises(InputError) as caught:
        provider.encode(["good", bad])
    assert caught.value.index == 1
    assert str(caught.value).startswith("text 1: ")
    with pytest.raises(InputError):
        provider.embed_query(bad)
    with pytest.raises(InputError):
        provider.embed_batch(["good", "good", bad])
    with pytest.raises(InputError):
        provider.count_tokens(["good", bad])


def test_bytes_are_refused_with_the_way_to_decode_them(provider: EmbeddingProvider) -> None:
    with pytest.raises(InputError, match=r"text 0: is bytes, not str; decode it first: text\.decode"):
        provider.encode(b"text")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "shape", "dtype"),
    [
        ({}, (0, 384), np.float32),
        ({"precision": None, "normalize_embeddings": True}, (0, 384), np.float32),
        ({"truncate_dim": 64}, (0, 64), np.float32),
        ({"precision": "int8"}, (0, 384), np.int8),
        ({"precision": "ubinary", "truncate_dim": 64}, (0, 8), np.uint8),
    ],
)
def test_no_texts_have_no_vectors_of_the_right_width(
    options: dict[str, Any], shape: tuple[int, int], dtype: Any, provider: EmbeddingProvider
) -> None:
    vectors = provider.encode([], **options)
    assert (vectors.shape, vectors.dtype) == (shape, dtype)
    assert provider.encode([], output="list", **options) == []
    assert len(provider.encode([], output="buffer", **options)) == 0
    assert provider.encode([], convert_to_tensor=True, **options).shape == shape
    assert provider.encode([], convert_to_numpy=False, **options) == []


def test_a_closed_provider_refuses_no_texts_too(tiny_built: Path) -> None:
    provider = OptimizedEmbeddingLoader(str(tiny_built), "lazy").get_provider()
    provider.close()
    with pytest.raises(ClosedError):
        provider.encode([])


def test_a_longer_length_than_the_vectors_keeps_all(provider: EmbeddingProvider) -> None:
    np.testing.assert_array_equal(provider.encode(["a"], truncate_dim=1000), provider.encode(["a"]))
    np.testing.assert_array_equal(provider.encode(["a"], precision=None), provider.encode(["a"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": None}, "there is no text"),
        ({"inputs": 3}, "neither a str nor a sequence"),
        ({"output_value": "token_embeddings"}, "sentence_embedding"),
        ({"output_value": None, "precision": "binary"}, "precision needs output_value='sentence_embedding'"),
        ({"precision": "float16"}, "Precision 'float16' is not supported, must be one of float32, int8"),
        ({"precision": ""}, "Precision '' is not supported"),
        ({"inputs": [("one", "two")]}, "text 0: is tuple, not str; a pair of texts has no vector"),
        ({"inputs": [["one", "two"]]}, "text 0: is list, not str; a pair of texts has no vector"),
        ({"inputs": np.array([["one", "two"]])}, "text 0: is ndarray, not str; a pair of texts has no vector"),
        ({"inputs": np.array("one")}, "neither a str nor a sequence"),
        ({"inputs": ["one", None]}, "text 1: is NoneType, not str"),
        ({"device": "cuda"}, "loaded on cpu"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"prompt": 3}, "prompt"),
        ({"inputs": {"a", "b"}}, "no order"),
        ({"inputs": {"a": 1}}, "no order"),
        ({"truncate_dim": True}, "truncate_dim"),
        ({"truncate_dim": 0}, "truncate_dim 0 is not a positive integer"),
        (
            {"prompt_name": "nonsense"},
            r"Prompt name 'nonsense' not found in the configured prompts dictionary with keys \[",
        ),
    ],
)
def test_a_bad_argument_is_refused_by_name(options: dict[str, Any], message: str, provider: EmbeddingProvider) -> None:
    with pytest.raises(InputError, match=message):
        provider.encode(**{"inputs": ["text"], **options})


@pytest.mark.parametrize("value", [1, 0, True, 3.5, b"x", [], {}, ("a",)])
@pytest.mark.parametrize("argument", ["prompt", "prompt_name"])
def test_a_prompt_that_is_no_text_is_refused(argument: str, value: object, provider: EmbeddingProvider) -> None:
    for encode in (provider.encode, provider.encode_iter):
        with pytest.raises(InputError, match=f"{argument} .* is not a str"):
            encode(["a text"], **{argument: value})  # type: ignore[operator]


def test_a_prompt_is_put_before_the_text(provider: EmbeddingProvider, caplog: pytest.LogCaptureFixture) -> None:
    expected = provider.encode("query: text")
    np.testing.assert_array_equal(provider.encode("text", prompt="query: "), expected)
    about = provider.manifest.model.replace(prompts={"query": "query: "})
    prompted: EmbeddingProvider[Any, Any] = EmbeddingProvider(
        provider.manifest.replace(model=about), provider.artifact, "cpu", provider._tokenizer, provider._sessions
    )
    np.testing.assert_array_equal(prompted.embed_query("text"), expected)
    np.testing.assert_array_equal(prompted.encode("text", prompt_name="query"), expected)
    np.testing.assert_array_equal(prompted.embed_chunk("text"), provider.encode("text"))
    np.testing.assert_array_equal(prompted.encode_query("text"), expected)
    np.testing.assert_array_equal(prompted.encode_query(["text"], prompt="query: ", output="list"), [expected.tolist()])
    np.testing.assert_array_equal(prompted.encode_document("text"), provider.encode("text"))
    np.testing.assert_array_equal(prompted.encode_document("text", prompt_name="query"), expected)
    caplog.clear()
    np.testing.assert_array_equal(prompted.encode("text", "other", "query: "), expected)
    assert [each[:2] for each in caplog.record_tuples] == [("firstvec", logging.WARNING)]
    assert "Ignoring the `prompt_name` in favor of `prompt`" in caplog.text


def test_oddities_give_finite_unit_vectors(provider: EmbeddingProvider) -> None:
    texts = ["\x00", "a\x00b", "\n\n\n", "\u200b", "e\u0301" * 50, "x" * 1_000_000, "\U0001f468\u200d\U0001f469"]
    vectors = provider.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


@pytest.mark.native
def test_a_manifest_that_states_another_dimension_raises_a_typed_error(tiny_bundle: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["model"].update(embedding_dim=33)
        del document["self_test"]  # it may be remembered, or find the difference first

    edit_manifest(tiny_bundle, change)
    for way in ("capi", "binding"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FIRSTVEC_ONNXRUNTIME", way)
            for artifact in FP32:
                provider = OptimizedEmbeddingLoader(str(tiny_bundle), artifact=artifact).get_provider()
                with pytest.raises(IncompatibleArtifact, match="rebuild the bundle"):
                    provider.embed_query("text")


@pytest.mark.native
@pytest.mark.parametrize(
    ("built", "engine", "kind", "hand_over"),
    [("tiny_built", "native ", "throughput", None), ("tiny_onnx", "onnxruntime ", "quick-start", "waiting")],
)
def test_a_provider_says_what_answers(
    built: str, engine: str, kind: str, hand_over: str | None, request: pytest.FixtureRequest
) -> None:
    provider = load(request.getfixturevalue(built), "quantized").get_provider()
    assert provider.embedding_dim == 32
    assert provider.device == "cpu"
    assert provider.engine.startswith(engine)
    assert provider.session is not None
    assert (provider.session.engine, provider.session.kind) == (provider.engine, provider.session_kind)
    assert (provider.session_kind, provider.hand_over_state) == (kind, hand_over)
    assert not provider.closed
    provider.close()
    assert (provider.closed, provider.session) == (True, None)
    for read in (lambda: provider.engine, lambda: provider.session_kind):
        with pytest.raises(ClosedError):
            read()


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from firstvec import MissingDependency, OptimizedEmbeddingLoader
provider = OptimizedEmbeddingLoader(sys.argv[1]).get_provider()
try:
    provider.encode(["text"], convert_to_tensor=True)
except MissingDependency as error:
    print(error)
"""


def test_tensors_without_torch_name_the_extra(tiny_built: Path, fresh: Fresh) -> None:
    assert "pip install 'firstvec[torch]'" in fresh(WITHOUT_TORCH, tiny_built).stdout


WITHOUT_NUMPY = """
import sys
for name in ("numpy", "onnxruntime", "tokenizers"):
    sys.modules[name] = None
from firstvec import MissingDependency, OptimizedEmbeddingLoader
provider = OptimizedEmbeddingLoader(sys.argv[1]).get_provider()
assert len(provider.embed_query("text", "list")) == provider.embed_batch(["a", "b"], output="buffer").shape[1]
for call in (
    lambda: provider.embed_query("text"),
    lambda: provider.encode([]),
    lambda: provider.encode(["a", "b"]),
    lambda: next(provider.encode_iter(["a"])),
    lambda: provider.encode("a", truncate_dim=2, output="list"),
    lambda: provider.encode(["a"], normalize_embeddings=True, output="buffer"),
    lambda: provider.encode(["a"], precision="binary", output="list"),
):
    try:
        call()
    except MissingDependency as error:
        print(error)
"""


@pytest.mark.native
def test_without_numpy_lists_and_buffers_are_left_and_arrays_name_the_extra(tiny_built: Path, fresh: Fresh) -> None:
    lines = fresh(WITHOUT_NUMPY, tiny_built).stdout.splitlines()
    missing = "needs numpy, which is not installed: pip install 'firstvec[numpy]'"
    arrays = f"output='numpy', which is the default, {missing}; or take output='list' or 'buffer', which need no numpy"
    assert lines[:4] == [arrays] * 4
    assert lines[4:] == [f"another precision, truncate_dim and normalize_embeddings {missing}"] * 3


NO_VECTOR_IS_COMPUTED = """
import sys
sys.modules["numpy"] = None
from firstvec import MissingDependency, OptimizedEmbeddingLoader
from firstvec.provider import EmbeddingProvider
EmbeddingProvider._run = None
provider = OptimizedEmbeddingLoader(sys.argv[1]).get_provider()
try:
    provider.encode(["a", "b"])
except MissingDependency:
    print("before")
"""


@pytest.mark.native
def test_a_missing_numpy_is_noticed_before_many_vectors_are_computed(tiny_built: Path, fresh: Fresh) -> None:
    assert fresh(NO_VECTOR_IS_COMPUTED, tiny_built).stdout == "before\n"


def test_every_error_is_a_firstvec_error() -> None:
    assert issubclass(InputError, FirstvecError)
    assert issubclass(InputError, ValueError)


# Many texts: in their order, in runs of bounded size, without holding them all

TEXTS = [f"{'word ' * (index * 7 % 90)}number {index}" for index in range(300)]


@pytest.fixture(params=FP32)
def tiny(tiny_built: Path, request: pytest.FixtureRequest) -> EmbeddingProvider:
    return OptimizedEmbeddingLoader(str(tiny_built), artifact=request.param).get_provider()


padding = pytest.mark.parametrize("tiny", ["onnx-fp32"], indirect=True)
no_padding = pytest.mark.parametrize("tiny", ["native-fp32"], indirect=True)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_module, "_WINDOW", 32)


@pytest.fixture
def runs(tiny: EmbeddingProvider, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Texts and longest text of each run."""
    seen: list[tuple[int, int]] = []
    run = tiny._run

    def recorded(lease: Any, rows: Any) -> Any:
        seen.append((len(rows), max(map(len, rows))))
        return run(lease, rows)

    monkeypatch.setattr(tiny, "_run", recorded)
    return seen


def test_windows_do_not_change_a_vector(tiny: EmbeddingProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny.encode(TEXTS)
    monkeypatch.setattr(provider_module, "_WINDOW", 32)
    np.testing.assert_allclose(tiny.encode(TEXTS), whole, atol=1e-6)
    np.testing.assert_allclose(np.stack(list(tiny.encode_iter(TEXTS))), whole, atol=1e-6)


@padding
def test_a_run_holds_a_bounded_number_of_tokens(tiny: EmbeddingProvider, runs: list[tuple[int, int]]) -> None:
    tiny.encode(TEXTS, batch_size=200)
    assert sum(count for count, _ in runs) == len(TEXTS)
    assert all(count * longest <= 1024 for count, longest in runs)
    assert [longest for _, longest in runs] == sorted((longest for _, longest in runs), reverse=True)
    # As many as fit: no run could have taken the next one's longest text, too.
    assert all((count + 1) * longest > 1024 for count, longest in runs[:-1])


@padding
def test_a_run_holds_at_most_batch_size_texts(tiny: EmbeddingProvider, runs: list[tuple[int, int]]) -> None:
    tiny.encode(TEXTS, batch_size=5)
    assert max(count for count, _ in runs) == 5


@no_padding
@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_without_padding_a_run_holds_a_larger_number_of_tokens_whatever_the_batch_size(
    batch_size: int, tiny: EmbeddingProvider, runs: list[tuple[int, int]]
) -> None:
    tiny.encode(TEXTS, batch_size=batch_size)
    assert sum(count for count, _ in runs) == len(TEXTS)
    assert len(runs) > 1
    assert all(count * longest <= 16_384 for count, longest in runs)
    assert [longest for _, longest in runs] == sorted((longest for _, longest in runs), reverse=True)
    # As many as fit: no run could have taken the next one's longest text, too.
    assert all((count + 1) * longest > 16_384 for count, longest in runs[:-1])


@pytest.mark.parametrize("output", ["numpy", "list", "buffer"])
def test_encode_iter_gives_each_output(output: str, tiny: EmbeddingProvider) -> None:
    expected = tiny.encode(TEXTS[:5])
    found = list(tiny.encode_iter(iter(TEXTS[:5]), output=output))
    assert {type(vector) for vector in found} == {{"numpy": np.ndarray, "list": list, "buffer": memoryview}[output]}
    np.testing.assert_allclose(np.array([np.asarray(vector) for vector in found]), expected, atol=1e-6)


def test_encode_iter_reads_little_ahead(tiny: EmbeddingProvider, small_windows: None) -> None:
    taken = []

    def source() -> Iterator[str]:
        for index in itertools.count():
            taken.append(index)
            yield f"text {index}"

    vectors = tiny.encode_iter(source())
    assert taken == []
    for _ in range(100):
        next(vectors)
    assert len(taken) <= 100 + 2 * 32


def test_encode_iter_reads_in_the_callers_thread(tiny: EmbeddingProvider, small_windows: None) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:  # refuses other threads
        connection.execute("create table texts (text)")
        connection.executemany("insert into texts values (?)", ((text,) for text in TEXTS))
        rows = (text for (text,) in connection.execute("select text from texts"))
        assert len(list(tiny.encode_iter(rows))) == len(TEXTS)


def test_encode_iter_of_nothing_is_nothing(tiny: EmbeddingProvider) -> None:
    assert list(tiny.encode_iter([])) == []


@pytest.mark.parametrize("bad", ["one text", b"bytes", None, 5])
def test_encode_iter_refuses_what_is_no_iterable_of_texts(bad: Any, tiny: EmbeddingProvider) -> None:
    with pytest.raises(InputError):
        tiny.encode_iter(bad)


def test_encode_iter_says_which_text_is_not_usable(tiny: EmbeddingProvider, small_windows: None) -> None:
    vectors = tiny.encode_iter(itertools.chain(TEXTS[:100], [None], TEXTS))
    with pytest.raises(InputError) as caught:
        list(vectors)
    assert caught.value.index == 100


def test_prompts_are_put_before_each_text(tiny: EmbeddingProvider) -> None:
    expected = tiny.encode(["query: a", "query: b"])
    np.testing.assert_allclose(list(tiny.encode_iter(["a", "b"], prompt="query: ")), expected, atol=1e-6)


MEMORY = """
import sys
from firstvec import OptimizedEmbeddingLoader
def resident():
    with open("/proc/self/status") as lines:
        return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) / 1024
provider = OptimizedEmbeddingLoader(sys.argv[1], output="buffer", artifact=sys.argv[3]).get_provider()
texts = (f"text number {index} of very many" for index in range(int(sys.argv[2])))
count = 0
for vector in provider.encode_iter(texts):
    count += 1
    if count == 10_000:
        before = resident()
print(count, resident() - before)
"""


@pytest.mark.native
@pytest.mark.parametrize("artifact", FP32)
def test_encode_iter_holds_no_more_for_more_texts(artifact: str, tiny_built: Path, fresh: Fresh) -> None:
    count, grown = fresh(MEMORY, tiny_built, 60_000, artifact).stdout.split()
    assert count == "60000"
    # Held, the other 50,000 texts and vectors of 32 components would take some 15 MB.
    assert float(grown) < 4


LONG_TEXTS = """
import sys
from firstvec import OptimizedEmbeddingLoader
provider = OptimizedEmbeddingLoader(sys.argv[1], output="buffer", artifact=sys.argv[2]).get_provider()
texts = ["word " * 9000] * int(sys.argv[3]) + ["a short text"] * int(sys.argv[4])
assert provider.encode(texts).shape == (len(texts), 32)
with open("/proc/self/status") as lines:
    print(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
"""


@pytest.fixture(scope="module")
def long_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a random BERT of one layer that takes 8,192 tokens."""
    from firstvec_build.pipeline import build
    from tests.tiny import save_long_bert

    model = save_long_bert(tmp_path_factory.mktemp("models") / "long")
    only = ["onnx-fp32", "native-fp32"]
    return Path(build(str(model), tmp_path_factory.mktemp("bundles"), only=only).manifest.root)


@pytest.mark.native
@pytest.mark.parametrize("artifact", FP32)
def test_texts_of_8192_tokens_share_no_batch(artifact: str, long_bundle: Path, fresh: Fresh) -> None:
    alone, together = (
        int(fresh(LONG_TEXTS, long_bundle, artifact, *counts).stdout) / 1024 for counts in ((1, 0), (3, 200))
    )
    # The scores of one text, 8,192² numbers, take 268 MB. In a batch with two more they would take 800 MB.
    assert together < alone + 100
    if artifact == "onnx-fp32":
        assert alone > 268
