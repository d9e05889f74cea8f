"""When a model is loaded, by whom, and what is raised if it is not."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from firstvec import (
    BundleNotFound,
    EmbeddingProvider,
    IncompatibleArtifact,
    InputError,
    IntegrityError,
    LoadError,
    LoadingStrategy,
    LoadTimeout,
    ManifestError,
    NoCompatibleArtifact,
    OptimizedEmbeddingLoader,
    get_embedding_provider,
    preload_embeddings,
)
from firstvec import load as load_module
from firstvec.integrity import OpenFile
from firstvec.manifest import Manifest
from tests.conftest import Fresh, edit_manifest

THREADED = [strategy for strategy in LoadingStrategy if strategy is not LoadingStrategy.LAZY]


def flip_byte(path: Path, offset: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("strategy", LoadingStrategy)
def test_each_strategy_gives_the_reference_vector(
    strategy: LoadingStrategy, bundle: Path, sentence_transformer: object
) -> None:
    loader = OptimizedEmbeddingLoader(str(bundle), strategy)
    loader.start_loading()
    provider = loader.get_provider()
    expected = sentence_transformer.encode("how do I reset my password?")  # type: ignore[attr-defined]
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


@pytest.mark.parametrize("value", ["fast", "", None, 3])
def test_an_unknown_strategy_is_refused_with_the_known_ones(value: object) -> None:
    with pytest.raises(InputError, match="lazy, background, progressive, quantized, cached"):
        OptimizedEmbeddingLoader(strategy=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", None, b"all-MiniLM-L6-v2"])
def test_a_model_name_that_is_none_is_refused(name: object) -> None:
    with pytest.raises(InputError, match="model_name"):
        OptimizedEmbeddingLoader(name)  # type: ignore[arg-type]


def test_an_unknown_device_is_refused() -> None:
    for device in ("tpu", "cpu:7", "cuda:x", 5, ["cpu"], b"cpu"):
        with pytest.raises(InputError, match="'cpu', 'cuda', 'cuda:1' or 'mps'"):
            OptimizedEmbeddingLoader(device=device)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["x", float("nan"), 2, -2, True])
def test_a_min_quality_that_is_no_cosine_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="min_quality"):
        OptimizedEmbeddingLoader(min_quality=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["no", "", 1, None])
def test_an_enable_quantization_that_is_no_boolean_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="enable_quantization"):
        OptimizedEmbeddingLoader(enable_quantization=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["5", float("nan"), b"1"])
def test_a_timeout_that_is_no_number_is_refused(value: object, tiny_built: Path) -> None:
    with pytest.raises(InputError, match="timeout"):
        OptimizedEmbeddingLoader(str(tiny_built)).get_provider(timeout=value)  # type: ignore[arg-type]


def test_an_endless_timeout_is_accepted(tiny_built: Path) -> None:
    for timeout in (None, float("inf"), 1e300):
        assert OptimizedEmbeddingLoader(str(tiny_built)).get_provider(timeout).embedding_dim == 32


def test_strategies_are_accepted_by_name(tiny_built: Path) -> None:
    assert OptimizedEmbeddingLoader(str(tiny_built), "LAZY").strategy is LoadingStrategy.LAZY


@pytest.mark.parametrize("strategy", THREADED)
def test_a_load_that_was_never_started_raises(strategy: LoadingStrategy, tiny_built: Path) -> None:
    with pytest.raises(LoadError, match=r"start_loading\(\)"):
        OptimizedEmbeddingLoader(str(tiny_built), strategy).get_provider()


def test_lazy_loads_at_first_use_and_not_before(tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built))
    loader.start_loading()
    assert not loader.is_loading()
    assert loader.get_provider().embedding_dim == 32
    assert loader.is_loaded()
    assert loader.get_load_time() > 0


def test_the_provider_is_loaded_once(tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built))
    assert loader.get_provider() is loader.wait_for_provider()
    loader.start_loading()
    assert loader.get_provider() is loader.get_provider()


def slow_open(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold every session back until the event is set."""
    release = threading.Event()
    real = load_module.Opener.open

    def held(opener: load_module.Opener, **options: bool) -> object:
        assert release.wait(30)
        return real(opener, **options)

    monkeypatch.setattr(load_module.Opener, "open", held)
    return release


