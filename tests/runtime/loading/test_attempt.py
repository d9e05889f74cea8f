"""One attempt to load: what it waits for, what it falls back to, how it fails, and how it ends with the process."""

from __future__ import annotations

import errno
import gc
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from firstvec import (
    BundleNotFound,
    IntegrityError,
    LoadError,
    LoadingStrategy,
    LoadTimeout,
    ManifestError,
    NoCompatibleArtifact,
    OptimizedEmbeddingLoader,
)
from firstvec.loading.attempt import Load
from firstvec.process import threads
from tests.conftest import Fresh, edit_manifest
from tests.loads import flip_byte, hold_sessions, keep_only, load, load_in_threads, wait_for_tasks


@pytest.mark.parametrize("strategy", [LoadingStrategy.LAZY, LoadingStrategy.BACKGROUND])
def test_a_late_load_raises_load_timeout_and_goes_on(
    strategy: LoadingStrategy, tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = hold_sessions(monkeypatch)
    loader = OptimizedEmbeddingLoader(str(tiny_built), strategy)
    loader.start_loading()
    try:
        with pytest.raises(LoadTimeout, match=r"0\.05 s; the load goes on"):
            loader.get_provider(timeout=0.05)
        assert loader.is_loading()
        assert loader.get_error() is None
    finally:
        release.set()
    assert loader.get_provider().embed_query("late").shape == (32,)


def test_progressive_answers_metadata_and_token_counts_before_the_session_is_up(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = hold_sessions(monkeypatch)
    loader = OptimizedEmbeddingLoader(str(tiny_built), LoadingStrategy.PROGRESSIVE)
    loader.start_loading()
    try:
        assert loader.get_embedding_dim_fast() == 32
        counts = loader.count_tokens(["", "two words"])
        assert not loader.is_loaded()
    finally:
        release.set()
    assert counts == loader.get_provider().count_tokens(["", "two words"])
    assert counts[0] == 2


@pytest.mark.native
@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("lazy", "quick-start"),
        ("background", "throughput"),
        ("progressive", "quick-start"),
        ("quantized", "quick-start"),
        ("cached", "quick-start"),
    ],
)
def test_each_strategy_opens_its_kind_of_session(strategy: str, kind: str, tiny_built: Path, tiny_onnx: Path) -> None:
    # The tests import torch, which CACHED would take.
    options = {"artifact": "onnx-fp32"} if strategy == "cached" else {}
    assert load(tiny_onnx, strategy, **options).get_provider().session_kind == kind
    assert load(tiny_built, strategy).get_provider().session_kind == "throughput"  # the native engine has no other


# Artifacts and bundles that cannot be used


DAMAGES = pytest.mark.parametrize(
    ("damaged", "taken"),
    [(["native/model.fvw"], "onnx-fp32"), (["native/model.fvw", "onnx/model.onnx_data"], "torchscript-fp32")],
)
"""Files that are damaged, and the artifact that is then the best."""


@pytest.mark.native
@DAMAGES
def test_a_damaged_artifact_is_passed_over_with_one_warning(
    damaged: list[str], taken: str, tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider().embed_query("text")
    for name in damaged:
        flip_byte(tiny_bundle / name)
    provider = OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider()
    assert provider.artifact.id == taken
    np.testing.assert_allclose(provider.embed_query("text"), good, atol=1e-5)
    [record] = [record for record in caplog.records if record.name == "firstvec"]
    assert all(name in record.getMessage() for name in damaged)
    assert f"using {taken}" in record.getMessage()


@pytest.mark.native
@pytest.mark.parametrize(("artifact", "name"), [("onnx-fp32", "onnx/model.onnx"), ("native-fp32", "native/model.fvw")])
def test_a_damaged_only_candidate_raises_integrity_error(artifact: str, name: str, tiny_bundle: Path) -> None:
    edit_manifest(tiny_bundle, keep_only([artifact]))
    flip_byte(tiny_bundle / name)
    with pytest.raises(IntegrityError, match="firstvec build --force"):
        OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider()


@pytest.mark.native
def test_all_candidates_damaged_lists_every_reason(tiny_bundle: Path) -> None:
    for name in ("native/model.fvw", "onnx/model.onnx", "torchscript/model.pt"):
        flip_byte(tiny_bundle / name)
    with pytest.raises(NoCompatibleArtifact, match=r"(?s)model\.fvw.*model\.onnx.*model\.pt.*firstvec verify"):
        OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider()


def test_a_damaged_tokenizer_raises_integrity_error(tiny_bundle: Path) -> None:
    flip_byte(tiny_bundle / "tokenizer.json")
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda root: (root / "firstvec.json").write_bytes((root / "firstvec.json").read_bytes()[:500]), "JSON"),
        (lambda root: edit_manifest(root, lambda document: document.update(format_version="2.0")), "upgrade firstvec"),
        (lambda root: edit_manifest(root, lambda document: document.pop("model")), "model: is missing"),
    ],
    ids=["truncated", "newer", "edited"],
)
def test_a_bad_manifest_raises_manifest_error(damage: Callable[[Path], None], expected: str, tiny_bundle: Path) -> None:
    damage(tiny_bundle)
    with pytest.raises(ManifestError, match=expected):
        OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider()


