"""Threads of firstvec: what is waited for at the exit, at a fork and after Ctrl-C, and how long."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from firstvec import LoadingStrategy, ResourceProfile
from firstvec.process import threads
from firstvec.process.threads import ComputedOnce, EngineGate, Event, ProcessLock, Task
from tests.conftest import Fresh
from tests.loads import ask_at_once, run_in_threads

INT8 = next(f"onnx-int8-{isa}" for isa in ("avx512_vnni", "arm64", "avx2") if isa in ResourceProfile.detect().isa)

# Events


def test_an_event_ends_every_wait_and_counts_once() -> None:
    event = Event()
    assert not event.wait(0)
    assert not event.wait(0.05)
    run_in_threads(4, lambda _: event.wait(), event.set)
    event.set()
    assert event.is_set
    assert event.wait(0)
    event.reset()
    assert not event.wait(0)


def test_a_wait_takes_no_longer_than_its_time_limit() -> None:
    began = time.monotonic()
    assert not Event().wait(0.25)
    assert 0.25 <= time.monotonic() - began < 30


def test_a_wait_ends_though_ctrl_c_has_kept_the_lock_of_the_event() -> None:
    event = Event()
    timer = threading.Timer(0.05, lambda: setattr(event, "is_set", True))  # set, and its lock not released
    timer.start()
    assert event.wait(60)
    timer.join()


# Tasks


def test_a_task_in_the_calling_thread_is_one_that_a_fork_of_another_thread_waits_for() -> None:
    running: list[set[Task[object]]] = []
    task = Task(lambda: running.append({*threads._running}), in_thread=False)
    assert task.thread == threading.get_ident()
    assert running == [{task}]
    assert task not in threads._running


def test_a_task_gives_its_value_or_its_error() -> None:
    task = Task(lambda: 1 + 1)
    assert task.result() == task.result() == 2
    assert task.error is None
    failing = Task(lambda: 1 // 0)
    failing.finished.wait()
    assert isinstance(failing.error, ZeroDivisionError)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            failing.result()


def test_a_task_runs_in_a_thread_of_its_own_and_drops_what_it_was_given() -> None:
    class Work:
        def __call__(self) -> int:
            return threading.get_ident()

    import weakref

    work = Work()
    reference = weakref.ref(work)
    task = Task(work)
    del work
    assert task.result() == task.thread != threading.get_ident()
    assert reference() is None


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system refuse every thread."""

    def refused(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "start_new_thread", refused)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")


