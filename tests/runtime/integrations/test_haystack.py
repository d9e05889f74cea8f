"""Haystack: pipelines, their YAML, and what the two components meet beyond them."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from firstvec import OptimizedEmbeddingLoader
from tests.conftest import REPOSITORY, Fresh, edit_manifest

pytestmark = pytest.mark.skipif(find_spec("haystack") is None, reason="haystack-ai is not installed here")

QUIET = {"HAYSTACK_TELEMETRY_ENABLED": "False"}

_QUICK = 'import sys; sys.modules["torch"] = None\n'
"""Haystack imports torch where it is installed. The import takes some seconds, and nothing here needs torch."""


def test_the_documented_programs_print_what_is_documented(bundle: Path, tmp_path: Path, fresh: Fresh) -> None:
    """The second program is a process of its own, which has not imported the adapter."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", (REPOSITORY / "docs/haystack.md").read_text("utf-8"), re.DOTALL)
    programs = [text for language, text in blocks if language == "python"]
    outputs = [text for language, text in blocks if language == "text"]
    assert len(programs) == 2
    for program, printed in zip(programs, outputs, strict=True):
        assert fresh(f"{_QUICK}import os; os.chdir({str(tmp_path)!r})\n{program}", **QUIET).stdout == printed


def test_the_adapter_imports_the_host_and_the_loader_only(fresh: Fresh) -> None:
    code = f"""{_QUICK}
import asyncio
import haystack
import firstvec.loader

before = {{*sys.modules}}
from firstvec.integrations.haystack import FirstvecDocumentEmbedder, FirstvecTextEmbedder

FirstvecDocumentEmbedder(model="no such model")
FirstvecTextEmbedder(model="no such model")
print(*sorted({{*sys.modules}} - before))
"""
    assert fresh(code, **QUIET).stdout == "firstvec.enums firstvec.integrations firstvec.integrations.haystack\n"


def test_an_argument_that_is_not_usable_is_refused_by_the_constructor(fresh: Fresh) -> None:
    code = f"""{_QUICK}
from firstvec import InputError
from firstvec.integrations.haystack import FirstvecDocumentEmbedder

for arguments in (
    dict(prefix=5), dict(suffix=5), dict(embedding_separator=5), dict(meta_fields_to_embed="body"), dict(batch_size=0),
    dict(truncate_dim=0), dict(truncate_dim="x"), dict(normalize_embeddings="no"), dict(progress_bar=1),
):
    try:
        FirstvecDocumentEmbedder(**arguments)
    except InputError as error:
        assert str(error).startswith(*arguments), error
    else:
        raise AssertionError(arguments)
"""
    fresh(code, **QUIET)


_WRITE = """
from haystack import Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import ComponentDevice
from firstvec import LoadingStrategy
from firstvec.integrations.haystack import FirstvecDocumentEmbedder, FirstvecTextEmbedder

store = InMemoryDocumentStore(embedding_similarity_function="cosine")
indexing = Pipeline()
documents = FirstvecDocumentEmbedder(
    model=sys.argv[1],
    device=ComponentDevice.from_str("cpu"),
    strategy=LoadingStrategy.QUANTIZED,
    progress_bar=False,
    meta_fields_to_embed=["title"],
)
indexing.add_component("embedder", documents)
indexing.add_component("writer", DocumentWriter(store))
indexing.connect("embedder", "writer")
search = Pipeline()
search.add_component("embedder", FirstvecTextEmbedder(model=sys.argv[1], strategy="quantized", device="cpu"))
search.add_component("retriever", InMemoryEmbeddingRetriever(store))
search.connect("embedder.embedding", "retriever.query_embedding")
for name, pipeline in (("indexing", indexing), ("search", search)):
    with open(f"{sys.argv[2]}/{name}.yaml", "w") as file:
        pipeline.dump(file)
assert not documents._loader.is_loading() and not documents._loader.is_loaded()
"""

