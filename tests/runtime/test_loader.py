"""When a model is loaded, by whom, and that a process has one loader for each model and options."""

from __future__ import annotations

import copy
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import (
    BundleNotFound,
    ClosedError,
    InputError,
    LoadingStrategy,
    OptimizedEmbeddingLoader,
    SignatureError,
    get_embedding_provider,
    preload_embeddings,
)
from firstvec.loader import _process_loaders
from tests.conftest import Fresh, edit_manifest
from tests.keys import make_keys, sign_with_peer
from tests.loads import ask_at_once, hold_sessions, wait_for

get_instance = OptimizedEmbeddingLoader.get_instance

THREADED = [strategy for strategy in LoadingStrategy if strategy is not LoadingStrategy.LAZY]


@pytest.mark.parametrize("strategy", LoadingStrategy)
def test_each_strategy_gives_the_reference_vector(
    strategy: LoadingStrategy, bundle: Path, sentence_transformer: Any
) -> None:
    loader = OptimizedEmbeddingLoader(str(bundle), strategy)
    loader.start_loading()
    provider = loader.get_provider()
    expected = sentence_transformer.encode("how do I reset my password?")
    vector = provider.embed_query("how do I reset my password?")
    assert vector.shape == (384,)
    assert vector.dtype == np.float32
    if strategy is LoadingStrategy.QUANTIZED:
        assert provider.artifact.precision == "int8"
        assert vector @ expected > 0.97
    else:
        assert provider.artifact.precision == "fp32"
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_constructing_loads_nothing_and_does_not_raise_for_an_unknown_model() -> None:
    loader = OptimizedEmbeddingLoader("no/such-model")
    assert not loader.is_loaded()
    assert not loader.is_loading()
    assert loader.get_metadata() is None
    assert loader.get_embedding_dim_fast() is None
    assert loader.get_error() is None
    assert loader.get_load_time() == 0.0


def test_metadata_and_dimension_come_from_the_manifest(bundle: Path) -> None:
    loader = OptimizedEmbeddingLoader("all-MiniLM-L6-v2")
    metadata = loader.get_metadata()
    assert metadata is not None
    assert metadata.model_name == "sentence-transformers/all-MiniLM-L6-v2"
    assert (metadata.embedding_dim, metadata.max_seq_length) == (384, 256)
    assert metadata.supports_quantization
    assert loader.get_embedding_dim_fast() == 384
    assert not loader.is_loading()


@pytest.mark.parametrize("strategy", LoadingStrategy)
def test_an_unknown_model_raises_bundle_not_found(strategy: LoadingStrategy) -> None:
    loader = OptimizedEmbeddingLoader("no/such-model", strategy)
    loader.start_loading()
    with pytest.raises(BundleNotFound, match="firstvec build no/such-model"):
        loader.get_provider()
    assert isinstance(loader.get_error(), BundleNotFound)
    assert not loader.is_loaded()
    assert not loader.is_loading()


def test_strategies_are_accepted_by_name(tiny_built: Path) -> None:
    assert OptimizedEmbeddingLoader(str(tiny_built), "LAZY").strategy is LoadingStrategy.LAZY


@pytest.mark.parametrize("value", ["5", float("nan"), b"1", True])
def test_a_timeout_that_is_no_number_is_refused(value: object, tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built))
    for call in (loader.get_provider, loader.wait_for_provider, lambda timeout: loader.count_tokens("text", timeout)):
        with pytest.raises(InputError, match="timeout"):
            call(value)  # type: ignore[operator]


def test_an_endless_timeout_is_accepted(tiny_built: Path) -> None:
    for timeout in (None, float("inf"), 1e300):
        assert OptimizedEmbeddingLoader(str(tiny_built)).get_provider(timeout).embedding_dim == 32


# When a loader loads


@pytest.mark.parametrize("method", ["get_provider", "wait_for_provider"])
@pytest.mark.parametrize("strategy", LoadingStrategy)
def test_a_load_that_nobody_started_is_started_by_the_call_that_needs_it(
    strategy: LoadingStrategy, method: str, tiny_built: Path
) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built), strategy=strategy)
    assert loader.report()["state"] == "idle"
    provider = getattr(loader, method)()
    assert provider.embed_query("text").shape == (32,)
    assert loader.report()["state"] == "loaded"


