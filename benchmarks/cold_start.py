"""Time to first vector: fresh processes measured from outside, from exec to exit, against their peers in the same run.

Every round starts each program once, in the order of the table, so that whatever else the machine does meets all alike;
ratios are taken inside a round, and their median is shown. The page cache, the compiled bytecode and firstvec's record
of verified files are warm, as on the second start of an installed app; with --cold the page cache is dropped before
each process.
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

from programs import FLOOR, PEER, PICTURED, PROGRAMS, TEXT, Program
from record import machine, markdown_list, markdown_table, write
from waterfall import draw

from firstvec.errors import FirstvecError
from firstvec.hardware import ResourceProfile
from firstvec.manifest import Manifest
from firstvec.selection import select
from firstvec_build.source import resolve

MIN_COSINE = {"fp32": 0.9999, "int8": 0.95}
COLUMNS = ("median ms", "min", "max", "peak MB", f"× faster than {PEER}", f"÷ {FLOOR}")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True, slots=True)
class Sample:
    """One process from exec to exit, and what it says of itself. MB is 10^6 bytes."""

    ms: float
    peak_mb: float
    cosine: float | None = None
    """Of its vector to the peer's."""
    figures: dict[str, float] = field(default_factory=dict)
    stages: list[tuple[str, float, float]] = field(default_factory=list)
    """Name, begin and end in milliseconds from exec."""


Combine = Callable[[float, float], float]
Results = dict[str, list[Sample]]
Figures = dict[str, dict[str, float | None]]

# exec hands the peak memory of the process that forked on to the new program (Linux, fs/exec.c: exec_mmap), so a bare
# interpreter starts each case, not this one with all its modules.
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
    """Run the benchmark and print its table."""
    options = parse()
    cache_state = "dropped before each process" if options.cold else "warm"
    facts = {"rounds": options.rounds, "page cache": cache_state, **machine()}
    with tempfile.TemporaryDirectory(prefix="firstvec-bench-") as cache:
        try:
            inputs = prepare(options.bundle, cache)
        except FirstvecError as error:
            sys.exit(f"error: {error} (`make artifacts` builds the default bundle)")
        programs = [each for each in PROGRAMS if each.installed and (not options.only or each.name in options.only)]
        results = run_rounds(programs, options.rounds, inputs, environment(inputs, cache), cold=options.cold)
    figures = {each.name: summarise(each.name, results) for each in programs}
    derived = derive(results)
    rows = [["program", *COLUMNS]]
    for name, values in figures.items():
        rows.append([name, *("–" if (value := values[heading]) is None else f"{value:.2f}" for heading in COLUMNS)])
    print(as_text(rows, derived))
    if options.json:
        document = {"run": facts, "inputs": inputs, "derived": derived, "figures": figures, "samples": results}
        write(options.json, json.dumps(document, ensure_ascii=False, default=asdict) + "\n")
    if options.markdown:
        write(options.markdown, as_markdown(rows, derived, facts))
    if options.waterfall:
        write(options.waterfall, picture(results))


