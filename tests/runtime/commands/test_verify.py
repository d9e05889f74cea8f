"""`firstvec verify`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from firstvec.bundle.manifest import Manifest
from tests.conftest import Fresh, edit_manifest

GOOD = "ok: every file is the one that the manifest describes"
BAD = "BAD: see the lines above that begin with BAD"


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)


def test_a_whole_bundle_is_accepted_and_a_changed_file_is_named(tiny_bundle: Path, firstvec: Fresh) -> None:
    done = firstvec("verify", "--model", tiny_bundle)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, GOOD)
    flip_last_byte(tiny_bundle / "onnx/model.onnx_data")
    done = firstvec("verify", "-m", tiny_bundle)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, BAD)
    (bad,) = [line for line in done.stdout.splitlines()[:-1] if line.split()[0] == "BAD"]
    assert "onnx/model.onnx_data" in bad
    assert "Traceback" not in done.stderr
    values = json.loads(firstvec("verify", "-m", tiny_bundle, "--json").stdout)
    assert values["ok"] is False
    (files,) = values["bundles"].values()
    assert {path for path, verdict in files.items() if verdict != "ok"} == {"onnx/model.onnx_data"}


def test_every_file_of_the_manifest_has_a_line(tiny_built: Path, firstvec: Fresh) -> None:
    lines = firstvec("verify", "-m", tiny_built).stdout.splitlines()
    assert lines[0] == str(tiny_built)
    assert lines[1:-1] == [f"  ok   {file.path}" for file in Manifest.read(tiny_built).files()]


def test_all_bundles_are_verified_without_a_model(tiny_bundle: Path, tmp_path: Path, firstvec: Fresh) -> None:
    place = tmp_path / "place"
    for name in ("a", "b", "c"):
        shutil.copytree(tiny_bundle, place / name)
    assert firstvec("verify", FIRSTVEC_ARTIFACTS=str(place)).stdout.count("onnx/model.onnx_data\n") == 3
    flip_last_byte(place / "b/onnx/model.onnx_data")
    edit_manifest(place / "c", lambda document: document.update(format_version="9.0"))
    done = firstvec("verify", FIRSTVEC_ARTIFACTS=str(place))
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()].count("BAD") == 2
    assert "upgrade firstvec" in done.stdout
    values = json.loads(firstvec("verify", "--json", FIRSTVEC_ARTIFACTS=str(place)).stdout)
    assert (values["ok"], [*values["bundles"]], [*values["broken"]]) == (
        False,
        [str(place / "a"), str(place / "b")],
        [str(place / "c")],
    )
    # One bundle that is named does not depend on the others.
    assert firstvec("verify", "-m", place / "a", FIRSTVEC_ARTIFACTS=str(place)).returncode == 0


def test_no_bundle_at_all_is_an_error_that_lists_the_places(tmp_path: Path, firstvec: Fresh) -> None:
    done = firstvec("verify", FIRSTVEC_ARTIFACTS=str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (1, "")
    assert str(tmp_path / "none") in done.stderr
    assert "firstvec build" in done.stderr


@pytest.mark.native
def test_what_was_verified_before_does_not_count(tiny_bundle: Path, firstvec: Fresh) -> None:
    """The file has the size and the times of the one that was verified, as after a fault of the disk."""
    path = tiny_bundle / "native/model.fvw"
    assert firstvec("encode", "-m", tiny_bundle, "text").returncode == 0
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 0x80]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert firstvec("verify", "-m", tiny_bundle).returncode == 1


def test_strict_names_what_the_manifest_does_not_list(tiny_bundle: Path, firstvec: Fresh) -> None:
    (tiny_bundle / "notes.txt").write_text("x")
    assert firstvec("verify", "-m", tiny_bundle).returncode == 0
    done = firstvec("verify", "-m", tiny_bundle, "--strict")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, BAD)
    (bad,) = [line for line in done.stdout.splitlines()[:-1] if line.split()[0] == "BAD"]
    assert bad.strip().startswith("BAD  notes.txt: ")
    assert bad.endswith("; remove it")
    values = json.loads(firstvec("verify", "-m", tiny_bundle, "--strict", "--json").stdout)
    assert values["ok"] is False
    assert [*values["unlisted"][str(tiny_bundle)]] == ["notes.txt"]
