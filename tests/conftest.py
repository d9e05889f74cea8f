"""The real bundle, a tiny one to damage, and fresh processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
ARTIFACTS = REPOSITORY / "artifacts"

Fresh = Callable[..., subprocess.CompletedProcess[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", action="store_true", help="run the fault campaigns at full length (make faults)")


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The default bundle: the real all-MiniLM-L6-v2, built once and kept, as `make artifacts` does."""
    from firstvec_build.pipeline import build

    return Path(build(output=ARTIFACTS).manifest.root)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for the test session: nothing is read from or left in the user's own."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path) -> Iterator[None]:
    """Bundles come from artifacts/ only, and each test starts with no process-wide loader."""
    from firstvec import OptimizedEmbeddingLoader

    # Downloaded sources stay where `make artifacts` put them; what was verified is remembered per session.
    (cache / "sources").exists() or (cache / "sources").symlink_to(_sources(), target_is_directory=True)
    monkeypatch.setenv("FIRSTVEC_CACHE", str(cache))
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(ARTIFACTS))
    monkeypatch.setenv("FIRSTVEC_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FIRSTVEC_TRACE", raising=False)
    yield
    OptimizedEmbeddingLoader.reset()


def _sources() -> Path:
    from firstvec.cache import cache_dir

    folder = Path(cache_dir()) / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def fresh() -> Fresh:
    """Run Python code in a fresh process; it must exit with code 0 and print nothing on stderr.

    ``fresh(code, *arguments, check=False)`` leaves the judgement to the test.
    """

    def run(code: str, *arguments: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
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
    """Run the installed `firstvec` command: ``firstvec("encode", "text", stdin=None)``."""

    def run(*arguments: object, stdin: str | bytes | None = None, **environment: str) -> Any:
        text = not isinstance(stdin, bytes)
        return subprocess.run(
            [str(Path(sys.executable).with_name("firstvec")), *map(str, arguments)],
            capture_output=True,
            text=text,
            input=stdin if stdin is not None else "",
            timeout=300,
            check=False,
            env=_as_installed() | environment,
        )

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Sentence-Transformers folder with a random two-layer BERT of 32 components: small enough to damage often."""
    from tests.tiny import save_bert

    return save_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_built(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's bundle. Do not change it: see `tiny_bundle`."""
    from firstvec_build.pipeline import build
    from tests.tiny import ANY_INT8

    return Path(build(str(tiny_model), tmp_path_factory.mktemp("bundles"), thresholds=ANY_INT8).manifest.root)


@pytest.fixture
def tiny_bundle(tiny_built: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's bundle, to change."""
    return Path(shutil.copytree(tiny_built, tmp_path / "tiny-bert"))


@pytest.fixture(scope="session")
def smallest_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest bundle that there can be, ONNX fp32 only. Do not change it."""
    from firstvec_build.pipeline import build
    from tests.tiny import save_smallest

    model = save_smallest(tmp_path_factory.mktemp("models") / "smallest")
    return Path(build(str(model), tmp_path_factory.mktemp("bundles"), only=["onnx-fp32"]).manifest.root)


@pytest.fixture(scope="session")
def sentence_transformer() -> Any:
    """The reference: the real model in sentence-transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        from firstvec_build.source import resolve

        return SentenceTransformer(str(resolve().path), device="cpu")


def _as_installed() -> dict[str, str]:
    """The environment, with bytecode cached as it is for an installed app."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def edit_manifest(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a bundle's manifest in place, as one would who means it: without its checksum."""
    path = root / "firstvec.json"
    document = json.loads(path.read_text("utf-8"))
    document.pop("checksum", None)
    change(document)
    path.write_text(json.dumps(document), "utf-8")
