"""The report shows the benchmarks' own figures, says what is missing, and works in a browser."""

from __future__ import annotations

import ast
import copy
import json
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from firstvec.manifest import Artifact, File, Manifest, Model, Quality
from tests.chromium import EXECUTABLE, Browser

ROOT = Path(__file__).parents[1]
PEER, FLOOR = "sentence-transformers", "import floor"
SOONER, OF_FLOOR = f"× faster than {PEER}", f"÷ {FLOOR}"
HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)> & | `[x](javascript:alert(3)) \"'"

Document = dict[str, Any]
Cells = list[tuple[str, float | None]]


def process(ms: float, peak_mb: float, cosine: float | None = None, stages: tuple[str, ...] = ()) -> Document:
    spans = [[name, ms * index / len(stages), ms * (index + 1) / len(stages)] for index, name in enumerate(stages)]
    return {"ms": ms, "peak_mb": peak_mb, "cosine": cosine, "figures": {}, "stages": spans}


@pytest.fixture
def cold() -> Document:
    """As `cold_start.py --json` writes it, with round figures that no other place has."""
    stages = ("interpreter", "import firstvec", "session", "print, exit")
    samples = {
        FLOOR: [process(each, 48.5) for each in (101.25, 102.5, 140.75)],
        "QUANTIZED, buffer": [process(each, 62.8125, 0.9988, stages) for each in (57.5, 55.25, 61.75)],
        "QUANTIZED, numpy": [process(each, 77.25, 0.9988, stages) for each in (104.5, 103.75, 111.0)],
        "PROGRESSIVE, buffer": [process(each, 95.4375, 1.0, stages) for each in (62.25, 60.5, 70.0)],
        PEER: [process(each, 500.5, 1.0, ("import torch", "encode")) for each in (4512.5, 4700.25, 4400.0)],
        "fastembed, fp32": [
            process(each, 152.25, 1.0, ("import fastembed", "encode")) for each in (437.5, 430.0, 500.0)
        ],
    }
    figures = {
        name: {
            "median ms": median(each["ms"] for each in processes),
            "min": min(each["ms"] for each in processes),
            "max": max(each["ms"] for each in processes),
            "peak MB": processes[0]["peak_mb"],
            SOONER: ratio(samples, PEER, name),
            OF_FLOOR: ratio(samples, name, FLOOR),
        }
        for name, processes in samples.items()
    }
    run = {"rounds": 3, "page cache": "warm", "date": "2026-11-23T11:07:44+00:00", "cpu": "A CPU", "cores": 2}
    run |= {"flags": "avx2, avx512_vnni", "memory_mb": 25276, "load_average": 0.5, "python": "3.11.7"}
    run |= {"packages": "firstvec 0.1.0, numpy 2.4.6"}
    inputs = {"bundle": "/b", "int8": "/b/onnx/model_qint8_avx512_vnni.onnx", "fp32": "/b/onnx/model.onnx"}
    derived = {"first constructor, ms": 0.7625}
    return {"run": run, "inputs": inputs, "derived": derived, "figures": figures, "samples": samples}


def ratio(samples: Document, above: str, below: str, figure: str = "ms") -> float:
    return median(x[figure] / y[figure] for x, y in zip(samples[above], samples[below], strict=True))


def suite(*benchmarks: Document) -> Document:
    machine = {
        "node": "the-host",
        "cpu": {"brand_raw": "A CPU", "count": 2},
        "python_version": "3.11.7",
        "system": "Linux",
    }
    commit = {"id": "49c46432f1dac0d4f78db73dd25d818b70426667", "dirty": False}
    facts = {
        "machine_info": machine,
        "commit_info": commit,
        "datetime": "2026-11-23T12:55:38.2+00:00",
        "version": "5.3.1",
    }
    return {**facts, "benchmarks": list(benchmarks)}


def benchmark(group: str, seconds: float, rounds: int, **extra: Any) -> Document:
    stats = {"median": seconds, "min": 0.9 * seconds, "max": 1.5 * seconds, "rounds": rounds}
    return {"group": group, "name": "test", "stats": stats, "extra_info": extra}


@pytest.fixture
def throughput() -> Document:
    speeds = {
        "firstvec INT8, avx512_vnni": (103.5, 0.99875, 2191.5, 0.99125),
        "firstvec fp32": (78.25, 1.0, 1001.5, 0.99999),
        PEER: (13.25, 1.0, 351.5, 1.0),
    }
    rows = []
    for name, (single, single_cosine, batch, batch_cosine) in speeds.items():
        for case, speed, cosine in (("single", single, single_cosine), ("batch 32", batch, batch_cosine)):
            rows.append(
                benchmark(case, 0.01, 7, **{"subject": name, "texts per second": speed, "worst cosine": cosine})
            )
    return suite(*rows)


@pytest.fixture
def operations() -> Document:
    first, steady = "first in a fresh process", "steady"
    claims = {"claimed": "0.6–1.1 ms", "really": "1.9–2.3 s: it imports torch"}
    none = {"claimed": None, "really": None, "bar_us": None}
    return suite(
        benchmark("create", 762.5e-6, 20, row="the first `Loader()`", when=first, bar_us=1100, unit="us", **claims),
        benchmark("create", 4.125e-6, 30, row="another", when=steady, claimed="fast", really=None, bar_us=4, unit="us"),
        benchmark("encode", 71.25e-3, 9, row="32 texts", when=steady, unit="ms", **none),
        benchmark("memory", 1e-6, 1, row="a loader", when=steady, unit="bytes", value=1184, bar=4096, **none),
    )


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    """A bundle of which there is only the manifest."""
    digest = "0" * 64

    def artifact(name: str, file: str, *cosines: float, spearman: float | None) -> Artifact:
        quality = Quality(
            cosine_mean=cosines[0],
            cosine_p1=cosines[1],
            cosine_min=cosines[2],
            max_abs_diff=0.0375,
            neighbour_overlap=0.958125,
            batch_cosine_min=1.0,
            sentences=320,
            measured_with="onnxruntime 1.32.0",
            spearman=spearman,
            thresholds={},
        )
        files = (File(path=file, size=22_812_500, sha256=digest),)
        facts = {"format": "onnx", "precision": name.split("-")[1], "engine": "onnxruntime", "devices": ("cpu",)}
        facts |= {"engine_min": "1.23", "engine_below": "2", "isa": None, "isa_reason": None, "batch_invariant": True}
        return Artifact(id=name, files=files, quality=quality, **facts)

    model = Model(
        name="organisation/a-model",
        revision=None,
        source="folder",
        source_sha256=digest,
        architecture="BertModel",
        embedding_dim=384,
        max_seq_length=256,
        pooling_mode="mean",
        normalized=True,
        pad_token_id=0,
        prompts={},
        default_prompt_name=None,
    )
    manifest = Manifest(
        path="",
        model=model,
        tokenizer=File(path="tokenizer.json", size=1, sha256=digest),
        artifacts=(
            artifact("onnx-fp32", "onnx/model.onnx", 1.0, 1.0, 0.99999, spearman=82.03125),
            artifact("onnx-int8-avx2", "onnx/model_qint8_avx2.onnx", 0.99625, 0.98875, 0.98625, spearman=None),
            artifact(
                "onnx-int8-avx512_vnni",
                "onnx/model_qint8_avx512_vnni.onnx",
                0.9978125,
                0.9925,
                0.985375,
                spearman=82.05,
            ),
        ),
        support_files=(),
        built_with={"onnx": "1.23.2"},
        inputs_sha256=digest,
    )
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "firstvec.json").write_bytes(manifest.to_json())
    return folder


@dataclass
class Made:
    """A run of report.py and what it wrote."""

    done: subprocess.CompletedProcess[str]
    html: Path
    markdown: Path

    @property
    def page(self) -> Page:
        return Page(self.html.read_text("utf-8"))


Make = Callable[..., Made]


@pytest.fixture
def make(bundle_folder: Path, tmp_path: Path) -> Make:
    """Run report.py on documents: ``make(cold=…, throughput=…, operations=…)``; what is not named is left out."""

    def run(*, check: bool = True, **inputs: Document | bytes) -> Made:
        html, markdown = tmp_path / "out" / "index.html", tmp_path / "out" / "report.md"
        arguments: list[object] = ["--bundle", bundle_folder, "--html", html, "--markdown", markdown]
        for name, document in inputs.items():
            path = tmp_path / f"{name}.json"
            path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
            arguments += [f"--{name}", path]
        made = Made(report(*arguments), html, markdown)
        if check:
            assert made.done.returncode == 0, made.done.stderr
        return made

    return run


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/report.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)


class Page(HTMLParser):
    """What a page holds: its tables by id, its elements, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[Cells]] = {}
        self.key_figures: list[float] = []
        self.elements: list[str] = []
        self.sections: list[str] = []
        self.text = ""
        self.cell: tuple[str, float | None] | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        value = None if given.get("data-value") is None else float(str(given["data-value"]))
        self.elements.append(tag)
        if tag == "section":
            self.sections.append(str(given["id"]))
        elif tag == "table":
            self.table = self.tables.setdefault(str(given["id"]), [])
        elif tag == "tr":
            self.table.append([])
        elif tag in ("th", "td"):
            self.cell = ("", value)
        elif tag == "strong" and value is not None:
            self.key_figures.append(value)

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\u00a0", " ")
        if self.cell is not None:
            self.cell = (self.cell[0] + data, self.cell[1])

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td") and self.cell is not None:
            self.table[-1].append(self.cell)
            self.cell = None

    def figures(self, table: str) -> dict[str, dict[str, float | None]]:
        """First cell of a row → column → figure."""
        head, *body = self.tables[table]
        columns = [text for text, _ in head]
        return {row[0][0]: {name: value for name, (_, value) in zip(columns, row, strict=True)} for row in body}

    def words(self, table: str) -> list[list[str]]:
        return [[text for text, _ in row] for row in self.tables[table]]


def test_every_figure_is_one_of_the_inputs(
    make: Make, cold: Document, throughput: Document, operations: Document
) -> None:
    made = make(cold=cold, throughput=throughput, operations=operations)
    page = made.page
    samples = cold["samples"]
    ours = cold["figures"]["QUANTIZED, buffer"]
    assert page.key_figures == [ours[SOONER], ours[OF_FLOOR], ours["peak MB"], 0.9978125]
    assert "first vector in 57.5 ms with firstvec, 78.5 × sooner than with sentence-transformers (4.51 s)" in page.text
    for name, figures in cold["figures"].items():
        shown = page.figures("programs")[name]
        assert {heading: shown[heading] for heading in figures} == figures
    peers = page.figures("peers")
    assert peers.keys() == {"QUANTIZED, buffer", "QUANTIZED, numpy", "PROGRESSIVE, buffer"}
    assert peers["QUANTIZED, numpy"]["fastembed, fp32"] == ratio(samples, "fastembed, fp32", "QUANTIZED, numpy")
    memory = page.figures("memory-table")["QUANTIZED, buffer"]
    assert memory["median MB"] == 62.8125
    assert memory[f"{PEER} ÷ this"] == ratio(samples, PEER, "QUANTIZED, buffer", "peak_mb")
    assert page.figures("derived") == {"first constructor, ms": {"what": None, "figure": 0.7625}}
    stages = page.words("stages")
    assert ["QUANTIZED, buffer", "session", "28.8", "43.1", "14.4"] in stages  # of the median process, 57.5 ms
    speeds = page.figures("speeds")
    for each in throughput["benchmarks"]:
        extra, case = each["extra_info"], each["group"]
        assert speeds[extra["subject"]][f"{case}, texts/s"] == extra["texts per second"]
        assert speeds[extra["subject"]][f"{case}, worst cosine"] == extra["worst cosine"]
    artifacts = page.figures("artifacts")
    int8 = artifacts["onnx-int8-avx512_vnni"]
    assert (int8["MB"], int8["cosine, worst"], int8["Spearman × 100"]) == (22.8125, 0.985375, 82.05)
    assert (int8["first vector, ms"], int8["batch 32, texts/s"]) == (57.5, 2191.5)
    assert (artifacts["onnx-fp32"]["first vector, ms"], artifacts["onnx-fp32"]["batch 32, texts/s"]) == (62.25, 1001.5)
    assert (artifacts["onnx-int8-avx2"]["first vector, ms"], artifacts["onnx-int8-avx2"]["Spearman × 100"]) == (
        None,
        None,
    )
    rows = page.figures("operations-table")
    assert rows["the first Loader()"]["median"] == 762.5e-6
    assert rows["a loader"]["median"] == 1184
    assert {name: row["at most"] for name, row in rows.items()} == {
        "the first Loader()": 1100 / 1e6,
        "another": 4 / 1e6,
        "32 texts": None,
        "a loader": 4096,
    }
    assert [row[-1] for row in page.words("operations-table")] == ["held", "yes", "no", "–", "yes"]
    assert page.words("replaced-table")[1:] == [
        ["the first Loader()", "0.6–1.1 ms", "1.9–2.3 s: it imports torch", "762 µs", "first in a fresh process"],
        ["another", "fast", "–", "4.12 µs", "steady"],
    ]
    assert ["numpy", "2.4.6", "–", "–"] in page.words("machine-table")
    assert ["commit", "–", "49c46432f1da", "49c46432f1da"] in page.words("machine-table")
    assert "the-host" not in made.html.read_text("utf-8")


def test_the_page_is_one_file_that_loads_nothing(make: Make, cold: Document, throughput: Document) -> None:
    made = make(cold=cold, throughput=throughput)
    html = made.html.read_text("utf-8")
    assert not {"link", "img", "iframe", "object"} & set(made.page.elements)
    assert made.page.elements.count("script") == 1
    addresses = set(re.findall(r"https?://[^\"' <]+", html))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "default-src 'none'" in html
    assert '<meta name="viewport" content="width=device-width' in html


def test_markdown_holds_the_same_tables(make: Make, cold: Document, throughput: Document, operations: Document) -> None:
    made = make(cold=cold, throughput=throughput, operations=operations)
    text = made.markdown.read_text("utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    read = [[line[2:-2].split(" | ") for line in table.splitlines() if not line.startswith("|--")] for table in tables]
    plain = [[[cell.replace("`", "") for cell in row] for row in table] for table in read]
    assert plain == [made.page.words(name) for name in made.page.tables]


