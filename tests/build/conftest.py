"""What several tests of the toolchain share: this machine's INT8 artifacts, and the tiny model as it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firstvec import ResourceProfile

INT8_HERE = f"onnx-int8-{[*ResourceProfile.detect().isa, 'avx2'][0]}"
"""An INT8 artifact that this machine can run."""
INT8_ELSEWHERE = "onnx-int8-avx2" if INT8_HERE == "onnx-int8-arm64" else "onnx-int8-arm64"
"""An INT8 artifact that this machine cannot run."""


@pytest.fixture(scope="session")
def tiny_encoder(tiny_model: Path) -> Any:
    """The tiny model in sentence-transformers, as the build loads it. Do not change it."""
    from firstvec_build import reference, source

    return reference.load_model(source.resolve(str(tiny_model)))
