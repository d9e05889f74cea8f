"""`firstvec doctor`. What its self-tests find is in `tests/runtime/loading/test_self_test.py`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from firstvec import LoadingStrategy, __version__
from firstvec.bundle.manifest import Manifest
from firstvec.commands import doctor as doctor_module
from firstvec.commands.doctor import examine, find_problems
from firstvec.errors import BundleNotFound, ManifestError
from tests.conftest import Fresh, edit_manifest
from tests.runtime.commands.conftest import PROGRAM


def row(text: str, name: str) -> str:
    """The value of a row of the first table."""
    (found,) = re.findall(rf"^{name}  +(.*)$", text, re.MULTILINE)
    return str(found)


@pytest.mark.native
def test_the_machine_and_each_strategy_are_shown(bundle: Path, firstvec: Fresh) -> None:
    done = firstvec("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(strategy.name in done.stdout for strategy in LoadingStrategy)
    assert done.stdout.endswith("\nno problem was found\n")
    values = json.loads(firstvec("doctor", "--json").stdout)
    assert (values["healthy"], values["problems"]) == (True, [])
    assert values["machine"]["engines"]["onnxruntime"]
    assert values["engines"]["onnxruntime"]["description"].startswith("through its C API: ")
    binding = firstvec("doctor", "--quick", "--json", FIRSTVEC_ONNXRUNTIME="binding")
    assert json.loads(binding.stdout)["engines"] == {
        "onnxruntime": {"description": "through its Python binding: FIRSTVEC_ONNXRUNTIME=binding", "crashed": False}
    }
    assert values["bundles"][str(bundle)]["lazy"]["artifact"] == "native-fp32"
    assert values["firstvec"] == __version__


def test_the_text_has_what_the_json_has(tiny_built: Path, firstvec: Fresh) -> None:
    environment = {"FIRSTVEC_ARTIFACTS": str(tiny_built)}
    values = json.loads(firstvec("doctor", "--json", **environment).stdout)
    text = firstvec("doctor", **environment).stdout
    assert row(text, "firstvec") == f"{values['firstvec']}, Python {values['python']}"
    assert row(text, "cache") == values["cache"]
    assert row(text, "onnxruntime") == values["engines"]["onnxruntime"]["description"]
    assert row(text, "bundles from") == values["searched"][0]
    (strategies,) = values["bundles"].values()
    for strategy, choice in strategies.items():
        assert re.search(rf"^  {strategy.upper()} +{choice['artifact']} +", text, re.MULTILINE)
    (tests,) = values["self_tests"].values()
    for artifact, test in tests.items():
        assert f"{test['status']}: " in text
        assert re.search(rf"^  self-test +{artifact} +{test['status']}: ", text, re.MULTILINE)


def test_a_model_restricts_the_examination(tiny_bundle: Path, tmp_path: Path, firstvec: Fresh) -> None:
    place = tmp_path / "place"
    shutil.copytree(tiny_bundle, place / "one")
    broken = Path(shutil.copytree(tiny_bundle, place / "two"))
    (broken / "firstvec.json").write_text("{")
    environment = {"FIRSTVEC_ARTIFACTS": str(place)}
    every = firstvec("doctor", "--quick", **environment)
    assert every.returncode == 1
    assert str(broken) in every.stdout
    one = firstvec("doctor", "--quick", "--model", place / "one", **environment)
    assert one.returncode == 0
    assert "no problem was found" in one.stdout
    assert str(broken) not in one.stdout
    other = firstvec("doctor", "-m", tiny_bundle, "--quick", "--json", **environment)
    assert [*json.loads(other.stdout)["bundles"]] == [str(tiny_bundle)]
    for model in (broken, "no/such"):
        done = firstvec("doctor", "-m", model, **environment)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")
    with pytest.raises(BundleNotFound):
        examine("no/such")
    with pytest.raises(ManifestError):
        examine(str(broken))


def test_without_a_bundle_it_says_what_to_do_and_fails(tmp_path: Path, firstvec: Fresh) -> None:
    done = firstvec("doctor", FIRSTVEC_ARTIFACTS=str(tmp_path))
    assert done.returncode == 1
    assert "\n1 problem\n  -  no bundle was found: build one with `firstvec build`, or set FIRSTVEC" in done.stdout
    values = json.loads(firstvec("doctor", "--json", FIRSTVEC_ARTIFACTS=str(tmp_path)).stdout)
    assert values["healthy"] is False
    assert len(values["problems"]) == 1


def test_a_broken_bundle_is_shown(tiny_bundle: Path, firstvec: Fresh) -> None:
    edit_manifest(tiny_bundle, lambda document: document.update(format_version="9.0"))
    done = firstvec("doctor", FIRSTVEC_ARTIFACTS=str(tiny_bundle.parent))
    assert done.returncode == 1
    assert "broken bundle: " in done.stdout
    assert "upgrade firstvec" in " ".join(done.stdout.split())


def test_a_bundle_of_which_nothing_can_be_taken_is_a_problem(tiny_bundle: Path, firstvec: Fresh) -> None:
    def other_engine(document: dict[str, Any]) -> None:
        for artifact in document["artifacts"]:
            artifact.update(engine="from_the_future")

    edit_manifest(tiny_bundle, other_engine)
    done = firstvec("doctor", FIRSTVEC_ARTIFACTS=str(tiny_bundle))
    assert done.returncode == 1
    assert f"{tiny_bundle}: no strategy can take an artifact on this machine" in done.stdout
    assert re.search(r"^  LAZY +none +no artifact of ", done.stdout, re.MULTILINE)
    assert "not run: engine" in done.stdout


def test_a_strategy_without_an_artifact_is_no_problem(tiny_bundle: Path, firstvec: Fresh) -> None:
    """A bundle without INT8 is whole, and QUANTIZED has nothing to take."""
    edit_manifest(
        tiny_bundle,
        lambda document: document.update(artifacts=[a for a in document["artifacts"] if a["id"] == "onnx-fp32"]),
    )
    done = firstvec("doctor", "--quick", FIRSTVEC_ARTIFACTS=str(tiny_bundle))
    assert done.returncode == 0
    assert re.search(r"^  QUANTIZED +none +no artifact of ", done.stdout, re.MULTILINE)


def test_a_cache_that_remembers_nothing_is_shown(tiny_built: Path, tmp_path: Path, firstvec: Fresh) -> None:
    shared, file = tmp_path / "shared", tmp_path / "file"
    (shared / "verified").mkdir(parents=True)
    (shared / "verified").chmod(0o777)
    file.touch()
    for cache, reason in ((shared, "can be written by others"), (file, "cannot be written")):
        environment = {"FIRSTVEC_ARTIFACTS": str(tiny_built), "FIRSTVEC_CACHE": str(cache)}
        done = firstvec("doctor", "--quick", **environment)
        assert done.returncode == 0  # slower starts are no fault
        values = json.loads(firstvec("doctor", "--quick", "--json", **environment).stdout)
        assert values["cache"] == row(done.stdout, "cache") == str(cache)
        assert reason in values["cache_problem"]
        assert f"{cache}\n{' ' * 18}{values['cache_problem']}\n" in done.stdout
    (shared / "verified").chmod(0o700)
    done = firstvec("doctor", "--quick", "--json", FIRSTVEC_ARTIFACTS=str(tiny_built), FIRSTVEC_CACHE=str(shared))
    assert json.loads(done.stdout)["cache_problem"] is None


def test_a_user_without_a_home_is_examined(tiny_built: Path) -> None:
    """HOME is not set, and the user database does not know the user."""
    code = """
