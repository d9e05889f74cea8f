"""`firstvec embed` that is killed, or whose disk fails, at every change of a file; and bounded memory."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import tracer
from tests.faults.conftest import Campaign
from tests.faults.processes import Zygote
from tests.runtime.bulk.conftest import TEXTS, files_of, write_data_set, write_jsonl

OUTPUTS = {
    "a folder of Parquet": ("out", {}),
    "one Parquet file": ("out.parquet", {}),
    "one array": ("out.npy", {}),
    "JSON lines, skipping bad rows": ("out.jsonl", {"on_error": "skip", "dedupe": True}),
}
SHARD_ROWS = 4


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    if reason := tracer.why_not():
        pytest.skip(reason)
    found = Zygote("tests.faults.bulk_zygote", tmp_path_factory.mktemp("bulk"), tmp_path_factory.mktemp("cache"))
    yield found
    found.end()


class Scenario:
    """One kind of output, and the bytes of an undisturbed run."""

    def __init__(self, zygote: Zygote, name: str, data: Path, model: Path) -> None:
        output, options = OUTPUTS[name]
        self.zygote, self.data = zygote, data
        self.folder = zygote.folder / "work"
        self.output = self.folder / output
        self.options = {"model": str(model), "shard_rows": SHARD_ROWS} | options
        self.begin()
        whole = self.run()
        assert whole["error"] is None, whole
        self.calls = len(whole["calls"])
        self.bytes = files_of(self.folder)

    def begin(self) -> None:
        """Begin with an empty folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def run(self, **fault: Any) -> dict[str, Any]:
        """Do a run."""
        request = {"inputs": str(self.data), "output": str(self.output), "options": self.options}
        return self.zygote.ask(**request, **fault)

    def check_next(self, point: object) -> int:
        """Run the same command again, compare the bytes, and return how many shards it found done."""
        following = self.run()
        assert following["error"] is None, (point, following)
        assert files_of(self.folder) == self.bytes, point
        done: int = following["result"]["shards_done_before"]
        return done


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve rows of JSON lines, one of them without a text."""
    return write_jsonl(tmp_path / "a.jsonl", [*TEXTS[:5], *TEXTS[:5], "last but one", "last"])


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_kill_at_any_change_of_a_file_loses_and_doubles_nothing(
    name: str, zygote: Zygote, data: Path, tiny_built: Path, campaign: Campaign
) -> None:
    """kill -9, then the same command again: the bytes of an undisturbed run. Every third run is killed twice."""
    scenario = Scenario(zygote, name, data, tiny_built)
    assert scenario.calls > 25
    points = [*range(1, scenario.calls + 1)]
    if not campaign.full:
        points = random.Random(f"20261129 {name}").sample(points, 8)
    found_done: Counter[int] = Counter()
    for number, point in enumerate(points):
        scenario.begin()
        killed = scenario.run(at=point, fault="kill")
        assert killed["status"] == -signal.SIGKILL, (point, killed)
        if number % 3 == 0:
            scenario.run(at=1 + point // 2, fault="kill")
        found_done[scenario.check_next(point)] += 1
    campaign.record(f"kill -9 of embed, {name}", points=len(points), lost=0, shards_found_done=dict(found_done))


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_full_or_failing_disk_is_a_typed_error(
    name: str, fault: str, zygote: Zygote, data: Path, tiny_built: Path, campaign: Campaign
) -> None:
    scenario = Scenario(zygote, name, data, tiny_built)
    points = [*range(1, scenario.calls + 1)]
    if not campaign.full:
        points = random.Random(f"20261129 {name} {fault}").sample(points, 5)
    outcomes: Counter[str] = Counter()
    for point in points:
        scenario.begin()
        failed = scenario.run(at=point, fault=fault)
        error = failed["error"]
        if error is None:
            outcomes["done all the same"] += 1
        else:
            assert error["kinds"][0] == "OutputError", (point, failed)
            outcomes["typed error"] += 1
        scenario.check_next(point)
    assert outcomes["typed error"] >= len(points) / 2
    campaign.record(f"{fault} of embed, {name}", points=len(points), outcomes=dict(outcomes))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_at_any_time_loses_and_doubles_nothing(
    workers: int, tmp_path: Path, tiny_built: Path, campaign: Campaign
) -> None:
    """kill -9 of the command at random moments, again and again until it is done."""
    write_data_set(tmp_path / "a.parquet")
    command = [sys.executable, "-m", "firstvec", "embed", str(tmp_path / "a.parquet"), "--model", str(tiny_built)]
    command += ["--quiet", "--shard-rows", "2", "--workers", str(workers), "--output"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "timed")], check=True)
    longest = time.monotonic() - began
    source = random.Random(20261129)
    kills = 0
    wanted = campaign.size(2, 60)
    while kills < wanted:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        while True:
            process = subprocess.Popen([*command, str(tmp_path / "out")])
            try:
                assert process.wait(source.uniform(0.3, 1.1) * longest) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                continue
            break
        assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    campaign.record(f"kill -9 of embed at any time, {workers} workers", points=kills, lost=0)


PEAK = """
import sys
from firstvec.bulk import embed
summary = embed(sys.argv[2], sys.argv[3], model=sys.argv[1])
assert summary.complete
# Not ru_maxrss, in which the peak of the process that started this one lives on.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


def test_memory_does_not_depend_on_the_number_of_rows(tmp_path: Path, tiny_built: Path, campaign: Campaign) -> None:
    """Ten times the shards in `make test`, and a hundred times in `make faults`: at most 5 % more memory."""
    counts = (20_000, campaign.size(100_000, 1_000_000))
    for rows in counts:
        (tmp_path / f"{rows}.txt").write_text("".join(f"text number {row}\n" for row in range(rows)), "ascii")

    def measure(rows: int, run: int) -> float:
        paths = [str(tiny_built), str(tmp_path / f"{rows}.txt"), str(tmp_path / f"out-{rows}-{run}")]
        done = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True)
        return int(done.stdout) / 1024

    # The smallest of three peaks, because chance decides how many shards lie in the memory at once.
    peaks = [min(measure(rows, run) for run in range(3)) for rows in counts]
    assert peaks[1] <= 1.05 * peaks[0], peaks
    campaign.record("memory of embed", rows=list(counts), peak_mb=[round(peak, 1) for peak in peaks])
