"""Command lines of bash, and a machine without the command-line libraries."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Fresh

Shell = Callable[..., subprocess.CompletedProcess[str]]

PROGRAM = str(Path(sys.executable).with_name("firstvec"))


@pytest.fixture
def shell() -> Shell:
    """Run a command line of bash. In it ``$F`` is `firstvec`, and ``$1`` … are the values."""

    def run(command: str, *values: object) -> subprocess.CompletedProcess[str]:
        arguments = ["bash", "-c", f"set -o pipefail; F={PROGRAM}; {command}", "bash", *map(str, values)]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.fixture
def bare(firstvec: Fresh, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """Run the installed `firstvec` where neither typer nor rich can be imported, as without the extra cli."""
    site = tmp_path_factory.mktemp("bare")
    (site / "sitecustomize.py").write_text("import sys\nsys.modules['typer'] = sys.modules['rich'] = None\n", "utf-8")

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return firstvec(*arguments, **options, PYTHONPATH=str(site))

    return run
