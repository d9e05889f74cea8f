"""What a machine computes is what the build computed. Where it is not, the next artifact is taken."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import firstvec as firstvec_package
from firstvec import OptimizedEmbeddingLoader, ResourceProfile
from firstvec.bundle.manifest import Manifest
from firstvec.commands.doctor import examine
from firstvec.engines.onnxruntime_c_api import find_library
from firstvec.engines.table import ENGINES
from firstvec.errors import IncompatibleArtifact, IntegrityError, ManifestError, NoCompatibleArtifact, SelfTestError
from firstvec.loading.opening import open_artifact, verify_artifact
from firstvec.loading.self_test import digest_vectors, is_remembered, mean_difference, self_test_key
from firstvec.machine import native, processor
from firstvec.provider import EmbeddingProvider
from firstvec.text.tokenizer import open_tokenizer
from firstvec_build import publishing
from firstvec_build.self_test import TEXTS
from tests import loads
from tests.conftest import Fresh, edit_manifest
from tests.loads import artifact_of, keep_only

INT8 = next(f"onnx-int8-{isa}" for isa in ("avx512_vnni", "arm64", "avx2") if isa in ResourceProfile.detect().isa)


@pytest.fixture(autouse=True)
def markers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the self-test's markers, of an empty cache."""
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "self-tested"


@pytest.fixture
def onnx_bundle(tiny_onnx: Path, tmp_path: Path) -> Path:
    """Copy the bundle without native artifacts, for tests that change what onnxruntime must compute."""
    return Path(shutil.copytree(tiny_onnx, tmp_path / "tiny-onnx"))


def drop_native(document: dict[str, Any]) -> None:
    document["artifacts"] = [each for each in document["artifacts"] if each["engine"] != "native"]


def load(root: Path, strategy: str = "lazy", **options: Any) -> tuple[EmbeddingProvider, bool]:
    """Return the provider of a new loader, and whether the self-test was run for it."""
    loader = loads.load(root, strategy, **options)
    return loader.get_provider(), loader.report()["self_test"] == "passed now"


