"""The project's own code stays within fixed limits beside fixed work of the same run, and each limit can trip.

The limits are those of `benchmarks/guard.py`. They compare processor times of one run on one core, so they hold on any
machine, idle or busy. The comparison with an earlier run is `make guard`, which is no test.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
SLOWER = 3
"""How many times our part is done in the runs that must trip."""


def _import_guard() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        return importlib.import_module("guard")


guard = _import_guard()
NAMES = [each.name for each in guard.GUARDS]
BY_NAME = {each.name: each for each in guard.GUARDS}
LIMITS = {each.name: each.limit for each in guard.GUARDS}


@pytest.fixture(scope="module")
def _cache(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cache folder for every measured process, so that the first round fills it for all later ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRSTVEC_CACHE", str(tmp_path_factory.mktemp("guard-cache")))
        yield


@pytest.fixture(scope="module")
def results(_cache: None) -> dict[str, Any]:
    return {each.guard.name: each for each in guard.examine(guard.GUARDS, LIMITS, rounds=5)}


@pytest.fixture(scope="module")
def slowed(_cache: None) -> dict[str, float]:
    """Ratios with our part done several times. A ratio within its limit is measured again, as `examine` does it."""
    found: dict[str, float] = guard.ratios(guard.GUARDS, 3, times=SLOWER)
    for _ in range(guard.ATTEMPTS - 1):
        if within := [each for each in guard.GUARDS if found[each.name] <= LIMITS[each.name]]:
            found.update(guard.ratios(within, 3, times=SLOWER))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_guard_holds(name: str, results: dict[str, Any]) -> None:
    result = results[name]
    assert not result.tripped, f"{result}; next: {result.guard.next}"


@pytest.mark.parametrize("name", NAMES)
def test_the_guard_trips_if_the_measured_part_runs_three_times(name: str, slowed: dict[str, float]) -> None:
    assert guard.Result(BY_NAME[name], slowed[name], LIMITS[name]).tripped, f"{slowed[name]:.3g} ≤ {LIMITS[name]:.3g}"


@pytest.mark.parametrize(
    ("name", "heavier"),
    [
        ("import firstvec", "import firstvec.loader"),
        (
            "import and construct a loader",
            "from firstvec import OptimizedEmbeddingLoader; OptimizedEmbeddingLoader(); import json, logging",
        ),
        (
            "firstvec encode",
            "import sys, firstvec.commands.app\nfrom firstvec.commands.main import main\n"
            "sys.argv = ['firstvec', 'encode', 'a text', '--strategy', 'quantized', '--device', 'cpu']; main()",
        ),
    ],
)
def test_the_guard_trips_if_more_modules_are_imported(
    name: str, heavier: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(guard.PROCESSES, name, (sys.executable, "-c", heavier))
    (result,) = guard.examine([BY_NAME[name]], LIMITS, rounds=3, attempts=1)
    assert result.tripped, str(result)


def test_the_parts_run_on_one_core_if_the_system_can_do_that() -> None:
    if hasattr(os, "sched_getaffinity"):
        before = os.sched_getaffinity(0)
        with guard.one_core():
            assert len(os.sched_getaffinity(0)) == 1
        assert os.sched_getaffinity(0) == before


class Scripted:
    """A stand-in for `guard.ratios`: the measured values are given."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def __call__(self, guards: list[Any], rounds: int, *, times: int) -> dict[str, float]:
        return {each.name: self.values.pop(0) for each in guards}


@pytest.mark.parametrize(
    ("values", "trips", "measured"),
    [
        ((1.2,), False, 1),
        ((1.21, 1.0), False, 2),
        ((1.21, 9.0, 1.21), True, 3),
        ((float("nan"),) * 3, True, 3),
    ],
)
def test_a_guard_trips_only_if_every_measurement_trips(
    values: tuple[float, ...], trips: bool, measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = Scripted(*values)
    monkeypatch.setattr(guard, "ratios", scripted)
    (result,) = guard.examine([BY_NAME["import firstvec"]], LIMITS)
    assert (result.tripped, len(values) - len(scripted.values)) == (trips, measured)


def test_a_measured_process_that_fails_is_an_error_and_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(guard.PROCESSES, "import firstvec", (sys.executable, "-c", "raise SystemExit('broken')"))
    with pytest.raises(guard.fresh.ProcessFailed, match="ended with 1: broken"):
        guard.ratios([BY_NAME["import firstvec"]], 1)


# --- make guard ------------------------------------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "guard.py"), "--rounds", "1", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=900)


def test_the_command_compares_with_the_baseline_that_it_wrote(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "baseline.json"
    only = ("--baseline", path, "--only", "is_loaded()", "--only", "get_metadata()")
    done = run("--update", *only)
    assert done.returncode == 0, done.stderr
    document = json.loads(path.read_text("utf-8"))
    assert set(document["ratios"]) == {"is_loaded()", "get_metadata()"}

    baseline = dict(document["ratios"])
    document["ratios"] = {name: 10 * ratio for name, ratio in baseline.items()}
    path.write_text(json.dumps(document), "utf-8")
    done = run(*only)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("holds: ") == 2

    document["ratios"] = {**document["ratios"], "is_loaded()": baseline["is_loaded()"] / 10}
    path.write_text(json.dumps(document), "utf-8")
    done = run(*only)
    assert done.returncode == 1
    assert "holds: get_metadata(): " in done.stdout
    assert "TRIPPED: is_loaded(): " in done.stdout
    assert "  next: make bench-operations" in done.stdout


def test_without_a_baseline_the_command_shows_how_to_make_one(tmp_path: Path) -> None:
    done = run("--baseline", tmp_path / "none.json")
    assert done.returncode == 2
    assert "there is no baseline" in done.stderr
    assert "make guard-baseline" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cpu": "Another processor"}, "comes from another machine or other versions (cpu)"),
        ({"cores": 1000}, "comes from another machine or other versions (cores)"),
        ({"python": "2.7.18", "packages": []}, "comes from another machine or other versions (python, packages)"),
    ],
    ids=str,
)
def test_a_baseline_of_another_machine_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    document = {"machine": {**guard.identity(guard.machine()), **change}, "ratios": dict.fromkeys(NAMES, 1.0)}
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(document), "utf-8")
    done = run("--baseline", path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "make guard-baseline" in done.stderr


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"machine": {}, "ratios": {"is_loaded()": "x"}}', "\x00"])
def test_a_file_that_is_no_baseline_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(content, "utf-8")
    done = run("--baseline", path)
    assert done.returncode == 2
    assert "is not a baseline of these guards" in done.stderr


def test_every_reference_is_a_part_that_is_measured() -> None:
    parts = {*guard.PROCESSES, *guard.IN_ONE_PROCESS.parts, *guard.ENCODING.parts}
    assert all(each.parts <= parts for each in guard.GUARDS)
    assert replace(BY_NAME["import firstvec"], against="nothing").parts - parts == {"nothing"}