def picture(results: Results) -> str:
    """Draw, of each program of `PICTURED`, the process of median duration."""
    typical = {
        name: sorted(results[name], key=lambda sample: sample.ms)[len(results[name]) // 2]
        for name in PICTURED
        if name in results
    }
    return draw({name: (sample.ms, sample.stages) for name, sample in typical.items()})


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/all-MiniLM-L6-v2"), help="its folder")
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds; one more warms up (default 15)")
    names = [each.name for each in PROGRAMS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"of: {'; '.join(names)}")
    parser.add_argument("--cold", action="store_true", help="drop the page cache before each process (Linux, root)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample, and the machine")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table, and the machine")
    parser.add_argument("--waterfall", type=Path, metavar="FILE", help="write a picture (SVG) of where the time goes")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.cold and not os.access(DROP_CACHES, os.W_OK):
        parser.error(f"--cold needs to write {DROP_CACHES}: Linux, as root")
    return options


def prepare(bundle: Path, cache: str) -> dict[str, str]:
    """Return what the programs are formatted with; fetch the pinned source if need be."""
    manifest = Manifest.read(bundle := bundle.resolve())
    artifact = select(manifest, ResourceProfile.detect(), "quantized", device="cpu").artifact
    return {
        "python": sys.executable,
        "firstvec": str(Path(sys.executable).with_name("firstvec")),
        "text": TEXT,
        "bundle": str(bundle),
        "cache": cache,
        "tokenizer": str(bundle / manifest.tokenizer.path),
        "source": str(resolve(manifest.model.name).path),
        "int8": str(bundle / artifact.files[0].path),
        "fp32": str(bundle / "onnx/model.onnx"),
    }


def environment(inputs: dict[str, str], cache: str) -> dict[str, str]:
    """Return the environment of every case: offline, with compiled bytecode, and a cache that the rounds share."""
    # PYTHONOPTIMIZE would skip the assertions of the cases.
    unset = ("PYTHONDONTWRITEBYTECODE", "PYTHONOPTIMIZE", "TOKENIZERS_PARALLELISM")
    ours = {"FIRSTVEC_ARTIFACTS": os.path.dirname(inputs["bundle"]), "FIRSTVEC_CACHE": cache}
    quiet = {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    return {name: value for name, value in os.environ.items() if name not in unset} | ours | quiet


def run_rounds(
    programs: Sequence[Program], rounds: int, inputs: dict[str, str], environ: dict[str, str], *, cold: bool
) -> Results:
    """Measure every program once a round; the first round warms up and does not count."""
    peer = next(each for each in PROGRAMS if each.name == PEER)
    reference: list[float] = launch(peer, inputs, environ, cold=False)[1]
    measured: list[list[Sample]] = []
    for number in range(rounds + 1):
        measured.append([measure(each, inputs, environ, reference, cold=cold and number > 0) for each in programs])
        label = f"round {number}/{rounds}" if number else "warm-up"
        seconds = sum(sample.ms for sample in measured[-1]) / 1e3
        print(f"{label}: {len(programs)} processes in {seconds:.1f} s", file=sys.stderr)
    return {each.name: samples for each, *samples in zip(programs, *measured[1:], strict=True)}


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
    """Run one program; return what was measured, and the vector that it printed."""
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
    spans = [(name, 1e3 * (begin - started), 1e3 * (end - started)) for name, begin, end, _lane in stages]
    if spans:
        spans = [("interpreter", 0.0, min(begin for _, begin, _ in spans)), *spans]
        spans.append(("print, exit", max(end for _, _, end in spans), ms))
    return replace(sample, figures=figures, stages=spans), vector or []


def paired(a: str, b: str, results: Results, combine: Combine = operator.truediv) -> float | None:
    """Return the median over the rounds of ``combine(a, b)`` of two cases' milliseconds; None if one was not run."""
    if a not in results or b not in results:
        return None
    return median(combine(x.ms, y.ms) for x, y in zip(results[a], results[b], strict=True))


def summarise(name: str, results: Results) -> dict[str, float | None]:
    """Return a program's figures: those of `COLUMNS`."""
    ms = [sample.ms for sample in results[name]]
    peak_mb = median(sample.peak_mb for sample in results[name])
    ratios = (paired(PEER, name, results), paired(name, FLOOR, results))
    return dict(zip(COLUMNS, (median(ms), min(ms), max(ms), peak_mb, *ratios), strict=True))


def derive(results: Results) -> dict[str, float]:
    """Return the figures that sum up the run, of those whose programs were run."""
    derived: dict[str, float | None] = {
        "import firstvec - bare interpreter, ms": paired("import firstvec", "bare interpreter", results, operator.sub),
        "first constructor, ms": inside("first loader", "constructor, ms", results),
        "start_loading(), ms": inside("QUANTIZED, buffer", "start_loading, ms", results),
        "dimension and metadata, ms": inside("metadata only", "metadata, ms", results),
    }
    for output in ("buffer", "list", "numpy"):
        name = f"QUANTIZED, {output}"
        derived[f"{name} ÷ {FLOOR}"] = paired(name, FLOOR, results)
        derived[f"{name}, × faster than {PEER}"] = paired(PEER, name, results)
        derived[f"{name}, peak MB"] = median(sample.peak_mb for sample in results[name]) if name in results else None
        derived[f"CACHED, {output} ÷ {name}"] = paired(f"CACHED, {output}", name, results)
    derived["firstvec encode ÷ QUANTIZED, list"] = paired("firstvec encode", "QUANTIZED, list", results)
    for place in ("after", "beside"):
        name = f"BACKGROUND {place} an app's imports"
        derived[f"{name}: waited for the vector, ms"] = inside(name, "waited for the vector, ms", results)
        derived[f"{name} - the imports alone, ms"] = paired(name, "an app's imports", results, operator.sub)
    return {name: value for name, value in derived.items() if value is not None}


def inside(name: str, figure: str, results: Results) -> float | None:
    """Return the median of what a program measured of itself."""
    return median(sample.figures[figure] for sample in results[name]) if name in results else None


def as_text(rows: Sequence[Sequence[str]], derived: dict[str, float]) -> str:
    """Return the table with aligned columns, then the derived figures."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([*lines, "", *(f"{name}: {value:.2f}" for name, value in derived.items())])


def as_markdown(rows: Sequence[Sequence[str]], derived: dict[str, float], facts: dict[str, Any]) -> str:
    """Return the table, the derived figures, and what was run where."""
    figures = markdown_list({name: f"{value:.2f}" for name, value in derived.items()})
    return "\n".join([markdown_table(rows), figures, markdown_list(facts)])


if __name__ == "__main__":
    main()
