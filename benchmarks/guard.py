"""Guards: the processor time of the project's own code, as a ratio to fixed work in the same run.

A guard is the median, over rounds, of the ratio of two processor times. Every round runs both parts, in turn, on one
core, so a ratio depends little on the machine and its load. `tests/test_guard.py` compares the ratios with generous
fixed limits. This program compares the ratios with those that `--update` measured on this same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import fresh
from programs import TEXT
from record import machine

BASELINE = Path("build/guard/baseline.json")
ALLOWED = 1.25
"""A guard trips above this many times the baseline of this machine."""
ROUNDS = 9
ATTEMPTS = 3
COLD = "make bench-cold, then git bisect with `benchmarks/cold_start.py --only PROGRAM`"
CALLS = "make bench-operations, and python -X importtime"
WARM = "make bench, and the stages of loader.report()"

Seconds = Mapping[str, float]
"""Part → processor time of one run."""


@dataclass(frozen=True, slots=True)
class Guard:
    """A part of the project's code, and the fixed work that is measured beside it."""

    name: str
    """The name of the project's part is the same."""
    against: str
    """The reference: the name of a part, or a description if the field `reference` computes the time."""
    limit: float
    """Largest ratio that is right on any machine."""
    next: str
    """What to run if the guard trips."""
    reference: Callable[[Seconds], float] | None = None
    """Processor times of the parts → processor time of the reference. None: the part ``against``."""
    needs: tuple[str, ...] = ()
    """The parts that `reference` reads."""

    @property
    def parts(self) -> set[str]:
        """Names of the parts that a round must measure."""
        return {self.name, *(self.needs or (self.against,))}


def _python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def first_vector(strategy: str, output: str) -> tuple[str, ...]:
    """Return the command of a process that computes one vector."""
    return _python(
        "from firstvec import OptimizedEmbeddingLoader\n"
        f"loader = OptimizedEmbeddingLoader('all-MiniLM-L6-v2', {strategy!r}, 'cpu', output={output!r})\n"
        f"loader.start_loading(); loader.get_provider().embed_query({TEXT!r})"
    )


PROCESSES = {
    "a bare interpreter": _python("pass"),
    "fixed imports": _python("import json, argparse, urllib.request"),
    "import numpy": _python("import numpy"),
    "import firstvec": _python("import firstvec"),
    "import and construct a loader": _python(
        "from firstvec import OptimizedEmbeddingLoader; OptimizedEmbeddingLoader()"
    ),
    "first vector, QUANTIZED, buffer": first_vector("quantized", "buffer"),
    "first vector, QUANTIZED, list": first_vector("quantized", "list"),
    "first vector, CACHED, buffer": first_vector("cached", "buffer"),
    "first vector, PROGRESSIVE, numpy": first_vector("progressive", "numpy"),
    "firstvec encode": (
        *(str(Path(sys.executable).with_name("firstvec")), "encode", TEXT),
        *("--strategy", "quantized", "--device", "cpu"),
    ),
}
"""Part → command of a fresh process."""


@dataclass(frozen=True, slots=True)
class Statements:
    """Statements that are measured inside one fresh process."""

    setup: str
    parts: dict[str, tuple[str, int]]
    """Part → statement, and how often a round repeats it."""


