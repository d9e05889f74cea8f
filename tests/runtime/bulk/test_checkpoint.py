"""The checkpoint: its lock, its lines, and what lies in the output's place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from firstvec.bulk.checkpoint import Checkpoint, Done, Place, open_checkpoint
from firstvec.bulk.job import make_job
from firstvec.errors import InputError, OutputError, OutputInUse

KEPT = pa.schema([("id", pa.int64())])


def opened(output: Path, **options: Any) -> tuple[Place, Checkpoint]:
    return open_checkpoint(make_job("a.jsonl", output, **options))


def begin(checkpoint: Checkpoint) -> None:
    checkpoint.begin([{"path": "a"}], {"model": "m"}, {"on_error": "fail"}, KEPT)


def shard(number: int, rows: int = 5) -> dict[str, Any]:
    return {"shard": number, "input": 0, "first_row": 5 * number, "rows": rows}


@pytest.mark.parametrize("output", ["out", "out.parquet"])
def test_a_second_run_is_refused_while_the_first_one_runs(output: str, tmp_path: Path) -> None:
    _, checkpoint = opened(tmp_path / output)
    with pytest.raises(OutputInUse, match="another run writes there now"):
        opened(tmp_path / output)
    with pytest.raises(OutputInUse):
        opened(tmp_path / output, overwrite=True)
    begin(checkpoint)
    checkpoint.finish(None)
    checkpoint.close()
    opened(tmp_path / output)[1].close()


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; from firstvec.bulk.checkpoint import open_checkpoint; from firstvec.bulk.job import make_job\n"
        "open_checkpoint(make_job('a.jsonl', sys.argv[1])); print('held', flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (-9, "held\n")
    opened(tmp_path / "out")[1].close()


def test_lines_are_read_again_and_a_torn_one_does_not_count(tmp_path: Path) -> None:
    place, checkpoint = opened(tmp_path / "out")
    begin(checkpoint)
    for number in range(3):
        checkpoint.add_shard(shard(number))
    checkpoint.add_end(0, 15, 3)
    checkpoint.close()
    data = Path(place.checkpoint).read_bytes()
    ends = [index + 1 for index, byte in enumerate(data) if byte == 10]
    for length in range(len(data) + 1):
        Path(place.checkpoint).write_bytes(data[:length])
        _, checkpoint = opened(tmp_path / "out")
        whole = sum(end <= length for end in ends)
        assert (checkpoint.job is not None) == (whole > 0)
        assert len(checkpoint.done.shards) == min(3, max(0, whole - 1))
        assert checkpoint.done.ends == ({0: (15, 3)} if whole == 5 else {})
        assert checkpoint.kept == (KEPT if whole else None)
        checkpoint.close()
        assert Path(place.checkpoint).read_bytes() == data[: ([0, *ends])[whole]]


@pytest.mark.parametrize("data", [b"no JSON\n", b'{"shard": 1}\n', b"[1]\n", b'{"firstvec_embed": 2}\n'])
def test_another_file_is_no_checkpoint(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_firstvec.jsonl").write_bytes(data)
    with pytest.raises(OutputError, match=r"is no checkpoint of this firstvec .*--overwrite"):
        opened(tmp_path / "out")
    assert (tmp_path / "out" / "_firstvec.jsonl").read_bytes() == data


def test_the_end_has_the_order_of_the_shards(tmp_path: Path) -> None:
    found = []
    for name, order in (("one", (0, 1, 2)), ("two", (2, 0, 1))):
        place, checkpoint = opened(tmp_path / name)
        begin(checkpoint)
        checkpoint.add_end(0, 15, 3)
        for number in order:
            checkpoint.add_shard(shard(number))
        checkpoint.finish(None)
        checkpoint.close()
        found.append(Path(place.checkpoint).read_bytes())
    assert found[0] == found[1]


def test_a_folder_that_was_taken_away_or_replaced_is_found(tmp_path: Path) -> None:
    _, checkpoint = opened(tmp_path / "out")
    begin(checkpoint)
    (tmp_path / "out").rename(tmp_path / "moved")
    with pytest.raises(OutputError, match="the folder was taken away"):
        checkpoint.add_shard(shard(0))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_firstvec.jsonl").touch()
    with pytest.raises(OutputError, match="the folder was taken away"):
        checkpoint.add_shard(shard(0))
    checkpoint.close()


def test_somebody_elses_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is not empty \('notes\.txt' is in it\)"):
        opened(tmp_path / "out")
    (tmp_path / "out" / "part-00000.parquet").touch()
    opened(tmp_path / "out", overwrite=True)[1].close()
    assert sorted(os.listdir(tmp_path / "out")) == ["_firstvec.jsonl", "notes.txt"]


def test_the_beginning_ends_at_the_first_gap() -> None:
    done = Done()
    assert done.beginning(0) == (0, 0)
    for number in (0, 1, 3):
        done.shards[0, 5 * number] = shard(number)
    assert done.beginning(0) == (10, 2)


def test_a_folder_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        opened(tmp_path / "file" / "out")
