"""Measure the loader's operations, on real loads of the real model: ``make bench-operations``.

The ten categories come from the performance report of the loader that firstvec replaces. Each benchmark's `extra_info`
has the operation, and when it runs (first in a fresh process, or steady). `extra_info` also has the claim of the
replaced loader's report, and the largest acceptable figure. Nothing is simulated.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from firstvec import (
    LoadingStrategy,
    ModelMetadata,
    OptimizedEmbeddingLoader,
    ResourceProfile,
    get_embedding_provider,
    preload_embeddings,
)
from firstvec.machine.profile import is_ssd
from firstvec_build.source import resolve

CLOCK = fresh.Clock()
FIRST, STEADY = "first in a fresh process", "steady"
HEAVY = ("numpy", "onnxruntime", "tokenizers", "torch", "transformers")
STRATEGIES = [strategy.value for strategy in LoadingStrategy]
IN_BACKGROUND = [name for name in STRATEGIES if name != "lazy"]
IMPORTED = "from firstvec import OptimizedEmbeddingLoader, ModelMetadata, ResourceProfile, preload_embeddings\n"

Row = Callable[..., BenchmarkFixture]


@pytest.fixture(autouse=True)
def _bundle(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(fresh.BUNDLE.parent))
    OptimizedEmbeddingLoader.reset()
    yield
    OptimizedEmbeddingLoader.reset()


@pytest.fixture
def row(benchmark: BenchmarkFixture) -> Row:
    """Return a function that describes the benchmark: ``row(category, what, when)``."""

    def describe(
        category: str,
        what: str,
        when: str = STEADY,
        *,
        claimed: str | None = None,
        bar_us: float | None = None,
        unit: str = "us",
    ) -> BenchmarkFixture:
        benchmark.group = category
        benchmark.extra_info |= {"row": what, "when": when, "unit": unit}
        benchmark.extra_info |= {"claimed": claimed, "bar_us": bar_us}
        return benchmark

    return describe


def first(benchmark: BenchmarkFixture, statement: str, setup: str = "", afterwards: str = "", rounds: int = 9) -> None:
    """Measure a statement's first run in fresh processes."""
    benchmark.pedantic(CLOCK.measure, (statement, setup, afterwards), rounds=rounds, warmup_rounds=1)


# --- 1. Loader initialization ----------------------------------------------------------------------------------------

INITIALIZATION = "1 loader initialization"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_loader_is_constructed(strategy: str, row: Row) -> None:
    benchmark = row(INITIALIZATION, f"OptimizedEmbeddingLoader(strategy={strategy})", claimed="0.6–1.1 ms", bar_us=50)
    loader = benchmark(OptimizedEmbeddingLoader, strategy=strategy)
    assert not loader.is_loaded()


@pytest.mark.benchmark(timer=CLOCK)
def test_the_first_loader_is_constructed(row: Row) -> None:
    benchmark = row(INITIALIZATION, "OptimizedEmbeddingLoader()", FIRST, claimed="0.6–1.1 ms", bar_us=1500)
    first(benchmark, "OptimizedEmbeddingLoader()", IMPORTED)


@pytest.mark.benchmark(timer=CLOCK)
def test_the_package_is_imported(row: Row) -> None:
    benchmark = row(INITIALIZATION, "import firstvec", FIRST, bar_us=5000)
    first(benchmark, "import firstvec", afterwards=_asserts_no_engine())


@pytest.mark.benchmark(timer=CLOCK)
def test_the_loader_is_imported(row: Row) -> None:
    benchmark = row(INITIALIZATION, "from firstvec import OptimizedEmbeddingLoader", FIRST)
    first(benchmark, "from firstvec import OptimizedEmbeddingLoader", afterwards=_asserts_no_engine())


# --- 2. Start of loading ---------------------------------------------------------------------------------------------

START = "2 start of loading"


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("strategy", IN_BACKGROUND)
def test_loading_starts(strategy: str, row: Row) -> None:
    claimed = {"background": "12.3 ms", "progressive": "13.4 ms"}.get(strategy)
    benchmark = row(START, f"start_loading(), {strategy}", FIRST, claimed=claimed, bar_us=1000)
    setup = f"{IMPORTED}loader = OptimizedEmbeddingLoader(strategy={strategy!r}, device='cpu')"
    first(
        benchmark, "loader.start_loading()", setup, "assert loader.get_provider().embed_query('a text').shape == (384,)"
    )


