"""Write one Markdown report and one JSON file of what the benchmarks measured.

Both files hold the same tables, but the Markdown report draws the stages of the cold start. Every figure comes from an
input, or is a ratio of two samples of one round of an input. If an input is not given, the report names the command
that measures the input.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from programs import FLOOR, PEER, PICTURES, PROGRAMS
from record import DASH, Stage, markdown_text, markdown_timeline, write

from firstvec.bundle.json_reader import CheckedObject, parse_object
from firstvec.bundle.manifest import Artifact, Manifest
from firstvec.errors import ManifestError

COMMANDS = {
    **{"cold start": "make bench-cold", "throughput": "make bench", "operations": "make bench-operations"},
    **{"retrieval": "make bench-retrieval", "odd texts": "make bench-odd-texts"},
}
"""Input → the command that measures it."""
FEW_ROUNDS = 5
Value = str | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table. The JSON file has exact values, and the Markdown report has rounded values."""

    caption: str
    columns: dict[str, str]
    """Heading → format of the column's numbers. Empty: the column has texts."""
    rows: list[list[Value]]

    def to_markdown(self) -> str:
        """Return the table in Markdown. Columns of numbers are aligned to the right."""
        lines = ["".join(f"| {markdown_text(heading)} " for heading in self.columns) + "|"]
        lines.append("".join("|---:" if form else "|---" for form in self.columns.values()) + "|")
        for row in self.rows:
            cells = map(_cell, row, self.columns.values())
            lines.append("".join(f"| {markdown_text(cell)} " for cell in cells) + "|")
        return "\n".join([f"### {self.caption}", "", *lines, ""])


def _cell(value: Value, form: str) -> str:
    if value is None:
        return DASH
    return value if isinstance(value, str) else form.format(value)


@dataclass(frozen=True, slots=True)
class Section:
    """Figures that were measured in the same way."""

    title: str
    how: str
    """How the figures were measured, and by which command."""
    tables: list[Table]
    picture: str = ""
    """A timeline in Markdown. The Markdown report shows the timeline instead of the tables."""