_READ = """
import asyncio, json
from haystack import Document, Pipeline
from haystack.core.errors import DeserializationError

indexing, search = (open(f"{sys.argv[1]}/{name}.yaml").read() for name in ("indexing", "search"))
try:
    Pipeline.loads(search)
except DeserializationError as error:
    assert "firstvec.integrations.haystack" in str(error)
else:
    raise AssertionError("a program that trusts no other module has made a component of firstvec")
search = Pipeline.loads(search, allowed_modules=["firstvec.integrations.haystack"])
indexing = Pipeline.loads(indexing)  # the module that is imported now has allowed itself
contents = [
    "The office is closed on public holidays.",
    "Open the account page and choose a new password.",
    "Invoices are sent on the first day of a month.",
]
indexing.run({"embedder": {"documents": [Document(content=each, meta={"title": "Help"}) for each in contents]}})
question = {"embedder": {"text": "how do I reset my password?"}}
found = search.run(question)["retriever"]["documents"]
assert found == asyncio.run(search.run_async(question))["retriever"]["documents"]
search.close()
assert found == search.run(question)["retriever"]["documents"]
loader = search.get_component("embedder")._loader
print(json.dumps([[document.content for document in found], loader.report()["artifact"], loader.strategy.value]))
"""


def test_pipelines_of_yaml_run_in_a_new_process(bundle: Path, tmp_path: Path, fresh: Fresh) -> None:
    fresh(_QUICK + _WRITE, bundle, tmp_path, **QUIET)
    contents, artifact, strategy = json.loads(fresh(_QUICK + _READ, tmp_path, **QUIET).stdout)
    assert contents[0] == "Open the account page and choose a new password."
    assert len(contents) == 3
    assert artifact == OptimizedEmbeddingLoader(str(bundle), "quantized", "cpu").choose().artifact.id
    assert strategy == "quantized"