def test_a_load_that_is_done_is_not_started_again(row: Row) -> None:
    benchmark = row(START, "start_loading(), loaded already")
    loader = OptimizedEmbeddingLoader(strategy="quantized", device="cpu")
    loader.start_loading()
    provider = loader.get_provider()
    benchmark(loader.start_loading)
    assert loader.get_provider() is provider


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize(
    ("strategy", "output"), [("quantized", "buffer"), ("cached", "buffer"), ("quantized", "numpy")]
)
def test_the_first_vector_is_there(strategy: str, output: str, row: Row) -> None:
    benchmark = row(
        START, f"start_loading() to the first vector, {strategy}, {output}", FIRST, claimed="not implemented", unit="ms"
    )
    setup = f"{IMPORTED}loader = OptimizedEmbeddingLoader(strategy={strategy!r}, device='cpu', output={output!r})"
    statement = "loader.start_loading(); vector = loader.get_provider().embed_query('how do I reset my password?')"
    first(benchmark, statement, setup, "assert len(vector) == 384")


# --- 3. Metadata access ----------------------------------------------------------------------------------------------

METADATA = "3 metadata access"


def test_metadata_is_at_hand(row: Row) -> None:
    benchmark = row(METADATA, "get_metadata()", claimed="0.42 µs", bar_us=0.15)
    loader = OptimizedEmbeddingLoader()
    loader.get_metadata()
    assert benchmark(loader.get_metadata).embedding_dim == 384
    assert not loader.is_loaded()


def test_the_dimension_is_at_hand(row: Row) -> None:
    benchmark = row(METADATA, "get_embedding_dim_fast()", claimed="3.54 µs", bar_us=0.2)
    loader = OptimizedEmbeddingLoader()
    assert loader.get_embedding_dim_fast() == 384
    assert benchmark(loader.get_embedding_dim_fast) == 384


def test_metadata_comes_from_the_cache_again(row: Row) -> None:
    benchmark = row(METADATA, "ModelMetadata.from_cache()", claimed="145 µs", bar_us=15)
    assert benchmark(ModelMetadata.from_cache, "all-MiniLM-L6-v2").embedding_dim == 384


@pytest.mark.benchmark(timer=CLOCK)
def test_metadata_comes_from_the_cache_first(row: Row) -> None:
    benchmark = row(METADATA, "ModelMetadata.from_cache()", FIRST, claimed="145 µs", bar_us=145)
    statement = "found = ModelMetadata.from_cache('all-MiniLM-L6-v2')"
    first(benchmark, statement, IMPORTED, "assert found.embedding_dim == 384" + _asserts_no_engine())


@pytest.mark.benchmark(timer=CLOCK)
def test_the_dimension_is_known_first(row: Row) -> None:
    benchmark = row(METADATA, "get_embedding_dim_fast(), with the imports it needs", FIRST)
    setup = "from firstvec import OptimizedEmbeddingLoader\nloader = OptimizedEmbeddingLoader()"
    first(benchmark, "dim = loader.get_embedding_dim_fast()", setup, "assert dim == 384" + _asserts_no_engine())


# --- 4. Resource detection -------------------------------------------------------------------------------------------

DETECTION = "4 resource detection"


def test_the_machine_is_examined_again(row: Row) -> None:
    benchmark = row(DETECTION, "ResourceProfile.detect()", claimed="661 µs", bar_us=20)
    assert benchmark(ResourceProfile.detect).isa == ResourceProfile.detect().isa


@pytest.mark.benchmark(timer=CLOCK)
def test_the_machine_is_examined_first(row: Row) -> None:
    benchmark = row(DETECTION, "ResourceProfile.detect()", FIRST, claimed="661 µs", bar_us=300)
    first(benchmark, "ResourceProfile.detect()", IMPORTED, _asserts_no_engine())


