"""Verified files, then a session of exactly these files, then the self-test; and an error leaves no session open."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import IncompatibleArtifact, IntegrityError, Manifest
from firstvec.bundle.integrity import OpenFile
from firstvec.engines.onnxruntime_c_api import CApiSession
from firstvec.loading import opening
from firstvec.loading.opening import VerifiedArtifact, open_artifact, verify_artifact
from firstvec.loading.trace import Trace
from tests.conftest import Fresh
from tests.loads import artifact_of, load


def verified_of(root: Path, artifact_id: str = "onnx-fp32") -> VerifiedArtifact:
    manifest = Manifest.read(root)
    return verify_artifact(manifest, artifact_of(manifest, artifact_id))


def vectors_of(verified: VerifiedArtifact, rows: list[list[int]] | None = None) -> Any:
    """Open a session, run it, and close it."""
    session = open_artifact(verified).session
    vectors = session.run(rows or [[2, 5, 3]]).tolist()
    session.close()
    return vectors


def test_each_kind_of_session_is_opened_and_tested(tiny_built: Path) -> None:
    trace, manifest = Trace(), Manifest.read(tiny_built)
    verified = verify_artifact(manifest, artifact_of(manifest, "onnx-fp32"), trace=trace)
    for quick_start, kind in ((True, "quick-start"), (False, "throughput")):
        opened = open_artifact(verified, quick_start=quick_start, trace=trace)
        assert opened.session.kind == kind
        assert opened.self_test in ("passed now", "passed before")
        opened.session.close()
    skipped = open_artifact(verified, self_test=False)
    assert skipped.self_test == "skipped"
    skipped.session.close()
    assert [stage["name"] for stage in trace.stages] == ["verification", *["engine", "session", "self-test"] * 2]


def test_the_verification_says_whether_a_file_was_hashed(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "cache"))
    assert [verified_of(tiny_built).verification for _ in range(2)] == ["hashed now", "remembered"]
    # One file of several is enough.
    digest = verified_of(tiny_built).artifact.files[1].sha256
    (marker,) = (tmp_path / "cache" / "verified").glob(f"{digest}-*")
    marker.unlink()
    assert [verified_of(tiny_built).verification for _ in range(2)] == ["hashed now", "remembered"]


def test_the_weights_are_freed_with_the_first_session(tiny_built: Path) -> None:
    verified = verified_of(tiny_built)
    assert len(verified.weights) == 1
    expected = vectors_of(verified)
    assert verified.weights == []
    assert vectors_of(verified) == expected  # read again


def test_an_artifact_whose_engine_has_no_row_is_refused(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    artifact = artifact_of(manifest, "onnx-fp32").replace(engine="abacus")
    with pytest.raises(IncompatibleArtifact, match=r"onnx-fp32: the engine 'abacus' is unknown .*: upgrade"):
        verify_artifact(manifest, artifact)


@pytest.mark.native
@pytest.mark.parametrize("binding", [False, True])
@pytest.mark.parametrize("artifact_id", ["native-fp32", "onnx-fp32", "torchscript-fp32"])
def test_what_was_verified_is_used_though_the_name_leads_elsewhere_by_then(
    artifact_id: str, binding: bool, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if binding:
        monkeypatch.setenv("FIRSTVEC_ONNXRUNTIME", "binding")
    expected = vectors_of(verified_of(tiny_bundle, artifact_id))
    verified = verified_of(tiny_bundle, artifact_id)
    for file in verified.artifact.files:
        path = tiny_bundle / file.path
        content = bytearray(path.read_bytes())
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
        (tiny_bundle / "evil").write_bytes(content)
        os.replace(tiny_bundle / "evil", path)
    for _ in range(2):
        assert vectors_of(verified) == expected
    with pytest.raises(IntegrityError):
        verified_of(tiny_bundle, artifact_id)


@pytest.mark.native
@pytest.mark.parametrize(("artifact_id", "number"), [("onnx-fp32", 0), ("onnx-fp32", 1), ("native-fp32", 0)])
def test_a_file_that_is_written_to_between_verification_and_use_is_refused(
    artifact_id: str, number: int, tiny_bundle: Path
) -> None:
    verified = verified_of(tiny_bundle, artifact_id)
    path = tiny_bundle / verified.artifact.files[number].path
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    with pytest.raises(IntegrityError, match="expected sha256"):
        open_artifact(verified)


@pytest.mark.native
@pytest.mark.parametrize(
    ("artifact_id", "name"), [("onnx-fp32", "onnx/model.onnx"), ("native-fp32", "native/model.fvw")]
)
def test_a_program_that_closes_all_descriptors_gets_a_session_of_verified_files(
    artifact_id: str, name: str, tiny_bundle: Path
) -> None:
    expected = vectors_of(verified_of(tiny_bundle, artifact_id))
    verified = verified_of(tiny_bundle, artifact_id)
    for file in verified.files:
        os.close(file.descriptor)
    assert vectors_of(verified) == expected
    (tiny_bundle / name).write_bytes(b"another model")
    with pytest.raises(IntegrityError):
        open_artifact(verified)


@pytest.mark.native
@pytest.mark.parametrize("artifact_id", ["native-fp32", "onnx-fp32"])
def test_without_proc_libraries_are_given_what_was_verified(
    artifact_id: str, tiny_bundle: Path, tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(tiny_built, artifact=artifact_id).get_provider().embed_query("[MASK] text")
    monkeypatch.setattr(OpenFile, "alias", None)
    provider = load(tiny_bundle, artifact=artifact_id).get_provider()
    shutil.rmtree(tiny_bundle)
    np.testing.assert_array_equal(provider.embed_query("[MASK] text"), expected)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of the sessions that were closed."""
    kinds: list[str] = []
    close = CApiSession.close

    def noted(session: CApiSession) -> None:
        kinds.append(session.kind)
        close(session)

    monkeypatch.setattr(CApiSession, "close", noted)
    return kinds


@pytest.mark.parametrize("error", [IncompatibleArtifact("onnx-fp32", "of the test"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["the files changed", "the self-test"])
def test_a_session_is_closed_where_a_later_step_fails(
    step: str, error: BaseException, tiny_built: Path, closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise error

    verified = verified_of(tiny_built)
    if step == "the self-test":
        monkeypatch.setattr(opening, "pass_self_test", fail)
    else:
        monkeypatch.setattr(OpenFile, "verify_again", fail)
    with pytest.raises(type(error)):
        open_artifact(verified)
    assert closed == ["quick-start"]


@pytest.mark.native
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("artifact_id", ["native-fp32", "onnx-fp32"])
def test_a_daemon_that_becomes_another_user_goes_on_serving_every_text(
    artifact_id: str, tiny_bundle: Path, fresh: Fresh
) -> None:
    done = fresh(
        """
import os, sys
import threading, tokenizers  # this user may not read them later; what matters is the bundle
from firstvec import OptimizedEmbeddingLoader
provider = OptimizedEmbeddingLoader(sys.argv[1], device="cpu", output="list", artifact=sys.argv[2]).get_provider()
provider.embed_query("text")
os.chmod(sys.argv[1], 0o700)
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        os.chmod(os.path.join(folder, name), 0o600)
os.setgroups([])
os.setuid(65534)
try:
    open(os.path.join(sys.argv[1], "tokenizer.json"))
except PermissionError:
    print(len(provider.embed_query("[MASK] text")))  # needs the whole tokenizer
""",
        tiny_bundle,
        artifact_id,
    )
    assert done.stdout == "32\n"
