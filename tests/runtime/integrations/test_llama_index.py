"""LlamaIndex: an index that a new process opens, and what a program of LlamaIndex meets beyond it."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from firstvec import OptimizedEmbeddingLoader
from tests.conftest import REPOSITORY, Fresh, edit_manifest

pytestmark = pytest.mark.skipif(find_spec("llama_index") is None, reason="llama-index-core is not installed here")

_OFFLINE = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise RuntimeError(f"the program makes a request: {event} {arguments}")

sys.addaudithook(refuse)
"""


def test_the_documented_program_prints_what_is_documented(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: Fresh
) -> None:
    monkeypatch.chdir(tmp_path)  # the program writes a folder
    blocks = re.findall(r"```(\w*)\n(.*?)```", (REPOSITORY / "docs/llama-index.md").read_text("utf-8"), re.DOTALL)
    (program,) = [text for language, text in blocks if language == "python"]
    (printed,) = [text for language, text in blocks if language == "text"]
    assert fresh(_OFFLINE + program).stdout == printed


def test_the_adapter_imports_the_host_and_the_loader_only(fresh: Fresh) -> None:
    code = """
import sys
import firstvec.loader
from llama_index.core.base.embeddings.base import BaseEmbedding

before = {*sys.modules}
from firstvec.integrations.llama_index import FirstvecEmbedding

FirstvecEmbedding(model_name="no such model")
print(*sorted({*sys.modules} - before))
"""
    assert fresh(code).stdout == "firstvec.integrations firstvec.integrations.llama_index\n"


def test_a_copy_with_other_options_has_a_model_of_its_own(tiny_built: Path, fresh: Fresh) -> None:
    code = """
import sys
from firstvec import InputError, OptimizedEmbeddingLoader
from firstvec.integrations.llama_index import FirstvecEmbedding

fp32 = FirstvecEmbedding(model_name=sys.argv[1])
before = fp32.get_query_embedding("a cat")
int8 = fp32.model_copy(update={"strategy": "quantized"})
expected = OptimizedEmbeddingLoader(sys.argv[1], "quantized", output="list").get_provider().embed_query("a cat")
assert int8.get_query_embedding("a cat") == expected != before == fp32.get_query_embedding("a cat")
assert fp32.model_copy().get_query_embedding("a cat") == before
try:
    fp32.model_copy(update={"strategy": "soon"})
except InputError as error:
    print(error)
"""
    assert "soon" in fresh(code, tiny_built).stdout


_BUILD = (
    _OFFLINE
    + """
import pickle
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.node_parser import SentenceSplitter
from firstvec.integrations.llama_index import FirstvecEmbedding

seen = []

class Handler(BaseEventHandler):
    def handle(self, event, **more):
        if isinstance(event, (EmbeddingStartEvent, EmbeddingEndEvent)):
            seen.append(event)

get_dispatcher().add_event_handler(Handler())
debug = LlamaDebugHandler(print_trace_on_end=False)
Settings.callback_manager = CallbackManager([debug])  # an index gives it to its model
embed_model = FirstvecEmbedding(embed_batch_size=2)
topics = {
    "password": "Open the account page and choose a new password.",
    "invoice": "Invoices are sent on the first day of a month.",
    "holiday": "The office is closed on public holidays.",
}
documents = [Document(text=f"{text} Please be patient.", metadata={"topic": topic}) for topic, text in topics.items()]
splitter = SentenceSplitter(chunk_size=60, chunk_overlap=0)
index = VectorStoreIndex.from_documents(documents, embed_model=embed_model, transformations=[splitter])
index.storage_context.persist(sys.argv[1] + "/storage")

# Three nodes in batches of two are two events, each with a start and an end.
assert [type(event).__name__ for event in seen] == ["EmbeddingStartEvent", "EmbeddingEndEvent"] * 2
about = {"class_name": "FirstvecEmbedding", "model_name": "all-MiniLM-L6-v2", "embed_batch_size": 2}
assert seen[0].model_dict == about
assert [len(event.embeddings) for event in seen[1::2]] == [2, 1] and len(seen[1].embeddings[0]) == 384
pairs = debug.get_event_pairs(CBEventType.EMBEDDING)
assert [len(end.payload[EventPayload.EMBEDDINGS]) for _, end in pairs] == [2, 1]

with open(sys.argv[1] + "/pickled", "wb") as file:
    pickle.dump(FirstvecEmbedding(strategy="quantized", min_quality=0.5), file)
"""
)
_QUERY = (
    _OFFLINE
    + """
import asyncio, json, pickle
from llama_index.core import StorageContext, load_index_from_storage
from firstvec.integrations.llama_index import FirstvecEmbedding

with open(sys.argv[1] + "/pickled", "rb") as file:
    pickled = pickle.load(file)
assert (pickled.strategy, pickled.min_quality) == ("quantized", 0.5)
for embed_model in (FirstvecEmbedding(), pickled):
    storage = StorageContext.from_defaults(persist_dir=sys.argv[1] + "/storage")
    retriever = load_index_from_storage(storage, embed_model=embed_model).as_retriever(similarity_top_k=3)
    found = retriever.retrieve("how do I reset my password?")
    assert [each.node_id for each in asyncio.run(retriever.aretrieve("how do I reset my password?"))] == [
        each.node_id for each in found
    ]
    print(json.dumps([[each.metadata["topic"], each.score] for each in found]))
"""
)


