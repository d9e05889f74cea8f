"""Too little memory is a typed error or a smaller artifact, and not the kernel's or a library's end of the process."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Campaign

MIB = 1 << 20
GROUPS = Path("/sys/fs/cgroup")
PROGRAM = """
import os, resource, sys, time
root, strategy, output = sys.argv[1:4]
if len(sys.argv) == 5:
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[4]),) * 2)
from firstvec import FirstvecError, OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(root, strategy, output=output)
try:
    loader.start_loading()
    provider = loader.get_provider()
    provider.embed_query("hello")
    assert len(provider.encode(["word " * 200] * 16)) == 16
    while loader.report()["hand_over"] == "waiting":
        time.sleep(0.02)
    print(provider.artifact.id, loader.report()["hand_over"] or "")
except FirstvecError as error:
    print(type(error).__name__, str(error).replace(chr(10), " "))
"""


def outcome(root: Path, strategy: str, *arguments: object, before: str = "") -> str:
    """What a fresh process prints: the artifact that gave vectors, or a typed error. It must end with exit code 0."""
    command = [sys.executable, "-c", before + PROGRAM, root, strategy, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{arguments}: exit code {done.returncode}: {done.stderr[-300:]}"
    return done.stdout.strip()


def test_little_address_space_is_a_typed_error_or_enough(bundle: Path, campaign: Campaign) -> None:
    cases = [
        (strategy, output, limit)
        for limit in range(20, 720, campaign.size(175, 10))
        for strategy, output in (("quantized", "list"), ("lazy", "numpy"), ("background", "list"))
    ]
    outcomes = [outcome(bundle, strategy, output, limit * MIB) for strategy, output, limit in cases]
    assert outcomes[0].startswith("NoCompatibleArtifact")
    assert "memory: needs about 80 MB" in outcomes[0]
    assert outcomes[-1] == "onnx-fp32"
    refused = sum(not each.startswith("onnx-") for each in outcomes)
    campaign.record("address space (ulimit -v) from 20 to 720 MB", processes=len(cases), typed_errors=refused, killed=0)


@pytest.fixture
def group() -> Iterator[Path]:
    """An empty control group whose memory can be limited, of version 1 or 2."""
    parent = GROUPS / "memory" if (GROUPS / "memory").is_dir() else GROUPS
    folder = parent / f"firstvec-{uuid.uuid4().hex}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    if not any((folder / name).exists() for name in ("memory.limit_in_bytes", "memory.max")):
        folder.rmdir()
        pytest.skip("the memory controller is not available here")
    yield folder
    folder.rmdir()


def limited(group: Path, mb: int) -> str:
    """Code that puts its process into a group of so much memory."""
    name = "memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max"
    (group / name).write_text(str(mb * MIB))
    return f"open({os.fspath(group / 'cgroup.procs')!r}, 'w').write(str(__import__('os').getpid()))\n"


def test_a_small_memory_group_is_a_typed_error_and_not_a_kill(bundle: Path, group: Path, campaign: Campaign) -> None:
    limits = range(40, 130, campaign.size(60, 5))
    found = {}
    for mb in limits:
        for strategy in ("quantized", "lazy", "background", "progressive"):
            found[mb, strategy] = outcome(bundle, strategy, "list", before=limited(group, mb))
    assert "memory: needs about 80 MB" in found[40, "quantized"]
    assert "Give the process more memory, or allow INT8" in found[100, "background"]
    assert found[100, "quantized"].startswith("onnx-int8")
    assert found[100, "lazy"] == "onnx-fp32"  # its weights are mapped, and need no memory of their own
    # It answers, and the session that runs fastest, which needs more, is not built.
    assert found[100, "progressive"].startswith("onnx-fp32 failed: onnx-fp32: memory: needs about 123 MB")
    campaign.record("memory of a control group from 40 to 130 MB", processes=len(found), killed=0)
