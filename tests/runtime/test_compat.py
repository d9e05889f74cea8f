"""`firstvec.compat.SentenceTransformer` and the class of that name run through the same assertions.

Where a test takes `make`, it runs with both classes, and only the class differs. The vectors of `encode` itself are
compared in `test_encode_like_sentence_transformers.py`.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import logging
import math
import pickle
import re
import threading
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import compat
from firstvec.errors import BundleNotFound, InputError, IntegrityError, ManifestError, NoCompatibleArtifact
from tests.conftest import BUILT, REPOSITORY, Fresh, edit_manifest

Make = Callable[..., Any]

PROMPTS = {"query": "find: ", "other": "another prompt "}
TEXTS = ["A man eats.", "", "The weather is so nice today, isn't it?", "x " * 200]
CLASSES = ["sentence-transformers", "firstvec"]
NAMES_OF_NO_USE = {
    "SUPPORTED_SIMILARITY_FN_NAMES",
    "default_huggingface_organization",
    "is_singular_input",
    "model_card_data_class",
    "model_type",
}
"""Public names of sentence-transformers' class that programs do not use."""

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*encode_multi_process.*:DeprecationWarning")


@pytest.fixture(scope="module", params=CLASSES)
def make(request: pytest.FixtureRequest) -> Make:
    """Return the constructor of one of the two classes, for the tiny model."""
    if request.param == "firstvec":
        folder = request.getfixturevalue("tiny_built")
        return lambda **options: compat.SentenceTransformer(str(folder), **options)
    return _theirs(request)


@pytest.fixture(scope="module")
def make_theirs(request: pytest.FixtureRequest) -> Make:
    return _theirs(request)