def test_an_isa_that_no_artifact_fits_raises_with_the_reasons(tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built), LoadingStrategy.QUANTIZED)
    loader.resource_profile = loader.resource_profile.replace(isa=(), native_isa="plain", machine="riscv64")
    loader.start_loading()
    with pytest.raises(NoCompatibleArtifact, match="isa: needs avx2, this CPU has riscv64"):
        loader.get_provider()


def test_min_quality_is_enforced_at_load(tiny_built: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built), LoadingStrategy.QUANTIZED, min_quality=0.99999)
    loader.start_loading()
    with pytest.raises(NoCompatibleArtifact, match=r"quality: cosine_min .* < min_quality 0\.99999"):
        loader.get_provider()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ZeroDivisionError("an error of Python"), r"ZeroDivisionError: an error of Python; run `firstvec doctor`"),
        (OSError(errno.EMFILE, "Too many open files"), r"Too many open files; close some files, or raise the limit"),
    ],
)
def test_an_error_that_nobody_expects_is_a_load_error_with_its_cause(
    error: Exception, message: str, tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise error

    loader = OptimizedEmbeddingLoader(str(tiny_built))
    with monkeypatch.context() as patch:
        patch.setattr(Load, "_load", fail)
        with pytest.raises(LoadError, match=message) as caught:
            loader.get_provider()
        assert caught.value.__cause__ is error
        assert loader.get_error() is caught.value
    assert loader.get_provider().embed_query("text").shape == (32,)


# Ctrl-C

INTERRUPTED = """
import signal, sys
from firstvec import OptimizedEmbeddingLoader
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
loader = OptimizedEmbeddingLoader(sys.argv[1])
try:
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
    loader.get_provider(timeout=None)
    signal.setitimer(signal.ITIMER_REAL, 0)
except KeyboardInterrupt:
    # "idle": the interrupt came before the loader had got hold of the load.
    assert loader.report()["state"] in ("idle", "loading", "loaded"), loader.report()
    assert loader.get_error() is None
assert loader.get_provider(timeout=None).embed_query("text").shape == (384,)
assert loader.report()["state"] == "loaded"
"""


@pytest.mark.parametrize("seconds", [0.002, 0.01, 0.02, 0.03])
def test_a_wait_that_ctrl_c_interrupts_can_be_tried_again(seconds: float, bundle: Path, fresh: Fresh) -> None:
    fresh(INTERRUPTED, bundle, seconds)


def interrupted(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_while_a_load_is_started_leaves_a_loader_that_loads(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = OptimizedEmbeddingLoader(str(tiny_built), LoadingStrategy.BACKGROUND)
    load_in_threads(monkeypatch)

    with monkeypatch.context() as patch:
        patch.setattr(threads, "start_new_thread", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loader.start_loading()
    assert not loader.is_loading()
    loader.start_loading()
    assert loader.get_provider(timeout=120).embedding_dim == 32


def test_ctrl_c_in_a_load_without_threads_reaches_the_program(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    loader = OptimizedEmbeddingLoader(str(tiny_built))
    monkeypatch.setattr(threads, "start_new_thread", refused)
    with monkeypatch.context() as patch:
        patch.setattr(Load, "_open_candidate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loader.get_provider()
    assert loader.get_provider(timeout=120).embed_query("text").shape == (32,)


IN_ONE_THREAD = """
import sys
from firstvec import OptimizedEmbeddingLoader
from firstvec.process import threads
started = []
threads.start_new_thread = lambda *arguments: started.append(arguments)
loader = OptimizedEmbeddingLoader(sys.argv[1], sys.argv[2], "cpu", output="list")
loader.start_loading()
assert loader.is_loaded() == (sys.argv[2] != "lazy")
assert len(loader.get_provider().embed_query("text")) == 32
print(len(started), loader.report()["verification"], "threading" in sys.modules)
"""


@pytest.mark.native
@pytest.mark.parametrize("strategy", ["lazy", "background", "progressive", "quantized", "cached"])
def test_a_load_that_hashes_nothing_starts_no_thread(strategy: str, tiny_built: Path, fresh: Fresh) -> None:
    load(tiny_built, strategy)
    assert fresh(IN_ONE_THREAD, tiny_built, strategy).stdout == "0 remembered False\n"


@pytest.mark.native
def test_ctrl_c_in_a_load_that_hashes_nothing_reaches_the_program(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tiny_built)
    loader = OptimizedEmbeddingLoader(str(tiny_built), LoadingStrategy.BACKGROUND)
    with monkeypatch.context() as patch:
        patch.setattr(Load, "_open_candidate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loader.start_loading()
    assert not loader.is_loading()
    loader.start_loading()
    assert loader.get_provider().embed_query("text").shape == (32,)


# A load in a process that exits, and in a forked child. The empty cache makes it a load in a thread, which hashes.

STOPPED = """
import atexit, logging, sys, threading, time
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
from firstvec import OptimizedEmbeddingLoader
from firstvec.loading import opening
from firstvec.process.threads import exiting
verify_artifact, begun = opening.verify_artifact, threading.Event()
def held(*arguments):
    begun.set()
    assert exiting.wait(100)
    return verify_artifact(*arguments)
opening.verify_artifact = held
loader = OptimizedEmbeddingLoader(sys.argv[1], sys.argv[2], "cpu", output=sys.argv[3])
loader._start()
assert begun.wait(100)
def last():
    error, report = loader.get_error(), loader.report()
    print(type(error).__name__, report["state"], report["error"])
    print(sorted({each["name"] for each in report["stages"]} & {"verification", "engine", "session", "self-test"}))
from firstvec.process.threads import before_exit
atexit._clear()
atexit.register(last)
atexit.register(before_exit)
"""


@pytest.mark.parametrize("output", ["list", "numpy"])
@pytest.mark.parametrize("strategy", ["lazy", "background", "progressive"])
def test_a_load_that_is_under_way_when_the_process_exits_stops_between_stages_and_warns_of_nothing(
    strategy: str, output: str, tiny_built: Path, tmp_path: Path, fresh: Fresh
) -> None:
    done = fresh(STOPPED, tiny_built, strategy, output, FIRSTVEC_CACHE=str(tmp_path))
    assert done.stdout.splitlines() == [
        "ProcessExiting failed the process is exiting, so the load was stopped",
        "[]",
    ]


WAITING = STOPPED.replace(
    "    error, report =", "    time.sleep(0.5)  # the thread has its chance to print an error\n    error, report ="
)
WAITING += """
import threading
threading.Thread(target=loader.get_provider, daemon=True).start()
time.sleep(0.2)
"""


def test_a_daemon_thread_that_waits_for_the_provider_when_the_process_exits_prints_no_error(
    tiny_built: Path, tmp_path: Path, fresh: Fresh
) -> None:
    done = fresh(WAITING, tiny_built, "lazy", "list", FIRSTVEC_CACHE=str(tmp_path))
    assert (done.stderr, done.stdout.splitlines()[1]) == ("", "[]")


KEPT_BY_A_CALLBACK = """
import sys
from firstvec import OptimizedEmbeddingLoader, errors
errors.callback = lambda: None  # keeps the globals of this program until the exit clears the modules
loader = OptimizedEmbeddingLoader(sys.argv[1], "quantized", output="list")
loader.get_provider().embed_query("text")
"""


def test_the_exit_closes_files_and_sessions_without_an_error(tiny_built: Path, tiny_onnx: Path, fresh: Fresh) -> None:
    for root in (tiny_built, tiny_onnx):
        fresh(KEPT_BY_A_CALLBACK, root)  # prints nothing on stderr


AT_EXIT = """
import atexit, sys
def last():
    provider = OptimizedEmbeddingLoader(sys.argv[1], sys.argv[2], output=sys.argv[3]).get_provider()
    print(len(provider.embed_query("text")))
atexit.register(last)  # before firstvec's own, so it is called after it
from firstvec import OptimizedEmbeddingLoader
import firstvec.loader
"""


@pytest.mark.parametrize("output", ["list", "numpy"])
@pytest.mark.parametrize("strategy", ["lazy", "background", "progressive"])
def test_a_function_that_the_exit_calls_may_load_a_model(
    strategy: str, output: str, tiny_built: Path, fresh: Fresh
) -> None:
    assert fresh(AT_EXIT, tiny_built, strategy, output).stdout == "32\n"


LOST = """
import os, sys, threading
from firstvec import OptimizedEmbeddingLoader
from firstvec.loading import opening
from firstvec.process import threads
open_artifact, go_on = opening.open_artifact, threading.Event()
def held(*arguments, **options):
    assert go_on.wait(200)
    return open_artifact(*arguments, **options)
opening.open_artifact = held
loader = OptimizedEmbeddingLoader(sys.argv[1], sys.argv[2], "cpu", output="list")
loader._start()
counts = loader.count_tokens("text")  # the load is at its session
assert loader.is_loading() and loader.report()["state"] == "loading"
threads._PATIENCE = 0.1
child = os.fork()
if child:
    go_on.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
else:
    opening.open_artifact = open_artifact
    assert not loader.is_loading() and not loader.is_loaded() and loader.get_error() is None
    assert loader.report()["state"] == "idle"
    if sys.argv[3] == "count":
        assert loader.count_tokens("text", timeout=100) == counts
assert len(loader.get_provider(timeout=100).embed_query("text")) == 32
"""


@pytest.mark.parametrize("call", ["count", "load"])
@pytest.mark.parametrize("strategy", ["lazy", "background"])
def test_a_load_that_a_fork_did_not_wait_for_is_started_again_in_the_child(
    strategy: str, call: str, tiny_built: Path, tmp_path: Path, fresh: Fresh
) -> None:
    fresh(LOST, tiny_built, strategy, call, FIRSTVEC_CACHE=str(tmp_path))


# What a load leaves behind


def test_a_failed_load_leaves_no_descriptor_and_no_thread(tiny_bundle: Path) -> None:
    def count() -> int:
        wait_for_tasks()
        return len(os.listdir("/proc/self/fd"))

    edit_manifest(tiny_bundle, keep_only(["onnx-fp32"]))
    load(tiny_bundle)
    flip_byte(tiny_bundle / "onnx/model.onnx")

    def fail() -> None:
        loader = OptimizedEmbeddingLoader(str(tiny_bundle), device="cpu")
        with pytest.raises(IntegrityError):
            loader.get_provider()

    fail()
    gc.collect()
    before = count()
    for _ in range(10):
        fail()
    gc.collect()  # an error refers to the frames that it came through
    assert count() <= before


WITHOUT_COLLECTOR = """
import gc, logging, os, sys, weakref
logging.disable()
from firstvec import NoCompatibleArtifact, OptimizedEmbeddingLoader
from firstvec.process import threads

def open_files():
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # that of the list itself
            continue
    return [link for link in links if link.startswith(sys.argv[1] + "/") and not link.endswith("tokenizer.json")]

taken = []

def use():
    loader = OptimizedEmbeddingLoader(sys.argv[1], device="cpu", output="list")
    try:
        provider = loader.get_provider()
    except NoCompatibleArtifact:
        taken.append(None)
        return None
    taken.append(provider.artifact.id)
    provider.embed_query("text")
    return weakref.ref(provider.session)

use()  # the import of an engine leaves cycles of its own
gc.collect()
gc.disable()
for _ in range(3):
    session = use()
    threads._wait_for_tasks()
    print(taken.pop(), session is not None, session is not None and session() is not None, open_files())
"""


@pytest.mark.native
@DAMAGES
def test_after_a_fallback_the_session_is_freed_with_its_provider(
    damaged: list[str], taken: str, tiny_bundle: Path, fresh: Fresh
) -> None:
    """Not when the garbage collector comes by: the fallback is a larger artifact."""
    for name in damaged:
        flip_byte(tiny_bundle / name)
    assert fresh(WITHOUT_COLLECTOR, tiny_bundle).stdout == f"{taken} True False []\n" * 3


MAIN_THREAD = """
import sys
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(sys.argv[1], sys.argv[2], "cpu", output="list", artifact=sys.argv[3] or None)
assert "threading" not in sys.modules
loader.start_loading()
provider = loader.get_provider()
print(provider.artifact.id, "threading" in sys.modules)
import threading
assert threading.main_thread() is threading.current_thread()
assert [thread for thread in threading.enumerate() if not thread.daemon] == [threading.main_thread()]
from firstvec.process.threads import is_main_thread
assert is_main_thread()
"""


@pytest.mark.native
@pytest.mark.parametrize("strategy", ["lazy", "background"])
@pytest.mark.parametrize(
    ("damaged", "artifact", "taken"),
    [
        ([], "", "native-fp32 True"),
        ([], "onnx-fp32", "onnx-fp32 True"),
        ([], "torchscript-fp32", "torchscript-fp32 True"),
        (["native/model.fvw"], "", "onnx-fp32 True"),
        (["native/model.fvw", "onnx/model.onnx"], "", "torchscript-fp32 True"),
        (["vocabulary"], "", "native-fp32 True"),  # then the tokenizers package is loaded in a thread of its own
    ],
)
def test_whatever_thread_imports_threading_the_main_thread_stays_the_main_thread(
    strategy: str, damaged: list[str], artifact: str, taken: str, tiny_bundle: Path, fresh: Fresh
) -> None:
    """A load in a thread imports threading before the thread starts. Here the native file has to be hashed."""
    for name in damaged:
        if name == "vocabulary":
            edit_manifest(tiny_bundle, lambda document: document.pop("wordpiece"))
        else:
            flip_byte(tiny_bundle / name)
    done = fresh(MAIN_THREAD, tiny_bundle, strategy, artifact, check=False)
    assert (done.returncode, done.stdout) == (0, f"{taken}\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert ("a better artifact failed" in done.stderr) == any("/" in name for name in damaged)


COMPUTES_WRONG = """
from firstvec.loading import self_test
def compare(artifact, session, golden):
    raise self_test.SelfTestError(artifact.id, session.engine, 1.0, 0.001)
self_test.compare = compare
"""


def test_a_failed_load_closes_the_files_of_the_artifacts_at_once(
    tiny_bundle: Path, fresh: Fresh, tmp_path: Path
) -> None:
    code = COMPUTES_WRONG + WITHOUT_COLLECTOR
    cache = str(tmp_path / "cache")  # no self-test has passed before
    assert fresh(code, tiny_bundle, FIRSTVEC_CACHE=cache).stdout == "None False False []\n" * 3


def test_the_traceback_of_the_error_does_not_grow_with_the_calls() -> None:
    loader = OptimizedEmbeddingLoader("no/such-model", "background")
    loader.start_loading()

    def lines() -> list[str]:
        with pytest.raises(BundleNotFound) as caught:
            loader.get_provider()
        return [f"{entry.name}:{entry.lineno}" for entry in traceback.extract_tb(caught.value.__traceback__)]

    first = lines()
    assert any(line.startswith("find_bundle:") for line in first)
    assert [lines() for _ in range(3)] == [first] * 3
