"""The report's sections: which figures it shows, and how each was measured. Every figure is one of the inputs'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

from charts import Mark, Point, bars, panel, ranges
from measurements import COMMANDS, ColdStart, Operation, Process, Speed, Suite
from page import DASH, Cell, Chart, KeyFigure, Report, Row, Section, Table, number
from programs import FLOOR, PEER, PICTURED, PROGRAMS
from waterfall import draw

from firstvec.manifest import Artifact, Manifest

HEADLINE = {
    "int8": ("QUANTIZED, buffer", "QUANTIZED, list", "QUANTIZED, numpy"),
    "fp32": ("PROGRESSIVE, buffer", "PROGRESSIVE, list", "PROGRESSIVE, numpy"),
}
"""Precision → the program that stands for it: the first of them that was run."""
CASE = "batch 32"
"""The case of texts that stands for speed beside an artifact; the first one where it was not run."""
SOONER, OF_FLOOR = f"× faster than {PEER}", f"÷ {FLOOR}"
"""Headings of `cold_start.py`."""
FEW_ROUNDS = 5
NAMES = {
    "cpu": "CPU",
    "flags": "instruction sets",
    "memory_mb": "memory, MB",
    "load_average": "load average at the start",
    "python": "Python",
}
"""A fact's name in the files → on the page."""
MS: Callable[[Process], float] = attrgetter("ms")
PEAK: Callable[[Process], float] = attrgetter("peak_mb")


def compose(
    manifest: Manifest, cold: ColdStart | None, throughput: Suite[Speed] | None, operations: Suite[Operation] | None
) -> Report:
    """Choose what the report shows of the inputs that there are."""
    sections: list[Section] = []
    if cold:
        sections += [_first_vector(cold), _waterfall(cold), _memory(cold)]
    sections.append(_accuracy(manifest, cold, throughput))
    if operations:
        sections += [_replaced(operations), _operations(operations)]
    inputs = {"cold start": cold, "throughput": throughput, "operations": operations}
    facts = {name: given.facts for name, given in inputs.items() if given}
    sections.append(_machine(manifest, facts))
    result, details, key_figures = _headline(manifest, cold)
    return Report(
        title=f"firstvec, measured: {manifest.model.name.rpartition('/')[2]}",
        result=result,
        details=details,
        key_figures=key_figures,
        notes=(*_notes(cold, facts),),
        sections=tuple(each for each in sections if each.parts),
    )


def _headline(manifest: Manifest, cold: ColdStart | None) -> tuple[str, str, tuple[KeyFigure, ...]]:
    """The result in a sentence, what it holds for, and the figures that it rests on."""
    name = _program(cold, "int8")
    if cold is None or name is None:
        worst = min(manifest.artifacts, key=lambda each: each.quality.cosine_min)
        agreement = f"{worst.quality.cosine_min:.4f}"
        result = f"The artifacts’ vectors agree with those of {PEER} to a cosine of {agreement} or more."
        return result, "How soon the first vector comes was not measured for this page.", (_agreement(worst),)
    figures = cold.figures[name]
    result = f"A fresh process has its first vector in {_duration(figures['median ms'])} with firstvec"
    if figures.get(SOONER) is not None:
        result += (
            f", {figures[SOONER]:.1f}\u00a0× sooner than with {PEER} ({_duration(cold.figures[PEER]['median ms'])})"
        )
    details = [f"{name}, INT8; exec to exit, {_medians(cold)}, page cache {cold.page_cache}."]
    if full := _program(cold, "fp32"):
        ratio = cold.figures[full].get(SOONER)
        sooner = "" if ratio is None else f", {ratio:.1f}\u00a0× sooner"
        details.append(f"In full precision ({full}) it takes {_duration(cold.figures[full]['median ms'])}{sooner}.")
    machine = (cold.facts.get("cpu"), f"{cold.busy[1]} cores", cold.facts.get("date", "")[:10])
    details.append(f"{', '.join(filter(None, machine))}.")
    return f"{result}.", " ".join(details), (*_key_figures(manifest, cold, name),)


