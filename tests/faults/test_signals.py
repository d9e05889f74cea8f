"""Ctrl-C at random moments: the program ends soon, or it goes on and computes right vectors."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from firstvec import LoadingStrategy, OptimizedEmbeddingLoader
from tests.conftest import REPOSITORY, Fresh
from tests.faults.conftest import Campaign
from tests.faults.processes import Ended, has_crashed, run
from tests.pythons import find_python

# --- A program that catches KeyboardInterrupt ------------------------------------------------------------------------

# A shell lets the jobs that it starts in the background ignore SIGINT, and all their children inherit that.
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
    return list(map(float, loader.get_provider(timeout=110).embed_query("text")))

def load():
    loader.start_loading()
    loader.get_provider(timeout=110)

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
            loader.get_provider(timeout=110).close()
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
    except KeyboardInterrupt:  # the signal came only now
        interrupted = True
print(json.dumps({"interrupted": interrupted, "vector": vector}))
"""
LENGTH = {"load": 0.08, "first vector": 0.15, "encode": 0.6, "encode_iter": 0.6, "close": 0.4, "exit": 0.12}
"""What is interrupted → how many seconds it takes, more or less."""


def is_noise(stderr: str) -> bool:
    """Return whether stderr has no more than CPython's note that Ctrl-C came in a destructor or a similar place.

    CPython cannot raise an exception there. It prints ``Exception ignored in`` with a traceback, and goes on.
    """
    return stderr == "" or (
        stderr.startswith("Exception ignored") and stderr.rstrip(": \n").endswith("KeyboardInterrupt")
    )


def interrupt(what: str, points: int, root: Path) -> dict[str, int]:
    """Run the program ``points`` times, interrupt each run once, and count how often the program noticed."""
    source = random.Random(f"20261123 {what}")
    vectors = {strategy: vector_of(root, strategy, "text") for strategy in ("lazy", "quantized")}
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
        return case, ended, find_fault(ended, what, vectors["quantized" if case[0] == "quantized" else "lazy"])

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(one, cases))
    wrong = [f"{fault}: {case}\n{ended}" for case, ended, fault in results if fault is not None]
    assert wrong == [], "\n\n".join([f"{len(wrong)} of {points}", *wrong[:5]])
    noticed = sum('"interrupted": true' in ended.stdout or ended.code != 0 for _, ended, _ in results)
    return {"points": points, "noticed": noticed}


def find_fault(ended: Ended, what: str, expected: list[float]) -> str | None:
    """Return what is wrong with how a process ended. None: nothing is."""
    if has_crashed(ended):
        return "crashed"
    if ended.code == -signal.SIGINT and (ended.stderr == "" or ended.stderr.rstrip().endswith("KeyboardInterrupt")):
        # The signal came where the program has no `except`: between two of its lines, in its exit, or after Python has
        # given the signal back to the system.
        return None
    if ended.code == 1 and ended.stderr.rstrip().endswith("KeyboardInterrupt"):
        # CPython 3.11 forgets that the error was Ctrl-C if another thread executes a module meanwhile.
        return None
    if ended.code != 0 or not is_noise(ended.stderr):
        return "did not end well"
    if what == "exit":
        return None
    vector = json.loads(ended.stdout.splitlines()[-1])["vector"]
    return None if np.allclose(vector, expected, atol=1e-5) else "gave a wrong vector"


def vector_of(root: Path, strategy: str, text: str) -> list[float]:
    loader = OptimizedEmbeddingLoader(str(root), strategy, device="cpu", output="list")
    loader.start_loading()
    vector: list[float] = loader.get_provider().embed_query(text)
    return vector


@pytest.mark.parametrize("what", LENGTH)
def test_ctrl_c_leaves_a_usable_loader_or_a_clean_end(what: str, tiny_built: Path, campaign: Campaign) -> None:
    started = time.monotonic()
    found = interrupt(what, campaign.size(3, 100), tiny_built)
    # A few signals may all come too late. An exit waits for the load first, and may then have ended.
    assert found["noticed"] > 0 or what == "exit" or not campaign.full
    campaign.record(f"Ctrl-C during {what}", **found, crashed=0, hung=0, seconds=round(time.monotonic() - started, 1))


