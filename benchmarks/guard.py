"""Regression guards: today's ratios to fixed peers, beside those of a stored baseline.

A guard compares two programs of the same run, ours and one that the project does not change, so that it holds on a
slow machine as on a fast one. It trips if the median of the rounds' ratios is more than `ALLOWED` times the baseline's,
and is so again each time that it is measured again. ``--update`` writes the baseline.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import fresh
from programs import TEXT
from record import machine

BASELINE = Path(__file__).with_name("baseline.json")
ALLOWED = 1.6
ROUNDS = 9
ATTEMPTS = 3
PREPARE = "from firstvec import OptimizedEmbeddingLoader, ModelMetadata, ResourceProfile\n"
LOADED = (
    PREPARE + "loader = OptimizedEmbeddingLoader('all-MiniLM-L6-v2', 'quantized', 'cpu', output='buffer')\n"
    "loader.start_loading(); provider = loader.get_provider(); loader.get_metadata()\n"
)
ENCODERS = """
import warnings; warnings.simplefilter("ignore")
from firstvec_build.quality import evaluation_sentences
from firstvec_build.source import resolve
from sentence_transformers import SentenceTransformer
from firstvec import OptimizedEmbeddingLoader
texts = [text for text in evaluation_sentences() if 0 < len(text) < 100][:64]
peer = SentenceTransformer(str(resolve().path), device="cpu")
loader = OptimizedEmbeddingLoader("all-MiniLM-L6-v2", "background", "cpu", QUANTIZED); loader.start_loading()
ours = loader.get_provider()
"""


@dataclass(frozen=True, slots=True)
class Guard:
    """An operation of ours and its peer."""

    name: str
    ours: tuple[str, ...]
    """Code of a process, or a command; or, with ``setup``, a statement."""
    peer: tuple[str, ...]
    against: str
    """The peer, for people."""
    next: str
    """What to run if it trips."""
    setup: str | None = None
    """Where both are statements of one process: what comes before."""
    repeat: int = 1
    """How often the statements are run in a round."""
    pause: float = 0.0
    """Seconds before each: threads of one engine spin for a while after its run, on the core that the other needs."""

    def ratios(self, rounds: int, *, times: int = 1) -> list[float]:
        """Return each round's ratio; ``times`` does our part more than once, as a regression would."""
        if self.setup is not None:
            return _in_one_process(self, rounds, times)
        found = []
        for number in range(rounds + 1):
            ours = sum(_seconds(self.ours) for _ in range(times))
            peer = _seconds(self.peer)
            if number:  # the first one fills caches
                found.append(ours / peer)
        return found


def _python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def _first_vector(strategy: str, output: str) -> tuple[str, ...]:
    return _python(
        "from firstvec import OptimizedEmbeddingLoader\n"
        f"loader = OptimizedEmbeddingLoader('all-MiniLM-L6-v2', {strategy!r}, 'cpu', output={output!r})\n"
        f"loader.start_loading(); loader.get_provider().embed_query({TEXT!r})"
    )


