"""Measure `firstvec embed`: its speed beside `encode` of the same texts in memory, and the memory of its workers.

The speed is a ratio of two times of the same round. The memory is the proportional set size (PSS) of all processes
together, its peak: a page that N processes share counts 1/N in each. Linux only, because /proc shows the PSS.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fresh import BUNDLE, environment
from record import machine, write

from firstvec import OptimizedEmbeddingLoader
from firstvec.bulk import embed
from firstvec.bulk.checkpoint import Done
from firstvec.bulk.inputs import find_sources
from firstvec.bulk.job import make_job
from firstvec.bulk.readers import read_shards
from firstvec.bulk.rows import Rows
from firstvec.bulk.shards import write_shard
from firstvec.bulk.tables import embed_texts, schema_of
from firstvec.bulk.worker import describe
from firstvec_build.quality import evaluation_sentences
from firstvec_build.source import resolve

ARTIFACTS = {"INT8": "native-int8", "fp32": "native-fp32"}
PEERS = {
    "sentence-transformers": """
import sys
from sentence_transformers import SentenceTransformer
if __name__ == "__main__":
    texts = open(sys.argv[2], encoding="utf-8").read().splitlines()
    workers = int(sys.argv[3])
    model = SentenceTransformer(sys.argv[1], device="cpu")
    if workers == 1:
        model.encode(texts)
    else:
        pool = model.start_multi_process_pool(["cpu"] * workers)
        model.encode(texts, pool=pool)
        model.stop_multi_process_pool(pool)
""",
    "fastembed": """