def _theirs(request: pytest.FixtureRequest) -> Make:
    if BUILT or find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers, or the folder from which the bundle was built, is not here")
    folder = request.getfixturevalue("tiny_model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer
    return lambda **options: SentenceTransformer(str(folder), device="cpu", **options)


@pytest.fixture
def ours(tiny_built: Path) -> compat.SentenceTransformer:
    return compat.SentenceTransformer(str(tiny_built))


def same(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=2e-6)


def tensor_type() -> type:
    """What both classes return where torch is installed."""
    return np.ndarray if find_spec("torch") is None else pytest.importorskip("torch").Tensor


# Prompts


def test_prompts_of_the_constructor_come_before_those_of_the_model(make: Make) -> None:
    model = make(prompts=PROMPTS)
    assert model.prompts == {"query": "find: ", "document": "", "other": "another prompt "}
    assert model.default_prompt_name is None
    plain, found = model.encode("A man eats."), model.encode("find: A man eats.")
    assert np.abs(plain - found).max() > 0.01
    same(model.encode_query("A man eats."), found)
    same(model.encode_document("A man eats."), plain)
    same(model.encode("A man eats.", prompt_name="query"), found)
    same(model.encode("A man eats.", prompt="find: "), found)
    same(model.encode_query("A man eats.", prompt_name="other"), model.encode("another prompt A man eats."))
    same(model.encode_document("A man eats.", prompt="find: "), found)
    same(model.encode_query("A man eats.", None, None, 8, False), found)  # by place, as encode has its arguments


def test_default_prompt(make: Make) -> None:
    model = make(prompts=PROMPTS, default_prompt_name="other")
    assert model.default_prompt_name == "other"
    same(model.encode("A man eats."), make().encode("another prompt A man eats."))
    same(model.encode("A man eats.", prompt=""), make().encode("A man eats."))
    same(model.encode_query("A man eats."), make().encode("find: A man eats."))
    same(model.encode_document("A man eats."), make().encode("A man eats."))  # its prompt is the empty one


def test_a_program_may_change_the_prompts(make: Make) -> None:
    model = make()
    assert model.prompts == {"query": "", "document": ""}
    model.prompts["query"] = "find: "
    same(model.encode_query("A man eats."), model.encode("find: A man eats."))
    model.prompts = {"passage": "text: "}
    same(model.encode_document("A man eats."), model.encode("text: A man eats."))
    same(model.encode_query("A man eats."), model.encode("A man eats."))
    model.default_prompt_name = "passage"
    same(model.encode("A man eats."), model.encode("A man eats.", prompt="text: "))


def test_an_unknown_prompt_is_a_value_error(make: Make) -> None:
    with pytest.raises(ValueError, match="Default prompt name 'error' not found in the configured prompts dictionary"):
        make(default_prompt_name="error")
    for method in ("encode", "encode_query", "encode_document"):
        with pytest.raises(ValueError, match="Prompt name 'error' not found in the configured prompts dictionary"):
            getattr(make(), method)("a", prompt_name="error")


def test_a_prompt_and_its_name_are_too_much(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    model = make(prompts=PROMPTS)
    with caplog.at_level(logging.WARNING):
        same(model.encode("a", prompt="find: ", prompt_name="other"), model.encode("find: a"))
    assert sum("Provide either a `prompt`, a `prompt_name`, or neither" in each for each in caplog.messages) == 1


# Dimensions


def test_truncate_dim(make: Make) -> None:
    model = make(truncate_dim=8)
    whole = make().encode(TEXTS)
    assert (model.truncate_dim, model.get_embedding_dimension(), model.get_sentence_embedding_dimension()) == (8, 8, 8)
    same(model.encode(TEXTS), whole[:, :8])
    same(model.encode_query(TEXTS), whole[:, :8])
    same(model.encode(TEXTS, truncate_dim=4), whole[:, :4])
    for context in (model.truncate_embeddings, model.truncate_sentence_embeddings):
        with context(5):
            assert model.get_embedding_dimension() == 5
            same(model.encode(TEXTS), whole[:, :5])
        with pytest.raises(ZeroDivisionError), context(None):
            raise ZeroDivisionError(model.get_embedding_dimension())
        assert model.truncate_dim == 8
    model.truncate_dim = 100
    assert model.get_embedding_dimension() == 32
    same(model.encode(TEXTS), whole)


# Similarity

FIRST = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
SECOND = np.random.default_rng(2).normal(size=(4, 6)).astype(np.float32)
FORMULAS: dict[str, Callable[[Any, Any], float]] = {
    "cosine": lambda a, b: float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)),
    "dot": lambda a, b: float(a @ b),
    "euclidean": lambda a, b: -math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))),
    "manhattan": lambda a, b: -sum(abs(x - y) for x, y in zip(a, b, strict=True)),
}
KINDS: dict[str, Callable[[Any], Any]] = {
    "array": lambda rows: rows,
    "float64": lambda rows: rows.astype(np.float64),
    "list of arrays": list,
    "list of lists": lambda rows: rows.tolist(),
    "tensor": lambda rows: pytest.importorskip("torch").tensor(rows),
    "tensor of a gradient": lambda rows: pytest.importorskip("torch").tensor(rows, requires_grad=True),
    "list of tensors": lambda rows: list(pytest.importorskip("torch").tensor(rows)),
    "bfloat16": lambda rows: pytest.importorskip("torch").tensor(rows).bfloat16(),
    "float16": lambda rows: rows.astype(np.float16),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMULAS)
def test_similarity(name: str, kind: str, make: Make) -> None:
    model = make(similarity_fn_name=name)
    assert model.similarity_fn_name == name
    first, second = KINDS[kind](FIRST), KINDS[kind](SECOND)
    tolerance = 0.1 if kind in ("bfloat16", "float16") else 1e-5
    expected = [[FORMULAS[name](a, b) for b in SECOND] for a in FIRST]
    found = model.similarity(first, second)
    assert type(found) is tensor_type()
    assert str(found.dtype).endswith("float64" if kind == "float64" else "float32")
    np.testing.assert_allclose(found.detach() if hasattr(found, "detach") else found, expected, atol=tolerance)
    second = KINDS[kind](SECOND[:3])
    found = model.similarity_pairwise(first, second)
    assert type(found) is tensor_type()
    expected = [FORMULAS[name](a, b) for a, b in zip(FIRST, SECOND, strict=False)]
    np.testing.assert_allclose(found.detach() if hasattr(found, "detach") else found, expected, atol=tolerance)


