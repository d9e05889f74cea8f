"""Measure the cold start of the adapters beside their hosts' usual embedders, in fresh processes from exec to exit.

Each program imports the host and computes the vector of one query. The program ``import only`` imports the host and
computes nothing. Every round starts each program once, in turn. The tables show medians of the rounds. Programs whose
packages are missing are left out, and named (the dependency group ``bench-hosts`` has them).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from fresh import BUNDLE, environment, measure
from programs import TEXT
from record import machine, markdown_list, markdown_table, write

from firstvec_build.source import resolve


@dataclass(frozen=True, slots=True)
class Program:
    """A program to measure. ``{bundle}`` and ``{source}`` stand for the bundle and the original model."""

    host: str
    embedder: str
    code: str
    needs: tuple[str, ...] = ()
    """Modules without which the program is left out."""

    @property
    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [module for module in self.needs if not _is_installed(module)]


IMPORT = "import only"
INT8 = "firstvec, INT8"
# In the environment of the tests, Chroma's jsonschema imports a package of import-linter, which takes a second.
CHROMA = 'import sys; sys.modules["rfc3987_syntax"] = None\nimport chromadb\n'
LANGCHAIN = "from langchain_core.embeddings import Embeddings\n"
LLAMA_INDEX = "from llama_index.core.base.embeddings.base import BaseEmbedding\n"
HAYSTACK = "import haystack\n"

PROGRAMS = (
    Program("LangChain", IMPORT, LANGCHAIN),
    *(
        Program(
            "LangChain",
            name,
            f"{LANGCHAIN}from firstvec.integrations.langchain import FirstvecEmbeddings\n"
            f"vector = FirstvecEmbeddings({{bundle!r}}, {strategy!r}).embed_query({TEXT!r})\n",
        )
        for name, strategy in (("firstvec", "progressive"), (INT8, "quantized"))
    ),
    Program(
        "LangChain",
        "HuggingFaceEmbeddings",
        "from langchain_huggingface import HuggingFaceEmbeddings\n"
        f"vector = HuggingFaceEmbeddings(model_name={{source!r}}).embed_query({TEXT!r})\n",
        ("langchain_huggingface",),
    ),
    Program("LlamaIndex", IMPORT, LLAMA_INDEX),
    *(
        Program(
            "LlamaIndex",
            name,
            "from firstvec.integrations.llama_index import FirstvecEmbedding\n"
            "embedding = FirstvecEmbedding(model_name={bundle!r}, "
            f"strategy={strategy!r})\nvector = embedding.get_query_embedding({TEXT!r})\n",
        )
        for name, strategy in (("firstvec", "progressive"), (INT8, "quantized"))
    ),
    Program(
        "LlamaIndex",
        "HuggingFaceEmbedding",
        "from llama_index.embeddings.huggingface import HuggingFaceEmbedding\n"
        f"vector = HuggingFaceEmbedding(model_name={{source!r}}).get_query_embedding({TEXT!r})\n",
        ("llama_index.embeddings.huggingface",),
    ),
    Program("Chroma", IMPORT, CHROMA),
    *(
        Program(
            "Chroma",
            name,
            f"{CHROMA}from firstvec.integrations.chroma import FirstvecEmbeddingFunction\n"
            f"vector = FirstvecEmbeddingFunction({{bundle!r}}, strategy={strategy!r}).embed_query([{TEXT!r}])[0]\n",
        )
        for name, strategy in (("firstvec", "progressive"), (INT8, "quantized"))
    ),
    Program(
        "Chroma",
        "its default, ONNX",
        f"{CHROMA}from chromadb.utils.embedding_functions import DefaultEmbeddingFunction\n"
        f"vector = DefaultEmbeddingFunction().embed_query([{TEXT!r}])[0]\n",
    ),
    Program("Haystack", IMPORT, HAYSTACK),
    *(
        Program(
            "Haystack",
            name,
            "from firstvec.integrations.haystack import FirstvecTextEmbedder\n"
            f"embedder = FirstvecTextEmbedder(model={{bundle!r}}, strategy={strategy!r})\n"
            f"vector = embedder.run({TEXT!r})['embedding']\n",
        )
        for name, strategy in (("firstvec", "progressive"), (INT8, "quantized"))
    ),
    Program(
        "Haystack",
        "SentenceTransformersTextEmbedder",
        "from haystack_integrations.components.embedders import sentence_transformers as package\n"
        "embedder = package.SentenceTransformersTextEmbedder(model={source!r}, progress_bar=False)\n"
        f"vector = embedder.run({TEXT!r})['embedding']\n",
        ("haystack_integrations.components.embedders.sentence_transformers",),
    ),
    Program(
        "none",
        "firstvec.compat.SentenceTransformer",
        "from firstvec.compat import SentenceTransformer\n"
        f"vector = SentenceTransformer({{bundle!r}}).encode({TEXT!r})\n",
    ),
    Program(
        "none",
        "sentence_transformers.SentenceTransformer",
        "from sentence_transformers import SentenceTransformer\n"
        f"vector = SentenceTransformer({{source!r}}, device='cpu').encode({TEXT!r})\n",
    ),
    Program(
        "none",
        "fastembed",
        "from fastembed import TextEmbedding\n"
        "from fastembed.common.model_description import ModelSource, PoolingType\n"
        "TextEmbedding.add_custom_model(model='local/model', pooling=PoolingType.DISABLED, normalization=False, "
        "sources=ModelSource(hf='local/model'), dim=384, model_file='onnx/model.onnx', "
        "additional_files=['onnx/model.onnx_data'])\n"
        "model = TextEmbedding('local/model', specific_model_path={bundle!r})\n"
        f"vector = next(iter(model.embed([{TEXT!r}])))\n",
        ("fastembed",),
    ),
)
CHECK = "\nprint([float(value) for value in vector])\n"


def main() -> None:
    """Run the benchmark, print its table, and write the files that the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="the bundle of all-MiniLM-L6-v2")
    parser.add_argument("--rounds", type=int, default=10, help="counted rounds; one more warms up (default 10)")
    parser.add_argument("--only", action="append", metavar="HOST", help="measure the programs of this host only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample, and the machine")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table, and the machine")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    chosen = [each for each in PROGRAMS if not options.only or each.host in options.only]
    if not chosen:
        parser.error(f"--only must be one of {', '.join(dict.fromkeys(each.host for each in PROGRAMS))}")
    for each in chosen:
        if each.missing:
            print(f"left out: {each.host}, {each.embedder}: {', '.join(each.missing)} not installed", file=sys.stderr)
    programs = [each for each in chosen if not each.missing]
    source = Path(resolve("all-MiniLM-L6-v2").path)
    with tempfile.TemporaryDirectory(prefix="firstvec-bench-") as home:
        if any(each.host == "Chroma" for each in programs):
            make_chromas_model(options.bundle, Path(home))
        samples = run_rounds(programs, options.rounds, options.bundle.resolve(), source, home)
    facts = {"rounds": options.rounds, **machine()}
    rows = [["host", "embedder", "wall, s", "quartiles", "processor time, s"]]
    for each in programs:
        wall, cpu = zip(*samples[each.host, each.embedder], strict=True)
        low, _, high = quantiles(wall, n=4) if len(wall) > 1 else (wall[0],) * 3
        rows.append([each.host, each.embedder, f"{median(wall):.3f}", f"{low:.3f}–{high:.3f}", f"{median(cpu):.3f}"])
    table = markdown_table(rows)
    print(table)
    if options.json:
        named = [{"host": host, "embedder": name, "samples": found} for (host, name), found in samples.items()]
        write(options.json, json.dumps({"run": facts, "programs": named}, ensure_ascii=False) + "\n")
    if options.markdown:
        write(options.markdown, f"# Cold start of the adapters\n\n{table}\n{markdown_list(facts)}")


