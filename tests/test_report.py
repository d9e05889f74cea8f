"""The report shows the benchmarks' own figures, in Markdown and in JSON, and says what is missing."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from firstvec.bundle import MANIFEST_NAME
from firstvec.bundle.manifest import Manifest
from tests.conftest import REPOSITORY

PEER, FLOOR = "sentence-transformers", "import floor"
SOONER, OF_FLOOR = f"× faster than {PEER}", f"÷ {FLOOR}"
HOSTILE = "a | b <script>`x`\n# c"

Document = dict[str, Any]


def process(ms: float, peak_mb: float, cosine: float | None = None, stages: tuple[str, ...] = ()) -> Document:
    spans = [[name, ms * index / len(stages), ms * (index + 1) / len(stages)] for index, name in enumerate(stages)]
    return {"ms": ms, "peak_mb": peak_mb, "cosine": cosine, "figures": {}, "stages": spans}


@pytest.fixture
def cold() -> Document:
    """As `cold_start.py --json` writes it. No two figures are equal."""
    stages = ("interpreter", "onnxruntime: session", "print, exit")
    samples = {
        FLOOR: [process(each, 48.5) for each in (101.25, 102.5, 140.75)],
        "QUANTIZED, buffer": [process(each, 62.8125, 0.9988, stages) for each in (57.5, 55.25, 61.75)],
        "PROGRESSIVE, buffer": [process(each, 95.4375, 1.0, stages) for each in (62.25, 60.5, 70.0)],
        PEER: [process(each, 500.5, 1.0, ("import torch", "encode")) for each in (4512.5, 4700.25, 4400.0)],
        "fastembed, fp32": [process(each, 152.25, 1.0, ("encode",)) for each in (437.5, 430.0, 500.0)],
    }
    figures = {
        name: {
            "median ms": median(each["ms"] for each in processes),
            "peak MB": processes[0]["peak_mb"],
            SOONER: ratio(samples, PEER, name),
            OF_FLOOR: ratio(samples, name, FLOOR),
        }
        for name, processes in samples.items()
    }
    run = {"rounds": 3, "page cache": "warm", "date": "2026-11-23T11:07:44+00:00", "cpu": "A CPU", "cores": 2}
    run |= {"load_average": 0.5, "python": "3.11.7", "packages": "firstvec 0.1.0, numpy 2.4.6"}
    pictured = {name: each for name, each in samples.items() if each[0]["stages"]}
    top = {"run": run, "derived": {"first constructor, ms": 0.7625}, "figures": figures}
    return top | {"samples": samples, "pictured": json.loads(json.dumps(pictured))}


def ratio(samples: Document, above: str, below: str) -> float:
    return median(x["ms"] / y["ms"] for x, y in zip(samples[above], samples[below], strict=True))


def suite(*benchmarks: Document) -> Document:
    machine = {"node": "the-host", "cpu": {"brand_raw": "A CPU", "count": 2}, "python_version": "3.11.7"}
    commit = {"id": "49c46432f1dac0d4f78db73dd25d818b70426667", "dirty": True}
    return {
        "machine_info": machine, "commit_info": commit, "datetime": "2026-11-23T12:55:38", "benchmarks": [*benchmarks]
    }  # fmt: skip


def benchmark(group: str, seconds: float, rounds: int, **extra: Any) -> Document:
    stats = {"median": seconds, "min": 0.5 * seconds, "max": 1.5 * seconds, "rounds": rounds}
    return {"group": group, "name": "test", "stats": stats, "extra_info": extra}


@pytest.fixture
def throughput() -> Document:
    speeds = {"firstvec fp32": (78.25, 0.99999), PEER: (13.25, 1.0)}
    return suite(
        *(
            benchmark(case, 0.01, 7, **{"subject": name, "texts per second": factor * speed, "worst cosine": cosine})
            for name, (speed, cosine) in speeds.items()
            for case, factor in (("single", 1), ("batch 32", 16))
        )
    )


@pytest.fixture
def operations() -> Document:
    first, steady = "first in a fresh process", "steady"
    none = {"claimed": None, "bar_us": None}
    return suite(
        benchmark("create", 762.5e-6, 20, row="`Loader()`", when=first, bar_us=1100, unit="us", claimed="0.6–1.1 ms"),
        benchmark("encode", 71.25e-3, 9, row="32 texts", when=steady, unit="ms", **none),
        benchmark("memory", 1e-6, 1, row="a loader", when=steady, unit="bytes", value=1184, bar=4096, **none),
    )


@pytest.fixture
def retrieval() -> Document:
    """As `retrieval.py --json` writes it."""
    keys = ("top-10 overlap", "same nearest", "cosine, mean", "cosine, min")
    figures = {"native-fp32": (1.0, 1.0, 1.0, 0.999), "native-int8": (0.96875, 0.984375, 0.9985, 0.9625)}
    return {
        "run": {"passages": 8060, "cpu": "A CPU"},
        "figures": {name: dict(zip(keys, values, strict=True)) for name, values in figures.items()},
    }


@pytest.fixture
def odd_texts() -> Document:
    """As `odd_texts.py --json` writes it."""
    figures = {"cosine, mean": 0.9966, "cosine, p1": 0.9625, "cosine, min": 0.9321, "worst kind": "special tokens"}
    return {
        "run": {"texts": 2088, "kinds": 2, "cpu": "A CPU"},
        "figures": {"onnx-int8-avx2": figures},
        "kinds": {"numbers": {"onnx-int8-avx2": 0.9875}, "special tokens": {"onnx-int8-avx2": 0.9321}},
    }


@dataclass
class Made:
    """A run of report.py and what it wrote."""

    done: subprocess.CompletedProcess[str]
    markdown: Path
    json: Path

    def tables(self) -> dict[str, list[list[Any]]]:
        """Caption → rows of the JSON file, the headings first."""
        document = json.loads(self.json.read_text("utf-8"))
        return {
            table["caption"]: [table["columns"], *table["rows"]]
            for section in document["sections"]
            for table in section["tables"]
        }

    def shown(self) -> dict[str, list[list[str]]]:
        """Caption → rows of the Markdown report, the headings first."""
        parts = re.findall(r"^### (.+)\n\n((?:\|.*\n)+)", self.markdown.read_text("utf-8"), re.MULTILINE)
        return {
            caption: [line[2:-2].split(" | ") for line in table.splitlines() if not line.startswith("|--")]
            for caption, table in parts
        }


Make = Callable[..., Made]


@pytest.fixture
def make(bundle: Path, tmp_path: Path) -> Make:
    """Run report.py on documents: ``make(cold=…, throughput=…, operations=…)``. Name none to leave it out."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / MANIFEST_NAME).write_bytes((bundle / MANIFEST_NAME).read_bytes())

    def run(*, check: bool = True, **inputs: Document | bytes) -> Made:
        markdown, values = tmp_path / "out" / "report.md", tmp_path / "out" / "report.json"
        arguments: list[object] = ["--bundle", tmp_path / "bundle", "--markdown", markdown, "--json", values]
        for name, document in inputs.items():
            path = tmp_path / f"{name}.json"
            path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
            arguments += [f"--{name.replace('_', '-')}", path]
        command = [sys.executable, "benchmarks/report.py", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=300, check=False)
        if check:
            assert done.returncode == 0, done.stderr
        return Made(done, markdown, values)

    return run


