"""What lies on disk: a bundle's manifest, its files and their digests, its signature, and where bundles are found."""

MANIFEST_NAME = "firstvec.json"
"""The manifest's name in a bundle's folder."""

SIGNATURE_NAME = "model.sig"
"""The signature's name in a bundle's folder, which is also model-signing's default."""

WHEEL_PACKAGE = "firstvec_bundles"
"""Bundle wheels install their bundle as a folder of this namespace package."""
