"""`firstvec doctor`: what this machine is, what each strategy would take here, what is missing, what is wrong.

No engine is loaded in this process, because an engine that crashes would take the report with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec

from firstvec import __version__
from firstvec.bundle import store
from firstvec.bundle.manifest import Artifact, Manifest
from firstvec.commands.output import print_json, print_table, print_text
from firstvec.engines.table import ENGINES
from firstvec.errors import FirstvecError
from firstvec.loading import self_test
from firstvec.loading.opening import open_artifact, verify_artifact
from firstvec.machine import cache, native
from firstvec.machine.profile import ResourceProfile
from firstvec.options import Options
from firstvec.selection import cannot_run, select, usable_devices
from firstvec.strategy import STRATEGIES
from firstvec.text.tokenizer import open_quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TIME_LIMIT = 120.0
"""Seconds for one process. The import of torch from a cold disk takes many of them."""

_PACKAGES = (
    ("firstvec[numpy]", "vectors as arrays, which are the default", ("numpy",)),
    ("firstvec[tokenizers]", "tokenizers of which a bundle has no tables, and rare texts", ("tokenizers",)),
    ("firstvec[cli]", "`firstvec --help`, `firstvec build`", ("typer",)),
    ("firstvec[verify]", "signatures of bundles", ("cryptography",)),
    ("firstvec[build]", "`firstvec build`", ("torch", "optimum", "onnx", "sentence_transformers")),
)
"""What to give to ``pip install``, what needs it, and what Python imports."""

_CHILD = """
import json, sys
from importlib import import_module
from firstvec.errors import FirstvecError
try:
    answer = {"status": "passed", "details": getattr(import_module(sys.argv[1]), sys.argv[2])(*sys.argv[3:])}
except FirstvecError as error:
    answer = {"status": "failed", "details": str(error)}
print(json.dumps(answer))
"""


def doctor(model: str | None, quick: bool, as_json: bool) -> int | None:
    """Show what this machine is, what each strategy would take, what is missing, and what computes wrong.

    Each artifact that can run here runs its self-test, in a process of its own.
    """
    found = examine(model, run_self_tests=not quick)
    if as_json:
        print_json(found)
    else:
        _print(found)
    return None if found["healthy"] else 1


def examine(model: str | None = None, *, run_self_tests: bool = True) -> dict[str, Any]:
    """Look at the machine, the installed packages and the bundles. Return what ``firstvec doctor --json`` prints.

    Args:
        model: name or folder of one bundle. None: every bundle of the search path.
        run_self_tests: run each artifact that can run here, in a process of its own. False loads no model.
    """
    profile = ResourceProfile.detect()
    manifests, broken = ([store.find_bundle(model)], {}) if model is not None else store.read_installed()
    found = {
        "firstvec": __version__,
        "python": sys.version.split()[0],
        "machine": {**profile.to_dict(), "engines": dict(profile.engines)},
        "engines": {name: _engine_use(name, profile) for name, engine in ENGINES.items() if engine.describes_use},
        "native": _native_use(),
        "cache": cache.cache_folder(),
        "cache_problem": cache.cache_problem(),
        "searched": store.search_path(),
        "bundles": {
            manifest.root: {strategy: _choice(manifest, profile, strategy) for strategy in STRATEGIES}
            for manifest in manifests
        },
        "self_tests": {
            manifest.root: {artifact.id: _self_test(manifest, artifact, profile) for artifact in manifest.artifacts}
            for manifest in manifests
            if run_self_tests
        },
        "broken": broken,
        "missing": _missing(profile),
        "without_tokenizer": [manifest.root for manifest in manifests if _lacks_tokenizer(manifest)],
    }
    problems = find_problems(found)
    return {**found, "problems": problems, "healthy": not problems}


def find_problems(found: dict[str, Any]) -> list[str]:
    """Return what keeps something from working here, for people. A package that no bundle here needs is no problem."""
    problems = [f"{name} {use['description']}" for name, use in found["engines"].items() if use["crashed"]]
    problems += [f"broken bundle: {reason}" for reason in found["broken"].values()]
    if not found["bundles"] and not found["broken"]:
        problems.append("no bundle was found: build one with `firstvec build`, or set FIRSTVEC_ARTIFACTS")
    for root, choices in found["bundles"].items():
        if all("error" in choice for choice in choices.values()):
            problems.append(f"{root}: no strategy can take an artifact on this machine")
    problems += [
        f"{root}: its texts need the package tokenizers, which is not installed: pip install 'firstvec[tokenizers]'"
        for root in found["without_tokenizer"]
    ]
    for root, tests in found["self_tests"].items():
        for artifact, test in tests.items():
            if test["status"] in ("failed", "crashed"):
                problems.append(f"{root}: the self-test of {artifact} {test['status']}")
    return problems


def _engine_use(name: str, profile: ResourceProfile) -> dict[str, Any]:
    if profile.engine_version(name) is None:
        return {"description": "not installed", "crashed": False}
    answer = _ask_child(ENGINES[name].module, "describe_use")
    if answer["status"] == "passed":
        return {"description": answer["details"], "crashed": False}
    hint = "; another version of it, or FIRSTVEC_ONNXRUNTIME=binding, may work here" if name == "onnxruntime" else ""
    return {"description": f"crashed: {answer['details']}{hint}", "crashed": True}


def _native_use() -> str:
    isa = native.instruction_set()
    if isa is None:
        return native.why_missing() or "not installed: ONNX artifacts need onnxruntime"
    return f"kernels for {isa}; this processor can use {', '.join(native.module().instruction_sets())}"  # type: ignore[union-attr]


def _choice(manifest: Manifest, profile: ResourceProfile, strategy: str) -> dict[str, Any]:
    try:
        return select(manifest, profile, Options(strategy=strategy)).to_values()
    except FirstvecError as error:
        return {"error": str(error)}


def _self_test(manifest: Manifest, artifact: Artifact, profile: ResourceProfile) -> dict[str, str]:
    reason = cannot_run(artifact, profile) or ("" if manifest.self_test else "the bundle has none: rebuild it")
    if reason:
        return {"status": "not run", "details": reason}
    device = profile.recommended_device if profile.recommended_device in usable_devices(artifact) else "cpu"
    return _ask_child(__name__, "test_artifact", manifest.root, artifact.id, device)


def test_artifact(root: str, artifact_id: str, device: str) -> str:
    """Run an artifact's self-test in both kinds of session, and return by how much the vectors differ."""
    manifest = Manifest.read(root)
    artifact = next(artifact for artifact in manifest.artifacts if artifact.id == artifact_id)
    golden = self_test.read_golden(manifest, artifact)
    verified = verify_artifact(manifest, artifact, device)
    found = 0.0
    for quick_start in (True, False):
        # No marker counts here: the texts are computed in any case.
        session = open_artifact(verified, quick_start=quick_start, self_test=False).session
        found = max(found, self_test.compare(artifact, session, golden))
        session.close()
    return f"differs from the build by {found:.2g} (at most {golden.max_difference:.2g} is right), on {device}"