_USE = """
import asyncio, json, os, threading, warnings
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from haystack import Document
from haystack.utils import ComponentDevice
from firstvec.integrations.haystack import FirstvecDocumentEmbedder, FirstvecTextEmbedder

warnings.simplefilter("error")
warnings.simplefilter("ignore", DeprecationWarning)  # since Python 3.12, os.fork warns of threads
folder = sys.argv[1]
os.chdir(folder)
texts = FirstvecTextEmbedder(model="./tiny-bert", device="cpu")
documents = FirstvecDocumentEmbedder(
    model="./tiny-bert", meta_fields_to_embed=["title", "year", "author", "none"], progress_bar=False
)
os.chdir("/")

def same(one, other):
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-5

def embed(text, **options):
    return FirstvecTextEmbedder(model=folder + "/tiny-bert", **options).run(text)["embedding"]

def embed_document(document, **options):
    embedder = FirstvecDocumentEmbedder(model=folder + "/tiny-bert", progress_bar=False, **options)
    return embedder.run([document])["documents"][0].embedding

# Threads: the first calls come at the same time.
given = [
    Document(content="one", meta={"title": "A title", "year": 1999, "none": None}, score=0.5),
    Document(content="two words", id="its own"),
    Document(content=None),
    Document(content="", embedding=[1.0]),
] * 20
before = deepcopy(given)
with ThreadPoolExecutor(8) as pool:
    vectors = [run["embedding"] for run in pool.map(texts.run, ["text"] * 8)]
    batches = [run["documents"] for run in pool.map(documents.run, [given] * 8)]
assert type(vectors[0]) is list and all(type(each) is float for each in vectors[0]) and len(vectors[0]) == 32
assert all(same(vector, vectors[0]) for vector in vectors)
for batch in batches:
    assert len(batch) == 80 and all(type(each.embedding) is list for each in batch)
    assert all(same(one.embedding, other.embedding) for one, other in zip(batch, batches[0], strict=True))

# The documents stay as they are. Their copies differ in the embedding only.
assert given == before
for document, result in zip(given, batches[0], strict=True):
    assert result is not document and result.id == document.id
    assert result.to_dict() == document.to_dict() | {"embedding": result.embedding}

# A forked process.
if (child := os.fork()) == 0:
    os._exit(0 if same(texts.run("text")["embedding"], vectors[0]) else 1)
assert os.waitpid(child, 0)[1] == 0

# The arguments of Haystack's own embedders.
one = Document(content="one", meta={"title": "A title"})
short = embed("text", truncate_dim=8)
unit = embed("text", truncate_dim=8, normalize_embeddings=True)
assert same(short, vectors[0][:8]) and sum(each * each for each in short) < 0.9
assert same([each / sum(each * each for each in short) ** 0.5 for each in short], unit)
assert same(embed_document(one, truncate_dim=8), embed_document(one)[:8])
assert same(embed_document(one, truncate_dim=8, normalize_embeddings=True), [
    each / sum(each * each for each in embed_document(one)[:8]) ** 0.5 for each in embed_document(one)[:8]
])

# Dictionaries. Each argument is there, and has its value.
for embedder in (
    texts,
    documents,
    FirstvecTextEmbedder(
        model="m", device="cuda:1", prefix="p", suffix="s", batch_size=2, progress_bar=False, truncate_dim=8,
        normalize_embeddings=True, strategy="lazy", enable_quantization=True, min_quality=0.5,
        require_signature="key.pem", artifact="onnx-fp32",
    ),
    FirstvecDocumentEmbedder(
        model="m", device=ComponentDevice.from_str("cuda:1"), prefix="p", suffix="s", batch_size=2, progress_bar=False,
        truncate_dim=8, normalize_embeddings=True, strategy="lazy", enable_quantization=True, min_quality=0.5,
        require_signature="key.pem", artifact="onnx-fp32", meta_fields_to_embed=["a"], embedding_separator=" ",
    ),
):
    data = json.loads(json.dumps(embedder.to_dict()))
    again = type(embedder).from_dict(data)
    assert again.to_dict() == data and again._loader._options == embedder._loader._options.replace(working_folder="/")
    parameters = {*type(embedder).__init__.__code__.co_varnames[1 : 1 + embedder.__init__.__code__.co_kwonlyargcount]}
    assert {*data["init_parameters"]} == parameters, parameters

# asyncio: a text is checked only after the loop has had another turn.
turn = threading.Event()

class Waiting(str):
    def __add__(self, other):
        assert turn.wait(20), "the event loop stands still"
        return str(self) + other

async def wait_for(call):
    turn.clear()
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0.01)
    turn.set()
    return await task

async def main():
    assert same((await wait_for(texts.run_async(Waiting("text"))))["embedding"], vectors[0])
    (document,) = (await documents.run_async([given[0]]))["documents"]
    assert same(document.embedding, batches[0][0].embedding)
    embedder = FirstvecTextEmbedder(model=folder + "/tiny-bert")
    await embedder.warm_up_async()
    assert embedder._loader.is_loaded()

asyncio.run(main())

embedder = FirstvecDocumentEmbedder(model=folder + "/tiny-bert")
assert not embedder._loader.is_loaded()
embedder.warm_up()
assert embedder._loader.is_loaded() and embedder.progress_bar
print(json.dumps([
    vectors[0],
    *(document.embedding for document in batches[0][:4]),
    embed("text", prefix="my ", suffix=" end"),
    embed_document(one, prefix="my ", suffix=" end", meta_fields_to_embed=["title"], embedding_separator=" | "),
]))
embedder.run(given[:1])  # a bar
"""