@pytest.mark.parametrize("strategy", [LoadingStrategy.LAZY, LoadingStrategy.BACKGROUND])
def test_a_late_load_raises_load_timeout_and_goes_on(
    strategy: LoadingStrategy, tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = slow_open(monkeypatch)
    loader = OptimizedEmbeddingLoader(str(tiny_built), strategy)
    loader.start_loading()
    try:
        with pytest.raises(LoadTimeout, match=r"0\.05 s; the load goes on"):
            loader.get_provider(timeout=0.05)
        assert loader.is_loading()
        assert loader.get_error() is None
    finally:
        release.set()
    assert loader.get_provider().embed_query("late").shape == (32,)


def test_progressive_answers_metadata_and_token_counts_before_the_session_is_up(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = slow_open(monkeypatch)
    loader = OptimizedEmbeddingLoader(str(tiny_built), LoadingStrategy.PROGRESSIVE)
    loader.start_loading()
    try:
        assert loader.get_embedding_dim_fast() == 32
        counts = loader.count_tokens(["", "two words"])
        assert not loader.is_loaded()
    finally:
        release.set()
    assert counts == loader.get_provider().count_tokens(["", "two words"])
    assert counts[0] == 2


def test_progressive_hands_over_without_changing_a_vector(bundle: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(bundle), LoadingStrategy.PROGRESSIVE)
    loader.start_loading()
    provider = loader.get_provider()
    texts = ["a", "how do I parse a date?", "long " * 300]
    assert provider.session_kind == "quick-start"
    before = provider.encode(texts)
    deadline = time.monotonic() + 30
    while provider.session_kind == "quick-start" and time.monotonic() < deadline:
        # Encoding while the sessions change hands is what must not be noticed.
        np.testing.assert_allclose(provider.encode(texts), before, atol=1e-6)
    assert provider.session_kind == "throughput"
    np.testing.assert_allclose(provider.encode(texts), before, atol=1e-6)


def test_background_opens_the_session_that_runs_fastest(tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built), LoadingStrategy.BACKGROUND)
    loader.start_loading()
    assert loader.get_provider().session_kind == "throughput"


def test_threads_that_ask_at_once_get_one_provider(tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built))
    barrier = threading.Barrier(16)
    providers: list[EmbeddingProvider] = []

    def ask() -> None:
        barrier.wait()
        providers.append(loader.get_provider())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(providers) == 16
    assert len(set(map(id, providers))) == 1


def test_threads_that_ask_at_once_get_one_error() -> None:
    loader = OptimizedEmbeddingLoader("no/such-model", LoadingStrategy.BACKGROUND)
    loader.start_loading()
    errors: list[BundleNotFound] = []

    def ask() -> None:
        try:
            loader.get_provider()
        except BundleNotFound as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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


def test_a_damaged_artifact_is_passed_over_with_one_warning(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture, sentence_transformer: object
) -> None:
    good = OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider().embed_query("text")
    flip_byte(tiny_bundle / "onnx/model.onnx_data")
    provider = OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider()
    assert provider.artifact.id == "torchscript-fp32"
    np.testing.assert_allclose(provider.embed_query("text"), good, atol=1e-5)
    [record] = [record for record in caplog.records if record.name == "firstvec"]
    assert "model.onnx_data" in record.getMessage()
    assert "torchscript-fp32" in record.getMessage()


def test_a_damaged_only_candidate_raises_integrity_error(tiny_bundle: Path) -> None:
    def keep_onnx(document: dict[str, list[dict[str, str]]]) -> None:
        document["artifacts"] = [item for item in document["artifacts"] if item["id"] == "onnx-fp32"]

    edit_manifest(tiny_bundle, keep_onnx)
    flip_byte(tiny_bundle / "onnx/model.onnx")
    with pytest.raises(IntegrityError, match="firstvec build --force"):
        OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider()


def test_all_candidates_damaged_lists_every_reason(tiny_bundle: Path) -> None:
    for name in ("onnx/model.onnx", "torchscript/model.pt"):
        flip_byte(tiny_bundle / name)
    with pytest.raises(NoCompatibleArtifact, match=r"(?s)model\.onnx.*model\.pt"):
        OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider()