def rewrite(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the bundle's self-test, as a build that computed other vectors would have written it."""
    path = root / "self_test.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document), "utf-8")
    state(root, "self_test.json", lambda manifest: manifest["self_test"])


def state(root: Path, path: str, entry: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let the manifest describe a file as it is now."""
    edit_manifest(root, lambda manifest: entry(manifest).update(publishing.describe_file(root, path).to_dict()))


def golden(document: dict[str, Any], artifact_id: str) -> dict[str, Any]:
    return next(each for each in document["artifacts"] if each["id"] == artifact_id)


def vectors(record: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(record["vectors"]), "<f4").copy()


def turned(artifact_id: str, angle: float) -> Callable[[dict[str, Any]], None]:
    """What the build computed, for one artifact, is this relative difference away from what machines compute."""

    def change(document: dict[str, Any]) -> None:
        record = golden(document, artifact_id)
        record["vectors"] = base64.b64encode((vectors(record) * np.float32(1 + angle)).tobytes()).decode()

    return change


@pytest.mark.native
def test_a_bundle_carries_what_each_artifact_computes(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    document = json.loads((bundle / "self_test.json").read_bytes())
    assert [each["text"] for each in document["texts"]] == list(TEXTS)
    token_ids = open_tokenizer(manifest).tokenize(list(TEXTS))
    assert [each["token_ids"] for each in document["texts"]] == token_ids
    profile = ResourceProfile.detect()
    for artifact in manifest.artifacts:
        record = golden(document, artifact.id)
        if ENGINES[artifact.engine].same_bits:
            session = open_artifact(verify_artifact(manifest, artifact)).session
            assert record == {"id": artifact.id, "sha256": digest_vectors(session.run(token_ids))}
            session.close()
            continue
        allowed = record["max_difference"]
        assert allowed == 1e-3 if artifact.precision == "fp32" else 0.02 < allowed < 0.06
        if artifact.isa in (None, *profile.isa):
            session = open_artifact(verify_artifact(manifest, artifact)).session
            assert np.asarray(session.run(token_ids)).ravel() == pytest.approx(vectors(record), abs=2e-6)
            session.close()


@pytest.mark.native
@pytest.mark.parametrize(
    ("artifact", "strategy", "kind"),
    [
        ("onnx-fp32", "lazy", "quick-start"),
        ("onnx-fp32", "background", "throughput"),
        ("native-fp32", "lazy", "throughput"),
    ],
)
def test_it_is_run_once_and_remembered_for_the_kind_of_session(
    artifact: str, strategy: str, kind: str, tiny_built: Path, markers: Path
) -> None:
    provider, ran = load(tiny_built, strategy, artifact=artifact)
    assert ran
    (marker,) = markers.iterdir()
    assert (marker.name.endswith(f"-{kind}"), marker.stat().st_size, provider.session_kind) == (True, 0, kind)
    assert load(tiny_built, strategy, artifact=artifact)[1] is False
    marker.unlink()
    assert load(tiny_built, strategy, artifact=artifact)[1] is True


def test_another_processor_runs_it_again(tiny_onnx: Path, markers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tiny_onnx)
    monkeypatch.setattr(processor, "machine", lambda: "another machine")
    assert load(tiny_onnx)[1] is True
    assert len(list(markers.iterdir())) == 2


@pytest.mark.native
def test_the_instruction_set_stands_for_the_processor_where_all_compute_the_same_bits(
    tiny_built: Path, markers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = native.module().instruction_sets()
    load(tiny_built)
    monkeypatch.setattr(processor, "machine", lambda: "another machine")
    assert load(tiny_built)[1] is False
    monkeypatch.setenv("FIRSTVEC_NATIVE_ISA", sets[1])
    assert load(tiny_built, artifact="native-fp32")[1] is True
    assert len(list(markers.iterdir())) == 2


def test_another_version_of_the_engine_runs_it_again(tiny_onnx: Path, markers: Path) -> None:
    load(tiny_onnx)
    (marker,) = markers.iterdir()
    version = ResourceProfile.detect().engine_version("onnxruntime")
    assert version is not None
    marker.rename(marker.with_name(marker.name.replace(f"-{version}-", "-1.23.0-")))
    assert load(tiny_onnx)[1] is True


def test_other_files_run_it_again(onnx_bundle: Path) -> None:
    load(onnx_bundle)
    rewrite(onnx_bundle, turned("onnx-fp32", 1e-4))
    assert load(onnx_bundle)[1] is True


def test_without_a_folder_to_remember_in_it_is_run_every_time(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "file" / "cache"))
    assert [load(tiny_built)[1] for _ in range(2)] == [True, True]


def test_a_bundle_without_a_self_test_loads(tiny_bundle: Path) -> None:
    edit_manifest(tiny_bundle, lambda manifest: manifest.pop("self_test"))
    provider, ran = load(tiny_bundle)
    assert (len(provider.embed_query("a text")), ran) == (32, False)


@pytest.mark.parametrize(("difference", "passes"), [(0.9e-3, True), (1.1e-3, False), (math.inf, False)])
def test_a_difference_is_judged_by_what_the_bundle_allows(difference: float, passes: bool, onnx_bundle: Path) -> None:
    # |v - g| / |g| of g = (1 + a) v is a / (1 + a).
    rewrite(onnx_bundle, turned("onnx-fp32", difference / (1 - difference) if difference < 1 else 1e30))
    if passes:
        assert load(onnx_bundle)[1] is True
        return
    edit_manifest(onnx_bundle, keep_only(["onnx-fp32"]))
    with pytest.raises(SelfTestError, match="onnx-fp32: the self-test failed"):
        load(onnx_bundle)


def test_not_a_number_is_a_failure() -> None:
    assert not mean_difference([math.nan, 1.0], [1.0, 1.0], 1) <= 2


def test_another_number_of_components_is_a_failure() -> None:
    assert mean_difference([1.0, 2.0, 3.0], [1.0, 2.0], 1) == math.inf


def test_the_difference_is_the_mean_over_the_texts() -> None:
    golden_vectors = [3.0, 4.0, 0.0, 2.0]  # lengths 5 and 2
    assert mean_difference([3.0, 5.0, 0.0, 2.0], golden_vectors, 2) == pytest.approx((1 / 5 + 0) / 2)
    assert mean_difference([3.0, 4.0, 1.0, 2.0], golden_vectors, 2) == pytest.approx((0 + 1 / 2) / 2)


def test_weights_that_saturate_elsewhere_are_told_apart_and_the_next_artifact_is_taken(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong weights in files that the manifest describes: what a machine sees that computes right files wrong."""
    root = Path(shutil.copytree(bundle, tmp_path / "copy"))
    edit_manifest(root, drop_native)
    names = {isa: f"onnx/model_qint8_{isa}.onnx_data" for isa in ("avx2", "avx512_vnni", "arm64")}
    path = root / names[INT8.removeprefix("onnx-int8-")]
    data = np.fromfile(path, np.int8)
    # Scattered, as overflow is: one weight in forty loses a quarter.
    data[::40] = (data[::40] * 0.75).astype(np.int8)
    data.tofile(path)

    def entry(manifest: dict[str, Any]) -> dict[str, Any]:
        artifact = next(each for each in manifest["artifacts"] if each["id"] == INT8)
        return next(file for file in artifact["files"] if file["path"].endswith("_data"))

    state(root, path.relative_to(root).as_posix(), entry)
    with caplog.at_level(logging.WARNING, "firstvec"):
        provider, _ = load(root, "background", enable_quantization=True)
    assert provider.artifact.id not in (INT8, None)
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"{INT8}: the self-test failed" in message
    assert "The files are the ones that were built." in message


def test_the_error_says_what_is_wrong_and_is_neither_corruption_nor_incompatibility(tiny_bundle: Path) -> None:
    rewrite(tiny_bundle, turned(INT8, 1.0))
    manifest = Manifest.read(tiny_bundle)
    verified = verify_artifact(manifest, artifact_of(manifest, INT8))
    with pytest.raises(SelfTestError) as caught:
        open_artifact(verified)
    error = caught.value
    assert not isinstance(error, IntegrityError | IncompatibleArtifact)
    assert (error.artifact, error.difference) == (INT8, pytest.approx(0.5, rel=0.2))
    assert error.allowed < error.difference
    assert "onnxruntime" in str(error)
    assert "firstvec doctor" in str(error)


@pytest.mark.native
@pytest.mark.parametrize(
    ("artifact", "change"),
    [
        ("onnx-fp32", turned("onnx-fp32", 1.0)),
        ("native-fp32", lambda document: golden(document, "native-fp32").update(sha256="0" * 64)),
    ],
)
def test_nothing_is_remembered_of_a_failure(
    artifact: str, change: Callable[[dict[str, Any]], None], tiny_bundle: Path, markers: Path
) -> None:
    rewrite(tiny_bundle, change)
    edit_manifest(tiny_bundle, keep_only([artifact]))
    for _ in range(2):
        with pytest.raises(SelfTestError):
            load(tiny_bundle)
    assert not markers.exists()


@pytest.mark.native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document["artifacts"].clear(), "holds no vectors of native-fp32"),
        (lambda document: golden(document, "native-fp32").pop("sha256"), r"artifacts\[\d\]\.sha256: is missing"),
        (lambda document: golden(document, "native-fp32").update(sha256="0" * 63), r"sha256: .* is not a SHA-256"),
        (lambda document: golden(document, "native-fp32").update(sha256=None), r"sha256: is"),
        (lambda document: document["texts"].clear(), "texts: is empty"),
        (lambda document: document["texts"][0].update(token_ids=[-1]), r"texts\[0\]\.token_ids\[0\]"),
    ],
)
def test_a_self_test_of_the_native_engine_that_is_not_valid_is_a_manifest_error(
    change: Callable[[dict[str, Any]], None], message: str, tiny_bundle: Path
) -> None:
    rewrite(tiny_bundle, change)
    with pytest.raises(ManifestError, match=rf"self_test\.json.*{message}"):
        load(tiny_bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document["artifacts"].clear(), "holds no vectors of onnx-fp32"),
        (lambda document: golden(document, "onnx-fp32").pop("vectors"), r"artifacts\[1\]\.vectors: is missing"),
        (lambda document: golden(document, "onnx-fp32").update(vectors="AAAA"), r"vectors: is not float32 numbers"),
        (lambda document: golden(document, "onnx-fp32").update(vectors="*"), r"vectors: is not base64"),
        (
            lambda document: golden(document, "onnx-fp32").update(vectors=""),
            r"vectors: is not one vector of 32 numbers",
        ),
        (lambda document: golden(document, "onnx-fp32").update(vectors=3), r"vectors: is an integer, not a string"),
        (lambda document: golden(document, "onnx-fp32").update(vectors="AAAAAACAfw=="), "not float32|not finite"),
        (lambda document: golden(document, "onnx-fp32").update(vectors="AACAfw=="), "a number that is not finite"),
        (lambda document: golden(document, "onnx-fp32").update(max_difference=-1), "max_difference: is -1"),
        (lambda document: document["texts"].clear(), "texts: is empty"),
        (lambda document: document["texts"][0].update(token_ids=[]), "vectors: is not one vector"),
        (lambda document: document["texts"][0].update(token_ids=[-1]), r"texts\[0\]\.token_ids\[0\]"),
    ],
)
def test_a_self_test_that_is_not_valid_is_a_manifest_error(
    change: Callable[[dict[str, Any]], None], message: str, onnx_bundle: Path
) -> None:
    rewrite(onnx_bundle, change)
    with pytest.raises(ManifestError, match=rf"self_test\.json.*{message}"):
        load(onnx_bundle)


