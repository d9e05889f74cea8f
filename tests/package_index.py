"""What a package index checks before it takes a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def check_with_twine(*paths: Path) -> None:
    """Check wheels and sdists as a package index does. A warning is an error."""
    done = subprocess.run(
        [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "1000"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == len(paths)