def _seconds(command: Sequence[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=fresh.environment())
    if done.returncode:
        sys.exit(f"error: a guarded program ended with {done.returncode}: {done.stderr.strip()[-1000:]}")
    return time.perf_counter() - began


IN_ONE_PROCESS = """
import json, time
{setup}
def _ours():
    for _ in range({repeat}):
        {ours}
def _peer():
    for _ in range({repeat}):
        {peer}
def _seconds(call, times):
    time.sleep({pause})
    began = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - began
_ours(), _peer()
print(json.dumps([_seconds(_ours, {times}) / _seconds(_peer, 1) for _ in range({rounds})]))
"""


def _in_one_process(guard: Guard, rounds: int, times: int) -> list[float]:
    (ours,), (peer,) = guard.ours, guard.peer
    code = IN_ONE_PROCESS.format(
        setup=guard.setup, repeat=guard.repeat, pause=guard.pause, ours=ours, peer=peer, times=times, rounds=rounds
    )
    try:
        ratios: list[float] = json.loads(fresh.run(code).splitlines()[-1])
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    return ratios


_BARE = _python("pass")
_FLOOR = _python("import numpy, onnxruntime, tokenizers")
_COLD = "make bench-cold, then git bisect with the program that got slower (benchmarks/cold_start.py --only)"
_OPERATIONS = "make bench-operations, and -X importtime for what is imported"
_WARM = "make bench, and the stages of loader.report()"
_CALL = "hash(())"


def _call(name: str, statement: str, setup: str = LOADED, repeat: int = 2000) -> Guard:
    return Guard(name, (statement,), (_CALL,), f"the built-in call {_CALL}", _OPERATIONS, setup, repeat)


def _encoding(name: str, quantized: bool, ours: str, peer: str, repeat: int) -> Guard:
    setup = ENCODERS.replace("QUANTIZED", str(quantized))
    return Guard(name, (ours,), (peer,), "sentence-transformers", _WARM, setup, repeat, pause=0.25)


GUARDS = (
    Guard("import firstvec", _python("import firstvec"), _BARE, "a bare interpreter", _OPERATIONS),
    Guard(
        "import and construct a loader",
        _python("from firstvec import OptimizedEmbeddingLoader; OptimizedEmbeddingLoader()"),
        *(_BARE, "a bare interpreter", _OPERATIONS),
    ),
    Guard("first vector, QUANTIZED, buffer", _first_vector("quantized", "buffer"), _FLOOR, "the import floor", _COLD),
    Guard("first vector, CACHED, buffer", _first_vector("cached", "buffer"), _FLOOR, "the import floor", _COLD),
    Guard("first vector, PROGRESSIVE, numpy", _first_vector("progressive", "numpy"), _FLOOR, "the import floor", _COLD),
    Guard(
        "firstvec encode",
        (str(Path(sys.executable).with_name("firstvec")), "encode", TEXT, "-s", "quantized", "--device", "cpu"),
        *(_FLOOR, "the import floor", _COLD),
    ),
    _call("OptimizedEmbeddingLoader()", "OptimizedEmbeddingLoader()", repeat=200),
    _call("get_metadata()", "loader.get_metadata()"),
    _call("get_embedding_dim_fast()", "loader.get_embedding_dim_fast()"),
    _call("is_loaded()", "loader.is_loaded()"),
    _call("ResourceProfile.detect()", "ResourceProfile.detect()", repeat=200),
    _call("ModelMetadata.from_cache()", "ModelMetadata.from_cache('all-MiniLM-L6-v2')", repeat=200),
    _encoding("encode 64 texts, fp32", False, "ours.encode(texts)", "peer.encode(texts)", 1),
    _encoding("encode 64 texts, INT8", True, "ours.encode(texts)", "peer.encode(texts)", 1),
    _encoding("encode one text, fp32", False, "ours.encode(texts[0])", "peer.encode(texts[0])", 10),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a guard."""

    guard: Guard
    ratio: float
    baseline: float

    @property
    def times(self) -> float:
        """Of the baseline."""
        return self.ratio / self.baseline

    def __str__(self) -> str:
        return f"{self.guard.name}: {self.ratio:.3g} × {self.guard.against}, {self.times:.2f} × the baseline"


def examine(
    guards: Sequence[Guard],
    baseline: Mapping[str, float],
    *,
    allowed: float = ALLOWED,
    attempts: int = ATTEMPTS,
    rounds: int = ROUNDS,
    times: int = 1,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[list[Result], list[Result]]:
    """Measure guards, those that trip again, and return all results and those that tripped each time."""
    results, tripped = [], []
    for guard in guards:
        for attempt in range(attempts):
            found = Result(guard, median(guard.ratios(rounds, times=times)), baseline[guard.name])
            if found.times <= allowed:
                break
            if attempt + 1 < attempts:
                tell(f"{found}: measured again")
        else:
            tripped.append(found)
        results.append(found)
        tell(str(found))
    return results, tripped


def allowed_here(stored: Mapping[str, object], flags: str) -> float:
    """Return how many times the baseline is allowed: more on processors of another kind than that of the baseline."""
    return ALLOWED if stored["flags"] == flags else 1.5 * ALLOWED


def main() -> None:
    """Measure, compare, and exit with 1 if a guard tripped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="measure and write the baseline")
    parser.add_argument("--only", action="append", metavar="NAME", help="one guard; may be repeated")
    parser.add_argument(
        "--times", type=int, default=1, metavar="N", help="do our part N times, as if it had become as much slower"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args()
    names = [guard.name for guard in GUARDS]
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"no guard is called {', '.join(sorted(unknown))}; there are: {'; '.join(names)}")
    guards = [guard for guard in GUARDS if not options.only or guard.name in options.only]
    facts = machine()
    if options.update:
        old = json.loads(BASELINE.read_text("utf-8"))["ratios"] if BASELINE.exists() else {}
        ratios = {guard.name: round(median(guard.ratios(2 * ROUNDS)), 4) for guard in guards}
        document = {"flags": facts["flags"], "run": facts, "ratios": {**old, **ratios}}
        BASELINE.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"wrote {BASELINE}")
        return
    stored = json.loads(BASELINE.read_text("utf-8"))
    allowed = allowed_here(stored, facts["flags"])
    results, tripped = examine(
        guards, stored["ratios"], allowed=allowed, times=options.times, tell=lambda text: print(text, file=sys.stderr)
    )
    if options.json:
        values = [
            {"guard": each.guard.name, "ratio": each.ratio, "baseline": each.baseline, "tripped": each in tripped}
            for each in results
        ]
        print(json.dumps({"allowed": allowed, "guards": values}, ensure_ascii=False, indent=1))
    for each in tripped:
        print(
            f"tripped: {each} of {each.baseline:.3g} (at most {allowed:g} ×). Next: {each.guard.next}", file=sys.stderr
        )
    if tripped:
        sys.exit(1)
    print(f"{len(results)} guards hold", file=sys.stderr)


if __name__ == "__main__":
    main()