def _key_figures(manifest: Manifest, cold: ColdStart, name: str) -> list[KeyFigure]:
    figures = cold.figures[name]
    median = f"{name}; {_medians(cold)}"
    ratios = f"{name}; {_medians(cold, ' ratios')}"
    found = []
    if (value := figures.get(SOONER)) is not None:
        meaning = f"sooner to the first vector than {PEER}"
        found.append(KeyFigure(f"{value:.1f}\u00a0×", meaning, ratios, "first-vector", value))
    if (value := figures.get(OF_FLOOR)) is not None:
        meaning = "of the time that `import numpy, onnxruntime, tokenizers` takes, the import floor"
        found.append(KeyFigure(f"{value:.2f}", meaning, ratios, "first-vector", value))
    if (value := figures["peak MB"]) is not None:
        theirs = f"; {PEER}: {cold.figures[PEER]['peak MB']:,.0f}\u00a0MB" if PEER in cold.figures else ""
        found.append(KeyFigure(f"{value:.1f}\u00a0MB", f"peak memory of the process{theirs}", median, "memory", value))
    if artifact := _artifact(manifest, cold, "int8"):
        found.append(_agreement(artifact))
    return found


def _agreement(artifact: Artifact) -> KeyFigure:
    quality = artifact.quality
    meaning = f"mean cosine to the vectors of {PEER}; the worst is {quality.cosine_min:.4f}"
    if quality.spearman is not None:
        meaning += f"; Spearman × 100 on labelled pairs: {quality.spearman:.2f}"
    origin = f"{artifact.id}; {quality.sentences} sentences, at the build"
    return KeyFigure(f"{quality.cosine_mean:.4f}", meaning, origin, "accuracy", quality.cosine_mean)


def _notes(cold: ColdStart | None, facts: dict[str, dict[str, str]]) -> list[str]:
    notes = [
        f"This page has no {name}: it was not measured, or left out. `{command}` measures it."
        for name, command in COMMANDS.items()
        if name not in facts
    ]
    if cold and cold.busy[0] > cold.busy[1]:
        load, cores = cold.busy
        notes.append(f"The machine was busy as the cold start began: load average {load:.1f} on {cores} cores.")
    if cold and cold.rounds < FEW_ROUNDS:
        notes.append(f"The cold start is the {_medians(cold)} only: a first impression.")
    for fact in ("cpu", "python"):
        values = {each[fact] for each in facts.values() if fact in each}
        if len(values) > 1:
            notes.append(f"The inputs were not measured alike: {NAMES[fact]} was {' and '.join(sorted(values))}.")
    return notes


def _first_vector(cold: ColdStart) -> Section:
    parts: list[Chart | Table] = []
    names = [name for name in cold.samples if cold.has_vector(name)]
    if names:
        marks = _marks(cold, names, MS)
        floor = cold.figures.get(FLOOR, {}).get("median ms")
        line = (f"{FLOOR}, {_duration(floor)}", floor) if floor else None
        caption = (
            "Milliseconds to the first vector, on a logarithmic scale. The mark is the median; "
            "the line reaches from the shortest round to the longest."
        )
        parts.append(Chart(caption, (ranges(marks, line),), (ranges(marks, line, narrow=True),)))
    headings = (*dict.fromkeys(heading for figures in cold.figures.values() for heading in figures),)
    rows = []
    for name, figures in cold.figures.items():
        cells = (number(figures.get(heading), 2 if heading.startswith("÷") else 1) for heading in headings)
        rows.append(Row((Cell(name), *cells), _kind(name)))
    parts.append(Table("programs", "All programs", ("program", *headings), tuple(rows), frozenset(headings)))
    peers = [name for name in names if _kind(name) == "peer"]
    ours = [name for name in names if _kind(name) == "ours"]
    if peers and ours:
        against = (Row((Cell(name), *(number(cold.ratio(peer, name, MS), 1) for peer in peers))) for name in ours)
        caption = "How many times sooner than each peer"
        parts.append(Table("peers", caption, ("program", *peers), (*against,), frozenset(peers)))
    if cold.derived:
        derived = (Row((Cell(name), number(value, 2))) for name, value in cold.derived.items())
        parts.append(Table("derived", "Summed up", ("what", "figure"), (*derived,), frozenset(["figure"]), folded=True))
    how = (
        f"Wall time of fresh processes from exec to exit, {_medians(cold)}, page cache {cold.page_cache}: each round "
        "runs each program once; a ratio is taken inside a round, and the median of the rounds’ ratios is shown. × is "
        f"how many times sooner, ÷ the share of the time of the {FLOOR}, `import numpy, onnxruntime, tokenizers`."
    )
    return Section("first-vector", "Time to the first vector", how, tuple(parts))


