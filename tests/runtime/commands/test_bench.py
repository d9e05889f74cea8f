"""`firstvec bench`. What it measures is in `test_programs`."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

import pytest

from firstvec import LoadingStrategy
from firstvec.commands import bench as bench_module
from firstvec.errors import BundleNotFound, InputError
from tests.conftest import Fresh
from tests.runtime.commands.conftest import PROGRAM

with_peer = pytest.mark.skipif(
    find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)


# torch in sys.modules would count as loaded already.
WITHOUT = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, NoTorch())
sys.modules.update(dict.fromkeys(("typer", "rich", "transformers", "sentence_transformers")))
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of an install with firstvec only: these packages cannot be imported, in no process."""
    site = tmp_path_factory.mktemp("alone")
    (site / "sitecustomize.py").write_text(WITHOUT, "utf-8")
    return {"PYTHONPATH": str(site)}


def call(**values: Any) -> None:
    defaults: dict[str, Any] = {"model": "all-MiniLM-L6-v2", "texts_file": None, "rounds": 1, "strategy": None}
    bench_module.bench(**(defaults | {"reference": None, "quiet": True, "as_json": True} | values))


def spreads(found: dict[str, Any]) -> list[dict[str, Any]]:
    """All medians and quartiles of a result."""
    rows = found["first_vector"] + found["throughput"]
    return [value for row in rows for value in row.values() if isinstance(value, dict)]


def are_right(found: dict[str, Any]) -> bool:
    return all(
        isfinite(value) and value > 0
        for spread in spreads(found)
        for value in (spread["median"], *spread["quartiles"])
        if spread["quartiles"][0] <= spread["median"] <= spread["quartiles"][1]
    )


def test_the_json_has_every_sample(tiny_built: Path, firstvec: Fresh, alone: dict[str, str]) -> None:
    lines = "".join(f"line {number}\r\n\n" for number in range(1, 601)).encode("utf-8-sig")
    done = firstvec("bench", "-m", tiny_built, "--rounds", "3", "--texts", "-", "--json", "-q", stdin=lines, **alone)
    assert done.stderr == b""
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert (found["bundle"], found["rounds"]) == (str(tiny_built), 3)
    assert found["machine"]["cpu_count"] >= 1
    assert found["machine"]["processor"]
    assert {"numpy", "onnxruntime", "tokenizers"} <= {*found["packages"]}
    assert found["texts"] == {"from": "-", "count": 600, "used": 256, "first": "line 1"}
    assert are_right(found)
    bare, numpy, *ours = found["first_vector"]
    assert (bare["program"], numpy["program"]) == ("bare interpreter", "import numpy")
    assert bare["times_bare_interpreter"] == {"median": 1, "quartiles": [1, 1]}
    assert sorted(name for each in ours for name in each["strategies"]) == sorted(
        each.value for each in LoadingStrategy
    )
    assert [each["program"] for each in ours] == [each["program"] for each in found["throughput"]]
    assert all(len(each["samples"]) == 3 for each in found["first_vector"])
    assert all(len(each["samples"]) == 5 for each in found["throughput"])
    assert len(spreads(found)) == 3 * len(found["first_vector"]) + len(found["throughput"])
    assert found["reference"] is None
    assert found["reference_problem"].startswith("sentence-transformers is not installed, so ")


def test_the_table_has_a_row_for_each_program(tiny_built: Path, alone: dict[str, str], tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one\ntwo\n", "utf-8")
    command = [PROGRAM, "bench", "--model", tiny_built, "-s", "Quantized", "--rounds", "1", "--texts", texts]
    master, terminal = pty.openpty()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=terminal, text=True, check=True, env=os.environ | alone, timeout=300
    )
    os.close(terminal)
    progress = os.read(master, 1 << 16).decode()
    os.close(master)
    # On a terminal the lines replace one another, and nothing stays.
    assert "\r\x1b[Kfirst vector: round 1/1" in progress
    assert progress.endswith("\r\x1b[K")
    assert "\n" not in progress
    spread = r"[\d.,]+ \([\d.,]+–[\d.,]+\)"
    assert re.search(rf"^  bare interpreter +{spread} +[\d.]+ +1.00 \(1.00–1.00\)$", done.stdout, re.MULTILINE)
    assert re.search(rf"^  import numpy +{spread} +[\d.]+ +{spread}$", done.stdout, re.MULTILINE)
    assert re.search(rf"^  firstvec \S*int8\S* +{spread} +[\d.]+ +{spread}  QUANTIZED$", done.stdout, re.MULTILINE)
    assert re.search(rf"^  firstvec \S*int8\S* +{spread}$", done.stdout, re.MULTILINE)
    assert "fp32" not in done.stdout
    assert f" 2 lines of {texts}, " in done.stdout
    assert "look at the quartiles" in done.stdout
    assert "sentence-transformers is not installed" in done.stdout


