"""The places where bundles are found, and their order."""

from __future__ import annotations

import json
import os
import pwd
import sys
from pathlib import Path

import pytest

from firstvec.bundle import MANIFEST_NAME, WHEEL_PACKAGE
from firstvec.bundle.manifest import Manifest
from firstvec.bundle.store import (
    bundle_folders,
    candidates,
    data_folder,
    find_bundle,
    installed_folders,
    names_model,
    read_installed,
    search_path,
)
from firstvec.errors import BundleNotFound, ManifestError
from tests.conftest import edit_manifest
from tests.manifests import document


def put(folder: Path, name: str, revision: str | None = None) -> Path:
    """Make ``folder`` a bundle of which there is only the manifest, because finding a bundle reads nothing else."""
    folder.mkdir(parents=True)
    (folder / MANIFEST_NAME).write_text(json.dumps(document(name, revision)), "utf-8")
    return folder


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Path]:
    """Make four empty places: the current folder, FIRSTVEC_ARTIFACTS, a site folder and the data folder."""
    found = {name: tmp_path / name for name in ("here", "artifacts", "site", "home")}
    for folder in found.values():
        folder.mkdir()
    monkeypatch.chdir(found["here"])
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(found["artifacts"]))
    monkeypatch.setenv("FIRSTVEC_HOME", str(found["home"]))
    monkeypatch.setattr(sys, "path", [*sys.path, str(found["site"])])
    return found


def folder_in(places: dict[str, Path], place: str) -> Path:
    """Return the folder of a bundle called ``tiny`` in that kind of place."""
    middle = {"site": WHEEL_PACKAGE, "home": "bundles"}.get(place, "")
    return places[place] / middle / "tiny"


# --- find_bundle -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["artifacts", "site", "home"])
def test_the_places_are_searched_in_order(places: dict[str, Path], first: str) -> None:
    order = ["artifacts", "site", "home"]
    for place in order[order.index(first) :]:
        put(folder_in(places, place), "org/tiny", revision=place)
    assert find_bundle("org/tiny").model.revision == first


def test_a_path_comes_before_every_place(places: dict[str, Path]) -> None:
    put(folder_in(places, "artifacts"), "tiny", "artifacts")
    elsewhere = put(places["here"] / "sub" / "tiny", "tiny", "argument")
    assert find_bundle(str(elsewhere)).model.revision == "argument"


@pytest.mark.parametrize("spelled", ["./x", "x/", "sub/../x", "../here/x", "{absolute}"])
def test_a_folder_is_found_by_its_path_whatever_the_models_name(places: dict[str, Path], spelled: str) -> None:
    folder = put(places["here"] / "x", "org/tiny")
    (places["here"] / "sub").mkdir()
    manifest = find_bundle(spelled.format(absolute=folder))
    assert manifest.model.name == "org/tiny"
    assert os.path.samefile(manifest.root, folder)


def test_a_folder_of_the_current_folder_does_not_stand_in_for_an_installed_bundle(places: dict[str, Path]) -> None:
    put(places["here"] / "tiny", "tiny", "current folder")
    with pytest.raises(BundleNotFound):
        find_bundle("tiny")
    put(places["here"] / "org" / "tiny", "org/tiny", "current folder")
    put(folder_in(places, "artifacts"), "org/tiny", "artifacts")
    assert find_bundle("org/tiny").model.revision == "artifacts"
    assert find_bundle("./org/tiny").model.revision == "current folder"


@pytest.mark.parametrize("name", ["org/tiny", "tiny"])
@pytest.mark.parametrize("place", ["artifacts", "site", "home"])
def test_the_organization_may_be_left_out(places: dict[str, Path], place: str, name: str) -> None:
    folder = put(folder_in(places, place), "org/tiny")
    assert find_bundle(name).root == str(folder)


@pytest.mark.parametrize("name", ["other/tiny", "org/tin", "org", "org/tiny/x", "TINY", "iny", ""])
def test_another_name_is_not_found(places: dict[str, Path], name: str) -> None:
    put(folder_in(places, "artifacts"), "org/tiny")
    with pytest.raises(BundleNotFound):
        find_bundle(name)


@pytest.mark.parametrize("name", ["a\0b", "m\ud800", "x" * 5000, "../" * 50 + "x", "a\nb"])
def test_a_name_that_no_file_can_have_is_not_found(name: str) -> None:
    with pytest.raises(BundleNotFound):
        find_bundle(name)


