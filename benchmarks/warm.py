"""Measure what the native engine promises of a warm provider: one text, more threads, many texts, and Ctrl-C.

Everything runs in this process, one case after the other. Scaling is a ratio of two times of the same round. Linux
only, because the processor affinity sets the number of threads, and /proc shows the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from fresh import BUNDLE
from programs import TEXT
from record import machine, write

from firstvec import EmbeddingProvider, OptimizedEmbeddingLoader
from firstvec_build.quality import evaluation_sentences

ARTIFACTS = {"INT8": "native-int8", "fp32": "native-fp32"}
CALLS = 3_000
"""Calls with one text."""
IN_A_CALL = 10_000
"""Texts of one call, where many texts are encoded."""
INTERRUPTIONS = 15
BATCH = 32


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="its folder")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each number of threads")
    parser.add_argument("--texts", type=int, default=1_000_000, help="texts over which the memory is watched")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    if options.rounds < 1 or options.texts < 1:
        parser.error("--rounds and --texts must be at least 1")
    if sys.platform != "linux":
        parser.error("this benchmark needs Linux")
    texts = sorted(evaluation_sentences(), key=len) * 2
    figures: dict[str, Any] = {}
    for name, artifact in ARTIFACTS.items():
        figures[name] = {
            **time_one_text(load(options.bundle, artifact)),
            **time_threads(options.bundle, artifact, texts, options.rounds),
            "Ctrl-C, longest wait, ms": time_ctrl_c(load(options.bundle, artifact), texts * 10),
        }
    figures["INT8"] |= watch_memory(load(options.bundle, ARTIFACTS["INT8"]), options.texts)
    document = json.dumps({"machine": machine(), **figures}, indent=1)
    print(document)
    if options.json:
        write(options.json, document + "\n")


def load(bundle: Path, artifact: str) -> EmbeddingProvider[Any, Any]:
    """Load an artifact of the bundle, and return the provider."""
    loader = OptimizedEmbeddingLoader(
        str(bundle.resolve()), "background", device="cpu", output="buffer", artifact=artifact
    )
    loader.start_loading()
    return loader.get_provider()


def time_one_text(provider: EmbeddingProvider[Any, Any]) -> dict[str, float]:
    """Return how long calls with one text of 9 tokens take."""
    seconds = [_time_one(provider) for _ in range(CALLS)]
    return {"one text, median, ms": _ms(median(seconds)), "one text, p99, ms": _ms(quantiles(seconds, n=100)[98])}


def _time_one(provider: EmbeddingProvider[Any, Any]) -> float:
    began = time.perf_counter()
    provider.embed_query(TEXT)
    return time.perf_counter() - began


def time_threads(bundle: Path, artifact: str, texts: Sequence[str], rounds: int) -> dict[str, float]:
    """Return how many times as many texts two cores encode as one core does."""
    usable = os.sched_getaffinity(0)
    if len(usable) < 2:
        return {}
    found: dict[int, EmbeddingProvider[Any, Any]] = {}
    ratios: list[float] = []
    try:
        for _ in range(rounds + 1):
            seconds = {}
            for cores in (1, 2):
                os.sched_setaffinity(0, sorted(usable)[:cores])
                # A provider keeps the number of cores of its load.
                provider = found.setdefault(cores, load(bundle, artifact))
                began = time.perf_counter()
                provider.encode(texts, batch_size=BATCH)
                seconds[cores] = time.perf_counter() - began
            ratios.append(seconds[1] / seconds[2])
    finally:
        os.sched_setaffinity(0, usable)
    return {"two threads ÷ one": round(median(ratios[1:]), 2)}


def time_ctrl_c(provider: EmbeddingProvider[Any, Any], texts: Sequence[str]) -> float:
    """Return the longest time from Ctrl-C to the end of a call with many texts.

    Raises:
        SystemExit: a call ended before its signal.
    """
    # A shell lets the jobs that it starts in the background ignore SIGINT, and all their children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    longest = 0.0
    for number in range(INTERRUPTIONS):
        sent: list[float] = []

        def interrupt(after: float, sent: list[float]) -> None:
            time.sleep(after)
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt, args=(0.2 + 0.013 * number, sent))
        thread.start()
        try:
            while not sent:
                provider.encode(texts, batch_size=BATCH)
            time.sleep(1.0)
            raise SystemExit("Ctrl-C raised no KeyboardInterrupt")
        except KeyboardInterrupt:
            longest = max(longest, time.perf_counter() - sent[0])
        thread.join()
    return _ms(longest)


def watch_memory(provider: EmbeddingProvider[Any, Any], texts: int) -> dict[str, list[float]]:
    """Return the resident megabytes after a tenth of the texts, two tenths, and so on."""
    short = [f"text number {number}" for number in range(min(IN_A_CALL, texts))]
    done = 0
    found: list[float] = []
    while len(found) < 10:
        provider.encode(short, batch_size=BATCH)
        done += len(short)
        if done >= texts * (len(found) + 1) / 10:
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
            found.append(round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1))
    return {f"resident MB after each tenth of {texts} texts": found}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


if __name__ == "__main__":
    main()
