"""Ctrl-C at random points: the program goes on and embeds, or ends as a program that Ctrl-C ends."""

from __future__ import annotations

import json
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from firstvec import LoadingStrategy, OptimizedEmbeddingLoader
from tests.conftest import Fresh
from tests.faults.conftest import Campaign
from tests.faults.processes import Ended, crashed, run

# A shell that starts a job in the background lets it ignore SIGINT, and that is inherited.
PROGRAM = """
import faulthandler, json, signal, sys
faulthandler.enable()
signal.signal(signal.SIGINT, signal.default_int_handler)
from firstvec import OptimizedEmbeddingLoader
root, strategy, output, what = sys.argv[1:]
loader = OptimizedEmbeddingLoader(root, strategy, output=output)
texts = [f"text {number} {'word ' * (number % 40)}" for number in range(1500)]

def embed():
    loader.start_loading()
    return list(map(float, loader.get_provider(timeout=30).embed_query("text")))

def load():
    loader.start_loading()
    loader.get_provider(timeout=30)

if what not in ("load", "first vector", "exit"):
    embed()
print("ready", flush=True)
interrupted = False
try:
    if what == "load":
        load()
    elif what == "first vector":
        embed()
    elif what == "encode":
        loader.get_provider().encode(texts)
    elif what == "encode_iter":
        for vector in loader.get_provider().encode_iter(texts):
            pass
    elif what == "close":
        for _ in range(12):
            loader.get_provider(timeout=30).close()
            embed()
    elif what == "exit":
        loader.start_loading()
        sys.exit()
except KeyboardInterrupt:
    interrupted = True
    if what == "exit":
        raise
for _ in range(3):
    try:
        vector = embed()
        break
    except KeyboardInterrupt:  # only now
        interrupted = True
print(json.dumps({"interrupted": interrupted, "vector": vector}))
"""
LENGTH = {"load": 0.08, "first vector": 0.15, "encode": 0.6, "encode_iter": 0.6, "close": 0.4, "exit": 0.12}
"""Seconds that what is interrupted takes, more or less."""


def is_noise(stderr: str) -> bool:
    """Whether it is no more than CPython's word that Ctrl-C met a destructor, a weak reference or another such place.

    There it cannot be raised: CPython prints ``Exception ignored in`` with a traceback, and the program goes on.
    """
    return stderr == "" or (
        stderr.startswith("Exception ignored") and stderr.rstrip(": \n").endswith("KeyboardInterrupt")
    )


def interrupt(what: str, points: int, root: Path) -> dict[str, int]:
    """Run the program ``points`` times, interrupt each once, and say how often it was noticed."""
    source = random.Random(f"20261123 {what}")
    vectors = {}
    for strategy in ("lazy", "quantized"):
        loader = OptimizedEmbeddingLoader(str(root), strategy, output="list")
        loader.start_loading()
        vectors[strategy] = loader.get_provider().embed_query("text")
    cases = [
        (
            list(LoadingStrategy)[index % 5].value,
            source.choice(("numpy", "buffer")),
            source.uniform(0.0, LENGTH[what]),
        )
        for index in range(points)
    ]

    def one(case: tuple[str, str, float]) -> tuple[tuple[str, str, float], Ended, str | None]:
        ended = run(PROGRAM, root, case[0], case[1], what, after=case[2])
        return case, ended, judge(ended, what, vectors["quantized" if case[0] == "quantized" else "lazy"])

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(one, cases))
    wrong = [f"{fault}: {case}\n{ended}" for case, ended, fault in results if fault is not None]
    assert wrong == [], "\n\n".join([f"{len(wrong)} of {points}", *wrong[:5]])
    noticed = sum('"interrupted": true' in ended.stdout or ended.code != 0 for _, ended, _ in results)
    return {"points": points, "noticed": noticed}


def judge(ended: Ended, what: str, expected: list[float]) -> str | None:
    """What is wrong with how it ended, or None."""
    if crashed(ended):
        return "crashed"
    if ended.code == -signal.SIGINT and (ended.stderr == "" or ended.stderr.rstrip().endswith("KeyboardInterrupt")):
        # Where the program has no `except` for it: between two of its own lines, in its exit, or later still, when
        # Python has handed the signal back to the system.
        return None
    if ended.code == 1 and ended.stderr.rstrip().endswith("KeyboardInterrupt"):
        # CPython 3.11 forgets that it was Ctrl-C when another thread executes a module meanwhile.
        return None
    if ended.code != 0 or not is_noise(ended.stderr):
        return "did not end well"
    if what == "exit":
        return None
    vector = json.loads(ended.stdout.splitlines()[-1])["vector"]
    return None if np.allclose(vector, expected, atol=1e-5) else "gave a wrong vector"


@pytest.mark.parametrize("what", LENGTH)
def test_ctrl_c_leaves_a_usable_loader_or_a_clean_end(what: str, tiny_built: Path, campaign: Campaign) -> None:
    started = time.monotonic()
    found = interrupt(what, campaign.size(3, 100), tiny_built)
    # Few points may all be too late; an exit waits for the load first, and may then have ended.
    assert found["noticed"] > 0 or what == "exit" or not campaign.full
    campaign.record(f"Ctrl-C during {what}", **found, crashed=0, hung=0, seconds=round(time.monotonic() - started, 1))


RAISED = """
import signal, sys
from firstvec import OptimizedEmbeddingLoader
provider = OptimizedEmbeddingLoader(sys.argv[1], output="list").get_provider()
class Mine(ValueError): ...
def handler(*_):
    raise Mine
signal.signal(signal.SIGALRM, handler)
seen = 0
for round in range(200):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002 * (1 + round % 20))
        while True:
            provider.embed_query("a text of some words, so that the engine has something to do for a while " * 5)
    except Mine:
        seen += 1
print(seen)
"""


def test_what_a_signal_handler_raises_is_the_programs_own(tiny_built: Path, fresh: Fresh) -> None:
    assert fresh(RAISED, tiny_built).stdout == "200\n"