import os, pwd, sys
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
from firstvec.commands.main import main
main(sys.argv[1:])
"""
    python = str(Path(PROGRAM).with_name("python"))
    for command in ([PROGRAM], [python, "-c", code]):
        environment = {"FIRSTVEC_ARTIFACTS": str(tiny_built), "PATH": os.defpath}
        done = subprocess.run(
            [*command, "doctor", "--json"], capture_output=True, text=True, check=False, timeout=300, env=environment
        )
        assert (done.returncode, done.stderr) == (0, "")
        values = json.loads(done.stdout)
        assert values["healthy"] is True
        assert "passed" in {test["status"] for test in values["self_tests"][str(tiny_built)].values()}
        assert os.path.isabs(values["cache"])


@pytest.mark.native
def test_an_engine_that_crashes_is_a_problem(tiny_built: Path, tmp_path: Path, firstvec: Fresh) -> None:
    """The child that loads onnxruntime is killed. The report still has everything else."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, sys\nif 'describe_use' in ' '.join(sys.orig_argv): os.kill(os.getpid(), {signal.SIGSEGV.value})\n",
        "utf-8",
    )
    environment = {"FIRSTVEC_ARTIFACTS": str(tiny_built), "PYTHONPATH": str(tmp_path)}
    done = firstvec("doctor", "--quick", "--json", **environment)
    assert done.returncode == 1
    values = json.loads(done.stdout)
    assert values["engines"]["onnxruntime"]["crashed"] is True
    assert "killed by SIGSEGV" in values["engines"]["onnxruntime"]["description"]
    (problem,) = values["problems"]
    assert problem.startswith("onnxruntime crashed: its process ended with no answer: killed by SIGSEGV")
    assert "FIRSTVEC_ONNXRUNTIME=binding" in problem
    assert values["bundles"][str(tiny_built)]["lazy"]["artifact"] == "native-fp32"
    text = firstvec("doctor", "--quick", **environment).stdout
    assert row(text, "onnxruntime").startswith("crashed: ")
    assert "\n1 problem\n  -  onnxruntime crashed: " in text