def test_every_figure_is_one_of_the_inputs(
    make: Make, cold: Document, throughput: Document, operations: Document, bundle: Path
) -> None:
    made = make(cold=cold, throughput=throughput, operations=operations)
    tables = made.tables()
    samples = cold["samples"]
    assert tables["All programs"] == [
        ["program", "median ms", "peak MB", SOONER, OF_FLOOR],
        *([name, *figures.values()] for name, figures in cold["figures"].items()),
    ]
    assert tables["Times sooner than each peer"] == [
        ["program", PEER, "fastembed, fp32"],
        *(
            [name, ratio(samples, PEER, name), ratio(samples, "fastembed, fp32", name)]
            for name in ("PROGRESSIVE, buffer", "QUANTIZED, buffer")
        ),
    ]
    assert tables["Summed up"][1:] == [["first constructor, ms", 0.7625]]
    assert ["QUANTIZED, buffer", "print, exit", pytest.approx(2 / 3 * 57.5), 57.5] in tables["Stages"]
    assert tables["Texts per second and worst cosine"] == [
        ["program", "single, texts/s", "single, worst cosine", "batch 32, texts/s", "batch 32, worst cosine"],
        ["firstvec fp32", 78.25, 0.99999, 1252.0, 0.99999],
        [PEER, 13.25, 1.0, 212.0, 1.0],
    ]
    artifacts = {row[0]: dict(zip(tables["The artifacts of the bundle"][0], row, strict=True)) for row in
                 tables["The artifacts of the bundle"][1:]}  # fmt: skip
    for artifact in Manifest.read(bundle).artifacts:
        shown, quality = artifacts[artifact.id], artifact.quality
        assert (shown["MB"], shown["cosine, mean"]) == (artifact.size / 1e6, quality.cosine_mean)
        assert (shown["cosine, worst"], shown["measured with"]) == (quality.worst_cosine, quality.measured_with)
    first = "first in a fresh process"
    assert tables["All operations"][1:] == [
        ["`Loader()`", "create", first, *map(pytest.approx, (762.5, 381.25, 1143.75, 1100)), "µs", 20, "0.6–1.1 ms"],
        ["32 texts", "encode", "steady", *map(pytest.approx, (71.25, 35.625, 106.875)), None, "ms", 9, None],
        ["a loader", "memory", "steady", 1184, 1184, 1184, 4096, "bytes", 1, None],
    ]
    assert ["cpu", "A CPU", "A CPU", "A CPU"] in tables["Where the figures were taken"]
    assert ["commit", None, *["49c46432f1da, with changes"] * 2] in tables["Where the figures were taken"]
    assert "the-host" not in made.json.read_text("utf-8") + made.markdown.read_text("utf-8")