IN_ONE_PROCESS = Statements(
    setup="""
import os
from firstvec import ModelMetadata, OptimizedEmbeddingLoader, ResourceProfile
class Fixed:
    def __init__(self):
        self.value = 1
    def get(self):
        return self.value
    def work(self):
        for _ in range(20):
            self.get()
        os.stat("/")
fixed = Fixed()
loader = OptimizedEmbeddingLoader("all-MiniLM-L6-v2", "quantized", "cpu", output="buffer")
loader.start_loading()
loader.get_provider()
loader.get_metadata()
""",
    parts={
        "a method call": ("fixed.get()", 50_000),
        "fixed work": ("fixed.work()", 500),
        "OptimizedEmbeddingLoader()": ("OptimizedEmbeddingLoader()", 500),
        "get_metadata()": ("loader.get_metadata()", 50_000),
        "get_embedding_dim_fast()": ("loader.get_embedding_dim_fast()", 50_000),
        "is_loaded()": ("loader.is_loaded()", 50_000),
        "ResourceProfile.detect()": ("ResourceProfile.detect()", 500),
        "ModelMetadata.from_cache()": ("ModelMetadata.from_cache('all-MiniLM-L6-v2')", 500),
    },
)
ENCODING = Statements(
    setup="""
from firstvec import OptimizedEmbeddingLoader
from firstvec_build.quality import evaluation_sentences
texts = [text for text in evaluation_sentences() if 0 < len(text) < 100][:64]
def load(strategy, artifact):
    loader = OptimizedEmbeddingLoader("all-MiniLM-L6-v2", strategy, "cpu", output="buffer", artifact=artifact)
    loader.start_loading()
    return loader.get_provider()
fp32, int8 = load("background", "native-fp32"), load("background", "native-int8")
onnx, quick = load("background", "onnx-fp32"), load("cached", "onnx-fp32")
quick._sessions.hand_over = None
assert (onnx.session_kind, quick.session_kind) == ("throughput", "quick-start")

import numpy, onnxruntime
from onnx import TensorProto, helper, numpy_helper
def multiplication(operator, left, right, result):
    inputs = [helper.make_tensor_value_info("left", left, [512, 384])]
    outputs = [helper.make_tensor_value_info("result", result, [512, 1536])]
    nodes = [helper.make_node(operator, ["left", "right"], ["result"])]
    graph = helper.make_graph(nodes, "multiplication", inputs, outputs, [numpy_helper.from_array(right, "right")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
random = numpy.random.default_rng(0)
floats = random.random((512, 384), numpy.float32)
bytes_ = random.integers(0, 255, (512, 384)).astype(numpy.uint8)
weights = random.integers(-63, 63, (384, 1536)).astype(numpy.int8)
multiply_floats = multiplication("MatMul", TensorProto.FLOAT, weights.astype(numpy.float32), TensorProto.FLOAT)
multiply_bytes = multiplication("MatMulInteger", TensorProto.UINT8, weights, TensorProto.INT32)
""",
    parts={
        "multiply fp32": ("multiply_floats.run(None, {'left': floats})", 20),
        "multiply INT8": ("multiply_bytes.run(None, {'left': bytes_})", 20),
        "encode 64 texts, fp32": ("fp32.encode(texts)", 1),
        "encode 64 texts, INT8": ("int8.encode(texts)", 1),
        "encode 64 texts, onnxruntime": ("onnx.encode(texts)", 1),
        "encode 64 texts, quick-start": ("quick.encode(texts)", 1),
        "encode one text, ten times": ("for text in texts[:10]: fp32.encode(text)", 1),
    },
)


def _expected_of_int8(seconds: Seconds) -> float:
    """Return half of fp32's time, and the other half times the ratio of the engine's own two multiplications.

    A processor without instructions for 8-bit integers multiplies 8-bit integers no faster than fp32. On such a
    processor INT8 may take as long as fp32. A limit on INT8 to fp32 alone would either trip on such a processor, or
    never trip on others.
    """
    return seconds["encode 64 texts, fp32"] * (1 + seconds["multiply INT8"] / seconds["multiply fp32"]) / 2