def test_lazy_loads_at_first_use_and_not_before(tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built))
    loader.start_loading()
    assert not loader.is_loading()
    assert loader.get_provider().embedding_dim == 32
    assert loader.is_loaded()
    assert loader.get_load_time() > 0


@pytest.mark.parametrize("strategy", THREADED)
def test_the_others_load_when_they_are_told_to(
    strategy: LoadingStrategy, tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = hold_sessions(monkeypatch)
    loader = OptimizedEmbeddingLoader(str(tiny_built), strategy)
    loader.start_loading()
    assert loader.is_loading()
    release.set()
    wait_for(loader.is_loaded)
    assert not loader.is_loading()
    assert loader.get_load_time() > 0


def test_the_provider_is_loaded_once(tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built))
    assert loader.get_provider() is loader.wait_for_provider()
    loader.start_loading()
    assert loader.get_provider() is loader.get_provider()


@pytest.mark.parametrize("strategy", LoadingStrategy)
def test_threads_that_ask_at_once_get_one_provider(strategy: LoadingStrategy, tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built), strategy)
    providers = ask_at_once(16, loader.get_provider)
    assert len(providers) == 16
    assert len(set(map(id, providers))) == 1


def test_threads_that_ask_at_once_get_one_error() -> None:
    loader = OptimizedEmbeddingLoader("no/such-model", LoadingStrategy.BACKGROUND)
    loader.start_loading()

    def ask() -> BundleNotFound:
        with pytest.raises(BundleNotFound) as caught:
            loader.get_provider()
        return caught.value

    errors = ask_at_once(16, ask)
    assert len(errors) == 16
    assert len(set(map(id, errors))) == 1


@pytest.mark.parametrize("strategy", [LoadingStrategy.LAZY, LoadingStrategy.CACHED])
def test_a_failed_load_can_be_retried(strategy: LoadingStrategy, tiny_bundle: Path) -> None:
    away = tiny_bundle.with_name("away")
    loader = OptimizedEmbeddingLoader(str(tiny_bundle), strategy)
    os.rename(tiny_bundle, away)
    loader.start_loading()
    with pytest.raises(BundleNotFound):
        loader.get_provider()
    os.rename(away, tiny_bundle)
    loader.start_loading()
    assert loader.get_provider().embedding_dim == 32
    assert loader.get_error() is None


@pytest.mark.parametrize(("texts", "counts"), [(iter(["a", "b c"]), [3, 4]), (("a", "b c"), [3, 4]), ("a", [3])])
def test_count_tokens_takes_what_the_provider_takes(texts: object, counts: list[int], tiny_built: Path) -> None:
    assert len(OptimizedEmbeddingLoader(str(tiny_built)).count_tokens(texts)) == len(counts)  # type: ignore[arg-type]


@pytest.mark.parametrize("texts", [{"a", "b"}, {"a": 1}, b"ab", None, 5, ["a", b"b"]])
def test_count_tokens_refuses_what_the_provider_refuses(texts: object, tiny_built: Path) -> None:
    with pytest.raises(InputError):
        OptimizedEmbeddingLoader(str(tiny_built)).count_tokens(texts)  # type: ignore[arg-type]


@pytest.mark.native
@pytest.mark.parametrize("given", ["the argument", "FIRSTVEC_ARTIFACTS"])
def test_a_relative_path_is_seen_from_where_the_loader_was_made(
    given: str, tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_built.parent)
    name = f"./{tiny_built.name}" if given == "the argument" else "tiny-bert"
    if given == "FIRSTVEC_ARTIFACTS":
        monkeypatch.setenv("FIRSTVEC_ARTIFACTS", ".")
    for strategy in ("lazy", "background"):
        monkeypatch.chdir(tiny_built.parent)
        loader = OptimizedEmbeddingLoader(name, strategy, "cpu")
        monkeypatch.chdir(tmp_path)
        loader.start_loading()
        assert loader.choose().artifact.id == "native-fp32"
        assert loader.get_embedding_dim_fast() == 32
        assert len(loader.get_provider().embed_query("text")) == 32
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", "")
    with pytest.raises(BundleNotFound, match=re.escape(f"Searched:\n  - {tmp_path}/./{tiny_built.name}")):
        OptimizedEmbeddingLoader(f"./{tiny_built.name}").get_provider()