def test_a_wrong_variable_is_reported_by_the_engine(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("doctor", "--quick", FIRSTVEC_ARTIFACTS=str(tiny_built), FIRSTVEC_ONNXRUNTIME="nonsense")
    assert done.returncode == 1
    assert "use 'binding' or 'capi', or unset it" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_an_engine_that_never_answers_is_a_problem(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\nif 'describe_use' in ' '.join(sys.orig_argv): time.sleep(600)\n", "utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor_module, "_TIME_LIMIT", 1.0)
    diagnosis = examine(str(tiny_built), run_self_tests=False)
    assert diagnosis["engines"]["onnxruntime"]["description"].startswith("crashed: no answer within 1 s")
    assert diagnosis["healthy"] is False


def with_status(status: str) -> dict[str, Any]:
    return {"self_tests": {"/b": {"a": {"status": status, "details": "x"}}}}


@pytest.fixture(scope="module")
def healthy(tiny_built: Path) -> dict[str, Any]:
    found = examine(str(tiny_built), run_self_tests=False) | with_status("passed")
    assert (found["problems"], found["healthy"]) == ([], True)
    return found


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"without_tokenizer": ["/b"]}, "/b: its texts need the package tokenizers, which is not installed: pip "),
        ({"engines": {"onnxruntime": {"description": "crashed: x", "crashed": True}}}, "onnxruntime crashed: x"),
        ({"broken": {"/b": "/b/firstvec.json: is no JSON"}}, "broken bundle: /b/firstvec.json: is no JSON"),
        ({"bundles": {}}, "no bundle was found: "),
        ({"bundles": {"/b": {"lazy": {"error": "x"}}}}, "/b: no strategy can take an artifact on this machine"),
        (with_status("failed"), "/b: the self-test of a failed"),
        (with_status("crashed"), "/b: the self-test of a crashed"),
    ],
    ids=["no tokenizer", "engine", "broken", "no bundle", "no artifact", "failed", "crashed"],
)
def test_each_problem_is_named(changes: dict[str, Any], problem: str, healthy: dict[str, Any]) -> None:
    (found,) = find_problems(healthy | changes)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "changes",
    [
        {"missing": [{"install": "firstvec[torch]", "needed_for": "runs the TorchScript artifact"}]},
        with_status("not run"),
        {"self_tests": {}},
        {"cache_problem": "cannot be written"},
    ],
    ids=["optional", "not run", "quick", "cache"],
)
def test_what_is_no_problem(changes: dict[str, Any], healthy: dict[str, Any]) -> None:
    assert find_problems(healthy | changes) == []


@pytest.mark.native
def test_what_is_missing_is_what_cannot_be_imported(tiny_built: Path, fresh: Fresh) -> None:
    code = """
import json, sys
for name in sys.argv[2:]:
    sys.modules[name] = None
from firstvec.commands.doctor import examine
print(json.dumps([each["install"] for each in examine(sys.argv[1], run_self_tests=False)["missing"]]))
"""
    for names, missing in (
        ((), []),
        (("numpy", "tokenizers"), ["firstvec[numpy]", "firstvec[tokenizers]"]),
        (("typer",), ["firstvec[cli]"]),
        (("cryptography",), ["firstvec[verify]"]),
        (("optimum",), ["firstvec[build]"]),
    ):
        assert json.loads(fresh(code, tiny_built, *names).stdout) == missing


@pytest.mark.parametrize(("has_tables", "healthy"), [(True, True), (False, False)])
def test_a_bundle_of_which_every_text_needs_a_missing_package_is_a_problem(
    has_tables: bool, healthy: bool, tiny_bundle: Path, fresh: Fresh
) -> None:
    if not has_tables:
        edit_manifest(tiny_bundle, lambda document: document.pop("wordpiece"))
    code = """
import json, sys
sys.modules["tokenizers"] = None
from firstvec.commands.doctor import examine
found = examine(sys.argv[1], run_self_tests=False)
print(json.dumps([found["healthy"], found["problems"]]))
"""
    found, problems = json.loads(fresh(code, tiny_bundle).stdout)
    assert found is healthy
    if not healthy:
        assert problems == [
            f"{tiny_bundle}: its texts need the package tokenizers, which is not installed: "
            "pip install 'firstvec[tokenizers]'"
        ]


def test_what_is_optional_is_shown(tiny_built: Path, bare: Fresh) -> None:
    done = bare("doctor", "--quick", FIRSTVEC_ARTIFACTS=str(tiny_built))
    assert done.returncode == 0
    assert "\noptional, and not installed\n  pip install 'firstvec[cli]'  " in done.stdout


def test_every_artifact_has_a_row_of_its_self_test(tiny_built: Path) -> None:
    found = examine(str(tiny_built))["self_tests"][str(tiny_built)]
    assert [*found] == [artifact.id for artifact in Manifest.read(tiny_built).artifacts]


@pytest.mark.native
def test_a_bundle_without_a_self_test_says_so(tiny_bundle: Path) -> None:
    edit_manifest(tiny_bundle, lambda document: document.pop("self_test"))
    diagnosis = examine(str(tiny_bundle))
    details = {test["details"] for test in diagnosis["self_tests"][str(tiny_bundle)].values()}
    assert {each for each in details if not each.startswith("isa: ")} == {"the bundle has none: rebuild it"}
    assert diagnosis["healthy"] is True