def test_similarity_of_single_vectors(make: Make) -> None:
    model = make()
    assert tuple(model.similarity(FIRST[0], SECOND).shape) == (1, 4)
    assert tuple(model.similarity(FIRST[0].tolist(), SECOND[0].tolist()).shape) == (1, 1)
    one = model.similarity_pairwise(FIRST[0], SECOND[0])
    assert tuple(one.shape) == ()
    assert float(one) == pytest.approx(FORMULAS["cosine"](FIRST[0], SECOND[0]), abs=1e-6)
    same(model.similarity(np.zeros((1, 6), np.float32), FIRST), np.zeros((1, 3)))


def test_similarity_of_texts(make: Make) -> None:
    model = make()
    vectors = model.encode(["A man eats.", "A man eats.", "The weather is nice."])
    found = model.similarity(vectors, vectors)
    assert float(found[0, 1]) == pytest.approx(1, abs=1e-6)
    assert float(found[0, 2]) < 0.999


def test_the_similarity_may_be_changed(make: Make) -> None:
    model = make()
    assert model.similarity_fn_name == "cosine"
    model.similarity_fn_name = "dot"
    assert float(model.similarity([2.0, 0.0], [3.0, 0.0])[0][0]) == 6
    for name in ("maxsim", "error", 3):
        with pytest.raises(ValueError, match="SentenceTransformer only supports similarity_fn_name in"):
            model.similarity_fn_name = name
    assert model.similarity_fn_name == "dot"
    model.similarity_fn_name = None
    assert model.similarity_fn_name == "cosine"


def test_the_models_own_similarity_is_the_default(tiny_bundle: Path) -> None:
    path, content = tiny_bundle / "config_sentence_transformers.json", b'{"similarity_fn_name": "euclidean"}'
    path.write_bytes(content)

    def enter(document: dict[str, Any]) -> None:
        entry = next(each for each in document["support_files"] if each["path"] == path.name)
        entry["size"], entry["sha256"] = len(content), hashlib.sha256(content).hexdigest()

    edit_manifest(tiny_bundle, enter)
    model = compat.SentenceTransformer(tiny_bundle)
    assert model.similarity_fn_name == "euclidean"
    assert float(model.similarity([1.0, 0.0], [4.0, 4.0])[0][0]) == -5
    assert compat.SentenceTransformer(tiny_bundle, similarity_fn_name="dot").similarity_fn_name == "dot"


def test_a_similarity_may_be_a_member_of_their_enum(make_theirs: Make, ours: compat.SentenceTransformer) -> None:
    from sentence_transformers import SimilarityFunction

    for each in SimilarityFunction:
        if each.value in FORMULAS:
            ours.similarity_fn_name = each
            assert ours.similarity_fn_name == each.value


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (FIRST, FIRST[:, :4]),
        (FIRST[None], SECOND),
        ([[1.0, 2.0], [1.0]], FIRST),
        ("a text", FIRST),
        (None, FIRST),
        ([None, None], FIRST),
        (FIRST, 3),
    ],
)
def test_what_is_no_vector_has_no_similarity(first: Any, second: Any, ours: compat.SentenceTransformer) -> None:
    for compare in (ours.similarity, ours.similarity_pairwise):
        with pytest.raises(InputError, match="vector"):
            compare(first, second)


# Token ids


@pytest.mark.parametrize("method", ["preprocess", "tokenize"])
def test_token_ids_are_the_same(method: str, make_theirs: Make, ours: compat.SentenceTransformer) -> None:
    theirs = make_theirs()
    for texts in (TEXTS, ["a"], ("größe 日本", "b c")):
        found, expected = getattr(ours, method)(texts), getattr(theirs, method)(texts)
        assert found["modality"] == expected["modality"] == "text"
        for name in ("input_ids", "attention_mask"):
            assert type(found[name]) is type(expected[name])
            assert found[name].dtype == expected[name].dtype
            assert found[name].tolist() == expected[name].tolist()


