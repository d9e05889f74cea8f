"""`firstvec doctor`: what this machine is, what each strategy would take here, what is missing, what is wrong.

No engine is loaded in this process, because an engine that crashes would take the report with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from firstvec import __version__
from firstvec.bundle import store
from firstvec.bundle.manifest import Manifest
from firstvec.commands.output import print_json, print_table, print_text
from firstvec.engines.table import ENGINES
from firstvec.errors import FirstvecError
from firstvec.loading import self_test
from firstvec.loading.opening import open_artifact, verify_artifact
from firstvec.machine import cache
from firstvec.machine.profile import ResourceProfile
from firstvec.options import Options
from firstvec.record import Record
from firstvec.selection import Choice, cannot_run, select
from firstvec.strategy import STRATEGIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firstvec.bundle.manifest import Artifact

_TOOLCHAIN = ("torch", "optimum", "onnx", "sentence_transformers")
_TIME_LIMIT = 120.0
"""Seconds for one process. The import of torch from a cold disk takes many of them."""


class Missing(Record):
    """A package that is not installed."""

    install: str
    """What to give to ``pip install``."""
    needed_for: str
    required: bool
    """Whether nothing works without it."""


class EngineUse(Record):
    """How a required engine is used here."""

    description: str
    """How its library is used, or how the process ended that loaded it."""
    crashed: bool = False
    """Whether that process died, or never answered."""


class SelfTestResult(Record):
    """What an artifact's self-test gave, in a process of its own."""

    artifact: str
    status: str
    """``passed``, ``failed`` (it computes other vectors, or cannot be opened), ``crashed`` (its process died, or never
    answered) or ``not run``."""
    details: str
    """By how much the vectors differ from those of the build, or what went wrong, or why the test was not run."""


