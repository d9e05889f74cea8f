"""Sentence embeddings that start instantly, on the artifact that fits the machine.

Importing this package imports no numpy, onnxruntime, tokenizers or torch. Each public name is taken from its module
when it is first used (PEP 562), so a program pays only for what it uses.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firstvec.bundle.manifest import Artifact as Artifact
    from firstvec.bundle.manifest import Manifest as Manifest
    from firstvec.bundle.manifest import Quality as Quality
    from firstvec.bundle.metadata import ModelMetadata as ModelMetadata
    from firstvec.enums import LoadingStrategy as LoadingStrategy
    from firstvec.errors import *  # noqa: F403
    from firstvec.loader import OptimizedEmbeddingLoader as OptimizedEmbeddingLoader
    from firstvec.loader import get_embedding_provider as get_embedding_provider
    from firstvec.loader import preload_embeddings as preload_embeddings
    from firstvec.machine.profile import ResourceProfile as ResourceProfile
    from firstvec.options import Options as Options
    from firstvec.provider import EmbeddingProvider as EmbeddingProvider
    from firstvec.selection import Choice as Choice
    from firstvec.selection import select as select

__version__ = "0.1.0"

_NAMES = {
    "loader": "OptimizedEmbeddingLoader preload_embeddings get_embedding_provider",
    "enums": "LoadingStrategy",
    "provider": "EmbeddingProvider",
    "machine.profile": "ResourceProfile",
    "bundle.metadata": "ModelMetadata",
    "bundle.manifest": "Manifest Artifact Quality",
    "options": "Options",
    "selection": "Choice select",
    "errors": "FirstvecError ManifestError UnsupportedManifestVersion SignatureError BundleNotFound ArtifactError "
    "IntegrityError IncompatibleArtifact SelfTestError NoCompatibleArtifact LoadError LoadTimeout ClosedError "
    "InputError MissingDependency TransferError BulkError RowError InputChanged JobChanged OutputError OutputInUse "
    "WorkerError BuildError SourceError ExportError QuantizationError QualityError",
}
"""Module → its public names."""

_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'firstvec' has no attribute {name!r}")
    # `__import__`, because `import importlib` takes 0.7 ms.
    module = __import__(f"firstvec.{_MODULE_OF[name]}", fromlist=[name])
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
