"""Offline toolchain: a sentence-transformers model → a verified bundle of TorchScript, ONNX and INT8 artifacts."""

from firstvec_build.pipeline import ARTIFACT_IDS, BuildResult, build
from firstvec_build.quality import Thresholds

__all__ = ["ARTIFACT_IDS", "BuildResult", "Thresholds", "build"]