def test_token_ids(make: Make) -> None:
    model = make()
    assert model.tokenize([]) == {}
    assert (
        len(model.tokenize(["x " * 200])["input_ids"][0]) == model.max_seq_length == model.get_max_seq_length() == 128
    )
    prompted = model.preprocess(["a b"], prompt="find: ")["input_ids"]
    assert prompted.tolist() == model.preprocess(["find: a b"])["input_ids"].tolist()
    for texts in ([None], [3], ["a", None]):
        with pytest.raises(ValueError):  # noqa: PT011 - the words differ
            model.tokenize(texts)
    model.max_seq_length = 128


def test_one_text_must_be_in_a_list(ours: compat.SentenceTransformer) -> None:
    """Their class takes each character of the text as a text."""
    for method in (ours.preprocess, ours.tokenize):
        with pytest.raises(InputError, match=r"pass \[text\]"):
            method("a text")


# What else both do


def test_facts(make: Make) -> None:
    model = make(backend="torch", trust_remote_code=True, local_files_only=True, token=False, cache_folder="anywhere")
    assert model.get_embedding_dimension() == model.get_sentence_embedding_dimension() == 32
    assert model.backend == model.get_backend() == "torch"
    assert (model.modalities, model.supports("text"), model.supports("image")) == (["text"], True, False)
    assert model.get_model_kwargs() == []
    assert str(model.device) == "cpu"
    assert model.eval() is model
    assert model.to("cpu") is model
    assert model.cpu() is model


def test_arguments_that_change_nothing(make: Make) -> None:
    expected = make().encode(TEXTS)
    for options in (
        {"model_kwargs": {"attn_implementation": "eager", "torch_dtype": "float32"}},
        {"model_kwargs": {"dtype": "auto", "low_cpu_mem_usage": None}, "config_kwargs": {}, "processor_kwargs": None},
    ):
        same(make(**options).encode(TEXTS), expected)
    same(make().encode(TEXTS, task="query", device="cpu", pool=None, chunk_size=None), expected)


def test_bad_arguments_are_value_errors(make: Make) -> None:
    model = make()
    with pytest.raises(ValueError, match=r"additional keyword arguments that this model does not use: \['wrong'\]"):
        model.encode("a", wrong=1)
    with pytest.raises(ValueError, match="batch_size"):
        model.encode("a", batch_size=0)
    with pytest.raises(ValueError, match="Both `token` and `use_auth_token` are specified"):
        make(token="a", use_auth_token="b")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'inputs'"):
        model.encode()
    with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
        make(wrong=1)


def test_a_copy_gives_the_same(make: Make) -> None:
    model = make(prompts=PROMPTS, truncate_dim=20, similarity_fn_name="dot")
    expected = model.encode_query(TEXTS)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other is not model
        assert (other.prompts, other.truncate_dim, other.similarity_fn_name) == (model.prompts, 20, "dot")
        same(other.encode_query(TEXTS), expected)


# The two interfaces


def test_every_public_name_is_there_or_has_a_reason(make_theirs: Make) -> None:
    theirs = make_theirs()
    names = {
        name
        for kind in type(theirs).__mro__
        if kind.__module__.startswith("sentence_transformers")
        for name in vars(kind)
        if name[0] != "_"
    }
    assert len(names) > 50
    there = {*dir(compat.SentenceTransformer), *compat._MISSING}
    assert names - there == NAMES_OF_NO_USE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [name for name in compat._MISSING if not hasattr(theirs, name)] == []


def test_signatures_have_the_parameters_of_theirs(make_theirs: Make) -> None:
    kind = type(make_theirs())
    assert {*inspect.signature(kind).parameters} <= {*inspect.signature(compat.SentenceTransformer).parameters}
    for name in ("encode", "encode_multi_process", "similarity", "similarity_pairwise", "truncate_embeddings"):
        expected = [*inspect.signature(getattr(kind, name)).parameters.values()]
        found = [*inspect.signature(getattr(compat.SentenceTransformer, name)).parameters.values()]
        for one, other in zip(found, expected, strict=True):
            assert one.kind == other.kind
            if other.kind is not inspect.Parameter.VAR_KEYWORD:
                assert one.name == other.name
                assert one.default == other.default or other.name == "inputs"


