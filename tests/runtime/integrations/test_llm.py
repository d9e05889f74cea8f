from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from firstvec import OptimizedEmbeddingLoader
from tests.conftest import REPOSITORY, Fresh, edit_manifest

pytestmark = pytest.mark.skipif(find_spec("llm") is None, reason="llm is not installed")

MODEL = "firstvec/all-MiniLM-L6-v2"
PASSAGES = {
    "password": "To get a new password, open the page Account.",
    "invoice": "An invoice comes on the first day of a month.",
    "parcel": "A parcel arrives within three days.",
}

Llm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let `llm` keep its files in a folder of the test, and return the folder."""
    folder = tmp_path / "llm"
    monkeypatch.setenv("LLM_USER_PATH", str(folder))
    monkeypatch.delenv("LLM_LOAD_PLUGINS", raising=False)
    monkeypatch.delenv("LLM_EMBEDDING_MODEL", raising=False)
    return folder


@pytest.fixture
def llm(environment: Path, tmp_path: Path) -> Llm:
    """Return a function that runs the command ``llm``."""

    def run(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llm", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


# Commands


def test_texts_are_embedded(bundle: Path, llm: Llm) -> None:
    assert f"FirstvecModel: {MODEL} (aliases: firstvec/sentence-transformers/all-MiniLM-L6-v2)" in (
        llm("embed-models").stdout.splitlines()
    )
    vector = json.loads(llm("embed", "-m", MODEL, "-c", "how do I reset my password?").stdout)
    provider = OptimizedEmbeddingLoader(str(bundle), output="list").get_provider()
    assert vector == pytest.approx(provider.encode("how do I reset my password?"), abs=1e-6)


def test_collections_are_filled_and_searched(bundle: Path, llm: Llm, tmp_path: Path) -> None:
    (tmp_path / "passages.csv").write_text(
        "id,text\n" + "".join(f'{name},"{text}"\n' for name, text in PASSAGES.items()), "utf-8"
    )
    (tmp_path / "texts").mkdir()
    for name, text in PASSAGES.items():
        (tmp_path / "texts" / name).write_text(text, "utf-8")
    llm("embed-multi", "rows", "passages.csv", "-m", MODEL, "-d", "file.db", "--store")
    llm("embed-multi", "files", "--files", "texts", "*", "-m", MODEL, "-d", "file.db")

    def nearest(collection: str, *query: str) -> list[Any]:
        return [json.loads(line) for line in llm("similar", collection, *query, "-d", "file.db").stdout.splitlines()]

    by_row, by_file = (nearest(name, "-c", "how do I reset my password?") for name in ("rows", "files"))
    assert [found["id"] for found in by_row] == [found["id"] for found in by_file]
    assert by_row[0]["id"] == "password"
    assert by_row[0]["content"] == PASSAGES["password"]
    assert {found["id"] for found in nearest("rows", "invoice")} == {"password", "parcel"}

    # A collection that llm-sentence-transformers has made serves on, once its model is an alias of the bundle.
    database = sqlite3.connect(tmp_path / "file.db")
    with database:
        database.execute("UPDATE collections SET model = 'sentence-transformers/all-MiniLM-L6-v2' WHERE name = 'files'")
    database.close()
    llm("aliases", "set", "sentence-transformers/all-MiniLM-L6-v2", MODEL)
    assert nearest("files", "-c", "how do I reset my password?") == by_file


def test_errors_are_messages(tiny_bundle: Path, llm: Llm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(tiny_bundle.parent))
    invalid = tmp_path / "invalid"
    invalid.mkdir()
    (invalid / "firstvec.json").write_text("{}", "utf-8")
    (tiny_bundle / "tokenizer.json").write_text("{}", "utf-8")
    for model, message in (
        (tiny_bundle.name, "Error: .*tokenizer.json is not the file that was built: expected .*; restore the bundle"),
        ("invalid", "Error: .*firstvec.json: "),
        ("no-such-model", "Error: You need to specify an embedding model"),  # llm's own message
    ):
        done = llm("embed", "-m", f"firstvec/{model}", "-c", "a text", check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.match(message, done.stderr), done.stderr
        assert "Traceback" not in done.stderr


def test_commands_that_embed_nothing_import_only_this_module(environment: Path, fresh: Fresh) -> None:
    """Every command of `llm` loads the plugins, so another import would delay each of them."""
    expected = "['firstvec', 'firstvec.integrations', 'firstvec.integrations.llm']\n"
    loaded = "import sys, llm.cli; print(sorted(name for name in sys.modules if name.startswith('firstvec')))"
    assert fresh(loaded).stdout == expected
    without = "import sys, llm.cli; before = {*sys.modules}"  # what `llm` imports without the plugin
    added = f"{without}; import firstvec.integrations.llm; print(sorted({{*sys.modules}} - before))"
    assert fresh(added, LLM_LOAD_PLUGINS="").stdout == expected


# Python API


def test_bundles_have_their_names_as_in_firstvec(
    tiny_built: Path, environment: Path, tmp_path: Path, fresh: Fresh
) -> None:
    def copy(place: str, name: str) -> None:
        root = Path(shutil.copytree(tiny_built, tmp_path / place))
        edit_manifest(root, lambda document: document["model"].update(name=name))

    copy("one/model", "first/model")
    copy("one/other", "other")
    copy("two/model", "second/model")
    copy("two/other", "other")
    code = """