# The options are the same everywhere

WAYS: dict[str, Callable[..., OptimizedEmbeddingLoader[Any, Any]]] = {
    "OptimizedEmbeddingLoader": OptimizedEmbeddingLoader,
    "get_instance": get_instance,
    "preload_embeddings": preload_embeddings,
    "get_embedding_provider": get_embedding_provider,  # type: ignore[dict-item]
}
"""The four ways to give options. The last one returns a provider."""


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Each of the four ways to give options."""
    return WAYS[request.param]


def report_of(found: Any, root: Path, **options: Any) -> dict[str, Any]:
    """Return the report of what a way returned, loaded."""
    if not isinstance(found, OptimizedEmbeddingLoader):
        loader = get_instance(str(root), **options)
        assert loader.get_provider() is found
        return loader.report()
    found.get_provider()
    return found.report()


@pytest.mark.native
def test_an_artifact_may_be_asked_for(way: Callable[..., Any], tiny_built: Path) -> None:
    for artifact in ("torchscript-fp32", "onnx-fp32", "native-fp32", "native-int8"):
        found = way(str(tiny_built), artifact=artifact)
        assert report_of(found, tiny_built, artifact=artifact)["artifact"] == artifact


@pytest.mark.native
def test_a_smallest_quality_may_be_asked_for(way: Callable[..., Any], tiny_built: Path) -> None:
    options: dict[str, Any] = {"strategy": "lazy", "enable_quantization": True}
    found = way(str(tiny_built), **options)
    assert report_of(found, tiny_built, **options)["artifact"] == "native-int8"
    found = way(str(tiny_built), **options, min_quality=0.999999)
    assert report_of(found, tiny_built, **options, min_quality=0.999999)["artifact"] == "native-fp32"


def test_a_signature_may_be_required(way: Callable[..., Any], tiny_bundle: Path, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    options: dict[str, Any] = {"strategy": "lazy", "require_signature": keys.public}

    def loaded() -> dict[str, Any]:
        return report_of(way(str(tiny_bundle), **options), tiny_bundle, **options)

    with pytest.raises(SignatureError):
        loaded()
    sign_with_peer(tiny_bundle, keys.private)
    assert loaded()["state"] == "loaded"


BAD: dict[str, tuple[object, ...]] = {
    "model_name": ("", 5, b"all-MiniLM-L6-v2", ["all-MiniLM-L6-v2"]),
    "strategy": ("fast", "", 3, ["lazy"]),
    "device": ("tpu", "cpu:7", "cuda:x", 5, ["cpu"], b"cpu"),
    "enable_quantization": ("no", "", 1, 0),
    "output": ("tensor", "", 3, ["list"]),
    "min_quality": ("x", float("nan"), 2, -2, True),
    "require_signature": ("", 3, b"key.pem"),
    "artifact": ("", 3, ["onnx-fp32"]),
}
"""Option → values of another type, or out of its range."""


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_value_that_is_not_usable_is_refused_by_name(name: str, value: object, way: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=name.replace("_", "[_ ]")):
        way(**{name: value})


@pytest.mark.parametrize("name", ["model_name", "strategy", "enable_quantization"])
def test_none_is_no_value_for_a_loader_of_ones_own(name: str) -> None:
    with pytest.raises(InputError, match=name):
        OptimizedEmbeddingLoader(**{name: None})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["fast", "", 3])
def test_an_unknown_strategy_is_refused_with_the_known_ones(value: object, way: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="lazy, background, progressive, quantized, cached"):
        way(strategy=value)


def test_an_unknown_device_is_refused_with_the_known_ones(way: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="'cpu', 'cuda', 'cuda:1' or 'mps'"):
        way(device="tpu")


@pytest.mark.parametrize("name", ["min_qualitty", "working_folder", "model", "precision"])
def test_an_unknown_keyword_is_a_type_error(name: str, way: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=name):
        way(**{name: "x"})


# The loaders of the process


@pytest.fixture
def models(smallest_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the installed models ``organization/model-a`` and ``organization/model-b``."""
    folder = tmp_path / "models"
    for name in ("model-a", "model-b"):
        install(smallest_built, folder / name, f"organization/{name}")
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(folder))
    return folder


