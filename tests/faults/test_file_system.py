"""Builds that are killed, or whose disk is full or fails, at every change of a file; many builders; awkward folders."""

from __future__ import annotations

import ctypes
import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import EmbeddingProvider, OptimizedEmbeddingLoader
from firstvec.bundle import MANIFEST_NAME
from firstvec.bundle.integrity import verify_file
from firstvec.bundle.manifest import Manifest
from firstvec.errors import FirstvecError
from firstvec_build import publishing
from tests.conftest import Fresh
from tests.faults import tracer
from tests.faults.conftest import Campaign
from tests.faults.processes import Zygote

NAME = "tiny-bert"
WORKERS = 2
SAMPLE = 25
"""After every so many points a next build runs, and the runtime loads the bundle. Each point verifies the files."""


@pytest.fixture(scope="module")
def zygotes(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, campaign: Campaign) -> Iterator[list[Zygote]]:
    if reason := tracer.why_not():
        pytest.skip(reason)
    cache = tmp_path_factory.mktemp("zygotes-cache")
    found = [
        Zygote("tests.faults.zygote", tmp_path_factory.mktemp("output"), cache)
        for _ in range(campaign.size(1, WORKERS))
    ]
    for zygote in found:
        # This build imports, once, everything that a build imports on its way.
        outcome = zygote.ask(what="modules", model=str(tiny_model), output=str(zygote.folder / "warm"), only=[])
        assert outcome["result"] == 1, outcome
        shutil.rmtree(zygote.folder / "warm")
    yield found
    for zygote in found:
        zygote.end()


class Scenario:
    """A build, and what is in its output folder before it."""

    def __init__(self, zygotes: list[Zygote], pristine: Path | None, **request: Any) -> None:
        self.pristine = pristine
        self.request = request
        self.before = None
        if pristine is not None:
            [root] = [path for path in (pristine / NAME, *pristine.glob(f".{NAME}.old-*/{NAME}")) if path.exists()]
            self.before = Manifest.read(root).inputs_sha256
        whole = self.run(zygotes[0])
        assert whole["error"] is None, whole
        assert whole["result"]["rebuilt"]
        self.calls: list[list[str]] = whole["calls"]
        self.after = whole["result"]["inputs"]
        assert self.after != self.before

    def prepare(self, zygote: Zygote) -> None:
        for path in zygote.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.pristine is not None:
            shutil.copytree(self.pristine, zygote.folder, dirs_exist_ok=True)

    def run(self, zygote: Zygote, **fault: Any) -> dict[str, Any]:
        self.prepare(zygote)
        return zygote.ask(what="build", output=str(zygote.folder), **self.request, **fault)

    def inputs_found(self, zygote: Zygote) -> str | None:
        """Verify every file of the bundle, and return its digest of the inputs. None: there is no bundle."""
        target = zygote.folder / NAME
        if not target.exists():
            return None
        manifest = Manifest.read(target)
        for file in manifest.files():
            verify_file(str(target), file, use_markers=False)
        present = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
        assert present == {"firstvec.json", *(file.path for file in manifest.files())}
        return manifest.inputs_sha256

    def check(self, zygote: Zygote, point: str) -> None:
        """Check, after a fault, that the previous bundle or the new one is there, whole, and that no lock is held."""
        found = self.inputs_found(zygote)
        if found is None and self.before is not None:
            # Without an atomic exchange, between two renames, the name is missing. The next build puts the bundle back.
            assert self.request.get("no_exchange"), point
            [moved] = zygote.folder.glob(f".{NAME}.old-*/{NAME}")
            assert Manifest.read(moved).inputs_sha256 == self.before, point
        else:
            assert found in (self.before, self.after), point
        lock = zygote.folder / f".{NAME}.lock"
        if lock.exists():
            with lock.open() as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError if the lock is held

    def check_next(self, zygote: Zygote, point: str) -> None:
        """Check that the bundle can be used, and that the next build succeeds and removes leftovers."""
        if (zygote.folder / NAME).exists():
            check_vector(zygote.folder / NAME)
        following = zygote.ask(what="build", output=str(zygote.folder), **self.request)
        assert following["error"] is None, (point, following)
        assert self.inputs_found(zygote) == self.after, point
        # If there was nothing to do, the lock's file stays. It is empty and not held.
        assert {*os.listdir(zygote.folder)} <= {NAME, f".{NAME}.lock"}, point
        check_vector(zygote.folder / NAME)