import sys
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
TextEmbedding.add_custom_model(  # its workers import this file, too
    model="local/model", pooling=PoolingType.DISABLED, normalization=True, sources=ModelSource(hf="local/model"),
    dim=384, model_file="onnx/model.onnx", additional_files=["onnx/model.onnx_data"],
)
if __name__ == "__main__":
    texts = open(sys.argv[2], encoding="utf-8").read().splitlines()
    model = TextEmbedding("local/model", specific_model_path=sys.argv[4], threads=2 // int(sys.argv[3]))
    list(model.embed(texts, batch_size=32, parallel=int(sys.argv[3])))  # of its default, 256, a worker had 8.8 GB
""",
}
"""Package → a program that embeds the lines of a file with so many workers, and keeps the vectors in memory."""
_POLL = 0.02


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="its folder")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the speed")
    parser.add_argument("--texts", type=int, default=20_000, help="texts of a round")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4], help="numbers of workers for the memory")
    parser.add_argument("--no-peers", action="store_true", help="measure firstvec only")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    if options.rounds < 1 or options.texts < 1:
        parser.error("--rounds and --texts must be at least 1")
    if sys.platform != "linux":
        parser.error("this benchmark needs Linux")
    sentences = evaluation_sentences()
    # No two texts are equal, and each is a line.
    texts = [" ".join(f"{row} {sentences[row % len(sentences)]}".split()) for row in range(options.texts)]
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "texts.txt"
        path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
        figures: dict[str, Any] = {"machine": machine(), "texts": options.texts, "rounds": options.rounds}
        for name, artifact in ARTIFACTS.items():
            figures[name] = {
                **time_rounds(options.bundle, artifact, texts, path, options.rounds),
                "PSS": [run_workers(options.bundle, artifact, path, each) for each in options.workers],
            }
        figures["stages"] = measure_stages(options.bundle, texts[: options.texts], options.rounds)
        for package, program in PEERS.items() if not options.no_peers else ():
            if find_spec(package.replace("-", "_")) is None:
                figures[package] = "not installed"
            else:
                figures[package] = [run_peer(program, path, options.bundle, each) for each in options.workers]
    document = json.dumps(figures, indent=1)
    print(document)
    if options.json:
        write(options.json, document + "\n")


def time_rounds(bundle: Path, artifact: str, texts: list[str], path: Path, rounds: int) -> dict[str, Any]:
    """Return the rates of `encode` in memory and of `embed`, and the median of the ratios of a round."""
    loader: Any = OptimizedEmbeddingLoader(str(bundle.resolve()), "background", device="cpu", artifact=artifact)
    provider = loader.get_provider()
    rates: dict[str, list[float]] = {"encode": [], "embed": []}
    busy: dict[str, list[float]] = {"encode": [], "embed": []}

    def encode_all() -> float:
        began = time.perf_counter()
        provider.encode(texts)
        return len(texts) / (time.perf_counter() - began)

    def embed_all() -> float:
        output = path.parent / artifact
        # Several shards, because the next one is read while one is computed.
        options = {"shard_rows": -(-len(texts) // 5), "overwrite": True}
        summary = embed(path, output, model=bundle.resolve(), artifact=artifact, **options)
        assert summary.rows == len(texts)
        return summary.rows_per_second

    for number in range(rounds + 1):
        runs = [("encode", encode_all), ("embed", embed_all)]
        for name, run in runs if number % 2 else reversed(runs):
            began = time.process_time()
            rate = run()
            if number:  # the first round warms both
                rates[name].append(rate)
                busy[name].append(time.process_time() - began)
    ratios = [embedded / encoded for encoded, embedded in zip(rates["encode"], rates["embed"], strict=True)]
    works = [embedded / encoded for encoded, embedded in zip(busy["encode"], busy["embed"], strict=True)]
    return {
        **{f"{name}, texts/s": round(median(values)) for name, values in rates.items()},
        "embed ÷ encode": round(median(ratios), 3),
        "each round": [round(ratio, 3) for ratio in ratios],
        # With the load of the model. Other programs on the machine change it little.
        "processor time, embed ÷ encode": round(median(works), 3),
    }


def measure_stages(bundle: Path, texts: list[str], rounds: int) -> dict[str, Any]:
    """Return what each step takes of one core: microseconds of processor time a text, and bytes of a vector's row.

    Arithmetic about large data sets needs these rates (docs/bulk.md).
    """
    rows = len(texts)
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "texts.parquet"
        pq.write_table(pa.table({"id": range(rows), "text": texts}), path, row_group_size=10_000)
        job = make_job(path, Path(scratch) / "out", id_column="id", shard_rows=10_000)
        (source,) = find_sources(job.inputs, None)
        loaded = {
            name: OptimizedEmbeddingLoader(str(bundle.resolve()), "background", device="cpu", artifact=artifact)
            for name, artifact in ARTIFACTS.items()
        }
        providers = {name: loader.get_provider() for name, loader in loaded.items()}
        tokenizer = providers["INT8"]._tokenizer
        vectors = providers["INT8"].encode(texts, output="buffer")
        schema = schema_of(pa.schema([("id", pa.int64())]), describe(providers["INT8"]), "float32", None, False, "none")
        os.makedirs(job.output)

        def write_all() -> None:
            column = embed_texts(texts, lambda _texts: vectors, schema[-1].type, dedupe=False, skip=False)
            table = pa.table({"id": range(rows)})
            shard = Rows(number=0, source=0, first=0, texts=texts, bad=[], cut=0, table=table, position=0)
            write_shard(job, schema, shard, column)

        steps: dict[str, Callable[[], object]] = {
            "reading": lambda: [*read_shards(job, [source], None, Done())],
            "tokenizing": lambda: tokenizer.tokenize(texts),
            **{f"tokenizing and computing, {name}": partial(each.encode, texts) for name, each in providers.items()},
            "writing": write_all,
        }
        found: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(rounds + 1):
            for name, step in steps.items():
                began = time.process_time()
                step()
                if number:
                    found[name].append(1e6 * (time.process_time() - began) / rows)
        size = os.path.getsize(Path(job.output) / "part-00000.parquet")
        return {
            "µs of one core a text": {name: round(median(values), 2) for name, values in found.items()},
            "bytes of a row": round(size / rows),
            "characters of a text, mean": round(sum(map(len, texts)) / rows),
            "tokens of a text, mean": round(sum(map(len, tokenizer.tokenize(texts))) / rows, 1),
        }


def run_workers(bundle: Path, artifact: str, path: Path, workers: int) -> dict[str, Any]:
    """Run the command with so many workers, and return its time and its peak of memory."""
    command = [sys.executable, "-m", "firstvec", "embed", str(path), "--model", str(bundle.resolve()), "--quiet"]
    command += ["--artifact", artifact, "--workers", str(workers), "--shard-rows", "250", "--overwrite"]
    return watch([*command, "--output", str(path.parent / "watched")], workers)


def run_peer(program: str, path: Path, bundle: Path, workers: int) -> dict[str, Any]:
    """Run a peer with so many workers, and return its time and its peak of memory."""
    script = path.parent / "peer.py"  # the peers' workers import the program again, so the program must be a file
    script.write_text(program, "utf-8")
    arguments = [str(resolve().path), str(path), str(workers), str(bundle.resolve())]
    return watch([sys.executable, str(script), *arguments], workers)


def watch(command: list[str], workers: int) -> dict[str, Any]:
    """Run a command, and return its time and the largest PSS of all its processes together, in MB.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(map(pss, family(process.pid))))
        time.sleep(_POLL)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {"workers": workers, "MB": round(peak, 1), "seconds": round(time.perf_counter() - began, 1)}


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                found += map(int, children.read_text("ascii").split())
            except OSError:  # the thread has ended
                continue
    return found


def pss(pid: int) -> float:
    """Return the proportional set size of a process, in MB. 0: the process has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return 0.0


if __name__ == "__main__":
    main()