def install(built: Path, root: Path, name: str) -> None:
    """Copy a bundle, and give its model a name."""
    shutil.copytree(built, root)
    edit_manifest(root, lambda document: document["model"].update(name=name))


def model_of(provider: Any) -> str:
    """Return the name that the provider's manifest has, without the organization."""
    return str(provider.manifest.model.name).partition("/")[2]


def test_two_models_have_two_providers_and_each_stays(models: Path) -> None:
    first, second = get_embedding_provider("model-a"), get_embedding_provider("model-b")
    assert (model_of(first), model_of(second)) == ("model-a", "model-b")
    assert get_embedding_provider("model-a") is first
    assert get_embedding_provider("model-b") is second
    assert get_instance("model-a").get_provider() is first
    assert preload_embeddings("model-b").get_provider() is second


@pytest.mark.parametrize(
    "other",
    [
        {"strategy": "cached"},
        {"enable_quantization": True},
        {"output": "list"},
        {"device": "cpu"},
        {"artifact": "onnx-fp32"},
        {"min_quality": 0.5},
    ],
    ids=str,
)
def test_other_options_have_a_loader_of_their_own(other: dict[str, Any], models: Path) -> None:
    first = get_instance("model-a", "lazy")
    assert get_instance("model-a") is get_instance("model-a", LoadingStrategy.LAZY) is first
    second = get_instance("model-a", **other)
    assert second is not first
    assert get_instance("model-a", **other) is second
    assert get_instance("model-a", "lazy", enable_quantization=False, output="numpy") is first


def test_an_argument_that_is_left_out_fits_every_loader(models: Path) -> None:
    loader = get_instance(
        "model-a", "quantized", device="cpu", enable_quantization=True, output="list", min_quality=-1.0
    )
    assert get_instance("model-a") is get_instance() is get_instance(output="list", min_quality=-1.0) is loader
    assert preload_embeddings("model-a", None, device=None, enable_quantization=None, output=None) is loader
    assert loader.strategy is LoadingStrategy.QUANTIZED


def test_get_instance_is_one_for_twenty_threads(models: Path) -> None:
    found = ask_at_once(20, lambda: get_instance("model-a"))
    assert len(found) == 20
    assert len(set(map(id, found))) == 1


def test_get_embedding_provider_is_one_for_twenty_threads(models: Path) -> None:
    found = ask_at_once(20, lambda: get_embedding_provider("model-a"))
    assert len(found) == 20
    assert len(set(map(id, found))) == 1


def test_get_embedding_provider_starts_the_load_that_nobody_started(tiny_built: Path) -> None:
    assert get_embedding_provider(str(tiny_built)).embed_chunk("text").shape == (32,)


def test_the_default_strategies_are_lazy_and_progressive(models: Path) -> None:
    assert get_instance("model-a").strategy is LoadingStrategy.LAZY
    assert preload_embeddings("model-b").strategy is LoadingStrategy.PROGRESSIVE
    OptimizedEmbeddingLoader.reset()
    get_embedding_provider("model-a")
    assert get_instance("model-a").strategy is LoadingStrategy.PROGRESSIVE


def test_preload_returns_the_loader_that_get_embedding_provider_waits_for(models: Path) -> None:
    loader = preload_embeddings("model-a", strategy=LoadingStrategy.PROGRESSIVE)
    provider = get_embedding_provider()
    assert loader.get_provider() is provider
    assert model_of(provider) == "model-a"


@pytest.mark.parametrize("name", [preload_embeddings, get_instance], ids=["preload_embeddings", "get_instance"])
def test_the_one_model_that_a_program_named_is_that_of_calls_without_a_name(
    name: Callable[..., Any], models: Path
) -> None:
    get_embedding_provider("model-b")
    get_embedding_provider("model-a")  # the loader is there already
    name("model-a")
    assert model_of(get_embedding_provider()) == "model-a"
    assert get_instance().get_provider() is preload_embeddings().get_provider() is get_embedding_provider()


