"""Time to first vector: fresh processes measured from outside, from exec to exit, against their peers in the same run.

Every round starts each case once, in the order of the table, so that whatever else the machine does meets all alike;
ratios are taken inside a round, and their median is shown. The page cache, the compiled bytecode and firstvec's record
of verified files are warm, as on the second start of an installed app.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from firstvec.errors import FirstvecError
from firstvec.hardware import ResourceProfile
from firstvec.manifest import Manifest
from firstvec.selection import select
from firstvec_build.source import resolve

TEXT = "how do I reset my password?"
MIN_COSINE = {"fp32": 0.9999, "int8": 0.95}
PACKAGES = ("firstvec", "numpy", "onnxruntime", "tokenizers", "torch", "transformers", "sentence-transformers")
PEER = "sentence-transformers"
FLOOR = "import floor"
COLUMNS = ("median ms", "min", "max", "peak MB", f"× faster than {PEER}", f"÷ {FLOOR}")


@dataclass(frozen=True, slots=True)
class Case:
    """A process to measure. It prints at most one line of JSON: its first vector, or its own figure."""

    name: str
    code: str = ""
    command: tuple[str, ...] = ("{python}", "-c", "{code}")
    vector: str | None = None
    """Precision of the vector that it prints, a key of `MIN_COSINE`; None if it prints none."""
    figure: str | None = None
    """Name of the milliseconds that it measures inside and prints; None if it prints none."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One process from exec to exit: its `Case.figure`, and its vector's cosine to the peer's. MB is 10^6 bytes."""

    ms: float
    peak_mb: float
    figure: float | None = None
    cosine: float | None = None


Combine = Callable[[float, float], float]
Results = dict[str, list[Sample]]
Figures = dict[str, dict[str, float | None]]

NO_ENGINE = """
import sys
assert not (engines := sys.modules.keys() & ("torch", "numpy", "onnxruntime", "tokenizers")), engines
"""
TIMED = """
import time
from firstvec import OptimizedEmbeddingLoader
started = time.perf_counter()
BODY
print(1e3 * (time.perf_counter() - started))
"""
METADATA = """
loader = OptimizedEmbeddingLoader({bundle!r})
assert loader.get_embedding_dim_fast() == loader.get_metadata().embedding_dim
"""
# On the CPU as the peer: what is compared is not an accelerator.
FIRST_VECTOR = """
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader({bundle!r}, "STRATEGY", device="cpu", output="OUTPUT")
loader.start_loading()
provider = loader.get_provider()
print(provider.embed_query({text!r}).tolist())
"""


def first_vector(strategy: str, output: str = "numpy") -> str:
    """The code of a process that loads by a strategy and prints its first vector."""
    return FIRST_VECTOR.replace("STRATEGY", strategy).replace("OUTPUT", output)


SENTENCE_TRANSFORMERS = """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer({source!r}, device="cpu")
print(model.encode({text!r}).tolist())
"""
PLAIN_ONNXRUNTIME = """
import numpy, onnxruntime, tokenizers
encoding = tokenizers.Tokenizer.from_file({tokenizer!r}).encode({text!r})
session = onnxruntime.InferenceSession({int8!r})
feeds = dict(input_ids=numpy.array([encoding.ids]), attention_mask=numpy.array([encoding.attention_mask]))
print(session.run(["sentence_embedding"], feeds)[0][0].tolist())
"""
COMMAND_LINE = ("{firstvec}", "encode", "{text}", "--model", "{bundle}", "-s", "quantized")

CASES = (
    Case("bare interpreter", "pass"),
    Case(FLOOR, "import numpy, onnxruntime, tokenizers"),
    Case("import firstvec", "import firstvec" + NO_ENGINE),
    Case("first loader", TIMED.replace("BODY", "OptimizedEmbeddingLoader()") + NO_ENGINE, figure="constructor_ms"),
    Case("metadata only", TIMED.replace("BODY", METADATA) + NO_ENGINE, figure="metadata_ms"),
    Case("LAZY", first_vector("lazy"), vector="fp32"),
    Case("BACKGROUND", first_vector("background"), vector="fp32"),
    Case("PROGRESSIVE", first_vector("progressive"), vector="fp32"),
    Case("QUANTIZED", first_vector("quantized"), vector="int8"),
    Case("CACHED", first_vector("cached"), vector="fp32"),
    Case("PROGRESSIVE, buffer", first_vector("progressive", "buffer"), vector="fp32"),
    Case("QUANTIZED, buffer", first_vector("quantized", "buffer"), vector="int8"),
    Case("CACHED, buffer", first_vector("cached", "buffer"), vector="fp32"),
    Case(PEER, SENTENCE_TRANSFORMERS, vector="fp32"),
    Case("plain onnxruntime", PLAIN_ONNXRUNTIME, vector="int8"),
    Case("firstvec encode", command=COMMAND_LINE, vector="int8"),
)

