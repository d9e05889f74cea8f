"""Limits of a control group or a process.

Too little memory gives a typed error or a smaller artifact, and neither the kernel nor a library ends the process.
There are no more threads than cores that the process may use.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.build.conftest import INT8_HERE
from tests.faults.conftest import Campaign

MIB = 1 << 20
GROUPS = Path("/sys/fs/cgroup")
PROGRAM = """
import os, resource, sys, time
root, strategy, output = sys.argv[1:4]
if len(sys.argv) == 5:
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[4]),) * 2)
from firstvec import FirstvecError, OptimizedEmbeddingLoader
artifact = None if os.environ.get("ENGINE") == "native" else "onnx-fp32"
if artifact and strategy == "quantized":
    artifact = os.environ["ONNX_INT8"]
loader = OptimizedEmbeddingLoader(root, strategy, output=output, artifact=artifact)
try:
    loader.start_loading()
    provider = loader.get_provider()
    provider.embed_query("hello")
    assert len(provider.encode(["word " * 200] * 24)) == 24  # 4,848 tokens: LAZY hands over, too
    while loader.report()["hand_over"] == "waiting":
        time.sleep(0.02)
    print(provider.artifact.id, loader.report()["hand_over"] or "")
except FirstvecError as error:
    print(type(error).__name__, str(error).replace(chr(10), " "))
"""


def outcome(root: Path, strategy: str, *arguments: object, before: str = "", engine: str = "onnxruntime") -> str:
    """Return what a fresh process prints: the artifact of its vectors, or a typed error. Its exit code must be 0."""
    command = [sys.executable, "-c", before + PROGRAM, root, strategy, *arguments]
    environment = os.environ | {"ENGINE": engine, "ONNX_INT8": INT8_HERE}
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert done.returncode == 0, f"{arguments}: exit code {done.returncode}: {done.stderr[-300:]}"
    return done.stdout.strip()


def test_little_address_space_gives_a_vector_or_a_typed_error(bundle: Path, campaign: Campaign) -> None:
    cases = [
        (strategy, output, limit)
        for limit in range(20, 720, campaign.size(230, 10))
        for strategy, output in (("quantized", "list"), ("lazy", "numpy"), ("background", "list"))
    ]
    outcomes = [outcome(bundle, strategy, output, limit * MIB) for strategy, output, limit in cases]
    assert outcomes[0].startswith("NoCompatibleArtifact")
    assert "memory: needs about 80 MB" in outcomes[0]
    assert outcomes[-1] == "onnx-fp32"
    refused = sum(not each.startswith("onnx-") for each in outcomes)
    campaign.record("address space (ulimit -v) from 20 to 720 MB", processes=len(cases), typed_errors=refused, killed=0)


def test_little_address_space_gives_a_vector_of_the_native_engine_or_a_typed_error(
    bundle: Path, campaign: Campaign
) -> None:
    limits = range(20, 330, campaign.size(60, 10))
    found = [
        outcome(bundle, strategy, "list", limit * MIB, engine="native")
        for limit in limits
        for strategy in ("quantized", "lazy")
    ]
    assert found[0].startswith(("IncompatibleArtifact native-int8: native cannot load it", "LoadError"))
    assert found[-1] == "native-fp32"
    refused = sum(not each.startswith("native-") for each in found)
    campaign.record(
        "address space (ulimit -v) from 20 to 320 MB, native", processes=len(found), typed_errors=refused, killed=0
    )


@contextmanager
def group_of(controller: str, *limits: str) -> Iterator[Path]:
    """Make an empty control group of version 1 or 2 that has one of these limits. Skip the test where that fails."""
    parent = GROUPS / controller if (GROUPS / controller).is_dir() else GROUPS
    folder = parent / f"firstvec-{uuid.uuid4().hex}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not any((folder / name).exists() for name in limits):
            pytest.skip(f"the {controller} controller is not available here")
        yield folder
    finally:
        folder.rmdir()


@pytest.fixture
def group() -> Iterator[Path]:
    """An empty control group whose memory can be limited."""
    with group_of("memory", "memory.limit_in_bytes", "memory.max") as folder:
        yield folder


def limited(group: Path, mb: int) -> str:
    """Return code that puts its process into a group with so much memory."""
    name = "memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max"
    (group / name).write_text(str(mb * MIB))
    return joining(group)


def joining(group: Path) -> str:
    """Return code that puts its process into a group."""
    return f"open({os.fspath(group / 'cgroup.procs')!r}, 'w').write(str(__import__('os').getpid()))\n"


def test_a_small_memory_limit_gives_a_vector_or_a_typed_error(bundle: Path, group: Path, campaign: Campaign) -> None:
    limits = range(40, 130, campaign.size(60, 5))
    found = {}
    for mb in limits:
        for strategy in ("quantized", "lazy", "background", "progressive"):
            found[mb, strategy] = outcome(bundle, strategy, "list", before=limited(group, mb))
    assert "memory: needs about 80 MB" in found[40, "quantized"]
    assert "onnx-fp32: memory: needs about " in found[100, "background"]
    assert found[100, "quantized"].startswith("onnx-int8")
    # The weights of the first session are mapped, and need no memory of their own. That session gives the vectors. The
    # session that runs fastest needs more memory, and is not built.
    for strategy in ("lazy", "progressive"):
        assert found[100, strategy].startswith("onnx-fp32 failed: onnx-fp32: memory: needs about 123 MB")
    for strategy, artifact in (("quantized", "native-int8"), ("lazy", "native-fp32")):
        assert outcome(bundle, strategy, "list", before=limited(group, 100), engine="native") == artifact
    campaign.record("memory of a control group from 40 to 130 MB", processes=len(found), killed=0)


THREADS = """
import os, sys, time
from firstvec import OptimizedEmbeddingLoader
from firstvec.machine.limits import usable_cores
from firstvec.process import threads
if sys.argv[2] == "one core":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
loader = OptimizedEmbeddingLoader(sys.argv[1], "lazy", output="list", artifact=sys.argv[3])
loader.get_provider().encode(["a text of some words " * 10] * 20)
while threads._running or threads._is_watching:  # the load's own threads end after the load
    time.sleep(0.01)