def test_a_plugin_that_names_its_model_does_not_change_that_of_the_host(models: Path) -> None:
    install(models / "model-a", models / "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")
    get_embedding_provider("model-b")
    assert model_of(get_embedding_provider()) == "all-MiniLM-L6-v2"
    preload_embeddings("model-a")
    get_embedding_provider("model-b", output="list")
    assert model_of(get_embedding_provider()) == "model-a"


def test_two_preloaded_models_and_no_name_is_an_error_that_lists_both(models: Path) -> None:
    preload_embeddings("model-a")
    preload_embeddings("model-b")
    for call in (get_embedding_provider, preload_embeddings, get_instance):
        with pytest.raises(InputError, match=r"loaders of model-a, model-b: say which one with model_name"):
            call()  # type: ignore[operator]
    assert model_of(get_embedding_provider("model-b")) == "model-b"


def test_a_program_that_named_the_default_model_too_means_it(models: Path) -> None:
    install(models / "model-a", models / "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")
    preload_embeddings()
    preload_embeddings("model-b")
    assert model_of(get_embedding_provider()) == "all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("all-MiniLM-L6-v2", "{folder}/all-MiniLM-L6-v2"),
        ("{folder}/all-MiniLM-L6-v2", "{folder}/../models/all-MiniLM-L6-v2/"),
    ],
)
def test_two_names_of_one_bundle_are_one_loader(one: str, other: str, models: Path) -> None:
    install(models / "model-a", models / "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")
    one, other = one.format(folder=models), other.format(folder=models)
    loader = preload_embeddings(one)
    assert preload_embeddings(other) is get_instance(other) is loader
    assert get_embedding_provider(other) is get_embedding_provider(one) is get_embedding_provider()


def test_one_name_of_two_bundles_is_two_loaders(models: Path, smallest_built: Path) -> None:
    install(smallest_built, models / "elsewhere" / "model-a", "organization/model-a")
    paths = (str(models / "model-a"), str(models / "elsewhere" / "model-a"))
    assert get_instance(paths[0]) is not get_instance(paths[1])
    assert get_instance("other/model-a") is not get_instance("organization/model-a")