def test_a_changed_self_test_is_no_self_test(tiny_bundle: Path) -> None:
    path = tiny_bundle / "self_test.json"
    path.write_bytes(path.read_bytes().replace(b"0.001", b"2.000"))
    with pytest.raises(NoCompatibleArtifact, match="is not the file that was built"):
        load(tiny_bundle)


@pytest.mark.native
@pytest.mark.parametrize("artifact", ["native-fp32", "onnx-fp32"])
def test_ids_that_the_model_does_not_have_are_an_incompatible_artifact(artifact: str, tiny_bundle: Path) -> None:
    rewrite(tiny_bundle, lambda document: document["texts"][0]["token_ids"].__setitem__(0, 10_000))
    edit_manifest(tiny_bundle, keep_only([artifact]))
    with pytest.raises(IncompatibleArtifact, match="cannot run it"):
        load(tiny_bundle)


def test_what_passed_is_remembered_for_this_artifact_device_version_and_kind(tiny_onnx: Path, markers: Path) -> None:
    manifest = Manifest.read(tiny_onnx)
    artifact = artifact_of(manifest, "onnx-fp32")
    version = ResourceProfile.detect().engine_version("onnxruntime") or ""
    asked = (manifest, artifact, "cpu", version, "quick-start")
    assert is_remembered(*asked) is False
    load(tiny_onnx)
    (marker,) = markers.iterdir()
    before = marker.stat().st_mtime_ns
    assert is_remembered(*asked) is True
    assert marker.stat().st_mtime_ns == before  # nobody has used it
    for others in (
        (manifest, artifact_of(manifest, "torchscript-fp32"), "cpu", version, "quick-start"),
        (manifest, artifact, "cuda", version, "quick-start"),
        (manifest, artifact, "cpu", "1.23.0", "quick-start"),
        (manifest, artifact, "cpu", version, "throughput"),
    ):
        assert is_remembered(*others) is False
    assert is_remembered(manifest.replace(self_test=None), *asked[1:]) is None
    assert self_test_key(manifest, artifact, "cpu") != self_test_key(manifest.replace(self_test=None), artifact, "cpu")


