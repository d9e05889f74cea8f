"""The engine compiled by each compiler, and its files."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.faults.conftest import Campaign, campaign
from tests.native.compiling import BUILD, find_compilers, load_module
from tests.native.files import make_text, make_weights, make_words

__all__ = ["Campaign", "campaign"]


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModuleType]:
    """Compile the extension module with each compiler of this machine. The first one is the installed module."""
    from firstvec import _native

    compiled: dict[str, ModuleType] = {"installed": _native}
    for name, command in find_compilers().items():
        path = tmp_path_factory.mktemp(name) / BUILD.NAME
        BUILD.build(path, command)
        compiled[name] = load_module(path)
    return compiled


@pytest.fixture(scope="session")
def real_files(bundle: Path) -> dict[str, Path]:
    """Return the real model's files: ``fp32``, ``int8`` and ``words``."""
    folder = bundle / "native"
    return {"fp32": folder / "model.fvw", "int8": folder / "model_qint8.fvw", "words": folder / "wordpiece.fvt"}


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write random weights files of several forms, a tables file ``words``, and random texts ``texts``."""
    folder = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(3)
    texts = [make_text(random, 30) for _ in range(40)]
    forms: dict[str, dict[str, Any]] = {
        "int8": {},
        "int8-cls": {"heads": 8, "layers": 1, "pooling": 1},
        "int8-tanh": {"hidden": 48, "heads": 2, "activation": 2, "intermediate": 112},
        "fp32": {"precision": 0, "hidden": 32, "heads": 1},
        "fp32-relu": {"precision": 0, "hidden": 48, "heads": 4, "activation": 3, "unit_length": 0},
        "fp32-static": {"precision": 0, "layers": 0},
        "int8-static": {"layers": 0},
    }
    contents = {name: make_weights(**form) for name, form in forms.items()}
    contents |= {"words": make_words(), "texts": b"".join(text.encode() + b"\0" for text in texts)}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in contents}
