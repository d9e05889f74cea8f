"""Examine this machine: what it is, which artifact each strategy would take here, what is missing, what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from firstvec import __version__, cache, self_test, store
from firstvec.errors import FirstvecError
from firstvec.hardware import ResourceProfile
from firstvec.load import Opener
from firstvec.loader import OptimizedEmbeddingLoader
from firstvec.manifest import Manifest
from firstvec.record import Record
from firstvec.selection import Choice, cannot_run
from firstvec.strategy import LoadingStrategy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firstvec.manifest import Artifact

_ENGINES = (
    # engine, whether nothing works without it, what to install, what it does
    ("onnxruntime", True, "onnxruntime", "runs the ONNX artifacts"),
    ("tokenizers", True, "tokenizers", "turns text into tokens"),
    ("torch", False, "firstvec[torch]", "runs the TorchScript artifact (accelerators)"),
)
_TOOLCHAIN = ("torch", "optimum", "onnx", "sentence_transformers")


class Missing(Record):
    """A package that is not installed."""

    install: str
    """What to give to ``pip install``."""
    needed_for: str
    required: bool
    """Whether nothing works without it."""


class SelfTest(Record):
    """What became of an artifact's self-test, run in a process of its own."""

    artifact: str
    status: str
    """``passed``, ``failed`` (it computes other vectors, or cannot be opened), ``crashed`` (its process died, or never
    answered) or ``not run``."""
    says: str
    """By how much the vectors differ from those of the build, or what went wrong, or why it was not run."""


class Diagnosis(Record):
    """What `examine` found."""

    profile: ResourceProfile
    onnxruntime: str
    """How it is used: its C API, or its Python binding and why; or how the process ended that loaded it."""
    onnxruntime_crashed: bool
    """Whether that process died, or never answered."""
    cache: str
    """The folder for what firstvec remembers."""
    searched: tuple[str, ...]
    """Where bundles are looked for, in order."""
    choices: dict[str, dict[LoadingStrategy, Choice | FirstvecError]]
    """Bundle folder → strategy → what it would take, or why nothing."""
    self_tests: dict[str, tuple[SelfTest, ...]]
    """Bundle folder → each artifact's self-test."""
    broken: dict[str, str]
    """Folder → error, of bundles whose manifest is not valid."""
    missing: tuple[Missing, ...]

    @property
    def healthy(self) -> bool:
        """Whether a bundle is there, none is broken, what is required is there and loads, and no self-test failed."""
        tests = (test for tests in self.self_tests.values() for test in tests)
        return (
            bool(self.choices)
            and not self.broken
            and not self.onnxruntime_crashed
            and not any(each.required for each in self.missing)
            and not any(test.status in ("failed", "crashed") for test in tests)
        )

    def to_values(self) -> dict[str, Any]:
        """The diagnosis as JSON values."""
        return {
            "firstvec": __version__,
            "python": sys.version.split()[0],
            "machine": {**self.profile.to_dict(), "engines": dict(self.profile.engines)},
            "onnxruntime": self.onnxruntime,
            "onnxruntime_crashed": self.onnxruntime_crashed,
            "cache": self.cache,
            "searched": list(self.searched),
            "bundles": {
                root: {
                    strategy.value: {"error": str(found)} if isinstance(found, FirstvecError) else found.to_values()
                    for strategy, found in strategies.items()
                }
                for root, strategies in self.choices.items()
            },
            "self_tests": {
                root: {test.artifact: {"status": test.status, "says": test.says} for test in tests}
                for root, tests in self.self_tests.items()
            },
            "broken": self.broken,
            "missing": [each.to_dict() for each in self.missing],
            "healthy": self.healthy,
        }


def examine(*, run_self_tests: bool = True) -> Diagnosis:
    """Look at the machine, the installed packages and every bundle of the search path.

    No engine is loaded in this process: what dies of one could tell nothing.

    Args:
        run_self_tests: run each artifact that can run here, in a process of its own; False loads no model.
    """
    profile = ResourceProfile.detect()
    manifests, broken = store.read_all()
    onnxruntime, onnxruntime_crashed = _onnxruntime(profile)
    return Diagnosis(
        profile=profile,
        onnxruntime=onnxruntime,
        onnxruntime_crashed=onnxruntime_crashed,
        cache=cache.cache_dir(),
        searched=tuple(store.search_path()),
        choices={
            manifest.root: {strategy: _choice(manifest.root, strategy) for strategy in LoadingStrategy}
            for manifest in manifests
        },
        self_tests={manifest.root: _self_tests(manifest, profile) for manifest in manifests if run_self_tests},
        broken=broken,
        missing=tuple(_missing(profile)),
    )


