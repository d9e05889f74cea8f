"""The benchmarks run, measure real processes, and draw what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

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
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--only", "nothing"], "invalid choice: 'nothing'"),
        (["--bundle", "no/such/folder"], "make artifacts"),
    ],
    ids=str,
)
def test_wrong_arguments_are_explained(arguments: list[str], message: str) -> None:
    done = run("benchmarks/cold_start.py", *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_hand_over_compares_throughput_and_memory(bundle: Path) -> None:
    done = run("benchmarks/hand_over.py", "--bundle", bundle, "--rounds", 1)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    # A guard, not the figure, which is 0.99: one round of a noisy machine.
    assert 0.5 < figures["ratio"] < 2