def run_rounds(
    programs: list[Program], rounds: int, bundle: Path, source: Path, home: str
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Return the wall time and the processor time of each program's processes. The first round warms up."""
    environ = environment() | {
        "HOME": home,
        "FIRSTVEC_CACHE": os.path.join(home, "firstvec"),
        "ANONYMIZED_TELEMETRY": "False",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    samples: dict[tuple[str, str], list[tuple[float, float]]] = {}
    reference: list[float] = []
    for number in range(rounds + 1):
        for each in programs:
            code = each.code.format(bundle=str(bundle), source=str(source))
            used = measure((sys.executable, "-c", code + (CHECK if each.embedder != IMPORT else "")), environ)
            if each.embedder != IMPORT:
                vector: list[float] = json.loads(used.output.splitlines()[-1])
                reference = reference or vector
                cosine = sum(a * b for a, b in zip(vector, reference, strict=True))
                if not cosine > 0.95:
                    sys.exit(f"error: {each.host}, {each.embedder}: wrong vector: cosine {cosine:.4f}")
            if number:
                found = samples.setdefault((each.host, each.embedder), [])
                found.append((round(used.seconds, 4), round(used.processor_seconds, 4)))
        print(f"round {number}/{rounds}" if number else "warm-up", file=sys.stderr)
    return samples


def make_chromas_model(bundle: Path, home: Path) -> None:
    """Make the folder of the model that Chroma's default function would download, from the bundle's ONNX file.

    Chroma pools itself, so the vectors of the tokens must be the first output. Chroma also gives ``token_type_ids``.
    """
    import onnx

    folder = home / ".cache/chroma/onnx_models/all-MiniLM-L6-v2/onnx"
    folder.mkdir(parents=True)
    model: Any = onnx.load(bundle / "onnx/model.onnx")
    [hidden] = [output for output in model.graph.output if output.name == "last_hidden_state"]
    del model.graph.output[:]
    model.graph.output.append(hidden)
    if not any(each.name == "token_type_ids" for each in model.graph.input):
        ids = model.graph.input.add()
        ids.CopyFrom(model.graph.input[0])
        ids.name = "token_type_ids"
    onnx.save(model, folder / "model.onnx")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundle / name, folder)
    for name in ("special_tokens_map.json", "vocab.txt"):  # Chroma only looks whether they are there
        (folder / name).write_text("{}", "utf-8")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that holds the module
        return False


if __name__ == "__main__":
    main()
