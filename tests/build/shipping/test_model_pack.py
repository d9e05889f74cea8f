"""What a bundle is in a container registry."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from firstvec.bundle.manifest import Manifest
from firstvec_build.shipping import model_pack
from firstvec_build.shipping.model_pack import describe

STARTER = "onnx-fp32"


def test_the_manifest_is_that_of_modelpack_and_always_the_same(tiny_built: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_built)
    data = (tiny_built / "firstvec.json").read_bytes()
    document, config, layers = describe(manifest, data, b"a signature")
    other = Path(shutil.copytree(tiny_built, tmp_path / "elsewhere"))
    assert describe(Manifest.read(other), data, b"a signature") == (document, config, layers)
    oci = json.loads(document)
    assert oci["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert oci["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert oci["config"] == {
        "mediaType": "application/vnd.cncf.model.config.v1+json",
        "digest": f"sha256:{hashlib.sha256(config).hexdigest()}",
        "size": len(config),
    }
    paths = [layer["annotations"]["org.cncf.model.filepath"] for layer in oci["layers"]]
    assert paths == ["firstvec.json", "model.sig", *(file.path for file in manifest.files())]
    assert [layer["digest"] for layer in oci["layers"][2:]] == [f"sha256:{file.sha256}" for file in manifest.files()]
    weights = {file.path for artifact in manifest.artifacts for file in artifact.files}
    for layer in oci["layers"]:
        path = layer["annotations"]["org.cncf.model.filepath"]
        kind = "weight" if path in weights else "weight.config"
        assert layer["mediaType"] == f"application/vnd.cncf.model.{kind}.v1.raw"
        assert ("firstvec.artifact" in layer["annotations"]) == (path in weights)
    annotations = oci["annotations"]
    assert annotations["org.opencontainers.image.title"] == manifest.model.name
    assert annotations["firstvec.artifacts"].split() == [artifact.id for artifact in manifest.artifacts]
    quality = json.loads(annotations["firstvec.quality"])
    assert quality[STARTER]["cosine_min"] == manifest.artifacts[1].quality.cosine_min
    # The keys of ModelPack's config, and no others.
    values = json.loads(config)
    assert {*values} == {"descriptor", "config", "modelfs"}
    assert {*values["config"]} <= {"architecture", "format", "paramSize", "precision", "quantization", "capabilities"}
    assert values["config"]["precision"] == "mixed"
    assert values["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in oci["layers"]]}
    assert b"created" not in document + config


def test_one_format_and_the_revision_are_named(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    one = manifest.replace(
        artifacts=tuple(each for each in manifest.artifacts if each.id == STARTER),
        model=manifest.model.replace(revision="1110a243"),
    )
    document, config, _ = describe(one, b"{}", None)
    assert json.loads(config)["config"] | {"capabilities": None} == {
        "architecture": "BertModel",
        "format": "onnx",
        "precision": "fp32",
        "capabilities": None,
    }
    assert json.loads(config)["descriptor"]["revision"] == "1110a243"
    assert json.loads(document)["annotations"]["org.opencontainers.image.revision"] == "1110a243"


def test_documents_have_their_own_media_type() -> None:
    assert model_pack._media_type("LICENSE", {}) == "application/vnd.cncf.model.doc.v1.raw"
    assert model_pack._media_type("docs/card.md", {}) == "application/vnd.cncf.model.doc.v1.raw"
    assert model_pack._media_type("vocab.txt", {}) == "application/vnd.cncf.model.weight.config.v1.raw"