import llm
for found in llm.get_embedding_models_with_aliases():
    if found.model.model_id.startswith("firstvec/"):
        print(found.model.model_id, *found.aliases, found.model._loader.model_name[-9:])
"""
    roots = f"{tmp_path / 'one'}:{tmp_path / 'two'}"
    assert fresh(code, FIRSTVEC_ARTIFACTS=roots).stdout.splitlines() == [
        "firstvec/model firstvec/first/model one/model",
        "firstvec/other one/other",
        "firstvec/second/model two/model",
    ]


def test_vectors_have_only_the_prompt_for_every_text(tiny_bundle: Path, environment: Path, fresh: Fresh) -> None:
    code = """
import sys, llm
from firstvec import OptimizedEmbeddingLoader
text = "a cat"
vector = llm.get_embedding_model("firstvec/tiny-bert").embed(text)
print(vector == OptimizedEmbeddingLoader("tiny-bert", output="list").get_provider().encode(text, prompt=sys.argv[1]))
"""
    prompts = {"query": "question: ", "document": "passage: "}
    edit_manifest(tiny_bundle, lambda document: document["model"].update(prompts=prompts))
    assert fresh(code, "", FIRSTVEC_ARTIFACTS=str(tiny_bundle.parent)).stdout == "True\n"
    edit_manifest(tiny_bundle, lambda document: document["model"].update(default_prompt_name="document"))
    assert fresh(code, "passage: ", FIRSTVEC_ARTIFACTS=str(tiny_bundle.parent)).stdout == "True\n"


def test_models_in_python(tiny_built: Path, environment: Path, fresh: Fresh) -> None:
    code = """
import os, sys, threading, llm
from firstvec import OptimizedEmbeddingLoader

model = llm.get_embedding_model("firstvec/tiny-bert")
print({"firstvec.provider", "firstvec.text.tokenizer", "firstvec.engines.native"} & {*sys.modules})
texts = [f"text {number}" for number in range(5000)]
expected = OptimizedEmbeddingLoader("tiny-bert", output="list").get_provider().encode(texts)
print([*model.embed_multi(iter(texts))] == expected, model.embed(texts[7]) == expected[7])
print([*model.embed_multi([])], len(model.embed("")))

results = []
threads = [threading.Thread(target=lambda: results.append([*model.embed_multi(texts[:50])])) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print([result == expected[:50] for result in results])

if os.fork() == 0:
    os._exit(model.embed(texts[7]) != expected[7])
print(os.wait()[1])

for items in ([None], ["a", 5]):
    try:
        [*model.embed_multi(items)]
    except llm.ModelError as error:
        print(type(error).__name__, str(error) == str(error.__cause__), type(error.__cause__).__name__, error)
try:
    model.embed(b"a")
except ValueError as error:
    print(error)
model._loader.get_provider().close()
print(model.embed(texts[7]) == expected[7])
"""
    printed = fresh(code, FIRSTVEC_ARTIFACTS=str(tiny_built.parent)).stdout.splitlines()
    assert printed[:5] == ["set()", "True True", "[] 32", "[True, True, True, True]", "0"]
    assert printed[5:7] == [
        "EmbeddingError True InputError text 0: is NoneType, not str; pass a str",
        "EmbeddingError True InputError text 1: is int, not str; pass a str",
    ]
    assert printed[7:] == ["This model does not support binary data, only text strings", "True"]


# docs/llm.md


def test_the_documented_commands_print_what_is_documented(bundle: Path, environment: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```console\n(.*?)```", (REPOSITORY / "docs/llm.md").read_text("utf-8"), re.DOTALL)
    for block in blocks:
        commands = "".join(line[2:] for line in block.splitlines(keepends=True) if line.startswith("$ "))
        done = subprocess.run(
            ["bash", "-c", f"set -euo pipefail\nPATH={Path(sys.executable).parent}:$PATH\n{commands}"],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        printed = "".join(line for line in block.splitlines(keepends=True) if not line.startswith("$ "))
        # The last digits of a score depend on the engine.
        found, documented = (re.sub(r"(\.\d{5})\d+", r"\1", text) for text in (done.stdout, printed))
        assert found == documented