counts = []
for _ in range(50):  # a thread that ends is gone a moment later
    counts.append(len(os.listdir("/proc/self/task")))
    time.sleep(0.01)
print(usable_cores(), min(counts))
"""


def threads(root: Path, cores: str, before: str = "", artifact: str = "onnx-fp32") -> tuple[int, int]:
    """Return how many cores a process may use, and its number of threads after it has embedded."""
    command = [sys.executable, "-c", before + THREADS, str(root), cores, artifact]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    cpus, count = done.stdout.split()
    return int(cpus), int(count)


def test_an_affinity_of_one_core_gives_one_thread(bundle: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one core only")
    cpus, usual = threads(bundle, "all")
    assert cpus > 1
    assert threads(bundle, "all", artifact="native-int8") == (cpus, 1)  # its threads end with the run
    # onnxruntime's pool has a thread for each core, and the caller is one of these threads.
    assert threads(bundle, "one core") == (1, usual - (cpus - 1))


@contextmanager
def quota_of(microseconds: int) -> Iterator[str]:
    """Return code that puts its process into a group with so many of every 100,000 microseconds, or skip the test."""
    with group_of("cpu", "cpu.cfs_quota_us", "cpu.max") as group:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{microseconds} 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text(str(microseconds))
        yield joining(group)


@pytest.mark.parametrize(("quota", "expected"), [(50_000, 1), (100_000, 1), (150_000, 2)])
def test_a_quota_of_a_control_group_is_rounded_up(quota: int, expected: int, bundle: Path) -> None:
    cpus, usual = threads(bundle, "all")
    expected = min(cpus, expected)
    with quota_of(quota) as join:
        assert threads(bundle, "all", join) == (expected, usual - (cpus - expected))


TORCH = """
import os, sys
if sys.argv[2] == "loaded before":
    import torch
from firstvec import Manifest
from firstvec.loading.opening import open_artifact, verify_artifact
manifest = Manifest.read(sys.argv[1])
verified = verify_artifact(manifest, next(each for each in manifest.artifacts if each.engine == "torch"))
session = open_artifact(verified).session
session.run([[101, *[7592] * 100, 102]] * 8)
import torch
print(torch.get_num_threads(), len(os.listdir("/proc/self/task")))
session.close()
torch.set_num_threads(7)
open_artifact(verified).session.close()
assert torch.get_num_threads() == 7
"""


def test_torch_has_no_more_threads_than_the_quota_unless_the_program_imported_torch(bundle: Path) -> None:
    def count_threads(torch: str, join: str = "") -> tuple[int, int]:
        command = [sys.executable, "-c", join + TORCH, str(bundle), torch]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
        used, count = map(int, done.stdout.split())
        return used, count

    used, count = count_threads("loaded here")
    if used < 2:
        pytest.skip("torch uses one core only")
    with quota_of(100_000) as join:
        assert count_threads("loaded here", join) == (1, count - (used - 1))
        assert count_threads("loaded before", join) == (used, count)