def _waterfall(cold: ColdStart) -> Section:
    drawn = {name: cold.typical(name) for name in PICTURED if name in cold.samples and cold.typical(name).stages}
    stages = {name: (process.ms, process.stages) for name, process in drawn.items()}
    columns = ("program", "stage", "from, ms", "to, ms", "takes, ms")
    rows = (
        Row((Cell(name), Cell(stage), number(begin, 1), number(end, 1), number(end - begin, 1)), _kind(name))
        for name, process in drawn.items()
        for stage, begin, end in sorted(process.stages, key=lambda each: each[1])
    )
    how = (
        f"Of each program the process of median duration among {cold.rounds}: its stages as it timed them itself, in "
        "milliseconds from exec; stages of different threads overlap."
    )
    caption = "A row is a stage, with its milliseconds. Programs of a second and more have their own scale."
    wide, narrow = (draw(stages, style="", narrow=narrow) for narrow in (False, True))
    parts = (
        Chart(caption, (wide,), (narrow,), legend=False),
        Table("stages", "The stages as a table", columns, (*rows,), frozenset(columns[2:]), folded=True),
    )
    return Section("waterfall", "Where the milliseconds go", how, parts if drawn else ())


def _memory(cold: ColdStart) -> Section:
    names = [name for name in cold.samples if cold.has_vector(name)]
    marks = _marks(cold, names, PEAK)
    columns = ("program", "median MB", "min", "max", f"{PEER} ÷ this")
    rows = []
    for mark in sorted(marks, key=lambda mark: names.index(mark.name)):
        figures = (mark.value, mark.low, mark.high, cold.ratio(PEER, mark.name, PEAK))
        rows.append(Row((Cell(mark.name), *(number(value, 1) for value in figures)), mark.kind))
    how = (
        f"Peak resident memory of the same processes, {_medians(cold)}; the last column is the median of the rounds’ "
        "ratios. MB is 10⁶ bytes; pages of mapped weights count if they were touched, though processes share them."
    )
    parts: tuple[Chart | Table, ...] = ()
    if names:
        wide, narrow = (bars(marks, "MB", narrow=narrow) for narrow in (False, True))
        table = Table("memory-table", "Peak memory", columns, tuple(rows), frozenset(columns[1:]))
        parts = (Chart("Peak memory to the first vector, medians.", (wide,), (narrow,)), table)
    return Section("memory", "Memory to the first vector", how, parts)


def _accuracy(manifest: Manifest, cold: ColdStart | None, throughput: Suite[Speed] | None) -> Section:
    parts: list[Chart | Table] = []
    sentences = _spread([each.quality.sentences for each in manifest.artifacts])
    how = (
        f"The build ran each artifact on {sentences} sentences and compared the vectors with "
        "`SentenceTransformer.encode`; the figures are those of the manifest."
    )
    if throughput:
        cases = (*dict.fromkeys(each.case for each in throughput.rows),)
        panels = []
        for case in cases:
            speeds = [each for each in throughput.rows if each.case == case]
            points = [Point(each.subject, _owner(each), each.texts_per_second, each.worst_cosine) for each in speeds]
            panels.append(panel(case, points))
        caption = (
            "Texts per second of warm models to the right, the worst cosine upwards on a scale of nines: "
            "better is up and to the right."
        )
        parts += [Chart(caption, tuple(panels), names=cases), _speeds(throughput, cases)]
        how += (
            f" Speed is that of warm models, {_suite_medians(throughput.rows)}, one program after the other; beside it "
            f"stands the worst cosine to the vectors of {PEER} of the same texts."
        )
    if cold:
        programs = " and ".join(filter(None, (_program(cold, precision) for precision in HEADLINE)))
        how += f" An artifact’s first vector is that of {programs}; a dash: this machine was not given the artifact."
    parts.append(_artifacts(manifest, cold, throughput))
    return Section("accuracy", "Accuracy against speed", how, tuple(parts))


