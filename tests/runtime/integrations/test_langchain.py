"""LangChain: its own test suite, and what a program of LangChain meets beyond it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from firstvec import OptimizedEmbeddingLoader
from tests.conftest import REPOSITORY, Fresh, edit_manifest

pytestmark = pytest.mark.skipif(find_spec("langchain_core") is None, reason="langchain-core is not installed here")

QUIET = {"LANGSMITH_TRACING": "false"}

_SUITE = """
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from firstvec.integrations.langchain import FirstvecEmbeddings


class Ours:
    embeddings_class = FirstvecEmbeddings
    embedding_model_params = {"model": "all-MiniLM-L6-v2"}


class TestUnit(Ours, EmbeddingsUnitTests):
    pass


class TestIntegration(Ours, EmbeddingsIntegrationTests):
    pass
"""


@pytest.mark.skipif(find_spec("langchain_tests") is None, reason="langchain-tests is not installed here")
def test_langchains_own_suites_pass(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(_SUITE, "utf-8")
    # A configuration of its own, because the repository's turns off the plugins of langchain-tests.
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n", "utf-8")
    # As in LangChain's repositories, the tests may not open a connection.
    options = ["--disable-socket", "--allow-unix-socket", "--junitxml=results.xml"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "pytest.ini", *options], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    suite = ElementTree.parse(tmp_path / "results.xml").getroot()[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "8",
        "failures": "0",
        "errors": "0",
        "skipped": "0",
    }


def test_the_documented_program_prints_what_is_documented(bundle: Path, fresh: Fresh) -> None:
    blocks = re.findall(r"```(\w*)\n(.*?)```", (REPOSITORY / "docs/langchain.md").read_text("utf-8"), re.DOTALL)
    (program,) = [text for language, text in blocks if language == "python"]
    (printed,) = [text for language, text in blocks if language == "text"]
    assert fresh(program, **QUIET).stdout == printed


def test_the_adapter_imports_the_host_and_the_loader_only(fresh: Fresh) -> None:
    code = """
import sys
import firstvec.loader
from langchain_core.embeddings import Embeddings

before = {*sys.modules}
from firstvec.integrations.langchain import FirstvecEmbeddings

FirstvecEmbeddings("no such model")
print(*sorted({*sys.modules} - before))
"""
    assert fresh(code).stdout == "firstvec.integrations firstvec.integrations.langchain\n"


_USE = """
import asyncio, copy, json, os, pickle, sys, threading, warnings
from concurrent.futures import ThreadPoolExecutor
from firstvec import LoadingStrategy
from firstvec.integrations.langchain import FirstvecEmbeddings

warnings.simplefilter("ignore", DeprecationWarning)  # since Python 3.12, os.fork warns of threads
TEXTS = ["one", "two words", ""] * 20

def same(one, other):
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-5

os.chdir(sys.argv[1])
embeddings = FirstvecEmbeddings(model="./tiny-bert", strategy=LoadingStrategy.PROGRESSIVE, device="cpu")
os.chdir("/")
assert repr(embeddings) == "FirstvecEmbeddings(model='./tiny-bert', strategy='progressive')"
assert embeddings.model == "./tiny-bert"

# Threads: the first calls come at the same time.
with ThreadPoolExecutor(8) as pool:
    vectors = [*pool.map(embeddings.embed_query, ["text"] * 8)]
    batches = [*pool.map(embeddings.embed_documents, [TEXTS] * 8)]
assert all(same(vector, vectors[0]) for vector in vectors)
assert all(same(row, expected) for batch in batches for row, expected in zip(batch, batches[0], strict=True))
assert len(batches[0]) == 60 and same(batches[0][57], batches[0][0]) and not same(batches[0][0], batches[0][1])
assert embeddings.embed_documents([]) == []

# A forked process.
if (child := os.fork()) == 0:
    os._exit(0 if same(embeddings.embed_query("text"), vectors[0]) else 1)
assert os.waitpid(child, 0)[1] == 0

# Copies, which keep the folder from which the path was seen.
for other in (copy.copy(embeddings), copy.deepcopy(embeddings), pickle.loads(pickle.dumps(embeddings))):
    assert same(other.embed_query("text"), vectors[0]) and repr(other) == repr(embeddings)
with open(os.path.join(sys.argv[1], "pickled"), "wb") as file:
    pickle.dump(embeddings, file)

# asyncio: a text is checked only after the loop has had another turn.
turn = threading.Event()

class Waiting(str):
    def isascii(self):
        assert turn.wait(20), "the event loop stands still"
        return super().isascii()

async def wait_for(call):
    turn.clear()
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0.01)
    turn.set()
    return await task

async def main():
    assert same(await wait_for(embeddings.aembed_query(Waiting("text"))), vectors[0])
    (row,) = await wait_for(embeddings.aembed_documents([Waiting("text")]))
    assert same(row, embeddings.embed_documents(["text"])[0])
    rows = await asyncio.gather(*(embeddings.aembed_query("text") for _ in range(20)))
    assert all(same(row, vectors[0]) for row in rows)

asyncio.run(main())
asyncio.run(main())  # another event loop

