"""The real bundle, a tiny one to damage, and fresh processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).parents[1]
ARTIFACTS = REPOSITORY / "artifacts"

Fresh = Callable[..., subprocess.CompletedProcess[str]]

# An example of hypothesis must not fail because the machine is busy.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


BUILT = os.environ.get("FIRSTVEC_TEST_BUNDLE")
"""The tiny model's bundle, where another install has built the bundles: an install without the native engine
(`tests/test_install.py`), with another processor (`tests/native/test_arm64.py`), or with another Python
(`tests/native/test_other_pythons.py`)."""

HAS_ENGINE = find_spec("firstvec._native") is not None

collect_ignore = [] if HAS_ENGINE else ["native", "runtime/engines/test_native.py", "runtime/machine/test_native.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is about the native engine, or has its artifact as a parameter, where there is no such engine."""
    for item in items:
        if not HAS_ENGINE and ("native-" in item.name or item.get_closest_marker("native") is not None):
            item.add_marker(pytest.mark.skip(reason="firstvec is installed without the native engine"))


@contextmanager
def _toolchain_may_be_missing() -> Iterator[None]:
    """Skip a test of another install that imports what only the toolchain needs."""
    try:
        yield
    except ModuleNotFoundError as error:
        if BUILT and error.name in ("torch", "sentence_transformers"):
            pytest.skip(f"{error.name} is not installed here")
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    with _toolchain_may_be_missing():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    with _toolchain_may_be_missing():
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", action="store_true", help="run the fault campaigns at full length (make faults)")


@pytest.fixture(scope="session")
def bundle() -> Path:
    """Build the default bundle, the real all-MiniLM-L6-v2, once, and keep it, as `make artifacts` does."""
    if BUILT:
        return ARTIFACTS / "all-MiniLM-L6-v2"
    from firstvec_build.pipeline import build

    return Path(build(output=ARTIFACTS).manifest.root)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a cache folder for the test session, so that nothing is read from the user's own or left there."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path) -> Iterator[None]:
    """Let bundles come from artifacts/ only, and let each test start without loaders of the process."""
    from firstvec import OptimizedEmbeddingLoader

    # Downloaded sources stay where `make artifacts` put them. Everything else is remembered for one test session.
    (cache / "sources").exists() or (cache / "sources").symlink_to(_sources(), target_is_directory=True)
    monkeypatch.setenv("FIRSTVEC_CACHE", str(cache))
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(ARTIFACTS))
    monkeypatch.setenv("FIRSTVEC_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FIRSTVEC_TRACE", raising=False)
    yield
    OptimizedEmbeddingLoader.reset()


def _sources() -> Path:
    from firstvec.machine.cache import cache_folder

    folder = Path(cache_folder()) / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def fresh() -> Fresh:
    """Return a function that runs Python code in a fresh process.

    The process must exit with code 0 and print nothing on stderr. With ``check=False`` the test itself looks at both.
    """

    def run(code: str, *arguments: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=_as_installed() | environment,
        )
        if check:
            assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
            assert done.stderr == ""
        return done

    return run


@pytest.fixture
def firstvec() -> Fresh:
    """Return a function that runs the installed command: ``firstvec("encode", "text", stdin=None)``."""

    def run(*arguments: object, stdin: str | bytes | None = None, **environment: str) -> Any:
        text = not isinstance(stdin, bytes)
        return subprocess.run(
            [str(Path(sys.executable).with_name("firstvec")), *map(str, arguments)],
            capture_output=True,
            text=text,
            input=stdin if stdin is not None else "",
            timeout=900,
            check=False,
            env=_as_installed() | environment,
        )

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random BERT of two layers and 32 components, which is small enough to be damaged often."""
    from tests.tiny import save_bert

    return save_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the tiny model's bundle. Do not change it: `tiny_bundle` is a copy to change."""
    if BUILT:
        return Path(BUILT)
    from firstvec_build.pipeline import build
    from tests.tiny import ANY_INT8

    tiny_model = request.getfixturevalue("tiny_model")
    root = Path(build(str(tiny_model), tmp_path_factory.mktemp("bundles"), thresholds=ANY_INT8).manifest.root)
    time.sleep(0.1)  # a file that was written within the last 50 ms is hashed at each load
    return root


@pytest.fixture
def tiny_bundle(tiny_built: Path, tmp_path: Path) -> Path:
    """Copy the tiny model's bundle, for tests that change it."""
    return Path(shutil.copytree(tiny_built, tmp_path / "tiny-bert"))


@pytest.fixture(scope="session")
def tiny_onnx(tiny_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the tiny model's bundle without the artifacts of the native engine: a model that stays on onnxruntime."""
    root = Path(shutil.copytree(tiny_built, tmp_path_factory.mktemp("onnx") / "tiny-bert"))

    def drop_native(document: dict[str, Any]) -> None:
        document["artifacts"] = [each for each in document["artifacts"] if each["engine"] != "native"]

    edit_manifest(root, drop_native)
    time.sleep(0.1)
    return root


@pytest.fixture(scope="session")
def smallest_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the smallest bundle that there can be, with ONNX fp32 only. Do not change it."""
    from firstvec_build.pipeline import build
    from tests.tiny import save_smallest

    model = save_smallest(tmp_path_factory.mktemp("models") / "smallest")
    return Path(build(str(model), tmp_path_factory.mktemp("bundles"), only=["onnx-fp32"]).manifest.root)


@pytest.fixture(scope="session")
def sentence_transformer() -> Any:
    """Load the real model in sentence-transformers, which is the reference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        from firstvec_build.source import resolve

        return SentenceTransformer(str(resolve().path), device="cpu")


@pytest.fixture(scope="session")
def reference_vectors(sentence_transformer: Any) -> Any:
    """Compute the vectors of the evaluation sentences in sentence-transformers once, because that takes 17 s."""
    from firstvec_build.quality import evaluation_sentences

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sentence_transformer.encode(evaluation_sentences())


def _as_installed() -> dict[str, str]:
    """Return the environment, in which bytecode is cached as it is for an installed app."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def edit_manifest(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a bundle's manifest in place and remove its checksum, as a person who edits the manifest does."""
    path = root / "firstvec.json"
    document = json.loads(path.read_text("utf-8"))
    document.pop("checksum", None)
    change(document)
    path.write_text(json.dumps(document), "utf-8")