@pytest.mark.parametrize("rounds", [1, 2])
def test_few_rounds_and_a_busy_machine_are_said(make: Make, cold: Document, rounds: int) -> None:
    cold["run"] |= {"rounds": rounds, "load_average": 7.25}
    cold["samples"] = {name: processes[:rounds] for name, processes in cold["samples"].items()}
    for text in (make(cold=cold).page.text, make(cold=cold).markdown.read_text("utf-8")):
        assert "load average 7.2 on 2 cores" in text
        assert "is the median of 2 rounds only" in text if rounds == 2 else "is the one round only" in text


def test_inputs_of_different_machines_are_said(make: Make, cold: Document, throughput: Document) -> None:
    throughput["machine_info"]["cpu"]["brand_raw"] = "Another CPU"
    assert (
        "The inputs were not measured alike: CPU was A CPU and Another CPU."
        in make(cold=cold, throughput=throughput).page.text
    )


SECTIONS = {"cold": ["first-vector", "waterfall", "memory"], "throughput": [], "operations": ["replaced", "operations"]}
MISSING = {
    "cold": "This page has no cold start: it was not measured, or left out. make bench-cold measures it.",
    "throughput": "This page has no throughput: it was not measured, or left out. make bench measures it.",
    "operations": "This page has no operations: it was not measured, or left out. make bench-operations measures it.",
}


