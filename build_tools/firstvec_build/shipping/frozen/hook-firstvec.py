"""What an app that PyInstaller freezes needs of firstvec, beside the modules that PyInstaller finds by itself.

PyInstaller reads the names below (its manual, "Understanding PyInstaller Hooks"). Of the packages that firstvec can
use, the app gets those that are installed where it is frozen.
"""

# ruff: noqa: N999 - PyInstaller wants this name
from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

from firstvec.bundle import WHEEL_PACKAGE
from firstvec.engines.onnxruntime_c_api import find_library
from firstvec.engines.table import ENGINES

# A table has the engines' modules as text. Every other import is written as one, and PyInstaller finds it.
hiddenimports = collect_submodules("firstvec.engines")

# firstvec does not bring these packages into the app, but an app that imports one of them gets it. onnxruntime runs
# without its Python binding. torch runs no artifact unless the app asks for it. tqdm would bring multiprocessing, which
# PyInstaller imports at each start of an app that has it.
excludedimports = ["model_signing", "onnxruntime", "opentelemetry", "torch", "tqdm", "typing_extensions"]

datas = collect_data_files("firstvec")
# Installed bundles. A load maps their files, so the files must lie on disk.
_bundles = [os.path.join(entry, WHEEL_PACKAGE) for entry in sys.path]
datas += [(folder, WHEEL_PACKAGE) for folder in _bundles if os.path.isdir(folder)]
# The names of the metadata's folders tell firstvec which engines are there, and of which version.
for _distribution in ("firstvec", "tokenizers", *ENGINES["onnxruntime"].distributions):
    try:
        datas += copy_metadata(_distribution)
    except PackageNotFoundError:
        pass

try:
    # PyInstaller's own hook for onnxruntime leaves out this library, because its name ends with a version.
    binaries = [(find_library(), "onnxruntime/capi")]
except OSError:  # onnxruntime is not installed
    binaries = []