def test_where_no_thread_can_be_started_the_calling_thread_does_the_work(no_threads: None) -> None:
    assert Task(threading.get_ident).result() == threading.get_ident()
    assert isinstance(Task(lambda: 1 // 0).error, ZeroDivisionError)
    assert threads._running == set()


def test_ctrl_c_in_the_work_of_the_calling_thread_reaches_the_program(no_threads: None) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Task(interrupted)
    assert threads._running == set()


@pytest.mark.parametrize("started", [False, True])
def test_ctrl_c_while_a_thread_is_started_leaves_nothing_to_wait_for(
    started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_new_thread = threads.start_new_thread
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def interrupted(work: Callable[[], None], arguments: tuple[()]) -> None:
        if started:
            start_new_thread(work, arguments)
            assert begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(threads, "start_new_thread", interrupted)
    monkeypatch.setattr(threads, "_PATIENCE", 60.0)

    def work() -> None:
        begun.set()
        assert go_on.wait(60)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        Task(work)
    # A thread that has begun is waited for, as ever. A thread that has not begun finds nothing to do.
    go_on.set()
    assert threads._wait_for_tasks() == []
    assert ended.is_set() or not started


def test_a_value_is_computed_once_however_many_ask() -> None:
    computed: list[int] = []

    def compute() -> int:
        time.sleep(0.05)
        computed.append(1)
        return len(computed)

    assert ask_at_once(8, ComputedOnce(compute).result) == [1] * 8
    assert computed == [1]


def test_the_error_of_a_computation_is_not_kept() -> None:
    results = [ZeroDivisionError("first"), "second"]

    def compute() -> str:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return str(result)

    once = ComputedOnce(compute)
    with pytest.raises(ZeroDivisionError):
        once.result()
    assert once.result() == once.result() == "second"


# Forks


def test_the_exit_waits_until_the_system_has_ended_the_threads(fresh: Fresh) -> None:
    code = """
import os, threading, time
from _thread import get_native_id
from firstvec.process import threads

class Slow:  # the thread ends this much later than its work
    def __del__(self):
        time.sleep(0.2)

kept = threading.local()

def work():
    kept.slow = Slow()
    return get_native_id()

ids = [threads.Task(work).result() for _ in range(3)]
alive = [os.path.exists(f"/proc/self/task/{each}") for each in ids]
threads.before_exit()
print(alive[-1], [os.path.exists(f"/proc/self/task/{each}") for each in ids])
"""
    if sys.platform != "linux":
        pytest.skip("other systems do not list threads in /proc")
    assert fresh(code).stdout == "True [False, False, False]\n"


def test_a_fork_waits_for_tasks(fresh: Fresh) -> None:
    code = """
import os, time
from firstvec.process.threads import Task
ended = []
Task(lambda: (time.sleep(0.3), ended.append(1)))
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert ended == [1]
"""
    fresh(code)


def test_a_task_that_a_fork_did_not_wait_for_is_lost_in_the_child(fresh: Fresh) -> None:
    code = """
import os, time
from firstvec.process import threads
threads._PATIENCE = 0.1
go_on = threads.Event()
task = threads.Task(lambda: go_on.wait(200))
assert not task.is_lost
if child := os.fork():
    go_on.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    threads._PATIENCE = 15
    assert task.result() and not task.is_lost
else:
    assert task.is_lost and task.error
    try:
        task.result()
    except RuntimeError as error:
        assert "forked" in str(error)
    else:
        raise AssertionError
"""
    fresh(code)


def test_a_forked_child_has_an_open_gate_free_locks_and_calls_what_resets_it(fresh: Fresh) -> None:
    code = """
import os
from firstvec.process import threads
from firstvec.process.threads import ProcessLock, engine_gate, exiting, reset_in_forked_child
lock, kept = ProcessLock(), ["the parent's"]
reset_in_forked_child(kept.clear)
exiting.set()
engine_gate.is_closed = True
with lock.here():
    if child := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert lock.here().locked() and exiting.is_set and engine_gate.is_closed and kept == ["the parent's"]
    else:
        assert (exiting.is_set, engine_gate.is_closed, kept) == (False, False, [])
        with lock.here():
            os._exit(0)
"""
    fresh(code)


def test_a_lock_of_the_process_excludes_other_threads() -> None:
    lock = ProcessLock()
    assert lock.here() is lock.here()
    with lock.here():
        assert not lock.here().acquire(blocking=False)
    assert lock.here().acquire(blocking=False)
    lock.here().release()


POOL_AFTER_PRELOAD = """
import multiprocessing, sys, time
from firstvec import get_embedding_provider, preload_embeddings
def work(text):
    return len(get_embedding_provider().embed_query(text))
if __name__ == "__main__":
    preload_embeddings(sys.argv[1], sys.argv[2], artifact=sys.argv[4])
    time.sleep(float(sys.argv[3]))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(work, ["text"] * 8).get(200) == [32] * 8
"""


@pytest.mark.parametrize("artifact", ["native-fp32", "onnx-fp32"])
@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.01, 0.02, 0.04])
@pytest.mark.parametrize("strategy", [LoadingStrategy.PROGRESSIVE, LoadingStrategy.BACKGROUND])
def test_a_pool_may_be_forked_right_after_the_preload(
    strategy: LoadingStrategy, seconds: float, artifact: str, tiny_built: Path, fresh: Fresh
) -> None:
    fresh(POOL_AFTER_PRELOAD, tiny_built, strategy.value, seconds, artifact)


# The gate


def test_the_gate_knows_who_is_inside() -> None:
    gate = EngineGate()
    this = threading.get_ident()
    with gate:
        assert gate.threads_inside() == [this]
        with gate:
            assert gate.threads_inside() == [this, this]
        others = ask_at_once(3, lambda: gate.__enter__() or threading.get_ident())
        assert sorted(gate.threads_inside()) == sorted([this, *others])
    gate.reset()
    assert gate.threads_inside() == []


def test_every_module_uses_the_one_gate_and_the_one_event_of_the_exit() -> None:
    from firstvec.loading import attempt, hand_over, opening, session_in_use

    assert attempt.engine_gate is opening.engine_gate is session_in_use.engine_gate is threads.engine_gate
    assert hand_over.exiting is threads.exiting


def test_a_name_that_was_imported_before_the_exit_or_a_fork_has_their_state(fresh: Fresh) -> None:
    code = """
import os
from firstvec.process.threads import before_exit, engine_gate, exiting
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
before_exit()
assert engine_gate.is_closed and exiting.is_set
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
else:
    assert not engine_gate.is_closed and not exiting.is_set
"""
    fresh(code)


def test_a_signal_handler_may_fork_while_the_main_thread_is_in_the_gate(fresh: Fresh) -> None:
    code = """
import os, signal
from firstvec.process.threads import engine_gate
children = []
signal.signal(signal.SIGUSR1, lambda *_: children.append(os.fork()))
with engine_gate:
    os.kill(os.getpid(), signal.SIGUSR1)
    while not children:
        pass
assert engine_gate.threads_inside() == []
if children[0]:
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
"""
    fresh(code)


def test_an_entry_that_ctrl_c_left_in_the_gate_holds_up_no_exit(fresh: Fresh) -> None:
    fresh("from firstvec.process import threads; threads._PATIENCE = 600; threads.engine_gate.__enter__()")


# The exit


def test_the_exit_waits_for_tasks_and_for_those_that_they_start(fresh: Fresh) -> None:
    code = """
import time
from firstvec.process.threads import Task, exiting
def first():
    assert exiting.wait(100)  # the exit hurries
    Task(second)
def second():
    time.sleep(0.2)
    print("done", flush=True)
Task(first)
"""
    assert fresh(code).stdout == "done\n"


def test_the_exit_gives_up_on_a_task_once(fresh: Fresh) -> None:
    code = """
import time
from firstvec.process import threads
threads._PATIENCE = 0.5
threads.Task(lambda: time.sleep(600))
began = time.monotonic()
threads.before_exit()
print(time.monotonic() - began >= 0.5, threads._wait_for_tasks())
"""
    assert fresh(code).stdout == "True []\n"


EXIT_DURING_LOAD = """
import sys, time
from firstvec import preload_embeddings
preload_embeddings(sys.argv[1], sys.argv[2], artifact=sys.argv[4])
time.sleep(float(sys.argv[3]))
"""


@pytest.mark.parametrize("strategy", [each for each in LoadingStrategy if each is not LoadingStrategy.LAZY])
@pytest.mark.parametrize(
    ("artifact", "seconds"),
    [*(("native-fp32", seconds) for seconds in (0.0, 0.005)), *(("onnx-fp32", at) for at in (0.0, 0.02, 0.08, 0.15))],
)
def test_the_interpreter_exits_cleanly_during_a_load(
    strategy: LoadingStrategy, artifact: str, seconds: float, bundle: Path, fresh: Fresh
) -> None:
    fresh(EXIT_DURING_LOAD, bundle, strategy.value, seconds, artifact)


DAEMON = """
import sys, threading, time
from firstvec import OptimizedEmbeddingLoader
from firstvec.process import threads
threads._PATIENCE = 600
provider = OptimizedEmbeddingLoader(sys.argv[1], "quantized", output="list", artifact=sys.argv[2]).get_provider()
def embed():
    while True:
        provider.encode(["a text of some words", "and another one"])
for _ in range(3):
    threading.Thread(target=embed, daemon=True).start()
while not threads.engine_gate.threads_inside():
    time.sleep(0.001)
"""


@pytest.mark.parametrize("artifact", ["native-int8", INT8])
def test_daemon_threads_of_the_program_that_are_in_an_engine_end_with_the_process(
    artifact: str, bundle: Path, fresh: Fresh
) -> None:
    for _ in range(5):
        fresh(DAEMON, bundle, artifact)


def test_a_daemon_thread_comes_through_the_closed_gate_no_more_and_the_main_thread_does(
    tiny_built: Path, fresh: Fresh
) -> None:
    code = """
import atexit, sys, threading, time
from firstvec import OptimizedEmbeddingLoader
from firstvec.process.threads import engine_gate
provider = OptimizedEmbeddingLoader(sys.argv[1], output="list").get_provider()
go_on, runs = threading.Event(), []
def embed():
    go_on.wait()
    runs.append("begun")
    provider.embed_query("text")
    runs.append("ended")
threading.Thread(target=embed, daemon=True).start()
def last():
    assert engine_gate.is_closed
    go_on.set()
    time.sleep(0.3)
    print(len(provider.embed_query("text")), runs, len(engine_gate.threads_inside()))
atexit._clear()
from firstvec.process import threads
atexit.register(last)
atexit.register(threads.before_exit)
"""
    assert fresh(code, tiny_built).stdout == "32 ['begun'] 0\n"


# Ctrl-C

INTERRUPTED_EXIT = """
import signal, sys, threading, time
from firstvec.process import threads
threads._PATIENCE = 600
def handler(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handler)
wait_for_tasks, waits = threads._wait_for_tasks, threading.Event()
def noted():
    waits.set()
    return wait_for_tasks()
threads._wait_for_tasks = noted
def work():
    with threads.engine_gate:
        assert waits.wait(100)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
        time.sleep({seconds})
        print("done", flush=True)  # outside of the gate, the exit would not wait for it
threads.Task(work)
{how}
"""
"""Ctrl-C comes while the main thread waits for the task, however slow the machine is."""

FORK = "import os\nif os.fork(): os.wait()\nelse: os._exit(0)"


@pytest.mark.parametrize("seconds", [0.5, 1.5])
@pytest.mark.parametrize("how", ["", FORK], ids=["exit", "fork"])
def test_an_exit_and_a_fork_wait_for_threads_in_an_engine_through_ctrl_c(
    how: str, seconds: float, fresh: Fresh
) -> None:
    assert fresh(INTERRUPTED_EXIT.format(how=how, seconds=seconds)).stdout == "done\n"


@pytest.mark.parametrize("how", ["", FORK], ids=["exit", "fork"])
def test_an_exit_and_a_fork_wait_for_threads_that_are_nearly_done_through_ctrl_c(how: str, fresh: Fresh) -> None:
    code = INTERRUPTED_EXIT.replace("with threads.engine_gate", "if True").format(how=how, seconds=0.5)
    assert fresh(f"from firstvec.process import threads; threads._PATIENCE_AFTER_CTRL_C = 60{code}").stdout == "done\n"


def test_after_ctrl_c_the_exit_waits_a_moment_for_threads_that_are_in_no_engine(fresh: Fresh) -> None:
    code = INTERRUPTED_EXIT.replace("with threads.engine_gate", "if True").format(how="", seconds=600)
    assert fresh(code).stdout == ""


def test_ctrl_c_during_a_load_ends_the_process(bundle: Path, tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    # A shell that starts a job in the background lets it ignore SIGINT, and that is inherited.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    # CPython may see a signal only after the call that it came before, so the program sleeps in short calls.
    sleeps = "print('started', flush=True)\nwhile True: time.sleep"
    script.write_text(heed + EXIT_DURING_LOAD.replace("time.sleep", sleeps))
    process = subprocess.Popen(
        [sys.executable, str(script), str(bundle), "progressive", "0.05", "onnx-fp32"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    try:
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    # CPython 3.11 forgets that it was Ctrl-C when another thread executes a module meanwhile: then the code is 1.
    assert process.returncode in (-signal.SIGINT, 1)
    assert stderr.rstrip().endswith("KeyboardInterrupt")
