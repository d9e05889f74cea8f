"""Measure an actor of Ray that embeds: from its creation to its first batch, its memory, and two actors beside one.

The subjects run in turn in one cluster on this machine: `firstvec.ray.Embedder` with INT8 and with fp32, an actor that
holds a `SentenceTransformer`, and an empty actor, which shows what Ray's own process takes. Each actor is a process.
The memory is the proportional set size (PSS) of the actor's process after its first batch.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import ray
import ray.util
from bulk import pss
from fresh import BUNDLE
from record import machine, write

from firstvec.ray import Embedder
from firstvec_build.quality import evaluation_sentences
from firstvec_build.source import resolve

PEER = "sentence-transformers"
BATCH = 64


class Firstvec:
    """An actor with one artifact."""

    def __init__(self, bundle: str, artifact: str) -> None:
        self._embedder = Embedder(bundle, artifact=artifact)

    def run(self, table: pa.Table) -> float:
        """Embed a batch, and return the memory of this process in MB."""
        assert self._embedder(table).num_rows == table.num_rows
        return pss(os.getpid())


class SentenceTransformers:
    """An actor with the model of sentence-transformers."""

    def __init__(self, model: str, _artifact: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(1)  # as many as the actor has processors
        self._model = SentenceTransformer(model, device="cpu")

    def run(self, table: pa.Table) -> float:
        """Embed a batch, and return the memory of this process in MB."""
        assert len(self._model.encode(table["text"].to_pylist())) == table.num_rows
        return pss(os.getpid())


class Empty:
    """An actor that computes nothing."""

    def __init__(self, _model: str, _artifact: str) -> None:
        pass

    def run(self, table: pa.Table) -> float:
        """Return the memory of this process in MB."""
        assert table.num_rows
        return pss(os.getpid())


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="its folder")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, after one that warms up")
    parser.add_argument("--texts", type=int, default=20_000, help="texts of a run with one and with two actors")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    if options.rounds < 1 or options.texts < 1:
        parser.error("--rounds and --texts must be at least 1")
    warnings.simplefilter("ignore")  # of Ray
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    bundle, model = str(options.bundle.resolve()), str(resolve().path)
    subjects: dict[str, tuple[type[Any], str, str]] = {
        "firstvec INT8": (Firstvec, bundle, "native-int8"),
        "firstvec fp32": (Firstvec, bundle, "native-fp32"),
        PEER: (SentenceTransformers, model, ""),
        "an empty actor": (Empty, "", ""),
    }
    sentences = evaluation_sentences()
    batch = pa.table({"text": sentences[:BATCH]})
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    for number in range(options.rounds + 1):
        for name, (kind, *arguments) in subjects.items():
            result = time_actor(kind, arguments, batch)
            if number:
                found[name].append(result)
    ready = {name: round(median(seconds for seconds, _ in results), 3) for name, results in found.items()}
    memory = {name: round(median(megabytes for _, megabytes in results), 1) for name, results in found.items()}
    ratios = {
        name: round(median(one[0] / peer[0] for one, peer in zip(found[name], found[PEER], strict=True)), 4)
        for name in subjects
    }
    texts = [f"{row} {sentences[row % len(sentences)]}" for row in range(options.texts)]
    figures = {
        "machine": machine(),
        "rounds": options.rounds,
        "seconds from the creation to the first batch": ready,
        f"÷ {PEER}": ratios,
        "PSS, MB": memory,
        f"PSS ÷ {PEER}": {name: round(value / memory[PEER], 3) for name, value in memory.items()},
        "two actors ÷ one, texts/s": {
            artifact: measure_scaling(bundle, artifact, texts, options.rounds)
            for artifact in ("native-int8", "native-fp32")
        },
    }
    ray.shutdown()
    document = json.dumps(figures, indent=1, ensure_ascii=False)
    print(document)
    if options.json:
        write(options.json, document + "\n")


def time_actor(kind: type[Any], arguments: list[str], batch: pa.Table) -> tuple[float, float]:
    """Return the seconds from an actor's creation to its first batch, and the memory of its process."""
    began = time.perf_counter()
    actor = ray.remote(kind).options(num_cpus=1).remote(*arguments)
    megabytes = ray.get(actor.run.remote(batch))
    seconds = time.perf_counter() - began
    ray.kill(actor)
    time.sleep(1.0)  # Ray starts a process for the next actor meanwhile
    return seconds, megabytes


def measure_scaling(bundle: str, artifact: str, texts: list[str], rounds: int) -> dict[str, Any]:
    """Return texts a second of one and of two actors, without their start, and the median ratio of a round."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    tables = [pa.table({"text": texts[start : start + 100]}) for start in range(0, len(texts), 100)]
    for number in range(rounds + 1):
        for count in rates:
            actors = [ray.remote(Firstvec).options(num_cpus=1).remote(bundle, artifact) for _ in range(count)]
            ray.get([actor.run.remote(tables[0].slice(0, 1)) for actor in actors])
            began = time.perf_counter()
            pool = ray.util.ActorPool(actors)
            list(pool.map_unordered(lambda actor, table: actor.run.remote(table), tables))
            if number:
                rates[count].append(len(texts) / (time.perf_counter() - began))
            for actor in actors:
                ray.kill(actor)
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    return {"one": round(median(rates[1])), "two": round(median(rates[2])), "two ÷ one": round(median(ratios), 2)}


if __name__ == "__main__":
    main()