# What only they do


@pytest.mark.parametrize("name", compat._MISSING)
def test_what_is_missing_says_why(name: str, ours: compat.SentenceTransformer) -> None:
    assert not hasattr(ours, name)
    with pytest.raises(
        NotImplementedError, match=rf"SentenceTransformer\.{name}: .*(firstvec build|sentence_trans|call)"
    ):
        getattr(ours, name)


def test_an_unknown_name_is_an_attribute_error(ours: compat.SentenceTransformer) -> None:
    with pytest.raises(AttributeError, match="'SentenceTransformer' object has no attribute 'no_such_name'") as caught:
        ours.no_such_name  # noqa: B018
    assert not isinstance(caught.value, NotImplementedError)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda model: model(["a"]), "no module of torch"),
        (lambda model: model[0], "no module of torch"),
        (lambda model: [*model], "no module of torch"),
        (lambda model: setattr(model, "max_seq_length", 64), "the bundle truncates at 128 tokens"),
        (lambda model: setattr(model, "max_seq_length", None), "the bundle truncates at 128 tokens"),
        (lambda model: model.to("cuda"), "device 'cuda': a bundle stays on the device on which it was loaded, cpu"),
        (lambda model: model.cuda(), "device 'cuda'"),
        (lambda model: model.cuda(1), "device 'cuda:1'"),
        (lambda model: model.encode("a", device="cuda"), "device 'cuda'"),
        (lambda model: model.encode(["a"], device=["cpu", "cuda:0"]), "device 'cuda:0'"),
        (lambda model: model.start_multi_process_pool(["cuda:0"]), "device 'cuda:0'"),
        (lambda model: model.encode("a", output_value="token_embeddings"), "'token_embeddings' is not computed"),
        (lambda model: model.encode("a", processing_kwargs={"text": {"max_length": 9}}), "processing_kwargs"),
        (lambda model: model.preprocess(["a"], processing_kwargs={"text": {}}), "processing_kwargs"),
    ],
)
def test_calls_that_would_be_wrong(call: Callable[[Any], Any], reason: str, tiny_built: Path) -> None:
    with pytest.raises(NotImplementedError, match=reason):
        call(compat.SentenceTransformer(str(tiny_built), device="cpu"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"modules": []}, "modules: the weights are in files"),
        ({"revision": "main"}, "revision 'main': the bundle was built from revision"),
        ({"processor_kwargs": {"model_max_length": 64}}, r"processor_kwargs \['model_max_length'\]"),
        ({"tokenizer_kwargs": {"padding_side": "left"}}, r"tokenizer_kwargs \['padding_side'\]"),
        ({"config_kwargs": {"num_hidden_layers": 1}}, r"config_kwargs \['num_hidden_layers'\]"),
        ({"model_kwargs": {"torch_dtype": "float16"}}, "model_kwargs torch_dtype='float16'"),
        ({"model_kwargs": {"device_map": "auto"}}, "model_kwargs device_map='auto'"),
        ({"model_kwargs": {"file_name": "model.onnx"}}, "model_kwargs file_name='model.onnx'"),
        ({"backend": "onnx", "model_kwargs": {"file_name": "model_O3.onnx"}}, "with the file 'model_O3.onnx'"),
        ({"backend": "onnx", "model_kwargs": {"export": True}}, "model_kwargs export=True"),
        ({"backend": "onnx", "model_kwargs": {"provider": "CUDAExecutionProvider"}}, "model_kwargs provider="),
        ({"backend": "openvino"}, "backend 'openvino': a bundle is for 'torch' or 'onnx'"),
    ],
)
def test_constructors_that_would_be_wrong(options: dict[str, Any], reason: str, tiny_built: Path) -> None:
    with pytest.raises(NotImplementedError, match=reason):
        compat.SentenceTransformer(**{"model_name_or_path": str(tiny_built), **options})


# What only we do