RAISED = """
import signal, sys
from firstvec import OptimizedEmbeddingLoader
provider = OptimizedEmbeddingLoader(sys.argv[1], sys.argv[2], output="list").get_provider()
provider.embed_query("text")  # what the first call imports: Python's import system takes any ValueError for its own
class Mine(ValueError): ...
raised = seen = 0
def handler(*_):
    global raised
    raised += 1
    raise Mine
signal.signal(signal.SIGALRM, handler)
left = 200
while left:
    left -= provider.hand_over_state != "waiting"  # 200 rounds after a hand-over, and as many before it as it takes
    try:
        # A second signal comes 30 s later, for the case that the first error was lost.
        signal.setitimer(signal.ITIMER_REAL, 0.0002 * (1 + seen % 20), 30.0)
        while True:
            provider.embed_query("a text of some words, so that the engine has something to do for a while " * 5)
    except Mine:
        signal.setitimer(signal.ITIMER_REAL, 0)
        seen += 1
print(seen >= 200, raised - seen, provider.hand_over_state)
"""


@pytest.mark.parametrize(
    ("bundle_fixture", "strategy", "hand_over"),
    [("tiny_built", "quantized", None), ("tiny_onnx", "quantized", "done"), ("tiny_onnx", "lazy", "done")],
)
def test_an_error_that_a_signal_handler_raises_reaches_the_program(
    bundle_fixture: str, strategy: str, hand_over: str | None, request: pytest.FixtureRequest, fresh: Fresh
) -> None:
    """Also while the hand-over of LAZY frees the first session. In a destructor CPython would lose the error."""
    root = request.getfixturevalue(bundle_fixture)
    assert fresh(RAISED, root, strategy).stdout == f"True 0 {hand_over}\n"


# --- The program of the README, which imports other packages while the model loads -----------------------------------

README_PROGRAM = """
from firstvec import preload_embeddings, get_embedding_provider, LoadingStrategy
preload_embeddings(strategy={strategy!r}, output={output!r})
import argparse, json, sqlite3, urllib.request
{more_imports}
provider = get_embedding_provider()
vector = provider.embed_query({text!r})
print(json.dumps([float(number) for number in vector]))
"""
OWN_HAZARD = """
import threading
thread = threading.Thread(target=__import__, args=("numpy",))
thread.start()
import argparse, json, sqlite3, urllib.request
import numpy
thread.join()
"""
"""A program without firstvec, of which a thread imports numpy. Ctrl-C can make such a program hang by itself."""
TEXT = "how do I reset my password?"
WINDOW = 0.3
"""The signal comes within so many seconds of the start of the process."""
BAR = 1.5
"""Every run ends within so many seconds of the signal."""
HANG = 60.0
"""Seconds from the signal until a run is killed."""
BUSY = 4
"""Processes that keep the processor busy."""


