"""`encode` beside sentence-transformers' own: the same inputs and options, the same kinds, shapes, types and values.

The documented behaviour comes from sentence-transformers 6.2 itself, which runs beside. Where firstvec differs on
purpose, a test below says so.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import EmbeddingProvider, InputError, OptimizedEmbeddingLoader
from tests.conftest import BUILT

torch: Any = pytest.importorskip("torch")

PROMPTS = {"query": "find: ", "passage": "text: ", "other": "another prompt "}
TEXTS = ["A man eats.", "", "The weather is so nice today, isn't it?", "x " * 130, "größe 日本 😀 a\tb\n\nc"]
INPUTS = {
    "str": "A man eats.",
    "empty str": "",
    "numpy str": np.str_("A man eats."),
    "list": TEXTS,
    "list of one": ["one"],
    "tuple": tuple(TEXTS[:3]),
    "array of U": np.array(TEXTS[:3]),
    "array of objects": np.array(TEXTS[:3], dtype=object),
    "nothing": [],
}
FORMS: dict[str, dict[str, Any]] = {
    "numpy": {},
    "list": {"convert_to_numpy": False},
    "tensor": {"convert_to_tensor": True},
}
OPTIONS: list[dict[str, Any]] = [
    *(
        {name: value for part in parts for name, value in part.items()}
        for parts in itertools.product(
            [{}, {"prompt": "find: "}, {"prompt_name": "other"}],
            [{}, {"normalize_embeddings": True}],
            [{}, {"truncate_dim": 8}],
            [{}, {"precision": "binary"}, {"precision": "ubinary"}],
        )
    ),
    {"precision": None, "truncate_dim": np.int64(20)},
    {"precision": "float32", "truncate_dim": 100},
    {"convert_to_numpy": False, "convert_to_tensor": True},
]


@pytest.fixture(scope="module")
def theirs(tiny_model: Path) -> Any:
    if BUILT:
        pytest.skip("the bundle was built from another model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(tiny_model), device="cpu")
    model.prompts = PROMPTS  # the constructor would add an empty prompt for documents
    return model


@pytest.fixture(scope="module")
def ours(tiny_built: Path) -> EmbeddingProvider:
    found = OptimizedEmbeddingLoader(str(tiny_built)).get_provider()
    about = found.manifest.model.replace(prompts=PROMPTS)
    return EmbeddingProvider(
        found.manifest.replace(model=about), found.artifact, "cpu", found._tokenizer, found._sessions
    )


def compare(found: Any, expected: Any, raw: Any, options: dict[str, Any]) -> None:
    """Compare two results. ``raw`` has their float32 vectors: a component near 0 may have either sign."""
    assert type(found) is type(expected)
    if not len(expected):
        assert len(found) == 0
        return
    if isinstance(expected, list):
        assert len(found) == len(expected)
        found, expected = torch.stack(found), torch.stack(expected)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if "binary" in (options.get("precision") or ""):
        offset = 128 if options["precision"] == "binary" else 0
        bits = [
            np.unpackbits((np.asarray(each, np.int16) + offset).astype(np.uint8), axis=-1) for each in (found, expected)
        ]
        is_clear = np.abs(raw) > 1e-5
        differs = (bits[0] != bits[1])[..., : is_clear.shape[-1]]
        assert not (differs & is_clear).any()
        assert is_clear.mean() > 0.9
    else:
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=2e-6)


def test_the_grid_is_large() -> None:
    assert len(INPUTS) * len(FORMS) * len(OPTIONS) == 1053


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", INPUTS)
def test_results_are_the_same(name: str, form: str, ours: EmbeddingProvider, theirs: Any) -> None:
    inputs: Any = INPUTS[name]
    for options in OPTIONS:
        found, expected = (each.encode(inputs, **FORMS[form] | options) for each in (ours, theirs))
        raw = ours.encode(inputs, **options | {"precision": None})
        compare(found, expected, np.asarray(raw), options)


@pytest.mark.parametrize("method", ["encode_query", "encode_document"])
@pytest.mark.parametrize("argument", ["inputs", "sentences"])
@pytest.mark.parametrize("name", INPUTS)
def test_queries_and_documents_are_the_same(
    name: str, argument: str, method: str, ours: EmbeddingProvider, theirs: Any
) -> None:
    for options in ({}, {"prompt": "p: "}, {"prompt_name": "other"}, {"truncate_dim": 8, "convert_to_tensor": True}):
        arguments: dict[str, Any] = {argument: INPUTS[name], **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sentences is deprecated there
            expected = getattr(theirs, method)(**arguments)
        compare(getattr(ours, method)(**arguments), expected, None, {})


@pytest.mark.parametrize("name", [*INPUTS][:5])
@pytest.mark.parametrize("options", [{}, {"truncate_dim": 8}, {"normalize_embeddings": True}, {"prompt": "find: "}])
def test_all_outputs_hold_the_same_vector_and_tokens(
    name: str, options: dict[str, Any], ours: EmbeddingProvider, theirs: Any
) -> None:
    inputs: Any = INPUTS[name]
    found, expected = (each.encode(inputs, output_value=None, **options) for each in (ours, theirs))
    if isinstance(inputs, str):
        found, expected = [found], [expected]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert {*one} == {"sentence_embedding", "input_ids", "attention_mask"}
        compare(one["sentence_embedding"], other["sentence_embedding"], None, {})
        # Theirs are padded to the longest text of the batch.
        kept = other["attention_mask"].bool()
        assert one["input_ids"].tolist() == other["input_ids"][kept].tolist()
        assert one["attention_mask"].tolist() == other["attention_mask"][kept].tolist()
        with pytest.raises(InputError, match="'token_embeddings' is not computed"):
            one["token_embeddings"]


@pytest.mark.parametrize(
    ("inputs", "options", "same_message"),
    [
        (["a"], {"precision": "error"}, "Precision 'error' is not supported, must be one of"),
        (
            ["a"],
            {"prompt_name": "error"},
            "Prompt name 'error' not found in the configured prompts dictionary with keys",
        ),
        (["a"], {"batch_size": 0}, "batch_size"),
        (["a"], {"batch_size": -1}, "batch_size"),
        *(([value], {}, None) for value in (None, 3, b"a", 1.5, {"a", "b"}, ["a", "b", "c"])),
        *((value, {}, None) for value in (None, 3, b"a", {"a"}, {"a": 1}, np.array("a"), np.array([b"a"]))),
        (np.array([["a"], ["b"]]), {}, None),
        (np.array([["a", "b", "c"]]), {}, None),
    ],
)
def test_both_refuse_with_an_error_of_the_same_kind(
    inputs: Any, options: dict[str, Any], same_message: str | None, ours: EmbeddingProvider, theirs: Any
) -> None:
    for each in (ours, theirs):
        with pytest.raises(ValueError, match=same_message):
            each.encode(inputs, **options)


def test_both_warn_of_two_prompts_in_the_same_words(
    ours: EmbeddingProvider, theirs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    messages = []
    for each in (ours, theirs):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            each.encode(["a"], prompt="find: ", prompt_name="other")
        messages.append(caplog.messages)
    assert messages[0] == messages[1] != []


def test_a_device_may_be_an_object_of_torch(ours: EmbeddingProvider) -> None:
    np.testing.assert_array_equal(ours.encode("a", device=torch.device("cpu")), ours.encode("a"))  # type: ignore[call-overload]
    with pytest.raises(InputError, match="the model was loaded on cpu"):
        ours.encode("a", device=torch.device("meta"))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([("a", "b")], {}, "a pair of texts has no vector"),
        (["a"], {"output_value": "token_embeddings"}, "'token_embeddings' is not computed"),
        (["a"], {"truncate_dim": 0}, "truncate_dim 0 is not a positive integer"),
        (["a"], {"truncate_dim": -3}, "truncate_dim -3 is not a positive integer"),
        (["a"], {"truncate_dim": True}, "truncate_dim True is not a positive integer"),
    ],
)
def test_what_only_they_accept_is_an_error_with_the_reason(
    inputs: Any, options: dict[str, Any], message: str, ours: EmbeddingProvider, theirs: Any
) -> None:
    theirs.encode(inputs, **options)
    with pytest.raises(InputError, match=message):
        ours.encode(inputs, **options)


def test_one_int8_vector_is_an_error_there_and_has_ranges_here(ours: EmbeddingProvider, theirs: Any) -> None:
    with pytest.raises(ValueError, match="Cannot compute int8 quantization ranges from a single embedding"):
        theirs.encode("a", precision="int8")
    assert ours.encode("a", precision="int8").tolist() == ours.encode(["a", "b"], precision="int8")[0].tolist()


@pytest.mark.parametrize("precision", ["int8", "uint8"])
@pytest.mark.parametrize("form", FORMS)
def test_int8_has_the_same_kind_shape_and_type(form: str, precision: str, ours: EmbeddingProvider, theirs: Any) -> None:
    found, expected = (each.encode(TEXTS, precision=precision, **FORMS[form]) for each in (ours, theirs))
    assert type(found) is type(expected)
    assert [tuple(row.shape) for row in found] == [tuple(row.shape) for row in expected]
    assert found[0].dtype == expected[0].dtype
