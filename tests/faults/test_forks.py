"""Forks at random points of a load: each child opens a session of its own, computes the right vector, and ends."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from firstvec import OptimizedEmbeddingLoader
from tests.faults.conftest import Campaign
from tests.faults.processes import TIMEOUT, has_crashed, run

PROGRAM = """
import concurrent.futures, faulthandler, json, math, multiprocessing, os, sys, threading, time
from firstvec import OptimizedEmbeddingLoader, get_embedding_provider, preload_embeddings
faulthandler.enable()

def check(provider, expected):
    vector = provider.embed_query("text", output="list")
    assert math.dist(vector, expected) < 1e-5, "another vector"
    rows = provider.encode(["text", "other"], output="list")
    assert math.dist(rows[0], expected) < 1e-4, "another vector of two"

def fork(depth, loader, inherited, expected):
    "Fork children of children. Each one checks before and after its own child does."
    child = os.fork()
    if child == 0:
        provider = loader.get_provider(timeout=110)
        check(provider, expected)
        assert provider.session is not inherited, "the parent's session"
        assert provider._sessions._owned.process == os.getpid(), "a session of another process"
        if depth:
            fork(depth - 1, loader, provider.session, expected)
        check(provider, expected)
        if sys.argv[4] == "fork in a thread":
            os._exit(0)  # as multiprocessing does, because sys.exit() would end only the thread
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"a child ended with {code}"

def work(expected):
    "Check in a worker of multiprocessing."
    check(get_embedding_provider(*sys.argv[1:3], timeout=110, device="cpu"), expected)
    return os.getpid()

def main():
    root, strategy, moment, how, seconds, expected = sys.argv[1:]
    expected = json.loads(expected)
    loader = preload_embeddings(root, strategy, device="cpu")
    inherited = None
    if moment == "after":
        provider = loader.get_provider(timeout=110)
        provider.embed_query("text")
        inherited = provider.session
    time.sleep(float(seconds))
    if moment == "before":
        # A loader that has not begun to load.
        loader = OptimizedEmbeddingLoader(root, "lazy" if strategy != "quantized" else strategy, device="cpu")
        loader.start_loading()
    busy = []
    if how == "fork while threads embed":
        loader.get_provider(timeout=110)
        stop = threading.Event()
        def embed():
            while not stop.is_set():
                loader.get_provider(timeout=110).encode(["text", "some more words of it"])
        busy = [threading.Thread(target=embed) for _ in range(4)]
        for thread in busy:
            thread.start()
        time.sleep(float(seconds))
        inherited = loader.get_provider().session
    if how in ("fork", "fork while threads embed"):
        fork(0, loader, inherited, expected)
    elif how == "a child that embeds nothing":
        if os.fork() == 0:
            sys.exit(0)
        assert os.wait()[1] == 0
    elif how == "children of children":
        fork(2, loader, inherited, expected)
    elif how == "fork in a thread":
        thread = threading.Thread(target=fork, args=(0, loader, inherited, expected))
        thread.start()
        thread.join()
    elif how == "ProcessPoolExecutor":
        with concurrent.futures.ProcessPoolExecutor(2) as pool:
            assert os.getpid() not in set(pool.map(work, [expected] * 6, timeout=110))
    else:
        with multiprocessing.get_context(how).Pool(2) as pool:
            assert os.getpid() not in set(pool.map_async(work, [expected] * 6).get(110))
            pool.close()
            pool.join()
    if busy:
        stop.set()
        for thread in busy:
            thread.join()
    check(loader.get_provider(timeout=110), expected)
    print("done")

if __name__ == "__main__":
    main()
