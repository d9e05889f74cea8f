"""The benchmarks run, measure real processes, and draw what they measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import edit_manifest

ROOT = Path(__file__).parents[1]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)


def test_cold_start_measures_checks_and_draws(bundle: Path, tmp_path: Path) -> None:
    names = ("import floor", "QUANTIZED, buffer", "QUANTIZED, list", "firstvec encode", "sentence-transformers")
    done = run(
        "benchmarks/cold_start.py",
        *("--bundle", bundle, "--rounds", 1),
        *(argument for name in names for argument in ("--only", name)),
        *("--json", tmp_path / "report.json", "--markdown", tmp_path / "report.md"),
        *("--waterfall", tmp_path / "waterfall.svg"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert set(report["samples"]) == set(names)
    quick = report["samples"]["QUANTIZED, buffer"][0]
    assert quick["cosine"] > 0.95
    stages = {name: (begin, end) for name, begin, end in quick["stages"]}
    assert stages.keys() >= {"interpreter", "onnxruntime: environment", "tokenizer", "session", "print, exit"}
    assert all(0 <= begin <= end <= quick["ms"] for begin, end in stages.values())
    assert report["derived"]["firstvec encode ÷ QUANTIZED, list"] < 3
    assert "| QUANTIZED, buffer |" in (tmp_path / "report.md").read_text("utf-8")
    picture = ElementTree.parse(tmp_path / "waterfall.svg").getroot()
    text = "".join(picture.itertext())
    assert all(part in text for part in ("QUANTIZED, buffer: ", "sentence-transformers: ", "import torch"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cold_start.py", "--rounds", "0"], "--rounds must be at least 1"),
        (["cold_start.py", "--only", "nothing"], "invalid choice: 'nothing'"),
        (["cold_start.py", "--bundle", "no/such/folder"], "make artifacts"),
        (["sts.py"], "the following arguments are required: --sts"),
        (["sts.py", "--sts", "no/such/file"], "no/such/file: cannot be read"),
    ],
    ids=str,
)
def test_wrong_arguments_are_explained(arguments: list[str], message: str) -> None:
    done = run(f"benchmarks/{arguments[0]}", *arguments[1:])
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_hand_over_compares_throughput_and_memory(bundle: Path) -> None:
    done = run("benchmarks/hand_over.py", "--bundle", bundle, "--rounds", 1)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    # A guard, not the figure, which is 0.99: one round of a noisy machine.
    assert 0.5 < figures["ratio"] < 2


def test_signature_measures_loads_with_it_and_without(tiny_built: Path) -> None:
    done = run("benchmarks/signature.py", "--bundle", tiny_built, "--rounds", 1)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert all(figures[name] > 0 for name in figures if not name.endswith("difference, ms"))
    assert [path.name for path in tiny_built.parent.iterdir()] == [tiny_built.name]  # the signed copy is gone
    assert not (tiny_built / "model.sig").exists()


@pytest.fixture
def labelled_set(tmp_path: Path) -> Path:
    """Six labelled pairs of the project's own sentences: like ones first, unlike ones last."""
    pairs = [
        ("5.0", "How do I reset my password?", "How can I reset my password?"),
        ("4.5", "A man is playing a guitar.", "A man plays the guitar."),
        ("3.0", "A dog runs over the grass.", "An animal runs outside."),
        ("1.5", "The train to Berlin is late.", "The bus to the airport is full."),
        ("0.5", "A man is playing a guitar.", "The parliament votes on the budget."),
        ("0.0", "How do I reset my password?", "Bananas ripen in a few days."),
    ]
    path = tmp_path / "labelled.tsv"
    path.write_text("".join("\t".join(pair) + "\n" for pair in pairs), "utf-8")
    return path