def test_the_bundles_revision_is_accepted(tiny_bundle: Path) -> None:
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="1110a243"))
    compat.SentenceTransformer(tiny_bundle, revision="1110a243").encode("a")
    with pytest.raises(NotImplementedError, match="was built from revision '1110a243'"):
        compat.SentenceTransformer(tiny_bundle, revision="2220a243")


def test_backend_onnx_takes_onnxruntimes_artifacts(tiny_built: Path) -> None:
    expected = compat.SentenceTransformer(str(tiny_built)).encode(TEXTS)
    model = compat.SentenceTransformer(
        str(tiny_built), backend="onnx", model_kwargs={"provider": "CPUExecutionProvider"}
    )
    assert model._load().artifact.id == "onnx-fp32"
    assert model.backend == "onnx"
    same(model.encode(TEXTS), expected)
    for name in ("onnx/model_qint8_avx2.onnx", "model_qint8_avx2.onnx"):
        model = compat.SentenceTransformer(str(tiny_built), backend="onnx", model_kwargs={"file_name": name})
        assert model._loader._options.artifact == "onnx-int8-avx2"
    model = compat.SentenceTransformer(str(tiny_built), backend="onnx", artifact="torchscript-fp32")
    assert model._loader._options.artifact == "torchscript-fp32"


def test_options_of_the_loader(tiny_built: Path) -> None:
    model = compat.SentenceTransformer(str(tiny_built), strategy="quantized")
    assert model._load().artifact.precision == "int8"
    assert repr(model) == f"SentenceTransformer({str(tiny_built)!r}, strategy='quantized')"
    with pytest.raises(InputError, match="unknown strategy"):
        compat.SentenceTransformer(str(tiny_built), strategy="wrong")
    with pytest.raises(InputError, match="unknown device 'tpu'"):
        compat.SentenceTransformer(str(tiny_built), device="tpu")
    assert (
        repr(compat.SentenceTransformer.load(tiny_built))
        == f"SentenceTransformer({str(tiny_built)!r}, strategy='progressive')"
    )


def test_an_unknown_bundle_is_an_error_of_the_constructor(tmp_path: Path) -> None:
    for name in ("no/such-model", "no-such-model", str(tmp_path / "nowhere")):
        with pytest.raises(BundleNotFound, match="no bundle for model"):
            compat.SentenceTransformer(name)
    with pytest.raises(ManifestError, match="not a complete bundle"):
        compat.SentenceTransformer(tmp_path)
    for name in ("", 3, b"a"):
        with pytest.raises(InputError, match="is not a name or a path"):
            compat.SentenceTransformer(name)  # type: ignore[arg-type]


def test_a_bundle_that_was_changed_is_an_error_of_the_first_call(tiny_bundle: Path) -> None:
    with open(tiny_bundle / "onnx" / "model.onnx", "ab") as stream:
        stream.write(b"\0")
    model = compat.SentenceTransformer(tiny_bundle, artifact="onnx-fp32")
    for _ in range(2):
        with pytest.raises((IntegrityError, NoCompatibleArtifact), match=r"model\.onnx is not the file that was built"):
            model.encode("a")


def test_bad_texts(ours: compat.SentenceTransformer) -> None:
    for inputs, message in (
        (None, "there is no text"),
        (3, "int is neither a str nor a sequence"),
        (["a", None], "text 1: is NoneType, not str"),
        ({"text": "a"}, "dict has no order"),
        (["\ud800"], "text 0: has a lone surrogate"),
    ):
        for method in (ours.encode, ours.encode_query, ours.encode_document):
            with pytest.raises(InputError, match=message):
                method(inputs)
    with pytest.raises(InputError, match="chunk_size must be a positive integer, got 0"):
        ours.encode(["a"], chunk_size=0)


def test_no_texts_and_an_empty_text(ours: compat.SentenceTransformer) -> None:
    assert ours.encode([]).shape == (0, 32)
    assert ours.encode("").shape == (32,)
    same(ours.encode(sentences="a"), ours.encode("a"))