def test_two_models_of_one_name_are_told_apart_by_their_organizations(places: dict[str, Path]) -> None:
    put(places["artifacts"] / "tiny", "first/tiny")
    second = put(places["artifacts"] / "tiny-2", "second/tiny")
    assert find_bundle("second/tiny").root == str(second)


@pytest.mark.parametrize("name", ["org/tiny", "tiny"])
def test_a_bundle_folder_under_another_name_is_found_by_the_manifests_name(places: dict[str, Path], name: str) -> None:
    put(places["artifacts"] / "aaa", "org/other")
    folder = put(places["artifacts"] / "renamed", "org/tiny")
    assert find_bundle(name).root == str(folder)


def test_a_folder_of_the_asked_name_that_holds_another_model_is_passed_over(places: dict[str, Path]) -> None:
    put(places["artifacts"] / "tiny", "org/other")
    folder = put(folder_in(places, "home"), "org/tiny")
    assert find_bundle("org/tiny").root == str(folder)


@pytest.mark.parametrize("folder", ["tiny", "renamed"])
@pytest.mark.parametrize("name", ["org/tiny", "tiny"])
def test_firstvec_artifacts_may_be_a_bundle_itself(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, folder: str, name: str
) -> None:
    root = put(places["here"] / folder, "org/tiny")
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(root))
    monkeypatch.chdir(places["home"])
    assert find_bundle(name).root == str(root)


def test_firstvec_artifacts_may_be_several_places(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = put(places["here"] / "one", "org/one", "first")
    put(places["here"] / "many" / "one", "org/one", "second")
    put(places["here"] / "many" / "two", "org/two")
    roots = ["", str(places["here"] / "missing"), str(bundle), "", str(places["here"] / "many"), ""]
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", os.pathsep.join(roots))
    monkeypatch.chdir(places["home"])
    assert find_bundle("org/one").model.revision == "first"
    assert find_bundle("org/two").root == str(places["here"] / "many" / "two")


@pytest.mark.parametrize("value", [None, ""])
def test_firstvec_artifacts_may_be_unset(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("FIRSTVEC_ARTIFACTS")
    else:
        monkeypatch.setenv("FIRSTVEC_ARTIFACTS", value)
    folder = put(folder_in(places, "home"), "org/tiny")
    assert search_path()[-1] == str(places["home"] / "bundles")
    assert str(places["artifacts"]) not in search_path()
    assert find_bundle("tiny").root == str(folder)


def test_a_place_that_is_a_file_is_passed_over(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (places["here"] / "file").write_bytes(b"")
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(places["here"] / "file"))
    folder = put(folder_in(places, "home"), "org/tiny")
    assert find_bundle("tiny").root == str(folder)


def test_installed_wheels_are_found_in_the_order_of_the_import_path(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(folder_in(places, "site"), "org/tiny", "later")
    put(tmp_path / "earlier" / WHEEL_PACKAGE / "tiny", "org/tiny", "earlier")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "earlier"), *sys.path])
    assert find_bundle("tiny").model.revision == "earlier"


@pytest.mark.parametrize("place", ["site", "artifacts"])
def test_artifacts_without_a_file_are_absent_in_installed_wheels_only(places: dict[str, Path], place: str) -> None:
    folder = put(folder_in(places, place), "org/tiny")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "int8.onnx_data").touch()  # one of two files: the artifact is damaged, and not absent
    expected = ["torchscript-fp32", "onnx-fp32"] if place == "site" else []
    for _ in range(2):  # the second time from the note
        found = find_bundle("org/tiny")
        [listed] = read_installed()[0]
        assert [artifact.id for artifact in found.absent] == [artifact.id for artifact in listed.absent] == expected
        assert [artifact.id for artifact in (*found.absent, *found.artifacts)] == [
            *("torchscript-fp32", "onnx-fp32", "onnx-int8-avx2")
        ]
    (folder / "onnx" / "model.onnx").touch()  # the artifact is installed, and the manifest stays the same
    assert "onnx-fp32" in [artifact.id for artifact in find_bundle("org/tiny").artifacts]


def test_finding_a_wheels_bundle_imports_nothing(places: dict[str, Path]) -> None:
    put(folder_in(places, "site"), "org/tiny")
    (places["site"] / WHEEL_PACKAGE / "__init__.py").write_text("raise RuntimeError('imported')", "utf-8")
    assert find_bundle("tiny").model.name == "org/tiny"
    assert WHEEL_PACKAGE not in sys.modules