def test_retrieval_and_odd_texts_are_sections(make: Make, retrieval: Document, odd_texts: Document) -> None:
    made = make(retrieval=retrieval, odd_texts=odd_texts)
    tables, text = made.tables(), made.markdown.read_text("utf-8")
    assert [row[:5] for row in tables["The nearest passages"][1:]] == [
        ["native-fp32", 100.0, 100.0, 1.0, 0.999],
        ["native-int8", 96.875, 98.4375, 0.9985, 0.9625],
    ]
    assert tables["All odd texts"][1:] == [["onnx-int8-avx2", 0.9966, 0.9625, 0.9321, "special tokens"]]
    assert tables["Worst cosine of each kind"][1:] == [["numbers", 0.9875], ["special tokens", 0.9321]]
    assert "8,060 paragraphs" in text
    assert "2,088 texts of 2 kinds" in text
    assert "`make bench-retrieval` measures it" not in text
    assert "`make bench-odd-texts` measures it" not in text
    assert "`make bench-retrieval` measures it" in make(odd_texts=odd_texts).markdown.read_text("utf-8")


@pytest.mark.parametrize("key", ["figures", "run"])
@pytest.mark.parametrize("name", ["retrieval", "odd_texts"])
def test_a_damaged_retrieval_is_refused(name: str, key: str, make: Make, request: pytest.FixtureRequest) -> None:
    document = request.getfixturevalue(name)
    del document[key]
    made = make(check=False, **{name: document})
    assert made.done.returncode == 1
    assert (
        f"{name}.json: {key}: is missing (`make bench-{name.replace('_', '-')}` writes such a file)" in made.done.stderr
    )


def test_markdown_shows_the_tables_of_the_json_file(
    make: Make, cold: Document, throughput: Document, operations: Document
) -> None:
    made = make(cold=cold, throughput=throughput, operations=operations)
    shown, tables = made.shown(), made.tables()
    assert shown.keys() == tables.keys() - {"Stages"}  # drawn as a timeline
    for caption, rows in shown.items():
        for row, values in zip(rows, tables[caption], strict=True):
            for cell, value in zip(row, values, strict=True):
                if isinstance(value, (int, float)):
                    assert float(cell.replace(",", "")) == pytest.approx(value, rel=0.06, abs=0.06)
                else:
                    assert cell == ("–" if value is None else value)
    assert shown["All programs"][2] == ["QUANTIZED, buffer", "57.5", "62.8", "78.5", "0.54"]


GANTT = re.compile(
    r"```mermaid\ngantt\ntitle [^#:;\n]+\ndateFormat x\naxisFormat %Q\ntodayMarker off\n"
    r"(?:section [^#:;\n]+\n(?:[^#:;\n]+ :\d+, \d+\n)+)+```\n"
)
"""The part of mermaid's grammar (packages/mermaid/src/diagrams/gantt/parser/gantt.jison) that the report uses."""


def test_the_timeline_is_a_mermaid_chart_of_the_median_processes(make: Make, cold: Document) -> None:
    text = make(cold=cold).markdown.read_text("utf-8")
    charts = GANTT.findall(text)
    assert len(charts) == text.count("```mermaid") == 2  # programs of a second and more have another scale
    assert "section QUANTIZED, buffer, 58 ms\ninterpreter, 19.2 ms :0, 19\n" in charts[0]
    assert "onnxruntime session, 19.2 ms :19, 38\nprint, exit, 19.2 ms :38, 58\n" in charts[0]
    assert PEER not in charts[0]
    assert f"section {PEER}, 4512 ms\n" in charts[1]


@pytest.mark.parametrize("name", ["a: b; c # d", "%%{init}%% `x`", '"q" <b>'])
def test_no_name_breaks_the_timeline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    record = importlib.import_module("record")
    chart = record.markdown_timeline({name: (10.0, [(name, 2.4, 2.4), ("run", 0.0, 9.6)])})
    assert GANTT.fullmatch(chart)
    assert ":2, 3\n" in chart  # a stage of no length is still seen
    assert record.markdown_timeline({name: (10.0, [])}) == ""