def test_a_stored_index_is_queried_in_a_new_process(bundle: Path, tmp_path: Path, fresh: Fresh) -> None:
    fresh(_BUILD, tmp_path)
    stored = json.loads((tmp_path / "storage/default__vector_store.json").read_text("utf-8"))["embedding_dict"]
    assert [len(vector) for vector in stored.values()] == [384] * 3
    for line in fresh(_QUERY, tmp_path).stdout.splitlines():
        found = json.loads(line)
        topics, scores = zip(*found, strict=True)
        assert topics[0] == "password"
        assert scores[0] > 0.5 > scores[1] >= scores[2]


_USE = (
    _OFFLINE
    + """
import asyncio, copy, json, os, pickle, threading, warnings
from concurrent.futures import ThreadPoolExecutor
from firstvec import LoadingStrategy
from firstvec.integrations.llama_index import FirstvecEmbedding

warnings.simplefilter("ignore", DeprecationWarning)  # since Python 3.12, os.fork warns of threads
TEXTS = ["one", "two words", ""] * 20

def same(one, other):
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-5

os.chdir(sys.argv[1])
embed_model = FirstvecEmbedding(
    model_name="./tiny-bert", strategy=LoadingStrategy.PROGRESSIVE, device="cpu", embed_batch_size=50
)
os.chdir("/")
assert embed_model.get_text_embedding_batch([]) == []

# Threads: the first calls come at the same time.
with ThreadPoolExecutor(8) as pool:
    vectors = [*pool.map(embed_model.get_query_embedding, ["text"] * 8)]
    batches = [*pool.map(embed_model.get_text_embedding_batch, [TEXTS] * 8)]
assert all(same(vector, vectors[0]) for vector in vectors)
assert all(same(row, expected) for batch in batches for row, expected in zip(batch, batches[0], strict=True))
assert len(batches[0]) == 60 and same(batches[0][57], batches[0][0]) and not same(batches[0][0], batches[0][1])

# A forked process.
if (child := os.fork()) == 0:
    os._exit(0 if same(embed_model.get_query_embedding("text"), vectors[0]) else 1)
assert os.waitpid(child, 0)[1] == 0

# Copies, which keep the folder from which the path was seen.
for other in (copy.copy(embed_model), copy.deepcopy(embed_model), pickle.loads(pickle.dumps(embed_model))):
    assert same(other.get_query_embedding("text"), vectors[0])
    assert other.to_dict() == embed_model.to_dict()

# A dict, as JSON, holds every option. A relative path is seen from where the new object is made.
os.chdir(sys.argv[1])
values = json.loads(embed_model.to_json())
assert values == {
    **{"class_name": "FirstvecEmbedding", "model_name": "./tiny-bert", "strategy": "progressive", "device": "cpu"},
    **{"enable_quantization": False, "min_quality": None, "require_signature": None, "artifact": None},
    **{"embed_batch_size": 50, "num_workers": None, "embeddings_cache": None},
}
again = FirstvecEmbedding.from_dict(values)
assert again.to_dict() == values and same(again.get_query_embedding("text"), vectors[0])

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
    assert same(await wait_for(embed_model.aget_query_embedding(Waiting("text"))), vectors[0])
    document = embed_model.get_text_embedding("text")
    assert same(await wait_for(embed_model.aget_text_embedding(Waiting("text"))), document)
    (row,) = await wait_for(embed_model.aget_text_embedding_batch([Waiting("text")]))
    assert same(row, document)
    rows = await embed_model.aget_text_embedding_batch(TEXTS)  # two batches at the same time
    assert all(same(row, expected) for row, expected in zip(rows, batches[0], strict=True))

asyncio.run(main())
asyncio.run(main())  # another event loop

# Other adapters of the same process: a model with prompts, and the real one.
prompted, real = FirstvecEmbedding(model_name=sys.argv[2]), FirstvecEmbedding()
for other in (prompted, real):
    batch = other.get_text_embedding_batch(["", "text"])
    print(json.dumps([other.get_query_embedding("text"), other.get_text_embedding("text"), *batch]))
"""
)


