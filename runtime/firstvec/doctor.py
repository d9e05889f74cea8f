"""Examine this machine: what it is, which artifact each strategy would take here, and what is missing."""

from __future__ import annotations

import sys

from firstvec import __version__, integrity, store
from firstvec.errors import FirstvecError
from firstvec.hardware import ResourceProfile
from firstvec.loader import OptimizedEmbeddingLoader
from firstvec.record import Record
from firstvec.selection import Choice
from firstvec.strategy import LoadingStrategy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ENGINES = (
    # engine, whether nothing works without it, what to install, what it does
    ("onnxruntime", True, "onnxruntime", "runs the ONNX artifacts"),
    ("tokenizers", True, "tokenizers", "turns text into tokens"),
    ("torch", False, "firstvec[torch]", "runs the TorchScript artifact (accelerators)"),
)
_TOOLCHAIN = ("torch", "optimum", "onnx", "sentence_transformers")


class Missing(Record):
    """A package that is not installed."""

    install: str
    """What to give to ``pip install``."""
    needed_for: str
    required: bool
    """Whether nothing works without it."""


class Diagnosis(Record):
    """What `examine` found."""

    profile: ResourceProfile
    onnxruntime: str
    """How it is used: its C API, or its Python binding and why."""
    cache: str
    """The folder for what firstvec remembers."""
    searched: tuple[str, ...]
    """Where bundles are looked for, in order."""
    choices: dict[str, dict[LoadingStrategy, Choice | FirstvecError]]
    """Bundle folder → strategy → what it would take, or why nothing."""
    broken: dict[str, str]
    """Folder → error, of bundles whose manifest is not valid."""
    missing: tuple[Missing, ...]

    @property
    def healthy(self) -> bool:
        """Whether a bundle is there, none is broken, and nothing that is required is missing."""
        return bool(self.choices) and not self.broken and not any(each.required for each in self.missing)

    def to_values(self) -> dict[str, Any]:
        """The diagnosis as JSON values."""
        return {
            "firstvec": __version__,
            "python": sys.version.split()[0],
            "machine": {**self.profile.to_dict(), "engines": dict(self.profile.engines)},
            "onnxruntime": self.onnxruntime,
            "cache": self.cache,
            "searched": list(self.searched),
            "bundles": {
                root: {
                    strategy.value: {"error": str(found)} if isinstance(found, FirstvecError) else found.to_values()
                    for strategy, found in strategies.items()
                }
                for root, strategies in self.choices.items()
            },
            "broken": self.broken,
            "missing": [each.to_dict() for each in self.missing],
            "healthy": self.healthy,
        }


def examine() -> Diagnosis:
    """Look at the machine, the installed packages and every bundle of the search path. Loads no model."""
    profile = ResourceProfile.detect()
    manifests, broken = store.read_all()
    return Diagnosis(
        profile=profile,
        onnxruntime=_onnxruntime(profile),
        cache=integrity.cache_dir(),
        searched=tuple(store.search_path()),
        choices={
            manifest.root: {strategy: _choice(manifest.root, strategy) for strategy in LoadingStrategy}
            for manifest in manifests
        },
        broken=broken,
        missing=tuple(_missing(profile)),
    )


def _onnxruntime(profile: ResourceProfile) -> str:
    if profile.engine_version("onnxruntime") is None:
        return "not installed"
    from firstvec.sessions import c_api_unusable, onnx_c

    if reason := c_api_unusable():
        return f"through its Python binding: {reason}"
    return f"through its C API: {onnx_c.library().path}"


def _choice(root: str, strategy: LoadingStrategy) -> Choice | FirstvecError:
    try:
        return OptimizedEmbeddingLoader(root, strategy).choose()
    except FirstvecError as error:
        return error


def _missing(profile: ResourceProfile) -> list[Missing]:
    from importlib.util import find_spec

    found = [
        Missing(install=install, needed_for=why, required=required)
        for engine, required, install, why in _ENGINES
        if profile.engine_version(engine) is None
    ]
    if not all(find_spec(name) for name in _TOOLCHAIN):
        found.append(Missing(install="firstvec[build]", needed_for="`firstvec build`", required=False))
    return found