def test_a_relative_path_means_a_bundle_of_the_working_folder(
    models: Path, smallest_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(smallest_built, tmp_path / "other" / "model-a", "organization/model-a")
    monkeypatch.chdir(models)
    first = get_embedding_provider("./model-a")
    monkeypatch.chdir(tmp_path / "other")
    assert get_embedding_provider("./model-a") is not first
    monkeypatch.chdir(models)
    assert get_embedding_provider("./model-a") is first


@pytest.mark.parametrize("name", ["./model-a", "organization/model-a"])
def test_a_program_that_changes_its_folder_keeps_the_model_that_it_preloaded(
    name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    loader = preload_embeddings(name)
    monkeypatch.chdir(tmp_path)
    assert get_embedding_provider() is loader.get_provider()
    if name == "organization/model-a":
        assert get_instance(name) is loader


def test_a_failed_name_does_not_pin_the_process(models: Path) -> None:
    away = models.parent / "away"
    (models / "model-a").rename(away)
    loader = preload_embeddings("model-a")
    with pytest.raises(BundleNotFound):
        get_embedding_provider()
    # The program falls back to a second model.
    second = preload_embeddings("model-b")
    assert get_embedding_provider() is get_embedding_provider("model-b") is second.get_provider()
    # Then the first one is built.
    away.rename(models / "model-a")
    first = get_embedding_provider("model-a")
    assert model_of(first) == "model-a"
    assert get_embedding_provider("model-a") is first
    assert isinstance(loader.get_error(), BundleNotFound)  # the loader that failed was forgotten
    assert get_embedding_provider() is second.get_provider()


def test_a_failed_name_that_another_call_has_passed_over_is_forgotten_too(models: Path) -> None:
    preload_embeddings("no/such-model")
    with pytest.raises(BundleNotFound):
        get_embedding_provider()
    assert model_of(get_embedding_provider("model-a")) == "model-a"
    with pytest.raises(BundleNotFound):
        get_embedding_provider()  # the one model that the program has named, tried again
    get_embedding_provider("model-a", output="list")
    preload_embeddings("model-b")
    assert model_of(get_embedding_provider()) == "model-b"


def test_a_call_after_a_failure_tries_again(models: Path) -> None:
    (models / "model-a").rename(models.parent / "away")
    with pytest.raises(BundleNotFound):
        get_embedding_provider("model-a")
    (models.parent / "away").rename(models / "model-a")
    assert model_of(get_embedding_provider("model-a")) == "model-a"


def test_failed_loaders_do_not_pile_up() -> None:
    for number in range(5):
        with pytest.raises(BundleNotFound):
            get_embedding_provider(f"no/such-model-{number}")
    assert len(_process_loaders._loaders) == 1


def test_a_closed_provider_is_loaded_again(models: Path) -> None:
    provider = get_embedding_provider("model-a")
    provider.close()
    again = get_embedding_provider("model-a")
    assert again is not provider
    assert len(again.embed_query("text")) == 4


def test_reset_forgets_every_loader_and_every_name(models: Path) -> None:
    loader = preload_embeddings("model-a")
    provider = loader.get_provider()
    get_embedding_provider("model-b")
    OptimizedEmbeddingLoader.reset()
    with pytest.raises(BundleNotFound, match="all-MiniLM-L6-v2"):
        get_embedding_provider()
    assert get_instance("model-a") is not loader
    assert provider.embed_query("text").shape == (4,)  # what was handed out stays usable


FORKED = """
import os, sys
from firstvec import get_embedding_provider, preload_embeddings
loader = preload_embeddings("model-a", output="list")
expected = loader.get_provider().embed_query("text")
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert preload_embeddings("model-a") is loader
assert get_embedding_provider() is loader.get_provider()
assert get_embedding_provider("model-b", output="list").embed_query("text") == expected
"""


def test_a_forked_child_has_the_loaders_of_its_parent(models: Path, fresh: Fresh) -> None:
    fresh(FORKED)


# Copies

_USE_THE_COPY = """
import pickle, sys
copy = pickle.load(sys.stdin.buffer)
provider = copy.get_provider() if hasattr(copy, "get_provider") else copy
print(provider.artifact.id, provider.embed_query("one", "buffer").tobytes().hex())
"""


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_loader_is_copied_as_its_options(
    copied: Callable[[Any], Any], tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_built.parent)
    loader = OptimizedEmbeddingLoader("./tiny-bert", "quantized", output="list")
    loader.get_provider()
    monkeypatch.chdir("/")
    other = copied(loader)
    assert (type(other), other._options) == (OptimizedEmbeddingLoader, loader._options)
    assert not other.is_loaded()
    assert other.get_provider() is not loader.get_provider()
    assert other.get_provider().embed_query("one") == loader.get_provider().embed_query("one")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_provider_is_copied_by_a_load_of_its_own(copied: Callable[[Any], Any], tiny_built: Path) -> None:
    provider = OptimizedEmbeddingLoader(str(tiny_built), "quantized", output="list").get_provider()
    other = copied(provider)
    provider.close()
    assert other.artifact.id == provider.artifact.id
    assert len(other.embed_query("one")) == provider.embedding_dim
    with pytest.raises(ClosedError):
        copied(provider)


@pytest.mark.parametrize("kind", ["loader", "provider"])
def test_another_process_opens_a_session_of_its_own(kind: str, tiny_built: Path, tmp_path: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built), "quantized")
    provider = loader.get_provider()
    done = subprocess.run(
        [sys.executable, "-c", _USE_THE_COPY],
        input=pickle.dumps(loader if kind == "loader" else provider),
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )
    expected = provider.embed_query("one", "buffer").tobytes().hex()
    assert done.stdout.decode().split() == [provider.artifact.id, expected]


def test_a_copy_of_a_provider_whose_bundle_is_gone_raises_the_error_of_its_load(tiny_bundle: Path) -> None:
    pickled = pickle.dumps(OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider())
    shutil.rmtree(tiny_bundle)
    with pytest.raises(BundleNotFound, match="tiny-bert"):
        pickle.loads(pickled)