def test_a_damaged_tokenizer_raises_integrity_error(tiny_bundle: Path) -> None:
    flip_byte(tiny_bundle / "tokenizer.json")
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda root: (root / "firstvec.json").write_bytes((root / "firstvec.json").read_bytes()[:500]), "JSON"),
        (lambda root: edit_manifest(root, lambda document: document.update(format_version="2.0")), "upgrade firstvec"),
        (lambda root: edit_manifest(root, lambda document: document.pop("model")), "model: is missing"),
    ],
    ids=["truncated", "newer", "edited"],
)
def test_a_bad_manifest_raises_manifest_error(damage: Callable[[Path], None], expected: str, tiny_bundle: Path) -> None:
    damage(tiny_bundle)
    with pytest.raises(ManifestError, match=expected):
        OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider()


def test_an_isa_that_no_artifact_fits_raises_with_the_reasons(tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built), LoadingStrategy.QUANTIZED)
    loader.resource_profile = loader.resource_profile.replace(isa=(), machine="riscv64")
    loader.start_loading()
    with pytest.raises(NoCompatibleArtifact, match="isa: needs avx2, this CPU has riscv64"):
        loader.get_provider()


def test_min_quality_is_enforced_at_load(tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built), LoadingStrategy.QUANTIZED, min_quality=0.99999)
    loader.start_loading()
    with pytest.raises(NoCompatibleArtifact, match=r"quality: cosine_min .* < min_quality 0\.99999"):
        loader.get_provider()


def test_torchscript_is_taken_where_torch_is_loaded_already(bundle: Path, sentence_transformer: object) -> None:
    loader = OptimizedEmbeddingLoader(str(bundle), LoadingStrategy.CACHED)
    assert loader.resource_profile.torch_loaded
    loader.start_loading()
    provider = loader.get_provider()
    assert provider.artifact.id == "torchscript-fp32"
    texts = ["x", "how do I reset my password?", "two " * 400]
    expected = sentence_transformer.encode(texts)  # type: ignore[attr-defined]
    np.testing.assert_allclose(provider.encode(texts), expected, atol=1e-5)


def test_get_instance_is_one_per_process_until_reset(tiny_built: Path) -> None:
    first = OptimizedEmbeddingLoader.get_instance(str(tiny_built))
    assert OptimizedEmbeddingLoader.get_instance() is first
    assert OptimizedEmbeddingLoader.get_instance(str(tiny_built), "lazy") is first
    for other in ({"model_name": "other"}, {"strategy": "cached"}, {"enable_quantization": True}, {"output": "list"}):
        with pytest.raises(InputError, match=rf"{next(iter(other))}=.*reset\(\)"):
            OptimizedEmbeddingLoader.get_instance(**other)  # type: ignore[arg-type]
    OptimizedEmbeddingLoader.reset()
    assert OptimizedEmbeddingLoader.get_instance(str(tiny_built)) is not first


def test_get_instance_is_one_for_twenty_threads(tiny_built: Path) -> None:
    barrier = threading.Barrier(20)
    found: list[OptimizedEmbeddingLoader] = []

    def ask() -> None:
        barrier.wait()
        found.append(OptimizedEmbeddingLoader.get_instance(str(tiny_built)))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


def test_preload_returns_the_loader_that_get_embedding_provider_waits_for(tiny_built: Path) -> None:
    loader = preload_embeddings(str(tiny_built), strategy=LoadingStrategy.PROGRESSIVE)
    provider = get_embedding_provider()
    assert loader.get_provider() is provider
    assert provider.embed_query("text").shape == (32,)


def test_another_model_than_the_preloaded_one_is_an_error_not_that_model(tiny_built: Path) -> None:
    preload_embeddings(str(tiny_built))
    with pytest.raises(InputError, match="not 'all-MiniLM-L6-v2'"):
        get_embedding_provider("all-MiniLM-L6-v2")


