"""Chroma: its own tests of embedding functions, and what a program of Chroma meets beyond them."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from firstvec import OptimizedEmbeddingLoader
from tests.conftest import REPOSITORY, Fresh, edit_manifest

pytestmark = pytest.mark.skipif(find_spec("chromadb") is None, reason="chromadb is not installed here")

QUIET = {"ANONYMIZED_TELEMETRY": "False"}

_QUICK = 'import sys; sys.modules["rfc3987_syntax"] = None\n'
"""Chroma imports jsonschema, which imports this package where it is installed. The import takes some seconds."""

_SUITE = """
import numpy as np
import pytest
import firstvec.integrations.chroma

class Fixtures:
    # Chroma's own file of fixtures imports the packages of Chroma's server, which chromadb does not install.
    @pytest.fixture
    def mock_embeddings(self):
        return lambda texts: [np.array([0.1, 0.2, 0.3], np.float32) for _ in texts]

    @pytest.fixture
    def mock_common_deps(self, monkeypatch):
        return monkeypatch

# In this order, because the second test leaves a class that takes no argument.
tests = ["test_validate_config_with_schema[firstvec]", "test_embedding_function_config_roundtrip[firstvec]"]
suite = "chromadb.test.utils.test_embedding_function_schemas::TestEmbeddingFunctionSchemas"
options = ["-q", "-c", sys.argv[1], "--noconftest", "--pyargs", *(f"{suite}::{name}" for name in tests)]
print(int(pytest.main(options, plugins=[Fixtures()])))
"""


def test_chromas_own_tests_of_a_function_pass(tmp_path: Path, fresh: Fresh) -> None:
    options = "-p no:cacheprovider -p no:asyncio -p no:codspeed -p no:recording -p no:socket -p no:syrupy"
    (tmp_path / "pytest.ini").write_text(f"[pytest]\naddopts = {options}\n", "utf-8")
    printed = fresh(_QUICK + _SUITE, tmp_path / "pytest.ini", **QUIET).stdout
    assert re.search(r"^2 passed in .*\n0\n$", printed, re.MULTILINE), printed


def test_the_documented_programs_print_what_is_documented(bundle: Path, tmp_path: Path, fresh: Fresh) -> None:
    """The second program is a process of its own: it finds the collection's function by its name."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", (REPOSITORY / "docs/chroma.md").read_text("utf-8"), re.DOTALL)
    programs = [text for language, text in blocks if language == "python"]
    outputs = [text for language, text in blocks if language == "text"]
    assert len(programs) == 2
    for program, printed in zip(programs, outputs, strict=True):
        assert fresh(f"{_QUICK}import os; os.chdir({str(tmp_path)!r})\n{program}", **QUIET).stdout == printed


def test_the_adapter_imports_the_host_and_the_loader_only(fresh: Fresh) -> None:
    code = f"""{_QUICK}
import chromadb
import firstvec.loader

before = {{*sys.modules}}
from firstvec.integrations.chroma import FirstvecEmbeddingFunction

FirstvecEmbeddingFunction("no such model")
print(*sorted({{*sys.modules}} - before))
"""
    assert fresh(code, **QUIET).stdout == "firstvec.enums firstvec.integrations firstvec.integrations.chroma\n"


