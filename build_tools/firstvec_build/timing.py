"""Measure how long each artifact takes in a fresh process, for the table that a build prints."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

from firstvec.bundle.manifest import Manifest
from firstvec.errors import BuildError
from firstvec.machine.profile import ResourceProfile
from firstvec.selection import cannot_run

_ROUNDS = 3
_LONG_SECONDS = 1.0
"""A process that takes longer is timed once, because the noise of the machine is small beside it."""
_CHILD = """
import sys
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(sys.argv[1], "cached", "cpu", output="buffer", artifact=sys.argv[2])
loader.get_provider(timeout=None).embed_query("how do I reset my password?")
print(next(stage["ms"] for stage in loader.report()["stages"] if stage["name"] == "session"))
"""


def measure_first_vectors(manifest: Manifest) -> dict[str, tuple[float, float] | None]:
    """Return artifact id → milliseconds to open its session, and milliseconds from exec to the first vector.

    Each time is the median of three fresh processes, after one process that reads the files into memory. If the first
    process takes over a second, its time is taken. None: the artifact cannot run here.

    Raises:
        BuildError: a fresh process cannot use an artifact.
    """
    profile = ResourceProfile.detect()
    times: dict[str, tuple[float, float] | None] = {}
    # The bytecode of an installed app is compiled, so the bytecode is compiled here, too.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for artifact in manifest.artifacts:
        times[artifact.id] = None
        if cannot_run(artifact, profile):
            continue
        rounds = []
        for _ in range(_ROUNDS + 1):
            started = time.perf_counter()
            command = [sys.executable, "-c", _CHILD, manifest.root, artifact.id]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                reason = (done.stderr.splitlines() or ["no message"])[-1]
                raise BuildError(f"{artifact.id}: is built, but a fresh process cannot use it: {reason}")
            seconds = time.perf_counter() - started
            rounds.append((json.loads(done.stdout), 1e3 * seconds))
            if seconds > _LONG_SECONDS:
                break
        sessions, first_vectors = zip(*(rounds[1:] or rounds), strict=True)
        times[artifact.id] = (round(statistics.median(sessions), 1), round(statistics.median(first_vectors), 1))
    return times
