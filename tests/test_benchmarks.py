"""The benchmarks run, measure real processes, and write what they measured."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, edit_manifest


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=900, check=False)


@pytest.fixture
def benchmark_modules(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return the function that imports a benchmark."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module


def test_cold_start_measures_and_checks(bundle: Path, tmp_path: Path) -> None:
    names = ("import floor", "QUANTIZED, buffer", "QUANTIZED, list", "firstvec encode", "sentence-transformers")
    done = run(
        "benchmarks/cold_start.py",
        *("--bundle", bundle, "--rounds", 1),
        *(argument for name in names for argument in ("--only", name)),
        *("--json", tmp_path / "cold.json", "--markdown", tmp_path / "cold.md"),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "cold.json").read_text("utf-8"))
    assert set(document["samples"]) == set(names)
    quick = document["samples"]["QUANTIZED, buffer"][0]
    assert quick["cosine"] > 0.95
    pictured = document["pictured"]["QUANTIZED, buffer"][0]
    stages = {name: (begin, end) for name, begin, end in pictured["stages"]}
    assert stages.keys() >= {"interpreter", "manifest", "tokenizer", "session", "print, exit"}
    assert all(0 <= begin <= end <= pictured["ms"] for begin, end in stages.values())
    assert document["artifacts"].keys() == {"fp32", "int8"}
    assert all((bundle / file).is_file() for file in document["artifacts"].values())
    markdown = (tmp_path / "cold.md").read_text("utf-8")
    assert "| QUANTIZED, buffer |" in markdown
    assert re.search(r"```mermaid\ngantt\n(?:.+\n)+section QUANTIZED, buffer, \d+ ms\ninterpreter, ", markdown)
    assert re.search(r"section sentence-transformers, \d+ ms\n(?:.+\n)*import torch, ", markdown)
    assert str(REPOSITORY) not in markdown + (tmp_path / "cold.json").read_text("utf-8")

    report = run(
        "benchmarks/report.py",
        *("--bundle", bundle, "--cold", tmp_path / "cold.json"),
        *("--markdown", tmp_path / "report.md", "--json", tmp_path / "report.json"),
    )
    assert report.returncode == 0, report.stderr
    assert "section QUANTIZED, buffer, " in (tmp_path / "report.md").read_text("utf-8")
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["sections"]


def test_hosts_measures_and_checks(bundle: Path, tmp_path: Path) -> None:
    done = run(
        "benchmarks/hosts.py",
        *("--bundle", bundle, "--rounds", 1, "--only", "Chroma"),
        *("--json", tmp_path / "hosts.json", "--markdown", tmp_path / "hosts.md"),
    )
    assert done.returncode == 0, done.stderr
    programs = json.loads((tmp_path / "hosts.json").read_text("utf-8"))["programs"]
    assert [each["embedder"] for each in programs] == ["import only", "firstvec", "firstvec, INT8", "its default, ONNX"]
    assert all(cpu > 0 and wall > 0 for each in programs for wall, cpu in each["samples"])
    assert "| Chroma | its default, ONNX |" in (tmp_path / "hosts.md").read_text("utf-8")


def test_install_sizes_measures_and_checks(bundle: Path, tmp_path: Path) -> None:
    done = run(
        "benchmarks/install_sizes.py",
        *("--bundle", bundle, "--rounds", 1, "--only", "firstvec", "--folder", tmp_path / "sizes"),
        *("--json", tmp_path / "sizes.json", "--markdown", tmp_path / "sizes.md"),
    )
    assert done.returncode == 0, done.stderr
    [found] = json.loads((tmp_path / "sizes.json").read_text("utf-8"))["programs"]
    assert found["packages"] == 1
    assert 0.5 < found["packages_mb"] < 5
    assert 20 < found["model_mb"] < 30
    assert [cpu > 0 and wall > 0 for wall, cpu in found["samples"]] == [True]
    assert "| firstvec | 1 |" in (tmp_path / "sizes.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cold_start.py", "--rounds", "0"], "--rounds must be at least 1"),
        (["cold_start.py", "--only", "nothing"], "invalid choice: 'nothing'"),
        (["cold_start.py", "--bundle", "no/such/folder"], "make artifacts"),
        (["sts.py"], "the following arguments are required: --sts"),
        (["sts.py", "--sts", "no/such/file"], "no/such/file: cannot be read"),
        (["hand_over.py", "--rounds", "0"], "--rounds must be at least 1"),
        (["signature.py", "--rounds", "0"], "--rounds must be at least 1"),
        (["hosts.py", "--rounds", "0"], "--rounds must be at least 1"),
        (["hosts.py", "--only", "nothing"], "--only must be one of LangChain, LlamaIndex, Chroma, Haystack, none"),
        (["install_sizes.py", "--rounds", "0"], "--rounds must be at least 1"),
        (
            ["install_sizes.py", "--only", "nothing"],
            "--only must be one of firstvec, firstvec[numpy], ",
        ),
        (["families.py", "--rounds", "0"], "--rounds must be at least 1"),
        (["warm.py", "--texts", "0"], "--rounds and --texts must be at least 1"),
        (["retrieval.py", "--passages", "10"], "--passages must be at least 20"),
        (["retrieval.py", "--bundle", "no/such/folder"], "firstvec.json: cannot be read"),
        (["odd_texts.py", "--bundle", "no/such/folder"], "firstvec.json: cannot be read"),
        (["report.py"], "the following arguments are required: --markdown, --json"),
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
    speeds = [value for name, value in figures.items() if name.startswith("texts per second")]
    assert len(speeds) == 2
    assert all(value > 0 for value in (*speeds, figures["ratio"]))
    if sys.platform == "linux":
        assert sum(name.startswith("resident MB") and value > 30 for name, value in figures.items()) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="warm.py needs Linux")
def test_warm_measures_both_artifacts(tiny_built: Path) -> None:
    done = run("benchmarks/warm.py", "--bundle", tiny_built, "--rounds", 1, "--texts", 100)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    for name in ("INT8", "fp32"):
        assert 0 < figures[name]["one text, median, ms"] <= figures[name]["one text, p99, ms"]
        assert figures[name]["Ctrl-C, longest wait, ms"] > 0
        assert "two threads ÷ one" in figures[name] or len(os.sched_getaffinity(0)) < 2
    assert len(figures["INT8"]["resident MB after each tenth of 100 texts"]) == 10


def test_families_measures_each_beside_the_floor(tmp_path: Path) -> None:
    table = tmp_path / "families.md"
    done = run("benchmarks/families.py", "--only", "StaticEmbedding", "--rounds", 1, "--markdown", table)
    assert done.returncode == 0, done.stderr
    rows = [line for line in table.read_text("utf-8").splitlines() if line.startswith("| ")]
    assert rows[1].startswith("| StaticEmbedding | native | WordPiece | ")
    assert rows[2].startswith("| import floor | – | – | ")
    assert all(float(cell) > 0 for cell in rows[1].split("|")[4:9])


@pytest.mark.skipif(sys.platform != "linux", reason="bulk.py needs Linux")
def test_bulk_measures_the_speed_and_the_memory(tiny_built: Path) -> None:
    done = run(
        "benchmarks/bulk.py", "--bundle", tiny_built, "--rounds", 1, "--texts", 3000, "--workers", 1, 2, "--no-peers"
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    for name in ("INT8", "fp32"):
        assert figures[name]["embed ÷ encode"] > 0
        assert [each["workers"] for each in figures[name]["PSS"]] == [1, 2]
        assert all(20 < each["MB"] < 2000 for each in figures[name]["PSS"])


def test_signature_measures_loads_with_and_without_a_signature(tiny_built: Path) -> None:
    done = run("benchmarks/signature.py", "--bundle", tiny_built, "--rounds", 1)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert all(figures[name] > 0 for name in figures if not name.endswith("difference, ms"))
    assert [path.name for path in tiny_built.parent.iterdir()] == [tiny_built.name]  # the signed copy is gone
    assert not (tiny_built / "model.sig").exists()


def test_retrieval_compares_every_artifact_that_is_asked_for(tiny_built: Path, tmp_path: Path) -> None:
    done = run(
        *("benchmarks/retrieval.py", "--bundle", tiny_built, "--passages", 60, "--artifact", "native-int8"),
        *("--json", tmp_path / "retrieval.json", "--markdown", tmp_path / "retrieval.md"),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "retrieval.json").read_text("utf-8"))
    assert document["run"]["passages"] == 60
    figures = document["figures"]
    assert [*figures] == ["native-fp32", "native-int8"]
    assert figures["native-fp32"]["top-10 overlap"] == figures["native-fp32"]["same nearest"] == 1.0
    assert 0.5 < figures["native-int8"]["top-10 overlap"] < 1.0
    assert f"| {figures['native-int8']['top-10 overlap']:.4f} |" in (tmp_path / "retrieval.md").read_text("utf-8")


def test_passages_are_different_paragraphs_of_the_library(benchmark_modules: Callable[[str], Any]) -> None:
    passages = benchmark_modules("retrieval").passages
    found = passages()
    assert len(found) > 5000
    assert len({*found}) == len(found)
    assert min(map(len, found)) >= 40
    few = passages(100)
    assert len(few) == 100
    assert few == [text for text in found if text in {*few}]
    assert passages(10**9) == found


def test_odd_texts_compares_every_artifact_that_is_asked_for(tiny_built: Path, tmp_path: Path) -> None:
    done = run(
        *("benchmarks/odd_texts.py", "--bundle", tiny_built, "--artifact", "native-int8"),
        *("--json", tmp_path / "odd.json", "--markdown", tmp_path / "odd.md"),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "odd.json").read_text("utf-8"))
    figures, kinds = document["figures"], document["kinds"]
    assert [*figures] == ["native-fp32", "native-int8"]
    assert figures["native-fp32"]["cosine, min"] == pytest.approx(1.0, abs=1e-6)
    worst = {kind: values["native-int8"] for kind, values in kinds.items()}
    assert figures["native-int8"]["cosine, min"] == min(worst.values()) < figures["native-int8"]["cosine, mean"] < 1
    assert worst[figures["native-int8"]["worst kind"]] == min(worst.values())
    assert "| repeated ASCII character |" in (tmp_path / "odd.md").read_text("utf-8")


def test_odd_texts_are_always_the_same_and_are_texts(benchmark_modules: Callable[[str], Any]) -> None:
    odd_texts = benchmark_modules("odd_texts").odd_texts
    kinds = odd_texts()
    assert kinds == odd_texts()
    assert len(kinds) == 25
    assert sum(map(len, kinds.values())) > 2000
    for kind, texts in kinds.items():
        assert len(texts) >= 40, kind
        assert len({*texts}) > 0.9 * len(texts), kind
        assert all(text.encode() for text in texts), kind
    assert {"[PAD][PAD]", "." * 1000, "漢" * 1000, "-" * 100} <= {text for texts in kinds.values() for text in texts}


@pytest.mark.parametrize("script", ["retrieval.py", "odd_texts.py"])
def test_an_artifact_that_the_bundle_lacks_is_named(script: str, tiny_built: Path) -> None:
    done = run(f"benchmarks/{script}", "--bundle", tiny_built, "--artifact", "onnx-int3")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: onnx-int3: not in the bundle, which holds torchscript-fp32, ")
    assert "Traceback" not in done.stderr


def test_other_cpus_finds_no_difference_on_the_same_processor(tiny_built: Path) -> None:
    done = run("benchmarks/other_cpus.py", "--bundle", tiny_built, "--artifact", "onnx-fp32", "--", sys.executable)
    assert done.returncode == 0, done.stderr
    assert "relative difference: mean 0.000000, largest 0.000000" in done.stdout
    assert "self-test: 0.000000" in done.stdout


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
    ours, peer = "firstvec INT8", "sentence-transformers"
    done = run(
        "benchmarks/sts.py",
        *("--bundle", bundle, "--sts", labelled_set, "--rounds", 1, "--only", ours, "--only", peer),
        *("--json", tmp_path / "report.json", "--markdown", tmp_path / "report.md"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    accuracy = report["accuracy"]
    assert accuracy[peer]["cosine, min"] == pytest.approx(1)
    assert 0.97 < accuracy[ours]["cosine, min"] < accuracy[ours]["cosine, mean"] < 0.9999  # INT8 and no fp32
    assert accuracy[ours]["alone vs. in a batch, min"] > 0.9999
    assert all(figures["Spearman × 100"] > 90 for figures in accuracy.values())
    for case, texts in (
        *(("All sentences, batch 32", 12), ("All sentences, longest first, batch 32", 12)),
        *(("One short text at a time", 12), ("256 tokens, batch 8", 16)),
    ):
        figures, (took,) = report["throughput"][case][ours], report["seconds"][case][ours]
        assert figures["texts per second"] == pytest.approx(texts / took)
        assert figures[f"× {peer}"] == pytest.approx(report["seconds"][case][peer][0] / took)
        assert figures["× stock dynamic INT8, per_channel=True"] is None
    # Long texts take longer, because a text of 256 tokens has some twenty times as many tokens as a short text.
    short, long = ("All sentences, batch 32", "256 tokens, batch 8")
    rates = {case: figures[ours]["texts per second"] for case, figures in report["throughput"].items()}
    assert rates[short] > 2 * rates[long]
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
    assert 0.995 < figures["cosine, min"] < 0.99999  # 8-bit weights, and no fp32
    assert figures["alone vs. in a batch, min"] > 0.999


def test_sts_ends_on_wrong_vectors(bundle: Path, labelled_set: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("torchscript", "model.onnx*"))

    def swap(manifest: dict[str, Any]) -> None:
        artifacts = {artifact["id"]: artifact for artifact in manifest["artifacts"]}
        artifacts["onnx-fp32"]["files"] = artifacts["onnx-int8-avx2"]["files"]
        manifest["artifacts"] = [artifacts["onnx-fp32"]]
        del manifest["self_test"]  # it would find the wrong vectors first

    edit_manifest(copy, swap)
    done = run("benchmarks/sts.py", "--bundle", copy, "--sts", labelled_set, "--only", "firstvec fp32, onnxruntime")
    assert done.returncode == 1
    assert "error: firstvec fp32, onnxruntime: wrong vectors: worst cosine 0.9" in done.stderr
    assert "Traceback" not in done.stderr


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as a user does, also where `make test` runs this test."""
    environ = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        ["make", *arguments], capture_output=True, text=True, cwd=REPOSITORY, timeout=300, check=False, env=environ
    )


