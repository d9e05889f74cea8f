"""Sentence embeddings that start instantly, on the artifact that fits the machine.

Importing this package imports no numpy, onnxruntime, tokenizers or torch: each public name is resolved from its
module at first use (PEP 562), so a program pays only for what it touches.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
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
    from firstvec.hardware import ResourceProfile
    from firstvec.loader import OptimizedEmbeddingLoader, get_embedding_provider, preload_embeddings
    from firstvec.manifest import Artifact, Manifest, Quality
    from firstvec.metadata import ModelMetadata
    from firstvec.provider import EmbeddingProvider
    from firstvec.selection import Choice, select
    from firstvec.strategy import LoadingStrategy

__version__ = "0.1.0"

_MODULE_OF = {
    "ArtifactError": "errors",
    "BuildError": "errors",
    "BundleNotFound": "errors",
    "ClosedError": "errors",
    "ExportError": "errors",
    "FirstvecError": "errors",
    "IncompatibleArtifact": "errors",
    "InputError": "errors",
    "IntegrityError": "errors",
    "LoadError": "errors",
    "LoadTimeout": "errors",
    "ManifestError": "errors",
    "MissingDependency": "errors",
    "NoCompatibleArtifact": "errors",
    "QualityError": "errors",
    "QuantizationError": "errors",
    "SelfTestError": "errors",
    "SignatureError": "errors",
    "SourceError": "errors",
    "UnsupportedManifestVersion": "errors",
    "ResourceProfile": "hardware",
    "OptimizedEmbeddingLoader": "loader",
    "get_embedding_provider": "loader",
    "preload_embeddings": "loader",
    "Artifact": "manifest",
    "Manifest": "manifest",
    "Quality": "manifest",
    "EmbeddingProvider": "provider",
    "Choice": "selection",
    "select": "selection",
    "ModelMetadata": "metadata",
    "LoadingStrategy": "strategy",
}

__all__ = [  # noqa: RUF022 - classes of the main path first, then the errors
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


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'firstvec' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"firstvec.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