_USE = """
import chromadb, json, os, pickle, warnings
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from chromadb.utils.embedding_functions import known_embedding_functions
from firstvec import LoadingStrategy
from firstvec.integrations.chroma import FirstvecEmbeddingFunction

warnings.simplefilter("error")
warnings.simplefilter("ignore", DeprecationWarning)  # since Python 3.12, os.fork warns of threads
folder = sys.argv[1]
TEXTS = ["one", "two words", ""] * 20

os.chdir(folder)
function = FirstvecEmbeddingFunction("./tiny-bert", strategy=LoadingStrategy.PROGRESSIVE, device="cpu")
os.chdir("/")

# Threads: the first calls come at the same time.
with ThreadPoolExecutor(8) as pool:
    queries = [*pool.map(function.embed_query, [["text"]] * 8)]
    batches = [*pool.map(function, [TEXTS] * 8)]
for rows in (*queries, *batches):
    assert type(rows) is list and all(row.dtype == np.float32 and row.shape == (32,) for row in rows)
assert all(np.allclose(rows, queries[0], atol=1e-6) for rows in queries)
assert all(np.allclose(rows, batches[0], atol=1e-6) for rows in batches)
assert len(batches[0]) == 60

# A forked process.
if (child := os.fork()) == 0:
    os._exit(0 if np.allclose(function.embed_query(["text"]), queries[0], atol=1e-6) else 1)
assert os.waitpid(child, 0)[1] == 0

# Functions with the same arguments share a model, and others do not.
os.chdir(folder)
same = FirstvecEmbeddingFunction.build_from_config(function.get_config())
assert same is not function and same.get_config() == function.get_config() == json.loads(json.dumps(same.get_config()))
os.chdir("/")
assert same._loader is function._loader
assert FirstvecEmbeddingFunction("./tiny-bert", device="cpu")._loader is not function._loader  # another folder
assert known_embedding_functions["firstvec"] is FirstvecEmbeddingFunction
assert not function.is_legacy()

# A copy, which keeps the folder from which the path was seen.
copy = pickle.loads(pickle.dumps(function))
assert np.allclose(copy.embed_query(["text"]), queries[0], atol=1e-6)

# A collection, in memory. Its function is made anew for each query, and the model is loaded once.
client = chromadb.EphemeralClient()
client.create_collection("texts", embedding_function=FirstvecEmbeddingFunction(folder + "/tiny-bert")).add(
    ids=["a", "b", "c"], documents=["one", "two words", ""]
)
assert client.get_collection("texts").configuration_json["hnsw"]["space"] == "cosine"
opened = client.get_collection("texts")
one, other = (opened.configuration["embedding_function"] for _ in range(2))
assert one is not other and one._loader is other._loader
for space in function.supported_spaces():
    client.create_collection("x" + space, configuration={"hnsw": {"space": space}, "embedding_function": same})
distances = opened.query(query_texts=["one"], n_results=3)
assert sorted(distances["ids"][0]) == ["a", "b", "c"]
# The collection holds a document as the function embeds it, and is asked with the query as the function embeds it.
stored = opened.get(ids=["a"], include=["embeddings"])["embeddings"][0]
asked = function.embed_query(["one"])[0]
assert np.allclose(stored, batches[0][0], atol=1e-6) and not np.allclose(stored, asked, atol=1e-2)
cosine = stored @ asked / np.linalg.norm(stored) / np.linalg.norm(asked)
assert abs(distances["distances"][0][distances["ids"][0].index("a")] - (1 - cosine)) < 1e-4
client.close()
print(json.dumps([queries[0][0].tolist(), *(row.tolist() for row in batches[0][:3])]))
"""


def test_one_function_serves_threads_forks_and_collections(tiny_bundle: Path, tmp_path: Path, fresh: Fresh) -> None:
    prompts = {"query": "a query: ", "passage": "a passage: "}
    edit_manifest(tiny_bundle, lambda document: document["model"].update(prompts=prompts))
    rows = json.loads(fresh(_QUICK + _USE, tmp_path, **QUIET).stdout)
    provider = OptimizedEmbeddingLoader(str(tiny_bundle), "progressive", output="list").get_provider()
    texts = ["a query: text", "a passage: one", "a passage: two words", "a passage: "]
    for row, text in zip(rows, texts, strict=True):
        assert row == pytest.approx(provider.encode(text), abs=1e-5)