def test_a_pool_computes_in_this_process(ours: compat.SentenceTransformer) -> None:
    expected = ours.encode(TEXTS, normalize_embeddings=True)
    pool = ours.start_multi_process_pool()
    found = ours.encode_multi_process(TEXTS, pool, chunk_size=2, normalize_embeddings=True)
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(ours.encode(TEXTS, pool=pool, normalize_embeddings=True), expected)
    np.testing.assert_array_equal(ours.encode(TEXTS, device=["cpu", "cpu"], normalize_embeddings=True), expected)
    assert pool["processes"] == []
    assert ours.stop_multi_process_pool(pool) is None  # type: ignore[func-returns-value]


def test_threads_share_an_object(tiny_built: Path) -> None:
    model = compat.SentenceTransformer(str(tiny_built))
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(model.encode_query(TEXTS))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for each in found:
        same(each, found[0])


@pytest.mark.native
def test_a_fresh_process_imports_no_engine_and_no_torch(bundle: Path, fresh: Fresh) -> None:
    done = fresh(
        """
import sys
HEAVY = {"torch", "numpy", "onnxruntime", "tokenizers", "transformers", "sentence_transformers", "contextlib", "json"}
from firstvec.compat import SentenceTransformer
assert not HEAVY & {*sys.modules}, HEAVY & {*sys.modules}
assert not [name for name in sys.modules if name.startswith("firstvec.engines.") and name != "firstvec.engines.table"]
model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
assert model.get_sentence_embedding_dimension() == 384 and model.max_seq_length == 256
vectors = model.encode(["how do I reset my password?", "I forgot my password"])
assert (HEAVY & {*sys.modules}) <= {"numpy", "contextlib", "json"}, HEAVY & {*sys.modules}
sys.modules["torch"] = None  # as where torch is not installed
scores = model.similarity(vectors, vectors)
assert type(scores).__name__ == "ndarray" and scores.shape == (2, 2) and scores[0, 1] > 0.5
assert type(model.tokenize(["a"])["input_ids"]).__name__ == "ndarray"
try:
    model.encode("a", convert_to_tensor=True)
except Exception as error:
    print(type(error).__name__, error)

import os
child = os.fork()
if not child:
    os._exit(0 if abs(model.encode("how do I reset my password?") - vectors[0]).max() < 1e-6 else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    )
    assert done.stdout.startswith("MissingDependency convert_to_tensor needs torch")


def test_the_real_model_gives_what_theirs_gives(bundle: Path, sentence_transformer: Any) -> None:
    model = compat.SentenceTransformer("all-MiniLM-L6-v2")
    texts = ["how do I reset my password?", "I forgot my password", "The weather is nice.", "x " * 300]
    vectors = model.encode(texts)
    np.testing.assert_allclose(vectors, sentence_transformer.encode(texts), atol=1e-5)
    expected = sentence_transformer.similarity(vectors, vectors)
    np.testing.assert_allclose(model.similarity(vectors, vectors), expected, atol=1e-5)
    assert model.prompts == sentence_transformer.prompts
    assert model.max_seq_length == sentence_transformer.max_seq_length


@pytest.mark.native
def test_the_program_of_the_page_prints_what_the_page_says(bundle: Path, fresh: Fresh) -> None:
    page = (REPOSITORY / "docs/sentence-transformers.md").read_text("utf-8")
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL))
    without_torch = 'import sys; sys.modules["torch"] = None\n'  # tests/test_docs.py runs it with torch
    assert fresh(without_torch + blocks["python"]).stdout == blocks["text"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"truncate_dim": 0}, "truncate_dim 0 is not a positive integer"),
        ({"truncate_dim": "x"}, "truncate_dim 'x' is not a positive integer"),
        ({"prompts": "abc"}, "prompts 'abc' is not a dict"),
        ({"model_kwargs": 5}, "model_kwargs 5 is not a dict"),
        ({"model_name_or_path": None}, "model_name_or_path is missing: give the name of a bundle"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(options: dict[str, Any], reason: str, tiny_built: Path) -> None:
    with pytest.raises(InputError, match=reason):
        compat.SentenceTransformer(**{"model_name_or_path": str(tiny_built), **options})
