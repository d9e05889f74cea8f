"""The steps of fresh processes up to their first vector."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from firstvec.commands import waterfall
from firstvec.commands.waterfall import ROUNDS, conditions, measure
from firstvec.options import Options, make_options


def test_the_steps_are_those_of_a_whole_process(tiny_built: Path) -> None:
    lazy, quantized = measure([make_options(tiny_built, "lazy"), make_options(tiny_built, "quantized")])
    for measured in (lazy, quantized):
        assert measured.error is None
        assert len(measured.runs) == ROUNDS
        for run in measured.runs:
            whole = [step for step in run.steps if step["level"] == 0]
            names = ["Python starts", "import firstvec", "load", "tokenize, compute", "Python ends"]
            assert [step["name"] for step in whole] == names
            assert whole[0]["at_ms"] == 0
            assert all(step["ms"] > 0 for step in whole)
            assert all(gap > -0.01 for gap in gaps(whole))
            assert whole[3]["at_ms"] + whole[3]["ms"] == pytest.approx(run.first_vector_ms, abs=0.01)
            assert whole[4]["at_ms"] + whole[4]["ms"] == pytest.approx(run.end_ms, abs=0.01)
            load_end = whole[2]["at_ms"] + whole[2]["ms"]
            parts = [step for step in run.steps if step["level"] == 1]
            assert {"manifest", "choice", "tokenizer", "verification", "session"} <= {step["name"] for step in parts}
            for part in parts:
                assert whole[2]["at_ms"] - 0.01 <= part["at_ms"]
                assert part["at_ms"] + part["ms"] <= load_end + 0.01
            # The round before, which is not counted, has verified the files.
            assert (run.report["verification"], run.report["self_test"]) == ("remembered", "passed before")
        # Between the steps the program itself runs. In the quietest run that takes no time worth a picture.
        assert min(sum(gaps([step for step in run.steps if step["level"] == 0])) for run in measured.runs) < 3
        moments = sorted(run.first_vector_ms for run in measured.runs)
        assert measured.median.first_vector_ms == moments[ROUNDS // 2]
    assert "fp32" in lazy.median.report["artifact"]
    assert "int8" in quantized.median.report["artifact"]


def gaps(steps: list[dict[str, Any]]) -> list[float]:
    """Return the milliseconds between the end of each step and the begin of the next."""
    return [after["at_ms"] - before["at_ms"] - before["ms"] for before, after in pairwise(steps)]


def test_the_options_are_those_of_the_process(tiny_built: Path) -> None:
    options = make_options(tiny_built, "background", artifact="onnx-fp32", min_quality=0.0, device="cpu")
    [measured] = measure([options])
    assert f"model_name={str(tiny_built)!r}" in measured.program
    for argument in ("strategy='background'", "artifact='onnx-fp32'", "min_quality=0.0", "device='cpu'"):
        assert argument in measured.program
    assert "output='list'" in measured.program
    assert (measured.median.report["artifact"], measured.median.report["session"]) == ("onnx-fp32", "throughput")
    threads = {step["name"] for step in measured.median.steps}
    assert {"onnxruntime: library", "onnxruntime: environment"} <= threads


def test_a_load_that_fails_has_its_error_and_the_others_go_on(tiny_built: Path) -> None:
    unknown, known = measure([make_options("no-such/model"), make_options(tiny_built)])
    assert (unknown.runs, known.error) == ((), None)
    assert (unknown.error or "").startswith("no bundle for model 'no-such/model' was found")
    assert len(known.runs) == ROUNDS


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("raise SystemExit(3)", "its process failed: exit code 3, no message"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV, no message"),
        ("1 / 0", "exit code 1, ZeroDivisionError: division by zero"),
        ("print('not an answer')", "exit code 0, no message"),
        ("print('\\nanswer: (1, 2)', flush=True); import os; os.abort()", "killed by SIGABRT, no message"),
    ],
)
def test_a_process_that_ends_without_an_answer_is_described(
    program: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waterfall, "PROGRAM", program)
    [measured] = measure([Options()])
    assert (measured.error or "").endswith(error)


def test_what_libraries_print_is_no_answer(monkeypatch: pytest.MonkeyPatch, tiny_built: Path) -> None:
    noise = "import atexit, sys; print('before'); print('warning', file=sys.stderr); atexit.register(print, 'after')\n"
    monkeypatch.setattr(waterfall, "PROGRAM", noise + waterfall.PROGRAM)
    [measured] = measure([make_options(tiny_built)])
    assert measured.error is None


def test_a_process_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waterfall, "PROGRAM", "import time; time.sleep(60)")
    monkeypatch.setattr(waterfall, "_TIME_LIMIT", 1.0)
    [measured] = measure([Options()])
    assert measured.error == "its process failed: killed by SIGKILL after 1 s, no message"


def test_a_process_that_cannot_be_started_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    [measured] = measure([Options()])
    assert measured.error == "its process cannot be started: No such file or directory"


def test_a_slow_load_has_fewer_rounds(monkeypatch: pytest.MonkeyPatch, tiny_built: Path) -> None:
    monkeypatch.setattr(waterfall, "_SLOW", 0.0)
    [measured] = measure([make_options(tiny_built)])
    assert len(measured.runs) == waterfall.ROUNDS_IF_SLOW


def test_a_trace_of_the_user_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_built: Path) -> None:
    monkeypatch.setenv("FIRSTVEC_TRACE", str(tmp_path / "trace.jsonl"))
    measure([make_options(tiny_built)])
    assert not (tmp_path / "trace.jsonl").exists()


def test_conditions_name_the_machine() -> None:
    found = conditions()
    assert found["Python"] == sys.version.split()[0]
    assert {"system", "firstvec", "time"} <= {*found}
    assert all(found.values())