@pytest.mark.parametrize(
    "left_out", [("cold",), ("throughput",), ("operations",), ("cold", "throughput", "operations")], ids=" ".join
)
def test_what_is_left_out_is_said(
    make: Make, cold: Document, throughput: Document, operations: Document, left_out: tuple[str, ...]
) -> None:
    inputs = {"cold": cold, "throughput": throughput, "operations": operations}
    made = make(**{name: document for name, document in inputs.items() if name not in left_out})
    for name, sections in SECTIONS.items():
        assert (
            set(sections) <= set(made.page.sections)
            if name not in left_out
            else not set(sections) & set(made.page.sections)
        )
        assert (MISSING[name] in made.page.text) == (name in left_out)
        assert (MISSING[name] in made.markdown.read_text("utf-8").replace("`", "")) == (name in left_out)
    assert ("speeds" in made.page.tables) == ("throughput" not in left_out)
    assert {"accuracy", "machine"} <= set(made.page.sections)
    assert made.page.key_figures, "the accuracy is always there"


def test_programs_that_were_not_run_are_left_out(make: Make, cold: Document) -> None:
    for part in ("samples", "figures"):
        cold[part] = {"QUANTIZED, numpy": cold[part]["QUANTIZED, numpy"]}
    cold["figures"]["QUANTIZED, numpy"] |= {SOONER: None, OF_FLOOR: None}
    page = make(cold=cold).page
    assert "first vector in 104.5 ms with firstvec." in page.text
    assert page.key_figures == [77.25, 0.9978125]
    assert "peers" not in page.tables


