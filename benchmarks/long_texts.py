"""Measure texts of 512, 2,048 and 8,192 tokens: time and peak memory, beside sentence-transformers.

The model is a random BERT with all-MiniLM-L6-v2's layers and 8,192 positions. Each program is a fresh process, encodes
one text to warm up, and then all texts in one call. The programs run in turn. The table has the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import fresh
from record import machine, markdown_list, markdown_table, write

sys.path.append(str(Path(__file__).parents[1]))  # for the models of the tests

LENGTHS = {512: 32, 2048: 8, 8192: 4}
"""Tokens of a text → texts of one call."""
SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
FIRSTVEC = """
import sys
from firstvec import OptimizedEmbeddingLoader
encode = OptimizedEmbeddingLoader(sys.argv[1], "background", "cpu", artifact=sys.argv[2]).get_provider().encode
"""
SENTENCE_TRANSFORMERS = """
import sys
from sentence_transformers import SentenceTransformer
encode = SentenceTransformer(sys.argv[1], device="cpu").encode
"""
MEASURE = """
import time
texts = ["a " * (int(sys.argv[3]) - 2)] * int(sys.argv[4])
encode(texts[:1])
began = time.perf_counter()
encode(texts)
seconds = time.perf_counter() - began
with open("/proc/self/status") as lines:
    print(seconds, next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
"""
PEER = "sentence-transformers"


def main() -> None:
    """Print the table, and write the file that the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--tokens", type=int, action="append", choices=list(LENGTHS), help="only texts of this length")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table, and the machine")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    with tempfile.TemporaryDirectory(prefix="firstvec-long-") as folder:
        programs = make_programs(Path(folder))
        rows = [["tokens", "texts", "program", "seconds", f"speed ÷ {PEER}", "peak MB"]]
        for tokens in options.tokens or LENGTHS:
            rows += measure(programs, tokens, LENGTHS[tokens], options.rounds)
    table = markdown_table(rows)
    print(table)
    if options.markdown:
        write(options.markdown, f"{table}\n{markdown_list({'rounds': options.rounds, **machine()})}")


def make_programs(folder: Path) -> dict[str, list[str]]:
    """Save and build the model, and return name → command."""
    from tests import tiny

    from firstvec_build.pipeline import build
    from firstvec_build.quality import Thresholds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tiny.save_long_bert(folder / "model", **SHAPE)
        artifacts = ["onnx-fp32", "native-fp32"]
        # The differences between two ways of adding grow fast in a wide random model. Only speed is measured here.
        loose = Thresholds(fp32_max_abs_diff=1.0)
        bundle = build(str(model), folder / "bundles", only=artifacts, thresholds=loose).manifest.root
    start = [sys.executable, "-c"]
    programs = {f"firstvec, {name}": [*start, FIRSTVEC + MEASURE, str(bundle), name] for name in reversed(artifacts)}
    return {**programs, PEER: [*start, SENTENCE_TRANSFORMERS + MEASURE, str(model), ""]}


def measure(programs: dict[str, list[str]], tokens: int, texts: int, rounds: int) -> Sequence[list[str]]:
    """Return the table's rows for texts of one length."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, command in programs.items():
            seconds, kilobytes = fresh.measure([*command, str(tokens), str(texts)]).output.split()
            found[name].append((float(seconds), float(kilobytes) / 1024))
    rows = []
    for name, samples in found.items():
        ratio = statistics.median(peer[0] / ours[0] for ours, peer in zip(samples, found[PEER], strict=True))
        seconds, megabytes = (statistics.median(column) for column in zip(*samples, strict=True))
        rows.append([f"{tokens:,}", str(texts), name, f"{seconds:.1f}", f"{ratio:.2f}", f"{megabytes:.0f}"])
    return rows


if __name__ == "__main__":
    main()