def _speeds(throughput: Suite[Speed], cases: Sequence[str]) -> Table:
    subjects: dict[str, dict[str, Speed]] = {}
    for each in throughput.rows:
        subjects.setdefault(each.subject, {})[each.case] = each
    columns = tuple(f"{case}, {figure}" for case in cases for figure in ("texts/s", "worst cosine"))
    rows = []
    for subject, speeds in subjects.items():
        cells = [Cell(subject)]
        for speed in map(speeds.get, cases):
            cells.append(number(speed.texts_per_second, 1) if speed else Cell(DASH))
            cells.append(number(speed.worst_cosine, 5) if speed else Cell(DASH))
        rows.append(Row(tuple(cells), _owner(next(iter(speeds.values())))))
    caption = "Texts per second and worst cosine"
    return Table("speeds", caption, ("program", *columns), tuple(rows), frozenset(columns))


def _artifacts(manifest: Manifest, cold: ColdStart | None, throughput: Suite[Speed] | None) -> Table:
    # Heading → figure of each artifact.
    figures: dict[str, Callable[[Artifact], Cell]] = {
        "MB": lambda each: number(each.size / 1e6, 1),
        "cosine, mean": lambda each: number(each.quality.cosine_mean, 5),
        "cosine, worst": lambda each: number(each.quality.cosine_min, 5),
        "1 in 100 worse than": lambda each: number(each.quality.cosine_p1, 5),
        "largest difference": lambda each: Cell(f"{each.quality.max_abs_diff:.1e}", each.quality.max_abs_diff),
        "same neighbours, %": lambda each: number(100 * each.quality.neighbour_overlap, 2),
        "alone vs. in a batch": lambda each: number(each.quality.batch_cosine_min, 6),
    }
    if any(each.quality.spearman is not None for each in manifest.artifacts):
        figures["Spearman × 100"] = lambda each: number(each.quality.spearman, 2)
    if cold:
        sooner = {
            artifact.id: cold.figures[name]["median ms"]
            for precision in HEADLINE
            if (artifact := _artifact(manifest, cold, precision)) and (name := _program(cold, precision))
        }
        figures["first vector, ms"] = lambda each: number(sooner.get(each.id), 1)
    if throughput:
        cases = [each.case for each in throughput.rows]
        case = CASE if CASE in cases else cases[0]
        speeds = {_measured(each.subject): each.texts_per_second for each in throughput.rows if each.case == case}
        figures[f"{case}, texts/s"] = lambda each: number(speeds.get(each.id), 1)
    rows = (
        Row((Cell(each.id), *(figure(each) for figure in figures.values()), Cell(each.quality.measured_with)))
        for each in manifest.artifacts
    )
    columns = ("artifact", *figures, "measured with")
    return Table("artifacts", "The bundle’s artifacts", columns, (*rows,), frozenset(figures))


def _replaced(operations: Suite[Operation]) -> Section:
    """The rows of which the replaced loader claims something."""
    replaced = [each for each in operations.rows if each.claimed or each.really]
    columns = ("what", "claimed", "what it really does, in a fresh process", "measured here", "when")
    rows = (
        Row((Cell(each.row), Cell(each.claimed or DASH), Cell(each.really or DASH), _figure(each), Cell(each.when)))
        for each in replaced
    )
    how = (
        "“Claimed” is what the replaced loader says of itself, beside it what it really does in a fresh process, both "
        f"as the suite of operations records them; “measured here” are that suite’s {_suite_medians(replaced)}, of "
        "firstvec where a row names no other program."
    )
    table = Table(
        "replaced-table", "The replaced loader beside firstvec", columns, (*rows,), frozenset(["measured here"])
    )
    return Section("replaced", "The replaced loader", how, (table,) if replaced else ())


def _operations(operations: Suite[Operation]) -> Section:
    columns = ("what", "category", "when", "median", "min", "max", "rounds", "at most", "held")
    rows = []
    for each in operations.rows:
        words = map(Cell, (each.row, each.category, each.when))
        figures = (_figure(each, value) for value in (each.value, each.low, each.high))
        bar = Cell(DASH) if each.bar is None else _figure(each, each.bar)
        rows.append(Row((*words, *figures, number(each.rounds, 0), bar, Cell(_held(each)))))
    table = Table("operations-table", "All operations", columns, tuple(rows), frozenset(columns[3:8]))
    how = (
        f"A benchmark an operation, {_suite_medians(operations.rows)}: first in a fresh process, or one of many "
        "in a warm one. “At most” is the suite’s own bar."
    )
    return Section("operations", "Operations", how, (table,))


