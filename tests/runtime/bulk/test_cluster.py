"""`firstvec embed --ray` on a real cluster of several nodes: the bytes of one process, whatever is killed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstvec.bulk import readers
from firstvec.bulk.job import make_job
from tests.conftest import Fresh
from tests.runtime.bulk.conftest import TEXTS, Embed, files_of, write_data_set

pytestmark = [
    pytest.mark.native,  # only the native engine promises the same bits
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed"),
]
PROGRAM = Path(__file__).with_name("ray_cluster.py")


class Nodes:
    """A cluster whose nodes can be killed, in a process of its own."""

    def __init__(self, *environments: dict[str, str]) -> None:
        arguments = [json.dumps(environment) for environment in environments]
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "FIRSTVEC_ARTIFACTS"},
        )
        self.address = self._read()

    def do(self, command: str) -> None:
        """``add`` or ``kill`` a node."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._read() == "done"

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the cluster has ended"
        return line

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes that compute."""
    cluster = Nodes({}, {})
    yield cluster
    cluster.close()


def write_rows(path: Path, count: int) -> Path:
    pq.write_table(
        pa.table({"id": range(count), "text": [f"{TEXTS[row % len(TEXTS)]} {row}" for row in range(count)]}),
        path,
        row_group_size=1000,
    )
    return path


def lines_of(folder: Path) -> int:
    try:
        return (folder / "_firstvec.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("firstvec")), "embed", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_lines(process: subprocess.Popen[str], folder: Path, count: int) -> bool:
    """Wait until the checkpoint has so many lines. Return False if the run has ended before."""
    while lines_of(folder) < count:
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    return True


IN_ONE_PROGRAM = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from firstvec.bulk import embed
from firstvec.errors import FirstvecError

results = []
for inputs, output, options in json.loads(sys.argv[1]):
    try:
        results.append(embed(inputs, output, ray=sys.argv[2], **options).to_dict())
    except FirstvecError as error:
        results.append([type(error).__name__, str(error)])
print(json.dumps(results))
"""
"""Several runs of a program, because the first connection of a process to a cluster takes seconds."""


