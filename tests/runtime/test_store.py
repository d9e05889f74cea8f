"""Where bundles are found, and what their manifests tell without loading anything."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firstvec import integrity
from firstvec.errors import BundleNotFound, ManifestError
from firstvec.manifest import FILE_NAME, Manifest
from firstvec.metadata import ModelMetadata
from firstvec.store import data_dir, find, folders, installed, search_path
from tests.conftest import edit_manifest

SHA = "0123456789abcdef" * 4


def document(name: str, revision: str | None = None) -> dict[str, Any]:
    """A valid manifest with two full-precision artifacts and an INT8 one."""

    def artifact(id_: str, precision: str, *sizes: int) -> dict[str, Any]:
        return {
            "id": id_,
            "format": "onnx",
            "precision": precision,
            "engine": "onnxruntime",
            "engine_min": "1.23",
            "engine_below": "2",
            "devices": ["cpu"],
            "isa": None,
            "isa_reason": None,
            "batch_invariant": True,
            "files": [{"path": f"onnx/{id_}.{n}", "size": size, "sha256": SHA} for n, size in enumerate(sizes)],
            "quality": {
                "cosine_mean": 1.0,
                "cosine_min": 1.0,
                "cosine_p1": 1.0,
                "max_abs_diff": 0.0,
                "neighbour_overlap": 1.0,
                "batch_cosine_min": 1.0,
                "sentences": 320,
                "measured_with": "onnxruntime 1.32.0",
                "spearman": None,
                "thresholds": {"max_abs_diff": 1e-5},
            },
        }

    return {
        "format": "firstvec-bundle",
        "format_version": "1.0",
        "model": {
            "name": name,
            "revision": revision,
            "source": "folder",
            "source_sha256": SHA,
            "architecture": "BertModel",
            "embedding_dim": 384,
            "max_seq_length": 256,
            "pooling_mode": "cls",
            "normalized": False,
            "pad_token_id": 0,
            "prompts": {},
            "default_prompt_name": None,
        },
        "tokenizer": {"path": "tokenizer.json", "size": 2, "sha256": SHA},
        "artifacts": [
            artifact("large", "fp32", 91_000_000),
            artifact("fp32", "fp32", 1_000_000, 89_000_000),
            artifact("int8", "int8", 23_000_000),
        ],
        "support_files": [],
        "built_with": {},
        "inputs_sha256": SHA,
    }


def put(folder: Path, name: str, revision: str | None = None) -> Path:
    """Make ``folder`` a bundle, as far as finding it goes: the manifest is all that is read."""
    folder.mkdir(parents=True)
    (folder / FILE_NAME).write_text(json.dumps(document(name, revision)), "utf-8")
    return folder


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Path]:
    """The four kinds of place, all empty: the current folder, FIRSTVEC_ARTIFACTS, a site folder, the data folder."""
    found = {name: tmp_path / name for name in ("here", "artifacts", "site", "home")}
    for folder in found.values():
        folder.mkdir()
    monkeypatch.chdir(found["here"])
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(found["artifacts"]))
    monkeypatch.setenv("FIRSTVEC_HOME", str(found["home"]))
    monkeypatch.setattr(sys, "path", [*sys.path, str(found["site"])])
    return found


def folder_in(places: dict[str, Path], place: str) -> Path:
    """Where a bundle called ``tiny`` lies in that kind of place."""
    middle = {"site": "firstvec_bundles", "home": "bundles"}.get(place, "")
    return places[place] / middle / "tiny"


# --- find ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["artifacts", "site", "home"])
def test_the_places_are_searched_in_order(places: dict[str, Path], first: str) -> None:
    order = ["artifacts", "site", "home"]
    for place in order[order.index(first) :]:
        put(folder_in(places, place), "org/tiny", revision=place)
    assert find("org/tiny").model.revision == first


def test_a_path_comes_before_every_place(places: dict[str, Path]) -> None:
    put(folder_in(places, "artifacts"), "tiny", "artifacts")
    elsewhere = put(places["here"] / "sub" / "tiny", "tiny", "argument")
    assert find(str(elsewhere)).model.revision == "argument"


@pytest.mark.parametrize("spelled", ["./x", "x/", "sub/../x", "../here/x", "{absolute}"])
def test_a_folder_is_found_by_its_path_whatever_the_models_name(places: dict[str, Path], spelled: str) -> None:
    folder = put(places["here"] / "x", "org/tiny")
    (places["here"] / "sub").mkdir()
    manifest = find(spelled.format(absolute=folder))
    assert manifest.model.name == "org/tiny"
    assert os.path.samefile(manifest.root, folder)


def test_a_folder_of_the_current_folder_does_not_stand_in_for_an_installed_bundle(places: dict[str, Path]) -> None:
    put(places["here"] / "tiny", "tiny", "current folder")
    with pytest.raises(BundleNotFound):
        find("tiny")
    put(places["here"] / "org" / "tiny", "org/tiny", "current folder")
    put(folder_in(places, "artifacts"), "org/tiny", "artifacts")
    assert find("org/tiny").model.revision == "artifacts"
    assert find("./org/tiny").model.revision == "current folder"


@pytest.mark.parametrize("name", ["org/tiny", "tiny"])
@pytest.mark.parametrize("place", ["artifacts", "site", "home"])
def test_the_organisation_may_be_left_out(places: dict[str, Path], place: str, name: str) -> None:
    folder = put(folder_in(places, place), "org/tiny")
    assert find(name).root == str(folder)


@pytest.mark.parametrize("name", ["other/tiny", "org/tin", "org", "org/tiny/x", "TINY", "iny", ""])
def test_another_name_is_not_found(places: dict[str, Path], name: str) -> None:
    put(folder_in(places, "artifacts"), "org/tiny")
    with pytest.raises(BundleNotFound):
        find(name)


@pytest.mark.parametrize("name", ["a\0b", "m\ud800", "x" * 5000, "../" * 50 + "x", "a\nb"])
def test_a_name_that_no_file_can_have_is_not_found(name: str) -> None:
    with pytest.raises(BundleNotFound):
        find(name)


def test_the_organisations_of_two_models_of_one_name_are_told_apart(places: dict[str, Path]) -> None:
    put(places["artifacts"] / "tiny", "first/tiny")
    second = put(places["artifacts"] / "tiny-2", "second/tiny")
    assert find("second/tiny").root == str(second)


@pytest.mark.parametrize("name", ["org/tiny", "tiny"])
def test_a_bundle_folder_under_another_name_is_found_by_the_manifests_name(places: dict[str, Path], name: str) -> None:
    put(places["artifacts"] / "aaa", "org/other")
    folder = put(places["artifacts"] / "renamed", "org/tiny")
    assert find(name).root == str(folder)


def test_a_folder_of_the_asked_name_that_holds_another_model_is_passed_over(places: dict[str, Path]) -> None:
    put(places["artifacts"] / "tiny", "org/other")
    folder = put(folder_in(places, "home"), "org/tiny")
    assert find("org/tiny").root == str(folder)


@pytest.mark.parametrize("folder", ["tiny", "renamed"])
@pytest.mark.parametrize("name", ["org/tiny", "tiny"])
def test_firstvec_artifacts_may_be_a_bundle_itself(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, folder: str, name: str
) -> None:
    root = put(places["here"] / folder, "org/tiny")
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(root))
    monkeypatch.chdir(places["home"])
    assert find(name).root == str(root)


def test_firstvec_artifacts_may_be_several_places(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = put(places["here"] / "one", "org/one", "first")
    put(places["here"] / "many" / "one", "org/one", "second")
    put(places["here"] / "many" / "two", "org/two")
    roots = ["", str(places["here"] / "missing"), str(bundle), "", str(places["here"] / "many"), ""]
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", os.pathsep.join(roots))
    monkeypatch.chdir(places["home"])
    assert find("org/one").model.revision == "first"
    assert find("org/two").root == str(places["here"] / "many" / "two")


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
    assert find("tiny").root == str(folder)


def test_a_place_that_is_a_file_is_passed_over(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (places["here"] / "file").write_bytes(b"")
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(places["here"] / "file"))
    folder = put(folder_in(places, "home"), "org/tiny")
    assert find("tiny").root == str(folder)


def test_installed_wheels_are_found_in_the_order_of_the_import_path(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(folder_in(places, "site"), "org/tiny", "later")
    put(tmp_path / "earlier" / "firstvec_bundles" / "tiny", "org/tiny", "earlier")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "earlier"), *sys.path])
    assert find("tiny").model.revision == "earlier"


def test_finding_a_wheels_bundle_imports_nothing(places: dict[str, Path]) -> None:
    put(folder_in(places, "site"), "org/tiny")
    (places["site"] / "firstvec_bundles" / "__init__.py").write_text("raise RuntimeError('imported')", "utf-8")
    assert find("tiny").model.name == "org/tiny"
    assert "firstvec_bundles" not in sys.modules


def test_hidden_folders_are_no_bundles(places: dict[str, Path]) -> None:
    put(places["artifacts"] / ".tiny.staging", "org/tiny")
    with pytest.raises(BundleNotFound):
        find("org/tiny")
    assert list(installed()) == []


def test_not_found_lists_the_places_and_what_is_there(places: dict[str, Path]) -> None:
    put(places["artifacts"] / "aaa", "org/aaa")
    put(places["site"] / "firstvec_bundles" / "bbb", "org/bbb")
    with pytest.raises(BundleNotFound) as caught:
        find("org/tiny")
    error = caught.value
    assert error.name == "org/tiny"
    assert list(error.searched) == search_path()
    assert [str(places["artifacts"]), str(places["home"] / "bundles")] == [error.searched[0], error.searched[-1]]
    assert str(places["site"] / "firstvec_bundles") in error.searched
    assert {"aaa", "bbb"} <= set(error.found)
    for part in (*error.searched, "aaa", "bbb", "firstvec build org/tiny", "FIRSTVEC_ARTIFACTS"):
        assert part in str(error)


@pytest.mark.parametrize("name", ["org/tiny", "tiny"])
@pytest.mark.parametrize("place", ["artifacts", "site", "home"])
def test_a_broken_bundle_of_the_asked_name_is_a_manifest_error(places: dict[str, Path], place: str, name: str) -> None:
    folder = put(folder_in(places, place), "org/tiny")
    edit_manifest(folder, lambda manifest: manifest["artifacts"].clear())
    with pytest.raises(ManifestError, match="artifacts: is empty") as caught:
        find(name)
    assert caught.value.path.startswith(str(folder / FILE_NAME))


def test_a_broken_bundle_of_another_name_stands_in_nobodys_way(places: dict[str, Path]) -> None:
    (put(places["artifacts"] / "aaa", "org/aaa") / FILE_NAME).write_text("{", "utf-8")
    folder = put(places["artifacts"] / "renamed", "org/tiny")
    assert find("org/tiny").root == str(folder)


@pytest.mark.parametrize("spelled", ["{absolute}", "./empty", "../here/empty", ".", "/"])
def test_a_folder_without_a_manifest_is_said_to_be_incomplete(places: dict[str, Path], spelled: str) -> None:
    (places["here"] / "empty").mkdir()
    with pytest.raises(ManifestError, match="not a complete bundle") as caught:
        find(spelled.format(absolute=places["here"] / "empty"))
    assert caught.value.path == os.path.join(spelled.format(absolute=places["here"] / "empty"), FILE_NAME)


def test_a_folder_that_only_happens_to_have_the_models_name_is_not_taken_for_a_path(places: dict[str, Path]) -> None:
    (places["here"] / "org" / "tiny").mkdir(parents=True)
    folder = put(folder_in(places, "artifacts"), "org/tiny")
    assert find("org/tiny").root == str(folder)


def test_a_real_bundle_is_found_by_path_and_by_name(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = find(str(tiny_bundle)).model.name
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(tiny_bundle.parent))
    assert find(name) == Manifest.read(tiny_bundle)


# --- places ----------------------------------------------------------------------------------------------------------


def test_folders_are_sorted_and_only_bundles(places: dict[str, Path]) -> None:
    root = places["artifacts"]
    for name in ("b", "a", ".c"):
        put(root / name, name)
    (root / "d").mkdir()
    (root / "e").write_bytes(b"")
    (root / "f" / FILE_NAME).mkdir(parents=True)
    assert list(folders(str(root))) == [str(root / "a"), str(root / "b")]
    assert list(folders(str(root / "a"))) == [str(root / "a")]
    assert list(folders(str(root / "missing"))) == []


def test_installed_lists_every_place_in_its_order(places: dict[str, Path]) -> None:
    expected = [str(put(folder_in(places, place), "org/tiny")) for place in ("artifacts", "site", "home")]
    assert [folder for folder in installed() if folder in expected] == expected


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="the XDG folders")
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
    assert data_dir() == expected
    assert search_path()[-1] == f"{expected}/bundles"


# --- ModelMetadata ---------------------------------------------------------------------------------------------------


def test_the_metadata_is_what_the_manifest_says(places: dict[str, Path]) -> None:
    folder = put(folder_in(places, "artifacts"), "org/tiny", "abc")
    assert ModelMetadata.from_cache("tiny") == ModelMetadata(
        model_name="org/tiny",
        embedding_dim=384,
        max_seq_length=256,
        model_size_mb=90.0,
        supports_quantization=True,
        last_used=0.0,
        revision="abc",
        pooling_mode="cls",
        normalized=False,
        artifacts=("large", "fp32", "int8"),
        path=str(folder),
    )


@pytest.mark.parametrize(
    ("keep", "size", "quantization"), [("fp32", 90.0, False), ("int8", 23.0, True)], ids=["fp32 only", "int8 only"]
)
def test_a_bundle_of_one_precision_has_that_ones_size(
    places: dict[str, Path], keep: str, size: float, quantization: bool
) -> None:
    def drop_the_others(manifest: dict[str, Any]) -> None:
        manifest["artifacts"] = [artifact for artifact in manifest["artifacts"] if artifact["precision"] == keep]

    edit_manifest(put(folder_in(places, "artifacts"), "org/tiny"), drop_the_others)
    metadata = ModelMetadata.from_cache("tiny")
    assert metadata is not None
    assert (metadata.model_size_mb, metadata.supports_quantization) == (size, quantization)


def test_there_is_no_metadata_of_an_unknown_model() -> None:
    assert ModelMetadata.from_cache("org/unknown") is None


def _truncate(folder: Path) -> None:
    (folder / FILE_NAME).write_text('{"format": "firstvec-bundle"', "utf-8")


def _newer(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(format_version="2.0"))


def test_a_folder_of_another_models_name_is_told_with_the_model(places: dict[str, Path]) -> None:
    folder = put(folder_in(places, "artifacts"), "org/tiny")
    folder.rename(folder.with_name("other"))
    with pytest.raises(BundleNotFound, match=r"Bundles that are there: org/tiny \(in a folder named other\)\."):
        find("other")


@pytest.mark.parametrize("damage", [_truncate, _newer])
def test_there_is_no_metadata_of_a_broken_bundle(places: dict[str, Path], damage: Callable[[Path], None]) -> None:
    damage(put(folder_in(places, "artifacts"), "org/tiny"))
    assert ModelMetadata.from_cache("org/tiny") is None


def test_last_used_is_the_time_at_which_the_real_tokenizer_was_verified(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "empty-cache"))
    time.sleep(0.06)  # what was written a moment ago is not remembered
    manifest = find(str(tiny_bundle))
    before = ModelMetadata.from_cache(str(tiny_bundle))
    assert before is not None
    assert before.last_used == 0.0
    integrity.verify(manifest.root, manifest.tokenizer)
    after = ModelMetadata.from_cache(str(tiny_bundle))
    assert after is not None
    # The kernel's clock for file times may lag by a tick.
    assert time.time() - 60 < after.last_used <= time.time() + 1
    assert after.replace(last_used=0.0) == before


def test_a_real_bundles_size_is_that_of_its_smallest_full_precision_artifact(tiny_bundle: Path) -> None:
    metadata = ModelMetadata.from_cache(str(tiny_bundle))
    assert metadata is not None
    sizes = [
        sum((tiny_bundle / file.path).stat().st_size for file in artifact.files)
        for artifact in Manifest.read(tiny_bundle).artifacts
        if artifact.precision == "fp32"
    ]
    assert metadata.model_size_mb == pytest.approx(min(sizes) / 1e6, abs=0.05)
    assert metadata.embedding_dim == 32
    assert metadata.artifacts == tuple(artifact.id for artifact in Manifest.read(tiny_bundle).artifacts)
