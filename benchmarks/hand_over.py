"""Compare PROGRESSIVE after its hand-over with BACKGROUND, in speed and memory.

Both run the ONNX artifact in onnxruntime, the engine that has two kinds of session. BACKGROUND has a throughput session
from the start. Both providers live in one process, and take turns on the same texts. A ratio compares two times of the
same round. Memory is measured in fresh processes, on Linux.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from firstvec import EmbeddingProvider, OptimizedEmbeddingLoader
from firstvec_build.quality import evaluation_sentences

MEMORY = """
import sys, time
from firstvec import OptimizedEmbeddingLoader
from firstvec_build.quality import evaluation_sentences
loader = OptimizedEmbeddingLoader(sys.argv[1], sys.argv[2], device="cpu", artifact="onnx-fp32")
loader.start_loading()
provider = loader.get_provider()
provider.embed_query("a text")
while provider.session_kind != sys.argv[3]:
    time.sleep(0.01)
provider.encode(evaluation_sentences()[:32])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS:")))
"""


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/all-MiniLM-L6-v2"), help="its folder")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each provider, after one that warms up")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    handed_over, throughput = load(options.bundle, "progressive"), load(options.bundle, "background")
    handed_over.embed_query("a text")
    while handed_over.session_kind != "throughput":
        time.sleep(0.01)
    texts = evaluation_sentences()
    rounds = [(seconds(handed_over, texts), seconds(throughput, texts)) for _ in range(options.rounds + 1)][1:]
    figures: dict[str, float] = {
        "texts per second, PROGRESSIVE after the hand-over": len(texts) / statistics.median(ours for ours, _ in rounds),
        "texts per second, BACKGROUND": len(texts) / statistics.median(theirs for _, theirs in rounds),
        "ratio": statistics.median(theirs / ours for ours, theirs in rounds),
    }
    if sys.platform == "linux":
        for name, strategy, kind in (
            ("resident MB, PROGRESSIVE after the hand-over", "progressive", "throughput"),
            ("resident MB, BACKGROUND", "background", "throughput"),
            ("resident MB, quick-start session alone (CACHED)", "cached", "quick-start"),
        ):
            command = [sys.executable, "-c", MEMORY, str(options.bundle), strategy, kind]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures[name] = int(done.stdout) * 1024 / 1e6
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=1))


def load(bundle: Path, strategy: str) -> EmbeddingProvider:
    """Load the ONNX artifact of the bundle by a strategy and return the provider."""
    loader = OptimizedEmbeddingLoader(str(bundle.resolve()), strategy, device="cpu", artifact="onnx-fp32")
    loader.start_loading()
    return loader.get_provider()


def seconds(provider: EmbeddingProvider, texts: list[str]) -> float:
    """Return how long a provider takes for the texts."""
    started = time.perf_counter()
    provider.encode(texts)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
