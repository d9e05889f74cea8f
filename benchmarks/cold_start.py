"""Measure the time to the first vector, in fresh processes from exec to exit, for firstvec and its peers.

Every round starts each program once, in the order of the table, so other load of the machine affects all programs
alike. A ratio compares two times of the same round, and the tables show the median of the rounds' ratios. The page
cache, the compiled bytecode and firstvec's record of verified files are warm, as at the second start of an installed
app. With --cold the page cache is dropped before each process.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import operator
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from programs import FLOOR, PEER, PICTURED, PICTURES, PROGRAMS, TEXT, Program
from record import DASH, Stage, machine, markdown_list, markdown_table, markdown_timeline, write

from firstvec.bundle.manifest import Manifest
from firstvec.errors import FirstvecError
from firstvec.machine.profile import ResourceProfile
from firstvec.options import make_options
from firstvec.selection import select
from firstvec_build.source import resolve

MIN_COSINE = {"fp32": 0.9999, "int8": 0.95}
COLUMNS = ("median ms", "min", "max", "peak MB", f"× faster than {PEER}", f"÷ {FLOOR}")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True, slots=True)
class Sample:
    """One process from exec to exit, and the figures that the process measured itself. MB is 10^6 bytes."""

    ms: float
    peak_mb: float
    cosine: float | None = None
    """Cosine of the process's vector to the peer's vector."""
    figures: dict[str, float] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)


Combine = Callable[[float, float], float]
Results = dict[str, list[Sample]]
Figures = dict[str, dict[str, float | None]]

# On Linux a program inherits the peak memory of the process that forked (fs/exec.c, exec_mmap). This process has many
# modules in memory, so a bare interpreter starts each program.
LAUNCHER = """
import os, sys, time
if sys.argv[1] == "cold":
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as stream:
        stream.write("1")
started = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ), 0)
milliseconds = 1e3 * (time.perf_counter() - started)
print(os.waitstatus_to_exitcode(status), started, milliseconds, usage.ru_maxrss)
"""
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage(2)


def main() -> None:
    """Run the benchmark, print its table, and write the files that the options name."""
    options = parse()
    cache_state = "dropped before each process" if options.cold else "warm"
    facts = {"rounds": options.rounds, "page cache": cache_state, **machine()}
    with tempfile.TemporaryDirectory(prefix="firstvec-bench-") as cache:
        try:
            inputs = prepare(options.bundle, cache)
        except FirstvecError as error:
            sys.exit(f"error: {error} (`make artifacts` builds the default bundle)")
        bundle = Path(inputs["bundle"])
        facts["bundle"] = bundle.name
        artifacts = {precision: str(Path(inputs[precision]).relative_to(bundle)) for precision in MIN_COSINE}
        programs = [each for each in PROGRAMS if each.installed and (not options.only or each.name in options.only)]
        environ = environment(inputs, cache)
        results = run_rounds(programs, options.rounds, inputs, environ, cold=options.cold)
        pictured = run_pictured(programs, inputs, environ, cold=options.cold)
    figures = {each.name: summarize(each.name, results) for each in programs}
    derived = derive(results)
    rows = [["program", *COLUMNS]]
    for name, values in figures.items():
        rows.append([name, *(DASH if (value := values[heading]) is None else f"{value:.2f}" for heading in COLUMNS)])
    print(as_text(rows, derived))
    if options.json:
        document = {
            "run": facts, "artifacts": artifacts, "derived": derived, "figures": figures, "samples": results,
            "pictured": pictured,
        }  # fmt: skip
        write(options.json, json.dumps(document, ensure_ascii=False, default=asdict) + "\n")
    if options.markdown:
        write(options.markdown, as_markdown(rows, derived, facts, pictured))


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/all-MiniLM-L6-v2"), help="its folder")
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds; one more warms up (default 15)")
    names = [each.name for each in PROGRAMS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"of: {'; '.join(names)}")
    parser.add_argument("--cold", action="store_true", help="drop the page cache before each process (Linux, root)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample, and the machine")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables, the timeline, and the machine")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.cold and not os.access(DROP_CACHES, os.W_OK):
        parser.error(f"--cold needs to write {DROP_CACHES}: Linux, as root")
    return options


def prepare(bundle: Path, cache: str) -> dict[str, str]:
    """Return the values that fill in the programs' code. Fetch the pinned source if need be."""
    manifest = Manifest.read(bundle := bundle.resolve())
    choice = select(manifest, ResourceProfile.detect(), make_options(str(bundle), "quantized", "cpu"))
    artifact = next(each for each in choice.candidates if each.engine == "onnxruntime")
    return {
        "python": sys.executable,
        "firstvec": str(Path(sys.executable).with_name("firstvec")),
        "text": TEXT,
        "bundle": str(bundle),
        "cache": cache,
        "tokenizer": str(bundle / manifest.tokenizer.path),
        "source": str(resolve(manifest.model.name).path),
        "int8": str(bundle / artifact.files[0].path),
        "onnx_int8": artifact.id,
        "onnx_fp32": "onnx-fp32",
        "fp32": str(bundle / "onnx/model.onnx"),
    }