def test_few_rounds_and_a_busy_machine_are_noted(make: Make, cold: Document) -> None:
    cold["run"]["load_average"] = 7.25
    made = make(cold=cold)
    for text in (made.markdown.read_text("utf-8"), made.json.read_text("utf-8"), made.done.stderr):
        assert "load average 7.2 on 2 cores" in text
        assert "measured in 3 rounds only" in text


def test_inputs_of_different_machines_are_noted(make: Make, cold: Document, throughput: Document) -> None:
    throughput["machine_info"]["cpu"]["brand_raw"] = "Another CPU"
    text = make(cold=cold, throughput=throughput).markdown.read_text("utf-8")
    assert "The inputs come from different machines or versions: cpu was A CPU and Another CPU." in text


@pytest.mark.parametrize(
    "left_out", [("cold",), ("throughput",), ("operations",), ("cold", "throughput", "operations")], ids=" ".join
)
def test_missing_input_is_noted_with_its_command(
    make: Make, cold: Document, throughput: Document, operations: Document, left_out: tuple[str, ...]
) -> None:
    inputs = {"cold": cold, "throughput": throughput, "operations": operations}
    titles = {"cold": "Time to the first vector", "throughput": "Throughput", "operations": "Operations"}
    commands = {"cold": "bench-cold", "throughput": "bench", "operations": "bench-operations"}
    made = make(**{name: document for name, document in inputs.items() if name not in left_out})
    text = made.markdown.read_text("utf-8")
    for name in inputs:
        assert (f"## {titles[name]}\n" in text) == (name not in left_out)
        assert (f". `make {commands[name]}` measures it." in text) == (name in left_out)
    assert "## Accuracy\n" in text


def test_text_with_markup_stays_text(make: Make, cold: Document, operations: Document) -> None:
    for part in ("samples", "figures"):
        cold[part][HOSTILE] = cold[part].pop("fastembed, fp32")
    operations["benchmarks"][0]["extra_info"]["row"] = HOSTILE.replace("\n", " ")
    made = make(cold=cold, operations=operations)
    text = made.markdown.read_text("utf-8")
    assert "| a \\| b &lt;script>`x` # c |" in text
    assert "<script" not in text
    assert "\n# c" not in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cold", b"{", "is not valid JSON"),
        ("cold", b"{}", "run: is missing (`make bench-cold`"),
        ("throughput", b'{"benchmarks": []}', "benchmarks: holds no benchmark whose extra_info has"),
        ("operations", b'{"benchmarks": [{}]}', "benchmarks[0].extra_info: is missing"),
    ],
)
def test_an_input_that_its_command_did_not_write_is_refused(
    name: str, content: bytes, message: str, make: Make
) -> None:
    made = make(check=False, **{name: content})
    assert made.done.returncode == 1
    assert message in made.done.stderr
    assert f"{name}.json" in made.done.stderr
    assert "`make bench" in made.done.stderr
    assert "Traceback" not in made.done.stderr
    assert not made.markdown.exists()
    assert not made.json.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cold: cold["samples"][FLOOR].pop(), "samples.import floor: holds 2 processes, not 3"),
        (lambda cold: cold["samples"][FLOOR][1].update(ms=float("inf")), "Infinity is not a JSON number"),
        (lambda cold: cold["pictured"][PEER][0].update(stages=[["x", 2.0, 1.0]]), "stages: holds a stage that ends"),
        (lambda cold: cold["run"].update(rounds=0), "run.rounds: is not between 1 and"),
        (lambda cold: cold["figures"].update(other={}), "samples.other: is missing"),
    ],
)
def test_a_damaged_cold_start_is_refused(
    change: Callable[[Document], object], message: str, make: Make, cold: Document
) -> None:
    change(cold)
    made = make(check=False, cold=cold)
    assert made.done.returncode == 1
    assert message in made.done.stderr
    assert "Traceback" not in made.done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "no/such/folder"], "make artifacts"),
        (["--cold", "no/such/file"], "no/such/file cannot be read"),
        (["--markdown", "/proc/none/report.md"], "cannot be written"),
    ],
    ids=str,
)
def test_file_that_cannot_be_read_or_written_is_explained(
    arguments: list[str], message: str, bundle: Path, tmp_path: Path
) -> None:
    given = ["--bundle", str(bundle), "--markdown", str(tmp_path / "a.md"), "--json", str(tmp_path / "a.json")]
    command = [sys.executable, "benchmarks/report.py", *given, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=300, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