def test_a_manifest_that_states_another_dimension_raises_a_typed_error(tiny_bundle: Path) -> None:
    edit_manifest(tiny_bundle, lambda document: document["model"].update(embedding_dim=33))
    for way in ("capi", "binding"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FIRSTVEC_ONNXRUNTIME", way)
            provider = OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider()
            with pytest.raises(IncompatibleArtifact, match="rebuild the bundle"):
                provider.embed_query("text")


POOL_AFTER_PRELOAD = """
import multiprocessing, sys, time
from firstvec import get_embedding_provider, preload_embeddings
def work(text):
    return len(get_embedding_provider().embed_query(text))
if __name__ == "__main__":
    preload_embeddings(sys.argv[1], sys.argv[2])
    time.sleep(float(sys.argv[3]))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(work, ["text"] * 8).get(60) == [32] * 8
"""


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.01, 0.02, 0.04])
@pytest.mark.parametrize("strategy", [LoadingStrategy.PROGRESSIVE, LoadingStrategy.BACKGROUND])
def test_a_pool_may_be_forked_right_after_the_preload(
    strategy: LoadingStrategy, seconds: float, tiny_built: Path, fresh: Fresh
) -> None:
    fresh(POOL_AFTER_PRELOAD, tiny_built, strategy.value, seconds)


def test_get_embedding_provider_starts_the_load_that_nobody_started(tiny_built: Path) -> None:
    assert get_embedding_provider(str(tiny_built)).embed_chunk("text").shape == (32,)


EXIT_DURING_LOAD = """
import sys, time
from firstvec import preload_embeddings
preload_embeddings(sys.argv[1], sys.argv[2])
time.sleep(float(sys.argv[3]))
"""


@pytest.mark.parametrize("strategy", THREADED)
@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.08, 0.15])
def test_the_interpreter_exits_cleanly_during_a_load(
    strategy: LoadingStrategy, seconds: float, bundle: Path, fresh: Fresh
) -> None:
    fresh(EXIT_DURING_LOAD, bundle, strategy.value, seconds)


FORK = """
import os, sys
import numpy
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(sys.argv[1], "background")
loader.start_loading()
if sys.argv[2] == "after":
    expected = loader.get_provider().embed_query("text")
child = os.fork()
provider = loader.get_provider()
vector = provider.embed_query("text")
if child == 0:
    assert vector.shape == (32,)
    if sys.argv[2] == "after":
        numpy.testing.assert_allclose(vector, expected, atol=1e-6)
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.parametrize("moment", ["during", "after"])
def test_a_forked_child_opens_its_own_session(moment: str, tiny_built: Path, fresh: Fresh) -> None:
    fresh(FORK, tiny_built, moment)


def test_ctrl_c_during_a_load_ends_the_process(bundle: Path, tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    # A shell that starts a job in the background lets it ignore SIGINT, and that is inherited.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script.write_text(heed + EXIT_DURING_LOAD.replace("time.sleep", "print('started', flush=True); time.sleep"))
    process = subprocess.Popen(
        [sys.executable, str(script), str(bundle), "progressive", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    for _ in range(30):
        # Again, as a person would: while another thread has the GIL, CPython may see a signal only after the next call
        # of its own, which here is the minute of sleep.
        process.send_signal(signal.SIGINT)
        try:
            _, stderr = process.communicate(timeout=2)
            break
        except subprocess.TimeoutExpired:
            continue
    # CPython 3.11 forgets that it was Ctrl-C when another thread executes a module meanwhile: then the code is 1.
    assert process.returncode in (-signal.SIGINT, 1)
    assert stderr.rstrip().endswith("KeyboardInterrupt")


IMPORT_DURING_LOAD = """
import sys, time
from firstvec import preload_embeddings
loader = preload_embeddings(sys.argv[1], "progressive")
time.sleep(float(sys.argv[2]))
import numpy
assert loader.get_provider().embed_query("text").dtype == numpy.float32
"""


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.01, 0.02, 0.03, 0.05])
def test_the_program_may_import_numpy_during_the_load(seconds: float, tiny_built: Path, fresh: Fresh) -> None:
    # onnxruntime's extension must not meet a half-imported numpy: it did in one run of six.
    for _ in range(4):
        fresh(IMPORT_DURING_LOAD, tiny_built, seconds)


@pytest.mark.parametrize(("texts", "counts"), [(iter(["a", "b c"]), [3, 4]), (("a", "b c"), [3, 4]), ("a", [3])])
def test_count_tokens_takes_what_the_provider_takes(texts: object, counts: list[int], tiny_built: Path) -> None:
    assert len(OptimizedEmbeddingLoader(str(tiny_built)).count_tokens(texts)) == len(counts)  # type: ignore[arg-type]


@pytest.mark.parametrize("texts", [{"a", "b"}, {"a": 1}, b"ab", None, 5, ["a", b"b"]])
def test_count_tokens_refuses_what_the_provider_refuses(texts: object, tiny_built: Path) -> None:
    with pytest.raises(InputError):
        OptimizedEmbeddingLoader(str(tiny_built)).count_tokens(texts)  # type: ignore[arg-type]


def test_a_closed_provider_is_reported(tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built))
    assert loader.report()["state"] == "idle"
    provider = loader.get_provider()
    report = loader.report()
    assert (report["state"], report["artifact"], report["error"]) == ("loaded", "onnx-fp32", None)
    assert {"manifest", "choice", "tokenizer", "verification", "session"} <= {each["name"] for each in report["stages"]}
    assert all(each["ms"] >= 0 <= each["at_ms"] for each in report["stages"])
    provider.close()
    assert (loader.report()["state"], loader.report()["engine"]) == ("closed", None)


@pytest.mark.parametrize("strategy", ["lazy", "background", "progressive", "quantized"])
def test_a_loader_that_nobody_holds_any_more_frees_all_at_once(strategy: str, tiny_built: Path, fresh: Fresh) -> None:
    """Not when the garbage collector comes by: until then there would be sessions without number."""
    fresh(
        """
