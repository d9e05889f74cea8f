"""What every way to ship a bundle asks of it first."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstvec.bundle.manifest import Manifest
from firstvec.errors import BuildError, IntegrityError, ManifestError
from firstvec_build.shipping.ort_package import export
from firstvec_build.shipping.sbom import make_sbom
from firstvec_build.shipping.signing import sign
from firstvec_build.shipping.wheel import pack, pack_parts
from firstvec_build.shipping.whole_bundle import name_folder, read_whole, verify_files
from tests.conftest import edit_manifest
from tests.keys import make_keys


def test_a_whole_bundle_gives_the_bytes_of_its_manifest(tiny_built: Path) -> None:
    data = read_whole(Manifest.read(tiny_built))
    assert data == (tiny_built / "firstvec.json").read_bytes()
    assert make_sbom(Manifest.read(tiny_built), data)


def test_a_bundle_that_was_installed_in_parts_is_not_shipped(tiny_built: Path, tmp_path: Path) -> None:
    whole = Manifest.read(tiny_built)
    some = whole.replace(artifacts=whole.artifacts[1:], absent=whole.artifacts[:1])
    name = whole.artifacts[0].id
    for ship in (
        read_whole,
        lambda manifest: pack(manifest, tmp_path / "dist"),
        lambda manifest: export(manifest, tmp_path / "package"),
        lambda manifest: sign(manifest, make_keys(tmp_path / "keys").private),
    ):
        with pytest.raises(BuildError, match=f"{name} is not installed; ship the folder that `firstvec build` made"):
            ship(some)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys"]


def test_a_manifest_that_was_changed_meanwhile_is_not_shipped(tiny_bundle: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    with pytest.raises(ManifestError, match="was changed since it was read"):
        read_whole(manifest)


def test_every_file_is_hashed(tiny_bundle: Path) -> None:
    verify_files(Manifest.read(tiny_bundle))
    (tiny_bundle / "config.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"config\.json"):
        verify_files(Manifest.read(tiny_bundle))


@pytest.mark.parametrize("name", ["org/..", ".hidden", "org/", "a\\b", "x" * 101])
def test_a_name_that_leads_elsewhere_is_no_name_of_a_folder(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    edit_manifest(tiny_bundle, lambda document: document["model"].update(name=name))
    manifest = Manifest.read(tiny_bundle)
    for write in (pack, pack_parts):
        with pytest.raises(ManifestError, match="cannot be the name of a folder"):
            write(manifest, tmp_path / "dist", license="MIT")
    assert not (tmp_path / "dist").exists()


def test_the_folder_has_the_name_without_the_organization(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    assert name_folder(manifest.replace(model=manifest.model.replace(name="org/model"))) == "model"
    assert name_folder(manifest.replace(model=manifest.model.replace(name="模型"))) == "模型"
