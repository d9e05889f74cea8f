"""Make a bundle's software bill of materials: CycloneDX 1.6, JSON. The same bundle gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from firstvec.bundle import MANIFEST_NAME
from firstvec.bundle.manifest import File
from firstvec.errors import MissingDependency

if TYPE_CHECKING:
    from cyclonedx.model.license import License

    from firstvec.bundle.manifest import Manifest, Model


def make_sbom(
    manifest: Manifest, data: bytes, *, files: Sequence[File] | None = None, license_expression: str | None = None
) -> bytes:
    """Return the bundle's bill of materials, as JSON.

    The document is about the model. The model's digest is that of the manifest, and the model's ancestor is the source.
    The components are the bundle's files, and the packages that built the files. The packages are not in the bundle
    (scope ``excluded``). The document has no time, and its serial number comes from the manifest's digest.

    Args:
        manifest: the bundle's manifest.
        data: the manifest's bytes.
        files: the files that are shipped, where they are some of the bundle's. None: all, and the manifest.
        license_expression: the model's licence, where the manifest states none.

    Raises:
        MissingDependency: cyclonedx-python-lib is not installed.
    """
    try:
        from cyclonedx.model import HashAlgorithm, HashType, Property
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentScope, ComponentType, Pedigree
        from cyclonedx.model.license import DisjunctiveLicense, LicenseAcknowledgement, LicenseExpression
        from cyclonedx.output.json import JsonV1Dot6
        from cyclonedx.spdx import is_supported_id
        from packageurl import PackageURL
    except ImportError as error:
        missing = error.name or "cyclonedx-python-lib"
        raise MissingDependency("a bundle's bill of materials", missing, "firstvec[sbom]") from error

    def make_hashes(digest: str) -> list[HashType]:
        return [HashType(alg=HashAlgorithm.SHA_256, content=digest)]

    def make_licenses() -> list[License]:
        expression = manifest.model.license or license_expression
        if expression is None:
            return []
        stated = LicenseAcknowledgement.DECLARED
        if is_supported_id(expression):
            return [DisjunctiveLicense(id=expression, acknowledgement=stated)]
        return [LicenseExpression(expression, acknowledgement=stated)]

    def describe_file(path: str, size: int, digest: str) -> Component:
        return Component(
            type=ComponentType.FILE,
            name=path,
            bom_ref=f"file:{path}",
            hashes=make_hashes(digest),
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
        hashes=make_hashes(about.source_sha256),
        licenses=make_licenses(),
        purl=_make_purl(about),
    )
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=name,
        group=group or None,
        version=about.revision,
        bom_ref="model",
        hashes=make_hashes(digest),
        licenses=make_licenses(),
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
    whole = File(path=MANIFEST_NAME, size=len(data), sha256=digest)
    listed = [
        describe_file(file.path, file.size, file.sha256)
        for file in ([whole, *manifest.files()] if files is None else files)
    ]
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
    identity = f"firstvec-bundle:sha256:{digest}"
    if files is not None:
        identity += "".join(f":{file.path}" for file in files)
    bom = Bom(
        metadata=BomMetaData(component=model),
        components=[*listed, *tools],
        serial_number=uuid5(NAMESPACE_URL, identity),
    )
    bom.register_dependency(model, listed)
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"]  # the library always adds the time, which would change the bytes
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=True) + "\n").encode()


def _make_purl(about: Model) -> Any:
    """Return the package URL of the source. None: the source is a folder, which has no package URL."""
    from packageurl import PackageURL

    kind, _, where = about.source.partition(" ")
    package, _, version = where.partition("==")
    if kind == "wheel" and package and version:
        return PackageURL("pypi", name=package, version=version)
    owner, _, name = where.rpartition("/")
    if kind == "hub" and name:
        return PackageURL("huggingface", namespace=owner or None, name=name, version=about.revision)
    return None