def test_hidden_folders_are_passed_over(places: dict[str, Path]) -> None:
    put(places["artifacts"] / ".tiny.staging", "org/tiny")
    with pytest.raises(BundleNotFound):
        find_bundle("org/tiny")
    assert list(installed_folders()) == []


def test_not_found_lists_the_places_and_what_is_there(places: dict[str, Path]) -> None:
    put(places["artifacts"] / "aaa", "org/aaa")
    put(places["site"] / WHEEL_PACKAGE / "bbb", "org/bbb")
    with pytest.raises(BundleNotFound) as caught:
        find_bundle("org/tiny")
    error = caught.value
    assert error.name == "org/tiny"
    assert list(error.searched) == search_path()
    assert [str(places["artifacts"]), str(places["home"] / "bundles")] == [error.searched[0], error.searched[-1]]
    assert str(places["site"] / WHEEL_PACKAGE) in error.searched
    assert {"aaa", "bbb"} <= set(error.found)
    for part in (*error.searched, "aaa", "bbb", "firstvec build org/tiny", "FIRSTVEC_ARTIFACTS"):
        assert part in str(error)


def test_not_found_names_the_model_of_a_folder_of_another_name(places: dict[str, Path]) -> None:
    folder = put(folder_in(places, "artifacts"), "org/tiny")
    folder.rename(folder.with_name("other"))
    with pytest.raises(BundleNotFound, match=r"These bundles are there: org/tiny \(in a folder named other\)\."):
        find_bundle("other")


@pytest.mark.parametrize("name", ["org/tiny", "tiny"])
@pytest.mark.parametrize("place", ["artifacts", "site", "home"])
def test_a_broken_bundle_of_the_asked_name_is_a_manifest_error(places: dict[str, Path], place: str, name: str) -> None:
    folder = put(folder_in(places, place), "org/tiny")
    edit_manifest(folder, lambda manifest: manifest["artifacts"].clear())
    with pytest.raises(ManifestError, match="artifacts: is empty") as caught:
        find_bundle(name)
    assert caught.value.path.startswith(str(folder / MANIFEST_NAME))


def test_a_broken_bundle_of_another_name_is_passed_over(places: dict[str, Path]) -> None:
    (put(places["artifacts"] / "aaa", "org/aaa") / MANIFEST_NAME).write_text("{", "utf-8")
    folder = put(places["artifacts"] / "renamed", "org/tiny")
    assert find_bundle("org/tiny").root == str(folder)


@pytest.mark.parametrize("spelled", ["{absolute}", "./empty", "../here/empty", ".", "/"])
def test_a_folder_without_a_manifest_is_called_incomplete(places: dict[str, Path], spelled: str) -> None:
    (places["here"] / "empty").mkdir()
    with pytest.raises(ManifestError, match="not a complete bundle") as caught:
        find_bundle(spelled.format(absolute=places["here"] / "empty"))
    assert caught.value.path == os.path.join(spelled.format(absolute=places["here"] / "empty"), MANIFEST_NAME)


def test_a_folder_that_only_happens_to_have_the_models_name_is_not_taken_for_a_path(places: dict[str, Path]) -> None:
    (places["here"] / "org" / "tiny").mkdir(parents=True)
    folder = put(folder_in(places, "artifacts"), "org/tiny")
    assert find_bundle("org/tiny").root == str(folder)


def test_a_real_bundle_is_found_by_path_and_by_name(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = find_bundle(str(tiny_bundle)).model.name
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(tiny_bundle.parent))
    assert find_bundle(name) == Manifest.read(tiny_bundle)


# --- places ----------------------------------------------------------------------------------------------------------


def test_the_bundle_folders_of_a_place_are_sorted(places: dict[str, Path]) -> None:
    root = places["artifacts"]
    for name in ("b", "a", ".c"):
        put(root / name, name)
    (root / "d").mkdir()
    (root / "e").write_bytes(b"")
    (root / "f" / MANIFEST_NAME).mkdir(parents=True)
    assert list(bundle_folders(str(root))) == [str(root / "a"), str(root / "b")]
    assert list(bundle_folders(str(root / "a"))) == [str(root / "a")]
    assert list(bundle_folders(str(root / "missing"))) == []


def test_installed_folders_are_those_of_every_place_in_its_order(places: dict[str, Path]) -> None:
    expected = [str(put(folder_in(places, place), "org/tiny")) for place in ("artifacts", "site", "home")]
    assert [folder for folder in installed_folders() if folder in expected] == expected


