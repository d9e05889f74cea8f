"""What a bundle is in a container registry: an OCI image manifest with the media types of CNCF ModelPack.

Every file is a layer of its own, as it is. So a registry keeps equal files once, and a machine takes only the files
that it needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from firstvec.bundle import MANIFEST_NAME, SIGNATURE_NAME
from firstvec.bundle.json_reader import CheckedObject
from firstvec.bundle.manifest import File, Manifest
from firstvec.errors import excerpt

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
# github.com/modelpack/model-spec, docs/spec.md
_ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
_WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
_WEIGHT_CONFIG_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
_DOCUMENT_TYPE = "application/vnd.cncf.model.doc.v1.raw"
_PATH_KEY = "org.cncf.model.filepath"
_TITLE_KEY = "org.opencontainers.image.title"
"""The command `oras pull` gives a layer the name that this annotation says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One file of a bundle as a layer."""

    path: str
    digest: str
    size: int
    content: bytes | File
    """The bytes, or the file to read them from."""


def describe(manifest: Manifest, data: bytes, signature: bytes | None) -> tuple[bytes, bytes, list[Layer]]:
    """Return the OCI manifest, its config, and the layers. The same bundle gives the same bytes.

    Args:
        manifest: the bundle's manifest.
        data: its bytes.
        signature: the bundle's signature, where there is one.
    """
    layers = [layer_of(MANIFEST_NAME, data)]
    if signature is not None:
        layers.append(layer_of(SIGNATURE_NAME, signature))
    layers += [
        Layer(path=file.path, digest=f"sha256:{file.sha256}", size=file.size, content=file) for file in manifest.files()
    ]
    owners = {file.path: artifact.id for artifact in manifest.artifacts for file in artifact.files}
    config = _to_json(_describe_model(manifest, layers))
    quality = {
        artifact.id: {"cosine_mean": artifact.quality.cosine_mean, "cosine_min": artifact.quality.cosine_min}
        for artifact in manifest.artifacts
    }
    annotations = {
        _TITLE_KEY: manifest.model.name,
        "firstvec.artifacts": " ".join(quality),
        "firstvec.quality": json.dumps(quality, sort_keys=True, separators=(",", ":")),
    }
    if manifest.model.revision:
        annotations["org.opencontainers.image.revision"] = manifest.model.revision
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": _ARTIFACT_TYPE,
        "config": {"mediaType": _CONFIG_TYPE, "digest": digest_of(config), "size": len(config)},
        "layers": [
            {
                "mediaType": _media_type(layer.path, owners),
                "digest": layer.digest,
                "size": layer.size,
                "annotations": {_PATH_KEY: layer.path, _TITLE_KEY: layer.path}
                | ({"firstvec.artifact": owners[layer.path]} if layer.path in owners else {}),
            }
            for layer in layers
        ],
        "annotations": annotations,
    }
    return _to_json(document), config, layers


def _describe_model(manifest: Manifest, layers: list[Layer]) -> dict[str, Any]:
    """Return ModelPack's config. It has no time, so that the same bundle gives the same bytes."""
    formats = {artifact.format for artifact in manifest.artifacts}
    precisions = {artifact.precision for artifact in manifest.artifacts}
    return {
        "descriptor": {"name": manifest.model.name}
        | ({"revision": manifest.model.revision} if manifest.model.revision else {}),
        "config": {
            "architecture": manifest.model.architecture,
            "precision": precisions.pop() if len(precisions) == 1 else "mixed",
            "capabilities": {"inputTypes": ["text"], "outputTypes": ["embedding"]},
        }
        | ({"format": formats.pop()} if len(formats) == 1 else {}),
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
    }


def _media_type(path: str, owners: Mapping[str, str]) -> str:
    if path in owners:
        return _WEIGHT_TYPE
    name = PurePosixPath(path)
    is_document = name.suffix == ".md" or name.stem.upper() in ("LICENSE", "NOTICE", "README")
    return _DOCUMENT_TYPE if is_document else _WEIGHT_CONFIG_TYPE


def layer_of(path: str, content: bytes) -> Layer:
    return Layer(path=path, digest=digest_of(content), size=len(content), content=content)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _to_json(values: object) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def read_layers(top: CheckedObject) -> dict[str, tuple[str, int]]:
    """Return path → digest and size of the layers of an OCI manifest."""
    top.literal("mediaType", MANIFEST_TYPE)
    layers: dict[str, tuple[str, int]] = {}
    for layer in top.children("layers", at_least=1):
        path = layer.child("annotations").optional(_PATH_KEY, layer.child("annotations").text)
        if path is None:
            continue
        kind, _, digest = layer.text("digest").partition(":")
        if kind != "sha256" or len(digest) != 64 or digest.strip("0123456789abcdef"):
            raise layer.error("digest", "is not a SHA-256")
        if path in layers:
            raise layer.error("annotations", f"{excerpt(path)!r} is there twice")
        layers[path] = f"sha256:{digest}", layer.integer("size", 0, 1 << 40)
    if MANIFEST_NAME not in layers:
        raise top.error("layers", f"none of them is {MANIFEST_NAME}")
    return layers