# Another adapter of the same process.
other = FirstvecEmbeddings(sys.argv[2])
assert len(other.embed_query("text")) == 384 and len(embeddings.embed_query("text")) == 32
print(json.dumps([vectors[0], other.embed_query("text"), *other.embed_documents(["one", "two words"])]))
"""


def test_one_object_serves_threads_forks_event_loops_and_copies(
    tiny_bundle: Path, bundle: Path, tmp_path: Path, fresh: Fresh
) -> None:
    tiny, *rows = json.loads(fresh(_USE, tmp_path, bundle, **QUIET).stdout)
    provider = OptimizedEmbeddingLoader(str(bundle), "progressive", output="list").get_provider()
    expected = [provider.embed_query("text"), *provider.embed_batch(["one", "two words"])]
    for row, right in zip(rows, expected, strict=True):
        assert row == pytest.approx(right, abs=1e-5)
    load = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).embed_query('text'))"
    in_a_new_process = json.loads(fresh(load, tmp_path / "pickled").stdout)
    assert in_a_new_process == pytest.approx(tiny, abs=1e-5)


_PROMPTS = """
import sys
from firstvec.integrations.langchain import FirstvecEmbeddings

embeddings = FirstvecEmbeddings(sys.argv[1])
print([embeddings.embed_query("text"), *embeddings.embed_documents(["text", ""])])
"""


def test_a_query_and_a_document_get_their_prompts(tiny_bundle: Path, fresh: Fresh) -> None:
    prompts = {"query": "a query: ", "passage": "a passage: "}
    edit_manifest(tiny_bundle, lambda document: document["model"].update(prompts=prompts))
    rows = json.loads(fresh(_PROMPTS, tiny_bundle).stdout)
    provider = OptimizedEmbeddingLoader(str(tiny_bundle), "progressive", output="list").get_provider()
    expected = [provider.encode(text) for text in ("a query: text", "a passage: text", "a passage: ")]
    for row, right in zip(rows, expected, strict=True):
        assert row == pytest.approx(right, abs=1e-5)


_BAD = """
import asyncio, shutil, sys
from firstvec.integrations.langchain import FirstvecEmbeddings

def refused(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".partition("\\n")[0])
    else:
        print("not refused:", arguments, options)

for options in (
    {"modle": "all-MiniLM-L6-v2"},
    {"model": None},
    {"model": ""},
    {"strategy": "soon"},
    {"device": "tpu"},
    {"enable_quantization": "yes"},
    {"min_quality": 2},
    {"require_signature": ""},
    {"artifact": ""},
):
    refused(FirstvecEmbeddings, **options)
good = FirstvecEmbeddings(sys.argv[1])
for text in (None, b"text", ["text"], "\\udcff"):
    refused(good.embed_query, text)
for texts in (None, 3, "text", {"text"}, ["text", None], ["text", b"text"]):
    refused(good.embed_documents, texts)
refused(asyncio.run, good.aembed_documents(["text", None]))
broken = FirstvecEmbeddings(sys.argv[2])
for other in (FirstvecEmbeddings("no-such-model"), broken):
    refused(other.embed_query, "text")
    refused(other.embed_documents, [])
    refused(asyncio.run, other.aembed_query("text"))
shutil.copy(f"{sys.argv[1]}/tokenizer.json", sys.argv[2])
assert broken.embed_query("text") == good.embed_query("text")
"""

_REFUSED = """
TypeError: FirstvecEmbeddings.__init__() got an unexpected keyword argument 'modle'
InputError: model_name None is not a name or a path
InputError: model_name '' is not a name or a path
InputError: unknown strategy 'soon': use one of lazy, background,
InputError: unknown device 'tpu': use 'cpu', 'cuda', 'cuda:1' or 'mps'
InputError: enable_quantization 'yes' is neither True nor False
InputError: min_quality 2 is not a cosine, between -1 and 1
InputError: require_signature '' is not the path of a public key
InputError: artifact '' is not the id of an artifact
InputError: text 0: is NoneType, not str; pass a str
InputError: text 0: is bytes, not str; decode it first
InputError: text 0: is list, not str;
InputError: text 0: has a lone surrogate '\\udcff' at character 0
InputError: there is no text to encode
InputError: int is neither a str nor a sequence of str
InputError: embed_documents takes a list of texts: pass [text], or call embed_query
InputError: set has no order that vectors could follow
InputError: text 1: is NoneType, not str; pass a str
InputError: text 1: is bytes, not str; decode it first
InputError: text 1: is NoneType, not str; pass a str
BundleNotFound: no bundle for model 'no-such-model' was found.
BundleNotFound: no bundle for model 'no-such-model' was found.
BundleNotFound: no bundle for model 'no-such-model' was found.
IntegrityError: {broken}/tokenizer.json is not the file that was built
IntegrityError: {broken}/tokenizer.json is not the file that was built
IntegrityError: {broken}/tokenizer.json is not the file that was built
"""


def test_bad_input_is_refused_and_a_bundle_that_was_restored_is_loaded(
    tiny_built: Path, tiny_bundle: Path, fresh: Fresh
) -> None:
    (tiny_bundle / "tokenizer.json").write_text("{}", "utf-8")
    refused = fresh(_BAD, tiny_built, tiny_bundle, **QUIET).stdout.splitlines()
    for line, expected in zip(refused, _REFUSED.strip().splitlines(), strict=True):
        assert line.startswith(expected.replace("{broken}", str(tiny_bundle)))
