"""The options with which the tests open a session of an ONNX artifact."""

from __future__ import annotations

from pathlib import Path

from firstvec import Manifest
from firstvec.bundle.integrity import open_verified
from firstvec.engines.onnx_weights import read_weights
from firstvec.engines.onnxruntime import CPU_PROVIDER
from firstvec.engines.session import SessionOptions
from tests.loads import artifact_of


def session_options(root: Path, artifact_id: str = "onnx-fp32", *, quick_start: bool = True) -> SessionOptions:
    """Verify an artifact's files, and return what opens a session of two threads on the CPU."""
    manifest = Manifest.read(root)
    artifact = artifact_of(manifest, artifact_id)
    files = tuple(open_verified(manifest.root, file) for file in artifact.files)
    return SessionOptions(
        artifact_id=artifact_id,
        format=artifact.format,
        files=files,
        weights=read_weights(artifact_id, files),
        device="cpu",
        provider=CPU_PROVIDER,
        threads=2,
        pad_token_id=manifest.model.pad_token_id,
        embedding_dim=manifest.model.embedding_dim,
        quick_start=quick_start,
    )