def _ask_child(module: str, function: str, *arguments: str) -> dict[str, str]:
    """Return what a function returns in a process of its own, or that the process crashed, and how."""
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # firstvec's folder comes last. Otherwise the child could find another copy of an engine than programs find.
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), home)))
    # -P: what lies in the current folder is not imported.
    command = [sys.executable, "-P", "-c", _CHILD, module, function, *arguments]
    environment = os.environ | {"PYTHONPATH": path}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIME_LIMIT, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"status": "crashed", "details": f"no answer within {_TIME_LIMIT:g} s"}
    except OSError as error:
        return {"status": "crashed", "details": f"its process cannot be started: {error.strerror or error}"}
    try:
        return dict(json.loads(done.stdout))
    except (TypeError, ValueError):
        status = done.returncode
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        return {"status": "crashed", "details": f"its process ended with no answer: {how}, {last}"}


def _missing(profile: ResourceProfile) -> list[dict[str, Any]]:
    engines = [row for name, row in ENGINES.items() if profile.engine_version(name) is None]
    rows = [(engine.install, engine.purpose) for engine in engines]
    rows += [row[:2] for row in _PACKAGES if not all(map(find_spec, row[2]))]
    return [{"install": install, "needed_for": purpose} for install, purpose in rows]


def _lacks_tokenizer(manifest: Manifest) -> bool:
    """Return whether every text of a bundle needs the tokenizers package, and the package is not installed."""
    try:
        return find_spec("tokenizers") is None and open_quick(manifest) is None
    except FirstvecError:
        return False  # a damaged file: a load, and `firstvec verify`, say so


def _print(found: dict[str, Any]) -> None:
    """Print the diagnosis for people."""
    machine = found["machine"]
    cuda, mps = ("yes" if machine[key] else "no" for key in ("has_cuda", "has_mps"))
    rows = [
        ["firstvec", f"{found['firstvec']}, Python {found['python']}"],
        ["processor", f"{machine['machine']}, {machine['cpu_count']} usable cores"],
        ["instruction sets", ", ".join(machine["isa"]) or "none that INT8 needs"],
        ["memory", f"{machine['available_memory_mb']:.0f} MB available"],
        ["storage", {True: "not rotational", False: "rotational", None: "unknown"}[machine["is_ssd"]]],
        ["accelerators", f"CUDA {cuda}, MPS {mps}; recommended device {machine['recommended_device']}"],
        ["engines", ", ".join(f"{name} {version or 'not installed'}" for name, version in machine["engines"].items())],
        ["native", found["native"]],
        *([name, use["description"]] for name, use in found["engines"].items()),
        ["cache", "\n".join(filter(None, (found["cache"], found["cache_problem"])))],
        ["bundles from", "\n".join(found["searched"])],
    ]
    print_table(rows)
    for root, choices in found["bundles"].items():
        print_text(f"\n{root}")
        rows = [
            [strategy.upper(), "none", choice["error"]]
            if "error" in choice
            else [strategy.upper(), choice["artifact"], f"{choice['reason']}; on {choice['device']}"]
            for strategy, choice in choices.items()
        ]
        tests = found["self_tests"].get(root, {})
        rows += [["self-test", artifact, f"{test['status']}: {test['details']}"] for artifact, test in tests.items()]
        print_table(rows, indent="  ")
    if missing := found["missing"]:
        print_text("\noptional, and not installed")
        print_table([[f"pip install '{each['install']}'", each["needed_for"]] for each in missing], indent="  ")
    problems = found["problems"]
    print_text(f"\n{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "\nno problem was found")
    print_table([["-", problem] for problem in problems], indent="  ")