import gc, os, sys, time, weakref
from firstvec import OptimizedEmbeddingLoader

def use():
    loader = OptimizedEmbeddingLoader(sys.argv[1], sys.argv[2], "cpu", output="list")
    loader.start_loading()
    provider = loader.get_provider()
    provider.embed_query("text")
    while loader.report()["hand_over"] == "waiting":
        time.sleep(0.02)
    return weakref.ref(provider), weakref.ref(provider.session)

use()
gc.disable()
before = len(os.listdir("/proc/self/fd"))
for _ in range(3):
    for reference in use():
        for _ in range(100):  # the thread that made it may still be about to end
            if reference() is None:
                break
            time.sleep(0.01)
        assert reference() is None, reference
assert len(os.listdir("/proc/self/fd")) == before
""",
        tiny_built,
        strategy,
    )


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
        assert loader.choose().artifact.format == "onnx"
        assert loader.get_embedding_dim_fast() == 32
        assert len(loader.get_provider().embed_query("text")) == 32
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", "")
    with pytest.raises(BundleNotFound, match=re.escape(f"Searched:\n  - {tmp_path}/./{tiny_built.name}")):
        OptimizedEmbeddingLoader(f"./{tiny_built.name}").get_provider()


def test_without_proc_libraries_are_given_what_was_proven(
    tiny_bundle: Path, tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = OptimizedEmbeddingLoader(str(tiny_built), device="cpu").get_provider().embed_query("[MASK] text")
    monkeypatch.setattr(OpenFile, "alias", None)
    provider = OptimizedEmbeddingLoader(str(tiny_bundle), device="cpu").get_provider()
    shutil.rmtree(tiny_bundle)
    np.testing.assert_array_equal(provider.embed_query("[MASK] text"), expected)


def test_without_proc_torchscript_is_given_what_was_proven(tiny_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.read(tiny_built)
    artifact = next(each for each in manifest.artifacts if each.engine == "torch")
    expected = load_module.Opener(manifest, artifact, "cpu").open().run([[2, 5, 3]]).tolist()
    monkeypatch.setattr(OpenFile, "alias", None)
    assert load_module.Opener(manifest, artifact, "cpu").open().run([[2, 5, 3]]).tolist() == expected


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_daemon_that_becomes_another_user_goes_on_serving_every_text(tiny_bundle: Path, fresh: Fresh) -> None:
    done = fresh(
        """
import os, sys
import tokenizers  # this user may not read it later; what matters is the bundle
from firstvec import OptimizedEmbeddingLoader
provider = OptimizedEmbeddingLoader(sys.argv[1], device="cpu", output="list").get_provider()
provider.embed_query("text")
os.chmod(sys.argv[1], 0o700)
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        os.chmod(os.path.join(folder, name), 0o600)
os.setgroups([])
os.setuid(65534)
try:
    open(os.path.join(sys.argv[1], "tokenizer.json"))
except PermissionError:
    print(len(provider.embed_query("[MASK] text")))  # needs the whole tokenizer
""",
        tiny_bundle,
    )
    assert done.stdout == "32\n"