def test_operations_without_claims_are_no_rows_of_the_replaced_loader(make: Make, operations: Document) -> None:
    for each in operations["benchmarks"]:
        for name in ("claimed", "really", "bar_us"):
            each["extra_info"].pop(name)
    page = make(operations=operations).page
    assert "replaced" not in page.sections
    assert len(page.tables["operations-table"]) == 5


def test_a_file_of_both_suites_serves_for_both(make: Make, throughput: Document, operations: Document) -> None:
    throughput["benchmarks"] += operations["benchmarks"]
    page = make(throughput=throughput, operations=throughput).page
    assert len(page.tables["speeds"]) == 4
    assert len(page.tables["operations-table"]) == 5


def test_hostile_text_is_text(make: Make, cold: Document, throughput: Document, operations: Document) -> None:
    for part in ("samples", "figures"):
        cold[part][HOSTILE] = cold[part].pop("fastembed, fp32")
    for process in cold["samples"]["QUANTIZED, buffer"]:
        process["stages"].append([HOSTILE, 0.0, 1.0])
    cold["derived"][HOSTILE] = 1.5
    cold["run"]["cpu"] = HOSTILE
    throughput["benchmarks"][0]["extra_info"]["subject"] = HOSTILE
    throughput["benchmarks"][1]["group"] = HOSTILE
    operations["benchmarks"][0]["group"] = HOSTILE
    operations["benchmarks"][0]["extra_info"] |= dict.fromkeys(("row", "when", "claimed", "really"), HOSTILE)
    made = make(cold=cold, throughput=throughput, operations=operations)
    page = made.page
    assert page.elements.count("script") == 1
    assert "img" not in page.elements
    assert HOSTILE in page.figures("programs")
    assert page.words("replaced-table")[1][:3] == [HOSTILE] * 3
    assert any(row[:2] == ["QUANTIZED, buffer", HOSTILE] for row in page.words("stages"))
    text = made.markdown.read_text("utf-8")
    assert "<script" not in text.replace("\\<", "")
    assert "[x](" not in text.replace("\\[", "")