# exec hands the peak memory of the process that forked on to the new program (Linux, fs/exec.c: exec_mmap), so a bare
# interpreter starts each case, not this one with all its modules.
LAUNCHER = """
import os, sys, time
started = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
milliseconds = 1e3 * (time.perf_counter() - started)
print(os.waitstatus_to_exitcode(status), milliseconds, usage.ru_maxrss)
"""
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage(2)


def main() -> None:
    """Run the benchmark and print its table."""
    options = parse()
    try:
        inputs = prepare(options.bundle)
    except FirstvecError as error:
        sys.exit(f"error: {error} (`make artifacts` builds the default bundle)")
    facts = describe(options.rounds)
    with tempfile.TemporaryDirectory(prefix="firstvec-bench-") as cache:
        cases = [case for case in CASES if not options.only or case.name in options.only]
        results = run_rounds(cases, options.rounds, inputs, environment(inputs, cache))
    figures = {case.name: summarise(case, results) for case in cases}
    derived = derive(figures, results)
    rows = [["case", *COLUMNS]]
    for name, values in figures.items():
        rows.append([name, *("–" if (value := values[heading]) is None else f"{value:.2f}" for heading in COLUMNS)])
    print(as_text(rows, derived))
    if options.json:
        document = {"run": facts, "inputs": inputs, "derived": derived, "figures": figures, "samples": results}
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False, default=asdict) + "\n", "utf-8")
    if options.markdown:
        options.markdown.write_text(as_markdown(rows, derived, facts), "utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/all-MiniLM-L6-v2"), help="its folder")
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds; one more warms up (default 9)")
    names = [case.name for case in CASES]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"of: {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample, and the machine")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table, and the machine")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def prepare(bundle: Path) -> dict[str, str]:
    """Return what the cases' code and commands are formatted with; fetch the pinned source if need be."""
    manifest = Manifest.read(bundle := bundle.resolve())
    artifact = select(manifest, ResourceProfile.detect(), "quantized", device="cpu").artifact
    return {
        "python": sys.executable,
        "firstvec": str(Path(sys.executable).with_name("firstvec")),
        "text": TEXT,
        "bundle": str(bundle),
        "tokenizer": str(bundle / manifest.tokenizer.path),
        "source": str(resolve(manifest.model.name).path),
        "int8": str(bundle / artifact.files[0].path),
    }


