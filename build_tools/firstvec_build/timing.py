"""How long each artifact takes in a fresh process: what the build's table shows. Not part of the manifest."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

from firstvec.errors import BuildError
from firstvec.hardware import ResourceProfile
from firstvec.manifest import Manifest
from firstvec.selection import cannot_run

_ROUNDS = 3
_CHILD = """
import sys
from firstvec.load import Load
from firstvec.manifest import Manifest
from firstvec.plans import PLANS
from firstvec.selection import Choice
def choose(manifest):
    artifact = next(artifact for artifact in manifest.artifacts if artifact.id == sys.argv[2])
    return Choice(artifact=artifact, device="cpu", candidates=(artifact,), rejected=(), reason="is timed")
load = Load(sys.argv[1], choose, PLANS["cached"], "buffer", engine_first=sys.argv[3] == "onnxruntime")
load.start()
load.result(None).embed_query("how do I reset my password?")
print(next(stage.ended - stage.started for stage in load.trace.stages if stage.name == "session"))
"""


def first_vector_times(manifest: Manifest) -> dict[str, tuple[float, float] | None]:
    """Artifact id → (opening its session, exec to first vector) in milliseconds; None where it cannot run here.

    Medians of three fresh processes after one that warms the page cache.
    """
    profile = ResourceProfile.detect()
    times: dict[str, tuple[float, float] | None] = {}
    # An installed app has its bytecode compiled; so has the measurement, whatever this process was told.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for artifact in manifest.artifacts:
        times[artifact.id] = None
        if cannot_run(artifact, profile):
            continue
        rounds = []
        for _ in range(_ROUNDS + 1):
            started = time.perf_counter()
            command = [sys.executable, "-c", _CHILD, manifest.root, artifact.id, artifact.engine]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                reason = (done.stderr.splitlines() or ["no message"])[-1]
                raise BuildError(f"{artifact.id}: is built, but a fresh process cannot use it: {reason}")
            rounds.append((1e3 * json.loads(done.stdout), 1e3 * (time.perf_counter() - started)))
        sessions, whole = zip(*rounds[1:], strict=True)
        times[artifact.id] = (round(statistics.median(sessions), 1), round(statistics.median(whole), 1))
    return times