def check_vector(root: Path) -> None:
    loader = OptimizedEmbeddingLoader(str(root), "lazy", device="cpu", enable_quantization=True)
    vector = loader.get_provider().embed_query("some text")
    assert vector.shape == (32,)
    assert math.isclose(float(np.linalg.norm(vector)), 1.0, abs_tol=1e-3)


@pytest.fixture(scope="module")
def previous(zygotes: list[Zygote], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle that the scenarios' builds replace, because it was built with another threshold."""
    folder = tmp_path_factory.mktemp("previous")
    request = {"model": str(tiny_model), "only": ["onnx-fp32"], "fp32_max_abs_diff": 2e-5}
    outcome = zygotes[0].ask(what="build", output=str(folder), **request)
    assert outcome["error"] is None, outcome
    return folder


@pytest.fixture(scope="module")
def interrupted(
    zygotes: list[Zygote], previous: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of `previous` after a build was killed between the two renames that replace an atomic exchange."""
    zygote = zygotes[0]
    scenario = Scenario(zygotes, previous, model=str(tiny_model), only=["onnx-fp32"], no_exchange=True)
    renames = [number for number, (name, _) in enumerate(scenario.calls, 1) if name == "rename"]
    scenario.run(zygote, at=renames[-1], fault="kill")
    assert not (zygote.folder / NAME).exists()
    return Path(shutil.copytree(zygote.folder, tmp_path_factory.mktemp("interrupted") / "output"))


SCENARIOS: dict[str, dict[str, Any]] = {
    "all artifacts": {"only": []},
    "ONNX": {"only": ["onnx-fp32"]},
    "TorchScript": {"only": ["torchscript-fp32"]},
    "INT8": {"only": ["onnx-int8-avx2"]},
    "without exchange": {"only": ["onnx-fp32"], "no_exchange": True},
    "first build": {"only": ["onnx-fp32"]},
    "after an interrupted one": {"only": ["onnx-fp32"], "no_exchange": True},
}


@pytest.fixture
def scenario(request: pytest.FixtureRequest, zygotes: list[Zygote], previous: Path, tiny_model: Path) -> Scenario:
    name = request.param
    pristine: Path | None = previous
    if name == "first build":
        pristine = None
    elif name == "after an interrupted one":
        pristine = request.getfixturevalue("interrupted")
    return Scenario(zygotes, pristine, model=str(tiny_model), **SCENARIOS[name])


def go_through(
    zygotes: list[Zygote], points: list[int], at_point: Callable[[Zygote, int], str], sample: int, scenario: Scenario
) -> Counter[str]:
    """Try each point, on as many processes as there are. Return how often each outcome came."""
    free = list(zygotes)
    outcomes: Counter[str] = Counter()

    def try_point(numbered: tuple[int, int]) -> str:
        index, point = numbered
        zygote = free.pop()
        try:
            outcome = at_point(zygote, point)
            name = f"{outcome} at {point}, {scenario.calls[point - 1]}"
            scenario.check(zygote, name)
            if index % sample == 0:
                scenario.check_next(zygote, name)
            return outcome
        finally:
            free.append(zygote)

    with ThreadPoolExecutor(len(zygotes)) as pool:
        try:
            outcomes.update(pool.map(try_point, enumerate(points)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # one failure is enough
            raise
    return outcomes


def spread(few: int, of: list[int]) -> list[int]:
    """Return ``few`` of the points, from the first to the last. At the last points a bundle changes its name."""
    if few >= len(of):
        return of
    return sorted({of[round(index * (len(of) - 1) / (few - 1))] for index in range(few)})


def points_of_renames(scenario: Scenario) -> list[int]:
    return [number for number, (name, _) in enumerate(scenario.calls, 1) if name.startswith("rename")]


@pytest.mark.parametrize("scenario", SCENARIOS, indirect=True)
def test_a_kill_at_any_change_of_a_file_leaves_a_whole_bundle(
    scenario: Scenario, request: pytest.FixtureRequest, zygotes: list[Zygote], campaign: Campaign
) -> None:
    started = time.perf_counter()
    every = list(range(1, len(scenario.calls) + 1))
    renames = points_of_renames(scenario)
    if not campaign.full and request.node.callspec.params["scenario"] in ("ONNX", "TorchScript", "INT8"):
        every = renames
    points = every if campaign.full else sorted({*spread(3, every), *renames[-1:]})

    def kill(zygote: Zygote, point: int) -> str:
        outcome = scenario.run(zygote, at=point, fault="kill")
        assert (outcome["status"], len(outcome["calls"])) == (-9, point), outcome
        return "killed"

    outcomes = go_through(zygotes, points, kill, campaign.size(2, SAMPLE), scenario)
    assert outcomes["killed"] == len(points)
    name = f"kill -9 of a build, {request.node.callspec.params['scenario']}"
    seconds = round(time.perf_counter() - started, 1)
    campaign.record(name, points=len(points), next_builds=len(points[::SAMPLE]), lost=0, seconds=seconds)


NOT_WRITES = ("unlink", "unlinkat", "rmdir", "flock")


@pytest.mark.parametrize("scenario", ["all artifacts", "without exchange"], indirect=True)
@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
def test_a_full_or_failing_disk_at_any_write_is_a_typed_error(
    code: str, scenario: Scenario, request: pytest.FixtureRequest, zygotes: list[Zygote], campaign: Campaign
) -> None:
    started = time.perf_counter()
    every = [
        number
        for number, (name, _) in enumerate(scenario.calls, 1)
        # A full disk lets files be removed. A failing disk may fail anywhere.
        if not (code == "ENOSPC" and name in NOT_WRITES)
    ]
    points = every if campaign.full else spread(3, every)

    def fail(zygote: Zygote, point: int) -> str:
        outcome = scenario.run(zygote, at=point, fault=code)
        call = scenario.calls[point - 1]
        assert outcome["status"] == 0, (point, call, outcome)
        if outcome["error"] is None:
            assert scenario.inputs_found(zygote) == scenario.after, (point, call)
            return "built all the same"
        assert "BuildError" in outcome["error"]["kinds"], (point, call, outcome["error"])
        return outcome["error"]["kinds"][0]

    outcomes = go_through(zygotes, points, fail, campaign.size(2, SAMPLE), scenario)
    name = f"{code} in a build, {request.node.callspec.params['scenario']}"
    seconds = round(time.perf_counter() - started, 1)
    campaign.record(name, points=len(points), lost=0, outcomes=dict(outcomes), seconds=seconds)
    assert sum(outcomes.values()) == len(points)


@pytest.mark.parametrize("fault", ["kill", "ENOSPC", "EIO"])
def test_a_wheel_appears_whole_or_not_at_all(
    fault: str, zygotes: list[Zygote], previous: Path, campaign: Campaign
) -> None:
    zygote = zygotes[0]
    wheels = zygote.folder / "wheels"

    def pack(**injected: Any) -> dict[str, Any]:
        for path in zygote.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return zygote.ask(what="pack", bundle=str(previous / NAME), output=str(wheels), **injected)

    whole = pack()
    content = Path(whole["result"]).read_bytes()
    every = list(range(1, len(whole["calls"]) + 1))
    points = spread(campaign.size(4, len(every)), every)
    for point in points:
        outcome = pack(at=point, fault=fault)
        visible = [path for path in wheels.glob("*") if not path.name.startswith(".")]
        assert [path.read_bytes() for path in visible] in ([], [content]), point
        if fault == "kill":
            assert outcome["status"] == -9
        elif outcome["error"] is not None:
            assert outcome["error"]["kinds"][0] == "BuildError", (point, outcome["error"])
        following = zygote.ask(what="pack", bundle=str(previous / NAME), output=str(wheels))
        assert Path(following["result"]).read_bytes() == content
        assert [path.name for path in wheels.iterdir()] == [Path(following["result"]).name]
    campaign.record(f"{fault} of a wheel being packed", points=len(points), lost=0)


def test_files_are_flushed_before_the_rename_and_the_folder_above_after_it(tiny_built: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    target = Path(shutil.copytree(tiny_built, tmp_path / "bundles" / NAME))
    code = f"""
import shutil
from pathlib import Path
from firstvec.bundle.manifest import Manifest
from firstvec_build import publishing
source, target = Path({str(tiny_built)!r}), Path({str(target)!r})
with publishing.make_staging_folder(target) as folder:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    publishing.publish(folder, Manifest.read(source), target)
"""
    trace = tmp_path / "trace"
    calls = "trace=write,pwrite64,writev,sendfile,copy_file_range,fsync,rename,renameat,renameat2"
    command = ["strace", "-f", "-y", "-qq", "-e", calls, "-o", str(trace), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    lines = [line for line in trace.read_text("utf-8").splitlines() if str(target.parent) in line]
    [renamed] = [number for number, line in enumerate(lines) if " rename" in line]
    assert "RENAME_EXCHANGE" in lines[renamed]
    flushed: dict[str, int] = {}
    for number, line in enumerate(lines[:renamed]):
        path = line.partition("<")[2].partition(">")[0]
        if " fsync(" in line:
            flushed[path] = number
            assert line.endswith("= 0")
        elif path in flushed:
            pytest.fail(f"written after it was flushed: {line}")
    [staged] = {path for path in flushed if Path(path).parent == target.parent}
    below = {path.relative_to(tiny_built).as_posix() for path in tiny_built.rglob("*")}
    assert set(flushed) == {staged, *(f"{staged}/{path}" for path in below)}
    for path, number in flushed.items():  # the folder that names a file is flushed after the file
        assert path == staged or number < flushed[os.path.dirname(path)]
    assert [line for line in lines[renamed + 1 :] if "fsync(" in line and f"<{target.parent}>" in line]


@pytest.mark.parametrize("no_locks", [False, True], ids=["locks", "flock that does nothing"])
def test_builders_at_once_leave_one_whole_bundle(
    no_locks: bool, zygotes: list[Zygote], previous: Path, tiny_model: Path, campaign: Campaign
) -> None:
    zygote = zygotes[0]
    scenario = Scenario(zygotes, previous, model=str(tiny_model), only=["onnx-fp32"])
    count = campaign.size(4, 32)
    for pristine in (previous, None):
        scenario.pristine = pristine
        scenario.prepare(zygote)
        started = time.perf_counter()
        request = {"output": str(zygote.folder), "count": count, "no_locks": no_locks}
        outcomes: Any = zygote.ask(what="crowd", **request, **scenario.request)
        assert [outcome["error"] for outcome in outcomes] == [None] * count
        rebuilt = sum(outcome["result"]["rebuilt"] for outcome in outcomes)
        assert (rebuilt == 1) is not no_locks
        assert scenario.inputs_found(zygote) == scenario.after
        assert os.listdir(zygote.folder) == [NAME]
        check_vector(zygote.folder / NAME)
        seconds = round(time.perf_counter() - started, 1)
    campaign.record(f"builders at once, {'no ' * no_locks}locks", builders=count, rebuilt=rebuilt, seconds=seconds)


def test_build_commands_at_once_build_one_bundle(
    tiny_model: Path, firstvec: Fresh, tmp_path: Path, campaign: Campaign
) -> None:
    count = campaign.size(2, 32)

    def command(_: int) -> Any:
        return firstvec("build", tiny_model, "--only", "onnx-fp32", "--output", tmp_path / "bundles")

    with ThreadPoolExecutor(count) as pool:
        done = list(pool.map(command, range(count)))
    assert [each.returncode for each in done] == [0] * count, [each.stderr for each in done]
    assert sum("Nothing changed" in each.stdout for each in done) == count - 1
    assert sum("waiting for another build of tiny-bert" in each.stderr for each in done) >= 1
    assert os.listdir(tmp_path / "bundles") == [NAME]
    check_vector(tmp_path / "bundles" / NAME)


EMBED = """
import sys
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(sys.argv[1], "lazy", device="cpu")
print(loader.get_provider().embed_query("some text").tolist())
"""


def vector_of(root: Path) -> list[float]:
    loader = OptimizedEmbeddingLoader(str(root), "lazy", device="cpu")
    found: list[float] = loader.get_provider().embed_query("some text").tolist()
    return found


def without_rights() -> None:
    """Make the program that is executed next obey the modes of files, even if it runs as root."""
    drop_from_bounding_set, dac_override = 24, 1  # linux/prctl.h, linux/capability.h
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0)


def run_without_rights(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=600,
        env=os.environ | environment,
        preexec_fn=without_rights,
    )


@pytest.fixture
def read_only(tiny_bundle: Path) -> Iterator[Path]:
    """A bundle into which nobody may write."""
    paths = [tiny_bundle, *tiny_bundle.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield tiny_bundle
    for path in paths:
        path.chmod(0o755)


@pytest.mark.parametrize(
    "environment",
    [
        {"FIRSTVEC_CACHE": "{unwritable}"},
        {"FIRSTVEC_CACHE": "{unwritable}/below"},
        {"FIRSTVEC_CACHE": "", "XDG_CACHE_HOME": "", "XDG_DATA_HOME": "", "HOME": "/dev/null/none"},
        {"FIRSTVEC_CACHE": "/dev/full"},
    ],
    ids=["cache", "below", "home", "device"],
)
def test_a_read_only_bundle_is_used_without_a_cache(
    environment: dict[str, str], read_only: Path, tmp_path: Path
) -> None:
    (tmp_path / "unwritable").mkdir(mode=0o555)
    given = {name: value.format(unwritable=tmp_path / "unwritable") for name, value in environment.items()}
    for _ in range(2):
        done = run_without_rights(sys.executable, "-c", EMBED, read_only, **given)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == vector_of(read_only)
    assert not list((tmp_path / "unwritable").iterdir())


def test_a_bundle_on_a_read_only_mount_is_used_without_a_home(tiny_bundle: Path, tmp_path: Path) -> None:
    mount = f"mount --bind '{tiny_bundle}' '{tiny_bundle}' && mount -o remount,ro,bind '{tiny_bundle}'"
    hidden = "mkdir -p ~/.cache && mount -t tmpfs none ~/.cache"  # without HOME, the user database has this home
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && {hidden} && exec env -u HOME "$@"', "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("mounts are not allowed here")
    environment = {name: value for name, value in os.environ.items() if name != "FIRSTVEC_CACHE"}
    write = f"import pathlib; pathlib.Path({str(tiny_bundle)!r}, 'new').touch()"
    refused = subprocess.run([*command, sys.executable, "-c", write], capture_output=True, text=True, check=False)
    assert "Read-only file system" in refused.stderr
    done = subprocess.run(
        [*command, sys.executable, "-c", EMBED, str(tiny_bundle)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == vector_of(tiny_bundle)


def command_line() -> Path:
    return Path(sys.executable).with_name("firstvec")


def test_a_build_into_a_folder_without_write_permission_is_a_typed_error(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "unwritable").mkdir(mode=0o555)
    for output in (tmp_path / "unwritable", tmp_path / "unwritable" / "new"):
        done = run_without_rights(command_line(), "build", tiny_model, "--output", output)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert "cannot be written; choose another folder with --output" in done.stderr
        assert "Traceback" not in done.stderr
    assert not list((tmp_path / "unwritable").iterdir())


@pytest.fixture
def not_utf8(tmp_path: Path) -> Path:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"this file system accepts UTF-8 names only: {error}")
    return folder


def test_a_bundle_below_a_folder_whose_name_is_not_utf8_is_used(
    not_utf8: Path, tiny_built: Path, firstvec: Fresh
) -> None:
    root = Path(shutil.copytree(tiny_built, not_utf8 / NAME))
    assert vector_of(root) == vector_of(tiny_built)
    for arguments in (
        ("list",),
        ("list", "--json"),
        ("inspect", "--model", root),
        ("explain", "--model", root),
        ("verify", "--model", root),
        ("encode", "--model", root, "text"),
        ("encode", "--model", root, "--format", "text", "text"),
    ):
        done = firstvec(*arguments, FIRSTVEC_ARTIFACTS=str(not_utf8))
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert done.stdout


def test_an_error_about_a_name_that_is_not_utf8_is_printed(
    not_utf8: Path, tiny_built: Path, tiny_model: Path, firstvec: Fresh
) -> None:
    damaged = Path(shutil.copytree(tiny_built, not_utf8 / "damaged"))
    (damaged / "tokenizer.json").write_bytes(b"{}")
    for arguments in (
        ("encode", "--model", not_utf8 / "missing", "text"),
        ("encode", "--model", damaged, "text"),
        ("verify", "--model", damaged),
        ("build", tiny_model, "--output", not_utf8),
        ("build", tiny_model, "--output", not_utf8 / "new"),
        ("build", not_utf8 / "no-model", "--output", not_utf8.parent),
        ("wheel", "--model", not_utf8 / "missing"),
    ):
        done = firstvec(*arguments)
        assert done.returncode == 1, arguments
        assert "Traceback" not in done.stderr
        assert "caf" in done.stderr + done.stdout, arguments
    assert sorted(path.name for path in not_utf8.iterdir()) == ["damaged"]


def test_a_model_whose_name_is_not_utf8_is_built_or_refused(
    not_utf8: Path, tiny_model: Path, zygotes: list[Zygote], tmp_path: Path
) -> None:
    for model in (not_utf8 / NAME, tmp_path / os.fsdecode(b"\xff\xfe")):
        shutil.copytree(tiny_model, model)
        output = tmp_path / "bundles"
        outcome = zygotes[0].ask(what="build", model=str(model), output=str(output), only=["onnx-fp32"])
        if outcome["error"] is not None:
            assert "BuildError" in outcome["error"]["kinds"], outcome["error"]
            assert not output.exists() or not list(output.iterdir())
        else:
            check_vector(output / model.name)
            shutil.rmtree(output)


@pytest.mark.parametrize("length", [1000, 3900, 4000, 4090, 5000])
def test_a_build_into_a_very_long_path_succeeds_or_is_refused(
    length: int, tiny_model: Path, zygotes: list[Zygote], tmp_path: Path
) -> None:
    output = str(tmp_path)
    while len(output) < length - 1:
        output += "/" + "d" * min(200, length - len(output) - 1)
    outcome = zygotes[0].ask(what="build", model=str(tiny_model), output=output, only=["onnx-fp32"])
    if outcome["error"] is not None:
        assert outcome["error"]["kinds"][0] == "BuildError", outcome["error"]
        assert length > 1000
    else:
        check_vector(Path(output) / NAME)


@pytest.mark.parametrize("length", [100, 200, 208, 230, 250, 255])
def test_a_model_with_a_very_long_name_is_built_or_refused(
    length: int, tiny_model: Path, zygotes: list[Zygote], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "models" / ("m" * length)))
    outcome = zygotes[0].ask(what="build", model=str(model), output=str(tmp_path / "bundles"), only=["onnx-fp32"])
    if outcome["error"] is not None:
        assert outcome["error"]["kinds"][0] == "BuildError", outcome["error"]
        assert length > 200
        assert not list((tmp_path / "bundles").glob("*"))
    else:
        check_vector(tmp_path / "bundles" / model.name)


@pytest.fixture(scope="module")
def other_built(zygotes: list[Zygote], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the same name as the one of `previous`. No part of one fits the other."""
    from tests.tiny import save_other_bert

    model = save_other_bert(tmp_path_factory.mktemp("other-models") / NAME)
    output = tmp_path_factory.mktemp("other")
    outcome = zygotes[0].ask(what="build", model=str(model), output=str(output), only=["onnx-fp32"])
    assert outcome["error"] is None, outcome
    return output / NAME


def replace(target: Path, source: Path) -> None:
    """Replace ``target`` by a copy of ``source``, as a build does."""
    with publishing.lock(target), publishing.make_staging_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        publishing.publish(folder, Manifest.read(source), target)


@pytest.mark.parametrize("strategy", ["lazy", "background", "progressive", "cached"])
def test_a_replaced_bundle_goes_on_serving_and_a_new_loader_takes_the_new_one(
    strategy: str, previous: Path, other_built: Path, tmp_path: Path
) -> None:
    old, new = vector_of(previous / NAME), vector_of(other_built)
    assert old != new
    target = Path(shutil.copytree(previous / NAME, tmp_path / NAME))
    loader = OptimizedEmbeddingLoader(str(target), strategy, device="cpu")
    loader.start_loading()
    provider = loader.get_provider()
    np.testing.assert_allclose(provider.embed_query("some text"), old, atol=1e-6)
    replace(target, other_built)
    deadline = time.perf_counter() + 1.0
    # Until the hand-over is done, of the strategies that have one.
    while time.perf_counter() < deadline or loader.report()["hand_over"] == "waiting":
        np.testing.assert_allclose(provider.embed_query("some text"), old, atol=1e-6)
    np.testing.assert_allclose(provider.embed_batch(["some text"] * 40)[39], old, atol=1e-6)
    np.testing.assert_allclose(vector_of(target), new, atol=1e-6)


def exchange(staged: Path, target: Path) -> None:
    """Do what the end of a build does once all files are written: take the place, and remove the previous files."""
    publishing.replace_folder(staged, target)
    shutil.rmtree(staged)


TEXTS = ("some text " * 50, "[MASK] some text")
"""A text that one of the two models truncates, and a text for the tokenizers package, which is loaded when needed."""


class Served:
    """The results of loads of a bundle that was replaced meanwhile."""

    def __init__(self, previous: Path, new: Path) -> None:
        self.outcomes: Counter[str] = Counter()
        self._previous, self._new = previous, new
        self._expected = {"previous": self._vectors(previous), "new": self._vectors(new)}
        for one, other in zip(*self._expected.values(), strict=True):
            assert not np.allclose(one, other, atol=1e-2)

    @staticmethod
    def _vectors(root: Path) -> list[Any]:
        provider = OptimizedEmbeddingLoader(str(root), "lazy", device="cpu").get_provider()
        return [provider.embed_query(text) for text in TEXTS]

    def begin(self, folder: Path, strategy: str) -> tuple[OptimizedEmbeddingLoader, Path, Path]:
        """Return a loader, the bundle's folder, and the folder of the bundle that will replace it."""
        # New folders each time, which the cache of verified files does not know either.
        target = Path(shutil.copytree(self._previous, folder / NAME))
        staged = Path(shutil.copytree(self._new, folder / "staged"))
        return OptimizedEmbeddingLoader(str(target), strategy, device="cpu"), target, staged

    def end(
        self, loader: OptimizedEmbeddingLoader, get: Callable[[], EmbeddingProvider], target: Path, point: str
    ) -> None:
        """Check that a load gave one bundle's vectors only, or a typed error. The next load takes the new bundle."""
        try:
            provider = get()
            which = self._which(provider.embed_query(TEXTS[0]), 0, point)
            deadline = time.perf_counter() + 0.05
            while time.perf_counter() < deadline or loader.report()["hand_over"] == "waiting":
                assert self._which(provider.embed_query(TEXTS[0]), 0, point) == which
            assert self._which(provider.embed_query(TEXTS[1]), 1, point) == which
            provider.close()
        except FirstvecError as error:
            which = type(error).__name__
        self.outcomes[which] += 1
        assert self._which(self._vectors(target)[0], 0, point) == "new"
        shutil.rmtree(target.parent)

    def _which(self, vector: Any, text: int, point: str) -> str:
        found = [name for name, vectors in self._expected.items() if np.allclose(vector, vectors[text], atol=1e-6)]
        assert found, f"neither bundle's vector of text {text}: {point}"
        return found[0]


@pytest.mark.parametrize("strategy", ["lazy", "background", "progressive"])
def test_a_bundle_replaced_before_a_file_is_opened_gives_one_bundles_vectors_or_a_typed_error(
    strategy: str, previous: Path, other_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(previous / NAME, other_built)
    system_open = os.open
    opened: list[str] = []

    def load(point: int) -> None:
        loader, target, staged = served.begin(tmp_path / str(point), strategy)
        opened.clear()

        def watched(path: Any, *arguments: Any, **options: Any) -> int:
            if "dir_fd" in options or str(path).startswith(str(target)):
                opened.append(str(path))
                if len(opened) == point:
                    exchange(staged, target)
            return system_open(path, *arguments, **options)

        def get() -> EmbeddingProvider:
            monkeypatch.setattr(os, "open", watched)
            try:
                loader.start_loading()
                return loader.get_provider()
            finally:
                monkeypatch.setattr(os, "open", system_open)
                if len(opened) < point:  # no opening had that number: replace the bundle after the load
                    exchange(staged, target)

        served.end(loader, get, target, f"replaced before opening number {point}")

    # No load opens that many files. From now on the self-test is remembered, so that it finds no exchanged file.
    load(1000)
    assert served.outcomes == {"previous": 1}
    point = 0
    while len(opened) >= point:
        point += 1
        load(point)
    assert {MANIFEST_NAME, "tokenizer.json", "wordpiece.fvt", "model.onnx", "model.onnx_data"} <= {
        path.rpartition("/")[2] for path in opened
    }
    assert served.outcomes.keys() == {"previous", "new", "IntegrityError"}, served.outcomes


def test_a_bundle_replaced_at_any_moment_of_a_load_gives_one_bundles_vectors_or_a_typed_error(
    previous: Path, other_built: Path, tmp_path: Path, campaign: Campaign
) -> None:
    served = Served(previous / NAME, other_built)
    lengths = []
    for index in range(5):
        loader, target, staged = served.begin(tmp_path / f"length-{index}", "background")
        began = time.perf_counter()
        loader.start_loading()
        loader.get_provider()
        lengths.append(time.perf_counter() - began)
        exchange(staged, target)
        served.end(loader, loader.get_provider, target, "replaced after the load")
    served.outcomes.clear()
    rounds = campaign.size(6, 200)
    for index in range(rounds):
        loader, target, staged = served.begin(tmp_path / str(index), ("progressive", "background")[index % 2])
        moment = 1.5 * sorted(lengths)[2] * index / rounds
        loader.start_loading()
        time.sleep(moment)
        exchange(staged, target)
        served.end(loader, loader.get_provider, target, f"replaced after {moment} s")
    assert sum(served.outcomes.values()) == rounds
    # Of many moments, some lie within a load. Of the few in `make test`, none may.
    assert len(served.outcomes) > 1 or not campaign.full, served.outcomes
    campaign.record("bundle replaced during a load", points=rounds, mixed=0, outcomes=dict(served.outcomes))


GONE = """
import os, shutil, sys
from firstvec import OptimizedEmbeddingLoader
os.chdir(os.path.dirname(sys.argv[1]))
loader = OptimizedEmbeddingLoader("./" + os.path.basename(sys.argv[1]), sys.argv[2], output="list")
loader.start_loading()
provider = loader.get_provider()
first = provider.embed_query("text")
os.chdir("/")
if sys.argv[3] == "replaced":  # by a bundle whose every file has another content
    os.rename(sys.argv[1], sys.argv[1] + ".old")
    for folder, _, names in os.walk(sys.argv[1] + ".old"):
        new = folder.replace(sys.argv[1] + ".old", sys.argv[1])
        os.mkdir(new)
        for name in names:
            open(os.path.join(new, name), "w").write("another bundle's")
    shutil.rmtree(sys.argv[1] + ".old")
while loader.report()["hand_over"] == "waiting":
    provider.embed_query("some words " * 50)  # LAZY hands over after 4,096 tokens
assert loader.report()["hand_over"] in (None, "done"), loader.report()
assert len(provider.embed_query("a text for the tokenizers package: [MASK]")) == 32
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
else:
    assert max(abs(a - b) for a, b in zip(provider.embed_query("text"), first)) < 1e-5
    assert len(provider.embed_query("[MASK]")) == 32
    sys.exit(0)
"""


@pytest.mark.parametrize("what", ["kept", "replaced"])
@pytest.mark.parametrize("strategy", ["lazy", "background", "progressive", "quantized"])
def test_a_bundle_goes_on_serving_after_the_process_or_the_bundle_has_moved(
    strategy: str, what: str, tiny_bundle: Path, fresh: Fresh
) -> None:
    """Every text, the hand-over and forked children work after the process has changed its folder, as daemons do."""
    fresh(GONE, tiny_bundle, strategy, what)