INVALID: dict[str, tuple[str, Callable[[Document], object], str]] = {
    "no object": ("cold", lambda _: b"[]", "is an array, not an object"),
    "no JSON": ("cold", lambda _: b"{", "is not valid JSON"),
    "not finite": ("cold", lambda _: b'{"run": NaN}', "NaN is not a JSON number"),
    "no character": ("cold", lambda _: b'{"run": {"cpu": "\\ud800"}}', "run.cpu holds a lone surrogate"),
    "another file": ("cold", lambda _: b"{}", "run is missing"),
    "no samples": ("cold", lambda document: document.pop("samples"), "samples is missing"),
    "other programs": ("cold", lambda document: document["samples"].pop(PEER), "holds other programs than samples"),
    "a lost round": ("cold", lambda document: document["samples"][PEER].pop(), f"samples.{PEER} holds 2 processes"),
    "no figure": ("cold", lambda document: document["figures"][PEER].pop("median ms"), "median ms is missing"),
    "a text for a figure": (
        "cold",
        lambda document: document["samples"][PEER][1].update(ms="fast"),
        f"samples.{PEER}[1].ms is a string, not a number",
    ),
    "stages that are none": (
        "cold",
        lambda document: document["samples"][PEER][1].update(stages=[[1, 2]]),
        "stages is not an array of [name, begin, end]",
    ),
    "no benchmarks": ("throughput", lambda document: document.pop("benchmarks"), "benchmarks is missing"),
    "benchmarks of another suite": (
        "throughput",
        lambda document: [each["extra_info"].clear() for each in document["benchmarks"]],
        "holds none whose extra_info has 'subject'",
    ),
    "no median": (
        "operations",
        lambda document: document["benchmarks"][2]["stats"].pop("median"),
        "benchmarks[2].stats.median is missing",
    ),
    "another unit": (
        "operations",
        lambda document: document["benchmarks"][0]["extra_info"].update(unit="hours"),
        "unit is 'hours', not one of us, ms, bytes",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_inputs_are_one_message_and_nothing_is_written(
    make: Make, cold: Document, throughput: Document, operations: Document, case: str
) -> None:
    name, spoil, message = INVALID[case]
    document = copy.deepcopy({"cold": cold, "throughput": throughput, "operations": operations}[name])
    spoilt = spoil(document)
    made = make(check=False, **{name: spoilt if isinstance(spoilt, bytes) else document})
    assert made.done.returncode == 1
    assert made.done.stderr.startswith("error: ")
    assert made.done.stderr.count("\n") == 1
    assert message in made.done.stderr
    assert f"{name}.json" in made.done.stderr
    assert not made.html.parent.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--cold", "no/such/file.json"],
            "no/such/file.json cannot be read: No such file or directory (`make bench-cold`",
        ),
        (["--bundle", "no/such/folder"], "make artifacts"),
    ],
    ids=["input", "bundle"],
)
def test_missing_files_are_one_message(bundle_folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = report("--bundle", bundle_folder, "--html", tmp_path / "index.html", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr
    assert not (tmp_path / "index.html").exists()


def test_an_error_leaves_the_report_that_was_there(make: Make, cold: Document) -> None:
    made = make(cold=cold)
    before = made.html.read_bytes(), made.markdown.read_bytes()
    assert make(check=False, cold=b"{").done.returncode == 1
    made.markdown.unlink()
    made.markdown.mkdir()  # where no file can be put
    done = make(check=False, cold=cold).done
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"error: {made.markdown} cannot be written" in done.stderr
    assert made.html.read_bytes() == before[0]
    assert sorted(path.name for path in made.html.parent.iterdir()) == ["index.html", "report.md"]


def test_the_same_inputs_give_the_same_bytes(make: Make, cold: Document, throughput: Document) -> None:
    first = make(cold=cold, throughput=throughput)
    written = first.html.read_bytes(), first.markdown.read_bytes()
    again = make(cold=cold, throughput=throughput)
    assert (again.html.read_bytes(), again.markdown.read_bytes()) == written


def test_subjects_are_found_beside_their_artifacts() -> None:
    pairs_of = "[(sections._measured(name), subject.artifact or '') for name, subject in subjects.SUBJECTS.items()]"
    code = f"import sys; sys.path.insert(0, 'benchmarks'); import sections, subjects; print({pairs_of})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True
    )
    pairs = ast.literal_eval(done.stdout)
    assert [given for given, _ in pairs] == [artifact for _, artifact in pairs]
    assert any(artifact.startswith("onnx-int8-") for _, artifact in pairs)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if EXECUTABLE is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with Browser(tmp_path / "profile") as browser:
        yield browser


def column(table: str, index: int) -> str:
    return f"[...document.querySelectorAll('#{table} tbody tr')].map(row => row.cells[{index}].textContent)"


def values(table: str, index: int) -> str:
    """The figures of a column; null where there is none."""
    cells = f"[...document.querySelectorAll('#{table} tbody tr')].map(row => row.cells[{index}].dataset.value)"
    return f"{cells}.map(value => value === undefined ? null : Number(value))"


# The least contrast of a text to what is behind it (WCAG 2.1), of elements with a text of their own.
CONTRAST = """
(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (text) => {
    const [r, g, b] = parse(text).map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const opaque = (text) => { const parts = parse(text); return parts.length === 3 || parts[3] === 1 };
  const behind = (element) => {
    for (; element; element = element.parentElement)
      if (opaque(getComputedStyle(element).backgroundColor)) return getComputedStyle(element).backgroundColor;
  };
  let least = [99, ""];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !element.getClientRects().length || element.closest("script, style, title")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(element.closest("svg") ? style.fill : style.color), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least[0]) least = [ratio, element.outerHTML];
  }
  return least;
})()
"""
# How many colours a PNG has, and how light it is on the whole, 0 to 255.
COLOURS = """
(async () => {
  const bytes = Uint8Array.from(atob("DATA"), letter => letter.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes]));
  const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer);
  const sum = pixels.reduce((total, pixel) => total + (pixel >> 8 & 255), 0);
  return [new Set(pixels).size, sum / pixels.length, image.width, image.height];
})()
"""


def test_in_a_browser(
    browser: Browser, make: Make, cold: Document, throughput: Document, operations: Document, tmp_path: Path
) -> None:
    made = make(cold=cold, throughput=throughput, operations=operations)
    browser.resize(1280, 800)
    browser.prefer(prefers_color_scheme="light")
    browser.open(made.html.as_uri())

    # The figures are those of the inputs.
    programs, ours = cold["figures"], cold["figures"]["QUANTIZED, buffer"]
    shown = browser.evaluate("[...document.querySelectorAll('.key strong')].map(each => Number(each.dataset.value))")
    assert shown == [ours[SOONER], ours[OF_FLOOR], ours["peak MB"], 0.9978125]
    assert browser.evaluate(column("programs", 0)) == list(programs)
    medians = [figures["median ms"] for figures in programs.values()]
    assert browser.evaluate(values("programs", 1)) == medians

    # A click sorts, a second one the other way round; another column takes over by keyboard.
    heading = "#programs thead th:nth-child({})"
    sorts = "[...document.querySelectorAll('#programs thead th')].map(each => each.getAttribute('aria-sort'))"
    assert browser.evaluate(sorts) == [None] * 7
    browser.click(f"{heading.format(2)} button")
    assert browser.evaluate(values("programs", 1)) == sorted(medians)
    assert browser.evaluate(sorts) == [None, "ascending", *[None] * 5]
    browser.click(f"{heading.format(2)} button")
    assert browser.evaluate(values("programs", 1)) == sorted(medians, reverse=True)
    assert browser.evaluate(column("programs", 0)) == sorted(
        programs, key=lambda name: programs[name]["median ms"], reverse=True
    )
    assert browser.evaluate(sorts) == [None, "descending", *[None] * 5]
    browser.press("Tab", 9)
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.textContent") == "max"
    browser.press("Enter", 13, "\r")
    assert browser.evaluate(values("programs", 3)) == sorted(each["max"] for each in programs.values())
    assert browser.evaluate(sorts) == [None, None, None, "ascending", *[None] * 3]
    browser.click(f"{heading.format(1)} button")
    assert browser.evaluate(column("programs", 0)) == sorted(programs, key=str.lower)
    for rest in ([57.5, 62.25], [62.25, 57.5]):  # what has no figure stays last
        browser.click("#artifacts thead th:nth-child(10) button")
        assert browser.evaluate(values("artifacts", 9)) == [*rest, None]

    # Nothing but the page was asked for, and nothing was complained of.
    assert [each["request"]["url"] for each in browser.told("Network.requestWillBeSent")] == [made.html.as_uri()]
    assert browser.told("Log.entryAdded") == browser.told("Runtime.exceptionThrown") == []

    # It fits a laptop and a phone, folded or not, and can be read in both schemes.
    screenshots: dict[tuple[int, str], bytes] = {}
    for width, height in ((1280, 800), (375, 812)):
        for scheme in ("light", "dark"):
            browser.resize(width, height)
            browser.prefer(prefers_color_scheme=scheme)
            browser.open(made.html.as_uri())
            screenshots[width, scheme] = browser.screenshot(tmp_path / f"{width}-{scheme}.png")
            contrast, where = browser.evaluate(CONTRAST)
            assert contrast >= 4.5, f"{width}, {scheme}: {where}"
            for folded in (True, False):
                if not folded:
                    browser.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
                assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
                outside = browser.evaluate(
                    "[...document.querySelectorAll('header *, h2, p, figure, .scroll, details, svg')].filter(each => {"
                    " const box = each.getBoundingClientRect(); return box.width && box.right > innerWidth + 1 &&"
                    " !each.closest('.skip') && !each.closest('svg *') })"
                    ".map(each => each.outerHTML.slice(0, 200))"
                )
                assert outside == []
    for (width, scheme), data in screenshots.items():
        colours, lightness, *size = browser.evaluate(COLOURS.replace("DATA", b64encode(data).decode()))
        assert colours > 50, "a blank picture has one"
        assert lightness > 200 if scheme == "light" else lightness < 70
        assert size == [width, 812 if width == 375 else 800]

    # The button turns the scheme, and says which one it leads to.
    background = "getComputedStyle(document.body).backgroundColor"
    dark = browser.evaluate(background)
    assert browser.evaluate("document.getElementById('theme').textContent") == "Light colours"
    browser.click("#theme")
    assert browser.evaluate("document.getElementById('theme').textContent") == "Dark colours"
    assert browser.evaluate(background) != dark


def test_hostile_text_runs_nothing_in_a_browser(browser: Browser, make: Make, cold: Document) -> None:
    for part in ("samples", "figures"):
        cold[part][HOSTILE] = cold[part].pop("fastembed, fp32")
    made = make(cold=cold)
    browser.open(made.html.as_uri())
    assert HOSTILE in browser.evaluate(column("programs", 0))
    assert browser.evaluate("document.querySelectorAll('img, main script').length") == 0
    assert browser.told("Page.javascriptDialogOpening") == browser.told("Log.entryAdded") == []
    assert len(browser.told("Network.requestWillBeSent")) == 1