def test_runs_on_a_cluster_are_those_of_one_process(
    tmp_path: Path, tiny_built: Path, embed_tiny: Embed, nodes: Nodes, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, rows = write_data_set(tmp_path / "a.parquet"), write_rows(tmp_path / "b.parquet", 57)
    bad = pa.table({"id": range(20), "text": [*TEXTS[:12], None, *TEXTS[:7]]})
    pq.write_table(bad, tmp_path / "bad.parquet")
    pq.write_table(bad.slice(0, 0), tmp_path / "empty.parquet")
    pq.write_table(pa.table({"id": pa.nulls(0), "text": pa.array([], pa.string())}), tmp_path / "null.parquet")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    smaller: dict[str, Any] = {"keep": ["text"], "id_column": "id", "dtype": "float16"}
    good: dict[str, tuple[list[Path], dict[str, Any]]] = {
        "folder": ([small, rows], smaller),
        "file.jsonl": ([small, rows], smaller),
        "begun": ([rows], {}),
        "skipped": ([tmp_path / "bad.parquet"], {"on_error": "skip"}),
        "empty": ([tmp_path / "empty.parquet"], {}),
        "empty-first": ([tmp_path / "null.parquet", rows], {"id_column": "id"}),
    }
    for name, (inputs, options) in good.items():
        embed_tiny(inputs, tmp_path / "one" / name, **options)
    for folder in ("one", "two"):  # each goes on with what the other has begun
        embed_tiny(rows, tmp_path / folder / "begun")
        for number in (0, 3, 7):
            (tmp_path / folder / "begun" / f"part-{number:05d}.parquet").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(readers, "MAX_SHARD_CHARACTERS", 100)
        embed_tiny(rows, tmp_path / "early")
        (tmp_path / "early" / "part-00001.parquet").unlink()
    wrong: list[tuple[Path, dict[str, Any], str]] = [
        (tmp_path / "bad.parquet", {}, "RowError: .*row 12 .counted from 0. is null"),
        (tmp_path / "a.jsonl", {}, "InputError: '.*a.jsonl' is jsonl, and --ray reads Parquet only"),
        (small, {"text_column": "body"}, "InputError: .* has no column 'body'"),
        (small, {"text_column": "id"}, "InputError: on the node .*the column of the texts is int64"),
        (small, {"artifact": "onnx-int8-arm64"}, "NoCompatibleArtifact: .*arm64"),
        (rows, {}, "InputError: .*has ended some shards early"),
    ]
    runs = [([*map(str, inputs)], str(tmp_path / "two" / name), options) for name, (inputs, options) in good.items()]
    runs += [([str(path)], str(tmp_path / f"wrong{n}"), options) for n, (path, options, _) in enumerate(wrong[:-1])]
    runs.append(([str(rows)], str(tmp_path / "early"), {}))
    runs.append(([str(small)], str(tmp_path / "wrong3"), {}))  # a run that has failed at once binds nobody
    common = {"model": str(tiny_built), "shard_rows": 5}
    jobs = json.dumps([(inputs, output, common | options) for inputs, output, options in runs])
    printed = fresh(IN_ONE_PROGRAM, jobs, nodes.address).stdout.splitlines()
    results = json.loads(printed[-1])  # Ray may print before that
    summaries = dict(zip(good, results, strict=False))
    assert [summaries[name]["shards"] for name in good] == [17, 17, 12, 4, 1, 12]
    assert results.pop()["rows"] == 23
    assert summaries["begun"]["shards_damaged"] == 3
    embed_tiny(rows, tmp_path / "one" / "begun")
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    for (_, _, message), (kind, text) in zip(wrong, results[len(good) :], strict=True):
        assert re.search(message, f"{kind}: {text}", re.DOTALL), text


def test_nothing_is_lost_or_doubled_when_actors_nodes_and_the_run_are_killed(
    tmp_path: Path, tiny_built: Path, embed_tiny: Embed, nodes: Nodes, request: pytest.FixtureRequest
) -> None:
    kills = 24 if request.config.getoption("--faults") else 3
    path, output = write_rows(tmp_path / "a.parquet", 1200 * kills), tmp_path / "out"
    embed_tiny(path, tmp_path / "whole", shard_rows=100)
    arguments = [path, "-o", output, "--model", tiny_built, "--shard-rows", 100, "--ray", nodes.address, "--quiet"]
    chance, killed = random.Random(kills), 0
    process = start(*arguments)
    while killed < kills:
        if not wait_for_lines(process, output, 3 + 11 * killed + chance.randrange(4)):
            raise AssertionError(f"the run has ended early: {process.communicate()}")
        what = ("a node", "the run", "an actor")[killed % 3]
        if what == "an actor":
            actors = [each for each in psutil.process_iter() if is_actor(each)]
            chance.choice(actors).kill() if actors else None
            killed += bool(actors)
        elif what == "a node":
            nodes.do("kill")
            nodes.do("add")
            killed += 1
        else:
            process.kill()
            process.communicate()
            process = start(*arguments)
            killed += 1
    output_of_run, _ = process.communicate(timeout=600)  # Ray writes about the last actor to stderr
    assert (process.returncode, output_of_run) == (0, "")
    assert files_of(output) == files_of(tmp_path / "whole")


def is_actor(process: psutil.Process) -> bool:
    try:
        return "ShardActor" in "".join(process.cmdline())
    except psutil.Error:
        return False


def test_ctrl_c_stops_and_says_how_to_go_on(tmp_path: Path, tiny_built: Path, embed_tiny: Embed, nodes: Nodes) -> None:
    path, output = write_rows(tmp_path / "a.parquet", 4000), tmp_path / "out"
    arguments = [path, "-o", output, "--model", tiny_built, "--shard-rows", 50, "--ray", nodes.address]
    process = start(*arguments)
    assert wait_for_lines(process, output, 5)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 130, messages
    assert "the next one does the shards under way" in messages
    assert "run the same command again to go on" in messages
    assert 5 <= lines_of(output) < 80
    embed_tiny(path, tmp_path / "whole", shard_rows=50)
    assert embed_tiny(path, output, shard_rows=50).shards_done_before >= 4
    assert files_of(output) == files_of(tmp_path / "whole")


def test_a_node_without_the_bundle_is_named(tmp_path: Path, tiny_built: Path, firstvec: Fresh) -> None:
    path = write_rows(tmp_path / "a.parquet", 300)
    cluster = Nodes({"FIRSTVEC_ARTIFACTS": str(tmp_path), "FIRSTVEC_HOME": str(tmp_path)})
    try:
        arguments = ["embed", path, "-o", tmp_path / "out", "--model", tiny_built.name, "--shard-rows", 10]
        here = {"FIRSTVEC_ARTIFACTS": str(tiny_built.parent)}
        done = firstvec(*arguments, "--ray", cluster.address, **here)
        assert done.returncode == 1
        assert done.stderr.startswith("error: on the node ")
        assert f"no bundle for model {tiny_built.name!r} was found" in done.stderr
    finally:
        cluster.close()


def test_a_wrong_address_is_one_message(tmp_path: Path, tiny_built: Path, firstvec: Fresh) -> None:
    path = write_rows(tmp_path / "a.parquet", 10)
    for address, message in (
        ("=nowhere", "'nowhere' is no address of a Ray cluster"),
        ("=127.0.0.1:1", "no Ray cluster could be reached at '127.0.0.1:1'"),
    ):
        done = firstvec("embed", path, f"--ray{address}", "--output", tmp_path / "out", "--model", tiny_built)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_file_that_this_machine_does_not_see_is_an_error(tmp_path: Path) -> None:
    from firstvec.bulk.checkpoint import Place
    from firstvec.bulk.cluster import Cluster
    from firstvec.errors import OutputError

    class Here:
        place = Place(make_job("a.parquet", tmp_path))

    cluster: Any = Cluster.__new__(Cluster)
    cluster._shards = Here
    (tmp_path / "part-00000.parquet").write_bytes(b"12345")
    cluster._check_written({"file": "part-00000.parquet", "size": 5, "node": "a"})
    for entry in ({"file": "part-00000.parquet", "size": 6}, {"file": "part-00001.parquet", "size": 5}):
        with pytest.raises(OutputError, match="the node b wrote it, and this machine does not see it"):
            cluster._check_written(entry | {"node": "b"})