class Diagnosis(Record):
    """What `examine` found."""

    profile: ResourceProfile
    engines: dict[str, EngineUse]
    """Each required engine → how it is used."""
    cache_folder: str
    """The folder for what firstvec remembers."""
    cache_problem: str | None
    """Why nothing can be remembered."""
    searched: tuple[str, ...]
    """Where bundles are looked for, in order."""
    choices: dict[str, dict[str, Choice | FirstvecError]]
    """Bundle folder → strategy → what it would take, or why nothing."""
    self_tests: dict[str, tuple[SelfTestResult, ...]]
    """Bundle folder → each artifact's self-test."""
    broken: dict[str, str]
    """Folder → error, of bundles with an invalid manifest."""
    missing: tuple[Missing, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps something from working here, for people. What is optional is no problem."""
        found = [
            f"{each.install} is missing, which {each.needed_for}: pip install '{each.install}'"
            for each in self.missing
            if each.required
        ]
        found += [f"{name} {use.description}" for name, use in self.engines.items() if use.crashed]
        found += [f"broken bundle: {reason}" for reason in self.broken.values()]
        if not self.choices and not self.broken:
            found.append("no bundle was found: build one with `firstvec build`, or set FIRSTVEC_ARTIFACTS")
        for root, strategies in self.choices.items():
            if all(isinstance(choice, FirstvecError) for choice in strategies.values()):
                found.append(f"{root}: no strategy can take an artifact on this machine")
        found += [
            f"{root}: the self-test of {test.artifact} {test.status}"
            for root, tests in self.self_tests.items()
            for test in tests
            if test.status in ("failed", "crashed")
        ]
        return tuple(found)

    @property
    def healthy(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def to_values(self) -> dict[str, Any]:
        """Return the diagnosis as JSON values."""
        return {
            "firstvec": __version__,
            "python": sys.version.split()[0],
            "machine": {**self.profile.to_dict(), "engines": dict(self.profile.engines)},
            "engines": {name: use.to_dict() for name, use in self.engines.items()},
            "cache": self.cache_folder,
            "cache_problem": self.cache_problem,
            "searched": list(self.searched),
            "bundles": {
                root: {
                    strategy: {"error": str(found)} if isinstance(found, FirstvecError) else found.to_values()
                    for strategy, found in strategies.items()
                }
                for root, strategies in self.choices.items()
            },
            "self_tests": {
                root: {test.artifact: {"status": test.status, "details": test.details} for test in tests}
                for root, tests in self.self_tests.items()
            },
            "broken": self.broken,
            "missing": [each.to_dict() for each in self.missing],
            "problems": list(self.problems),
            "healthy": self.healthy,
        }


def doctor(model: str | None, quick: bool, as_json: bool) -> int | None:
    """Print the diagnosis. Return 1 if something is wrong."""
    diagnosis = examine(model, run_self_tests=not quick)
    if as_json:
        print_json(diagnosis.to_values())
    else:
        _print_diagnosis(diagnosis)
    return None if diagnosis.healthy else 1


def examine(model: str | None = None, *, run_self_tests: bool = True) -> Diagnosis:
    """Look at the machine, the installed packages and the bundles.

    Args:
        model: name or folder of one bundle. None: every bundle of the search path.
        run_self_tests: run each artifact that can run here, in a process of its own. False loads no model.

    Raises:
        BundleNotFound, ManifestError: there is no such bundle.
    """
    profile = ResourceProfile.detect()
    manifests, broken = ([store.find_bundle(model)], {}) if model is not None else store.read_installed()
    return Diagnosis(
        profile=profile,
        engines={name: _engine_use(name, profile) for name, engine in ENGINES.items() if engine.is_required},
        cache_folder=cache.cache_folder(),
        cache_problem=cache.cache_problem(),
        searched=tuple(store.search_path()),
        choices={
            manifest.root: {strategy: _choice(manifest, profile, strategy) for strategy in STRATEGIES}
            for manifest in manifests
        },
        self_tests={manifest.root: _self_tests(manifest, profile) for manifest in manifests if run_self_tests},
        broken=broken,
        missing=tuple(_missing(profile)),
    )


_DESCRIBE_ENGINE = """
import json, sys
from importlib import import_module
from firstvec.engines.table import ENGINES
print(json.dumps({"details": import_module(ENGINES[sys.argv[1]].module).describe_use()}))
"""


def _engine_use(name: str, profile: ResourceProfile) -> EngineUse:
    if profile.engine_version(name) is None:
        return EngineUse(description="not installed")
    answer, problem = _ask_child(_DESCRIBE_ENGINE, name)
    if problem:
        hint = (
            "; another version of it, or FIRSTVEC_ONNXRUNTIME=binding, may work here" if name == "onnxruntime" else ""
        )
        return EngineUse(description=f"crashed: {problem}{hint}", crashed=True)
    return EngineUse(description=str(answer["details"]))


def _choice(manifest: Manifest, profile: ResourceProfile, strategy: str) -> Choice | FirstvecError:
    try:
        return select(manifest, profile, Options(strategy=strategy))
    except FirstvecError as error:
        return error


_TEST_ARTIFACT = "import sys; from firstvec.commands.doctor import test_artifact; test_artifact(*sys.argv[1:])"


def _ask_child(code: str, *arguments: str) -> tuple[dict[str, Any], str]:
    """Return the JSON object that code prints in a process of its own, and how that process ended without one."""
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # firstvec's folder comes last. Otherwise the child could find another copy of an engine than programs find.
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


def _self_tests(manifest: Manifest, profile: ResourceProfile) -> tuple[SelfTestResult, ...]:
    """Run each artifact's self-test, one after another. An engine that crashes ends only its own process."""
    return tuple(_self_test(manifest, artifact, profile) for artifact in manifest.artifacts)


def _self_test(manifest: Manifest, artifact: Artifact, profile: ResourceProfile) -> SelfTestResult:
    if reason := cannot_run(artifact, profile):
        return SelfTestResult(artifact=artifact.id, status="not run", details=reason)
    if manifest.self_test is None:
        return SelfTestResult(artifact=artifact.id, status="not run", details="the bundle has none: rebuild it")
    device = profile.recommended_device if profile.recommended_device in artifact.devices else "cpu"
    answer, problem = _ask_child(_TEST_ARTIFACT, manifest.root, artifact.id, device)
    if problem:
        return SelfTestResult(artifact=artifact.id, status="crashed", details=problem)
    return SelfTestResult(artifact=artifact.id, status=answer["status"], details=answer["details"])


def test_artifact(root: str, artifact_id: str, device: str) -> None:
    """Run one artifact's self-test in both kinds of session, and print the result as JSON."""
    manifest = Manifest.read(root)
    artifact = next(artifact for artifact in manifest.artifacts if artifact.id == artifact_id)
    try:
        golden = self_test.read_golden(manifest, artifact)
        verified = verify_artifact(manifest, artifact, device)
        found = 0.0
        for quick_start in (True, False):
            # No marker counts here: the texts are computed in any case.
            session = open_artifact(verified, quick_start=quick_start, self_test=False).session
            found = max(found, self_test.compare(artifact, session, golden))
            session.close()
    except FirstvecError as error:
        answer = {"status": "failed", "details": str(error)}
    else:
        limit = f"at most {golden.max_difference:.2g} is right"
        answer = {"status": "passed", "details": f"differs from the build by {found:.2g} ({limit}), on {device}"}
    print(json.dumps(answer))


def _missing(profile: ResourceProfile) -> list[Missing]:
    from importlib.util import find_spec

    found = [
        Missing(install=engine.install, needed_for=engine.purpose, required=engine.is_required)
        for name, engine in ENGINES.items()
        if profile.engine_version(name) is None
    ]
    if profile.engine_version("tokenizers") is None:
        found.append(Missing(install="tokenizers", needed_for="turns text into tokens", required=True))
    if find_spec("typer") is None:
        found.append(Missing(install="firstvec[cli]", needed_for="`firstvec --help`, `firstvec build`", required=False))
    if find_spec("cryptography") is None:
        found.append(Missing(install="firstvec[verify]", needed_for="signatures of bundles", required=False))
    if not all(find_spec(name) for name in _TOOLCHAIN):
        found.append(Missing(install="firstvec[build]", needed_for="`firstvec build`", required=False))
    return found


def _print_diagnosis(diagnosis: Diagnosis) -> None:
    profile = diagnosis.profile
    storage = {True: "not rotational", False: "rotational", None: "unknown"}[profile.is_ssd]
    accelerators = f"CUDA {'yes' if profile.has_cuda else 'no'}, MPS {'yes' if profile.has_mps else 'no'}"
    problem = f"\n{diagnosis.cache_problem}" if diagnosis.cache_problem else ""
    rows = [
        ["firstvec", f"{__version__}, Python {sys.version.split()[0]}"],
        ["processor", f"{profile.machine}, {profile.cpu_count} usable cores"],
        ["instruction sets", ", ".join(profile.isa) or "none that INT8 needs"],
        ["memory", f"{profile.available_memory_mb:.0f} MB available"],
        ["storage", storage],
        ["accelerators", f"{accelerators}; recommended device {profile.recommended_device}"],
        ["engines", ", ".join(f"{name} {version or 'not installed'}" for name, version in profile.engines)],
        *([name, use.description] for name, use in diagnosis.engines.items()),
        ["cache", f"{diagnosis.cache_folder}{problem}"],
        ["bundles from", "\n".join(diagnosis.searched)],
    ]
    print_table(rows)
    for root, strategies in diagnosis.choices.items():
        print_text(f"\n{root}")
        rows = [
            [strategy.upper(), "none", str(found)]
            if isinstance(found, FirstvecError)
            else [strategy.upper(), found.artifact.id, f"{found.reason}; on {found.device}"]
            for strategy, found in strategies.items()
        ]
        rows += [
            ["self-test", test.artifact, f"{test.status}: {test.details}"]
            for test in diagnosis.self_tests.get(root, ())
        ]
        print_table(rows, indent="  ")
    optional = [each for each in diagnosis.missing if not each.required]
    if optional:
        print_text("\noptional, and not installed")
        print_table([[f"pip install '{each.install}'", each.needed_for] for each in optional], indent="  ")
    problems = diagnosis.problems
    print_text(f"\n{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "\nno problem was found")
    for problem in problems:
        print_table([["-", problem]], indent="  ")