def environment(inputs: dict[str, str], cache: str) -> dict[str, str]:
    """Return the environment of every case: offline, with compiled bytecode, and a cache that the rounds share."""
    # PYTHONOPTIMIZE would skip the assertions of the cases.
    unset = ("PYTHONDONTWRITEBYTECODE", "PYTHONOPTIMIZE", "TOKENIZERS_PARALLELISM")
    ours = {"FIRSTVEC_ARTIFACTS": os.path.dirname(inputs["bundle"]), "FIRSTVEC_CACHE": cache}
    quiet = {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    return {name: value for name, value in os.environ.items() if name not in unset} | ours | quiet


def run_rounds(cases: Sequence[Case], rounds: int, inputs: dict[str, str], environ: dict[str, str]) -> Results:
    """Measure every case once a round; the first round warms up and does not count."""
    reference: list[float] = launch(next(case for case in CASES if case.name == PEER), inputs, environ)[2]
    measured: list[list[Sample]] = []
    for number in range(rounds + 1):
        measured.append([measure(case, inputs, environ, reference) for case in cases])
        label = f"round {number}/{rounds}" if number else "warm-up"
        seconds = sum(sample.ms for sample in measured[-1]) / 1e3
        print(f"{label}: {len(cases)} processes in {seconds:.1f} s", file=sys.stderr)
    return {case.name: samples for case, *samples in zip(cases, *measured[1:], strict=True)}


def measure(case: Case, inputs: dict[str, str], environ: dict[str, str], reference: Sequence[float]) -> Sample:
    """Run one case and check the vector that it prints."""
    ms, peak_mb, printed = launch(case, inputs, environ)
    if not case.vector:
        return Sample(ms, peak_mb, figure=printed)
    vector = printed["vectors"][0] if isinstance(printed, dict) else printed
    cosine = sum(map(operator.mul, vector, reference)) / math.hypot(*vector) / math.hypot(*reference)
    if len(vector) != len(reference) or not cosine >= MIN_COSINE[case.vector]:  # NaN fails too
        sys.exit(f"error: {case.name}: wrong vector of {len(vector)} components: cosine {cosine:.6f} to {PEER}")
    return Sample(ms, peak_mb, cosine=cosine)


def launch(case: Case, inputs: dict[str, str], environ: dict[str, str]) -> tuple[float, float, Any]:
    """Run one case; return its milliseconds, its peak memory in 10^6 bytes, and what it printed."""
    code = case.code.format(**inputs)
    command = [sys.executable, "-I", "-S", "-c", LAUNCHER, *(part.format(code=code, **inputs) for part in case.command)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    *printed, measured = done.stdout.splitlines() or [""]
    if done.returncode or not measured.startswith("0 ") or bool(printed) != bool(case.vector or case.figure):
        sys.exit(f"error: {case.name} failed:\n{done.stdout}{done.stderr}")
    _, ms, peak = measured.split()
    return float(ms), int(peak) * MAXRSS_UNIT / 1e6, json.loads(printed[-1]) if printed else None


def paired(a: str, b: str, results: Results, combine: Combine = operator.truediv) -> float | None:
    """Return the median over the rounds of ``combine(a, b)`` of two cases' milliseconds; None if one was not run."""
    if a not in results or b not in results:
        return None
    return median(combine(x.ms, y.ms) for x, y in zip(results[a], results[b], strict=True))


def summarise(case: Case, results: Results) -> dict[str, float | None]:
    """Return a case's figures: those of `COLUMNS`, and its own one."""
    ms = [sample.ms for sample in results[case.name]]
    peak_mb = median(sample.peak_mb for sample in results[case.name])
    ratios = (paired(PEER, case.name, results), paired(case.name, FLOOR, results))
    figures = dict(zip(COLUMNS, (median(ms), min(ms), max(ms), peak_mb, *ratios), strict=True))
    own = [sample.figure for sample in results[case.name] if sample.figure is not None]
    return figures | ({case.figure: median(own)} if case.figure else {})


def derive(figures: Figures, results: Results) -> dict[str, float]:
    """Return the figures that sum up the run, of those whose cases were run."""
    derived = {
        "import firstvec - bare interpreter, ms": paired("import firstvec", "bare interpreter", results, operator.sub),
        "constructor_ms, inside": figures.get("first loader", {}).get("constructor_ms"),
        "metadata_ms, inside": figures.get("metadata only", {}).get("metadata_ms"),
        f"QUANTIZED, × faster than {PEER}": paired(PEER, "QUANTIZED", results),
        "QUANTIZED, peak MB": figures.get("QUANTIZED", {}).get("peak MB"),
        f"QUANTIZED ÷ {FLOOR}": paired("QUANTIZED", FLOOR, results),
        f"QUANTIZED, buffer, × faster than {PEER}": paired(PEER, "QUANTIZED, buffer", results),
        "QUANTIZED, buffer, peak MB": figures.get("QUANTIZED, buffer", {}).get("peak MB"),
        f"QUANTIZED, buffer ÷ {FLOOR}": paired("QUANTIZED, buffer", FLOOR, results),
        "CACHED, buffer ÷ QUANTIZED, buffer": paired("CACHED, buffer", "QUANTIZED, buffer", results),
        "CACHED ÷ QUANTIZED": paired("CACHED", "QUANTIZED", results),
    }
    return {name: value for name, value in derived.items() if value is not None}


def as_text(rows: Sequence[Sequence[str]], derived: dict[str, float]) -> str:
    """Return the table with aligned columns, then the derived figures."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([*lines, "", *(f"{name}: {value:.2f}" for name, value in derived.items())])


def as_markdown(rows: Sequence[Sequence[str]], derived: dict[str, float], facts: dict[str, Any]) -> str:
    """Return the table, the derived figures, and what was run where."""
    heading, *body = ("| " + " | ".join(row) + " |" for row in rows)
    lines = [heading, "|---" + "|---:" * len(COLUMNS) + "|", *body, ""]
    lines += [*(f"- {name}: {value:.2f}" for name, value in derived.items()), ""]
    return "\n".join([*lines, *(f"- {name}: {fact}" for name, fact in facts.items()), ""])


def describe(rounds: int) -> dict[str, Any]:
    """Return what the figures depend on: machine, versions, and what else runs as the benchmark begins."""
    cpuinfo = Path("/proc/cpuinfo").read_text("utf-8") if sys.platform == "linux" else ""
    profile = ResourceProfile.detect()
    return {
        "rounds": rounds,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": "".join(re.findall(r"model name\s*: (.+)", cpuinfo)[:1]) or platform.processor(),
        "cores": profile.cpu_count,
        "flags": ", ".join(profile.isa),
        "memory_mb": psutil.virtual_memory().total // 10**6,
        "load_average": psutil.getloadavg()[0],
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


if __name__ == "__main__":
    main()