"""
WAYS = ("fork", "fork while threads embed", "children of children", "fork in a thread")
POOLS = ("fork", "spawn", "forkserver", "ProcessPoolExecutor")


def vector_of(root: Path, strategy: str) -> list[float]:
    loader = OptimizedEmbeddingLoader(str(root), strategy, device="cpu", output="list")
    loader.start_loading()
    vector: list[float] = loader.get_provider().embed_query("text")
    return vector


def test_a_child_of_a_fork_at_random_points_embeds_and_ends(
    tiny_built: Path, tmp_path: Path, campaign: Campaign
) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM, "utf-8")
    vectors = {strategy: vector_of(tiny_built, strategy) for strategy in ("progressive", "background", "quantized")}
    source = random.Random(20261124)
    points = campaign.size(8, 200)
    cases = []
    for index in range(points):
        strategy = source.choice(list(vectors))
        moment = ("before", "during", "during", "after")[index // 4 % 4]
        how = WAYS[index % 4]
        if index % 25 == 24:
            moment, how = "during", POOLS[index // 25 % 4]
        # A load takes some 0.06 s. A hand-over begins 0.25 s after the first vector.
        cases.append((strategy, moment, how, source.uniform(0.0, 0.4 if moment == "after" else 0.08)))

    def one(case: tuple[str, str, str, float]) -> str | None:
        ended = run(script, tiny_built, *case, json.dumps(vectors[case[0]]))
        is_right = (ended.code, ended.stdout, ended.stderr) == (0, "done\n", "") and not has_crashed(ended)
        return None if is_right else f"{case}\n{ended}"

    with ThreadPoolExecutor(2) as pool:
        failed = [each for each in pool.map(one, cases) if each is not None]
    assert failed == [], "\n\n".join([f"{len(failed)} of {points}", *failed[:5]])
    campaign.record("fork before, during and after a load", points=points, wrong=0, hung=0)


@pytest.mark.parametrize("how", POOLS)
def test_pools_of_processes_embed_and_end(how: str, tiny_built: Path, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM, "utf-8")
    vector = json.dumps(vector_of(tiny_built, "progressive"))
    ended = run(script, tiny_built, "progressive", "after", how, 0.3, vector)
    assert (ended.code, ended.stdout, ended.stderr) == (0, "done\n", ""), ended


@pytest.mark.parametrize("how", ["fork", "children of children", "a child that embeds nothing"])
def test_a_forked_child_embeds_through_the_binding(
    how: str, tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTVEC_ONNXRUNTIME", "binding")
    script = tmp_path / "program.py"
    script.write_text(PROGRAM, "utf-8")
    vector = json.dumps(vector_of(tiny_built, "background"))
    ended = run(script, tiny_built, "background", "after", how, 0.0, vector)
    assert (ended.code, ended.stdout, ended.stderr) == (0, "done\n", ""), ended


PREFORK = """
import json, os, signal, socket, sys
from firstvec import get_embedding_provider, preload_embeddings

def serve(listener):
    "Answer each line of text with a line of JSON, in a worker."
    ended = waiting = False
    def end(*_):
        "An exit while an answer is written would write the answer again, to a client that has gone."
        nonlocal ended
        ended = True
        if waiting:
            sys.exit(0)
    signal.signal(signal.SIGTERM, end)
    while True:
        waiting = True
        if ended:
            sys.exit(0)
        connection, _ = listener.accept()
        waiting = False
        with connection, connection.makefile("rw") as stream:
            text = stream.readline().strip()
            if text == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            stream.write(json.dumps([os.getpid(), get_embedding_provider().embed_query(text, output="list")]) + "\\n")

def hire(listener):
    if (worker := os.fork()) == 0:
        serve(listener)
    workers.add(worker)

root, path, moment = sys.argv[1:]
workers = set()
preload_embeddings(root, "progressive")
if moment == "loaded":
    get_embedding_provider().embed_query("warm")
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(64)
for _ in range(4):
    hire(listener)
ending = False
def end(*_):
    global ending
    ending = True
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
signal.signal(signal.SIGTERM, end)
codes = []
while workers:
    worker, status = os.wait()
    workers.discard(worker)
    codes.append(os.waitstatus_to_exitcode(status))
    if not ending:
        hire(listener)
print(codes)
"""


@pytest.mark.parametrize("moment", ["loading", "loaded"])
def test_a_prefork_server_answers_and_hires_again(moment: str, tiny_built: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    expected = vector_of(tiny_built, "progressive")
    server = subprocess.Popen(
        [sys.executable, "-c", PREFORK, str(tiny_built), path, moment],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def ask(text: str) -> int:
        """Return the worker that answered, or 0 if the worker crashed."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(path)
            with connection.makefile("rw") as stream:
                stream.write(text + "\n")
                stream.flush()
                if not (answer := stream.readline()):
                    return 0
        worker, vector = json.loads(answer)
        np.testing.assert_allclose(vector, expected, atol=1e-5)
        return int(worker)

    def ask_until_seen(count: int, known: set[int]) -> set[int]:
        deadline = time.monotonic() + TIMEOUT
        while len(known) < count:
            assert time.monotonic() < deadline, known
            with ThreadPoolExecutor(8) as pool:
                known |= set(pool.map(ask, ["text"] * 8))
        return known

    try:
        deadline = time.monotonic() + TIMEOUT
        while True:
            assert time.monotonic() < deadline
            try:
                ask("text")
                break
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.01)
        first = ask_until_seen(4, set())
        assert ask("crash") == 0
        assert len(ask_until_seen(5, first)) == 5  # one worker is gone, and one is new
        server.send_signal(signal.SIGTERM)
        stdout, stderr = server.communicate(timeout=TIMEOUT)
    finally:
        server.kill()
        server.wait()
    assert (server.returncode, stderr) == (0, "")
    assert sorted(json.loads(stdout)) == [-signal.SIGKILL, 0, 0, 0, 0]
