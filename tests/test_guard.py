"""The regression guards hold, and each trips where its operation takes twice as long."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"


@pytest.fixture(scope="module")
def guard(bundle: Path) -> Any:
    """The module; its programs find the bundle."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("guard")
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "guard.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=900)


def test_the_guards_hold(bundle: Path) -> None:
    done = run("--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["guards"]
    assert len(found) >= 5
    assert not any(each["tripped"] for each in found)


def test_each_guard_trips_where_its_operation_takes_twice_as_long(guard: Any) -> None:
    names = {each.name for each in guard.GUARDS}
    assert names == set(json.loads(guard.BASELINE.read_text("utf-8"))["ratios"])
    for _ in range(3):  # for what else the machine does meanwhile
        now = {each.name: median(each.ratios(5)) for each in guard.GUARDS if each.name in names}
        slow = [each for each in guard.GUARDS if each.name in names]
        _, tripped = guard.examine(slow, now, rounds=5, attempts=1, times=2)
        names -= {each.guard.name for each in tripped}
        if not names:
            break
    assert names == set()


class Scripted:
    """A guard whose measurements are given."""

    name, against, next = "an operation", "a peer", "make bench"

    def __init__(self, *medians: float) -> None:
        self.medians = list(medians)
        self.asked: list[tuple[int, int]] = []

    def ratios(self, rounds: int, *, times: int = 1) -> list[float]:
        self.asked.append((rounds, times))
        value = self.medians.pop(0)
        return [value, value, 100 * value]  # one round of three was disturbed


def test_a_guard_that_trips_once_is_measured_again(guard: Any) -> None:
    scripted = Scripted(2.0, 1.0)
    results, tripped = guard.examine([scripted], {"an operation": 1.0}, rounds=3)
    assert (len(scripted.asked), [each.ratio for each in results], tripped) == (2, [1.0], [])


def test_a_guard_that_trips_each_time_is_reported(guard: Any) -> None:
    scripted = Scripted(*[2.0] * guard.ATTEMPTS)
    told: list[str] = []
    results, tripped = guard.examine([scripted], {"an operation": 1.0}, tell=told.append)
    assert (len(tripped), len(results), len(scripted.asked)) == (1, 1, guard.ATTEMPTS)
    assert str(tripped[0]) == "an operation: 2 × a peer, 2.00 × the baseline"
    assert sum("measured again" in line for line in told) == guard.ATTEMPTS - 1


@pytest.mark.parametrize(("ratio", "trips"), [(1.59, False), (1.61, True), (float("nan"), True)])
def test_the_limit_is_what_is_allowed(ratio: float, trips: bool, guard: Any) -> None:
    scripted = Scripted(*[ratio] * guard.ATTEMPTS)
    assert bool(guard.examine([scripted], {"an operation": 1.0})[1]) is trips


def test_another_kind_of_processor_is_allowed_more(guard: Any) -> None:
    stored = {"flags": "avx2"}
    assert guard.allowed_here(stored, "avx2") == guard.ALLOWED
    assert guard.allowed_here(stored, "avx2, avx512_vnni") > guard.ALLOWED


def test_the_command_says_which_guard_tripped_by_how_much_and_what_to_run(bundle: Path) -> None:
    done = run("--only", "is_loaded()", "--only", "get_metadata()", "--times", "10")
    assert done.returncode == 1
    for name in ("is_loaded()", "get_metadata()"):
        (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"tripped: {name}: ")]
        assert "the baseline of " in line
        assert "Next: make bench-operations" in line


def test_an_unknown_guard_is_refused_with_the_known_ones() -> None:
    done = run("--only", "nonsense")
    assert done.returncode == 2
    assert "no guard is called nonsense; there are: import firstvec; " in done.stderr


def test_a_guarded_program_that_fails_is_an_error_and_no_result(guard: Any) -> None:
    broken = guard.Guard("broken", (sys.executable, "-c", "raise SystemExit(3)"), guard._BARE, "nothing", "nothing")
    with pytest.raises(SystemExit, match="a guarded program ended with 3"):
        broken.ratios(1)