_USE_OF_ONNXRUNTIME = """
import json
from firstvec.sessions import c_api, c_api_unusable
reason = c_api_unusable()
used = f"through its Python binding: {reason}" if reason else f"through its C API: {c_api().path}"
print(json.dumps({"says": used}))
"""


def _onnxruntime(profile: ResourceProfile) -> tuple[str, bool]:
    """How onnxruntime is used, and whether the process died that found out."""
    if profile.engine_version("onnxruntime") is None:
        return "not installed", False
    answer, problem = _ask_child(_USE_OF_ONNXRUNTIME)
    if problem:
        return f"crashed: {problem}; another version of it, or FIRSTVEC_ONNXRUNTIME=binding, may work here", True
    return str(answer["says"]), False


def _choice(root: str, strategy: LoadingStrategy) -> Choice | FirstvecError:
    try:
        return OptimizedEmbeddingLoader(root, strategy).choose()
    except FirstvecError as error:
        return error


_TIME_LIMIT = 120.0
"""Seconds for one process: the import of torch from a cold disk takes its time."""
_SELF_TEST = "import sys; from firstvec.doctor import test_artifact; test_artifact(*sys.argv[1:])"


def _ask_child(code: str, *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON object that code prints in a process of its own, or how that process ended without one."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Last: in the order of this process, or another copy of an engine would be found than programs find.
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), home)))
    # -P: what lies in the current folder is not imported.
    command = [sys.executable, "-P", "-c", code, *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIME_LIMIT,
            check=False,
            env=os.environ | {"PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {_TIME_LIMIT:g} s"
    except OSError as error:
        return {}, f"its process cannot be started: {error.strerror or error}"
    try:
        answer = json.loads(done.stdout)
        if isinstance(answer, dict):
            return answer, ""
    except ValueError:
        pass
    if done.returncode < 0:
        how = f"killed by {signal.Signals(-done.returncode).name}"
    else:
        how = f"exit code {done.returncode}"
    last = next(iter(done.stderr.strip().splitlines()[-1:]), "no message")
    return {}, f"its process ended with no answer: {how}, {last}"


def _self_tests(manifest: Manifest, profile: ResourceProfile) -> tuple[SelfTest, ...]:
    """Each artifact's self-test, one after another: an engine that dies takes only its own process along."""
    return tuple(_self_test(manifest, artifact, profile) for artifact in manifest.artifacts)


def _self_test(manifest: Manifest, artifact: Artifact, profile: ResourceProfile) -> SelfTest:
    if reason := cannot_run(artifact, profile):
        return SelfTest(artifact=artifact.id, status="not run", says=reason)
    if manifest.self_test is None:
        return SelfTest(artifact=artifact.id, status="not run", says="the bundle has none: rebuild it")
    device = profile.recommended_device if profile.recommended_device in artifact.devices else "cpu"
    answer, problem = _ask_child(_SELF_TEST, manifest.root, artifact.id, device)
    if problem:
        return SelfTest(artifact=artifact.id, status="crashed", says=problem)
    return SelfTest(artifact=artifact.id, status=answer["status"], says=answer["says"])


def test_artifact(root: str, artifact_id: str, device: str) -> None:
    """Run one artifact's self-test in both kinds of session, and print what became of it as JSON."""
    manifest = Manifest.read(root)
    artifact = next(artifact for artifact in manifest.artifacts if artifact.id == artifact_id)
    try:
        golden = self_test.read(manifest, artifact)
        # Without the self-test that `open` would run, or trust a marker for.
        opener = Opener(manifest.replace(self_test=None), artifact, device)
        found = max(self_test.run(artifact, opener.open(quick_start=quick), golden) for quick in (True, False))
    except FirstvecError as error:
        answer = {"status": "failed", "says": str(error)}
    else:
        allowed = f"at most {golden.max_difference:.2g} is right"
        answer = {"status": "passed", "says": f"differs from the build by {found:.2g} ({allowed}), on {device}"}
    print(json.dumps(answer))


def _missing(profile: ResourceProfile) -> list[Missing]:
    from importlib.util import find_spec

    found = [
        Missing(install=install, needed_for=why, required=required)
        for engine, required, install, why in _ENGINES
        if profile.engine_version(engine) is None
    ]
    if not all(find_spec(name) for name in _TOOLCHAIN):
        found.append(Missing(install="firstvec[build]", needed_for="`firstvec build`", required=False))
    return found