@with_peer
def test_the_real_bundle_beside_sentence_transformers(
    bundle: Path, fresh: Fresh, capsys: pytest.CaptureFixture[str]
) -> None:
    from firstvec_build.source import resolve

    code = """
import sys
from firstvec.commands.main import main
main(["bench", "--rounds", "1", "--json", "--quiet", "--reference", sys.argv[1]])
assert not {"torch", "transformers", "sentence_transformers", "numpy", "onnxruntime"} & sys.modules.keys()
"""
    found = json.loads(fresh(code, resolve().path).stdout)
    assert found["reference"] == [str(resolve().path), {}]
    assert found["reference_problem"] is None
    assert are_right(found)
    bare, numpy, *ours, peer = found["first_vector"]
    assert peer["program"] == "sentence-transformers"
    assert bare["milliseconds"]["median"] < peer["milliseconds"]["median"]
    assert numpy["peak_mb"]["median"] < peer["peak_mb"]["median"]
    assert bare["cosine"] is numpy["cosine"] is bare["times_sooner"] is None
    assert [each["program"] for each in found["throughput"]] == [each["program"] for each in (*ours, peer)]
    warm = {each["program"]: each for each in found["throughput"]}
    for each in ours:
        least = 0.97 if "int8" in each["program"] else 0.9999
        assert least <= each["cosine"] <= 1.00001
        assert least <= warm[each["program"]]["cosine_min"] <= 1.00001
        assert each["times_sooner"]["median"] == pytest.approx(peer["samples"][0] / each["samples"][0])
        assert warm[each["program"]]["times_reference"]["median"] > 0
    assert peer["cosine"] == pytest.approx(1)
    bench_module._print(found)
    text = capsys.readouterr().out
    assert f"\nsentence-transformers has opened {resolve().path}\n" in text
    assert re.search(r"\n  program +ms +peak MB +÷ bare +× sooner +cosine +strategies\n", text)
    assert re.search(r"\n  sentence-transformers .* 1.00 \(1.00–1.00\) +1.0000\n", text)
    assert "The vectors are not those of the reference" not in text
    found["throughput"][0]["cosine_min"] = 0.123  # as with another model of as many components
    bench_module._print(found)
    assert "\nThe vectors are not those of the reference (worst cosine 0.123)" in capsys.readouterr().out


@with_peer
def test_a_reference_with_other_components_is_an_error(bundle: Path, tiny_model: Path, firstvec: Fresh) -> None:
    done = firstvec("bench", "-s", "lazy", "--quiet", "--reference", tiny_model)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the reference gives vectors of 32 components, and the bundle vectors of 384")


def test_a_reference_needs_sentence_transformers(tiny_built: Path, firstvec: Fresh, alone: dict[str, str]) -> None:
    done = firstvec("bench", "-m", tiny_built, "-s", "lazy", "--quiet", "--reference", "x", **alone)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "error: --reference needs sentence-transformers, which is not installed: pip install "
    )


# Bad input


def test_texts_that_cannot_be_used_are_an_error(tiny_built: Path, tmp_path: Path) -> None:
    binary, blank = tmp_path / "binary", tmp_path / "blank"
    binary.write_bytes(b"text\n\xff\n")
    blank.write_text("\n  \n\r\n", "utf-8")
    for place, reason in (
        (tmp_path / "none", "cannot be read (No such file or directory)"),
        (tmp_path, "cannot be read (Is a directory)"),
        ("a\0b", "cannot be read (embedded null byte)"),
        ("", "cannot be read (No such file or directory)"),
        (binary, "is not UTF-8 (byte 5)"),
        (blank, "holds no text"),
    ):
        with pytest.raises(InputError, match=re.escape(reason)):
            call(model=str(tiny_built), texts_file=str(place))


def test_other_bad_input(tiny_built: Path, firstvec: Fresh, alone: dict[str, str]) -> None:
    with pytest.raises(BundleNotFound):
        call(model="no-such-model")
    empty = firstvec("bench", "-m", tiny_built, "--texts", "-", stdin="")
    assert (empty.returncode, empty.stderr) == (1, "error: --texts stdin holds no text: give one text a line\n")
    zero = firstvec("bench", "-m", tiny_built, "--rounds", "0")
    assert zero.returncode == 2
    assert "--rounds" in zero.stderr


def test_a_damaged_artifact_is_an_error(tiny_bundle: Path, firstvec: Fresh, alone: dict[str, str]) -> None:
    found = json.loads(firstvec("explain", "-m", tiny_bundle, "-s", "lazy", "--json").stdout)
    chosen = found["strategies"]["lazy"]["artifact"]
    manifest = json.loads((tiny_bundle / "firstvec.json").read_text("utf-8"))
    files = next(each for each in manifest["artifacts"] if each["id"] == chosen)["files"]
    path = tiny_bundle / files[0]["path"]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = firstvec("bench", "-m", tiny_bundle, "--quiet", **alone)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: firstvec {chosen}: its process ended with exit code 1: ")
    assert "is not the file that was built" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="it looks at /proc")
@pytest.mark.parametrize("step", ["opening the models", "throughput: repetition 1", "first vector: round 2"])
def test_ctrl_c_ends_all_processes(step: str, tiny_built: Path, alone: dict[str, str]) -> None:
    tag = f"FIRSTVEC_TEST_OF={os.getpid()} {step}"
    name, _, value = tag.partition("=")
    command = [PROGRAM, "bench", "-m", str(tiny_built), "--rounds", "1000"]
    environment = os.environ | alone | {name: value}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any(line.startswith(step) for line in lines)
        time.sleep(0.05)  # so that the step is under way
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    assert "Traceback" not in errors
    assert processes_with(tag) == []


def processes_with(tag: str) -> list[str]:
    """The processes with this in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"\0{tag}\0".encode() in b"\0" + (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:  # it has ended
            continue
    return found