def test_a_load_says_whether_it_ran(tiny_built: Path, tiny_bundle: Path) -> None:
    edit_manifest(tiny_bundle, lambda manifest: manifest.pop("self_test"))
    said = []
    for root in (tiny_built, tiny_built, tiny_bundle):
        loader = OptimizedEmbeddingLoader(str(root), "lazy", "cpu")
        assert loader.report().get("self_test") is None
        loader.get_provider()
        said.append(loader.report()["self_test"])
        assert "self-test" in [stage["name"] for stage in loader.report()["stages"]]
    assert said == ["passed now", "passed before", "none"]


# What `firstvec explain` and `firstvec doctor` show of it


def test_explain_says_whether_it_passed_before(tiny_built: Path, firstvec: Fresh) -> None:
    def told() -> tuple[bool, bool]:
        done = firstvec("explain", "--model", tiny_built, "--strategy", "lazy", "--json")
        text = firstvec("explain", "--model", tiny_built, "--strategy", "lazy").stdout
        strategies = json.loads(done.stdout)["strategies"]
        return strategies["lazy"]["self_test_passed_before"], "self-test passed before" in text

    assert told() == (False, False)
    load(tiny_built)
    assert told() == (True, True)


@pytest.mark.native
def test_doctor_runs_each_artifact_that_can_run_here(tiny_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(tiny_built))
    diagnosis = examine()
    found = diagnosis["self_tests"][str(tiny_built)]
    manifest = Manifest.read(tiny_built)
    isa = ResourceProfile.detect().isa
    for artifact in manifest.artifacts:
        here = artifact.isa in (None, *isa)
        assert found[artifact.id]["status"] == ("passed" if here else "not run")
        assert ("differs from the build by" if here else "isa: needs") in found[artifact.id]["details"]
    assert diagnosis["healthy"] is True
    assert examine(run_self_tests=False)["self_tests"] == {}