def _machine(manifest: Manifest, facts: dict[str, dict[str, str]]) -> Section:
    parts = []
    if facts:
        packages = {
            name: dict(package.rpartition(" ")[::2] for package in each.get("packages", "").split(", "))
            for name, each in facts.items()
        }
        rows = []
        for table in (facts, packages):
            names = dict.fromkeys(name for each in table.values() for name in each if name not in ("", "packages"))
            for name in names:
                cells = (Cell(each.get(name, DASH)) for each in table.values())
                rows.append(Row((Cell(NAMES.get(name, name)), *cells)))
        parts.append(Table("machine-table", "Where the figures were taken", ("what", *facts), tuple(rows)))
    model = manifest.model
    bundle = {
        "model": model.name,
        "revision": model.revision or DASH,
        "source": model.source,
        "SHA-256 of the source’s weights": model.source_sha256,
        "SHA-256 of the build’s inputs": manifest.inputs_sha256,
        **{f"built with {package}": version for package, version in manifest.built_with.items()},
    }
    about = (Row((Cell(name), Cell(value))) for name, value in bundle.items())
    parts.append(Table("bundle", "The bundle", ("what", "value"), (*about,), folded=True))
    how = "Machine and versions as each benchmark recorded them when it ran, and the bundle’s manifest."
    return Section("machine", "Machine and versions", how, tuple(parts))


def _program(cold: ColdStart | None, precision: str) -> str | None:
    return next((each for each in HEADLINE[precision] if cold and each in cold.figures), None)


def _artifact(manifest: Manifest, cold: ColdStart, precision: str) -> Artifact | None:
    """The artifact that the programs of that precision were given."""
    return next((each for each in manifest.artifacts if each.files[0].path == cold.artifacts[precision]), None)


def _kind(name: str) -> str:
    """Whether a program is one of ours, a peer, or a part that no loader can avoid."""
    program = next((each for each in PROGRAMS if each.name == name), None)
    if program is None:
        return ""
    if "firstvec" in " ".join((program.code, *program.command)):
        return "ours"
    return "peer" if program.vector else "part"


def _measured(subject: str) -> str:
    """The artifact that a subject of `test_throughput.py` is: ``firstvec INT8, avx2`` is ``onnx-int8-avx2``."""
    name, _, isa = subject.lower().removeprefix("firstvec ").partition(", ")
    return "-".join(filter(None, ("onnx", name, isa))) if _is_ours(subject) else ""


def _is_ours(subject: str) -> bool:
    return subject.startswith("firstvec ")


def _owner(speed: Speed) -> str:
    return "ours" if _is_ours(speed.subject) else "peer"


def _marks(cold: ColdStart, names: Sequence[str], figure: Callable[[Process], float]) -> list[Mark]:
    """The programs' medians with their ranges, the least first."""
    marks = []
    for name in names:
        values = [figure(process) for process in cold.samples[name]]
        value = cold.figures[name]["median ms" if figure is MS else "peak MB"] or 0.0
        label = _duration(value) if figure is MS else f"{value:.1f} MB"
        marks.append(Mark(name, _kind(name), min(values), value, max(values), label))
    return sorted(marks, key=lambda mark: mark.value)


def _medians(cold: ColdStart, of: str = "") -> str:
    return f"median of {cold.rounds} rounds{'’' if of else ''}{of}" if cold.rounds > 1 else "one round"


def _suite_medians(rows: Sequence[Speed | Operation]) -> str:
    return f"medians of {_spread([each.rounds for each in rows])} rounds"


def _spread(values: Sequence[int]) -> str:
    low, high = min(values, default=0), max(values, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _duration(ms: float | None) -> str:
    if ms is None:
        return DASH
    return f"{ms / 1e3:.2f}\u00a0s" if ms >= 1000 else f"{ms:.1f}\u00a0ms"


def _figure(operation: Operation, value: float | None = None) -> Cell:
    value = operation.value if value is None else value
    text = f"{value:,.0f} bytes" if operation.unit == "bytes" else _time(value, operation.unit)
    return Cell(text, value)


def _time(seconds: float, unit: str) -> str:
    value, name = (seconds * 1e3, "ms") if unit == "ms" else (seconds * 1e6, "µs")
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {name}"


def _held(operation: Operation) -> str:
    if operation.bar is None:
        return DASH
    return "yes" if operation.value <= operation.bar else "no"
