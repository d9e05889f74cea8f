"""What lies in a bundle's folder and is not in its manifest, which `firstvec verify --strict` shows."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firstvec.bundle.contents import find_unlisted
from firstvec.bundle.manifest import Manifest
from tests.conftest import Fresh


def found(bundle: Path) -> dict[str, str]:
    """Return what the bundle's manifest does not list."""
    return find_unlisted(Manifest.read(bundle))


def test_a_built_bundle_holds_only_listed_files(tiny_built: Path) -> None:
    assert found(tiny_built) == {}


def test_a_signature_counts_as_listed_in_the_bundles_folder_only(tiny_bundle: Path) -> None:
    (tiny_bundle / "model.sig").write_text("any content")
    assert found(tiny_bundle) == {}
    (tiny_bundle / "onnx/model.sig").write_text("")
    assert list(found(tiny_bundle)) == ["onnx/model.sig"]


FILE, FOLDER = "a file that the manifest does not list", "a folder that the manifest does not list"


def test_files_and_folders_are_named_each_once(tiny_bundle: Path) -> None:
    for name in (".DS_Store", "notes.txt", "onnx/model.onnx~", "Config.json", "extra/a", "extra/b/c", "onnx/empty/x"):
        (tiny_bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (tiny_bundle / name).write_text("")
    assert found(tiny_bundle) == {
        ".DS_Store": FILE,
        "Config.json": FILE,
        "extra": FOLDER,
        "notes.txt": FILE,
        "onnx/empty": FOLDER,
        "onnx/model.onnx~": FILE,
    }


@pytest.mark.parametrize("target", ["/etc", "onnx", "config.json", "nowhere"])
def test_a_symbolic_link_is_named_wherever_it_leads(target: str, tiny_bundle: Path) -> None:
    (tiny_bundle / "link").symlink_to(target)
    assert found(tiny_bundle) == {"link": "a symbolic link"}


@pytest.mark.parametrize("name", ["firstvec.json", "config.json", "onnx", "model.sig"])
def test_a_link_in_place_of_a_listed_file_or_folder_is_named(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    (tiny_bundle / "model.sig").write_text("")
    (tiny_bundle / name).rename(tmp_path / "moved")
    (tiny_bundle / name).symlink_to(tmp_path / "moved")
    assert find_unlisted(manifest) == {name: "a symbolic link"}


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, make_socket], ids=["pipe", "socket"])
def test_a_pipe_or_a_socket_is_named(make: Callable[[Path], None], tiny_bundle: Path) -> None:
    make(tiny_bundle / "x")
    assert found(tiny_bundle) == {"x": "neither a file nor a folder"}


def test_a_folder_in_the_place_of_a_file_is_named(tiny_bundle: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    (tiny_bundle / "config.json").unlink()
    (tiny_bundle / "config.json").mkdir()
    assert find_unlisted(manifest) == {"config.json": FOLDER}


def test_a_folder_that_is_gone_cannot_be_read(tiny_bundle: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    tiny_bundle.rename(tiny_bundle.with_name("moved"))
    assert "cannot be read" in find_unlisted(manifest)[""]


def test_a_name_that_a_terminal_obeys_or_that_is_no_text_is_shown_escaped(tiny_bundle: Path) -> None:
    (tiny_bundle / "red\x1b[31m").write_text("")
    (tiny_bundle / "ü").write_text("")
    with open(os.fsencode(tiny_bundle) + b"/\xff\n", "wb"):
        pass
    assert list(found(tiny_bundle)) == ["\\udcff\\n", "red\\x1b[31m", "ü"]


def test_verify_names_what_is_not_listed_when_it_is_strict(tiny_bundle: Path, firstvec: Fresh) -> None:
    assert firstvec("verify", "-m", tiny_bundle, "--strict").returncode == 0
    (tiny_bundle / "notes.txt").write_text("")
    assert firstvec("verify", "-m", tiny_bundle).returncode == 0
    done = firstvec("verify", "-m", tiny_bundle, "--strict")
    assert done.returncode == 1
    assert f"BAD  notes.txt: {FILE}; remove it" in done.stdout
    done = firstvec("verify", "-m", tiny_bundle, "--strict", "--json")
    assert done.returncode == 1
    values = json.loads(done.stdout)
    assert (values["ok"], values["unlisted"]) == (False, {str(tiny_bundle): {"notes.txt": FILE}})
    assert set(values["bundles"][str(tiny_bundle)].values()) == {"ok"}


def test_a_folder_that_cannot_be_read_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("/onnx"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    manifest = Manifest.read(tiny_bundle)
    monkeypatch.setattr(os, "scandir", refuse)
    assert find_unlisted(manifest) == {"onnx": "a folder that cannot be read (Permission denied)"}