GUARDS = (
    Guard("import firstvec", "a bare interpreter", 1.2, CALLS),
    Guard("import and construct a loader", "a bare interpreter", 2.1, CALLS),
    Guard("first vector, QUANTIZED, buffer", "fixed imports", 0.75, COLD),
    Guard("first vector, CACHED, buffer", "first vector, QUANTIZED, buffer", 1.7, COLD),
    Guard("first vector, PROGRESSIVE, numpy", "import numpy", 2.0, COLD),
    Guard("firstvec encode", "first vector, QUANTIZED, list", 2.3, COLD),
    Guard("OptimizedEmbeddingLoader()", "fixed work", 8.0, CALLS),
    Guard("get_metadata()", "a method call", 2.2, CALLS),
    Guard("get_embedding_dim_fast()", "a method call", 2.5, CALLS),
    Guard("is_loaded()", "a method call", 9.0, CALLS),
    Guard("ResourceProfile.detect()", "fixed work", 3.3, CALLS),
    Guard("ModelMetadata.from_cache()", "fixed work", 14.0, CALLS),
    Guard("encode 64 texts, fp32", "multiply fp32", 2.7, WARM),
    Guard(
        *("encode 64 texts, INT8", "the time that the engine's multiplications predict", 0.95, WARM),
        reference=_expected_of_int8,
        needs=("encode 64 texts, fp32", "multiply fp32", "multiply INT8"),
    ),
    Guard("encode 64 texts, onnxruntime", "multiply fp32", 3.8, WARM),
    Guard("encode 64 texts, quick-start", "encode 64 texts, onnxruntime", 2.2, WARM),
    Guard("encode one text, ten times", "encode 64 texts, fp32", 0.42, WARM),
)


@contextmanager
def one_core() -> Iterator[None]:
    """Let this thread, and the processes that it starts, use one core, if the system can do that.

    On several cores an engine's threads wait for one another in a loop, and that takes processor time.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def ratios(guards: Sequence[Guard], rounds: int = ROUNDS, *, times: int = 1) -> dict[str, float]:
    """Return the median ratio of each guard.

    Args:
        guards: the guards to measure.
        rounds: number of rounds. One more round comes first and is not counted, because it fills caches.
        times: how often each round runs the project's part, as if that part had become so many times slower.

    Raises:
        fresh.ProcessFailed: a measured process failed.
    """
    ours = {guard.name for guard in guards}
    parts = set[str]().union(*(guard.parts for guard in guards))
    with one_core():
        groups = (
            _measure_processes(parts, ours, rounds, times),
            *(_measure_statements(group, parts, ours, rounds, times) for group in (IN_ONE_PROCESS, ENCODING)),
        )
    found: dict[str, list[float]] = {guard.name: [] for guard in guards}
    for in_processes, in_one_process, in_encoding in zip(*groups, strict=True):
        seconds = {**in_processes, **in_one_process, **in_encoding}
        once = {part: runs[0] for part, runs in seconds.items()}
        for guard in guards:
            reference = guard.reference(once) if guard.reference else once[guard.against]
            found[guard.name].append(sum(seconds[guard.name]) / reference)
    return {name: median(values) for name, values in found.items()}


Round = dict[str, list[float]]
"""Part → processor time of each of its runs in one round."""


def _environment() -> dict[str, str]:
    # When numpy is imported, OpenBLAS starts one thread for each core, even if the process may use one core only.
    return {**fresh.environment(), "CUDA_VISIBLE_DEVICES": "", "OPENBLAS_NUM_THREADS": "1"}


def _measure_processes(parts: set[str], ours: set[str], rounds: int, times: int) -> list[Round]:
    environ = _environment()
    commands = {part: command for part, command in PROCESSES.items() if part in parts}
    found: list[Round] = []
    for _ in range(rounds + 1):
        found.append({})
        for part, command in commands.items():
            runs = times if part in ours else 1
            found[-1][part] = [fresh.measure(command, environ).processor_seconds for _ in range(runs)]
    return found[1:]


MEASURE = """
import json, time
def measure(part, times):
    found = []
    for _ in range(times):
        began = time.process_time()
        part()
        found.append(time.process_time() - began)
    return found
