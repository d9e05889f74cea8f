"""What the report is made of: the files that the benchmarks wrote, read and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Generic, TypeVar

from firstvec.document import CheckedObject, parse_object
from firstvec.errors import ManifestError

Stage = tuple[str, float, float]
T = TypeVar("T")

UNITS = ("us", "ms", "bytes")
COMMANDS = {
    "cold start": "make bench-cold",
    "throughput": "make bench",
    "operations": "make bench-operations",
}
"""Input → what writes it."""
INF = math.inf


class ReportError(Exception):
    """The report cannot be made; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Process:
    """One measured process."""

    ms: float
    peak_mb: float
    cosine: float | None
    """Of its vector to the peer's; None if it computes none."""
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class ColdStart:
    """What `cold_start.py --json` wrote."""

    facts: dict[str, str]
    rounds: int
    page_cache: str
    busy: tuple[float, int]
    """Load average at the start, and cores."""
    artifacts: dict[str, str]
    """Precision → file in the bundle of the artifact that the programs of this precision use."""
    figures: dict[str, dict[str, float | None]]
    """Program → heading → figure."""
    derived: dict[str, float]
    samples: dict[str, tuple[Process, ...]]
    """Program → its processes, one a round."""

    def has_vector(self, name: str) -> bool:
        """Whether the program computes a vector."""
        return self.samples[name][0].cosine is not None

    def typical(self, name: str) -> Process:
        """The program's process of median duration, as `cold_start.py` draws it."""
        return sorted(self.samples[name], key=lambda process: process.ms)[len(self.samples[name]) // 2]

    def ratio(self, above: str, below: str, figure: Callable[[Process], float]) -> float | None:
        """The median of the rounds' own ratios; None if one of the two was not run."""
        if above not in self.samples or below not in self.samples:
            return None
        pairs = zip(self.samples[above], self.samples[below], strict=True)
        return median(figure(x) / figure(y) for x, y in pairs)


@dataclass(frozen=True, slots=True)
class Speed:
    """A warm model on one case of texts."""

    subject: str
    case: str
    texts_per_second: float
    worst_cosine: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that a program does, what the replaced loader claimed of it, and what it took."""

    category: str
    row: str
    when: str
    claimed: str | None
    really: str | None
    unit: str
    """One of `UNITS`: how the figure is shown."""
    value: float
    """The median: seconds, or bytes where that is the unit."""
    bar: float | None
    """What it may be at most."""
    low: float
    high: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Suite(Generic[T]):
    """What pytest-benchmark wrote."""

    facts: dict[str, str]
    rows: tuple[T, ...]


def read_cold_start(path: Path) -> ColdStart:
    """Read what `cold_start.py --json` wrote.

    Raises:
        ReportError: it is missing or invalid.
    """
    return _read(path, _cold_start, "cold start")


def read_throughput(path: Path) -> Suite[Speed]:
    """Read what pytest-benchmark wrote of `test_throughput.py`; other benchmarks in the file are left aside.

    Raises:
        ReportError: it is missing, invalid or holds none.
    """
    return _read(path, lambda top: _suite(top, "subject", _speed), "throughput")


def read_operations(path: Path) -> Suite[Operation]:
    """Read what pytest-benchmark wrote of `test_operations.py`; other benchmarks in the file are left aside.

    Raises:
        ReportError: it is missing, invalid or holds none.
    """
    return _read(path, lambda top: _suite(top, "row", _operation), "operations")


def _read(path: Path, parse: Callable[[CheckedObject], T], kind: str) -> T:
    command = COMMANDS[kind]
    try:
        return parse(parse_object(path.read_bytes(), str(path)))
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror or error} (`{command}` writes it)") from error
    except ManifestError as error:
        raise ReportError(f"{error.path} {error.reason} (`{command}` writes such a file)") from error


def _cold_start(top: CheckedObject) -> ColdStart:
    run, inputs, figures, samples = (top.child(key) for key in ("run", "inputs", "figures", "samples"))
    rounds = run.integer("rounds", 1, 10**6)
    if figures.value.keys() != samples.value.keys():
        raise top.error("figures", "holds other programs than samples")
    folder = inputs.text("bundle") + "/"
    return ColdStart(
        facts=_facts(run.value),
        rounds=rounds,
        page_cache=run.text("page cache"),
        busy=(run.number("load_average", 0, INF), run.integer("cores", 1, 10**6)),
        artifacts={precision: inputs.text(precision).removeprefix(folder) for precision in ("fp32", "int8")},
        figures={name: _figures(figures.child(name)) for name in figures.value},
        derived=top.numbers("derived"),
        samples={name: _processes(samples, name, rounds) for name in samples.value},
    )


def _figures(item: CheckedObject) -> dict[str, float | None]:
    item.number("median ms", 1e-6, INF)
    item.number("peak MB", 1e-6, INF)
    return {name: item.optional(name, lambda key: item.number(key, -INF, INF)) for name in item.value}


def _processes(samples: CheckedObject, name: str, rounds: int) -> tuple[Process, ...]:
    items = samples.children(name)
    if len(items) != rounds:
        raise samples.error(name, f"holds {len(items)} processes, not one for each of {rounds} rounds")
    return tuple(map(_process, items))


def _process(item: CheckedObject) -> Process:
    return Process(
        item.number("ms", 1e-6, INF),
        item.number("peak_mb", 1e-6, INF),
        item.optional("cosine", lambda key: item.number(key, -1.001, 1.001)),
        _stages(item),
    )


def _stages(item: CheckedObject) -> tuple[Stage, ...]:
    try:
        stages = tuple((str(name), float(begin), float(end)) for name, begin, end in item.value.get("stages") or ())
    except (TypeError, ValueError):
        raise item.error("stages", "is not an array of [name, begin, end]") from None
    if not all(0 <= begin <= end < INF for _, begin, end in stages):
        raise item.error("stages", "holds one that does not end after it begins")
    return stages


def _suite(top: CheckedObject, mark: str, parse: Callable[[CheckedObject], T]) -> Suite[T]:
    items = [each for each in top.children("benchmarks") if mark in each.child("extra_info").value]
    if not items:
        raise top.error("benchmarks", f"holds none whose extra_info has {mark!r}")
    return Suite(_machine(top), tuple(map(parse, items)))


def _speed(item: CheckedObject) -> Speed:
    extra = item.child("extra_info")
    return Speed(
        extra.text("subject"),
        item.text("group"),
        extra.number("texts per second", 0, INF),
        extra.number("worst cosine", -1.001, 1.001),
        item.child("stats").integer("rounds", 1, 10**9),
    )


def _operation(item: CheckedObject) -> Operation:
    extra, stats = item.child("extra_info"), item.child("stats")
    unit = extra.one_of("unit", UNITS)
    if unit == "bytes":
        value = low = high = extra.number("value", 0, INF)
        bar = extra.optional("bar", lambda key: extra.number(key, 0, INF))
    else:
        bar_us = extra.optional("bar_us", lambda key: extra.number(key, 0, INF))
        bar = None if bar_us is None else bar_us / 1e6
        value, low, high = (stats.number(key, 0, INF) for key in ("median", "min", "max"))
    return Operation(
        category=item.text("group"),
        row=extra.text("row"),
        when=extra.text("when"),
        claimed=extra.text("claimed") if extra.value.get("claimed") else None,
        really=extra.text("really") if extra.value.get("really") else None,
        unit=unit,
        value=value,
        bar=bar,
        low=low,
        high=high,
        rounds=stats.integer("rounds", 1, 10**9),
    )


def _machine(top: CheckedObject) -> dict[str, str]:
    """The machine and the version, under the names that `cold_start.py` gives them; never the machine's own name."""
    machine, commit = (top.child(key).value for key in ("machine_info", "commit_info"))
    cpu = given if isinstance(given := machine.get("cpu"), Mapping) else {}
    revision = str(commit.get("id") or "")[:12]
    return _facts(
        {
            "date": str(top.value.get("datetime") or ""),
            "cpu": cpu.get("brand_raw"),
            "cores": cpu.get("count"),
            "system": " ".join(str(machine[key]) for key in ("system", "release", "machine") if machine.get(key)),
            "python": machine.get("python_version"),
            "commit": f"{revision}, with changes" if revision and commit.get("dirty") else revision,
            "packages": f"pytest-benchmark {top.value['version']}" if top.value.get("version") else "",
        }
    )


def _facts(values: Mapping[str, Any]) -> dict[str, str]:
    """Those that are there, as text."""
    facts = {name: _fact(value) for name, value in values.items() if value not in (None, "", "unknown")}
    if "date" in facts:  # ISO 8601, to the minute
        zone = " UTC" if facts["date"].endswith("+00:00") else ""
        facts["date"] = facts["date"][:16].replace("T", " ") + zone
    return facts


def _fact(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