def test_doctor_shows_what_computes_wrong_and_what_crashes(tiny_bundle: Path, firstvec: Fresh, tmp_path: Path) -> None:
    rewrite(tiny_bundle, turned("onnx-fp32", 1.0))
    # An interpreter that dies of an illegal instruction as soon as it opens this artifact, as an engine would.
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, sys\nif {INT8!r} in sys.orig_argv: os.kill(os.getpid(), {signal.SIGILL.value})\n", "utf-8"
    )
    environment = {"FIRSTVEC_ARTIFACTS": str(tiny_bundle), "PYTHONPATH": str(tmp_path)}
    done = firstvec("doctor", "--json", **environment)
    assert done.returncode == 1
    values = json.loads(done.stdout)
    assert values["healthy"] is False
    tests = values["self_tests"][str(tiny_bundle)]
    assert tests["onnx-fp32"]["status"] == "failed"
    assert "the self-test failed" in tests["onnx-fp32"]["details"]
    assert tests[INT8]["status"] == "crashed"
    assert "killed by SIGILL" in tests[INT8]["details"]
    assert tests["torchscript-fp32"]["status"] == "passed"
    text = firstvec("doctor", **environment).stdout
    assert "failed: onnx-fp32: the self-test failed" in text
    assert "crashed: its process ended with no answer: killed by SIGILL" in text
    quick = firstvec("doctor", "--quick", **environment)
    assert (quick.returncode, "self-test" in quick.stdout) == (0, False)


def test_doctor_tells_where_no_process_can_be_started(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(tiny_built))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    diagnosis = examine()
    assert "its process cannot be started: No such file" in diagnosis["engines"]["onnxruntime"]["description"]
    assert "crashed" in {test["status"] for test in diagnosis["self_tests"][str(tiny_built)].values()}
    assert diagnosis["healthy"] is False


def cut_off(real: Path, library: Path) -> None:
    """As an installation leaves it that ended in the middle: what is mapped behind the file's end cannot be read."""
    with real.open("rb") as file:
        library.write_bytes(file.read(1 << 20))


def with_an_instruction_that_no_processor_has(real: Path, library: Path) -> None:
    if (compiler := shutil.which("gcc")) is None:
        pytest.skip("needs gcc")
    code = "__attribute__((constructor)) static void start(void) { __builtin_trap(); }"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-o", str(library), "-"]
    subprocess.run(command, input=code, text=True, check=True, timeout=300)


def engine_of(folder: Path, make: Callable[[Path, Path], None]) -> Path:
    """A folder of an onnxruntime package whose shared library ends every process that loads it."""
    real = Path(find_library())
    library = folder / "onnxruntime" / "capi" / real.name
    library.parent.mkdir(parents=True)
    make(real, library)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="other loaders of libraries refuse these")
