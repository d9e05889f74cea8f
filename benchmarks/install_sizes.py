"""Measure what an install takes on disk, and its time to the first vector: firstvec with each extra, and its peers.

Each program has a virtual environment of its own, in which only its packages are: no pip and no setuptools. A size is
the sum of the sizes of all files below site-packages, the bytecode that pip compiles included (`du --apparent-size`).
The model lies beside it. Every round starts each program once, in turn, from exec to exit. The ratios are medians of
the rounds' ratios to the first program. A program whose packages cannot be installed is left out, and named.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fresh import BUNDLE, environment, measure
from programs import TEXT
from record import machine, markdown_list, markdown_table, write

from firstvec.engines.table import INSTRUCTION_SETS
from firstvec.machine.profile import ResourceProfile
from firstvec_build.source import resolve

REPOSITORY = Path(__file__).parents[1]
NATIVE, ONNX, FASTEMBED, SOURCE = "native-int8", "onnx-int8", "fastembed", "source"
_OURS = """
from firstvec import get_embedding_provider
vector = get_embedding_provider({{model!r}}, "quantized", output={output!r}).embed_query({text!r})
"""
_FASTEMBED = f"""
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
TextEmbedding.add_custom_model(
    model="local/model", pooling=PoolingType.DISABLED, normalization=False, sources=ModelSource(hf="local/model"),
    dim=384, model_file="onnx/model.onnx", additional_files=["onnx/model.onnx_data"],
)
vector = next(iter(TextEmbedding("local/model", specific_model_path={{model!r}}).embed([{TEXT!r}])))
"""
_PEER = f"""
from sentence_transformers import SentenceTransformer
vector = SentenceTransformer({{model!r}}, device="cpu").encode({TEXT!r})
"""
CHECK = "\nprint([float(value) for value in vector])\n"


@dataclass(frozen=True, slots=True)
class Program:
    """What is installed, and a program that computes one vector. ``{model}`` stands for the folder of the model."""

    name: str
    install: tuple[str, ...]
    """What to give to pip. ``{wheel}`` stands for firstvec's wheel."""
    model: str
    """Which model lies beside it: see `make_models`."""
    code: str


PROGRAMS = (
    Program("firstvec", ("{wheel}",), NATIVE, _OURS.format(output="list", text=TEXT)),
    Program("firstvec[numpy]", ("{wheel}[numpy]",), NATIVE, _OURS.format(output="numpy", text=TEXT)),
    Program("firstvec[onnx]", ("{wheel}[onnx]",), ONNX, _OURS.format(output="list", text=TEXT)),
    Program("firstvec[all]", ("{wheel}[all]",), NATIVE, _OURS.format(output="numpy", text=TEXT)),
    Program("fastembed", ("fastembed",), FASTEMBED, _FASTEMBED),
    Program("sentence-transformers", ("torch", "sentence-transformers"), SOURCE, _PEER),
)