@dataclass(frozen=True, slots=True)
class Report:
    """The whole report."""

    title: str
    notes: list[str]
    """Missing inputs, and what the reader must know about the measurements."""
    sections: list[Section]

    def to_markdown(self) -> str:
        """Return the report in Markdown."""
        parts = [f"# {self.title}", ""]
        if self.notes:
            parts += [*(f"- {note}" for note in self.notes), ""]
        for section in self.sections:
            parts += [f"## {section.title}", "", section.how, ""]
            parts += [section.picture] if section.picture else [table.to_markdown() for table in section.tables]
        return "\n".join(parts)

    def to_values(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        sections = [
            {
                "title": section.title,
                "how": section.how,
                "tables": [
                    {"caption": table.caption, "columns": list(table.columns), "rows": table.rows}
                    for table in section.tables
                ],
            }
            for section in self.sections
        ]
        return {"title": self.title, "notes": self.notes, "sections": sections}


@dataclass(frozen=True, slots=True)
class Input:
    """A file that a benchmark wrote."""

    name: str
    """Key of `COMMANDS`."""
    top: CheckedObject

    @property
    def facts(self) -> dict[str, str]:
        """The machine and the versions, as the benchmark recorded them, without the machine's own name."""
        if self.name in ("cold start", "retrieval", "odd texts"):
            run = self.top.child("run").value
            return {name: str(value) for name, value in run.items() if value not in (None, "")}
        machine, commit = self.top.child("machine_info").value, self.top.child("commit_info").value
        cpu = machine.get("cpu") if isinstance(machine.get("cpu"), Mapping) else {}
        dirty = ", with changes" if commit.get("dirty") else ""
        facts = {
            "date": self.top.value.get("datetime"),
            "cpu": cpu.get("brand_raw"),
            "cores": cpu.get("count"),
            "python": machine.get("python_version"),
            "commit": f"{commit['id'][:12]}{dirty}" if isinstance(commit.get("id"), str) else None,
        }
        return {name: str(value) for name, value in facts.items() if value not in (None, "")}

    def benchmarks(self, mark: str) -> list[CheckedObject]:
        """Return the benchmarks of pytest-benchmark whose extra_info has the key ``mark``.

        Raises:
            ManifestError: no benchmark has the key.
        """
        found = [each for each in self.top.children("benchmarks") if mark in each.child("extra_info").value]
        if not found:
            raise self.top.error("benchmarks", f"holds no benchmark whose extra_info has {mark!r}")
        return found


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the cold start."""

    ms: float
    stages: tuple[Stage, ...]


def main() -> None:
    """Read the inputs and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    written_by = "JSON that pytest-benchmark wrote for"
    parser.add_argument("--cold", type=Path, metavar="FILE", help="JSON that cold_start.py wrote")
    parser.add_argument("--throughput", type=Path, metavar="FILE", help=f"{written_by} test_throughput.py")
    parser.add_argument("--operations", type=Path, metavar="FILE", help=f"{written_by} test_operations.py")
    parser.add_argument("--retrieval", type=Path, metavar="FILE", help="JSON that retrieval.py wrote")
    parser.add_argument("--odd-texts", type=Path, metavar="FILE", help="JSON that odd_texts.py wrote")
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/all-MiniLM-L6-v2"), help="its folder")
    parser.add_argument("--markdown", type=Path, required=True, metavar="FILE", help="where to write the report")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write the report as JSON")
    options = parser.parse_args()
    paths = {"cold start": options.cold, "throughput": options.throughput, "operations": options.operations}
    paths |= {"retrieval": options.retrieval, "odd texts": options.odd_texts}
    try:
        manifest = Manifest.read(options.bundle)
    except ManifestError as error:
        sys.exit(f"error: {error} (`make artifacts` builds the default bundle)")
    given = {name: path for name, path in paths.items() if path is not None}
    try:
        inputs = {name: Input(name, parse_object(path.read_bytes(), str(path))) for name, path in given.items()}
        report = compose(manifest, inputs)
    except OSError as error:
        sys.exit(f"error: {error.filename} cannot be read: {error.strerror}")
    except ManifestError as error:
        command = next(COMMANDS[name] for name, path in given.items() if error.path.startswith(str(path)))
        sys.exit(f"error: {error.path}: {error.reason} (`{command}` writes such a file)")
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    try:
        write(options.markdown, report.to_markdown())
        write(options.json, json.dumps(report.to_values(), ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        sys.exit(f"error: {error.filename} cannot be written: {error.strerror}")


def compose(manifest: Manifest, inputs: Mapping[str, Input]) -> Report:
    """Return the report of the given inputs.

    Raises:
        ManifestError: an input does not have the form that its command writes.
    """
    cold, throughput, operations, retrieval, odd_texts = (inputs.get(name) for name in COMMANDS)
    sections = [
        *(_cold_start(cold) if cold else []),
        *([_throughput(throughput)] if throughput else []),
        _accuracy(manifest),
        *([_retrieval(retrieval, manifest)] if retrieval else []),
        *([_odd_texts(odd_texts)] if odd_texts else []),
        *([_operations(operations)] if operations else []),
        _machine(manifest, inputs),
    ]
    return Report(f"firstvec, measured: {manifest.model.name}", _notes(inputs), sections)


def _notes(inputs: Mapping[str, Input]) -> list[str]:
    notes = [
        f"Missing here: {name}. `{command}` measures it." for name, command in COMMANDS.items() if name not in inputs
    ]
    if "cold start" in inputs:
        run = inputs["cold start"].top.child("run")
        rounds, cores = run.integer("rounds", 1, 10**6), run.integer("cores", 1, 10**6)
        if (load := run.number("load_average", 0, math.inf)) > cores:
            notes.append(f"The machine was busy when the cold start began: load average {load:.1f} on {cores} cores.")
        if rounds < FEW_ROUNDS:
            notes.append(f"The cold start was measured in {rounds} rounds only.")
    for fact in ("cpu", "python"):
        values = {each.facts[fact] for each in inputs.values() if fact in each.facts}
        if len(values) > 1:
            notes.append(
                f"The inputs come from different machines or versions: {fact} was {' and '.join(sorted(values))}."
            )
    return notes


def _cold_start(cold: Input) -> list[Section]:
    top = cold.top
    run, figures = top.child("run"), top.child("figures")
    rounds, page_cache = run.integer("rounds", 1, 10**6), run.text("page cache")
    samples = {name: _processes(top.child("samples"), name, rounds) for name in figures.value}
    headings = [*dict.fromkeys(heading for name in figures.value for heading in figures.child(name).value)]
    numbers = {heading: "{:,.2f}" if heading.startswith("÷") else "{:,.1f}" for heading in headings}
    rows: list[list[Value]] = [
        [name, *(_number(figures.child(name), heading) for heading in headings)] for name in figures.value
    ]
    tables = [Table("All programs", {"program": "", **numbers}, rows)]
    kinds = {each.name: each for each in PROGRAMS if each.vector and each.name in samples}
    peers = [name for name, each in kinds.items() if "firstvec" not in " ".join((each.code, *each.command))]
    if peers and len(peers) < len(kinds):
        ratios: list[list[Value]] = [
            [name, *(_ratio(samples[peer], samples[name]) for peer in peers)] for name in kinds if name not in peers
        ]
        tables.append(Table("Times sooner than each peer", {"program": "", **dict.fromkeys(peers, "{:,.1f}")}, ratios))
    derived = top.numbers("derived")
    if derived:
        tables.append(Table("Summed up", {"what": "", "figure": "{:,.2f}"}, [[*each] for each in derived.items()]))
    how = (
        f"`{COMMANDS['cold start']}`: wall time of fresh processes from exec to exit, {rounds} rounds, page cache "
        f"{page_cache}. Each round runs each program once. A ratio compares two times of the same round, and the table "
        f"has the median of the rounds' ratios. × means times sooner. ÷ means the time divided by that of the {FLOOR}. "
        f"The {FLOOR} is `import numpy, onnxruntime, tokenizers`. MB is 10^6 bytes."
    )
    sections = [Section("Time to the first vector", how, tables)]
    typical = {}
    pictured = top.child("pictured")
    for name in pictured.value:
        processes = sorted(_processes(pictured, name, PICTURES), key=lambda process: process.ms)
        if processes[PICTURES // 2].stages:
            typical[name] = processes[PICTURES // 2]
    if typical:
        stages: list[list[Value]] = [
            [name, *stage] for name, process in typical.items() for stage in sorted(process.stages, key=lambda s: s[1])
        ]
        columns = {"program": "", "stage": "", "from, ms": "{:,.1f}", "to, ms": "{:,.1f}"}
        how = (
            f"`{COMMANDS['cold start']}`: the median of {PICTURES} further processes, for each program. The process "
            "itself timed its stages. Stages of different threads overlap."
        )
        picture = markdown_timeline({name: (process.ms, process.stages) for name, process in typical.items()})
        sections.append(Section("Where the milliseconds go", how, [Table("Stages", columns, stages)], picture))
    return sections


def _processes(samples: CheckedObject, name: str, rounds: int) -> list[Process]:
    items = samples.children(name)
    if len(items) != rounds:
        raise samples.error(name, f"holds {len(items)} processes, not {rounds}")
    return [Process(item.number("ms", 1e-6, math.inf), _stages(item)) for item in items]


def _stages(item: CheckedObject) -> tuple[Stage, ...]:
    try:
        stages = tuple((str(name), float(begin), float(end)) for name, begin, end in item.value.get("stages") or ())
    except (TypeError, ValueError):
        raise item.error("stages", "is not an array of [name, begin, end]") from None
    if not all(0 <= begin <= end < math.inf for _, begin, end in stages):
        raise item.error("stages", "holds a stage that ends before it begins")
    return stages


def _ratio(above: Sequence[Process], below: Sequence[Process]) -> float:
    return median(x.ms / y.ms for x, y in zip(above, below, strict=True))


def _number(item: CheckedObject, key: str) -> float | None:
    return item.optional(key, lambda name: item.number(name, -math.inf, math.inf))


def _throughput(throughput: Input) -> Section:
    speeds: dict[str, dict[str, CheckedObject]] = {}
    for each in throughput.benchmarks("subject"):
        extra = each.child("extra_info")
        speeds.setdefault(extra.text("subject"), {})[each.text("group")] = extra
    cases = [*dict.fromkeys(case for found in speeds.values() for case in found)]
    columns, rows = {"program": ""}, []
    for case in cases:
        columns |= {f"{case}, texts/s": "{:,.1f}", f"{case}, worst cosine": "{:.5f}"}
    for subject, found in speeds.items():
        row: list[Value] = [subject]
        for case in cases:
            extra = found.get(case)
            row += [extra.number(key, -1, math.inf) if extra else None for key in ("texts per second", "worst cosine")]
        rows.append(row)
    how = (
        f"`{COMMANDS['throughput']}`: warm models, each program's rounds one after the other. The worst cosine "
        f"compares with the vectors of {PEER} for the same texts."
    )
    return Section("Throughput", how, [Table("Texts per second and worst cosine", columns, rows)])


def _accuracy(manifest: Manifest) -> Section:
    # Heading → format, and figure of an artifact.
    figures: dict[str, tuple[str, Callable[[Artifact], Value]]] = {
        "MB": ("{:,.1f}", lambda each: each.size / 1e6),
        "cosine, mean": ("{:.5f}", lambda each: each.quality.cosine_mean),
        "cosine, 1st percentile": ("{:.5f}", lambda each: each.quality.cosine_p1),
        "cosine, worst": ("{:.5f}", lambda each: each.quality.worst_cosine),
        "largest difference": ("{:.1e}", lambda each: each.quality.max_abs_diff),
        "same neighbors, %": ("{:.2f}", lambda each: 100 * each.quality.neighbour_overlap),
        "cosine, alone vs. in a batch": ("{:.6f}", lambda each: each.quality.batch_cosine_min),
        "Spearman × 100": ("{:.2f}", lambda each: each.quality.spearman),
        "sentences": ("{:,}", lambda each: each.quality.sentences),
        "measured with": ("", lambda each: each.quality.measured_with),
    }
    columns = {"artifact": "", **{heading: form for heading, (form, _) in figures.items()}}
    rows: list[list[Value]] = [
        [each.id, *(figure(each) for _, figure in figures.values())] for each in manifest.artifacts
    ]
    how = (
        "`firstvec build` ran each artifact on sentences and compared the vectors with those of "
        "`SentenceTransformer.encode`. The worst cosine of INT8 is over odd texts, too. The figures come from the "
        "bundle's manifest."
    )
    return Section("Accuracy", how, [Table("The artifacts of the bundle", columns, rows)])


def _retrieval(retrieval: Input, manifest: Manifest) -> Section:
    figures = retrieval.top.child("figures")
    spearman = {artifact.id: artifact.quality.spearman for artifact in manifest.artifacts}
    rows: list[list[Value]] = []
    for name in figures.value:
        found = figures.child(name)
        shares: list[Value] = [100 * found.number(key, 0, 1) for key in ("top-10 overlap", "same nearest")]
        cosines: list[Value] = [found.number(key, -1, 1) for key in ("cosine, mean", "cosine, min")]
        rows.append([name, *shares, *cosines, spearman.get(name)])
    columns = {"artifact": "", **dict.fromkeys(("same of ten nearest, %", "same nearest, %"), "{:.2f}")}
    columns |= {**dict.fromkeys(("cosine, mean", "cosine, worst"), "{:.4f}"), "Spearman × 100": "{:.2f}"}
    count = retrieval.top.child("run").integer("passages", 1, 10**9)
    how = (
        f"`{COMMANDS['retrieval']}`: {count:,} paragraphs of the docstrings of Python's standard library. Each "
        "passage is the query once. The first artifact is the reference. Spearman comes from the bundle's manifest."
    )
    return Section("Retrieval", how, [Table("The nearest passages", columns, rows)])


def _odd_texts(odd_texts: Input) -> Section:
    figures, kinds, run = (odd_texts.top.child(key) for key in ("figures", "kinds", "run"))
    rows: list[list[Value]] = []
    for name in figures.value:
        found = figures.child(name)
        cosines: list[Value] = [found.number(key, -1, 1) for key in ("cosine, mean", "cosine, p1", "cosine, min")]
        rows.append([name, *cosines, found.text("worst kind")])
    columns = {"artifact": "", **dict.fromkeys(("cosine, mean", "cosine, 1st percentile", "cosine, worst"), "{:.4f}")}
    of_kinds: list[list[Value]] = [
        [kind, *(_number(kinds.child(kind), name) for name in figures.value)] for kind in kinds.value
    ]
    tables = [
        Table("All odd texts", columns | {"the worst text's kind": ""}, rows),
        Table("Worst cosine of each kind", {"kind": "", **dict.fromkeys(figures.value, "{:.4f}")}, of_kinds),
    ]
    how = (
        f"`{COMMANDS['odd texts']}`: {run.integer('texts', 1, 10**9):,} texts of {run.integer('kinds', 1, 10**6)} "
        "kinds. The first artifact is the reference."
    )
    return Section("Odd texts", how, tables)


def _operations(operations: Input) -> Section:
    rows: list[list[Value]] = []
    for each in operations.benchmarks("row"):
        extra, stats = each.child("extra_info"), each.child("stats")
        unit = extra.text("unit")
        if unit not in _UNITS:
            raise extra.error("unit", f"is {unit!r}, not one of {', '.join(_UNITS)}")
        name, a_second = _UNITS[unit]
        if unit == "bytes":
            figures = [extra.number("value", 0, math.inf)] * 3
            bar = _number(extra, "bar")
        else:
            figures = [a_second * stats.number(key, 0, math.inf) for key in ("median", "min", "max")]
            bar_us = _number(extra, "bar_us")
            bar = None if bar_us is None else bar_us * a_second / 1e6
        words = (extra.text("row"), each.text("group"), extra.text("when"))
        claimed = extra.optional("claimed", extra.text)
        rows.append([*words, *figures, bar, name, stats.integer("rounds", 1, 10**9), claimed])
    number = "{:,.2f}"
    columns = {"what": "", "category": "", "when": "", **dict.fromkeys(("median", "min", "max", "at most"), number)}
    columns |= {"unit": "", "rounds": "{:,}", "the replaced loader claims": ""}
    how = (
        f"`{COMMANDS['operations']}`: a benchmark for each operation, first in a fresh process or steady in a warm "
        "one. “At most” is the benchmark's own limit. The last column quotes the report of the loader that firstvec "
        "replaces. No benchmark measures that loader."
    )
    return Section("Operations", how, [Table("All operations", columns, rows)])


_UNITS = {"us": ("µs", 1e6), "ms": ("ms", 1e3), "bytes": ("bytes", 1.0)}
"""Unit in an operation's extra_info → the unit's name, and the number of units in a second."""


def _machine(manifest: Manifest, inputs: Mapping[str, Input]) -> Section:
    facts = {name: each.facts for name, each in inputs.items()}
    names = [*dict.fromkeys(name for found in facts.values() for name in found)]
    columns = {"what": "", **dict.fromkeys(facts, "")}
    rows: list[list[Value]] = [[name, *(found.get(name) for found in facts.values())] for name in names]
    model = manifest.model
    bundle: dict[str, Value] = {
        "model": model.name,
        "revision": model.revision,
        "SHA-256 of the source's weights": model.source_sha256,
        **{f"built with {package}": version for package, version in manifest.built_with.items()},
    }
    tables = [Table("The bundle", {"what": "", "value": ""}, [[*each] for each in bundle.items()])]
    if facts:
        tables.insert(0, Table("Where the figures were taken", columns, rows))
    how = "Each benchmark recorded the machine and the versions when it ran. The bundle's data comes from its manifest."
    return Section("Machine and versions", how, tables)


if __name__ == "__main__":
    main()