@pytest.mark.skipif(sys.platform == "darwin", reason="the XDG folders")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FIRSTVEC_HOME": "/f", "XDG_DATA_HOME": "/x", "HOME": "/h"}, "/f"),
        ({"FIRSTVEC_HOME": "", "XDG_DATA_HOME": "/x", "HOME": "/h"}, "/x/firstvec"),
        ({"XDG_DATA_HOME": "/x", "HOME": "/h"}, "/x/firstvec"),
        ({"XDG_DATA_HOME": "", "HOME": "/h"}, "/h/.local/share/firstvec"),
        ({"HOME": "/h"}, "/h/.local/share/firstvec"),
    ],
)
def test_the_data_folder_is_the_chosen_one_else_the_users(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("FIRSTVEC_HOME", "XDG_DATA_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert data_folder() == expected
    assert search_path()[-1] == f"{expected}/bundles"


def test_a_user_without_a_home_has_no_data_folder(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests.runtime.machine.test_cache` runs a process of such a user."""

    def unknown(_uid: int) -> None:
        raise KeyError("the user database does not know this user")

    for name in ("FIRSTVEC_HOME", "XDG_DATA_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert data_folder() is None
    monkeypatch.setattr(sys, "path", [str(places["site"])])
    assert search_path() == [str(places["artifacts"])]
    with pytest.raises(BundleNotFound):
        find_bundle("~/tiny")
    folder = put(folder_in(places, "artifacts"), "org/tiny")
    assert find_bundle("tiny").root == str(folder)


def test_relative_places_are_seen_from_the_working_folder(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = places["here"] / "work"
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", "artifacts")
    monkeypatch.setenv("FIRSTVEC_HOME", "data")
    monkeypatch.setattr(sys, "path", ["", "lib"])
    (work / "lib" / WHEEL_PACKAGE).mkdir(parents=True)
    assert search_path(str(work)) == [
        str(work / "artifacts"),
        str(work / "lib" / WHEEL_PACKAGE),
        str(work / "data" / "bundles"),
    ]
    installed = put(work / "lib" / WHEEL_PACKAGE / "tiny", "org/tiny", "installed")
    below = put(work / "sub" / "tiny", "org/tiny", "below")
    assert find_bundle("tiny", working_folder=str(work)).root == str(installed)
    assert find_bundle("./sub/tiny", working_folder=str(work)).root == str(below)
    assert find_bundle("sub/tiny", working_folder=str(work)).root == str(below)
    assert list(installed_folders(str(work))) == [str(installed)]
    with pytest.raises(BundleNotFound):
        find_bundle("./sub/tiny")


def test_read_installed_returns_the_valid_manifests_and_the_errors_of_the_others(places: dict[str, Path]) -> None:
    good = put(places["artifacts"] / "good", "org/good")
    bad = put(places["artifacts"] / "bad", "org/bad")
    edit_manifest(bad, lambda manifest: manifest["artifacts"].clear())
    manifests, broken = read_installed()
    assert str(good) in [each.root for each in manifests]
    assert str(bad) not in [each.root for each in manifests]
    assert "artifacts: is empty" in broken[str(bad)]
    assert str(good) not in broken


@pytest.mark.parametrize(
    ("asked", "full_name", "expected"),
    [
        ("org/tiny", "org/tiny", True),
        ("tiny", "org/tiny", True),
        ("tiny", "tiny", True),
        ("org", "org/tiny", False),
        ("other/tiny", "org/tiny", False),
        ("org/tiny", "tiny", False),
        ("", "org/tiny", False),
    ],
)
def test_a_name_means_a_model_with_or_without_its_organization(asked: str, full_name: str, expected: bool) -> None:
    assert names_model(asked, full_name) is expected


def test_candidates_come_in_order_and_say_what_must_hold(places: dict[str, Path]) -> None:
    usual = put(places["artifacts"] / "tiny", "org/tiny")
    other = put(places["artifacts"] / "other", "org/other")
    last = put(places["here"] / "org" / "tiny", "org/tiny")
    found = list(candidates("org/tiny", str(places["here"])))
    assert found[:2] == [(str(usual), True, True), (str(other), True, False)]
    assert found[-1] == (str(last), False, True)
    assert list(candidates(str(last))) == [(str(last), False, True)]
    assert (str(last), False, True) not in list(candidates("tiny", str(places["here"])))