rounds = [dict((name, measure(part, times)) for name, part, times in parts) for _ in range({rounds} + 1)]
print(json.dumps(rounds[1:]))
"""


def _measure_statements(group: Statements, parts: set[str], ours: set[str], rounds: int, times: int) -> list[Round]:
    statements = {part: statement for part, statement in group.parts.items() if part in parts}
    if not statements:
        return [{} for _ in range(rounds)]
    code = [group.setup, "parts = []"]
    for part, (statement, repeat) in statements.items():
        code.append(f"def part():\n    for _ in range({repeat}):\n        {statement}")
        code.append(f"parts.append(({part!r}, part, {times if part in ours else 1}))")
    printed = fresh.run("\n".join([*code, MEASURE.format(rounds=rounds)]), _environment())
    found: list[Round] = json.loads(printed.splitlines()[-1])
    return found


@dataclass(frozen=True, slots=True)
class Result:
    """A guard's measured ratio and its limit."""

    guard: Guard
    ratio: float
    limit: float

    @property
    def tripped(self) -> bool:
        """Whether the ratio is too large, or is not a number."""
        return not self.ratio <= self.limit

    def __str__(self) -> str:
        return f"{self.guard.name}: {self.ratio:.3g} × {self.guard.against}, at most {self.limit:.3g}"


def examine(
    guards: Sequence[Guard],
    limits: Mapping[str, float],
    *,
    rounds: int = ROUNDS,
    attempts: int = ATTEMPTS,
    times: int = 1,
) -> list[Result]:
    """Measure the guards, and return the last results. A guard that trips is measured up to ``attempts`` times."""
    results: dict[str, Result] = {}
    left = list(guards)
    for _ in range(attempts):
        found = ratios(left, rounds, times=times)
        results |= {guard.name: Result(guard, found[guard.name], limits[guard.name]) for guard in left}
        left = [guard for guard in left if results[guard.name].tripped]
        if not left:
            break
    return [results[guard.name] for guard in guards]


def identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that are equal for two runs on the same machine: processor, cores and versions."""
    packages = [package for package in facts["packages"].split(", ") if not package.startswith("firstvec ")]
    return {**{name: facts[name] for name in ("cpu", "cores", "flags", "python")}, "packages": packages}


def main() -> None:
    """Compare with the baseline. Exit with 1 if a guard tripped, and with 2 if there is no baseline of this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="measure the baseline and write it")
    parser.add_argument("--baseline", type=Path, default=BASELINE, metavar="FILE", help=f"default {BASELINE}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"counted rounds (default {ROUNDS})")
    names = [guard.name for guard in GUARDS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"of: {'; '.join(names)}")
    options = parser.parse_args()
    guards = [guard for guard in GUARDS if not options.only or guard.name in options.only]
    facts = machine()
    try:
        if options.update:
            found = {name: round(ratio, 4) for name, ratio in ratios(guards, 2 * options.rounds).items()}
            document = {"machine": identity(facts), "date": facts["date"], "ratios": found}
            options.baseline.parent.mkdir(parents=True, exist_ok=True)
            options.baseline.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
            print(f"wrote {options.baseline}")
            return
        baseline = read_baseline(options.baseline, identity(facts), guards)
        limits = {name: ALLOWED * ratio for name, ratio in baseline.items()}
        results = examine(guards, limits, rounds=options.rounds)
    except fresh.ProcessFailed as error:
        sys.exit(f"error: {error}")
    for result in results:
        was = baseline[result.guard.name]
        print(f"{'TRIPPED' if result.tripped else 'holds'}: {result} ({ALLOWED:g} × the baseline of {was:.3g})")
        if result.tripped:
            print(f"  next: {result.guard.next}")
    if any(result.tripped for result in results):
        sys.exit(1)


def read_baseline(path: Path, here: Mapping[str, Any], guards: Sequence[Guard]) -> dict[str, float]:
    """Return the ratios of this machine's baseline. Exit with 2 if there is none."""
    make_one = "run `make guard-baseline` on the code to compare with, on an idle machine"
    try:
        document = json.loads(path.read_text("utf-8"))
        measured, found = document["machine"], {guard.name: float(document["ratios"][guard.name]) for guard in guards}
    except FileNotFoundError:
        reason = f"there is no baseline {path}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{path} is not a baseline of these guards ({type(error).__name__}: {error})"
    else:
        others = [name for name, value in here.items() if measured.get(name) != value]
        if not others:
            return found
        reason = f"{path} comes from another machine or other versions ({', '.join(others)})"
    print(f"error: {reason}: {make_one}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
