"""A new engine is a row, a session module and a recipe. Only `tests/toy_engine` knows the engine of this test."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from firstvec import IncompatibleArtifact, Manifest, NoCompatibleArtifact, OptimizedEmbeddingLoader, ResourceProfile
from firstvec.engines.session import import_engine
from firstvec.loading.opening import verify_artifact
from firstvec.selection import select
from tests.conftest import REPOSITORY, Fresh
from tests.loads import artifact_of, flip_byte

TOY_ENGINE = REPOSITORY / "tests" / "toy_engine"


@pytest.fixture(scope="module")
def result(tiny_model: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `firstvec build` prints as JSON of a bundle for two engines, one of which is the toy engine."""
    command = [str(Path(sys.executable).with_name("firstvec")), "build", str(tiny_model)]
    command += ["--output", str(tmp_path_factory.mktemp("bundles")), "--json"]
    done = subprocess.run(
        [*command, "--only", "npz-fp32", "--only", "onnx-fp32"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": str(TOY_ENGINE), "FIRSTVEC_CACHE": str(cache)},
    )
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads(done.stdout)
    return values


@pytest.fixture
def root(result: dict[str, Any]) -> Path:
    """The bundle."""
    return Path(result["path"])


def test_the_build_makes_measures_and_times_the_artifact(result: dict[str, Any], root: Path) -> None:
    built = {artifact["id"]: artifact for artifact in result["artifacts"]}
    assert set(built) == {"npz-fp32", "onnx-fp32"}
    assert built["npz-fp32"]["first_vector_ms"] > 0
    artifact = artifact_of(Manifest.read(root), "npz-fp32")
    assert (artifact.format, artifact.engine, artifact.engine_min, artifact.engine_below) == ("npz", "abacus", "1", "2")
    assert artifact.quality.measured_with == "abacus 1.5"
    assert artifact.quality.max_abs_diff <= 1e-5


def test_explain_says_that_the_new_engine_has_the_highest_rank(root: Path, firstvec: Fresh) -> None:
    done = firstvec("explain", "--model", root, "--json", PYTHONPATH=str(TOY_ENGINE))
    assert (done.returncode, done.stderr) == (0, "")
    lazy = json.loads(done.stdout)["strategies"]["lazy"]
    assert (lazy["artifact"], lazy["fallbacks"]) == ("npz-fp32", ["onnx-fp32"])


LOAD = """
import json, sys
from firstvec import OptimizedEmbeddingLoader
vectors, reports = [], []
for artifact in (None, "onnx-fp32"):
    for strategy in ("lazy", "background"):
        loader = OptimizedEmbeddingLoader(sys.argv[1], strategy, "cpu", output="list", artifact=artifact)
        provider = loader.get_provider()
        vectors.append(provider.encode(["how do I reset my password?", "", "a " * 500]) + [provider.embed_query("x")])
        reports.append(loader.report())
largest = max(abs(a - b) for rows in vectors for one, other in zip(rows, vectors[-1]) for a, b in zip(one, other))
print(json.dumps([reports, largest]))
"""


def test_a_program_loads_tests_and_runs_the_artifact(root: Path, fresh: Fresh, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(TOY_ENGINE), "FIRSTVEC_CACHE": str(tmp_path / "cache")}
    reports, largest = json.loads(fresh(LOAD, root, **environment).stdout)
    assert [report["artifact"] for report in reports] == ["npz-fp32", "npz-fp32", "onnx-fp32", "onnx-fp32"]
    assert [report["engine"] for report in reports[:2]] == ["abacus 1.5"] * 2
    assert [report["session"] for report in reports] == ["quick-start", "throughput"] * 2
    assert {report["self_test"] for report in reports} == {"passed now"}
    assert all(report["fallbacks"] == [] for report in reports)
    assert largest < 1e-5


def test_progressive_hands_over_and_a_forked_child_opens_a_session_of_its_own(root: Path, fresh: Fresh) -> None:
    code = """
import os, sys, time
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(sys.argv[1], "progressive", "cpu", output="list")
provider = loader.get_provider()
expected = provider.embed_query("text")
while loader.report()["hand_over"] == "waiting":
    time.sleep(0.01)
assert (loader.report()["hand_over"], loader.report()["session"]) == ("done", "throughput")
session = provider.session
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert provider.embed_query("text") == expected
assert (provider.session is session) == bool(child)
"""
    fresh(code, root, PYTHONPATH=str(TOY_ENGINE))


def test_the_command_encodes_with_the_new_engine(root: Path, firstvec: Fresh) -> None:
    done = firstvec("encode", "--model", root, "a text", PYTHONPATH=str(TOY_ENGINE))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["artifact"] == "npz-fp32"


def test_doctor_runs_its_self_test_and_finds_no_problem(root: Path, firstvec: Fresh) -> None:
    environment = {"FIRSTVEC_ARTIFACTS": str(root), "PYTHONPATH": str(TOY_ENGINE)}
    done = firstvec("doctor", "--json", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    values = json.loads(done.stdout)
    assert values["healthy"] is True
    assert values["machine"]["engines"]["abacus"] == "1.5"
    assert {test["status"] for test in values["self_tests"][str(root)].values()} == {"passed"}
    text = firstvec("doctor", **environment).stdout
    assert re.search(r"self-test +npz-fp32 +passed: differs from the build by", text)


def test_a_damaged_artifact_of_the_new_engine_is_passed_over(root: Path, tmp_path: Path, fresh: Fresh) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    flip_byte(copy / "abacus" / "model.npz")
    code = """
import logging, sys
logging.disable()
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(sys.argv[1], device="cpu")
print(loader.get_provider().artifact.id, [each["error"] for each in loader.report()["fallbacks"]])
"""
    assert fresh(code, copy, PYTHONPATH=str(TOY_ENGINE)).stdout == "onnx-fp32 ['IntegrityError']\n"


def test_a_firstvec_without_the_row_refuses_the_artifact_everywhere_with_a_typed_error(root: Path) -> None:
    manifest = Manifest.read(root)
    artifact = artifact_of(manifest, "npz-fp32")
    for refuse in (lambda: import_engine(artifact), lambda: verify_artifact(manifest, artifact)):
        with pytest.raises(IncompatibleArtifact, match=r"npz-fp32: the engine 'abacus' is unknown .*: upgrade"):
            refuse()
    choice = select(manifest, ResourceProfile.detect())
    assert choice.artifact.id == "onnx-fp32"
    assert [(each.id, reason.partition(" is unknown")[0]) for each, reason in choice.rejected] == [
        ("npz-fp32", "format 'npz'")
    ]
    with pytest.raises(NoCompatibleArtifact, match=r"format 'npz' is unknown to firstvec .*: upgrade"):
        OptimizedEmbeddingLoader(str(root), artifact="npz-fp32").get_provider()