@pytest.mark.parametrize(
    ("make", "killed"), [(cut_off, "SIGBUS"), (with_an_instruction_that_no_processor_has, "SIG(ILL|TRAP)")]
)
def test_doctor_outlives_an_engine_that_ends_whatever_process_loads_it(
    make: Callable[[Path, Path], None], killed: str, tiny_bundle: Path, firstvec: Fresh, tmp_path: Path
) -> None:
    edit_manifest(tiny_bundle, keep_only(["onnx-fp32"]))
    engine = engine_of(tmp_path / "engine", make)
    environment = {"FIRSTVEC_ARTIFACTS": str(tiny_bundle), "PYTHONPATH": str(engine)}
    done = firstvec("doctor", "--json", **environment)
    assert done.returncode == 1, done.stderr
    values = json.loads(done.stdout)
    use = values["engines"]["onnxruntime"]
    assert (values["healthy"], use["crashed"]) == (False, True)
    assert re.match(f"crashed: its process ended with no answer: killed by {killed}", use["description"])
    (test,) = values["self_tests"][str(tiny_bundle)].values()
    assert test["status"] == "crashed"
    assert values["bundles"][str(tiny_bundle)]["lazy"]["artifact"] == "onnx-fp32"
    quick = firstvec("doctor", "--quick", **environment)
    assert quick.returncode == 1, quick.stderr
    assert re.search(f"onnxruntime +crashed: .*killed by {killed}", quick.stdout)
    # Nothing of the library is loaded where it is not used.
    binding = firstvec("doctor", "--quick", FIRSTVEC_ONNXRUNTIME="binding", **environment)
    assert (binding.returncode, "through its Python binding" in binding.stdout) == (0, True)


def test_doctor_examines_the_engine_that_programs_find(firstvec: Fresh, tmp_path: Path) -> None:
    """Which is not the one beside firstvec, where PYTHONPATH has another before it."""
    site = tmp_path / "site"
    shutil.copytree(Path(firstvec_package.__file__).parent, site / "firstvec")
    (site / "onnxruntime").symlink_to(Path(find_library()).parents[1], target_is_directory=True)
    other = tmp_path / "other"
    (other / "onnxruntime" / "capi").mkdir(parents=True)
    cases = (((site, other), f"through its C API: {site}"), ((other, site), f"{other}/onnxruntime/capi has no"))
    for path, found in cases:
        done = firstvec("doctor", "--quick", "--json", PYTHONPATH=os.pathsep.join(map(str, path)))
        values = json.loads(done.stdout)
        assert found in values["engines"]["onnxruntime"]["description"]
        assert values["engines"]["onnxruntime"]["crashed"] is False


SATURATES = """
import json, logging, sys
logging.basicConfig(format="%(message)s", stream=sys.stdout)
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(sys.argv[1], "quantized", output="list")
loader.start_loading()
provider = loader.get_provider()
print(json.dumps([provider.artifact.id, provider.embed_query("how do I reset my password?")]))
"""


@pytest.mark.skipif(
    shutil.which("qemu-x86_64") is None or "avx512_vnni" not in ResourceProfile.detect().isa,
    reason="needs qemu-x86_64 (Debian: qemu-user) and a CPU with AVX-512 VNNI",
)
def test_a_processor_that_claims_vnni_and_saturates_gets_the_seven_bit_file(bundle: Path, tmp_path: Path) -> None:
    """onnxruntime's real kernels for AVX2, on an emulated CPU; /proc/cpuinfo is that of this machine, and lies."""
    root = Path(shutil.copytree(bundle, tmp_path / "copy"))
    edit_manifest(root, drop_native)

    def run(*emulator: str) -> list[str]:
        command = [*emulator, sys.executable, "-c", SATURATES, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        return done.stdout.splitlines()

    warning, answer = run("qemu-x86_64", "-cpu", "max")
    artifact, vector = json.loads(answer)
    assert "onnx-int8-avx512_vnni: the self-test failed" in warning
    assert artifact == "onnx-int8-avx2"
    shutil.rmtree(tmp_path / "cache")
    here, _ = json.loads(run()[0])
    assert here == "onnx-int8-avx512_vnni"
    manifest = Manifest.read(bundle)
    session = open_artifact(verify_artifact(manifest, artifact_of(manifest, "onnx-int8-avx2"))).session
    ids = open_tokenizer(manifest).tokenize(["how do I reset my password?"])
    assert vector == pytest.approx(np.asarray(session.run(ids))[0], abs=1e-5)
    session.close()
