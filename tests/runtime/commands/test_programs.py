"""The programs of `firstvec bench`, and their processes."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest

from firstvec.bundle.manifest import Manifest
from firstvec.commands.programs import (
    BARE,
    NUMPY,
    PEER,
    Program,
    Worker,
    open_peer,
    originals,
    own_programs,
    run_fresh,
    start_worker,
)
from firstvec.errors import LoadError, NoCompatibleArtifact
from firstvec.machine.profile import ResourceProfile
from firstvec.strategy import STRATEGIES
from tests.conftest import edit_manifest

with_peer = pytest.mark.skipif(
    find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)


def programs(root: Path, strategy: str | None = None) -> list[Program]:
    profile = ResourceProfile.detect().replace(loaded_engines=())  # pytest may have imported torch
    return own_programs(Manifest.read(root), profile, strategy)


def fails(code: str) -> Program:
    return Program(name="a program", code=code, has_model=False)


def test_strategies_that_take_the_same_artifact_share_a_program(tiny_built: Path) -> None:
    found = programs(tiny_built)
    assert sorted(name for each in found for name in each.strategies) == sorted(STRATEGIES)
    assert len({each.name for each in found}) == len(found) == 2
    (only,) = programs(tiny_built, "quantized")
    assert only.strategies == ("quantized",)
    assert "int8" in only.name


def test_a_strategy_without_an_artifact_is_left_out_unless_it_is_asked_for(tiny_bundle: Path) -> None:
    def drop_int8(document: dict[str, list[dict[str, str]]]) -> None:
        document["artifacts"] = [each for each in document["artifacts"] if each["precision"] != "int8"]

    edit_manifest(tiny_bundle, drop_int8)
    assert {*STRATEGIES} - {name for each in programs(tiny_bundle) for name in each.strategies} == {"quantized"}
    with pytest.raises(NoCompatibleArtifact, match="int8"):
        programs(tiny_bundle, "quantized")


def test_each_program_computes_the_vector_of_the_text(tiny_built: Path) -> None:
    text = "a text\nof two lines, with \0 and 漢字 " + "and a long end " * 20_000  # longer than an argument may be
    for each in programs(tiny_built):
        usage = run_fresh(each, text)
        with start_worker(each) as worker:
            rate, (vector,) = worker.encode([text])
        assert usage.vector == pytest.approx(vector, abs=1e-6)
        assert len(vector) == 32
        assert rate > 0
        assert usage.ms > 0


def test_time_and_memory_are_those_of_the_process_alone() -> None:
    here = bytearray(b"x" * 300_000_000)
    bare = run_fresh(BARE, "")
    assert bare.vector == ()
    assert 2 < bare.peak_mb < 60
    assert bare.peak_mb < run_fresh(NUMPY, "").peak_mb < 200
    slow = run_fresh(fails("import time; data = b'x' * 100_000_000; time.sleep(0.3)"), "")
    assert slow.ms >= 300
    assert 100 < slow.peak_mb < 200
    assert len(here) == 300_000_000


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit('one line\\nno luck')", "a program: its process ended with exit code 1: no luck"),
        ("1 / 0", "ended with exit code 1: ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL: no message"),
        ("import os; os.kill(os.getppid(), 9)", "was killed by SIGKILL"),
    ],
)
def test_a_process_that_fails_is_an_error_with_its_last_line(code: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        run_fresh(fails(code), "")


def test_a_worker_that_cannot_open_its_model_is_an_error(tiny_built: Path) -> None:
    (program,) = programs(tiny_built, "quantized")
    root, _, *others = program.warm
    with (
        pytest.raises(LoadError, match=r"exit code 1: .*`firstvec doctor` shows what is wrong here$"),
        start_worker(program.replace(warm=(root, "no-such-artifact", *others))),
    ):
        pytest.fail("it was opened")


def test_a_worker_that_dies_is_an_error(tiny_built: Path) -> None:
    (program,) = programs(tiny_built, "quantized")
    dies = "\nimport threading, os\nthreading.Timer(1.0, os.kill, (os.getpid(), 9)).start()\n"
    with start_worker(program.replace(code=program.code + dies)) as worker:

        def encode_until_it_dies() -> None:
            while True:
                worker.encode(["text"])

        with pytest.raises(LoadError, match="SIGKILL"):
            encode_until_it_dies()


def test_what_a_library_prints_is_no_answer(tiny_built: Path) -> None:
    (program,) = programs(tiny_built, "quantized")
    noisy = program.replace(code="import os; print('noise'); os.system('echo more noise')\n" + program.code)
    with start_worker(noisy) as worker:
        assert len(worker.encode(["one", "two"])[1]) == 2
    assert len(run_fresh(noisy, "one").vector) == 32


def test_the_processes_of_a_worker_end_with_it(tiny_built: Path, tmp_path: Path) -> None:
    (program,) = programs(tiny_built, "quantized")
    note = tmp_path / "pid"
    child = "import os, time\nif not (pid := os.fork()): time.sleep(600)\n"
    child += f"print(pid, file=open({str(note)!r}, 'w'), flush=True)\n"
    with start_worker(program.replace(code=child + program.code)):
        pid = int(note.read_text("utf-8"))
        os.kill(pid, 0)
    limit = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < limit
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended. Nobody may wait for an orphan that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# sentence-transformers


@with_peer
def test_the_original_is_found_in_the_cache_of_the_hub(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstvec_build.source import resolve

    manifest = Manifest.read(bundle)
    assert manifest.model.revision
    snapshots = tmp_path / "hub" / f"models--{manifest.model.name.replace('/', '--')}" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / manifest.model.revision).symlink_to(resolve().path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with ExitStack() as stack:
        program, worker = open_peer(manifest, "cpu", None, stack)
        assert isinstance(worker, Worker)
        assert program is not None
        assert manifest.model.revision in program.fresh[0]
        assert len(worker.encode(["one"])[1][0]) == 384


@with_peer
def test_where_no_original_is_found_the_reason_is_given(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    manifest = Manifest.read(tiny_built)
    with ExitStack() as stack:
        program, reason = open_peer(manifest, "cpu", None, stack)
    assert program is None
    assert isinstance(reason, str)
    assert reason.startswith(f"{PEER} cannot open the original model without a network ({manifest.model.name}: ")
    assert reason.endswith("give the folder of the model with --reference")
    assert "\n" not in reason


@with_peer
def test_a_reference_that_cannot_be_opened_is_an_error(tiny_built: Path, tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.raises(LoadError, match=r"nothing-here.*give the folder of the model"):
        open_peer(Manifest.read(tiny_built), "cpu", str(tmp_path / "nothing-here"), stack)


def test_a_folder_of_the_name_in_the_current_folder_is_not_taken(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(tiny_built)
    monkeypatch.chdir(tmp_path)
    assert [name for name, _ in originals(manifest)] == [manifest.model.name, str(tiny_built)]
    (tmp_path / manifest.model.name).mkdir()
    assert [name for name, _ in originals(manifest)] == [str(tiny_built)]


@with_peer
def test_sentence_transformers_that_cannot_be_imported_is_left_out(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch is broken here')", "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with ExitStack() as stack:
        program, reason = open_peer(Manifest.read(tiny_built), "cpu", None, stack)
    assert program is None
    assert "torch is broken here, so nothing is measured beside firstvec" in str(reason)