def environment(inputs: dict[str, str], cache: str) -> dict[str, str]:
    """Return the environment of every program: offline, with compiled bytecode, and a cache that all rounds share."""
    # PYTHONOPTIMIZE would skip the assertions of the programs.
    unset = ("PYTHONDONTWRITEBYTECODE", "PYTHONOPTIMIZE", "TOKENIZERS_PARALLELISM")
    ours = {"FIRSTVEC_ARTIFACTS": os.path.dirname(inputs["bundle"]), "FIRSTVEC_CACHE": cache}
    quiet = {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    return {name: value for name, value in os.environ.items() if name not in unset} | ours | quiet


def run_rounds(
    programs: Sequence[Program], rounds: int, inputs: dict[str, str], environ: dict[str, str], *, cold: bool
) -> Results:
    """Measure every program once a round. The first round warms up and does not count."""
    peer = next(each for each in PROGRAMS if each.name == PEER)
    reference: list[float] = launch(peer, inputs, environ, cold=False)[1]
    measured: list[list[Sample]] = []
    for number in range(rounds + 1):
        measured.append([measure(each, inputs, environ, reference, cold=cold and number > 0) for each in programs])
        label = f"round {number}/{rounds}" if number else "warm-up"
        seconds = sum(sample.ms for sample in measured[-1]) / 1e3
        print(f"{label}: {len(programs)} processes in {seconds:.1f} s", file=sys.stderr)
    return {each.name: samples for each, *samples in zip(programs, *measured[1:], strict=True)}


def run_pictured(
    programs: Sequence[Program], inputs: dict[str, str], environ: dict[str, str], *, cold: bool
) -> Results:
    """Run the programs of `PICTURED` again, and let them report their stages, which takes them a millisecond more."""
    environ = environ | {"BENCHMARK_STAGES": "1"}
    return {
        each.name: [launch(each, inputs, environ, cold=cold)[0] for _ in range(PICTURES)]
        for each in programs
        if each.name in PICTURED
    }


def measure(
    program: Program, inputs: dict[str, str], environ: dict[str, str], reference: Sequence[float], *, cold: bool
) -> Sample:
    """Run one program and check the vector that it prints."""
    sample, vector = launch(program, inputs, environ, cold=cold)
    if not program.vector:
        return sample
    cosine = sum(map(operator.mul, vector, reference)) / math.hypot(*vector) / math.hypot(*reference)
    if len(vector) != len(reference) or not cosine >= MIN_COSINE[program.vector]:  # NaN fails too
        sys.exit(f"error: {program.name}: wrong vector of {len(vector)} components: cosine {cosine:.6f} to {PEER}")
    return replace(sample, cosine=cosine)


def launch(
    program: Program, inputs: dict[str, str], environ: dict[str, str], *, cold: bool
) -> tuple[Sample, list[float]]:
    """Run one program. Return the sample, and the vector that the program printed."""
    code = program.code.format(**inputs)
    parts = (part.format(code=code, **inputs) for part in program.command)
    command = [sys.executable, "-I", "-S", "-c", LAUNCHER, "cold" if cold else "warm", *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    *printed, measured = done.stdout.splitlines() or [""]
    if done.returncode or not measured.startswith("0 ") or (program.vector and not printed):
        sys.exit(f"error: {program.name} failed:\n{done.stdout}{done.stderr}")
    _, started, ms, peak = map(float, measured.split())
    sample = Sample(ms, peak * MAXRSS_UNIT / 1e6)
    if not printed:
        return sample, []
    if printed[-1].startswith("{"):
        return sample, json.loads(printed[-1])["vectors"][0]
    vector, stages, figures = ast.literal_eval(printed[-1])
    spans = [(name, 1e3 * (begin - started), 1e3 * (end - started)) for name, begin, end in stages]
    if spans:
        spans = [("interpreter", 0.0, min(begin for _, begin, _ in spans)), *spans]
        spans.append(("print, exit", max(end for _, _, end in spans), ms))
    return replace(sample, figures=figures, stages=spans), vector or []


def paired(a: str, b: str, results: Results, combine: Combine = operator.truediv) -> float | None:
    """Return the median over the rounds of ``combine(a, b)`` of two programs' milliseconds. None: one was not run."""
    if a not in results or b not in results:
        return None
    return median(combine(x.ms, y.ms) for x, y in zip(results[a], results[b], strict=True))


def summarize(name: str, results: Results) -> dict[str, float | None]:
    """Return a program's figures: those of `COLUMNS`."""
    ms = [sample.ms for sample in results[name]]
    peak_mb = median(sample.peak_mb for sample in results[name])
    ratios = (paired(PEER, name, results), paired(name, FLOOR, results))
    return dict(zip(COLUMNS, (median(ms), min(ms), max(ms), peak_mb, *ratios), strict=True))


def derive(results: Results) -> dict[str, float]:
    """Return the figures that sum up the run. A figure is left out if its programs were not run."""
    derived: dict[str, float | None] = {
        "import firstvec - bare interpreter, ms": paired("import firstvec", "bare interpreter", results, operator.sub),
        "first constructor, ms": inside("first loader", "constructor, ms", results),
        "start_loading(), ms": inside("QUANTIZED, buffer", "start_loading, ms", results),
        "dimension and metadata, ms": inside("metadata only", "metadata, ms", results),
    }
    for output in ("buffer", "list", "numpy"):
        name = f"QUANTIZED, {output}"
        derived[f"{name} ÷ {FLOOR}"] = paired(name, FLOOR, results)
        derived[f"{name} - bare interpreter, ms"] = paired(name, "bare interpreter", results, operator.sub)
        derived[f"{name}, × faster than {PEER}"] = paired(PEER, name, results)
        derived[f"{name}, peak MB"] = median(sample.peak_mb for sample in results[name]) if name in results else None
        derived[f"CACHED, {output} ÷ {name}"] = paired(f"CACHED, {output}", name, results)
    for strategy in ("QUANTIZED", "LAZY"):
        name = f"{strategy}, numpy"
        derived[f"{name} - import numpy, ms"] = paired(name, "import numpy", results, operator.sub)
    for strategy in ("LAZY", "BACKGROUND", "PROGRESSIVE", "CACHED"):
        name = f"{strategy}, buffer"
        derived[f"{name} ÷ {FLOOR}"] = paired(name, FLOOR, results)
        derived[f"{name}, peak MB"] = median(sample.peak_mb for sample in results[name]) if name in results else None
    derived["firstvec encode ÷ QUANTIZED, list"] = paired("firstvec encode", "QUANTIZED, list", results)
    for place in ("after", "beside"):
        name = f"BACKGROUND {place} an app's imports"
        derived[f"{name}: waited for the vector, ms"] = inside(name, "waited for the vector, ms", results)
        derived[f"{name} - the imports alone, ms"] = paired(name, "an app's imports", results, operator.sub)
    return {name: value for name, value in derived.items() if value is not None}


def inside(name: str, figure: str, results: Results) -> float | None:
    """Return the median of a figure that a program measured itself. None: the program was not run."""
    return median(sample.figures[figure] for sample in results[name]) if name in results else None


def as_text(rows: Sequence[Sequence[str]], derived: dict[str, float]) -> str:
    """Return the table with aligned columns, then the derived figures."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([*lines, "", *(f"{name}: {value:.2f}" for name, value in derived.items())])


def as_markdown(
    rows: Sequence[Sequence[str]], derived: dict[str, float], facts: dict[str, Any], pictured: Results
) -> str:
    """Return the table, the derived figures, the timeline of `PICTURED`, and the facts of the machine and the run."""
    figures = markdown_list({name: f"{value:.2f}" for name, value in derived.items()})
    return "\n".join([markdown_table(rows), figures, timeline(pictured), markdown_list(facts)])


def timeline(pictured: Results) -> str:
    """Return, for each program of `PICTURED`, the stages of the process of median duration."""
    middle = {name: sorted(samples, key=lambda sample: sample.ms) for name, samples in pictured.items()}
    typical = {name: samples[len(samples) // 2] for name, samples in middle.items()}
    return markdown_timeline({name: (sample.ms, sample.stages) for name, sample in typical.items()})


if __name__ == "__main__":
    main()