@contextmanager
def busy_machine() -> Iterator[None]:
    """Keep the processor busy. The processes end with this process, however this process ends."""
    code = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes += (subprocess.Popen([sys.executable, "-c", code]) for _ in range(BUSY))
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def sigint_is_inherited() -> Iterator[None]:
    """Let processes that the test starts take SIGINT, even if a shell has started this process in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run_program(python: Path, code: str, after: float | None, limit: float = HANG) -> tuple[Ended, float]:
    """Run a program, and interrupt it once.

    Args:
        python: the interpreter.
        code: the program.
        after: seconds from the start of the process to the signal. None: no signal is sent.
        limit: seconds from the signal until the process is killed.

    Returns:
        How it ended, and the seconds from the signal to the end. Without a signal: the seconds from start to end.
    """
    process = subprocess.Popen(
        [python, "-X", "faulthandler", "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    )
    began = time.perf_counter()
    if after is not None:
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        began = time.perf_counter()
    try:
        stdout, stderr = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler prints the stacks of all threads
        stdout, stderr = process.communicate()
    seconds = time.perf_counter() - began
    return Ended(code=process.returncode, stdout=stdout, stderr=stderr), seconds


def is_right_end(ended: Ended, expected: list[float]) -> bool:
    """Return whether an interrupted run of the README's program ended with an error's exit code or a right vector."""
    # While Python starts, it reports Ctrl-C as "Fatal Python error: init_import_site", with exit code 1. A crash is a
    # signal other than SIGINT.
    if ended.code < 0:
        return ended.code == -signal.SIGINT
    return ended.code > 0 or bool(np.allclose(json.loads(ended.stdout), expected, atol=1e-5))


def spread_of(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = {"median_s": len(ordered) // 2, "p99_s": int(0.99 * len(ordered)), "max_s": -1}
    return {name: round(ordered[index], 3) for name, index in at.items()}


def make_environment(version: str, campaign: Campaign) -> Path:
    """Return a Python of that minor version in which firstvec runs. Skip the test where there is none.

    The campaign makes a virtual environment below build/.
    """
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return Path(sys.executable)
    if not campaign.full:
        pytest.skip(f"Python {version} is tried in make faults")
    interpreter = find_python(version)
    folder = REPOSITORY / "build" / "faults" / f"venv-{version}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
    [site_packages] = folder.glob("lib/python*/site-packages")
    (site_packages / "firstvec.pth").write_text(f"{REPOSITORY / 'runtime'}\n", "utf-8")
    imports = [python, "-c", "import numpy, onnxruntime, tokenizers, firstvec"]
    if subprocess.run(imports, capture_output=True, check=False).returncode:
        install = [python, "-m", "pip", "install", "--quiet", "--constraint", REPOSITORY / "constraints.txt"]
        subprocess.run([*install, "numpy", "onnxruntime", "tokenizers"], capture_output=True, check=False)
        done = subprocess.run(imports, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"Python {version} cannot import what firstvec needs: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_ctrl_c_ends_the_readmes_program_on_a_busy_machine(
    version: str, bundle: Path, campaign: Campaign, sigint_is_inherited: None
) -> None:
    python = make_environment(version, campaign)
    strategies = [strategy.value for strategy in LoadingStrategy]
    expected = {strategy: vector_of(bundle, strategy, TEXT) for strategy in strategies}
    programs = [
        (
            strategy,
            README_PROGRAM.format(
                strategy=strategy,
                output="numpy" if with_numpy else "buffer",
                more_imports="import numpy" if with_numpy else "",
                text=TEXT,
            ),
        )
        for with_numpy in (False, True)
        for strategy in strategies
    ]
    for strategy, code in programs:  # so that files are remembered, and bytecode is cached
        ended, _ = run_program(python, code, None)
        assert (ended.code, ended.stderr) == (0, ""), ended
        assert is_right_end(ended, expected[strategy]), ended
    source = random.Random(f"20261125 {version}")
    runs = campaign.size(20, 600)
    wrong: list[tuple[float, str]] = []
    seconds: list[float] = []
    codes: Counter[int] = Counter()
    with busy_machine():
        # How long a run takes here without a signal. A slow machine is no reason for `make test` to fail.
        whole = [run_program(python, code, None)[1] for _, code in (programs[1], programs[6])]
        bar = BAR if campaign.full else max(BAR, 3 * max(whole))
        for index in range(runs):
            strategy, code = programs[index % len(programs)]
            after = source.uniform(0.0, WINDOW)
            ended, took = run_program(python, code, after)
            seconds.append(took)
            codes[ended.code] += 1
            if took > bar or not is_right_end(ended, expected[strategy]):
                wrong.append((took, f"{took:.2f} s: run {index}, {strategy}, signal after {after:.3f} s\n{ended}"))
        limit = 10.0
        others = [run_program(python, OWN_HAZARD, source.uniform(0.0, WINDOW), limit)[1] for _ in range(runs // 6)]
    campaign.record(
        f"SIGINT in the README's program, Python {version}",
        runs=runs,
        **spread_of(seconds),
        went_on=codes[0],
        late_or_wrong=len(wrong),
        without_signal_s=round(max(whole), 3),
        a_program_without_firstvec={"runs": len(others), "hung": sum(each >= limit for each in others)},
    )
    slowest = [text for _, text in sorted(wrong)[-5:]]
    assert not wrong, "\n\n".join([f"{len(wrong)} of {runs} runs are wrong or ended after {bar:.1f} s", *slowest])


def test_the_campaign_finds_a_program_that_does_not_end_or_is_wrong() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program inherits that, so Ctrl-C does not end it
    try:
        ended, seconds = run_program(Path(sys.executable), "import time; time.sleep(600)", 0.0, limit=1.0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seconds >= 1.0
    assert not is_right_end(ended, [1.0])
    assert not is_right_end(Ended(code=0, stdout="[0.5]", stderr=""), [1.0])
    assert not is_right_end(Ended(code=-signal.SIGSEGV, stdout="", stderr=""), [1.0])
    assert is_right_end(Ended(code=0, stdout="[1.0]", stderr=""), [1.0])
    assert is_right_end(Ended(code=1, stdout="", stderr="KeyboardInterrupt"), [1.0])
