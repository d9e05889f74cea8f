"""Import locks that Ctrl-C left with the main thread are given back, and those of imports under way stay."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from firstvec import OptimizedEmbeddingLoader
from firstvec.process import import_locks, threads
from tests.conftest import Fresh
from tests.loads import hold_sessions

TAKE = {
    "the one lock": "import _imp; _imp.acquire_lock()",
    "the one lock twice": "import _imp; _imp.acquire_lock(); _imp.acquire_lock()",
    "a module's lock": """
from importlib._bootstrap import _get_module_lock
lock = _get_module_lock("colorsys"); lock.acquire()
""",
}
"""What the main thread takes, and does not release: so does a Ctrl-C between two instructions of importlib."""

WAIT = {
    "a wait": "task.result()",
    "the exit": "",
    "a fork": "import os; os.fork() or os._exit(0); os.wait()",
}
"""What the main thread does then."""

TASK = """
import sys
from firstvec.process import threads
from firstvec.process.threads import Task
threads._PATIENCE = 100  # then the exit and the fork give up, and nothing is printed
assert "colorsys" not in sys.modules
def work():
    import colorsys
    print("imported", flush=True)
"""


@pytest.mark.parametrize("taken", TAKE)
@pytest.mark.parametrize("how", WAIT)
def test_a_lock_that_the_main_thread_left_taken_holds_up_no_task(how: str, taken: str, fresh: Fresh) -> None:
    assert fresh(f"{TASK}{TAKE[taken]}\ntask = Task(work)\n{WAIT[how]}").stdout == "imported\n"


LOAD = """
import sys
from firstvec import preload_embeddings
assert "firstvec.loading.opening" not in sys.modules
{}
loader = preload_embeddings(sys.argv[1], "background", output="list")
print(len(loader.get_provider(timeout=100).embed_query("text")))
"""


@pytest.mark.parametrize("taken", ["the one lock", "the lock of a module of the load"])
def test_a_lock_that_the_main_thread_left_taken_holds_up_no_load(taken: str, tiny_built: Path, fresh: Fresh) -> None:
    take = TAKE.get(taken) or TAKE["a module's lock"].replace("colorsys", "firstvec.loading.opening")
    assert fresh(LOAD.format(take), tiny_built).stdout == "32\n"


def test_a_lock_that_another_thread_uses_is_not_released() -> None:
    import _imp

    held, go_on = threading.Event(), threading.Event()
    lock = importlib._bootstrap._get_module_lock("firstvec.no_such_module")  # type: ignore[attr-defined]

    def hold() -> None:
        _imp.acquire_lock()
        lock.acquire()
        held.set()
        # This wait imports nothing, so nobody needs the lock meanwhile.
        assert go_on.wait(60)
        lock.release()
        _imp.release_lock()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    import_locks.release_left_locks()
    is_held, owner = _imp.lock_held(), lock.owner
    go_on.set()
    thread.join()
    assert (is_held, owner) == (True, thread.ident)
    assert lock.owner is None


UNDER_WAY = """
from importlib._bootstrap import _get_module_lock
from threading import get_ident
import time
from firstvec.process.threads import Task
lock = _get_module_lock(__name__)
assert lock.owner == get_ident()
Task(lambda: time.sleep(0.25)).result()  # the wait releases what was left, twice
assert lock.owner == get_ident()
complete = True
"""


def reload(path: Path) -> ModuleType:
    content = path.read_text("utf-8")
    path.write_text("", "utf-8")
    module = importlib.import_module(path.stem)
    path.write_text(content, "utf-8")
    importlib.invalidate_caches()
    return importlib.reload(module)


def load_from_spec(path: Path) -> ModuleType:
    """Load a module as ``load_module()`` of the loaders does, and tools that replace the import do."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module: ModuleType = importlib._bootstrap._load(spec)  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    "how", [lambda path: importlib.import_module(path.stem), reload, load_from_spec], ids=["import", "reload", "spec"]
)
def test_the_locks_of_imports_under_way_stay(
    how: Callable[[Path], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a_module_that_waits.py"
    path.write_text(UNDER_WAY, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert how(path).complete
    finally:
        sys.modules.pop(path.stem, None)


def test_in_the_middle_of_importlib_a_signal_handler_releases_nothing() -> None:
    """Where importlib uses the lock of all imports, a handler of the program may run that waits for a load."""
    import _imp

    code = "def _get_module_lock(name, handler):\n    handler()\n"
    namespace: dict[str, object] = {}
    exec(compile(code, import_locks._IMPORTLIB, "exec"), namespace)
    lock = importlib._bootstrap._get_module_lock("firstvec.no_such_module")  # type: ignore[attr-defined]
    lock.acquire()
    _imp.acquire_lock()
    try:
        namespace["_get_module_lock"](lock.name, import_locks.release_left_locks)  # type: ignore[operator]
        assert _imp.lock_held()
        assert lock.owner == threading.get_ident()
    finally:
        _imp.release_lock()
        lock.release()


DEADLOCK = """
import _imp, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
sys.path.insert(0, sys.argv[2])
from firstvec import preload_embeddings
from firstvec.loading import opening
open_artifact = opening.open_artifact
def imports_first(*arguments, **options):
    import slow
    return open_artifact(*arguments, **options)
opening.open_artifact = imports_first
loader = preload_embeddings(sys.argv[1], "background", output="list")
while "slow" not in sys.modules:
    time.sleep(0.01)
_imp.acquire_lock()  # as if Python had ignored the exception of a Ctrl-C
try:
    import slow
except KeyboardInterrupt:
    print("interrupted")
print(len(loader.get_provider(timeout=100).embed_query("text")))
"""


def test_a_main_thread_that_waits_for_itself_is_interrupted_and_the_load_goes_on(
    tiny_built: Path, tmp_path: Path, fresh: Fresh
) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(0.3)\nimport colorsys\n", "utf-8")
    # The empty cache makes it a load in a thread.
    assert fresh(DEADLOCK, tiny_built, tmp_path, FIRSTVEC_CACHE=str(tmp_path / "cache")).stdout == "interrupted\n32\n"


LAST_REFERENCE = """
import _imp, faulthandler, signal, threading, time
from firstvec.process import import_locks
signal.signal(signal.SIGINT, signal.default_int_handler)
faulthandler.dump_traceback_later(200, exit=True)  # the stacks of a hang
namespace = {"acquire": _imp.acquire_lock, "sleep": time.sleep, "for_ever": threading.Lock()}
code = '''
from importlib._bootstrap import _get_module_lock
def an_import():
    lock = _get_module_lock("no_such_module")
    acquire()  # as if Python had ignored the exception of a Ctrl-C
    sleep(0.5)
def next_import():
    for_ever.acquire(); for_ever.acquire()
'''
exec(compile(code, "<frozen importlib._bootstrap>", "exec"), namespace)
import_locks.watch_imports(threading.main_thread().ident, lambda: True)
namespace["an_import"]()
try:
    namespace["next_import"]()
except KeyboardInterrupt:
    print("interrupted")
"""


SLOW_FILES = """
import importlib.machinery, sys, threading, time
from firstvec.process import import_locks
class SlowFiles:  # importlib asks a finder with the one lock of all imports, and a slow file system gives up the GIL
    def find_spec(self, name, path=None, target=None):
        if name.startswith("slow_"):
            time.sleep(0.1)
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec): pass
    def exec_module(self, module): pass
sys.meta_path.insert(0, SlowFiles())
def import_many():
    for number in range(30):
        __import__(f"slow_{number}")
thread = threading.Thread(target=import_many)
thread.start()
import_locks.watch_imports(threading.main_thread().ident, thread.is_alive)
thread.join()
print("slow_29" in sys.modules)
"""


def test_a_thread_that_imports_much_from_slow_files_is_no_lost_ctrl_c(fresh: Fresh) -> None:
    assert fresh(SLOW_FILES).stdout == "True\n"


def test_the_watch_keeps_nothing_of_importlib_alive(fresh: Fresh) -> None:
    """The last reference to a module's lock runs a callback that takes the lock of all imports, and would wait."""
    assert fresh(LAST_REFERENCE).stdout == "interrupted\n"


PATIENT = DEADLOCK.replace("_imp.acquire_lock()", "assert not _imp.lock_held()")


def test_a_main_thread_that_waits_for_a_slow_import_is_left_alone(
    tiny_built: Path, tmp_path: Path, fresh: Fresh
) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(1.5)\nimport colorsys\n", "utf-8")
    assert fresh(PATIENT, tiny_built, tmp_path).stdout == "32\n"


def test_where_no_thread_can_be_started_nobody_watches_and_the_load_goes_on(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(import_locks, "start_new_thread", refused)
    release = hold_sessions(monkeypatch)
    loader = OptimizedEmbeddingLoader(str(tiny_built), "background", "cpu")
    loader.start_loading()
    assert not threads._is_watching
    release.set()
    assert loader.get_provider().embed_query("text").shape == (32,)


@pytest.mark.parametrize("engine", ["native", "onnxruntime"])
def test_the_watch_ends_with_the_load(engine: str, tiny_built: Path, tiny_onnx: Path, fresh: Fresh) -> None:
    code = """
import sys, time
from _thread import _count
from firstvec import OptimizedEmbeddingLoader
OptimizedEmbeddingLoader(sys.argv[1], "quantized", output="list").get_provider().embed_query("text")
deadline = time.monotonic() + 60
while _count() and time.monotonic() < deadline:
    time.sleep(0.01)
print(_count())
"""
    assert fresh(code, tiny_built if engine == "native" else tiny_onnx).stdout == "0\n"
