"""Other versions of Python that are installed on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def find_python(version: str) -> Path:
    """Return an interpreter of that minor version, of pyenv or on the PATH. Skip the test where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [*sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    if on_path := shutil.which(f"python{version}"):
        found.append(Path(on_path))
    for path in found:
        if not subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode:
            return path
    pytest.skip(f"Python {version} is not installed")