def test_one_object_serves_threads_forks_event_loops_and_copies(
    tiny_built: Path, tiny_bundle: Path, bundle: Path, fresh: Fresh
) -> None:
    prompts = {"query": "a query: ", "passage": "a passage: "}
    edit_manifest(tiny_bundle, lambda document: document["model"].update(prompts=prompts))
    assert tiny_built.name == "tiny-bert"
    lines = fresh(_USE, tiny_built.parent, tiny_bundle).stdout.splitlines()
    for line, root, texts in (
        (lines[0], tiny_bundle, ("a query: text", "a passage: text", "a passage: ", "a passage: text")),
        (lines[1], bundle, ("text", "text", "", "text")),
    ):
        provider = OptimizedEmbeddingLoader(str(root), "progressive", output="list").get_provider()
        for row, text in zip(json.loads(line), texts, strict=True):
            assert row == pytest.approx(provider.encode(text), abs=1e-5)


_BAD = (
    _OFFLINE
    + """
import asyncio, shutil
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from firstvec.integrations.llama_index import FirstvecEmbedding

def refused(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        causes = getattr(error.__cause__, "exceptions", ())
        print(" from ".join([type(error).__name__, *(type(cause).__name__ for cause in causes)]), end=": ")
        print(str(error).replace("\\n", " "))
    else:
        print("not refused:", arguments, options)

for options in (
    {"modle": "all-MiniLM-L6-v2"},
    {"model_name": None},
    {"model_name": ""},
    {"strategy": "soon"},
    {"device": "tpu"},
    {"enable_quantization": "perhaps"},
    {"min_quality": 2},
    {"require_signature": ""},
    {"artifact": ""},
    {"embed_batch_size": 0},
):
    refused(FirstvecEmbedding, **options)
good = FirstvecEmbedding(model_name=sys.argv[1])
refused(setattr, good, "model_name", "another")
for text in (None, b"text", ["text"], "\\udcff"):
    refused(good.get_query_embedding, text)
    refused(good.get_text_embedding, text)
refused(good.get_text_embedding_batch, ["text", None])
refused(asyncio.run, good.aget_text_embedding_batch(["text", None]))
broken = FirstvecEmbedding(model_name=sys.argv[2])
nodes = [TextNode(text="text")]
for other in (FirstvecEmbedding(model_name="no-such-model"), broken):
    refused(other.get_query_embedding, "text")
    refused(asyncio.run, other.aget_query_embedding("text"))
    refused(VectorStoreIndex, nodes, embed_model=other)
shutil.copy(f"{sys.argv[1]}/tokenizer.json", sys.argv[2])
assert broken.get_query_embedding("text") == good.get_query_embedding("text")
"""
)

_REFUSED = """
ValidationError: 1 validation error for FirstvecEmbedding modle   Extra inputs are not permitted
ValidationError: 1 validation error for FirstvecEmbedding model_name   Input should be a valid string
ValidationError from InputError: 1 validation error for FirstvecEmbedding   Value error, model_name '' is not a name
ValidationError from InputError: 1 validation error for FirstvecEmbedding strategy   Value error, unknown strategy
ValidationError from InputError: 1 validation error for FirstvecEmbedding   Value error, unknown device 'tpu': use
ValidationError: 1 validation error for FirstvecEmbedding enable_quantization   Input should be a valid boolean
ValidationError from InputError: 1 validation error for FirstvecEmbedding   Value error, min_quality 2.0 is not a
ValidationError from InputError: 1 validation error for FirstvecEmbedding   Value error, require_signature '' is not
ValidationError from InputError: 1 validation error for FirstvecEmbedding   Value error, artifact '' is not the id of
ValidationError: 1 validation error for FirstvecEmbedding embed_batch_size   Input should be greater than 0
ValidationError: 1 validation error for FirstvecEmbedding model_name   Field is frozen
InputError: text 0: is NoneType, not str; pass a str
InputError: text 0: is NoneType, not str; pass a str
InputError: text 0: is bytes, not str; decode it first
InputError: text 0: is bytes, not str; decode it first
InputError: text 0: is list, not str;
InputError: text 0: is list, not str;
InputError: text 0: has a lone surrogate '\\udcff' at character 0
InputError: text 0: has a lone surrogate '\\udcff' at character 0
InputError: text 1: is NoneType, not str; pass a str
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
    refused = fresh(_BAD, tiny_built, tiny_bundle).stdout.splitlines()
    for line, expected in zip(refused, _REFUSED.strip().splitlines(), strict=True):
        assert line.startswith(expected.replace("{broken}", str(tiny_bundle)))