def test_bench_sts_names_the_argument_that_is_missing() -> None:
    done = make("bench-sts")
    assert done.returncode != 0
    assert "make bench-sts STS=" in done.stderr


def test_make_lists_every_target() -> None:
    done = make()
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert listed == {*phony.split()} - {"sts-given"}  # a step of bench-sts


@pytest.mark.parametrize(
    ("target", "scripts"),
    [
        ("bench", ["benchmarks/test_throughput.py"]),
        ("bench-cold", ["benchmarks/cold_start.py", "benchmarks/hand_over.py"]),
        ("bench-operations", ["benchmarks/test_operations.py"]),
        ("bench-warm", ["benchmarks/warm.py"]),
        ("guard", ["benchmarks/guard.py"]),
        ("guard-baseline", ["benchmarks/guard.py"]),
        ("report", ["benchmarks/report.py"]),
    ],
)
def test_make_runs_scripts_with_options_that_they_have(target: str, scripts: list[str]) -> None:
    done = make("--dry-run", target, "ROUNDS=5")
    assert done.returncode == 0, done.stderr
    for script in scripts:
        (line,) = [line for line in done.stdout.replace("\\\n", " ").splitlines() if script in line]
        if not script.startswith("benchmarks/test_"):
            options = set(re.findall(r"(?<= )--[a-z-]+", line))
            assert options <= set(re.findall(r"--[a-z-]+", run(script, "--help").stdout))


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
    assert speed.keys() == {"sentence-transformers", "firstvec fp32", "firstvec fp32, onnxruntime"}
    markdown = (tmp_path / "throughput.md").read_text("utf-8")
    for name, ours in speed.items():
        ratio = ours / speed["sentence-transformers"]
        assert f"| {name} | {ours:.0f} ({ratio:.2f} ×; 1.0000) |" in markdown
    assert "- cpu: " in markdown


def test_bench_operations_writes_the_input_of_the_report(bundle: Path, tmp_path: Path) -> None:
    names = "metadata_is_at_hand or first_loader or profiles or dimension_only"
    done = run(
        *("-m", "pytest", "benchmarks/test_operations.py", "-k", names, "-W", "ignore", "-p", "no:cacheprovider"),
        *("--benchmark-max-time=0.01", f"--benchmark-json={tmp_path / 'operations.json'}"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = run(
        "benchmarks/report.py",
        *("--bundle", bundle, "--operations", tmp_path / "operations.json"),
        *("--markdown", tmp_path / "report.md", "--json", tmp_path / "report.json"),
    )
    assert report.returncode == 0, report.stderr
    markdown = (tmp_path / "report.md").read_text("utf-8")
    assert "| get_metadata() | 3 metadata access | steady | 0." in markdown
    assert "| OptimizedEmbeddingLoader() | 1 loader initialization | first in a fresh process | " in markdown
    assert "| a profile, of 100 | 7 memory | steady | " in markdown
