"""Freeze an app that ships firstvec: what PyInstaller has to know."""

from __future__ import annotations

import os


def get_hook_dirs() -> list[str]:
    """Return the folder of the hooks, for PyInstaller, which finds this function by the entry point ``hook-dirs``."""
    return [os.path.dirname(__file__)]