def test_everything_is_examined(row: Row) -> None:
    benchmark = row(DETECTION, "ResourceProfile.detect() and every field: cores, memory and storage, too")
    assert benchmark(lambda: ResourceProfile.detect().to_dict())["cpu_count"] >= 1


def test_storage_is_probed(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = row(DETECTION, "storage probe, is_ssd()", claimed="341 µs", bar_us=100)
    monkeypatch.chdir(tmp_path)
    assert benchmark(is_ssd, ".") in (True, False, None)
    assert list(tmp_path.iterdir()) == []  # the replaced loader wrote a file to measure


# --- 5. Thread safety ------------------------------------------------------------------------------------------------

THREADS = "5 thread safety"


def _from_threads(count: int, call: Callable[[], Any]) -> list[Any]:
    """Return what each of so many threads gets."""
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(call())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == count
    return found


@pytest.mark.parametrize("count", [20, 64])
def test_threads_get_one_loader(count: int, row: Row) -> None:
    benchmark = row(THREADS, f"get_instance() from {count} threads, started and joined")

    def ask() -> set[int]:
        OptimizedEmbeddingLoader.reset()
        found: list[OptimizedEmbeddingLoader] = []
        threads = [
            threading.Thread(target=lambda: found.append(OptimizedEmbeddingLoader.get_instance())) for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == count
        return {id(each) for each in found}

    assert len(benchmark(ask)) == 1


@pytest.mark.parametrize(("method", "claimed"), [("is_loaded", "1.34 µs"), ("is_loading", "1.44 µs")])
def test_the_state_is_asked_for(method: str, claimed: str, row: Row) -> None:
    benchmark = row(THREADS, f"{method}()", claimed=claimed, bar_us=0.15)
    loader = OptimizedEmbeddingLoader()
    with loader._lock.here():  # a call that took the lock would never return
        assert benchmark(getattr(loader, method)) is False


def test_threads_share_one_load(row: Row) -> None:
    benchmark = row(THREADS, "get_provider() from 64 threads, loaded already", unit="ms")
    loader = OptimizedEmbeddingLoader(strategy="quantized", device="cpu")
    loader.start_loading()
    provider = loader.get_provider()

    assert benchmark(_from_threads, 64, loader.get_provider) == [provider] * 64


# --- 6. Convenience API ----------------------------------------------------------------------------------------------

CONVENIENCE = "6 convenience API"


@pytest.mark.benchmark(timer=CLOCK)
def test_a_preload_returns_at_once(row: Row) -> None:
    benchmark = row(CONVENIENCE, "preload_embeddings()", FIRST)
    first(
        benchmark,
        "preload_embeddings()",
        IMPORTED,
        "from firstvec import get_embedding_provider; get_embedding_provider()",
    )


def test_a_preload_is_repeated(row: Row) -> None:
    benchmark = row(CONVENIENCE, "preload_embeddings(), loaded already")
    preload_embeddings(device="cpu").get_provider()
    benchmark(preload_embeddings)


def test_the_provider_is_at_hand(row: Row) -> None:
    benchmark = row(CONVENIENCE, "get_embedding_provider(), loaded already")
    provider = get_embedding_provider(device="cpu")
    assert benchmark(get_embedding_provider) is provider


# --- 7. Memory -------------------------------------------------------------------------------------------------------

MEMORY = "7 memory"


def _bytes_each(make: Callable[[], object], count: int = 100) -> float:
    """Return the memory that one of many objects takes."""
    kept = [make() for _ in range(10)]
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept += [make() for _ in range(count)]
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / count


def test_memory_of_100_loaders(row: Row) -> None:
    benchmark = row(MEMORY, "a loader, of 100", claimed="160 KB", unit="bytes")
    benchmark.extra_info |= {"value": _bytes_each(OptimizedEmbeddingLoader), "bar": 4096}
    benchmark.pedantic(lambda: [OptimizedEmbeddingLoader() for _ in range(100)], rounds=5)
    assert benchmark.extra_info["value"] <= 4096


def test_memory_of_100_profiles(row: Row) -> None:
    benchmark = row(MEMORY, "a profile, of 100", unit="bytes")
    benchmark.extra_info["value"] = _bytes_each(ResourceProfile.detect)
    benchmark.pedantic(lambda: [ResourceProfile.detect() for _ in range(100)], rounds=5)
    assert benchmark.extra_info["value"] <= 4096


# --- 8. The old way --------------------------------------------------------------------------------------------------

OLD_WAY = "8 the old way"


@pytest.mark.benchmark(timer=CLOCK)
def test_sentence_transformers_gives_a_vector(row: Row) -> None:
    benchmark = row(
        OLD_WAY, "SentenceTransformer: import, load, first vector", FIRST, claimed="50 ms (slept)", unit="ms"
    )
    statement = (
        "from sentence_transformers import SentenceTransformer\n"
        f"vector = SentenceTransformer({str(resolve().path)!r}, device='cpu').encode('how do I reset my password?')"
    )
    first(
        benchmark, statement, "import warnings; warnings.simplefilter('ignore')", "assert len(vector) == 384", rounds=3
    )


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize(("strategy", "output"), [("progressive", "numpy"), ("quantized", "buffer")])
def test_firstvec_gives_a_vector(strategy: str, output: str, row: Row) -> None:
    benchmark = row(OLD_WAY, f"firstvec: import, load, first vector, {strategy}, {output}", FIRST, unit="ms")
    statement = (
        "from firstvec import OptimizedEmbeddingLoader\n"
        f"loader = OptimizedEmbeddingLoader(strategy={strategy!r}, device='cpu', output={output!r})\n"
        "loader.start_loading(); vector = loader.get_provider().embed_query('how do I reset my password?')"
    )
    first(benchmark, statement, afterwards="assert len(vector) == 384")


@pytest.mark.parametrize("program", ["sentence-transformers", "firstvec"])
def test_one_text_warm(program: str, row: Row) -> None:
    benchmark = row(OLD_WAY, f"one short text, warm: {program}", unit="ms")
    if program == "firstvec":
        loader = OptimizedEmbeddingLoader(strategy="background", device="cpu")
        loader.start_loading()
        encode: Callable[[str], Any] = loader.get_provider().encode
    else:
        from sentence_transformers import SentenceTransformer

        encode = SentenceTransformer(str(resolve().path), device="cpu").encode
    assert len(benchmark(encode, "how do I reset my password?")) == 384


# --- 9. Imports to compare with --------------------------------------------------------------------------------------

IMPORTS = "9 imports to compare with"


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize(
    "statement",
    [
        "import json, argparse, urllib.request",
        "import numpy",
        "import numpy, onnxruntime, tokenizers",
        "import torch",
    ],
)
def test_imports_to_compare_with(statement: str, row: Row) -> None:
    first(row(IMPORTS, statement, FIRST, unit="ms"), statement, rounds=5)


# --- 10. Integration -------------------------------------------------------------------------------------------------

INTEGRATION = "10 integration"


def _process(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=fresh.environment())
    return done.stdout


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("firstvec encode, the whole process", ["encode", "how do I reset my password?", "-s", "quantized"]),
        ("firstvec --version, the whole process", ["--version"]),
        ("firstvec list --json, the whole process", ["list", "--json"]),
    ],
)
def test_the_command_line_starts(what: str, arguments: list[str], row: Row) -> None:
    command = [str(Path(sys.executable).with_name("firstvec")), *arguments]
    benchmark = row(INTEGRATION, what, FIRST, unit="ms")
    printed = benchmark.pedantic(_process, command, rounds=9, warmup_rounds=1)
    assert printed
    if arguments[0] == "encode":
        assert len(json.loads(printed)["vectors"][0]) == 384


def test_metadata_alone_loads_nothing(row: Row) -> None:
    benchmark = row(INTEGRATION, "a process that asks for the dimension only", FIRST, unit="ms")
    code = (
        "from firstvec import OptimizedEmbeddingLoader\n"
        "assert OptimizedEmbeddingLoader().get_embedding_dim_fast() == 384\n" + _asserts_no_engine()
    )
    benchmark.pedantic(_process, (sys.executable, "-c", code), rounds=9, warmup_rounds=1)


def _asserts_no_engine() -> str:
    return f"\nimport sys; assert not (found := sys.modules.keys() & set({HEAVY})), found"