_BAD = """
import chromadb, os
from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2, known_embedding_functions
from firstvec import InputError
from firstvec.integrations.chroma import FirstvecEmbeddingFunction

def refused(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except InputError as error:
        print("InputError:", error)
    except Exception as error:
        print(type(error).__name__)
    else:
        print("not refused:", arguments, options)

tiny, changed, real, absent = sys.argv[1:]
for options in (
    {"model_name": None},
    {"model_name": ""},
    {"strategy": "soon"},
    {"device": "tpu"},
    {"enable_quantization": "yes"},
    {"min_quality": 2},
    {"require_signature": ""},
    {"artifact": 3},
):
    refused(FirstvecEmbeddingFunction, **options)
for config in ({"modle": "tiny"}, {"device": "tpu"}):
    refused(FirstvecEmbeddingFunction.validate_config, config)

good = FirstvecEmbeddingFunction(tiny)
for title, call in (("-- documents", good), ("-- queries", good.embed_query)):
    print(title)
    for texts in (None, 3, "text", b"text", {"text"}, ["text", None], ["\\udcff"], []):
        refused(call, texts)

print("-- add")
client = chromadb.PersistentClient(absent + ".chroma")
texts = client.create_collection("texts", embedding_function=good)
texts.add(ids=["a", "b"], documents=["text", ""])
for documents in (None, 3, [], ["text", None], [b"text"], ["\\udcff"]):
    refused(texts.add, ids=["c", "d"][: len(documents) if isinstance(documents, list) else 1], documents=documents)
print("-- query")
for queries in (None, 3, [], ["text", None], ["\\udcff"]):
    refused(texts.query, query_texts=queries)
print(texts.count())

print("-- bundles")
for path in (absent, changed):
    collection = client.create_collection("broken", embedding_function=FirstvecEmbeddingFunction(path))
    refused(collection.add, ids=["a"], documents=["text"])
    refused(client.get_collection("broken").query, query_texts=["text"])
    os.path.exists(path) or os.symlink(tiny, path)
    if path == absent:
        collection.add(ids=["a"], documents=["text"])
        print(client.get_collection("broken").query(query_texts=["text"])["ids"])
    client.delete_collection("broken")

print("-- functions")
refused(client.get_collection, "texts", embedding_function=ONNXMiniLM_L6_V2())
other = client.get_collection("texts", embedding_function=FirstvecEmbeddingFunction(real))  # Chroma compares names only
refused(other.query, query_texts=["text"])
refused(other.add, ids=["c"], documents=["text"])
refused(texts.modify, configuration={"embedding_function": FirstvecEmbeddingFunction(real)})
moved = absent + ".moved/" + os.path.basename(tiny)
os.mkdir(os.path.dirname(moved))
os.symlink(tiny, moved)
texts.modify(configuration={"embedding_function": FirstvecEmbeddingFunction(moved, strategy="quantized")})
config = client.get_collection("texts").configuration_json["embedding_function"]["config"]
print(config["model_name"] == moved, config["strategy"])
print(client.get_collection("texts").query(query_texts=["text"])["ids"])

print("-- a process that has not imported the adapter")
del known_embedding_functions["firstvec"]
refused(client.get_collection("texts").query, query_texts=["text"])
client.close()
print(len(good(["text"])), "vector after Chroma was closed")
"""

_REFUSED = """\
InputError: model_name None is not a name or a path
InputError: model_name '' is not a name or a path
InputError: unknown strategy 'soon': use one of lazy, background, progressive, quantized, cached
InputError: unknown device 'tpu': use 'cpu', 'cuda', 'cuda:1' or 'mps'
InputError: enable_quantization 'yes' is neither True nor False
InputError: min_quality 2 is not a cosine, between -1 and 1
InputError: require_signature '' is not the path of a public key
InputError: artifact 3 is not the id of an artifact: see `firstvec inspect`
InputError: this configuration is not usable: make_options() got an unexpected keyword argument 'modle'
InputError: unknown device 'tpu': use 'cpu', 'cuda', 'cuda:1' or 'mps'
-- documents
InputError: there is no text to encode: pass a str or a sequence of str
InputError: int is neither a str nor a sequence of str
InputError: a function of Chroma takes a list of str: pass [text]
InputError: a function of Chroma takes a list of str: pass [text]
InputError: set has no order that vectors could follow: pass a list
InputError: text 1: is NoneType, not str; pass a str
InputError: text 0: has a lone surrogate '\\udcff' at character 0; decode the source with errors='replace'
ValueError
-- queries
InputError: there is no text to encode: pass a str or a sequence of str
InputError: int is neither a str nor a sequence of str
InputError: a function of Chroma takes a list of str: pass [text]
InputError: a function of Chroma takes a list of str: pass [text]
InputError: set has no order that vectors could follow: pass a list
InputError: text 1: is NoneType, not str; pass a str
InputError: text 0: has a lone surrogate '\\udcff' at character 0; decode the source with errors='replace'
ValueError
-- add
ValueError
ValueError
ValueError
ValueError
ValueError
InputError: text 0: has a lone surrogate '\\udcff' at character 0; decode the source with errors='replace' in add.
-- query
ValueError
ValueError
ValueError
ValueError
InputError: text 0: has a lone surrogate '\\udcff' at character 0; decode the source with errors='replace' in query.
2
-- bundles
BundleNotFound
BundleNotFound
[['a']]
IntegrityError
IntegrityError
-- functions
ValueError
InvalidArgumentError
InvalidArgumentError
InputError: the model of a collection cannot be changed from TINY to REAL: embed its texts anew
True quantized
[['a', 'b']]
-- a process that has not imported the adapter
ValueError
1 vector after Chroma was closed
"""


def test_bad_input_is_refused(tiny_built: Path, tiny_bundle: Path, bundle: Path, tmp_path: Path, fresh: Fresh) -> None:
    (tiny_bundle / "tokenizer.json").write_text("{}", "utf-8")
    printed = fresh(_QUICK + _BAD, tiny_built, tiny_bundle, bundle, tmp_path / "absent", **QUIET).stdout
    assert printed.replace(str(tiny_built), "TINY").replace(str(bundle), "REAL") == _REFUSED
