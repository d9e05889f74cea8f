"""The example applications, as a user runs them: every command in a fresh process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "examples/docsearch/docsearch.py"


def docsearch(*arguments: object, script: Path = SCRIPT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def index(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the first 400 docstrings of the standard library."""
    path = tmp_path_factory.mktemp("docsearch") / "stdlib.index"
    done = docsearch("index", "--index", path, "--limit", 400, FIRSTVEC_ARTIFACTS=str(bundle.parent))
    assert done.returncode == 0, done.stderr
    assert "400 docstrings" in done.stdout
    return path


def test_search_finds_what_is_meant(index: Path) -> None:
    done = docsearch("search", "convert binary data to printable text", "--index", index, "--json", "--top", 3)
    assert done.returncode == 0, done.stderr
    hits = json.loads(done.stdout)
    assert len(hits) == 3
    assert any(hit["name"].startswith(("base64", "binascii")) for hit in hits)
    assert hits == sorted(hits, key=lambda hit: -hit["score"])


def test_a_search_imports_no_other_package(index: Path, bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(SCRIPT), "search", "parse arguments", "--index", str(index)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"FIRSTVEC_ARTIFACTS": str(bundle.parent)},
    )
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"firstvec", "argparse"} <= imported
    assert not imported & {"numpy", "onnxruntime", "tokenizers", "tqdm"}


def test_the_app_ships_its_bundle_beside_it(index: Path, bundle: Path, tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    shutil.copy(SCRIPT, app)
    shutil.copytree(bundle, app / "bundle")
    done = docsearch(
        "search", "parse arguments", "--index", index, "--time", script=app / SCRIPT.name, FIRSTVEC_ARTIFACTS=""
    )
    assert done.returncode == 0, done.stderr
    assert "ms from first line to result" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "anything", "--index", "/nonexistent/index"], 2, "run `docsearch.py index` first"),
        (["search", "", "--index", "{index}"], 2, "the query is empty"),
        (["search", "anything", "--index", str(SCRIPT)], 2, "damaged"),
        (["search", "anything", "--index", "/"], 1, "docsearch: /: Is a directory"),
        (["index", "--index", "/", "--limit", "1"], 2, "/ is a folder"),
        (["search", "anything", "--top", "0"], 2, "--top"),
        ([], 2, "index,search"),
    ],
)
def test_wrong_use_is_one_message(arguments: list[str], code: int, message: str, index: Path) -> None:
    done = docsearch(*(argument.format(index=index) for argument in arguments))
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_app_without_its_bundle_says_what_is_missing(index: Path, tmp_path: Path) -> None:
    done = docsearch("search", "anything", "--index", index, FIRSTVEC_ARTIFACTS=str(tmp_path))
    assert done.returncode == 1
    assert "firstvec build" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_index_of_another_artifact_is_refused(index: Path, bundle: Path, tmp_path: Path) -> None:
    data = index.read_bytes()
    values, rest = json.loads(data[:4096]), data[4096:]
    values["origin"]["artifact"] = "onnx-fp64"
    other = tmp_path / "other.index"
    other.write_bytes(json.dumps(values).encode().ljust(4096) + rest)
    done = docsearch("search", "anything", "--index", other, FIRSTVEC_ARTIFACTS=str(bundle.parent))
    assert done.returncode == 2
    assert "was made with" in done.stderr
    assert "artifact onnx-fp64" in done.stderr
    assert "run `docsearch.py index` again" in done.stderr


def test_the_commands_of_the_readme_exist() -> None:
    """Every command line of the README is understood by the command that it calls."""
    text = (SCRIPT.parent / "README.md").read_text("utf-8")
    options = {
        word for line in text.splitlines() if "docsearch.py" in line for word in line.split() if word[:2] == "--"
    }
    assert options == {"--top", "--json", "--time"}
    assert options <= {*docsearch("search", "--help").stdout.replace("]", " ").replace("[", " ").split()}
    assert "firstvec wheel --model artifacts/all-MiniLM-L6-v2" in text


def test_help_loads_no_model() -> None:
    done = docsearch("--help", FIRSTVEC_ARTIFACTS="/nonexistent")
    assert done.returncode == 0
    assert "search" in done.stdout


def test_vectors_of_a_data_set_are_searched_by_duckdb_and_by_sqlite_vec(bundle: Path, tmp_path: Path) -> None:
    script = REPOSITORY / "examples/vectorsearch/vectorsearch.py"
    environment = os.environ | {"FIRSTVEC_ARTIFACTS": str(bundle.parent)}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=600, env=environment, cwd=tmp_path
        )

    assert run(script, "data", "all.parquet").returncode == 0
    data = pq.read_table(tmp_path / "all.parquet")
    some = data.filter(pc.is_in(data["topic"], pa.array(["while", "for", "import", "lambda", "assert"])))
    pq.write_table(some, tmp_path / "docs.parquet")
    missing = run(script, "duckdb", "vectors", "repeat a block of statements")
    assert (missing.returncode, missing.stdout) == (2, "")
    done = run("-m", "firstvec", "embed", "docs.parquet", "-o", "vectors", "--id-column", "id", "--keep", "topic,text")
    assert done.returncode == 0, done.stderr
    found = []
    for engine in ("duckdb", "sqlite", "sqlite"):
        done = run(script, engine, "vectors", "an anonymous function in an expression", "--top", 2)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert "lambda: " in found[0].splitlines()[0]
    assert found[0] == found[1] == found[2]
    # The table is there now. `import sqlite_vec` would import numpy, which takes longer than the first vector.
    done = run("-X", "importtime", script, "sqlite", "vectors", "an anonymous function in an expression", "--top", 2)
    assert (done.returncode, done.stdout) == (0, found[0])
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"firstvec", "apsw"} <= imported
    assert not imported & {"numpy", "pyarrow", "sqlite_vec"}


def test_the_pattern_for_a_command_line_imports_no_numpy(bundle: Path) -> None:
    """The program of docs/command-line.md. `tests/test_docs.py` runs it, too, and does not see what it imports."""
    page = (REPOSITORY / "docs" / "command-line.md").read_text("utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"FIRSTVEC_ARTIFACTS": str(bundle.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "To get a new password, open the page Account.\n"
    assert done.stdout.strip() in page
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"firstvec", "typer"} <= imported
    assert not imported & {"numpy", "rich", "onnxruntime", "tokenizers"}
