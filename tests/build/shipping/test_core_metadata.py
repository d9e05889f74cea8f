"""What a wheel says of itself: valid metadata and a page that can be rendered, for any manifest."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.metadata import Metadata
from readme_renderer import markdown

from firstvec.bundle.manifest import Manifest
from firstvec.errors import InputError
from firstvec_build.shipping.core_metadata import check_version, choose_license, make_metadata, require_runtime
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("text", "version"), [("1", "1"), ("v1.02", "1.2"), ("2026.11.30", "2026.11.30"), ("1!2", "1!2")]
)
def test_version_gets_its_normal_form(text: str, version: str) -> None:
    assert check_version(text) == version


@pytest.mark.parametrize("text", ["", "latest", "1+r1110", "1.0+x", "1\nName: other", "9" * 5000])
def test_version_that_an_index_refuses_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is no version of a package|has a local part, which a package index refuses"):
        check_version(text)


@pytest.fixture
def manifest(tiny_built: Path) -> Manifest:
    return Manifest.read(tiny_built)


@pytest.mark.parametrize(
    ("stated", "given", "chosen"),
    [
        ("MIT", None, "MIT"),
        ("MIT", "mit", "MIT"),
        (None, "apache-2.0", "Apache-2.0"),
        ("mit", None, "MIT"),
    ],
)
def test_licence_is_the_bundles_or_the_one_that_is_given(
    stated: str | None, given: str | None, chosen: str, manifest: Manifest
) -> None:
    assert choose_license(manifest.replace(model=manifest.model.replace(license=stated)), given) == chosen


@pytest.mark.parametrize(
    ("stated", "given", "message"),
    [
        (None, None, r"states no licence.*give it, such as --license Apache-2\.0"),
        ("MIT", "Apache-2.0", "states the licence MIT, not Apache-2.0: leave --license out, or build"),
        ("free", None, "'free' is no SPDX expression"),
        (None, "free", "'free' is no SPDX expression"),
    ],
)
def test_licence_that_is_missing_or_wrong_is_refused(
    stated: str | None, given: str | None, message: str, manifest: Manifest
) -> None:
    with pytest.raises(InputError, match=message):
        choose_license(manifest.replace(model=manifest.model.replace(license=stated)), given)


@pytest.mark.parametrize(
    ("only", "has_tables", "requirement"),
    [
        ([], True, "firstvec>=0.1"),
        (["native-int8", "onnx-fp32"], True, "firstvec>=0.1"),
        (["onnx-fp32", "torchscript-fp32"], True, "firstvec[onnx]>=0.1"),
        (["torchscript-fp32"], True, "firstvec[torch]>=0.1"),
        (["native-int8"], False, "firstvec[tokenizers]>=0.1"),
        (["onnx-fp32"], False, "firstvec[onnx,tokenizers]>=0.1"),
    ],
)
def test_runtime_is_required_with_the_extras_that_the_artifacts_need(
    only: list[str], has_tables: bool, requirement: str, manifest: Manifest
) -> None:
    artifacts = [artifact for artifact in manifest.artifacts if not only or artifact.id in only]
    manifest = manifest if has_tables else manifest.replace(wordpiece=None, quick_tokenizer=None)
    assert require_runtime(manifest, artifacts) == requirement


def test_base_of_parts_requires_the_runtime_without_an_engine(manifest: Manifest) -> None:
    assert require_runtime(manifest, ()) == "firstvec>=0.1"


def make(manifest: Manifest) -> Metadata:
    """Return the metadata of a wheel. Every rule of the specification is checked."""
    data = make_metadata(
        manifest,
        manifest.artifacts,
        name="firstvec-bundle-tiny",
        version="1.0",
        kind="a bundle",
        license_expression="MIT",
        license_files=["LICENSE"],
        requires=["firstvec>=0.1"],
        installs=["firstvec-bundle-tiny"],
    )
    return Metadata.from_email(data)


def test_metadata_has_what_an_index_shows(manifest: Manifest) -> None:
    metadata = make(manifest)
    assert (metadata.metadata_version, metadata.name, str(metadata.version)) == ("2.4", "firstvec-bundle-tiny", "1.0")
    assert (metadata.license_expression, metadata.license_files) == ("MIT", ["LICENSE"])
    assert metadata.summary == "tiny-bert, a bundle for firstvec"
    assert [str(each) for each in metadata.requires_dist or []] == ["firstvec>=0.1"]
    assert f'requires-python = "{metadata.requires_python}"' in (REPOSITORY / "pyproject.toml").read_text("utf-8")
    assert metadata.description_content_type == "text/markdown"


def test_page_shows_every_artifact_with_its_quality(manifest: Manifest) -> None:
    page = markdown.render(make(manifest).description or "")
    assert page is not None
    assert page.count("<tr>") == len(manifest.artifacts) + 1
    for artifact in manifest.artifacts:
        assert f"<code>{artifact.id}</code>" in page
        assert f"{artifact.quality.worst_cosine:.4f}</td>" in page
    assert manifest.model.source_sha256 in page


@pytest.mark.parametrize(
    "name", ["a | b", "`x` <script>alert(1)</script>", "模型", "</code># heading", "n" * 10_000, "a: b", "Ünï'\"\\"]
)
def test_any_name_of_a_model_gives_valid_metadata_and_a_whole_table(name: str, manifest: Manifest) -> None:
    metadata = make(manifest.replace(model=manifest.model.replace(name=name)))
    assert metadata.summary == f"{name[:200]}, a bundle for firstvec"
    page = markdown.render(metadata.description or "")
    assert page is not None
    assert page.count("<tr>") == len(manifest.artifacts) + 1
    assert page.count("<h1") == 1
    assert "<script" not in page
    assert f"get_embedding_provider({name!a})" in (metadata.description or "")