def main() -> None:
    """Run the benchmark, print its table, and write the files that the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="the bundle of all-MiniLM-L6-v2")
    parser.add_argument("--rounds", type=int, default=10, help="counted rounds; one more warms up (default 10)")
    parser.add_argument("--only", action="append", metavar="NAME", help="measure this program only")
    parser.add_argument("--folder", type=Path, help="keep the environments here, and use the peers' again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample, and the machine")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table, and the machine")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    programs = [each for each in PROGRAMS if not options.only or each.name in options.only]
    if not programs:
        parser.error(f"--only must be one of {', '.join(each.name for each in PROGRAMS)}")
    with tempfile.TemporaryDirectory(prefix="firstvec-bench-") as name:
        folder = Path(name) if options.folder is None else options.folder.resolve()
        found = run(programs, options.bundle.resolve(), options.rounds, folder)
    facts = {"rounds": options.rounds, **machine()}
    table = make_table(found)
    print(table)
    if options.json:
        write(options.json, json.dumps({"run": facts, "programs": found}, ensure_ascii=False) + "\n")
    if options.markdown:
        write(options.markdown, f"# Install sizes\n\n{table}\n{markdown_list(facts)}")


def run(programs: list[Program], bundle: Path, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Install each program, and measure the programs in turn."""
    for name in ("dist", "models"):
        shutil.rmtree(folder / name, ignore_errors=True)
    wheel, models, found = build_wheel(folder / "dist"), make_models(bundle, folder / "models"), []
    for each in programs:
        print(f"installing {each.name}", file=sys.stderr)
        python = folder / each.name / "bin/python"
        try:
            install(each, wheel, folder / each.name)
        except subprocess.CalledProcessError as error:
            shutil.rmtree(folder / each.name, ignore_errors=True)
            print(f"left out: {each.name}: {error.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        [packages] = (folder / each.name).glob("lib/python*/site-packages")
        found.append(
            {
                "program": each.name,
                "packages": len([*packages.glob("*.dist-info")]),
                "packages_mb": size_of(packages),
                "model": each.model,
                "model_mb": size_of(models[each.model]),
                "command": (str(python), "-c", each.code.format(model=str(models[each.model])) + CHECK),
                "samples": [],
            }
        )
    environ = environment() | {"HOME": str(folder / "home"), "FIRSTVEC_CACHE": str(folder / "cache")}
    reference: list[float] = []
    for number in range(rounds + 1):
        for program in found:
            used = measure(program["command"], environ)
            vector: list[float] = json.loads(used.output.splitlines()[-1])
            reference = reference or vector
            if not (cosine := sum(a * b for a, b in zip(vector, reference, strict=True))) > 0.97:
                sys.exit(f"error: {program['program']}: wrong vector: cosine {cosine:.4f} to the first program's")
            if number:
                program["samples"].append((round(used.seconds, 4), round(used.processor_seconds, 4)))
        print(f"round {number}/{rounds}" if number else "warm-up", file=sys.stderr)
    return [{name: value for name, value in each.items() if name != "command"} for each in found]


def build_wheel(folder: Path) -> Path:
    """Build firstvec's wheel, with the engine."""
    code = f"from hatchling import build; build.build_wheel({str(folder)!r})"
    folder.mkdir(parents=True)
    call([sys.executable, "-c", code], FIRSTVEC_NATIVE="required")
    [wheel] = folder.glob("*.whl")
    return wheel


def make_models(bundle: Path, folder: Path) -> dict[str, Path]:
    """Return the folder of each model: bundles with one artifact, what fastembed opens, and the original model."""
    isa = max(ResourceProfile.detect().isa, key=lambda name: INSTRUCTION_SETS[name].rank)
    for name, artifact in ((NATIVE, NATIVE), (ONNX, f"onnx-int8-{isa}")):
        command = [str(Path(sys.executable).with_name("firstvec")), "wheel", "--model", str(bundle)]
        call([*command, "--only", artifact, "--output", str(folder / "wheels" / name)])
        [wheel] = (folder / "wheels" / name).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / name)
    fastembed = folder / FASTEMBED
    (fastembed / "onnx").mkdir(parents=True)
    for name in ("tokenizer.json", "config.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(bundle / name, fastembed)
    for name in ("model.onnx", "model.onnx_data"):
        shutil.copy(bundle / "onnx" / name, fastembed / "onnx")
    bundles = {name: next(path.parent for path in (folder / name).rglob("firstvec.json")) for name in (NATIVE, ONNX)}
    return {**bundles, FASTEMBED: fastembed, SOURCE: Path(resolve("all-MiniLM-L6-v2").path)}


def install(program: Program, wheel: Path, folder: Path) -> None:
    """Install a program's packages into a new virtual environment, which has no pip. A peer's old one is used again."""
    if folder.exists() and not any("{wheel}" in package for package in program.install):
        return
    shutil.rmtree(folder, ignore_errors=True)
    call([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet"]
    for package in program.install:  # torch first: otherwise pip would take its newest build, with CUDA
        call([*pip, "--constraint", str(REPOSITORY / "constraints.txt"), package.format(wheel=wheel)])


def call(command: list[str], **environ: str) -> None:
    """Run a command in the repository. Raise CalledProcessError, with what it wrote on stderr, if it fails."""
    subprocess.run(command, cwd=REPOSITORY, env=os.environ | environ, capture_output=True, text=True, check=True)


def size_of(folder: Path) -> float:
    """Return the sizes of all files below a folder, in 10^6 bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def make_table(found: list[dict[str, Any]]) -> str:
    """Return the table. The times are ratios to the first program's."""
    rows = [["install", "packages", "their size, MB", "model, MB", "together, MB", "first vector, ×", "processor, ×"]]
    for each in found:
        times = [
            median(one[kind] / first[kind] for one, first in zip(each["samples"], found[0]["samples"], strict=True))
            for kind in (0, 1)
        ]
        together = each["packages_mb"] + each["model_mb"]
        sizes = (f"{size:.1f}" for size in (each["packages_mb"], each["model_mb"], together))
        rows.append([each["program"], str(each["packages"]), *sizes, *(f"{time:.1f}" for time in times)])
    return markdown_table(rows)


if __name__ == "__main__":
    main()
