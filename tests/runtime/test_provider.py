"""Text in, vectors out: shapes, order, errors, and agreement with sentence-transformers."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import ClosedError, EmbeddingProvider, FirstvecError, InputError, OptimizedEmbeddingLoader
from firstvec_build.quality import evaluation_sentences
from tests.conftest import Fresh


@pytest.fixture(scope="module")
def provider(bundle: Path) -> EmbeddingProvider:
    return OptimizedEmbeddingLoader(str(bundle)).get_provider()


def reference(model: Any, *arguments: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.encode(*arguments, **options)


def test_all_evaluation_sentences_agree_with_sentence_transformers(
    provider: EmbeddingProvider, sentence_transformer: Any
) -> None:
    sentences = evaluation_sentences()
    vectors = provider.encode(sentences)
    assert np.abs(vectors - reference(sentence_transformer, sentences)).max() <= 1e-5
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


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precisions_agree_with_sentence_transformers(precision: str, provider: EmbeddingProvider) -> None:
    from sentence_transformers.util.quantization import quantize_embeddings

    sentences = evaluation_sentences()[:120]
    ours = provider.encode(sentences, precision=precision)
    theirs = quantize_embeddings(provider.encode(sentences), precision=precision)
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype


def test_truncated_and_normalised_vectors_agree_with_sentence_transformers(
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


@pytest.mark.parametrize("method", ["encode", "embed_batch"])
def test_an_empty_list_is_refused(method: str, provider: EmbeddingProvider) -> None:
    with pytest.raises(InputError, match="empty"):
        getattr(provider, method)([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": None}, "there is no text"),
        ({"inputs": 3}, "neither a str nor a sequence"),
        ({"output_value": "token_embeddings"}, "sentence_embedding"),
        ({"precision": "float16"}, "float32, int8"),
        ({"device": "cuda"}, "loaded on cpu"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"prompt": 3}, "prompt"),
        ({"inputs": {"a", "b"}}, "no order"),
        ({"inputs": {"a": 1}}, "no order"),
        ({"truncate_dim": True}, "truncate_dim"),
        ({"truncate_dim": 385}, "between 1 and 384"),
        ({"truncate_dim": 0}, "between 1 and 384"),
        ({"prompt_name": "nonsense"}, "unknown prompt_name"),
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


def test_a_prompt_is_put_before_the_text(provider: EmbeddingProvider) -> None:
    expected = provider.encode("query: text")
    np.testing.assert_array_equal(provider.encode("text", prompt="query: "), expected)
    about = provider.manifest.model.replace(prompts={"query": "query: "})
    prompted = EmbeddingProvider(
        provider.manifest.replace(model=about),
        provider.artifact,
        "cpu",
        provider._tokenizer,
        provider._session,  # type: ignore[arg-type]
        lambda: None,  # type: ignore[arg-type, return-value]
    )
    np.testing.assert_array_equal(prompted.embed_query("text"), expected)
    np.testing.assert_array_equal(prompted.encode("text", prompt_name="query"), expected)
    np.testing.assert_array_equal(prompted.embed_chunk("text"), provider.encode("text"))


def test_oddities_give_finite_unit_vectors(provider: EmbeddingProvider) -> None:
    texts = ["\x00", "a\x00b", "\n\n\n", "\u200b", "e\u0301" * 50, "x" * 1_000_000, "\U0001f468\u200d\U0001f469"]
    vectors = provider.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_a_closed_provider_says_so(tiny_built: Path) -> None:
    provider = OptimizedEmbeddingLoader(str(tiny_built)).get_provider()
    provider.close()
    with pytest.raises(ClosedError, match="start_loading"):
        provider.embed_query("text")


def test_a_closed_provider_can_be_loaded_again(tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built))
    loader.get_provider().close()
    assert loader.get_provider().embed_query("text").shape == (32,)


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


def test_every_error_is_a_firstvec_error() -> None:
    assert issubclass(InputError, FirstvecError)
    assert issubclass(InputError, ValueError)