def test_the_components_serve_threads_forks_and_event_loops(tiny_bundle: Path, tmp_path: Path, fresh: Fresh) -> None:
    prompts = {"query": "a query: ", "passage": "a passage: "}
    edit_manifest(tiny_bundle, lambda document: document["model"].update(prompts=prompts))
    done = fresh(_QUICK + _USE, tmp_path, check=False, **QUIET)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("100%") == 1  # the bar of the last run
    rows = json.loads(done.stdout)
    provider = OptimizedEmbeddingLoader(str(tiny_bundle), "progressive", output="list").get_provider()
    texts = [
        "a query: text",
        *("a passage: A title\n1999\none", "a passage: two words", "a passage: ", "a passage: "),
        "my text end",
        "my A title | one end",
    ]
    for row, text in zip(rows, texts, strict=True):
        assert row == pytest.approx(provider.encode(text), abs=1e-5)


_BAD = """
import asyncio, os
from haystack import Document, Pipeline
from firstvec import InputError
from firstvec.integrations.haystack import FirstvecDocumentEmbedder, FirstvecTextEmbedder

def refused(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except (InputError, TypeError) as error:
        print(f"{type(error).__name__}: {error}")
    except Exception as error:
        print(type(error).__name__, *(["<", type(error.__cause__).__name__] if error.__cause__ is not None else []))
    else:
        print("not refused:", arguments, options)

tiny, changed, absent = sys.argv[1:]
for options in (
    {"modle": "tiny"},
    {"model": None},
    {"model": ""},
    {"strategy": "soon"},
    {"device": "tpu"},
    {"device": 3},
    {"enable_quantization": "yes"},
    {"min_quality": 2},
    {"require_signature": ""},
    {"artifact": 3},
):
    refused(FirstvecTextEmbedder, **options)
    refused(FirstvecDocumentEmbedder, **options)

print("-- texts")
texts = FirstvecTextEmbedder(model=tiny)
for text in (None, 3, b"text", ["text"], Document(content="text"), "\\udcff"):
    refused(texts.run, text)
refused(asyncio.run, texts.run_async(None))
print(len(texts.run("")["embedding"]))
for options in ({"truncate_dim": 0}, {"prefix": 3}):
    refused(lambda: FirstvecTextEmbedder(model=tiny, **options))

print("-- documents")
documents = FirstvecDocumentEmbedder(model=tiny, progress_bar=False)
good = Document(content="text")
lone = Document(content="\\udcff", id="lone")
for given in (None, 3, "text", good, (good,), [None], [good, None], [good, "text"], [good, lone]):
    refused(documents.run, given)
refused(asyncio.run, documents.run_async([None]))
print(documents.run([]), asyncio.run(documents.run_async([])))
refused(lambda: FirstvecDocumentEmbedder(model=tiny, batch_size=0, progress_bar=False))

print("-- pipelines")

def pipeline_of(embedder):
    pipeline = Pipeline()
    pipeline.add_component("embedder", embedder)
    return pipeline

refused(pipeline_of(texts).run, {"embedder": {"text": 3}})
refused(pipeline_of(documents).run, {"embedder": {"documents": [None]}})
refused(Pipeline.loads, pipeline_of(FirstvecTextEmbedder(model=tiny)).dumps().replace("progressive", "soon"))
refused(FirstvecTextEmbedder.from_dict, documents.to_dict())

print("-- bundles")
for path in (absent, changed):
    for embedder, given in (
        (FirstvecTextEmbedder(model=path), {"text": "text"}),
        (FirstvecDocumentEmbedder(model=path, progress_bar=False), {"documents": []}),
    ):
        pipeline = pipeline_of(embedder)
        refused(embedder.warm_up)
        refused(asyncio.run, embedder.warm_up_async())
        refused(embedder.run, **given)
        refused(pipeline.run, {"embedder": given})
        if path == absent:
            os.symlink(tiny, path)
            print(*pipeline.run({"embedder": given})["embedder"])
            os.remove(path)
"""