def test_sts_measures_accuracy_and_throughput(bundle: Path, labelled_set: Path, tmp_path: Path) -> None:
    ours, peer = "firstvec INT8, avx2", "sentence-transformers"
    done = run(
        "benchmarks/sts.py",
        *("--bundle", bundle, "--sts", labelled_set, "--rounds", 1, "--only", ours, "--only", peer),
        *("--json", tmp_path / "report.json", "--markdown", tmp_path / "report.md"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    accuracy = report["accuracy"]
    assert accuracy[peer]["cosine, min"] == pytest.approx(1)
    assert 0.97 < accuracy[ours]["cosine, min"] < accuracy[ours]["cosine, mean"] < 0.9999  # INT8, not fp32
    assert accuracy[ours]["alone vs. in a batch, min"] > 0.9999
    assert all(figures["Spearman × 100"] > 90 for figures in accuracy.values())
    for case, texts in (
        *(("All sentences, batch 32", 12), ("All sentences, longest first, batch 32", 12)),
        *(("One short text at a time", 12), ("256 tokens, batch 8", 16)),
    ):
        figures, (took,) = report["throughput"][case][ours], report["seconds"][case][ours]
        assert figures["texts per second"] == pytest.approx(texts / took)
        assert figures[f"× {peer}"] == pytest.approx(report["seconds"][case][peer][0] / took)
        assert figures["× stock dynamic INT8"] is None
    # Not a figure: long texts are long.
    short, long = ("All sentences, batch 32", "256 tokens, batch 8")
    rates = {case: figures[ours]["texts per second"] for case, figures in report["throughput"].items()}
    assert rates[short] > 3 * rates[long]
    markdown = (tmp_path / "report.md").read_text("utf-8")
    assert markdown.count(f"| {ours} |") == 5
    assert "- packages: firstvec " in markdown


@pytest.mark.skipif(not (find_spec("llama_cpp") and find_spec("gguf")), reason="bench-llama is not installed")
def test_llama_cpp_runs_the_same_model(bundle: Path, labelled_set: Path, tmp_path: Path) -> None:
    name, report = "llama.cpp q8_0", tmp_path / "report.json"
    done = run(
        "benchmarks/sts.py",
        *("--bundle", bundle, "--sts", labelled_set, "--rounds", 1, "--only", name, "--json", report),
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(report.read_text("utf-8"))["accuracy"][name]
    assert 0.995 < figures["cosine, min"] < 0.99999  # of 8-bit weights
    assert figures["alone vs. in a batch, min"] > 0.999


def test_sts_ends_on_wrong_vectors(bundle: Path, labelled_set: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("torchscript", "model.onnx*"))

    def swap(manifest: dict[str, Any]) -> None:
        artifacts = {artifact["id"]: artifact for artifact in manifest["artifacts"]}
        artifacts["onnx-fp32"]["files"] = artifacts["onnx-int8-avx2"]["files"]
        manifest["artifacts"] = [artifacts["onnx-fp32"]]

    edit_manifest(copy, swap)
    done = run("benchmarks/sts.py", "--bundle", copy, "--sts", labelled_set, "--only", "firstvec fp32")
    assert done.returncode == 1
    assert "error: firstvec fp32: wrong vectors: worst cosine 0.9" in done.stderr
    assert "Traceback" not in done.stderr


def test_bench_sts_says_what_it_needs() -> None:
    done = subprocess.run(["make", "bench-sts"], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode != 0
    assert "make bench-sts STS=" in done.stderr


def test_bench_writes_its_table(bundle: Path, tmp_path: Path) -> None:
    done = run(
        *("-m", "pytest", "benchmarks", "-k", "single and (sentence or fp32) and not fastembed and not exported"),
        *("--benchmark-max-time=0.01", "--benchmark-min-rounds=1", "-W", "ignore", "-p", "no:cacheprovider"),
        f"--markdown={tmp_path / 'throughput.md'}",
        f"--benchmark-json={tmp_path / 'throughput.json'}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "throughput.json").read_text("utf-8"))
    speed = {each["extra_info"]["subject"]: each["extra_info"]["texts per second"] for each in report["benchmarks"]}
    assert speed.keys() == {"sentence-transformers", "firstvec fp32"}
    markdown = (tmp_path / "throughput.md").read_text("utf-8")
    for name, ours in speed.items():
        ratio = ours / speed["sentence-transformers"]
        assert f"| {name} | {ours:.0f} ({ratio:.2f} ×; 1.0000) |" in markdown
    assert "- cpu: " in markdown
