"""Sentence embeddings that start instantly, on the artifact that fits the machine.

Importing this package imports no numpy, onnxruntime, tokenizers or torch. Each public name is taken from its module
when it is first used (PEP 562), so a program pays only for what it uses.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firstvec.bundle.manifest import Artifact, Manifest, Quality
    from firstvec.bundle.metadata import ModelMetadata
    from firstvec.enums import LoadingStrategy
    from firstvec.errors import (
        ArtifactError,
        BuildError,
        BundleNotFound,
        ClosedError,
        ExportError,
        FirstvecError,
        IncompatibleArtifact,
        InputError,
        IntegrityError,
        LoadError,
        LoadTimeout,
        ManifestError,
        MissingDependency,
        NoCompatibleArtifact,
        QualityError,
        QuantizationError,
        SelfTestError,
        SignatureError,
        SourceError,
        UnsupportedManifestVersion,
    )
    from firstvec.loader import OptimizedEmbeddingLoader, get_embedding_provider, preload_embeddings
    from firstvec.machine.profile import ResourceProfile
    from firstvec.options import Options
    from firstvec.provider import EmbeddingProvider
    from firstvec.selection import Choice, select

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - the classes of the main path first, then the errors
    "OptimizedEmbeddingLoader",
    "LoadingStrategy",
    "preload_embeddings",
    "get_embedding_provider",
    "EmbeddingProvider",
    "ResourceProfile",
    "ModelMetadata",
    "Manifest",
    "Artifact",
    "Quality",
    "Options",
    "Choice",
    "select",
    "FirstvecError",
    "ManifestError",
    "UnsupportedManifestVersion",
    "SignatureError",
    "BundleNotFound",
    "ArtifactError",
    "IntegrityError",
    "IncompatibleArtifact",
    "SelfTestError",
    "NoCompatibleArtifact",
    "LoadError",
    "LoadTimeout",
    "ClosedError",
    "InputError",
    "MissingDependency",
    "BuildError",
    "SourceError",
    "ExportError",
    "QuantizationError",
    "QualityError",
]

_MODULE_OF = {
    "OptimizedEmbeddingLoader": "loader",
    "preload_embeddings": "loader",
    "get_embedding_provider": "loader",
    "LoadingStrategy": "enums",
    "EmbeddingProvider": "provider",
    "ResourceProfile": "machine.profile",
    "ModelMetadata": "bundle.metadata",
    "Manifest": "bundle.manifest",
    "Artifact": "bundle.manifest",
    "Quality": "bundle.manifest",
    "Options": "options",
    "Choice": "selection",
    "select": "selection",
}
"""Public name → module. Every other public name is an error."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'firstvec' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"firstvec.{_MODULE_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