_REFUSED = """\
TypeError: FirstvecTextEmbedder.__init__() got an unexpected keyword argument 'modle'
TypeError: FirstvecDocumentEmbedder.__init__() got an unexpected keyword argument 'modle'
InputError: model_name None is not a name or a path
InputError: model_name None is not a name or a path
InputError: model_name '' is not a name or a path
InputError: model_name '' is not a name or a path
InputError: unknown strategy 'soon': use one of lazy, background, progressive, quantized, cached
InputError: unknown strategy 'soon': use one of lazy, background, progressive, quantized, cached
InputError: unknown device 'tpu': use 'cpu', 'cuda', 'cuda:1' or 'mps'
InputError: unknown device 'tpu': use 'cpu', 'cuda', 'cuda:1' or 'mps'
InputError: unknown device 3: use 'cpu', 'cuda', 'cuda:1' or 'mps'
InputError: unknown device 3: use 'cpu', 'cuda', 'cuda:1' or 'mps'
InputError: enable_quantization 'yes' is neither True nor False
InputError: enable_quantization 'yes' is neither True nor False
InputError: min_quality 2 is not a cosine, between -1 and 1
InputError: min_quality 2 is not a cosine, between -1 and 1
InputError: require_signature '' is not the path of a public key
InputError: require_signature '' is not the path of a public key
InputError: artifact 3 is not the id of an artifact: see `firstvec inspect`
InputError: artifact 3 is not the id of an artifact: see `firstvec inspect`
-- texts
TypeError: FirstvecTextEmbedder takes a str, not NoneType. FirstvecDocumentEmbedder takes documents
TypeError: FirstvecTextEmbedder takes a str, not int. FirstvecDocumentEmbedder takes documents
TypeError: FirstvecTextEmbedder takes a str, not bytes. FirstvecDocumentEmbedder takes documents
TypeError: FirstvecTextEmbedder takes a str, not list. FirstvecDocumentEmbedder takes documents
TypeError: FirstvecTextEmbedder takes a str, not Document. FirstvecDocumentEmbedder takes documents
InputError: text 0: has a lone surrogate '\\udcff' at character 0; decode the source with errors='replace'
TypeError: FirstvecTextEmbedder takes a str, not NoneType. FirstvecDocumentEmbedder takes documents
32
InputError: truncate_dim 0 is not a positive integer
InputError: prefix 3 is not a str
-- documents
TypeError: FirstvecDocumentEmbedder takes a list of Document, not NoneType. FirstvecTextEmbedder takes a str
TypeError: FirstvecDocumentEmbedder takes a list of Document, not int. FirstvecTextEmbedder takes a str
TypeError: FirstvecDocumentEmbedder takes a list of Document, not str. FirstvecTextEmbedder takes a str
TypeError: FirstvecDocumentEmbedder takes a list of Document, not Document. FirstvecTextEmbedder takes a str
TypeError: FirstvecDocumentEmbedder takes a list of Document, not tuple. FirstvecTextEmbedder takes a str
TypeError: document 0: is NoneType, not Document
TypeError: document 1: is NoneType, not Document
TypeError: document 1: is str, not Document
InputError: text 1: has a lone surrogate '\\udcff' at character 0; decode the source with errors='replace'
TypeError: document 0: is NoneType, not Document
{'documents': []} {'documents': []}
InputError: batch_size 0 is not a positive integer
-- pipelines
PipelineRuntimeError < TypeError
PipelineRuntimeError < TypeError
DeserializationError < InputError
DeserializationError
-- bundles
BundleNotFound
BundleNotFound
BundleNotFound
BundleNotFound
embedding
BundleNotFound
BundleNotFound
BundleNotFound
BundleNotFound
documents
IntegrityError
IntegrityError
IntegrityError
IntegrityError
IntegrityError
IntegrityError
IntegrityError
IntegrityError
"""


def test_bad_input_is_refused(tiny_built: Path, tiny_bundle: Path, tmp_path: Path, fresh: Fresh) -> None:
    (tiny_bundle / "tokenizer.json").write_text("{}", "utf-8")
    assert fresh(_QUICK + _BAD, tiny_built, tiny_bundle, tmp_path / "absent", **QUIET).stdout == _REFUSED
